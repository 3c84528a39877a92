"""Measures the rows with all contestants in turn, round after round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.contestants import OURS, Ask
from benchmarks.rows import Row, seconds

BOX = 0.3  # seconds that a run should take: it is cut to as many epochs, or times, as fit
FAR, SURE = 4, 2  # times ours: who takes longer in each of the first rounds is not run again; how many those are
LONGEST = 1.0  # seconds of an epoch beyond which a contestant is not run: its tenth part tells


class Measured(NamedTuple):
    """What a contestant needs for a row."""

    seconds: tuple[float, ...]  # of each round
    memory: float = 0.0  # the process's peak in MB, after the row
    figure: float = 0.0
    epochs: float = 0.0  # that a run had
    derived: bool = False  # whether it is ten times what a tenth of the row needs
    error: str = ""

    @property
    def median(self) -> float:
        """Seconds, the median of the rounds."""
        return statistics.median(self.seconds)


Found = dict[str, Measured]  # by contestant


def measure(
    row: Row, asks: Mapping[str, Ask], rounds: int, before: Found | None = None, tell: Callable[[str], None] = print
) -> Found:
    """The contestants' figures for a row: prepared one after the other, then measured in turn.

    before: the figures of the row that is a tenth of this one.
    """
    found: Found = {}
    amounts: dict[str, int] = {}
    began = time.perf_counter()
    for name, ask in asks.items():
        if (
            name != OURS.name
            and before
            and name in before
            and (before[name].error or 10 * before[name].median > LONGEST)
        ):
            found[name] = repeated(before[name], 10)
            continue
        answer = ask({"prepare": row.task._asdict()})
        if "error" not in answer:
            answer = ask({"run": 2, "seed": 0})
        if "error" not in answer and row.per not in ("stop", "sweep"):
            answer = ask({"run": 3, "seed": 0})  # nothing is compiled any more
        if "error" in answer:
            found[name] = Measured((), error=str(answer["error"]))
        else:
            amounts[name] = amount(row, answer["ends"])
    ready = time.perf_counter()
    taken: dict[str, list[tuple[float, dict]]] = {name: [] for name in amounts}
    for seed in range(rounds):
        for name, many in amounts.items():
            if seed >= SURE and far([s for s, _ in taken[name]], [s for s, _ in taken.get(OURS.name, ())]):
                continue
            answer = asks[name]({"run": many, "seed": seed})
            taken[name].append((seconds(row, answer["ends"]), answer))
    for name, runs in taken.items():
        last = runs[-1][1]
        epochs = statistics.mean(len(answer["ends"]) for _, answer in runs)
        found[name] = Measured(tuple(s for s, _ in runs), last["memory"], last["figure"], epochs)
    tell(f"{row.title}: prepared in {ready - began:.0f} s, measured in {time.perf_counter() - ready:.0f} s")
    found = {name: found[name] for name in asks}
    tell("    " + ", ".join(f"{name} {one.error or f'{one.median:.3g} s'}" for name, one in found.items()))
    return found


def far(seconds: Sequence[float], ours: Sequence[float]) -> bool:
    """Whether who took so long in some rounds cannot be the best peer.

    >>> far([5.0, 4.1], [1.0, 1.1]), far([5.0, 3.0], [1.0, 1.1]), far([5.0], [])
    (True, False, False)
    """
    return bool(ours) and min(seconds) > FAR * min(ours)


def repeated(measured: Measured, times: int) -> Measured:
    """What it would need for so many of the same, one after the other."""
    if measured.error:
        return measured
    return measured._replace(seconds=tuple(times * s for s in measured.seconds), derived=True)


def amount(row: Row, ends: Sequence[float]) -> int:
    """How many epochs, or times, a run of about BOX seconds has.

    >>> from benchmarks.tasks import Task
    >>> amount(Row("", "", Task("plain", "train", "mlp", "", 767), "whole", epochs=200), [0.3, 0.31])
    30
    """
    if row.per in ("stop", "sweep"):
        return row.epochs
    one = max(1e-6, (ends[-1] - ends[0]) / (len(ends) - 1))
    return max(2, min(row.epochs if row.per == "whole" else 10_000, round(BOX / one)))
