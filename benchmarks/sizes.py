"""Cost against size: seconds and memory of an epoch of more and more rows, and the plot of them."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.contestants.jaxdl_loop import prepare
from benchmarks.contestants.start import OURS
from benchmarks.starts import once
from benchmarks.tasks import BATCH, Task, load

NEAR = (-1, 0, 1, 16, 31, 32, 33)  # rows beyond whole batches
EPOCHS = 40


class Cost(NamedTuple):
    """What an epoch of so many rows costs."""

    rows: int
    seconds: float
    memory: float = 0.0  # MB, the peak of a process that trains on them and does nothing else
    data: float = 0.0  # MB of the rows themselves


def memory(task: Task) -> tuple[float, float]:
    """The peak in MB of a process that trains for an epoch, and the MB of its rows."""
    arrays = load(task)
    with tempfile.TemporaryDirectory() as folder:
        peak = once(OURS, "", task, Path(folder)).memory
    return peak, sum(array.nbytes for array in arrays.train) / 1e6


def around_batches(task: Task, rounds: int) -> list[Cost]:
    """Epochs of a few rows less and more than whole batches, in turn."""
    whole = task.rows // BATCH * BATCH
    tried = [task._replace(rows=whole + more) for more in NEAR]
    runs = {task.rows: prepare(task, load(task)) for task in tried}
    seconds: dict[int, list[float]] = {rows: [] for rows in runs}
    for index in range(-1, rounds):
        for rows, run in runs.items():
            ends = run(EPOCHS if index >= 0 else 2, max(0, index)).ends
            if index >= 0:
                seconds[rows].append((ends[-1] - ends[0]) / (len(ends) - 1))
    return [Cost(rows, statistics.median(values)) for rows, values in seconds.items()]


def plot(
    costs: Sequence[Cost], ends: Sequence[Cost], peers: Mapping[str, Sequence[tuple[int, float]]], path: Path
) -> None:
    """Three pictures: seconds an epoch, seconds around whole batches, memory beside the data.

    ends: epochs of a few rows less or more than whole batches; peers: (rows, seconds) of each.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, edge, memory) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    rows = [cost.rows for cost in costs]
    for name, points in peers.items():
        speed.plot(*zip(*points, strict=True), ".-", linewidth=1, label=name)
    speed.plot(rows, [cost.seconds for cost in costs], "o-", color="black", linewidth=2, label="jaxdl")
    speed.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds an epoch", title="An epoch")
    speed.legend(fontsize="x-small")
    edge.plot([cost.rows for cost in ends], [1e3 * cost.seconds for cost in ends], "o-", color="black")
    edge.set(xlabel="rows, 32 a batch", ylabel="milliseconds an epoch", title="Around whole batches")
    edge.set_ylim(0, 1.2e3 * max(cost.seconds for cost in ends))
    memory.plot(rows, [cost.memory for cost in costs], "o-", color="black", label="peak of the process")
    memory.plot(rows, [cost.data for cost in costs], ":", color="tab:orange", label="the rows")
    memory.set(xscale="log", yscale="log", xlabel="rows", ylabel="MB", title="Memory")
    memory.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
