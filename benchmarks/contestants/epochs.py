"""Epochs of a JAX loop that calls a compiled step every batch, whatever library made the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contestants.loops import laps, warm_up
from benchmarks.contestants.protocol import Result, Run
from benchmarks.tasks import BATCH, Arrays, Task

# Rows of a call without gradients: what fits the caches, or keeps a GPU busy.
EVALUATED = {"mlp": 4096, "convnet": 64 if jax.default_backend() == "cpu" else 1024}
State = Any


class Steps(NamedTuple):
    """A library's compiled steps."""

    begin: Callable[[int], State]  # new weights, drawn with the seed
    train: Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]  # the next state and the batch's mean loss
    measure: Callable[[State, jax.Array, jax.Array], jax.Array]  # the batch's mean loss
    predict: Callable[[State, jax.Array], jax.Array]  # the batch's outputs


def train_epoch(state: State, data: tuple, order: np.ndarray, train: Callable) -> tuple[State, float]:
    """One step for every 32 rows, taken on the host with NumPy, then the mean loss of the rows."""
    losses, sizes = [], []
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        state, loss = train(state, *(array[rows] for array in data))
        losses.append(loss)
        sizes.append(len(rows))
    return state, mean(losses, sizes)


def mean(losses: list[jax.Array], sizes: list[int]) -> float:
    """The mean over rows of losses that are means over batches."""
    return float(np.average(jax.device_get(losses), weights=sizes))


def loop(task: Task, arrays: Arrays, steps: Steps) -> Run:
    """Does the task with the given steps, and has compiled them by a pass over few rows."""
    size = EVALUATED[task.kind]
    starts = range(0, len(arrays.validation[0]), size)
    held_out = [tuple(jnp.asarray(array[start : start + size]) for array in arrays.validation) for start in starts]

    def run(times: int, seed: int, rows: int = len(arrays.train[0]), batches: list = held_out) -> Result:
        state, orders = steps.begin(seed), np.random.default_rng(seed)
        sizes = [len(y) for _, y in batches]

        def measured() -> float:
            return mean([steps.measure(state, x, y) for x, y in batches], sizes)

        def epoch() -> float:
            nonlocal state
            state, loss = train_epoch(state, arrays.train, orders.permutation(rows), steps.train)
            return measured() if task.kind == "mlp" else loss

        def outputs() -> np.ndarray:
            return np.concatenate(jax.device_get([steps.predict(state, x) for x, _ in batches]))

        return laps(task, times, {"evaluate": measured, "predict": outputs}.get(task.deed, epoch))

    run(1, 0, warm_up(len(arrays.train[0]), BATCH), [held_out[0], held_out[-1]])
    return run
