"""Losses: functions (outputs, targets) -> (B,), one value for each example, and losses that call the model."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Integer, Num, Shaped

from jaxdl._checks import given_as, number
from jaxdl._tree import is_traced, subtree
from jaxdl._values import as_value
from jaxdl.data.arrays import precision
from jaxdl.errors import InputError
from jaxdl.types import Array, Batch, Dataset, Loss, Model, ModelLoss, PyTree, Variables

__all__ = [
    "absolute_error",
    "huber",
    "masked",
    "model_loss",
    "sigmoid_cross_entropy",
    "smoothed_cross_entropy",
    "softmax_cross_entropy",
    "squared_error",
    "weighted_sum",
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
    name: str, outputs: Array, targets: Array, *, positions: bool = False
) -> tuple[Float[Array, "batch *positions classes"], Integer[Array, " batch *positions"]]:
    """Return outputs (B, classes) and labels (B,), or raise InputError of the function `name`.

    positions: whether outputs (B, ..., classes) and labels (B, ...) are returned too, for sequences and images.
    """
    _check_arrays(name, outputs, targets)
    fits = targets.shape == outputs.shape[:-1] and (outputs.ndim == 2 or (positions and outputs.ndim > 2))
    if not fits or not jnp.issubdtype(targets.dtype, jnp.integer):
        advice = "Encode each target as the number of its class, from 0."
        if targets.ndim == 2 and targets.shape[1] == 1:
            advice = "Use targets[:, 0] as whole numbers, from 0."
        elif targets.ndim == 2 and targets.shape == outputs.shape:
            advice = "For one-hot targets use targets.argmax(1)."
        elif targets.shape == outputs.shape[:1] and outputs.ndim == 2:
            advice = 'Use targets.astype("int32") if they are the numbers of classes, from 0.'
        elif targets.shape == outputs.shape[:-1] and not positions and jnp.issubdtype(targets.dtype, jnp.integer):
            mean = "losses.masked(metrics.accuracy.per_example, ignore_label=-1)"
            advice = f'For positions use metrics.mean("accuracy", {mean}), say.'
        elif outputs.ndim > 2 and positions:
            advice = "Sequences and images need outputs (rows, ..., classes) and integer labels (rows, ...)."
        raise InputError(
            f"{name} needs outputs (rows, classes) and integer labels (rows,), got outputs {outputs.shape} and targets "
            f"{targets.shape} of {targets.dtype}. {advice}"
        )
    return outputs.astype(precision(outputs.dtype)), targets


def _mean_over_positions(values: Float[Array, " batch *positions"]) -> Float[Array, " batch"]:
    return values if values.ndim == 1 else _mean_per_example(values)


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


@as_value
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
    outputs: Num[Array, "batch *positions classes"], targets: Integer[Array, " batch *positions"]
) -> Float[Array, " batch"]:
    """Return the negative log-likelihood in nats, (B,), of integer labels (B,) under logits (B, C).

    Labels (B, T) of sequences under logits (B, T, C), and (B, H, W) of images under (B, H, W, C), give the mean over
    the positions; `masked` leaves some out.

    A label outside of 0 to C - 1 gives nan.

    >>> round(softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([1])).item(), 4)
    0.6931
    """
    outputs, targets = as_labels("softmax_cross_entropy", outputs, targets, positions=True)
    known = (targets >= 0) & (targets < outputs.shape[-1])
    values = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, targets)
    return _mean_over_positions(jnp.where(known, values, jnp.nan))


@as_value
def smoothed_cross_entropy(smoothing: float | Float[Array, ""]) -> Loss:
    """Return a softmax cross-entropy in nats, (B,), with label smoothing; of sequences and images too.

    smoothing: the probability that is distributed over all classes, from 0 to below 1.

    A label that is no class gives nan. Raises InputError for another `smoothing`, unless it is traced. Source: Szegedy
    et al., CVPR (2016).

    >>> round(smoothed_cross_entropy(0.1)(jnp.zeros((1, 2)), jnp.array([1])).item(), 4)
    0.6931
    """
    if not is_traced(smoothing) and not 0 <= smoothing < 1:
        raise InputError(f"smoothing must be from 0 to below 1, got {smoothing}. Use 0.1, say.")

    def smoothed(
        outputs: Num[Array, "batch *positions classes"], targets: Integer[Array, " batch *positions"]
    ) -> Float[Array, " batch"]:
        label_loss = softmax_cross_entropy(outputs, targets)
        logits = outputs.astype(precision(outputs.dtype))
        return (1 - smoothing) * label_loss - smoothing * _mean_over_positions(jax.nn.log_softmax(logits).mean(-1))

    smoothed.takes_labels = True  # type: ignore[attr-defined]
    return smoothed


def takes_labels(loss: Loss | ModelLoss) -> bool:
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


@dataclass(frozen=True)
class _WeightedSum:
    """The loss of `weighted_sum`."""

    paths: tuple[tuple[Any, ...], ...]
    losses: tuple[Loss, ...]
    weights: tuple[Any, ...]

    def __value_key__(self) -> Any:
        return self.paths, self.losses, self.weights

    def __call__(self, outputs: PyTree, targets: PyTree) -> Float[Array, " batch"]:
        total: Any = None
        for path, loss, weight in zip(self.paths, self.losses, self.weights, strict=True):
            # Without the product, so that a part that is not finite does not count at all.
            if not is_traced(weight) and weight == 0:
                continue
            values = weight * loss(subtree("outputs", outputs, path), subtree("targets", targets, path))
            total = values if total is None else total + values
        return total


class _TracedSum(_WeightedSum):
    """A weighted sum with traced weights, which have no values to compare."""

    __eq__, __hash__ = object.__eq__, object.__hash__


def weighted_sum(losses: PyTree, weights: PyTree = None) -> Loss:
    """Return the loss of a model of several outputs: the sum of a loss for each output, times its weight, (B,).

    losses: a dict of losses, or a tuple, list or NamedTuple, also nested, with the names of outputs and targets. Other
        outputs and targets do not count. A loss gets whatever has its name, an array or a pytree.
    weights: numbers of the same names; by default 1. A weight of 0 leaves its loss out.

    Raises InputError for a container without losses, for weights of other names, and for weights that are not finite or
    all 0. Equal calls give equal losses.

    >>> loss = weighted_sum({"a": squared_error, "b": softmax_cross_entropy}, {"a": 1.0, "b": 0.5})
    >>> outputs = {"a": jnp.array([[3.0]]), "b": jnp.zeros((1, 2))}
    >>> round(loss(outputs, {"a": jnp.array([[1.0]]), "b": jnp.array([1])}).item(), 4)
    4.3466
    """
    paths, functions = _named_parts(losses, callable)
    if () in paths or not paths or not all(map(callable, functions)):
        raise InputError(
            f"weighted_sum needs a dict of losses, got {given_as(losses)}. Use "
            'losses.weighted_sum({"a": losses.squared_error}), say.'
        )
    numbers: tuple[Any, ...] = (1.0,) * len(paths)
    if weights is not None:
        names, values = _named_parts(weights, lambda _: False)
        if names != paths:
            raise InputError(
                f"weights must have the names of the losses, {[*paths]}, got {[*names]}. Give a number for each loss."
            )
        numbers = tuple(
            number(f"weights[{', '.join(map(repr, path))}]", value) for path, value in zip(paths, values, strict=True)
        )
        # JAX's scalars have no hash.
        numbers = tuple(value if is_traced(value) else float(value) for value in numbers)
        known = [value for value in numbers if not is_traced(value)]
        if not all(map(math.isfinite, known)) or (len(known) == len(numbers) and not any(known)):
            raise InputError(f"weights must be finite numbers, not all 0, got {weights}.")
    return (_TracedSum if any(map(is_traced, numbers)) else _WeightedSum)(paths, functions, numbers)


def _named_parts(tree: PyTree, is_leaf: Callable[[Any], bool]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the paths and the leaves of a tree; a path is a tuple of keys, indices and names of fields."""
    parts = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    paths = (
        tuple(getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))) for key in path) for path, _ in parts
    )
    return (*paths,), tuple(leaf for _, leaf in parts)


