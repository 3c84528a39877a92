"""Convolution whose gradients stay fast in compiled loops on a CPU.

Outside of loops XLA's CPU compiler rewrites the gradients of a convolution into the layout of its fast library call;
in the body of a loop it falls back to naive loops that take some 30 times longer. So this module writes the gradients
in that layout. Other platforms, and shapes that the module does not cover, use XLA's own convolution and gradients.
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
_VECTOR, _FEW = 16, 4  # numbers that a CPU with AVX-512 multiplies at once; remaining filters too few for a vector
_PIXELS, _PARTS = 2**13, 8  # pixels in one part of the batch for a kernel's gradient; the most parts
_AREA = 25  # pixels of a kernel, at most, for remaining filters to be computed apart: each pixel needs a shifted copy
_COLUMNS = 64  # numbers that a kernel covers, at most, for them to be copied for each pixel
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
    """Return `lax.conv_general_dilated` with gradients that stay fast: `nn.Conv(conv_general_dilated=convolve)`.

    The fast path takes (B, H, W, C) images and (h, w, C, K) kernels with stride 1, any padding, no dilation and no
    groups; JAX's function takes the rest. Forward-mode derivatives (`jax.jvp`) are not defined on the fast path.
    """
    ones = (1,) * (lhs.ndim - 2)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    plain = all(tuple(steps or ones) == ones for steps in (window_strides, lhs_dilation, rhs_dilation))
    usual = lhs.ndim == 4 and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NUMBERS)
    if not (plain and usual and feature_group_count == 1):
        dilations = lhs_dilation, rhs_dilation
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, *dilations, numbers, feature_group_count, precision=precision
        )
    pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], ones, padding) if isinstance(padding, str) else padding
    lhs, positive_pads = _crop(lhs, ((pads[0][0], pads[0][1]), (pads[1][0], pads[1][1])))
    return _convolve(lhs, rhs, positive_pads, precision)


def _stock(images: Images, kernel: Kernel, pads: _Pads, precision: lax.PrecisionLike) -> Maps:
    return lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=NUMBERS, precision=precision)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images: Images, kernel: Kernel, pads: _Pads, precision: lax.PrecisionLike) -> Maps:
    few = math.prod(kernel.shape[:3]) <= _COLUMNS and kernel.shape[3] >= _VECTOR
    few = few and all(
        side + sum(pad) >= size for side, pad, size in zip(images.shape[1:3], pads, kernel.shape[:2], strict=True)
    )
    cpu, stock = (partial(way, pads=pads, precision=precision) for way in (_in_columns if few else _in_parts, _stock))
    return lax.platform_dependent(images, kernel, cpu=cpu, default=stock)


def _forward(
    images: Array, kernel: Array, pads: _Pads, precision: lax.PrecisionLike
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(images, kernel, pads, precision), (images, kernel)


def _backward(
    pads: _Pads, precision: lax.PrecisionLike, residuals: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    def cpu(images: Array, kernel: Array, slope: Array) -> tuple[Array, Array]:
        # Without the barrier XLA fuses their computation into the transpositions and repeats it for each number.
        images, slope = lax.optimization_barrier((images, slope))
        height, width = kernel.shape[:2]
        (top, bottom), (left, right) = pads
        full = ((height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right))
        rotated = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        inner, positive_pads = _crop(slope, full)
        image_gradient = _in_parts(inner, rotated, positive_pads, precision)
        return image_gradient, _kernel_gradient(images, slope, pads, precision)

    def stock(images: Array, kernel: Array, slope: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda i, k: _stock(i, k, pads, precision), images, kernel)[1](slope)

    return lax.platform_dependent(*residuals, slope, cpu=cpu, default=stock)


_convolve.defvjp(_forward, _backward)


def _vector_filters(height: int, width: int, channels: int, filters: int) -> int:
    """Return how many filters of a kernel fill vectors of 16 where few remain; else all.

    XLA's code for 50 filters takes the time of 64: on images of 30 x 30, 48 filters take 30 % less.
    """
    rest = filters % _VECTOR
    few = 0 < rest <= _FEW and min(filters, channels) >= _VECTOR and height * width <= _AREA
    return filters - rest if few else filters


def _in_columns(images: Images, kernel: Kernel, pads: _Pads, precision: lax.PrecisionLike) -> Maps:
    """Convolve few channels as one matrix product, with a row for the numbers that the kernel covers at a pixel."""
    height, width, _, filters = kernel.shape
    images = _pad(images, pads)
    down, across = images.shape[1] - height + 1, images.shape[2] - width + 1
    # In two steps: in one, XLA gathers number by number.
    beside = lax.optimization_barrier(jnp.concatenate([images[:, :, j : j + across] for j in range(width)], -1))
    around = lax.optimization_barrier(jnp.concatenate([beside[:, i : i + down] for i in range(height)], -1))
    full = jnp.pad(kernel.reshape(-1, filters), ((0, 0), (0, -filters % _VECTOR)))
    return jnp.matmul(around, full, precision=precision)[..., :filters]


def _in_parts(images: Images, kernel: Kernel, pads: _Pads, precision: lax.PrecisionLike) -> Maps:
    """Convolve the remaining filters as a matrix product of all pixels, whose results are shifted and added."""
    split = _vector_filters(*kernel.shape) if images.shape[0] != 1 else kernel.shape[3]
    outputs = _stock(images, kernel[..., :split], pads, precision)
    if split == kernel.shape[3]:
        return outputs
    few = kernel[..., split:]
    # The products are added up, so bfloat16 must not round each of them.
    wide = images.dtype if images.dtype.itemsize > 2 else jnp.dtype(jnp.float32)
    products = jnp.einsum("bhwc,ijck->bhwijk", images, few, precision=precision, preferred_element_type=wide)
    products = _pad(products, pads)
    height, width = outputs.shape[1:3]
    shifted = (products[:, i : i + height, j : j + width, i, j] for i, j in np.ndindex(few.shape[:2]))
    return jnp.concatenate([outputs, sum(shifted, jnp.zeros((), wide)).astype(outputs.dtype)], -1)


def _kernel_gradient(images: Images, slope: Maps, pads: _Pads, precision: lax.PrecisionLike) -> Kernel:
    """Return the kernel's gradient as a sum over parts of the batch: XLA's code for all at once is up to 2 x slower."""
    batch, height, width, _ = slope.shape
    # In bfloat16 the gradient of each part would be rounded.
    parts = max(1, min(batch, _PARTS, -(-batch * height * width // _PIXELS))) if slope.dtype.itemsize > 2 else 1
    ends = [part * batch // parts for part in range(parts + 1)]
    grads = (_kernel_gradient_of_part(images[i:j], slope[i:j], pads, precision) for i, j in pairwise(ends))
    return reduce(jnp.add, grads)


def _kernel_gradient_of_part(images: Images, slope: Maps, pads: _Pads, precision: lax.PrecisionLike) -> Kernel:
    """Return the kernel's gradient; for the remaining filters as a matrix product with all shifts of their slopes."""
    (top, bottom), (left, right) = pads
    height = images.shape[1] + top + bottom - slope.shape[1] + 1
    width = images.shape[2] + left + right - slope.shape[2] + 1
    split = _vector_filters(height, width, images.shape[3], slope.shape[3])
    # Channels take the place of the batch, and the batch that of the channels.
    swapped = images.transpose(3, 1, 2, 0), slope[..., :split].transpose(1, 2, 0, 3)
    grads = _stock(*swapped, pads, precision).transpose(1, 2, 0, 3)
    if split == slope.shape[3]:
        return grads
    images, few = _pad(images, pads), slope[..., split:]
    shifts = [
        jnp.pad(few, ((0, 0), (i, height - 1 - i), (j, width - 1 - j), (0, 0))) for i, j in np.ndindex(height, width)
    ]
    rest = jnp.einsum("bhwc,bhwnk->nck", images, jnp.stack(shifts, 3), precision=precision)
    return jnp.concatenate([grads, rest.reshape(*grads.shape[:3], -1)], -1)


