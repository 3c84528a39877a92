"""Files that are whole or not there, and what lies beside them; JSON; checksums; free disk space."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxdl import _files, callbacks, plots
from jaxdl._files import (
    atomic_write,
    draft_name,
    exclusive,
    is_draft,
    is_locked,
    lock_folder,
    open_regular,
    remove_drafts,
)
from jaxdl.errors import InputError
from jaxdl.runs import folders
from jaxdl.saving import predict_script
from tests.groups import LIGHT


def test_a_file_is_replaced_when_all_of_it_is_written(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with atomic_write(path, "w") as file:
        file.write("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError, KeyboardInterrupt])
def test_an_error_leaves_the_file_that_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(error), atomic_write(path, "w") as file:
        file.write("after")
        raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_is_written_has_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "whole"):
        pass
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_no_two_drafts_have_a_name_in_common_and_a_long_one_fits():
    names = {draft_name(Path("x" * 255)).name for _ in range(100)}
    assert len(names) == 100 and all(is_draft(name) and len(name) < 255 for name in names)


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a").symlink_to(tmp_path / "mine")
    with atomic_write(tmp_path / "a", "w") as file:
        file.write("new")
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "a").is_symlink()


def test_the_file_reaches_the_disk_before_its_name_does(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(os.readlink(f"/proc/self/fd/{number}")))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    with atomic_write(tmp_path / "a"):
        pass
    assert is_draft(Path(calls[0]).name) and calls[1:] == ["replace", str(tmp_path)]


def test_a_list_of_checksums_comes_after_all_that_it_names(tmp_path, monkeypatch):
    folder = tmp_path / "1"
    (folder / "d" / "e").mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "d" / "e" / "b").write_text("b")
    calls = []
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(os.readlink(f"/proc/self/fd/{number}")))
    _files.write_checksums(folder)
    assert calls[-1] == str(tmp_path) and calls[-2] == str(folder)
    before = [str(Path(call).relative_to(folder)) for call in calls[:-3]]
    assert sorted(before) == [".", "a", "d", "d/e", "d/e/b"]
    assert before.index("d/e/b") < before.index("d/e") < before.index("d") < before.index(".")
    assert _files.find_damage(folder) is None


def test_drafts_of_a_process_that_was_killed_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    code = (
        "import os, signal, sys; from pathlib import Path; from jaxdl._files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1], 'deep', 'a')) as file: os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    (draft,) = (tmp_path / "deep").iterdir()
    remaining = [tmp_path / "history.csv.part", tmp_path / ".a.part", tmp_path / "a.0123456789abcdef.part"]
    for path in remaining:
        path.write_text("mine")
    link = tmp_path / draft.name
    link.symlink_to(remaining[0])
    remove_drafts(tmp_path)
    assert not draft.exists() and link.is_symlink() and [path.read_text() for path in remaining] == ["mine"] * 3


def figure(path):
    plots.save(Figure(), path)


def history(path):
    with callbacks.csv_log(path) as observe:
        observe(None, [{"epoch": 1, "loss": 0.5}])


def predictions(path):
    with predict_script.open_target(str(path)) as file:
        file.write("1\n")


def chart(path):
    callbacks.description(path.parent)


WRITERS = {
    "a.json": lambda path: _files.write_json(path, {"a": 1}),
    "a.png": figure,
    "history.csv": history,
    "p.csv": predictions,
    "events.out.tfevents.1-description": chart,
    "checksums.json": lambda path: _files.write_checksums(path.parent),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_touches_a_file_beside_its_own_or_follows_a_link(name, tmp_path):
    mine, folder = tmp_path / "mine", tmp_path / "folder"
    mine.write_text("mine")
    folder.mkdir()
    for other in (f"{name}.part", f".{name}.part", f"{name.removeprefix('events.out.tfevents.')}.part"):
        if name != "checksums.json":  # Which refuses links.
            (folder / other).unlink(missing_ok=True)
            (folder / other).symlink_to(mine)
    before = {path.name for path in folder.iterdir()}
    for _ in range(2):
        WRITERS[name](folder / name)
    assert {path.name for path in folder.iterdir()} == {*before, name}
    assert mine.read_text() == "mine" and (folder / name).stat().st_size


def test_a_pipe_or_a_device_is_no_file_to_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match=re.escape(str(path))):
            open_regular(path)
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"content"
    with pytest.raises(OSError, match="link"):
        open_regular(tmp_path / "link", follow=False)


@pytest.mark.parametrize("kind", ["link", "pipe", "deep link"])
def test_the_folder_of_a_run_with_a_link_is_refused_by_its_name(kind, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    _files.write_json(folder / folders.CONFIG, {"kind": "run", "seed": 1})
    assert folders.read_run(folder) == ({"kind": "run", "seed": 1}, None)
    if kind == "pipe":
        os.mkfifo(folder / "metrics.json")
    else:
        (folder / ("checkpoints/best" if kind == "deep link" else "figures")).symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"holds (metrics\.json|figures|checkpoints/best), which is a link or no file"):
        folders.read_run(folder)


def test_a_system_that_cannot_sync_folders_still_writes(tmp_path, monkeypatch):
    opened = os.open

    def refuse(path, *rest):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with atomic_write(tmp_path / "a") as file:
        file.write(np.arange(3).tobytes())
    assert (tmp_path / "a").exists()
    with pytest.raises(FileNotFoundError):
        _files.sync(tmp_path / "b")


def test_to_sync_a_folder_with_a_pipe_waits_for_nobody(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    _files.sync_below(tmp_path)
    with pytest.raises(ValueError, match="pipe is a link or no file"):
        _files.write_checksums(tmp_path)


# JSON


def refuse_constants(name):
    raise AssertionError(f"{name} is not JSON")


def test_json_has_null_for_what_is_not_finite(tmp_path):
    nan, inf = float("nan"), float("inf")
    content = {"a": nan, "b": [1.5, inf, (-inf, {"c": np.float64(nan)})], 3: "x", "d": True}
    _files.write_json(tmp_path / "a.json", content)
    # Python reads NaN, which JSON has not; other readers fail on it.
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse_constants)
    assert read == {"a": None, "b": [1.5, None, [None, {"c": None}]], "3": "x", "d": True}


def test_json_keeps_numbers_to_the_last_digit(tmp_path):
    numbers = [1 / 3, 1e-300, 2**60, -0.0]
    _files.write_json(tmp_path / "a.json", {"numbers": numbers})
    assert json.loads((tmp_path / "a.json").read_text()) == {"numbers": numbers}


@pytest.mark.parametrize("broken", ["content", "disk"])
def test_json_is_there_whole_or_not_at_all(tmp_path, monkeypatch, broken):
    path = tmp_path / "a.json"
    _files.write_json(path, {"a": 1})
    before = path.read_text()
    content = {"b": 2}
    if broken == "content":
        content["c"] = object()
    else:
        # The machine stops when all is written but the name: what is there under the name is still the old file.
        monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("no more")))
    with pytest.raises((TypeError, OSError)):
        _files.write_json(path, content)
    assert path.read_text() == before


def test_json_replaces_the_file_and_leaves_no_draft(tmp_path):
    for number in (1, 2):
        _files.write_json(tmp_path / "a.json", {"a": number})
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 2}


def test_json_has_null_for_what_is_not_finite_at_any_depth():
    content = [{"rmse": {"test": float("nan")}, "losses": (1.5, float("-inf"))}, None, "é"]
    assert json.loads(_files.as_json(content)) == [{"rmse": {"test": None}, "losses": [1.5, None]}, None, "é"]


# Checksums


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "saved"
    (path / "d" / "deeper").mkdir(parents=True)
    (path / "a").write_bytes(b"content of a")
    (path / "d" / "b").write_bytes(bytes(range(40)))
    (path / "d" / "deeper" / "empty").touch()
    _files.write_checksums(path)
    return path


def test_a_folder_as_it_was_saved_is_whole(folder):
    assert _files.find_damage(folder) is None
    # A folder holds nothing that could be damaged.
    (folder / "new folder").mkdir()
    assert _files.find_damage(folder) is None


def test_the_sums_are_those_of_the_bytes(folder):
    listed = json.loads((folder / _files.CHECKSUMS).read_text())["files"]
    assert listed["d/b"] == hashlib.sha256(bytes(range(40))).hexdigest()
    assert sorted(listed) == ["a", "d/b", "d/deeper/empty"]


def test_every_flipped_bit_of_every_file_is_noticed(folder):
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for place in range(len(content)):
            for bit in range(8):
                flipped = bytearray(content)
                flipped[place] ^= 1 << bit
                path.write_bytes(flipped)
                assert _files.find_damage(folder), f"bit {bit} of byte {place} of {path.name}"
        path.write_bytes(content)
    assert _files.find_damage(folder) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "a").unlink(), "a is missing"),
        (lambda f: (f / "c").touch(), "c was not there when it was saved"),
        (lambda f: (f / "a").write_bytes(b"content of "), "a is not what was saved"),
        (lambda f: (f / "a").rename(f / "z"), "a is missing"),
        (lambda f: (f / "d" / "deeper" / "empty").write_text("x"), "d/deeper/empty is not what was saved"),
        (lambda f: (f / _files.CHECKSUMS).unlink(), "no checksums.json: its save was not finished"),
        (lambda f: (f / _files.CHECKSUMS).write_bytes(b""), "checksums.json is not what was saved"),
        (lambda f: (f / _files.CHECKSUMS).write_bytes(b"\xff\xfe"), "checksums.json is not what was saved"),
        (lambda f: (f / _files.CHECKSUMS).write_bytes(b"[" * 10**5), "checksums.json is not what was saved"),
        (lambda f: (f / _files.CHECKSUMS).write_bytes(b"null"), "checksums.json is not what was saved"),
        (lambda f: (f / _files.CHECKSUMS).open("ab").write(b" "), "checksums.json is not what was saved"),
    ],
)
def test_what_is_not_as_it_was_is_told(folder, change, message):
    change(folder)
    assert _files.find_damage(folder) == message


def test_a_link_is_damage_even_to_an_equal_file(folder):
    shutil.copy(folder / "a", folder.parent / "outside")
    (folder / "a").unlink()
    (folder / "a").symlink_to(folder.parent / "outside")
    assert _files.find_damage(folder) == "it cannot be read: a is a link or no file"
    (folder / "a").unlink()
    (folder / "d2").symlink_to(folder.parent)
    assert "d2 is a link" in _files.find_damage(folder)


def test_a_pipe_is_damage_and_not_waited_for(folder):
    (folder / "a").unlink()
    os.mkfifo(folder / "a")
    assert "a is a link or no file" in _files.find_damage(folder)


def test_a_path_in_the_list_that_leaves_the_folder_is_never_opened(folder):
    outside = folder.parent / "outside"
    outside.write_text("secret")
    sums = json.loads((folder / _files.CHECKSUMS).read_text())["files"]
    sums["../outside"] = hashlib.sha256(b"secret").hexdigest()
    (folder / _files.CHECKSUMS).write_bytes(_files._checksum_file(sums))
    assert _files.find_damage(folder) == "../outside is missing"


def test_a_listing_is_what_sha256sum_prints_and_takes(folder):
    names = ["a", "d/b", "d/deeper/empty"]
    printed = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert _files.checksum_lines(folder) == printed
    (folder / "SUMS").write_text(printed)
    (folder / "a").write_bytes(b"content of A")
    done = subprocess.run(["sha256sum", "-c", "SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and "a: FAILED" in done.stdout and "d/b: OK" in done.stdout


# Free disk space


def test_room_is_asked_for():
    _files.reserve(Path("."), 1000)


def test_too_few_files_that_may_be_opened_are_told_before_any_is_written(tmp_path, monkeypatch):
    may, opened = os.open, []

    def few(*arguments):
        if len(opened) == 20:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        opened.append(may(*arguments))
        return opened[-1]

    monkeypatch.setattr(os, "open", few)
    with pytest.raises(OSError, match="Too many open files"):
        _files.reserve(tmp_path, 1)
    for number in opened:  # each is closed again
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


def test_too_little_room_is_told(tmp_path):
    with pytest.raises(OSError, match=r"File too large|No space left"):
        _files.reserve(tmp_path, 2**62)
    assert list(tmp_path.iterdir()) == []


# One process a folder, whatever became of the one before.

HOLD = """
import sys, time
from pathlib import Path
from jaxdl.errors import InputError
from jaxdl._files import lock_folder
try:
    with lock_folder(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except InputError:
    print("refused", flush=True)
"""


def holder(folder, seconds=60):
    return subprocess.Popen(
        [sys.executable, "-c", LIGHT + HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )


def test_a_second_process_is_refused_with_the_first_ones_id(tmp_path):
    with holder(tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=f"in use by process {first.pid} on {socket.gethostname()}. Wait for it"),
            lock_folder(tmp_path),
        ):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        # What the dead process left is taken over.
        assert (tmp_path / "lock").exists()
        with lock_folder(tmp_path):
            assert (tmp_path / "lock").read_text().split()[0] == str(os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_is_refused_too_and_the_lock_stays(tmp_path):
    with lock_folder(tmp_path):
        with pytest.raises(InputError, match=f"process {os.getpid()} "), lock_folder(tmp_path):
            pass
        with pytest.raises(InputError), lock_folder(tmp_path):
            pass
    with lock_folder(tmp_path):
        pass


def test_a_lock_is_given_back_when_the_block_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), lock_folder(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "1 nowhere"])
def test_a_lock_file_that_nobody_holds_is_taken_over(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with lock_folder(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()} {socket.gethostname()}"


@pytest.mark.parametrize("content", ["my notes", "1 nowhere and more", "4711", "a very long text " * 100])
def test_a_file_called_lock_that_no_run_wrote_is_refused_and_stays(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with pytest.raises(InputError, match="holds a lock that no run has written"), lock_folder(tmp_path):
        pass
    assert (tmp_path / "lock").read_text() == content


def test_a_lock_that_has_another_name_elsewhere_is_refused_and_not_written(tmp_path):
    (tmp_path / "mine").touch()
    (tmp_path / "run").mkdir()
    os.link(tmp_path / "mine", tmp_path / "run" / "lock")
    with pytest.raises(InputError, match="holds a lock that no run has written"), lock_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == ""


@pytest.mark.parametrize("target", ["mine", "nothing", "pipe"])
def test_a_lock_that_is_a_link_or_a_pipe_is_refused_and_nothing_is_written(tmp_path, target):
    (tmp_path / "mine").write_text("1 nowhere")
    os.mkfifo(tmp_path / "pipe")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lock").symlink_to(tmp_path / target)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="its lock is a link"), lock_folder(folder):
        pass
    (folder / "lock").unlink()
    os.mkfifo(folder / "lock")
    with pytest.raises(InputError), lock_folder(folder):
        pass
    assert (tmp_path / "mine").read_text() == "1 nowhere" and {path.name for path in tmp_path.iterdir()} == before


def test_a_child_does_not_keep_the_lock(tmp_path):
    with lock_folder(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    with lock_folder(tmp_path):
        child.kill()
        child.wait()


def test_of_processes_that_race_one_wins(tmp_path):
    racers = [holder(tmp_path) for _ in range(5)]
    message = sorted(racer.stdout.readline() for racer in racers)
    for racer in racers:
        racer.kill()
        racer.communicate()
    assert message == ["held\n"] + ["refused\n"] * 4


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    with (
        pytest.raises(InputError, match="must be a folder that can be written: No such file"),
        lock_folder(tmp_path / "no"),
    ):
        pass


def test_held_tells_whether_a_process_lives_that_holds_the_folder(tmp_path):
    assert not is_locked(tmp_path) and not is_locked(tmp_path / "no")
    with holder(tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        assert is_locked(tmp_path)
        first.kill()
        first.wait()
    assert (tmp_path / "lock").exists() and not is_locked(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "1 nowhere", f"{os.getpid()} {socket.gethostname()}", "x y", f"{10**30} here"],
    # Every worker must give the tests the same names, and each has a number of its own.
    ids=["nothing", "a process elsewhere", "this process", "no number", "a large number"],
)
def test_a_lock_file_that_nobody_holds_is_not_held_and_stays_as_it_is(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    assert not is_locked(tmp_path)
    assert (tmp_path / "lock").read_text() == content


def test_to_ask_about_a_lock_that_a_dead_process_left_takes_it_from_nobody(tmp_path, monkeypatch):
    with holder(tmp_path, 0) as first:
        first.wait()
    (tmp_path / "lock").write_text(f"{first.pid} {socket.gethostname()}")

    def refuse(*_, **__):
        raise AssertionError("another process could not have begun just then")

    monkeypatch.setattr("jaxdl._files.lock_descriptor", refuse)
    assert not is_locked(tmp_path)


def test_on_windows_the_text_begins_after_the_byte_that_is_locked(tmp_path, monkeypatch):
    def end(*_):
        raise AssertionError("on Windows os.kill would end the process")

    monkeypatch.setattr("jaxdl._files.WINDOWS", True)
    monkeypatch.setattr("jaxdl._files.START", 1)
    monkeypatch.setattr(os, "kill", end)
    with lock_folder(tmp_path) as holds:
        assert (tmp_path / "lock").read_bytes() == f"\0{os.getpid()} {socket.gethostname()}".encode()
        assert holds() and is_locked(tmp_path)
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"), lock_folder(tmp_path):
            pass
        with exclusive(tmp_path / "lock"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_refuses_a_run_and_not_a_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("jaxdl._files.lock_descriptor", refuse)
    with pytest.raises(InputError, match="in use by another process"), lock_folder(tmp_path):
        pass
    with exclusive(tmp_path):
        pass
