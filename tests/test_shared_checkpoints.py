"""Checkpoints of a run that several processes share: when they are saved, and that every number of processes reads
back the bits that were saved."""

import json
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import _files, _tree, losses, saving
from jaxdl.data import examples
from jaxdl.nn import mlp
from jaxdl.runs.runner import drive
from jaxdl.saving import checkpoints
from jaxdl.saving.checkpoints import shared_keeper
from jaxdl.train import make_plan, start
from jaxdl.train.nonfinite import NotFiniteError
from jaxdl.types import Objective
from tests.groups import scripts

HISTORY = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": float("nan")}]


def tree_of(number):
    return {"number": jnp.int32(number), "key": jax.random.key(number)}


def refuse(text):
    raise AssertionError(text)


@pytest.fixture
def written(monkeypatch):
    """The numbers that are saved with the epochs told of each, without a disk; a save takes no time on the clock."""
    numbers = []
    monkeypatch.setattr(
        checkpoints,
        "write",
        lambda folder, arrays, about: numbers.append((int(arrays["number"]), len(about["history"]))),
    )
    return numbers


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now.time))
    return now


def test_a_folder_that_is_moved_is_told_and_not_made_anew(tmp_path):
    told = []
    with shared_keeper(tmp_path / "run", {}, every=0.0, tell=told.append) as keeper:
        keeper.observe(tree_of(1), HISTORY)
        keeper.save()
        (tmp_path / "run").rename(tmp_path / "moved")
        keeper.observe(tree_of(2), HISTORY)
        keeper.save()
    assert len(told) == 1 and all("was moved or removed while the run was writing there" in text for text in told)
    assert not (tmp_path / "run").exists() and saving.latest(tmp_path / "moved", refuse).number == 1


def test_it_is_due_by_the_clock_earlier_by_twice_what_a_save_takes(tmp_path, written, clock, monkeypatch):
    def write(folder, arrays, about):
        clock.time += 2
        written.append((int(arrays["number"]), clock.time))

    monkeypatch.setattr(checkpoints, "write", write)
    with shared_keeper(tmp_path, {}, every=10, tell=refuse) as keeper:
        assert not keeper.due()
        for number in range(40):
            clock.time += 1
            keeper.observe(tree_of(number), [])
            if keeper.due():
                keeper.save()
    # The first is taken to need half a second: after 9. Those after it need 2: 6 seconds after the end of the last.
    assert [number for number, _ in written] == [8, 14, 20, 26, 32, 38, 39]
    times = [time for _, time in written]
    assert max(np.diff(times)) <= 10


def test_the_history_of_a_save_is_that_of_its_moment(tmp_path, written):
    history = HISTORY[:1]
    with shared_keeper(tmp_path, {}, every=99, tell=refuse) as keeper:
        keeper.observe(tree_of(1), history)
        history.append(HISTORY[1])
    assert written == [(1, 1)]


def test_what_was_saved_last_is_not_saved_again_and_nothing_is_nothing(tmp_path, written):
    with shared_keeper(tmp_path, {}, every=0, tell=refuse) as keeper:
        keeper.save()
        keeper.observe(tree_of(1), HISTORY)
        keeper.save()
        assert not keeper.due()
    assert written == [(1, 2)]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_where_the_block_ends_with_an_error_nothing_is_saved(tmp_path, written, error):
    with pytest.raises(error), shared_keeper(tmp_path, {}, every=99, tell=refuse) as keeper:
        keeper.observe(tree_of(1), HISTORY)
        raise error
    assert written == []


def test_where_it_ends_with_numbers_that_are_not_finite_the_last_finite_ones_are_saved(tmp_path, written):
    with pytest.raises(NotFiniteError), shared_keeper(tmp_path, {}, every=99, tell=refuse) as keeper:
        keeper.observe(tree_of(1), HISTORY)
        raise NotFiniteError
    assert written == [(1, 2)]


@pytest.mark.parametrize("fails", [(_files, "reserve"), (checkpoints, "write")])
def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on(tmp_path, monkeypatch, fails):
    def full(*_):
        raise OSError(28, os.strerror(28))

    told = []
    with shared_keeper(tmp_path, {}, every=99, tell=told.append) as keeper:
        keeper.observe(tree_of(1), HISTORY)
        keeper.save()
        with monkeypatch.context() as patch:
            patch.setattr(*fails, full)
            keeper.observe(tree_of(2), HISTORY)
            keeper.save()
        assert saving.latest(tmp_path, refuse).number == 1
        keeper.observe(tree_of(3), HISTORY)
    assert told == ["a checkpoint could not be saved (No space left on device); the last good one stays."]
    assert int(saving.latest(tmp_path, refuse).arrays["number"]) == 3


# A run

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(48, 4)).astype(np.float32)
ROWS = examples(INPUTS, INPUTS.sum(1, keepdims=True))


def driven(folder, rate, epochs, **flags):
    plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(rate), batch_size=8)
    pauses = []
    with shared_keeper(folder, {}, every=0, tell=refuse) as keeper:

        def paused(progress, history):
            pauses.append(int(progress.epoch) * 6 + int(progress.cursor))
            assert len(pauses) < 50
            keeper.save()
            return False

        begin = start(plan, ROWS, key=jax.random.key(0))
        more = {"keep": keeper.observe, "pause": keeper.due, "paused": paused, **flags}
        return drive(plan, begin, ROWS, None, epochs=epochs, **more), pauses


def test_a_run_that_is_saved_as_often_as_can_be_goes_on_between_the_saves(tmp_path):
    end, pauses = driven(tmp_path, 0.01, 6)
    assert int(end.progress.epoch) == 6
    # A run that only saves stands still.
    assert pauses == sorted(set(pauses)) and len(pauses) > 2
    assert int(saving.latest(tmp_path, refuse).arrays["epoch"]) == 6


