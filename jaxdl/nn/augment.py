"""Images changed at random in training, and looked at twice in prediction.

A change is a function `(key, images) -> images` of (B, H, W, C) arrays of any dtype, another draw for each image, which
depends on the key and the image's place alone: images that follow change nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdl.errors import InputError
from jaxdl.types import Array, Model, PyTree, Variables

Change = Callable[[Array, Array], Array]


def flip(key: Array, images: Array) -> Array:
    """Each image mirrored left to right, or not, with even chances.

    >>> flip(jax.random.key(0), jnp.ones((2, 4, 4, 3))).shape
    (2, 4, 4, 3)
    """
    mirrored = jax.random.bernoulli(key, jnp.float32(0.5), (images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def crop(pixels: int = 4) -> Change:
    """Each image moved by up to `pixels` up or down and left or right; what comes into view is its own reflection.

    That is a random crop out of the image padded by reflection. Raises InputError for images that are not larger than
    the pixels.

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
        rows = _reflected(moves[:, :1] + jnp.arange(height, dtype=jnp.int32)[None], height)
        columns = _reflected(moves[:, 1:] + jnp.arange(width, dtype=jnp.int32)[None], width)

        def moved(image: Array, rows: Array, columns: Array) -> Array:
            return image.at[rows[:, None], columns[None]].get(mode="promise_in_bounds")

        # Image by image: XLA then knows that devices need no images of each other.
        return jax.vmap(moved)(jnp.asarray(images), rows, columns)

    return change


def _reflected(places: Array, size: int) -> Array:
    """Places outside of 0 to size - 1, mirrored at the outermost pixel."""
    return size - 1 - jnp.abs(size - 1 - jnp.abs(places))


def cutout(size: int = 8) -> Change:
    """A square of `size` x `size` pixels set to 0, its centre anywhere in the image, so that it may stick out.

    Source: DeVries and Taylor, arXiv:1708.04552 (2017). Raises InputError for a negative size.

    >>> int((cutout(2)(jax.random.key(0), jnp.ones((1, 8, 8, 1))) == 0).sum()) in (1, 2, 4)
    True
    """
    if size < 0:
        raise InputError(f"cutout needs a size of 0 or more, got {size}.")

    def change(key: Array, images: Array) -> Array:
        count, height, width, _ = images.shape
        keys = jax.random.split(key)
        rows = _inside(jax.random.randint(keys[0], (count, 1), 0, height, jnp.int32), height, size)
        columns = _inside(jax.random.randint(keys[1], (count, 1), 0, width, jnp.int32), width, size)
        hidden = rows[:, :, None, None] & columns[:, None, :, None]
        return jnp.where(hidden, jnp.zeros((), images.dtype), images)

    return change


def _inside(centres: Array, length: int, size: int) -> Array:
    first = centres - size // 2
    places = jnp.arange(length, dtype=jnp.int32)[None]
    return (places >= first) & (places < first + size)


def with_augmentation(model: Model, *changes: Change) -> Model:
    """The model, which in training sees its inputs after the changes, one after the other.

    Its `apply` raises InputError in training without a key. Otherwise it means

        for number, change in enumerate(changes if train else ()):
            inputs = change(jax.random.fold_in(key, number), inputs)
        outputs, stats = model.apply(variables, inputs, train=train, key=key, mask=mask)
    """

    def apply(
        variables: Variables, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        if train:
            if key is None:
                raise InputError("an augmented model needs a key in training. Give key=jax.random.key(0), say.")
            for number, change in enumerate(changes):
                inputs = change(jax.random.fold_in(key, number), inputs)
        return model.apply(variables, inputs, train=train, key=key, mask=mask)

    return model._replace(apply=apply)


def with_flip_averaging(model: Model) -> Model:
    """The model, whose predictions are the mean of its outputs for each image and for its mirror image.

    Training is not changed.

    >>> odd = Model(lambda key, inputs: Variables({}, {}), lambda variables, inputs, **_: (inputs[:, 0, 0], {}))
    >>> with_flip_averaging(odd).apply(Variables({}, {}), jnp.array([[[[1.0], [3.0]]]]), train=False)[0].tolist()
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
