"""The list of runs, what each did, and how two of them differ."""

from __future__ import annotations

import csv
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from jaxdl._files import is_locked, open_regular
from jaxdl.errors import InputError
from jaxdl.runs.folders import CONFIG, HISTORY, KIND, METRICS, RUN, USAGE, RunFiles, other_kind, read_json

if TYPE_CHECKING:
    import pandas as pd


RUNNING, UNFINISHED, DAMAGED = "running", "unfinished", "damaged"  # the reasons of runs that have not ended
FIGURES = ("rmse", "accuracy", "loss")  # a run is judged by the first of them that it measures
Column = Literal[
    "run", "recipe", "seed", "best", "test", "reason", "time", "commit", "when", "figure", "epochs", "parameters"
]


class RunInfo(NamedTuple):
    """What a run's folder says; None where it does not say it, nan where a number is not finite."""

    run: str  # its path from the folder in which it was found
    folder: Path
    reason: str  # why it ended, or one of the three above
    problem: str | None = None  # what is damaged
    recipe: str | None = None
    seed: int | None = None
    figure: str | None = None  # what `best` and `test` are, such as rmse
    best: float | None = None  # of the validation rows, by the weights of the best epoch
    test: float | None = None  # of the test rows, by the same weights
    test_last: float | None = None  # of the test rows, by the weights of the last epoch
    best_epoch: int | None = None
    epochs: int | None = None  # that were done
    parameters: int | None = None
    seconds: float | None = None  # of the last command that trained it; of its epochs where that has not ended
    commit: str | None = None
    when: str | None = None  # it began, or was changed, by the time of its config.json


def find(folder: str | Path) -> list[Path]:
    """The folders of runs under a folder, at any depth, or itself: those with a config.json; not inside of runs.

    Hidden folders, and those whose config.json is of another kind, are passed over. Raises InputError where there is no
    such folder, or one below it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise InputError(f"{folder} must be a folder with runs, got {got}. Give the folder that was the --workdir.")
    found = []
    for above, inside, files in os.walk(folder, onerror=_unreadable):
        if CONFIG in files and not _of_another_kind(Path(above)):
            found.append(Path(above))
        inside[:] = [] if CONFIG in files else [name for name in inside if not name.startswith(".")]
    return found


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({error.strerror}). Give a folder whose runs may be read.")


def _of_another_kind(folder: Path) -> bool:
    """Whether a config.json is not that of a run; a damaged one may be."""
    try:
        config = read_json(folder / CONFIG)
    except (InputError, OSError):
        return False
    return config.get(KIND) != RUN


def list_runs(folder: str | Path) -> list[RunInfo]:
    """A row for each run under a folder, by name. Raises InputError where there is no such folder.

    >>> list_runs(Path("no", "such", "folder"))
    Traceback (most recent call last):
    jaxdl.errors.InputError: no/such/folder must be a folder with runs, got nothing. Give the folder that was the ...
    """
    folder = Path(folder)
    return ordered(row(run, str(run.relative_to(folder)) if run != folder else "") for run in find(folder))


def row(folder: str | Path, name: str = "") -> RunInfo:
    """The row of the run in a folder, which is called by the folder's name if by no other; never raises."""
    folder = Path(folder)
    name = name or folder.resolve().name
    try:
        run = read(folder)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / CONFIG).stat().st_mtime))
        commit = run.config.get("commit")
        about: dict[str, Any] = {"recipe": str(run.config["recipe"]), "seed": int(run.config["seed"]), "when": when}
        figures = _unfinished(folder) if run.metrics is None else _finished(run.metrics)
    except InputError as error:
        return RunInfo(name, folder, DAMAGED, str(error))
    except OSError as error:
        return RunInfo(name, folder, DAMAGED, f"{folder} cannot be read: {error.strerror}.")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        return RunInfo(name, folder, DAMAGED, f"{folder} does not hold what a run's files hold ({error!r}).")
    if is_locked(folder):
        figures["reason"] = RUNNING
    return RunInfo(name, folder, commit=str(commit)[:7] if commit else None, **about, **figures)


