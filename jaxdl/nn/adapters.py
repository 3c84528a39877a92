"""Flax modules, Linen's and NNX's, as `Model(init, apply)`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import DenyList
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from jaxdl.errors import InputError
from jaxdl.nn import layers
from jaxdl.types import Array, Model, PyTree, Variables

if TYPE_CHECKING:
    from flax import nnx


class Call(NamedTuple):
    """One call of a layer while a model ran."""

    path: tuple[str, ...]  # its place in the parameters
    kind: str  # the class, such as "Dense"
    shape: tuple[int, ...]  # of what it returned


class Arguments(NamedTuple):
    """How a module's `__call__` is called."""

    inputs: str | None  # the keyword of the inputs; None: they are the first positional argument
    switch: str | None  # the name of the switch of training mode; None: there is none
    place: str  # where the switch is: "second" positional argument, "keyword", or "field" of the module
    inverted: bool  # whether the switch is True in evaluation
    mask: str | None  # the keyword of the mask of the examples; None: there is none
    required: bool  # whether that argument has no default
    rngs: bool  # whether NNX's `rngs` are a required argument, too


# Names under which modules switch to training mode, and whether they are True in evaluation.
SWITCHES = {
    **dict.fromkeys(("train", "training", "is_training", "is_train", "train_mode", "enable_dropout"), False),
    **dict.fromkeys(("use_dropout", "apply_dropout", "with_dropout", "update_stats"), False),
    **dict.fromkeys(("deterministic", "use_running_average", "inference", "is_inference", "is_eval"), True),
    **dict.fromkeys(("evaluate", "evaluation", "eval_mode", "testing", "is_test", "disable_dropout"), True),
}
MASK_ADVICE = (
    "has moving statistics but takes no mask, so the padding of a short batch would be counted in {where}. Let its "
    "__call__ take mask ((B,) bool, False for padding) and compute the statistics of the other examples, as "
    "jaxdl.nn.BatchNorm does."
)
# What Flax drops unless somebody asks for it.
DROPPED = ("intermediates", "perturbations")
# The size of a batch that is only traced: larger than any other axis of a network.
MANY = 7919
# The mask of the batch with which an NNX module computes.
_ROWS: ContextVar[Array | None] = ContextVar("rows", default=None)
_CALLS = count()


