"""The results page of the benchmark table: lines with their limits as Markdown, and the plot of data sizes."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks import measure
from benchmarks.contestants.installed import sizes
from benchmarks.contestants.start import OURS, Contestant, Missing
from benchmarks.limits import limit
from benchmarks.measure import Cost, Measurement, Measurements, SavingCost
from benchmarks.rows import LESSON, TIMES, Row, size_title
from benchmarks.tasks import MEMBERS

RESULTS = Path(__file__).parent / "results"
READING = """Values are seconds unless another unit is given: medians of {rounds} rounds in which the contestants took
turns, with the least and the greatest. A peer that took more than {far} times as long as jaxdl in the first {sure}
rounds was not run again, except the best peer. A run has as many epochs or repetitions as take about a fifth of a
second, and the full time is calculated from it; image rows train on {trained} and predict {measured} images and are
scaled up. `~` marks calculated values: from the row with a tenth of the examples, from a single run (seeds, one after
the other, each on the fastest number of cores for one run), or from a process of one epoch and the row of `plain` (200
epochs). `large` is Keras with an epoch in one `steps_per_execution`. The limit is the larger of two quotients: FLOPs
over the rate of a matrix product or a convolution of the same shape, and bytes over the bandwidth of a copy, both
measured in this run; other limits are named. Reached is the limit over the time of jaxdl."""

# The packages that each needs, and those that jaxdl cannot do without.
PACKAGES = {
    "torch": "torch",
    "scikit-learn": "scikit-learn",
    "Flax, jit a step": "flax+optax",
    "Keras, JAX": "keras+jax",
    "Keras, TensorFlow": "keras+tensorflow-cpu",
    "Keras, torch": "keras+torch",
}
FIXED = "jax+flax+optax+orbax-checkpoint+tensorflow-datasets+pandas+matplotlib+tensorboardX"


class Line(NamedTuple):
    """A line of the page: the measurements of all contestants, and their lower limit."""

    title: str
    measurements: Measurements
    limit: float  # in the row's unit
    of: str = ""  # what the limit consists of, if not of FLOPs or bytes
    unit: str = "s"


# The lines, from the measurements.


def row_lines(table: Sequence[Row], measurements: Mapping[str, Measurements]) -> list[Line]:
    """Return the lines of the rows; peers of a sweep train its members one after the other."""
    lines = []
    for row in table:
        times = measurements[row.title]
        if row.group == "sweep":
            single = measurements[table[0].title]
            times = {name: measure.multiply(one, MEMBERS) for name, one in single.items()} | times
        epochs = times[OURS.name].epochs if row.per == "stop" else row.epochs
        lines.append(Line(row.title, times, limit(row, epochs).seconds))
    return lines


def start_lines(
    contestants: Sequence[Contestant], peers: str, plain: Row, whole: Measurements, rounds: int
) -> list[Line]:
    """Measure imports, and processes with a cold and with a warm compilation cache; return lines with their memory.

    whole: the measurements of the row `plain`.
    """
    importing, floor = measure.measure_imports(contestants, peers, rounds)
    import_limit = f"import of {measure.FLOOR}"
    lines = [Line("import", importing, floor.median, import_limit)]
    # Variants of a library start no faster than the library.
    starting = [one for one in contestants if not {"--large", "--compile"} & set(one.flags)]
    least = floor.median + limit(plain, plain.epochs).seconds
    both = measure.measure_starts(starting, peers, plain.task, rounds)
    for first, method in zip(both, ("nothing compiled before", "compiled before"), strict=True):
        full = {name: one if one.error else _add_epochs(one, whole[name], plain.epochs) for name, one in first.items()}
        lines += [
            Line(f"a process of one epoch of `plain`, {method}", dict(first), floor.median, import_limit),
            Line(f"a process of 200 epochs of `plain`, {method}", full, least, f"{import_limit}, and FLOPs"),
        ]
    peak = {name: Measurement((one.memory,)) for name, one in first.items() if not one.error}
    lines.append(Line("peak memory of that process", peak, floor.memory, import_limit, "MB"))
    return lines


def _add_epochs(first: Measurement, whole: Measurement, epochs: int) -> Measurement:
    """Return the seconds of a process of all epochs: those of one epoch, plus the measured time of the others."""
    if whole.error:
        return whole
    more = whole.median * (epochs - 1) / epochs
    return first._replace(seconds=tuple(s + more for s in first.seconds), derived=True)


def saving_lines(costs: Sequence[SavingCost]) -> list[Line]:
    """Return the lines of checkpoints and logs, for jaxdl only."""
    return [Line(cost.title, {OURS.name: cost.measured}, cost.limit, cost.of) for cost in costs]


def size_lines(peers: str) -> list[Line]:
    """Return the line of the size of each installation on the disk."""
    ours = sizes(sys.executable, "jaxdl", FIXED)
    measurements = {OURS.name: Measurement((ours["jaxdl"] or 0.0,))}
    by_packages = sizes(peers, *PACKAGES.values())
    for name, packages in PACKAGES.items():
        size = by_packages[packages]
        if size is not None:
            measurements[name] = Measurement((size,))
    return [Line("installed files", measurements, ours[FIXED] or 0.0, "the dependencies of jaxdl", "MB")]


def epoch_costs(table: Sequence[Row], measurements: Mapping[str, Measurements]) -> list[Cost]:
    """Return the cost of an epoch of jaxdl, by the number of examples."""
    by_title = {row.title: row for row in table}
    costs = []
    for times in TIMES:
        row = by_title[size_title(times)]
        peak, data = measure.memory(row.task)
        costs.append(Cost(times * LESSON, measurements[row.title][OURS.name].median, peak, data))
    return costs


def peer_costs(measurements: Mapping[str, Measurements]) -> dict[str, list[tuple[int, float]]]:
    """Return the measured (examples, seconds per epoch) of each peer."""
    costs: dict[str, list[tuple[int, float]]] = {}
    for times in TIMES:
        for name, one in measurements[size_title(times)].items():
            if name != OURS.name and one.seconds and not one.derived:
                costs.setdefault(name, []).append((times * LESSON, one.median))
    return costs


# The page.


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
    """Return the page as Markdown."""
    names = [one.name for one in contestants]
    # Of each contestant with errors, the first row that fails.
    errors = {
        name: f"{line.title}: {one.error}"
        for line in reversed(lines)
        for name, one in line.measurements.items()
        if one.error
    }
    absent = list_missing(missing, errors)
    return (
        "\n\n".join(
            [
                f"# The table, {datetime.date.today()}",
                f"{machine}. Made by `python -m benchmarks` in {minutes:.1f} minutes.",
                reading,
                "## Compared with the best peer",
                summary(lines),
                "## All contestants",
                full_table(lines, names),
                *(["Missing, or not possible:", absent] if absent else []),
                "## Cost by data size",
                f"![An epoch, whole batches, memory]({picture})",
                _sizes(costs, ends),
            ]
        )
        + "\n"
    )


def _sizes(costs: Sequence[Cost], ends: Sequence[Cost]) -> str:
    head = (
        "| examples | an epoch | a thousand examples | peak memory | the examples | growth of the peak / the examples |"
    )
    table = [head, "|---|---|---|---|---|---|"]
    for cost in costs:
        more = (cost.memory - costs[0].memory) / cost.data
        table.append(
            f"| {cost.rows:,} | {quantity(cost.seconds)} | {quantity(1e6 * cost.seconds / cost.rows, 'ms')} "
            f"| {quantity(cost.memory, 'MB')} | {quantity(cost.data, 'MB')} | {more:.2f} |"
        )
    edge = ["| examples, 32 per batch | an epoch |", "|---|---|"]
    edge += [f"| {cost.rows} | {quantity(1e3 * cost.seconds, 'ms')} |" for cost in ends]
    return "\n".join([*table, "", *edge])


def summary(lines: Sequence[Line]) -> str:
    """Return a line per row: jaxdl, the best peer, their ratio, the limit and the fraction of it that is reached.

    >>> times = {"jaxdl": Measurement((1.0, 2.0, 4.0)), "torch": Measurement((4.0, 4.0, 4.0))}
    >>> print(summary([Line("a row", times, 0.5)]).splitlines()[-1])
    | a row | 2 s (1 - 4) | torch: 4 s | 0.5 | 0.5 s | 25 % |
    """
    head = "| row | jaxdl, median (least - greatest) | best peer | jaxdl / peer | limit | reached |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(_summary, lines)])


def _summary(line: Line) -> str:
    ours = line.measurements[OURS.name]
    peers = {name: one for name, one in line.measurements.items() if name != OURS.name and one.seconds}
    limit = f"{quantity(line.limit, line.unit)}{', ' + line.of if line.of else ''}"
    reached = f"{100 * line.limit / ours.median:.3g} %" if ours.seconds else ""
    if not peers:
        return f"| {line.title} | {_cell(ours, line.unit)} | | | {limit} | {reached} |"
    best = min(peers, key=lambda name: peers[name].median)
    theirs = f"{best}: {_median(peers[best], line.unit)}"
    return (
        f"| {line.title} | {_cell(ours, line.unit)} | {theirs} | {ratio(ours, peers[best]):.2g} | {limit} | {reached} |"
    )


def ratio(ours: Measurement, peer: Measurement) -> float:
    """Return the quotient of the medians: rounds are not paired, because the load of the machine changes.

    >>> ratio(Measurement((1.0, 1.0, 9.0)), Measurement((2.0, 2.0, 2.0)))
    0.5
    """
    return ours.median / peer.median


def full_table(lines: Sequence[Line], names: Sequence[str]) -> str:
    """Return a line per row and a column per contestant: median, least and greatest; ~ marks calculated values.

    >>> times = {"jaxdl": Measurement((1.0,)), "b": Measurement((20.0,), derived=True)}
    >>> print(full_table([Line("a row", times, 0.5)], ["b"]))
    | row | b |
    |---|---|
    | a row | ~20 s |
    """
    table = [f"| row | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for line in lines:
        cells = [_cell(line.measurements.get(name), line.unit) for name in names]
        table.append(f"| {line.title} | {' | '.join(cells)} |")
    return "\n".join(table)


def _cell(measured: Measurement | None, unit: str) -> str:
    if measured is None or not measured.seconds:
        return ""
    median = _median(measured, unit)
    if measured.derived or len(measured.seconds) == 1:
        return median
    least, most = (quantity(end(measured.seconds), unit, bare=True) for end in (min, max))
    return f"{median} ({least} - {most})"


def _median(measured: Measurement, unit: str) -> str:
    return f"{'~' if measured.derived else ''}{quantity(measured.median, unit)}"


def quantity(value: float, unit: str = "s", *, bare: bool = False) -> str:
    """Return a value with three digits and its unit.

    >>> quantity(0.012345), quantity(1234.5, "MB"), quantity(123.4, bare=True)
    ('0.0123 s', '1230 MB', '123')
    """
    digits = f"{float(f'{value:.3g}'):g}"
    return digits if bare else f"{digits} {unit}"


def list_missing(missing: Sequence[Missing], errors: Mapping[str, str]) -> str:
    """Return a list of the missing contestants and of the errors, with reasons.

    >>> list_missing([Missing("torch", "not installed: torch")], {})
    '* torch: not installed: torch'
    """
    reasons = {one.name: one.reason for one in missing} | dict(errors)
    return "\n".join(f"* {name}: {reason}" for name, reason in reasons.items())


def plot(
    costs: Sequence[Cost], ends: Sequence[Cost], peers: Mapping[str, Sequence[tuple[int, float]]], path: Path
) -> None:
    """Plot the seconds of an epoch, the seconds near whole batches (`ends`), and memory, by the number of examples.

    peers: (examples, seconds) of each.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, (speed, edge, memory) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    examples = [cost.rows for cost in costs]
    for name, points in peers.items():
        speed.plot(*zip(*points, strict=True), ".-", linewidth=1, label=name)
    speed.plot(examples, [cost.seconds for cost in costs], "o-", color="black", linewidth=2, label="jaxdl")
    speed.set(xscale="log", yscale="log", xlabel="examples", ylabel="seconds per epoch", title="An epoch")
    speed.legend(fontsize="x-small")
    edge.plot([cost.rows for cost in ends], [1e3 * cost.seconds for cost in ends], "o-", color="black")
    edge.set(xlabel="examples, 32 per batch", ylabel="milliseconds per epoch", title="Near whole batches")
    edge.set_ylim(0, 1.2e3 * max(cost.seconds for cost in ends))
    memory.plot(examples, [cost.memory for cost in costs], "o-", color="black", label="peak of the process")
    memory.plot(examples, [cost.data for cost in costs], ":", color="tab:orange", label="the examples")
    memory.set(xscale="log", yscale="log", xlabel="examples", ylabel="MB", title="Memory")
    memory.legend(fontsize="x-small")
    picture.savefig(path, dpi=120)
    pyplot.close(picture)


def describe_machine() -> str:
    """Return processor, cores, memory, accelerator and versions in one line."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    device = jax.devices()[0]
    accelerator = "no accelerator" if device.platform == "cpu" else device.device_kind
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax"))
    return (
        f"{_processor()}, {os.cpu_count()} cores, {gigabytes:.0f} GiB, {accelerator}; "
        f"Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
