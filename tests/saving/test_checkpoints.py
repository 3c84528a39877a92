"""Checkpoints of a run: when they are saved, what comes back, and what becomes of damaged ones."""

import asyncio
import datetime
import errno
import json
import os
import pathlib
import shutil
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import _files, _tree, losses, saving
from jaxdl._files import exclusive
from jaxdl.data import dataset
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.runs.runner import drive
from jaxdl.saving import checkpoints
from jaxdl.saving.checkpoints import shared_checkpointer
from jaxdl.train import make_plan, start
from jaxdl.train.nonfinite import NonFiniteError
from tests.groups import scripts

HISTORY = [{"epoch": 1, "loss": 0.1, "val_loss": float("nan")}, {"epoch": 2, "loss": 1e-45, "val_loss": float("inf")}]


def tree_of(number):
    return {
        "number": jnp.int32(number),
        "key": jax.random.key(number),
        "yes": jnp.bool_(True),
        "w": jnp.ones((3, 2)) / 3,
    }


def refuse(text):
    raise AssertionError(text)


def keep(folder, *numbers, every=0.0, warn=refuse, about=None):
    """Saves each tree before the next one is seen."""
    for number in numbers:
        with saving.checkpointer(folder, about or {"config": {"seed": 3}}, every=every, warn=warn) as observe:
            observe(tree_of(number), HISTORY)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, which the tests below copy."""
    folder = tmp_path_factory.mktemp("saved") / "progress"
    keep(folder, 1, 2, 3)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "progress")


def test_what_was_saved_comes_back_to_the_bit(saved):
    checkpoint = saving.restore_latest(saved, refuse)
    again = _tree.unflatten_named(tree_of(0), checkpoint.arrays)
    expected = _tree.flatten_named(tree_of(3))
    assert checkpoint.number == 3 and set(expected) == set(checkpoint.arrays)
    for name, array in _tree.flatten_named(again).items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name])
    assert checkpoint.about["config"] == {"seed": 3} and repr(checkpoint.about["history"]) == repr(HISTORY)
    _tree.check_structure(checkpoint.about["kinds"], tree_of(0))


def test_the_latest_and_the_one_before_are_kept(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert saving.restore_latest(tmp_path / "progress", refuse) is None


def test_no_file_of_a_checkpoint_can_run_code(saved):
    # Pickles begin with a protocol mark; what is there is JSON, OCDBT and its chunks.
    for path in saved.rglob("*"):
        assert not path.is_file() or (path.read_bytes()[:1] != b"\x80" and path.suffix not in (".pkl", ".py"))


@pytest.mark.parametrize("change", ["truncated", "flipped", "missing", "no checksums", "link"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(folder, change):
    paths = sorted((path for path in (folder / "3").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    path, content = paths[-1], paths[-1].read_bytes()
    match change:
        case "truncated":
            path.write_bytes(content[:-1])
        case "flipped":
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "missing":
            path.unlink()
        case "no checksums":
            (folder / "3" / _files.CHECKSUMS).unlink()
        case "link":
            path.unlink()
            path.symlink_to("/etc/passwd")
    messages = []
    checkpoint = saving.restore_latest(folder, messages.append)
    assert checkpoint.number == 2 and int(checkpoint.arrays["number"]) == 2
    assert len(messages) == 1 and "3 is damaged" in messages[0] and "\n" not in messages[0]
    # Put aside, not thrown away; and the warning comes once.
    assert (folder / "damaged-3").is_dir()
    assert saving.restore_latest(folder, refuse).number == 2


def test_where_all_are_damaged_it_is_told_what_to_do(folder):
    for number in (2, 3):
        (folder / str(number) / "arrays" / "_METADATA").write_text("{}")
    messages = []
    with pytest.raises(
        InputError, match=r"every checkpoint in .* is damaged. Restore one from a copy, or start over with"
    ):
        saving.restore_latest(folder, messages.append)
    assert (
        len(messages) == 2
        and messages[0].endswith("the one before is used.")
        and messages[1].endswith("it is now damaged-2.")
    )
    # A second try must not take the folder for one where nothing was saved, and begin anew in it.
    with pytest.raises(InputError, match="every checkpoint in"):
        saving.restore_latest(folder, refuse)


def test_a_save_that_was_cut_off_is_told_and_removed(folder):
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    messages = []
    assert saving.restore_latest(folder, messages.append).number == 3
    assert len(messages) == 1 and "4.orbax-checkpoint-tmp is damaged (its save was not finished)" in messages[0]
    assert not (folder / "4.orbax-checkpoint-tmp").exists()


def test_a_first_save_that_was_cut_off_leaves_none(folder):
    shutil.rmtree(folder / "2")
    (folder / "3" / _files.CHECKSUMS).unlink()
    assert saving.restore_latest(folder, lambda text: None) is None


def test_saving_goes_on_after_damage_and_keeps_the_good_one(folder):
    (folder / "3" / "about" / "metadata").write_text("{}")
    saving.restore_latest(folder, lambda text: None)
    keep(folder, 7)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "damaged-3"]
    assert int(saving.restore_latest(folder, refuse).arrays["number"]) == 7


def test_a_checkpoint_that_is_whole_but_cannot_be_read_is_not_called_damaged(folder):
    about = folder / "3" / "about" / "metadata"
    about.write_text(json.dumps({**json.loads(about.read_text()), "arrays": {}}))
    (folder / "3" / _files.CHECKSUMS).unlink()
    _files.write_checksums(folder / "3")
    with pytest.raises(InputError, match="is as it was saved, but cannot be read"):
        saving.restore_latest(folder, refuse)
    assert (folder / "3").is_dir()


# When


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now.time))
    monkeypatch.setattr(checkpoints, "FIRST_SAVE", 0.0)
    return now


@pytest.fixture
def written(monkeypatch):
    """The numbers that are saved, without a disk."""
    numbers = []
    monkeypatch.setattr(
        checkpoints,
        "write",
        lambda folder, arrays, about: numbers.append((int(arrays["number"]), len(about["history"]))),
    )
    return numbers


def settled():
    """Until the thread that saves is idle; it does next to nothing here."""
    time.sleep(0.05)


def test_saves_follow_the_clock_and_the_last_is_at_the_end(tmp_path, clock, written):
    with saving.checkpointer(tmp_path, {}, every=10, warn=refuse) as observe:
        for number in range(35):
            clock.time = 100 + number
            observe(tree_of(number), HISTORY[: number % 3])
            settled()
    # A second early, because there is one between the questions; from the second on three, because a save is seen to be
    # over after one and may take twice as long.
    assert [number for number, _ in written] == [9, 16, 23, 30, 34]
    assert [length for _, length in written] == [number % 3 for number, _ in written]


def test_what_was_saved_last_is_not_saved_again_at_the_end(tmp_path, clock, written):
    with saving.checkpointer(tmp_path, {}, every=0, warn=refuse) as observe:
        observe(tree_of(1), HISTORY)
    assert written == [(1, 2)]
    with saving.checkpointer(tmp_path, {}, every=0, warn=refuse):
        pass
    assert written == [(1, 2)]


def test_a_run_that_fails_is_saved_too(tmp_path, clock, written):
    with pytest.raises(KeyboardInterrupt), saving.checkpointer(tmp_path, {}, every=99, warn=refuse) as observe:
        observe(tree_of(1), HISTORY)
        raise KeyboardInterrupt
    assert written == [(1, 2)]


def test_training_never_waits_for_a_save(tmp_path, monkeypatch):
    go, began = threading.Event(), []
    monkeypatch.setattr(checkpoints, "write", lambda *_: (began.append(1), go.wait(30)))
    with saving.checkpointer(tmp_path, {}, every=0, warn=refuse) as observe:
        start = time.monotonic()
        for number in range(20):
            observe(tree_of(number), HISTORY)
        assert time.monotonic() - start < 10 and len(began) <= 1
        go.set()


def test_the_history_of_a_save_is_that_of_its_moment(tmp_path, monkeypatch):
    calls, go = [], threading.Event()
    monkeypatch.setattr(
        checkpoints, "write", lambda folder, arrays, about: (go.wait(30), calls.append(about["history"]))
    )
    history = HISTORY[:1]
    with saving.checkpointer(tmp_path, {}, every=0, warn=refuse) as observe:
        observe(tree_of(1), history)
        history.append(HISTORY[1])
        go.set()
    assert len(calls[0]) == 1


def test_a_save_at_the_end_does_not_tell_of_epochs_after_its_own(tmp_path):
    history = HISTORY[:1]
    with saving.checkpointer(tmp_path, {}, every=99, warn=refuse) as observe:
        observe(tree_of(1), history)
        # Of an epoch whose numbers are not finite, which is not shown to the checkpointer.
        history.append(HISTORY[1])
    assert len(saving.restore_latest(tmp_path, refuse).about["history"]) == 1


def test_a_full_disk_is_told_and_the_last_good_checkpoint_stays(folder, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    messages = []
    monkeypatch.setattr(_files, "reserve", full)
    keep(folder, 8, warn=messages.append)
    # It is tried once more at the end.
    text = f"a checkpoint could not be saved (No space left on device); the last good one in {folder} stays."
    assert messages == [text, text]
    monkeypatch.undo()
    assert saving.restore_latest(folder, refuse).number == 3
    keep(folder, 9)
    assert int(saving.restore_latest(folder, refuse).arrays["number"]) == 9


def test_a_save_that_fails_midway_leaves_nothing_half_written(folder, monkeypatch):
    monkeypatch.setattr(_files, "write_checksums", lambda path: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    messages = []
    keep(folder, 8, warn=messages.append)
    assert messages and "No space left" in messages[0]
    # The one before went when the new one was there, as it should; the latest good one is still there.
    assert saving.restore_latest(folder, refuse).number == 3


def test_uneven_leaves_come_back_from_a_checkpoint(tmp_path):
    tree = {
        "a/b": jnp.ones(2),
        "a": {"b": jnp.zeros(2), "~1": jnp.full(2, 3.0)},
        "a~1b": jnp.full(2, 2.0),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
    }
    arrays, about = checkpoints.checkpoint_content({}, tree, [])
    checkpoints.write(tmp_path, arrays, about)
    restored = _tree.unflatten_named(tree, checkpoints.read(tmp_path, 1).arrays)
    jax.tree.map(np.testing.assert_array_equal, restored, tree)
    assert restored["empty"].dtype == jnp.bfloat16


# What a caller tells about a run


@pytest.mark.parametrize(
    ("given", "remaining"),
    [
        (np.int64(32), 32),
        (np.float32(0.5), 0.5),
        (jnp.bfloat16(1.5), 1.5),
        (np.bool_(True), True),
        (np.arange(3), [0, 1, 2]),
        (pathlib.Path("a", "b"), "a/b"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (np.dtype("float32"), "float32"),
        (jnp.float32, "float32"),
        ((1, (2.5, None)), [1, [2.5, None]]),
        ({2, 1}, [1, 2]),
        ({np.int64(1): {"a": np.int8(2)}}, {"1": {"a": 2}}),
    ],
    ids=str,
)
def test_values_that_json_does_not_know_are_saved_in_their_plain_form(given, remaining, tmp_path):
    assert json.loads(json.dumps(checkpoints.check_about({"it": given}))) == {"it": remaining}


@pytest.mark.parametrize(
    "given",
    [b"x", 1j, len, object(), jax.random.key(0), {1: 2, "1": 3}, np.ma.masked, np.array([None])],
    ids=lambda value: type(value).__name__,
)
def test_values_without_a_plain_form_are_refused_before_the_first_save(given, tmp_path):
    with (
        pytest.raises(InputError, match=r"about\['it'\] must"),
        saving.checkpointer(tmp_path, {"it": given}, every=9, warn=refuse),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ({"about": {"history": 1}}, 'about must not have an entry "history"'),
        ({"about": "config"}, "about must be a dict, got str"),
        ({"folder": 3}, "folder must be a path or a string, got 3"),
        ({"folder": "a[1]"}, "folder must be on this machine"),
        ({"folder": "gs://bucket/a"}, "folder must be on this machine"),
        ({"every": -1}, "every must be a number of seconds"),
        ({"every": None}, "every must be a number of seconds"),
    ],
    ids=str,
)
def test_arguments_that_could_not_be_saved_are_refused_at_the_start(arguments, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"folder": "a", "about": {}, "every": 9, "warn": refuse, **arguments}
    with pytest.raises(InputError, match=output), saving.checkpointer(**flags):
        pass


def test_a_file_in_the_place_of_the_folder_is_refused_at_the_start(tmp_path):
    (tmp_path / "a").write_text("")
    with (
        pytest.raises(InputError, match="a cannot be made"),
        saving.checkpointer(str(tmp_path / "a"), {}, every=9, warn=refuse),
    ):
        pass


def test_a_record_of_numpy_numbers_is_saved(tmp_path):
    with saving.checkpointer(str(tmp_path), {}, every=9, warn=refuse) as observe:
        observe(tree_of(1), [{"epoch": np.int64(1), "loss": np.float32(0.5)}])
    assert saving.restore_latest(str(tmp_path), refuse).about["history"] == [{"epoch": 1, "loss": 0.5}]


def test_what_was_put_aside_is_removed_once_a_checkpoint_is_whole(folder):
    (numbers,) = [checkpoints.checkpoint_numbers(folder)]
    path = folder / str(numbers[-1]) / "about" / "metadata"
    path.write_bytes(path.read_bytes()[:-1])
    messages = []
    assert saving.restore_latest(folder, messages.append).number == numbers[0] and "damaged" in messages[0]
    assert [path.name for path in folder.glob("damaged-*")] == [f"damaged-{numbers[-1]}"]
    assert saving.restore_latest(folder, refuse).number == numbers[0]
    assert not [*folder.glob("damaged-*")]


def test_who_looks_while_a_run_saves_there_changes_nothing(folder):
    number = max(checkpoints.checkpoint_numbers(folder))
    path = folder / str(number) / "about" / "metadata"
    path.write_bytes(path.read_bytes()[:-1])
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    before = sorted(path.name for path in folder.iterdir())
    messages = []
    with exclusive(folder):
        assert saving.restore_latest(folder, messages.append).number == number - 1
    assert sorted(path.name for path in folder.iterdir()) == before and len(messages) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(folder, monkeypatch, number):
    def refuse_to_open(path):
        raise OSError(number, os.strerror(number), str(path))

    before = sorted(path.name for path in folder.rglob("*"))
    monkeypatch.setattr(_files, "_sha256", refuse_to_open)
    with pytest.raises(InputError, match=rf"the checkpoint .* cannot be read \({os.strerror(number)}\)"):
        saving.restore_latest(folder, refuse)
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_checkpoint_that_needs_more_memory_than_there_is_is_refused(folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "_memory", lambda: 10)
    with pytest.raises(InputError, match="bytes of memory, and this machine has 10"):
        saving.restore_latest(folder, refuse)


def test_a_folder_that_is_moved_while_a_run_saves_is_told_and_not_made_anew(tmp_path):
    messages = []
    with saving.checkpointer(tmp_path / "run", {}, every=0.0, warn=messages.append) as observe:
        observe(tree_of(1), [{"epoch": 1}])
        until(lambda: (tmp_path / "run" / "1" / _files.CHECKSUMS).exists())
        (tmp_path / "run").rename(tmp_path / "moved")
        observe(tree_of(2), [{"epoch": 1}, {"epoch": 2}])
    assert len(messages) >= 1 and all(
        "was moved or removed while the run was writing there" in text for text in messages
    )
    assert not (tmp_path / "run").exists() and saving.restore_latest(tmp_path / "moved", refuse).number == 1


def test_a_folder_that_is_moved_in_the_middle_of_a_save_is_told_and_not_made_anew(tmp_path, monkeypatch):
    whole = checkpoints.write

    def write(folder, *content):
        whole(folder, *content)
        folder.rename(tmp_path / "moved")

    messages = []
    monkeypatch.setattr(checkpoints, "write", write)
    with saving.checkpointer(tmp_path / "run", {}, every=0.0, warn=messages.append) as observe:
        observe(tree_of(1), [{"epoch": 1}])
        until((tmp_path / "moved").exists)
        observe(tree_of(2), [{"epoch": 1}, {"epoch": 2}])
    assert len(messages) >= 1 and all(
        "was moved or removed while the run was writing there" in text for text in messages
    )
    assert not (tmp_path / "run").exists() and saving.restore_latest(tmp_path / "moved", refuse).number == 1


def test_what_a_stranger_has_cut_and_summed_anew_is_refused_without_tracebacks(tmp_path, capfd):
    arrays = {f"a{number:02d}": jnp.ones((50, 20)) * number for number in range(30)}
    checkpoints.write(tmp_path, *checkpoints.checkpoint_content({}, arrays, []))
    for path in (tmp_path / "1" / "arrays" / "d").iterdir():
        os.truncate(path, 100)
    (tmp_path / "1" / _files.CHECKSUMS).unlink()
    _files.write_checksums(tmp_path / "1")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.read(tmp_path, 1)
    time.sleep(0.2)  # Orbax's threads would print them late.
    assert capfd.readouterr().err == ""


def test_what_begins_while_orbax_reads_ends_before_its_loop_closes_and_logs_nothing(caplog):
    async def read():
        await asyncio.sleep(0.05)
        ended.append(True)
        raise ValueError("a second file is damaged too")

    ended = []
    with checkpoints.finish_reads():
        loop = asyncio.new_event_loop()
        reading = loop.create_task(read())
        loop.close()
    assert (
        ended
        and reading.done()
        and loop.is_closed()
        and type(asyncio.get_event_loop_policy()) is asyncio.DefaultEventLoopPolicy
    )


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Checkpoints of a run that several processes share: when they are saved, and that every number of processes reads

SHARED_HISTORY = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": float("nan")}]


def shared_tree(number):
    return {"number": jnp.int32(number), "key": jax.random.key(number)}


@pytest.fixture
def shared_saves(monkeypatch):
    """The numbers that are saved and the epochs of each, without a disk; a save takes no time on the clock."""
    numbers = []
    monkeypatch.setattr(
        checkpoints,
        "write",
        lambda folder, arrays, about: numbers.append((int(arrays["number"]), len(about["history"]))),
    )
    return numbers


@pytest.fixture
def shared_clock(monkeypatch):
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now.time))
    return now


def test_a_folder_that_is_moved_is_told_and_not_made_anew(tmp_path):
    messages = []
    with shared_checkpointer(tmp_path / "run", {}, every=0.0, warn=messages.append) as checkpointer:
        checkpointer.observe(shared_tree(1), SHARED_HISTORY)
        checkpointer.save()
        (tmp_path / "run").rename(tmp_path / "moved")
        checkpointer.observe(shared_tree(2), SHARED_HISTORY)
        checkpointer.save()
    assert len(messages) == 1 and all(
        "was moved or removed while the run was writing there" in text for text in messages
    )
    assert not (tmp_path / "run").exists() and saving.restore_latest(tmp_path / "moved", refuse).number == 1


def test_it_is_due_by_the_clock_earlier_by_twice_what_a_save_takes(tmp_path, shared_saves, shared_clock, monkeypatch):
    def write(folder, arrays, about):
        shared_clock.time += 2
        shared_saves.append((int(arrays["number"]), shared_clock.time))

    monkeypatch.setattr(checkpoints, "write", write)
    with shared_checkpointer(tmp_path, {}, every=10, warn=refuse) as checkpointer:
        assert not checkpointer.due()
        for number in range(40):
            shared_clock.time += 1
            checkpointer.observe(shared_tree(number), [])
            if checkpointer.due():
                checkpointer.save()
    # The first is taken to need half a second: after 9. Those after it need 2: 6 seconds after the end of the last.
    assert [number for number, _ in shared_saves] == [8, 14, 20, 26, 32, 38, 39]
    times = [time for _, time in shared_saves]
    assert max(np.diff(times)) <= 10


def test_the_history_of_a_shared_save_is_that_of_its_moment(tmp_path, shared_saves):
    history = SHARED_HISTORY[:1]
    with shared_checkpointer(tmp_path, {}, every=99, warn=refuse) as checkpointer:
        checkpointer.observe(shared_tree(1), history)
        history.append(SHARED_HISTORY[1])
    assert shared_saves == [(1, 1)]


def test_what_was_saved_last_is_not_saved_again_and_nothing_is_nothing(tmp_path, shared_saves):
    with shared_checkpointer(tmp_path, {}, every=0, warn=refuse) as checkpointer:
        checkpointer.save()
        checkpointer.observe(shared_tree(1), SHARED_HISTORY)
        checkpointer.save()
        assert not checkpointer.due()
    assert shared_saves == [(1, 2)]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_where_the_block_ends_with_an_error_nothing_is_saved(tmp_path, shared_saves, error):
    with pytest.raises(error), shared_checkpointer(tmp_path, {}, every=99, warn=refuse) as checkpointer:
        checkpointer.observe(shared_tree(1), SHARED_HISTORY)
        raise error
    assert shared_saves == []


def test_where_it_ends_with_numbers_that_are_not_finite_the_last_finite_ones_are_saved(tmp_path, shared_saves):
    with pytest.raises(NonFiniteError), shared_checkpointer(tmp_path, {}, every=99, warn=refuse) as checkpointer:
        checkpointer.observe(shared_tree(1), SHARED_HISTORY)
        raise NonFiniteError
    assert shared_saves == [(1, 2)]


@pytest.mark.parametrize("fails", [(_files, "reserve"), (checkpoints, "write")])
def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on(tmp_path, monkeypatch, fails):
    def full(*_):
        raise OSError(28, os.strerror(28))

    messages = []
    with shared_checkpointer(tmp_path, {}, every=99, warn=messages.append) as checkpointer:
        checkpointer.observe(shared_tree(1), SHARED_HISTORY)
        checkpointer.save()
        with monkeypatch.context() as patch:
            patch.setattr(*fails, full)
            checkpointer.observe(shared_tree(2), SHARED_HISTORY)
            checkpointer.save()
        assert saving.restore_latest(tmp_path, refuse).number == 1
        checkpointer.observe(shared_tree(3), SHARED_HISTORY)
    assert messages == [
        f"a checkpoint could not be saved (No space left on device); the last good one in {tmp_path} stays."
    ]
    assert int(saving.restore_latest(tmp_path, refuse).arrays["number"]) == 3


# A run

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(48, 4)).astype(np.float32)
ROWS = dataset(INPUTS, INPUTS.sum(1, keepdims=True))


def driven(folder, rate, epochs, **flags):
    plan = make_plan(mlp(()), losses.squared_error, optax.sgd(rate), batch_size=8)
    pauses = []
    with shared_checkpointer(folder, {}, every=0, warn=refuse) as checkpointer:

        def paused(run_state, history):
            pauses.append(int(run_state.epoch) * 6 + int(run_state.cursor))
            assert len(pauses) < 50
            checkpointer.save()
            return False

        begin = start(plan, ROWS, key=jax.random.key(0))
        more = {"save": checkpointer.observe, "should_pause": checkpointer.due, "on_pause": paused, **flags}
        return drive(plan, begin, ROWS, None, epochs=epochs, **more), pauses


def test_a_run_that_is_saved_as_often_as_can_be_goes_on_between_the_saves(tmp_path):
    end, pauses = driven(tmp_path, 0.01, 6)
    assert int(end.state.epoch) == 6
    # A run that only saves stands still.
    assert pauses == sorted(set(pauses)) and len(pauses) > 2
    assert int(saving.restore_latest(tmp_path, refuse).arrays["epoch"]) == 6


def test_what_is_not_finite_is_never_saved(tmp_path):
    end, pauses = driven(tmp_path, 1e15, 3, on_nan="continue")
    assert len(end.history) == 3 and not np.isfinite(end.history[-1]["loss"])
    saved = saving.restore_latest(tmp_path, refuse)
    assert len(pauses) < 18
    assert all(
        np.isfinite(array).all() for name, array in saved.arrays.items() if name.startswith("train_state/variables")
    )
    assert len(saved.about["history"]) == int(saved.arrays["epoch"]) == 0


# Several processes

# Trains up to an epoch, all parameters and moments split over the processes, from what a folder holds; saves there, and
# tells the sums of what was read, of what was placed, and of what was saved.
TRAINS = """
import hashlib, json
import optax
from jaxdl import losses
from jaxdl.saving import restore_latest
from jaxdl.data.arrays import dataset
from jaxdl._tree import flatten_named, unflatten_named
from jaxdl.nn import mlp
from jaxdl.train import make_plan
from jaxdl.runs.runner import drive
from jaxdl.distributed import make_mesh, shard_dataset, shard_state
from jaxdl.distributed.sharding import to_host
from jaxdl.saving.checkpoints import shared_checkpointer
from jaxdl.train import early_stopping
from jaxdl.train import start
from jaxdl.types import Objective

