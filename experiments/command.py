"""What the experiments' command lines have in common."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console

from jaxdl.errors import InputError

ConfigT = TypeVar("ConfigT")

BAD_INPUT, INTERRUPTED = 2, 130


def command(
    config_type: type[ConfigT],
    run: Callable[[ConfigT, Console], Any],
    prog: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Parses the flags and runs; the exit code. Bad input is one message and 2, Ctrl-C is 130; neither a traceback."""
    config = tyro.cli(config_type, args=arguments, prog=prog)
    try:
        run(config, Console())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(
            "interrupted: the run is not finished. What it has written stays; start again in another --workdir.",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0


def new_workdir(recipe: str) -> Path:
    """A new folder for a run, which exists already so that no other run can take it."""
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
