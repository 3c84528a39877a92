"""Dense networks and ConvNets as models, and the record that builds them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxdl._checks import check_choice, explain_calls, given_as, number, sizes, whole_number
from jaxdl._jit import is_traced
from jaxdl.data.arrays import precision
from jaxdl.errors import InputError
from jaxdl.nn.adapters import from_linen
from jaxdl.nn.augment import with_flip_averaging
from jaxdl.nn.layers import BatchNorm, Conv, Dropout, Flatten, MaxPool, check_rate
from jaxdl.types import Array, Model

# Keras's values; Flax's own epsilon is 1e-5.
MOMENTUM, EPSILON = 0.99, 1e-3


class MLP(nn.Module):
    """Dense layers with relu between them: (B, F) -> (B, outputs) in the dtype's `precision`.

    With `input_norm` a BatchNorm comes first, which takes the place of standardizing the inputs beforehand; its
    variance is taken in two passes, because Flax's faster form loses a column of large mean and small spread.
    """

    widths: Sequence[int]
    outputs: int = 1
    input_norm: bool = False
    dropout: float | Array = 0.0
    dtype: Any = jnp.float32  # of the computation; parameters are in its `precision`, float32 or float64
    kernel_init: Any = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        hidden, kept = inputs, precision(self.dtype)
        if self.input_norm:
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=MOMENTUM,
                epsilon=EPSILON,
                use_fast_variance=False,
                param_dtype=kept,
                # Else the moving moments would be float32 always.
                force_float32_reductions=kept == jnp.float32,
            )
            hidden = norm(hidden.astype(kept), mask=None if mask is None else mask[:, None])
        dense = partial(nn.Dense, dtype=self.dtype, param_dtype=kept, kernel_init=self.kernel_init)
        for width in self.widths:
            hidden = nn.relu(dense(width)(hidden))
            if is_traced(self.dropout) or self.dropout:
                hidden = Dropout(self.dropout)(hidden, train=train)
        return dense(self.outputs)(hidden).astype(kept)


@explain_calls
def mlp(
    widths: Sequence[int],
    *,
    outputs: int = 1,
    input_norm: bool = False,
    dropout: float | Array = 0.0,
    dtype: DTypeLike = jnp.float32,
    init_scale: float | Array = 1.0,
) -> Model:
    """The MLP as a Model: hidden layers of the given widths, none for a linear model.

    Initial values are Keras's (kernels glorot uniform, biases 0), BatchNorm's momentum 0.99 and epsilon 1e-3 too;
    `init_scale` is a factor on the initial kernels' standard deviation. `dtype` is that of the computation, such as
    bfloat16; parameters and outputs are float32, or float64 where it is float64 and `jax_enable_x64` is set. `dropout`
    and `init_scale` may be traced, so that one program serves many of them. Raises InputError for widths below 1, a
    dropout rate outside [0, 1) and an `init_scale` that is not positive.

    >>> import jax
    >>> model = mlp((100, 50), input_norm=True)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 89)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
    14457
    """
    widths, outputs = sizes("widths", widths), whole_number("outputs", outputs, 1)
    check_rate(dropout)
    if not is_traced(init_scale) and not 0 < number("init_scale", init_scale) < math.inf:
        raise InputError(f"init_scale must be a positive number, got {init_scale}. Use 1.0 for Keras's initial values.")
    # Glorot uniform, where the scale is 1.
    kernels = nn.initializers.variance_scaling(init_scale**2, "fan_avg", "uniform")
    net = MLP(widths, outputs, input_norm, dropout, _dtype(dtype), kernels)
    return from_linen(net, mask="mask")


def _dtype(dtype: DTypeLike) -> Any:
    """Return a floating dtype. Raises InputError for anything else."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        raise InputError(f"dtype must be a floating dtype, got {given_as(dtype)}. Use jnp.float32, say.") from None
    if not jnp.issubdtype(found, jnp.floating):
        raise InputError(f"dtype must be a floating dtype, got {found}. Use jnp.float32, say.")
    return found


