"""What hand-written loops share: how often a task is done, and the epochs of a loop that calls a step every batch.

torch's loop imports this module in a process that has no JAX, so JAX is imported where it is used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.contestants.protocol import Result, Run
from benchmarks.tasks import BATCH, MOST_EPOCHS, PATIENCE, Arrays, Task

if TYPE_CHECKING:
    import jax

State = Any


def laps(task: Task, times: int, lap: Callable[[], float | np.ndarray]) -> Result:
    """Call `lap` a given number of times, or until early stopping ends the run, and note when each call ends.

    `lap` is an epoch that returns its loss, or an evaluation or a prediction that is repeated. The figure is the sum of
    the last return value, taken in float64 after the clock was read: a loss is its own sum.
    """
    ends: list[float] = []
    best, stale, stops = math.inf, 0, task.deed == "stop"
    while len(ends) < (MOST_EPOCHS if stops else times) and stale < PATIENCE:
        given = lap()
        if stops:
            best, stale = (float(given), 0) if given < best else (best, stale + 1)
        ends.append(time.perf_counter())
    return Result(ends, float(np.sum(given, dtype=np.float64)))


def warm_up(rows: int, batch: int) -> int:
    """Return how many rows make a full batch and the short last one, so that both shapes compile at little cost."""
    return min(rows, batch + rows % batch)


class Steps(NamedTuple):
    """The compiled steps of a JAX library."""

    begin: Callable[[int], State]  # new weights, drawn with the seed
    train: Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]  # the next state and the batch's mean loss
    measure: Callable[[State, jax.Array, jax.Array], jax.Array]  # the batch's mean loss
    predict: Callable[[State, jax.Array], jax.Array]  # the batch's outputs


def run_steps(task: Task, arrays: Arrays, steps: Steps) -> Run:
    """Do the task with compiled steps of JAX, one call a batch; a pass over few rows has compiled them before."""
    import jax
    import jax.numpy as jnp

    # Rows of a call without gradients: what fits the caches, or keeps a GPU busy.
    size = 4096 if task.kind == "mlp" else 64 if jax.default_backend() == "cpu" else 1024
    starts = range(0, len(arrays.validation[0]), size)
    held_out = [tuple(jnp.asarray(array[start : start + size]) for array in arrays.validation) for start in starts]

    def mean(losses: list[jax.Array], sizes: list[int]) -> float:
        """Return the mean over rows of losses that are means over batches."""
        return float(np.average(jax.device_get(losses), weights=sizes))

    def train_epoch(state: State, order: np.ndarray) -> tuple[State, float]:
        """Take a step for every 32 rows, which NumPy picks on the host; return the mean loss of the rows too."""
        losses, sizes = [], []
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            state, loss = steps.train(state, *(array[rows] for array in arrays.train))
            losses.append(loss)
            sizes.append(len(rows))
        return state, mean(losses, sizes)

    def run(times: int, seed: int, rows: int = len(arrays.train[0]), batches: list = held_out) -> Result:
        state, orders = steps.begin(seed), np.random.default_rng(seed)
        sizes = [len(y) for _, y in batches]

        def measured() -> float:
            return mean([steps.measure(state, x, y) for x, y in batches], sizes)

        def epoch() -> float:
            nonlocal state
            state, loss = train_epoch(state, orders.permutation(rows))
            return measured() if task.kind == "mlp" else loss

        def outputs() -> np.ndarray:
            return np.concatenate(jax.device_get([steps.predict(state, x) for x, _ in batches]))

        return laps(task, times, {"evaluate": measured, "predict": outputs}.get(task.deed, epoch))

    run(1, 0, warm_up(len(arrays.train[0]), BATCH), [held_out[0], held_out[-1]])
    return run
