"""A pass over data: many steps in one compiled loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdl.arguments import (
    check_examples,
    check_model,
    check_platform,
    check_weights,
    explain_calls,
    given_as,
    whole_number,
)
from jaxdl.batches import batch_rows, evaluation_rows, filled, validation_batch
from jaxdl.data import as_numbers, as_rows
from jaxdl.errors import InputError
from jaxdl.objectives import add, check_labels, check_objective, check_targets, finish
from jaxdl.programs import is_traced, program
from jaxdl.sharding import data_devices, split_rows
from jaxdl.steps import EvalStep, TrainStep, make_eval_step
from jaxdl.types import Array, Examples, Model, Objective, PyTree, Sums, TrainState, Weights

CACHED, FILLING = 2**17, 2**22  # numbers of images whose activations a CPU's caches hold, or that keep a GPU busy


def scan_steps(
    step: TrainStep,
    state: TrainState,
    sums: Sums,
    batch: Callable[[Array], Examples],
    start: Any,
    stop: Any,
) -> tuple[TrainState, Sums]:
    """Training steps `start` to `stop` of an epoch with the batches `batch(index)`, in one compiled loop.

    The bounds may be traced int32, so one program serves chunks of every length, and chunks give the bits that the
    whole epoch gives. It means

        for index in range(start, stop):
            state, measured = step(state, batch(index))
            sums = add(sums, measured)
    """

    def body(index: Array, carry: tuple[TrainState, Sums]) -> tuple[TrainState, Sums]:
        state, sums = carry
        state, measured = step(state, batch(index))
        return state, add(sums, measured)

    return lax.fori_loop(jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32), body, (state, sums))


def sum_steps(
    step: EvalStep, weights: Weights, rows_of: Examples, sums: Sums, start: Any, stop: Any, *, batch_size: int
) -> Sums:
    """The sums with those of an evaluation step over the batches `start` to `stop` of the rows, in one compiled loop.

    Where `batch_size` does not divide the rows, the last batch reaches back over rows that were counted already, with
    weight 0: the network is compiled for one shape and nothing is copied to pad. The bounds may be traced int32. It
    means

        for index in range(start, stop):
            rows = range(index * batch_size, min((index + 1) * batch_size, len(rows_of.weights)))
            sums = add(sums, step(weights, take(rows_of, rows)))
    """

    def body(index: Array, sums: Sums) -> Sums:
        return add(sums, step(weights, validation_batch(rows_of, index, batch_size)))

    return lax.fori_loop(jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32), body, sums)


def zeros_of(function: Callable[..., PyTree], *arguments: Any) -> PyTree:
    """Zeros of the shapes and dtypes that a function would return; it is not computed.

    >>> zeros_of(lambda a: {"twice": 2 * a}, jnp.ones(3))["twice"].tolist()
    [0.0, 0.0, 0.0]
    """
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arguments))


def rows_at_once(inputs: Array, batch_size: int | None) -> int:
    """Return how many rows an evaluation takes at once: the batch size that is given, or one that suits the device.

    >>> rows_at_once(jnp.zeros((5, 163)), None)
    1024
    """
    if batch_size is not None:
        return whole_number("batch_size", batch_size, 1)
    if inputs.ndim < 4:
        return batch_rows(inputs)
    return batch_rows(inputs, CACHED if jax.default_backend() == "cpu" else FILLING)


@explain_calls
def evaluate(
    model: Model, objective: Objective, weights: Weights, rows_of: Examples, *, batch_size: int | None = None
) -> dict[str, Array]:
    """The figures of a data set: `loss` and each metric, float32 scalars, exact for every batch size.

    Compiles once for each model, objective and shape of the data.

    >>> from jaxdl import examples, mlp, objectives
    >>> model, rows = mlp(()), examples([[1.0], [2.0]], [[0.0], [0.0]])
    >>> weights = model.init(jax.random.key(0), rows.inputs)
    >>> sorted(evaluate(model, Objective(objectives.squared_error, (objectives.rmse,)), weights, rows))
    ['loss', 'rmse']
    """
    check_model(model)
    objective = check_objective(objective)
    check_weights(weights)
    check_examples("rows_of", rows_of)
    check_platform()
    check_labels(model, objective, rows_of)
    check_targets(objective.loss, rows_of, "rows_of")
    size = rows_at_once(rows_of.inputs, batch_size)
    with explain_misfit(model, weights, rows_of.inputs):
        rows, prepared = evaluation_rows(rows_of), not is_traced(rows_of.weights)
        return evaluate_prepared(model, objective, weights, rows, size=size, prepared=prepared)


@partial(program, static_argnames=("model", "objective", "size", "prepared"))
def evaluate_prepared(
    model: Model, objective: Objective, weights: Weights, rows_of: Examples, *, size: int, prepared: bool
) -> dict[str, Array]:
    """Return what `evaluate` gives for rows that `evaluation_rows` has prepared, or that are traced.

    >>> from jaxdl import examples, mlp, objectives
    >>> model, rows = mlp(()), examples([[1.0], [2.0]], [[0.0], [0.0]])
    >>> weights, objective = model.init(jax.random.key(0), rows.inputs), Objective(objectives.squared_error)
    >>> list(evaluate_prepared(model, objective, weights, rows, size=2, prepared=True))
    ['loss']
    """
    count = rows_of.weights.shape[0]
    step = make_eval_step(model, objective, prepared=prepared)
    if count <= size and data_devices() == 1:
        return finish(objective, step(weights, rows_of))
    zero = zeros_of(step, weights, jax.tree.map(lambda leaf: leaf[:size], rows_of))
    return finish(objective, sum_steps(step, weights, rows_of, zero, 0, -(-count // size), batch_size=size))


@explain_calls
def predict(model: Model, weights: Weights, inputs: Any, *, batch_size: int | None = None) -> Array:
    """The model's outputs for (N, ...) inputs, computed in batches of at most `batch_size` rows.

    Compiles once for each model and shape of the inputs. Raises InputError where there are no rows, and for inputs
    that `data.examples` refuses; arrays of JAX are taken as they are.

    >>> from jaxdl import mlp
    >>> model, inputs = mlp((), outputs=2), jnp.ones((5, 3))
    >>> predict(model, model.init(jax.random.key(0), inputs), inputs, batch_size=2).shape
    (5, 2)
    """
    check_model(model)
    check_weights(weights)
    _check_inputs(inputs)
    check_platform()
    if not isinstance(inputs, jax.Array):
        numbers, _ = as_numbers("inputs", inputs)
        inputs = jnp.asarray(as_rows("inputs", inputs) if numbers.size and numbers.ndim > 1 else numbers)
    if inputs.ndim < 2 or len(inputs) == 0:
        advice = " Use inputs[None] for one row, inputs[:, None] for one column." if inputs.ndim == 1 else ""
        raise InputError(
            f"predict needs at least one row, got inputs of shape {inputs.shape}. Give inputs of shape (rows, ...)."
            + advice
        )
    with explain_misfit(model, weights, inputs):
        return _predict(model, weights, inputs, batch_size=rows_at_once(inputs, batch_size))


@contextmanager
def explain_misfit(model: Model, weights: Any, inputs: Any) -> Iterator[None]:
    """Raise InputError for an error of the block, where the weights are not those of this model for such inputs.

    A library reports such weights in words of its own, with its own traceback. Other errors pass.

    >>> from jaxdl import mlp
    >>> model = mlp((), outputs=2)
    >>> weights = model.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> try:
    ...     predict(model, weights, jnp.ones((5, 4)))
    ... except InputError as error:
    ...     print(error)
    weights do not fit the model and inputs of shape (rows, 4): params['Dense_0']['kernel'] must be of shape (4, 2), got
    (3, 2). Give inputs with the columns of the training data, or the weights of this model.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        misfit = None if weights is None else _misfit(model, weights, inputs)
        if misfit is None:
            raise
        shape = str(("rows", *inputs.shape[1:])).replace("'", "")
        raise InputError(
            f"weights do not fit the model and inputs of shape {shape}: {misfit}. Give inputs with the columns of the "
            "training data, or the weights of this model."
        ) from error