def read(folder: str | Path) -> RunFiles:
    """What a run was told and what it measured. Raises InputError where the folder holds no run, or a damaged one."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        got = "a folder without" if folder.is_dir() else "a file" if folder.exists() else "nothing of that name"
        advice = "List the runs with `python -m jaxdl runs FOLDER`."
        raise InputError(f"{folder} must be the folder of a run, which holds a {CONFIG}, got {got}. {advice}")
    config = read_json(folder / CONFIG)
    if config.get(KIND) != RUN:
        raise InputError(f"{folder} must be the folder of a run, got {other_kind(config)}. Name that of a run.")
    return RunFiles(config, read_json(folder / METRICS) if (folder / METRICS).exists() else None)


def history(folder: str | Path) -> pd.DataFrame:
    """The records of a run, a row an epoch, indexed by the epoch; no row where none has ended.

    Raises InputError where the file is damaged.
    """
    folder = Path(folder)
    import pandas as pd

    path = folder / HISTORY
    try:
        # A line without an end is one that is being written.
        text = _text(path).rpartition("\n")[0] if path.exists() else ""
        if not text:
            return pd.DataFrame(index=pd.Index([], name="epoch", dtype=int))
        names, *rows = csv.reader(text.splitlines())
        values = np.array(rows, float).reshape(-1, len(names))
        return pd.DataFrame(values, columns=names).astype({"epoch": int}).set_index("epoch")
    except (KeyError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is damaged ({error}). The same command on that run writes it anew.") from None


def _text(path: Path) -> str:
    with open_regular(path) as file:
        return file.read().decode()


def _finished(metrics: dict[str, Any]) -> dict[str, Any]:
    measured = (name for name in (*FIGURES, *metrics) if isinstance(metrics.get(f"{name}_best"), dict))
    figure = next(measured, FIGURES[0])
    return {
        "figure": figure,
        "best": _number(metrics[f"{figure}_best"]["validation"]),
        "test": _number(metrics[f"{figure}_best"]["test"]),
        "test_last": _number(metrics[figure]["test"]),
        "seconds": _number(metrics["seconds"]["total"]),
        "reason": str(metrics["reason"]),
        **{name: int(metrics[name]) for name in ("best_epoch", "epochs", "parameters")},
    }


def _unfinished(folder: Path) -> dict[str, Any]:
    table = history(folder)
    if not len(table):
        return {"reason": UNFINISHED, "epochs": 0}
    seconds = float(table["seconds"].sum()) if "seconds" in table else None
    figures = {"reason": UNFINISHED, "epochs": int(table.index[-1]), "seconds": seconds}
    figure = next((name for name in FIGURES if f"val_{name}" in table), None)
    losses = table["val_loss"].to_numpy() if figure else np.array([])
    if figure is None or not np.isfinite(losses).any():
        return figures
    best = int(np.nanargmin(np.where(np.isfinite(losses), losses, np.nan)))
    value, epoch = float(table[f"val_{figure}"].iloc[best]), int(table.index[best])
    return {**figures, "figure": figure, "best": value, "best_epoch": epoch}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def higher_is_better(figure: str) -> bool:
    """Whether a figure grows as a model gets better, by its name."""
    return re.search(r"(accuracy|area|auc|precision|recall|f1|r2|top\d+)$", figure) is not None


def ordered(rows: Iterable[RunInfo], by: Column = "run", reverse: bool = False) -> list[RunInfo]:
    """Rows in the order of a column; by figures the best first. Those that have no value are the last either way.

    Figures of one kind stand together, since an accuracy is neither above nor below an RMSE. Numbers in names count as
    numbers.
    """
    rows = list(rows)
    values = [getattr(each, "seconds" if by == "time" else by) for each in rows]
    known = [(value, each) for value, each in zip(values, rows, strict=True) if value is not None and value == value]
    rest = [each for value, each in zip(values, rows, strict=True) if value is None or value != value]

    def key(entry: tuple[Any, RunInfo]) -> Any:
        value, each = entry
        if isinstance(value, str):
            return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", value)]
        return -value if by in ("best", "test") and higher_is_better(each.figure or "") else value

    found = [each for _, each in sorted(known, key=key, reverse=reverse)]
    return sorted(found, key=lambda each: each.figure or "") + rest if by in ("best", "test") else found + rest


class RunDetails(NamedTuple):
    """A run: its row, and what the row is made of."""

    row: RunInfo
    config: dict[str, Any]
    metrics: dict[str, Any] | None  # where it is finished
    files: dict[str, int]  # what the folder holds, by name from the folder, in bytes; folders with all that is in them


def run_details(folder: str | Path) -> RunDetails:
    """What the folder of a run says. Raises InputError where it holds no run, or a damaged one."""
    folder = Path(folder)
    run, of = read(folder), row(folder)
    if of.problem is not None:
        raise InputError(of.problem)
    return RunDetails(of, run.config, run.metrics, files(folder))


def files(folder: str | Path) -> dict[str, int]:
    """What a run's folder holds in bytes: its files, and of each folder in it what that holds, with a / at the end."""
    folder = Path(folder)
    found = {}
    for path in _inside(folder):
        for inner in _inside(path) if path.is_dir() and not path.is_symlink() else [path]:
            name = str(inner.relative_to(folder))
            found[f"{name}/" if inner.is_dir() else name] = sum(map(_bytes, _inside(inner, "**/*") or [inner]))
    return found


def _inside(folder: Path, pattern: str = "*") -> list[Path]:
    try:
        # Behind a link lies what is not the run's.
        return [] if folder.is_symlink() else sorted(folder.glob(pattern))
    except OSError:  # A run that goes on replaces its checkpoints.
        return []


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


CONFIG_PART, METRICS_PART = "config", "metrics"
# The folders have names of their own, the network follows from the flags, and metrics.json repeats three entries.
_LEFT_OUT = {CONFIG_PART: {"workdir", *USAGE}, METRICS_PART: {"recipe", "seed", "dataset"}}


class Difference(NamedTuple):
    """An entry that two runs do not share; None where one of them has none."""

    part: str  # "config" or "metrics"
    entry: str  # nested ones with dots, such as versions.jax
    a: Any
    b: Any


def differences(a: str | Path, b: str | Path) -> list[Difference]:
    """Return the entries that differ between the runs in two folders, first those of config.json.

    A run that has not ended has the metrics of its best epoch so far. Raises InputError for a folder that holds no run,
    or a damaged one.
    """
    one, other = _entries(Path(a)), _entries(Path(b))
    return [
        Difference(*key, one.get(key), other.get(key))
        for key in sorted({**one, **other}, key=lambda key: key[0])
        if one.get(key) != other.get(key)
    ]


def flat(entries: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested objects by names with dots."""
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _entries(folder: Path) -> dict[tuple[str, str], Any]:
    run = read(folder)
    metrics = run.metrics
    if metrics is None:
        best = row(folder)
        metrics = {"epochs": best.epochs, "best_epoch": best.best_epoch, "reason": best.reason}
        if best.figure is not None:
            metrics[f"{best.figure}_best"] = {"validation": best.best}
    parts = {CONFIG_PART: run.config, METRICS_PART: metrics}
    return {
        (part, name): value
        for part, entries in parts.items()
        for name, value in flat({name: entries[name] for name in entries if name not in _LEFT_OUT[part]})
    }
