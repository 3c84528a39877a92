"""Files that are whole or not there: drafts, JSON, checksums, locks, free disk space."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from jaxdl.errors import InputError

CHECKSUMS = "checksums.json"  # which `write_checksums` writes
_DRAFT = re.compile(r"\..*\.[0-9a-f]{16}\.part", re.DOTALL)
# What `reserve` asks for beyond the arrays: bytes for names, shapes and checksums, and files that are open at a time.
_MARGIN, _OPEN_FILES = 2**17, 64
# Windows has neither flag; there a folder holds no pipes, and few may make links.
NO_LINK, NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file that gets the name `path` when the block ends well, with all that it holds on the disk.

    It is written under a name that nobody can foresee, and that did not exist: no link is followed and no other file is
    written over. Where the block raises, the file that was at `path` stays. mode, options: as for `open`.

    Raises OSError where it cannot be written.
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
    """Create an empty file beside `path`, and return its name and its open descriptor."""
    draft = draft_name(path)
    return draft, os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)


def draft_name(path: Path) -> Path:
    """Return a name beside `path` that nobody can foresee, for a file or a folder."""
    # A file's name has at most 255 bytes.
    short = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{short}.{secrets.token_hex(8)}.part")


def is_draft(name: str) -> bool:
    """Return whether a name is one that `draft_name` gives."""
    return _DRAFT.fullmatch(name) is not None


def remove_drafts(folder: Path) -> None:
    """Remove the files below a folder that a process which was killed has left half-written. It follows no link."""
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names if is_draft(name)):
            with suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode):
                    path.unlink()


def open_regular(path: str | Path, *, follow: bool = True) -> IO[bytes]:
    """Open a file to read its bytes, without waiting for ever where the name is that of a pipe or a device.

    Raises OSError for what is no regular file, and for a link where `follow` is False.
    """
    number = os.open(path, os.O_RDONLY | NO_WAIT | (0 if follow else NO_LINK))
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def identity(path: Path) -> tuple[int, int] | None:
    """Return what a renamed file or folder keeps; None where there is nothing, or no right to see."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def sync(path: Path) -> None:
    """Wait until what a file holds, or the names in a folder, are on the disk.

    Raises OSError where the disk cannot keep them. A system that cannot sync folders, as Windows, keeps them itself.
    """
    try:
        number = os.open(path, os.O_RDONLY | NO_WAIT)
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
    """Wait until all files and folders below a folder, and the folder itself, are on the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def read_json(path: Path, advice: str = "Restore it from a copy.") -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises InputError where it holds something else, with `advice`, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            return {**json.loads(file.read())}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Make it readable.") from None
    except (ValueError, TypeError, RecursionError):
        raise InputError(f"{path} is damaged: it must be JSON with an object, got something else. {advice}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is there whole or not at all; a number that is not finite becomes null."""
    with atomic_write(path, "w") as file:
        file.write(as_json(content))


def as_json(content: object) -> str:
    """Return dicts, sequences, strings and numbers as JSON; a number that is not finite becomes null."""
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(value: object) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_checksums(folder: Path) -> None:
    """Write `checksums.json` into a folder: the SHA-256 of each file below it, and of that list itself.

    When it returns, all of that and the folder's own name are on the disk.

    Raises OSError where a file cannot be read, or the list not written.
    """
    # What the list names is on the disk before the list is, or a power cut could leave the list alone.
    sync_below(folder)
    with atomic_write(folder / CHECKSUMS) as file:
        file.write(_checksum_file({name: _sha256(folder / name) for name in _files_below(folder)}))
    sync(folder.parent)


def checksum_lines(folder: Path) -> str:
    """Return the SHA-256 of each file below a folder, a line each, as `sha256sum -c` reads them."""
    return "".join(f"{_sha256(folder / name)}  {name}\n" for name in _files_below(folder))


def find_damage(folder: Path) -> str | None:
    """Return what is not as `write_checksums` found it, in a few words; None where all is.

    Raises OSError where this process may not read it, or has too many files open: that is no damage.

    It follows no link and opens no path that stands in the list, so nothing outside the folder is ever read.
    """
    try:
        if not (folder / CHECKSUMS).is_file():
            return f"no {CHECKSUMS}: its save was not finished"
        files = _files_below(folder)
        content = (folder / CHECKSUMS).read_bytes()
        listed = _checksums_in(content)
        if listed is None:
            return f"{CHECKSUMS} is not what was saved"
        for name in sorted({*listed, *files}):
            if name not in files:
                return f"{_shown(name)} is missing"
            if name not in listed:
                return f"{_shown(name)} was not there when it was saved"
            if _sha256(folder / name) != listed[name]:
                return f"{_shown(name)} is not what was saved"
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE):
            raise
        return f"it cannot be read: {error}"
    except ValueError as error:
        return f"it cannot be read: {error}"
    return None


def read_checked(folder: Path, name: str) -> bytes | None:
    """Return what one file of a folder holds, if it is as `write_checksums` found it; it looks at no other file."""
    try:
        with open_regular(folder / CHECKSUMS, follow=False) as file:
            listed = _checksums_in(file.read())
        with open_regular(folder / name, follow=False) as file:
            found = file.read()
    except (OSError, ValueError):
        return None
    return found if listed is not None and listed.get(name) == hashlib.sha256(found).hexdigest() else None


def _files_below(folder: Path) -> list[str]:
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
    return sorted(name for name in found if name != CHECKSUMS and not is_draft(name))


def _raise(error: OSError) -> None:
    raise error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum_file(sums: dict[str, str]) -> bytes:
    files = json.dumps(sums, sort_keys=True, indent=1)
    whole = {"files": sums, "sha256": hashlib.sha256(files.encode()).hexdigest()}
    return (json.dumps(whole, sort_keys=True, indent=1) + "\n").encode()


def _checksums_in(content: bytes) -> dict[str, str] | None:
    """The sums in a list, if every byte of it is as it was written."""
    try:
        sums = {**json.loads(content)["files"]}
        return sums if _checksum_file(sums) == content else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def reserve(folder: Path, size: int) -> None:
    """Check that `size` bytes, and a little more, can be written into a folder, and many files opened.

    Raises OSError where they cannot. It reserves the space and frees it, which tells of quotas and limits too. Asked
    before many files are written at once, it gives one clear error in place of many.
    """
    opened: list[int] = []
    try:
        for _ in range(_OPEN_FILES):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for number in opened:
            os.close(number)
    if not hasattr(os, "posix_fallocate"):
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size + _MARGIN)


LOCK = "lock"
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
    """
    path = folder / LOCK
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
    """Return whether a process holds the lock of a folder; False too where that cannot be told."""
    path = folder / LOCK
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
            reason = f"its {LOCK} is a link" if error.errno == errno.ELOOP else error.strerror
            raise InputError(f"{path.parent} must be a folder that can be written: {reason}. Choose another.") from None
        problem, free = "", False
        if _holder(number) is None:
            problem = f"holds a {LOCK} that no run has written. Rename that file, or choose another folder."
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
            raise InputError(f"{path.parent} {problem}")
