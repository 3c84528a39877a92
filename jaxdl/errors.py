"""The error for bad input, and the escape of control characters in its text."""

from __future__ import annotations

import re

__all__ = ["InputError"]


def __dir__() -> list[str]:
    return __all__


# Control characters, except for tabs and newlines, would command a terminal; bidirectional marks would reorder a line.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text with escapes in place of control characters."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape", "backslashreplace").decode(), text)


class InputError(ValueError):
    """Raised for bad input: the message says what is wrong, what was given and what to type instead.

    A command catches this error and prints its message without a traceback. Names of columns and files in the message
    may come from elsewhere, so control characters in it are escaped.

    >>> try:
    ...     raise InputError("batch_size must be at least 1, got 0. Use a positive number.")
    ... except ValueError as error:
    ...     print(error)
    batch_size must be at least 1, got 0. Use a positive number.
    """

    def __init__(self, *args: object) -> None:
        """Escape the control characters of a message."""
        super().__init__(*(printable(each) if isinstance(each, str) else each for each in args))
