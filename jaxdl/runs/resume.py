"""Resume a run: the flags that may change, and the state in its latest checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import jax.numpy as jnp
from rich.console import Console

from jaxdl import saving
from jaxdl._tree import check_structure, unflatten_named
from jaxdl.errors import InputError
from jaxdl.runs import folders
from jaxdl.runs.console import print_warning
from jaxdl.runs.experiment import Experiment
from jaxdl.runs.flags import COMMAND_FLAGS
from jaxdl.runs.folders import CONFIG, RunFiles
from jaxdl.saving import checkpoints
from jaxdl.types import Checkpoint, RunState

# Flags that may change when a run is resumed. The data are compared by their checksum, so their name may change too.
FREE = {"epochs", "patience", "save_every", "on_nan", "compilation_cache", "data"}
CHECKPOINTS = Path("checkpoints", "progress")  # in the folder of a run
Changes = dict[str, tuple[Any, Any]]  # by flag: the value of the run in the folder, and the new value


class StartPoint(NamedTuple):
    """The state in which a run starts or resumes."""

    state: RunState
    history: list[dict[str, float]]
    message: str | None = None  # printed where the folder holds a run
    environment: dict[str, Any] | None = None  # as the checkpoint records it; None where no checkpoint is restored


def with_checkpoint_flags(folder: Path, files: RunFiles) -> tuple[RunFiles, str | None]:
    """Return a run's files with the flags of its latest checkpoint, and a warning where config.json differs.

    The flags of the checkpoint are those of the saved state. Where config.json differs, it was edited or damaged, or
    the process was killed before it saved under new flags. For flags that may change, config.json raises no warning.
    """
    about = checkpoints.read_about(folder / CHECKPOINTS)
    recorded = {} if about is None else about.get("config")
    if not isinstance(recorded, dict):
        return files, None
    flags = {name: value for name, value in recorded.items() if name not in COMMAND_FLAGS}
    other = [name for name in flags if name not in FREE and files.config.get(name) != flags[name]]
    texts = [f"{name} {files.config.get(name)!r}, the checkpoint {flags[name]!r}" for name in other]
    text = f"config.json says {'; '.join(texts)}. The run resumes with the flags of the checkpoint." if texts else None
    return files._replace(config={**files.config, **flags}), text


def read_flags(folder: Path, files: RunFiles, types: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags of the run in a folder. types: by the name of the flag.

    Raises InputError where config.json holds a value of another type.
    """
    config = with_checkpoint_flags(folder, files)[0].config
    flags = {name: value for name, value in config.items() if name in types}
    flags |= {name: files.config[name] for name in FREE & flags.keys() & files.config.keys()}
    for name, value in flags.items():
        if not _is_of_type(value, types[name]):
            raise InputError(
                f"{folder / CONFIG} is damaged: {name} is {value!r:.80}, which --{name.replace('_', '-')} cannot be. "
                "Restore it from a copy, or start over with --fresh."
            )
    return {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()}


