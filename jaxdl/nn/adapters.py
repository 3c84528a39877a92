"""Flax modules, Linen's and NNX's, as `Model(init, apply)`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import DenyList
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict
from jax import lax
from jax.typing import DTypeLike

from jaxdl._values import as_value
from jaxdl.errors import InputError
from jaxdl.nn import layers
from jaxdl.nn.rewriting import with_fast_convolutions
from jaxdl.types import Array, Model, PyTree, Variables

if TYPE_CHECKING:
    from flax import nnx


class Call(NamedTuple):
    """One call of a layer while a model ran."""

    path: tuple[str, ...]  # its place in the parameters
    kind: str  # the class, such as "Dense"
    shape: tuple[int, ...]  # of the output


class Arguments(NamedTuple):
    """How a module's `__call__` is called."""

    inputs: str | None  # the keyword of the inputs; None: they are the first positional argument
    switch: str | None  # the name of the switch of training mode; None: the module has none
    place: str  # of the switch: "second" positional argument, "keyword", or "field" of the module
    inverted: bool  # whether the switch is True in evaluation
    mask: str | None  # the keyword of the mask of the examples; None: the module takes none
    mask_required: bool  # whether that argument has no default
    rngs: bool  # whether `__call__` must get NNX's `rngs`, too
    several: tuple[str, ...] = ()  # the keywords of several inputs, which are a dict of these keys
    optional: tuple[str, ...] = ()  # keys that this dict may have, too

    def field(self, train: bool) -> dict[str, Any]:
        """Return the field of the module that sets training mode or evaluation; {} where an argument does."""
        return {self.switch: train != self.inverted} if self.switch and self.place == "field" else {}

    def bind(self, inputs: PyTree, train: bool, mask: Array | None) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and keyword arguments of a call."""
        positional: list[Any] = [inputs] if self.inputs is None and not self.several else []
        keywords: dict[str, Any] = {} if self.inputs is None else {self.inputs: inputs}
        if self.several:
            keywords = self._by_name(inputs)
        if self.place == "second":
            positional.append(train != self.inverted)
        elif self.place == "keyword" and self.switch is not None:
            keywords[self.switch] = train != self.inverted
        if self.mask is not None and (mask is not None or self.mask_required):
            keywords[self.mask] = mask
        return positional, keywords

    def _by_name(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping) and {*self.several} <= {*inputs} <= {*self.several, *self.optional}:
            return {**inputs}
        if isinstance(inputs, Mapping):
            kind = f"a dict of {', '.join(map(str, inputs))}"
        else:
            kind = f"an array of shape {inputs.shape}" if hasattr(inputs, "shape") else f"a {type(inputs).__name__}"
        keys = ", ".join(f'"{name}": ...' for name in self.several)
        advice = f"Use dataset({{{keys}}}, targets), or give all arguments but one a default value."
        if self.switch is None:
            advice += f' If {self.several[-1]} switches to training mode, name it: train="{self.several[-1]}".'
        raise InputError(f"the model needs {', '.join(self.several)}, and its inputs are {kind}. {advice}")


# Names under which modules switch to training mode, and whether they are True in evaluation.
SWITCHES = {
    **dict.fromkeys(("train", "training", "is_training", "is_train", "train_mode", "enable_dropout"), False),
    **dict.fromkeys(("use_dropout", "apply_dropout", "with_dropout", "update_stats"), False),
    **dict.fromkeys(("deterministic", "use_running_average", "inference", "is_inference", "is_eval"), True),
    **dict.fromkeys(("evaluate", "evaluation", "eval_mode", "testing", "is_test", "disable_dropout"), True),
}
# Flax drops these collections unless they are made mutable.
DROPPED = ("intermediates", "perturbations")
# The size of a batch that is only traced: larger than any other axis of a network.
MANY = 7919
# The mask of the batch with which an NNX module computes.
_MASK: ContextVar[Array | None] = ContextVar("mask", default=None)
_CALLS = count()


@as_value
def from_linen(
    module: nn.Module, *, train: str | None = "auto", inverted: bool = False, mask: str | None = "auto"
) -> Model:
    """Return a Linen module as a Model.

    train: the argument of `__call__`, or the field of the module, that switches to training mode; None if there is
    none. By default `train`, where the module takes it. inverted: whether that switch is True in evaluation, as
    `deterministic` is. mask: the argument that takes the mask of the examples, (B,) bool, False for padding; None if
    there is none. By default `mask`, where it accepts that shape. A BatchNorm layer to which the module hands no mask
    gets this mask. A layer of Flax whose `deterministic` or `use_running_average` is None follows the training mode.

    A pytree of inputs is the one argument of `__call__`; where `__call__` needs several arguments, such as
    `(self, image, age)`, the inputs are a dict of these keys.

    "params" are trained. Other collections are kept as stats, except "intermediates" and "perturbations". The stream
    "dropout" is the step's key, and every other stream that the module draws from has a key of its own.

    Raises InputError for a module with an input or a switch that stays unset; from `init` and `apply` for values that
    are sown into other collections, and for statistics that would count padding.

    >>> model = from_linen(nn.Dense(3))
    >>> variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
    >>> model.apply(variables, jnp.ones((2, 4)), train=False)[0].shape
    (2, 3)
    >>> model = from_linen(nn.Dropout(0.5), train="deterministic", inverted=True)
    >>> outputs, _ = model.apply(Variables({}, {}), jnp.ones((1, 99)), train=True, key=jax.random.key(0))
    >>> sorted(set(outputs[0].tolist()))
    [0.0, 2.0]
    """
    if not isinstance(module, nn.Module):
        made = module.func if isinstance(module, partial) else module
        kind = made.__name__ if inspect.isclass(made) else type(made).__name__
        line = f"from_linen({kind}(...))" if inspect.isclass(made) else "from_linen(flax.linen.Dense(1))"
        kind = f"a partial of {kind}, to be called first" if isinstance(module, partial) else kind
        raise InputError(f"from_linen needs an instance of a flax.linen.Module, got {kind}. Write {line}.")
    name = type(module).__name__
    arguments = _arguments("from_linen", name, _linen_signature(module), train, inverted, mask)

    def call(
        method: str, first: Any, inputs: Array, train: bool, mask: Array | None, explicit: bool, **options: Any
    ) -> Any:
        """Call `init` or `apply`, whose first argument is the keys or the variables; explicit: hand the mask over."""
        positional, keywords = arguments.bind(inputs, train, mask if explicit else None)
        field = arguments.field(train)
        instance = module.clone(**field) if field else module
        with nn.intercept_methods(_complete_layers(name, train, mask)):
            return getattr(instance, method)(first, *positional, **keywords, **options)

    def trace(inputs: Array, train: bool, explicit: bool) -> None:
        def run(inputs: Array, mask: Array) -> Any:
            return call("init", {"params": jax.random.key(0)}, inputs, train, mask, explicit, mutable=_mutable())

        jax.eval_shape(run, *_large_batch(inputs))

    takes_mask = _mask_rule(arguments, mask, trace)

    def predict_without(kind: str, variables: PyTree, inputs: Array) -> None:
        """Trace a prediction without one collection, which fails unless values are only sown into it."""
        rest = {name: tree for name, tree in variables.items() if name != kind}
        jax.eval_shape(lambda: call("apply", rest, inputs, False, None, False, mutable=[]))

    def init(key: Array, inputs: Array) -> Variables:
        norms: list[tuple[str, ...]] = []
        with nn.intercept_methods(_record_norms(norms)):
            variables = dict(call("init", {"params": key}, inputs, False, None, False, mutable=_mutable()))
        params, stats = variables.pop("params", {}), variables
        for kind, tree in stats.items():
            unmasked = next((path for path in flatten_dict(tree) if not _is_below(path, norms)), None)
            if unmasked is None:
                continue
            if _can_trace(predict_without, kind, {"params": params, **stats}, inputs):
                raise _sown_error(name, kind)
            if not takes_mask(inputs):
                raise _unmasked_error(name, (kind, *unmasked))
        if norms and mask == "auto":
            # Raises for a BatchNorm layer whose inputs do not have the examples as their first axis.
            _can_trace(trace, inputs, True, takes_mask(inputs))
        return Variables(params, stats)

    def apply(
        variables: Variables, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        collections, explicit = {"params": variables.params, **variables.stats}, takes_mask(inputs)
        mutable = _mutable("params") if train else []

        def run(rngs: Mapping[str, Array]) -> Any:
            return call("apply", collections, inputs, train, mask, explicit, rngs=rngs, mutable=mutable)

        outputs, stats = _run_with_streams(name, run, key)
        for kind in stats:
            if kind not in variables.stats:
                raise _sown_error(name, kind)
        return outputs, {**variables.stats, **stats} if train else variables.stats

    return Model(init, with_fast_convolutions(apply))


@as_value
def from_nnx(
    make: Callable[[nnx.Rngs], nnx.Module],
    *,
    train: str | None = "auto",
    inverted: bool = False,
    mask: str | None = "auto",
) -> Model:
    """Return an NNX module as a Model, from a function that makes it: `from_nnx(lambda rngs: Net(rngs=rngs))`.

    train: the argument of `__call__`, or the attribute of the module and its layers, that switches to training mode;
    None if there is none. By default `train`, where the module takes it; Dropout and BatchNorm always follow the
    training mode. `inverted` and `mask` are as for `from_linen`, and a BatchNorm layer to which the module hands no
    mask gets that of the examples.

    nnx.Param is trained, nnx.BatchStat is kept as stats, and every random stream gets a new key in each step. Raises
    InputError for a module that holds any other state, and for what `from_linen` refuses.

    >>> from flax import nnx
    >>> model = from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
    >>> variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
    >>> model.apply(variables, jnp.ones((2, 4)), train=False)[0].shape
    (2, 3)
    """
    # `import jaxdl` does not load NNX.
    from flax import nnx

    if isinstance(make, nnx.Module) or not callable(make):
        raise InputError(
            f"from_nnx needs a function that makes a module, got {type(make).__name__}. Write "
            f"from_nnx(lambda rngs: {type(make).__name__}(..., rngs=rngs))."
        )
    if inspect.isclass(make) and not _takes_streams(make):
        needs = ", ".join([*inspect.signature(make.__init__).parameters][1:])
        raise InputError(
            f"from_nnx needs a function of rngs that makes a module, got the class {make.__name__}, which takes "
            f"{needs}. Write from_nnx(lambda rngs: {make.__name__}(..., rngs=rngs))."
        )

    def make_module() -> nnx.Module:
        module = make(nnx.Rngs(0))
        if not isinstance(module, nnx.Module):
            raise InputError(f"from_nnx needs a function that makes an nnx.Module, got {type(module).__name__}.")
        return module

    module = nnx.eval_shape(make_module)
    name = type(module).__name__
    parts: tuple[Any, ...] = nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)
    _, param_shapes, stat_shapes, streams, other = parts
    if jax.tree.leaves(other):
        kinds = sorted({type(leaf).__name__ for _, leaf in nnx.to_flat_state(other)})
        raise InputError(f"{name} must hold Param, BatchStat and RngState only, got {kinds}.")
    signature = _nnx_signature(module, train)
    arguments = _arguments("from_nnx", name, signature, train, inverted, mask)
    if any(parameter.name == "rngs" for parameter in signature.parameters) and not jax.tree.leaves(streams):
        arguments = arguments._replace(rngs=True)
    norms: list[tuple[Any, ...]] = []
    for path, layer in nnx.iter_graph(module):
        if isinstance(layer, (nnx.BatchNorm, nnx.SpectralNorm)):
            norms.append(path)
        if isinstance(layer, nnx.BatchNorm):
            object.__setattr__(layer, "__class__", _masked_class(type(layer)))
    unmasked = next((path for path, _ in nnx.to_flat_state(stat_shapes) if not _is_below(path, norms)), None)
    if unmasked is not None and arguments.mask is None:
        raise _unmasked_error(name, unmasked)
    module.train(**arguments.field(True))
    training = nnx.graphdef(module)
    module.eval(**arguments.field(False))
    evaluating = nnx.graphdef(module)

    def call(
        variables: Variables, inputs: Array, train: bool, key: Array | None, mask: Array | None, explicit: bool
    ) -> tuple[Any, nnx.Module]:
        """Return the outputs and the module after the call; explicit: hand the mask over."""
        key = jax.random.key(0) if key is None else key
        instance = nnx.merge(
            training if train else evaluating,
            _from_dict(param_shapes, variables.params),
            _from_dict(stat_shapes, variables.stats),
            _reseed(streams, key),
        )
        positional, keywords = arguments.bind(inputs, train, mask if explicit else None)
        if arguments.rngs:
            keywords["rngs"] = nnx.Rngs(key)
        batch_norms: list[Any] = [layer for _, layer in nnx.iter_modules(instance) if isinstance(layer, nnx.BatchNorm)]
        for layer in batch_norms if train else ():
            # No two calls are equal, because nnx.jit would compute with the mask of the call before.
            layer.call = next(_CALLS)
        token = _MASK.set(mask)
        try:
            return instance(*positional, **keywords), instance
        finally:
            _MASK.reset(token)

    def trace(inputs: Array, train: bool, explicit: bool) -> None:
        def run(variables: Variables, inputs: Array, mask: Array) -> Any:
            return call(variables, inputs, train, None, mask, explicit)[0]

        jax.eval_shape(run, Variables(_to_dict(param_shapes), _to_dict(stat_shapes)), *_large_batch(inputs))

    takes_mask = _mask_rule(arguments, mask, trace)

    def init(key: Array, inputs: Array) -> Variables:
        module = make(nnx.Rngs(key))
        if unmasked is not None and not takes_mask(inputs):
            raise _unmasked_error(name, unmasked)
        if norms and mask == "auto":
            _can_trace(trace, inputs, True, takes_mask(inputs))
        return Variables(_to_dict(nnx.state(module, nnx.Param)), _to_dict(nnx.state(module, nnx.BatchStat)))

    def apply(
        variables: Variables, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        outputs, instance = call(variables, inputs, train, key, mask, takes_mask(inputs))
        for _, leaf in nnx.to_flat_state(nnx.state(instance)):
            if not isinstance(leaf, (nnx.Param, nnx.BatchStat, nnx.RngState, nnx.Intermediate, nnx.Perturbation)):
                raise _sown_error(name, type(leaf).__name__)
        return outputs, _to_dict(nnx.state(instance, nnx.BatchStat)) if train else variables.stats

    return Model(init, with_fast_convolutions(apply))


def _takes_streams(kind: Any) -> bool:
    """Return whether `kind(rngs)` is a call that the class takes."""
    try:
        inspect.signature(kind.__init__).bind(None, None)
    except TypeError:
        return False
    return True


def _to_dict(state: Any) -> PyTree:
    """Return an NNX state as dicts with strings for keys, because files do not tell an index of a list from a name."""
    from flax import nnx

    def with_strings(tree: PyTree) -> PyTree:
        return {str(key): with_strings(value) for key, value in tree.items()} if isinstance(tree, dict) else tree

    return with_strings(nnx.to_pure_dict(state))


def _from_dict(shapes: Any, values: PyTree) -> Any:
    """Return an NNX state like `shapes` with the values that `_to_dict` gave."""
    from flax import nnx

    def with_indices(like: PyTree, named: PyTree) -> PyTree:
        if not isinstance(like, dict):
            return named
        return {key: with_indices(value, named[str(key)]) for key, value in like.items()}

    state = jax.tree.map(lambda leaf: leaf, shapes)
    nnx.replace_by_pure_dict(state, with_indices(nnx.to_pure_dict(shapes), values))
    return state


def _reseed(streams: Any, key: Array) -> Any:
    """Return random streams with keys drawn from `key` and counts of 0 (`nnx.reseed` skips the default stream).

    The streams of layers that `nnx.vmap` has stacked have leading axes: each layer gets a key of its own.
    """
    leaves, structure = jax.tree.flatten(streams)
    keys = iter(jax.random.split(key, max(len(leaves), 1)))

    def renew(leaf: Any) -> Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jax.random.split(next(keys), leaf.shape) if leaf.shape else next(keys)

    return jax.tree.unflatten(structure, [renew(leaf) for leaf in leaves])


@cache
def _masked_class(kind: type) -> type:
    """Return a subclass of an NNX BatchNorm that uses the mask of the examples where a call gives none."""
    from flax import nnx

    class Masked(nnx.BatchNorm):
        def __call__(self, inputs: Any, use_running_average: bool | None = None, *, mask: Array | None = None) -> Any:
            average = self.use_running_average if use_running_average is None else use_running_average
            if mask is None and not average:
                mask = _layer_mask(kind.__name__, "the module", inputs, self.axis, self.axis_name, _MASK.get())
            return super().__call__(inputs, use_running_average, mask=mask)

    return Masked if kind is nnx.BatchNorm else type(kind.__name__, (kind, Masked), {})


@contextmanager
def linen_calls() -> Iterator[list[Call]]:
    """List the calls of Linen layers in the block, in the order in which they return.

    A function that JAX has compiled or traced before calls nothing: trace it anew.
    """
    calls: list[Call] = []

    def note(following: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        output = following(*arguments, **keywords)
        if context.method_name == "__call__" and hasattr(output, "shape"):
            calls.append(Call(context.module.path, type(context.module).__name__, output.shape))
        return output

    with nn.intercept_methods(note):
        yield calls


_NORMS = (nn.BatchNorm, layers.BatchNorm)
_OPEN = (*_NORMS, nn.Dropout, nn.MultiHeadDotProductAttention)


def _complete_layers(name: str, train: bool, mask: Array | None) -> Callable[..., Any]:
    """Return an interceptor that gives layers the switch and the mask that the module leaves open."""

    def complete(following: Any, positional: Any, keywords: Any, context: Any) -> Any:
        layer = context.module
        # A layer that nn.vmap or nn.remat has made calls the layer itself.
        lifted = type(layer).__module__ == "flax.linen.transforms"
        if context.method_name != "__call__" or lifted or not isinstance(layer, _OPEN):
            return following(*positional, **keywords)
        signature = inspect.signature(context.orig_method)
        bound = signature.bind_partial(*positional, **keywords)
        values = bound.arguments
        for switch in ("deterministic", "use_running_average"):
            if switch in signature.parameters and values.get(switch) is getattr(layer, switch, None) is None:
                values[switch] = not train
        if isinstance(layer, _NORMS) and "mask" in signature.parameters and values.get("mask") is None:
            average = values.get("use_running_average", None)
            average = getattr(layer, "use_running_average", None) if average is None else average
            if not average and values.get("train", True):
                where = "/".join(layer.path) or name
                axis, mapped = getattr(layer, "axis", -1), getattr(layer, "axis_name", None)
                values["mask"] = _layer_mask(where, name, next(iter(values.values())), axis, mapped, mask)
        return following(*bound.args, **bound.kwargs)

    return complete


def _record_norms(paths: list[tuple[str, ...]]) -> Callable[..., Any]:
    """Return an interceptor that lists the paths of the layers whose statistics count no padding."""

    def note(following: Any, positional: Any, keywords: Any, context: Any) -> Any:
        # Spectral norms are statistics of the parameters alone.
        if isinstance(context.module, (*_NORMS, nn.SpectralNorm)):
            paths.append(context.module.path)
        return following(*positional, **keywords)

    return note


def _is_below(path: tuple[Any, ...], parents: Iterable[tuple[Any, ...]]) -> bool:
    return any(path[: len(parent)] == parent for parent in parents)


def _is_mapped(axis: str) -> bool:
    """Return whether `vmap` or `pmap` maps over an axis of this name here."""
    try:
        lax.axis_index(axis)
    except NameError:
        return False
    return True


def _layer_mask(
    layer: str, name: str, inputs: Array, axis: Any, mapped: str | None, mask: Array | None
) -> Array | None:
    """Return the mask of the examples as a BatchNorm layer takes it, with as many axes as its inputs.

    axis: of the features; mapped: the name of a mapped axis over which the layer averages, too. Raises InputError
    where no axis of this name is mapped, and where the first axis of the inputs is not that of the examples.
    """
    if mapped is not None and not _is_mapped(mapped):
        raise InputError(
            f"the BatchNorm layer {layer} averages over the axis {mapped!r} of jax.pmap, and jaxdl maps none: its "
            "moments are those of the whole batch, on all devices. Leave axis_name out."
        )
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    if mask is None or (mapped is None and any(number % inputs.ndim == 0 for number in axes)):
        return None
    if inputs.shape[0] != mask.shape[0]:
        raise InputError(
            f"the BatchNorm layer {layer} normalizes inputs whose first axis is not that of the examples (shape "
            f"{inputs.shape} for {mask.shape[0]} examples), so the padding of a short batch would be counted. Let "
            f"{name}.__call__ take mask ((B,) bool, False for padding) and hand the layer a mask of its inputs' shape."
        )
    return mask.reshape(-1, *[1] * (inputs.ndim - 1))


def _run_with_streams(name: str, run: Callable[..., Any], key: Array | None) -> Any:
    """Return `run(keys)` with a key for every stream that a Linen module draws from.

    "params" is a stream only where nothing else helps: Flax would draw from it in place of a missing one, and nn.scan
    and nn.vmap would then not split that one.
    """
    # Dropout has the key itself, as Flax has with rngs={"dropout": key}.
    keys = {} if key is None else {"dropout": key}
    while True:
        try:
            return run(keys)
        except InvalidRngError as error:
            missing = re.search('needs PRNG for "(.+)"', str(error))
            if key is None and missing:
                raise InputError(
                    f"{name} draws from the stream {missing[1]!r} where no key is given, as in evaluation. Let its "
                    "__call__ take train, and draw where train is True only: "
                    f"nn.Dropout(0.5, deterministic=not train), or self.make_rng({missing[1]!r}) after if train, say."
                ) from error
            more = [stream for stream in ([missing[1]] if missing else []) + ["params"] if stream not in keys]
            if key is None or not more:
                raise
            keys[more[0]] = jax.random.fold_in(key, zlib.crc32(more[0].encode()))


def _mutable(*fixed: str) -> Any:
    """Return the collections that a call changes: all except `fixed` and those that Flax drops."""
    # No two calls are equal, because nn.jit would compute with the mask of the call before.
    return DenyList((*fixed, *DROPPED, f"call {next(_CALLS)}"))


def _sown_error(name: str, kind: str) -> InputError:
    return InputError(
        f"{name} sows values into {kind!r}, which is not added to the loss. Return them beside the "
        "outputs, in a dict, and add them in losses.model_loss, or sow them into 'intermediates'."
    )


def _unmasked_error(name: str, path: Iterable[Any]) -> InputError:
    return InputError(
        f"{name} has moving statistics but takes no mask, so the padding of a short batch would be counted in "
        f"{'/'.join(map(str, path))}. Let its __call__ take mask ((B,) bool, False for padding) and compute the "
        "statistics of the other examples, as jaxdl.nn.BatchNorm does."
    )


def _large_batch(inputs: PyTree) -> tuple[Any, Any]:
    """Return the shapes of a batch of `MANY` examples and of its mask."""
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((MANY, *leaf.shape[1:]), leaf.dtype), inputs)
    return batch, jax.ShapeDtypeStruct((MANY,), bool)


def _can_trace(trace: Callable[..., Any], *arguments: object) -> bool:
    """Return whether a function can be traced; an InputError is passed on."""
    try:
        trace(*arguments)
    except InputError:
        raise
    except Exception:  # A module may raise any error.
        return False
    return True


def _mask_rule(arguments: Arguments, mask: str | None, trace: Callable[..., None]) -> Callable[[PyTree], bool]:
    """Return a function of inputs that tells whether the module takes the mask of the examples as an argument.

    By default it does where it can be traced with a mask (B,), which no attention mask (B, T) allows.
    """

    @cache
    def accepts(structure: Any, rows: tuple[tuple[tuple[int, ...], DTypeLike], ...]) -> bool:
        inputs = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct((1, *shape), dtype) for shape, dtype in rows])
        masked = all(_can_trace(trace, inputs, train, True) for train in (False, True))
        return masked or not _can_trace(trace, inputs, False, False)

    def takes_mask(inputs: PyTree) -> bool:
        if arguments.mask is None or mask != "auto":
            return arguments.mask is not None
        leaves, structure = jax.tree.flatten(inputs)
        return accepts(structure, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves))

    return takes_mask


class _Signature(NamedTuple):
    """What a module's `__call__` takes, and which switches the module sets itself or holds as values."""

    parameters: list[inspect.Parameter]
    settled: set[str]
    values: dict[str, Any]