def train(folder, epochs, placed):
    inputs = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    rows = dataset(inputs, inputs.sum(1, keepdims=True))
    plan = make_plan(
        mlp((12,)), losses.squared_error, optax.adam(0.01), batch_size=12,
        early_stopping=early_stopping("loss"),
    )
    begin = start(plan, rows, key=jax.random.key(3))
    sums = lambda arrays: {name: hashlib.sha256(np.asarray(array).tobytes()).hexdigest()[:16] for name, array in
                           sorted(arrays.items())}
    saved = restore_latest(folder, print)
    report = {"read": saved and sums(saved.arrays)}
    if saved:
        begin = unflatten_named(begin, saved.arrays)
    begin, rows = placed(begin), placed(rows)
    report["placed"] = sums(flatten_named(to_host(begin)))
    report["split"] = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(begin))
    with shared_checkpointer(folder, {}, every=0, warn=print) as checkpointer:
        def paused(run_state, history):
            checkpointer.save()
        saving = {"save": checkpointer.observe, "should_pause": checkpointer.due, "on_pause": paused}
        end = drive(plan, begin, rows, None, epochs=epochs, **saving).state
    whole = to_host(end)
    # All have saved before anybody reads.
    processes.all_gather([0])
    again = restore_latest(folder, print)
    return {**report, "end": sums(flatten_named(whole)), "again": sums(again.arrays), "number": again.number}, whole
