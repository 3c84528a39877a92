"""Convolution whose gradients stay fast in compiled loops on a CPU.

Outside of loops XLA's CPU compiler rewrites the gradients of a convolution into the layout of its fast library call;
in a loop's body it does not, and falls back to naive loops that take some 30 times longer. So the gradients are written
in that layout here. On other platforms, and for shapes that this does not cover, everything is XLA's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jaxdl.types import Array

NUMBERS = ("NHWC", "HWIO", "NHWC")
_VECTOR, _FEW = 16, 4  # numbers that a CPU with AVX-512 multiplies at once; filters that are worth no vector
_PLACES, _PARTS = 2**13, 8  # pixels of the images that a kernel's gradient takes in together, and most parts of them
_AREA = 25  # pixels of a kernel, each of which makes a shifted copy of what is left over
_COLUMNS = 64  # numbers that a kernel sees at once, few enough to write them down for each pixel
_Pads = tuple[tuple[int, int], tuple[int, int]]
Images = Float[Array, "batch height width channels"]
Kernel = Float[Array, "size_down size_across channels filters"]
Maps = Float[Array, "batch rows columns filters"]


def convolve(
    lhs: Float[Array, " ..."],
    rhs: Float[Array, " ..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
) -> Float[Array, " ..."]:
    """`lax.conv_general_dilated` with gradients that stay fast: give it to `nn.Conv(conv_general_dilated=convolve)`.

    Fast are (B, H, W, C) images and (h, w, C, K) kernels with stride 1, any padding, no dilation and no groups;
    anything else is passed on. Forward-mode derivatives (`jax.jvp`) are not defined on the fast path.
    """
    ones = (1,) * (lhs.ndim - 2)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    plain = all(tuple(given or ones) == ones for given in (window_strides, lhs_dilation, rhs_dilation))
    usual = lhs.ndim == 4 and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NUMBERS)
    if not (plain and usual and feature_group_count == 1):
        dilations = lhs_dilation, rhs_dilation
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, *dilations, numbers, feature_group_count, precision=precision
        )
    pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], ones, padding) if isinstance(padding, str) else padding
    lhs, whole_pads = _cropped(lhs, ((pads[0][0], pads[0][1]), (pads[1][0], pads[1][1])))
    return _convolve(lhs, rhs, whole_pads, precision)


def _stock(images: Images, kernel: Kernel, pads: _Pads, precision: lax.PrecisionLike) -> Maps:
    return lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=NUMBERS, precision=precision)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images: Images, kernel: Kernel, pads: _Pads, precision: lax.PrecisionLike) -> Maps:
    few = math.prod(kernel.shape[:3]) <= _COLUMNS and kernel.shape[3] >= _VECTOR
    few = few and all(
        side + sum(pad) >= size for side, pad, size in zip(images.shape[1:3], pads, kernel.shape[:2], strict=True)
    )
    own, stock = (partial(way, pads=pads, precision=precision) for way in (_in_columns if few else _in_parts, _stock))
    return lax.platform_dependent(images, kernel, cpu=own, default=stock)


def _forward(
    images: Array, kernel: Array, pads: _Pads, precision: lax.PrecisionLike
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(images, kernel, pads, precision), (images, kernel)


def _backward(
    pads: _Pads, precision: lax.PrecisionLike, kept: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    def own(images: Array, kernel: Array, slope: Array) -> tuple[Array, Array]:
        # Else what made them is computed again inside of the transpositions, number by number.
        images, slope = lax.optimization_barrier((images, slope))
        height, width = kernel.shape[:2]
        (top, bottom), (left, right) = pads
        full = ((height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right))
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        inner, rest = _cropped(slope, full)
        to_images = _in_parts(inner, turned, rest, precision)
        return to_images, _to_kernel(images, slope, pads, precision)

    def stock(images: Array, kernel: Array, slope: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda i, k: _stock(i, k, pads, precision), images, kernel)[1](slope)

    return lax.platform_dependent(*kept, slope, cpu=own, default=stock)


_convolve.defvjp(_forward, _backward)


def _whole(height: int, width: int, channels: int, filters: int) -> int:
    """How many filters of a kernel fill vectors of 16, if what is left over is too little to be worth one; else all.

    XLA's code for 50 filters takes the time of 64: on images of 30 x 30, 48 filters take 30 % less.
    """
    rest = filters % _VECTOR
    worth = 0 < rest <= _FEW and min(filters, channels) >= _VECTOR and height * width <= _AREA
    return filters - rest if worth else filters


def _in_columns(images: Images, kernel: Kernel, pads: _Pads, precision: lax.PrecisionLike) -> Maps:
    """The convolution of few channels: what the kernel sees at a pixel is a row of one matrix product."""
    height, width, _, filters = kernel.shape
    images = _padded(images, pads)
    down, across = images.shape[1] - height + 1, images.shape[2] - width + 1
    # Written down in two goes: in one, XLA looks each number up by itself.
    beside = lax.optimization_barrier(jnp.concatenate([images[:, :, j : j + across] for j in range(width)], -1))
    around = lax.optimization_barrier(jnp.concatenate([beside[:, i : i + down] for i in range(height)], -1))
    full = jnp.pad(kernel.reshape(-1, filters), ((0, 0), (0, -filters % _VECTOR)))
    return jnp.matmul(around, full, precision=precision)[..., :filters]


def _in_parts(images: Images, kernel: Kernel, pads: _Pads, precision: lax.PrecisionLike) -> Maps:
    """The convolution; filters left over are a matrix product of all pixels, whose results are shifted and added."""
    whole = _whole(*kernel.shape) if images.shape[0] != 1 else kernel.shape[3]
    outputs = _stock(images, kernel[..., :whole], pads, precision)
    if whole == kernel.shape[3]:
        return outputs
    few = kernel[..., whole:]
    # Several are added up, so in bfloat16 each must not be rounded before.
    wide = images.dtype if images.dtype.itemsize > 2 else jnp.dtype(jnp.float32)
    products = jnp.einsum("bhwc,ijck->bhwijk", images, few, precision=precision, preferred_element_type=wide)
    products = _padded(products, pads)
    height, width = outputs.shape[1:3]
    shifted = (products[:, i : i + height, j : j + width, i, j] for i, j in np.ndindex(few.shape[:2]))
    return jnp.concatenate([outputs, sum(shifted, jnp.zeros((), wide)).astype(outputs.dtype)], -1)


def _to_kernel(images: Images, slope: Maps, pads: _Pads, precision: lax.PrecisionLike) -> Kernel:
    """The gradient of the kernel, added up over parts of the batch: all at once take XLA's code up to twice as long."""
    rows, height, width, _ = slope.shape
    # In bfloat16 each part would be rounded.
    parts = max(1, min(rows, _PARTS, -(-rows * height * width // _PLACES))) if slope.dtype.itemsize > 2 else 1
    ends = [part * rows // parts for part in range(parts + 1)]
    grads = (_part_to_kernel(images[i:j], slope[i:j], pads, precision) for i, j in pairwise(ends))
    return reduce(jnp.add, grads)


def _part_to_kernel(images: Images, slope: Maps, pads: _Pads, precision: lax.PrecisionLike) -> Kernel:
    """For filters left over it is a matrix product with all shifts of their slopes."""
    (top, bottom), (left, right) = pads
    height = images.shape[1] + top + bottom - slope.shape[1] + 1
    width = images.shape[2] + left + right - slope.shape[2] + 1
    whole = _whole(height, width, images.shape[3], slope.shape[3])
    # Channels take the place of the batch, and the batch that of the channels.
    swapped = images.transpose(3, 1, 2, 0), slope[..., :whole].transpose(1, 2, 0, 3)
    grads = _stock(*swapped, pads, precision).transpose(1, 2, 0, 3)
    if whole == slope.shape[3]:
        return grads
    images, few = _padded(images, pads), slope[..., whole:]
    shifts = [
        jnp.pad(few, ((0, 0), (i, height - 1 - i), (j, width - 1 - j), (0, 0))) for i, j in np.ndindex(height, width)
    ]
    rest = jnp.einsum("bhwc,bhwnk->nck", images, jnp.stack(shifts, 3), precision=precision)
    return jnp.concatenate([grads, rest.reshape(*grads.shape[:3], -1)], -1)


def _cropped(images: Array, pads: _Pads) -> tuple[Array, _Pads]:
    """Images without what negative padding takes away, and the rest of the padding.

    XLA's CPU code for a convolution with negative padding on one side and positive on the other reads beyond its input.
    """
    (top, bottom), (left, right) = pads
    if min(top, bottom, left, right) >= 0:
        return images, pads
    inner = _padded(images, ((min(top, 0), min(bottom, 0)), (min(left, 0), min(right, 0))))
    return inner, ((max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))


def _padded(images: Array, pads: _Pads) -> Array:
    rest = ((0, 0, 0),) * (images.ndim - 3)
    return lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), *rest))


@jax.custom_vjp
def add_bias(
    images: Float[Array, "batch height width filters"], bias: Float[Array, " filters"]
) -> Float[Array, "batch height width filters"]:
    """Images (B, H, W, K) with a bias (K,) added, whose gradient is fast on a CPU: there it is a matrix product."""
    return images + bias.reshape(1, 1, 1, -1)


def _bias_forward(images: Array, bias: Array) -> tuple[Array, None]:
    return add_bias(images, bias), None


def _bias_backward(_: None, slope: Array) -> tuple[Array, Array]:
    def own(slope: Array) -> Array:
        rows = lax.optimization_barrier(slope).reshape(-1, slope.shape[3])
        return jnp.ones(len(rows), slope.dtype) @ rows

    return slope, lax.platform_dependent(slope, cpu=own, default=lambda slope: slope.sum((0, 1, 2)))


add_bias.defvjp(_bias_forward, _bias_backward)
