"""How well a figure is known that was measured on few rows: its standard error.

Rows are taken as independent draws of what the model will meet. Days that follow each other, or a place that is not
among them, are more alike or less, and then the error is too small.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxdl.errors import InputError


def rmse_error(misses: Any) -> float:
    """The standard error of the root mean square of misses (N,), prediction - target; nan for fewer than two rows.

    By the delta method: that of the mean square, over twice its root. Computed in float64. Source: Casella and Berger,
    Statistical Inference (2002), section 5.5.4.

    >>> round(rmse_error([1.0, -1.0, 1.0, -3.0]), 4)
    0.5774
    """
    squares = np.asarray(misses, np.float64).ravel() ** 2
    if len(squares) < 2:
        return math.nan
    root = math.sqrt(squares.mean())
    # Misses that are all 0 have no spread.
    return float(squares.std(ddof=1) / math.sqrt(len(squares)) / (2 * root)) if root else 0.0


def share_error(hits: float, count: int) -> float:
    """The standard error of a share, `hits` of `count` rows, such as an accuracy.

    That of a binomial share with two hits and two misses added, so that it is not 0 where all rows are right. Raises
    InputError for a count below 1 and hits outside of 0 to the count. Source: Agresti and Coull, The American
    Statistician 52 (1998).

    >>> share_error(50, 100), share_error(100, 100)
    (0.049..., 0.013...)
    """
    if count < 1 or not 0 <= hits <= count:
        raise InputError(f"hits must be from 0 to a count of at least 1, got {hits} of {count}.")
    share = (hits + 2) / (count + 4)
    return math.sqrt(share * (1 - share) / (count + 4))
