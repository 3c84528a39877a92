"""Layers that stay fast in compiled loops on a CPU, and dropout with a rate that may be traced."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Num, PRNGKeyArray, Shaped

from jaxdl._checks import number
from jaxdl._jit import is_traced
from jaxdl.data.arrays import precision
from jaxdl.data.batches import hash32
from jaxdl.errors import InputError
from jaxdl.nn.convolution import NUMBERS, add_bias, convolve
from jaxdl.types import Array


class Conv(nn.Module):
    """A convolution of `kernel` x `kernel` pixels with stride 1: (B, H, W, C) to (B, H', W', filters).

    `nn.Conv` with `convolve` and `add_bias`; parameters have its names and shapes.
    """

    filters: int
    kernel: int = 3
    padding: str = "VALID"
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, images: Num[Array, "batch height width channels"]) -> Float[Array, "batch rows columns filters"]:
        shape, param_dtype = (self.kernel, self.kernel, images.shape[-1], self.filters), precision(self.dtype)
        kernel = self.param("kernel", self.kernel_init, shape, param_dtype).astype(self.dtype)
        outputs = convolve(images.astype(self.dtype), kernel, (1, 1), self.padding, dimension_numbers=NUMBERS)
        if not self.use_bias:
            return outputs
        bias = self.param("bias", nn.initializers.zeros, (self.filters,), param_dtype)
        return add_bias(outputs, bias.astype(self.dtype))


def max_pool(
    images: Num[Array, "batch height width channels"], size: int = 2
) -> Num[Array, "batch height//{size} width//{size} channels"]:
    """Return the maximum of every `size` x `size` square: (B, H, W, C) to (B, H // size, W // size, C).

    Rows and columns of pixels that do not fill a square are left out, as Keras and Flax do by default. Equal maxima
    of a square divide the gradient among them, which is six times faster on a CPU than `flax.linen.max_pool`, where
    the first gets the whole gradient. Raises InputError where no square fits.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    batch, height, width, channels = images.shape
    if size < 1 or min(height, width) < size:
        raise InputError(f"max_pool needs a size from 1 to that of the images, {height} x {width}, got {size}.")
    squares = images[:, : height // size * size, : width // size * size]
    return squares.reshape(batch, height // size, size, width // size, size, channels).max((2, 4))


class MaxPool(nn.Module):
    """`max_pool` as a layer, which `summary` lists."""

    size: int = 2

    def __call__(self, images: Num[Array, "batch height width channels"]) -> Num[Array, "batch rows columns channels"]:
        return max_pool(images, self.size)


class Flatten(nn.Module):
    """Flatten each example: (B, ...) to (B, F)."""

    def __call__(self, inputs: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch features"]:
        return inputs.reshape(inputs.shape[0], -1)


def check_rate(rate: float | Float[Array, ""]) -> None:
    """Check a dropout rate. Raises InputError outside of [0, 1) in float32; a traced rate is not checked."""
    if not is_traced(rate) and not 0 <= np.float32(number("dropout", rate)) < 1:
        raise InputError(f"dropout must be a rate from 0 to below 1, got {rate}.")


def dropout(
    key: PRNGKeyArray, inputs: Float[Array, "*shape"], rate: float | Float[Array, ""]
) -> Float[Array, "*shape"]:
    """Set each input to 0 with probability `rate`, and scale the others by 1 / (1 - rate).

    The rate may be traced, so one compiled function serves all rates. Whether an input is set to 0 depends on the key,
    the rate and the input's index in the flattened array: later examples of a batch do not affect earlier ones. The
    draws are a hash of (key, index), which costs a fraction of JAX's own. Scaling is done in float32 or wider. Source:
    Srivastava et al., JMLR 15 (2014). Raises InputError for a rate outside of [0, 1).

    >>> sorted(set(dropout(jax.random.key(0), jnp.ones((10, 10)), 0.5).ravel().tolist()))
    [0.0, 2.0]
    """
    check_rate(rate)
    # Hashed, because the data of successive keys differ in few bits.
    words = hash32(jax.random.key_data(key))
    indices = lax.iota(jnp.uint32, inputs.size).reshape(inputs.shape)
    draws = hash32(hash32(indices ^ words[0]) ^ words[1])
    keep = draws >= (jnp.asarray(rate, jnp.float32) * 2.0**32).astype(jnp.uint32)
    wide = inputs.astype(inputs.dtype if inputs.dtype.itemsize > 2 else jnp.float32)
    # Multiply by the reciprocal: XLA rounds a division differently where the rate is a constant.
    scaled = wide * (1 / (1 - jnp.asarray(rate, wide.dtype)))
    return jnp.where(keep, scaled, jnp.zeros((), wide.dtype)).astype(inputs.dtype)


class Dropout(nn.Module):
    """`dropout` as a layer, which draws from the stream "dropout"; without `train` it returns its inputs."""

    rate: float | Array

    def __call__(self, inputs: Float[Array, "*shape"], *, train: bool) -> Float[Array, "*shape"]:
        return dropout(self.make_rng("dropout"), inputs, self.rate) if train else inputs


class BatchNorm(nn.Module):
    """Batch normalization of (B, ..., C) activations over all axes except the channels, without padded examples.

    mask: (B,) bool, False for padding. Each example is summed before the mask is applied: on images that takes about
    half the time of Flax's masked form. The variance (ddof 0) is computed in two passes. The computation is in float32,
    or float64 where the inputs or `dtype` are; parameters and moving moments are float64 where `dtype` is. Moving
    moments are updated as in Keras: momentum * old + (1 - momentum) * new. Source: Ioffe and Szegedy (2015).
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Num[Array, "batch *axes channels"], *, train: bool, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch *axes channels"]:
        channels, param_dtype = inputs.shape[-1], precision(self.dtype)
        scale = self.param("scale", nn.initializers.ones, (channels,), param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), param_dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), param_dtype)
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,), param_dtype)
        wide = precision(inputs.dtype, self.dtype)
        if train and not self.is_initializing():
            means, variances = _moments(inputs.astype(wide), mask)
            for moving, new in ((mean, means), (variance, variances)):
                moving.value = (self.momentum * moving.value + (1 - self.momentum) * new).astype(param_dtype)
        else:
            means, variances = mean.value, variance.value
        slope = scale * lax.rsqrt(variances + self.epsilon)
        # Subtract the mean first and in the wide dtype: else a large mean would cancel a small standard deviation.
        centered = inputs.astype(wide) - _last(means, inputs)
        return (centered * _last(slope, inputs) + _last(bias, inputs)).astype(self.dtype)


def _moments(
    inputs: Float[Array, "batch ... channels"], mask: Bool[Array, " batch"] | None
) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
    """Return the mean and variance of each channel over the examples where the mask (B,) is True."""
    examples = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    weights = jnp.ones(len(examples), examples.dtype) if mask is None else mask.astype(examples.dtype)
    # The moments of a batch without examples are not used, but must be finite.
    count = jnp.maximum(weights.sum(), 1) * examples.shape[1]

    def mean_of(values: Array) -> Array:
        return (values.sum(1) * weights[:, None]).sum(0) / count

    mean = mean_of(examples)
    return mean, mean_of((examples - _last(mean, examples)) ** 2)


def _last(channels: Float[Array, " channels"], like: Num[Array, "... channels"]) -> Float[Array, "... channels"]:
    """Reshape values of channels (C,) to (1, ..., 1, C), with as many axes as `like`."""
    return channels.reshape((1,) * (like.ndim - 1) + channels.shape)
