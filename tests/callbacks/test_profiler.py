"""Traces: what is in the files, when they begin and end, and that the run is left alone."""

import functools
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.callbacks import _profiler, profiler
from jaxdl.callbacks._profiler import record_trace
from jaxdl.data import dataset
from jaxdl.errors import InputError
from jaxdl.losses import squared_error
from jaxdl.nn import mlp
from jaxdl.runs.runner import drive
from jaxdl.train import make_plan, start
from jaxdl.train.fit import fit

DRAWS = np.random.default_rng(0)
ROWS = dataset(DRAWS.normal(size=(64, 5)), DRAWS.normal(size=(64, 1)))
PLAN = make_plan(mlp((7,)), squared_error, optax.sgd(0.1), batch_size=16)


def events(folder):
    """The events of the only trace in a folder."""
    (path,) = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def modules(folder):
    """How many operations of each compiled program are in the trace."""
    names = [event["args"]["hlo_module"] for event in events(folder) if "hlo_module" in event.get("args", {})]
    return {name: names.count(name) for name in names}


def test_a_trace_names_the_compiled_function_and_its_operations(tmp_path):
    def a_program_of_mine(a):
        return jnp.tanh(a @ a)

    compiled = jax.jit(a_program_of_mine)
    matrix = jax.block_until_ready(compiled(jnp.ones((64, 64))))
    with record_trace(tmp_path):
        jax.block_until_ready(compiled(matrix))
    assert modules(tmp_path)["jit_a_program_of_mine"] > 0
    text = compiled.lower(matrix).compile().as_text()
    operations = {event["args"]["hlo_op"] for event in events(tmp_path) if "hlo_op" in event.get("args", {})}
    assert any(f"%{name} = " in text for name in operations)


def test_tensorboard_finds_its_file_beside_it(tmp_path):
    with record_trace(tmp_path):
        jax.block_until_ready(jnp.ones(3) + 1)
    (path,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert b"/host:CPU" in path.read_bytes()


def test_no_python_functions_are_traced(tmp_path):
    def traced_by_no_one():
        return jax.block_until_ready(jnp.ones(3) + 1)

    with record_trace(tmp_path):
        traced_by_no_one()
    assert not any("traced_by_no_one" in event.get("name", "") for event in events(tmp_path))


def test_only_one_profile_may_run(tmp_path):
    with record_trace(tmp_path / "first"):
        with pytest.raises(InputError, match="only one"), record_trace(tmp_path / "second"):
            pass
        jax.block_until_ready(jnp.ones(3) + 1)
    assert events(tmp_path / "first") and not list(tmp_path.glob("second/**/*.gz"))


def test_a_profile_ends_with_its_block_however_that_ends(tmp_path):
    with pytest.raises(ZeroDivisionError), record_trace(tmp_path / "first"):
        raise ZeroDivisionError
    with record_trace(tmp_path / "second"):
        pass
    assert events(tmp_path / "first") is not None


def recorded(monkeypatch):
    """What `tracing` begins and ends, instead of traces."""
    log = []

    class Pretended:
        def __init__(self, folder):
            pass

        def __enter__(self):
            log.append("begin")

        def __exit__(self, *_):
            log.append("end")

    monkeypatch.setattr(_profiler, "record_trace", Pretended)
    return log


def through(callback, log, last, begin=0):
    """Epochs up to the last, each told to a callback and noted."""
    for epoch in range(begin + 1, last + 1):
        log.append(epoch)
        callback(beginning()._replace(epoch=jnp.int32(epoch)), [])


@functools.cache
def beginning():
    return start(PLAN, ROWS, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("begin", "last", "expected"),
    [
        (0, 6, [1, "begin", 2, 3, "end", 4, 5, 6]),
        (0, 2, [1, "begin", 2, "end"]),
        (4, 6, [5, "begin", 6, "end"]),
        (0, 1, ["begin", 1, "end"]),
        (4, 5, ["begin", 5, "end"]),
    ],
)
def test_two_epochs_after_the_first_are_traced_or_the_only_one(monkeypatch, tmp_path, begin, last, expected):
    log = recorded(monkeypatch)
    with profiler(tmp_path, initial_epoch=begin, last=last, epochs=2) as callback:
        through(callback, log, last, begin)
    assert log == expected


def test_a_trace_ends_after_its_seconds_within_an_epoch_too(monkeypatch, tmp_path):
    log, now = recorded(monkeypatch), [0.0]
    monkeypatch.setattr(_profiler.time, "monotonic", lambda: now[0])
    with profiler(tmp_path, seconds=2) as callback:
        # Chunks of epoch 2, a second each.
        for now[0] in (0.0, 1.0, 2.0, 3.0):
            callback(beginning()._replace(epoch=jnp.int32(1)), [])
            log.append(now[0])
    assert log == ["begin", 0.0, 1.0, "end", 2.0, 3.0]


def test_a_trace_ends_with_a_run_that_fails(monkeypatch, tmp_path):
    log = recorded(monkeypatch)
    with pytest.raises(ZeroDivisionError), profiler(tmp_path) as callback:
        through(callback, log, 2)
        raise ZeroDivisionError
    assert log == [1, "begin", 2, "end"]


def test_a_run_is_traced_and_comes_out_the_same(tmp_path):
    plain = drive(PLAN, beginning(), ROWS, None, epochs=6)
    with profiler(tmp_path, last=6) as callback:
        traced = drive(PLAN, beginning(), ROWS, None, epochs=6, callbacks=[callback])
    leaves = map(jax.tree.leaves, (plain.state.train_state.variables, traced.state.train_state.variables))
    assert all((a == b).all() for a, b in zip(*leaves, strict=True))
    # Its steps are in a loop, each of which takes several operations.
    assert max(modules(tmp_path).values()) >= 4


def test_a_callback_of_fit_traces_too(tmp_path):
    with profiler(tmp_path, last=4) as callback:
        fit(
            PLAN.model,
            PLAN.objective.loss,
            PLAN.optimizer,
            ROWS,
            metrics=PLAN.objective.metrics,
            epochs=4,
            batch_size=16,
            callbacks=[callback],
        )
    assert modules(tmp_path)


def test_another_trace_is_a_warning_and_the_run_continues(tmp_path):
    log = []
    with record_trace(tmp_path / "other"), profiler(tmp_path / "own", warn=log.append) as callback:
        through(callback, [], 5)
    assert len(log) == 1 and log[0].startswith("there is no profile, because a profile must be the only one")


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    log = []
    with profiler(tmp_path / "file", warn=log.append) as callback:
        through(callback, [], 5)
    assert len(log) == 1 and "must be a folder that can be written" in log[0]
    # Another is free to begin.
    with record_trace(tmp_path / "next"):
        pass


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_traces_of_nothing_are_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="a trace must have an epoch and some time"), profiler(tmp_path, **wrong):
        pass