@dataclass(frozen=True)
class _Masked:
    """The loss of `masked`."""

    loss: Loss
    ignore_label: int | None

    def __value_key__(self) -> Any:
        return self.loss, self.ignore_label

    def targets_and_mask(self, targets: PyTree) -> tuple[Any, Any]:
        """Return the targets and the mask (B, ...), True for positions that count."""
        mask: Any = None
        if isinstance(targets, Mapping) and "mask" in targets and len(targets) == 2:
            mask = targets["mask"]
            targets = next(value for key, value in targets.items() if key != "mask")
        elif isinstance(targets, (tuple, list)) and len(targets) == 2:
            targets, mask = targets
        elif self.ignore_label is None or not hasattr(targets, "shape"):
            raise InputError(
                f"a masked loss needs targets (targets, mask) or a dict of both, got {given_as(targets)}. Use "
                'dataset(inputs, {"labels": labels, "mask": mask}), or masked(loss, ignore_label=-1).'
            )
        counts = None if self.ignore_label is None else targets != self.ignore_label
        mask = None if mask is None else mask.astype(bool)
        if counts is None or mask is None:
            return targets, counts if mask is None else mask
        return targets, counts & mask

    def __call__(self, outputs: Any, targets: PyTree) -> Float[Array, " batch"]:
        targets, mask = self.targets_and_mask(targets)
        _check_arrays("masked", outputs, targets)
        for name, array in (("outputs", outputs), ("targets", targets)):
            if array.shape[: mask.ndim] != mask.shape:
                raise InputError(
                    f"masked needs {name} whose first axes are those of the mask, {mask.shape}, got {array.shape}."
                )

        def by_position(array: Any) -> Array:
            # What does not count is replaced: the gradient of 0 times nan would be nan.
            counted = mask.reshape(*mask.shape, *[1] * (array.ndim - mask.ndim))
            return jnp.where(counted, array, jnp.zeros((), array.dtype)).reshape(-1, *array.shape[mask.ndim :])

        values = self.loss(by_position(outputs), by_position(targets))
        if getattr(values, "shape", None) != (mask.size,):
            got = getattr(values, "shape", given_as(values))
            raise InputError(
                f"the loss of masked must give one value for each position, shape ({mask.size},), got {got}. Take no "
                "mean over the first axis."
            )
        values = values.reshape(mask.shape)
        axes = tuple(range(1, mask.ndim))
        count = mask.sum(axes).astype(values.dtype)
        return jnp.where(mask, values, jnp.zeros((), values.dtype)).sum(axes) / jnp.where(count > 0, count, 1)