def from_linen(
    module: nn.Module, *, train: str | None = "auto", inverted: bool = False, mask: str | None = "auto"
) -> Model:
    """Return a Linen module as a Model.

    train: the argument of `__call__`, or the field of the module, that switches to training mode; None if there is
    none. By default `train`, where the module takes it. inverted: whether that switch is True in evaluation, as
    `deterministic` is. mask: the argument that takes the mask of the examples, (B,) bool, False for padding; None if
    there is none. By default `mask`, where it accepts that shape. A BatchNorm layer to which the module hands no mask
    gets this mask. A layer of Flax whose `deterministic` or `use_running_average` is None follows the training mode.

    "params" are trained. Other collections are kept as stats, except "intermediates" and "perturbations". The stream
    "dropout" is the step's key, and every other stream that the module draws from has a key of its own.

    Raises InputError for a module with an input or a switch that nobody sets; from `init` and `apply` for values that
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
        kind = module.__name__ if inspect.isclass(module) else type(module).__name__
        line = f"from_linen({kind}(...))" if inspect.isclass(module) else "from_linen(flax.linen.Dense(1))"
        raise InputError(f"from_linen needs an instance of a flax.linen.Module, got {kind}. Write {line}.")
    name = type(module).__name__
    arguments = _arguments("from_linen", name, _linen_signature(module), train, inverted, mask)

    def call(
        method: str, first: Any, inputs: Array, train: bool, given: Array | None, rows: Array | None, **options: Any
    ) -> Any:
        """Call `init` or `apply`, whose first argument is the keys or the variables.

        given: the mask that the module takes; rows: the mask for its BatchNorm layers.
        """
        positional, keywords = _placed(arguments, inputs, train, given)
        used = module
        if arguments.switch and arguments.place == "field":
            changes: dict[str, Any] = {arguments.switch: train != arguments.inverted}
            used = module.clone(**changes)
        with nn.intercept_methods(_completes(name, train, rows)):
            return getattr(used, method)(first, *positional, **keywords, **options)

    def trace(inputs: Array, train: bool, masked: bool) -> None:
        """Trace `init` with a batch of many examples and with their mask where `masked`; nothing is computed."""

        def run(inputs: Array, rows: Array) -> Any:
            keys = {"params": jax.random.key(0)}
            return call("init", keys, inputs, train, rows if masked else None, rows, mutable=_mutable())

        jax.eval_shape(run, *_many(inputs))

    takes_mask = _mask_rule(arguments, mask, trace)

    def read_without(kind: str, variables: PyTree, inputs: Array) -> None:
        """Trace a prediction without one collection, which fails unless values are only sown into it."""
        rest = {name: tree for name, tree in variables.items() if name != kind}
        jax.eval_shape(lambda: call("apply", rest, inputs, False, None, None, mutable=[]))

    def init(key: Array, inputs: Array) -> Variables:
        found: list[tuple[str, ...]] = []
        with nn.intercept_methods(_notes_statistics(found)):
            variables = dict(call("init", {"params": key}, inputs, False, None, None, mutable=_mutable()))
        params, stats = variables.pop("params", {}), variables
        other = {
            kind: ["/".join(path) for path in flatten_dict(tree) if not any(path[: len(p)] == p for p in found)]
            for kind, tree in stats.items()
        }
        for kind in filter(other.get, other):
            if _traces(read_without, kind, {"params": params, **stats}, inputs):
                raise _sown(name, kind)
            if not takes_mask(inputs):
                raise InputError(f"{name} {MASK_ADVICE.format(where=f'{kind}/{other[kind][0]}')}")
        if found and mask == "auto":
            # Whether the first axis of what a BatchNorm layer normalizes is that of the examples.
            _traces(trace, inputs, True, takes_mask(inputs))
        return Variables(params, stats)

    def apply(
        variables: Variables, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        collections, given = {"params": variables.params, **variables.stats}, mask if takes_mask(inputs) else None
        mutable = _mutable("params") if train else []

        def run(rngs: Mapping[str, Array] | None) -> Any:
            return call("apply", collections, inputs, train, given, mask, rngs=rngs, mutable=mutable)

        outputs, stats = _with_streams(name, run, key)
        for kind in stats:
            if kind not in variables.stats:
                raise _sown(name, kind)
        return outputs, {**variables.stats, **stats} if train else variables.stats

    return Model(init, apply)


def from_nnx(
    make: Callable[[nnx.Rngs], nnx.Module],
    *,
    train: str | None = "auto",
    inverted: bool = False,
    mask: str | None = "auto",
) -> Model:
    """Return an NNX module as a Model, from a function that makes it: `from_nnx(lambda rngs: Net(rngs=rngs))`.

    train: the argument of `__call__`, or the attribute of the module and its parts, that switches to training mode;
    None if there is none. By default `train`, where the module takes it; Dropout and BatchNorm are switched always.
    `inverted` and `mask` are as for `from_linen`, and a BatchNorm layer that is given no mask gets that of the
    examples.

    nnx.Param is trained, nnx.BatchStat is kept as stats, and every random stream is keyed anew each step. Raises
    InputError for a module that holds any other state, and for what `from_linen` refuses.

    >>> from flax import nnx
    >>> model = from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
    >>> variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
    >>> model.apply(variables, jnp.ones((2, 4)), train=False)[0].shape
    (2, 3)
    """
    # Imported here: NNX is not part of what `import jaxdl` promises to load.
    from flax import nnx

    if isinstance(make, nnx.Module) or not callable(make):
        raise InputError(
            f"from_nnx needs a function that makes a module, got {type(make).__name__}. Write "
            f"from_nnx(lambda rngs: {type(make).__name__}(..., rngs=rngs))."
        )

    def parts(module: nnx.Module) -> tuple[Any, ...]:
        return nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)

    def made() -> nnx.Module:
        module = make(nnx.Rngs(0))
        if not isinstance(module, nnx.Module):
            raise InputError(f"from_nnx needs a function that makes an nnx.Module, got {type(module).__name__}.")
        return module

    module = nnx.eval_shape(made)
    name = type(module).__name__
    _, param_shapes, stat_shapes, random, other = parts(module)
    if jax.tree.leaves(other):
        kinds = sorted({type(leaf).__name__ for _, leaf in nnx.to_flat_state(other)})
        raise InputError(f"{name} must hold Param, BatchStat and RngState only, got {kinds}.")
    signature = _nnx_signature(module, train)
    arguments = _arguments("from_nnx", name, signature, train, inverted, mask)
    if any(parameter.name == "rngs" for parameter in signature.parameters) and not jax.tree.leaves(random):
        arguments = arguments._replace(rngs=True)
    norms = [
        (path, node) for path, node in nnx.iter_graph(module) if isinstance(node, (nnx.BatchNorm, nnx.SpectralNorm))
    ]
    stat_paths = [path for path, _ in nnx.to_flat_state(stat_shapes)]
    bare = [path for path in stat_paths if not any(path[: len(norm)] == norm for norm, _ in norms)]
    for _, norm in norms:
        if isinstance(norm, nnx.BatchNorm):
            object.__setattr__(norm, "__class__", _masked_class(type(norm)))
    own = {arguments.switch: not arguments.inverted} if arguments.switch and arguments.place == "field" else {}
    module.train(**own)
    training = nnx.graphdef(module)
    module.eval(**{name: not value for name, value in own.items()})
    evaluating = nnx.graphdef(module)

    def call(
        variables: Variables, inputs: Array, train: bool, key: Array | None, given: Array | None, rows: Array | None
    ) -> tuple[Any, nnx.Module]:
        key = jax.random.key(0) if key is None else key
        live = nnx.merge(
            training if train else evaluating,
            _filled(param_shapes, variables.params),
            _filled(stat_shapes, variables.stats),
            _streams(random, key),
        )
        positional, keywords = _placed(arguments, inputs, train, given)
        if arguments.rngs:
            keywords["rngs"] = nnx.Rngs(key)
        norms_of_call: list[Any] = [node for _, node in nnx.iter_modules(live) if isinstance(node, nnx.BatchNorm)]
        for node in norms_of_call if train else ():
            # No two calls are alike, because nnx.jit would compute with the mask of the call before.
            node.call = next(_CALLS)
        before = _ROWS.set(rows)
        try:
            return live(*positional, **keywords), live
        finally:
            _ROWS.reset(before)

    def trace(inputs: Array, train: bool, masked: bool) -> None:
        def run(variables: Variables, inputs: Array, rows: Array) -> Any:
            return call(variables, inputs, train, None, rows if masked else None, rows)[0]

        shapes = Variables(_named(nnx.to_pure_dict(param_shapes)), _named(nnx.to_pure_dict(stat_shapes)))
        jax.eval_shape(run, shapes, *_many(inputs))

    takes_mask = _mask_rule(arguments, mask, trace)

    if bare and arguments.mask is None:
        raise InputError(f"{name} {MASK_ADVICE.format(where='/'.join(map(str, bare[0])))}")

    def init(key: Array, inputs: Array) -> Variables:
        _, params, stats, _, _ = parts(make(nnx.Rngs(key)))
        if bare and not takes_mask(inputs):
            raise InputError(f"{name} {MASK_ADVICE.format(where='/'.join(map(str, bare[0])))}")
        if norms and mask == "auto":
            _traces(trace, inputs, True, takes_mask(inputs))
        return Variables(_named(nnx.to_pure_dict(params)), _named(nnx.to_pure_dict(stats)))

    def apply(
        variables: Variables, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        given = mask if takes_mask(inputs) else None
        outputs, live = call(variables, inputs, train, key, given, mask)
        for _, leaf in nnx.to_flat_state(nnx.state(live)):
            if not isinstance(leaf, (nnx.Param, nnx.BatchStat, nnx.RngState, nnx.Intermediate, nnx.Perturbation)):
                raise _sown(name, type(leaf).__name__)
        return outputs, _named(nnx.to_pure_dict(nnx.state(live, nnx.BatchStat))) if train else variables.stats

    return Model(init, apply)


def _named(tree: PyTree) -> PyTree:
    """Lists of layers have numbers for keys, which files cannot keep apart from strings: all become strings."""
    return {str(key): _named(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _filled(shapes: Any, values: PyTree) -> Any:
    from flax import nnx

    def numbered(like: PyTree, named: PyTree) -> PyTree:
        return (
            {key: numbered(value, named[str(key)]) for key, value in like.items()} if isinstance(like, dict) else named
        )

    state = jax.tree.map(lambda leaf: leaf, shapes)
    nnx.replace_by_pure_dict(state, numbered(nnx.to_pure_dict(shapes), values))
    return state


def _streams(random: Any, key: Array) -> Any:
    """Every stream's key drawn from the step's key and its count set to 0 (`nnx.reseed` skips the default stream).

    The streams of layers that `nnx.vmap` has stacked have leading axes: each layer gets a key of its own.
    """
    leaves, structure = jax.tree.flatten(random)
    keys = iter(jax.random.split(key, max(len(leaves), 1)))

    def anew(leaf: Any) -> Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jax.random.split(next(keys), leaf.shape) if leaf.shape else next(keys)

    return jax.tree.unflatten(structure, [anew(leaf) for leaf in leaves])


@cache
def _masked_class(kind: type) -> type:
    """A subclass of an NNX BatchNorm that uses the mask of the examples where it is called without a mask."""
    from flax import nnx

    class Masked(nnx.BatchNorm):
        def __call__(self, inputs: Any, use_running_average: bool | None = None, *, mask: Array | None = None) -> Any:
            average = self.use_running_average if use_running_average is None else use_running_average
            if mask is None and not average:
                mask = _rows_for(kind.__name__, "the module", inputs, self.axis, self.axis_name, _ROWS.get())
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


def _completes(name: str, train: bool, rows: Array | None) -> Callable[..., Any]:
    """Return an interceptor that gives layers the switch and the mask that the module leaves open."""

    def complete(following: Any, positional: Any, keywords: Any, context: Any) -> Any:
        layer = context.module
        # A layer that nn.vmap or nn.remat has made calls the layer itself.
        lifted = type(layer).__module__ == "flax.linen.transforms"
        if context.method_name != "__call__" or lifted or not isinstance(layer, _OPEN):
            return following(*positional, **keywords)
        signature = inspect.signature(context.orig_method)
        bound = signature.bind_partial(*positional, **keywords)
        given = bound.arguments
        for switch in ("deterministic", "use_running_average"):
            if switch in signature.parameters and given.get(switch) is getattr(layer, switch, None) is None:
                given[switch] = not train
        if isinstance(layer, _NORMS) and "mask" in signature.parameters and given.get("mask") is None:
            average = given.get("use_running_average", None)
            average = getattr(layer, "use_running_average", None) if average is None else average
            if not average and given.get("train", True):
                where = "/".join(layer.path) or name
                axis, mapped = getattr(layer, "axis", -1), getattr(layer, "axis_name", None)
                given["mask"] = _rows_for(where, name, next(iter(given.values())), axis, mapped, rows)
        return following(*bound.args, **bound.kwargs)

    return complete


def _notes_statistics(paths: list[tuple[str, ...]]) -> Callable[..., Any]:
    """Return an interceptor that lists the layers whose statistics count no padding, by their paths."""

    def note(following: Any, positional: Any, keywords: Any, context: Any) -> Any:
        # Spectral norms are statistics of the parameters alone.
        if isinstance(context.module, (*_NORMS, nn.SpectralNorm)):
            paths.append(context.module.path)
        return following(*positional, **keywords)

    return note


def _rows_for(layer: str, name: str, inputs: Array, axis: Any, mapped: str | None, rows: Array | None) -> Array | None:
    """Return the mask of the examples as a BatchNorm layer takes it, of the inputs' number of axes.

    axis: of the features; mapped: the name of a mapped axis, over which the layer averages, too. Raises InputError
    where the first axis of the inputs is not that of the examples.
    """
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    if rows is None or (mapped is None and any(number % inputs.ndim == 0 for number in axes)):
        return None
    if inputs.shape[0] != rows.shape[0]:
        raise InputError(
            f"the BatchNorm layer {layer} normalizes inputs whose first axis is not that of the examples (shape "
            f"{inputs.shape} for {rows.shape[0]} examples), so the padding of a short batch would be counted. Let "
            f"{name}.__call__ take mask ((B,) bool, False for padding) and hand the layer a mask of its inputs' shape."
        )
    return rows.reshape(-1, *[1] * (inputs.ndim - 1))


def _with_streams(name: str, run: Callable[..., Any], key: Array | None) -> Any:
    """Return what a Linen module gives with a key for every stream that it draws from.

    "params" is a stream only where nothing else helps: Flax would draw from it in place of a missing one, and nn.scan
    and nn.vmap would then not split that one.
    """
    streams = ["dropout"]
    while True:
        keys = {} if key is None else {stream: _key_of(stream, key) for stream in streams}
        try:
            return run(keys)
        except InvalidRngError as error:
            missing = re.search('needs PRNG for "(.+)"', str(error))
            if key is None and missing:
                raise InputError(
                    f"{name} draws from the stream {missing[1]!r} where no key is given, as in evaluation. Let it draw "
                    "where train is True only: nn.Dropout(0.5, deterministic=not train), say."
                ) from error
            more = [stream for stream in ([missing[1]] if missing else []) + ["params"] if stream not in streams]
            if key is None or not more:
                raise
            streams.append(more[0])


def _mutable(*fixed: str) -> Any:
    """Return the collections that a call changes: all but those that are fixed and those that Flax drops."""
    # No two calls are alike, because nn.jit would compute with the mask of the call before.
    return DenyList((*fixed, *DROPPED, f"call {next(_CALLS)}"))


def _key_of(stream: str, key: Array) -> Array:
    # Dropout has the key itself, as Flax has with rngs={"dropout": key}.
    return key if stream == "dropout" else jax.random.fold_in(key, zlib.crc32(stream.encode()))


def _sown(name: str, kind: str) -> InputError:
    return InputError(
        f"{name} sows values into {kind!r}, which is not added to the loss. Return them as one more column of the "
        "outputs and add it in the loss, or leave the sowing out."
    )


def _many(inputs: Array) -> tuple[Any, Any]:
    """Return the shapes of a batch of many examples and of its mask."""
    return jax.ShapeDtypeStruct((MANY, *inputs.shape[1:]), inputs.dtype), jax.ShapeDtypeStruct((MANY,), bool)


def _traces(trace: Callable[..., Any], *arguments: object) -> bool:
    """Return whether a function can be traced; an InputError is passed on."""
    try:
        trace(*arguments)
    except InputError:
        raise
    except Exception:  # Whatever a module raises.
        return False
    return True


def _mask_rule(arguments: Arguments, mask: str | None, trace: Callable[..., None]) -> Callable[[Array], bool]:
    """Return a function of inputs that says whether the mask of the examples is an argument of the module.

    By default it is one where the module can be traced with a mask (B,), which no attention mask (B, T) allows.
    """

    @cache
    def accepts(shape: tuple[int, ...], dtype: DTypeLike) -> bool:
        inputs = jax.ShapeDtypeStruct(shape, dtype)
        masked = all(_traces(trace, inputs, train, True) for train in (False, True))
        return masked or not _traces(trace, inputs, False, False)

    def takes_mask(inputs: Array) -> bool:
        return arguments.mask is not None and (mask != "auto" or accepts((1, *inputs.shape[1:]), inputs.dtype))

    return takes_mask


class _Signature(NamedTuple):
    """What a module's `__call__` takes, and which switches the module settles itself or holds as values."""

    parameters: list[inspect.Parameter]
    settled: set[str]
    values: dict[str, Any]