def _parameters(layer: Any, kind: type) -> list[inspect.Parameter]:
    """Return the parameters of the `__call__` of a module of this kind, or of a function."""
    try:
        if isinstance(layer, kind):
            return list(inspect.signature(type(layer).__call__).parameters.values())[1:]
        return list(inspect.signature(layer).parameters.values())
    except (TypeError, ValueError):
        # A built-in function without a signature.
        return [inspect.Parameter("inputs", inspect.Parameter.POSITIONAL_ONLY)]


def _linen_signature(module: nn.Module) -> _Signature:
    layer: Any = module
    while isinstance(layer, nn.Sequential) and layer.layers:
        # A Sequential hands its arguments to the first layer.
        for other in layer.layers[1:]:
            names = [p.name for p in _parameters(other, nn.Module) if _is_switch(p)]
            if names and not _is_stock(other):
                raise InputError(
                    f"nn.Sequential hands {names[0]} to none but its first layer, and {type(other).__name__} takes it, "
                    "too. Write a module whose __call__ takes train and hands it to its layers."
                )
        layer = layer.layers[0]
    parameters = _parameters(layer, nn.Module)
    if not isinstance(layer, nn.Module):
        return _Signature(parameters, set(), {})
    values = {field.name: getattr(layer, field.name, None) for field in dataclasses.fields(layer)}
    if _is_stock(layer):
        return _Signature(parameters, set(SWITCHES) & set(values), {})
    return _Signature(parameters, set(), values if layer is module else {})


