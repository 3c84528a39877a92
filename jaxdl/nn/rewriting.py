"""Models of any library with convolutions, pooling and biases that stay fast in compiled loops on a CPU.

A model is traced to a jaxpr, JAX's list of operations, in which each operation that XLA's CPU compiler makes slow in
the body of a loop is exchanged for an equal one; other platforms compile what the model wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxdl._jit import is_traced
from jaxdl._values import as_value
from jaxdl.nn.convolution import OUTPUTS, Convolution, add_bias, convolution_p, describe
from jaxdl.types import Array

P = ParamSpec("P")
R = TypeVar("R")
# Spatial axes, the batch and the channels: a convolution of one spatial axis has kernels of three axes.
_AXES = 3
# Operations whose jaxprs are rewritten. A kernel of Pallas, say, must stay as it is.
_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "cond", "while", "scan"),
    *("custom_jvp_call", "custom_vjp_call"),
}


@as_value
def with_fast_convolutions(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function with equal results whose convolutions, pooling and biases are fast on a CPU.

    Arguments and results are pytrees; leaves that are no arrays, such as `train=True`, are passed on as they are. A
    call without traced arguments, or without an array of three axes or more, calls the function itself.

    >>> def pool(images, train):
    ...     return jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    >>> with_fast_convolutions(pool)(jnp.arange(16.0).reshape(1, 4, 4, 1), train=True).ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """

    @wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        leaves, structure = jax.tree.flatten((arguments, keywords))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray))]
        arrays = [leaves[place] for place in places]
        if not any(map(is_traced, arrays)) or max(array.ndim for array in arrays) < _AXES:
            return function(*arguments, **keywords)
        results: Any = None

        def flat(arrays: list[Array]) -> list[Any]:
            nonlocal results
            values = list(leaves)
            for place, array in zip(places, arrays, strict=True):
                values[place] = array
            positional, named = jax.tree.unflatten(structure, values)
            outputs, results = jax.tree.flatten(function(*positional, **named))
            is_array = [isinstance(value, (jax.Array, np.ndarray)) for value in outputs]
            # Traced arrays stay in the jaxpr; its trace has ended when the results are put together.
            results = (
                results,
                [None if kind else value for kind, value in zip(is_array, outputs, strict=True)],
                is_array,
            )
            return [value for kind, value in zip(is_array, outputs, strict=True) if kind]

        closed = jax.make_jaxpr(flat)(arrays)
        structure_of_results, outputs, is_array = results
        values = iter(jax.core.eval_jaxpr(_rewrite(closed.jaxpr), closed.consts, *arrays))
        merged = [next(values) if kind else value for kind, value in zip(is_array, outputs, strict=True)]
        result: R = jax.tree.unflatten(structure_of_results, merged)
        return result

    return call


def _rewrite(jaxpr: Jaxpr) -> Jaxpr:
    sources = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    equations = [_replacement(equation, sources) for equation in jaxpr.eqns]
    same = all(new is old for new, old in zip(equations, jaxpr.eqns, strict=True))
    return jaxpr if same else jaxpr.replace(eqns=equations)


def _replacement(equation: JaxprEqn, sources: dict[Any, JaxprEqn]) -> JaxprEqn:
    """Return an equation with the same inputs and outputs, or the equation itself."""
    if equation.primitive.name == "add":
        return _bias(equation, sources)
    replace = _REPLACEMENTS.get(equation.primitive.name)
    if replace is not None:
        return replace(equation)
    if equation.primitive.name not in _CALLS:
        return equation
    params = {name: _rewrite_in(value) for name, value in equation.params.items()}
    same = all(params[name] is value for name, value in equation.params.items())
    return equation if same else equation.replace(params=params)


def _rewrite_in(value: Any) -> Any:
    """Return a parameter of an equation in which the jaxprs are rewritten, or the parameter itself."""
    if isinstance(value, ClosedJaxpr):
        jaxpr = _rewrite(value.jaxpr)
        return value if jaxpr is value.jaxpr else value.replace(jaxpr=jaxpr)
    if isinstance(value, Jaxpr):
        return _rewrite(value)
    if isinstance(value, tuple):
        values = [_rewrite_in(part) for part in value]
        same = all(new is old for new, old in zip(values, value, strict=True))
        return value if same else tuple(values)
    return value


