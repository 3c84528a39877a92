"""How often a deed is done, for hand-written loops: a given number of times, or until early stopping ends it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from benchmarks.contestants.protocol import Result
from benchmarks.tasks import MOST_EPOCHS, PATIENCE, Task


def laps(task: Task, times: int, lap: Callable[[], float | np.ndarray]) -> Result:
    """Does `lap`, an epoch that gives its loss or what else is repeated, and notes when each is done.

    The figure is the sum of what the last one gave, taken in float64 after the clock was read: a loss is its own sum.
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
    """Rows that make a full batch and the short last one, so that both shapes are compiled at little cost."""
    return min(rows, batch + rows % batch)
