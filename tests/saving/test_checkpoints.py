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
import pytest

from jaxdl import _files, _tree, saving
from jaxdl._files import exclusive
from jaxdl.errors import InputError
from jaxdl.saving import checkpoints

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


def keep(folder, *numbers, every=0.0, tell=refuse, about=None):
    """Saves each tree before the next one is seen."""
    for number in numbers:
        with saving.keeper(folder, about or {"config": {"seed": 3}}, every=every, tell=tell) as observe:
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
    found = saving.latest(saved, refuse)
    again = _tree.rebuilt(tree_of(0), found.arrays)
    expected = _tree.named(tree_of(3))
    assert found.number == 3 and set(expected) == set(found.arrays)
    for name, array in _tree.named(again).items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name])
    assert found.about["config"] == {"seed": 3} and repr(found.about["history"]) == repr(HISTORY)
    _tree.check_kinds(found.about["kinds"], tree_of(0))


def test_the_latest_and_the_one_before_are_kept(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert saving.latest(tmp_path / "progress", refuse) is None


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
    told = []
    found = saving.latest(folder, told.append)
    assert found.number == 2 and int(found.arrays["number"]) == 2
    assert len(told) == 1 and "3 is damaged" in told[0] and "\n" not in told[0]
    # Put aside, not thrown away; and it is told once.
    assert (folder / "damaged-3").is_dir()
    assert saving.latest(folder, refuse).number == 2


def test_where_all_are_damaged_it_is_told_what_to_do(folder):
    for number in (2, 3):
        (folder / str(number) / "arrays" / "_METADATA").write_text("{}")
    told = []
    with pytest.raises(
        InputError, match=r"every checkpoint in .* is damaged. Restore one from a copy, or start over with"
    ):
        saving.latest(folder, told.append)
    assert len(told) == 2 and told[0].endswith("the one before is used.") and told[1].endswith("it is now damaged-2.")
    # A second try must not take the folder for one where nothing was saved, and begin anew in it.
    with pytest.raises(InputError, match="every checkpoint in"):
        saving.latest(folder, refuse)


def test_a_save_that_was_cut_off_is_told_and_removed(folder):
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    told = []
    assert saving.latest(folder, told.append).number == 3
    assert len(told) == 1 and "4.orbax-checkpoint-tmp is damaged (its save was not finished)" in told[0]
    assert not (folder / "4.orbax-checkpoint-tmp").exists()


def test_a_first_save_that_was_cut_off_leaves_none(folder):
    shutil.rmtree(folder / "2")
    (folder / "3" / _files.CHECKSUMS).unlink()
    assert saving.latest(folder, lambda text: None) is None


def test_saving_goes_on_after_damage_and_keeps_the_good_one(folder):
    (folder / "3" / "about" / "metadata").write_text("{}")
    saving.latest(folder, lambda text: None)
    keep(folder, 7)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "damaged-3"]
    assert int(saving.latest(folder, refuse).arrays["number"]) == 7


def test_a_checkpoint_that_is_whole_but_cannot_be_read_is_not_called_damaged(folder):
    about = folder / "3" / "about" / "metadata"
    about.write_text(json.dumps({**json.loads(about.read_text()), "arrays": {}}))
    (folder / "3" / _files.CHECKSUMS).unlink()
    _files.write_checksums(folder / "3")
    with pytest.raises(InputError, match="is as it was saved, but cannot be read"):
        saving.latest(folder, refuse)
    assert (folder / "3").is_dir()


# When


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now.time))
    monkeypatch.setattr(checkpoints, "FIRST", 0.0)
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
    with saving.keeper(tmp_path, {}, every=10, tell=refuse) as observe:
        for number in range(35):
            clock.time = 100 + number
            observe(tree_of(number), HISTORY[: number % 3])
            settled()
    # A second early, because there is one between the questions; from the second on three, because a save is seen to be
    # over after one and may take twice as long.
    assert [number for number, _ in written] == [9, 16, 23, 30, 34]
    assert [length for _, length in written] == [number % 3 for number, _ in written]


def test_what_was_saved_last_is_not_saved_again_at_the_end(tmp_path, clock, written):
    with saving.keeper(tmp_path, {}, every=0, tell=refuse) as observe:
        observe(tree_of(1), HISTORY)
    assert written == [(1, 2)]
    with saving.keeper(tmp_path, {}, every=0, tell=refuse):
        pass
    assert written == [(1, 2)]