def _parameters(layer: Any) -> list[inspect.Parameter]:
    """Return the parameters of a module's `__call__`, or of a function."""
    try:
        if isinstance(layer, nn.Module):
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
            names = [p.name for p in _parameters(other) if p.name in SWITCHES or _is_switch(p)]
            if names and not _is_stock(other):
                raise InputError(
                    f"nn.Sequential hands {names[0]} to none but its first layer, and {type(other).__name__} takes it, "
                    "too. Write a module whose __call__ takes train and hands it to its layers."
                )
        layer = layer.layers[0]
    parameters = _parameters(layer)
    if not isinstance(layer, nn.Module):
        return _Signature(parameters, set(), {})
    values = {field.name: getattr(layer, field.name, None) for field in dataclasses.fields(layer)}
    if not _is_stock(layer):
        return _Signature(parameters, set(), values if layer is module else {})
    return _Signature(parameters, set(SWITCHES) & set(values), {})


def _is_stock(layer: object) -> bool:
    """Return whether a layer is one of Flax's own whose open switch follows the training mode."""
    return type(layer) in (nn.Dropout, nn.BatchNorm) or type(layer).__module__ == "flax.linen.attention"


def _nnx_signature(module: nnx.Module, train: str | None) -> _Signature:
    from flax import nnx

    layer: Any = module
    while isinstance(layer, nnx.Sequential) and layer.layers:
        layer = layer.layers[0]
    call = type(layer).__call__ if isinstance(layer, nnx.Module) else layer
    parameters = list(inspect.signature(call).parameters.values())[isinstance(layer, nnx.Module) :]
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
    """Return whether an argument is Boolean, by its default or its annotation."""
    kind = parameter.annotation
    text = kind if isinstance(kind, str) else "bool" if kind is bool else str(kind)
    return isinstance(parameter.default, bool) or re.search(r"\bbool\b", text) is not None


