"""The weather of Basel: where it is found, its terms, its labels."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdl.data import dataset
from jaxdl.datasets import _download
from jaxdl.datasets._download import LABELS
from jaxdl.datasets._simulated_weather import simulate
from jaxdl.datasets._weather_csv import CALENDAR, Table, nearest, read_cells, read_header, read_table, wrong_cell
from jaxdl.errors import InputError
from jaxdl.types import Dataset


class Terms(NamedTuple):
    """The origin of a data set, and what may be done with it."""

    data: str  # what it is, in a sentence
    licence: str
    cite: tuple[str, ...]  # the works to name


WEATHER = Terms(
    "Daily weather of places in Europe, 2000 to 2010: the weather prediction dataset, made from the European Climate "
    "Assessment & Dataset (ECA&D).",
    "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/): name the authors, and say what was changed. The model "
    "is made from the data, so name them where you share it.",
    (
        "Huber et al., Weather prediction dataset, Zenodo, https://doi.org/10.5281/zenodo.7525955 (light: "
        "https://doi.org/10.5281/zenodo.5071376; barbecue labels: https://doi.org/10.5281/zenodo.4980359)",
        "Klein Tank et al., Daily dataset of 20th-century surface air temperature and precipitation series for the "
        "European Climate Assessment, International Journal of Climatology 22, 1441-1453 (2002), https://www.ecad.eu",
    ),
)
CIFAR10 = Terms(
    "CIFAR-10: 60,000 color photographs of 32 x 32 pixels in ten classes.",
    "Published for research without a licence of its own; cite the report.",
    (
        "Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009), "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
)
SIMULATED = Terms(
    "Simulated by this project's own generator: nothing was measured or photographed.", "none needed.", ()
)


def terms_of(name: str, source: str) -> Terms:
    """The terms of the data set of a name, `weather` or `cifar10`, from a source such as "file:/home/me/weather.csv".

    >>> terms_of("weather", "simulated:3654:seed=0").licence, terms_of("weather", "zenodo:x").licence[:9]
    ('none needed.', 'CC BY 4.0')
    """
    if source.startswith("simulated"):
        return SIMULATED
    return WEATHER if name == "weather" else CIFAR10


SUFFIX = "_BBQ_weather"
BASEL = "BASEL" + SUFFIX
WARM = 18.0  # degrees Celsius
RULE = f"computed: no precipitation and a maximum of at least {WARM:g} degrees Celsius"


class Labels(NamedTuple):
    """Whether each day of a table was barbecue weather at one place."""

    values: NDArray[np.float64]  # (D,) 1 where it was, else 0
    source: str  # the file that says so, or the rule
    sha256: str  # of the table and the labels together


def barbecue_labels(table: Table, column: str, folder: Path | None = None) -> Labels:
    """The labels of a table's days, such as the column "BASEL_BBQ_weather".

    They come from the published file, if `folder` holds it, else from the rule. Raises InputError where that file is
    damaged or of other days, or the table lacks what the rule needs.
    """
    path = None if folder is None else folder / LABELS.name
    published = path is not None and path.exists()
    values = read_labels(path, table, column) if path is not None and published else by_rule(table, column)
    digest = hashlib.sha256(table.sha256.encode() + values.astype("<f8").tobytes()).hexdigest()
    return Labels(values, LABELS.name if published else RULE, digest)


def by_rule(table: Table, column: str) -> NDArray[np.float64]:
    """The labels (D,) that the table's precipitation and maximal temperature amount to, 1 or 0.

    Raises InputError where the table lacks one of them.
    """
    needed = [column.replace(SUFFIX, feature) for feature in ("_precipitation", "_temp_max")]
    for name in needed:
        if name not in table.columns:
            near = nearest(name, table.columns)
            raise InputError(f"{table.name} has no column {name}, from which {column} is computed; {near}.")
    rain, warmth = (table.values[:, table.columns.index(name)] for name in needed)
    return ((rain == 0) & (warmth >= WARM)).astype(np.float64)


def read_labels(path: Path, table: Table, column: str) -> NDArray[np.float64]:
    """The labels (D,) in a column of a CSV file with the column DATE and others of True and False, 1 or 0.

    Raises InputError, which names the line, unless every cell is True or False and the days are those of the table.
    """
    content, header = read_header(path, ("DATE", column))
    cells = read_cells(path.name, content, header)
    told = ((cells == "True") | (cells == "False") | (cells.columns == "DATE")).to_numpy()
    for row, wrong in np.argwhere(~told)[:1].tolist():
        raise wrong_cell(path.name, cells, row, wrong, "True or False")
    days = [day.replace("-", "") for day in np.datetime_as_string(table.dates).tolist()]
    found = cells["DATE"].tolist()
    if found != days:
        line = next((n for n, pair in enumerate(zip(found, days, strict=False)) if pair[0] != pair[1]), None)
        got = f"{len(found)} days for {len(days)}" if line is None else f"{found[line]} for {days[line]}"
        where = "" if line is None else f" on line {line + 2}"
        raise InputError(
            f"{path.name} must have the days of {table.name}, got {got}{where}. Put the labels of that table beside "
            "it, or take them away: they are then computed."
        )
    values: NDArray[np.float64] = (cells[column] == "True").to_numpy().astype(np.float64)
    return values


TARGET = "BASEL_sunshine"
FEATURES = (
    *("cloud_cover", "wind_speed", "wind_gust", "humidity", "pressure", "global_radiation", "precipitation"),
    *("sunshine", "temp_mean", "temp_min", "temp_max"),
)


class WeatherData(NamedTuple):
    """Rows to train on, and where they came from."""

    data: Dataset  # inputs (N, F) float32, targets (N, 1) float32, weights (N,) float32 ones; NumPy arrays
    columns: tuple[str, ...]  # the names of the F inputs
    rows: tuple[str, ...]  # the day of each row's inputs, as "2000-01-01"; its target is the next day's
    name: str
    source: str  # such as "file:/home/me/weather.csv", "zenodo:10.5281/zenodo.5071376", "simulated:3654:seed=0"
    sha256: str  # of the file's bytes, of the values if simulated; with labels, of both
    today: NDArray[np.float32]  # (N,) what the target column says of each row's own day
    note: str | None = None  # what a user must be told
    noise: NDArray[np.float64] | None = None  # (N,) standard deviation of each target given its inputs, where known
    labels: str | None = None  # where the targets come from, if they are labels of barbecue weather


def load_weather(
    source: str | Path = "auto",
    *,
    days: int | None = 1096,
    places: Sequence[str] | None = None,
    target: str = TARGET,
    cache: Path | None = None,
    server: str = _download.ZENODO,
) -> WeatherData:
    """The weather data set: each day's measurements, float32, and the target column's value of the day after.

    source: a CSV file or a folder with one (itself, or in its folder `weather`); "zenodo" or "zenodo-full", the light
    or the full file, downloaded once to `cache`; "simulated[:DAYS[:SEED]]", where `noise` is known; or "auto": the
    folder that JAXDL_DATA names, else `cache`, else a download, else, with no network, simulated weather and a `note`.
    days: at most so many rows, counted from the first day; None for all but the last day, which has no next.
    places: only their columns, such as ("BASEL",); None for all. Units: as `simulated_weather.simulate` says.
    target: a column; or labels of 1 and 0, such as "BASEL_BBQ_weather", from their file if it lies beside the table,
    else by their rule (`barbecue.labels`).
    Raises InputError where the source cannot be had or a table is damaged anywhere, in columns left out too.

    >>> dataset = load_weather("simulated:400", days=365, places=("BASEL",))
    >>> dataset.data.inputs.shape, dataset.rows[-1], dataset.columns[:2]
    ((365, 9), '2000-12-30', ('BASEL_cloud_cover', 'BASEL_humidity'))
    """
    if days is not None and days < 1:
        raise InputError(f"days must be at least 1, got {days}. Use None for all.")
    found = _download.find(source, cache=cache, server=server)
    if isinstance(found, _download.File):
        return _rows(read_table(found.path), days, places, target, found.path.parent)._replace(source=found.label)
    simulation = simulate(found.days, found.seed)
    table = Table("simulated weather", simulation.dates, simulation.columns, simulation.values, simulation.sha256)
    dataset = _rows(table, days, places, target)
    home = {column for column in table.columns if place_of(column) == "BASEL"}
    # The noise is what Basel's columns leave open: for other inputs, or another target, it is something else.
    known = simulation.noise[: len(dataset.rows)] if target == TARGET and home <= set(dataset.columns) else None
    label = f"simulated:{found.days}:seed={found.seed}"
    if found.note:
        warnings.warn(found.note, stacklevel=2)
    return dataset._replace(source=label, note=found.note, noise=known)


def _rows(
    table: Table, days: int | None, places: Sequence[str] | None, target: str, folder: Path | None = None
) -> WeatherData:
    columns = _columns_of(table, places)
    series, labels, sha256 = _series(table, target, folder)
    count = min(days or len(table.dates), len(table.dates) - 1)
    inputs = table.values[:count, [table.columns.index(column) for column in columns]]
    rows = tuple(np.datetime_as_string(table.dates[:count]).tolist())
    known, today = dataset(inputs, series[1 : count + 1, None]), series[:count].astype(np.float32)
    return WeatherData(known, columns, rows, "weather", table.name, sha256, today, labels=labels)


def _series(table: Table, target: str, folder: Path | None) -> tuple[NDArray[np.float64], str | None, str]:
    """What the target column says of each day (D,), where its labels come from if it is one, and the checksum."""
    if target.endswith(SUFFIX):
        return barbecue_labels(table, target, folder)
    if target not in table.columns:
        has = f"It has {len(CALENDAR) + len(table.columns)} columns; {nearest(target, table.columns)}."
        raise InputError(f"{table.name} has no column {target}, which is the target. {has}")
    return table.values[:, table.columns.index(target)], None, table.sha256


def place_of(column: str) -> str:
    """The place that a column is about; names of places may have underscores themselves.

    >>> place_of("DE_BILT_temp_mean")
    'DE_BILT'
    """
    feature = next((feature for feature in FEATURES if column.endswith(f"_{feature}")), column.rpartition("_")[2])
    return column.removesuffix(feature).removesuffix("_")


def _columns_of(table: Table, places: Sequence[str] | None) -> tuple[str, ...]:
    if places is None:
        return table.columns
    known = sorted({place_of(column) for column in table.columns})
    if isinstance(places, str) or not places:
        raise InputError(
            f"places must be a sequence of names, got {places!r}. Use None for all, or some of {', '.join(known)}."
        )
    for place in places:
        if place not in known:
            has = f"It has {', '.join(known)}; {nearest(place, known)}."
            raise InputError(f"{table.name} has no place {place}. {has}")
    return tuple(column for column in table.columns if place_of(column) in places)