def _convolution(equation: JaxprEqn) -> JaxprEqn:
    params, (lhs, rhs) = equation.params, _avals(equation.invars)
    element, numbers = params["preferred_element_type"], params["dimension_numbers"]
    if params["batch_group_count"] != 1 or element not in (None, lhs.dtype) or params.get("out_sharding") is not None:
        return equation
    dilations, groups = (params["lhs_dilation"], params["rhs_dilation"]), params["feature_group_count"]
    # One group, dilated.
    shapes = [list(lhs.shape), list(rhs.shape)]
    shapes[0][numbers.lhs_spec[1]] //= groups
    shapes[1][numbers.rhs_spec[0]] //= groups
    for shape, spec, dilation in zip(shapes, numbers, dilations, strict=False):
        for axis, factor in zip(spec[2:], dilation, strict=True):
            shape[axis] = (shape[axis] - 1) * factor + 1
    one, two = (jax.ShapeDtypeStruct(tuple(shape), x.dtype) for shape, x in zip(shapes, (lhs, rhs), strict=True))
    geometry = describe(one, two, params["window_strides"], params["padding"], numbers, params["precision"])
    if geometry is None:
        return equation
    if groups == 1 and {*dilations[0], *dilations[1]} == {1}:
        return equation.replace(primitive=convolution_p, params={"geometry": geometry, "result": OUTPUTS, "axes": ()})
    cpu = partial(_in_groups, geometry=geometry, groups=groups, dilations=dilations)
    stock = partial(_stock, primitive=equation.primitive, params=params)
    return _calling(lambda *operands: lax.platform_dependent(*operands, cpu=cpu, default=stock), equation)


def _in_groups(images: Array, kernel: Array, geometry: Convolution, groups: int, dilations: Any) -> Array:
    """Convolve dilated images and kernels, each group of channels with its filters."""
    images = _dilate(images, geometry.numbers.lhs_spec, dilations[0])
    if groups > 1 and kernel.shape[geometry.numbers.rhs_spec[1]] == 1:
        return _depthwise(images, kernel, geometry, dilations[1])
    kernel = _dilate(kernel, geometry.numbers.rhs_spec, dilations[1])
    parts = zip(
        jnp.split(images, groups, geometry.numbers.lhs_spec[1]),
        jnp.split(kernel, groups, geometry.numbers.rhs_spec[0]),
        strict=True,
    )
    outputs = [convolution_p.bind(*part, geometry=geometry, result=OUTPUTS, axes=()) for part in parts]
    return jnp.concatenate(outputs, geometry.numbers.out_spec[1])


def _dilate(array: Array, spec: Sequence[int], dilation: Sequence[int]) -> Array:
    inside = dict(zip(spec[2:], dilation, strict=True))
    return lax.pad(array, jnp.zeros((), array.dtype), [(0, 0, inside.get(axis, 1) - 1) for axis in range(array.ndim)])


def _depthwise(images: Array, kernel: Array, geometry: Convolution, dilation: Sequence[int]) -> Array:
    """Convolve each channel with filters of its own: a sum of shifted images, one for each pixel of the kernel."""
    (batch, channels, *spatial), (filters, one, *sizes) = geometry.numbers[:2]
    images = images.transpose(batch, *spatial, channels)
    images = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *((*pad, 0) for pad in geometry.pads), (0, 0, 0)])
    kernel = kernel.transpose(*sizes, one, filters)
    kernel = kernel.reshape(*kernel.shape[:-2], *(1,) * (images.ndim - 1), images.shape[-1], -1)
    # The products are added up, so bfloat16 must not round each of them.
    wide = images.dtype if images.dtype.itemsize > 2 else jnp.dtype(jnp.float32)
    outputs = jnp.zeros((), wide)
    for place in np.ndindex(kernel.shape[: len(sizes)]):
        parts = zip(place, dilation, geometry.rows(), geometry.strides, strict=True)
        shifted = images[:, *(slice(i * d, i * d + (row - 1) * s + 1, s) for i, d, row, s in parts)]
        outputs = outputs + shifted[..., None].astype(wide) * kernel[place].astype(wide)
    outputs = outputs.reshape(*outputs.shape[:-2], -1).astype(images.dtype)
    # The transpose that the layout of the outputs undoes.
    return outputs.transpose(np.argsort([geometry.numbers.out_spec[axis] for axis in (0, *range(2, outputs.ndim), 1)]))


def _avals(variables: Iterable[Any]) -> list[Any]:
    return [variable.aval for variable in variables]


def _calling(function: Callable[..., Array], equation: JaxprEqn) -> JaxprEqn:
    """Return an equation that calls a function in place of an operation."""
    (call,) = jax.make_jaxpr(jax.jit(function))(*_avals(equation.invars)).jaxpr.eqns
    return call.replace(
        invars=equation.invars, outvars=equation.outvars, source_info=equation.source_info, ctx=equation.ctx
    )


