"""The one kind of error that a user can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Raised for bad input: says what is wrong, what is required, what was got and what to do.

    Programs catch it at their edge and show its text without a traceback; anything else that is raised is a fault of
    the program itself.

    >>> try:
    ...     raise InputError("batch_size must be at least 1, got 0. Use a positive number.")
    ... except ValueError as error:
    ...     print(error)
    batch_size must be at least 1, got 0. Use a positive number.
    """
