"""Images as they were decoded, kept in one file, so that they need not be unpacked and decoded again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.datasets.images import Arrays, Images, as_images
from jaxdl.files import atomic_write


def remember(cache: Path, key: str, make: Callable[[], Images]) -> Images:
    """What `make` has made of the things that `key` names, out of the folder `cache` where it is there.

    The file is there whole or not at all, and its images are checked against their SHA-256; where it is damaged, they
    are made again. A folder that cannot be written is no error: they are made again the next time.

    >>> import tempfile
    >>> pictures, labels = np.zeros((1, 32, 32, 3), np.uint8), np.arange(1)
    >>> images = as_images(Arrays(pictures, labels, pictures, labels), "noise", "memory")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = remember(Path(folder), "mine", lambda: images)
    ...     remember(Path(folder), "mine", lambda: None).source
    'memory'
    """
    path = cache / f"cifar10-{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}.npz"
    images = _load(path)
    if images is None:
        images = make()
        # The images are at hand: only the next start is slower.
        with contextlib.suppress(OSError):
            _save(path, images)
    return images


def _load(path: Path) -> Images | None:
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = Arrays(*(file[name] for name in Arrays._fields))
            images = as_images(arrays, str(file["name"]), str(file["source"]))
            return images if images.sha256 == str(file["sha256"]) else None
    except Exception:
        # A damaged file can be wrong in any way, and whichever it is, it is made again.
        return None


def _save(path: Path, images: Images) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (images.train.inputs, images.train.targets, images.test.inputs, images.test.targets)
    arrays = dict(zip(Arrays._fields, map(np.asarray, rows), strict=True))
    words = {"name": images.name, "source": images.source, "sha256": images.sha256}
    entries: dict[str, Any] = arrays | {name: np.array(word) for name, word in words.items()}
    with atomic_write(path) as file:
        # Not compressed, or reading it would take as long as decoding.
        np.savez(file, **entries)
