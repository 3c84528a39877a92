"""The results of the lesson as rows of a table, each with the values of many seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jaxdl.errors import InputError
from jaxdl.types import SETS

if TYPE_CHECKING:
    import pandas as pd


DECIMALS = {"hours": 2, "%": 1}
NO_EPOCHS = np.zeros(0, np.int64)
NOTHING_PRINTED: Mapping[str, float] = MappingProxyType({})


class Row(NamedTuple):
    """A network that is trained with many seeds, or a baseline. Its values are in its unit: 48.8 for 48.8 %."""

    section: str  # such as "Next steps"
    name: str  # such as "early stopping"
    what: str  # a description: "100, 50 nodes, stops after 10 epochs without improvement"
    figure: str  # the metric, "RMSE" or "accuracy"
    unit: str  # "hours" or "%"
    parameters: int | None
    seeds: tuple[int, ...]  # () for a baseline, which has one value for a set
    values: Mapping[str, np.ndarray]  # by set, of which some may be missing: (seeds,) floats
    epochs: np.ndarray = NO_EPOCHS  # (seeds,) ints, the number trained; (0,) for a baseline
    seconds: float = 0.0  # training time of all seeds
    printed: Mapping[str, float] = NOTHING_PRINTED  # by set: the value that the lesson prints
    best: bool = False  # whether the values are those of the best epoch, instead of the last


class SeedMean(NamedTuple):
    """The mean over the seeds."""

    mean: float  # of the finite values; nan without any
    sem: float  # standard error of the mean, std / sqrt(n) with the std's divisor n - 1; nan for fewer than two seeds
    diverged: int  # number of values that are nan or infinite

    def text(self, unit: str) -> str:
        """Return a text such as "3.49 +- 0.04", with the number of diverged seeds on a line of its own."""
        if math.isnan(self.mean):
            return "diverged" if self.diverged < 2 else f"all {self.diverged} diverged"
        error = "" if math.isnan(self.sem) else f" +- {number(self.sem, unit)}"
        return f"{number(self.mean, unit)}{error}" + (f"\n{self.diverged} diverged" if self.diverged else "")


def number(value: float, unit: str) -> str:
    """Return a value with the decimals of its unit."""
    return f"{value:.{DECIMALS.get(unit, 3)}f}"


def mean_over_seeds(values: Any) -> SeedMean:
    """Return the mean and its standard error of values, (seeds,)."""
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    mean = float(finite.mean()) if finite.size else math.nan
    error = float(finite.std(ddof=1) / math.sqrt(finite.size)) if finite.size > 1 else math.nan
    return SeedMean(mean, error, values.size - finite.size)


def check(rows: Sequence[Row]) -> None:
    """Raise InputError for a row whose sets, values and epochs do not fit its seeds."""
    for row in rows:
        for name in (*row.values, *row.printed):
            if name not in SETS:
                raise InputError(f"the sets of {row.name} must be among {', '.join(SETS)}, got {name}. Rename it.")
        count = max(1, len(row.seeds))
        for name, values in row.values.items():
            if np.shape(values) != (count,):
                raise InputError(
                    f"{row.name} must have one {name} value for each of its seeds, ({count},), got "
                    f"{np.shape(values)}. Give one value for each seed."
                )
        if np.shape(row.epochs) not in ((len(row.seeds),), (0,)):
            raise InputError(
                f"{row.name} must have the epochs of each of its {len(row.seeds)} seeds, got {np.shape(row.epochs)}. "
                "Give one number for each seed."
            )


def as_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a line for each row: means, standard errors, and the values that the lesson prints; nan where missing.

    The column diverged counts the seeds with a value of nan or infinity in any set; the means exclude these values.
    Raises InputError for rows that do not fit their seeds.
    """
    # Imported here, because only the tables need pandas.
    import pandas as pd

    check(rows)
    lines = []
    for row in rows:
        line = {**_about(row), "seeds": len(row.seeds), "diverged": _diverged(row)}
        for name in SETS:
            mean, error, _ = mean_over_seeds(row.values.get(name, ()))
            line |= {f"{name}_mean": mean, f"{name}_error": error}
        line |= {
            "epochs_mean": np.mean(row.epochs) if len(row.epochs) else math.nan,
            "best_epoch": row.best,
            "seconds": row.seconds,
        }
        lines.append(line | {f"lesson_{name}": row.printed.get(name, math.nan) for name in SETS})
    return pd.DataFrame(lines).astype({"parameters": "Int64"} if lines else {})


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the lines of `as_frame` as JSON values, with None where a value is missing."""
    records: list[dict[str, Any]] = json.loads(as_frame(rows).to_json(orient="records"))
    return records


def as_seeds(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a line for each row and seed with the values of the seed; a baseline has one line without a seed.

    Raises InputError for rows that do not fit their seeds.
    """
    import pandas as pd

    check(rows)
    lines = []
    for row in rows:
        for index, seed in enumerate(row.seeds or (None,)):
            epochs = int(row.epochs[index]) if len(row.epochs) else None
            line = {**_about(row), "seed": seed, "epochs": epochs}
            lines.append(line | {name: row.values[name][index] if name in row.values else math.nan for name in SETS})
    return pd.DataFrame(lines).astype(dict.fromkeys(("parameters", "seed", "epochs"), "Int64") if lines else {})


