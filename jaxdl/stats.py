"""Statistics of a few seeds or examples: confidence intervals, paired tests, standard errors, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from jaxdl.errors import InputError

__all__ = [
    "Comparison",
    "Estimate",
    "calibrated_std",
    "coverage",
    "estimate",
    "fit_calibration",
    "holm",
    "one_standard_error",
    "paired_test",
    "proportion_standard_error",
    "rmse_standard_error",
    "verdict",
]


def __dir__() -> list[str]:
    return __all__


class Estimate(NamedTuple):
    """The mean of a metric over seeds, with its standard error and confidence interval."""

    mean: float
    std: float  # the standard deviation over seeds, ddof 1
    sem: float  # the standard error of the mean
    low: float  # the ends of the confidence interval of the mean
    high: float
    count: int  # type: ignore[assignment]  # of all seeds
    diverged: int  # seeds whose value is nan or infinite


class Comparison(NamedTuple):
    """The mean difference of two metrics over the same seeds, and its significance."""

    difference: float  # mean of one - other
    error: float  # the standard error of the difference
    low: float  # the ends of its confidence interval
    high: float
    p_value: float  # probability of a difference at least as large by chance alone
    count: int  # type: ignore[assignment]  # of pairs


def estimate(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Return the mean of values (M,), its standard error, and Student's confidence interval.

    The interval assumes values that are nearly normal. One value has a mean alone, and the rest is nan. If a seed
    diverged, so that its value is nan or infinite, all but the counts is nan: the mean of the other seeds would be too
    good. Raises InputError for no values, and for a confidence that is not between 0 and 1. Source: Student, Biometrika
    6 (1908).

    >>> estimate([1.0, 2.0, 3.0])._replace(low=0.0, high=0.0)
    Estimate(mean=2.0, std=1.0, sem=0.577..., low=0.0, high=0.0, count=3, diverged=0)
    """
    from scipy.special import stdtrit

    row = _row("values", values)
    _check_probability("confidence", confidence)
    count, diverged = len(row), int((~np.isfinite(row)).sum())
    if diverged:
        return Estimate(math.nan, math.nan, math.nan, math.nan, math.nan, count, diverged)
    # Relative to the first value, so that equal values have exactly this mean and a deviation of 0.
    mean = float(row[0] + (row - row[0]).mean())
    if count == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, math.nan, 1, 0)
    deviation = math.sqrt(((row - mean) ** 2).sum() / (count - 1))
    error = deviation / math.sqrt(count)
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * error
    return Estimate(mean, deviation, error, mean - half, mean + half, count, 0)


def paired_test(one: ArrayLike, other: ArrayLike, confidence: float = 0.95) -> Comparison:
    """Return the paired t test of one (M,) and other (M,), whose values at the same place have the same seed.

    If all differences are equal up to float32 rounding, the t test has no error to use: the error is then 0, and the p
    value that of the sign test, 2 ** (1 - M), or 1 for no difference. If a seed diverged, all but the count is nan.
    Raises InputError for different lengths, and for fewer than 2 pairs. Source: Student, Biometrika 6 (1908).

    >>> paired_test([3.0, 4.0, 6.0], [2.0, 2.0, 3.0])
    Comparison(difference=2.0, error=0.577..., low=-0.484..., high=4.484..., p_value=0.074..., count=3)
    """
    from scipy.special import stdtr

    one, other = _row("one", one), _row("other", other)
    if len(one) != len(other) or len(one) < 2:
        raise InputError(
            f"paired_test needs two rows with a value for each of the same seeds, 2 or more, got {len(one)} and "
            f"{len(other)} values. Run both with the same seeds."
        )
    with np.errstate(invalid="ignore"):  # infinity - infinity of two runs that diverged
        mean, _, error, low, high, count, diverged = estimate(one - other, confidence)
    if diverged:
        return Comparison(math.nan, math.nan, math.nan, math.nan, math.nan, count)
    rounding = 2 * np.finfo(np.float32).eps * max(np.abs(one).max(), np.abs(other).max())
    if np.ptp(one - other) <= rounding:
        return Comparison(mean, 0.0, mean, mean, 1.0 if abs(mean) <= rounding else 0.5 ** (count - 1), count)
    return Comparison(mean, error, low, high, 2 * float(stdtr(count - 1, -abs(mean) / error)), count)


