"""A lock: one process a folder."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxdl.errors import InputError
from jaxdl.files import open_regular

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked.
    fcntl = None  # type: ignore[assignment]

NAME = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """Holds the folder's file `lock` for the time of the block; the file says by which process.

    Gives a function that tells whether the file is still there: where somebody has removed it, or moved the folder,
    another process could take the folder too.

    The system gives a lock back when its process ends, however it ends, so what a dead process left is taken over.
    Raises InputError where another process holds it, or the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name, locked(Path(name)):
    ...     Path(name, "lock").read_text() == f"{os.getpid()} {socket.gethostname()}"
    True
    """
    if fcntl is None:
        yield lambda: True
        return
    path = folder / NAME
    number = _acquire(path)

    def holds() -> bool:
        try:
            return os.path.samestat(os.fstat(number), path.stat())
        except OSError:
            return False

    try:
        os.ftruncate(number, 0)
        with suppress(OSError):  # A full disk: the lock holds without its text.
            os.pwrite(number, f"{os.getpid()} {socket.gethostname()}".encode(), 0)
        yield holds
    finally:
        # Before it is given back: afterwards the name could be another's.
        with suppress(OSError):
            if holds():
                path.unlink()
        os.close(number)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file or a folder that exists for the one run that writes there, for the time of the block.

    No file is made, and the system gives the lock back when its process ends. Where the system cannot lock, nothing is
    locked. Raises InputError where another run holds it, of this process or of another.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name, exclusive(Path(name)):
    ...     with exclusive(Path(name)):
    ...         pass
    Traceback (most recent call last):
    jaxdl.errors.InputError: ... is being written by another run. ...
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if fcntl is not None:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{path} is being written by another run. Wait for it, stop it, or choose another name."
                ) from None
            except OSError:  # A file system without locks.
                pass
        yield
    finally:
        os.close(number)


def held(folder: Path) -> bool:
    """Whether a process holds the lock of a folder; False too where that cannot be told.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     with locked(Path(name)):
    ...         inside = held(Path(name))
    ...     inside, held(Path(name))
    (True, False)
    """
    path = folder / NAME
    try:
        with open_regular(path, follow=False) as file:
            holder = file.read(1000).decode(errors="replace").split()
        # To ask the system means to hold the lock for a moment, which another process might just then want: so that is
        # asked only where the file names a process that may well hold it.
        if fcntl is None or len(holder) != 2 or (holder[1] == socket.gethostname() and not _runs(int(holder[0]))):
            return False
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError, OverflowError):
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(number)
    return False


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return True


def _ours(number: int) -> bool:
    """Whether a lock file is one that a run wrote, or an empty one: nothing else may be written over or removed.

    One that has another name too is a file from elsewhere, and that would be written.
    """
    about = os.fstat(number)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        return False
    text = os.pread(number, 1000, 0)
    return not text or re.fullmatch(rb"\d+ \S+", text) is not None


def _acquire(path: Path) -> int:
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            reason = f"its {NAME} is a link" if error.errno == errno.ELOOP else error.strerror
            raise InputError(
                f"--workdir {path.parent} must be a folder that can be written: {reason}. Choose another."
            ) from None
        if not _ours(number):
            os.close(number)
            raise InputError(
                f"--workdir {path.parent} holds a {NAME} that no run has written. Rename that file, or choose another "
                "folder."
            )
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder may have removed the file between the opening and the locking.
            if os.path.samestat(os.fstat(number), path.stat()):
                return number
        except FileNotFoundError:
            pass
        except OSError:
            holder = os.pread(number, 1000, 0).decode(errors="replace").split()
            os.close(number)
            who = f"process {holder[0]} on {holder[1]}" if len(holder) == 2 else "another process"
            raise InputError(
                f"--workdir {path.parent} is in use by {who}. Wait for it, stop it, or choose another folder."
            ) from None
        os.close(number)
