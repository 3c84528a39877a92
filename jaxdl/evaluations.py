"""Evaluations: the figures and the predictions of rows that are not in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jaxdl.batches import batch_rows, only_counted
from jaxdl.errors import InputError
from jaxdl.objectives import add, check_objective, finish
from jaxdl.passes import zeros_of
from jaxdl.programs import program
from jaxdl.sharding import data_devices, split_rows
from jaxdl.sources import Source, head
from jaxdl.steps import make_eval_step
from jaxdl.types import Array, Examples, Model, Objective, Sums, Weights
from jaxdl.windows import BYTES, cut_rows, fetching, home_of, load

T = TypeVar("T")


def evaluate_source(
    model: Model,
    objective: Objective,
    weights: Weights,
    source: Source,
    *,
    batch_size: int | None = None,
    window_bytes: int = BYTES,
) -> dict[str, Array]:
    """`evaluate` of the rows of a source: `loss` and each metric, float32 scalars. A few windows are in memory.

    What the windows sum to is added in float64, so that a count of rows beyond float32's digits stays exact.

    >>> from jaxdl import evaluate, examples, mlp, objectives
    >>> from jaxdl.data import take
    >>> rows, model, objective = examples([[1.0], [2.0]], [[0.0], [0.0]]), mlp(()), Objective(objectives.squared_error)
    >>> weights, source = model.init(jax.random.key(0), rows.inputs), Source(2, lambda numbers: take(rows, numbers))
    >>> found, wanted = evaluate_source(model, objective, weights, source), evaluate(model, objective, weights, rows)
    >>> np.allclose(found["loss"], wanted["loss"])
    True
    """
    objective = check_objective(objective)
    totals: Any = None
    for piece in _pieces(weights, source, batch_size, window_bytes, only_counted):
        sums: Any = _sums(model, objective, weights, piece.batches, np.int32(piece.full))
        sums = jax.tree.map(lambda total: np.asarray(total, np.float64), sums)
        totals = sums if totals is None else add(totals, sums)
    return finish(objective, jax.tree.map(lambda total: jnp.asarray(total, jnp.float32), totals))


def predict_source(
    model: Model,
    weights: Weights,
    source: Source,
    *,
    batch_size: int | None = None,
    window_bytes: int = BYTES,
) -> Iterator[np.ndarray]:
    """`predict` of the rows of a source, in their order, piece by piece: NumPy arrays (rows of a window, ...).

    >>> from jaxdl import mlp
    >>> source = Source(5, lambda rows: Examples(rows[:, None] * 1.0, rows, np.ones(len(rows), np.float32)))
    >>> model = mlp((), outputs=2)
    >>> weights = model.init(jax.random.key(0), head(source, 1).inputs)
    >>> [piece.shape for piece in predict_source(model, weights, source, batch_size=1, window_bytes=40)]
    [(2, 2), (2, 2), (1, 2)]
    """
    for piece in _pieces(weights, source, batch_size, window_bytes, lambda rows: rows):
        outputs = np.asarray(_outputs(model, weights, piece.batches.inputs, np.int32(piece.full)))
        yield outputs[:, : piece.size].reshape(-1, *outputs.shape[2:])[: piece.rows]


class _Piece(NamedTuple):
    batches: Examples  # (K, B, ...), filled up
    full: int  # batches that are not filled up
    size: int  # rows of a batch that are not filled up
    rows: int  # of them all


def _pieces(
    weights: Weights, source: Source, batch_size: int | None, window_bytes: int, prepare: Callable[[Examples], Examples]
) -> Iterator[_Piece]:
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}.")
    first, home = head(source, 1), home_of(weights)
    size = min(source.count, batch_size or batch_rows(first.inputs))
    cut = cut_rows(first, source.count, size, window_bytes)

    def make(number: int) -> Examples:
        window: Examples = load(source, first, cut, number, lambda places: places, home, prepare=prepare)
        return window

    with fetching(make, cut.windows) as fetch:
        for number in range(cut.windows):
            full = min(cut.held, cut.batches - number * cut.held)
            rows = min(cut.held * size, cut.rows - number * cut.held * size)
            yield _Piece(fetch.get(number), full, size, rows)


@partial(program, static_argnames=("model", "objective"))
def _sums(model: Model, objective: Objective, weights: Weights, batches: Examples, count: Any) -> Sums:
    step = make_eval_step(model, objective, prepared=True)
    zero = zeros_of(step, weights, _batch(batches, 0))
    return lax.fori_loop(0, count, lambda index, sums: add(sums, step(weights, _batch(batches, index))), zero)


@partial(program, static_argnames="model")
def _outputs(model: Model, weights: Weights, inputs: Array, count: Any) -> Array:
    def outputs_at(index: Any) -> Array:
        return model.apply(weights, _batch(inputs, index), train=False)[0]

    one = jax.eval_shape(outputs_at, 0)
    everything = lax.fori_loop(
        0,
        count,
        lambda index, found: lax.dynamic_update_index_in_dim(found, outputs_at(index), index, 0),
        jnp.zeros((inputs.shape[0], *one.shape), one.dtype),
    )
    # On every device, because the host of each process reads them all.
    return lax.with_sharding_constraint(everything, PartitionSpec()) if data_devices() > 1 else everything


def _batch(batches: T, index: Any) -> T:
    return split_rows(jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, False), batches))
