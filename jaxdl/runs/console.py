"""Where a command prints, and in which width and colors."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NoReturn

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from jaxdl.errors import printable
from jaxdl.runs.flags import Output

WARNING = "bold red"


@contextmanager
def alone(output: Output) -> Iterator[None]:
    """Keeps the standard output for the results where scripts read it.

    Libraries that write there themselves, as those do that connect processes, write to the standard error instead.
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


def make_console(output: Output) -> Console:
    """The console that the flags ask for."""
    return Terminal(quiet=output.quiet or output.json)


def print_warning(text: str | None, shown: Console) -> None:
    """Prints a warning, if there is one; beside a quiet console on the standard error."""
    if text:
        heard = Terminal(file=sys.stderr) if shown.quiet else shown
        heard.print(f"WARNING: {text}", style=WARNING, markup=False, soft_wrap=True)


class Terminal(Console):
    """A console that shows texts from elsewhere as text, and that ends no run because it cannot be written.

    On a disk that is full its lines are lost, and nothing else is. A closed pipe raises BrokenPipeError, which the
    command lines answer with their exit code.
    """

    def __init__(self, *, file: IO[str] | None = None, **options: Any) -> None:
        """Take the options of rich's console."""
        stream = sys.stdout if file is None else file
        lines: Any = stream if isinstance(stream, io.StringIO) else _Lines(stream)
        super().__init__(file=lines, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as it is shown, before its place in a table is measured."""
        return super().render_str(printable(text), **options)

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        """Yield the segments of what is printed; only those of rich itself may command the terminal."""
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def on_broken_pipe(self) -> NoReturn:
        """Raise what the command lines answer with their exit code."""
        raise BrokenPipeError


class _Lines(io.TextIOBase):
    """A stream, where there is one, without its errors but for a closed pipe."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        try:
            return len(text) if self._stream is None else self._stream.write(text)
        except BrokenPipeError:
            raise
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except BrokenPipeError:
            raise
        except (OSError, ValueError):
            pass

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()
