"""Metrics that are exact over a dataset however it is batched, and curves of binary classification."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jaxtyping import Float, Float64, Integer, Num, Shaped
from numpy.typing import ArrayLike

from jaxdl._checks import given_as, whole_number
from jaxdl._tree import subtree
from jaxdl._values import as_value
from jaxdl.data.arrays import precision as float_dtype
from jaxdl.errors import InputError
from jaxdl.losses import absolute_error, as_labels, same_shape, squared_error
from jaxdl.types import LOSS, Array, Metric, MetricSums, Mode, PyTree

__all__ = [
    "accuracy",
    "average_precision",
    "balanced_accuracy",
    "binary_accuracy",
    "compute",
    "exact_average_precision",
    "exact_roc_auc",
    "f1",
    "mae",
    "mean",
    "measure",
    "merge",
    "of_output",
    "precision",
    "precision_recall_curve",
    "r2",
    "recall",
    "rmse",
    "roc_auc",
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


@as_value
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


def _root_of_mean(total: Array, weight: Array) -> Array:
    return jnp.sqrt(total / weight)


@as_value
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
rmse = Metric("rmse", squared_error, _root_of_mean, "min")
mae = mean("mae", absolute_error, mode="min")  # the mean absolute error


@as_value
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


@as_value
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
    if float_dtype(values[LOSS].dtype) == jnp.float64:
        # Otherwise the sum of weights would be rounded to float32.
        sample_weight = sample_weight.astype(jnp.float64)
    totals = jax.tree.map(lambda leaf: _total(leaf, sample_weight, prepared), values, is_leaf=_is_moments)
    return MetricSums(totals, jnp.sum(sample_weight))


def _total(
    values: Shaped[Array, "batch ..."] | Moments, sample_weight: Float[Array, " batch"], prepared: bool = True
) -> Any:
    """Return the weighted sum of values (B, ...), or the Moments of all examples."""
    if not isinstance(values, Moments):
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


def _correct_fraction(outputs: Array, targets: Array) -> Array:
    return _correct("binary_accuracy", outputs, targets).reshape(len(targets), -1).mean(1)


# The fraction of 0-or-1 targets whose logit has the right sign.
binary_accuracy = mean("accuracy", _correct_fraction, mode="max")
# The mean recall of the two classes: a constant prediction gives 0.5, however rare a class is. As in scikit-learn a
# class without examples is left out. Several outputs count equally.
balanced_accuracy = Metric("balanced_accuracy", _count_classes, _mean_recall, "max")

Average = Literal["binary", "macro", "weighted"]  # scikit-learn's names of the means over classes


@as_value
def precision(average: Average = "binary") -> Metric:
    """Return a metric: of the examples that a class is predicted for, the fraction that belongs to the class.

    average: "binary" for targets 0 or 1: the precision of class 1. Outputs are logits, and a logit above 0 predicts 1.
        Targets have the shape of the outputs, and several outputs count equally; or two outputs (B, 2) have integer
        labels (B,).
        "macro" for integer labels (B,) under outputs (B, C): the mean over classes, without a class that no example
        belongs to and that is never predicted. The largest output predicts the class, the lower of equal ones.
        "weighted": the mean over classes, each weighted by its examples. The metric's name ends in the average:
        `precision_macro`.

    The value is that of scikit-learn over the whole dataset: 0 / 0 is 0, for a class that is never predicted. An output
    that is nan, a row of outputs without a finite maximum, and a label that is no class give nan.

    Raises InputError for another `average`; on use for outputs and targets of other shapes.

    >>> outputs, targets, metrics = jnp.array([2.0, 1.0, -1.0]), jnp.array([1.0, 0.0, 1.0]), [precision()]
    >>> compute(measure(squared_error, outputs, targets, jnp.ones(3), metrics=metrics), metrics)["precision"].item()
    0.5
    """
    _check_average("precision", average)
    return _of_counts("precision", average)


@as_value
def recall(average: Average = "binary") -> Metric:
    """Return a metric: of the examples that belong to a class, the fraction that the class is predicted for.

    Arguments, values without examples, nan and errors are those of `precision`.

    >>> outputs, targets, metrics = jnp.array([2.0, 1.0, 1.0]), jnp.array([1.0, 0.0, 1.0]), [recall()]
    >>> compute(measure(squared_error, outputs, targets, jnp.ones(3), metrics=metrics), metrics)["recall"].item()
    1.0
    """
    _check_average("recall", average)
    return _of_counts("recall", average)


@as_value
def f1(average: Average = "binary") -> Metric:
    """Return a metric: the harmonic mean of precision and recall of a class, 2 TP / (2 TP + FP + FN).

    Arguments, values without examples, nan and errors are those of `precision`. The macro average is the mean of the F1
    of the classes, as in scikit-learn.

    >>> outputs, targets, metrics = jnp.array([2.0, 1.0, -1.0]), jnp.array([1.0, 0.0, 1.0]), [f1()]
    >>> compute(measure(squared_error, outputs, targets, jnp.ones(3), metrics=metrics), metrics)["f1"].item()
    0.5
    """
    _check_average("f1", average)
    return _of_counts("f1", average)


@as_value
def roc_auc(average: Average = "binary", *, bins: int = 1024) -> Metric:
    """Return a metric: the probability that a positive has a larger score than a negative, ties counting half.

    This is the area under the ROC curve of scores that are rounded to `bins`, which needs no memory of all scores. The
    scores of a bin are tied, so the value differs from the exact one by at most half the sum over bins of p * n, the
    fractions of the positives and of the negatives in the bin: 0.0005 to 0.004 for logits with a standard deviation of
    0.3 to 20, where the difference is 1e-5 to 2e-4. Bins are narrow around 0, and wide far from 0: scores that are no
    logits, such as those around 1e5, would share a bin. `exact_roc_auc` returns the exact value of arrays.

    average: "binary" for targets 0 or 1: scores are the logits, in the shape of the targets, and several outputs count
        equally; or the difference of two outputs (B, 2) with integer labels (B,).
        "macro" for integer labels (B,) under logits (B, C): the mean over classes of each against all others, by its
        probability. "weighted": the mean over classes, each weighted by its examples. The metric's name ends in the
        average: `roc_auc_macro`.
    bins: more are more exact. The state takes 8 * bins bytes for each class; a batch takes B times as much memory on
        a CPU, so use fewer for hundreds of classes.

    A class, or one of several outputs, is left out if all or no examples belong to it: nan without another one. An
    output that is nan, a row of logits without a finite maximum, and a label that is no class give nan. Raises
    InputError for another `average` and fewer than 2 bins; on use for outputs and targets of other shapes.

    >>> outputs, targets, metrics = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0.0, 0.0, 1.0, 1.0]), [roc_auc()]
    >>> compute(measure(squared_error, outputs, targets, jnp.ones(4), metrics=metrics), metrics)["roc_auc"].item()
    0.75
    """
    _check_average("roc_auc", average)
    return _of_histogram("roc_auc", average, whole_number("bins", bins, 2))


@as_value
def average_precision(average: Average = "binary", *, bins: int = 1024) -> Metric:
    """Return a metric: the mean precision at the thresholds of the positives, of scores that are rounded to `bins`.

    The scores of a bin are tied. With P positives and N negatives above a bin of p positives and n negatives, the
    precision at a positive of the bin is from P / (P + N + n) to (P + p) / (P + N + p), and the metric takes
    (P + p) / (P + N + p + n): the mean distance to the farther end, over positives, bounds the error. For logits with a
    standard deviation of 0.3 to 20 the value is 0.0005 to 0.0035 off.
    `exact_average_precision` returns the exact value of arrays.

    Arguments, classes that are left out, nan and errors are those of `roc_auc`.

    >>> outputs, targets, metrics = jnp.array([0.1, 0.8]), jnp.array([0.0, 1.0]), [average_precision()]
    >>> sums = measure(squared_error, outputs, targets, jnp.ones(2), metrics=metrics)
    >>> compute(sums, metrics)["average_precision"].item()
    1.0
    """
    _check_average("average_precision", average)
    return _of_histogram("average_precision", average, whole_number("bins", bins, 2))


def _check_average(name: str, average: object) -> None:
    if not isinstance(average, str) or average not in get_args(Average):
        advice = 'Use "binary" for targets 0 or 1, "macro" for labels of classes.'
        if average == "micro" and name in ("precision", "recall", "f1"):
            advice = "Over classes the micro average is the accuracy: use metrics.accuracy."
        raise InputError(f'{name} takes average="binary", "macro" or "weighted", got {given_as(average)}. {advice}')


def _of_counts(name: str, average: Average) -> Metric:
    """Return the metric of the numbers of correct, predicted and actual members of each class."""

    def count(outputs: Num[Array, "batch ..."], targets: Shaped[Array, "batch ..."]) -> PyTree:
        if average == "binary":
            scores, actual = _binary_scores(name, outputs, targets)
            predicted = (scores > 0).astype(scores.dtype)
        else:
            scores, actual = _class_logits(name, outputs, targets)
            predicted = jax.nn.one_hot(scores.argmax(1), scores.shape[1], dtype=scores.dtype)
        return _nan_where_nan(scores, {"correct": predicted * actual, "predicted": predicted, "actual": actual})

    def score(total: PyTree, weight: Float[Array, ""]) -> Float[Array, ""]:
        correct, predicted, actual = total["correct"], total["predicted"], total["actual"]
        if name == "precision":
            values = _ratio(correct, predicted)
        elif name == "recall":
            values = _ratio(correct, actual)
        else:
            values = _ratio(2 * correct, predicted + actual)
        counted = {"binary": jnp.ones_like(actual), "macro": predicted + actual > 0, "weighted": actual}[average]
        return _class_mean(values, counted) + 0 / weight  # nan without examples

    return Metric(name if average == "binary" else f"{name}_{average}", count, score, "max")


def _of_histogram(name: str, average: Average, bins: int) -> Metric:
    """Return the metric of the numbers of positives and negatives of each class in bins of scores."""

    def count(outputs: Num[Array, "batch ..."], targets: Shaped[Array, "batch ..."]) -> PyTree:
        if average == "binary":
            scores, yes = _binary_scores(name, outputs, targets)
        else:
            logits, yes = _class_logits(name, outputs, targets)
            scores = _log_odds(logits)
        member = jax.nn.one_hot(_bin(scores, bins), bins, dtype=scores.dtype)
        return _nan_where_nan(
            scores, {"positives": member * yes[..., None], "negatives": member * (1 - yes)[..., None]}
        )

    def area(total: PyTree, weight: Float[Array, ""]) -> Float[Array, ""]:
        positives, negatives = total["positives"], total["negatives"]
        all_positives, all_negatives = positives.sum(-1, keepdims=True), negatives.sum(-1, keepdims=True)
        if name == "roc_auc":
            negatives_below = jnp.cumsum(negatives, -1) - negatives
            value = _ratio(negatives_below + negatives / 2, all_negatives)
        else:
            # At the lowest score of the bin.
            positives_from, negatives_from = (
                jnp.cumsum(each[..., ::-1], -1)[..., ::-1] for each in (positives, negatives)
            )
            value = _ratio(positives_from, positives_from + negatives_from)
        areas = jnp.sum(_ratio(positives, all_positives) * value, -1)
        occurs = (all_positives > 0) & (all_negatives > 0)
        class_weight = jnp.where(occurs, all_positives if average == "weighted" else 1, 0)[..., 0]
        return _class_mean(areas, class_weight)

    return Metric(name if average == "binary" else f"{name}_{average}", count, area, "max")


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Return the quotient, 0 for 0 / 0."""
    return numerator / jnp.where(denominator == 0, 1, denominator)


