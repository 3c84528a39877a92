"""One process a folder, whatever became of the one before."""

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from jaxdl._files import exclusive, held, locked
from jaxdl.errors import InputError
from tests.groups import LIGHT

HOLD = """
import sys, time
from pathlib import Path
from jaxdl.errors import InputError
from jaxdl._files import locked
try:
    with locked(Path(sys.argv[1])):
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
            locked(tmp_path),
        ):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        # What the dead process left is taken over.
        assert (tmp_path / "lock").exists()
        with locked(tmp_path):
            assert (tmp_path / "lock").read_text().split()[0] == str(os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_is_refused_too_and_the_lock_stays(tmp_path):
    with locked(tmp_path):
        with pytest.raises(InputError, match=f"process {os.getpid()} "), locked(tmp_path):
            pass
        with pytest.raises(InputError), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_lock_is_given_back_when_the_block_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "1 nowhere"])
def test_a_lock_file_that_nobody_holds_is_taken_over(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()} {socket.gethostname()}"


@pytest.mark.parametrize("content", ["my notes", "1 nowhere and more", "4711", "a very long text " * 100])
def test_a_file_called_lock_that_no_run_wrote_is_refused_and_stays(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with pytest.raises(InputError, match="holds a lock that no run has written"), locked(tmp_path):
        pass
    assert (tmp_path / "lock").read_text() == content


def test_a_lock_that_has_another_name_elsewhere_is_refused_and_not_written(tmp_path):
    (tmp_path / "mine").touch()
    (tmp_path / "run").mkdir()
    os.link(tmp_path / "mine", tmp_path / "run" / "lock")
    with pytest.raises(InputError, match="holds a lock that no run has written"), locked(tmp_path / "run"):
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
    with pytest.raises(InputError, match="its lock is a link"), locked(folder):
        pass
    (folder / "lock").unlink()
    os.mkfifo(folder / "lock")
    with pytest.raises(InputError), locked(folder):
        pass
    assert (tmp_path / "mine").read_text() == "1 nowhere" and {path.name for path in tmp_path.iterdir()} == before


def test_a_child_does_not_keep_the_lock(tmp_path):
    with locked(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    with locked(tmp_path):
        child.kill()
        child.wait()


def test_of_processes_that_race_one_wins(tmp_path):
    racers = [holder(tmp_path) for _ in range(5)]
    told = sorted(racer.stdout.readline() for racer in racers)
    for racer in racers:
        racer.kill()
        racer.communicate()
    assert told == ["held\n"] + ["refused\n"] * 4


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InputError, match="must be a folder that can be written: No such file"), locked(tmp_path / "no"):
        pass


def test_held_tells_whether_a_process_lives_that_holds_the_folder(tmp_path):
    assert not held(tmp_path) and not held(tmp_path / "no")
    with holder(tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        assert held(tmp_path)
        first.kill()
        first.wait()
    assert (tmp_path / "lock").exists() and not held(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "1 nowhere", f"{os.getpid()} {socket.gethostname()}", "x y", f"{10**30} here"],
    # Every worker must give the tests the same names, and each has a number of its own.
    ids=["nothing", "a process elsewhere", "this process", "no number", "a large number"],
)
def test_a_lock_file_that_nobody_holds_is_not_held_and_stays_as_it_is(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    assert not held(tmp_path)
    assert (tmp_path / "lock").read_text() == content


def test_to_ask_about_a_lock_that_a_dead_process_left_takes_it_from_nobody(tmp_path, monkeypatch):
    with holder(tmp_path, 0) as first:
        first.wait()
    (tmp_path / "lock").write_text(f"{first.pid} {socket.gethostname()}")

    def refuse(*_, **__):
        raise AssertionError("another process could not have begun just then")

    monkeypatch.setattr("jaxdl._files.lock_descriptor", refuse)
    assert not held(tmp_path)


def test_on_windows_the_text_begins_after_the_byte_that_is_locked(tmp_path, monkeypatch):
    def end(*_):
        raise AssertionError("on Windows os.kill would end the process")

    monkeypatch.setattr("jaxdl._files.WINDOWS", True)
    monkeypatch.setattr("jaxdl._files.START", 1)
    monkeypatch.setattr(os, "kill", end)
    with locked(tmp_path) as holds:
        assert (tmp_path / "lock").read_bytes() == f"\0{os.getpid()} {socket.gethostname()}".encode()
        assert holds() and held(tmp_path)
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"), locked(tmp_path):
            pass
        with exclusive(tmp_path / "lock"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_refuses_a_run_and_not_a_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("jaxdl._files.lock_descriptor", refuse)
    with pytest.raises(InputError, match="in use by another process"), locked(tmp_path):
        pass
    with exclusive(tmp_path):
        pass
