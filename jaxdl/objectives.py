"""Losses and metrics of single rows, and the algebra that reduces them exactly.

A figure of a data set is not the mean of its batches' figures. So everything here is measured a row, summed with the
rows' weights, added over batches, and finished once: batch sizes, padding and devices cannot change it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxdl.data import precision
from jaxdl.errors import InputError
from jaxdl.programs import is_traced
from jaxdl.types import Array, Metric, Mode, Objective, PyTree, Sums

LOSS = "loss"


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
        raise InputError(
            f"{name} needs outputs (rows, classes) and integer labels (rows,), got outputs {outputs.shape} and targets "
            f"{targets.shape} of {targets.dtype}. Encode each target as the number of its class, from 0."
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

    def loss(outputs: Array, targets: Array) -> Array:
        own = softmax_cross_entropy(outputs, targets)
        wide = outputs.astype(precision(outputs.dtype))
        return (1 - smoothing) * own - smoothing * jax.nn.log_softmax(wide).mean(1)

    return loss


def sigmoid_cross_entropy(outputs: Array, targets: Array) -> Array:
    """The negative log-likelihood in nats of each row's 0-or-1 targets, (B,), from logits of the same shape.

    >>> round(sigmoid_cross_entropy(jnp.zeros((1, 1)), jnp.array([[1.0]])).item(), 4)
    0.6931
    """
    outputs, targets = same_shape("sigmoid_cross_entropy", outputs, targets)
    return _mean_of_row(optax.losses.sigmoid_binary_cross_entropy(outputs, targets))


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

    The result does not depend on `center`; a value near the targets' mean keeps float32 exact where that mean is large
    against their spread.

    >>> metric = r2()
    >>> metric.name
    'r2'
    """

    def statistics(outputs: Array, targets: Array) -> PyTree:
        outputs, targets = same_shape("r2", outputs, targets)
        return {"residual": (outputs - targets) ** 2, "sum": targets - center, "square": (targets - center) ** 2}

    def finish(total: PyTree, weight: Array) -> Array:
        return jnp.mean(1 - total["residual"] / (total["square"] - total["sum"] ** 2 / weight))

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


def measure(objective: Objective, outputs: Array, targets: Array, weights: Array) -> Sums:
    """The weighted sums of the loss and of every metric's statistics over the rows of a batch.

    >>> sums = measure(Objective(squared_error, (rmse,)), jnp.ones((2, 1)), jnp.zeros((2, 1)), jnp.array([1.0, 0.0]))
    >>> float(sums.weight), float(sums.totals["loss"])
    (1.0, 1.0)
    """
    rows: dict[str, PyTree] = {LOSS: objective.loss(outputs, targets)}
    rows |= {metric.name: metric.statistics(outputs, targets) for metric in objective.metrics}
    if precision(rows[LOSS].dtype) == jnp.float64:
        # Left in float32, their sum would be rounded to it.
        weights = weights.astype(jnp.float64)
    return Sums(jax.tree.map(lambda values: _total(values, weights), rows), jnp.sum(weights))


def _total(values: Array, weights: Array) -> Array:
    return jnp.sum(values * weights.reshape(-1, *[1] * (values.ndim - 1)), axis=0)


def add(one: Sums, other: Sums) -> Sums:
    """The sums of two disjoint sets of rows together.

    >>> one = Sums({"loss": jnp.float32(1)}, jnp.float32(2))
    >>> float(add(one, one).weight)
    4.0
    """
    return jax.tree.map(jnp.add, one, other)


def finish(objective: Objective, sums: Sums) -> dict[str, Array]:
    """The figures of all rows that were summed: `loss`, then each metric by its name, scalars of the loss's dtype.

    >>> finish(Objective(squared_error, (rmse,)), Sums({"loss": 8.0, "rmse": 8.0}, 2.0))["rmse"].item()
    2.0
    """
    figures = {LOSS: sums.totals[LOSS] / sums.weight}
    return figures | {m.name: m.finish(sums.totals[m.name], sums.weight) for m in objective.metrics}