"""
SHARED = """
mesh = make_mesh(data=number)
def placed(tree):
    return shard_dataset(tree, mesh) if hasattr(tree, "inputs") else shard_state(tree, mesh, large=0)
report, _ = train(Path(given[0]), int(given[1]), placed)
print(json.dumps(report))
processes.shutdown()
"""


def alone(folder, epochs):
    names = {}
    exec("import jax\nimport numpy as np\nfrom jaxdl.distributed import processes\n" + TRAINS, names)
    return names["train"](folder, epochs, lambda tree: jax.tree.map(jnp.asarray, tree))


def together(number, folder, epochs):
    """What the processes tell of it, which is the same."""
    report = [json.loads(text) for text in scripts(TRAINS + SHARED, number, folder, epochs)]
    assert all(each == report[0] for each in report)
    return report[0]


@pytest.mark.processes
def test_split_weights_go_from_one_number_of_processes_to_another_bit_for_bit(tmp_path):
    folder, whole = tmp_path / "shared", alone(tmp_path / "alone", 4)[1]
    alone(folder, 1)
    one = saving.restore_latest(folder, refuse)
    two = together(2, folder, 2)
    three = together(3, folder, 3)
    last, run_state = alone(folder, 4)
    assert two["split"] > 9 and three["split"] > 9 and last["split"] == 0
    assert two["number"] > one.number and three["number"] > two["number"]
    for report in (two, three, last):
        # What was saved is what is read, and what is placed is what was read.
        assert report["placed"] == report["read"] and report["again"] == report["end"]
    assert two["end"] == three["read"] and three["end"] == last["read"]
    # And the run is that of one process.
    expected = _tree.flatten_named(whole)
    for name, array in _tree.flatten_named(run_state).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.processes
def test_where_one_process_has_no_room_nobody_saves_and_the_run_goes_on(tmp_path):
    body = """
from jaxdl import _files
from jaxdl.distributed import make_mesh, shard_state
from jaxdl.saving.checkpoints import shared_checkpointer
def full(*_):
    raise OSError(28, os.strerror(28))
usual = _files.reserve
with shared_checkpointer(Path(given[0]), {}, every=99, warn=print) as checkpointer:
    for step in range(4):
        # On process 1 alone, then on process 0 alone, then on neither.
        _files.reserve = full if step == 1 - own else usual
        checkpointer.observe(shard_state({"step": np.int32(step)}, make_mesh()), [])
        checkpointer.save()
        print(step, *sorted(path.name for path in Path(given[0]).iterdir()))
        processes.all_gather([0])
processes.shutdown()
"""
    output = scripts(body, 2, tmp_path / "saved")
    text = f"a checkpoint could not be saved ({{}}); the last good one in {tmp_path / 'saved'} stays."
    here, there = text.format("No space left on device"), text.format("by another process")
    assert output[0].splitlines() == [there, "0", here, "1", "2 1", "3 1 2"]
    assert output[1].splitlines() == [here, "0", there, "1", "2 1", "3 1 2"]
    assert int(saving.restore_latest(tmp_path / "saved", refuse).arrays["step"]) == 3
