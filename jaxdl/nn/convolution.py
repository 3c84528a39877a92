"""Convolution that stays fast in compiled loops on a CPU, with all derivatives.

Outside of loops XLA's CPU compiler rewrites the gradients of a convolution into the layout of its fast library call;
in the body of a loop it falls back to naive loops that take some 30 times longer. So this module has a primitive of its
own, `convolution_p`, which a CPU computes in that layout. On other platforms it is XLA's own convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float

from jaxdl.types import Array

NUMBERS = ("NHWC", "HWIO", "NHWC")
IMAGES, KERNEL, OUTPUTS = range(3)
_VECTOR, _FEW = 16, 4  # numbers that a CPU with AVX-512 multiplies at once; remaining filters too few for a vector
_PIXELS, _PARTS = 2**13, 8  # pixels in one part of the batch for a kernel's gradient; the most parts
_AREA = 25  # pixels of a kernel, at most, for remaining filters to be computed apart: each pixel needs a shifted copy
_COLUMNS = 64  # numbers that a kernel covers, at most, for them to be copied for each pixel
_Pads = tuple[tuple[int, int], ...]
Images = Float[Array, "batch height width channels"]
Kernel = Float[Array, "size_down size_across channels filters"]
Maps = Float[Array, "batch rows columns filters"]


class Convolution(NamedTuple):
    """A convolution of one or two spatial axes, without its arrays."""

    strides: tuple[int, ...]
    pads: _Pads
    numbers: Any  # lax.ConvDimensionNumbers
    precision: Any
    sides: tuple[int, ...]  # the spatial axes of the images
    sizes: tuple[int, ...]  # those of the kernel

    def shape(self, result: int, first: Sequence[Any], second: Sequence[Any]) -> tuple[Any, ...]:
        """Return the shape of the images, of the kernel or of the outputs from the shapes of the other two."""
        # Batch, channels and filters as axes of the images (N, C), of the kernel (O, I) and of the outputs (N, K).
        (n, c, *lhs), (o, i, *rhs), (b, k, *out) = self.numbers
        if result == IMAGES:
            axes, sizes = (n, c, *lhs), (second[b], first[i], *self.sides)
        elif result == KERNEL:
            axes, sizes = (o, i, *rhs), (second[k], first[c], *self.sizes)
        else:
            axes, sizes = (b, k, *out), (first[n], second[o], *self.rows())
        return tuple(sizes[axes.index(axis)] for axis in range(len(axes)))

    def rows(self) -> tuple[int, ...]:
        """Return the spatial axes of the outputs."""
        parts = zip(self.sides, self.pads, self.sizes, self.strides, strict=True)
        return tuple(max(0, (side + sum(pad) - size) // stride + 1) for side, pad, size, stride in parts)


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
    """Return `lax.conv_general_dilated`, fast in loops on a CPU: `nn.Conv(conv_general_dilated=convolve)`.

    The fast path takes one or two spatial axes in any layout, with any strides and padding, without dilation and
    groups; JAX's function takes the rest.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    strides, pads = tuple(window_strides), padding
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(*_spatial(numbers, lhs.shape, rhs.shape), strides, pads)
    # JAX reads the default now; this primitive would read it when it is lowered, outside of the caller's context.
    options: Any = jax.config
    precision = precision or options.jax_default_matmul_precision
    dilations = lhs_dilation, rhs_dilation
    plain = feature_group_count == 1 and {*(lhs_dilation or ()), *(rhs_dilation or ())} <= {1}
    geometry = describe(lhs, rhs, strides, pads, numbers, precision) if plain else None
    if geometry is None:
        return lax.conv_general_dilated(
            lhs, rhs, strides, padding, *dilations, numbers, feature_group_count, precision=precision
        )
    result: Array = convolution_p.bind(lhs, rhs, geometry=geometry, result=OUTPUTS, axes=())
    return result


def describe(
    lhs: Any,
    rhs: Any,
    strides: tuple[int, ...],
    pads: Sequence[tuple[int, int]],
    numbers: Any,
    precision: Any,
) -> Convolution | None:
    """Return the description of a convolution that the fast path covers, and None for another."""
    sides, sizes = _spatial(numbers, lhs.shape, rhs.shape)
    plain = lhs.ndim in (3, 4)
    floating = lhs.dtype == rhs.dtype and jnp.issubdtype(lhs.dtype, jnp.floating)
    fixed = all(isinstance(size, int) for size in (*sides, *rhs.shape, lhs.shape[numbers.lhs_spec[1]]))
    if not (plain and floating and fixed and _is_automatic()):
        return None
    geometry = Convolution(strides, tuple((low, high) for low, high in pads), numbers, precision, sides, sizes)
    return geometry if min(*geometry.rows(), *rhs.shape) > 0 else None


