"""What a run that was begun earlier lets change, and where it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from experiments.watching import OWN
from jaxdl import checkpoints
from jaxdl.errors import InputError
from jaxdl.folders import Earlier
from jaxdl.leaves import check_kinds, rebuilt
from jaxdl.types import Progress

# Flags that a run may be given anew. The data are known by their checksum, so their name may change too.
FREE = {"epochs", "patience", "save_every", "on_nan", "compilation_cache", "data"}

Changes = dict[str, tuple[Any, Any]]


class Beginning(NamedTuple):
    """Where a run begins or goes on."""

    progress: Progress
    history: list[dict[str, float]]
    text: str | None  # for people, where it goes on


def changes(flags: Mapping[str, Any], earlier: Earlier) -> Changes:
    """The flags that differ from those that a run was begun with, as (before, now).

    >>> changes({"seed": 1, "hidden": (10, 5)}, Earlier({"seed": 0, "hidden": [10, 5]}, None))
    {'seed': (0, 1)}
    """
    now = {name: _plain(value) for name, value in flags.items() if name not in OWN}
    before = earlier.config
    return {name: (before[name], value) for name, value in now.items() if name in before and before[name] != value}


def refused(found: Changes, fixed: Mapping[str, str]) -> str | None:
    """What to tell where a flag differs that may not; `fixed` gives reasons why free ones may not here.

    >>> refused({"seed": (0, 1)}, {})
    '--seed is 0 in the run there, got 1. Use --seed 0'
    """
    texts = []
    for name, (before, now) in found.items():
        if name not in FREE or name in fixed:
            flag, why = f"--{name.replace('_', '-')}", f" ({fixed[name]})" if name in fixed else ""
            right = f"Leave {flag} out" if before is None else f"Use {flag} {_as_flag(before)}"
            texts.append(f"{flag} is {_as_flag(before)} in the run there{why}, got {_as_flag(now)}. {right}")
    return "; ".join(texts) or None


def goes_on(found: Changes, metrics: Mapping[str, Any]) -> bool:
    """Whether a finished run has more to do: more epochs, or more patience where that was what ended it.

    >>> goes_on({"epochs": (10, 20)}, {"reason": "epochs"}), goes_on({"epochs": (10, 20)}, {"reason": "early-stopping"})
    (True, False)
    """
    if metrics.get("reason") == "early-stopping":
        before, now = found.get("patience", (0, 0))
        return now is None or now > before
    before, now = found.get("epochs", (0, 0))
    return bool(now > before)


def beginning(
    start: Progress, folder: Path, data: str, found: Changes, refusal: str | None, tell: Callable[[str], None]
) -> Beginning:
    """Where the run in a folder goes on, from its latest good checkpoint; at its start where there is none.

    start: its progress before the first epoch. data: the checksum of the data. refusal: why it cannot go on, if flags
    say so. Raises InputError where it cannot, which names the first array that differs too.
    """
    advice = (
        f"{refusal or 'Use the data and the code of that run'}, choose another --workdir, or start over with --fresh."
    )
    saved = checkpoints.latest(folder / "checkpoints" / "progress", tell)
    if saved is None:
        if refusal is not None:
            raise InputError(f"the run in {folder} cannot go on: {advice}")
        return Beginning(start, [], "nothing was saved yet, so the run starts again from its beginning")
    try:
        check_kinds(saved.about["kinds"], start)
        if refusal is not None:
            raise InputError(advice)
        if saved.about["data"] != data:
            raise InputError(f"it is on other data (SHA-256 {saved.about['data'][:12]}... there, {data[:12]}... here)")
    except InputError as error:
        text = str(error) if str(error) == advice else f"{error}. {advice}"
        raise InputError(f"the run in {folder} cannot go on: {text}") from None
    progress: Progress = rebuilt(start, saved.arrays)
    if "patience" in found:
        # The rule decides anew at the end of the next epoch.
        progress = progress._replace(stopping=progress.stopping._replace(done=jnp.zeros((), bool)))
    batches = int(progress.cursor)
    where = f"epoch {int(progress.epoch)}" + (f" and batch {batches} of the next" if batches else "")
    return Beginning(progress, saved.about["history"], f"The run goes on after {where} (checkpoint {saved.number}).")


def other_surroundings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What to tell where the packages or devices are not those that the run began on; None where they are.

    >>> other_surroundings({"versions": {"jax": "1"}, "devices": []}, {"versions": {"jax": "2"}, "devices": []})
    'the run began on jax 1 and goes on with jax 2: its numbers may differ in the last bits.'
    """
    old, new = ({**which.get("versions", {}), "devices": which.get("devices")} for which in (before, now))
    other = [name for name in new if old.get(name) != new[name]]
    if not other or "versions" not in before:
        return None
    was, is_ = (", ".join(f"{name} {which.get(name)}" for name in other) for which in (old, new))
    return f"the run began on {was} and goes on with {is_}: its numbers may differ in the last bits."


def check_epochs(epochs: int, done: int, folder: Path) -> None:
    """Raises InputError where a run has done more epochs than it now is to have.

    >>> check_epochs(10, 10, Path("run"))
    """
    if epochs < done:
        raise InputError(f"--epochs must be at least {done}, which the run in {folder} has done, got {epochs}.")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _as_flag(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