def _is_stock(layer: object) -> bool:
    """Return whether a layer is one of Flax's own whose open switch follows the training mode."""
    return type(layer) in (nn.Dropout, nn.BatchNorm) or type(layer).__module__ == "flax.linen.attention"


def _nnx_signature(module: nnx.Module, train: str | None) -> _Signature:
    from flax import nnx

    layer: Any = module
    while isinstance(layer, nnx.Sequential) and layer.layers:
        layer = layer.layers[0]
    parameters = _parameters(layer, nnx.Module)
    settled = {p.name for p in parameters if p.default is None and hasattr(layer, p.name)}

    def switches() -> dict[tuple[Any, ...], bool]:
        return {
            (*path, name): value
            for path, node in nnx.iter_modules(module)
            for name, value in vars(node).items()
            if (name in SWITCHES or name == train) and isinstance(value, bool)
        }

    module.train()
    training = switches()
    module.eval()
    constant = {path[-1]: value for path, value in switches().items() if training[path] == value}
    return _Signature(parameters, settled, constant)


def _is_switch(parameter: inspect.Parameter) -> bool:
    """Return whether an argument may be a switch: by its name, or Boolean by its default or its annotation."""
    kind = parameter.annotation
    text = kind if isinstance(kind, str) else "bool" if kind is bool else str(kind)
    return parameter.name in SWITCHES or isinstance(parameter.default, bool) or re.search(r"\bbool\b", text) is not None


