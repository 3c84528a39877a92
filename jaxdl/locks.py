"""A lock: one process a folder."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from jaxdl.errors import InputError
from jaxdl.files import NO_LINK, NO_WAIT

NAME = "lock"
WINDOWS = os.name == "nt"
# filelock locks the first byte, and on Windows no other process can read a locked byte: the text begins after it.
START = 1 if WINDOWS else 0


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """Hold the folder's file `lock` for the time of the block; the file names the process.

    Gives a function that tells whether the file is still there: where somebody has removed it, or moved the folder,
    another process could take the folder too.

    The system frees a lock when its process ends, however it ends, so what a dead process left is taken over.
    Raises InputError where another process holds it, or the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name, locked(Path(name)):
    ...     Path(name, "lock").read_text() == f"{os.getpid()} {socket.gethostname()}"
    True
    """
    path = folder / NAME
    number = _acquire(path)
    try:
        os.ftruncate(number, 0)
        os.lseek(number, START, os.SEEK_SET)
        with suppress(OSError):  # A full disk: the lock holds without its text.
            os.write(number, f"{os.getpid()} {socket.gethostname()}".encode())
        yield lambda: _is_at(number, path)
    finally:
        # Before it is given back: afterwards the name could be another's.
        with suppress(OSError):
            if _is_at(number, path):
                path.unlink()
        os.close(number)
        if WINDOWS:  # It removes no file that a process has open: not the one above, and not another's.
            with suppress(OSError):
                path.unlink()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file or a folder that exists for the one run that writes there, for the time of the block.

    No file is made, and the system frees the lock when its process ends. Nothing is locked where the file system has no
    locks, nor on Windows, which locks no folder and lets nobody write a locked file. Raises InputError where another
    run holds it, of this process or of another.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name, exclusive(Path(name)):
    ...     with exclusive(Path(name)):
    ...         pass
    Traceback (most recent call last):
    jaxdl.errors.InputError: ... is being written by another run. ...
    """
    if WINDOWS:
        yield
        return
    number = os.open(path, os.O_RDONLY | NO_WAIT)
    try:
        free = True
        with suppress(OSError):  # A file system without locks.
            free = lock_descriptor(number, blocking=False)
        if not free:
            raise InputError(f"{path} is being written by another run. Wait for it, stop it, or choose another name.")
        yield
    finally:
        os.close(number)


def held(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder; False too where that cannot be told.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     with locked(Path(name)):
    ...         inside = held(Path(name))
    ...     inside, held(Path(name))
    (True, False)
    """
    path = folder / NAME
    try:
        # NFS locks only a file that is open for writing.
        mode = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY
        number = os.open(path, mode | NO_LINK | NO_WAIT)
    except OSError:
        return False
    try:
        holder = _holder(number)
        # To ask the system means to hold the lock for a moment, which another process might just then want: so that is
        # asked only where the file names a process that may well hold it.
        if not holder or (holder[1] == socket.gethostname() and not _runs(int(holder[0]))):
            return False
        for pause in (0.0, 0.01):  # Another process may be asking as well.
            time.sleep(pause)
            if lock_descriptor(number, blocking=False):
                return False
    except OSError:
        return True
    finally:
        os.close(number)
    return True


def _runs(process: int) -> bool:
    if WINDOWS:  # There os.kill would end it.
        return True
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _is_at(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except OSError:
        return False


def _holder(number: int) -> list[str] | None:
    """Return the process and the host that a lock file names, [] if it is empty, None if no run has written it.

    Only what a run wrote may be written over or removed. A file that has another name too comes from elsewhere.
    """
    about = os.fstat(number)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        return None
    os.lseek(number, START, os.SEEK_SET)
    text = os.read(number, 1000).decode(errors="replace")
    return text.split(" ") if re.fullmatch(r"[0-9]+ \S+", text) else None if text else []


def _acquire(path: Path) -> int:
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK | NO_WAIT, 0o644)
        except OSError as error:
            reason = f"its {NAME} is a link" if error.errno == errno.ELOOP else error.strerror
            raise InputError(
                f"--workdir {path.parent} must be a folder that can be written: {reason}. Choose another."
            ) from None
        problem, free = "", False
        if _holder(number) is None:
            problem = f"holds a {NAME} that no run has written. Rename that file, or choose another folder."
        else:
            with suppress(OSError):  # A file system without locks.
                free = lock_descriptor(number, blocking=False)
            if not free:
                holder = _holder(number)
                who = f"process {holder[0]} on {holder[1]}" if holder else "another process"
                problem = f"is in use by {who}. Wait for it, stop it, or choose another folder."
            # Its holder may have removed the file between the opening and the locking.
            elif _is_at(number, path):
                return number
        os.close(number)
        if problem:
            raise InputError(f"--workdir {path.parent} {problem}")
