"""How sure many networks are together, and whether they may be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from experiments.lesson_training import Trained
from jaxdl.calibration import calibrate, coverage, widened

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
RAW, CALIBRATED = "spread of the networks", "calibrated on validation rows"


class Truth(NamedTuple):
    """What the networks of an exercise were to tell."""

    validation: np.ndarray  # (rows, 1)
    test: np.ndarray  # (rows, 1)
    today: np.ndarray  # (test rows,)


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
    fitted = calibrate(validation.mean(0), validation.std(0), truth.validation[:, 0])
    mean, spread, true = test.mean(0), test.std(0), truth.test[:, 0]
    deviation = widened(spread, fitted)
    kinds = {RAW: spread, CALIBRATED: deviation}
    return Bars(mean, deviation, {name: coverage(mean, of, true, LEVELS) for name, of in kinds.items()})


def sentence(found: Bars, count: int) -> str:
    """What the error bars of `count` networks are worth.

    >>> print(sentence(Bars(np.zeros(1), np.ones(1), {RAW: {0.9: 0.33}, CALIBRATED: {0.9: 0.84}}), 16))
    90 % intervals from the spread of 16 networks hold 33 % of the test rows; calibrated on validation rows, 84 %.
    """
    raw, calibrated = (round(100 * found.held[kind][0.9]) for kind in (RAW, CALIBRATED))
    return (
        f"90 % intervals from the spread of {count} networks hold {raw} % of the test rows; calibrated on validation "
        f"rows, {calibrated} %."
    )
