"""Floating-point operations (FLOPs) of a function, counted from its jaxpr: nothing is computed or compiled."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

# What only moves numbers, chooses among them or changes their dtype. Operations that are named nowhere here count one
# FLOP a number that they give.
_MOVES = {
    *("all_gather", "all_gather_invariant", "all_to_all", "bitcast_convert_type", "broadcast_in_dim", "complex"),
    *("concatenate", "conj", "convert_element_type", "copy", "copy_p", "device_put", "dynamic_slice"),
    *(
        "dynamic_update_slice",
        "empty",
        "empty2",
        "gather",
        "get",
        "imag",
        "iota",
        "name",
        "optimization_barrier",
        "pad",
    ),
    *("pcast", "ppermute", "pvary", "ragged_all_to_all", "real", "reduce_precision", "reshape", "reshard", "rev"),
    *("scatter", "select_and_gather_add", "select_n", "sharding_constraint", "slice", "sort", "split", "squeeze"),
    *("stop_gradient", "swap", "top_k", "transpose"),
}
# Libraries, kernels and loops: what they do inside is not known from the jaxpr.
_OPAQUE = {
    *("cholesky", "custom_linear_solve", "eig", "eigh", "fft", "ffi_call", "geqrf", "hessenberg", "io_callback", "lu"),
    *("householder_product", "pallas_call", "pure_callback", "qr", "ragged_dot_general", "schur", "svd"),
    *("triangular_solve", "tridiagonal", "tridiagonal_solve"),
}
REDUCTIONS = re.compile(r"reduce(_(?!window|precision)\w+)?|arg(max|min)|cum\w+|scatter-\w+")
TRANSFORMED = re.compile(r"\w+\(|\)")


class Flops(NamedTuple):
    """The FLOPs of one call of a function."""

    total: int
    scopes: Mapping[str, int]  # by name scope, such as "MLP/Dense_0", with those of gradients; "" outside of all
    least: frozenset[str]  # operations whose own FLOPs are not known and of which only the least is counted


def flops(function: Callable[..., Any], *arguments: Any) -> Flops:
    """The FLOPs of `function(*arguments)`; arguments may be pytrees of `jax.ShapeDtypeStruct` instead of arrays.

    A matrix product of (M, K) and (K, N) counts 2 M N K. So does a convolution, of as many products as meet a number of
    the input instead of padding: its gradients then cost what it does itself. Reductions count one for each number that
    they take, any other operation one for each number that it gives, `exp` like `+`; whole numbers, and what only moves
    numbers, count nothing. Loops count by their length, of branches the greatest counts, of `platform_dependent` the
    default, and nothing counts on which no result depends. Where the length is not known (`while`) one trip is counted,
    which `least` tells, as it tells of what libraries do.

    >>> dense = flops(lambda inputs, kernel: jnp.tanh(inputs @ kernel), jnp.ones((5, 3)), jnp.ones((3, 2)))
    >>> dense.total == 2 * 5 * 3 * 2 + 5 * 2
    True
    """
    closed = jax.make_jaxpr(function)(*arguments)
    return _counted(closed.jaxpr, [True] * len(closed.jaxpr.outvars), ())


def _counted(jaxpr: Jaxpr, wanted: Sequence[bool], outer: tuple[str, ...]) -> Flops:
    scopes: Counter[str] = Counter()
    least: set[str] = set()
    for equation, used in _used(jaxpr, wanted):
        named = TRANSFORMED.sub("", str(equation.source_info.name_stack)).strip("/")
        scope = (*outer, named) if named else outer
        trips, inner = _inside(equation, used, scope)
        for part in inner:
            least |= part.least
            for path, count in part.scopes.items():
                scopes[path] += trips * count
        name = equation.primitive.name
        if name in _OPAQUE or (name == "while" and any(part.total for part in inner)):
            least.add(name)
        if own := 0 if inner else _own(equation):
            scopes["/".join(scope)] += own
    return Flops(sum(scopes.values()), dict(scopes), frozenset(least))


def _used(jaxpr: Jaxpr, wanted: Sequence[bool]) -> list[tuple[JaxprEqn, list[bool]]]:
    """The equations on which wanted results depend, each with which of its own results are used."""
    live = {var for var, want in zip(jaxpr.outvars, wanted, strict=True) if want and not isinstance(var, Literal)}
    found = []
    for equation in reversed(jaxpr.eqns):
        used = [var in live for var in equation.outvars]
        if any(used) or equation.effects:
            found.append((equation, used))
            live.update(var for var in equation.invars if not isinstance(var, Literal))
    return found[::-1]


def _inside(equation: JaxprEqn, used: list[bool], scope: tuple[str, ...]) -> tuple[int, list[Flops]]:
    """How often an equation runs what it holds, and what that costs once; [] for one that holds nothing."""
    name, params = equation.primitive.name, equation.params
    if name in _MOVES | _OPAQUE or REDUCTIONS.fullmatch(name) or "window_dimensions" in params:
        return 1, []
    if name == "cond":
        branches = [_counted(branch.jaxpr, used, scope) for branch in params["branches"]]
        platforms = params.get("branches_platforms") or ()
        return 1, [branches[platforms.index(None)] if None in platforms else max(branches, key=lambda b: b.total)]
    trips = params["length"] if name == "scan" else 1
    if name == "shard_map":
        # Versions of JAX name the axes by which it is split differently.
        split = next(params[key] for key in ("newly_manual_axes", "manual_axes") if key in params)
        trips = math.prod(params["mesh"].shape[axis] for axis in split)
    # What a loop gives are its next arguments, of which all are used.
    same = name not in ("scan", "while")
    parts = list(jaxprs_in_params(params))
    return trips, [_counted(part, used if same else [True] * len(part.outvars), scope) for part in parts]


def _own(equation: JaxprEqn) -> int:
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
    if "window_dimensions" in params:
        # The gradient of a window takes one number for each window, the window itself gives it.
        windows = _size(inputs[0]) if name.startswith("select_and_scatter") else size
        return windows * math.prod(params["window_dimensions"])
    if name.startswith("scatter-"):
        return _size(inputs[2])
    return _size(inputs[0]) if REDUCTIONS.fullmatch(name) else size


def _products(images: Sequence[int], kernel: Sequence[int], outputs: Sequence[int], params: dict[str, Any]) -> int:
    """How many products of a number of the input and one of the kernel a convolution adds up."""
    numbers = params["dimension_numbers"]
    count = outputs[numbers.out_spec[0]] * outputs[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    axes = zip(
        *(spec[2:] for spec in (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)),
        *(params[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")),
        strict=True,
    )
    for of_images, of_kernel, of_outputs, stride, (low, _), lhs_dilation, rhs_dilation in axes:
        starts = stride * np.arange(outputs[of_outputs])[:, None] - low
        places = starts + rhs_dilation * np.arange(kernel[of_kernel])
        inside = (places >= 0) & (places <= (images[of_images] - 1) * lhs_dilation) & (places % lhs_dilation == 0)
        count *= int(inside.sum())
    return count


def _is_float(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, np.inexact)


def _size(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ()))
