"""The page that a run of the table leaves: its lines, each with its limit, as Markdown, and the plot of sizes."""

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
from benchmarks.measure import Cost, Kept, Measurement, Measurements
from benchmarks.rows import LESSON, TIMES, Row, rows_title
from benchmarks.tasks import MEMBERS

RESULTS = Path(__file__).parent / "results"
READING = """Seconds unless said otherwise: medians of {rounds} rounds in which the contestants took turns, with the
least and the greatest; who took over {far} times as long as jaxdl in the first {sure} was run no more, but for the best
peer. A run is cut to as many epochs or times as take about a fifth of a second, and the rest calculated from it;
images are {trained} to train on and {measured} to predict, scaled to the row. `~`: calculated from a tenth of the row
(rows), from a run alone (seeds: one after the other, each on as many cores as is fastest for one), or from a process
of one epoch and the row of `plain` (200 epochs). `large`: Keras with `steps_per_execution` of an epoch. The limit is
the larger of FLOPs over what a matrix product or a convolution of the row's shape reached in this run, and of bytes
over what a copy reached; where it is something else, that is said. Reached is the limit over our time."""

# What must be installed for each, and what jaxdl is bound to have.
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
    """A row of the table: what everyone needs for the same, and the least that it can take."""

    title: str
    found: Measurements
    limit: float  # in the row's unit
    of: str = ""  # what the limit is, where it is not FLOPs or bytes
    unit: str = "s"


# The lines, from what was measured.


def row_lines(table: Sequence[Row], found: Mapping[str, Measurements]) -> list[Line]:
    """Return the lines of the rows; a sweep stands beside its members one after the other."""
    made = []
    for row in table:
        mine = found[row.title]
        if row.group == "sweep":
            alone = found[table[0].title]
            mine = {**{name: measure.multiply(one, MEMBERS) for name, one in alone.items()}, OURS.name: mine[OURS.name]}
        epochs = mine[OURS.name].epochs if row.per == "stop" else row.epochs
        made.append(Line(row.title, mine, limit(row, epochs).seconds))
    return made


def start_lines(
    contestants: Sequence[Contestant], peers: str, plain: Row, found: Mapping[str, Measurements], rounds: int
) -> list[Line]:
    """Measure imports, and runs in a new process that has and has not compiled before; their memory."""
    importing, floor = measure.measure_imports(contestants, peers, rounds)
    made = [Line("import", importing, floor.median, f"import of {measure.FLOOR}")]
    # A library's variants start as it does, or later.
    starting = [one for one in contestants if not {"--large", "--compile"} & set(one.flags)]
    least = floor.median + limit(plain, plain.epochs).seconds
    both = measure.measure_starts(starting, peers, plain.task, rounds)
    for first, method in zip(both, ("nothing compiled before", "compiled before"), strict=True):
        whole = {
            name: one if one.error else _add_epochs(one, found[plain.title][name], plain.epochs)
            for name, one in first.items()
        }
        of = f"import of {measure.FLOOR}, and FLOPs"
        made.append(
            Line(f"a process of one epoch of `plain`, {method}", first, floor.median, f"import of {measure.FLOOR}")
        )
        made.append(Line(f"a process of 200 epochs of `plain`, {method}", whole, least, of))
    peak = {name: Measurement((one.memory,)) for name, one in first.items() if not one.error}
    made.append(Line("peak memory of that process", peak, floor.memory, f"import of {measure.FLOOR}", "MB"))
    return made


def _add_epochs(first: Measurement, whole: Measurement, epochs: int) -> Measurement:
    """Add to a process of one epoch the other epochs as they were measured."""
    if whole.error:
        return whole
    more = whole.median * (epochs - 1) / epochs
    return first._replace(seconds=tuple(s + more for s in first.seconds), derived=True)


def keeping_lines(kept: Sequence[Kept]) -> list[Line]:
    """Return the lines of checkpoints and logs; of jaxdl alone."""
    return [Line(one.title, {OURS.name: one.measured}, one.limit, one.of) for one in kept]


def size_lines(peers: str) -> list[Line]:
    """Return the line of what an installation takes on the disk."""
    ours = sizes(sys.executable, "jaxdl", FIXED)
    found = {OURS.name: Measurement((ours["jaxdl"] or 0.0,))}
    by_packages = sizes(peers, *PACKAGES.values())
    for name, packages in PACKAGES.items():
        size = by_packages[packages]
        if size is not None:
            found[name] = Measurement((size,))
    return [Line("installed files", found, ours[FIXED] or 0.0, "what jaxdl is bound to have", "MB")]


def epoch_costs(table: Sequence[Row], found: Mapping[str, Measurements]) -> list[Cost]:
    """Return the cost of an epoch of more and more rows."""
    by_title = {row.title: row for row in table}
    made = []
    for times in TIMES:
        row = by_title[rows_title(times)]
        peak, data = measure.memory(row.task)
        made.append(Cost(times * LESSON, found[row.title][OURS.name].median, peak, data))
    return made


