"""Floating-point operations (FLOPs) of a function, counted from its jaxpr: equal on all versions and platforms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

# Operations that only move or select numbers, or change their dtype.
_MOVES = {
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p", "dynamic_slice"),
    *("dynamic_update_slice", "gather", "iota", "pad", "reshape", "rev", "scatter", "select_n", "slice", "sort"),
    *("split", "squeeze", "stop_gradient", "transpose"),
}
REDUCTIONS = re.compile(r"reduce(_(?!window|precision)\w+)?|arg(max|min)|cum\w+|scatter-\w+")


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Return the FLOPs of `function(*arguments)`, whose arguments may be pytrees of `jax.ShapeDtypeStruct`.

    A matrix product of (M, K) and (K, N) counts 2 M N K; a convolution counts 2 for each multiplication with an input
    number, not with padding. A reduction counts 1 per input number, any other operation 1 per output number.
    Integers, moves and unused results count 0. A loop counts its length (`while`: 1), `cond` its most expensive branch,
    `platform_dependent` its default.

    >>> flops(lambda inputs, kernel: jnp.tanh(inputs @ kernel), jnp.ones((5, 3)), jnp.ones((3, 2)))
    70
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _total(jaxpr, [True] * len(jaxpr.outvars))


def _total(jaxpr: Jaxpr, wanted: Sequence[bool]) -> int:
    """Return the FLOPs of the equations that the wanted results depend on."""
    live = {var for var, want in zip(jaxpr.outvars, wanted, strict=True) if want and not isinstance(var, Literal)}
    total = 0
    for equation in reversed(jaxpr.eqns):
        used = [var in live for var in equation.outvars]
        if any(used) or equation.effects:
            total += _cost(equation, used)
            live.update(var for var in equation.invars if not isinstance(var, Literal))
    return total


def _cost(equation: JaxprEqn, used: list[bool]) -> int:
    name, params = equation.primitive.name, equation.params
    parts = [] if REDUCTIONS.fullmatch(name) or "window_dimensions" in params else list(jaxprs_in_params(params))
    if name in _MOVES or not parts:
        return _count(equation)
    if name == "cond":
        branches = [_total(branch.jaxpr, used) for branch in params["branches"]]
        platforms = params.get("branches_platforms") or ()
        return branches[platforms.index(None)] if None in platforms else max(branches)
    # A loop uses all results of its body as the next arguments.
    looped = name in ("scan", "while")
    trips = params["length"] if name == "scan" else 1
    return trips * sum(_total(part, [True] * len(part.outvars) if looped else used) for part in parts)


def _count(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    inputs: list[Any] = [var.aval for var in equation.invars]
    outputs: list[Any] = [var.aval for var in equation.outvars]
    if name in _MOVES or not any(map(_is_float, (*inputs, *outputs))):
        return 0
    size = sum(_size(aval) for aval in outputs)
    if name == "dot_general":
        ((contracted, _), _) = params["dimension_numbers"]
        return 2 * size * math.prod(inputs[0].shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return 2 * _products(inputs[0].shape, inputs[1].shape, outputs[0].shape, params)
    if name == "convolution":
        return 2 * _products_of(equation)
    if "window_dimensions" in params:
        # The gradient of a window reduction has one input number per window, the reduction one output number.
        windows = _size(inputs[0]) if name.startswith("select_and_scatter") else size
        return windows * math.prod(params["window_dimensions"])
    if name.startswith("scatter-"):
        return _size(inputs[2])
    return _size(inputs[0]) if REDUCTIONS.fullmatch(name) else size


def _products(images: Sequence[int], kernel: Sequence[int], outputs: Sequence[int], params: dict[str, Any]) -> int:
    """Return the number of multiplications of a convolution, without the padding."""
    numbers = params["dimension_numbers"]
    count = outputs[numbers.out_spec[0]] * outputs[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    axes = zip(
        *(spec[2:] for spec in (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)),
        *(params[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")),
        strict=True,
    )
    for of_images, of_kernel, of_outputs, stride, (low, _), lhs_dilation, rhs_dilation in axes:
        starts = stride * np.arange(outputs[of_outputs])[:, None] - low
        positions = starts + rhs_dilation * np.arange(kernel[of_kernel])
        inside = (
            (positions >= 0) & (positions <= (images[of_images] - 1) * lhs_dilation) & (positions % lhs_dilation == 0)
        )
        count *= int(inside.sum())
    return count


def _products_of(equation: JaxprEqn) -> int:
    """Return the multiplications of jaxdl's convolution or of its gradients, which are as many."""
    geometry, result, axes = (equation.params[name] for name in ("geometry", "result", "axes"))
    operands: list[Any] = [var.aval for var in equation.invars]
    shapes = [aval.shape[sum(level[i] is not None for level in axes) :] for i, aval in enumerate(operands)]
    shapes.insert(result, geometry.shape(result, *shapes))
    ones = (1,) * len(geometry.strides)
    params = {"dimension_numbers": geometry.numbers, "window_strides": geometry.strides, "padding": geometry.pads}
    copies = math.prod(equation.outvars[0].aval.shape[: len(axes)])
    return copies * _products(*shapes, {**params, "lhs_dilation": ones, "rhs_dilation": ones})


def _is_float(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, np.inexact)


def _size(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ()))