def _spatial(numbers: Any, lhs: Sequence[int], rhs: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the spatial axes of the images and of the kernel."""
    return tuple(lhs[axis] for axis in numbers.lhs_spec[2:]), tuple(rhs[axis] for axis in numbers.rhs_spec[2:])


def _is_automatic() -> bool:
    """Return whether XLA shards all axes of the mesh, if there is one, so that shapes are all that types must say."""
    return all(kind == jax.sharding.AxisType.Auto for kind in jax.sharding.get_abstract_mesh().axis_types)


# A convolution is linear in the images and in the kernel, and the sum of its outputs times a slope is linear in all
# three. So its derivatives are such convolutions again: `result` says which of the three is computed from the others.
# axes: for each vmap, from the innermost, the axis of each operand, 0 or None.
convolution_p = Primitive("convolution")


@partial(jax.jit, static_argnames=("geometry", "result", "axes"))
def _eager(first: Array, second: Array, geometry: Convolution, result: int, axes: tuple[Any, ...]) -> Array:
    outputs: Array = convolution_p.bind(first, second, geometry=geometry, result=result, axes=axes)
    return outputs


@convolution_p.def_abstract_eval
def _abstract(first: Any, second: Any, geometry: Convolution, result: int, axes: tuple[Any, ...]) -> Any:
    shapes, sizes = [first.shape, second.shape], []
    for level in reversed(axes):
        sizes.append(next(shape[0] for shape, axis in zip(shapes, level, strict=True) if axis == 0))
        shapes = [shape if axis is None else shape[1:] for shape, axis in zip(shapes, level, strict=True)]
    return jax.core.ShapedArray((*sizes, *geometry.shape(result, *shapes)), first.dtype)


def _transposed(
    place: int, slope: Array, first: Any, second: Any, geometry: Convolution, result: int, axes: tuple[Any, ...]
) -> Array:
    """Return the gradient of the operand at a place."""
    operands = [role for role in (IMAGES, KERNEL, OUTPUTS) if role != result]
    wanted, other = operands[place], operands[1 - place]
    pairs = sorted([(other, (first, second)[1 - place]), (result, slope)], key=lambda pair: pair[0])
    levels = tuple(tuple(0 if role == result else level[1 - place] for role, _ in pairs) for level in axes)
    values: Array = convolution_p.bind(*(value for _, value in pairs), geometry=geometry, result=wanted, axes=levels)
    # An operand that all examples share gets the sum of their gradients.
    shared = tuple(depth for depth, level in enumerate(reversed(axes)) if level[place] is None)
    return values.sum(shared) if shared else values


def _batched(operands: Any, places: Any, *, axes: tuple[Any, ...], **params: Any) -> tuple[Array, int]:
    moved = [x if place is None else jnp.moveaxis(x, place, 0) for x, place in zip(operands, places, strict=True)]
    level = tuple(None if place is None else 0 for place in places)
    return convolution_p.bind(*moved, axes=(*axes, level), **params), 0


def _lowered(compute: Callable[..., Array]) -> Any:
    def function(first: Array, second: Array, *, geometry: Convolution, result: int, axes: tuple[Any, ...]) -> Array:
        run = partial(compute, geometry=geometry, result=result)
        for level in axes:
            run = jax.vmap(run, level)
        return run(first, second)

    return mlir.lower_fun(function, multiple_results=False)


def _stock(first: Array, second: Array, geometry: Convolution, result: int) -> Array:
    """Compute as XLA does."""

    def run(images: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            images,
            kernel,
            geometry.strides,
            geometry.pads,
            dimension_numbers=geometry.numbers,
            precision=geometry.precision,
        )

    if result == OUTPUTS:
        return run(first, second)
    linear = partial(run, first) if result == KERNEL else lambda images: run(images, first)
    return _adjoint(linear, geometry.shape(result, first.shape, second.shape), second)


def _adjoint(linear: Callable[[Array], Array], shape: tuple[Any, ...], values: Array) -> Array:
    result: Array
    (result,) = jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, values.dtype))(values)
    return result


def _fast(first: Array, second: Array, geometry: Convolution, result: int) -> Array:
    """Compute on (B, H, W, C) images and (h, w, C, K) kernels with stride 1."""
    pads = tuple(axis.inner_pad for axis in _axes(geometry))
    roles = [role for role in (IMAGES, KERNEL, OUTPUTS) if role != result]
    one, two = (_INNER[role](value, geometry) for role, value in zip(roles, (first, second), strict=True))
    compute = (_image_gradient, _kernel_gradient, _outputs)[result]
    values = compute(one, two, pads, geometry.precision)
    return _adjoint(
        partial(_INNER[result], geometry=geometry), geometry.shape(result, first.shape, second.shape), values
    )


class _Axis(NamedTuple):
    """A spatial axis: blocks of as many pixels as the stride become channels, so that the stride is 1."""

    side: int = 1
    size: int = 1
    row: int = 1
    stride: int = 1
    pad: tuple[int, int] = (0, 0)

    @property
    def block(self) -> int:
        """The pixels of a block under which the kernel has numbers."""
        return min(self.stride, self.size)

    @property
    def blocks(self) -> int:
        """The blocks of the kernel."""
        return -(-self.size // self.stride)

    @property
    def inner_pad(self) -> tuple[int, int]:
        """The padding that is left to the convolution."""
        return (max(self.pad[0], 0), max(self.pad[1], 0)) if self.stride == 1 else (0, 0)

    @property
    def outer_pad(self) -> tuple[int, int]:
        """The padding before it. XLA's CPU code reads beyond its input where one side is negative, one positive."""
        low, high = self.pad
        if self.stride == 1:
            return min(low, 0), min(high, 0)
        return low, (self.row - 1 + self.blocks) * self.stride - self.side - low


def _axes(geometry: Convolution) -> tuple[_Axis, _Axis]:
    axes = [
        _Axis(*parts)
        for parts in zip(geometry.sides, geometry.sizes, geometry.rows(), geometry.strides, geometry.pads, strict=True)
    ]
    first, second = axes if len(axes) == 2 else (_Axis(), *axes)
    return first, second


def _inner_images(images: Array, geometry: Convolution) -> Images:
    (down, across), (batch, channels, *spatial) = _axes(geometry), geometry.numbers.lhs_spec
    images = images.transpose(batch, *spatial, channels)
    images = _pad(images if images.ndim == 4 else images[:, None], (down.outer_pad, across.outer_pad))
    if down.stride == across.stride == 1:
        return images
    shape = images.shape[1] // down.stride, down.stride, images.shape[2] // across.stride, across.stride
    blocks = images.reshape(images.shape[0], *shape, images.shape[3])[:, :, : down.block, :, : across.block]
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(*blocks.shape[:3], math.prod(blocks.shape[3:]))


def _inner_kernel(kernel: Array, geometry: Convolution) -> Kernel:
    (down, across), (filters, channels, *spatial) = _axes(geometry), geometry.numbers.rhs_spec
    kernel = kernel.transpose(*spatial, channels, filters)
    kernel = kernel if kernel.ndim == 4 else kernel[None]
    if down.stride == across.stride == 1:
        return kernel
    shape = down.blocks, down.block, across.blocks, across.block
    rest = shape[0] * shape[1] - down.size, shape[2] * shape[3] - across.size
    blocks = jnp.pad(kernel, ((0, rest[0]), (0, rest[1]), (0, 0), (0, 0))).reshape(*shape, *kernel.shape[2:])
    blocks = blocks.transpose(0, 2, 1, 3, 4, 5)
    return blocks.reshape(*blocks.shape[:2], math.prod(blocks.shape[2:5]), kernel.shape[3])


def _inner_outputs(outputs: Array, geometry: Convolution) -> Maps:
    batch, filters, *spatial = geometry.numbers.out_spec
    outputs = outputs.transpose(batch, *spatial, filters)
    return outputs if outputs.ndim == 4 else outputs[:, None]


_INNER: Any = (_inner_images, _inner_kernel, _inner_outputs)


def _outputs(images: Images, kernel: Kernel, pads: _Pads, precision: Any) -> Maps:
    few = math.prod(kernel.shape[:3]) <= _COLUMNS and kernel.shape[3] >= _VECTOR
    return (_in_columns if few else _in_parts)(images, kernel, pads, precision)


def _image_gradient(kernel: Kernel, slope: Maps, pads: _Pads, precision: Any) -> Images:
    # Without the barrier XLA fuses their computation into the transpositions and repeats it for each number.
    slope = lax.optimization_barrier(slope)
    full = tuple((size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape[:2], pads, strict=True))
    rotated = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    # Negative padding crops.
    slope = _pad(slope, tuple((min(low, 0), min(high, 0)) for low, high in full))
    return _in_parts(slope, rotated, tuple((max(low, 0), max(high, 0)) for low, high in full), precision)


def _plain(images: Images, kernel: Kernel, pads: _Pads, precision: Any) -> Maps:
    return lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=NUMBERS, precision=precision)


