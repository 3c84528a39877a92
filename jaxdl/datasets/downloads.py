"""Files downloaded once, whole and checked or not at all, kept in a cache folder with their checksums beside them."""

from __future__ import annotations

import os
import re
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdl.errors import InputError
from jaxdl.files import atomic_write

if TYPE_CHECKING:
    import requests

REACHED_WITHIN = 10.0  # seconds in all, looking up names included, until the server must have answered
STALLED = 30.0  # seconds without a byte
CHECKSUM = re.compile(r"(md5|sha1|sha256|sha512):[0-9a-f]+")


class UnreachableError(InputError):
    """The server did not answer in time, or there is no way to it."""


class Deadline(NamedTuple):
    """Until when answers must have begun, however many are asked for."""

    within: float  # seconds, for messages
    moment: float  # of the monotonic clock


def starting_now(within: float = REACHED_WITHIN) -> Deadline:
    """The deadline that is so many seconds away.

    >>> starting_now(2.0).within
    2.0
    """
    return Deadline(within, time.monotonic() + within)


def too_long(path: Path) -> bool:
    """Whether a path cannot be, because it or one of its names has more letters than file systems allow.

    >>> too_long(Path("a" * 300, "b"))
    True
    """
    return len(str(path)) > 4000 or any(len(os.fsencode(part)) > 255 for part in path.parts)


def user_cache() -> Path:
    """The folder in which downloads are kept unless another is given.

    >>> user_cache().name
    'jaxdl'
    """
    return Path(_pooch().os_cache("jaxdl"))


def cached(name: str, cache: Path) -> Path | None:
    """The path of a file that `fetch` has put into `cache` before, checked again; None where it has not.

    Raises InputError where the file is damaged.

    >>> print(cached("a.csv", Path("no-such-folder")))
    None
    """
    path = cache / name
    try:
        if not (path.is_file() and _checksum_of(path).is_file()):
            return None
        checksum = _checksum_of(path).read_text().strip()
        if CHECKSUM.fullmatch(checksum):
            algorithm, _, expected = checksum.partition(":")
            if _pooch().file_hash(str(path), algorithm) == expected:
                return path
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Make it readable or remove it.") from error
    raise InputError(f"{path} must have the checksum with which it was downloaded. Remove it to download it again.")


def fetch(url: str, checksum: str, path: Path, deadline: Deadline | None = None) -> Path:
    """The file at `path`, downloaded from `url` if it is not there; `checksum` is such as "sha256:ba7816bf8f01cfea...".

    A file comes into being whole and checked or not at all, and its checksum stays beside it. Raises UnreachableError
    where the server has not answered at the deadline, by default in `REACHED_WITHIN` seconds; InputError where it
    refuses, the download breaks off, the checksum is wrong, or the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         fetch("http://127.0.0.1:1/a.csv", "md5:0", Path(folder) / "a.csv", starting_now(0.0))
    ...     except UnreachableError as error:
    ...         print(str(error).partition(":")[2].partition(":")[2].partition(":")[0])
    1/a.csv cannot be reached
    """
    if cached(path.name, path.parent) is not None:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, checksum, path, deadline or starting_now())
        # After the file, so that what it stands beside was checked.
        with atomic_write(_checksum_of(path)) as file:
            file.write(checksum.encode())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"the cache folder {path.parent} cannot be written ({reason}).") from error
    return path


def get(url: str, deadline: Deadline, *, stream: bool = False) -> requests.Response:
    """The answer to a GET request, whole; of a stream, which must be closed, only the beginning.

    Raises UnreachableError where it is not there at the deadline, InputError where it is a refusal.

    >>> try:
    ...     get("nowhere", starting_now(10.0))
    ... except InputError as error:
    ...     print(error)
    nowhere cannot be downloaded (...). Check the address.
    """
    import requests

    answer = _answer(url, deadline, stream)
    if isinstance(answer, (requests.ConnectionError, requests.Timeout)):
        reason = "no answer in time" if isinstance(answer, requests.Timeout) else "no connection"
        raise UnreachableError(
            f"{url} cannot be reached: {reason}. Use a connection, or a file that you have."
        ) from answer
    if isinstance(answer, Exception):
        raise InputError(f"{url} cannot be downloaded ({answer}). Check the address.") from answer
    if not answer.ok:
        answer.close()
        status = f"HTTP {answer.status_code} {answer.reason}"
        raise InputError(f"{url} must answer with a file, got {status}. Try again later, or use a file that you have.")
    return answer


def _answer(url: str, deadline: Deadline, stream: bool) -> Any:
    """The answer, or the error that took its place.

    In a thread, because looking up a name cannot be interrupted; a daemon, so that it cannot keep a program alive.
    """
    import requests

    outcome: list[Any] = []

    def ask() -> None:
        # Not packed for the way: the checksum is that of the file.
        headers = {"Accept-Encoding": "identity"}
        # Requests takes no time at all for a mistake.
        timeout = max(deadline.within, 0.001), STALLED
        try:
            outcome.append(requests.get(url, headers=headers, stream=stream, timeout=timeout))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(max(deadline.moment - time.monotonic(), 0))
    return outcome[0] if outcome else requests.Timeout(f"no answer within {deadline.within:g} seconds")


def _download(url: str, checksum: str, path: Path, deadline: Deadline) -> None:
    import urllib3

    def copy(url: str, output: str, _: Any) -> None:
        try:
            with get(url, deadline, stream=True) as answer, Path(output).open("wb") as file:
                # Not unpacked either, where a server takes the file's own compression for one of the way.
                for block in answer.raw.stream(1 << 16, decode_content=False):
                    file.write(block)
        except urllib3.exceptions.HTTPError as error:
            raise InputError(f"the download of {url} broke off. Try again.") from error

    try:
        _pooch().retrieve(url, checksum, fname=path.name, path=path.parent, downloader=copy)
    except InputError:
        raise
    except ValueError as error:
        # Pooch's word for a wrong checksum; it has removed what it downloaded.
        raise InputError(
            f"the download of {url} must have the checksum {checksum}, and has another. Nothing is kept. Try again; if "
            "it stays so, do not trust this copy."
        ) from error


def _pooch() -> Any:
    """Pooch, imported where it is needed: a program that reads a file of its own needs no downloads."""
    with warnings.catch_warnings():
        # In a notebook tqdm, which pooch brings along, warns that its bars need ipywidgets; none is shown here.
        warnings.filterwarnings("ignore", "IProgress not found")
        import pooch
    return pooch


def _checksum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.checksum")
