"""Find the source of a data set, and download files with a checksum."""

from __future__ import annotations

import difflib
import json
import os
import re
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdl._files import atomic_write, sync
from jaxdl.datasets._simulated_weather import DAYS, SEED
from jaxdl.errors import InputError

if TYPE_CHECKING:
    import requests


ZENODO = "https://zenodo.org"
REACHED_WITHIN = 10.0  # seconds for the answer of a server, with the lookup of its name
STALLED = 30.0  # seconds without a byte after which a download fails
CHECKSUM = re.compile(r"(md5|sha1|sha256|sha512):[0-9a-f]+")


class UnreachableError(InputError):
    """Raised where a server does not answer in time or cannot be reached."""


def too_long(path: Path) -> bool:
    """Return whether a path, or one of its names, is longer than file systems allow."""
    return len(str(path)) > 4000 or any(len(os.fsencode(part)) > 255 for part in path.parts)


def user_cache() -> Path:
    """Return the default folder of downloads."""
    return Path(_pooch().os_cache("jaxdl"))


def cached(name: str, cache: Path) -> Path | None:
    """Return the path of an earlier download in `cache`; None without one. Raises InputError for a damaged file."""
    path = cache / name
    try:
        if not (path.is_file() and _checksum_path(path).is_file()):
            return None
        checksum = _checksum_path(path).read_text().strip()
        if CHECKSUM.fullmatch(checksum):
            algorithm, _, expected = checksum.partition(":")
            if _pooch().file_hash(str(path), algorithm) == expected:
                return path
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Make it readable or remove it.") from error
    raise InputError(f"{path} must have the checksum with which it was downloaded. Remove it to download it again.")


