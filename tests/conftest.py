"""What makes the tests strict: rank promotion raises, warnings of the project are errors, eight CPU devices."""

import inspect
import os
import re
import textwrap
from contextlib import contextmanager

import pytest

# Before jax is imported: Keras, an oracle of some tests, would load a backend of its own.
os.environ["KERAS_BACKEND"] = "jax"

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Modules that call optax cannot bear strict dtype promotion, because optax does not.
STRICT_DTYPES = (
    *("test_data", "test_augment", "test_layers", "test_models"),
    *("test_objectives", "test_binary", "test_stopping", "test_passes"),
)


def pytest_configure(config):
    for package in ("jaxdl", "experiments"):
        config.addinivalue_line("filterwarnings", rf"error:::{package}(\..*)?")


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    if request.module.__name__.rpartition(".")[2] in STRICT_DTYPES:
        with jax.numpy_dtype_promotion("strict"):
            yield
    else:
        yield


@pytest.fixture
def real_data():
    """The folder of real data files; without it the test is skipped by name."""
    folder = os.environ.get("JAXDL_DATA")
    if not folder:
        # Real data is not part of the repository: who has none still runs every other test.
        pytest.skip("JAXDL_DATA names no folder of real data")
    return folder


@pytest.fixture
def compilations():
    """`with compilations() as names:` collects the name of every program that XLA compiles in the block."""

    @contextmanager
    def collect():
        names = []

        def listen(event, duration_secs, fun_name="", **_):
            if event == "/jax/core/compile/backend_compile_duration":
                names.append(fun_name.removeprefix("jit(").removesuffix(")"))

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield names
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return collect


@pytest.fixture
def meaning():
    """`meaning(function, **names)` runs the loop in a docstring that says what the function means; gives its names."""

    def run(function, **names):
        body = inspect.getdoc(function) + "\n"
        block = re.search(r"\n\n((?:    .*\n|\n)+)", body)
        assert block, f"{function.__name__} has no loop in its docstring"
        exec(textwrap.dedent(block.group(1)), names)
        return names

    return run


@pytest.fixture(scope="module", autouse=True)
def programs_of_the_module():
    """Compiled programs go with the module: all of them together are more than a process may map into its memory."""
    yield
    jax.clear_caches()