def _pooling(reduce: Callable[..., Array], equation: JaxprEqn) -> JaxprEqn:
    """Replace the pooling of windows that lie side by side."""
    params, (images,) = equation.params, _avals(equation.invars)
    window = params["window_dimensions"]
    ones, none = (1,) * len(window), ((0, 0),) * len(window)
    plain = params["window_strides"] == window and params["padding"] == none
    plain = plain and params["base_dilation"] == params["window_dilation"] == ones
    fixed = all(isinstance(side, int) for side, size in zip(images.shape, window, strict=True) if size > 1)
    if not (plain and fixed and jnp.issubdtype(images.dtype, jnp.floating)):
        return equation

    def pool(images: Array) -> Array:
        stock = partial(_stock, primitive=equation.primitive, params=params)
        return lax.platform_dependent(images, cpu=partial(reduce, window=window), default=stock)

    return _calling(pool, equation)


def _stock(*operands: Array, primitive: Any, params: dict[str, Any]) -> Array:
    outputs: Array = primitive.bind(*operands, **params)
    return outputs


def _windows(images: Array, window: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """Return images in which an axis of the windows' pixels follows each axis with windows, and these axes."""
    shape: list[Any] = []
    axes = []
    for axis, size in enumerate(window):
        if size == 1:
            shape.append(images.shape[axis])
            continue
        # Pixels that do not fill a window are left out.
        images = lax.slice_in_dim(images, 0, images.shape[axis] // size * size, axis=axis)
        axes.append(len(shape) + 1)
        shape += [images.shape[axis] // size, size]
    return images.reshape(shape), tuple(axes)


def _sum_pooling(images: Array, window: tuple[int, ...]) -> Array:
    windows, axes = _windows(images, window)
    return windows.sum(axes)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pooling(images: Array, window: tuple[int, ...]) -> Array:
    """Return the maxima, whose gradient goes to the first of equal pixels, as XLA's does."""
    windows, axes = _windows(images, window)
    return windows.max(axes)


@_max_pooling.defjvp
def _max_pooling_jvp(window: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (windows, axes), (slopes, _) = _windows(*primals, window), _windows(*tangents, window)
    maxima = windows.max(axes, keepdims=True)
    sizes = [windows.shape[axis] for axis in axes]
    # From 0 for the first pixel of a window.
    shape = [size if axis in axes else 1 for axis, size in enumerate(windows.shape)]
    places = jnp.arange(math.prod(sizes)).reshape(shape)
    largest = (windows == maxima) | (windows != windows)
    first = jnp.where(largest, places, math.prod(sizes)).min(axes, keepdims=True)
    # The function again, not the maxima: the derivative of this rule must treat equal pixels alike.
    return _max_pooling(*primals, window), jnp.where(places == first, slopes, 0).sum(axes)


def _is_convolved(variable: Any, sources: dict[Any, JaxprEqn]) -> bool:
    """Return whether a variable is a convolution in another shape, as Equinox's layers give it."""
    source = None if isinstance(variable, Literal) else sources.get(variable)
    if source is None or source.primitive.name == "conv_general_dilated":
        return source is not None
    return source.primitive.name in ("reshape", "squeeze") and _is_convolved(source.invars[0], sources)


def _bias(equation: JaxprEqn, sources: dict[Any, JaxprEqn]) -> JaxprEqn:
    """Replace the addition of a number for each channel to a convolution, whose gradient XLA sums slowly."""
    (result,) = _avals(equation.outvars)
    if result.ndim != 4 or not jnp.issubdtype(result.dtype, jnp.floating):
        return equation
    for channels in (3, 1):
        shape = tuple(size if axis == channels else 1 for axis, size in enumerate(result.shape))
        for operands in (equation.invars, equation.invars[::-1]):
            fits = [aval.shape for aval in _avals(operands)] == [result.shape, shape]
            if fits and _is_convolved(operands[0], sources):
                return _calling(partial(_add_bias, channels=channels), equation.replace(invars=operands))
    return equation


def _add_bias(images: Array, bias: Array, channels: int) -> Array:
    last = jnp.moveaxis(images, channels, -1)
    return jnp.moveaxis(add_bias(last, bias.reshape(-1)), -1, channels)


_REPLACEMENTS: dict[str, Callable[[JaxprEqn], JaxprEqn]] = {
    "conv_general_dilated": _convolution,
    "reduce_window_max": partial(_pooling, _max_pooling),
    "reduce_window_sum": partial(_pooling, _sum_pooling),
}
