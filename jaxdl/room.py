"""Room on a disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# For the names, shapes and sums that are written beside the numbers.
BESIDE = 2**17
FILES = 64  # that are open at a time while arrays are written


def require(folder: Path, size: int) -> None:
    """Raises OSError where `size` bytes, and a little beside, cannot be written into a folder, or too few files opened.

    It reserves and frees them, which tells of quotas and limits too. Asked before many files are written at once, it
    gives one clear error in place of many.

    >>> require(Path(tempfile.gettempdir()), 1000)
    """
    opened: list[int] = []
    try:
        for _ in range(FILES):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for number in opened:
            os.close(number)
    if not hasattr(os, "posix_fallocate"):
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size + BESIDE)
