"""Files that are written whole or not at all; JSON, checksums, locks, free disk space."""

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

CHECKSUMS = "checksums.json"
_DRAFT = re.compile(r"\..*\.[0-9a-f]{16}\.part", re.DOTALL)
# What `reserve` adds: bytes for names, shapes and checksums, and the number of files that are open at a time.
_MARGIN, _OPEN_FILES = 2**17, 64
# Windows has neither flag: there a folder holds no pipes, and few users may make links.
NO_LINK, NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a new file that replaces `path` when the block ends without an error, after a sync to the disk.

    The draft has a random new name: no link is followed and no other file is overwritten. Where the block raises, the
    file at `path` stays as it was. mode, options: as for `open`.

    Raises OSError where the file cannot be written.
    """
    path = Path(path)
    draft, descriptor = create_draft(path)
    try:
        with os.fdopen(descriptor, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def create_draft(path: Path) -> tuple[Path, int]:
    """Create an empty draft beside `path`, and return its path and its open descriptor."""
    draft = draft_name(path)
    return draft, os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)


def draft_name(path: Path) -> Path:
    """Return a random path beside `path`, for a file or a folder."""
    # A file's name has at most 255 bytes.
    short = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{short}.{secrets.token_hex(8)}.part")


def is_draft(name: str) -> bool:
    """Return whether a name has the form that `draft_name` returns."""
    return _DRAFT.fullmatch(name) is not None


def remove_drafts(folder: Path) -> None:
    """Remove the drafts of killed processes from a folder and the folders below it, without following links."""
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names if is_draft(name)):
            with suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode):
                    path.unlink()


def open_regular(path: str | Path, *, follow: bool = True) -> IO[bytes]:
    """Open a file to read its bytes; a pipe or a device, which could block forever, raises OSError.

    follow: False raises OSError for a link too.
    """
    descriptor = os.open(path, os.O_RDONLY | NO_WAIT | (0 if follow else NO_LINK))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def identity(path: Path) -> tuple[int, int] | None:
    """Return the device and the inode of a path, which a rename keeps; None where the path cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk. Raises OSError where that fails.

    It does nothing for folders on a system that cannot sync them, such as Windows.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_WAIT)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_below(folder: Path) -> None:
    """Wait until a folder and all files and folders below it are on the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def read_json(path: Path, advice: str = "Restore it from a copy.") -> dict[str, Any]:
    """Return the object in a JSON file. Raises InputError for other content, with `advice`, or an unreadable file."""
    try:
        with open_regular(path) as file:
            return {**json.loads(file.read())}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Make it readable.") from None
    except (ValueError, TypeError, RecursionError):
        raise InputError(f"{path} is damaged: it must be JSON with an object, got something else. {advice}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all; a number that is not finite becomes null."""
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
    """Write the SHA-256 of each file below a folder, and of that list, to the folder's `checksums.json`.

    The files, the list and the name of the folder are synced to the disk. Raises OSError where a file cannot be read or
    the list cannot be written.
    """
    # The files before the list: a power cut could otherwise leave the list alone.
    sync_below(folder)
    with atomic_write(folder / CHECKSUMS) as file:
        file.write(_checksum_file({name: _sha256(folder / name) for name in _files_below(folder)}))
    sync(folder.parent)


def checksum_lines(folder: Path) -> str:
    """Return the SHA-256 of each file below a folder, in the lines that `sha256sum -c` reads."""
    return "".join(f"{_sha256(folder / name)}  {name}\n" for name in _files_below(folder))


def find_damage(folder: Path) -> str | None:
    """Return in a few words what differs from the checksums of a folder; None where nothing does.

    It follows no link and opens no path from the list, so it reads nothing outside of the folder. Raises OSError
    without the permission to read, or with too many open files: neither is damage.
    """
    try:
        if not (folder / CHECKSUMS).is_file():
            return f"no {CHECKSUMS}: its save was not finished"
        files = _files_below(folder)
        sums = _parse_checksums((folder / CHECKSUMS).read_bytes())
        if sums is None:
            return f"{CHECKSUMS} is not what was saved"
        for name in sorted({*sums, *files}):
            if name not in files:
                return f"{_printable(name)} is missing"
            if name not in sums:
                return f"{_printable(name)} was not there when it was saved"
            if _sha256(folder / name) != sums[name]:
                return f"{_printable(name)} is not what was saved"
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE):
            raise
        return f"it cannot be read: {error}"
    except ValueError as error:
        return f"it cannot be read: {error}"
    return None


def read_checked(folder: Path, name: str) -> bytes | None:
    """Return the content of one file of a folder; None where its checksum is missing or differs."""
    try:
        with open_regular(folder / CHECKSUMS, follow=False) as file:
            sums = _parse_checksums(file.read()) or {}
        with open_regular(folder / name, follow=False) as file:
            content = file.read()
    except (OSError, ValueError):
        return None
    return content if sums.get(name) == hashlib.sha256(content).hexdigest() else None


def _files_below(folder: Path) -> list[str]:
    """Return the names of the files below a folder, relative to it. Raises ValueError for a link or a pipe."""
    names = []
    for root, folders, files in os.walk(folder, onerror=_raise):
        for path in (Path(root, name) for name in [*folders, *files]):
            mode, name = path.lstat().st_mode, path.relative_to(folder).as_posix()
            if stat.S_ISREG(mode):
                names.append(name)
            elif not stat.S_ISDIR(mode):
                raise ValueError(f"{_printable(name)} is a link or no file")
    return sorted(name for name in names if name != CHECKSUMS and not is_draft(name))


