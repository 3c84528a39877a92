"""The entries of config.json and metrics.json in which two runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxdl.folders import USAGE
from jaxdl.listings import read, row

CONFIG, METRICS = "config", "metrics"
# The folders have names of their own, the network follows from the flags, and metrics.json repeats three entries.
_LEFT_OUT = {CONFIG: {"workdir", *USAGE}, METRICS: {"recipe", "seed", "dataset"}}


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

    >>> differences(Path("no", "such", "run"), Path("."))
    Traceback (most recent call last):
    jaxdl.errors.InputError: no/such/run must be the folder of a run, which holds a config.json, got nothing ...
    """
    one, other = _entries(Path(a)), _entries(Path(b))
    return [
        Difference(*key, one.get(key), other.get(key))
        for key in sorted({**one, **other}, key=lambda key: key[0])
        if one.get(key) != other.get(key)
    ]


def flat(entries: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested objects by names with dots.

    >>> dict(flat({"seed": 1, "rmse": {"test": 3.5}}))
    {'seed': 1, 'rmse.test': 3.5}
    """
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
    parts = {CONFIG: run.config, METRICS: metrics}
    return {
        (part, name): value
        for part, entries in parts.items()
        for name, value in flat({name: entries[name] for name in entries if name not in _LEFT_OUT[part]})
    }
