"""Metrics that are exact over a dataset however it is batched, and curves of binary classification."""

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

from jaxdl._tree import subtree
from jaxdl.data.arrays import precision
from jaxdl.errors import InputError
from jaxdl.losses import absolute_error, as_labels, same_shape, squared_error
from jaxdl.types import LOSS, Array, Metric, MetricSums, Mode, PyTree

__all__ = [
    "accuracy",
    "balanced_accuracy",
    "binary_accuracy",
    "compute",
    "mae",
    "mean",
    "measure",
    "merge",
    "of_output",
    "precision_recall_curve",
    "r2",
    "rmse",
    "roc_curve",
    "top_k",
]


def __dir__() -> list[str]:
    return __all__


class Moments(NamedTuple):
    """The first two moments of numbers about a center near them, which are precise in float32 for a large mean.

    `Metric.per_example` returns the Moments of each example; `measure` and `merge` combine them.
    """

    weight: Any  # scalar, the sum of weights; (B,) for single examples
    center: Any  # (...), any number near the others
    first: Any  # (...), the weighted sum of (number - center)
    second: Any  # (...), the weighted sum of (number - center)**2

    def variation(self) -> Any:
        """Return the weighted sum of squared differences from the mean, exactly 0 for equal numbers."""
        return self.second - self.first * (self.first / self.weight)


def _is_moments(leaf: object) -> bool:
    return isinstance(leaf, Moments)


def _move_center(moments: Moments, center: Any) -> Moments:
    shift, weight = moments.center - center, moments.weight
    first = moments.first + weight * shift
    return Moments(weight, center, first, moments.second + shift * (moments.first + first))


def _merge_leaf(one: Any, other: Any) -> Any:
    if not _is_moments(one):
        return one + other
    # The center of an empty set means nothing. Without `where`, so that NumPy arrays stay NumPy arrays.
    empty = (one.weight == 0).astype(one.center.dtype)
    center = one.center + empty * (other.center - one.center)
    merged = map(operator.add, _move_center(one, center), _move_center(other, center))
    return Moments(*merged)._replace(center=center)


_ROWS = 10_007  # length of a batch of which only shapes are computed: a prime, unlike the length of any other axis


def mean(name: str, of_row: Callable[[Array, Array], Array], *, mode: Mode | None = None) -> Metric:
    """Return a metric: the weighted mean over examples of a function `(outputs, targets) -> (B,)`.

    mode: "min" if a lower value is better, "max" if a higher one is; early stopping and reduce-on-plateau need it to
        monitor the metric.

    >>> bias = mean("bias", lambda outputs, targets: (outputs - targets)[:, 0])
    >>> sums = measure(squared_error, jnp.array([[1.0], [4.0]]), jnp.zeros((2, 1)), jnp.ones(2), metrics=[bias])
    >>> compute(sums, [bias])["bias"].item()
    2.5
    """
    return Metric(name, of_row, lambda total, weight: total / weight, mode)


def of_output(path: Any, metric: Metric) -> Metric:
    """Return a metric of one of several outputs and its targets, with the name of the output in front of its own.

    path: a key, a field or an index of the outputs and of the targets, or a tuple of these for a nested one.

    >>> outputs, targets = {"a": jnp.array([[1.0]]), "b": jnp.array([[9.0]])}, {"a": jnp.array([[3.0]])}
    >>> metric = of_output("a", mae)
    >>> metric.name, metric.per_example(outputs, targets).tolist()
    ('a_mae', [2.0])
    """
    keys = path if isinstance(path, tuple) else (path,)

    def per_example(outputs: PyTree, targets: PyTree) -> PyTree:
        return metric.per_example(subtree("outputs", outputs, keys), subtree("targets", targets, keys))

    return metric._replace(name="_".join([*map(str, keys), metric.name]), per_example=per_example)


# The root mean squared error.
rmse = Metric("rmse", squared_error, lambda total, weight: jnp.sqrt(total / weight), "min")
mae = mean("mae", absolute_error, mode="min")  # the mean absolute error


