"""Checksums of a folder: every change is noticed, and nothing outside is read."""

import hashlib
import json
import os
import shutil
import subprocess

import pytest

from jaxdl import checksums


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "saved"
    (path / "d" / "deeper").mkdir(parents=True)
    (path / "a").write_bytes(b"content of a")
    (path / "d" / "b").write_bytes(bytes(range(40)))
    (path / "d" / "deeper" / "empty").touch()
    checksums.write(path)
    return path


def test_a_folder_as_it_was_saved_is_whole(folder):
    assert checksums.damage(folder) is None
    # A folder holds nothing that could be damaged.
    (folder / "new folder").mkdir()
    assert checksums.damage(folder) is None


def test_the_sums_are_those_of_the_bytes(folder):
    listed = json.loads((folder / checksums.NAME).read_text())["files"]
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
                assert checksums.damage(folder), f"bit {bit} of byte {place} of {path.name}"
        path.write_bytes(content)
    assert checksums.damage(folder) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: (f / "a").unlink(), "a is missing"),
        (lambda f: (f / "c").touch(), "c was not there when it was saved"),
        (lambda f: (f / "a").write_bytes(b"content of "), "a is not what was saved"),
        (lambda f: (f / "a").rename(f / "z"), "a is missing"),
        (lambda f: (f / "d" / "deeper" / "empty").write_text("x"), "d/deeper/empty is not what was saved"),
        (lambda f: (f / checksums.NAME).unlink(), "no checksums.json: its save was not finished"),
        (lambda f: (f / checksums.NAME).write_bytes(b""), "checksums.json is not what was saved"),
        (lambda f: (f / checksums.NAME).write_bytes(b"\xff\xfe"), "checksums.json is not what was saved"),
        (lambda f: (f / checksums.NAME).write_bytes(b"[" * 10**5), "checksums.json is not what was saved"),
        (lambda f: (f / checksums.NAME).write_bytes(b"null"), "checksums.json is not what was saved"),
        (lambda f: (f / checksums.NAME).open("ab").write(b" "), "checksums.json is not what was saved"),
    ],
)
def test_what_is_not_as_it_was_is_told(folder, change, told):
    change(folder)
    assert checksums.damage(folder) == told


def test_a_link_is_damage_even_to_an_equal_file(folder):
    shutil.copy(folder / "a", folder.parent / "outside")
    (folder / "a").unlink()
    (folder / "a").symlink_to(folder.parent / "outside")
    assert checksums.damage(folder) == "it cannot be read: a is a link or no file"
    (folder / "a").unlink()
    (folder / "d2").symlink_to(folder.parent)
    assert "d2 is a link" in checksums.damage(folder)


def test_a_pipe_is_damage_and_not_waited_for(folder):
    (folder / "a").unlink()
    os.mkfifo(folder / "a")
    assert "a is a link or no file" in checksums.damage(folder)


def test_a_path_in_the_list_that_leaves_the_folder_is_never_opened(folder):
    outside = folder.parent / "outside"
    outside.write_text("secret")
    sums = json.loads((folder / checksums.NAME).read_text())["files"]
    sums["../outside"] = hashlib.sha256(b"secret").hexdigest()
    (folder / checksums.NAME).write_bytes(checksums._canonical(sums))
    assert checksums.damage(folder) == "../outside is missing"


def test_a_listing_is_what_sha256sum_prints_and_takes(folder):
    names = ["a", "d/b", "d/deeper/empty"]
    printed = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert checksums.listing(folder) == printed
    (folder / "SUMS").write_text(printed)
    (folder / "a").write_bytes(b"content of A")
    done = subprocess.run(["sha256sum", "-c", "SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and "a: FAILED" in done.stdout and "d/b: OK" in done.stdout
