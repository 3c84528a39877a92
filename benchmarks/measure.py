"""Measures the rows with all contestants in turn, round after round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.contestants.start import OURS, Ask
from benchmarks.rows import Row, seconds

BOX = 0.2  # seconds of a run: it has as many epochs, or times, as fit into them
FAR = 3  # times ours: who takes longer in each of the first rounds is not run again, but for the best peer
SURE = 2  # how many those are
LONGEST = 1.0  # seconds of a row beyond which a peer is not run where a tenth of the row was: ten times that stands


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
    began = time.perf_counter()
    found: Found = {}
    amounts: dict[str, int] = {}
    for name, ask in asks.items():
        tenth = before.get(name) if before and name != OURS.name else None
        if tenth and (tenth.error or 10 * tenth.median > LONGEST):
            found[name] = repeated(tenth, 10)
            continue
        answer = prepare(row, ask)
        if "error" in answer:
            found[name] = Measured((), error=str(answer["error"]))
        else:
            amounts[name] = amount(row, answer["ends"])
    ready = time.perf_counter()
    found |= in_turn(row, asks, amounts, rounds)
    tell(f"{row.title}: prepared in {ready - began:.0f} s, measured in {time.perf_counter() - ready:.0f} s")
    found = {name: found[name] for name in asks}
    tell("    " + ", ".join(f"{name} {one.error or f'{one.median:.3g} s'}" for name, one in found.items()))
    return found


def prepare(row: Row, ask: Ask) -> dict:
    """The answer to a first run, or to one in which nothing is compiled any more; or the error."""
    answer = ask({"prepare": row.task._asdict()})
    if "error" not in answer:
        answer = ask({"run": 2, "seed": 0})
    # A long epoch is as long as another, but a short one may end with the one before.
    if "error" not in answer and row.per not in ("stop", "sweep") and answer["ends"][-1] - answer["ends"][0] < BOX:
        answer = ask({"run": 3, "seed": 0})
    return answer


def in_turn(row: Row, asks: Mapping[str, Ask], amounts: Mapping[str, int], rounds: int) -> Found:
    """Runs of so many epochs, or times, of each, round after round; who fails has no figure."""
    taken: dict[str, list[float]] = {name: [] for name in amounts}
    epochs: dict[str, list[int]] = {name: [] for name in amounts}
    found: Found = {}
    for seed in range(rounds):
        behind = far(taken) if seed >= SURE else set()
        for name, many in amounts.items():
            if name in behind or (name in found and found[name].error):
                continue
            answer = asks[name]({"run": many, "seed": seed})
            if "error" in answer:
                found[name] = Measured((), error=str(answer["error"]))
                continue
            taken[name].append(seconds(row, answer["ends"]))
            epochs[name].append(len(answer["ends"]))
            mean = statistics.mean(epochs[name])
            found[name] = Measured(tuple(taken[name]), answer["memory"], answer["figure"], mean)
    return found


def far(taken: Mapping[str, Sequence[float]]) -> set[str]:
    """Who took so much longer than jaxdl in some rounds that it need not go on; never the best peer.

    >>> sorted(far({"jaxdl": [1.0, 1.1], "near": [5.0, 3.0], "far": [5.0, 3.1], "failed": []}))
    ['far']
    >>> far({"jaxdl": [1.0], "best": [9.0]})
    set()
    """
    least = {name: min(seconds) for name, seconds in taken.items() if seconds}
    peers = {name: seconds for name, seconds in least.items() if name != OURS.name}
    if OURS.name not in least or not peers:
        return set()
    most = max(FAR * least[OURS.name], min(peers.values()))
    return {name for name, seconds in peers.items() if seconds > most}


def repeated(measured: Measured, times: int) -> Measured:
    """What it would need for so many of the same, one after the other."""
    if measured.error:
        return measured
    return measured._replace(seconds=tuple(times * s for s in measured.seconds), derived=True)


def amount(row: Row, ends: Sequence[float]) -> int:
    """How many epochs, or times, a run of about BOX seconds has.

    >>> from benchmarks.tasks import Task
    >>> amount(Row("", "", Task("plain", "train", "mlp", "", 767), "whole", epochs=200), [0.3, 0.31])
    20
    """
    if row.per in ("stop", "sweep"):
        return row.epochs
    one = max(1e-6, (ends[-1] - ends[0]) / (len(ends) - 1))
    return max(2, min(row.epochs if row.per == "whole" else 10_000, round(BOX / one)))