def peers_by_rows(found: Mapping[str, Measurements]) -> dict[str, list[tuple[int, float]]]:
    """Return (rows, seconds an epoch) of each peer, as far as they were measured."""
    made: dict[str, list[tuple[int, float]]] = {}
    for times in TIMES:
        for name, one in found[rows_title(times)].items():
            if name != OURS.name and one.seconds and not one.derived:
                made.setdefault(name, []).append((times * LESSON, one.median))
    return made


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
    # Of each who cannot do a row, the first such row.
    errors = {
        name: f"{line.title}: {one.error}" for line in reversed(lines) for name, one in line.found.items() if one.error
    }
    gone = list_missing(missing, errors)
    return (
        "\n\n".join(
            [
                f"# The table, {datetime.date.today()}",
                f"{machine}. Made by `python -m benchmarks` in {minutes:.1f} minutes.",
                reading,
                "## Beside the best peer",
                summary(lines),
                "## Everyone",
                full_table(lines, names),
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
            f"| {cost.rows:,} | {quantity(cost.seconds)} | {quantity(1e6 * cost.seconds / cost.rows, 'ms')} "
            f"| {quantity(cost.memory, 'MB')} | {quantity(cost.data, 'MB')} | {more:.2f} |"
        )
    edge = ["| rows, 32 a batch | an epoch |", "|---|---|"]
    edge += [f"| {cost.rows} | {quantity(1e3 * cost.seconds, 'ms')} |" for cost in ends]
    return "\n".join([*table, "", *edge])


def summary(lines: Sequence[Line]) -> str:
    """A line a row: ours, the best peer, their ratio, the limit and the share of it that is reached.

    >>> found = {"jaxdl": Measurement((1.0, 2.0, 4.0)), "torch": Measurement((4.0, 4.0, 4.0))}
    >>> print(summary([Line("a row", found, 0.5)]).splitlines()[-1])
    | a row | 2 s (1 - 4) | torch: 4 s | 0.5 | 0.5 s | 25 % |
    """
    head = "| what | jaxdl, median (least - greatest) | best peer | ours / its | limit | reached |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(_summary, lines)])


def _summary(line: Line) -> str:
    ours = line.found[OURS.name]
    peers = {name: one for name, one in line.found.items() if name != OURS.name and one.seconds}
    limit = f"{quantity(line.limit, line.unit)}{', ' + line.of if line.of else ''}"
    share = f"{100 * line.limit / ours.median:.3g} %" if ours.seconds else ""
    if not peers:
        return f"| {line.title} | {_cell(ours, line.unit)} | | | {limit} | {share} |"
    best = min(peers, key=lambda name: peers[name].median)
    theirs = f"{best}: {_about(peers[best])}{quantity(peers[best].median, line.unit)}"
    return (
        f"| {line.title} | {_cell(ours, line.unit)} | {theirs} | {ratio(ours, peers[best]):.2g} | {limit} | {share} |"
    )


def ratio(ours: Measurement, peer: Measurement) -> float:
    """Ours over a peer's: of the medians, since rounds that follow each other are not equally disturbed.

    >>> ratio(Measurement((1.0, 1.0, 9.0)), Measurement((2.0, 2.0, 2.0)))
    0.5
    """
    return ours.median / peer.median


def full_table(lines: Sequence[Line], names: Sequence[str]) -> str:
    """A line a row, a column a contestant: medians, with least and greatest; ~ where a tenth was measured.

    >>> found = {"jaxdl": Measurement((1.0,)), "b": Measurement((20.0,), derived=True)}
    >>> print(full_table([Line("a row", found, 0.5)], ["b"]))
    | what | b |
    |---|---|
    | a row | ~20 s |
    """
    table = [f"| what | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for line in lines:
        cells = [_cell(line.found.get(name), line.unit) for name in names]
        table.append(f"| {line.title} | {' | '.join(cells)} |")
    return "\n".join(table)


def _cell(measured: Measurement | None, unit: str) -> str:
    if measured is None or not measured.seconds:
        return ""
    return _about(measured) + (quantity(measured.median, unit) if measured.derived else _spread(measured, unit))


def _about(measured: Measurement) -> str:
    return "~" if measured.derived else ""


def _spread(measured: Measurement, unit: str) -> str:
    if not measured.seconds:
        return measured.error
    if len(measured.seconds) == 1:
        return quantity(measured.median, unit)
    least, most = (quantity(end(measured.seconds), unit, bare=True) for end in (min, max))
    return f"{quantity(measured.median, unit)} ({least} - {most})"


def quantity(value: float, unit: str = "s", *, bare: bool = False) -> str:
    """Three digits and the unit.

    >>> quantity(0.012345), quantity(1234.5, "MB"), quantity(123.4, bare=True)
    ('0.0123 s', '1230 MB', '123')
    """
    digits = f"{float(f'{value:.3g}'):g}"
    return digits if bare else f"{digits} {unit}"


def list_missing(missing: Sequence[Missing], errors: Mapping[str, str]) -> str:
    """Who is missing, and why; which rows someone cannot do, and why.

    >>> list_missing([Missing("torch", "not installed: torch")], {})
    '* torch: not installed: torch'
    """
    reasons = {one.name: one.reason for one in missing} | dict(errors)
    return "\n".join(f"* {name}: {reason}" for name, reason in reasons.items())


def plot(
    costs: Sequence[Cost], ends: Sequence[Cost], peers: Mapping[str, Sequence[tuple[int, float]]], path: Path
) -> None:
    """Draw three pictures: seconds an epoch, seconds around whole batches, memory beside the data.

    ends: epochs of a few rows less or more than whole batches; peers: (rows, seconds) of each.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, (speed, edge, memory) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
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
    picture.savefig(path, dpi=120)
    pyplot.close(picture)


def describe_machine() -> str:
    """Return processor, cores, memory, accelerator and versions, in a line.

    >>> "jax" in describe_machine()
    True
    """
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    device = jax.devices()[0]
    accelerator = "no accelerator" if device.platform == "cpu" else device.device_kind
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax"))
    return (
        f"{_processor()}, {os.cpu_count()} cores, {gigabytes:.0f} GiB, {accelerator}; "
        f"Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    if told.exists():
        for line in told.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
