"""Functions that are compiled as a whole, with the options that XLA needs to be fast."""

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
# On a CPU, some versions of XLA hand convolutions to a library (YNNPACK) that takes five times as long as XLA's own
# code. With these they hand it matrix products alone: of tables one by one, since several at once wait for each other.
_HANDED = "xla_cpu_experimental_ynn_fusion_type"
TABLES_ON_CPU = {_HANDED: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
# Around convolutions XLA's older code for elementwise work is faster; without any the newer one is, twice as fast.
IMAGES_ON_CPU = {_HANDED: "LIBRARY_FUSION_TYPE_DOT", "xla_cpu_use_fusion_emitters": False}
# What runs once is compiled in a third of the time where XLA takes less pains, to the same bits.
ONCE_ON_CPU = IMAGES_ON_CPU | {"xla_backend_optimization_level": 1}
_state = functools.partial(get_opaque_trace_state, convention="flax")
# In a thread of its own, because this module may be imported while a function is traced.
with ThreadPoolExecutor(1) as _pool:
    _OUTSIDE = _pool.submit(_state).result()


@functools.cache
def compiler_options(*, once: bool = False, convolves: bool = False) -> dict[str, Any]:
    """What to give to `jax.jit(..., compiler_options=...)` so that convolutions are fast; {} where nothing is needed.

    Options that this version of XLA does not know are left out: it would refuse to compile. `once`: for a function that
    runs a single time, so that to compile it is what takes long. `convolves`: for one that is not only of tables.
    """
    if jax.default_backend() != "cpu":
        return {}
    wanted = ONCE_ON_CPU if once else IMAGES_ON_CPU if convolves else TABLES_ON_CPU
    return {name: value for name, value in wanted.items() if known(name, value)}


@functools.cache
def known(option: str, value: object) -> bool:
    """Whether XLA compiles with an option."""
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return False
    return True


def has_convolution(*arguments: object) -> bool:
    """Whether images (N, H, W, C) are among the arguments, first of one of them, and kernels too: (h, w, C, K)."""
    # First by the first leaf of each, as the mesh: to look at all takes as long as a step of a small table.
    trees = [leaves for leaves in map(jax.tree.leaves, arguments) if leaves]
    if not any(getattr(leaves[0], "ndim", 0) >= 4 for leaves in trees):
        return False
    return len({leaf.shape[-3:] for leaves in trees for leaf in leaves if getattr(leaf, "ndim", 0) >= 4}) > 1


def is_traced(value: object) -> bool:
    """Whether a value is not known yet, because a function is being transformed: it cannot be checked then."""
    return isinstance(value, jax.core.Tracer)


class Program(Protocol[P, R]):
    """A function that is compiled as a whole."""

    def __call__(self, *arguments: P.args, **keywords: P.kwargs) -> R:
        """What the function gives."""

    def lower(self, *arguments: P.args, **keywords: P.kwargs) -> jax.stages.Lowered:
        """The program that such a call would run; `.compile()` gives it as it runs, nothing is computed."""

    def on(self, *arguments: Any) -> Any:
        """The function of `jax.jit` that a call with such arguments would take, where none lies on a mesh."""

    def eval_shape(self, *arguments: P.args, **keywords: P.kwargs) -> R:
        """The shapes and dtypes of what such a call would give; nothing is compiled."""


def jit(
    function: Callable[P, R], *, static_argnames: str | tuple[str, ...], once: bool = False, name: str = ""
) -> Program[P, R]:
    """`jax.jit` with `compiler_options`, on the mesh where the arguments lie if they lie on one.

    Inside of another transformation, which alone decides on both, without. Nothing is decided before the first call: to
    ask for the platform starts it. `once`: for a function that runs a single time, which is compiled sooner. `name`: of
    what is compiled, in place of the function's.
    """
    if name:
        # JAX takes the name of what it compiles from the function; a partial has one of its own and is no frame.
        function = functools.update_wrapper(functools.partial(function), function)
        function.__name__ = name
    inner = jax.jit(function, static_argnames=static_argnames)

    @functools.cache
    def whole(convolving: bool) -> Any:
        options = compiler_options(once=once, convolves=convolving)
        return jax.jit(function, static_argnames=static_argnames, compiler_options=options)

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        if _state() != _OUTSIDE:
            return inner(*arguments, **keywords)
        with _mesh_of(*arguments, *keywords.values()):
            result: R = on(*arguments, *keywords.values())(*arguments, **keywords)
            return result

    def on(*arguments: Any) -> Any:
        return whole(has_convolution(*arguments))

    def lower(*arguments: P.args, **keywords: P.kwargs) -> jax.stages.Lowered:
        with _mesh_of(*arguments, *keywords.values()):
            lowered: jax.stages.Lowered = on(*arguments, *keywords.values()).lower(*arguments, **keywords)
            return lowered

    def eval_shape(*arguments: P.args, **keywords: P.kwargs) -> R:
        with _mesh_of(*arguments, *keywords.values()):
            shapes: R = inner.eval_shape(*arguments, **keywords)
            return shapes

    compiled: Any = call
    compiled.lower, compiled.on, compiled.eval_shape = lower, on, eval_shape
    return cast(Program[P, R], compiled)


def _mesh_of(*arguments: object) -> AbstractContextManager[Any]:
    mesh = mesh_of(*arguments)
    return nullcontext() if mesh is None else jax.set_mesh(mesh)
