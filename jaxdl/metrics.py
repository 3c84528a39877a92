"""Metrics that are exact over a dataset, and curves of binary classification."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jaxtyping import Float, Float64, Integer, Num, Shaped
from numpy.typing import ArrayLike

from jaxdl.data.arrays import precision
from jaxdl.errors import InputError
from jaxdl.losses import absolute_error, as_labels, same_shape, squared_error
from jaxdl.types import LOSS, Array, Metric, MetricSums, Mode, PyTree

__all__ = [
    "Curve",
    "accuracy",
    "balanced_accuracy",
    "binary_accuracy",
    "compute",
    "mae",
    "mean",
    "measure",
    "merge",
    "precision_recall_curve",
    "r2",
    "rmse",
    "roc_curve",
    "top_k",
]


def __dir__() -> list[str]:
    return __all__


class Moments(NamedTuple):
    """The first two moments of numbers about a center, which keep float32 exact where the mean is large.

    A metric's `statistics` return those of single rows; `measure` and `add` merge them.
    """

    weight: Any  # scalar: how many numbers, weighted; (B,) of single rows
    center: Any  # (...): any number near the others
    first: Any  # (...): the weighted sum of (number - center)
    second: Any  # (...): the weighted sum of (number - center)**2

    def variation(self) -> Any:
        """Return the weighted sum of the squared differences from the mean, 0 exactly where all numbers are equal."""
        return self.second - self.first * (self.first / self.weight)


def moments_of(values: Float[Array, "batch ..."]) -> Moments:
    """Return the moments of each row (B, ...), a set of one number."""
    zero = jnp.zeros_like(values)
    return Moments(jnp.ones(values.shape[:1], values.dtype), values, zero, zero)


def _is_moments(leaf: object) -> bool:
    return isinstance(leaf, Moments)


def _about(center: Any, of: Moments) -> Moments:
    """The same moments about another center."""
    shift, weight = of.center - center, of.weight
    first = of.first + weight * shift
    return Moments(weight, center, first, of.second + shift * (of.first + first))


def _merged(one: Any, other: Any) -> Any:
    """The sum of two leaves, or the moments of two sets of numbers together, in NumPy's arrays or in JAX's."""
    if not _is_moments(one):
        return one + other
    # Nothing has no center of its own. Written without `where`, for both kinds of arrays.
    empty = (one.weight == 0).astype(one.center.dtype)
    center = one.center + empty * (other.center - one.center)
    return Moments(*map(operator.add, _about(center, one), _about(center, other)))._replace(center=center)


_ROWS = 10_007  # of a batch that only shapes are asked of: a prime, so that no other axis has its length


def mean(name: str, of_row: Callable[[Array, Array], Array], *, mode: Mode | None = None) -> Metric:
    """The weighted mean over rows of any per-row function `(outputs, targets) -> (B,)`.

    mode: "min" where a lower value is better, "max" where a higher one is, which early stopping and reduce-on-plateau
        take; None where neither is monitored.

    >>> mean("mae", absolute_error).name
    'mae'
    """
    return Metric(name, of_row, lambda total, weight: total / weight, mode)


# The root of the mean squared error.
rmse = Metric("rmse", squared_error, lambda total, weight: jnp.sqrt(total / weight), "min")
mae = mean("mae", absolute_error, mode="min")  # the mean absolute error


def r2(center: float = 0.0) -> Metric:
    """The coefficient of determination, 1 - residual / total sum of squares over all rows, averaged over the outputs.

    As in scikit-learn an output whose targets are all equal counts as 1 where every prediction is right, else as 0. The
    result does not depend on `center`, nor on the mean of the targets: what is summed is their distance from a number
    near them.

    >>> metrics, targets = [r2()], jnp.array([[1e5], [1e5 + 2]])
    >>> sums = measure(squared_error, targets + 0.5, targets, jnp.ones(2), metrics=metrics)
    >>> compute(sums, metrics)["r2"].item()
    0.75
    """

    def statistics(outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]) -> PyTree:
        outputs, targets = same_shape("r2", outputs, targets)
        return {"residual": (outputs - targets) ** 2, "targets": moments_of(targets - center)}

    def finish(total: PyTree, weight: Float[Array, ""]) -> Float[Array, ""]:
        residual, variation = total["residual"], total["targets"].variation()
        # Of no rows, or of a residual that is not finite, it is nan.
        constant = jnp.where(residual == 0, 1, residual * 0) + 0 / weight
        return jnp.mean(jnp.where(variation > 0, 1 - residual / jnp.where(variation > 0, variation, 1), constant))

    return Metric("r2", statistics, finish, "max")


def top_k(k: int) -> Metric:
    """The share of rows whose label is among the `k` largest of (B, C) outputs; `accuracy` is `k = 1`.

    Of equal outputs the one of the lower class counts as larger.

    >>> top_k(3).name
    'top3'
    """

    def statistics(outputs: Num[Array, "batch classes"], targets: Integer[Array, " batch"]) -> Float[Array, " batch"]:
        outputs, targets = as_labels(f"top_k({k})", outputs, targets)
        own = jnp.take_along_axis(outputs, targets[:, None], axis=1)
        earlier = jnp.arange(outputs.shape[1], dtype=jnp.int32)[None, :] < targets[:, None]
        ahead = (outputs > own) | ((outputs == own) & earlier)
        known = (targets >= 0) & (targets < outputs.shape[1])
        return ((ahead.sum(1) < k) & known & jnp.isfinite(own[:, 0])).astype(jnp.float32)

    return Metric("accuracy" if k == 1 else f"top{k}", statistics, lambda total, weight: total / weight, "max")


accuracy = top_k(1)  # the share of rows whose label has the largest output


def measure(
    loss: Callable[[Array, Array], Array],
    outputs: Shaped[Array, "batch ..."],
    targets: Shaped[Array, "batch ..."],
    sample_weight: Float[Array, " batch"],
    *,
    metrics: Sequence[Metric] = (),
    prepared: bool = False,
) -> MetricSums:
    """Return the weighted sums of the loss and of every metric's statistics over the examples of a batch.

    weights: (B,), the sample weights. What an example of weight 0 gives is left out, whatever it is; so is padding,
    whose weight is 0. prepared: whether it is known to be finite, so that a product with 0 leaves it out. Raises
    InputError for a loss that does not give one value for each example, and for statistics without an entry for each.

    >>> sums = measure(squared_error, jnp.ones((2, 1)), jnp.zeros((2, 1)), jnp.array([1.0, 0.0]))
    >>> float(sums.weight), float(sums.totals["loss"])
    (1.0, 1.0)
    """
    _check_shapes(loss, metrics, outputs, targets, sample_weight)
    rows: dict[str, PyTree] = {LOSS: loss(outputs, targets)}
    rows |= {metric.name: metric.per_example(outputs, targets) for metric in metrics}
    if precision(rows[LOSS].dtype) == jnp.float64:
        # Left in float32, their sum would be rounded to it.
        sample_weight = sample_weight.astype(jnp.float64)
    totals = jax.tree.map(lambda values: _total(values, sample_weight, prepared), rows, is_leaf=_is_moments)
    return MetricSums(totals, jnp.sum(sample_weight))


def _total(values: Any, sample_weight: Float[Array, " batch"], prepared: bool = True) -> Any:
    if not _is_moments(values):
        sample_weight = sample_weight.reshape(-1, *[1] * (values.ndim - 1))
        weighted = values * sample_weight
        # Chosen, because 0 times nan is nan.
        return jnp.sum(weighted if prepared else jnp.where(sample_weight > 0, weighted, 0), axis=0)
    counted = (sample_weight > 0).reshape(-1, *[1] * (values.center.ndim - 1))
    weight = jnp.sum(sample_weight * values.weight)
    lowest = jnp.min(jnp.where(counted, values.center, jnp.inf), axis=0)
    lowest = jnp.where(weight > 0, lowest, 0).astype(values.center.dtype)
    above = _total(jnp.where(counted, values.center - lowest[None], 0), sample_weight)
    # The lowest number first, so that the center of equal numbers is that number.
    center = lowest + above / jnp.where(weight > 0, weight, 1)
    rows = _about(center[None], values._replace(weight=values.weight.reshape(counted.shape)))
    first, second = (_total(jnp.where(counted, each, 0), sample_weight) for each in (rows.first, rows.second))
    return Moments(weight, center, first, second)


def _check_shapes(
    loss: Callable[..., PyTree], metrics: Sequence[Metric], outputs: Array, targets: Array, sample_weight: Array
) -> None:
    """Raises InputError unless the loss gives (B,), statistics give (B, ...), and metrics give scalars."""
    functions = [("the loss", loss)]
    functions += [(f'the metric "{metric.name}"', metric.per_example) for metric in metrics]
    for name, function in functions:
        count, given = _shapes_of(function, outputs, targets)
        shapes = [leaf.shape for leaf in jax.tree.leaves(given)]
        if any(shape[:1] != (count,) for shape in shapes) or (name == "the loss" and shapes != [(count,)]):
            raise InputError(_shape_message(name, shapes, count))
        if name == "the loss" and (not hasattr(given, "dtype") or jnp.issubdtype(given.dtype, jnp.complexfloating)):
            kind = given.dtype if hasattr(given, "dtype") else f"a {type(given).__name__}"
            raise InputError(f"the loss must return one array of real numbers, shape (examples,), got {kind}.")
        if _crosses_examples(function, outputs, targets):
            raise InputError(
                f"{name} combines every output with the targets of all examples: outputs {_rows(outputs.shape)} and "
                f"targets {_rows(targets.shape)} broadcast to (examples, examples). Give both the same shape, as with "
                f"{'targets[:, None]' if targets.ndim < outputs.ndim else 'outputs[:, None]'} in the data."
            )
    for metric in metrics:
        _, given = _shapes_of(metric.per_example, outputs, targets)
        totals = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), given)
        figure = jax.eval_shape(metric.compute, totals, jax.ShapeDtypeStruct((), sample_weight.dtype))
        if getattr(figure, "shape", None) != ():
            raise InputError(
                f'the metric "{metric.name}" must give one number for a data set, got shape '
                f"{getattr(figure, 'shape', None)}. Return one value for each example, shape (examples,), from its "
                "function, as with .mean(1)."
            )


def _shapes_of(function: Callable[..., PyTree], outputs: Array, targets: Array) -> tuple[int, PyTree]:
    """The length of a batch, and the shapes that a function gives of it.

    Of a batch of an unusual length where the function takes one: by its own length alone, an axis of classes might be
    taken for that of the examples.
    """
    try:
        return _ROWS, jax.eval_shape(function, *_of_length(_ROWS, outputs, targets))
    except jax.errors.TracerArrayConversionError as error:
        called = getattr(function, "__name__", type(function).__name__)
        raise InputError(
            f"losses and metrics must compute with jax.numpy, and {called} asks for NumPy arrays, as NumPy and "
            "scikit-learn do. Write it with jnp, or use one of jaxdl.losses."
        ) from error
    except (TypeError, ValueError):
        return outputs.shape[0], jax.eval_shape(function, outputs, targets)


def _of_length(count: int, *arrays: Array) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((count, *array.shape[1:]), array.dtype) for array in arrays]


def _shape_message(name: str, shapes: list[tuple[int, ...]], count: int) -> str:
    given = ", ".join(_rows(shape, count) for shape in shapes) or "nothing"
    advice = "Take the mean over the other axes alone, as with .mean(1)."
    if () in shapes:
        advice = "It is already a mean or a sum over the examples: leave that out, so that jaxdl can weight them."
    return f"{name} must give one value for each example, shape (examples,), got {given}. {advice}"


def _rows(shape: tuple[int, ...], count: int | None = None) -> str:
    """A shape for people, with the axis of the examples by its name."""
    first = shape[:1] if count is None else (count,)
    sizes = ["examples" if (size,) == first else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _crosses_examples(function: Callable[..., PyTree], outputs: Array, targets: Array) -> bool:
    """Whether (B, 1) outputs meet (B,) targets, or the reverse, as (B, B).

    Elsewhere (B, B) may be meant: a contrastive loss compares all examples of a batch.
    """
    if outputs.ndim == targets.ndim or math.prod(outputs.shape) != math.prod(targets.shape):
        return False
    try:
        jaxpr = jax.make_jaxpr(function)(*_of_length(_ROWS, outputs, targets))
    except (TypeError, ValueError):
        return False
    return any(shape.count(_ROWS) > 1 for shape in _shapes_in(jaxpr.jaxpr))


def _shapes_in(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    for equation in jaxpr.eqns:
        yield from (tuple(variable.aval.shape) for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _shapes_in(inner)


def merge(one: MetricSums, other: MetricSums) -> MetricSums:
    """The sums of two disjoint sets of rows together, in the arrays of NumPy or of JAX that they are given in.

    >>> one = MetricSums({"loss": jnp.float32(1)}, jnp.float32(2))
    >>> float(merge(one, one).weight)
    4.0
    """
    return jax.tree.map(_merged, one, other, is_leaf=_is_moments)


def compute(sums: MetricSums, metrics: Sequence[Metric] = ()) -> dict[str, Array]:
    """Return `loss`, then each metric by its name, of all examples that were summed: scalars of the loss's dtype.

    >>> compute(MetricSums({"loss": 8.0, "rmse": 8.0}, 2.0), [rmse])["rmse"].item()
    2.0
    """
    values = {LOSS: sums.totals[LOSS] / sums.weight}
    return values | {m.name: m.compute(sums.totals[m.name], sums.weight) for m in metrics}


def right(
    outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]
) -> Float[Array, " batch *shape"]:
    """Whether each logit is on the side of its target, float 1 or 0; one that is no number never is."""
    outputs, targets = same_shape("right", outputs, targets)
    return jnp.where(targets > 0.5, outputs > 0, outputs <= 0).astype(outputs.dtype)


def _of_classes(outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]) -> PyTree:
    """For each row and class, no before yes: whether the row is of it, and whether it was found then."""
    correct = right(outputs, targets)
    yes = (targets > 0.5).astype(correct.dtype)
    of = jnp.stack([1 - yes, yes], -1)
    return {"of": of, "found": of * correct[..., None]}


def _mean_of_shares(total: PyTree, weight: Float[Array, ""]) -> Float[Array, ""]:
    there = (total["of"] > 0).astype(total["of"].dtype)
    shares = total["found"] / jnp.where(total["of"] > 0, total["of"], 1)
    return jnp.mean(jnp.sum(shares * there, -1) / jnp.sum(there, -1))


# The share of answers that are right.
binary_accuracy = mean(
    "accuracy", lambda outputs, targets: right(outputs, targets).reshape(len(targets), -1).mean(1), mode="max"
)
# The mean of two shares: of the rows that are yes, and of those that are no, that were found. Guessing cannot beat 0.5,
# however rare a class is. As in scikit-learn a class without rows is left out. Several outputs count the same.
balanced_accuracy = Metric("balanced_accuracy", _of_classes, _mean_of_shares, "max")

Points = Float64[np.ndarray, " points"]


class Curve(NamedTuple):
    """Points from the left to the right, and one figure for all of them."""

    x: Points  # (T + 1,)
    y: Points  # (T + 1,)
    thresholds: Points  # (T + 1,) falling; the first is infinity, which no score reaches
    area: float


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """The true positive rate against the false positive rate, from (0, 0) to (1, 1), and the area under straight lines.

    scores: (N,) or (N, 1), larger where positive is likelier; labels: 0 or 1. The area is the probability that a
    positive has a larger score than a negative, where ties count half. Source: Fawcett, Pattern Recognition Letters 27
    (2006). Raises InputError where a score is not finite, a label is neither 0 nor 1, or all labels are the same.

    >>> curve = roc_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    >>> curve.x.tolist(), curve.y.tolist(), curve.area
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0], 0.75)
    """
    thresholds, hits, alarms = _counts(scores, labels)
    x, y = alarms / alarms[-1], hits / hits[-1]
    return Curve(x, y, thresholds, float(np.trapezoid(y, x)))


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """The precision against the recall, and the average precision: the area under steps.

    No line between points is what thresholds in between would give. The first point, recall 0 with precision 1, stands
    for a threshold that no row reaches. Source: Davis and Goadrich, ICML (2006). Arguments and errors are those of
    `roc`.

    >>> curve = precision_recall_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    >>> curve.x.tolist(), curve.y.round(2).tolist(), round(curve.area, 4)
    ([0.0, 0.5, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.67, 0.5], 0.8333)
    """
    thresholds, hits, alarms = _counts(scores, labels)
    recall, called = hits / hits[-1], hits + alarms
    precision = np.r_[1.0, hits[1:] / called[1:]]
    return Curve(recall, precision, thresholds, float(np.sum(np.diff(recall) * precision[1:])))


def _counts(scores: ArrayLike, labels: ArrayLike) -> tuple[Points, Points, Points]:
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
