"""The weather prediction data set: today's weather in Europe, and tomorrow's sunshine or barbecue weather in Basel.

Source: Huber et al., https://doi.org/10.5281/zenodo.7525955, made from the European Climate Assessment & Dataset (Klein
Tank et al., International Journal of Climatology 22, 2002).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdl.data import examples
from jaxdl.datasets import barbecue, download, sources
from jaxdl.datasets.simulated_weather import simulate
from jaxdl.datasets.weather_table import CALENDAR, Table, nearest, read_table
from jaxdl.errors import InputError
from jaxdl.types import Examples

TARGET = "BASEL_sunshine"
FEATURES = (
    *("cloud_cover", "wind_speed", "wind_gust", "humidity", "pressure", "global_radiation", "precipitation"),
    *("sunshine", "temp_mean", "temp_min", "temp_max"),
)


class Dataset(NamedTuple):
    """Rows to train on, and where they came from."""

    examples: Examples  # inputs (N, F) float32, targets (N, 1) float32, weights (N,) float32 ones; NumPy arrays
    columns: tuple[str, ...]  # the names of the F inputs
    rows: tuple[str, ...]  # the day of each row's inputs, as "2000-01-01"; its target is the next day's
    name: str
    source: str  # such as "file:/home/me/weather.csv", "zenodo:10.5281/zenodo.5071376", "simulated:3654:seed=0"
    sha256: str  # of the file's bytes, of the values if simulated; with labels, of both
    today: NDArray[np.float32]  # (N,) what the target column says of each row's own day
    note: str | None = None  # what a user must be told
    noise: NDArray[np.float64] | None = None  # (N,) standard deviation of each target given its inputs, where known
    labels: str | None = None  # where the targets come from, if they are labels of barbecue weather


def weather(
    source: str | Path = "auto",
    *,
    days: int | None = 1096,
    places: Sequence[str] | None = None,
    target: str = TARGET,
    cache: Path | None = None,
    server: str = download.ZENODO,
) -> Dataset:
    """The weather data set: each day's measurements, float32, and the target column's value of the day after.

    source: a CSV file or a folder with one (itself, or in its folder `weather`); "zenodo" or "zenodo-full", the light
    or the full file, downloaded once to `cache`; "simulated[:DAYS[:SEED]]", where `noise` is known; or "auto": the
    folder that JAXDL_DATA names, else `cache`, else a download, else, with no network, simulated weather and a `note`.
    days: at most so many rows, counted from the first day; None for all but the last day, which has no next.
    places: only their columns, such as ("BASEL",); None for all. Units: as `simulated_weather.simulate` says.
    target: a column; or labels of 1 and 0, such as "BASEL_BBQ_weather", from their file if it lies beside the table,
    else by their rule (`barbecue.labels`).
    Raises InputError where the source cannot be had or a table is damaged anywhere, in columns left out too.

    >>> dataset = weather("simulated:400", days=365, places=("BASEL",))
    >>> dataset.examples.inputs.shape, dataset.rows[-1], dataset.columns[:2]
    ((365, 9), '2000-12-30', ('BASEL_cloud_cover', 'BASEL_humidity'))
    """
    if days is not None and days < 1:
        raise InputError(f"days must be at least 1, got {days}. Use None for all.")
    found = sources.find(source, cache=cache, server=server)
    if isinstance(found, sources.File):
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
) -> Dataset:
    columns = _columns_of(table, places)
    series, labels, sha256 = _series(table, target, folder)
    count = min(days or len(table.dates), len(table.dates) - 1)
    inputs = table.values[:count, [table.columns.index(column) for column in columns]]
    rows = tuple(np.datetime_as_string(table.dates[:count]).tolist())
    known, today = examples(inputs, series[1 : count + 1, None]), series[:count].astype(np.float32)
    return Dataset(known, columns, rows, "weather", table.name, sha256, today, labels=labels)


def _series(table: Table, target: str, folder: Path | None) -> tuple[NDArray[np.float64], str | None, str]:
    """What the target column says of each day (D,), where its labels come from if it is one, and the checksum."""
    if target.endswith(barbecue.SUFFIX):
        return barbecue.labels(table, target, folder)
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
