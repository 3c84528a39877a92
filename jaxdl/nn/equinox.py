"""Equinox modules as `Model(init, apply)`, and back."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from jaxdl._checks import ADAPTERS, package_of
from jaxdl.errors import InputError
from jaxdl.nn.adapters import Arguments, _arguments, _can_trace, _parameters, _Signature, named_switch
from jaxdl.nn.rewriting import with_fast_convolutions
from jaxdl.types import Array, Model, PyTree, Variables

if TYPE_CHECKING:
    import equinox as eqx


Path = tuple[str, ...]  # the place of an array in a module, such as ("layers", "0", "weight")


def from_equinox(
    original: eqx.Module | tuple[eqx.Module, eqx.nn.State] | Callable[[Array], Any],
    *,
    train: str | None = "auto",
    inverted: bool = False,
    mask: str | None = None,
) -> Model:
    """Return an Equinox module of one example as a Model of batches (B, ...).

    original: a module, whose arrays are the initial values; the pair (module, state) of `eqx.nn.make_with_state`; or a
    function of a key that returns one of them, and draws other initial values for each seed of a run.

    The module is mapped over the batch. It gets `state` where it has any, and `key`, which differs for each example and
    step, where its `__call__` takes it. Predictions use `eqx.nn.inference_mode`; training leaves the flags of the
    module as they are. train: another argument of `__call__` that switches to training mode; None if there is none. By
    default the argument named `train`, `inference`, `enable_dropout` or alike. inverted: whether that switch is True in
    evaluation. mask: the argument that takes the mask of the example, a bool scalar, False for padding. BatchNorm
    leaves padding out without it.

    Floating arrays are trained. The state and other arrays are stats. `to_equinox` returns the trained module.

    Raises InputError where Equinox is missing, for another object, for an input or a switch that stays unset, and for
    state of other layers than BatchNorm and SpectralNorm in a module that takes no mask.

    >>> import equinox as eqx
    >>> model = from_equinox(lambda key: eqx.nn.MLP(4, 3, width_size=8, depth=1, key=key))
    >>> variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
    >>> model.apply(variables, jnp.ones((2, 4)), train=False)[0].shape
    (2, 3)
    >>> variables.params["layers"]["0"]["weight"].shape
    (8, 4)
    """
    network = _network(original, train, inverted, mask)
    return Model(_Init(network), with_fast_convolutions(_Apply(network)))


def to_equinox(original: Any, variables: Variables) -> Any:
    """Return the Equinox module with these variables, from what `from_equinox` was given.

    A module with state is returned as the pair (module, state), as by `eqx.nn.make_with_state`. For predictions, set
    `eqx.nn.inference_mode(module)`.

    Raises InputError for what `from_equinox` refuses, and for variables of another module.

    >>> import equinox as eqx
    >>> module = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    >>> variables = Variables({"weight": jnp.array([[1.0, 2.0]]), "bias": jnp.zeros(1)}, {})
    >>> to_equinox(module, variables)(jnp.array([3.0, 4.0]))
    Array([11.], dtype=float32)
    """
    parts = _parts("to_equinox", original)
    arrays, shapes = _arrays(variables), _arrays(parts.split(parts.module, parts.state))
    for path in [*shapes, *arrays]:
        holds, expects = (_describe(tree.get(path)) for tree in (arrays, shapes))
        if holds != expects:
            raise InputError(
                f"variables must be those of one {parts.name}, got {holds} at {'/'.join(path)}, where the module has "
                f"{expects}. Give the variables of a Model that from_equinox has made of this module."
            )
    module, state = parts.restore(jax.tree.map(jnp.asarray, variables))
    return (module, state) if parts.paths else module


class _Parts(NamedTuple):
    """A module and its state, with shapes and dtypes in place of arrays."""

    module: Any
    state: Any
    paths: tuple[Path, ...]  # of the arrays of the state

    @property
    def name(self) -> str:
        return type(self.module).__name__

    def split(self, module: Any, state: Any) -> Variables:
        """Return the arrays of a module and its state as nested dicts."""
        params: dict[Path, Any] = {}
        stats: dict[Path, Any] = dict(zip(self.paths, jax.tree.leaves(state), strict=True))
        for path, leaf in _leaves(module):
            if _is_array(leaf):
                (params if jnp.issubdtype(leaf.dtype, jnp.inexact) else stats)[path] = leaf
        return Variables(unflatten_dict(params), unflatten_dict(stats))

    def restore(self, variables: Variables) -> tuple[Any, Any]:
        """Return the module and the state with these variables."""
        arrays = _arrays(variables)
        for path in self.paths + tuple(path for path, leaf in _leaves(self.module) if _is_array(leaf)):
            if path not in arrays:
                raise InputError(f"variables must be those of one {self.name}, got no {'/'.join(path)}.")
        leaves = [arrays[path] if _is_array(leaf) else leaf for path, leaf in _leaves(self.module)]
        state = jax.tree.unflatten(jax.tree.structure(self.state), [arrays[path] for path in self.paths])
        return jax.tree.unflatten(jax.tree.structure(self.module), leaves), state


@dataclasses.dataclass(frozen=True, eq=False)
class _Network:
    """A module without its arrays, and how it is called. Two networks of one original are equal."""

    original: Any
    source: Any  # the original, with a state that no call of the original uses up
    options: tuple[Any, ...]
    parts: _Parts
    arguments: Arguments
    takes_state: bool
    takes_key: bool
    axis: Any  # the name of the batch axis

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Network) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        import equinox as eqx

        values = self.original if isinstance(self.original, tuple) else (self.original,)
        # Modules by identity, because arrays have no hash; functions as Python compares them.
        parts = (id(value) if isinstance(value, (eqx.Module, eqx.nn.State)) else value for value in values)
        return (*parts, self.options)

    def call(
        self, variables: Variables, inputs: Array, train: bool, key: Array | None, mask: Array | None
    ) -> tuple[Any, PyTree]:
        """Return the outputs and the new stats."""
        import equinox as eqx

        module, state = self.parts.restore(variables)
        if not train:
            module = eqx.nn.inference_mode(module)
        size = jax.tree.leaves(inputs)[0].shape[0]
        keys = jax.random.split(key, size) if self.takes_key and key is not None else None

        def call_one(example: Any, key: Array | None, mask: Array | None) -> tuple[Any, Any]:
            positional, keywords = self.arguments.bind(example, train, mask)
            if self.takes_key:
                keywords["key"] = key
            layer = _with_mask(module, mask) if train and mask is not None else module
            if not self.takes_state:
                return layer(*positional, **keywords), state
            result = layer(*positional, **keywords, state=state)
            if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], eqx.nn.State)):
                raise InputError(f"{self.parts.name}.__call__ takes state, and must return (outputs, state).")
            return result

        outputs, state = jax.vmap(call_one, out_axes=(0, None), axis_name=self.axis)(inputs, keys, mask)
        new = dict(zip(self.parts.paths, jax.tree.leaves(state), strict=True))
        return outputs, unflatten_dict({**flatten_dict(variables.stats), **new}) if train and new else variables.stats


@dataclasses.dataclass(frozen=True)
class _Init:
    network: _Network

    def __value_key__(self) -> Any:
        network = self.network
        return network if network.takes_state else (network.original, network.options)

    def __call__(self, key: Array, inputs: Array) -> Variables:
        return jax.tree.map(jnp.asarray, self.network.parts.split(*_made("from_equinox", self.network.source, key)))


@dataclasses.dataclass(frozen=True)
class _Apply:
    network: _Network

    def __value_key__(self) -> Any:
        network = self.network
        return network if network.takes_state else (network.parts.module, network.options)  # not the arrays

    def __call__(
        self, variables: Variables, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        call = self.network.call
        try:
            return call(variables, inputs, train, key, mask)
        except Exception as error:  # A module without a key may raise any error.
            if key is None and self.network.takes_key:
                some = jax.random.key(0)
                if _can_trace(lambda: jax.eval_shape(lambda: call(variables, inputs, train, some, mask))):
                    raise InputError(
                        f"{self.network.parts.name} draws random numbers where no key is given, as in evaluation. Let "
                        "it draw where its key is not None only, as eqx.nn.Dropout does in inference mode."
                    ) from error
            raise


def _parts(function: str, original: Any) -> _Parts:
    """Return the parts of a module. Raises InputError for another object than `from_equinox` takes."""
    try:
        import equinox as eqx
    except ImportError as error:
        raise InputError(f"{function} needs the package equinox. Write pip install equinox.") from error
    _check_original(function, original)
    module, state = eqx.filter_eval_shape(lambda key: _made(function, original, key), jax.random.key(0))
    parts = _Parts(module, state, _state_paths(module, state))
    names = [*parts.paths, *(path for path, leaf in _leaves(module) if _is_array(leaf))]
    double = next((path for path in names if names.count(path) > 1), None)
    if double is not None:
        raise InputError(f"{parts.name} holds two arrays of the name {'/'.join(double)}. Rename one.")
    return parts


def _network(original: Any, train: str | None, inverted: bool, mask: str | None) -> _Network:
    """Return how a module is called. Raises InputError for a module that cannot be called with batches."""
    parts, options = _parts("from_equinox", original), (train, inverted, mask)
    # After the check that it is installed.
    import equinox as eqx

    module, name = parts.module, parts.name
    if not callable(module):
        raise InputError(f"from_equinox needs a module with a __call__ of one example, got {name}, which has none.")
    takes = {parameter.name: parameter for parameter in _parameters(module, eqx.Module)}
    if parts.paths and "state" not in takes:
        raise InputError(f"{name} holds state, and its __call__ must take state and return (outputs, state).")
    if mask is None and "mask" in takes and takes["mask"].default is inspect.Parameter.empty:
        raise InputError(
            f'{name}.__call__ needs mask. Write from_equinox(module, mask="mask") if that is a bool scalar, False for '
            "padding; else give it a default value."
        )
    unmasked = _unmasked_path(module)
    if unmasked is not None and mask is None:
        raise InputError(
            f"{name} has state at {'/'.join(unmasked)} that may count the padding of a short batch. Let its __call__ "
            "take mask (a bool scalar, False for padding), leave such examples out of the state, and write "
            'from_equinox(module, mask="mask").'
        )
    axes = {axis: None for layer in _norms(module) for axis in _axis_names(layer)}
    if len(axes) > 1:
        names = ", ".join(map(str, axes))
        raise InputError(f"the BatchNorm layers of {name} must have one axis_name, that of the batch, got {names}.")
    # Equinox's layers follow their field where the argument of its name is None.
    settled = {key for key, parameter in takes.items() if parameter.default is None and hasattr(module, key)}
    signature = _Signature([p for key, p in takes.items() if key not in ("key", "state")], settled, {})
    if train == "auto":
        train, inverted = named_switch(signature, inverted)
    arguments = _arguments("from_equinox", name, signature, train, inverted, mask)
    required = "state" in takes and takes["state"].default is inspect.Parameter.empty
    takes_state = "state" in takes and (bool(parts.paths) or required)
    source = (original[0], jax.tree.map(lambda leaf: leaf, original[1])) if isinstance(original, tuple) else original
    return _Network(original, source, options, parts, arguments, takes_state, "key" in takes, next(iter(axes), "batch"))


def _check_original(function: str, original: Any) -> None:
    import equinox as eqx

    pair = isinstance(original, tuple) and [*map(type, original[1:])] == [eqx.nn.State]
    module = original[0] if pair else original
    wrapped = getattr(module, "__wrapped__", None)
    if isinstance(wrapped, eqx.Module):
        raise InputError(
            f"{function} needs the {type(wrapped).__name__} itself, without jax.vmap or jax.jit around it: jaxdl maps "
            "it over the batch, and compiles it. Give the module."
        )
    if isinstance(module, eqx.Module):
        return
    kind = module.__name__ if isinstance(module, type) else type(module).__name__
    line = ADAPTERS.get(package_of(module))
    if line is not None and package_of(module) != "equinox":
        raise InputError(f"{function} needs an Equinox module, got {kind}. Use {line}.")
    if isinstance(original, Model):
        raise InputError(f"{function} needs an Equinox module, got a Model. Give the module that the Model is made of.")
    if isinstance(module, type) or pair or not callable(module):
        raise InputError(
            f"{function} needs an Equinox module, or a function of a key that makes one, got {kind}. Write "
            f"{function}(lambda key: {kind if isinstance(module, type) else 'Net'}(..., key=key)"
            f"{')' if function == 'from_equinox' else ', variables)'}."
        )


def _made(function: str, original: Any, key: Array) -> tuple[Any, Any]:
    """Return a module without the initial values of its state, and the State."""
    import equinox as eqx

    made = original if isinstance(original, (tuple, eqx.Module)) else original(key)
    if isinstance(made, tuple) and [*map(type, made[1:])] == [eqx.nn.State]:
        return made[0], made[1]
    if not isinstance(made, eqx.Module):
        raise InputError(
            f"{function} needs a function of a key that returns an Equinox module, got {type(made).__name__}."
        )
    try:
        # Names the state by its place in the module, so that all modules of one class have the same names.
        return eqx.nn.make_with_state(lambda: made)()
    except ValueError as error:
        raise InputError(
            f"{type(made).__name__} comes without its state. Write {function}((module, state)) with both values of "
            "eqx.nn.make_with_state."
        ) from error


def _leaves(module: Any) -> list[tuple[Path, Any]]:
    """Return the leaves of a module by their places."""
    return [(_path(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(module)]


def _path(keys: Any) -> Path:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def _nodes(module: Any, *kinds: type) -> list[tuple[Path, Any]]:
    """Return the outermost parts of a module that are of these types, by their places."""
    parts = jax.tree_util.tree_leaves_with_path(module, is_leaf=lambda part: isinstance(part, kinds))
    return [(_path(keys), part) for keys, part in parts if isinstance(part, kinds)]


def _state_paths(module: Any, state: Any) -> tuple[Path, ...]:
    """Return the places of the arrays of a state: that of the layer, and the field's name with a number."""
    import equinox as eqx

    numbers = jax.tree.unflatten(jax.tree.structure(state), range(len(jax.tree.leaves(state))))
    paths: dict[int, Path] = {}
    for path, index in _nodes(module, eqx.nn.StateIndex):
        try:
            leaves = jax.tree.leaves(numbers.get(index))
        except KeyError:
            leaves = []
        for place, number in enumerate(leaves):
            # In one level with the arrays of the layer, for the table of `summary`.
            name = path[-1] if len(leaves) == 1 else f"{path[-1]}_{place}"
            paths.setdefault(number, (*path[:-1], name))
        if not leaves:
            raise InputError(
                f"the state has no values of {'/'.join(path)}. Give the state that was made with the module."
            )
    if len(paths) < len(jax.tree.leaves(state)):
        raise InputError("state must be that of the module, got more values than the module has.")
    return tuple(paths[number] for number in range(len(paths)))