def masked(loss: Loss, *, ignore_label: int | None = None) -> Loss:
    """Return a loss of sequences or images: the mean of `loss` over the positions that a mask marks, (B,).

    The loss is called with outputs (P, ...) and targets (P, ...) of all positions P of a batch, such as logits (P, C)
    and labels (P,); it returns (P,). Outputs are (B, T, ...) or (B, H, W, ...), and the targets one of

    * `(targets, mask)`, or a dict `{"labels": targets, "mask": mask}`, with a mask (B, T) or (B, H, W) of bool, or of
      numbers, where 0 leaves a position out. A mask (B,) leaves out whole examples.
    * targets alone, with `ignore_label`: positions with this label, such as -1, do not count.

    Values at other positions may be anything. An example without positions gives 0, and counts in the mean over the
    examples; with `sample_weight` 0 it does not. With `metrics.mean`, the mean of any function of single positions
    becomes a metric. Raises InputError for other targets, and for shapes that do not fit the mask.

    >>> outputs, targets = jnp.array([[1.0, 2.0, 9.0], [1.0, 1.0, 1.0]]), jnp.zeros((2, 3))
    >>> masked(squared_error)(outputs, (targets, jnp.array([[1, 1, 0], [0, 0, 0]]))).tolist()
    [2.5, 0.0]
    """
    if not callable(loss):
        raise InputError(f"masked needs a loss (outputs, targets) -> (batch,), got {given_as(loss)}.")
    return _Masked(loss, ignore_label)


