"""Dense, convolutional and residual networks, and the record that describes one of them."""

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
from jaxdl._tree import is_traced
from jaxdl._values import as_value
from jaxdl.data.arrays import precision
from jaxdl.errors import InputError
from jaxdl.nn.adapters import from_linen
from jaxdl.nn.augment import with_flip_averaging
from jaxdl.nn.layers import BatchNorm, Conv, Dropout, Flatten, MaxPool, check_rate
from jaxdl.types import Array, Model

# Keras's values; Flax's own epsilon is 1e-5.
MOMENTUM, EPSILON = 0.99, 1e-3


class MLP(nn.Module):
    """Dense layers with relu between them: (B, F) to (B, outputs), float32, or float64 where `dtype` is.

    With `input_norm` the first layer is a BatchNorm, in place of standardized inputs. Its variance is computed in two
    passes, because Flax's faster form loses a feature with a large mean and a small standard deviation.
    """

    widths: Sequence[int]
    outputs: int = 1
    input_norm: bool = False
    dropout: float | Array = 0.0
    dtype: Any = jnp.float32  # of the computation; parameters are in its `precision`, float32 or float64
    kernel_init: Any = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        hidden, param_dtype = inputs, precision(self.dtype)
        if self.input_norm:
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=MOMENTUM,
                epsilon=EPSILON,
                use_fast_variance=False,
                param_dtype=param_dtype,
                # Else the moving moments would be float32 always.
                force_float32_reductions=param_dtype == jnp.float32,
            )
            hidden = norm(hidden.astype(param_dtype), mask=None if mask is None else mask[:, None])
        dense = partial(nn.Dense, dtype=self.dtype, param_dtype=param_dtype, kernel_init=self.kernel_init)
        for width in self.widths:
            hidden = nn.relu(dense(width)(hidden))
            if is_traced(self.dropout) or self.dropout:
                hidden = Dropout(self.dropout)(hidden, train=train)
        return dense(self.outputs)(hidden).astype(param_dtype)


@as_value
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
    """Return an MLP as a Model: (B, F) to (B, outputs).

    widths: of the hidden layers; () makes a linear model. input_norm: BatchNorm of the inputs. Initial values (kernels
    glorot uniform, biases 0) and BatchNorm's momentum 0.99 and epsilon 1e-3 are Keras's; `init_scale` is a factor on
    the standard deviation of the initial kernels. `dtype` is that of the computation, such as bfloat16; parameters and
    outputs are float32, or float64 where `dtype` is float64 and `jax_enable_x64` is set. `dropout` and `init_scale` may
    be traced, so that one compiled function serves many values. Raises InputError for widths below 1, a dropout rate
    outside [0, 1) and an `init_scale` that is not positive.

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
    # For a scale of 1 this is glorot uniform.
    kernels = nn.initializers.variance_scaling(init_scale**2, "fan_avg", "uniform")
    net = MLP(widths, outputs, input_norm, dropout, _dtype(dtype), kernels)
    return from_linen(net, mask="mask")


def _dtype(dtype: DTypeLike) -> Any:
    """Return a floating dtype. Raises InputError for anything else."""
    try:
        floating = jnp.dtype(dtype)
    except TypeError:
        raise InputError(f"dtype must be a floating dtype, got {given_as(dtype)}. Use jnp.float32, say.") from None
    if not jnp.issubdtype(floating, jnp.floating):
        raise InputError(f"dtype must be a floating dtype, got {floating}. Use jnp.float32, say.")
    return floating


class ConvNet(nn.Module):
    """Convolutions, then dense layers, with relu between all of them: (B, H, W, C) images to (B, outputs).

    With `pool` 2x2 max pooling follows every convolution, and dropout follows where its rate is not 0.
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
        hidden, param_dtype = Flatten()(hidden), precision(self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype, param_dtype=param_dtype, kernel_init=self.kernel_init)
        for width in self.widths:
            hidden = nn.relu(dense(width)(hidden))
        return dense(self.outputs)(hidden).astype(param_dtype)


def unit_range(images: Array, dtype: DTypeLike = jnp.float32) -> Array:
    """Convert uint8 images to floats from 0 to 1, and floats to `dtype`. Raises InputError for other integers."""
    if jnp.issubdtype(images.dtype, jnp.integer) and images.dtype != jnp.uint8:
        raise InputError(f"images must be uint8, from 0 to 255, or floats, got {images.dtype}. Convert them first.")
    return images.astype(dtype) / 255 if images.dtype == jnp.uint8 else images.astype(dtype)