def _norms(module: Any) -> list[Any]:
    import equinox as eqx

    return [layer for _, layer in _nodes(module, eqx.nn.BatchNorm)]


def _axis_names(layer: Any) -> tuple[Any, ...]:
    return tuple(layer.axis_name) if isinstance(layer.axis_name, (tuple, list)) else (layer.axis_name,)


def _unmasked_path(module: Any) -> Path | None:
    """Return the place of state that may count padding; None if there is none."""
    import equinox as eqx

    # Spectral norms are statistics of the parameters alone.
    layers = _nodes(module, eqx.nn.BatchNorm, eqx.nn.SpectralNorm)
    counted = [path for path, layer in layers if type(layer) in (eqx.nn.BatchNorm, eqx.nn.SpectralNorm)]
    places = [path for path, _ in _nodes(module, eqx.nn.StateIndex)]
    return next((path for path in places if not any(path[: len(each)] == each for each in counted)), None)


def _with_mask(module: Any, mask: Array) -> Any:
    """Return the module of one example with BatchNorm layers that know whether it counts."""
    import equinox as eqx

    def replace(part: Any) -> Any:
        return _masked_class()(part, mask) if type(part) is eqx.nn.BatchNorm else part

    return jax.tree.map(replace, module, is_leaf=lambda part: type(part) is eqx.nn.BatchNorm)


