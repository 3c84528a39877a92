"""The folder of a run: its files, and which process may write them."""

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
KIND, RUN = "kind", "run"  # the entry of config.json that names the kind of a folder, and its value for a run
PROGRAM = "model.stablehlo"  # a model that config.json does not describe
USAGE = ("network", "inputs", "outputs", "card", "terms")  # entries of config.json that users of the model need


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run's folder. Raises InputError where it holds something else."""
    return _files.read_json(path, "Restore it from a copy, or start over with --fresh.")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file of a run's folder, whole or not at all."""
    _files.write_json(path, content)


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """Lock a run's folder for this process; yield a function that returns whether it is still locked.

    Raises InputError where another process holds the lock.
    """
    with ExitStack() as stack:
        try:
            is_locked = stack.enter_context(_files.lock_folder(folder))
        except InputError as error:
            raise InputError(f"--workdir {error}") from None
        yield is_locked


class RunFiles(NamedTuple):
    """The JSON files of a run's folder."""

    config: dict[str, Any]
    metrics: dict[str, Any] | None  # None where the run is not finished


def read_run(folder: str | Path, kind: str = RUN) -> RunFiles | None:
    """Return the files of the run in a folder; None for a folder that is new or empty.

    kind: the kind of folder that its config.json must name. Raises InputError for any other folder, because a run
    never writes among files that are not its own.
    """
    folder = Path(folder)
    try:
        # A process that is killed at its start leaves its lock and a draft.
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
                f"--workdir {folder} must be new, empty or the folder of a {kind}, got {describe_kind(config)}. Choose "
                "another folder."
            )
        metrics = read_json(folder / METRICS) if (folder / METRICS).exists() else None
        return RunFiles(config, metrics)
    except NotADirectoryError:
        raise InputError(f"--workdir {folder} must be a folder, got a file. Choose another name.") from None
    except OSError as error:
        raise InputError(f"--workdir {folder} cannot be read: {error.strerror}. Choose another folder.") from None


def describe_kind(config: dict[str, Any]) -> str:
    """Return what kind of folder a config.json belongs to, for the message that another kind was expected."""
    kind = config.get(KIND)
    if isinstance(kind, str) and kind.isidentifier():
        return f"that of a {kind}"
    return f'one whose {CONFIG} has no "{KIND}", as another program or an earlier version writes it'


def check_no_links(folder: Path) -> None:
    """Raise InputError where a run's folder holds anything but files and folders.

    A run writes and removes files below its folder. In a folder that comes from elsewhere, a link could lead to any
    file of the user, and a pipe would block for ever.
    """
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):  # Another process may remove its drafts meanwhile.
                mode = Path(root, name).lstat().st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    path = printable(Path(root, name).relative_to(folder).as_posix())
                    raise InputError(
                        f"--workdir {folder} holds {path}, which is a link or no file. Remove it if you know where it "
                        "comes from, or choose another folder."
                    )


def make_folder(folder: Path) -> None:
    """Create the folder of a run and its parents. Raises InputError where they cannot be created."""
    if set("[]\\") & set(str(folder.absolute())):
        raise InputError(f"--workdir must be a path without [, ] and \\, got {folder}. Choose another name.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--workdir {folder} must be a folder that can be written: {error.strerror}. Choose another folder."
        ) from None


def rename_old(folder: Path) -> Path | None:
    """Rename a folder to the first free name like `folder-old-1` and return it; None where there is no folder.

    Raises InputError where the folder cannot be renamed.
    """
    if not folder.exists():
        return None
    number = 1
    while (target := folder.absolute().with_name(f"{folder.absolute().name}-old-{number}")).exists():
        number += 1
    try:
        return folder.rename(target)
    except OSError as error:
        raise InputError(
            f"--fresh needs to rename {folder} to {target}, which failed ({error.strerror}). Choose another --workdir."
        ) from None


def prepare_workdir(folder: Path | None, fresh: bool, name: str, console: Console, kind: str = RUN) -> Path:
    """Return the folder of a run, created where it does not exist: `folder`, or a new one runs/<time>-<name>.

    fresh: rename a folder of that name first, and print its new name. kind: see `read_run`. Raises InputError for a
    folder of other files.
    """
    if folder is None:
        return _new_folder(name)
    if fresh and folder.exists():
        with locked(folder):
            read_run(folder, kind)  # Raises for a folder of other files.
        console.print(f"The old content of {folder} is now in {rename_old(folder)}.", markup=False, soft_wrap=True)
    read_run(folder, kind)
    make_folder(folder)
    return folder


def _new_folder(name: str) -> Path:
    """Create and return a new folder in runs. Only one process can create a name."""
    stem = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{name}"
    folder, number = Path("runs", stem), 2
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            folder, number = Path("runs", f"{stem}-{number}"), number + 1
        except OSError as error:
            raise InputError(f"the folder runs cannot be written ({error.strerror}). Give a --workdir.") from None


def short_source(source: str) -> str:
    """Return the source of the data for titles, with only the file's name of a path."""
    return source.rpartition("/")[2] if source.startswith("file:") else source