def r2(center: float = 0.0) -> Metric:
    """Return a metric: 1 - residual / total sum of squares over all examples, as a mean over outputs.

    As in scikit-learn an output with equal targets gives 1 for exact predictions, else 0. The sums are precise for
    targets with a large mean, whatever `center` is.

    >>> metrics, targets = [r2()], jnp.array([[1e5], [1e5 + 2]])
    >>> sums = measure(squared_error, targets + 0.5, targets, jnp.ones(2), metrics=metrics)
    >>> compute(sums, metrics)["r2"].item()
    0.75
    """

    def per_example(outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]) -> PyTree:
        outputs, targets = same_shape("r2", outputs, targets)
        values = targets - center
        zero = jnp.zeros_like(values)
        moments = Moments(jnp.ones(values.shape[:1], values.dtype), values, zero, zero)
        return {"residual": (outputs - targets) ** 2, "targets": moments}

    def r_squared(total: PyTree, weight: Float[Array, ""]) -> Float[Array, ""]:
        residual, variation = total["residual"], total["targets"].variation()
        # nan without examples, and for a residual that is not finite.
        constant = jnp.where(residual == 0, 1, residual * 0) + 0 / weight
        return jnp.mean(jnp.where(variation > 0, 1 - residual / jnp.where(variation > 0, variation, 1), constant))

    return Metric("r2", per_example, r_squared, "max")


def top_k(k: int) -> Metric:
    """Return a metric: the fraction of examples whose label is among the `k` largest of the outputs (B, C).

    Of equal outputs the lower class comes first.

    >>> from jaxdl.losses import softmax_cross_entropy
    >>> outputs, labels, top2 = jnp.array([[3.0, 2.0, 1.0]]), jnp.array([1]), top_k(2)
    >>> sums = measure(softmax_cross_entropy, outputs, labels, jnp.ones(1), metrics=[accuracy, top2])
    >>> [float(value) for name, value in compute(sums, [accuracy, top2]).items() if name != "loss"]
    [0.0, 1.0]
    """

    def is_in_top_k(outputs: Num[Array, "batch classes"], targets: Integer[Array, " batch"]) -> Float[Array, " batch"]:
        outputs, targets = as_labels(f"top_k({k})", outputs, targets)
        label_output = jnp.take_along_axis(outputs, targets[:, None], axis=1)
        lower_class = jnp.arange(outputs.shape[1], dtype=jnp.int32)[None, :] < targets[:, None]
        ahead = (outputs > label_output) | ((outputs == label_output) & lower_class)
        known = (targets >= 0) & (targets < outputs.shape[1])
        return ((ahead.sum(1) < k) & known & jnp.isfinite(label_output[:, 0])).astype(jnp.float32)

    return mean("accuracy" if k == 1 else f"top{k}", is_in_top_k, mode="max")


accuracy = top_k(1)  # the fraction of examples whose label has the largest output


def measure(
    loss: Callable[[Any, Any], Array],
    outputs: PyTree,
    targets: PyTree,
    sample_weight: Float[Array, " batch"],
    *,
    metrics: Sequence[Metric] = (),
    prepared: bool = False,
) -> MetricSums:
    """Return the weighted sums of the loss and of the metrics over the examples of a batch.

    outputs, targets: arrays (B, ...), or pytrees of such arrays.
    sample_weight: (B,). Examples of weight 0, such as padding, do not count, even if their values are nan.
    prepared: whether the values of examples of weight 0 are known to be finite, which saves a selection.

    Raises InputError for a loss that does not return one value for each example, and for a metric without a value for
    each example.

    >>> sums = measure(squared_error, jnp.ones((2, 1)), jnp.zeros((2, 1)), jnp.array([1.0, 0.0]))
    >>> float(sums.weight), float(sums.totals["loss"])
    (1.0, 1.0)
    """
    _check_shapes(loss, metrics, outputs, targets, sample_weight)
    values: dict[str, PyTree] = {LOSS: loss(outputs, targets)}
    values |= {metric.name: metric.per_example(outputs, targets) for metric in metrics}
    if precision(values[LOSS].dtype) == jnp.float64:
        # Otherwise the sum of weights would be rounded to float32.
        sample_weight = sample_weight.astype(jnp.float64)
    totals = jax.tree.map(lambda leaf: _total(leaf, sample_weight, prepared), values, is_leaf=_is_moments)
    return MetricSums(totals, jnp.sum(sample_weight))


