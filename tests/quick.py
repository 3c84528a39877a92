"""Faster compilation to slower code, for tests that spend most of their time on compilation."""

import functools
import os
from contextlib import contextmanager

import jax
import pytest
from jax._src import compiler

# The newer CPU code generator of XLA takes twice as long to compile.
OLDER = {"xla_cpu_use_fusion_emitters": False}


@contextmanager
def quick_programs():
    """Compile quickly, and train many seeds on one device. Not for bit-by-bit comparisons."""
    # Imported here: tests of modules without JAX import this module too.
    from jaxdl.ensembles import seeds, sweeps

    with compiled_quickly(), pytest.MonkeyPatch.context() as patch:
        for module in (seeds, sweeps):
            patch.setattr(module, "most_devices", lambda count: jax.local_devices()[:1])
        yield


@contextmanager
def compiled_quickly():
    """Compile with few optimizations, in a quarter of the time."""
    before, options = jax.config.values["jax_disable_most_optimizations"], compiler.get_compile_options

    def with_older(*arguments, **keywords):
        keywords["env_options_overrides"] = {**(keywords.get("env_options_overrides") or {}), **OLDER}
        return options(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        if _has_older_generator():
            patch.setattr(compiler, "get_compile_options", with_older)
            # For processes of tests; this process has read XLA_FLAGS already.
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
            patch.setenv("XLA_FLAGS", flags.strip())
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def _has_older_generator():
    try:
        jax.jit(lambda x: x, compiler_options=OLDER).lower(1.0).compile()
    except Exception:  # XLA may have removed the option.
        return False
    return jax.default_backend() == "cpu"
