"""What a few seeds or rows allow to say: intervals, paired tests, standard errors, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from jaxdl.errors import InputError

__all__ = [
    "Calibration",
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
    """The mean of a figure over seeds, and how well it is known."""

    mean: float
    deviation: float  # the standard deviation over seeds, ddof 1
    error: float  # the standard error of the mean
    low: float  # the ends of the confidence interval of the mean
    high: float
    count: int  # type: ignore[assignment]  # all seeds
    diverged: int  # of these, the seeds whose figure is nan or infinite


class Comparison(NamedTuple):
    """By how much one is above another over the same seeds, and how sure that is."""

    difference: float  # the mean of one - other
    error: float  # the standard error of the difference
    low: float  # the ends of its confidence interval
    high: float
    p_value: float  # how often seeds alone would give a difference at least as large, were there none
    count: int  # type: ignore[assignment]  # of pairs


def estimate(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean of values (M,), its standard error and Student's confidence interval, for draws near to normal.

    Of one value the mean alone is known, and the rest is nan. Where a seed diverged, so that its value is nan or
    infinite, all but the counts is nan: the mean of the seeds that are left would be the mean of the lucky ones.
    Raises InputError without values and for a confidence that is not between 0 and 1. Source: Student, Biometrika 6
    (1908).

    >>> estimate([1.0, 2.0, 3.0])._replace(low=0.0, high=0.0)
    Estimate(mean=2.0, deviation=1.0, error=0.577..., low=0.0, high=0.0, count=3, diverged=0)
    """
    from scipy.special import stdtrit

    row = _row("values", values)
    _check_share("confidence", confidence)
    count, diverged = len(row), int((~np.isfinite(row)).sum())
    if diverged:
        return Estimate(math.nan, math.nan, math.nan, math.nan, math.nan, count, diverged)
    # From the first value on, so that equal values have their own mean and no deviation, without any rounding.
    mean = float(row[0] + (row - row[0]).mean())
    if count == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, math.nan, 1, 0)
    deviation = math.sqrt(((row - mean) ** 2).sum() / (count - 1))
    error = deviation / math.sqrt(count)
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * error
    return Estimate(mean, deviation, error, mean - half, mean + half, count, 0)


def paired_test(one: ArrayLike, other: ArrayLike, confidence: float = 0.95) -> Comparison:
    """The paired t test of two rows (M,), whose numbers at the same place belong to the same seed.

    Where all differences are equal to float32's rounding, which is that of the figures, they show no error that the t
    test could use: the error is 0 then, and the p value that of the sign test, 2 ** (1 - M), or 1 where nothing
    differs. Where a seed diverged, all but the count is nan. Raises InputError for rows of different lengths and for
    fewer than 2 pairs. Source: Student, Biometrika 6 (1908).

    >>> paired_test([3.0, 4.0, 6.0], [2.0, 2.0, 3.0])
    Comparison(difference=2.0, error=0.577..., low=-0.484..., high=4.484..., p_value=0.074..., count=3)
    """
    from scipy.special import stdtr

    one, other = _row("one", one), _row("other", other)
    if len(one) != len(other) or len(one) < 2:
        raise InputError(
            f"compare needs two rows with a figure for each of the same seeds, 2 or more, got {len(one)} and "
            f"{len(other)} figures. Run both with the same seeds."
        )
    with np.errstate(invalid="ignore"):  # two runs that diverged alike
        of = estimate(one - other, confidence)
    if of.diverged:
        return Comparison(math.nan, math.nan, math.nan, math.nan, math.nan, of.count)
    rounding = 2 * np.finfo(np.float32).eps * max(np.abs(one).max(), np.abs(other).max())
    if np.ptp(one - other) <= rounding:
        p_value = 1.0 if abs(of.mean) <= rounding else 0.5 ** (of.count - 1)
        return Comparison(of.mean, 0.0, of.mean, of.mean, p_value, of.count)
    p_value = 2 * float(stdtr(of.count - 1, -abs(of.mean) / of.error))
    return Comparison(of.mean, of.error, of.low, of.high, p_value, of.count)


def verdict(
    one_name: str,
    other_name: str,
    comparison: Comparison,
    *,
    lower_is_better: bool = True,
    level: float = 0.05,
    unit: str = "",
) -> str:
    """What the comparison of one with another allows to say, as a sentence; +- is the standard error, in the `unit`.

    One is called better only where the p value lies below the level. Among several comparisons the p values must be
    `adjusted` first. Raises InputError for a level that is not between 0 and 1.

    >>> print(verdict("wide", "narrow", paired_test([3.1, 3.0, 3.3, 3.2], [3.6, 3.4, 3.8, 3.7])))
    wide is better than narrow by 0.47 +- 0.03 (paired t test over 4 seeds, p < 0.001)
    >>> print(verdict("A", "B", paired_test([3.1, 3.0, 3.3], [3.2, 2.9, 3.4])))
    no difference between A and B can be told from these 3 seeds (-0.03 +- 0.07, p = 0.67)
    """
    _check_share("level", level)
    difference, error, p_value, count = comparison.difference, comparison.error, comparison.p_value, comparison.count
    if math.isnan(p_value):
        return f"{one_name} and {other_name} cannot be compared: not all of the {count} seeds have finite figures"
    unit = f" {unit}" if unit else ""
    chance = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
    if p_value >= level:
        return (
            f"no difference between {one_name} and {other_name} can be told from these {count} seeds "
            f"({_rounded(difference, error)}{unit}, {chance})"
        )
    better, worse = (one_name, other_name) if (difference < 0) == lower_is_better else (other_name, one_name)
    test = "paired t test" if error else "sign test"
    by = f"{_rounded(abs(difference), error)}{unit}"
    return f"{better} is better than {worse} by {by} ({test} over {count} seeds, {chance})"


