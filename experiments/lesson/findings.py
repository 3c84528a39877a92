"""The findings of the lesson as sentences, with their tests."""

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
RAW, CALIBRATED = "standard deviation of the networks", "calibrated on validation rows"


class Bars(NamedTuple):
    """The mean prediction of many networks for the test rows, with error bars."""

    mean: np.ndarray  # (rows,)
    std: np.ndarray  # (rows,), calibrated on the validation rows
    coverage: dict[str, dict[float, float]]  # by kind of bar and level: the fraction of test targets inside


def bars(networks: Trained, truth: Truth) -> Bars | None:
    """Return the error bars of a row's networks; None for a single network, or where one diverged."""
    validation, test = (networks.outputs[name][..., 0].astype(np.float64) for name in ("validation", "test"))
    if len(test) < 2 or not (np.isfinite(validation).all() and np.isfinite(test).all()):
        return None
    fitted = fit_calibration(validation.mean(0), validation.std(0), truth.validation[:, 0])
    mean, targets = test.mean(0), truth.test[:, 0]
    stds = {RAW: test.std(0), CALIBRATED: calibrated_std(test.std(0), fitted)}
    return Bars(mean, stds[CALIBRATED], {name: coverage(mean, std, targets, LEVELS) for name, std in stds.items()})


def sentence(intervals: Bars, count: int) -> str:
    """Return the sentence about the coverage of the error bars of `count` networks."""
    raw, calibrated = (round(100 * intervals.coverage[kind][0.9]) for kind in (RAW, CALIBRATED))
    return (
        f"The 90 % intervals from the standard deviation of {count} networks contain {raw} % of the test targets. "
        f"After calibration on validation rows they contain {calibrated} %."
    )


LEVEL = 0.05
PAIRS = (  # rows that are compared on the test set
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
    """Two rows of the table that are compared, with their values, (seeds,)."""

    section: str
    one: str
    other: str
    values: tuple[np.ndarray, np.ndarray]
    lower_is_better: bool
    unit: str


READING = (
    '"Better" means: a lower mean error, or a higher mean accuracy, over the seeds on the same test rows, with p below '
    "0.05 in a paired t test. The p values are adjusted by Holm's method for the number of comparisons in their "
    "section; for the sizes of networks, for all pairs of sizes."
)
SPLIT = (
    "All seeds have the same split of the rows. So the standard errors include the variation of initial weights and "
    "shuffling, but not that of another split."
)


def findings(rows: Sequence[Row]) -> list[str]:
    """Return sentences about the rows, each with its test, after two that explain them; [] without comparisons."""
    named = {row.name: row for row in rows}
    sentences: list[str] = []
    for section in dict.fromkeys(row.section for row in rows):
        if section == SIZES:
            sentences += _about_sizes([row for row in rows if row.section == SIZES])
            continue
        claims = [claim for claim in (*_pair_claims(named), *_dropout_claims(named)) if claim.section == section]
        tests = [paired_test(*claim.values) for claim in claims]
        p_values = holm([test.p_value for test in tests]) if tests else np.zeros(0)
        tests = [test._replace(p_value=float(p)) for test, p in zip(tests, p_values, strict=True)]
        sentences += [_sentence(claim, test) for claim, test in zip(claims, tests, strict=True)]
    return [READING, SPLIT, *sentences] if sentences else []


def _sentence(claim: Claim, test: Comparison) -> str:
    lower, unit = claim.lower_is_better, "points" if claim.unit == "%" else claim.unit
    text = verdict(f'"{claim.one}"', f'"{claim.other}"', test, lower_is_better=lower, unit=unit)
    return f"{text[0].upper()}{text[1:]}."


def _pair_claims(named: Mapping[str, Row]) -> Iterator[Claim]:
    for one, other in PAIRS:
        if one in named and other in named and len(named[one].seeds) > 1:
            yield _claim(named[one], named[other])


def _dropout_claims(named: Mapping[str, Row]) -> Iterator[Claim]:
    for name, row in named.items():
        if name.startswith("dropout ") and "pooled" in named and len(row.seeds) > 1:
            yield _claim(row, named["pooled"])


def _claim(one: Row, other: Row) -> Claim:
    values = one.values["test"]
    other_values = np.broadcast_to(other.values["test"], values.shape)
    return Claim(one.section, one.name, other.name, (values, other_values), one.unit != "%", one.unit)


def recommended(sizes: Sequence[Row]) -> int | None:
    """Return the index of the smallest network within one standard error of the best, on validation rows.

    A size with a diverged seed is excluded. None where no size remains, or a single seed gives no standard error.
    """
    estimates = [estimate(row.values["validation"]) for row in sizes]
    errors = [entry.sem for entry in estimates]
    if not np.isfinite(errors).any():
        return None
    return one_standard_error([entry.mean for entry in estimates], errors, [row.parameters for row in sizes])


def _about_sizes(sizes: Sequence[Row]) -> Iterator[str]:
    if len(sizes[0].seeds) < 2:
        return
    estimates = {row.name: estimate(row.values["validation"]) for row in sizes}
    if diverged := [name for name, entry in estimates.items() if entry.diverged]:
        yield f"Sizes that cannot be compared, because a seed diverged: {_quoted(diverged)}."
    finite = [row for row in sizes if row.name not in diverged]
    chosen = recommended(sizes)
    if chosen is None or len(finite) < 2:
        return
    best, small = min(finite, key=lambda row: estimates[row.name].mean), sizes[chosen]
    mean, error = (number(value, best.unit) for value in (estimates[best.name].mean, estimates[best.name].sem))
    yield (
        f'Of {len(finite)} sizes of network, "{best.name}" has the lowest mean {best.figure} on validation rows, '
        f'{mean} +- {error} {best.unit}. The smallest within one standard error of it is "{small.name}", with '
        f"{small.parameters:,} parameters."
    )
    worse = _worse_sizes(finite, best.name)
    similar = [row.name for row in finite if row.name not in (*worse, best.name)]
    for names, text in ((worse, "Worse than"), (similar, "No significant difference from")):
        if names:
            yield f'{text} "{best.name}" on validation rows: {_quoted(names)}.'


def _worse_sizes(sizes: Sequence[Row], best: str) -> list[str]:
    """Return the sizes that are significantly worse than the best.

    The p values are adjusted for all pairs, because the values that are compared also chose the best.
    """
    pairs = list(combinations(sizes, 2))
    p_values = holm([paired_test(one.values["validation"], other.values["validation"]).p_value for one, other in pairs])
    significant = [{one.name, other.name} for (one, other), p in zip(pairs, p_values, strict=True) if p < LEVEL]
    return [row.name for row in sizes if row.name != best and {row.name, best} in significant]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
