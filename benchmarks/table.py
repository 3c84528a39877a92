"""The table as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.contestants.start import Missing
from benchmarks.measure import Found, Measured

OURS = "jaxdl"


class Line(NamedTuple):
    """A row of the table: what everyone needs for the same, and the least that it can take."""

    title: str
    found: Found
    limit: float  # in the row's unit
    of: str = ""  # what the limit is, where it is not FLOPs or bytes
    unit: str = "s"


def summary(lines: Sequence[Line]) -> str:
    """A line a row: ours, the best peer, their ratio, the limit and the share of it that is reached.

    >>> found = {"jaxdl": Measured((1.0, 2.0, 4.0)), "torch": Measured((4.0, 4.0, 4.0))}
    >>> print(summary([Line("a row", found, 0.5)]).splitlines()[-1])
    | a row | 2 s (1 - 4) | torch: 4 s | 0.5 | 0.5 s | 25 % |
    """
    head = "| what | jaxdl, median (least - greatest) | best peer | ours / its | limit | reached |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(_summary, lines)])


def _summary(line: Line) -> str:
    ours = line.found[OURS]
    peers = {name: one for name, one in line.found.items() if name != OURS and one.seconds}
    limit = f"{figure(line.limit, line.unit)}{', ' + line.of if line.of else ''}"
    share = f"{100 * line.limit / ours.median:.3g} %" if ours.seconds else ""
    if not peers:
        return f"| {line.title} | {_cell(ours, line.unit)} | | | {limit} | {share} |"
    best = min(peers, key=lambda name: peers[name].median)
    theirs = f"{best}: {_about(peers[best])}{figure(peers[best].median, line.unit)}"
    return (
        f"| {line.title} | {_cell(ours, line.unit)} | {theirs} | {ratio(ours, peers[best]):.2g} | {limit} | {share} |"
    )


def ratio(ours: Measured, peer: Measured) -> float:
    """Ours over a peer's: of the medians, since rounds that follow each other are not equally disturbed.

    >>> ratio(Measured((1.0, 1.0, 9.0)), Measured((2.0, 2.0, 2.0)))
    0.5
    """
    return ours.median / peer.median


def everyone(lines: Sequence[Line], names: Sequence[str]) -> str:
    """A line a row, a column a contestant: medians, with least and greatest; ~ where a tenth was measured.

    >>> print(everyone([Line("a row", {"jaxdl": Measured((1.0,)), "b": Measured((20.0,), derived=True)}, 0.5)], ["b"]))
    | what | b |
    |---|---|
    | a row | ~20 s |
    """
    table = [f"| what | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for line in lines:
        cells = [_cell(line.found.get(name), line.unit) for name in names]
        table.append(f"| {line.title} | {' | '.join(cells)} |")
    return "\n".join(table)


def _cell(measured: Measured | None, unit: str) -> str:
    if measured is None or not measured.seconds:
        return ""
    return _about(measured) + (figure(measured.median, unit) if measured.derived else _spread(measured, unit))


def _about(measured: Measured) -> str:
    return "~" if measured.derived else ""


def _spread(measured: Measured, unit: str) -> str:
    if not measured.seconds:
        return measured.error
    if len(measured.seconds) == 1:
        return figure(measured.median, unit)
    least, most = (figure(end(measured.seconds), unit, bare=True) for end in (min, max))
    return f"{figure(measured.median, unit)} ({least} - {most})"


def figure(value: float, unit: str = "s", *, bare: bool = False) -> str:
    """Three digits and the unit.

    >>> figure(0.012345), figure(1234.5, "MB"), figure(123.4, bare=True)
    ('0.0123 s', '1230 MB', '123')
    """
    digits = f"{float(f'{value:.3g}'):g}"
    return digits if bare else f"{digits} {unit}"


def absent(missing: Sequence[Missing], errors: Mapping[str, str]) -> str:
    """Who is missing, and why; which rows someone cannot do, and why.

    >>> absent([Missing("torch", "not installed: torch")], {})
    '* torch: not installed: torch'
    """
    reasons = {one.name: one.reason for one in missing} | dict(errors)
    return "\n".join(f"* {name}: {reason}" for name, reason in reasons.items())
