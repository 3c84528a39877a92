"""Runs as tables for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, get_args

from rich.text import Text

from jaxdl._format import short
from jaxdl.runs.catalog import METRICS_PART, Column, Difference, RunDetails, RunInfo, flat
from jaxdl.runs.folders import KIND, USAGE
from jaxdl.types import SETS

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


NARROW: tuple[Column, ...] = ("run", "recipe", "seed", "best", "test", "reason", "time", "commit")
WIDE = 140  # columns of a terminal from which on all are shown
NUMBERS = ("seed", "best", "test", "time", "epochs", "parameters")
LEADING = ("recipe", "seed", "reason", "epochs", "best_epoch", "parameters", "dataset")  # told by lines of their own
ABOUT = (KIND, *USAGE, "dataset", "versions", "devices", "platform", "commit", "changes", "workdir")


def listed(rows: Sequence[RunInfo], width: int = 80) -> Table:
    """Rows of a listing in `width` columns, 80 or more; from 140 on with all columns."""
    table, columns = _table(), get_args(Column) if width >= WIDE else NARROW
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left", no_wrap=column in NUMBERS)
    for each in rows:
        table.add_row(*(_cell(each, column, width) for column in columns))
    return table


def notes(rows: Iterable[RunInfo]) -> list[str]:
    """What stands below a listing: what its figures are, and what is damaged."""
    rows = list(rows)
    figures = " or ".join(sorted({each.figure for each in rows if each.figure}))
    meaning = f"best: {figures} of the validation rows at the best epoch; test: of the test rows, by the same weights."
    return [meaning] * bool(figures) + [f"{each.run}: {each.problem}" for each in rows if each.problem]


def compared(found: Sequence[Difference], names: tuple[str, str]) -> Table:
    """Return a table of the entries that differ between two runs of these names; of numeric metrics, the change too."""
    table = _table()
    for name in ("", *names, "change"):
        table.add_column(Text(name), justify="right" if name else "left", overflow="fold")
    for part, entries in groupby(found, lambda each: each.part):
        table.add_row(Text(part, "bold"))
        for each in entries:
            known = part == METRICS_PART and all(_is_number(value) for value in (each.a, each.b))
            change = f"{each.b - each.a:+.4g}" if known else ""
            table.add_row(*map(Text, (f"  {each.entry}", words(each.a), words(each.b), change)))
    return table


def told(of: RunDetails) -> RenderableType:
    """Print a run's folder on a page: its flags, how it ended, its metrics beside those of baselines."""
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, line in _lines(of):
        table.add_row(label, Text(line, "bold red" if label == "note" else ""))
    figures = _figures(of)
    return Group(table, "", figures) if figures.row_count else Group(table)


def _lines(of: RunDetails) -> Iterator[tuple[str, str]]:
    row, config, metrics = of.row, of.config, of.metrics or {}
    data = _object(config.get("dataset"))
    yield "run", row.run
    yield "told", _pairs({name: value for name, value in config.items() if name not in ABOUT and _says(value)})
    for change in config.get("changes") or ():
        flags = {name: value for name, value in _object(change).items() if name != "after_epoch"}
        changed = ", ".join(f"{name} {words(before)} to {words(now)}" for name, (before, now) in flags.items())
        yield "changed", f"after epoch {change['after_epoch']}: {changed}"
    if data:
        yield "data", _pairs({name: value for name, value in flat(data) if name != "note" and _says(value)})
    if data.get("note"):
        yield "note", str(data["note"])
    network = _object(config.get("network"))
    if network or row.parameters is not None:
        said = [f"{network['kind']} ({_pairs(_object(network.get('arguments')))})"] if "kind" in network else []
        yield "network", ", ".join(said + ([f"{row.parameters:,} parameters"] if row.parameters is not None else []))
    best = f"; best epoch {row.best_epoch}" if row.best_epoch else ""
    yield "ended", f"{row.reason}, after epoch {row.epochs}{best}"
    if row.seconds is not None:
        seconds = {name: value for name, value in _object(metrics.get("seconds")).items() if name != "total"}
        parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items() if _is_number(value))
        yield "time", duration(row.seconds) + (f" ({parts})" if parts else "")
    yield "begun", f"{row.when}, or changed then"
    around = {name: config[name] for name in ("commit", "devices", "platform") if config.get(name)}
    yield "ran on", _pairs({**around, **_object(config.get("versions"))})
    known = {*config, *LEADING, "seconds", "baselines", *_measured(metrics)}
    more = dict(flat({name: value for name, value in metrics.items() if name not in known}))
    if more:
        yield "more", _pairs(more)
    yield "files", ", ".join(f"{name} {short(count, 'B')}" for name, count in of.files.items())


def _measured(metrics: Mapping[str, Any]) -> list[str]:
    return [name for name, value in metrics.items() if {*_object(value)} == {*SETS}]


def _figures(of: RunDetails) -> Table:
    table, metrics = _table(), of.metrics or {}
    for name in ("", "", *SETS):
        table.add_column(name, justify="right" if name in SETS else "left")
    measured = _measured(metrics)
    for figure in (name for name in measured if not name.endswith("_best")):
        rows = {f"after epoch {of.row.epochs}": metrics[figure]}
        if f"{figure}_best" in measured:
            rows[f"best epoch {of.row.best_epoch}"] = metrics[f"{figure}_best"]
        for name, values in _object(metrics.get("baselines")).items():
            if f"test_{figure}" in _object(values):
                rows[name.replace("_", " ")] = {"test": values[f"test_{figure}"]}
        for place, (name, values) in enumerate(rows.items()):
            shown = [number(values[of_set], figure) if of_set in values else "" for of_set in SETS]
            table.add_row("" if place else Text(figure, "bold"), Text(name), *shown)
    return table


def _table() -> Table:
    from rich.table import Table

    return Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold underline")


def _cell(of: RunInfo, column: Column, width: int) -> Text:
    value = getattr(of, "seconds" if column == "time" else column)
    if value is None:
        return Text("")
    if column in ("best", "test"):
        return Text(number(value, of.figure or ""))
    if column == "time":
        return Text(duration(value))
    # Words are broken at their hyphens, which rich would not do.
    room = {"run": max(12, width - 60), "recipe": 10, "reason": 10} if width < WIDE else {"run": width - 107}
    return Text(textwrap.fill(str(value), room[column]) if column in room else str(value))


def number(value: Any, figure: str) -> str:
    """A figure for people: accuracies in per cent, others with three digits after the point."""
    if not _is_number(value) or not math.isfinite(value):
        return "nan"
    if figure.endswith("accuracy"):
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that people would use."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def words(value: Any) -> str:
    """An entry of a configuration or a result for people."""
    if isinstance(value, list):
        return " ".join(map(words, value)) or "none"
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _says(value: Any) -> bool:
    return value is not None and value is not False and value != []


def _pairs(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {words(value)}" for name, value in entries.items())


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
