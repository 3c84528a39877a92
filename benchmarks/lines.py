"""The lines of the table, each with its limit, from what was measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from benchmarks import starts
from benchmarks.arrays import TIMES
from benchmarks.contestants.installed import sizes
from benchmarks.contestants.start import OURS, Contestant
from benchmarks.keeping import Kept
from benchmarks.limits import limit
from benchmarks.measure import Found, Measured, repeated
from benchmarks.rows import LESSON, Row, rows_title
from benchmarks.sizes import Cost, memory
from benchmarks.table import Line
from benchmarks.tasks import MEMBERS

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


def of_rows(table: Sequence[Row], found: Mapping[str, Found]) -> list[Line]:
    """Those of the rows; a sweep's beside its members one after the other."""
    made = []
    for row in table:
        mine = found[row.title]
        if row.group == "sweep":
            alone = found[table[0].title]
            mine = {**{name: repeated(one, MEMBERS) for name, one in alone.items()}, OURS.name: mine[OURS.name]}
        epochs = mine[OURS.name].epochs if row.per == "stop" else row.epochs
        made.append(Line(row.title, mine, limit(row, epochs).seconds))
    return made


def of_starts(
    contestants: Sequence[Contestant], peers: str, plain: Row, found: Mapping[str, Found], rounds: int
) -> list[Line]:
    """Imports, and runs in a new process that has and has not compiled before; their memory."""
    importing, floor = starts.imports(contestants, peers, rounds)
    made = [Line("import", importing, floor.median, f"import of {starts.FLOOR}")]
    # A library's variants start as it does, or later.
    starting = [one for one in contestants if not {"--large", "--compile"} & set(one.flags)]
    least = floor.median + limit(plain, plain.epochs).seconds
    both = starts.first_epochs(starting, peers, plain.task, rounds)
    for first, how in zip(both, ("nothing compiled before", "compiled before"), strict=True):
        whole = {
            name: one if one.error else _and(one, found[plain.title][name], plain.epochs) for name, one in first.items()
        }
        of = f"import of {starts.FLOOR}, and FLOPs"
        made.append(Line(f"a process of one epoch of `plain`, {how}", first, floor.median, f"import of {starts.FLOOR}"))
        made.append(Line(f"a process of 200 epochs of `plain`, {how}", whole, least, of))
    peak = {name: Measured((one.memory,)) for name, one in first.items() if not one.error}
    made.append(Line("peak memory of that process", peak, floor.memory, f"import of {starts.FLOOR}", "MB"))
    return made


def _and(first: Measured, whole: Measured, epochs: int) -> Measured:
    """A process of one epoch, and the other epochs as they were measured."""
    if whole.error:
        return whole
    more = whole.median * (epochs - 1) / epochs
    return first._replace(seconds=tuple(s + more for s in first.seconds), derived=True)


def of_keeping(kept: Sequence[Kept]) -> list[Line]:
    """Those of checkpoints and logs; of jaxdl alone."""
    return [Line(one.title, {OURS.name: one.measured}, one.limit, one.of) for one in kept]


def of_sizes(peers: str) -> list[Line]:
    """What an installation takes on the disk."""
    ours = sizes(sys.executable, "jaxdl", FIXED)
    found = {OURS.name: Measured((ours["jaxdl"] or 0.0,))}
    by_packages = sizes(peers, *PACKAGES.values())
    for name, packages in PACKAGES.items():
        size = by_packages[packages]
        if size is not None:
            found[name] = Measured((size,))
    return [Line("installed files", found, ours[FIXED] or 0.0, "what jaxdl is bound to have", "MB")]


def costs(table: Sequence[Row], found: Mapping[str, Found]) -> list[Cost]:
    """An epoch of more and more rows."""
    by_title = {row.title: row for row in table}
    made = []
    for times in TIMES:
        row = by_title[rows_title(times)]
        peak, data = memory(row.task)
        made.append(Cost(times * LESSON, found[row.title][OURS.name].median, peak, data))
    return made


def peers_by_rows(found: Mapping[str, Found]) -> dict[str, list[tuple[int, float]]]:
    """(rows, seconds an epoch) of each peer, as far as they were measured."""
    made: dict[str, list[tuple[int, float]]] = {}
    for times in TIMES:
        for name, one in found[rows_title(times)].items():
            if name != OURS.name and one.seconds and not one.derived:
                made.setdefault(name, []).append((times * LESSON, one.median))
    return made
