"""What Flax's own layers lack: convolution and pooling whose gradients stay fast in compiled loops on a CPU.

Outside of loops XLA's CPU compiler rewrites the gradients of a convolution into the layout of its fast library call;
in a loop's body it does not, and falls back to naive loops that take some 30 times longer. So the gradients are written
in that layout here. On other platforms, and for shapes that this does not cover, everything is XLA's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdl.errors import InputError
from jaxdl.types import Array

_NUMBERS = ("NHWC", "HWIO", "NHWC")
_Pads = tuple[tuple[int, int], tuple[int, int]]


def convolve(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """`lax.conv_general_dilated` with gradients that stay fast: give it to `nn.Conv(conv_general_dilated=convolve)`.

    Fast are (B, H, W, C) images and (h, w, C, K) kernels with stride 1, any padding, no dilation and no groups;
    anything else is passed on.

    >>> images, kernel = jnp.ones((2, 32, 32, 3)), jnp.ones((3, 3, 3, 50))
    >>> convolve(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")).shape
    (2, 30, 30, 50)
    """
    ones = (1,) * (lhs.ndim - 2)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    plain = all(tuple(given or ones) == ones for given in (window_strides, lhs_dilation, rhs_dilation))
    usual = lhs.ndim == 4 and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NUMBERS)
    if not (plain and usual and feature_group_count == 1):
        dilations = lhs_dilation, rhs_dilation
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, *dilations, numbers, feature_group_count, precision=precision
        )
    pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], ones, padding) if isinstance(padding, str) else padding
    (top, bottom), (left, right) = pads
    return _convolve(lhs, rhs, ((top, bottom), (left, right)), precision)


def _stock(images: Array, kernel: Array, pads: _Pads, precision: Any) -> Array:
    return lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=_NUMBERS, precision=precision)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images: Array, kernel: Array, pads: _Pads, precision: Any) -> Array:
    return _stock(images, kernel, pads, precision)


def _forward(images: Array, kernel: Array, pads: _Pads, precision: Any) -> tuple[Array, tuple[Array, Array]]:
    return _stock(images, kernel, pads, precision), (images, kernel)


def _backward(pads: _Pads, precision: Any, kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    def own(images: Array, kernel: Array, slope: Array) -> tuple[Array, Array]:
        height, width = kernel.shape[:2]
        (top, bottom), (left, right) = pads
        full = ((height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right))
        to_images = _stock(slope, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), full, precision)
        # Channels take the place of the batch, and the batch that of the channels.
        to_kernel = _stock(images.transpose(3, 1, 2, 0), slope.transpose(1, 2, 0, 3), pads, precision)
        return to_images, to_kernel.transpose(1, 2, 0, 3)

    def stock(images: Array, kernel: Array, slope: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda i, k: _stock(i, k, pads, precision), images, kernel)[1](slope)

    return lax.platform_dependent(*kept, slope, cpu=own, default=stock)


_convolve.defvjp(_forward, _backward)


def max_pool(images: Array, size: int = 2) -> Array:
    """The greatest of every `size` x `size` square: (B, H, W, C) to (B, H // size, W // size, C).

    Rows and columns that do not fill a square are left out, as Keras and Flax do by default. Where several are the
    greatest, the gradient is shared among them; it is six times faster on a CPU than that of `flax.linen.max_pool`,
    which gives all of it to the first. Raises InputError where no square fits.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    rows, height, width, channels = images.shape
    if size < 1 or min(height, width) < size:
        raise InputError(f"max_pool needs a size from 1 to that of the images, {height} x {width}, got {size}.")
    cut = images[:, : height // size * size, : width // size * size]
    return cut.reshape(rows, height // size, size, width // size, size, channels).max((2, 4))


class MaxPool(nn.Module):
    """`max_pool` as a layer, which a summary shows."""

    size: int = 2

    def __call__(self, images: Array) -> Array:
        return max_pool(images, self.size)


class Flatten(nn.Module):
    """All numbers of a row side by side: (B, ...) to (B, F)."""

    def __call__(self, inputs: Array) -> Array:
        return inputs.reshape(inputs.shape[0], -1)


class BatchNorm(nn.Module):
    """Batch normalisation of (B, ..., C) activations over all but the channels, padding rows left out exactly.

    Sums are taken within each row first, and rows are weighted then: on images that takes about half of what Flax's
    masked form takes. The variance (ddof 0) is taken in two passes, in float32 whatever the dtype of the computation.
    Moving moments follow Keras's rule: `momentum` of the old and the rest of the new. Source: Ioffe and Szegedy (2015).
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool, mask: Array | None = None) -> Array:
        channels = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if train and not self.is_initializing():
            means, variances = _moments(inputs, mask)
            for moving, now in ((mean, means), (variance, variances)):
                moving.value = self.momentum * moving.value + (1 - self.momentum) * now
        else:
            means, variances = mean.value, variance.value
        slope = scale * lax.rsqrt(variances + self.epsilon)
        return inputs.astype(self.dtype) * _wide(slope, inputs).astype(self.dtype) + _wide(
            bias - means * slope, inputs
        ).astype(self.dtype)


def _moments(inputs: Array, mask: Array | None) -> tuple[Array, Array]:
    """Mean and variance of each channel over the rows that the mask (B,) keeps."""
    rows = inputs.astype(jnp.float32).reshape(inputs.shape[0], -1, inputs.shape[-1])
    weights = jnp.ones(len(rows), jnp.float32) if mask is None else mask.astype(jnp.float32)
    # A batch of padding alone has no mean; what it gives is thrown away, but must be finite.
    count = jnp.maximum(weights.sum(), 1) * rows.shape[1]

    def mean_of(values: Array) -> Array:
        return (values.sum(1) * weights[:, None]).sum(0) / count

    mean = mean_of(rows)
    return mean, mean_of((rows - _wide(mean, rows)) ** 2)


def _wide(channels: Array, like: Array) -> Array:
    return channels.reshape((1,) * (like.ndim - 1) + channels.shape)