def _crop(images: Array, pads: _Pads) -> tuple[Array, _Pads]:
    """Crop images by the negative padding, and return them with the positive padding.

    XLA's CPU code for a convolution with negative padding on one side and positive on the other reads beyond its input.
    """
    (top, bottom), (left, right) = pads
    if min(top, bottom, left, right) >= 0:
        return images, pads
    inner = _pad(images, ((min(top, 0), min(bottom, 0)), (min(left, 0), min(right, 0))))
    return inner, ((max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))


def _pad(images: Array, pads: _Pads) -> Array:
    rest = ((0, 0, 0),) * (images.ndim - 3)
    return lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), *rest))


@jax.custom_vjp
def add_bias(
    images: Float[Array, "batch height width filters"], bias: Float[Array, " filters"]
) -> Float[Array, "batch height width filters"]:
    """Add a bias (K,) to images (B, H, W, K); on a CPU the bias's gradient is a matrix product, which is fast."""
    return images + bias.reshape(1, 1, 1, -1)


def _bias_forward(images: Array, bias: Array) -> tuple[Array, None]:
    return add_bias(images, bias), None


def _bias_backward(_: None, slope: Array) -> tuple[Array, Array]:
    def cpu(slope: Array) -> Array:
        pixels = lax.optimization_barrier(slope).reshape(-1, slope.shape[3])
        return jnp.ones(len(pixels), slope.dtype) @ pixels

    return slope, lax.platform_dependent(slope, cpu=cpu, default=lambda slope: slope.sum((0, 1, 2)))


add_bias.defvjp(_bias_forward, _bias_backward)