def model_loss(function: Callable[[Variables, Batch, Array, bool], tuple[Any, ...]]) -> ModelLoss:
    """Return a loss that calls the model itself, for `fit` and whatever takes a loss.

    function: `(variables, batch, key, train) -> (values, outputs)`, or `(values, outputs, stats)` where the model has
        stats. It calls the model, once or several times, with `model.apply`, or with gradients of it.

    values: (B,) floats, one for each example; the loss is their mean with the sample weights. They may depend on other
        examples of the batch: leave out those where `batch.mask` (B,) is False, padding and examples of weight 0.
    outputs: (B, ...), or a pytree of such arrays, for the metrics; () where there are none.
    stats: the new `variables.stats`, such as the moving averages of BatchNorm; ignored in evaluation.
    batch: with `inputs`, `targets`, `sample_weight` and `mask`. A dataset needs no targets where no loss and no metric
        does: of `dataset(inputs)`, `batch.targets` is None.
    key: a key for each step of training; `jax.random.key(0)` for each batch of an evaluation, so that it is
        deterministic. Values that are drawn, or that depend on other examples, depend on the batch size there.
    train: whether the step trains.

    Two of the same function are equal, and share one compiled function. Raises InputError for what is no function; a
    run raises it for other results.

    >>> from jaxdl import dataset, fit, mlp
    >>> model = mlp(())
    >>> def loss(variables, batch, key, train):
    ...     outputs, stats = model.apply(variables, batch.inputs, train=train, key=key, mask=batch.mask)
    ...     return squared_error(outputs, batch.targets), outputs, stats
    >>> inputs = np.linspace(-1, 1, 32)[:, None]
    >>> run = fit(model, model_loss(loss), optax.sgd(0.1), dataset(inputs, 3 * inputs), epochs=40)
    >>> run.records[-1]["loss"] < 0.01
    True
    """
    if isinstance(function, ModelLoss) or not callable(function):
        raise InputError(f"model_loss needs a function (variables, batch, key, train), got {given_as(function)}.")
    return ModelLoss(function)


ROUNDING = 1e-6  # tolerance of probabilities at 0 and 1


def check_targets(loss: Loss | ModelLoss, dataset: Dataset, name: str) -> None:
    """Raise InputError for a target of weight > 0 that sigmoid or softmax cross-entropy cannot take.

    Targets that are traced, or on devices of other processes, cannot be read here: their loss is nan.
    """
    for part in _label_parts(loss, dataset):
        is_binary = part.loss is sigmoid_cross_entropy
        targets = part.targets
        if targets.shape[: part.counted.ndim] != part.counted.shape or targets.dtype.kind not in "fiub":
            continue  # The loss raises its own error.
        wrong = (targets < -ROUNDING) | (targets > 1 + ROUNDING) if is_binary else targets < 0
        wrong &= part.counted.reshape(*part.counted.shape, *[1] * (targets.ndim - part.counted.ndim))
        if not wrong.any():
            continue
        place = tuple(np.argwhere(wrong)[0])
        got = f"got {targets[place]} in row {place[0]} of {name}"
        if is_binary:
            raise InputError(
                f"sigmoid_cross_entropy needs targets from 0 to 1, {got}. Encode no as 0 and yes as 1: "
                "targets == targets.max() converts labels such as -1 and 1."
            )
        raise InputError(
            f"{getattr(part.loss, '__name__', 'the loss')} needs labels that count classes from 0, {got}. Encode each "
            "target as the number of its class, or set sample_weight to 0 for examples without a label."
            + " Use losses.masked(loss, ignore_label=...) for positions without one."
            * (targets.ndim > 1)
        )


