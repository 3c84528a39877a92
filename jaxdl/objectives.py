"""Losses and metrics of single rows, and the algebra that reduces them exactly.

A figure of a data set is not the mean of its batches' figures. So everything here is measured a row, summed with the
rows' weights, added over batches, and finished once: batch sizes, padding and devices cannot change it.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxprs_in_params

from jaxdl.arguments import check_kinds
from jaxdl.data import precision
from jaxdl.errors import InputError
from jaxdl.programs import is_traced
from jaxdl.types import Array, Examples, Metric, Mode, Model, Objective, PyTree, Sums

LOSS = "loss"
RESERVED = {LOSS, "epoch", "learning_rate", "seconds"}


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


def moments_of(values: Array) -> Moments:
    """Return the moments of each row (B, ...), a set of one number.

    >>> moments_of(jnp.array([[7.0], [9.0]])).second.tolist()
    [[0.0], [0.0]]
    """
    zero = jnp.zeros_like(values)
    return Moments(jnp.ones(values.shape[:1], values.dtype), values, zero, zero)


def _is_moments(leaf: Any) -> bool:
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


def same_shape(name: str, outputs: Array, targets: Array) -> tuple[Array, Array]:
    """Outputs and targets in the `precision` of both, float32 or float64.

    Raises InputError, which calls who compares them `name`, if their shapes differ.

    >>> same_shape("mine", jnp.ones((2, 1)), jnp.zeros((2, 1), jnp.int32))[1].dtype
    dtype('float32')
    """
    if outputs.shape != targets.shape:
        raise InputError(
            f"{name} compares outputs with targets of the same shape, got outputs {outputs.shape} and targets "
            f"{targets.shape}. Give targets of shape {str(('rows', *outputs.shape[1:])).replace(chr(39), '')}."
        )
    dtype = precision(outputs.dtype, targets.dtype)
    return outputs.astype(dtype), targets.astype(dtype)


def _labels(name: str, outputs: Array, targets: Array) -> tuple[Array, Array]:
    if targets.shape != outputs.shape[:1] or outputs.ndim != 2 or not jnp.issubdtype(targets.dtype, jnp.integer):
        advice = "Encode each target as the number of its class, from 0."
        if targets.ndim == 2 and targets.shape[1] == 1:
            advice = "Use targets[:, 0] as whole numbers, from 0."
        elif targets.ndim == 2 and targets.shape == outputs.shape:
            advice = "Where the targets are one-hot, use targets.argmax(1)."
        elif targets.shape == outputs.shape[:1] and outputs.ndim == 2:
            advice = 'Use targets.astype("int32"), where they are the numbers of classes, from 0.'
        raise InputError(
            f"{name} needs outputs (rows, classes) and integer labels (rows,), got outputs {outputs.shape} and targets "
            f"{targets.shape} of {targets.dtype}. {advice}"
        )
    return outputs.astype(precision(outputs.dtype)), targets


def _mean_of_row(values: Array) -> Array:
    return values.reshape(values.shape[0], -1).mean(1)


def squared_error(outputs: Array, targets: Array) -> Array:
    """The squared error of each row, (B,), averaged over the row's outputs.

    >>> squared_error(jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [0.0]])).tolist()
    [1.0, 4.0]
    """
    outputs, targets = same_shape("squared_error", outputs, targets)
    return _mean_of_row((outputs - targets) ** 2)


def absolute_error(outputs: Array, targets: Array) -> Array:
    """The absolute error of each row, (B,), averaged over the row's outputs.

    >>> absolute_error(jnp.array([[1.0], [-2.0]]), jnp.array([[0.0], [0.0]])).tolist()
    [1.0, 2.0]
    """
    outputs, targets = same_shape("absolute_error", outputs, targets)
    return _mean_of_row(jnp.abs(outputs - targets))


def huber(delta: float = 1.0) -> Callable[[Array, Array], Array]:
    """Huber's loss of each row, (B,): half the squared error up to `delta`, linear beyond.

    Source: Huber, Annals of Mathematical Statistics 35 (1964).

    >>> huber(1.0)(jnp.array([[0.5], [3.0]]), jnp.array([[0.0], [0.0]])).tolist()
    [0.125, 2.5]
    """

    def loss(outputs: Array, targets: Array) -> Array:
        outputs, targets = same_shape("huber", outputs, targets)
        return _mean_of_row(optax.losses.huber_loss(outputs, targets, delta=delta))

    return loss


def softmax_cross_entropy(outputs: Array, targets: Array) -> Array:
    """The negative log-likelihood in nats of each row's label, (B,), from logits (B, C) and integer labels (B,).

    A label that is no class gives nan.

    >>> round(softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([1])).item(), 4)
    0.6931
    """
    outputs, targets = _labels("softmax_cross_entropy", outputs, targets)
    known = (targets >= 0) & (targets < outputs.shape[1])
    return jnp.where(known, optax.losses.softmax_cross_entropy_with_integer_labels(outputs, targets), jnp.nan)


def smoothed_cross_entropy(smoothing: float | Array) -> Callable[[Array, Array], Array]:
    """Softmax cross-entropy in nats, (B,), with the share `smoothing` of each label spread evenly over all classes.

    Source: Szegedy et al., CVPR (2016). A label that is no class gives nan. Raises InputError for a share that is not
    from 0 to below 1; a traced share is not checked.

    >>> round(smoothed_cross_entropy(0.1)(jnp.zeros((1, 2)), jnp.array([1])).item(), 4)
    0.6931
    """
    if not is_traced(smoothing) and not 0 <= smoothing < 1:
        raise InputError(f"smoothing must be from 0 to below 1, got {smoothing}. Use 0.1, say.")

    def smoothed(outputs: Array, targets: Array) -> Array:
        own = softmax_cross_entropy(outputs, targets)
        wide = outputs.astype(precision(outputs.dtype))
        return (1 - smoothing) * own - smoothing * jax.nn.log_softmax(wide).mean(1)

    smoothed.takes_labels = True  # type: ignore[attr-defined]
    return smoothed


def reads_labels(loss: Callable[[Array, Array], Array]) -> bool:
    """Return whether a loss is one of this module that takes targets as labels, of which some are no class.

    >>> reads_labels(softmax_cross_entropy), reads_labels(squared_error)
    (True, False)
    """
    return bool(getattr(loss, "takes_labels", loss is softmax_cross_entropy))


def sigmoid_cross_entropy(outputs: Array, targets: Array) -> Array:
    """The negative log-likelihood in nats of each row's 0-or-1 targets, (B,), from logits of the same shape.

    Targets may be probabilities too; a target outside of 0 to 1 gives nan.

    >>> round(sigmoid_cross_entropy(jnp.zeros((1, 1)), jnp.array([[1.0]])).item(), 4)
    0.6931
    """
    outputs, targets = same_shape("sigmoid_cross_entropy", outputs, targets)
    likely = (targets >= -ROUNDING) & (targets <= 1 + ROUNDING)
    return _mean_of_row(jnp.where(likely, optax.losses.sigmoid_binary_cross_entropy(outputs, targets), jnp.nan))


ROUNDING = 1e-6  # by which a probability may miss 0 and 1


def check_targets(loss: Callable[[Array, Array], Array], rows_of: Examples, name: str) -> None:
    """Raise InputError, which calls the rows `name`, where a target of weight above 0 is none that the loss can take.

    Sigmoid cross-entropy takes numbers from 0 to 1, the softmax losses labels from 0. Rows that are traced, or that
    stand on the devices of other processes, are not checked: their loss is nan.

    >>> rows = Examples(np.ones((2, 1)), np.array([[0.0], [-1.0]]), np.ones(2))
    >>> check_targets(sigmoid_cross_entropy, rows, "train")
    Traceback (most recent call last):
    jaxdl.errors.InputError: sigmoid_cross_entropy needs targets from 0 to 1, got -1.0 in row 1 of train. Encode no as \
