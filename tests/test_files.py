"""Files that are whole or not there, and what lies beside them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxdl import _files, canvas, checksums, folders, logs, portable, tensorboard
from jaxdl._files import atomic_write, draft_name, is_draft, open_regular, remove_drafts
from jaxdl.errors import InputError


def test_a_file_is_replaced_when_all_of_it_is_written(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with atomic_write(path, "w") as file:
        file.write("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_file_that_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), atomic_write(path, "w") as file:
        file.write("after")
        raise ZeroDivisionError
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
    checksums.write(folder)
    assert calls[-1] == str(tmp_path) and calls[-2] == str(folder)
    before = [str(Path(call).relative_to(folder)) for call in calls[:-3]]
    assert sorted(before) == [".", "a", "d", "d/e", "d/e/b"]
    assert before.index("d/e/b") < before.index("d/e") < before.index("d") < before.index(".")
    assert checksums.damage(folder) is None


def test_drafts_of_a_process_that_was_killed_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    code = (
        "import os, signal, sys; from pathlib import Path; from jaxdl._files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1], 'deep', 'a')) as file: os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    (draft,) = (tmp_path / "deep").iterdir()
    kept = [tmp_path / "history.csv.part", tmp_path / ".a.part", tmp_path / "a.0123456789abcdef.part"]
    for path in kept:
        path.write_text("mine")
    link = tmp_path / draft.name
    link.symlink_to(kept[0])
    remove_drafts(tmp_path)
    assert not draft.exists() and link.is_symlink() and [path.read_text() for path in kept] == ["mine"] * 3


def figure(path):
    canvas.save(Figure(), path)


def history(path):
    with logs.csv_file(path) as observe:
        observe(None, [{"epoch": 1, "loss": 0.5}])


def predictions(path):
    with portable.written(str(path)) as file:
        file.write("1\n")


def chart(path):
    tensorboard.description(path.parent)


WRITERS = {
    "a.json": lambda path: folders.write_json(path, {"a": 1}),
    "a.png": figure,
    "history.csv": history,
    "p.csv": predictions,
    "events.out.tfevents.1-description": chart,
    "checksums.json": lambda path: checksums.write(path.parent),
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
    folders.write_json(folder / folders.CONFIG, {"seed": 1})
    assert folders.earlier(folder) == ({"seed": 1}, None)
    if kind == "pipe":
        os.mkfifo(folder / "metrics.json")
    else:
        (folder / ("checkpoints/best" if kind == "deep link" else "figures")).symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"holds (metrics\.json|figures|checkpoints/best), which is a link or no file"):
        folders.earlier(folder)


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
        checksums.write(tmp_path)
