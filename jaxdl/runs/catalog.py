"""The list of runs, the details of a run, and the differences between two."""

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
from jaxdl.runs.folders import CONFIG, HISTORY, KIND, METRICS, RUN, USAGE, RunFiles, describe_kind, read_json

if TYPE_CHECKING:
    import pandas as pd


RUNNING, UNFINISHED, DAMAGED = "running", "unfinished", "damaged"  # reasons of runs without results
MAIN_METRICS = ("rmse", "accuracy", "loss")  # the list shows the first one that a run has
Column = Literal[
    "run", "recipe", "seed", "best", "test", "reason", "time", "commit", "when", "figure", "epochs", "parameters"
]


class RunInfo(NamedTuple):
    """A run of the list. None: its files do not hold the value; nan: the value is not finite."""

    run: str  # path from the folder of the list
    folder: Path
    reason: str  # why the run ended, or "running", "unfinished", "damaged"
    problem: str | None = None  # which file is damaged, and how
    recipe: str | None = None
    seed: int | None = None
    figure: str | None = None  # the metric of `best` and `test`, such as rmse
    best: float | None = None  # on validation rows, with the variables of the best epoch
    test: float | None = None  # on test rows, with the same variables
    test_last: float | None = None  # on test rows, with the variables of the last epoch
    best_epoch: int | None = None
    epochs: int | None = None  # trained so far
    parameters: int | None = None
    seconds: float | None = None  # of the last command that trained it; of its epochs while it is unfinished
    commit: str | None = None
    when: str | None = None  # local time at which its config.json was written


def find(folder: str | Path) -> list[Path]:
    """Return the folders of runs at any depth of a folder, which may be one itself.

    A run's folder is one with a config.json that names it a run, or that is damaged. Hidden folders and folders inside
    of runs are skipped. Raises InputError where the folder does not exist, or a folder below it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise InputError(f"{folder} must be a folder with runs, got {got}. Give the folder that was the --workdir.")
    runs = []
    for parent, children, files in os.walk(folder, onerror=_raise_unreadable):
        if CONFIG in files and _may_be_run(Path(parent)):
            runs.append(Path(parent))
        children[:] = [] if CONFIG in files else [name for name in children if not name.startswith(".")]
    return runs


def _raise_unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({error.strerror}). Give a folder whose runs may be read.")


def _may_be_run(folder: Path) -> bool:
    """Return whether a config.json is that of a run, or damaged."""
    try:
        return read_json(folder / CONFIG).get(KIND) == RUN
    except (InputError, OSError):
        return True


def list_runs(folder: str | Path) -> list[RunInfo]:
    """Return the runs at any depth of a folder, sorted by name. Raises InputError where it does not exist.

    >>> import tempfile
    >>> list_runs(tempfile.mkdtemp())
    []
    """
    folder = Path(folder)
    return ordered(row(run, str(run.relative_to(folder)) if run != folder else "") for run in find(folder))


def row(folder: str | Path, name: str = "") -> RunInfo:
    """Return the run in a folder for a list, without raising; `name` is by default that of the folder."""
    folder = Path(folder)
    name = name or folder.resolve().name
    try:
        run = read(folder)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / CONFIG).stat().st_mtime))
        commit = run.config.get("commit")
        about: dict[str, Any] = {"recipe": str(run.config["recipe"]), "seed": int(run.config["seed"]), "when": when}
        results = _unfinished(folder) if run.metrics is None else _finished(run.metrics)
    except InputError as error:
        return RunInfo(name, folder, DAMAGED, str(error))
    except OSError as error:
        return RunInfo(name, folder, DAMAGED, f"{folder} cannot be read: {error.strerror}.")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        return RunInfo(name, folder, DAMAGED, f"{folder} does not hold what a run's files hold ({error!r}).")
    if is_locked(folder):
        results["reason"] = RUNNING
    return RunInfo(name, folder, commit=str(commit)[:7] if commit else None, **about, **results)


def read(folder: str | Path) -> RunFiles:
    """Return config.json and metrics.json of a run. Raises InputError for a folder without a run, or a damaged run."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        got = "a folder without" if folder.is_dir() else "a file" if folder.exists() else "nothing of that name"
        advice = "List the runs with `python -m jaxdl runs FOLDER`."
        raise InputError(f"{folder} must be the folder of a run, which holds a {CONFIG}, got {got}. {advice}")
    config = read_json(folder / CONFIG)
    if config.get(KIND) != RUN:
        raise InputError(f"{folder} must be the folder of a run, got {describe_kind(config)}. Name that of a run.")
    return RunFiles(config, read_json(folder / METRICS) if (folder / METRICS).exists() else None)


def history(folder: str | Path) -> pd.DataFrame:
    """Return the records of a run with a row for each epoch, indexed by the epoch; no rows before the first has ended.

    Raises InputError where the file is damaged.
    """
    folder = Path(folder)
    import pandas as pd

    path = folder / HISTORY
    try:
        # The run may be writing the last line, which then has no end.
        text = _text(path).rpartition("\n")[0] if path.exists() else ""
        if not text:
            return pd.DataFrame(index=pd.Index([], name="epoch", dtype=int))
        names, *rows = csv.reader(text.splitlines())
        values = np.array(rows, float).reshape(-1, len(names))
        return pd.DataFrame(values, columns=names).astype({"epoch": int}).set_index("epoch")
    except (KeyError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({error}). The same command with that --workdir writes it again."
        ) from None


