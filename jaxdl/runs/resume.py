"""Whether a folder holds a run that can be resumed, and from where."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import jax.numpy as jnp
from rich.console import Console

from jaxdl import saving, types
from jaxdl._tree import check_structure, unflatten_named
from jaxdl.errors import InputError
from jaxdl.runs import folders
from jaxdl.runs.console import print_warning
from jaxdl.runs.experiment import Experiment
from jaxdl.runs.flags import OWN
from jaxdl.runs.folders import CONFIG, RunFiles
from jaxdl.saving import checkpoints
from jaxdl.types import RunState

# Flags that a run may be given anew. The data are known by their checksum, so their name may change too.
FREE = {"epochs", "patience", "save_every", "on_nan", "compilation_cache", "data"}
CHECKPOINTS = Path("checkpoints", "progress")  # in the folder of a run
Changes = dict[str, tuple[Any, Any]]


class Beginning(NamedTuple):
    """Where a run begins or goes on."""

    state: RunState
    history: list[dict[str, float]]
    text: str | None  # for people, where it goes on
    saved: dict[str, Any] | None = None  # what the checkpoint says of where it was trained


def recorded(folder: Path, earlier: RunFiles) -> tuple[RunFiles, str | None]:
    """Return the run in a folder with the flags of its latest checkpoint, and what to warn of in its config.json.

    The run resumes from the checkpoint, which is known to be whole: where config.json says another thing, it was
    edited or damaged, or a change of flags was not saved yet. Flags that may change are then taken as changes.
    """
    about = checkpoints.read_about(folder / CHECKPOINTS)
    kept = {} if about is None else about.get("config")
    if not isinstance(kept, dict):
        return earlier, None
    flags = {name: value for name, value in kept.items() if name not in OWN}
    other = [name for name in flags if name not in FREE and earlier.config.get(name) != flags[name]]
    texts = [f"{name} {earlier.config.get(name)!r}, the checkpoint {flags[name]!r}" for name in other]
    text = f"config.json says {'; '.join(texts)}. What the checkpoint says counts." if texts else None
    return earlier._replace(config={**earlier.config, **flags}), text


def flags_of(folder: Path, earlier: RunFiles, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that the run in a folder has where a command gives none. kinds: their types, by name.

    Raises InputError where config.json holds a value of another type.
    """
    whole = recorded(folder, earlier)[0].config
    flags = {name: value for name, value in whole.items() if name in kinds}
    flags |= {name: earlier.config[name] for name in FREE & flags.keys() & earlier.config.keys()}
    for name, value in flags.items():
        if not _is_of(value, kinds[name]):
            raise InputError(
                f"{folder / CONFIG} is damaged: {name} is {value!r:.80}, which --{name.replace('_', '-')} cannot be. "
                "Restore it from a copy, or start over with --fresh."
            )
    return {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()}


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of the type of a flag."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        return any(_is_of(value, each) for each in parts)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in parts)
    if origin is tuple:
        return isinstance(value, list) and all(_is_of(entry, parts[0]) for entry in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (str if kind is Path else kind)


def changes(flags: Mapping[str, Any], earlier: RunFiles) -> Changes:
    """The flags that differ from those that a run was begun with, as (before, now)."""
    now = {name: _plain(value) for name, value in flags.items() if name not in OWN}
    before = earlier.config
    return {name: (before[name], value) for name, value in now.items() if name in before and before[name] != value}


def refused(found: Changes, fixed: Mapping[str, str]) -> str | None:
    """What to tell where a flag differs that may not; `fixed` gives reasons why free ones may not here."""
    texts = []
    for name, (before, now) in found.items():
        if name not in FREE or name in fixed:
            flag, why = f"--{name.replace('_', '-')}", f" ({fixed[name]})" if name in fixed else ""
            right = f"Leave {flag} out" if before is None else f"Use {flag} {_as_flag(before)}"
            texts.append(f"{flag} is {_as_flag(before)} in the run there{why}, got {_as_flag(now)}. {right}")
    return "; ".join(texts) or None


def goes_on(found: Changes, metrics: Mapping[str, Any]) -> bool:
    """Whether a finished run has more to do: more epochs, or more patience where that was what ended it."""
    if metrics.get("reason") == "early-stopping":
        before, now = found.get("patience", (0, 0))
        return now is None or now > before
    before, now = found.get("epochs", (0, 0))
    return bool(now > before)


def beginning(
    start: RunState, folder: Path, data: str, found: Changes, refusal: str | None, warn: Callable[[str], None]
) -> Beginning:
    """Where the run in a folder goes on, from its latest good checkpoint; at its start where there is none.

    start: its progress before the first epoch. data: the checksum of the data. refusal: why it cannot go on, if flags
    say so. Raises InputError where it cannot, which names the first array that differs too.
    """
    advice = (
        f"{refusal or 'Use the data and the code of that run'}, choose another --workdir, or start over with --fresh."
    )
    saved = saving.restore_latest(folder / CHECKPOINTS, warn, again="--fresh, which keeps this run under another name")
    if saved is None:
        if refusal is not None:
            raise InputError(f"the run in {folder} cannot go on: {advice}")
        return Beginning(start, [], "nothing was saved yet, so the run starts again from its beginning")
    try:
        check_structure(saved.about["kinds"], start)
        if refusal is not None:
            raise InputError(advice)
        if saved.about.get("data") != data:
            there = str(saved.about.get("data"))
            raise InputError(f"it is on other data (SHA-256 {there[:12]}... there, {data[:12]}... here)")
        _check_history(saved, start)
    except InputError as error:
        text = str(error) if str(error) == advice else f"{error}. {advice}"
        raise InputError(f"the run in {folder} cannot go on: {text}") from None
    run_state: RunState = unflatten_named(start, saved.arrays)
    if "patience" in found:
        # The rule decides anew at the end of the next epoch.
        run_state = run_state._replace(stopping=run_state.stopping._replace(should_stop=jnp.zeros((), bool)))
    batches = int(run_state.cursor)
    where = f"epoch {int(run_state.epoch)}" + (f" and batch {batches} of the next" if batches else "")
    text = f"The run goes on after {where} (checkpoint {saved.number})."
    return Beginning(run_state, saved.about["history"], text, _dict(saved.about, "surroundings"))


def _check_history(saved: types.Checkpoint, start: RunState) -> None:
    """Raise InputError where the records of a checkpoint are not those of its epochs: they are written into files."""
    history, done = saved.about.get("history"), int(saved.arrays["epoch"])
    whole = isinstance(history, list) and [_epoch_of(record) for record in history] == [*range(1, done + 1)]
    if not whole or done < 0 or int(saved.arrays["cursor"]) < 0:
        raise InputError(f"its history does not hold the {done} epochs that are done")


def _epoch_of(record: Any) -> int | None:
    """The epoch of a record; None for anything that is none."""
    if not isinstance(record, dict) or type(record.get("epoch")) is not int:
        return None
    names = all(re.fullmatch(r"[\w .%@()/+-]{1,200}", name) for name in record)
    return record["epoch"] if names and all(type(value) in (int, float) for value in record.values()) else None


def other_surroundings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What to tell where the packages or devices are not those that the run began on; None where they are."""
    old, new = (
        {**_dict(which, "versions"), "devices": which.get("devices"), **_dict(which, "machine")}
        for which in (before, now)
    )
    other = [name for name in new if old.get(name) != new[name]]
    if not other or not _dict(before, "versions"):
        return None
    was, is_ = (", ".join(f"{name} {which.get(name)}" for name in other) for which in (old, new))
    return f"the run began on {was} and goes on with {is_}: its numbers may differ in the last bits."


def _dict(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def check_epochs(epochs: int, done: int, folder: Path) -> None:
    """Raises InputError where a run has done more epochs than it now is to have."""
    if epochs < done:
        raise InputError(f"--epochs must be at least {done}, which the run in {folder} has done, got {epochs}.")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _as_flag(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def show(experiment: Experiment, metrics: dict[str, Any], config: Any, console: Console) -> dict[str, Any]:
    """Prints its results once more, and what it would go on with; gives its metrics.

    Raises InputError for metrics of another kind of run.
    """
    try:
        result, run = experiment.table(metrics), f"{metrics['recipe']}, seed {metrics['seed']}"
        note = metrics["dataset"]["note"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{config.workdir}/{folders.METRICS} must hold the metrics of a {experiment.name} run, got something else "
            f"({error}). Restore it, or choose another --workdir."
        ) from error
    more = "a larger --patience" if metrics.get("reason") == "early-stopping" else "more --epochs"
    text = f"{config.workdir} holds a finished run ({run}); nothing is changed. It goes on with {more}."
    if config.histograms or config.cost or config.profile:
        text += " So --histograms, --cost and --profile have had nothing to look at."
    console.print(text, markup=False, soft_wrap=True)
    print_warning(note, console)
    console.print(result)
    return metrics
