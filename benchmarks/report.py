"""The page that a run of the table leaves."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from benchmarks.contestants.start import Contestant, Missing
from benchmarks.sizes import Cost
from benchmarks.table import Line, absent, everyone, figure, summary

READING = """Seconds unless said otherwise: medians of {rounds} rounds in which the contestants took turns, with the
least and the greatest; who took over {far} times as long as jaxdl in the first {sure} was run no more, but for the best
peer. A run is cut to as many epochs or times as take about a fifth of a second, and the rest calculated from it;
images are {trained} to train on and {measured} to predict, scaled to the row. `~`: calculated from a tenth of the row
(rows), from a run alone (seeds: one after the other, each on as many cores as is fastest for one), or from a process
of one epoch and the row of `plain` (200 epochs). `large`: Keras with `steps_per_execution` of an epoch. The limit is
the larger of FLOPs over what a matrix product or a convolution of the row's shape reached in this run, and of bytes
over what a copy reached; where it is something else, that is said. Reached is the limit over our time."""


def page(
    machine: str,
    lines: Sequence[Line],
    contestants: Sequence[Contestant],
    missing: Sequence[Missing],
    costs: Sequence[Cost],
    ends: Sequence[Cost],
    reading: str,
    minutes: float,
    picture: str,
) -> str:
    """The page as Markdown."""
    names = [one.name for one in contestants]
    # Of each who cannot do a row, the first such row.
    errors = {
        name: f"{line.title}: {one.error}" for line in reversed(lines) for name, one in line.found.items() if one.error
    }
    gone = absent(missing, errors)
    return (
        "\n\n".join(
            [
                f"# The table, {datetime.date.today()}",
                f"{machine}. Made by `python -m benchmarks` in {minutes:.1f} minutes.",
                reading,
                "## Beside the best peer",
                summary(lines),
                "## Everyone",
                everyone(lines, names),
                *(["Missing, or not possible:", gone] if gone else []),
                "## Cost against size",
                f"![An epoch, whole batches, memory]({picture})",
                _sizes(costs, ends),
            ]
        )
        + "\n"
    )


def _sizes(costs: Sequence[Cost], ends: Sequence[Cost]) -> str:
    head = (
        "| rows | an epoch | a thousand rows | peak memory | the rows | peak less that of the fewest, over the rows |"
    )
    table = [head, "|---|---|---|---|---|---|"]
    for cost in costs:
        more = (cost.memory - costs[0].memory) / cost.data
        table.append(
            f"| {cost.rows:,} | {figure(cost.seconds)} | {figure(1e6 * cost.seconds / cost.rows, 'ms')} "
            f"| {figure(cost.memory, 'MB')} | {figure(cost.data, 'MB')} | {more:.2f} |"
        )
    edge = ["| rows, 32 a batch | an epoch |", "|---|---|"]
    edge += [f"| {cost.rows} | {figure(1e3 * cost.seconds, 'ms')} |" for cost in ends]
    return "\n".join([*table, "", *edge])