def test_what_is_not_finite_is_never_saved(tmp_path):
    end, pauses = driven(tmp_path, 1e15, 3, on_nan="continue")
    assert len(end.history) == 3 and not np.isfinite(end.history[-1]["loss"])
    saved = saving.latest(tmp_path, refuse)
    assert len(pauses) < 18
    assert all(np.isfinite(array).all() for name, array in saved.arrays.items() if name.startswith("state/weights"))
    assert len(saved.about["history"]) == int(saved.arrays["epoch"]) == 0


# Several processes

# Trains up to an epoch, all parameters and moments split over the processes, from what a folder holds; saves there, and
# tells the sums of what was read, of what was placed, and of what was saved.
TRAINS = """
import hashlib, json
import optax
from jaxdl import losses
from jaxdl.saving import latest
from jaxdl.data.arrays import examples
from jaxdl._tree import named, rebuilt
from jaxdl.nn import mlp
from jaxdl.train import make_plan
from jaxdl.runs.runner import drive
from jaxdl.distributed import make_mesh, place_progress, place_rows
from jaxdl.distributed.sharding import fetched
from jaxdl.saving.checkpoints import shared_keeper
from jaxdl.train import early_stopping
from jaxdl.train import start
from jaxdl.types import Objective

def train(folder, epochs, placed):
    inputs = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    rows = examples(inputs, inputs.sum(1, keepdims=True))
    plan = make_plan(
        mlp((12,)), Objective(losses.squared_error), optax.adam(0.01), batch_size=12, stop=early_stopping("loss"))
    begin = start(plan, rows, key=jax.random.key(3))
    sums = lambda arrays: {name: hashlib.sha256(np.asarray(array).tobytes()).hexdigest()[:16] for name, array in
                           sorted(arrays.items())}
    saved = latest(folder, print)
    told = {"read": saved and sums(saved.arrays)}
    if saved:
        begin = rebuilt(begin, saved.arrays)
    begin, rows = placed(begin), placed(rows)
    told["placed"] = sums(named(fetched(begin)))
    told["split"] = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(begin))
    with shared_keeper(folder, {}, every=0, tell=print) as keeper:
        def paused(progress, history):
            keeper.save()
        saving = {"keep": keeper.observe, "pause": keeper.due, "paused": paused}
        end = drive(plan, begin, rows, None, epochs=epochs, **saving).progress
    whole = fetched(end)
    # All have saved before anybody reads.
    processes.gathered([0])
    again = latest(folder, print)
    return {**told, "end": sums(named(whole)), "again": sums(again.arrays), "number": again.number}, whole
"""
SHARED = """
mesh = make_mesh(data=number)
def placed(tree):
    return place_rows(tree, mesh) if hasattr(tree, "inputs") else place_progress(tree, mesh, large=0)
told, _ = train(Path(given[0]), int(given[1]), placed)
print(json.dumps(told))
processes.leave()
"""


def alone(folder, epochs):
    names = {}
    exec("import jax\nimport numpy as np\nfrom jaxdl.distributed import processes\n" + TRAINS, names)
    return names["train"](folder, epochs, lambda tree: jax.tree.map(jnp.asarray, tree))


def together(number, folder, epochs):
    """What the processes tell of it, which is the same."""
    told = [json.loads(text) for text in scripts(TRAINS + SHARED, number, folder, epochs)]
    assert all(each == told[0] for each in told)
    return told[0]


@pytest.mark.processes
def test_split_weights_go_from_one_number_of_processes_to_another_bit_for_bit(tmp_path):
    folder, whole = tmp_path / "shared", alone(tmp_path / "alone", 4)[1]
    alone(folder, 1)
    one = saving.latest(folder, refuse)
    two = together(2, folder, 2)
    three = together(3, folder, 3)
    last, progress = alone(folder, 4)
    assert two["split"] > 9 and three["split"] > 9 and last["split"] == 0
    assert two["number"] > one.number and three["number"] > two["number"]
    for told in (two, three, last):
        # What was saved is what is read, and what is placed is what was read.
        assert told["placed"] == told["read"] and told["again"] == told["end"]
    assert two["end"] == three["read"] and three["end"] == last["read"]
    # And the run is that of one process.
    expected = _tree.named(whole)
    for name, array in _tree.named(progress).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.processes
def test_where_one_process_has_no_room_nobody_saves_and_the_run_goes_on(tmp_path):
    body = """
from jaxdl import _files
from jaxdl.distributed import make_mesh, place_progress
from jaxdl.saving.checkpoints import shared_keeper
def full(*_):
    raise OSError(28, os.strerror(28))
usual = _files.reserve
with shared_keeper(Path(given[0]), {}, every=99, tell=print) as keeper:
    for step in range(4):
        # On process 1 alone, then on process 0 alone, then on neither.
        _files.reserve = full if step == 1 - own else usual
        keeper.observe(place_progress({"step": np.int32(step)}, make_mesh()), [])
        keeper.save()
        print(step, *sorted(path.name for path in Path(given[0]).iterdir()))
        processes.gathered([0])
processes.leave()
"""
    said = scripts(body, 2, tmp_path / "saved")
    text = "a checkpoint could not be saved ({}); the last good one stays."
    here, there = text.format("No space left on device"), text.format("by another process")
    assert said[0].splitlines() == [there, "0", here, "1", "2 1", "3 1 2"]
    assert said[1].splitlines() == [here, "0", there, "1", "2 1", "3 1 2"]
    assert int(saving.latest(tmp_path / "saved", refuse).arrays["step"]) == 3