def _vector_filters(height: int, width: int, channels: int, filters: int) -> int:
    """Return geometry many filters of a kernel fill vectors of 16 where few remain; else all.

    XLA's code for 50 filters takes the time of 64: on images of 30 x 30, 48 filters take 30 % less.
    """
    rest = filters % _VECTOR
    few = 0 < rest <= _FEW and min(filters, channels) >= _VECTOR and height * width <= _AREA
    return filters - rest if few else filters


def _in_columns(images: Images, kernel: Kernel, pads: _Pads, precision: Any) -> Maps:
    """Convolve few channels as one matrix product, with a row for the numbers that the kernel covers at a pixel."""
    height, width, _, filters = kernel.shape
    images = _pad(images, pads)
    down, across = images.shape[1] - height + 1, images.shape[2] - width + 1
    # In two steps: in one, XLA gathers number by number.
    beside = lax.optimization_barrier(jnp.concatenate([images[:, :, j : j + across] for j in range(width)], -1))
    around = lax.optimization_barrier(jnp.concatenate([beside[:, i : i + down] for i in range(height)], -1))
    full = jnp.pad(kernel.reshape(-1, filters), ((0, 0), (0, -filters % _VECTOR)))
    return jnp.matmul(around, full, precision=precision)[..., :filters]