class ConvNet(nn.Module):
    """Convolutions, then dense layers, relu after each but the last: (B, H, W, C) images to (B, outputs) numbers.

    With `pool` every convolution is followed by 2x2 max pooling, and by dropout where there is a rate.
    """

    filters: Sequence[int]
    widths: Sequence[int] = ()
    outputs: int = 10
    kernel: int = 3
    padding: str = "VALID"
    pool: bool = False
    dropout: float | Array = 0.0
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        hidden = unit_range(images, self.dtype)
        layer = partial(Conv, kernel=self.kernel, padding=self.padding, dtype=self.dtype, kernel_init=self.kernel_init)
        for filters in self.filters:
            _check_fit(hidden, self.kernel if self.padding == "VALID" else 1, 2 if self.pool else 1)
            hidden = nn.relu(layer(filters)(hidden))
            if self.pool:
                hidden = MaxPool()(hidden)
            if is_traced(self.dropout) or self.dropout:
                hidden = Dropout(self.dropout)(hidden, train=train)
        hidden, kept = Flatten()(hidden), precision(self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype, param_dtype=kept, kernel_init=self.kernel_init)
        for width in self.widths:
            hidden = nn.relu(dense(width)(hidden))
        return dense(self.outputs)(hidden).astype(kept)


def unit_range(images: Array, dtype: DTypeLike = jnp.float32) -> Array:
    """Images of bytes as floats from 0 to 1; images of floats only change their dtype.

    Raises InputError for other integers.

    >>> unit_range(jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    if jnp.issubdtype(images.dtype, jnp.integer) and images.dtype != jnp.uint8:
        raise InputError(f"images must be uint8, from 0 to 255, or floats, got {images.dtype}. Convert them first.")
    return images.astype(dtype) / 255 if images.dtype == jnp.uint8 else images.astype(dtype)


@explain_calls
def convnet(
    filters: Sequence[int],
    *,
    widths: Sequence[int] = (),
    outputs: int = 10,
    kernel: int = 3,
    padding: str = "VALID",
    pool: bool = False,
    dropout: float | Array = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> Model:
    """A ConvNet as a Model of (B, H, W, C) images, uint8 (scaled to 0..1 on the device) or float: logits of classes.

    filters: of each convolution, none for a dense network on the flattened image; widths: of the dense layers after
    them. pool: 2x2 max pooling after each convolution; dropout: its rate, after each pooling, which may be traced.
    Initial values are Keras's; `dtype` is as for `mlp`. Raises InputError for sizes below 1, a dropout rate outside
    [0, 1) and, from `init`, for images that are too small.

    >>> import jax
    >>> small = convnet((50, 50))
    >>> variables = jax.eval_shape(small.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8))
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
    415960
    """
    filters, widths = sizes("filters", filters), sizes("widths", widths)
    outputs, kernel = whole_number("outputs", outputs, 1), whole_number("kernel", kernel, 1)
    check_rate(dropout)
    check_choice("padding", padding, ("VALID", "SAME"))
    net = ConvNet(filters, widths, outputs, kernel, padding, pool, dropout, _dtype(dtype))
    return from_linen(net)


class ResidualNet(nn.Module):
    """Convolution and residual blocks with BatchNorm, three times halved: (B, H, W, C) images to (B, outputs) numbers.

    A stem of `width` filters, then three stages of 2, 4 and 8 times as many: convolution, pooling, and two more
    convolutions around which the input is led, the middle stage without these. What is greatest over the whole image
    decides. Source: the nine layers of Page's "How to train your ResNet" (2018).
    """

    width: int = 64
    outputs: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        layer = partial(
            Conv, padding="SAME", use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.he_uniform()
        )

        def block(inputs: Array, filters: int, pool: bool = False) -> Array:
            hidden = layer(filters)(inputs)
            hidden = MaxPool()(hidden) if pool else hidden
            return nn.relu(BatchNorm(momentum=0.9, epsilon=1e-5, dtype=self.dtype)(hidden, train=train, mask=mask))

        _check_fit(images, 1, 8)
        hidden = block(unit_range(images, self.dtype), self.width)
        for stage, factor in enumerate((2, 4, 8)):
            hidden = block(hidden, factor * self.width, pool=True)
            if stage != 1:
                hidden += block(block(hidden, factor * self.width), factor * self.width)
        features, kept = hidden.max((1, 2)), precision(self.dtype)
        return nn.Dense(self.outputs, dtype=self.dtype, param_dtype=kept)(features).astype(kept)


@explain_calls
def residual_net(width: int = 64, *, outputs: int = 10, dtype: DTypeLike = jnp.float32) -> Model:
    """A ResidualNet as a Model of (B, H, W, C) images of at least 8 x 8, uint8 or float: logits of classes.

    Raises InputError for a width or a number of outputs below 1.

    >>> import jax
    >>> images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    >>> variables = jax.eval_shape(residual_net(8).init, jax.random.key(0), images)
    >>> variables.params["Dense_0"]["kernel"].shape
    (64, 10)
    """
    width, outputs = whole_number("width", width, 1), whole_number("outputs", outputs, 1)
    return from_linen(ResidualNet(width, outputs, _dtype(dtype)), mask="mask")


def _check_fit(images: Array, kernel: int, pooling: int) -> None:
    if images.ndim != 4:
        raise InputError(f"a ConvNet needs images (rows, height, width, channels), got shape {images.shape}.")
    least = kernel - 1 + pooling
    if min(images.shape[1:3]) < least:
        raise InputError(
            f"the network, {'with pooling, ' * (pooling > 1)}needs images of at least {least} x {least} here, got "
            f"{images.shape[1]} x {images.shape[2]}. Use larger images, or fewer convolutions."
        )


KINDS: Mapping[str, Callable[..., Model]] = {"mlp": mlp, "convnet": convnet, "residual_net": residual_net}


class ModelSpec(NamedTuple):
    """A shipped network, described."""

    kind: str  # the function of `jaxdl.models` that makes it: mlp, convnet or residual_net
    arguments: Mapping[str, Any]  # of that function, as JSON can hold them: "float32" for a dtype
    flip_averaged: bool = False  # whether predictions are the mean of those of an image and of its mirror image


def build_model(network: ModelSpec) -> Model:
    """The model that is described.

    Raises InputError for a kind or an argument that there is not, and for values that its function does not take.

    >>> import jax, jax.numpy as jnp
    >>> model = build_model(ModelSpec("mlp", {"widths": [100, 50], "input_norm": True}))
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 89)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
    14457
    """
    make = KINDS.get(network.kind)
    if make is None:
        raise InputError(f"a network must be one of {', '.join(KINDS)}, got {network.kind!r}.")
    known = inspect.signature(make).parameters
    for name in network.arguments:
        if name not in known:
            raise InputError(f"a network of the kind {network.kind} takes {', '.join(known)}, got {name!r}.")
    try:
        model = make(**network.arguments)
    except (TypeError, ValueError) as error:  # InputError among them.
        given = dict(network.arguments)
        raise InputError(f"a network of the kind {network.kind} cannot be made of {given}: {error}") from error
    return with_flip_averaging(model) if network.flip_averaged else model


def to_json(network: ModelSpec) -> dict[str, Any]:
    """The description as JSON holds it; `from_json` reads it."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in network.arguments.items()}
    return {"kind": network.kind, "arguments": plain, "flip_averaged": network.flip_averaged}


def from_json(entry: object) -> ModelSpec:
    """The description that `to_json` wrote.

    Raises InputError for an entry that is anything else; `as_model` judges its kind and its arguments.
    """
    types = {"kind": str, "arguments": dict, "flip_averaged": bool}
    if (
        not isinstance(entry, dict)
        or entry.keys() != types.keys()
        or not all(isinstance(entry[name], kind) for name, kind in types.items())
    ):
        raise InputError(f"a network must be an object with kind, arguments and flip_averaged, got {entry!r}.")
    return ModelSpec(**entry)