def holm(p_values: ArrayLike) -> Float64[np.ndarray, " comparisons"]:
    """The p values (M,) of M comparisons made at once, each raised by as much as their number asks for.

    Whoever claims what then lies below a level makes a false claim or more with a chance of at most that level, however
    the comparisons depend on each other. A comparison takes its own by `_replace(p_value=...)`. A nan stays nan and is
    counted. Raises InputError for what is no probability. Source: Holm, Scandinavian Journal of Statistics 6 (1979).

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    row = _row("p_values", p_values)
    if ((row < 0) | (row > 1)).any():
        raise InputError(f"p_values must be from 0 to 1, got {row[(row < 0) | (row > 1)][0]}.")
    order = np.argsort(row, kind="stable")  # nan last
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

    All are rows (M,): the error is that of the best's mean; of equal costs the better mean decides. A candidate with
    nan or infinity anywhere never wins. Source: Breiman, Friedman, Olshen and Stone, Classification and Regression
    Trees (1984).

    mode: "min" where the lowest mean is the best, as of an error; "max" where the highest is, as of an accuracy.

    Raises InputError for rows of different lengths, for another mode, and where no candidate is finite.

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
    sound = np.flatnonzero(np.isfinite(table).all(0))
    if not len(sound):
        raise InputError(
            "one_standard_error needs a candidate whose mean, error and cost are finite, got none. Run 2 seeds or more "
            "of each, and leave out settings that diverge."
        )
    mean, error, cost = (row[sound] for row in table)
    mean = mean if mode == "min" else -mean
    best = mean.argmin()
    near = np.flatnonzero(mean <= mean[best] + error[best])
    return int(sound[min(near, key=lambda index: (cost[index], mean[index]))])


def _row(name: str, values: ArrayLike | Sequence[float | None]) -> Float64[np.ndarray, " numbers"]:
    row = np.asarray(values, np.float64)
    if row.ndim != 1 or not len(row):
        raise InputError(f"{name} must be a row of at least one number, got shape {row.shape}.")
    return row


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise InputError(f"{name} must be between 0 and 1, got {share}.")


def _rounded(difference: float, error: float) -> str:
    """Both to the place where the error has one digit, or two where the first is 1."""
    if not error:
        return f"{difference:.3g} +- 0"
    places = max(0, -math.floor(math.log10(error / 2)))
    return f"{difference:.{places}f} +- {error:.{places}f}"


def rmse_standard_error(residuals: ArrayLike) -> float:
    """The standard error of the root mean square of misses (N,), prediction - target; nan for fewer than two rows.

    By the delta method: that of the mean square, over twice its root. Computed in float64. Source: Casella and Berger,
    Statistical Inference (2002), section 5.5.4.

    >>> round(rmse_standard_error([1.0, -1.0, 1.0, -3.0]), 4)
    0.5774
    """
    squares = np.asarray(residuals, np.float64).ravel() ** 2
    if len(squares) < 2:
        return math.nan
    root = math.sqrt(squares.mean())
    # Misses that are all 0 have no spread.
    return float(squares.std(ddof=1) / math.sqrt(len(squares)) / (2 * root)) if root else 0.0


def proportion_standard_error(correct: float, count: int) -> float:
    """The standard error of a share, `hits` of `count` rows, such as an accuracy.

    That of a binomial share with two hits and two misses added, so that it is not 0 where all rows are right. Raises
    InputError for a count below 1 and hits outside of 0 to the count. Source: Agresti and Coull, The American
    Statistician 52 (1998).

    >>> proportion_standard_error(50, 100), proportion_standard_error(100, 100)
    (0.049..., 0.013...)
    """
    if count < 1 or not 0 <= correct <= count:
        raise InputError(f"hits must be from 0 to a count of at least 1, got {correct} of {count}.")
    share = (correct + 2) / (count + 4)
    return math.sqrt(share * (1 - share) / (count + 4))


class Calibration(NamedTuple):
    """What makes a standard deviation of a spread: deviation**2 = (scale * spread)**2 + noise**2."""

    scale: float  # >= 0
    noise: float  # >= 0, in the unit of the targets


def fit_calibration(mean: ArrayLike, std: ArrayLike, targets: ArrayLike) -> Calibration:
    """The scale and the noise under which the targets are most likely, as normal draws around the means.

    Give it validation rows: on training rows errors are too small. Spreads that are all equal tell nothing, so then all
    is noise. Raises InputError for shapes that differ, no rows, numbers that are not finite, and spreads below 0.

    >>> found = fit_calibration([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 3.0, -3.0])
    >>> found.scale, round(found.noise**2, 6)
    (0.0, 5.0)
    """
    means, spreads, wanted = _checked(mean=mean, spread=std, targets=targets)
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


def calibrated_std(std: ArrayLike, calibration: Calibration) -> Float64[np.ndarray, " ..."]:
    """The standard deviations (N, ...) that belong to spreads (N, ...): honest error bars of new rows.

    >>> calibrated_std([0.0, 2.0], Calibration(scale=2.0, noise=3.0)).tolist()
    [3.0, 5.0]
    """
    return np.hypot(calibration.scale * np.asarray(std, np.float64), calibration.noise)


def coverage(
    mean: ArrayLike, deviation: ArrayLike, targets: ArrayLike, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)
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
