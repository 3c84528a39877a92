"""What Flax's own layers lack: to stay fast in compiled loops on a CPU, and a dropout rate that may be traced."""

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

    `nn.Conv` with `convolve` and `add_bias`; parameters have its names and shapes. Forward-mode derivatives (`jax.jvp`)
    are not defined: use `nn.Conv` for them.
    """

    filters: int
    kernel: int = 3
    padding: str = "VALID"
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, images: Num[Array, "batch height width channels"]) -> Float[Array, "batch rows columns filters"]:
        shape, kept = (self.kernel, self.kernel, images.shape[-1], self.filters), precision(self.dtype)
        kernel = self.param("kernel", self.kernel_init, shape, kept).astype(self.dtype)
        outputs = convolve(images.astype(self.dtype), kernel, (1, 1), self.padding, dimension_numbers=NUMBERS)
        if not self.use_bias:
            return outputs
        return add_bias(outputs, self.param("bias", nn.initializers.zeros, (self.filters,), kept).astype(self.dtype))


def max_pool(
    images: Num[Array, "batch height width channels"], size: int = 2
) -> Num[Array, "batch height//{size} width//{size} channels"]:
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

    def __call__(self, images: Num[Array, "batch height width channels"]) -> Num[Array, "batch rows columns channels"]:
        return max_pool(images, self.size)


class Flatten(nn.Module):
    """All numbers of a row side by side: (B, ...) to (B, F)."""

    def __call__(self, inputs: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch features"]:
        return inputs.reshape(inputs.shape[0], -1)


def check_rate(rate: float | Float[Array, ""]) -> None:
    """Raises InputError for a dropout rate outside of [0, 1) in float32; a traced rate is not checked."""
    if not is_traced(rate) and not 0 <= np.float32(number("dropout", rate)) < 1:
        raise InputError(f"dropout must be a rate from 0 to below 1, got {rate}.")


def dropout(
    key: PRNGKeyArray, inputs: Float[Array, "*shape"], rate: float | Float[Array, ""]
) -> Float[Array, "*shape"]:
    """The inputs, of any shape, with about the share `rate` of them set to 0 and the others scaled by 1 / (1 - rate).

    The rate may be traced, so one program serves all rates. Whether a number is kept depends on the key, the rate and
    the number's place, counted from the first row on: rows that follow change nothing. The draws are a hash of (key,
    place), `mix` in two rounds, which costs a fraction of JAX's own. Scaling is done in float32 or wider. Source:
    Srivastava et al., JMLR 15 (2014). Raises InputError for a rate outside of [0, 1).

    >>> sorted(set(dropout(jax.random.key(0), jnp.ones((10, 10)), 0.5).ravel().tolist()))
    [0.0, 2.0]
    """
    check_rate(rate)
    # Mixed, because keys that count up would differ in few bits.
    words = hash32(jax.random.key_data(key))
    places = lax.iota(jnp.uint32, inputs.size).reshape(inputs.shape)
    # Of the 2**32 numbers that may be drawn, the rate's share comes to lie below.
    kept = hash32(hash32(places ^ words[0]) ^ words[1]) >= (jnp.asarray(rate, jnp.float32) * 2.0**32).astype(jnp.uint32)
    wide = inputs.astype(inputs.dtype if inputs.dtype.itemsize > 2 else jnp.float32)
    # A product with the reciprocal: XLA rounds a division otherwise where it knows the rate.
    scaled = wide * (1 / (1 - jnp.asarray(rate, wide.dtype)))
    return jnp.where(kept, scaled, jnp.zeros((), wide.dtype)).astype(inputs.dtype)


class Dropout(nn.Module):
    """`dropout` as a layer, which draws from the stream "dropout" and changes nothing where `train` is False."""

    rate: float | Array

    def __call__(self, inputs: Float[Array, "*shape"], *, train: bool) -> Float[Array, "*shape"]:
        return dropout(self.make_rng("dropout"), inputs, self.rate) if train else inputs


class BatchNorm(nn.Module):
    """Batch normalization of (B, ..., C) activations over all but the channels, padding rows left out exactly.

    Sums are taken within each row first, and rows are weighted then: on images that takes about half of what Flax's
    masked form takes. The variance (ddof 0) is taken in two passes; all is float32 but what comes
    out, or float64 where the inputs or `dtype` are; parameters and moving moments are float64 where `dtype` is.
    Moving moments follow Keras's rule: `momentum` of the old and the rest of the new. Source: Ioffe and Szegedy
    (2015).
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Num[Array, "batch *axes channels"], *, train: bool, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch *axes channels"]:
        channels, kept = inputs.shape[-1], precision(self.dtype)
        scale = self.param("scale", nn.initializers.ones, (channels,), kept)
        bias = self.param("bias", nn.initializers.zeros, (channels,), kept)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), kept)
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,), kept)
        wide = precision(inputs.dtype, self.dtype)
        if train and not self.is_initializing():
            means, variances = _moments(inputs.astype(wide), mask)
            for moving, now in ((mean, means), (variance, variances)):
                moving.value = (self.momentum * moving.value + (1 - self.momentum) * now).astype(kept)
        else:
            means, variances = mean.value, variance.value
        slope = scale * lax.rsqrt(variances + self.epsilon)
        # No narrower, and the mean first: in fewer bits a large mean would leave nothing of a small spread.
        centred = inputs.astype(wide) - _last(means, inputs)
        return (centred * _last(slope, inputs) + _last(bias, inputs)).astype(self.dtype)


def _moments(
    inputs: Float[Array, "batch ... channels"], mask: Bool[Array, " batch"] | None
) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
    """Mean and variance of each channel over the rows that the mask (B,) keeps."""
    rows = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    variables = jnp.ones(len(rows), rows.dtype) if mask is None else mask.astype(rows.dtype)
    # A batch that counts nothing has no mean; what it gives is thrown away, but must be finite.
    count = jnp.maximum(variables.sum(), 1) * rows.shape[1]

    def mean_of(values: Array) -> Array:
        return (values.sum(1) * variables[:, None]).sum(0) / count

    mean = mean_of(rows)
    return mean, mean_of((rows - _last(mean, rows)) ** 2)


def _last(channels: Float[Array, " channels"], like: Num[Array, "... channels"]) -> Float[Array, "... channels"]:
    return channels.reshape((1,) * (like.ndim - 1) + channels.shape)