def _in_parts(images: Images, kernel: Kernel, pads: _Pads, precision: Any) -> Maps:
    """Convolve the remaining filters as a matrix product of all pixels, whose results are shifted and added."""
    split = _vector_filters(*kernel.shape) if images.shape[0] != 1 else kernel.shape[3]
    outputs = _plain(images, kernel[..., :split], pads, precision)
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


def _kernel_gradient(images: Images, slope: Maps, pads: _Pads, precision: Any) -> Kernel:
    """Return the kernel's gradient as a sum over parts of the batch: XLA's code for all at once is up to 2 x slower."""
    images, slope = lax.optimization_barrier((images, slope))
    batch, height, width, _ = slope.shape
    # In bfloat16 the gradient of each part would be rounded.
    parts = max(1, min(batch, _PARTS, -(-batch * height * width // _PIXELS))) if slope.dtype.itemsize > 2 else 1
    ends = [part * batch // parts for part in range(parts + 1)]
    grads = (_kernel_gradient_of_part(images[i:j], slope[i:j], pads, precision) for i, j in pairwise(ends))
    return reduce(jnp.add, grads)


def _kernel_gradient_of_part(images: Images, slope: Maps, pads: _Pads, precision: Any) -> Kernel:
    """Return the kernel's gradient; for the remaining filters as a matrix product with all shifts of their slopes."""
    (top, bottom), (left, right) = pads
    height = images.shape[1] + top + bottom - slope.shape[1] + 1
    width = images.shape[2] + left + right - slope.shape[2] + 1
    split = _vector_filters(height, width, images.shape[3], slope.shape[3])
    # Channels take the place of the batch, and the batch that of the channels.
    swapped = images.transpose(3, 1, 2, 0), slope[..., :split].transpose(1, 2, 0, 3)
    grads = _plain(*swapped, pads, precision).transpose(1, 2, 0, 3)
    if split == slope.shape[3]:
        return grads
    images, few = _pad(images, pads), slope[..., split:]
    shifts = [
        jnp.pad(few, ((0, 0), (i, height - 1 - i), (j, width - 1 - j), (0, 0))) for i, j in np.ndindex(height, width)
    ]
    rest = jnp.einsum("bhwc,bhwnk->nck", images, jnp.stack(shifts, 3), precision=precision)
    return jnp.concatenate([grads, rest.reshape(*grads.shape[:3], -1)], -1)


def _pad(images: Array, pads: _Pads) -> Array:
    rest = ((0, 0, 0),) * (images.ndim - 3)
    return lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), *rest))


convolution_p.def_impl(_eager)
ad.defbilinear(convolution_p, partial(_transposed, 0), partial(_transposed, 1))
batching.primitive_batchers[convolution_p] = _batched
mlir.register_lowering(convolution_p, _lowered(_stock))
mlir.register_lowering(convolution_p, _lowered(_fast), platform="cpu")


def add_bias(
    images: Float[Array, "batch height width filters"], bias: Float[Array, " filters"]
) -> Float[Array, "batch height width filters"]:
    """Add a bias (K,) to images (B, H, W, K); on a CPU the bias's gradient is a matrix product, which is fast."""

    def cpu(bias: Array) -> Array:
        # XLA makes a broadcast of this product, and a product of its transpose.
        return (jnp.ones((math.prod(images.shape[:3]), 1), bias.dtype) @ bias[None]).reshape(images.shape)

    return images + lax.platform_dependent(bias, cpu=cpu, default=lambda bias: jnp.broadcast_to(bias, images.shape))
