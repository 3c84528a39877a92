"""Random changes of images in training, and predictions averaged over an image and its mirror image.

A change is a function `(key, images) -> images` of (B, H, W, C) arrays of any dtype. Each image has its own draw, which
depends on the key and the image's position in the batch only: later images do not affect earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdl._values import as_value
from jaxdl.errors import InputError
from jaxdl.types import Array, Model, PyTree, Variables

Change = Callable[[Array, Array], Array]


def flip(key: Array, images: Array) -> Array:
    """Mirror each image left to right with probability 1/2.

    >>> flip(jax.random.key(0), jnp.ones((2, 4, 4, 3))).shape
    (2, 4, 4, 3)
    """
    mirrored = jax.random.bernoulli(key, jnp.float32(0.5), (images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


@as_value
def crop(pixels: int = 4) -> Change:
    """Return a change that moves each image by up to `pixels` up or down and left or right.

    It is a random crop of the image padded by reflection. Raises InputError for negative `pixels`; the change raises it
    for images whose sides are not longer than `pixels`.

    >>> image = jnp.arange(4.0).reshape(1, 1, 4, 1) + jnp.zeros((1, 4, 1, 1))
    >>> sorted({tuple(crop(1)(jax.random.key(seed), image)[0, 0, :, 0].tolist()) for seed in range(9)})
    [(0.0, 1.0, 2.0, 3.0), (1.0, 0.0, 1.0, 2.0), (1.0, 2.0, 3.0, 2.0)]
    """
    if pixels < 0:
        raise InputError(f"crop needs 0 pixels or more, got {pixels}.")

    def change(key: Array, images: Array) -> Array:
        count, height, width, _ = images.shape
        if pixels >= min(height, width):
            raise InputError(f"crop({pixels}) needs larger images, got {height} x {width}.")
        moves = jax.random.randint(key, (count, 2), -pixels, pixels + 1, jnp.int32)
        rows = _reflect(moves[:, :1] + jnp.arange(height, dtype=jnp.int32)[None], height)
        columns = _reflect(moves[:, 1:] + jnp.arange(width, dtype=jnp.int32)[None], width)

        def move(image: Array, rows: Array, columns: Array) -> Array:
            return image.at[rows[:, None], columns[None]].get(mode="promise_in_bounds")

        # With vmap XLA knows that no device needs images of another.
        return jax.vmap(move)(jnp.asarray(images), rows, columns)

    return change


def _reflect(indices: Array, size: int) -> Array:
    """Mirror indices outside of 0 to size - 1 at the outermost pixel."""
    return size - 1 - jnp.abs(size - 1 - jnp.abs(indices))


@as_value
def cutout(size: int = 8) -> Change:
    """Return a change that sets a square of `size` x `size` pixels of each image to 0.

    The square's centre is anywhere in the image, so a part of the square may lie outside.

    Source: DeVries and Taylor, arXiv:1708.04552 (2017). Raises InputError for a negative size.

    >>> int((cutout(2)(jax.random.key(0), jnp.ones((1, 8, 8, 1))) == 0).sum()) in (1, 2, 4)
    True
    """
    if size < 0:
        raise InputError(f"cutout needs a size of 0 or more, got {size}.")

    def change(key: Array, images: Array) -> Array:
        count, height, width, _ = images.shape
        keys = jax.random.split(key)
        rows = _is_covered(jax.random.randint(keys[0], (count, 1), 0, height, jnp.int32), height, size)
        columns = _is_covered(jax.random.randint(keys[1], (count, 1), 0, width, jnp.int32), width, size)
        square = rows[:, :, None, None] & columns[:, None, :, None]
        return jnp.where(square, jnp.zeros((), images.dtype), images)

    return change


def _is_covered(centers: Array, length: int, size: int) -> Array:
    first = centers - size // 2
    indices = jnp.arange(length, dtype=jnp.int32)[None]
    return (indices >= first) & (indices < first + size)


@as_value
def with_augmentation(model: Model, *changes: Change) -> Model:
    """Return a model that applies the changes to its inputs in training.

    Its `apply` raises InputError in training without a key. It means:

        for number, change in enumerate(changes if train else ()):
            inputs = change(jax.random.fold_in(key, number), inputs)
        outputs, stats = model.apply(variables, inputs, train=train, key=key, mask=mask)
    """

    def apply(
        variables: Variables, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        if train:
            if key is None:
                raise InputError("an augmented model needs a key in training. Pass key=jax.random.key(0), for example.")
            for number, change in enumerate(changes):
                inputs = change(jax.random.fold_in(key, number), inputs)
        return model.apply(variables, inputs, train=train, key=key, mask=mask)

    return model._replace(apply=apply)


@as_value
def with_flip_averaging(model: Model) -> Model:
    """Return a model whose predictions are the mean of its outputs for each image and for its mirror image.

    Training stays as it is.

    >>> corner = Model(lambda key, inputs: Variables({}, {}), lambda variables, inputs, **_: (inputs[:, 0, 0], {}))
    >>> with_flip_averaging(corner).apply(Variables({}, {}), jnp.array([[[[1.0], [3.0]]]]), train=False)[0].tolist()
    [[2.0]]
    """

    def apply(
        variables: Variables, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        outputs, stats = model.apply(variables, inputs, train=train, key=key, mask=mask)
        if train:
            return outputs, stats
        mirrored, _ = model.apply(variables, inputs[:, :, ::-1], train=False, key=key, mask=mask)
        return (outputs + mirrored) / 2, stats

    return model._replace(apply=apply)
