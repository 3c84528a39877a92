"""The console of the command lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from rich.console import Console
from rich.segment import Segment

from jaxdl.errors import printable


class Terminal(Console):
    """A console that shows texts from elsewhere as text, and that leaves a closed pipe to its caller.

    >>> import io
    >>> terminal = Terminal(file=io.StringIO(), width=40)
    >>> terminal.print("a column called \\x1b[2J", markup=False)
    >>> print(terminal.file.getvalue(), end="")
    a column called \\\\x1b[2J
    """

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        """Yield the segments of what is printed; only those of rich itself may command the terminal."""
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def on_broken_pipe(self) -> NoReturn:
        """Raise what the command lines answer with their exit code."""
        raise BrokenPipeError
