"""Whether the spread of an ensemble's predictions is an honest error bar, and how to make it one.

Members of an ensemble agree where data is plentiful, however noisy the targets are, so their spread alone is mostly too
narrow. Means, spreads and targets are arrays of one shape (N, ...), such as `predict_mean` gives; all is computed in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdl.errors import InputError


class Calibration(NamedTuple):
    """What makes a standard deviation of a spread: deviation**2 = (scale * spread)**2 + noise**2."""

    scale: float  # >= 0
    noise: float  # >= 0, in the unit of the targets


def calibrate(mean: Any, spread: Any, targets: Any) -> Calibration:
    """The scale and the noise under which the targets are most likely, as normal draws around the means.

    Give it validation rows: on training rows errors are too small. Spreads that are all equal tell nothing, so then all
    is noise. Raises InputError for shapes that differ, no rows, numbers that are not finite, and spreads below 0.

    >>> found = calibrate([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 3.0, -3.0])
    >>> found.scale, round(found.noise**2, 6)
    (0.0, 5.0)
    """
    means, spreads, wanted = _checked(mean=mean, spread=spread, targets=targets)
    squares = (wanted - means) ** 2
    if np.ptp(spreads) == 0 or not squares.any():
        return Calibration(0.0, math.sqrt(squares.mean()))
    unit = np.mean(spreads**2)
    shape = spreads**2 / unit

    def variance(of_spread: float, of_noise: float) -> float:
        """The most likely variance, given its shares, which add up to 1."""
        return float(np.mean(squares / (of_spread * shape + of_noise)))

    def loss(of_spread: float, of_noise: float) -> float:
        """Twice the negative log-likelihood a row under that variance, but for a constant."""
        return math.log(variance(of_spread, of_noise)) + float(np.mean(np.log(of_spread * shape + of_noise)))

    of_spread, of_noise = _best_shares(loss, [(0.0, 1.0), (1.0, 0.0)] if shape.all() else [(0.0, 1.0)])
    whole = variance(of_spread, of_noise)
    return Calibration(math.sqrt(whole * of_spread / unit), math.sqrt(whole * of_noise))


def _best_shares(loss: Callable[[float, float], float], ends: list[tuple[float, float]]) -> tuple[float, float]:
    """Two shares of 1 with the least loss: along a grid of their log odds, refined around its best, and the ends."""
    from scipy.optimize import minimize_scalar
    from scipy.special import expit

    def shares(odds: float) -> tuple[float, float]:
        return float(expit(odds)), float(expit(-odds))

    # A share of less than exp(-40) is lost in float64 beside the other.
    grid, step = np.linspace(-40, 40, 161, retstep=True)
    best = min(grid, key=lambda odds: loss(*shares(odds)))
    refined = minimize_scalar(
        lambda odds: loss(*shares(odds)), bounds=(best - step, best + step), method="bounded", options={"xatol": 1e-9}
    )
    return min([*ends, shares(best), shares(refined.x)], key=lambda pair: loss(*pair))


def widened(spread: Any, calibration: Calibration) -> np.ndarray:
    """The standard deviations (N, ...) that belong to spreads (N, ...): honest error bars of new rows.

    >>> widened([0.0, 2.0], Calibration(scale=2.0, noise=3.0)).tolist()
    [3.0, 5.0]
    """
    return np.hypot(calibration.scale * np.asarray(spread, np.float64), calibration.noise)


def coverage(
    mean: Any, deviation: Any, targets: Any, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)
) -> dict[float, float]:
    """For each level, the share of targets inside of the normal interval around the mean that should hold that share.

    Shares below the levels tell of error bars that are too narrow. Raises InputError as `calibrate` does, and for a
    level that is not between 0 and 1.

    >>> coverage([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.1, -0.5, 1.0, 3.0], levels=(0.5, 0.95))
    {0.5: 0.5, 0.95: 0.75}
    """
    from scipy.special import ndtri

    for level in levels:
        if not 0 < level < 1:
            raise InputError(f"levels must be between 0 and 1, got {level}. Use 0.95 for 95 %.")
    means, deviations, wanted = _checked(mean=mean, deviation=deviation, targets=targets)
    errors = np.abs(wanted - means)
    return {level: float(np.mean(errors <= ndtri((1 + level) / 2) * deviations)) for level in levels}


def _checked(**named: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = {name: np.asarray(values, np.float64) for name, values in named.items()}
    shapes = [array.shape for array in arrays.values()]
    if len(set(shapes)) > 1 or not shapes[0] or 0 in shapes[0]:
        raise InputError(
            f"{', '.join(arrays)} must be of one shape with at least one row, got {', '.join(map(str, shapes))}."
        )
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}. Leave out what diverged.")
    mean, width, targets = arrays.values()
    if (width < 0).any():
        raise InputError(f"{list(arrays)[1]} must be 0 or more, got {width.min()}.")
    return mean, width, targets
