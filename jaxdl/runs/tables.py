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
WIDE = 140  # a terminal of this many columns shows the whole list
NUMBERS = ("seed", "best", "test", "time", "epochs", "parameters")
# Entries of metrics.json and of config.json that `details_table` prints on lines of their own.
METRICS_LINES = ("recipe", "seed", "reason", "epochs", "best_epoch", "parameters", "dataset", "seconds", "baselines")
CONFIG_LINES = (KIND, *USAGE, "dataset", "versions", "devices", "platform", "commit", "changes", "workdir")


def runs_table(rows: Sequence[RunInfo], width: int = 80) -> Table:
    """Return the list of runs as a table of `width` characters, at least 80; all columns from 140 on."""
    table, columns = _table(), get_args(Column) if width >= WIDE else NARROW
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left", no_wrap=column in NUMBERS)
    for run in rows:
        table.add_row(*(_cell(run, column, width) for column in columns))
    return table


def notes(rows: Iterable[RunInfo]) -> list[str]:
    """Return the notes below a list of runs: the meaning of its columns, and the damaged runs."""
    rows = list(rows)
    metrics = " or ".join(sorted({run.figure for run in rows if run.figure}))
    meaning = f"best: {metrics} on validation rows at the best epoch; test: on test rows, with the same weights."
    return [meaning] * bool(metrics) + [f"{run.run}: {run.problem}" for run in rows if run.problem]


def differences_table(entries: Sequence[Difference], names: tuple[str, str]) -> Table:
    """Return the entries that differ between two runs as a table, with the change of numbers in metrics.json."""
    table = _table()
    for name in ("", *names, "change"):
        table.add_column(Text(name), justify="right" if name else "left", overflow="fold")
    for part, group in groupby(entries, lambda entry: entry.part):
        table.add_row(Text(part, "bold"))
        for entry in group:
            has_numbers = part == METRICS_PART and _is_number(entry.a) and _is_number(entry.b)
            change = f"{entry.b - entry.a:+.4g}" if has_numbers else ""
            table.add_row(*map(Text, (f"  {entry.entry}", words(entry.a), words(entry.b), change)))
    return table


def details_table(details: RunDetails) -> RenderableType:
    """Return a page about a run: flags, data, network, end, time, and its metrics beside those of baselines."""
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, line in _lines(details):
        table.add_row(label, Text(line, "bold red" if label == "note" else ""))
    metrics = _metrics_table(details)
    return Group(table, "", metrics) if metrics.row_count else Group(table)


def _lines(details: RunDetails) -> Iterator[tuple[str, str]]:
    """Yield the lines of a page about a run, each with its label."""
    run, config, metrics = details.row, details.config, details.metrics or {}
    data = _object(config.get("dataset"))
    yield "run", run.run
    yield (
        "flags",
        _pairs({name: value for name, value in config.items() if name not in CONFIG_LINES and _is_set(value)}),
    )
    for change in config.get("changes") or ():
        flags = {name: value for name, value in _object(change).items() if name != "after_epoch"}
        changes = ", ".join(f"{name} {words(before)} to {words(now)}" for name, (before, now) in flags.items())
        yield "changed", f"after epoch {change['after_epoch']}: {changes}"
    if data:
        yield "data", _pairs({name: value for name, value in flat(data) if name != "note" and _is_set(value)})
    if data.get("note"):
        yield "note", str(data["note"])
    network = _object(config.get("network"))
    if network or run.parameters is not None:
        parts = [f"{network['kind']} ({_pairs(_object(network.get('arguments')))})"] if "kind" in network else []
        parts += [f"{run.parameters:,} parameters"] if run.parameters is not None else []
        yield "network", ", ".join(parts)
    best = f"; best epoch {run.best_epoch}" if run.best_epoch else ""
    yield "status", f"{run.reason}, after epoch {run.epochs}{best}"
    if run.seconds is not None:
        seconds = {name: value for name, value in _object(metrics.get("seconds")).items() if name != "total"}
        parts = [f"{name} {duration(value)}" for name, value in seconds.items() if _is_number(value)]
        yield "time", duration(run.seconds) + (f" ({', '.join(parts)})" if parts else "")
    yield "started", f"{run.when} (or its flags were changed then)"
    machine = {name: config[name] for name in ("commit", "devices", "platform") if config.get(name)}
    yield "machine", _pairs({**machine, **_object(config.get("versions"))})
    printed = {*config, *METRICS_LINES, *_names_of_metrics(metrics)}
    if more := dict(flat({name: value for name, value in metrics.items() if name not in printed})):
        yield "more", _pairs(more)
    yield "files", ", ".join(f"{name} {short(count, 'B')}" for name, count in details.files.items())


def _names_of_metrics(metrics: Mapping[str, Any]) -> list[str]:
    return [name for name, value in metrics.items() if {*_object(value)} == {*SETS}]


def _metrics_table(details: RunDetails) -> Table:
    table, metrics = _table(), details.metrics or {}
    for name in ("", "", *SETS):
        table.add_column(name, justify="right" if name in SETS else "left")
    names = _names_of_metrics(metrics)
    for metric in (name for name in names if not name.endswith("_best")):
        rows = {f"after epoch {details.row.epochs}": metrics[metric]}
        if f"{metric}_best" in names:
            rows[f"best epoch {details.row.best_epoch}"] = metrics[f"{metric}_best"]
        for name, values in _object(metrics.get("baselines")).items():
            if f"test_{metric}" in _object(values):
                rows[name.replace("_", " ")] = {"test": values[f"test_{metric}"]}
        for index, (name, values) in enumerate(rows.items()):
            numbers = [number(values[part], metric) if part in values else "" for part in SETS]
            table.add_row("" if index else Text(metric, "bold"), Text(name), *numbers)
    return table


def _table() -> Table:
    from rich.table import Table

    return Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold underline")


def _cell(run: RunInfo, column: Column, width: int) -> Text:
    value = getattr(run, "seconds" if column == "time" else column)
    if value is None:
        return Text("")
    if column in ("best", "test"):
        return Text(number(value, run.figure or ""))
    if column == "time":
        return Text(duration(value))
    # textwrap breaks words at their hyphens, which rich does not.
    widths = {"run": max(12, width - 60), "recipe": 10, "reason": 10} if width < WIDE else {"run": width - 107}
    return Text(textwrap.fill(str(value), widths[column]) if column in widths else str(value))


def number(value: Any, metric: str) -> str:
    """Return the value of a metric for people: an accuracy in per cent, others with three decimals."""
    if not _is_number(value) or not math.isfinite(value):
        return "nan"
    if metric.endswith("accuracy"):
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return seconds for people, in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def words(value: Any) -> str:
    """Return an entry of config.json or metrics.json for people."""
    if isinstance(value, list):
        return " ".join(map(words, value)) or "none"
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_set(value: Any) -> bool:
    return value is not None and value is not False and value != []


def _pairs(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {words(value)}" for name, value in entries.items())


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
