"""Simple predictions that a network must beat, computed with NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxdl.data import fit_scaler
from jaxdl.errors import InputError

__all__ = ["climatology", "moving_average", "ridge", "root_mean_square"]


def __dir__() -> list[str]:
    return __all__


def root_mean_square(errors: ArrayLike) -> float:
    """Return the RMSE of an array of errors, computed in float64.

    >>> root_mean_square([3.0, -4.0, 0.0, 0.0])
    2.5
    """
    return float(np.sqrt(np.mean(np.square(np.asarray(errors, np.float64)))))


def moving_average(values: ArrayLike, days: int) -> np.ndarray:
    """Return for each day of a series (N,) the mean of the last `days` days, or of fewer at the start.

    `days=1` is the persistence forecast: tomorrow will be as today. Raises InputError for fewer days.

    >>> moving_average([1.0, 3.0, 5.0], 2).tolist()
    [1.0, 2.0, 4.0]
    """
    if days < 1:
        raise InputError(f"days must be at least 1, got {days}.")
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - days, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def climatology(months: Sequence[int], targets: ArrayLike, wanted: Sequence[int]) -> np.ndarray:
    """Return for each wanted month the mean of the training targets (N,) in that month, or of all if it has none.

    >>> climatology([1, 1, 7], [0.0, 2.0, 9.0], [7, 1, 3]).round(2).tolist()
    [9.0, 1.0, 3.67]
    """
    targets, month_of = np.asarray(targets, np.float64), np.asarray(months)
    means = {month: targets[month_of == month].mean() for month in np.unique(month_of)}
    return np.array([means.get(month, targets.mean()) for month in wanted])


def ridge(inputs: ArrayLike, targets: ArrayLike, wanted: ArrayLike, penalty: float = 1.0) -> np.ndarray:
    """Return the predictions of ridge regression for the inputs `wanted` (M, F).

    inputs, targets: (N, F) and (N,), the training data. The inputs are standardized with their mean and scale.
    penalty: factor of the squared slopes; the intercept has no penalty.

    Solved in closed form. Source: Hoerl and Kennard, Technometrics 12 (1970).

    >>> ridge([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0], [[3.0]], penalty=0.0).round(6).tolist()
    [7.0]
    """
    scaler, targets = fit_scaler(inputs), np.asarray(targets, np.float64)
    # In float64, unlike `standardize`, because float32 would cost digits of the solution.
    design = (np.asarray(inputs, np.float64) - scaler.mean) / scaler.scale
    gram = design.T @ design + penalty * np.eye(design.shape[1])
    slopes = np.linalg.lstsq(gram, design.T @ (targets - targets.mean()), rcond=None)[0]
    return (np.asarray(wanted, np.float64) - scaler.mean) / scaler.scale @ slopes + targets.mean()
