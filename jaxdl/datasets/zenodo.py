"""A file of a Zenodo record, downloaded once and checked against the checksum that the record itself states."""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdl.errors import InputError

if TYPE_CHECKING:
    import requests

SERVER = "https://zenodo.org"
REACHED_WITHIN = 10.0  # seconds in all, looking up names included, until the server must have answered
STALLED = 30.0  # seconds without a byte
CHECKSUM = re.compile(r"(md5|sha1|sha256|sha512):[0-9a-f]+")


class UnreachableError(InputError):
    """The server did not answer in time, or there is no way to it."""


def fetch(doi: str, name: str, cache: Path, *, server: str = SERVER, within: float = REACHED_WITHIN) -> Path:
    """The path of the file `name` of the record `doi` in the folder `cache`, which is downloaded if it is not there.

    A file comes into being whole and checked or not at all, and its checksum stays beside it. Raises UnreachableError
    where the server has not answered within `within` seconds, InputError where it refuses, the record has no such file,
    the download breaks off, the checksum is wrong, or the folder cannot be written. Source: the REST API of Zenodo.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "a.csv").write_text("1")
    ...     _ = (Path(folder) / "a.csv.checksum").write_text("md5:c4ca4238a0b923820dcc509a6f75849b")
    ...     fetch("10.5281/zenodo.1", "a.csv", Path(folder)).name
    'a.csv'
    """
    path = cached(name, cache)
    if path is not None:
        return path
    get = functools.partial(_get, deadline=time.monotonic() + within, within=within)
    url, checksum = _entry(get(f"{server}/api/records/{doi.rpartition('.')[2]}"), doi, name)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _download(url, checksum, cache / name, get)
        # After the file, and whole, so that what it stands beside was checked.
        partial = _checksum_of(cache / name).with_suffix(".partial")
        partial.write_text(checksum)
        partial.replace(_checksum_of(cache / name))
    except OSError as error:
        raise InputError(f"the cache folder {cache} cannot be written ({error.strerror or error}).") from error
    return cache / name


def cached(name: str, cache: Path) -> Path | None:
    """The path of a file that `fetch` has downloaded to `cache` before, checked again; None where it has not.

    Raises InputError where the file is damaged.

    >>> print(cached("a.csv", Path("no-such-folder")))
    None
    """
    # Imported here, and below: a program that reads a file of its own needs no downloads.
    import pooch

    path = cache / name
    try:
        if not (path.is_file() and _checksum_of(path).is_file()):
            return None
        checksum = _checksum_of(path).read_text().strip()
        if CHECKSUM.fullmatch(checksum):
            algorithm, _, expected = checksum.partition(":")
            if pooch.file_hash(str(path), algorithm) == expected:
                return path
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Make it readable or remove it.") from error
    raise InputError(f"{path} must have the checksum with which it was downloaded. Remove it to download it again.")


def _checksum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.checksum")


def _get(url: str, *, deadline: float, within: float, stream: bool = False) -> requests.Response:
    """The answer to a GET request, if it begins before the deadline.

    In a thread, because looking up a name cannot be interrupted; a daemon, so that it cannot keep a program alive.
    """
    import requests

    outcome: list[Any] = []

    def ask() -> None:
        try:
            outcome.append(requests.get(url, stream=stream, timeout=(within, STALLED)))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(max(deadline - time.monotonic(), 0))
    answer = outcome[0] if outcome else requests.Timeout(f"no answer within {within:g} seconds")
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


def _entry(answer: requests.Response, doi: str, name: str) -> tuple[str, str]:
    """The address and the checksum of a file, out of its record."""
    try:
        files = {file["key"]: (file["links"]["self"], file["checksum"]) for file in json.loads(answer.content)["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{answer.url} must be a Zenodo record that lists files, got something else.") from error
    if name not in files:
        raise InputError(f"the record {doi} must hold {name}, got {', '.join(sorted(files)) or 'no file'}.")
    url, checksum = files[name]
    if not CHECKSUM.fullmatch(str(checksum)):
        raise InputError(f"the record {doi} must state a checksum of {name}, got {checksum!r}. Download it by hand.")
    return url, checksum


def _download(url: str, checksum: str, path: Path, get: Any) -> None:
    import pooch
    import requests

    def copy(url: str, output: str, _: Any) -> None:
        try:
            with get(url, stream=True) as answer, Path(output).open("wb") as file:
                for block in answer.iter_content(1 << 16):
                    file.write(block)
        except requests.RequestException as error:
            raise InputError(f"the download of {url} broke off. Try again.") from error

    try:
        pooch.retrieve(url, checksum, fname=path.name, path=path.parent, downloader=copy)
    except InputError:
        raise
    except ValueError as error:
        # Pooch's word for a wrong checksum; it has removed what it downloaded.
        raise InputError(
            f"the download of {url} must have the checksum {checksum} that its record states, and has another. "
            "Nothing is kept. Try again; if it stays so, do not trust this copy."
        ) from error
