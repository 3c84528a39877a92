"""Room on a disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# For the names, shapes and sums that are written beside the numbers.
BESIDE = 2**17


def require(folder: Path, size: int) -> None:
    """Raises OSError where `size` bytes, and a little beside, cannot be written into a folder.

    It reserves and frees them, which tells of quotas and limits too. Asked before many files are written at once, it
    gives one clear error in place of many.

    >>> require(Path(tempfile.gettempdir()), 1000)
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size + BESIDE)
