"""Changes of the weather data for the open questions of the lesson."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxdl.data import take
from jaxdl.datasets import TARGET, WeatherData, place_of
from jaxdl.errors import InputError
from jaxdl.types import Dataset


def first_days(dataset: WeatherData, days: int | None) -> WeatherData:
    """Return the first `days` rows of the weather; None for all."""
    noise = None if dataset.noise is None else dataset.noise[:days]
    rows, today = dataset.rows[:days], dataset.today[:days]
    examples = take(dataset.data, np.arange(len(rows)))
    return dataset._replace(data=examples, rows=rows, today=today, noise=noise)


def of_place(dataset: WeatherData, place: str) -> WeatherData:
    """Return the weather with the columns of one place. Raises InputError for an unknown place."""
    chosen = [number for number, column in enumerate(dataset.columns) if place_of(column) == place]
    if not chosen:
        known = ", ".join(sorted({place_of(column) for column in dataset.columns}))
        raise InputError(f"{dataset.name} has no place {place}. It has {known}.")
    inputs: Any = np.asarray(dataset.data.inputs)[:, chosen]
    columns = tuple(dataset.columns[number] for number in chosen)
    # The noise is known only for inputs of the target's own place.
    noise = dataset.noise if place == place_of(TARGET) else None
    return dataset._replace(data=dataset.data._replace(inputs=inputs), columns=columns, noise=noise)


def with_month(dataset: WeatherData) -> WeatherData:
    """Return the weather with the month as two more columns, its sine and cosine.

    Sine and cosine place December next to January, unlike the number of the month.
    """
    months = np.array(dataset.rows, "datetime64[M]").astype(int) % 12
    angles = 2 * np.pi * months / 12
    return _with_columns(dataset, ("MONTH_sine", "MONTH_cosine"), np.stack([np.sin(angles), np.cos(angles)], 1))


def with_last_days(dataset: WeatherData, days: int) -> WeatherData:
    """Return the weather with the inputs of the last `days` days, the day itself included, for every row.

    Before the first day of the table, its inputs are repeated. Raises InputError for fewer than one day.
    """
    if days < 1:
        raise InputError(f"days must be at least 1, got {days}.")
    inputs = np.asarray(dataset.data.inputs)
    for back in range(1, days):
        columns = tuple(
            f"{column}_{back}_day{'s' * (back > 1)}_before" for column in dataset.columns[: inputs.shape[1]]
        )
        dataset = _with_columns(dataset, columns, inputs[np.maximum(np.arange(len(inputs)) - back, 0)])
    return dataset


def oversampled(rows: Dataset, width: float = 2.0, seed: int = 0) -> Dataset:
    """Return a sample of the same size, with replacement, in which each interval of targets is equally frequent.

    width: of the intervals, in hours. For training rows only: validation and test need the true frequencies.
    """
    bins = np.floor(np.asarray(rows.targets)[:, 0] / width).astype(int)
    _, index, counts = np.unique(bins, return_inverse=True, return_counts=True)
    probabilities = 1 / (len(counts) * counts[index])
    return take(rows, np.random.default_rng(seed).choice(len(bins), len(bins), p=probabilities))


def _with_columns(dataset: WeatherData, columns: tuple[str, ...], values: Any) -> WeatherData:
    inputs: Any = np.concatenate([np.asarray(dataset.data.inputs), values.astype(np.float32)], 1)
    examples = dataset.data._replace(inputs=inputs)
    return dataset._replace(data=examples, columns=(*dataset.columns, *columns))