def check_labels(model: Model, loss: Loss | ModelLoss, *sets: Dataset | None) -> None:
    """Raise InputError for a label of weight > 0 beyond the model's outputs, such as 3 for 3 outputs."""
    for dataset in sets:
        for part in () if dataset is None else _label_parts(loss, dataset):
            labels, counted = part.targets, part.counted
            if not takes_labels(part.loss) or labels.dtype.kind not in "iu" or not counted.any():
                continue
            leaves, structure = jax.tree.flatten(dataset.inputs)  # type: ignore[union-attr]
            shapes = _output_shapes(model, structure, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves))
            try:
                shape = subtree("outputs", shapes, part.path)
            except InputError:
                continue  # The loss raises its own error.
            shape = getattr(shape, "shape", ())
            if len(shape) != labels.ndim + 1 or counted.ndim not in (1, labels.ndim):
                continue
            counted = np.broadcast_to(
                counted.reshape(*counted.shape, *[1] * (labels.ndim - counted.ndim)), labels.shape
            )
            unknown = counted & ((labels < 0) | (labels >= shape[-1]))
            if unknown.any():
                place, largest = tuple(np.argwhere(unknown)[0]), int(labels[counted].max())
                advice = (
                    f"Use outputs={largest + 1}, or labels from 0."
                    if labels[place] >= 0
                    else "Set sample_weight to 0 for examples without a label."
                )
                raise InputError(
                    f"labels must be from 0 to {shape[-1] - 1}, because the model has {shape[-1]} outputs, "
                    f"got {labels[place]} in row {place[0]}. {advice}"
                )


class _Part(NamedTuple):
    """A cross-entropy of this module within a loss."""

    loss: Any
    path: tuple[Any, ...]  # of its output
    targets: np.ndarray
    counted: np.ndarray  # (B,) or (B, ...) bool: the examples, or the positions, that count


def _label_parts(loss: Loss | ModelLoss, dataset: Dataset) -> Iterator[_Part]:
    """Yield the cross-entropies of a loss with targets that can be read here."""
    if _has_cross_entropy(loss) and dataset.targets is not None and _is_readable(dataset):
        yield from _parts_of(loss, (), dataset.targets, np.asarray(dataset.sample_weight) > 0)


def _has_cross_entropy(loss: Any) -> bool:
    if isinstance(loss, _WeightedSum):
        return any(map(_has_cross_entropy, loss.losses))
    return _has_cross_entropy(loss.loss) if isinstance(loss, _Masked) else _is_cross_entropy(loss)


def _is_cross_entropy(loss: Any) -> bool:
    return loss is sigmoid_cross_entropy or takes_labels(loss)


def _parts_of(loss: Any, path: tuple[Any, ...], targets: Any, counted: np.ndarray) -> Iterator[_Part]:
    try:
        if isinstance(loss, _WeightedSum):
            for keys, one in zip(loss.paths, loss.losses, strict=True):
                yield from _parts_of(one, path + keys, subtree("targets", targets, keys), counted)
        elif isinstance(loss, _Masked):
            targets, mask = loss.targets_and_mask(targets)
            mask = np.asarray(mask)
            counted = counted.reshape(*counted.shape, *[1] * (mask.ndim - counted.ndim)) & mask
            yield from _parts_of(loss.loss, path, targets, counted)
        elif _is_cross_entropy(loss) and hasattr(targets, "shape"):
            yield _Part(loss, path, np.asarray(targets), counted)
    except (InputError, ValueError):
        return  # The loss raises its own error.


def _is_readable(dataset: Dataset) -> bool:
    """Return whether targets and weights are not traced and not on devices of other processes."""
    leaves = jax.tree.leaves((dataset.targets, dataset.sample_weight))
    return not any(is_traced(leaf) or not getattr(leaf, "is_fully_addressable", True) for leaf in leaves)


@functools.lru_cache(maxsize=32)
def _output_shapes(model: Model, structure: Any, rows: tuple[tuple[tuple[int, ...], Any], ...]) -> Any:
    """Return the shapes of a model's outputs for one example; nothing is computed.

    structure: of the inputs. rows: the shape and the dtype of one example of each array of the inputs.
    """
    key = jax.eval_shape(jax.random.key, 0)
    inputs = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct((1, *shape), dtype) for shape, dtype in rows])
    return jax.eval_shape(lambda key, inputs: model.apply(model.init(key, inputs), inputs, train=False)[0], key, inputs)
