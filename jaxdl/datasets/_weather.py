"""The weather of Basel: its sources, its terms, its labels."""

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

    data: str  # a description in a sentence
    licence: str
    cite: tuple[str, ...]  # the works to cite


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
    """Return the origin, the licence and the citations of a data set.

    name: `weather` or `cifar10`. source: the `source` of the loaded data, such as "file:/home/me/weather.csv".

    >>> terms_of("cifar10", "file:/home/me/cifar-10-batches-py").licence
    'Published for research without a licence of its own; cite the report.'
    """
    if source.startswith("simulated"):
        return SIMULATED
    return WEATHER if name == "weather" else CIFAR10


LABEL_SUFFIX = "_BBQ_weather"  # of the columns of labels, after the name of a place
BASEL = "BASEL" + LABEL_SUFFIX  # the labels of barbecue weather in Basel, as a target
WARM = 18.0  # degrees Celsius
RULE = f"computed: no precipitation and a maximum of at least {WARM:g} degrees Celsius"


class Labels(NamedTuple):
    """Labels of barbecue weather at one place."""

    values: NDArray[np.float64]  # (D,) 1 or 0 for each day of a table
    source: str  # the file of the labels, or their rule
    sha256: str  # of the table and the labels together


def barbecue_labels(table: Table, column: str, folder: Path | None = None) -> Labels:
    """Return the labels of a table's days from the published file, if `folder` holds it, else by the rule.

    column: such as "BASEL_BBQ_weather". Raises InputError where the file is damaged or has other days, or the table
    lacks a column of the rule.
    """
    path = None if folder is None else folder / LABELS.name
    published = path is not None and path.exists()
    values = read_labels(path, table, column) if path is not None and published else compute_labels(table, column)
    digest = hashlib.sha256(table.sha256.encode() + values.astype("<f8").tobytes()).hexdigest()
    return Labels(values, LABELS.name if published else RULE, digest)


def compute_labels(table: Table, column: str) -> NDArray[np.float64]:
    """Return the labels (D,), 1 or 0, by the rule. Raises InputError where the table lacks one of its columns."""
    needed = [column.replace(LABEL_SUFFIX, feature) for feature in ("_precipitation", "_temp_max")]
    for name in needed:
        if name not in table.columns:
            near = nearest(name, table.columns)
            raise InputError(f"{table.name} has no column {name}, from which {column} is computed; {near}.")
    rain, warmth = (table.values[:, table.columns.index(name)] for name in needed)
    return ((rain == 0) & (warmth >= WARM)).astype(np.float64)


def read_labels(path: Path, table: Table, column: str) -> NDArray[np.float64]:
    """Return the labels (D,), 1 or 0, in a column of a CSV file with the column DATE and columns of True and False.

    Raises InputError with the line of another cell, or of a day that is not the table's.
    """
    content, header = read_header(path, ("DATE", column))
    cells = read_cells(path.name, content, header)
    valid = ((cells == "True") | (cells == "False") | (cells.columns == "DATE")).to_numpy()
    for row, wrong in np.argwhere(~valid)[:1].tolist():
        raise wrong_cell(path.name, cells, row, wrong, "True or False")
    days = [day.replace("-", "") for day in np.datetime_as_string(table.dates).tolist()]
    dates = cells["DATE"].tolist()
    if dates != days:
        row = next((n for n, pair in enumerate(zip(dates, days, strict=False)) if pair[0] != pair[1]), None)
        got = f"{len(dates)} days for {len(days)}" if row is None else f"{dates[row]} for {days[row]}"
        where = "" if row is None else f" on line {row + 2}"
        raise InputError(
            f"{path.name} must have the days of {table.name}, got {got}{where}. Put the labels of that table beside "
            "it, or take them away: they are then computed."
        )
    values: NDArray[np.float64] = (cells[column] == "True").to_numpy().astype(np.float64)
    return values


TARGET = "BASEL_sunshine"  # the default target of `load_weather`
FEATURES = (
    *("cloud_cover", "wind_speed", "wind_gust", "humidity", "pressure", "global_radiation", "precipitation"),
    *("sunshine", "temp_mean", "temp_min", "temp_max"),
)


class WeatherData(NamedTuple):
    """A dataset of daily weather, and its origin."""

    data: Dataset  # inputs (N, F) float32, targets (N, 1) float32, sample_weight (N,) float32 ones; NumPy arrays
    columns: tuple[str, ...]  # the names of the F inputs
    rows: tuple[str, ...]  # the day of each example's inputs, as "2000-01-01"; its target is the next day's
    name: str
    source: str  # such as "file:/home/me/weather.csv", "zenodo:10.5281/zenodo.5071376", "simulated:3654:seed=0"
    sha256: str  # of the file's bytes, of the values if simulated; with labels, of both
    today: NDArray[np.float32]  # (N,) the target column on the day of the inputs
    note: str | None = None  # a warning for the user
    noise: NDArray[np.float64] | None = None  # (N,) standard deviation of each target given its inputs, where known
    labels: str | None = None  # the file or the rule of the targets, if they are labels of barbecue weather