def table(rows: Sequence[Row], title: str = "") -> Table:
    """Return the rows as a table of rich in 80 columns, by sections, with the values that the lesson prints.

    Raises InputError for rows that do not fit their seeds.
    """
    check(rows)
    best = any(row.best for row in rows)
    caption = "+- is the standard error of the mean over seeds." + " * of the best epoch." * best
    # Without lines between columns, because the names are long.
    result = Table(title=escape(title) or None, caption=caption, box=SIMPLE_HEAD, title_style="bold")
    result.title_justify = result.caption_justify = "left"
    result.collapse_padding, result.pad_edge, result.show_edge = True, False, False
    result.add_column("")
    for name in ("para-\nmeters", "epochs", *SETS):
        result.add_column(name, justify="right", no_wrap=True)
    previous: tuple[str, ...] = ()
    for row in in_sections(rows):
        if (row.section, row.figure, row.unit) != previous:
            previous = (row.section, row.figure, row.unit)
            result.add_section()
            result.add_row(f"[bold]{escape(row.section)}[/bold]\n{escape(row.figure)} in {escape(row.unit)}")
        size = "" if row.parameters is None else f"{row.parameters:,}"
        result.add_row(escape(row.name), size, epochs(row), *(_cell(row, name) for name in SETS))
    return result


def _cell(row: Row, name: str) -> str:
    text = mean_over_seeds(row.values[name]).text(row.unit) if name in row.values else ""
    return f"{text}\n[dim]lesson {number(row.printed[name], row.unit)}[/dim]" if name in row.printed else text


def in_sections(rows: Sequence[Row]) -> list[Row]:
    """Return the rows grouped by section; sections, and the rows of a section, keep their order."""
    order = {section: place for place, section in enumerate(dict.fromkeys(row.section for row in rows))}
    return sorted(rows, key=lambda row: order[row.section])


def epochs(row: Row) -> str:
    """Return the mean number of epochs as text, with a star where the values are those of the best epoch."""
    if not len(row.epochs):
        return ""
    mean = f"{np.mean(row.epochs):.{0 if np.ptp(row.epochs) == 0 else 1}f}"
    return f"{mean} *" if row.best else mean


def _about(row: Row) -> dict[str, Any]:
    names = {"section": row.section, "row": row.name, "what": row.what, "figure": row.figure, "unit": row.unit}
    return {**names, "parameters": row.parameters}


def _diverged(row: Row) -> int:
    if not row.values:
        return 0
    return int(
        (~np.isfinite(np.stack([np.asarray(values, np.float64) for values in row.values.values()]))).any(0).sum()
    )
