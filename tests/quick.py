"""Programs that are compiled sooner and run slower, for tests in which compiling takes nearly all of the time."""

from contextlib import contextmanager

import jax
import pytest

from jaxdl import populations, seeds


@contextmanager
def quick_programs():
    """XLA takes less pains, and many seeds lie on one device, as for most users: not where bits are compared."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        for module in (seeds, populations):
            patch.setattr(module, "most_devices", lambda count: jax.local_devices()[:1])
        yield
    jax.config.update("jax_disable_most_optimizations", before)
