"""Downloads that are checked, whole or not there."""

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
REACHED_WITHIN = 10.0  # seconds in all, looking up names included, until the server must have answered
STALLED = 30.0  # seconds without a byte
CHECKSUM = re.compile(r"(md5|sha1|sha256|sha512):[0-9a-f]+")


class UnreachableError(InputError):
    """The server did not answer in time, or there is no way to it."""


def too_long(path: Path) -> bool:
    """Return whether a path, or one of its names, has more letters than file systems allow."""
    return len(str(path)) > 4000 or any(len(os.fsencode(part)) > 255 for part in path.parts)


def user_cache() -> Path:
    """Return the folder in which downloads are kept unless another is given."""
    return Path(_pooch().os_cache("jaxdl"))


def cached(name: str, cache: Path) -> Path | None:
    """Return the path of a file that `fetch` has put into `cache` before, checked again; None where it has not.

    Raises InputError where the file is damaged.
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


def fetch_zenodo(doi: str, name: str, cache: Path, *, server: str = ZENODO, within: float = REACHED_WITHIN) -> Path:
    """Return the path of the file `name` of the record `doi` in the folder `cache`, downloaded if it is not there.

    The record states its checksum. Raises as `fetch` does, and InputError where the record has no such file. Source:
    the REST API of Zenodo.
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
    """Return `path`, to which `url` is downloaded if it is not there.

    A file comes into being whole and checked or not at all, and its checksum stays beside it. checksum: such as
    "sha256:ba7816bf8f01cfea...". deadline: until when the server must have answered, as `time.monotonic` counts; None
    for `REACHED_WITHIN` seconds from now. Raises UnreachableError where it has not, InputError where it refuses, the
    download breaks off, the checksum is wrong, or the folder cannot be written.
    """
    if cached(path.name, path.parent) is not None:
        return path
    moment = time.monotonic() + REACHED_WITHIN if deadline is None else deadline

    def copy(url: str, output: str, _: object) -> None:
        import urllib3

        try:
            with get(url, moment, stream=True) as answer, open(output, "wb") as file:
                # Not unpacked, where a server takes the file's own compression for one of the way.
                for block in answer.raw.stream(1 << 16, decode_content=False):
                    file.write(block)
        except urllib3.exceptions.HTTPError as error:
            raise InputError(f"the download of {url} broke off. Try again.") from error
        sync(Path(output))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _pooch().retrieve(url, checksum, fname=path.name, path=path.parent, downloader=copy)
        # After the file, so that what it stands beside was checked.
        with atomic_write(_checksum_of(path)) as file:
            file.write(checksum.encode())
    except OSError as error:
        raise InputError(f"the cache folder {path.parent} cannot be written ({error.strerror or error}).") from error
    except InputError:
        raise
    except ValueError as error:
        # Pooch's word for a wrong checksum; it has removed what it downloaded.
        raise InputError(
            f"the download of {url} must have the checksum {checksum}, and has another. Nothing is kept. Try again; if "
            "it stays so, do not trust this copy."
        ) from error
    return path


def get(url: str, deadline: float, *, stream: bool = False) -> requests.Response:
    """Return the answer to a GET request, whole; of a stream, which must be closed, only the beginning.

    Raises UnreachableError where there is none at the deadline (of `time.monotonic`), InputError for a refusal.
    """
    import requests

    answers: list[Any] = []
    seconds = max(deadline - time.monotonic(), 0.001)  # Requests takes no time at all for a mistake.

    def ask() -> None:
        headers = {"Accept-Encoding": "identity"}  # Not packed for the way: the checksum is that of the file.
        try:
            answers.append(requests.get(url, headers=headers, stream=stream, timeout=(seconds, STALLED)))
        except Exception as error:
            answers.append(error)

    # In a thread, because looking up a name cannot be interrupted; a daemon, so that it cannot keep a program alive.
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
    """Import pooch where it is needed: a program that reads a file of its own needs no downloads."""
    with warnings.catch_warnings():
        # In a notebook tqdm, which pooch brings along, warns that its bars need ipywidgets; none is shown here.
        warnings.filterwarnings("ignore", "IProgress not found")
        import pooch
    return pooch


def _checksum_of(path: Path) -> Path:
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
    label: str  # where it came from


class Simulated(NamedTuple):
    """A table to generate."""

    days: int
    seed: int
    note: str | None = None  # why nothing better was found


def find(source: str | Path, *, cache: Path | None = None, server: str = ZENODO) -> File | Simulated:
    """What a source stands for; downloads it if need be.

    `cache` is the user's cache folder unless given. Only `auto` ever falls back, and only to simulated weather where
    the server cannot be reached. Raises InputError where there is nothing under that name.
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
    folder = os.environ.get(DATA_FOLDER)
    if folder:
        try:
            return _local(Path(folder).expanduser())
        except InputError as error:
            # Not passed over: whoever set it wants these figures and no others.
            raise InputError(f"{DATA_FOLDER} must name a folder with the weather data: {error}") from error
    for published in (LIGHT, FULL):
        path = cached(published.name, cache)
        if path is not None:
            return File(path, f"zenodo:{published.doi}")
    try:
        return _published(LIGHT, cache, server)
    except UnreachableError as error:
        note = f"SIMULATED WEATHER, NOT MEASURED: {error} No figure of this run says anything about real weather."
        return Simulated(DAYS, SEED, note)


def _published(published: Published, cache: Path, server: str) -> File:
    path = fetch_zenodo(published.doi, published.name, cache, server=server)
    return File(path, f"zenodo:{published.doi}")


def _simulated(word: str) -> Simulated:
    numbers = word.split(":")[1:]
    try:
        days, seed = [*map(int, numbers), *(DAYS, SEED)[len(numbers) :]]
    except ValueError as error:
        raise InputError(
            f"simulated weather must be simulated[:DAYS[:SEED]] with whole numbers, got {word}."
        ) from error
    return Simulated(days, seed)


def _local(path: Path) -> File:
    if not path.exists():
        raise InputError(f"{path} does not exist. {ADVICE}")
    table = _table_in(path) if path.is_dir() else path
    return File(table, f"file:{table.absolute()}")


def _table_in(folder: Path) -> Path:
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
