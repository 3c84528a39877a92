"""`jax.jit` with XLA's compiler options for the platform, on the mesh of the arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import jax
from jax.extend.core import get_opaque_trace_state

from jaxdl.distributed.sharding import mesh_of

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
# On a CPU some versions of XLA give convolutions to a library (YNNPACK) that is five times slower than XLA's own code.
# These options give it matrix products only. For tables one at a time, because fused ones wait for each other.
_YNN_FUSION = "xla_cpu_experimental_ynn_fusion_type"
TABLES_ON_CPU = {_YNN_FUSION: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
# XLA's older emitters are faster for elementwise operations beside convolutions; elsewhere the newer ones are.
IMAGES_ON_CPU = {_YNN_FUSION: "LIBRARY_FUSION_TYPE_DOT", "xla_cpu_use_fusion_emitters": False}
# Less optimization compiles a function that runs once in a third of the time, with bit-identical results.
ONCE_ON_CPU = IMAGES_ON_CPU | {"xla_backend_optimization_level": 1}
_state = functools.partial(get_opaque_trace_state, convention="flax")
# In a new thread, because this module may be imported while a function is traced.
with ThreadPoolExecutor(1) as _pool:
    _OUTSIDE = _pool.submit(_state).result()


@functools.cache
def compiler_options(*, once: bool = False, convolves: bool = False) -> dict[str, Any]:
    """Return the options for `jax.jit(..., compiler_options=...)` on this platform that its version of XLA knows.

    once: whether the function runs a single time. convolves: whether it has convolutions.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = ONCE_ON_CPU if once else IMAGES_ON_CPU if convolves else TABLES_ON_CPU
    # XLA refuses to compile with an unknown option.
    return {name: value for name, value in options.items() if is_known_option(name, value)}


@functools.cache
def is_known_option(option: str, value: object) -> bool:
    """Return whether XLA compiles with an option."""
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return False
    return True


def has_convolution(*arguments: object) -> bool:
    """Return whether images (N, H, W, C) are the first leaf of an argument, and kernels (h, w, C, K) another leaf.

    Of a dataset of several inputs, and of a dict, list or tuple of arrays, every array may be images.
    """
    # The first leaves are checked first: to check all takes as long as a step of a small table.
    trees = [leaves for leaves in map(jax.tree.leaves, arguments) if leaves]
    several = (leaf for argument in arguments for leaf in _several_inputs(argument))
    if not any(getattr(leaf, "ndim", 0) >= 4 for leaf in (*(leaves[0] for leaves in trees), *several)):
        return False
    return len({leaf.shape[-3:] for leaves in trees for leaf in leaves if getattr(leaf, "ndim", 0) >= 4}) > 1


def _several_inputs(argument: Any) -> list[Any]:
    """Return the arrays of a dataset's inputs, or of an argument, where they are a container of arrays."""
    # A streaming dataset has windows of batches.
    inputs = getattr(getattr(argument, "batches", argument), "inputs", argument)
    is_container = type(inputs) in (dict, list, tuple) or (inputs is not argument and not hasattr(inputs, "shape"))
    return jax.tree.leaves(inputs) if is_container else []


def is_traced(value: object) -> bool:
    """Return whether a value is a tracer, which has no values to check."""
    return isinstance(value, jax.core.Tracer)


class JitFunction(Protocol[P, R]):
    """A function of `jit`."""

    def __call__(self, *arguments: P.args, **keywords: P.kwargs) -> R:
        """Return the result of the function."""

    def lower(self, *arguments: P.args, **keywords: P.kwargs) -> jax.stages.Lowered:
        """Return the lowered function for these arguments."""

    def on(self, *arguments: Any) -> Any:
        """Return the function of `jax.jit` for these arguments, which must not be on a mesh."""

    def eval_shape(self, *arguments: P.args, **keywords: P.kwargs) -> R:
        """Return the shapes and dtypes of the result."""


def jit(
    function: Callable[P, R], *, static_argnames: str | tuple[str, ...], once: bool = False, name: str = ""
) -> JitFunction[P, R]:
    """Return `jax.jit` of a function, with `compiler_options` and on the mesh of the arguments, if any.

    Inside of another transformation it is a plain `jax.jit`. The first call decides on the options, because a query of
    the platform starts it.

    once: whether the function runs a single time, so that a fast compilation is better than fast code.
    name: name of the compiled function; "" for the function's own name.
    """
    if name:
        # JAX reads the name from the function. A partial has its own name, and adds no stack frame.
        function = functools.update_wrapper(functools.partial(function), function)
        function.__name__ = name
    inner = jax.jit(function, static_argnames=static_argnames)

    @functools.cache
    def compiled(convolves: bool) -> Any:
        options = compiler_options(once=once, convolves=convolves)
        return jax.jit(function, static_argnames=static_argnames, compiler_options=options)

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        if _state() != _OUTSIDE:
            return inner(*arguments, **keywords)
        with _mesh_of(*arguments, *keywords.values()):
            result: R = on(*arguments, *keywords.values())(*arguments, **keywords)
            return result

    def on(*arguments: Any) -> Any:
        return compiled(has_convolution(*arguments))

    def lower(*arguments: P.args, **keywords: P.kwargs) -> jax.stages.Lowered:
        with _mesh_of(*arguments, *keywords.values()):
            lowered: jax.stages.Lowered = on(*arguments, *keywords.values()).lower(*arguments, **keywords)
            return lowered

    def eval_shape(*arguments: P.args, **keywords: P.kwargs) -> R:
        with _mesh_of(*arguments, *keywords.values()):
            shapes: R = inner.eval_shape(*arguments, **keywords)
            return shapes

    result: Any = call
    result.lower, result.on, result.eval_shape = lower, on, eval_shape
    return cast(JitFunction[P, R], result)


def _mesh_of(*arguments: object) -> AbstractContextManager[Any]:
    mesh = mesh_of(*arguments)
    return nullcontext() if mesh is None else jax.set_mesh(mesh)
