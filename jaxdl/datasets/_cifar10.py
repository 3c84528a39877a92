"""Load CIFAR-10, and cache the decoded images."""

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
    """Return the training and the test set: RGB images (N, 32, 32, 3) uint8, and labels (N,) int32 from 0 to 9.

    source: the published folder or archive, in the python or the binary format, or a folder with one of them; "tfds",
        the data set of tensorflow-datasets; "simulated[:IMAGES[:SEED]]", images that are drawn; or "auto": the folder
        in JAXDL_DATA, else `cache`, else a download, else, without a network, simulated images and a `note`.
    cache: the folder for the download and for the decoded images of an archive; the user's cache folder unless given.

    Raises InputError where the source is not available or a file is damaged.

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
        return _tfds(cache or _download.user_cache())
    word = str(source)
    if isinstance(source, str) and word.partition(":")[0] == "simulated":
        return _simulated(word)
    # Not Path.expanduser, which raises RuntimeError for an unknown user.
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
            path = _cifar10_files.find(Path(os.path.expanduser(folder)))
        except InputError as error:
            # No fallback: whoever sets the variable wants these images.
            raise InputError(f"{DATA_FOLDER} must name a folder with CIFAR-10: {error}") from error
        return _local(path, cache)
    try:
        return _download_archive(cache or _download.user_cache(), server)
    except _download.UnreachableError as error:
        note = f"SIMULATED IMAGES, NOT CIFAR-10: {error} No metric of this run says anything about real images."
        return _draw(IMAGES, SEED, note)


def _local(path: Path, cache: Path | None) -> ImageData:
    absolute = path.absolute()

    def read() -> ImageData:
        return image_data(_cifar10_files.read(path), NAME, f"file:{absolute}")

    if path.is_dir():
        # About as fast as the cached copy would be.
        return read()
    # By the content: another archive may have the same size and time.
    try:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Make it readable or name another.") from error
    return remember(cache or _download.user_cache(), f"{absolute} {checksum}", read)


def _download_archive(cache: Path, server: str) -> ImageData:
    def fetch() -> ImageData:
        path = _download.fetch(f"{server.rstrip('/')}/{ARCHIVE}", CHECKSUM, cache / ARCHIVE)
        return image_data(_cifar10_files.read(path), NAME, f"download:{ARCHIVE}")

    return remember(cache, CHECKSUM, fetch)


def _tfds(cache: Path) -> ImageData:
    # tensorflow-datasets reads this variable only once, on import.
    folder = os.environ.get("TFDS_DATA_DIR", "")

    def read() -> ImageData:
        # Imported here: only this source needs tensorflow-datasets.
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
    return _draw(images, seed)


def _draw(images: int, seed: int, note: str | None = None) -> ImageData:
    return image_data(draw(images, seed), NAME, f"simulated:{images}:seed={seed}", note)


def remember(cache: Path, key: str, make: Callable[[], ImageData]) -> ImageData:
    """Return the images of `make`, from a file in `cache` for the same `key`, whose SHA-256 is checked.

    A damaged file is made again. A folder that cannot be written is no error.
    """
    path = cache / f"cifar10-{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}.npz"
    images = _load(path)
    if images is None:
        images = make()
        # Without the file only the next start is slower.
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
        # A damaged file raises many types of errors.
        return None


def _save(path: Path, images: ImageData) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (images.train.inputs, images.train.targets, images.test.inputs, images.test.targets)
    arrays = dict(zip(Arrays._fields, map(np.asarray, rows), strict=True))
    words = {"name": images.name, "source": images.source, "sha256": images.sha256}
    entries: dict[str, Any] = arrays | {name: np.array(word) for name, word in words.items()}
    with atomic_write(path) as file:
        # Without compression, which would take as long to read as the archive.
        np.savez(file, **entries)
