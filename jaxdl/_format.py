"""Numbers and tables for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def short(number: float, unit: str = "") -> str:
    """A number of at least 0 in three digits, with the prefix of its thousands and its unit; whole ones below 1000.

    >>> short(57828, "B"), short(1_800_000), short(356), short(0.125, "FLOP/B")
    ('57.8 kB', '1.8 M', '356', '0.125 FLOP/B')
    """
    if not math.isfinite(number):
        return f"{number} {unit}".rstrip()
    power = 0
    # Rounded first: 999.9 are 1000 in three digits.
    while float(f"{number:.3g}") >= 1000 and power < len(PREFIXES) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {PREFIXES[power]}{unit}".rstrip()


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""Return a table in Markdown.

    >>> print(table(("name", "value"), [("seed", 7), ("hidden", "10|5")]))
    | name | value |
    | --- | --- |
    | seed | 7 |
    | hidden | 10\|5 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
