"""Programs that are compiled sooner and run slower, for tests in which compiling takes nearly all of the time."""

import functools
import os
from contextlib import contextmanager

import jax
import pytest
from jax._src import compiler

# XLA's newer code generator for CPUs takes twice the time of the one before.
OLDER = {"xla_cpu_use_fusion_emitters": False}


@contextmanager
def quick_programs():
    """XLA takes less pains, and many seeds lie on one device, as for most users: not where bits are compared."""
    # Imported here: tests of modules that need no JAX import this one too.
    from jaxdl.ensembles import seeds, sweeps

    with compiled_quickly(), pytest.MonkeyPatch.context() as patch:
        for module in (seeds, sweeps):
            patch.setattr(module, "most_devices", lambda count: jax.local_devices()[:1])
        yield


@contextmanager
def compiled_quickly():
    """XLA takes less pains: a quarter of the time for a small program."""
    before, options = jax.config.values["jax_disable_most_optimizations"], compiler.get_compile_options

    def with_older(*arguments, **keywords):
        keywords["env_options_overrides"] = {**(keywords.get("env_options_overrides") or {}), **OLDER}
        return options(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        if _knows_older():
            patch.setattr(compiler, "get_compile_options", with_older)
            # For the processes that tests start; this one has read its own when it compiled its first program.
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
            patch.setenv("XLA_FLAGS", flags.strip())
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def _knows_older():
    try:
        jax.jit(lambda x: x, compiler_options=OLDER).lower(1.0).compile()
    except Exception:  # Another jaxlib: XLA removes such options without notice.
        return False
    return jax.default_backend() == "cpu"
