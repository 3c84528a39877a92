"""How well scores tell positives from negatives: the ROC and the precision-recall curve, in NumPy.

A curve has a point for each distinct score as the threshold from which a row counts as positive, the largest first.
Rows of equal scores cannot be told apart, so they enter together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdl.errors import InputError

Floats = NDArray[np.float64]


class Curve(NamedTuple):
    """Points from the left to the right, and one figure for all of them."""

    x: Floats  # (T + 1,)
    y: Floats  # (T + 1,)
    thresholds: Floats  # (T + 1,) falling; the first is infinity, which no score reaches
    area: float


def roc(scores: Any, labels: Any) -> Curve:
    """The true positive rate against the false positive rate, from (0, 0) to (1, 1), and the area under straight lines.

    scores: (N,) or (N, 1), larger where positive is likelier; labels: 0 or 1. The area is the probability that a
    positive has a larger score than a negative, where ties count half. Source: Fawcett, Pattern Recognition Letters 27
    (2006). Raises InputError where a score is not finite, a label is neither 0 nor 1, or all labels are the same.

    >>> curve = roc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    >>> curve.x.tolist(), curve.y.tolist(), curve.area
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0], 0.75)
    """
    thresholds, hits, alarms = _counts(scores, labels)
    x, y = alarms / alarms[-1], hits / hits[-1]
    return Curve(x, y, thresholds, float(np.trapezoid(y, x)))


def precision_recall(scores: Any, labels: Any) -> Curve:
    """The precision against the recall, and the average precision: the area under steps.

    No line between points is what thresholds in between would give. The first point, recall 0 with precision 1, stands
    for a threshold that no row reaches. Source: Davis and Goadrich, ICML (2006). Arguments and errors are those of
    `roc`.

    >>> curve = precision_recall([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    >>> curve.x.tolist(), curve.y.round(2).tolist(), round(curve.area, 4)
    ([0.0, 0.5, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.67, 0.5], 0.8333)
    """
    thresholds, hits, alarms = _counts(scores, labels)
    recall, called = hits / hits[-1], hits + alarms
    precision = np.r_[1.0, hits[1:] / called[1:]]
    return Curve(recall, precision, thresholds, float(np.sum(np.diff(recall) * precision[1:])))


def _counts(scores: Any, labels: Any) -> tuple[Floats, Floats, Floats]:
    """The thresholds (T + 1,), and how many positives and how many negatives reach each."""
    scores, labels = np.asarray(scores, np.float64).ravel(), np.asarray(labels, np.float64).ravel()
    if scores.shape != labels.shape:
        raise InputError(f"a curve needs a score for each label, got {len(scores)} scores and {len(labels)} labels.")
    if not np.isfinite(scores).all():
        raise InputError(f"scores must be finite, got {scores[~np.isfinite(scores)][0]}. Leave such rows out.")
    if not np.isin(labels, (0, 1)).all():
        raise InputError(f"labels must be 0 or 1, got {labels[~np.isin(labels, (0, 1))][0]:g}.")
    if len(np.unique(labels)) < 2:
        kind = f"only {labels[0]:g}" if len(labels) else "no rows"
        raise InputError(f"a curve needs labels of both kinds, 0 and 1, got {kind}. Use more rows.")
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    last = np.r_[np.flatnonzero(np.diff(scores)), len(scores) - 1]  # of the rows with the same score
    hits = np.cumsum(labels)[last]
    return np.r_[np.inf, scores[last]], np.r_[0.0, hits], np.r_[0.0, last + 1 - hits]