def load_weather(
    source: str | Path = "auto",
    *,
    days: int | None = 1096,
    places: Sequence[str] | None = None,
    target: str = TARGET,
    cache: Path | None = None,
    server: str = _download.ZENODO,
) -> WeatherData:
    """Return daily weather: the inputs are a day's measurements, the target is a column's value on the next day.

    Units: sunshine in hours, cloud cover in eighths, humidity as a fraction, pressure in 1000 hPa, global radiation in
    100 W/m2, precipitation in cm, temperatures in degrees Celsius.

    source: a CSV file, or a folder with one (in it, or in its folder `weather`); "zenodo" or "zenodo-full", the light
        or the full file, downloaded once to `cache`; "simulated[:DAYS[:SEED]]", with a known `noise`; or "auto": the
        folder in JAXDL_DATA, else `cache`, else a download, else, without a network, simulated weather and a `note`.
    days: the maximum number of examples, from the first day on; None for all days but the last, which has no next day.
    places: their columns are the inputs, such as ("BASEL",); None for all.
    target: a column; or labels of 1 and 0, such as "BASEL_BBQ_weather", from the published file if it lies beside the
        table, else computed: no precipitation and a maximum of at least 18 degrees Celsius.

    Raises InputError where the source is not available, or a cell of the table is damaged, in unused columns too.

    >>> weather = load_weather("simulated:400", days=365, places=("BASEL",))
    >>> weather.data.inputs.shape, weather.rows[-1], weather.columns[:2]
    ((365, 9), '2000-12-30', ('BASEL_cloud_cover', 'BASEL_humidity'))
    """
    if days is not None and days < 1:
        raise InputError(f"days must be at least 1, got {days}. Use None for all.")
    origin = _download.find(source, cache=cache, server=server)
    if isinstance(origin, _download.File):
        table = read_table(origin.path)
        return _weather_data(table, days, places, target, origin.path.parent)._replace(source=origin.label)
    simulation = simulate(origin.days, origin.seed)
    table = Table("simulated weather", simulation.dates, simulation.columns, simulation.values, simulation.sha256)
    weather = _weather_data(table, days, places, target)
    basel = {column for column in table.columns if place_of(column) == "BASEL"}
    # The noise is known given the columns of Basel, and for this target alone.
    noise = simulation.noise[: len(weather.rows)] if target == TARGET and basel <= set(weather.columns) else None
    label = f"simulated:{origin.days}:seed={origin.seed}"
    if origin.note:
        warnings.warn(origin.note, stacklevel=2)
    return weather._replace(source=label, note=origin.note, noise=noise)


def _weather_data(
    table: Table, days: int | None, places: Sequence[str] | None, target: str, folder: Path | None = None
) -> WeatherData:
    """Return the examples of a table; folder: of the published labels."""
    columns = _columns_of(table, places)
    series, labels, sha256 = _series(table, target, folder)
    count = min(days or len(table.dates), len(table.dates) - 1)
    inputs = table.values[:count, [table.columns.index(column) for column in columns]]
    rows = tuple(np.datetime_as_string(table.dates[:count]).tolist())
    data, today = dataset(inputs, series[1 : count + 1, None]), series[:count].astype(np.float32)
    return WeatherData(data, columns, rows, "weather", table.name, sha256, today, labels=labels)


def _series(table: Table, target: str, folder: Path | None) -> tuple[NDArray[np.float64], str | None, str]:
    """Return the target column (D,), the source of its labels if it has any, and the checksum of table and labels."""
    if target.endswith(LABEL_SUFFIX):
        return barbecue_labels(table, target, folder)
    if target not in table.columns:
        has = f"It has {len(CALENDAR) + len(table.columns)} columns; {nearest(target, table.columns)}."
        raise InputError(f"{table.name} has no column {target}, which is the target. {has}")
    return table.values[:, table.columns.index(target)], None, table.sha256


def place_of(column: str) -> str:
    """Return the place in the name of a column; the name of a place may contain underscores.

    >>> place_of("DE_BILT_temp_mean")
    'DE_BILT'
    """
    feature = next((feature for feature in FEATURES if column.endswith(f"_{feature}")), column.rpartition("_")[2])
    return column.removesuffix(feature).removesuffix("_")


def _columns_of(table: Table, places: Sequence[str] | None) -> tuple[str, ...]:
    """Return the columns of some places. Raises InputError for a place without columns."""
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