def verdict(
    one_name: str,
    other_name: str,
    comparison: Comparison,
    *,
    lower_is_better: bool = True,
    level: float = 0.05,
    unit: str = "",
) -> str:
    """Return a sentence about a comparison: which one is better, and by how many units +- the standard error.

    No difference is claimed for a p value of `level` or more. The p values of several comparisons need `holm` first.
    Raises InputError for a level that is not between 0 and 1.

    >>> print(verdict("wide", "narrow", paired_test([3.1, 3.0, 3.3, 3.2], [3.6, 3.4, 3.8, 3.7])))
    wide is better than narrow by 0.47 +- 0.03 (paired t test over 4 seeds, p < 0.001)
    >>> print(verdict("A", "B", paired_test([3.1, 3.0, 3.3], [3.2, 2.9, 3.4])))
    these 3 seeds show no difference between A and B (-0.03 +- 0.07, p = 0.67)
    """
    _check_probability("level", level)
    difference, error, p_value, count = comparison.difference, comparison.error, comparison.p_value, comparison.count
    if math.isnan(p_value):
        return f"{one_name} and {other_name} cannot be compared: not all of the {count} seeds have finite values"
    unit = f" {unit}" if unit else ""
    chance = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
    if p_value >= level:
        return (
            f"these {count} seeds show no difference between {one_name} and {other_name} "
            f"({_with_error(difference, error)}{unit}, {chance})"
        )
    better, worse = (one_name, other_name) if (difference < 0) == lower_is_better else (other_name, one_name)
    test = "paired t test" if error else "sign test"
    return (
        f"{better} is better than {worse} by {_with_error(abs(difference), error)}{unit} ({test} over {count} seeds, "
        f"{chance})"
    )