def test_a_run_that_fails_is_saved_too(tmp_path, clock, written):
    with pytest.raises(KeyboardInterrupt), saving.keeper(tmp_path, {}, every=99, tell=refuse) as observe:
        observe(tree_of(1), HISTORY)
        raise KeyboardInterrupt
    assert written == [(1, 2)]


def test_training_never_waits_for_a_save(tmp_path, monkeypatch):
    go, began = threading.Event(), []
    monkeypatch.setattr(checkpoints, "write", lambda *_: (began.append(1), go.wait(30)))
    with saving.keeper(tmp_path, {}, every=0, tell=refuse) as observe:
        start = time.monotonic()
        for number in range(20):
            observe(tree_of(number), HISTORY)
        assert time.monotonic() - start < 10 and len(began) <= 1
        go.set()


def test_the_history_of_a_save_is_that_of_its_moment(tmp_path, monkeypatch):
    seen, go = [], threading.Event()
    monkeypatch.setattr(
        checkpoints, "write", lambda folder, arrays, about: (go.wait(30), seen.append(about["history"]))
    )
    history = HISTORY[:1]
    with saving.keeper(tmp_path, {}, every=0, tell=refuse) as observe:
        observe(tree_of(1), history)
        history.append(HISTORY[1])
        go.set()
    assert len(seen[0]) == 1


def test_a_save_at_the_end_does_not_tell_of_epochs_after_its_own(tmp_path):
    history = HISTORY[:1]
    with saving.keeper(tmp_path, {}, every=99, tell=refuse) as observe:
        observe(tree_of(1), history)
        # Of an epoch whose numbers are not finite, which is not shown to the keeper.
        history.append(HISTORY[1])
    assert len(saving.latest(tmp_path, refuse).about["history"]) == 1


def test_a_full_disk_is_told_and_the_last_good_checkpoint_stays(folder, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    told = []
    monkeypatch.setattr(_files, "reserve", full)
    keep(folder, 8, tell=told.append)
    # It is tried once more at the end.
    text = f"a checkpoint could not be saved (No space left on device); the last good one in {folder} stays."
    assert told == [text, text]
    monkeypatch.undo()
    assert saving.latest(folder, refuse).number == 3
    keep(folder, 9)
    assert int(saving.latest(folder, refuse).arrays["number"]) == 9


def test_a_save_that_fails_midway_leaves_nothing_half_written(folder, monkeypatch):
    monkeypatch.setattr(_files, "write_checksums", lambda path: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    told = []
    keep(folder, 8, tell=told.append)
    assert told and "No space left" in told[0]
    # The one before went when the new one was there, as it should; the latest good one is still there.
    assert saving.latest(folder, refuse).number == 3


def test_uneven_leaves_come_back_from_a_checkpoint(tmp_path):
    tree = {
        "a/b": jnp.ones(2),
        "a": {"b": jnp.zeros(2), "~1": jnp.full(2, 3.0)},
        "a~1b": jnp.full(2, 2.0),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
    }
    arrays, about = checkpoints.content_of({}, tree, [])
    checkpoints.write(tmp_path, arrays, about)
    restored = _tree.rebuilt(tree, checkpoints.read(tmp_path, 1).arrays)
    jax.tree.map(np.testing.assert_array_equal, restored, tree)
    assert restored["empty"].dtype == jnp.bfloat16


# What a caller tells about a run


@pytest.mark.parametrize(
    ("given", "kept"),
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
def test_values_that_json_does_not_know_are_saved_in_their_plain_form(given, kept, tmp_path):
    assert json.loads(json.dumps(checkpoints.described({"it": given}))) == {"it": kept}


@pytest.mark.parametrize(
    "given",
    [b"x", 1j, len, object(), jax.random.key(0), {1: 2, "1": 3}, np.ma.masked, np.array([None])],
    ids=lambda value: type(value).__name__,
)
def test_values_without_a_plain_form_are_refused_before_the_first_save(given, tmp_path):
    with (
        pytest.raises(InputError, match=r"about\['it'\] must"),
        saving.keeper(tmp_path, {"it": given}, every=9, tell=refuse),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"about": {"history": 1}}, 'about must not have an entry "history"'),
        ({"about": "config"}, "about must be a dict, got str"),
        ({"folder": 3}, "folder must be a path or a string, got 3"),
        ({"folder": "a[1]"}, "folder must be one of this machine"),
        ({"folder": "gs://bucket/a"}, "folder must be one of this machine"),
        ({"every": -1}, "every must be a number of seconds"),
        ({"every": None}, "every must be a number of seconds"),
    ],
    ids=str,
)
def test_arguments_that_could_not_be_saved_are_refused_at_the_start(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"folder": "a", "about": {}, "every": 9, "tell": refuse, **arguments}
    with pytest.raises(InputError, match=said), saving.keeper(**flags):
        pass


