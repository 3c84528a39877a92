"""The console of the command lines."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import IO, Any, NoReturn

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from jaxdl.errors import printable


class Terminal(Console):
    """A console that shows texts from elsewhere as text, and that ends no run because it cannot be written.

    On a disk that is full its lines are lost, and nothing else is. A closed pipe raises BrokenPipeError, which the
    command lines answer with their exit code.

    >>> terminal = Terminal(file=io.StringIO(), width=40)
    >>> terminal.print("a column called \\x1b[2J", markup=False)
    >>> print(terminal.file.getvalue(), end="")
    a column called \\x1b[2J
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
