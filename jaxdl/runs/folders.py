"""The folder of a run: its files, and who may write them."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdl import _files
from jaxdl._files import is_draft
from jaxdl.errors import InputError, printable

if TYPE_CHECKING:
    from rich.console import Console


CONFIG, METRICS, HISTORY = "config.json", "metrics.json", "history.csv"
KIND, RUN = "kind", "run"  # an entry of config.json: which kind of folder it is, and that of a run
PROGRAM = "model.stablehlo"  # a model that config.json does not describe
# What config.json says for those who use the model, beside what the run was told.
USAGE = ("network", "inputs", "outputs", "card", "terms")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run's folder. Raises InputError where it holds something else."""
    return _files.read_json(path, "Restore it from a copy, or start over with --fresh.")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file of a run's folder, whole or not at all."""
    _files.write_json(path, content)


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """Keep other processes out of a run's folder; gives whether it is still locked. Raises InputError if one is in."""
    with ExitStack() as stack:
        try:
            holds = stack.enter_context(_files.lock_folder(folder))
        except InputError as error:
            raise InputError(f"--workdir {error}") from None
        yield holds


class RunFiles(NamedTuple):
    """What a folder says of the run in it."""

    config: dict[str, Any]
    metrics: dict[str, Any] | None  # where it is finished


def earlier(folder: str | Path, kind: str = RUN) -> RunFiles | None:
    """The run that a folder holds; None for a folder that is new or empty. kind: what its config.json must be of.

    Raises InputError for any other folder: a run never writes among files that are not its own.
    """
    folder = Path(folder)
    try:
        # A process that was killed at its very beginning leaves its lock and a draft.
        if not folder.exists() or all(path.name == "lock" or is_draft(path.name) for path in folder.iterdir()):
            return None
        check_no_links(folder)
        if not (folder / CONFIG).exists():
            raise InputError(
                f"--workdir {folder} must be new, empty or the folder of a run, got a folder that holds other files. "
                "Choose another folder."
            )
        config = read_json(folder / CONFIG)
        if config.get(KIND) != kind:
            raise InputError(
                f"--workdir {folder} must be new, empty or the folder of a {kind}, got {other_kind(config)}. Choose "
                "another folder."
            )
        metrics = read_json(folder / METRICS) if (folder / METRICS).exists() else None
        return RunFiles(config, metrics)
    except NotADirectoryError:
        raise InputError(f"--workdir {folder} must be a folder, got a file. Choose another name.") from None
    except OSError as error:
        raise InputError(f"--workdir {folder} cannot be read: {error.strerror}. Choose another folder.") from None


def other_kind(config: dict[str, Any]) -> str:
    """Return what the folder of this config.json is, where it is not the one that was expected."""
    kind = config.get(KIND)
    if isinstance(kind, str) and kind.isidentifier():
        return f"that of a {kind}"
    return f'one whose {CONFIG} has no "{KIND}", as another program or an earlier version writes it'


def check_no_links(folder: Path) -> None:
    """Raise InputError where a run's folder holds anything but files and folders.

    A run writes and removes what lies below its folder. Through a link, in a folder that comes from elsewhere, that
    would be any file of the user's; a pipe would make it wait for ever.
    """
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):  # Another process may remove its drafts meanwhile.
                mode = Path(root, name).lstat().st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    found = printable(Path(root, name).relative_to(folder).as_posix())
                    raise InputError(
                        f"--workdir {folder} holds {found}, which is a link or no file. Remove it if you know where it "
                        "comes from, or choose another folder."
                    )


def make(folder: Path) -> None:
    """Makes the folder of a run, and those above it.

    Raises InputError where it cannot be made.
    """
    if set("[]\\") & set(str(folder.absolute())):
        raise InputError(f"--workdir must be a path without [, ] and \\, got {folder}. Choose another name.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--workdir {folder} must be a folder that can be written: {error.strerror}. Choose another folder."
        ) from None


def set_aside(folder: Path) -> Path | None:
    """Gives a folder the first free name like `folder-old-1`, which is returned; None where there is no folder.

    Raises InputError where it cannot be renamed.
    """
    if not folder.exists():
        return None
    number = 1
    while (aside := folder.absolute().with_name(f"{folder.absolute().name}-old-{number}")).exists():
        number += 1
    try:
        return folder.rename(aside)
    except OSError as error:
        raise InputError(
            f"--fresh needs to rename {folder} to {aside}, which failed ({error.strerror}). Choose another --workdir."
        ) from None


def workdir(given: Path | None, fresh: bool, name: str, console: Console, kind: str = RUN) -> Path:
    """The folder of a run, made where it is not there: the given one, or a new one in runs, named by the time.

    fresh: what is in it is kept under another name, which is told. kind: as in `earlier`. Raises InputError for a
    folder of other files.
    """
    if given is None:
        return _new(name)
    if fresh and given.exists():
        with locked(given):
            earlier(given, kind)  # Raises for a folder of other files.
        aside = set_aside(given)
        console.print(f"What was in {given} is now {aside}.", markup=False, soft_wrap=True)
    earlier(given, kind)
    make(given)
    return given


def _new(recipe: str) -> Path:
    """It exists already, so that no other run can take it."""
    stem = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{recipe}"
    folder, number = Path("runs", stem), 2
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            folder, number = Path("runs", f"{stem}-{number}"), number + 1
        except OSError as error:
            raise InputError(f"the folder runs cannot be written ({error.strerror}). Give a --workdir.") from None