def test_a_file_in_the_place_of_the_folder_is_refused_at_the_start(tmp_path):
    (tmp_path / "a").write_text("")
    with (
        pytest.raises(InputError, match="a cannot be made"),
        saving.keeper(str(tmp_path / "a"), {}, every=9, tell=refuse),
    ):
        pass


def test_a_record_of_numpy_numbers_is_saved(tmp_path):
    with saving.keeper(str(tmp_path), {}, every=9, tell=refuse) as observe:
        observe(tree_of(1), [{"epoch": np.int64(1), "loss": np.float32(0.5)}])
    assert saving.latest(str(tmp_path), refuse).about["history"] == [{"epoch": 1, "loss": 0.5}]


def test_what_was_put_aside_is_removed_once_a_checkpoint_is_whole(folder):
    (numbers,) = [checkpoints.numbers_in(folder)]
    path = folder / str(numbers[-1]) / "about" / "metadata"
    path.write_bytes(path.read_bytes()[:-1])
    told = []
    assert saving.latest(folder, told.append).number == numbers[0] and "damaged" in told[0]
    assert [path.name for path in folder.glob("damaged-*")] == [f"damaged-{numbers[-1]}"]
    assert saving.latest(folder, refuse).number == numbers[0]
    assert not [*folder.glob("damaged-*")]


def test_who_looks_while_a_run_saves_there_changes_nothing(folder):
    number = max(checkpoints.numbers_in(folder))
    path = folder / str(number) / "about" / "metadata"
    path.write_bytes(path.read_bytes()[:-1])
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    before = sorted(path.name for path in folder.iterdir())
    told = []
    with exclusive(folder):
        assert saving.latest(folder, told.append).number == number - 1
    assert sorted(path.name for path in folder.iterdir()) == before and len(told) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(folder, monkeypatch, number):
    def refuse_to_open(path):
        raise OSError(number, os.strerror(number), str(path))

    before = sorted(path.name for path in folder.rglob("*"))
    monkeypatch.setattr(_files, "_sha256", refuse_to_open)
    with pytest.raises(InputError, match=rf"the checkpoint .* cannot be read \({os.strerror(number)}\)"):
        saving.latest(folder, refuse)
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_checkpoint_that_needs_more_memory_than_there_is_is_refused(folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "_memory", lambda: 10)
    with pytest.raises(InputError, match="bytes of memory, and this machine has 10"):
        saving.latest(folder, refuse)


def test_a_folder_that_is_moved_while_a_run_saves_is_told_and_not_made_anew(tmp_path):
    told = []
    with saving.keeper(tmp_path / "run", {}, every=0.0, tell=told.append) as observe:
        observe(tree_of(1), [{"epoch": 1}])
        until(lambda: (tmp_path / "run" / "1" / _files.CHECKSUMS).exists())
        (tmp_path / "run").rename(tmp_path / "moved")
        observe(tree_of(2), [{"epoch": 1}, {"epoch": 2}])
    assert len(told) >= 1 and all("was moved or removed while the run was writing there" in text for text in told)
    assert not (tmp_path / "run").exists() and saving.latest(tmp_path / "moved", refuse).number == 1


def test_a_folder_that_is_moved_in_the_middle_of_a_save_is_told_and_not_made_anew(tmp_path, monkeypatch):
    whole = checkpoints.write

    def write(folder, *content):
        whole(folder, *content)
        folder.rename(tmp_path / "moved")

    told = []
    monkeypatch.setattr(checkpoints, "write", write)
    with saving.keeper(tmp_path / "run", {}, every=0.0, tell=told.append) as observe:
        observe(tree_of(1), [{"epoch": 1}])
        until((tmp_path / "moved").exists)
        observe(tree_of(2), [{"epoch": 1}, {"epoch": 2}])
    assert len(told) >= 1 and all("was moved or removed while the run was writing there" in text for text in told)
    assert not (tmp_path / "run").exists() and saving.latest(tmp_path / "moved", refuse).number == 1


def test_what_a_stranger_has_cut_and_summed_anew_is_refused_without_tracebacks(tmp_path, capfd):
    arrays = {f"a{number:02d}": jnp.ones((50, 20)) * number for number in range(30)}
    checkpoints.write(tmp_path, *checkpoints.content_of({}, arrays, []))
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
    with checkpoints.reads_finished():
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
