"""The checksums of a folder's content, in the folder itself."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path

from jaxdl._files import atomic_write, is_draft, open_regular, sync, sync_below

NAME = "checksums.json"


def write(folder: Path) -> None:
    """Writes `checksums.json` into a folder: the SHA-256 of each file below it, and of that list itself.

    When it returns, all of that and the folder's own name are on the disk.

    Raises OSError where a file cannot be read, or the list not written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     _ = Path(name, "a").write_text("content")
    ...     write(Path(name))
    ...     print(damage(Path(name)))
    None
    """
    # What the list names is on the disk before the list is, or a power cut could leave the list alone.
    sync_below(folder)
    with atomic_write(folder / NAME) as file:
        file.write(_canonical({name: _sum(folder / name) for name in _files(folder)}))
    sync(folder.parent)


def listing(folder: Path) -> str:
    """The SHA-256 of each file below a folder, a line each, as `sha256sum -c` reads them.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     _ = Path(name, "a").write_text("content")
    ...     listing(Path(name))[60:]
    '9f73  a\\n'
    """
    return "".join(f"{_sum(folder / name)}  {name}\n" for name in _files(folder))


def damage(folder: Path) -> str | None:
    """What is not as `write` found it, in a few words; None where all is.

    Raises OSError where this process may not read it, or has too many files open: that is no damage.

    It follows no link and opens no path that stands in the list, so nothing outside the folder is ever read.

    >>> damage(Path("no such folder"))
    'no checksums.json: its save was not finished'
    """
    try:
        if not (folder / NAME).is_file():
            return f"no {NAME}: its save was not finished"
        files = _files(folder)
        content = (folder / NAME).read_bytes()
        listed = _listed(content)
        if listed is None:
            return f"{NAME} is not what was saved"
        for name in sorted({*listed, *files}):
            if name not in files:
                return f"{_shown(name)} is missing"
            if name not in listed:
                return f"{_shown(name)} was not there when it was saved"
            if _sum(folder / name) != listed[name]:
                return f"{_shown(name)} is not what was saved"
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE):
            raise
        return f"it cannot be read: {error}"
    except ValueError as error:
        return f"it cannot be read: {error}"
    return None


def content(folder: Path, name: str) -> bytes | None:
    """Return what one file of a folder holds, where it is as `write` found it; the others are not looked at.

    >>> content(Path("no such folder"), "a") is None
    True
    """
    try:
        with open_regular(folder / NAME, follow=False) as file:
            listed = _listed(file.read())
        with open_regular(folder / name, follow=False) as file:
            found = file.read()
    except (OSError, ValueError):
        return None
    return found if listed is not None and listed.get(name) == hashlib.sha256(found).hexdigest() else None


def _files(folder: Path) -> list[str]:
    """The files below a folder, relative to it; ValueError for what is neither a file nor a folder."""
    found = []
    for root, folders, files in os.walk(folder, onerror=_raise):
        for name in [*folders, *files]:
            path = Path(root, name)
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ValueError(f"{_shown(path.relative_to(folder).as_posix())} is a link or no file")
            if stat.S_ISREG(mode):
                found.append(path.relative_to(folder).as_posix())
    return sorted(name for name in found if name != NAME and not is_draft(name))


def _raise(error: OSError) -> None:
    raise error


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(sums: dict[str, str]) -> bytes:
    files = json.dumps(sums, sort_keys=True, indent=1)
    whole = {"files": sums, "sha256": hashlib.sha256(files.encode()).hexdigest()}
    return (json.dumps(whole, sort_keys=True, indent=1) + "\n").encode()


def _listed(content: bytes) -> dict[str, str] | None:
    """The sums in a list, if every byte of it is as it was written."""
    try:
        sums = {**json.loads(content)["files"]}
        return sums if _canonical(sums) == content else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)
