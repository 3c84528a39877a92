"""`jax.jit` with XLA's compiler options for the platform, on the mesh of the arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import jax
from jax.extend.core import Jaxpr, get_opaque_trace_state, jaxprs_in_params

from jaxdl._values import Key, SameObject, Values, read_values, with_rates
from jaxdl.distributed.sharding import mesh_of

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
MOST_PROGRAMS = 64  # compiled functions that one `jit` keeps: 64 of a small network take some 400 MB
MOST_RECORDS = 8  # plans and models of which the values are held: they hold what the user's functions hold
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


class JitFunction(Protocol[P, R]):
    """A function of `jit`."""

    def __call__(self, *arguments: P.args, **keywords: P.kwargs) -> R:
        """Return the result of the function."""

    def lower(self, *arguments: P.args, **keywords: P.kwargs) -> jax.stages.Lowered:
        """Return the lowered function for these arguments."""

    def eval_shape(self, *arguments: P.args, **keywords: P.kwargs) -> R:
        """Return the shapes and dtypes of the result."""


def jit(
    function: Callable[P, R], *, static_argnames: str | tuple[str, ...], once: bool = False, name: str = ""
) -> JitFunction[P, R]:
    """Return `jax.jit` of a function, with `compiler_options` and on the mesh of the arguments, if any.

    Static arguments are compared by what they compute with (`_values`), so that an equal plan that is made anew, or one
    whose optimizer has another learning rate, finds the compiled function again. The last MOST_PROGRAMS of them are
    kept; the others are compiled again.

    Inside of another transformation it is a plain `jax.jit`. The first call decides on the options, because a query of
    the platform starts it.

    once: whether the function runs a single time, so that a fast compilation is better than fast code.
    name: name of the compiled function; "" for the function's own name.
    """
    statics = (static_argnames,) if isinstance(static_argnames, str) else static_argnames
    parameters = tuple(inspect.signature(function).parameters)
    if name:
        # JAX reads the name from the function. A partial has its own name, and adds no stack frame.
        function = functools.update_wrapper(functools.partial(function), function)
        function.__name__ = name
    inner = jax.jit(function, static_argnames=static_argnames)
    functions: dict[Any, Any] = {}  # compiled for some static arguments, the last one used at the end
    constant_rates, with_effects = set[Any](), set[Any]()

    def find(general: Any, fixed: dict[str, tuple[Any, Values]], convolves: bool) -> tuple[Any, Any, dict[str, _Rates]]:
        """Return the full key of a compiled function, the function, and the static arguments that hold rates."""
        key, rates = general, {name: _Rates(*each) for name, each in fixed.items() if each[1].numbers}
        if general in constant_rates:
            key, rates = (*key, *(values.numbers for _, values in fixed.values())), {}
        if general in with_effects:
            # Where Python is called, an equal function may have other effects: it fills another list, say.
            key = *key, *(SameObject(value) for value, _ in fixed.values())
        if key not in functions:
            # A partial of its own: JAX keeps what is compiled by the function, as long as that lives.
            constants = {name: value for name, (value, _) in fixed.items() if name not in rates}
            one = functools.update_wrapper(functools.partial(function, **constants), function)
            return key, jax.jit(one, compiler_options=compiler_options(once=once, convolves=convolves)), rates
        return key, functions[key], rates

    def apply(method: str, /, *arguments: Any, **keywords: Any) -> Any:
        """Call a method of the compiled function for these arguments."""
        # With `jax.disable_jit` no pytree is unflattened, and `_Rates` would stay what they are.
        disabled = jax.config.jax_disable_jit  # type: ignore[attr-defined]
        if method == "__call__" and (disabled or _state() != _OUTSIDE):
            return inner(*arguments, **keywords)
        with _mesh_of(*arguments, *keywords.values()):
            convolves = has_convolution(*arguments, *keywords.values())
            if any(each in statics for each in parameters[: len(arguments)]):
                keywords, arguments = {**dict(zip(parameters, arguments, strict=False)), **keywords}, ()
            fixed = _read({name: keywords[name] for name in statics if name in keywords})
            others = {name: value for name, value in keywords.items() if name not in statics}
            general = convolves, *((name, values.key) for name, (_, values) in fixed.items())
            key, one, rates = find(general, fixed, convolves)
            try:
                result = getattr(one, method)(*arguments, **others, **rates)
            except Exception:
                if key in functions or not rates:
                    raise
                # An optimizer that decides on the value of a rate needs it as a constant.
                constant_rates.add(general)
                key, one, rates = find(general, fixed, convolves)
                try:
                    result = getattr(one, method)(*arguments, **others)
                except Exception:
                    constant_rates.discard(general)
                    raise
            if key not in functions and _calls_python(one.trace(*arguments, **others, **rates).jaxpr.jaxpr):
                with_effects.add(general)
                key, _, _ = find(general, fixed, convolves)
            functions.pop(key, None)
            functions[key] = one
            if len(functions) > MOST_PROGRAMS and (oldest := functions.pop(next(iter(functions)), None)) is not None:
                oldest.clear_cache()
            return result

    result: Any = functools.update_wrapper(functools.partial(apply, "__call__"), function)
    result.lower, result.eval_shape = functools.partial(apply, "lower"), functools.partial(apply, "eval_shape")
    return cast(JitFunction[P, R], result)


@jax.tree_util.register_pytree_node_class
class _Rates:
    """A static argument as a pytree: the rates of its optimizer are the leaves, and the rest is the structure.

    JAX hands the function the static argument itself, with traced rates. Equal structures compute the same.
    """

    def __init__(self, value: Any, values: Values) -> None:
        self.value, self.values = value, values

    def __hash__(self) -> int:
        return hash(self.values.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rates) and self.values.key == other.values.key

    def tree_flatten(self) -> tuple[tuple[float, ...], _Rates]:
        return self.values.numbers, self

    @classmethod
    def tree_unflatten(cls, structure: _Rates, numbers: Any) -> Any:
        return with_rates(structure.value, structure.values, numbers)


# By id, of an object that lives as long as its entry; with the number of records that were new until then.
_read_last: dict[int, tuple[Any, Values, int]] = {}
_newest = 0


def _read(arguments: dict[str, Any]) -> dict[str, tuple[Any, Values]]:
    """Return static arguments with what they compute with.

    A record of functions is read once until a new record comes: a notebook changes a global between two runs, each of
    which makes its plan anew, and then calls the same model again.
    """
    global _newest
    records = {
        name: value
        for name, value in arguments.items()
        if callable(value) or (isinstance(value, tuple) and hasattr(value, "_fields"))
    }
    entries = {name: _read_last.get(id(value)) for name, value in records.items()}
    if any(entry is None or entry[0] is not records[name] for name, entry in entries.items()):
        _newest += 1
    result = {}
    for name, value in arguments.items():
        if name not in records:
            result[name] = value, Values(Key((type(value), value)), (), {})
            continue
        entry = entries[name]
        if entry is None or entry[0] is not value or entry[2] != _newest:
            entry = value, read_values(value, rates=True), _newest
            _read_last.pop(id(value), None)
            _read_last[id(value)] = entry
            if len(_read_last) > MOST_RECORDS:
                _read_last.pop(next(iter(_read_last)), None)
        result[name] = value, entry[1]
    return result


def _calls_python(jaxpr: Jaxpr) -> bool:
    """Return whether a compiled function calls functions of the user while it runs."""
    if not jaxpr.effects:
        return False
    for equation in jaxpr.eqns:
        called = getattr(equation.params.get("callback"), "callback_func", None)
        is_known = (getattr(called, "__module__", None) or "").startswith("jaxdl.")
        if equation.effects and "callback" in equation.params and not is_known:
            return True
        if any(map(_calls_python, jaxprs_in_params(equation.params))):
            return True
    return False


def _mesh_of(*arguments: object) -> AbstractContextManager[Any]:
    mesh = mesh_of(*arguments)
    return nullcontext() if mesh is None else jax.set_mesh(mesh)
