"""The weather prediction data set: today's weather in Europe, and tomorrow's hours of sunshine in Basel.

Source: Huber et al., https://doi.org/10.5281/zenodo.7525955, made from the European Climate Assessment & Dataset (Klein
Tank et al., International Journal of Climatology 22, 2002).
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdl.data import examples
from jaxdl.datasets import sources, zenodo
from jaxdl.datasets.simulated_weather import simulate
from jaxdl.errors import InputError
from jaxdl.types import Examples

if TYPE_CHECKING:
    import pandas as pd

TARGET = "BASEL_sunshine"
CALENDAR = ("DATE", "MONTH")
FEATURES = ("cloud_cover", "wind_speed", "wind_gust", "humidity", "pressure", "global_radiation", "precipitation")
FEATURES += ("sunshine", "temp_mean", "temp_min", "temp_max")


class Dataset(NamedTuple):
    """Rows to train on, and where they came from."""

    examples: Examples  # inputs (N, F) float32, targets (N, 1) float32, weights (N,) float32 ones; NumPy arrays
    columns: tuple[str, ...]  # the names of the F inputs
    rows: tuple[str, ...]  # the day of each row's inputs, as "2000-01-01"; its target is the next day's
    name: str
    source: str  # such as "file:/home/me/weather.csv", "zenodo:10.5281/zenodo.5071376", "simulated:3654:seed=0"
    sha256: str  # of the file's bytes; of the values if simulated
    note: str | None = None  # what a user must be told
    noise: NDArray[np.float64] | None = None  # (N,) standard deviation of each target given its inputs, where known


class Table(NamedTuple):
    """Consecutive days of weather."""

    name: str  # what messages call it
    dates: NDArray[np.datetime64]  # (D,)
    columns: tuple[str, ...]
    values: NDArray[np.float64]  # (D, columns)
    sha256: str


def weather(
    source: str | Path = "auto",
    *,
    days: int | None = 1096,
    places: Sequence[str] | None = None,
    target: str = TARGET,
    cache: Path | None = None,
    server: str = zenodo.SERVER,
) -> Dataset:
    """The weather data set: each day's measurements, float32, and the target column's value of the day after.

    source: a CSV file or a folder with one (itself, or in its folder `weather`); "zenodo" or "zenodo-full", the light
    or the full file, downloaded once to `cache`; "simulated[:DAYS[:SEED]]", where `noise` is known; or "auto": the
    folder that JAXDL_DATA names, else `cache`, else a download, else, without a network, simulated weather and a `note`.
    days: at most so many rows, counted from the first day; None for all but the last day, which has no next.
    places: only their columns, such as ("BASEL",); None for all. Units: see `jaxdl.datasets.simulated_weather.simulate`.
    Raises InputError where the source cannot be had or a table is damaged anywhere, in columns left out too.

    >>> dataset = weather("simulated:400", days=365, places=("BASEL",))
    >>> dataset.examples.inputs.shape, dataset.rows[-1], dataset.columns[:2]
    ((365, 9), '2000-12-30', ('BASEL_cloud_cover', 'BASEL_humidity'))
    """
    if days is not None and days < 1:
        raise InputError(f"days must be at least 1, got {days}. Use None for all.")
    found = sources.find(source, cache=cache, server=server)
    if isinstance(found, sources.File):
        table, label, note, noise = read_table(found.path), found.label, None, None
    else:
        simulation = simulate(found.days, found.seed)
        table = Table("simulated weather", simulation.dates, simulation.columns, simulation.values, simulation.sha256)
        label, note, noise = f"simulated:{found.days}:seed={found.seed}", found.note, simulation.noise
    if target not in table.columns:
        nearest = _nearest(target, table.columns)
        raise InputError(
            f"{table.name} has no column {target}, which is the target. "
            f"It has {len(table.columns) + len(CALENDAR)} columns; the nearest name is {nearest}."
        )
    columns = _columns_of(table, places)
    count = min(days or len(table.dates), len(table.dates) - 1)
    # Basel's own columns are all that the simulated noise is conditional on: without them it would be too small.
    known = noise is not None and target == TARGET and {c for c in table.columns if place_of(c) == "BASEL"} <= set(columns)
    return Dataset(
        examples(
            table.values[:count, [table.columns.index(column) for column in columns]],
            table.values[1 : count + 1, [table.columns.index(target)]],
        ),
        columns,
        tuple(np.datetime_as_string(table.dates[:count]).tolist()),
        "weather",
        label,
        table.sha256,
        note,
        noise[:count] if noise is not None and known else None,
    )
