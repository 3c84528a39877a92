"""What makes the tests strict and fast: rank promotion raises, warnings are errors, compiled programs are kept."""

import inspect
import os
import re
import textwrap
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

# Before jax is imported: Keras, an oracle of some tests, would load a backend of its own.
os.environ["KERAS_BACKEND"] = "jax"
# Compiling takes most of the time, so the suite keeps its compiled programs between runs, and shares them between
# workers and with the processes that tests start. They get the folder by the environment.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis  # noqa: E402
import jax  # noqa: E402

from tests.quick import compiled_quickly  # noqa: E402

# How long an example takes says more about the machine's other work than about the code.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Modules that call optax cannot bear strict dtype promotion, because optax does not.
STRICT_DTYPES = (
    *("data.test_arrays", "nn.test_augment", "nn.test_layers", "nn.test_models"),
    *("test_losses", "test_metrics", "train.test_rules", "train.test_evaluate"),
)

COMPILE = "/jax/core/compile/backend_compile_duration"  # JAX reports this event for a program from its cache too
imported = []  # the programs that are compiled until the tests are collected


def note_program(event, duration_secs, fun_name="", **_):
    if event == COMPILE:
        imported.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(note_program)


def pytest_collection_finish(session):
    jax.monitoring.unregister_event_duration_listener(note_program)


@pytest.fixture
def compiled_by_imports():
    """The names of the programs that were compiled while the modules of tests were imported."""
    return imported


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """`-n auto` starts one worker a core, and at most eight: each takes about 2 GiB of memory."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests that `slow.txt` lists by their time, beside those that are marked where they stand."""
    folder = Path(__file__).parent
    slow = set((folder / "slow.txt").read_text().split())
    for item in items:
        if f"{item.path.relative_to(folder).as_posix()}::{getattr(item, 'originalname', item.name)}" in slow:
            item.add_marker(pytest.mark.slow)


def pytest_configure(config):
    # By name: xdist would begin with the files of many tests, and end with one long one while the other workers wait.
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
    """`meaning(function, **names)` runs the loop in a docstring that says what the function means; gives its names."""

    def run(function, **names):
        body = inspect.getdoc(function) + "\n"
        block = re.search(r"\n\n((?:    .*\n|\n)+)", body)
        assert block, f"{function.__name__} has no loop in its docstring"
        exec(textwrap.dedent(block.group(1)), names)
        return names

    return run


# Modules that compare the bits of different programs, or what XLA makes of one: they compile as users do. Elsewhere
# both sides of a comparison are one program, or numbers may differ in the last bits.
AS_USERS_COMPILE = (
    *("train.test_step", "train.test_epoch", "train.test_loop", "train.test_loop_streamed", "train.test_fit"),
    *("train.test_nonfinite", "ensembles.test_members", "ensembles.test_seeds", "ensembles.test_sweeps"),
    *("benchmarks.scaling.test_collectives", "benchmarks.test_footprints", "runs.test_runner"),
    *("test_jit", "test_profiling"),
)


@pytest.fixture(scope="module", autouse=True)
def programs_of_the_module(request):
    """Compiled programs go with the module: all of them together are more than a process may map into its memory."""
    exact = module_name(request) in AS_USERS_COMPILE
    with nullcontext() if exact else compiled_quickly():
        yield
    jax.clear_caches()
