"""What a command prints, and where."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from jaxdl.terminals import Terminal

WARNING = "bold red"


@dataclass(frozen=True)
class Output:
    """The flags that say it."""

    quiet: bool = False
    """Print nothing but warnings and errors, which go to the standard error."""
    json: bool = False
    """Be quiet, and print the results as JSON at the end."""


@contextmanager
def alone(output: Output) -> Iterator[None]:
    """Keeps the standard output for the results where scripts read it.

    Libraries that write there themselves, as those do that connect processes, write to the standard error instead.

    >>> with alone(Output()):
    ...     print("as ever")
    as ever
    """
    if not (output.quiet or output.json):
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def console(output: Output) -> Console:
    """The console that the flags ask for.

    >>> console(Output(json=True)).quiet
    True
    """
    return Terminal(quiet=output.quiet or output.json)


def warn(text: str | None, shown: Console) -> None:
    """Prints a warning, if there is one; beside a quiet console on the standard error.

    >>> warn(None, Console())
    """
    if text:
        heard = Terminal(file=sys.stderr) if shown.quiet else shown
        heard.print(f"WARNING: {text}", style=WARNING, markup=False, soft_wrap=True)