0 and yes as 1: targets == targets.max() turns labels such as -1 and 1 into them.
    """
    binary, labels = loss is sigmoid_cross_entropy, reads_labels(loss)
    given = rows_of.targets, rows_of.weights
    if not (binary or labels) or any(map(is_traced, given)):
        return
    if any(isinstance(array, jax.Array) and not array.is_fully_addressable for array in given):
        return
    targets, weights = map(np.asarray, given)
    if targets.shape[:1] != weights.shape or targets.dtype.kind not in "fiub":
        return  # The loss itself refuses them.
    wrong = (targets < -ROUNDING) | (targets > 1 + ROUNDING) if binary else targets < 0
    wrong &= (weights > 0).reshape(-1, *[1] * (targets.ndim - 1))
    for place in np.argwhere(wrong)[:1]:
        got = f"got {targets[tuple(place)]} in row {place[0]} of {name}"
        if binary:
            raise InputError(
                f"sigmoid_cross_entropy needs targets from 0 to 1, {got}. Encode no as 0 and yes as 1: "
                "targets == targets.max() turns labels such as -1 and 1 into them."
            )
        raise InputError(
            f"{getattr(loss, '__name__', 'the loss')} needs labels that count classes from 0, {got}. Encode each target"
            " as the number of its class, or give rows without a label the weight 0."
        )


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

    >>> objective, targets = Objective(squared_error, (r2(),)), jnp.array([[1e5], [1e5 + 2]])
    >>> finish(objective, measure(objective, targets + 0.5, targets, jnp.ones(2)))["r2"].item()
    0.75
    """

    def statistics(outputs: Array, targets: Array) -> PyTree:
        outputs, targets = same_shape("r2", outputs, targets)
        return {"residual": (outputs - targets) ** 2, "targets": moments_of(targets - center)}

    def finish(total: PyTree, weight: Array) -> Array:
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

    def statistics(outputs: Array, targets: Array) -> Array:
        outputs, targets = _labels(f"top_k({k})", outputs, targets)
        own = jnp.take_along_axis(outputs, targets[:, None], axis=1)
        earlier = jnp.arange(outputs.shape[1], dtype=jnp.int32)[None, :] < targets[:, None]
        ahead = (outputs > own) | ((outputs == own) & earlier)
        known = (targets >= 0) & (targets < outputs.shape[1])
        return ((ahead.sum(1) < k) & known & jnp.isfinite(own[:, 0])).astype(jnp.float32)

    return Metric("accuracy" if k == 1 else f"top{k}", statistics, lambda total, weight: total / weight, "max")