def _arguments(
    function: str, name: str, signature: _Signature, train: str | None, inverted: bool, mask: str | None
) -> Arguments:
    """Return how a module is called. Raises InputError for an argument that nobody sets."""
    kinds = inspect.Parameter
    takes = {p.name: p for p in signature.parameters if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)}
    starred = any(p.kind == kinds.VAR_KEYWORD for p in signature.parameters)
    if train == "auto":
        switch = "train" if "train" in takes or isinstance(signature.values.get("train"), bool) else None
    else:
        switch = train
    for argument, value in (("train", train), ("mask", mask)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{function} needs the name of an argument as {argument}, or None, got {value!r}.")
        if value in (None, "auto") or value in takes or starred or (argument == "train" and value in signature.values):
            continue
        raise InputError(f"{name}.__call__ does not take {value}, which {argument}= names. It takes {_listed(takes)}.")
    if switch is not None and SWITCHES.get(switch, inverted) != inverted:
        raise InputError(
            f"{switch} is {'True' if not inverted else 'False'} in evaluation. Write "
            f"{_line(function, switch, not inverted)}."
        )
    place = "keyword" if switch in takes or switch not in signature.values else "field"
    masked = mask if mask != "auto" else "mask" if "mask" in takes else None
    known = [p for p in takes.values() if p.name in SWITCHES or _is_switch(p)]
    _check_switches(function, name, known, signature, train, switch, starred)
    candidates = [p for p in takes.values() if p not in known and p.name not in (switch, masked)]
    required = [p.name for p in candidates if p.default is kinds.empty]
    rngs = function == "from_nnx" and "rngs" in required
    if rngs:
        required.remove("rngs")
    if len(required) > 1:
        draws = [key for key in required if key in ("rng", "rngs", "key")]
        raise InputError(
            f"{name}.__call__ needs {_listed(required)}, and a model is given one array of inputs. "
            + (f"Leave {draws[0]} out and draw with self.make_rng('dropout')." if draws else "")
            + ("" if draws else "Give all but one a default value, or let it take one array and split that; ")
            + ("" if draws else f'a switch of training is named by {_whole(function)}, train="{required[-1]}").')
        )
    first = required[0] if required else next((p.name for p in candidates), None)
    if first is None and not any(p.kind == kinds.VAR_POSITIONAL for p in signature.parameters):
        raise InputError(f"{name}.__call__ takes no inputs. Let it take an array of inputs, (B, ...).")
    positional = [p.name for p in takes.values() if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    leads = first is None or positional[:1] == [first]
    if place == "keyword" and leads and positional[1:2] == [switch]:
        # nn.remat takes a constant by its position only.
        place = "second"
    empty = masked in takes and takes[masked].default is kinds.empty
    return Arguments(None if leads else first, switch, place, inverted, masked, empty, rngs)


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
    if switch is None:
        unset += [key for key, value in signature.values.items() if key in SWITCHES and isinstance(value, bool)]
    else:
        # The switch is named; what else is Boolean keeps its default, unless it is another switch.
        unset = [key for key in unset if key in SWITCHES]
    if unset and switch is not None:
        raise InputError(
            f"{name} takes {switch} and {unset[0]}, and {function} sets one of them. Let its __call__ take train and "
            "set the others from it."
        )
    if unset:
        held = "holds" if unset[0] in signature.values and unset[0] not in {p.name for p in known} else "takes"
        lines = (
            [_line(function, unset[0], SWITCHES[unset[0]])]
            if unset[0] in SWITCHES
            else [
                f"{_line(function, unset[0], False)} if it is True in training",
                f"{_line(function, unset[0], True)} if it is True in evaluation",
            ]
        )
        lines.append(f"{_whole(function)}, train=None) to leave it as it is")
        raise InputError(
            f"{name}{'.__call__' * (held == 'takes')} {held} {unset[0]}, which nothing would set. Write "
            f"{', '.join(lines[:-1])}, or {lines[-1]}."
        )
    if starred and switch is None:
        raise InputError(
            f"{name}.__call__ takes **keywords, among which may be a switch of training that nothing would set. Write "
            f'{_whole(function)}, train="train") or {_whole(function)}, train="deterministic", inverted=True) with its '
            f"name, or {_whole(function)}, train=None) if there is none."
        )


def _line(function: str, switch: str, inverted: bool) -> str:
    return f'{_whole(function)}, train="{switch}"{", inverted=True" * inverted})'


def _whole(function: str) -> str:
    return f"{function}({'module' if function == 'from_linen' else 'make'}"


def _listed(names: Any) -> str:
    return ", ".join(names) or "nothing"


def _placed(arguments: Arguments, inputs: Array, train: bool, mask: Array | None) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and keyword arguments of a call."""
    positional: list[Any] = [inputs] if arguments.inputs is None else []
    keywords: dict[str, Any] = {} if arguments.inputs is None else {arguments.inputs: inputs}
    if arguments.switch is not None and arguments.place == "second":
        positional.append(train != arguments.inverted)
    elif arguments.switch is not None and arguments.place == "keyword":
        keywords[arguments.switch] = train != arguments.inverted
    if arguments.mask is not None and (mask is not None or arguments.required):
        keywords[arguments.mask] = mask
    return positional, keywords
