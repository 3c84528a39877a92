"""Numbers and tables as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def short(number: float, unit: str = "") -> str:
    """Return a number >= 0 with three digits, the SI prefix and the unit."""
    if not math.isfinite(number):
        return f"{number} {unit}".rstrip()
    power = 0
    # Rounded, because 999.9 is 1000 with three digits.
    while float(f"{number:.3g}") >= 1000 and power < len(PREFIXES) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {PREFIXES[power]}{unit}".rstrip()


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
