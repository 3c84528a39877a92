"""Labelled images as they come out of files: checked arrays, and the data set made of them."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from jaxdl.data import examples
from jaxdl.errors import InputError
from jaxdl.types import Examples

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (32, 32, 3)


class Arrays(NamedTuple):
    """Images and labels of the two sets that a publisher made."""

    train_images: np.ndarray  # (N, 32, 32, 3) uint8, channels red, green, blue
    train_labels: np.ndarray  # (N,) int32, numbers of classes from 0
    test_images: np.ndarray  # (M, 32, 32, 3) uint8
    test_labels: np.ndarray  # (M,) int32


class Images(NamedTuple):
    """Labelled images to train on and to test with, and where they came from."""

    train: Examples  # inputs (N, 32, 32, 3) uint8, targets (N,) int32, weights (N,) float32 ones; NumPy arrays
    test: Examples
    classes: tuple[str, ...]  # names, by label
    name: str
    source: str  # such as "file:/home/me/cifar-10-batches-py", "tfds:cifar10/3.0.2", "simulated:7200:seed=0"
    sha256: str  # of the images and labels
    note: str | None = None  # what a user must be told


def as_images(arrays: Arrays, name: str, source: str, note: str | None = None) -> Images:
    """The data set made of arrays, checked.

    Raises InputError for images of another shape or type, labels that are fewer than the images or name no class, and
    a set that is empty.

    >>> pictures, labels = np.zeros((10, 32, 32, 3), np.uint8), np.arange(10)
    >>> as_images(Arrays(pictures, labels, pictures, labels), "noise", "memory").train.targets.dtype
    dtype('int32')
    """
    train = _checked(f"{source}: training", arrays.train_images, arrays.train_labels)
    test = _checked(f"{source}: test", arrays.test_images, arrays.test_labels)
    digest = hashlib.sha256()
    for rows in (train, test):
        digest.update(np.asarray(rows.inputs).data)
        digest.update(np.asarray(rows.targets, "<i4").tobytes())
    return Images(train, test, CLASSES, name, source, digest.hexdigest(), note)


def _checked(name: str, images: np.ndarray, labels: np.ndarray) -> Examples:
    if images.dtype != np.uint8 or images.shape[1:] != SHAPE or len(images) == 0:
        raise InputError(
            f"{name} images must be uint8 of shape (rows, 32, 32, 3) with at least one row, got {images.dtype} of "
            f"shape {images.shape}. Use the files as they were published."
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            f"{name} labels must be one whole number for each of the {len(images)} images, got {labels.dtype} of shape "
            f"{labels.shape}. Use the files as they were published."
        )
    wrong = labels[(labels < 0) | (labels >= len(CLASSES))]
    if len(wrong):
        raise InputError(f"{name} labels must be from 0 to {len(CLASSES) - 1}, got {wrong[0]}. The file is damaged.")
    return examples(np.ascontiguousarray(images), labels.astype(np.int32))
