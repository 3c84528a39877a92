"""What the members of an ensemble say together, and how well each of them does."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdl.arguments import check_examples, check_model, check_weights, explain_calls
from jaxdl.batches import evaluation_rows
from jaxdl.data import as_rows, precision
from jaxdl.errors import InputError
from jaxdl.objectives import check_labels, check_objective
from jaxdl.passes import evaluate_prepared, predict, rows_at_once
from jaxdl.programs import is_traced, program
from jaxdl.types import Array, Examples, Model, Objective, Weights


class Mean(NamedTuple):
    """What the members of an ensemble predict together."""

    mean: Array  # (N, ...)
    spread: Array  # (N, ...), the standard deviation over members, which divides by their number


@explain_calls
def predict_mean(model: Model, weights: Weights, inputs: Any, *, batch_size: int | None = None) -> Mean:
    """Mean and spread of the outputs of many networks for (N, ...) inputs; the leaves of the weights are (M, ...).

    The members are taken one after the other, so there are never more than two members' outputs in memory. Raises
    InputError for the weights of a single network.

    >>> from jaxdl import mlp
    >>> model, inputs = mlp((), outputs=2), jnp.ones((5, 3))
    >>> weights = jax.vmap(lambda key: model.init(key, inputs))(jax.random.split(jax.random.key(0), 4))
    >>> predict_mean(model, weights, inputs).spread.shape
    (5, 2)
    """
    inputs = inputs if isinstance(inputs, jax.Array) else as_rows("inputs", inputs)
    _check_many("predict_mean", "predict", model, weights, inputs[:1])
    count = jax.tree.leaves(weights)[0].shape[0]
    mean: Any = jnp.float32(0)
    squares: Any = jnp.float32(0)
    # Welford's update (Technometrics 4, 1962), which does not cancel where the spread is small.
    for index in range(count):
        one: Weights = jax.tree.map(lambda leaf, index=index: leaf[index], weights)
        outputs = predict(model, one, inputs, batch_size=batch_size)
        outputs = outputs.astype(precision(outputs.dtype))
        off = outputs - mean
        mean = mean + off / (index + 1)
        squares = squares + off * (outputs - mean)
    return Mean(mean, jnp.sqrt(squares / count))


@explain_calls
def evaluate_members(
    model: Model, objective: Objective, weights: Weights, rows_of: Examples, *, batch_size: int | None = None
) -> dict[str, Array]:
    """The figures of a data set for each of many networks, (M,); the leaves of the weights are (M, ...).

    Each is what `evaluate` gives for the member alone, bit for bit but for convolutions, which XLA may round otherwise
    within a loop. Raises InputError for the weights of a single network.

    >>> from jaxdl import examples, mlp, objectives
    >>> model, rows = mlp(()), examples([[1.0], [2.0]], [[0.0], [0.0]])
    >>> weights = jax.vmap(lambda key: model.init(key, rows.inputs))(jax.random.split(jax.random.key(0), 4))
    >>> evaluate_members(model, Objective(objectives.squared_error), weights, rows)["loss"].shape
    (4,)
    """
    objective = check_objective(objective)
    check_examples("rows_of", rows_of)
    _check_many("evaluate_members", "evaluate", model, weights, rows_of.inputs[:1])
    check_labels(model, objective, rows_of)
    rows, prepared = evaluation_rows(rows_of), not is_traced(rows_of.weights)
    return _evaluate_members(model, objective, weights, rows, batch_size=batch_size, prepared=prepared)


@partial(program, static_argnames=("model", "objective", "batch_size", "prepared"))
def _evaluate_members(
    model: Model, objective: Objective, weights: Weights, rows_of: Examples, *, batch_size: int | None, prepared: bool
) -> dict[str, Array]:
    size = rows_at_once(rows_of.inputs, batch_size)

    def of_one(one: Weights) -> dict[str, Array]:
        return evaluate_prepared(model, objective, one, rows_of, size=size, prepared=prepared)

    return lax.map(of_one, weights)


def _check_many(name: str, of_one: str, model: Model, weights: Weights, inputs: Any) -> None:
    check_model(model)
    check_weights(weights)
    alone = jax.eval_shape(model.init, jax.random.key(0), inputs)
    if [jnp.ndim(leaf) for leaf in jax.tree.leaves(weights)] == [leaf.ndim for leaf in jax.tree.leaves(alone)]:
        raise InputError(
            f"{name} needs the weights of many networks, leaves (members, ...), got those of a single one. "
            f"Use jaxdl.{of_one} for it."
        )
