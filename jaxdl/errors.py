"""The one kind of error that a user can mend, and its text, which may name what comes from elsewhere."""

from __future__ import annotations

import re

# Controls, which a terminal would obey, but for tabs and ends of lines; marks that turn the direction of a line.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text in which characters that a terminal would obey, not show, stand as their escapes.

    >>> print(printable("\x1b[2JBASEL"))
    \\x1b[2JBASEL
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode(), text)


class InputError(ValueError):
    """Raised for bad input: says what is wrong, what is required, what was got and what to do.

    Names of columns, files and flags in its text may come from elsewhere, so it holds no commands to a terminal.

    Programs catch it at their edge and show its text without a traceback; anything else that is raised is a fault of
    the program itself.

    >>> try:
    ...     raise InputError("batch_size must be at least 1, got 0. Use a positive number.")
    ... except ValueError as error:
    ...     print(error)
    batch_size must be at least 1, got 0. Use a positive number.
    """

    def __init__(self, *args: object) -> None:
        """Keep the text as it may be printed."""
        super().__init__(*(printable(each) if isinstance(each, str) else each for each in args))