@as_value
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
    """Return a ConvNet as a Model: (B, H, W, C) images to (B, outputs) logits.

    Images are uint8, which the device scales to 0..1, or float. filters: of each convolution; () makes a dense network
    on the flattened image. widths: of the hidden dense layers. pool: 2x2 max pooling after each convolution. dropout:
    the rate after each convolution and its pooling, which may be traced. Initial values are Keras's; `dtype` is as for
    `mlp`. Raises InputError for sizes below 1, a dropout rate outside [0, 1) and, from `init`, for images that are too
    small.

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
    return from_linen(ConvNet(filters, widths, outputs, kernel, padding, pool, dropout, _dtype(dtype)))


class ResidualNet(nn.Module):
    """Convolutions and residual blocks with BatchNorm: (B, H, W, C) images to (B, outputs).

    A convolution of `width` filters, then three stages of 2, 4 and 8 times as many: convolution and 2x2 max pooling,
    and in the first and the third stage a residual block of two convolutions. A dense layer follows the maximum over
    the whole image. Source: the nine layers of Page's "How to train your ResNet" (2018).
    """

    width: int = 64
    outputs: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        kernel_init = nn.initializers.he_uniform()
        layer = partial(Conv, padding="SAME", use_bias=False, dtype=self.dtype, kernel_init=kernel_init)

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
        features, param_dtype = hidden.max((1, 2)), precision(self.dtype)
        return nn.Dense(self.outputs, dtype=self.dtype, param_dtype=param_dtype)(features).astype(param_dtype)


@as_value
@explain_calls
def residual_net(width: int = 64, *, outputs: int = 10, dtype: DTypeLike = jnp.float32) -> Model:
    """Return a ResidualNet as a Model: (B, H, W, C) images of at least 8 x 8, uint8 or float, to (B, outputs) logits.

    width: filters of the first convolution. Raises InputError for a width or a number of outputs below 1.

    >>> import jax
    >>> images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    >>> variables = jax.eval_shape(residual_net(8).init, jax.random.key(0), images)
    >>> variables.params["Dense_0"]["kernel"].shape
    (64, 10)
    """
    width, outputs = whole_number("width", width, 1), whole_number("outputs", outputs, 1)
    return from_linen(ResidualNet(width, outputs, _dtype(dtype)), mask="mask")


def _check_fit(images: Array, kernel: int, pooling: int) -> None:
    """Raise InputError for images that are too small for a convolution and the pooling after it."""
    if images.ndim != 4:
        raise InputError(f"a ConvNet needs images (batch, height, width, channels), got shape {images.shape}.")
    side = kernel - 1 + pooling
    if min(images.shape[1:3]) < side:
        raise InputError(
            f"the network, {'with pooling, ' * (pooling > 1)}needs images of at least {side} x {side} here, got "
            f"{images.shape[1]} x {images.shape[2]}. Use larger images, or fewer convolutions."
        )


KINDS: Mapping[str, Callable[..., Model]] = {"mlp": mlp, "convnet": convnet, "residual_net": residual_net}


class ModelSpec(NamedTuple):
    """The function of jaxdl that makes a model, and its arguments."""

    kind: str  # "mlp", "convnet" or "residual_net"
    arguments: Mapping[str, Any]  # of that function, as JSON can hold them: "float32" for a dtype
    flip_averaged: bool = False  # whether `with_flip_averaging` is applied


def build_model(network: ModelSpec) -> Model:
    """Return the model that a ModelSpec describes.

    Raises InputError for an unknown kind or argument, and for values that the kind's function does not take.

    >>> import jax
    >>> model = build_model(ModelSpec("mlp", {"widths": [100, 50], "input_norm": True}))
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 89)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
    14457
    """
    make = KINDS.get(network.kind)
    if make is None:
        raise InputError(f"the kind of a network must be one of {', '.join(KINDS)}, got {network.kind!r}.")
    known = inspect.signature(make).parameters
    for name in network.arguments:
        if name not in known:
            raise InputError(f"a network of the kind {network.kind} takes {', '.join(known)}, got {name!r}.")
    try:
        model = make(**network.arguments)
    except (TypeError, ValueError) as error:  # InputError among them.
        arguments = dict(network.arguments)
        raise InputError(f"a network of the kind {network.kind} cannot be made of {arguments}: {error}") from error
    return with_flip_averaging(model) if network.flip_averaged else model


def to_json(network: ModelSpec) -> dict[str, Any]:
    """Return a ModelSpec as JSON holds it, for `from_json`."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in network.arguments.items()}
    return {"kind": network.kind, "arguments": plain, "flip_averaged": network.flip_averaged}


def from_json(entry: object) -> ModelSpec:
    """Return the ModelSpec that `to_json` wrote. Raises InputError for anything else."""
    types = {"kind": str, "arguments": dict, "flip_averaged": bool}
    if (
        not isinstance(entry, dict)
        or entry.keys() != types.keys()
        or not all(isinstance(entry[name], kind) for name, kind in types.items())
    ):
        raise InputError(f"a network must be an object with kind, arguments and flip_averaged, got {entry!r}.")
    return ModelSpec(**entry)
