"""Parts of the hand-written loops: the repetitions of a task, and the epochs of a loop with one call per batch.

The torch loop imports this module in an environment without JAX, so functions import JAX.
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
    """Call `lap` `times` times, or until early stopping in mode "stop", and return the end of each call.

    `lap` is an epoch that returns its loss, an evaluation or a prediction. The value of the result is the sum of the
    last return value, in float64, computed after the clock is read.
    """
    ends: list[float] = []
    best, waited, stops = math.inf, 0, task.mode == "stop"
    while len(ends) < (MOST_EPOCHS if stops else times) and waited < PATIENCE:
        value = lap()
        if stops:
            best, waited = (float(value), 0) if value < best else (best, waited + 1)
        ends.append(time.perf_counter())
    return Result(ends, float(np.sum(value, dtype=np.float64)))


def warm_up(examples: int, batch: int) -> int:
    """Return the fewest examples with a full and the short last batch, so that both shapes compile at little cost."""
    return min(examples, batch + examples % batch)


class Steps(NamedTuple):
    """The compiled steps of a JAX library."""

    begin: Callable[[int], State]  # new variables from a seed
    train: Callable[
        [State, jax.Array, jax.Array], tuple[State, jax.Array]
    ]  # the next state and the mean loss of the batch
    measure: Callable[[State, jax.Array, jax.Array], jax.Array]  # the mean loss of the batch
    predict: Callable[[State, jax.Array], jax.Array]  # the outputs of the batch


def run_steps(task: Task, arrays: Arrays, steps: Steps) -> Run:
    """Return the run of a task with compiled JAX steps, one call per batch; compile them on a few examples."""
    import jax
    import jax.numpy as jnp

    # Examples of a call without gradients: they fit the caches of a CPU, or keep a GPU busy.
    size = 4096 if task.kind == "mlp" else 64 if jax.default_backend() == "cpu" else 1024
    starts = range(0, len(arrays.validation[0]), size)
    held_out = [tuple(jnp.asarray(array[start : start + size]) for array in arrays.validation) for start in starts]

    def mean(losses: list[jax.Array], sizes: list[int]) -> float:
        """Return the mean over examples of the mean losses of batches."""
        return float(np.average(jax.device_get(losses), weights=sizes))

    def train_epoch(state: State, order: np.ndarray) -> tuple[State, float]:
        """Train an epoch whose batches NumPy selects on the host; return the new state and the mean loss."""
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

        def validate() -> float:
            return mean([steps.measure(state, x, y) for x, y in batches], sizes)

        def epoch() -> float:
            nonlocal state
            state, loss = train_epoch(state, orders.permutation(rows))
            return validate() if task.kind == "mlp" else loss

        def outputs() -> np.ndarray:
            return np.concatenate(jax.device_get([steps.predict(state, x) for x, _ in batches]))

        work: dict[str, Callable[[], float | np.ndarray]] = {"evaluate": validate, "predict": outputs}
        return laps(task, times, work.get(task.mode, epoch))

    run(1, 0, warm_up(len(arrays.train[0]), BATCH), [held_out[0], held_out[-1]])
    return run