def _total(values: Any, sample_weight: Float[Array, " batch"], prepared: bool = True) -> Any:
    """Return the weighted sum of values (B, ...), or the Moments of all examples."""
    if not _is_moments(values):
        sample_weight = sample_weight.reshape(-1, *[1] * (values.ndim - 1))
        weighted = values * sample_weight
        # With `where`, because 0 times nan is nan.
        return jnp.sum(weighted if prepared else jnp.where(sample_weight > 0, weighted, 0), axis=0)
    counted = (sample_weight > 0).reshape(-1, *[1] * (values.center.ndim - 1))
    weight = jnp.sum(sample_weight * values.weight)
    lowest = jnp.min(jnp.where(counted, values.center, jnp.inf), axis=0)
    lowest = jnp.where(weight > 0, lowest, 0).astype(values.center.dtype)
    above = _total(jnp.where(counted, values.center - lowest[None], 0), sample_weight)
    # From the lowest number, so that the center of equal numbers is exactly this number.
    center = lowest + above / jnp.where(weight > 0, weight, 1)
    moments = _move_center(values._replace(weight=values.weight.reshape(counted.shape)), center[None])
    first, second = (_total(jnp.where(counted, each, 0), sample_weight) for each in (moments.first, moments.second))
    return Moments(weight, center, first, second)


def _check_shapes(
    loss: Callable[..., Array], metrics: Sequence[Metric], outputs: PyTree, targets: PyTree, sample_weight: Array
) -> None:
    """Raise InputError unless the loss returns (B,), and metrics (B, ...) for examples and a scalar for a dataset."""
    functions: list[tuple[str, Callable[..., PyTree]]] = [("the loss", loss)]
    functions += [(f'the metric "{metric.name}"', metric.per_example) for metric in metrics]
    for name, function in functions:
        count, result = _result_shapes(function, outputs, targets)
        shapes = [leaf.shape for leaf in jax.tree.leaves(result)]
        if any(shape[:1] != (count,) for shape in shapes) or (name == "the loss" and shapes != [(count,)]):
            raise InputError(
                f"{name} must give one value for each example, shape (examples,), got "
                f"{', '.join(_format_shape(shape, count) for shape in shapes) or 'nothing'}. "
                + (
                    "It is already a mean or a sum over the examples: leave that out, so that jaxdl can weight them."
                    if () in shapes
                    else "Take the mean over the other axes alone, as with .mean(1)."
                )
            )
        if name == "the loss" and (not hasattr(result, "dtype") or jnp.issubdtype(result.dtype, jnp.complexfloating)):
            kind = result.dtype if hasattr(result, "dtype") else f"a {type(result).__name__}"
            raise InputError(f"the loss must return one array of real numbers, shape (examples,), got {kind}.")
        if _crosses_examples(function, outputs, targets):
            one, two = _unequal_pair(outputs, targets) or (outputs, targets)
            raise InputError(
                f"{name} combines every output with the targets of all examples: outputs "
                f"{_format_shape(one.shape)} and targets {_format_shape(two.shape)} broadcast to (examples, "
                "examples). Give both the same shape, as with "
                f"{'targets[:, None]' if two.ndim < one.ndim else 'outputs[:, None]'} in the data."
            )
    for metric in metrics:
        _, result = _result_shapes(metric.per_example, outputs, targets)
        totals = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), result)
        value = jax.eval_shape(metric.compute, totals, jax.ShapeDtypeStruct((), sample_weight.dtype))
        if getattr(value, "shape", None) != ():
            raise InputError(
                f'the metric "{metric.name}" must give one number for a data set, got shape '
                f"{getattr(value, 'shape', None)}. Return one value for each example, shape (examples,), from its "
                "function, as with .mean(1)."
            )


