"""Files that are whole or not there, also after a power cut, and that touch nothing of the user's."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_DRAFT = re.compile(r"\..*\.[0-9a-f]{16}\.part", re.DOTALL)
# Windows has neither flag; there a folder holds no pipes, and few may make links.
_NO_LINK, _NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file that gets the name `path` when the block ends well, with all that it holds on the disk.

    It is written under a name that nobody can foresee, and that did not exist: no link is followed and no other file is
    written over. Where the block raises, the file that was at `path` stays. mode, options: as for `open`.

    Raises OSError where it cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder, "a"), "w") as file:
    ...         _ = file.write("content")
    ...     [(path.name, path.read_text()) for path in Path(folder).iterdir()]
    [('a', 'content')]
    """
    path = Path(path)
    draft, number = create_draft(path)
    try:
        with os.fdopen(number, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def create_draft(path: Path) -> tuple[Path, int]:
    """Create an empty file beside `path`, and return its name and its open descriptor.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draft, number = create_draft(Path(folder, "a"))
    ...     os.close(number)
    ...     is_draft(draft.name)
    True
    """
    draft = draft_name(path)
    return draft, os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)


def draft_name(path: Path) -> Path:
    """Return a name beside `path` that nobody can foresee, for a file or a folder.

    >>> is_draft(draft_name(Path("runs", "a.csv")).name)
    True
    """
    # A file's name has at most 255 bytes.
    short = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{short}.{secrets.token_hex(8)}.part")


def is_draft(name: str) -> bool:
    """Return whether a name is one that `draft_name` gives.

    >>> is_draft("history.csv.part")
    False
    """
    return _DRAFT.fullmatch(name) is not None


def remove_drafts(folder: Path) -> None:
    """Remove the files below a folder that a process which was killed has left half-written. It follows no link.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     os.close(create_draft(Path(folder, "a"))[1])
    ...     remove_drafts(Path(folder))
    ...     os.listdir(folder)
    []
    """
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names if is_draft(name)):
            with suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode):
                    path.unlink()


def open_regular(path: str | Path, *, follow: bool = True) -> IO[bytes]:
    """Open a file to read its bytes, without waiting for ever where the name is that of a pipe or a device.

    Raises OSError for what is no regular file, and for a link where `follow` is False.

    >>> open_regular("/dev/null")
    Traceback (most recent call last):
    OSError: [Errno 22] is no regular file: '/dev/null'
    """
    number = os.open(path, os.O_RDONLY | _NO_WAIT | (0 if follow else _NO_LINK))
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def identity(path: Path) -> tuple[int, int] | None:
    """Return what stays the same of a file or folder that is renamed; None where there is nothing, or no right to see.

    >>> identity(Path("no", "such", "folder")) is None
    True
    """
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def sync(path: Path) -> None:
    """Wait until what a file holds, or the names in a folder, are on the disk.

    Raises OSError where the disk cannot keep them. A system that cannot sync folders, as Windows, keeps them itself.

    >>> sync(Path("."))
    """
    try:
        number = os.open(path, os.O_RDONLY | _NO_WAIT)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


def sync_below(folder: Path) -> None:
    """Wait until all files and folders below a folder, and the folder itself, are on the disk.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sync_below(Path(folder))
    """
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))
