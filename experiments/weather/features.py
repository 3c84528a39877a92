"""Other views of the weather rows: what the lesson leaves as questions at its end."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxdl.data import take
from jaxdl.datasets import TARGET, WeatherData, place_of
from jaxdl.errors import InputError
from jaxdl.types import Dataset


def first_days(dataset: WeatherData, days: int | None) -> WeatherData:
    """The first rows of a data set, so many at most; None for all."""
    noise = None if dataset.noise is None else dataset.noise[:days]
    rows, today = dataset.rows[:days], dataset.today[:days]
    examples = take(dataset.data, np.arange(len(rows)))
    return dataset._replace(data=examples, rows=rows, today=today, noise=noise)


def of_place(dataset: WeatherData, place: str) -> WeatherData:
    """The rows with the columns of one place alone.

    Raises InputError where there is no such place.
    """
    kept = [number for number, column in enumerate(dataset.columns) if place_of(column) == place]
    if not kept:
        known = ", ".join(sorted({place_of(column) for column in dataset.columns}))
        raise InputError(f"{dataset.name} has no place {place}. It has {known}.")
    inputs: Any = np.asarray(dataset.data.inputs)[:, kept]
    columns = tuple(dataset.columns[number] for number in kept)
    # The noise is what the columns of the target's own place leave open.
    noise = dataset.noise if place == place_of(TARGET) else None
    return dataset._replace(data=dataset.data._replace(inputs=inputs), columns=columns, noise=noise)


def with_month(dataset: WeatherData) -> WeatherData:
    """The rows with their day's month as two more columns, its sine and cosine on the circle of the year.

    On the circle December is next to January, which the bare number would put furthest apart.
    """
    months = np.array(dataset.rows, "datetime64[M]").astype(int) % 12
    angles = 2 * np.pi * months / 12
    return _with_columns(dataset, ("MONTH_sine", "MONTH_cosine"), np.stack([np.sin(angles), np.cos(angles)], 1))


def with_last_days(dataset: WeatherData, days: int) -> WeatherData:
    """The rows with the inputs of the days before beside the day's own, `days` in all; no row is lost.

    The first days of the table have fewer before them: there the table's first day stands for what is missing. Raises
    InputError for fewer than one day.
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
    """As many rows, drawn with replacement so that targets of every `width` hours come equally often.

    It is for training rows alone: validation and test must keep the days as they come.
    """
    bins = np.floor(np.asarray(rows.targets)[:, 0] / width).astype(int)
    _, place, counts = np.unique(bins, return_inverse=True, return_counts=True)
    chances = 1 / (len(counts) * counts[place])
    return take(rows, np.random.default_rng(seed).choice(len(bins), len(bins), p=chances))


def _with_columns(dataset: WeatherData, columns: tuple[str, ...], values: Any) -> WeatherData:
    inputs: Any = np.concatenate([np.asarray(dataset.data.inputs), values.astype(np.float32)], 1)
    examples = dataset.data._replace(inputs=inputs)
    return dataset._replace(data=examples, columns=(*dataset.columns, *columns))