def _arguments(
    function: str, name: str, signature: _Signature, train: str | None, inverted: bool, mask: str | None
) -> Arguments:
    """Return how a module is called. Raises InputError for an argument that stays unset."""
    kinds, call = inspect.Parameter, name if function == "from_haiku" else f"{name}.__call__"
    takes = {p.name: p for p in signature.parameters if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)}
    starred = any(p.kind == kinds.VAR_KEYWORD for p in signature.parameters)
    switch = train
    if train == "auto":
        switch = "train" if "train" in takes or isinstance(signature.values.get("train"), bool) else None
    for argument, value in (("train", train), ("mask", mask)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{function} needs the name of an argument as {argument}, or None, got {value!r}.")
        if value in (None, "auto") or value in takes or starred or (argument == "train" and value in signature.values):
            continue
        names = ", ".join(takes) or "nothing"
        raise InputError(f"{call} does not take {value}, which {argument}= names. It takes {names}.")
    if switch is not None and SWITCHES.get(switch, inverted) != inverted:
        raise InputError(f"{switch} is {not inverted} in evaluation. Write {_line(function, switch, not inverted)}.")
    known = [p for p in takes.values() if _is_switch(p) and p.name != mask]
    _check_switches(function, name, known, signature, train, switch, starred)
    masked = mask if mask != "auto" else "mask" if "mask" in takes else None
    candidates = [p for p in takes.values() if p not in known and p.name not in (switch, masked)]
    required = [p.name for p in candidates if p.default is kinds.empty]
    rngs = function == "from_nnx" and "rngs" in required
    if rngs:
        required.remove("rngs")
    if len(required) > 1:
        # Among queries and values, a key is an array of inputs.
        streams = [key for key in required if _STREAM.search(key) and not (key == "key" and "value" in required)]
        if streams:
            raise InputError(
                f"{call} needs {', '.join(required)}, and a model is given its inputs alone. Leave {streams[0]} out "
                f"and draw with {_DRAWS[function]}."
            )
        only = [p.name for p in candidates if p.kind is kinds.POSITIONAL_ONLY]
        if only:
            raise InputError(
                f"{call} takes {', '.join(only)} by position only, and several inputs are given by name. "
                "Remove the / from its arguments."
            )
    first = required[0] if required else next((p.name for p in candidates), None)
    if first is None and not any(p.kind == kinds.VAR_POSITIONAL for p in signature.parameters):
        raise InputError(f"{call} takes no inputs. Let it take an array of inputs, (B, ...).")
    positional = [p.name for p in takes.values() if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    several = tuple(required) if len(required) > 1 else ()
    leads = not several and (first is None or positional[:1] == [first])
    place = "keyword" if switch in takes or switch not in signature.values else "field"
    if place == "keyword" and leads and positional[1:2] == [switch]:
        # nn.remat takes a constant by its position only.
        place = "second"
    mask_required = masked in takes and takes[masked].default is kinds.empty
    inputs = None if leads or several else first
    optional = tuple(p.name for p in candidates if p.name not in required)
    return Arguments(inputs, switch, place, inverted, masked, mask_required, rngs, several, optional)


def _check_switches(
    function: str,
    name: str,
    known: list[inspect.Parameter],
    signature: _Signature,
    train: str | None,
    switch: str | None,
    starred: bool,
) -> None:
    """Raise InputError for a switch that would stay at its default value."""
    if train is None:
        return
    unset = [p.name for p in known if p.name not in {switch, *signature.settled}]
    if switch is not None:
        # Other Booleans keep their defaults, unless they are switches by their names.
        others = [key for key in unset if key in SWITCHES]
        if others:
            raise InputError(
                f"{name} takes {switch} and {others[0]}, and {function} sets one of them. Let "
                f"{'it' if function == 'from_haiku' else 'its __call__'} take train and set the others from it."
            )
        return
    call = "" if function == "from_haiku" else ".__call__"
    verb = f"{call} takes" if unset else " holds"
    unset += [key for key, value in signature.values.items() if key in SWITCHES and isinstance(value, bool)]
    if unset:
        lines = (
            _line(function, unset[0], SWITCHES[unset[0]])
            if unset[0] in SWITCHES
            else f"{_line(function, unset[0], False)} if it is True in training, "
            f"{_line(function, unset[0], True)} if it is True in evaluation"
        )
        raise InputError(
            f"{name}{verb} {unset[0]}, which nothing would set. Write {lines}, or {_start(function)}, train=None) to "
            "leave it as it is."
        )
    if starred:
        start = _start(function)
        raise InputError(
            f"{name}{call} takes **keywords, among which may be a switch of training that nothing would set. Write "
            f'{start}, train="train") or {start}, train="deterministic", inverted=True) with its name, or {start}, '
            "train=None) if there is none."
        )


def _line(function: str, switch: str, inverted: bool) -> str:
    return f'{_start(function)}, train="{switch}"{", inverted=True" * inverted})'


def _start(function: str) -> str:
    return f"{function}({_FIRST.get(function, 'module')}"


# The names of arguments that are keys of random numbers.
_STREAM = re.compile(r"(^|_)rngs?$|^(p?rng_)?key$")
# The first argument of an adapter, and where its modules get random numbers, in messages.
_FIRST = {"from_nnx": "make", "from_haiku": "transformed"}
_DRAWS = {
    "from_linen": "self.make_rng('dropout')",
    "from_nnx": "self.make_rng('dropout')",
    "from_equinox": "the argument key",
    "from_haiku": "hk.next_rng_key()",
}


def named_switch(signature: _Signature, inverted: bool) -> tuple[str | None, bool]:
    """Return the one argument whose name is that of a switch, and whether it is True in evaluation."""
    names = [p.name for p in signature.parameters if p.name in SWITCHES and p.name not in signature.settled]
    return (names[0], SWITCHES[names[0]]) if len(names) == 1 else ("auto", inverted)