def fetch_zenodo(doi: str, name: str, cache: Path, *, server: str = ZENODO, within: float = REACHED_WITHIN) -> Path:
    """Return the path in `cache` of the file `name` of a Zenodo record, downloaded on first use.

    The record states the checksum. Raises what `fetch` raises, and InputError where the record has no such file.
    Source: the REST API of Zenodo.
    """
    path = cached(name, cache)
    if path is not None:
        return path
    deadline = time.monotonic() + within
    record = get(f"{server}/api/records/{doi.rpartition('.')[2]}", deadline)
    try:
        files = {file["key"]: (file["links"]["self"], file["checksum"]) for file in json.loads(record.content)["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{record.url} must be a Zenodo record that lists files, got something else.") from error
    if name not in files:
        raise InputError(f"the record {doi} must hold {name}, got {', '.join(sorted(files)) or 'no file'}.")
    url, checksum = files[name]
    if not CHECKSUM.fullmatch(str(checksum)):
        raise InputError(f"the record {doi} must state a checksum of {name}, got {checksum!r}. Download it by hand.")
    return fetch(url, checksum, cache / name, deadline)


def fetch(url: str, checksum: str, path: Path, deadline: float | None = None) -> Path:
    """Download `url` to `path` unless the file is there, and return `path`.

    The file is written whole or not at all, with its checksum beside it.

    checksum: such as "sha256:ba7816bf8f01cfea...".
    deadline: for the answer of the server, in seconds of `time.monotonic`; None for `REACHED_WITHIN` seconds from now.

    Raises UnreachableError without an answer, and InputError where the server refuses, the download breaks off, the
    checksum is wrong, or the folder cannot be written.
    """
    if cached(path.name, path.parent) is not None:
        return path
    moment = time.monotonic() + REACHED_WITHIN if deadline is None else deadline

    def copy(url: str, output: str, _: object) -> None:
        import urllib3

        try:
            with get(url, moment, stream=True) as answer, open(output, "wb") as file:
                # Not decoded: a server may declare the file's own compression as that of the transfer.
                for block in answer.raw.stream(1 << 16, decode_content=False):
                    file.write(block)
        except urllib3.exceptions.HTTPError as error:
            raise InputError(f"the download of {url} broke off. Try again.") from error
        sync(Path(output))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _pooch().retrieve(url, checksum, fname=path.name, path=path.parent, downloader=copy)
        # After the file: a checksum then stands beside a file that has it.
        with atomic_write(_checksum_path(path)) as file:
            file.write(checksum.encode())
    except OSError as error:
        raise InputError(f"the cache folder {path.parent} cannot be written ({error.strerror or error}).") from error
    except InputError:
        raise
    except ValueError as error:
        # Pooch raises ValueError for a wrong checksum, and removes the file.
        raise InputError(
            f"the download of {url} must have the checksum {checksum}, and has another. Nothing is kept. Try again; if "
            "it stays so, do not trust this copy."
        ) from error
    return path


def get(url: str, deadline: float, *, stream: bool = False) -> requests.Response:
    """Return the response to a GET request; stream: without its body, and the caller must close it.

    Raises UnreachableError without an answer at the deadline, in seconds of `time.monotonic`, and InputError for a
    refusal.
    """
    import requests

    answers: list[Any] = []
    seconds = max(deadline - time.monotonic(), 0.001)  # Requests refuses a timeout of 0.

    def ask() -> None:
        headers = {"Accept-Encoding": "identity"}  # Without compression: the checksum is that of the file.
        try:
            answers.append(requests.get(url, headers=headers, stream=stream, timeout=(seconds, STALLED)))
        except Exception as error:
            answers.append(error)

    # In a thread: the lookup of a name cannot be interrupted. A daemon does not keep the program alive.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    answer = answers[0] if answers else requests.Timeout(f"no answer within {seconds:.3g} seconds")
    if isinstance(answer, (requests.ConnectionError, requests.Timeout)):
        reason = "no answer in time" if isinstance(answer, requests.Timeout) else "no connection"
        text = f"{url} cannot be reached: {reason}. Use a connection, or a file that you have."
        raise UnreachableError(text) from answer
    if isinstance(answer, Exception):
        raise InputError(f"{url} cannot be downloaded ({answer}). Check the address.") from answer
    if not answer.ok:
        answer.close()
        status = f"HTTP {answer.status_code} {answer.reason}"
        raise InputError(f"{url} must answer with a file, got {status}. Try again later, or use a file that you have.")
    return answer


def _pooch() -> Any:
    """Import pooch, only for downloads, and return it."""
    with warnings.catch_warnings():
        # In a notebook tqdm, which pooch imports, warns that its bars need ipywidgets; no bar is shown here.
        warnings.filterwarnings("ignore", "IProgress not found")
        import pooch
    return pooch


def _checksum_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.checksum")


DATA_FOLDER = "JAXDL_DATA"


class Published(NamedTuple):
    """A file of a Zenodo record."""

    doi: str
    name: str


LIGHT = Published("10.5281/zenodo.5071376", "weather_prediction_dataset_light.csv")
FULL = Published("10.5281/zenodo.7525955", "weather_prediction_dataset.csv")
LABELS = Published("10.5281/zenodo.4980359", "weather_prediction_bbq_labels.csv")  # of its days, beside either table
WORDS = {"zenodo": LIGHT, "zenodo-full": FULL}
ADVICE = "Use auto, zenodo, zenodo-full, simulated[:DAYS[:SEED]], a CSV file, or a folder that holds one."


class File(NamedTuple):
    """A table to read."""

    path: Path
    label: str  # its origin


class Simulated(NamedTuple):
    """A table to generate."""

    days: int
    seed: int
    note: str | None = None  # why no measured weather is available


def find(source: str | Path, *, cache: Path | None = None, server: str = ZENODO) -> File | Simulated:
    """Return the table of a source, downloaded if needed.

    cache: the user's cache folder unless given. Only "auto" falls back to simulated weather, and only where the server
    cannot be reached. Raises InputError for an unknown source.
    """
    word = str(source)
    if source == "auto":
        return _auto(cache or user_cache(), server)
    if source in WORDS:
        return _published(WORDS[word], cache or user_cache(), server)
    if word.partition(":")[0] == "simulated" and isinstance(source, str):
        return _simulated(word)
    path = Path(source).expanduser()
    if not word or too_long(path) or (not path.exists() and path.name == word and not path.suffix):
        near = difflib.get_close_matches(word, ["auto", *WORDS, "simulated"], 1)
        nearest = f"; the nearest word is {near[0]}" if near else ""
        raise InputError(f"{word!r} is no source of weather{nearest}. {ADVICE}")
    return _local(path)


def _auto(cache: Path, server: str) -> File | Simulated:
    """Return the table of the source "auto"."""
    folder = os.environ.get(DATA_FOLDER)
    if folder:
        try:
            return _local(Path(folder).expanduser())
        except InputError as error:
            # No fallback: whoever sets the variable wants this data.
            raise InputError(f"{DATA_FOLDER} must name a folder with the weather data: {error}") from error
    for published in (LIGHT, FULL):
        path = cached(published.name, cache)
        if path is not None:
            return File(path, f"zenodo:{published.doi}")
    try:
        return _published(LIGHT, cache, server)
    except UnreachableError as error:
        note = f"SIMULATED WEATHER, NOT MEASURED: {error} No metric of this run says anything about real weather."
        return Simulated(DAYS, SEED, note)


def _published(published: Published, cache: Path, server: str) -> File:
    """Return a published file from `cache`, downloaded on first use."""
    path = fetch_zenodo(published.doi, published.name, cache, server=server)
    return File(path, f"zenodo:{published.doi}")


def _simulated(word: str) -> Simulated:
    """Return the simulation that simulated[:DAYS[:SEED]] names."""
    numbers = word.split(":")[1:]
    try:
        days, seed = [*map(int, numbers), *(DAYS, SEED)[len(numbers) :]]
    except ValueError as error:
        raise InputError(
            f"simulated weather must be simulated[:DAYS[:SEED]] with whole numbers, got {word}."
        ) from error
    return Simulated(days, seed)


def _local(path: Path) -> File:
    """Return the table at a path or in a folder."""
    if not path.exists():
        raise InputError(f"{path} does not exist. {ADVICE}")
    table = _table_in(path) if path.is_dir() else path
    return File(table, f"file:{table.absolute()}")


def _table_in(folder: Path) -> Path:
    """Return the path of the one table in a folder. Raises InputError for none, and for several."""
    for place in (folder, folder / "weather"):
        try:
            files = sorted(place.iterdir()) if place.is_dir() else []
        except OSError as error:
            raise InputError(f"{place} cannot be read ({error.strerror}). Make it readable or name another.") from error
        tables = [file for file in files if file.suffix == ".csv" and file.name != LABELS.name]
        for published in (LIGHT, FULL):
            if place / published.name in tables:
                return place / published.name
        if len(tables) == 1:
            return tables[0]
        if tables:
            names = ", ".join(table.name for table in tables)
            raise InputError(f"{place} must hold one table of weather, got {names}. Name the file itself.")
    raise InputError(f"{folder} must hold a CSV file, itself or in its folder weather, got none. {ADVICE}")
