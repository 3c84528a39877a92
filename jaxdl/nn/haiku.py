"""Haiku networks as `Model(init, apply)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxdl._checks import ADAPTERS, package_of
from jaxdl.errors import InputError
from jaxdl.nn.adapters import (
    Arguments,
    _arguments,
    _can_trace,
    _large_batch,
    _layer_mask,
    _mask_rule,
    _Signature,
    named_switch,
)
from jaxdl.nn.rewriting import with_fast_convolutions
from jaxdl.types import Array, Model, PyTree, Variables

if TYPE_CHECKING:
    import haiku as hk


def from_haiku(
    transformed: hk.Transformed | hk.TransformedWithState,
    *,
    train: str | None = "auto",
    inverted: bool = False,
    mask: str | None = "auto",
) -> Model:
    """Return the pair of `hk.transform` or `hk.transform_with_state` as a Model.

    train: the argument of the transformed function that switches to training mode; None if there is none. By default
    the argument named `is_training`, `train` or alike. inverted: whether that switch is True in evaluation. mask: the
    argument that takes the mask of the examples, (B,) bool, False for padding; None if there is none. By default
    `mask`, where it accepts that shape. BatchNorm leaves padding out without it.

    Params and stats are Haiku's own dicts, so `transformed.apply(variables.params, variables.stats, key, inputs)` takes
    them. `init` calls the function in training mode, in which Haiku makes the state. Random layers draw from the key of
    the step.

    Raises InputError where Haiku is missing, for another object, and for an input or a switch that stays unset; from
    `init` for state of other layers than BatchNorm and SpectralNorm in a function that takes no mask.

    >>> import haiku as hk
    >>> model = from_haiku(hk.transform(lambda inputs: hk.nets.MLP((8, 3))(inputs)))
    >>> variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
    >>> model.apply(variables, jnp.ones((2, 4)), train=False)[0].shape
    (2, 3)
    """
    try:
        import haiku as hk
    except ImportError as error:
        raise InputError("from_haiku needs the package dm-haiku. Write pip install dm-haiku.") from error
    if not isinstance(transformed, (hk.Transformed, hk.TransformedWithState)):
        raise _kind_error(transformed)
    arguments_of_init = [*inspect.signature(transformed.init).parameters.values()][1:]
    with_state = isinstance(transformed, hk.TransformedWithState)
    # `hk.without_apply_rng` takes one argument off.
    added = len(inspect.signature(transformed.apply).parameters) - len(arguments_of_init)
    function = getattr(transformed.init, "_original_fn", None)
    name = getattr(function, "__name__", "the function").replace("<lambda>", "the lambda")
    signature, options = _Signature(arguments_of_init, set(), {}), (train, inverted, mask)
    if train == "auto":
        train, inverted = named_switch(signature, inverted)
    arguments = _arguments("from_haiku", name, signature, train, inverted, mask)
    network = _Network(transformed, options, name, arguments, with_state, added == (3 if with_state else 2))
    return Model(_Init(network), with_fast_convolutions(_Apply(network)))


@dataclass(frozen=True)
class _Network:
    """A transformed function, and how it is called."""

    transformed: Any
    options: tuple[Any, ...]
    name: str
    arguments: Arguments
    with_state: bool
    takes_key: bool

    @cached_property
    def takes_mask(self) -> Callable[[Array], bool]:
        return _mask_rule(self.arguments, self.options[2], self.trace)

    def trace(self, inputs: Array, train: bool, explicit: bool) -> None:
        """Trace a call with a batch of many examples; explicit: hand the mask over."""

        def run(inputs: Array, mask: Array) -> Any:
            key = jax.random.key(0)
            variables, _ = self.init(key, inputs)
            return self.call(variables, inputs, train, key, mask, explicit)

        jax.eval_shape(run, *_large_batch(inputs))

    def init(self, key: Array, inputs: Array) -> tuple[Variables, list[str]]:
        """Return the variables, and the names of the layers whose state counts no padding."""
        import haiku as hk

        layers: list[str] = []

        def note(following: Any, positional: Any, keywords: Any, context: Any) -> Any:
            # Spectral norms are statistics of the parameters alone.
            if context.orig_class in (hk.BatchNorm, hk.SpectralNorm) and context.method_name == "__call__":
                layers.append(context.module.module_name)
            return following(*positional, **keywords)

        positional, keywords = self.arguments.bind(inputs, True, None)
        with hk.intercept_methods(note):
            result = self.transformed.init(key, *positional, **keywords)
        params, stats = result if self.with_state else (result, {})
        mutable = hk.data_structures.to_mutable_dict
        return Variables(mutable(params), mutable(stats)), layers

    def call(
        self, variables: Variables, inputs: Array, train: bool, key: Array | None, mask: Array | None, explicit: bool
    ) -> tuple[Any, PyTree]:
        """Return the outputs and the new stats; explicit: hand the mask over."""
        import haiku as hk

        positional, keywords = self.arguments.bind(inputs, train, mask if explicit else None)
        state = (variables.stats,) if self.with_state else ()
        rng = (key,) if self.takes_key else ()
        with _masked_norms(self.name, mask):
            result = self.transformed.apply(variables.params, *state, *rng, *positional, **keywords)
        outputs, stats = result if self.with_state else (result, {})
        return outputs, hk.data_structures.to_mutable_dict(stats) if train else variables.stats


@dataclass(frozen=True)
class _Init:
    network: _Network

    def __value_key__(self) -> Any:
        return self.network.transformed, self.network.options

    def __call__(self, key: Array, inputs: Array) -> Variables:
        network = self.network
        variables, layers = network.init(key, inputs)
        explicit = network.takes_mask(inputs)
        places = [f"{layer}/" for layer in layers]
        unmasked = next((name for name in variables.stats if not f"{name}/".startswith(tuple(places))), None)
        if unmasked is not None and not explicit:
            raise InputError(
                f"{network.name} has state at {unmasked} that may count the padding of a short batch. Let it take mask "
                "((B,) bool, False for padding) and leave such examples out of the state."
            )
        if layers:
            # Raises for a BatchNorm layer whose inputs do not have the examples as their first axis.
            _can_trace(network.trace, inputs, True, explicit)
        return variables


@dataclass(frozen=True)
class _Apply:
    network: _Network

    def __value_key__(self) -> Any:
        return self.network.transformed, self.network.options

    def __call__(
        self, variables: Variables, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        try:
            return self.network.call(variables, inputs, train, key, mask, self.network.takes_mask(inputs))
        except ValueError as error:
            if key is None and "non-None PRNGKey" in str(error):
                raise InputError(
                    f"{self.network.name} draws random numbers where no key is given, as in evaluation. Let it draw in "
                    "training mode only: if is_training: x = hk.dropout(hk.next_rng_key(), 0.5, x), say."
                ) from error
            raise


def _kind_error(value: Any) -> InputError:
    kind = value.__name__ if isinstance(value, type) else type(value).__name__
    needs = f"from_haiku needs the pair of hk.transform or hk.transform_with_state, got {kind}."
    if package_of(value) != "haiku" and package_of(value) in ADAPTERS:
        return InputError(f"{needs} Use {ADAPTERS[package_of(value)]}.")
    line = "from_haiku(hk.transform_with_state(forward))"
    if inspect.isfunction(value):
        line = line.replace("forward", "forward" if value.__name__ == "<lambda>" else value.__name__)
    elif isinstance(value, type):
        line = line.replace("forward", f"lambda inputs: {kind}(...)(inputs)")
    return InputError(f"{needs} Write {line}.")


def _masked_norms(name: str, mask: Array | None) -> AbstractContextManager[Any]:
    """Return a context in which BatchNorm layers compute the moments of the examples where the mask is True."""
    import haiku as hk

    def normalize(following: Any, positional: Any, keywords: Any, context: Any) -> Any:
        if mask is None or context.orig_class is not hk.BatchNorm or context.method_name != "__call__":
            return following(*positional, **keywords)
        return _normalize(context.module, name, mask, following, *positional, **keywords)

    return hk.intercept_methods(normalize)


def _normalize(
    layer: Any,
    name: str,
    mask: Array,
    following: Callable[..., Array],
    inputs: Array,
    is_training: bool,
    test_local_stats: bool = False,
    scale: Array | None = None,
    offset: Array | None = None,
) -> Array:
    """Return what an `hk.BatchNorm` returns, with moments without padding.

    The variance is computed in two passes: that of Haiku loses a feature with a large mean and a small deviation.
    """
    import haiku as hk

    channel = layer.channel_index % inputs.ndim
    axes = [axis for axis in range(inputs.ndim) if axis != channel] if layer.axis is None else [*layer.axis]
    examples = None
    if is_training or test_local_stats:
        if layer.cross_replica_axis is not None:
            raise InputError(
                f"the BatchNorm layer {layer.module_name} has a cross_replica_axis, over which the padding of a short "
                "batch would be counted. Leave it out: a batch over several devices is one batch."
            )
        features = [axis for axis in range(inputs.ndim) if axis not in axes and axis - inputs.ndim not in axes]
        examples = _layer_mask(layer.module_name, name, inputs, features, None, mask)
    if examples is None:
        return following(inputs, is_training, test_local_stats, scale, offset)
    # The moments of a batch without examples are not used, but must be finite.
    counted = examples | ~examples.any()
    mean = jnp.mean(inputs, axes, keepdims=True, where=counted)
    variance = jnp.var(inputs, axes, keepdims=True, where=counted)
    if is_training:
        layer.mean_ema(mean)
        layer.var_ema(variance)
    shape = [1 if axis in axes else size for axis, size in enumerate(inputs.shape)]
    if layer.create_scale:
        scale = hk.get_parameter("scale", shape, inputs.dtype, layer.scale_init)
    if layer.create_offset:
        offset = hk.get_parameter("offset", shape, inputs.dtype, layer.offset_init)
    slope = jax.lax.rsqrt(variance + jnp.asarray(layer.eps, variance.dtype)) * (1 if scale is None else scale)
    return (inputs - mean) * slope + (0 if offset is None else offset)
