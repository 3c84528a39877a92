"""What is done with runs after they are trained.

Exit codes of every command:
* 0: done.
* 2: bad input, which one paragraph on the error output explains.
* 130: Ctrl-C.
* 141: the reader of the output has closed it, as `head` does.

For scripts:
* --json prints JSON, --quiet the least that a script needs.
* Colors are for terminals alone; NO_COLOR=1 takes them away there too.
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
    """How a command tells what it found."""

    json: bool = False
    """Print JSON."""
    quiet: bool = False
    """Print the least that a script needs."""


@dataclass(frozen=True)
class Runs(Output):
    """All runs under a folder in a table, or how two of them differ.

    With --quiet the folders alone, one a line; with --compare the entries."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = Path("runs")
    """The folder that holds the runs, at any depth."""
    sort: catalog.Column = "run"
    """The column that orders them; by best and test the best run first."""
    reverse: bool = False
    """The other way round."""
    compare: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="A B")] = None
    """Two of the runs, by name or folder: the entries of config.json and metrics.json that differ."""


@dataclass(frozen=True)
class Show(Output):
    """What the run in a folder was told, how it ended, and what is there.

    With --quiet one word: how it ended."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""


@dataclass(frozen=True)
class Export(Output):
    """The model of a finished run as a folder that needs only jax and flatbuffers.

    It holds the program, the weights, a model card and predict.py."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The new folder."""
    weights: Annotated[Literal["best", "final"], tyro.conf.arg(metavar="WHICH")] = "best"
    """best, those of the best epoch; or final, those of the last."""


@dataclass(frozen=True)
class Predict:
    """What an exported model predicts, as CSV: a header, and a line a row."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The exported model's folder."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A CSV file with a header (- for the standard input), a .npy file, a picture, or a folder of pictures."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = "-"
    """The file to write; by default the standard output."""
    batch_size: int | None = None
    """Rows at a time; by default the model's."""


Command = Runs | Show | Export | Predict


def run(command: Command, console: Console) -> None:
    """Does what a command says. Raises InputError where that cannot be done."""
    if isinstance(command, Output) and command.json and command.quiet:
        raise InputError("--json and --quiet exclude each other. Give one of them.")
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
        print(_files.as_json([{**each._asdict(), "folder": str(each.folder)} for each in rows]), end="")
    elif command.quiet:
        print("".join(f"{printable(str(each.folder))}\n" for each in rows), end="")
    elif rows:
        console.print(tables.listed(rows, console.width))
        for note in tables.notes(rows):
            console.print(note, markup=False, highlight=False)
    else:
        console.print(f"There are no runs in {command.folder}.", markup=False, highlight=False)


def _compare(command: Runs, console: Console) -> None:
    names = command.compare or ("", "")
    a, b = (_of(command.folder, name) for name in names)
    found = catalog.differences(a, b)
    if command.json:
        print(_files.as_json([each._asdict() for each in found]), end="")
    elif command.quiet:
        print("".join(f"{printable(each.entry)}\n" for each in found), end="")
    elif found:
        console.print(tables.compared(found, names))
    else:
        console.print(f"{names[0]} and {names[1]} differ in nothing.", markup=False, highlight=False)


def _show(command: Show, console: Console) -> None:
    of = catalog.run_details(command.run)
    if command.json:
        row = {**of.row._asdict(), "folder": str(of.row.folder)}
        print(_files.as_json({**row, "config": of.config, "metrics": of.metrics, "files": of.files}), end="")
    elif command.quiet:
        print(of.row.reason)
    else:
        try:
            table = tables.told(of)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{command.run} does not hold what a run's files hold ({error!r}).") from error
        console.print(table)


def _export(command: Export, console: Console) -> None:
    export_run(command.run, command.out, kept=command.weights)
    if command.json:
        print(_files.as_json({"folder": str(command.out), "files": catalog.files(command.out)}), end="")
    elif not command.quiet:
        console.print(f"The model and how to use it are in {command.out}", markup=False, soft_wrap=True)


def _of(folder: Path, name: str) -> Path:
    """A run by its name in a folder, or by its own path."""
    return folder / name if (folder / name).exists() else Path(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses a command and runs it; the exit code, as above."""
    _startup.begin()
    try:
        return _ended(arguments)
    finally:
        _startup.end()


def _ended(arguments: Sequence[str] | None) -> int:
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
        # Or Python would try once more, and complain, when it closes the output at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except OSError as error:
        what = "the output" if error.filename is None else printable(str(error.filename))
        with suppress(OSError):
            print(f"error: {what} cannot be read or written ({error.strerror or error}).", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
