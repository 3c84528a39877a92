"""`python -m jaxdl`: what is done with runs after they are trained.

Each command is a frozen dataclass, whose docstring and fields are its help, and a branch of `run`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from jaxdl import folders
from jaxdl.errors import InputError

PROG = "python -m jaxdl"
BAD_INPUT, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Show:
    """What the run in a folder was told, and how it ended."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""


Command = Show  # and others: Show | Export


def run(command: Command, console: Console) -> None:
    """Does what a command says. Raises InputError where that cannot be done."""
    match command:
        case Show(folder):
            console.print_json(data=folders.read_json(folder / folders.METRICS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses a command and runs it; the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    try:
        run(tyro.cli(Command, args=arguments, prog=PROG), Console())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
