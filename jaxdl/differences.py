"""What differs between two runs: in what they were told, in what they ran on, and in what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxdl.folders import USAGE, Earlier
from jaxdl.listings import read, row

TOLD, SURROUNDINGS, RESULT = "configuration", "surroundings", "result"
_SURROUNDINGS = {"versions", "devices", "platform", "machine", "commit"}
# What follows from the rest: folders have names of their own, and the network is told by the flags that made it.
_FOLLOWS = {"workdir", *USAGE}
_TOLD_TOO = {"recipe", "seed", "dataset"}  # that metrics.json says again


class Difference(NamedTuple):
    """An entry that two runs do not share; None where one of them has none."""

    part: str  # one of the three above
    entry: str  # nested ones with dots, such as versions.jax
    a: Any
    b: Any


def differences(a: str | Path, b: str | Path) -> list[Difference]:
    """What differs between the runs in two folders, whose own names do not count.

    A run that has not ended has the figures of its best epoch so far. Raises InputError for a folder that holds no run,
    or a damaged one.

    >>> differences(Path("no", "such", "run"), Path("."))
    Traceback (most recent call last):
    jaxdl.errors.InputError: no/such/run must be the folder of a run, which holds a config.json, got nothing ...
    """
    runs = [(told, _result(folder, told)) for folder, told in ((Path(of), read(of)) for of in (a, b))]
    found = []
    flags = [{name: entry for name, entry in told.config.items() if name not in _FOLLOWS} for told, _ in runs]
    for part, sides in ((TOLD, flags), (RESULT, [result for _, result in runs])):
        one, other = (dict(flat(side)) for side in sides)
        for entry in dict.fromkeys((*one, *other)):
            if one.get(entry) != other.get(entry):
                around = part == TOLD and entry.partition(".")[0] in _SURROUNDINGS
                found.append(Difference(SURROUNDINGS if around else part, entry, one.get(entry), other.get(entry)))
    order = (TOLD, SURROUNDINGS, RESULT)
    return sorted(found, key=lambda each: order.index(each.part))


def flat(entries: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested objects by names with dots.

    >>> dict(flat({"seed": 1, "rmse": {"test": 3.5}}))
    {'seed': 1, 'rmse.test': 3.5}
    """
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _result(folder: Path, run: Earlier) -> dict[str, Any]:
    if run.metrics is not None:
        return {name: value for name, value in run.metrics.items() if name not in _TOLD_TOO}
    of = row(folder)
    best = {} if of.figure is None else {f"{of.figure}_best": {"validation": of.best}}
    return {**best, "epochs": of.epochs, "best_epoch": of.best_epoch, "reason": of.reason}