def _is_of_type(value: Any, kind: Any) -> bool:
    """Return whether a value of JSON has the type of a flag."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_is_of_type(value, argument) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is tuple:
        return isinstance(value, list) and all(_is_of_type(entry, arguments[0]) for entry in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (str if kind is Path else kind)


def changed_flags(flags: Mapping[str, Any], files: RunFiles) -> Changes:
    """Return the flags that differ from those of the run in a folder."""
    now = json.loads(json.dumps({n: value for n, value in flags.items() if n not in COMMAND_FLAGS}, default=str))
    before = files.config
    return {name: (before[name], value) for name, value in now.items() if name in before and before[name] != value}


def refusal(changes: Changes, frozen: Mapping[str, str]) -> str | None:
    """Return the message for changed flags that may not change; None where all may.

    frozen: flags of this experiment that may not change, with the reasons, in addition to all that are not in `FREE`.
    """
    texts = []
    for name, (before, now) in changes.items():
        if name not in FREE or name in frozen:
            flag, why = f"--{name.replace('_', '-')}", f" ({frozen[name]})" if name in frozen else ""
            advice = f"Leave {flag} out" if before is None else f"Use {flag} {_as_flag(before)}"
            texts.append(f"{flag} is {_as_flag(before)} in that run{why}, got {_as_flag(now)}. {advice}")
    return "; ".join(texts) or None


def can_continue(changes: Changes, metrics: Mapping[str, Any]) -> bool:
    """Return whether a finished run can train on: with more epochs, or with more patience after early stopping."""
    if metrics.get("reason") == "early-stopping":
        before, now = changes.get("patience", (0, 0))
        return now is None or now > before
    before, now = changes.get("epochs", (0, 0))
    return bool(now > before)


def restore(
    start: RunState, folder: Path, sha256: str, changes: Changes, refusal: str | None, warn: Callable[[str], None]
) -> StartPoint:
    """Return the state in the latest undamaged checkpoint of a folder, or `start` where there is none.

    start: the state before the first epoch. sha256: the checksum of the data. refusal: the message for flags that may
    not change. Raises InputError where the run cannot be resumed, with the first array that differs.
    """
    advice = (
        f"{refusal or 'Use the data and the code of that run'}, choose another --workdir, or start over with --fresh."
    )
    saved = saving.restore_latest(folder / CHECKPOINTS, warn, again="--fresh, which keeps this run under another name")
    if saved is None:
        if refusal is not None:
            raise InputError(f"the run in {folder} cannot be resumed: {advice}")
        return StartPoint(start, [], "No checkpoint was saved yet, so the run starts from its beginning.")
    try:
        check_structure(saved.about["kinds"], start)
        if refusal is not None:
            raise InputError(advice)
        if saved.about.get("data") != sha256:
            other = str(saved.about.get("data"))
            raise InputError(f"it was trained on other data (SHA-256 {other[:12]}..., these data {sha256[:12]}...)")
        _check_history(saved)
    except InputError as error:
        text = str(error) if str(error) == advice else f"{error}. {advice}"
        raise InputError(f"the run in {folder} cannot be resumed: {text}") from None
    run_state: RunState = unflatten_named(start, saved.arrays)
    if "patience" in changes:
        # The rule decides again at the end of the next epoch.
        run_state = run_state._replace(stopping=run_state.stopping._replace(should_stop=jnp.zeros((), bool)))
    batches = int(run_state.cursor)
    place = f"epoch {int(run_state.epoch)}" + (f" and batch {batches} of the next" if batches else "")
    text = f"The run resumes after {place} (checkpoint {saved.number})."
    return StartPoint(run_state, saved.about["history"], text, _dict(saved.about, "surroundings"))


def _check_history(saved: Checkpoint) -> None:
    """Raise InputError where the history in a checkpoint, which is written into files, does not fit its epochs."""
    history, epochs = saved.about.get("history"), int(saved.arrays["epoch"])
    is_whole = isinstance(history, list) and [_epoch_of(record) for record in history] == [*range(1, epochs + 1)]
    if not is_whole or epochs < 0 or int(saved.arrays["cursor"]) < 0:
        raise InputError(f"the history in its checkpoint does not hold the {epochs} epochs that were trained")


def _epoch_of(record: Any) -> int | None:
    """Return the epoch of a record; None for a value that is no record."""
    if not isinstance(record, dict) or type(record.get("epoch")) is not int:
        return None
    has_plain_names = all(re.fullmatch(r"[\w .%@()/+-]{1,200}", name) for name in record)
    has_numbers = all(type(value) in (int, float) for value in record.values())
    return record["epoch"] if has_plain_names and has_numbers else None


def environment_warning(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the warning that packages or devices are not those of the run so far; None where they are the same."""
    old, new = (
        {**_dict(entry, "versions"), "devices": entry.get("devices"), **_dict(entry, "machine")}
        for entry in (before, now)
    )
    names = [name for name in new if old.get(name) != new[name]]
    if not names or not _dict(before, "versions"):
        return None
    old_text, new_text = (", ".join(f"{name} {entry.get(name)}" for name in names) for entry in (old, new))
    return f"the run began on {old_text} and resumes on {new_text}: its numbers may differ in the last bits."


def _dict(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _as_flag(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def print_finished(experiment: Experiment, metrics: dict[str, Any], config: Any, console: Console) -> dict[str, Any]:
    """Print the results of a finished run again, and how to continue it; return its metrics.

    Raises InputError for metrics of another experiment.
    """
    try:
        table, run = experiment.table(metrics), f"{metrics['recipe']}, seed {metrics['seed']}"
        note = metrics["dataset"]["note"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{config.workdir}/{folders.METRICS} must hold the metrics of a {experiment.name} run, got something else "
            f"({error}). Restore it, or choose another --workdir."
        ) from error
    flag = "--patience" if metrics.get("reason") == "early-stopping" else "--epochs"
    text = f"{config.workdir} holds a finished run ({run}); nothing is changed. A larger {flag} continues it."
    if config.histograms or config.cost or config.profile:
        text += " --histograms, --cost and --profile have no effect here, because nothing is trained."
    console.print(text, markup=False, soft_wrap=True)
    print_warning(note, console)
    console.print(table)
    return metrics
