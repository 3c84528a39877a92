"""The plot of cost against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """What an epoch of so many rows costs."""

    rows: int
    seconds: float
    memory: float  # MB, the peak of a process that does nothing else
    data: float  # MB of the rows themselves


def plot(costs: Sequence[Cost], ends: Sequence[Cost], peers: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Three pictures: seconds an epoch, seconds around whole batches, memory beside the data.

    ends: epochs of a few rows less or more than whole batches; peers: (rows, seconds) of each.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, edge, memory) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    rows = [cost.rows for cost in costs]
    speed.plot(rows, [cost.seconds for cost in costs], "o-", color="black", linewidth=2, label="jaxdl")
    for name, points in peers.items():
        speed.plot(*zip(*points, strict=True), ".-", linewidth=1, label=name)
    speed.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds an epoch", title="An epoch")
    speed.legend(fontsize="x-small")
    edge.plot([cost.rows for cost in ends], [1e3 * cost.seconds for cost in ends], "o-", color="black")
    edge.set(xlabel="rows, 32 a batch", ylabel="milliseconds an epoch", title="Around a whole batch", ylim=(0, None))
    memory.plot(rows, [cost.memory for cost in costs], "o-", color="black", label="peak of the process")
    memory.plot(rows, [cost.memory - cost.data for cost in costs], "s--", color="tab:blue", label="less the data, once")
    memory.plot(rows, [cost.data for cost in costs], ":", color="tab:orange", label="the data")
    memory.set(xscale="log", yscale="log", xlabel="rows", ylabel="MB", title="Memory")
    memory.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