def holm(p_values: ArrayLike) -> Float64[np.ndarray, " comparisons"]:
    """Return the p values (M,) of M comparisons, adjusted for their number by Holm's method.

    To claim each difference whose adjusted p value is below a level makes any false claim with a probability of at most
    that level, even for dependent comparisons. Set the value of a Comparison with `_replace(p_value=...)`. A nan stays
    nan and counts as a comparison. Raises InputError for values outside of 0 to 1. Source: Holm, Scandinavian Journal
    of Statistics 6 (1979).

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    row = _row("p_values", p_values)
    if ((row < 0) | (row > 1)).any():
        raise InputError(f"p_values must be from 0 to 1, got {row[(row < 0) | (row > 1)][0]}.")
    order = np.argsort(row, kind="stable")  # nan comes last
    steps = np.maximum.accumulate(row[order] * np.arange(len(row), 0, -1))
    result = np.empty(len(row))
    result[order] = np.minimum(steps, 1)
    return result


def one_standard_error(
    means: ArrayLike,
    errors: ArrayLike,
    costs: ArrayLike | Sequence[float | None],
    *,
    mode: Literal["min", "max"] = "min",
) -> int:
    """Return the index of the cheapest candidate whose mean is within one standard error of the best mean.

    means, errors, costs: (M,). Of equal costs the better mean wins. A candidate with nan or infinity never wins.
    mode: "min" if the lowest mean is the best, "max" if the highest is.

    Raises InputError for different lengths, for another mode, and if no candidate is finite. Source: Breiman, Friedman,
    Olshen and Stone, Classification and Regression Trees (1984).

    >>> one_standard_error([3.5, 3.2, 3.1], [0.1, 0.2, 0.15], costs=[10, 100, 1000])
    1
    >>> one_standard_error([0.70, 0.90, 0.91], [0.02, 0.02, 0.02], costs=[10, 100, 1000], mode="max")
    1
    """
    if mode not in ("min", "max"):
        raise InputError(f'mode must be "min" or "max", got "{mode}".')
    table = [_row(name, values) for name, values in (("means", means), ("errors", errors), ("costs", costs))]
    if len({len(row) for row in table}) > 1:
        raise InputError(f"means, errors and costs must be of one length, got {', '.join(str(len(r)) for r in table)}.")
    finite = np.flatnonzero(np.isfinite(table).all(0))
    if not len(finite):
        raise InputError(
            "one_standard_error needs a candidate whose mean, error and cost are finite, got none. Run 2 seeds or more "
            "of each, and leave out settings that diverge."
        )
    mean, error, cost = (row[finite] for row in table)
    mean = mean if mode == "min" else -mean
    best = mean.argmin()
    near = np.flatnonzero(mean <= mean[best] + error[best])
    return int(finite[min(near, key=lambda index: (cost[index], mean[index]))])


def _row(name: str, values: ArrayLike | Sequence[float | None]) -> Float64[np.ndarray, " numbers"]:
    row = np.asarray(values, np.float64)
    if row.ndim != 1 or not len(row):
        raise InputError(f"{name} must be a row of at least one number, got shape {row.shape}.")
    return row


def _check_probability(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must be between 0 and 1, got {value}.")


def _with_error(difference: float, error: float) -> str:
    """Return `difference +- error`, rounded to one digit of the error, or two if the first is 1."""
    if not error:
        return f"{difference:.3g} +- 0"
    places = max(0, -math.floor(math.log10(error / 2)))
    return f"{difference:.{places}f} +- {error:.{places}f}"


def rmse_standard_error(residuals: ArrayLike) -> float:
    """Return the standard error of the RMSE of residuals (N,), prediction - target; nan for fewer than two.

    By the delta method it is the standard error of the mean square, divided by twice the RMSE. Computed in float64.
    Source: Casella and Berger, Statistical Inference (2002), section 5.5.4.

    >>> round(rmse_standard_error([1.0, -1.0, 1.0, -3.0]), 4)
    0.5774
    """
    squares = np.asarray(residuals, np.float64).ravel() ** 2
    if len(squares) < 2:
        return math.nan
    root = math.sqrt(squares.mean())
    # Residuals that are all 0 have no error.
    return float(squares.std(ddof=1) / math.sqrt(len(squares)) / (2 * root)) if root else 0.0


def proportion_standard_error(correct: float, count: int) -> float:
    """Return the standard error of a fraction such as an accuracy: `correct` of `count` examples.

    Two correct and two wrong examples are added, so that the error is not 0 if all are correct. Raises InputError for a
    count below 1, and for `correct` outside of 0 to `count`. Source: Agresti and Coull, The American Statistician 52
    (1998).

    >>> proportion_standard_error(50, 100), proportion_standard_error(100, 100)
    (0.049..., 0.013...)
    """
    if count < 1 or not 0 <= correct <= count:
        raise InputError(f"correct must be from 0 to a count of at least 1, got {correct} of {count}.")
    fraction = (correct + 2) / (count + 4)
    return math.sqrt(fraction * (1 - fraction) / (count + 4))


class Calibration(NamedTuple):
    """The scale and noise of `calibrated_std`: sqrt((scale * std)**2 + noise**2)."""

    scale: float  # >= 0
    noise: float  # >= 0, in the unit of the targets


def fit_calibration(mean: ArrayLike, std: ArrayLike, targets: ArrayLike) -> Calibration:
    """Return the scale and noise of `calibrated_std` that maximize the likelihood of targets (N, ...).

    mean, std: (N, ...), of the ensemble's predictions. Use validation data, because errors on training data are too
        small. If all `std` are equal, the scale is 0.

    Raises InputError for different shapes, no examples, values that are not finite, and a negative `std`.

    >>> calibration = fit_calibration([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 3.0, -3.0])
    >>> calibration.scale, round(calibration.noise**2, 6)
    (0.0, 5.0)
    """
    means, widths, values = _check_arrays(mean=mean, std=std, targets=targets)
    squares = (values - means) ** 2
    if np.ptp(widths) == 0 or not squares.any():
        return Calibration(0.0, math.sqrt(squares.mean()))
    unit = np.mean(widths**2)
    shape = widths**2 / unit

    # Two fractions that add up to 1 divide the variance into a part in proportion to std**2 and a constant part. For
    # given fractions the most likely variance has a closed form.
    def variance(scaled: float, constant: float) -> float:
        return float(np.mean(squares / (scaled * shape + constant)))

    def loss(scaled: float, constant: float) -> float:
        """Return twice the mean negative log-likelihood under that variance, up to a constant."""
        return math.log(variance(scaled, constant)) + float(np.mean(np.log(scaled * shape + constant)))

    scaled, constant = _best_fractions(loss, [(0.0, 1.0), (1.0, 0.0)] if shape.all() else [(0.0, 1.0)])
    total = variance(scaled, constant)
    return Calibration(math.sqrt(total * scaled / unit), math.sqrt(total * constant))


def _best_fractions(loss: Callable[[float, float], float], ends: list[tuple[float, float]]) -> tuple[float, float]:
    """Return two fractions of 1 with the lowest loss, from a grid of log odds, a search around its best, and `ends`."""
    from scipy.optimize import minimize_scalar
    from scipy.special import expit

    def fractions(odds: float) -> tuple[float, float]:
        return float(expit(odds)), float(expit(-odds))

    # Beyond these ends a fraction is lost in float64 beside the other.
    grid, step = np.linspace(-40, 40, 161, retstep=True)
    best = min(grid, key=lambda odds: loss(*fractions(odds)))
    bounds = (best - step, best + step)
    refined = minimize_scalar(
        lambda odds: loss(*fractions(odds)), bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    return min([*ends, fractions(best), fractions(refined.x)], key=lambda pair: loss(*pair))


def calibrated_std(std: ArrayLike, calibration: Calibration) -> Float64[np.ndarray, " ..."]:
    """Return sqrt((scale * std)**2 + noise**2) for std (N, ...): the expected errors of an ensemble's predictions.

    >>> calibration = fit_calibration([0.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1], [1.0, -1.0, 3.0, -3.0])
    >>> calibrated_std([0.1, 0.2], calibration).round(4).tolist()
    [2.2361, 2.2361]
    """
    return np.hypot(calibration.scale * np.asarray(std, np.float64), calibration.noise)


def coverage(
    mean: ArrayLike, deviation: ArrayLike, targets: ArrayLike, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)
) -> dict[float, float]:
    """Return for each level the fraction of targets inside of the central normal interval of that probability.

    A fraction below its level means that the deviations (N, ...) are too small. Raises InputError as `fit_calibration`
    does, and for a level that is not between 0 and 1.

    >>> coverage([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.1, -0.5, 1.0, 3.0], levels=(0.5, 0.95))
    {0.5: 0.5, 0.95: 0.75}
    """
    from scipy.special import ndtri

    for level in levels:
        if not 0 < level < 1:
            raise InputError(f"levels must be between 0 and 1, got {level}. Use 0.95 for 95 %.")
    means, deviations, values = _check_arrays(mean=mean, deviation=deviation, targets=targets)
    errors = np.abs(values - means)
    return {level: float(np.mean(errors <= ndtri((1 + level) / 2) * deviations)) for level in levels}


def _check_arrays(**named: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means, deviations and targets as float64 arrays of one shape."""
    arrays = {name: np.asarray(values, np.float64) for name, values in named.items()}
    shapes = [array.shape for array in arrays.values()]
    if len(set(shapes)) > 1 or not shapes[0] or 0 in shapes[0]:
        raise InputError(
            f"{', '.join(arrays)} must be of one shape with at least one row, got {', '.join(map(str, shapes))}."
        )
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}. Leave out diverged runs.")
    means, deviations, targets = arrays.values()
    if (deviations < 0).any():
        raise InputError(f"{list(arrays)[1]} must be 0 or more, got {deviations.min()}.")
    return means, deviations, targets
