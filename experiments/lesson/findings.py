"""What the lesson finds, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from experiments.lesson.exercises import SIZES
from experiments.lesson.rows import Row, number
from experiments.lesson.training import Trained, Truth
from jaxdl.stats import (
    Comparison,
    calibrated_std,
    coverage,
    estimate,
    fit_calibration,
    holm,
    one_standard_error,
    paired_test,
    verdict,
)

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
RAW, CALIBRATED = "spread of the networks", "calibrated on validation rows"


class Bars(NamedTuple):
    """The mean of many networks on the test rows, with error bars."""

    mean: np.ndarray  # (rows,)
    deviation: np.ndarray  # (rows,), calibrated on the validation rows
    held: dict[str, dict[float, float]]  # by kind of bar and level: the share of the test rows inside


def bars(done: Trained, truth: Truth) -> Bars | None:
    """The error bars of a row's networks; None for a single network, and where one diverged."""
    validation, test = (done.outputs[name][..., 0].astype(np.float64) for name in ("validation", "test"))
    if len(test) < 2 or not (np.isfinite(validation).all() and np.isfinite(test).all()):
        return None
    fitted = fit_calibration(validation.mean(0), validation.std(0), truth.validation[:, 0])
    mean, spread, true = test.mean(0), test.std(0), truth.test[:, 0]
    deviation = calibrated_std(spread, fitted)
    kinds = {RAW: spread, CALIBRATED: deviation}
    return Bars(mean, deviation, {name: coverage(mean, of, true, LEVELS) for name, of in kinds.items()})


def sentence(found: Bars, count: int) -> str:
    """What the error bars of `count` networks are worth."""
    raw, calibrated = (round(100 * found.held[kind][0.9]) for kind in (RAW, CALIBRATED))
    return (
        f"90 % intervals from the spread of {count} networks hold {raw} % of the test rows; calibrated on validation "
        f"rows, {calibrated} %."
    )


LEVEL = 0.05
PAIRS = (  # what is compared, on the test rows
    ("plain", "as today"),
    ("early stopping", "plain"),
    ("BatchNorm", "early stopping"),
    ("BatchNorm", "as today"),
    ("BatchNorm", "ridge regression"),
    ("one place", "as today, one place"),
    ("one place", "ridge regression, one place"),
    ("all years", "as today, all years"),
    ("all years", "ridge regression, all years"),
    ("month", "BatchNorm"),
    ("3 days", "BatchNorm"),
    ("7 days, one place", "one place"),
    ("deeper", "BatchNorm"),
    ("oversampled", "BatchNorm"),
    ("BatchNorm, yes or no", "as today, yes or no"),
    ("BatchNorm, yes or no", "ridge regression, yes or no"),
    ("one place, yes or no", "as today, one place, yes or no"),
    ("small", "dense"),
    ("pooled", "dense"),
    ("pooled", "small"),
)


class Claim(NamedTuple):
    """Two rows of figures (seeds,), to be compared."""

    section: str
    one: str
    other: str
    values: tuple[np.ndarray, np.ndarray]
    lower_is_better: bool
    unit: str


READING = (
    "What is called better is so on average over seeds, on the same test rows, by a paired t test at 5 %; p values are "
    "adjusted for the number of comparisons in their section, among the sizes for all pairs (Holm)."
)
SPLIT = (
    "All seeds share one split of the rows, so the errors are those of initial weights and of the order of rows, not "
    "those of other rows."
)


def findings(rows: Sequence[Row]) -> list[str]:
    """Sentences about the rows, each with its test, and first how to read them; none where there is no comparison."""
    named = {row.name: row for row in rows}
    said: list[str] = []
    for section in dict.fromkeys(row.section for row in rows):
        if section == SIZES:
            said += _sweet_spot([row for row in rows if row.section == SIZES])
            continue
        claims = [claim for claim in (*_pairs(named), *_rates(named)) if claim.section == section]
        tests = [paired_test(*claim.values) for claim in claims]
        chances = holm([test.p_value for test in tests]) if tests else np.zeros(0)
        tests = [test._replace(p_value=float(chance)) for test, chance in zip(tests, chances, strict=True)]
        said += [_sentence(claim, test) for claim, test in zip(claims, tests, strict=True)]
    return [READING, SPLIT, *said] if said else []


def _sentence(claim: Claim, test: Comparison) -> str:
    lower, unit = claim.lower_is_better, "points" if claim.unit == "%" else claim.unit
    text = verdict(f'"{claim.one}"', f'"{claim.other}"', test, lower_is_better=lower, unit=unit)
    return f"{text[0].upper()}{text[1:]}."


def _pairs(named: Mapping[str, Row]) -> Iterator[Claim]:
    for one, other in PAIRS:
        if one in named and other in named and len(named[one].seeds) > 1:
            yield _claim(named[one], named[other], "test")


def _rates(named: Mapping[str, Row]) -> Iterator[Claim]:
    for name, row in named.items():
        if name.startswith("dropout ") and "pooled" in named and len(row.seeds) > 1:
            yield _claim(row, named["pooled"], "test")


def _claim(one: Row, other: Row, which: str) -> Claim:
    values = one.values[which]
    beside = np.broadcast_to(other.values[which], values.shape)
    return Claim(one.section, one.name, other.name, (values, beside), one.unit != "%", one.unit)


def recommended(sizes: Sequence[Row]) -> int | None:
    """The position of the smallest network within one standard error of the best, on validation rows.

    A size of which a seed diverged is left out; None where no other is left, and where one seed shows no error.
    """
    found = [estimate(row.values["validation"]) for row in sizes]
    if not np.isfinite([each.error for each in found]).any():
        return None
    return one_standard_error(
        [each.mean for each in found], [each.error for each in found], [row.parameters for row in sizes]
    )


def _sweet_spot(sizes: Sequence[Row]) -> Iterator[str]:
    if len(sizes[0].seeds) < 2:
        return
    figures = {row.name: estimate(row.values["validation"]) for row in sizes}
    if lost := [name for name, found in figures.items() if found.diverged]:
        yield f"Sizes that cannot be compared, because a seed diverged: {_listed(lost)}."
    sound = [row for row in sizes if row.name not in lost]
    chosen = recommended(sizes)
    if chosen is None or len(sound) < 2:
        return
    best, small = min(sound, key=lambda row: figures[row.name].mean), sizes[chosen]
    mean, error = (number(figure, best.unit) for figure in (figures[best.name].mean, figures[best.name].error))
    yield (
        f'Of {len(sound)} sizes of network, "{best.name}" has the lowest mean {best.figure} on validation rows, '
        f'{mean} +- {error} {best.unit}. The smallest within one standard error of it is "{small.name}", with '
        f"{small.parameters:,} parameters."
    )
    worse = _apart(sound, best.name)
    alike = [row.name for row in sound if row.name not in (*worse, best.name)]
    for names, text in ((worse, "Worse than"), (alike, "Not to be told apart from")):
        if names:
            yield f'{text} "{best.name}" on validation rows by these seeds: {_listed(names)}.'


def _apart(sizes: Sequence[Row], best: str) -> list[str]:
    """The sizes that can be told apart from the best.

    The best is chosen by the same figures that then are compared, so the p values are adjusted for all pairs.
    """
    pairs = list(combinations(sizes, 2))
    chances = holm([paired_test(one.values["validation"], other.values["validation"]).p_value for one, other in pairs])
    told = [{one.name, other.name} for (one, other), chance in zip(pairs, chances, strict=True) if chance < LEVEL]
    return [row.name for row in sizes if row.name != best and {row.name, best} in told]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
