"""What makes the tests strict: rank promotion raises, warnings of the project are errors, four CPU devices."""

import os
import warnings

import pytest

# Before jax is imported: Keras, an oracle of some tests, otherwise loads a backend of its own.
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Modules that call optax cannot bear strict dtype promotion, because optax does not.
STRICT_DTYPES = ("test_data", "test_objectives", "test_stopping", "test_passes", "test_models")


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
        pytest.skip("JAXDL_DATA names no folder of real data")
    return folder


@pytest.fixture
def compilations():
    """Counts the programs that XLA compiles within a `with compilations() as names` block, by name."""
    from tests.counting import compilations

    return compilations
