"""Losses: functions (outputs, targets) -> (B,), one value for each example."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Integer, Num, Shaped

from jaxdl._checks import given_as
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


def _check_arrays(name: str, outputs: Any, targets: Any) -> None:
    """Raise InputError for outputs or targets of the function `name` that are not one array each."""
    for kind, value in (("outputs", outputs), ("targets", targets)):
        if not hasattr(value, "shape"):
            raise InputError(
                f"{name} compares one array of outputs with one array of targets, got {kind} {given_as(value)}. Use "
                f'losses.weighted_sum({{"a": losses.{name}, ...}}) with a loss for each output, and metrics.of_output.'
            )


def same_shape(
    name: str, outputs: Array, targets: Array
) -> tuple[Float[Array, " batch *shape"], Float[Array, " batch *shape"]]:
    """Return outputs and targets in their common `precision`, or raise InputError of the function `name`."""
    _check_arrays(name, outputs, targets)
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
    """Return outputs (B, classes) and labels (B,), or raise InputError of the function `name`."""
    _check_arrays(name, outputs, targets)
    if targets.shape != outputs.shape[:1] or outputs.ndim != 2 or not jnp.issubdtype(targets.dtype, jnp.integer):
        advice = "Encode each target as the number of its class, from 0."
        if targets.ndim == 2 and targets.shape[1] == 1:
            advice = "Use targets[:, 0] as whole numbers, from 0."
        elif targets.ndim == 2 and targets.shape == outputs.shape:
            advice = "For one-hot targets use targets.argmax(1)."
        elif targets.shape == outputs.shape[:1] and outputs.ndim == 2:
            advice = 'Use targets.astype("int32") if they are the numbers of classes, from 0.'
        raise InputError(
            f"{name} needs outputs (rows, classes) and integer labels (rows,), got outputs {outputs.shape} and targets "
            f"{targets.shape} of {targets.dtype}. {advice}"
        )
    return outputs.astype(precision(outputs.dtype)), targets


def _mean_per_example(values: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    return values.reshape(values.shape[0], -1).mean(1)


def squared_error(
    outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]
) -> Float[Array, " batch"]:
    """Return the squared error of each example, (B,): the mean over its outputs.

    >>> squared_error(jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [0.0]])).tolist()
    [1.0, 4.0]
    """
    outputs, targets = same_shape("squared_error", outputs, targets)
    return _mean_per_example((outputs - targets) ** 2)


def absolute_error(
    outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]
) -> Float[Array, " batch"]:
    """Return the absolute error of each example, (B,): the mean over its outputs.

    >>> absolute_error(jnp.array([[1.0], [-2.0]]), jnp.array([[0.0], [0.0]])).tolist()
    [1.0, 2.0]
    """
    outputs, targets = same_shape("absolute_error", outputs, targets)
    return _mean_per_example(jnp.abs(outputs - targets))


def huber(delta: float = 1.0) -> Loss:
    """Return a loss: half the squared error up to an error of `delta`, linear beyond, as a mean over outputs, (B,).

    Source: Huber, Annals of Mathematical Statistics 35 (1964).

    >>> huber(1.0)(jnp.array([[0.5], [3.0]]), jnp.array([[0.0], [0.0]])).tolist()
    [0.125, 2.5]
    """

    def loss(outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]) -> Float[Array, " batch"]:
        outputs, targets = same_shape("huber", outputs, targets)
        return _mean_per_example(optax.losses.huber_loss(outputs, targets, delta=delta))

    return loss


def softmax_cross_entropy(
    outputs: Num[Array, "batch classes"], targets: Integer[Array, " batch"]
) -> Float[Array, " batch"]:
    """Return the negative log-likelihood in nats, (B,), of integer labels (B,) under logits (B, C).

    A label outside of 0 to C - 1 gives nan.

    >>> round(softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([1])).item(), 4)
    0.6931
    """
    outputs, targets = as_labels("softmax_cross_entropy", outputs, targets)
    known = (targets >= 0) & (targets < outputs.shape[1])
    return jnp.where(known, optax.losses.softmax_cross_entropy_with_integer_labels(outputs, targets), jnp.nan)


def smoothed_cross_entropy(smoothing: float | Float[Array, ""]) -> Loss:
    """Return a softmax cross-entropy in nats, (B,), with label smoothing.

    smoothing: the probability that is distributed over all classes, from 0 to below 1.

    A label that is no class gives nan. Raises InputError for another `smoothing`, unless it is traced. Source: Szegedy
    et al., CVPR (2016).

    >>> round(smoothed_cross_entropy(0.1)(jnp.zeros((1, 2)), jnp.array([1])).item(), 4)
    0.6931
    """
    if not is_traced(smoothing) and not 0 <= smoothing < 1:
        raise InputError(f"smoothing must be from 0 to below 1, got {smoothing}. Use 0.1, say.")

    def smoothed(outputs: Num[Array, "batch classes"], targets: Integer[Array, " batch"]) -> Float[Array, " batch"]:
        label_loss = softmax_cross_entropy(outputs, targets)
        logits = outputs.astype(precision(outputs.dtype))
        return (1 - smoothing) * label_loss - smoothing * jax.nn.log_softmax(logits).mean(1)

    smoothed.takes_labels = True  # type: ignore[attr-defined]
    return smoothed


def takes_labels(loss: Loss) -> bool:
    """Return whether a loss is a softmax cross-entropy of this module."""
    return bool(getattr(loss, "takes_labels", loss is softmax_cross_entropy))


def sigmoid_cross_entropy(
    outputs: Num[Array, " batch *shape"], targets: Shaped[Array, " batch *shape"]
) -> Float[Array, " batch"]:
    """Return the negative log-likelihood in nats, (B,), of targets 0 or 1 under logits of the same shape.

    Targets may be probabilities too; a target outside of 0 to 1 gives nan. Several outputs give their mean.

    >>> round(sigmoid_cross_entropy(jnp.zeros((1, 1)), jnp.array([[1.0]])).item(), 4)
    0.6931
    """
    outputs, targets = same_shape("sigmoid_cross_entropy", outputs, targets)
    valid = (targets >= -ROUNDING) & (targets <= 1 + ROUNDING)
    return _mean_per_example(jnp.where(valid, optax.losses.sigmoid_binary_cross_entropy(outputs, targets), jnp.nan))


ROUNDING = 1e-6  # tolerance of probabilities at 0 and 1


def check_targets(loss: Loss, dataset: Dataset, name: str) -> None:
    """Raise InputError for a target of weight > 0 that sigmoid or softmax cross-entropy cannot take.

    Targets that are traced, or on devices of other processes, cannot be read here: their loss is nan.
    """
    is_binary = loss is sigmoid_cross_entropy
    if not (is_binary or takes_labels(loss)) or not _is_readable(dataset):
        return
    targets, sample_weight = np.asarray(dataset.targets), np.asarray(dataset.sample_weight)
    if targets.shape[:1] != sample_weight.shape or targets.dtype.kind not in "fiub":
        return  # The loss raises its own error.
    wrong = (targets < -ROUNDING) | (targets > 1 + ROUNDING) if is_binary else targets < 0
    wrong &= (sample_weight > 0).reshape(-1, *[1] * (targets.ndim - 1))
    if not wrong.any():
        return
    place = tuple(np.argwhere(wrong)[0])
    got = f"got {targets[place]} in row {place[0]} of {name}"
    if is_binary:
        raise InputError(
            f"sigmoid_cross_entropy needs targets from 0 to 1, {got}. Encode no as 0 and yes as 1: "
            "targets == targets.max() converts labels such as -1 and 1."
        )
    raise InputError(
        f"{getattr(loss, '__name__', 'the loss')} needs labels that count classes from 0, {got}. Encode each target as "
        "the number of its class, or set sample_weight to 0 for examples without a label."
    )


def check_labels(model: Model, loss: Loss, *sets: Dataset | None) -> None:
    """Raise InputError for a label of weight > 0 beyond the model's outputs, such as 3 for 3 outputs."""
    if not takes_labels(loss):
        return
    for dataset in sets:
        if dataset is None or not _is_readable(dataset):
            continue
        labels, counted = np.asarray(dataset.targets), np.asarray(dataset.sample_weight) > 0
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not counted.any():
            continue
        leaves, structure = jax.tree.flatten(dataset.inputs)
        shape = _output_shape(model, structure, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves))
        if len(shape) != 2:
            continue
        unknown = counted & ((labels < 0) | (labels >= shape[1]))
        if unknown.any():
            place, largest = int(unknown.argmax()), int(labels[counted].max())
            advice = (
                f"Use outputs={largest + 1}, or labels from 0."
                if labels[place] >= 0
                else "Set sample_weight to 0 for examples without a label."
            )
            raise InputError(
                f"labels must be from 0 to {shape[1] - 1}, because the model has {shape[1]} outputs, "
                f"got {labels[place]} in row {place}. {advice}"
            )


def _is_readable(dataset: Dataset) -> bool:
    """Return whether targets and weights are not traced and not on devices of other processes."""
    leaves = jax.tree.leaves((dataset.targets, dataset.sample_weight))
    return not any(is_traced(leaf) or not getattr(leaf, "is_fully_addressable", True) for leaf in leaves)


@functools.lru_cache(maxsize=32)
def _output_shape(model: Model, structure: Any, rows: tuple[tuple[tuple[int, ...], Any], ...]) -> Any:
    """Return the shapes of a model's outputs for one example: a tuple, or a tree of tuples; nothing is computed.

    structure: of the inputs. rows: the shape and the dtype of one example of each array of the inputs.
    """
    key = jax.eval_shape(jax.random.key, 0)
    inputs = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct((1, *shape), dtype) for shape, dtype in rows])
    outputs = jax.eval_shape(
        lambda key, inputs: model.apply(model.init(key, inputs), inputs, train=False)[0], key, inputs
    )
    return jax.tree.map(lambda leaf: tuple(leaf.shape), outputs)
