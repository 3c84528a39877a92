"""CIFAR-10: where it is found, and its copy on disk."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl._files import atomic_write
from jaxdl.datasets import _cifar10_files, _download
from jaxdl.datasets._cifar10_files import Arrays, ImageData, image_data
from jaxdl.datasets._download import DATA_FOLDER
from jaxdl.datasets._simulated_images import IMAGES, SEED, draw
from jaxdl.errors import InputError

NAME = "cifar10"
SERVER = "https://www.cs.toronto.edu/~kriz"
ARCHIVE = "cifar-10-binary.tar.gz"
CHECKSUM = "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
WORDS = ("auto", "tfds", "simulated")
ADVICE = "Use auto, tfds, simulated[:IMAGES[:SEED]], or a folder or an archive with the files of CIFAR-10."


def load_cifar10(source: str | Path = "auto", *, cache: Path | None = None, server: str = SERVER) -> ImageData:
    """Images (N, 32, 32, 3) uint8, 0 to 255, red, green, blue, with labels (N,) int32, 0 to 9, to train and to test.

    source: the folder or the archive that was published, in the python or the binary format, or a folder with one of
    them; "tfds", the data set of tensorflow-datasets; "simulated[:IMAGES[:SEED]]", drawn by a program; or "auto": the
    folder that JAXDL_DATA names, else `cache`, else a download, else, with no network, simulated images and a `note`.
    cache: where a download is kept, and what was decoded, unless it comes from a folder; the user's cache folder if
    None. Raises InputError where the source cannot be had or a file is damaged.

    >>> images = load_cifar10("simulated:120")
    >>> images.train.inputs.shape, images.test.targets.shape, images.classes[3], images.source
    ((100, 32, 32, 3), (20,), 'cat', 'simulated:120:seed=0')
    """
    images = _images(source, cache, server)
    if images.note:
        warnings.warn(images.note, stacklevel=2)
    return images


def _images(source: str | Path, cache: Path | None, server: str) -> ImageData:
    if source == "auto":
        return _auto(cache, server)
    if source == "tfds":
        return _prepared(cache or _download.user_cache())
    word = str(source)
    if isinstance(source, str) and word.partition(":")[0] == "simulated":
        return _simulated(word)
    # Not Path.expanduser, which has no InputError for a user that there is not.
    path = Path(os.path.expanduser(source))
    if not word or _download.too_long(path) or (not path.exists() and path.name == word and not path.suffix):
        near = difflib.get_close_matches(word, WORDS, 1)
        nearest = f"; the nearest word is {near[0]}" if near else ""
        raise InputError(f"{word!r} is no source of images{nearest}. {ADVICE}")
    return _local(_cifar10_files.find(path), cache)


def _auto(cache: Path | None, server: str) -> ImageData:
    folder = os.environ.get(DATA_FOLDER)
    if folder:
        try:
            found = _cifar10_files.find(Path(os.path.expanduser(folder)))
        except InputError as error:
            # Not passed over: whoever set it wants these images and no others.
            raise InputError(f"{DATA_FOLDER} must name a folder with CIFAR-10: {error}") from error
        return _local(found, cache)
    try:
        return _downloaded(cache or _download.user_cache(), server)
    except _download.UnreachableError as error:
        note = f"SIMULATED IMAGES, NOT CIFAR-10: {error} No figure of this run says anything about real images."
        return _drawn(IMAGES, SEED, note)


def _local(path: Path, cache: Path | None) -> ImageData:
    absolute = path.absolute()

    def read() -> ImageData:
        return image_data(_cifar10_files.read(path), NAME, f"file:{absolute}")

    if path.is_dir():
        # As quick as reading it back would be, or nearly.
        return read()
    # By its content: an archive that was exchanged may have the size and the time of the one before.
    try:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Make it readable or name another.") from error
    return remember(cache or _download.user_cache(), f"{absolute} {checksum}", read)


def _downloaded(cache: Path, server: str) -> ImageData:
    def fetch() -> ImageData:
        path = _download.fetch(f"{server.rstrip('/')}/{ARCHIVE}", CHECKSUM, cache / ARCHIVE)
        return image_data(_cifar10_files.read(path), NAME, f"download:{ARCHIVE}")

    return remember(cache, CHECKSUM, fetch)


def _prepared(cache: Path) -> ImageData:
    # tensorflow-datasets itself looks at this only once, when it is imported.
    folder = os.environ.get("TFDS_DATA_DIR", "")

    def read() -> ImageData:
        # Imported here: nothing else needs tensorflow-datasets.
        from jaxdl.datasets import _cifar10_tfds

        arrays, label = _cifar10_tfds.read(Path(folder) if folder else None)
        return image_data(arrays, NAME, label)

    return remember(cache, f"tfds {folder and os.path.abspath(folder)}", read)


def _simulated(word: str) -> ImageData:
    numbers = word.split(":")[1:]
    try:
        images, seed = [*map(int, numbers), *(IMAGES, SEED)[len(numbers) :]]
    except ValueError as error:
        raise InputError(
            f"simulated images must be simulated[:IMAGES[:SEED]] with whole numbers, got {word}."
        ) from error
    return _drawn(images, seed)


def _drawn(images: int, seed: int, note: str | None = None) -> ImageData:
    return image_data(draw(images, seed), NAME, f"simulated:{images}:seed={seed}", note)


def remember(cache: Path, key: str, make: Callable[[], ImageData]) -> ImageData:
    """What `make` has made of the things that `key` names, out of the folder `cache` where it is there.

    The file is there whole or not at all, and its images are checked against their SHA-256; where it is damaged, they
    are made again. A folder that cannot be written is no error: they are made again the next time.
    """
    path = cache / f"cifar10-{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}.npz"
    images = _load(path)
    if images is None:
        images = make()
        # The images are at hand: only the next start is slower.
        with contextlib.suppress(OSError):
            _save(path, images)
    return images


def _load(path: Path) -> ImageData | None:
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = Arrays(*(file[name] for name in Arrays._fields))
            images = image_data(arrays, str(file["name"]), str(file["source"]))
            return images if images.sha256 == str(file["sha256"]) else None
    except Exception:
        # A damaged file can be wrong in any way, and whichever it is, it is made again.
        return None


def _save(path: Path, images: ImageData) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (images.train.inputs, images.train.targets, images.test.inputs, images.test.targets)
    arrays = dict(zip(Arrays._fields, map(np.asarray, rows), strict=True))
    words = {"name": images.name, "source": images.source, "sha256": images.sha256}
    entries: dict[str, Any] = arrays | {name: np.array(word) for name, word in words.items()}
    with atomic_write(path) as file:
        # Not compressed, or reading it would take as long as decoding.
        np.savez(file, **entries)