# With `where`, because XLA computes the product with a comparison as a selection: nan times False is 0.
def _nan_where_nan(scores: Float[Array, " batch *shape"], counts: PyTree) -> PyTree:
    """Return counts (B, *shape, ...) that are nan where scores (B, *shape) are."""

    def fill(leaf: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        return jnp.where(jnp.isnan(scores).reshape(*scores.shape, *[1] * (leaf.ndim - scores.ndim)), jnp.nan, leaf)

    return jax.tree.map(fill, counts)


def _class_mean(values: Float[Array, " *shape"], class_weight: Shaped[Array, " *shape"]) -> Float[Array, ""]:
    """Return the weighted mean, nan for weights that are all 0. A value that is nan counts even with weight 0."""
    class_weight = jnp.where(jnp.isnan(values), 1, class_weight.astype(values.dtype))
    return jnp.sum(values * class_weight) / jnp.sum(class_weight)


def _binary_scores(
    name: str, outputs: Num[Array, "batch ..."], targets: Shaped[Array, "batch ..."]
) -> tuple[Float[Array, " batch *shape"], Float[Array, " batch *shape"]]:
    """Return logits, nan where output or target is nan, and targets as 0 or 1: (B, *shape)."""
    if _are_labels(outputs, targets):
        if outputs.shape[1] > 2:
            raise InputError(
                f"{name} is of two classes, got outputs {outputs.shape} of {outputs.shape[1]} classes. Use "
                f'metrics.{name}("macro") for the mean over classes.'
            )
        logits, yes = _class_logits(name, outputs, targets)
        return logits[:, 1] - logits[:, 0], yes[:, 1]
    outputs, targets = same_shape(name, outputs, targets)
    return jnp.where(jnp.isnan(targets), jnp.nan, outputs), (targets > 0.5).astype(outputs.dtype)


def _are_labels(outputs: Any, targets: Any) -> bool:
    """Return whether targets are integers (B,) under outputs (B, C) of at least two classes."""
    is_integer = bool(jnp.issubdtype(targets.dtype, jnp.integer))
    return outputs.ndim == 2 and outputs.shape[1] > 1 and targets.ndim == 1 and is_integer


def _class_logits(
    name: str, outputs: Num[Array, "batch classes"], targets: Integer[Array, " batch"]
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"]]:
    """Return logits and one-hot labels (B, C). Logits are nan for a label that is no class, or a maximum not finite."""
    _check_class_outputs(name, outputs)
    outputs, targets = as_labels(name, outputs, targets)
    valid = (targets >= 0) & (targets < outputs.shape[1]) & jnp.isfinite(outputs.max(1))
    labels = jax.nn.one_hot(targets, outputs.shape[1], dtype=outputs.dtype)
    return jnp.where(valid[:, None], outputs, jnp.nan), labels


def _check_class_outputs(name: str, outputs: Any) -> None:
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise InputError(
            f"the mean over classes of {name} needs outputs (rows, classes) of at least two classes, got "
            f'{outputs.shape}. Use average="binary" for targets 0 or 1.'
        )


def _log_odds(logits: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
    """Return log(p / (1 - p)) of the probability p of each class, precise for p near 0 and near 1."""
    is_top = jax.nn.one_hot(logits.argmax(1), logits.shape[1], dtype=bool)
    rest = jax.nn.logsumexp(jnp.where(is_top, -jnp.inf, logits), axis=1, keepdims=True)  # without the likeliest class
    log_total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    other_probability = jnp.where(is_top, 0, jnp.exp(logits - log_total))  # at most 0.5
    return logits - jnp.where(is_top, rest, log_total + jnp.log1p(-other_probability))


def _bin(scores: Float[Array, " *shape"], bins: int) -> Integer[Array, " *shape"]:
    """Return the bin of each score, from 0 to bins - 1: a larger score has no lower bin, up to infinity."""
    # A sigmoid would give one bin to all scores below log(1 / bins), where rare classes have theirs.
    size = 1 - 2 / (2 + jnp.abs(scores))
    place = jnp.floor((jnp.where(scores < 0, -size, size) + 1) * (bins / 2))
    return jnp.clip(jnp.nan_to_num(place), 0, bins - 1).astype(jnp.int32)


Points = Float64[np.ndarray, " points"]


class Curve(NamedTuple):
    """The points of a curve from left to right, and its area."""

    x: Points  # (T + 1,)
    y: Points  # (T + 1,)
    thresholds: Points  # (T + 1,) falling, from infinity, which no score reaches
    area: float


def roc_curve(scores: ArrayLike, labels: ArrayLike, sample_weight: ArrayLike | None = None) -> Curve:
    """Return the true positive rate `y` against the false positive rate `x` at falling `thresholds`, and the `area`.

    The area under straight lines is the probability that a positive has a larger score than a negative; ties count
    half.

    scores: (N,) or (N, 1), larger for likelier positives.
    labels: (N,) or (N, 1), 0 or 1.
    sample_weight: (N,), at least 0; None for equal weights. Examples of weight 0 do not count, even with a nan score.

    Raises InputError for a score that is not finite, a label that is not 0 or 1, labels of one class, and weights below
    0 or not finite. Source: Fawcett, Pattern Recognition Letters 27 (2006).

    >>> curve = roc_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    >>> curve.x.tolist(), curve.y.tolist(), curve.area
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0], 0.75)
    """
    thresholds, true_positives, false_positives = _count_positives(scores, labels, sample_weight)
    x, y = false_positives / false_positives[-1], true_positives / true_positives[-1]
    return Curve(x, y, thresholds, float(np.trapezoid(y, x)))


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike, sample_weight: ArrayLike | None = None) -> Curve:
    """Return the precision `y` against the recall `x` at falling `thresholds`; `area` is the average precision.

    The area is one of steps, because precision is not linear between two thresholds. The first point, recall 0 and
    precision 1, belongs to a threshold that no score reaches. Arguments and errors are those of `roc_curve`. Source:
    Davis and Goadrich, ICML (2006).

    >>> curve = precision_recall_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    >>> curve.x.tolist(), curve.y.round(2).tolist(), round(curve.area, 4)
    ([0.0, 0.5, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.67, 0.5], 0.8333)
    """
    thresholds, true_positives, false_positives = _count_positives(scores, labels, sample_weight)
    recalls = true_positives / true_positives[-1]
    precisions = np.r_[1.0, true_positives[1:] / (true_positives + false_positives)[1:]]
    return Curve(recalls, precisions, thresholds, float(np.sum(np.diff(recalls) * precisions[1:])))


def exact_roc_auc(
    outputs: ArrayLike, targets: ArrayLike, sample_weight: ArrayLike | None = None, *, average: Average = "binary"
) -> float:
    """Return the area under the ROC curve of arrays, in float64 and without the bins of the metric `roc_auc`.

    outputs, targets, average: as for `roc_auc`. For average="macro" or "weighted" outputs are logits: give np.log(p)
        for probabilities p. For "binary" any scores do.
    sample_weight: (N,), at least 0; None for equal weights.

    A class, or one of several outputs, is left out if all or no examples belong to it. Raises InputError if none is
    left, for another `average`, other shapes, probabilities in the place of logits, a score that is not finite, and a
    target that is no class.

    >>> exact_roc_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    0.75
    >>> logits = [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 1.0]]
    >>> round(exact_roc_auc(logits, [0, 1, 2], average="macro"), 4)
    0.6667
    """
    return _exact_area(roc_curve, "exact_roc_auc", outputs, targets, sample_weight, average)


def exact_average_precision(
    outputs: ArrayLike, targets: ArrayLike, sample_weight: ArrayLike | None = None, *, average: Average = "binary"
) -> float:
    """Return the average precision of arrays, in float64 and without the bins of the metric `average_precision`.

    Arguments and errors are those of `exact_roc_auc`. This is the `area` of `precision_recall_curve`.

    >>> round(exact_average_precision([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]), 4)
    0.8333
    """
    return _exact_area(precision_recall_curve, "exact_average_precision", outputs, targets, sample_weight, average)


def _exact_area(
    curve: Callable[..., Curve],
    name: str,
    outputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None,
    average: Average,
) -> float:
    """Return the mean over classes of the area under a curve."""
    _check_average(name, average)
    values, labels = np.asarray(outputs), np.asarray(targets)
    if values.shape[:1] != labels.shape[:1] or labels.ndim == 0:
        raise InputError(f"{name} needs a target for each row, got outputs {values.shape} and targets {labels.shape}.")
    weights = _as_weights(sample_weight, len(labels))
    values, labels, weights = values[weights > 0], labels[weights > 0], weights[weights > 0]
    if average != "binary" or _are_labels(values, labels):
        scores, yes = _exact_class_scores(name, values, labels, average)
    else:
        scores, yes = (each.reshape(len(each), math.prod(each.shape[1:])) for each in (values, labels))
    if scores.shape != yes.shape:
        raise InputError(
            f"{name} needs a target for each output, got outputs {values.shape} and targets {labels.shape}. For "
            'several classes use integer labels (rows,) and average="macro".'
        )
    if scores.shape[1] == 1:
        return curve(scores, yes, weights).area
    occurs = [len(np.unique(column)) > 1 for column in yes.T]
    if not any(occurs):
        raise InputError(f"{name} needs examples of at least two classes, got {len(yes)} of one. Use more examples.")
    areas = [curve(scores[:, column], yes[:, column], weights).area for column in np.flatnonzero(occurs)]
    class_weight = weights @ yes[:, occurs] if average == "weighted" else None
    return float(np.average(areas, weights=class_weight))


def _exact_class_scores(name: str, outputs: Any, labels: Any, average: Average) -> tuple[Any, Any]:
    """Return the log odds and the one-hot labels (N, C), or (N, 1) of class 1 for average="binary"."""
    _check_class_outputs(name, outputs)
    as_labels(name, jnp.asarray(outputs), jnp.asarray(labels))
    classes = outputs.shape[1]
    logits = outputs.astype(np.float64)
    if average == "binary" and classes > 2:
        raise InputError(f'{name} is of two classes, got outputs {outputs.shape}. Use average="macro".')
    if not np.isfinite(logits).all():
        raise InputError(f"logits must be finite, got {logits[~np.isfinite(logits)][0]}. Leave such examples out.")
    unknown = (labels < 0) | (labels >= classes)
    if unknown.any():
        raise InputError(f"labels must be from 0 to {classes - 1}, got {labels[unknown][0]}.")
    if average == "binary":
        return logits[:, 1:] - logits[:, :1], (labels == 1)[:, None]
    if len(logits) and (logits >= 0).all() and np.allclose(logits.sum(1), 1, atol=1e-4):
        raise InputError(f"{name} takes logits, got probabilities. Use np.log(outputs).")
    rest = [np.logaddexp.reduce(np.delete(logits, column, axis=1), axis=1) for column in range(classes)]
    return logits - np.stack(rest, 1), labels[:, None] == np.arange(classes)


def _as_weights(sample_weight: ArrayLike | None, count: int) -> Any:
    """Return weights (N,) in float64, or raise InputError."""
    weights = np.ones(count) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if weights.shape != (count,):
        raise InputError(f"sample_weight needs shape ({count},), a weight for each example, got {weights.shape}.")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise InputError(f"sample_weight must be finite and at least 0, got {wrong:g}.")
    return weights


def _count_positives(
    scores: ArrayLike, labels: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Points, Points, Points]:
    """Return thresholds (T + 1,), and the weights of true and of false positives at each."""
    values, yes = np.asarray(scores, np.float64).ravel(), np.asarray(labels, np.float64).ravel()
    if values.shape != yes.shape:
        raise InputError(f"a curve needs a score for each label, got {len(values)} scores and {len(yes)} labels.")
    weights = _as_weights(sample_weight, len(yes))
    values, yes, weights = values[weights > 0], yes[weights > 0], weights[weights > 0]
    if not np.isfinite(values).all():
        raise InputError(f"scores must be finite, got {values[~np.isfinite(values)][0]}. Leave such examples out.")
    if not np.isin(yes, (0, 1)).all():
        raise InputError(f"labels must be 0 or 1, got {yes[~np.isin(yes, (0, 1))][0]:g}.")
    if len(np.unique(yes)) < 2:
        kind = f"only {yes[0]:g}" if len(yes) else "no rows"
        raise InputError(f"a curve needs labels of both kinds, 0 and 1, got {kind}. Use more examples.")
    order = np.argsort(-values, kind="stable")
    values, yes, weights = values[order], yes[order], weights[order]
    last = np.r_[np.flatnonzero(np.diff(values)), len(values) - 1]  # of the examples with the same score
    positives, negatives = np.cumsum(weights * yes)[last], np.cumsum(weights * (1 - yes))[last]
    return np.r_[np.inf, values[last]], np.r_[0.0, positives], np.r_[0.0, negatives]