def _text(path: Path) -> str:
    with open_regular(path) as file:
        return file.read().decode()


def _finished(metrics: dict[str, Any]) -> dict[str, Any]:
    names = (name for name in (*MAIN_METRICS, *metrics) if isinstance(metrics.get(f"{name}_best"), dict))
    metric = next(names, MAIN_METRICS[0])
    return {
        "figure": metric,
        "best": _number(metrics[f"{metric}_best"]["validation"]),
        "test": _number(metrics[f"{metric}_best"]["test"]),
        "test_last": _number(metrics[metric]["test"]),
        "seconds": _number(metrics["seconds"]["total"]),
        "reason": str(metrics["reason"]),
        **{name: int(metrics[name]) for name in ("best_epoch", "epochs", "parameters")},
    }


def _unfinished(folder: Path) -> dict[str, Any]:
    table = history(folder)
    if not len(table):
        return {"reason": UNFINISHED, "epochs": 0}
    seconds = float(table["seconds"].sum()) if "seconds" in table else None
    results = {"reason": UNFINISHED, "epochs": int(table.index[-1]), "seconds": seconds}
    metric = next((name for name in MAIN_METRICS if f"val_{name}" in table), None)
    losses = table["val_loss"].to_numpy() if metric else np.array([])
    if metric is None or not np.isfinite(losses).any():
        return results
    best = int(np.nanargmin(np.where(np.isfinite(losses), losses, np.nan)))
    value, epoch = float(table[f"val_{metric}"].iloc[best]), int(table.index[best])
    return {**results, "figure": metric, "best": value, "best_epoch": epoch}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def higher_is_better(metric: str) -> bool:
    """Return whether a metric grows as a model gets better, by its name."""
    return re.search(r"(accuracy|area|auc|precision|recall|f1|r2|top\d+)$", metric) is not None


def ordered(rows: Iterable[RunInfo], by: Column = "run", reverse: bool = False) -> list[RunInfo]:
    """Return runs sorted by a column, by `best` and `test` the best run first; runs without the value come last.

    Runs with the same metric stand together, because an accuracy and an RMSE cannot be compared. Numbers in names are
    compared as numbers.
    """
    rows = list(rows)
    values = [getattr(run, "seconds" if by == "time" else by) for run in rows]
    known = [(value, run) for value, run in zip(values, rows, strict=True) if value is not None and value == value]
    rest = [run for value, run in zip(values, rows, strict=True) if value is None or value != value]

    def key(entry: tuple[Any, RunInfo]) -> Any:
        value, run = entry
        if isinstance(value, str):
            return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", value)]
        return -value if by in ("best", "test") and higher_is_better(run.figure or "") else value

    runs = [run for _, run in sorted(known, key=key, reverse=reverse)]
    return sorted(runs, key=lambda run: run.figure or "") + rest if by in ("best", "test") else runs + rest


class RunDetails(NamedTuple):
    """A run with the files of its folder."""

    row: RunInfo
    config: dict[str, Any]
    metrics: dict[str, Any] | None  # None where the run is not finished
    files: dict[str, int]  # see `files`


def run_details(folder: str | Path) -> RunDetails:
    """Return the run in a folder. Raises InputError where it holds no run, or a damaged one."""
    folder = Path(folder)
    run, info = read(folder), row(folder)
    if info.problem is not None:
        raise InputError(info.problem)
    return RunDetails(info, run.config, run.metrics, files(folder))


def files(folder: str | Path) -> dict[str, int]:
    """Return the bytes of the files in a run's folder, by path; those of a folder in a folder as one sum, with a /."""
    folder = Path(folder)
    sizes = {}
    for path in _inside(folder):
        for inner in _inside(path) if path.is_dir() and not path.is_symlink() else [path]:
            name = str(inner.relative_to(folder))
            sizes[f"{name}/" if inner.is_dir() else name] = sum(map(_bytes, _inside(inner, "**/*") or [inner]))
    return sizes


def _inside(folder: Path, pattern: str = "*") -> list[Path]:
    try:
        # A link leads to files that are not the run's.
        return [] if folder.is_symlink() else sorted(folder.glob(pattern))
    except OSError:  # A run that trains replaces its checkpoints.
        return []


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


CONFIG_PART, METRICS_PART = "config", "metrics"
# Folders differ always, the network follows from the flags, and metrics.json repeats three entries of config.json.
_SKIPPED = {CONFIG_PART: {"workdir", *USAGE}, METRICS_PART: {"recipe", "seed", "dataset"}}


class Difference(NamedTuple):
    """An entry that differs between two runs; None where a run has no such entry."""

    part: str  # "config" or "metrics"
    entry: str  # of nested objects with dots, such as versions.jax
    a: Any
    b: Any


def diff_runs(a: str | Path, b: str | Path) -> list[Difference]:
    """Return the entries that differ between the runs in two folders, first those of config.json.

    An unfinished run has the metrics of its best epoch so far. Raises InputError for a folder that holds no run, or a
    damaged one.
    """
    one, other = _entries(Path(a)), _entries(Path(b))
    return [
        Difference(*key, one.get(key), other.get(key))
        for key in sorted({**one, **other}, key=lambda key: key[0])
        if one.get(key) != other.get(key)
    ]


def flat(entries: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested objects with dots in their names."""
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
        for name, value in flat({name: entries[name] for name in entries if name not in _SKIPPED[part]})
    }