def _result_shapes(function: Callable[..., PyTree], outputs: PyTree, targets: PyTree) -> tuple[int, PyTree]:
    """Return the length of a batch, and the shapes of a function's result for it.

    The length is an unusual one if the function takes it, because the true length may equal that of another axis.
    """
    try:
        return _ROWS, jax.eval_shape(function, *_with_length(_ROWS, outputs, targets))
    except jax.errors.TracerArrayConversionError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise InputError(
            f"losses and metrics must compute with jax.numpy, and {name} asks for NumPy arrays, as NumPy and "
            "scikit-learn do. Write it with jnp, or use one of jaxdl.losses."
        ) from error
    except (TypeError, ValueError):
        return jax.tree.leaves(outputs)[0].shape[0], jax.eval_shape(function, outputs, targets)


def _with_length(count: int, *trees: PyTree) -> list[PyTree]:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), [*trees])


def _format_shape(shape: tuple[int, ...], count: int | None = None) -> str:
    """Return a shape as text, with "examples" for the length of a batch."""
    first = shape[:1] if count is None else (count,)
    sizes = ["examples" if (size,) == first else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _crosses_examples(function: Callable[..., PyTree], outputs: PyTree, targets: PyTree) -> bool:
    """Return whether (B, 1) outputs and (B,) targets, or the reverse, broadcast to (B, B) in a function.

    Other functions may want (B, B): a contrastive loss compares all examples of a batch.
    """
    if _unequal_pair(outputs, targets) is None:
        return False
    try:
        jaxpr = jax.make_jaxpr(function)(*_with_length(_ROWS, outputs, targets))
    except (TypeError, ValueError):
        return False
    return any(shape.count(_ROWS) > 1 for shape in _shapes_in(jaxpr.jaxpr))


def _unequal_pair(outputs: PyTree, targets: PyTree) -> tuple[Array, Array] | None:
    """Return the first output and its target that have as many numbers and another number of axes."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (outputs, targets)]
    if structures[0] != structures[1]:
        return None
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(targets), strict=True)
    unequal = (
        (one, two) for one, two in pairs if one.ndim != two.ndim and math.prod(one.shape) == math.prod(two.shape)
    )
    return next(unequal, None)


def _shapes_in(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    for equation in jaxpr.eqns:
        yield from (tuple(variable.aval.shape) for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _shapes_in(inner)


def merge(one: MetricSums, other: MetricSums) -> MetricSums:
    """Return the sums of two disjoint sets of examples together, as NumPy or JAX arrays like the arguments.

    >>> one = MetricSums({"loss": jnp.float32(1)}, jnp.float32(2))
    >>> float(merge(one, one).weight)
    4.0
    """
    return jax.tree.map(_merge_leaf, one, other, is_leaf=_is_moments)


def compute(sums: MetricSums, metrics: Sequence[Metric] = ()) -> dict[str, Array]:
    """Return the loss as `loss`, and each metric by its name: scalars of the loss's dtype.

    >>> compute(MetricSums({"loss": 8.0, "rmse": 8.0}, 2.0), [rmse])["rmse"].item()
    2.0
    """
    values = {LOSS: sums.totals[LOSS] / sums.weight}
    return values | {m.name: m.compute(sums.totals[m.name], sums.weight) for m in metrics}


def _correct(
    name: str, outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]
) -> Float[Array, " batch *shape"]:
    """Return 1.0 for a logit on the side of its target, 0.0 for another one and for nan."""
    outputs, targets = same_shape(name, outputs, targets)
    return jnp.where(targets > 0.5, outputs > 0, outputs <= 0).astype(outputs.dtype)


def _count_classes(outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]) -> PyTree:
    """Return for each example and class, no before yes, whether it is a member and whether it is a correct member."""
    correct = _correct("balanced_accuracy", outputs, targets)
    yes = (targets > 0.5).astype(correct.dtype)
    members = jnp.stack([1 - yes, yes], -1)
    return {"members": members, "correct": members * correct[..., None]}


def _mean_recall(total: PyTree, weight: Float[Array, ""]) -> Float[Array, ""]:
    members = total["members"]
    recall = total["correct"] / jnp.where(members > 0, members, 1)
    occurs = (members > 0).astype(members.dtype)
    return jnp.mean(jnp.sum(recall * occurs, -1) / jnp.sum(occurs, -1))


# The fraction of 0-or-1 targets whose logit has the right sign.
binary_accuracy = mean(
    "accuracy",
    lambda outputs, targets: _correct("binary_accuracy", outputs, targets).reshape(len(targets), -1).mean(1),
    mode="max",
)
# The mean recall of the two classes: a constant prediction gives 0.5, however rare a class is. As in scikit-learn a
# class without examples is left out. Several outputs count equally.
balanced_accuracy = Metric("balanced_accuracy", _count_classes, _mean_recall, "max")

Points = Float64[np.ndarray, " points"]


class Curve(NamedTuple):
    """The points of a curve from left to right, and its area."""

    x: Points  # (T + 1,)
    y: Points  # (T + 1,)
    thresholds: Points  # (T + 1,) falling, from infinity, which no score reaches
    area: float


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Return the true positive rate `y` against the false positive rate `x` at falling `thresholds`, and the `area`.

    The area under straight lines is the probability that a positive has a larger score than a negative; ties count
    half.

    scores: (N,) or (N, 1), larger for likelier positives.
    labels: (N,) or (N, 1), 0 or 1.

    Raises InputError for a score that is not finite, a label that is not 0 or 1, and for labels of one class. Source:
    Fawcett, Pattern Recognition Letters 27 (2006).

    >>> curve = roc_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    >>> curve.x.tolist(), curve.y.tolist(), curve.area
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0], 0.75)
    """
    thresholds, true_positives, false_positives = _count_positives(scores, labels)
    x, y = false_positives / false_positives[-1], true_positives / true_positives[-1]
    return Curve(x, y, thresholds, float(np.trapezoid(y, x)))


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Return the precision `y` against the recall `x` at falling `thresholds`; `area` is the average precision.

    The area is one of steps, because precision is not linear between two thresholds. The first point, recall 0 and
    precision 1, belongs to a threshold that no score reaches. Arguments and errors are those of `roc_curve`. Source:
    Davis and Goadrich, ICML (2006).

    >>> curve = precision_recall_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    >>> curve.x.tolist(), curve.y.round(2).tolist(), round(curve.area, 4)
    ([0.0, 0.5, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.67, 0.5], 0.8333)
    """
    thresholds, true_positives, false_positives = _count_positives(scores, labels)
    recall = true_positives / true_positives[-1]
    precision = np.r_[1.0, true_positives[1:] / (true_positives + false_positives)[1:]]
    return Curve(recall, precision, thresholds, float(np.sum(np.diff(recall) * precision[1:])))


def _count_positives(scores: ArrayLike, labels: ArrayLike) -> tuple[Points, Points, Points]:
    """Return thresholds (T + 1,), and the numbers of true and of false positives at each."""
    scores, labels = np.asarray(scores, np.float64).ravel(), np.asarray(labels, np.float64).ravel()
    if scores.shape != labels.shape:
        raise InputError(f"a curve needs a score for each label, got {len(scores)} scores and {len(labels)} labels.")
    if not np.isfinite(scores).all():
        raise InputError(f"scores must be finite, got {scores[~np.isfinite(scores)][0]}. Leave such examples out.")
    if not np.isin(labels, (0, 1)).all():
        raise InputError(f"labels must be 0 or 1, got {labels[~np.isin(labels, (0, 1))][0]:g}.")
    if len(np.unique(labels)) < 2:
        kind = f"only {labels[0]:g}" if len(labels) else "no rows"
        raise InputError(f"a curve needs labels of both kinds, 0 and 1, got {kind}. Use more examples.")
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    last = np.r_[np.flatnonzero(np.diff(scores)), len(scores) - 1]  # of the examples with the same score
    positives = np.cumsum(labels)[last]
    return np.r_[np.inf, scores[last]], np.r_[0.0, positives], np.r_[0.0, last + 1 - positives]
