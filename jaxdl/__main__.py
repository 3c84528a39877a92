"""List, show, compare and export runs, and predict with exported models.

Exit codes of every command:
* 0: success.
* 2: bad input; standard error says what is wrong.
* 130: interrupted by Ctrl-C.
* 141: the reader of the output has closed it, as `head` does.

For scripts:
* --json prints JSON, --quiet only names or single words.
* Colors appear in a terminal only; NO_COLOR=1 switches them off there too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from jaxdl import _files, _startup
from jaxdl._checks import check_platform
from jaxdl.errors import InputError, printable
from jaxdl.runs import catalog, tables
from jaxdl.runs.console import Terminal
from jaxdl.runs.export import export_run
from jaxdl.saving import export

PROG = "python -m jaxdl"
BAD_INPUT, INTERRUPTED, CLOSED = 2, 130, 141


@dataclass(frozen=True, kw_only=True)
class Output:
    """The format of the output."""

    json: bool = False
    """Print JSON."""
    quiet: bool = False
    """Print only names or single words, for scripts."""


@dataclass(frozen=True)
class Runs(Output):
    """List all runs below a folder as a table, or compare two of them.

    With --quiet it prints the folders of the runs, one a line.

    With --compare and --quiet it prints the names of the entries that differ."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = Path("runs")
    """Folder that holds runs, at any depth."""
    sort: catalog.Column = "run"
    """Column to sort by; best and test put the best run first."""
    reverse: bool = False
    """Reverse the order."""
    compare: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="A B")] = None
    """Print the entries of config.json and metrics.json that differ between two runs, given by name or folder."""


@dataclass(frozen=True)
class Show(Output):
    """Print the flags of a run, its results and its files.

    With --quiet it prints one word, such as epochs, running or unfinished."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""


@dataclass(frozen=True)
class Export(Output):
    """Export the model of a finished run into a folder of its own.

    The folder holds the exported function, its weights, a card and predict.py.

    It needs only the packages jax and flatbuffers."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to create."""
    weights: Annotated[Literal["best", "final"], tyro.conf.arg(metavar="WHICH")] = "best"
    """best: the weights of the best epoch; final: those of the last epoch."""


@dataclass(frozen=True)
class Predict:
    """Predict with an exported model.

    The output is CSV: a header, and a line for each example.

    A model of several arrays reads and writes .npz files."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder of the exported model."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """CSV file with header (- for standard input), .npy file, picture, folder of pictures, or .npz file of arrays."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = "-"
    """File to write; - for standard output."""
    batch_size: int | None = None
    """Examples in a batch; by default the model's."""


Command = Runs | Show | Export | Predict


def run(command: Command, console: Console) -> None:
    """Run a command. Raises InputError for bad input."""
    if isinstance(command, Output) and command.json and command.quiet:
        raise InputError("--json and --quiet exclude each other, got both. Give one of them.")
    if isinstance(command, (Export, Predict)):
        check_platform()
    match command:
        case Runs(compare=None):
            _list(command, console)
        case Runs():
            _compare(command, console)
        case Show():
            _show(command, console)
        case Export():
            _export(command, console)
        case Predict():
            export.predict(command.model, command.data, command.out, command.batch_size)


def _list(command: Runs, console: Console) -> None:
    rows = catalog.ordered(catalog.list_runs(command.folder), command.sort, command.reverse)
    if command.json:
        print(_files.as_json([{**run._asdict(), "folder": str(run.folder)} for run in rows]), end="")
    elif command.quiet:
        print("".join(f"{printable(str(run.folder))}\n" for run in rows), end="")
    elif rows:
        console.print(tables.runs_table(rows, console.width))
        for note in tables.notes(rows):
            console.print(note, markup=False, highlight=False)
    else:
        console.print(f"There are no runs in {command.folder}.", markup=False, highlight=False)


def _compare(command: Runs, console: Console) -> None:
    names = command.compare or ("", "")
    entries = catalog.diff_runs(*(_folder_of(command.folder, name) for name in names))
    if command.json:
        print(_files.as_json([entry._asdict() for entry in entries]), end="")
    elif command.quiet:
        print("".join(f"{printable(entry.entry)}\n" for entry in entries), end="")
    elif entries:
        console.print(tables.differences_table(entries, names))
    else:
        console.print(f"{names[0]} and {names[1]} do not differ.", markup=False, highlight=False)


def _show(command: Show, console: Console) -> None:
    details = catalog.run_details(command.run)
    if command.json:
        _, config, metrics, files = details
        row = {**details.row._asdict(), "folder": str(details.row.folder)}
        print(_files.as_json({**row, "config": config, "metrics": metrics, "files": files}), end="")
    elif command.quiet:
        print(details.row.reason)
    else:
        try:
            table = tables.details_table(details)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{command.run} does not hold what a run's files hold ({error!r}).") from error
        console.print(table)


def _export(command: Export, console: Console) -> None:
    export_run(command.run, command.out, which=command.weights)
    if command.json:
        print(_files.as_json({"folder": str(command.out), "files": catalog.files(command.out)}), end="")
    elif not command.quiet:
        console.print(f"The model and how to use it are in {command.out}", markup=False, soft_wrap=True)


def _folder_of(folder: Path, name: str) -> Path:
    """Return the folder of a run that is named by its path from `folder`, or by its own path."""
    return folder / name if (folder / name).exists() else Path(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command and run it; return the exit code, see the top of this file."""
    _startup.prepare_process()
    try:
        return _run(arguments)
    finally:
        _startup.end()


def _run(arguments: Sequence[str] | None) -> int:
    try:
        command = tyro.cli(
            Command, args=arguments, prog=PROG, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)
        )
        run(command, Terminal())
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes the output when it ends, which would print another error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except OSError as error:
        name = "the output" if error.filename is None else printable(str(error.filename))
        with suppress(OSError):
            print(f"error: {name} cannot be read or written ({error.strerror or error}).", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
