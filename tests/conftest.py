"""Strict and fast tests: rank promotion raises, warnings are errors, and compiled functions are cached."""

import inspect
import os
import re
import textwrap
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

# Set before jax is imported: some tests compare with Keras, which would load another backend.
os.environ["KERAS_BACKEND"] = "jax"
# Compilation takes most of the time, so runs of the suite, workers and processes of tests share a cache. Processes read
# its folder from the environment.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis  # noqa: E402
import jax  # noqa: E402

from tests.quick import compiled_quickly  # noqa: E402

# The time of an example depends on other work of the machine.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Modules with strict dtype promotion; modules that call optax cannot be among them, because optax fails with it.
STRICT_DTYPES = (
    *("data.test_arrays", "nn.test_augment", "nn.test_layers", "nn.test_models"),
    *("test_losses", "test_metrics", "train.test_rules", "train.test_evaluate"),
)

COMPILE = "/jax/core/compile/backend_compile_duration"  # JAX reports this event for cached functions too
imported = []  # names of functions that are compiled during collection


def record_compilation(event, duration_secs, fun_name="", **_):
    if event == COMPILE:
        imported.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(record_compilation)


def pytest_collection_finish(session):
    jax.monitoring.unregister_event_duration_listener(record_compilation)


@pytest.fixture
def compiled_by_imports():
    """Names of the functions that the import of the test modules compiles."""
    return imported


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Start one worker per core for `-n auto`, but at most eight: each needs about 2 GiB of memory."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests of `slow.txt` as slow."""
    folder = Path(__file__).parent
    slow = set((folder / "slow.txt").read_text().split())
    for item in items:
        if f"{item.path.relative_to(folder).as_posix()}::{getattr(item, 'originalname', item.name)}" in slow:
            item.add_marker(pytest.mark.slow)


def pytest_configure(config):
    # By name: otherwise xdist runs files with many tests first, and a single long file last on one worker.
    config.option.loadscopereorder = False
    for package in ("jaxdl", "experiments"):
        config.addinivalue_line("filterwarnings", rf"error:::{package}(\..*)?")


def module_name(request):
    """Return the name of a test's module below `tests`, such as "train.test_step"."""
    return request.module.__name__.removeprefix("tests.")


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    if module_name(request) in STRICT_DTYPES:
        with jax.numpy_dtype_promotion("strict"):
            yield
    else:
        yield


@pytest.fixture
def real_data():
    """The folder of real data; the test is skipped without it."""
    folder = os.environ.get("JAXDL_DATA")
    if not folder:
        # Real data are not part of the repository.
        pytest.skip("JAXDL_DATA names no folder of real data")
    return folder


@pytest.fixture
def compilations():
    """`with compilations() as names:` collects the name of every function that XLA compiles in the block."""

    @contextmanager
    def collect():
        names = []

        def listen(event, duration_secs, fun_name="", **_):
            if event == COMPILE:
                names.append(fun_name.removeprefix("jit(").removesuffix(")"))

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield names
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return collect


@pytest.fixture
def meaning():
    """`meaning(function, **names)` runs the loop in the docstring of a function, and returns its variables."""

    def run(function, **names):
        body = inspect.getdoc(function) + "\n"
        block = re.search(r"\n\n((?:    .*\n|\n)+)", body)
        assert block, f"{function.__name__} has no loop in its docstring"
        exec(textwrap.dedent(block.group(1)), names)
        return names

    return run


# Modules that compare different compiled functions bit by bit, or inspect compiled functions, use all optimizations of
# XLA. Other modules compare results of the same function, or allow a tolerance.
AS_USERS_COMPILE = (
    *("train.test_step", "train.test_epoch", "train.test_loop", "train.test_fit"),
    *("train.test_nonfinite", "ensembles.test_members", "ensembles.test_seeds", "ensembles.test_sweeps"),
    *("benchmarks.scaling.test_collectives", "benchmarks.test_footprints", "runs.test_runner"),
    *("test_environment", "test_jit", "test_profiling"),
)


@pytest.fixture(scope="module", autouse=True)
def compiled_functions(request):
    """Clear compiled functions after each module: a process cannot map all of them into memory."""
    with nullcontext() if module_name(request) in AS_USERS_COMPILE else compiled_quickly():
        yield
    jax.clear_caches()
