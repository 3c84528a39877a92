"""Losses: one value a row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Integer, Num, Shaped

from jaxdl._jit import is_traced
from jaxdl.data.arrays import precision
from jaxdl.errors import InputError
from jaxdl.types import Array, Dataset, Loss, Model

__all__ = [
    "absolute_error",
    "huber",
    "sigmoid_cross_entropy",
    "smoothed_cross_entropy",
    "softmax_cross_entropy",
    "squared_error",
]


def __dir__() -> list[str]:
    return __all__


def same_shape(
    name: str, outputs: Array, targets: Array
) -> tuple[Float[Array, " batch *shape"], Float[Array, " batch *shape"]]:
    """Outputs and targets in the `precision` of both, float32 or float64.

    Raises InputError, which calls who compares them `name`, if their shapes differ.
    """
    if outputs.shape != targets.shape:
        raise InputError(
            f"{name} compares outputs with targets of the same shape, got outputs {outputs.shape} and targets "
            f"{targets.shape}. Give targets of shape {str(('rows', *outputs.shape[1:])).replace(chr(39), '')}."
        )
    dtype = precision(outputs.dtype, targets.dtype)
    return outputs.astype(dtype), targets.astype(dtype)


def as_labels(
    name: str, outputs: Array, targets: Array
) -> tuple[Float[Array, "batch classes"], Integer[Array, " batch"]]:
    """Return outputs (B, classes) and labels (B,), or raise InputError with the name of the metric."""
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


def _mean_of_row(values: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    return values.reshape(values.shape[0], -1).mean(1)


def squared_error(
    outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]
) -> Float[Array, " batch"]:
    """The squared error of each row, (B,), averaged over the row's outputs.

    >>> squared_error(jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [0.0]])).tolist()
    [1.0, 4.0]
    """
    outputs, targets = same_shape("squared_error", outputs, targets)
    return _mean_of_row((outputs - targets) ** 2)


def absolute_error(
    outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]
) -> Float[Array, " batch"]:
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

    def loss(outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]) -> Float[Array, " batch"]:
        outputs, targets = same_shape("huber", outputs, targets)
        return _mean_of_row(optax.losses.huber_loss(outputs, targets, delta=delta))

    return loss


def softmax_cross_entropy(
    outputs: Num[Array, "batch classes"], targets: Integer[Array, " batch"]
) -> Float[Array, " batch"]:
    """The negative log-likelihood in nats of each row's label, (B,), from logits (B, C) and integer labels (B,).

    A label that is no class gives nan.

    >>> round(softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([1])).item(), 4)
    0.6931
    """
    outputs, targets = as_labels("softmax_cross_entropy", outputs, targets)
    known = (targets >= 0) & (targets < outputs.shape[1])
    return jnp.where(known, optax.losses.softmax_cross_entropy_with_integer_labels(outputs, targets), jnp.nan)


def smoothed_cross_entropy(smoothing: float | Float[Array, ""]) -> Callable[[Array, Array], Array]:
    """Softmax cross-entropy in nats, (B,), with the share `smoothing` of each label spread evenly over all classes.

    Source: Szegedy et al., CVPR (2016). A label that is no class gives nan. Raises InputError for a share that is not
    from 0 to below 1; a traced share is not checked.

    >>> round(smoothed_cross_entropy(0.1)(jnp.zeros((1, 2)), jnp.array([1])).item(), 4)
    0.6931
    """
    if not is_traced(smoothing) and not 0 <= smoothing < 1:
        raise InputError(f"smoothing must be from 0 to below 1, got {smoothing}. Use 0.1, say.")

    def smoothed(outputs: Num[Array, "batch classes"], targets: Integer[Array, " batch"]) -> Float[Array, " batch"]:
        own = softmax_cross_entropy(outputs, targets)
        wide = outputs.astype(precision(outputs.dtype))
        return (1 - smoothing) * own - smoothing * jax.nn.log_softmax(wide).mean(1)

    smoothed.takes_labels = True  # type: ignore[attr-defined]
    return smoothed


def reads_labels(loss: Callable[[Array, Array], Array]) -> bool:
    """Return whether a loss is one of this module that takes targets as labels, of which some are no class."""
    return bool(getattr(loss, "takes_labels", loss is softmax_cross_entropy))


def sigmoid_cross_entropy(
    outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]
) -> Float[Array, " batch"]:
    """The negative log-likelihood in nats of each row's 0-or-1 targets, (B,), from logits of the same shape.

    Targets may be probabilities too; a target outside of 0 to 1 gives nan.

    >>> round(sigmoid_cross_entropy(jnp.zeros((1, 1)), jnp.array([[1.0]])).item(), 4)
    0.6931
    """
    outputs, targets = same_shape("sigmoid_cross_entropy", outputs, targets)
    likely = (targets >= -ROUNDING) & (targets <= 1 + ROUNDING)
    return _mean_of_row(jnp.where(likely, optax.losses.sigmoid_binary_cross_entropy(outputs, targets), jnp.nan))


ROUNDING = 1e-6  # by which a probability may miss 0 and 1


def check_targets(loss: Callable[[Array, Array], Array], dataset: Dataset, name: str) -> None:
    """Raise InputError, which calls the rows `name`, where a target of weight above 0 is none that the loss can take.

    Sigmoid cross-entropy takes numbers from 0 to 1, the softmax losses labels from 0. Rows that are traced, or that
    stand on the devices of other processes, are not checked: their loss is nan.
    """
    binary, labels = loss is sigmoid_cross_entropy, reads_labels(loss)
    given = dataset.targets, dataset.sample_weight
    if not (binary or labels) or any(map(is_traced, given)):
        return
    if any(isinstance(array, jax.Array) and not array.is_fully_addressable for array in given):
        return
    targets, sample_weight = map(np.asarray, given)
    if targets.shape[:1] != sample_weight.shape or targets.dtype.kind not in "fiub":
        return  # The loss itself refuses them.
    wrong = (targets < -ROUNDING) | (targets > 1 + ROUNDING) if binary else targets < 0
    wrong &= (sample_weight > 0).reshape(-1, *[1] * (targets.ndim - 1))
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


def check_labels(model: Model, loss: Loss, *sets: Dataset | None) -> None:
    """Raise InputError for labels that are no class of the model's outputs, such as 3 beside 3 outputs.

    Examples of weight 0 may have any label. Nothing is computed on a device.
    """
    if not reads_labels(loss):
        return
    for rows in sets:
        if rows is None or not all(_on_host(leaf) for leaf in (rows.targets, rows.sample_weight)):
            continue
        labels, counted = np.asarray(rows.targets), np.asarray(rows.sample_weight) > 0
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


def _on_host(leaf: object) -> bool:
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
