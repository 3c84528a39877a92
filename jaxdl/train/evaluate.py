"""Evaluate and predict over a whole dataset, in memory or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jaxdl._checks import (
    check_examples,
    check_has_targets,
    check_model,
    check_objective,
    check_platform,
    check_variables,
    explain_calls,
    given_as,
)
from jaxdl._jit import is_traced, jit
from jaxdl._tree import named_leaves
from jaxdl.data import DataSource
from jaxdl.data.arrays import as_numbers, as_rows, as_trees
from jaxdl.data.batches import default_batch_size, evaluation_rows, only_counted, padded_size
from jaxdl.data.streaming import BYTES, load_window, plan_windows, prefetch, read_rows, window_sharding
from jaxdl.distributed.sharding import data_devices, split_rows
from jaxdl.errors import InputError
from jaxdl.losses import check_labels, check_targets
from jaxdl.metrics import compute, merge
from jaxdl.train.epoch import check_outputs, eval_batch_size, explain_misfit, sum_steps, zeros_of
from jaxdl.train.step import eval_step
from jaxdl.types import Array, Dataset, Loss, Metric, MetricSums, Model, ModelLoss, Objective, PyTree, Variables


@explain_calls
def evaluate(
    model: Model,
    variables: Variables,
    dataset: Dataset | DataSource,
    loss: Loss | ModelLoss,
    *,
    metrics: Sequence[Metric] = (),
    batch_size: int | None = None,
) -> dict[str, Array]:
    """Return `loss` and each metric of a dataset, float32 scalars, exact for every batch size.

    A DataSource (`data.memory_mapped`) is read window by window. Compiles once for each model, loss, metrics and shape
    of the data. Raises InputError for arguments that do not fit together.

    >>> from jaxdl import dataset, losses, metrics, mlp
    >>> model, data = mlp(()), dataset([[3.0], [4.0]], [[0.0], [0.0]])
    >>> variables = Variables({"Dense_0": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}}, {})
    >>> values = evaluate(model, variables, data, losses.squared_error, metrics=[metrics.mae])
    >>> {name: float(value) for name, value in values.items()}
    {'loss': 12.5, 'mae': 3.5}
    """
    check_model(model)
    check_variables(variables)
    objective = check_objective(loss, metrics)
    if isinstance(dataset, DataSource):
        check_platform()
        return evaluate_source(model, objective, variables, dataset, batch_size=batch_size)
    check_examples("dataset", dataset)
    check_has_targets("dataset", objective, dataset)
    check_platform()
    check_labels(model, loss, dataset)
    check_targets(loss, dataset, "dataset")
    size = eval_batch_size(dataset.inputs, batch_size)
    with explain_misfit(model, variables, dataset.inputs):
        rows, prepared = evaluation_rows(dataset), not is_traced(dataset.sample_weight)
        return evaluate_prepared(model, objective, variables, rows, size=size, prepared=prepared)


@partial(jit, static_argnames=("model", "objective", "size", "prepared"))
def evaluate_prepared(
    model: Model, objective: Objective, variables: Variables, dataset: Dataset, *, size: int, prepared: bool
) -> dict[str, Array]:
    """Return what `evaluate` returns, of data that `evaluation_rows` returns (`prepared`) or that are traced."""
    count = dataset.sample_weight.shape[0]
    step = eval_step(model, objective, prepared=prepared)
    if count <= size and data_devices() == 1:
        return compute(step(variables, dataset), objective.metrics)
    zero = zeros_of(step, variables, jax.tree.map(lambda leaf: leaf[:size], dataset))
    sums = sum_steps(step, variables, dataset, zero, 0, -(-count // size), batch_size=size)
    return compute(sums, objective.metrics)


@explain_calls
def predict(model: Model, variables: Variables, inputs: Any, *, batch_size: int | None = None) -> Any:
    """Return the model's outputs for (N, ...) inputs, computed in batches of at most `batch_size` examples.

    inputs: an array, or a dict, tuple or NamedTuple of arrays, as for `dataset`; or a DataSource, whose outputs are
        NumPy arrays. A list is one array of rows.

    Compiles once for each model and shape of the inputs. Raises InputError for no inputs, and for inputs that
    `data.dataset` refuses; the values of JAX arrays are not checked.

    >>> from jaxdl import mlp
    >>> model, inputs = mlp((), outputs=2), jnp.ones((5, 3))
    >>> predict(model, model.init(jax.random.key(0), inputs), inputs, batch_size=2).shape
    (5, 2)
    """
    check_model(model)
    check_variables(variables)
    if isinstance(inputs, DataSource):
        check_platform()
        parts = predict_source(model, variables, inputs, batch_size=batch_size)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    _check_inputs(inputs)
    check_platform()
    inputs = as_trees("inputs", inputs, convert=_as_array)
    leaves = named_leaves("inputs", inputs)
    for name, leaf in leaves:
        if leaf.ndim < (2 if leaf is inputs else 1) or len(leaf) == 0:
            advice = " Use inputs[None] for one example, inputs[:, None] for one column." if leaf.ndim == 1 else ""
            raise InputError(
                f"predict needs at least one example, got {name} of shape {leaf.shape}. Give {name} of shape (N, ...)."
                + advice
            )
        if len(leaf) != len(leaves[0][1]):
            raise InputError(
                f"{name} must have one row for each of the {len(leaves[0][1])} {leaves[0][0]}, got {len(leaf)}."
            )
    with explain_misfit(model, variables, inputs):
        return _predict(model, variables, inputs, batch_size=eval_batch_size(inputs, batch_size))


def _check_inputs(inputs: Any) -> None:
    """Raise InputError for what is no array of inputs, (N, ...)."""
    if isinstance(inputs, Dataset):
        raise InputError("inputs must be an array, got a Dataset. Use its inputs: dataset.inputs.")
    if isinstance(inputs, (Model, Variables, str)) or inputs is None or callable(inputs):
        raise InputError(
            f"inputs must be an array (N, ...), got {given_as(inputs)}. The order is predict(model, variables, inputs)."
        )


def _as_array(name: str, values: Any, counted: Any = None) -> Array:
    """Return an array of inputs; the values of JAX arrays are not checked."""
    if isinstance(values, jax.Array):
        return values
    numbers, _ = as_numbers(name, values)
    return jnp.asarray(as_rows(name, values) if numbers.size and numbers.ndim > 1 else numbers)


@partial(jit, static_argnames=("model", "batch_size"))
def _predict(model: Model, variables: Variables, inputs: PyTree, *, batch_size: int) -> PyTree:
    count, batch_size = jax.tree.leaves(inputs)[0].shape[0], padded_size(batch_size)

    def outputs_at(start: Any) -> PyTree:
        size = min(batch_size, count)
        batch = split_rows(jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), inputs))
        outputs = model.apply(variables, batch, train=False)[0]
        check_outputs(outputs, batch)
        return outputs

    if count <= batch_size:
        return outputs_at(0)

    def body(index: Array, outputs: PyTree) -> PyTree:
        start = jnp.minimum(index * batch_size, count - batch_size)
        return jax.tree.map(
            lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, axis=0), outputs, outputs_at(start)
        )

    one = jax.eval_shape(outputs_at, 0)
    outputs = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype), one)
    return lax.fori_loop(0, -(-count // batch_size), body, outputs)


T = TypeVar("T")


def evaluate_source(
    model: Model,
    objective: Objective,
    variables: Variables,
    source: DataSource,
    *,
    batch_size: int | None = None,
    window_bytes: int = BYTES,
) -> dict[str, Array]:
    """Return what `evaluate` returns, of a DataSource; a few of its windows are in memory.

    The sums of the windows are added in float64, so that a weight beyond float32's digits stays exact.
    """
    totals: Any = None
    for window in _windows(variables, source, batch_size, window_bytes, only_counted):
        sums: Any = _sums(model, objective, variables, window.batches, np.int32(window.full))
        sums = jax.tree.map(lambda total: np.asarray(total, np.float64), sums)
        totals = sums if totals is None else merge(totals, sums)
    return compute(jax.tree.map(lambda total: jnp.asarray(total, jnp.float32), totals), objective.metrics)


def predict_source(
    model: Model,
    variables: Variables,
    source: DataSource,
    *,
    batch_size: int | None = None,
    window_bytes: int = BYTES,
) -> Iterator[PyTree]:
    """Yield the outputs of a DataSource, in its order, window by window: NumPy arrays (examples of a window, ...)."""

    def examples_of(outputs: Array, window: _Window) -> np.ndarray:
        array = np.asarray(outputs)[:, : window.size]
        return array.reshape(-1, *array.shape[2:])[: window.examples]

    for window in _windows(variables, source, batch_size, window_bytes, lambda data: data):
        outputs = _outputs(model, variables, window.batches.inputs, np.int32(window.full))
        yield jax.tree.map(partial(examples_of, window=window), outputs)


class _Window(NamedTuple):
    batches: Dataset  # (K, B, ...), with padding
    full: int  # batches that are more than padding
    size: int  # examples of a batch, without the padding for devices
    examples: int  # of the window


def _windows(
    variables: Variables,
    source: DataSource,
    batch_size: int | None,
    window_bytes: int,
    prepare: Callable[[Dataset], Dataset],
) -> Iterator[_Window]:
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}.")
    first, home = read_rows(source, np.arange(1)), window_sharding(variables)
    size = min(source.count, batch_size or default_batch_size(first.inputs))
    plan = plan_windows(first, source.count, size, window_bytes)

    def make(number: int) -> Dataset:
        batches: Dataset = load_window(source, first, plan, number, lambda places: places, home, prepare=prepare)
        return batches

    with prefetch(make, plan.windows) as fetch:
        for number in range(plan.windows):
            full = min(plan.per_window, plan.batches - number * plan.per_window)
            examples = min(plan.per_window * size, plan.rows - number * plan.per_window * size)
            yield _Window(fetch.get(number), full, size, examples)


@partial(jit, static_argnames=("model", "objective"))
def _sums(model: Model, objective: Objective, variables: Variables, batches: Dataset, count: Any) -> MetricSums:
    step = eval_step(model, objective, prepared=True)
    zero = zeros_of(step, variables, _batch(batches, 0))
    return lax.fori_loop(0, count, lambda index, sums: merge(sums, step(variables, _batch(batches, index))), zero)


@partial(jit, static_argnames="model")
def _outputs(model: Model, variables: Variables, inputs: PyTree, count: Any) -> PyTree:
    def outputs_at(index: Any) -> PyTree:
        batch = _batch(inputs, index)
        outputs = model.apply(variables, batch, train=False)[0]
        check_outputs(outputs, batch)
        return outputs

    def body(index: Any, outputs: PyTree) -> PyTree:
        return jax.tree.map(
            lambda whole, part: lax.dynamic_update_index_in_dim(whole, part, index, 0), outputs, outputs_at(index)
        )

    one, batches = jax.eval_shape(outputs_at, 0), jax.tree.leaves(inputs)[0].shape[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros((batches, *leaf.shape), leaf.dtype), one)
    outputs = lax.fori_loop(0, count, body, zeros)
    # Replicated, because each process reads all of them.
    return lax.with_sharding_constraint(outputs, PartitionSpec()) if data_devices() > 1 else outputs


def _batch(batches: T, index: Any) -> T:
    return split_rows(jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, False), batches))