def _raise(error: OSError) -> None:
    raise error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum_file(sums: dict[str, str]) -> bytes:
    """Return the content of `checksums.json`."""
    files = json.dumps(sums, sort_keys=True, indent=1)
    whole = {"files": sums, "sha256": hashlib.sha256(files.encode()).hexdigest()}
    return (json.dumps(whole, sort_keys=True, indent=1) + "\n").encode()


def _parse_checksums(content: bytes) -> dict[str, str] | None:
    """Return the sums in a `checksums.json`; None where a byte of the file has changed."""
    try:
        sums = {**json.loads(content)["files"]}
        return sums if _checksum_file(sums) == content else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def reserve(folder: Path, size: int) -> None:
    """Raise OSError where `size` bytes and a margin cannot be written into a folder, or many files cannot be opened.

    It allocates the space and frees it, so quotas and limits count too. Before many files are written at once, it
    raises one clear error in place of many.
    """
    descriptors: list[int] = []
    try:
        for _ in range(_OPEN_FILES):
            descriptors.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    if not hasattr(os, "posix_fallocate"):
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size + _MARGIN)


LOCK = "lock"
WINDOWS = os.name == "nt"
# filelock locks the first byte, and on Windows no other process can read a locked byte: the text starts after it.
START = 1 if WINDOWS else 0


@contextmanager
def lock_folder(folder: Path) -> Iterator[Callable[[], bool]]:
    """Hold the folder's file `lock`, which names the process, during the block.

    Yields a function that returns whether the file is still there: where a user has removed it, or moved the folder,
    another process could lock the folder too. The system frees the lock when its process ends in any way, so the file
    of a dead process is taken over.

    Raises InputError where another process holds the lock, or the file cannot be written.
    """
    path = folder / LOCK
    descriptor = _acquire(path)
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, START, os.SEEK_SET)
        with suppress(OSError):  # On a full disk the lock holds without its text.
            os.write(descriptor, f"{os.getpid()} {socket.gethostname()}".encode())
        yield lambda: _is_at(descriptor, path)
    finally:
        # While the lock is held: later the file could be the lock of another process.
        with suppress(OSError):
            if _is_at(descriptor, path):
                path.unlink()
        os.close(descriptor)
        if WINDOWS:  # Windows removes no open file, this process's above or another's here.
            with suppress(OSError):
                path.unlink()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Lock a file or a folder for one writer during the block, without making a file.

    The system frees the lock when its process ends. Nothing is locked on a file system without locks, and on Windows,
    which locks no folder and lets nobody write a locked file. Raises InputError where another writer, of this process
    or of another, holds the lock.
    """
    if WINDOWS:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY | NO_WAIT)
    try:
        free = True
        with suppress(OSError):  # A file system without locks.
            free = lock_descriptor(descriptor, blocking=False)
        if not free:
            raise InputError(f"{path} is being written by another run. Wait for it, stop it, or choose another name.")
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder; False too where the lock cannot be read."""
    path = folder / LOCK
    try:
        # NFS locks only a file that is open for writing.
        mode = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY
        descriptor = os.open(path, mode | NO_LINK | NO_WAIT)
    except OSError:
        return False
    try:
        holder = _holder(descriptor)
        # The test below holds the lock for a moment, in which another process may want it: so it comes last.
        if not holder or (holder[1] == socket.gethostname() and not _is_running(int(holder[0]))):
            return False
        for pause in (0.0, 0.01):  # Another process may be testing too.
            time.sleep(pause)
            if lock_descriptor(descriptor, blocking=False):
                return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return True


def _is_running(pid: int) -> bool:
    if WINDOWS:  # There os.kill would end the process.
        return True
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is the file at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _holder(descriptor: int) -> list[str] | None:
    """Return the process and the host that a lock file names, [] if it is empty, None if no run has written it.

    Only the file of a run may be overwritten or removed. A file with a second name is none.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        return None
    os.lseek(descriptor, START, os.SEEK_SET)
    text = os.read(descriptor, 1000).decode(errors="replace")
    return text.split(" ") if re.fullmatch(r"[0-9]+ \S+", text) else None if text else []


def _acquire(path: Path) -> int:
    """Lock a lock file and return its open descriptor. Raises InputError where that is not possible."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK | NO_WAIT, 0o644)
        except OSError as error:
            reason = f"its {LOCK} is a link" if error.errno == errno.ELOOP else error.strerror
            raise InputError(f"{path.parent} must be a folder that can be written: {reason}. Choose another.") from None
        problem, free = "", False
        if _holder(descriptor) is None:
            problem = f"holds a {LOCK} that no run has written. Rename that file, or choose another folder."
        else:
            with suppress(OSError):  # A file system without locks.
                free = lock_descriptor(descriptor, blocking=False)
            if not free:
                holder = _holder(descriptor)
                who = f"process {holder[0]} on {holder[1]}" if holder else "another process"
                problem = f"is in use by {who}. Wait for it, stop it, or choose another folder."
            # The last holder may have removed the file after it was opened here.
            elif _is_at(descriptor, path):
                return descriptor
        os.close(descriptor)
        if problem:
            raise InputError(f"{path.parent} {problem}")