accuracy = top_k(1)  # the share of rows whose label has the largest output


def check_objective(objective: Any) -> Objective:
    """Return an Objective with its metrics as a tuple.

    Raises InputError for what `arguments.check_kinds` refuses, and for metrics whose names clash.

    >>> check_objective(Objective(squared_error, [rmse])).metrics[0].name
    'rmse'
    """
    objective = check_kinds(objective)
    names = [metric.name for metric in objective.metrics]
    for name in names:
        if names.count(name) > 1 or name in RESERVED or name.startswith("val_"):
            raise InputError(f'every metric must have a name of its own, got "{name}", which is taken. Rename it.')
    return objective


def measure(objective: Objective, outputs: Array, targets: Array, weights: Array, *, prepared: bool = False) -> Sums:
    """Return the weighted sums of the loss and of every metric's statistics over the examples of a batch.

    weights: (B,), the sample weights. What an example of weight 0 gives is left out, whatever it is; so is padding,
    whose weight is 0. prepared: whether it is known to be finite, so that a product with 0 leaves it out. Raises
    InputError for a loss that does not give one value for each example, and for statistics without an entry for each.

    >>> sums = measure(Objective(squared_error, (rmse,)), jnp.ones((2, 1)), jnp.zeros((2, 1)), jnp.array([1.0, 0.0]))
    >>> float(sums.weight), float(sums.totals["loss"])
    (1.0, 1.0)
    """
    _check_shapes(objective, outputs, targets, weights)
    rows: dict[str, PyTree] = {LOSS: objective.loss(outputs, targets)}
    rows |= {metric.name: metric.statistics(outputs, targets) for metric in objective.metrics}
    if precision(rows[LOSS].dtype) == jnp.float64:
        # Left in float32, their sum would be rounded to it.
        weights = weights.astype(jnp.float64)
    totals = jax.tree.map(lambda values: _total(values, weights, prepared), rows, is_leaf=_is_moments)
    return Sums(totals, jnp.sum(weights))


def _total(values: Any, weights: Array, prepared: bool = True) -> Any:
    if not _is_moments(values):
        weights = weights.reshape(-1, *[1] * (values.ndim - 1))
        weighted = values * weights
        # Chosen, because 0 times nan is nan.
        return jnp.sum(weighted if prepared else jnp.where(weights > 0, weighted, 0), axis=0)
    counted = (weights > 0).reshape(-1, *[1] * (values.center.ndim - 1))
    weight = jnp.sum(weights * values.weight)
    lowest = jnp.min(jnp.where(counted, values.center, jnp.inf), axis=0)
    lowest = jnp.where(weight > 0, lowest, 0).astype(values.center.dtype)
    above = _total(jnp.where(counted, values.center - lowest[None], 0), weights)
    # The lowest number first, so that the center of equal numbers is that number.
    center = lowest + above / jnp.where(weight > 0, weight, 1)
    rows = _about(center[None], values._replace(weight=values.weight.reshape(counted.shape)))
    first, second = (_total(jnp.where(counted, each, 0), weights) for each in (rows.first, rows.second))
    return Moments(weight, center, first, second)


