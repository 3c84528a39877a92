"""Where the weather table comes from: what the word or the path of a source stands for."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import NamedTuple

from jaxdl.datasets import download
from jaxdl.datasets.simulated_weather import DAYS, SEED
from jaxdl.errors import InputError

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


def find(source: str | Path, *, cache: Path | None = None, server: str = download.ZENODO) -> File | Simulated:
    """What a source stands for; downloads it if need be.

    `cache` is the user's cache folder unless given. Only `auto` ever falls back, and only to simulated weather where
    the server cannot be reached. Raises InputError where there is nothing under that name.

    >>> find("simulated:1000:7")
    Simulated(days=1000, seed=7, note=None)
    """
    word = str(source)
    if source == "auto":
        return _auto(cache or download.user_cache(), server)
    if source in WORDS:
        return _published(WORDS[word], cache or download.user_cache(), server)
    if word.partition(":")[0] == "simulated" and isinstance(source, str):
        return _simulated(word)
    path = Path(source).expanduser()
    if not word or download.too_long(path) or (not path.exists() and path.name == word and not path.suffix):
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
        path = download.cached(published.name, cache)
        if path is not None:
            return File(path, f"zenodo:{published.doi}")
    try:
        return _published(LIGHT, cache, server)
    except download.UnreachableError as error:
        note = f"SIMULATED WEATHER, NOT MEASURED: {error} No figure of this run says anything about real weather."
        return Simulated(DAYS, SEED, note)


def _published(published: Published, cache: Path, server: str) -> File:
    path = download.fetch_zenodo(published.doi, published.name, cache, server=server)
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