@cache
def _masked_class() -> type:
    """Return a BatchNorm whose moments are those of the examples where the mask is True."""
    import equinox as eqx

    class BatchNorm(eqx.nn.BatchNorm):
        mask: Array

        def __init__(self, layer: Any, mask: Array) -> None:
            for field in dataclasses.fields(layer):
                setattr(self, field.name, getattr(layer, field.name))
            self.mask = mask

        def __call__(
            self, x: Array, state: Any, *, key: Any = None, inference: bool | None = None
        ) -> tuple[Array, Any]:
            if self.inference if inference is None else inference:
                return super().__call__(x, state, inference=True)
            # The moments of a batch without examples are not used, but must be finite.
            count = jnp.maximum(lax.psum(self.mask.astype(jnp.float32), self.axis_name), 1)
            axes = tuple(range(1, x.ndim))

            def batch_mean(values: Array) -> Array:
                total = lax.psum(jnp.where(self.mask, values.mean(axes), 0), self.axis_name)
                return (total / count).astype(values.dtype)

            def along(channels: Array) -> Array:
                return channels.reshape(-1, *[1] * len(axes))

            mean = batch_mean(x)
            centered = jnp.where(self.mask, x - along(mean), 0)
            variance = batch_mean(centered * jnp.conj(centered))
            momentum = self.momentum
            index = self.batch_state_index if self.mode == "batch" else self.ema_state_index
            moving = [
                momentum * old + (1 - momentum) * new
                for old, new in zip(state.get(index), (mean, variance), strict=True)
            ]
            if self.mode == "batch":
                state = state.set(self.batch_counter, state.get(self.batch_counter) + 1)
            else:
                first = state.get(self.ema_first_time_index)
                moving = [jnp.where(first, new, old) for new, old in zip((mean, variance), moving, strict=True)]
                state = state.set(self.ema_first_time_index, jnp.array(False))
                mean, variance = moving
            state = state.set(index, tuple(moving))
            outputs = (x - along(mean)) / along(jnp.sqrt(variance + self.eps))
            if self.weight is not None and self.bias is not None:
                outputs = outputs * along(self.weight) + along(self.bias)
            return outputs, state

    return BatchNorm


def _arrays(variables: Variables) -> dict[Path, Any]:
    return {**flatten_dict(variables.params), **flatten_dict(variables.stats)}


def _is_array(leaf: object) -> bool:
    """Return whether a leaf is an array, or the shape and dtype of one."""
    import equinox as eqx

    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _describe(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype}{[*leaf.shape]}"