def _check_shapes(objective: Objective, outputs: Array, targets: Array, weights: Array) -> None:
    """Raises InputError unless the loss gives (B,), statistics give (B, ...), and metrics give scalars."""
    functions = [("the loss", objective.loss)]
    functions += [(f'the metric "{metric.name}"', metric.statistics) for metric in objective.metrics]
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
    for metric in objective.metrics:
        _, given = _shapes_of(metric.statistics, outputs, targets)
        totals = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), given)
        figure = jax.eval_shape(metric.finish, totals, jax.ShapeDtypeStruct((), weights.dtype))
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
            "scikit-learn do. Write it with jnp, or use one of jaxdl.objectives."
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


def add(one: Sums, other: Sums) -> Sums:
    """The sums of two disjoint sets of rows together, in the arrays of NumPy or of JAX that they are given in.

    >>> one = Sums({"loss": jnp.float32(1)}, jnp.float32(2))
    >>> float(add(one, one).weight)
    4.0
    """
    return jax.tree.map(_merged, one, other, is_leaf=_is_moments)


def finish(objective: Objective, sums: Sums) -> dict[str, Array]:
    """The figures of all rows that were summed: `loss`, then each metric by its name, scalars of the loss's dtype.

    >>> finish(Objective(squared_error, (rmse,)), Sums({"loss": 8.0, "rmse": 8.0}, 2.0))["rmse"].item()
    2.0
    """
    figures = {LOSS: sums.totals[LOSS] / sums.weight}
    return figures | {m.name: m.finish(sums.totals[m.name], sums.weight) for m in objective.metrics}


def check_labels(model: Model, objective: Objective, *sets: Examples | None) -> None:
    """Raise InputError for labels that are no class of the model's outputs, such as 3 beside 3 outputs.

    Examples of weight 0 may have any label. Nothing is computed on a device.

    >>> from jaxdl import examples, mlp
    >>> try:
    ...     check_labels(mlp((), outputs=3), Objective(softmax_cross_entropy), examples([[1.0], [2.0]], [2, 3]))
    ... except InputError as error:
    ...     print(error)
    labels must be from 0 to 2, because the model has 3 outputs, got 3 in row 1. Use outputs=4, or labels from 0.
    """
    if not reads_labels(objective.loss):
        return
    for rows in sets:
        if rows is None or not all(_on_host(leaf) for leaf in (rows.targets, rows.weights)):
            continue
        labels, counted = np.asarray(rows.targets), np.asarray(rows.weights) > 0
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not counted.any():
            continue
        shape = _shape_of_outputs(model, rows.inputs.shape[1:], rows.inputs.dtype)
        if len(shape) != 2:
            continue
        unknown = counted & ((labels < 0) | (labels >= shape[1]))
        if unknown.any():
            place, most = int(unknown.argmax()), int(labels[counted].max())
            advice = f"Use outputs={most + 1}, or labels from 0." if labels[place] >= 0 else "Give them weight 0."
            raise InputError(
                f"labels must be from 0 to {shape[1] - 1}, because the model has {shape[1]} outputs, "
                f"got {labels[place]} in row {place}. {advice}"
            )


def _on_host(leaf: Any) -> bool:
    """Whether the values of an array can be read here."""
    return not isinstance(leaf, jax.core.Tracer) and getattr(leaf, "is_fully_addressable", True)


@functools.lru_cache(maxsize=32)
def _shape_of_outputs(model: Model, row: tuple[int, ...], dtype: Any) -> tuple[int, ...]:
    """Return the shape of a model's outputs for one row; it is traced once, and nothing is computed."""
    key, inputs = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((1, *row), dtype)
    outputs = jax.eval_shape(
        lambda key, inputs: model.apply(model.init(key, inputs), inputs, train=False)[0], key, inputs
    )
    return tuple(outputs.shape)
