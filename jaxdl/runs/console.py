"""The console of a command: its stream, its width and its colors."""

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
def results_only(output: Output) -> Iterator[None]:
    """Redirect standard output to standard error within the block, where scripts read standard output.

    Libraries that print by themselves, such as those that connect processes, then print to standard error.
    """
    if not (output.quiet or output.json):
        yield
        return
    sys.stdout.flush()
    standard_output = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(standard_output, 1)
        os.close(standard_output)


def make_console(output: Output) -> Console:
    """Return the console that the flags ask for."""
    return Terminal(quiet=output.quiet or output.json)


def print_warning(text: str | None, console: Console) -> None:
    """Print a warning, if there is one; to standard error where the console is quiet."""
    if text:
        console = Terminal(file=sys.stderr) if console.quiet else console
        console.print(f"WARNING: {text}", style=WARNING, markup=False, soft_wrap=True)


class Terminal(Console):
    """A console that escapes control characters, and whose write errors end no run.

    On a full disk the lines of the console are lost, and nothing else. A closed pipe raises BrokenPipeError, for which
    the commands have an exit code.
    """

    def __init__(self, *, file: IO[str] | None = None, **options: Any) -> None:
        """Take the options of rich's console."""
        stream = sys.stdout if file is None else file
        lines: Any = stream if isinstance(stream, io.StringIO) else _SafeStream(stream)
        super().__init__(file=lines, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text with escaped control characters, before its width in a table is measured."""
        return super().render_str(printable(text), **options)

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        """Yield the segments to print; only rich's own segments may hold control characters."""
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def on_broken_pipe(self) -> NoReturn:
        """Raise BrokenPipeError, where rich would end the process."""
        raise BrokenPipeError


class _SafeStream(io.TextIOBase):
    """A stream or None, without errors except for a closed pipe."""

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