def _misfit(model: Model, weights: Any, inputs: Any) -> str | None:
    """Return the first array of the weights that is not as the model would make it for such inputs."""
    rows = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    try:
        made = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), rows)
    except Exception:  # Whatever the model's library raises: then it cannot be told.
        return None
    wanted, given = (
        {
            jax.tree_util.keystr(path).removeprefix("."): jnp.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (made, weights)
    )
    for name, shape in wanted.items():
        if name not in given:
            return f"{name} of shape {shape} is missing"
        if given[name] != shape:
            return f"{name} must be of shape {shape}, got {given[name]}"
    return None


def _check_inputs(inputs: Any) -> None:
    """Raise InputError for what is no one array of inputs, (N, ...)."""
    if isinstance(inputs, Examples):
        raise InputError("inputs must be an array, got Examples. Use rows.inputs of the examples `rows`.")
    if type(inputs).__name__ == "Source":
        raise InputError(
            "inputs must be an array, got a Source. Use evaluations.predict_source(model, weights, source)."
        )
    if isinstance(inputs, (Model, Weights, Objective, str)) or inputs is None or callable(inputs):
        raise InputError(
            f"inputs must be an array (rows, ...), got {given_as(inputs)}. "
            "The order is predict(model, weights, inputs)."
        )


@partial(program, static_argnames=("model", "batch_size"))
def _predict(model: Model, weights: Weights, inputs: Array, *, batch_size: int) -> Array:
    count, batch_size = inputs.shape[0], filled(batch_size)

    def outputs_at(start: Any) -> Array:
        batch = split_rows(lax.dynamic_slice_in_dim(inputs, start, min(batch_size, count)))
        return model.apply(weights, batch, train=False)[0]

    if count <= batch_size:
        return outputs_at(0)

    def body(index: Array, everything: Array) -> Array:
        start = jnp.minimum(index * batch_size, count - batch_size)
        return lax.dynamic_update_slice_in_dim(everything, outputs_at(start), start, axis=0)

    one = jax.eval_shape(outputs_at, 0)
    everything = jnp.zeros((count, *one.shape[1:]), one.dtype)
    return lax.fori_loop(0, -(-count // batch_size), body, everything)
