"""The shipped networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdl.adapters import from_linen
from jaxdl.errors import InputError
from jaxdl.types import Array, Model

# Keras's values; Flax's own epsilon is 1e-5.
MOMENTUM, EPSILON = 0.99, 1e-3


class MLP(nn.Module):
    """Dense layers with relu between them: (B, F) -> (B, outputs) float32.

    With `input_norm` a BatchNorm comes first, which takes the place of standardising the inputs beforehand; its
    variance is taken in two passes, because Flax's faster form loses a column of large mean and small spread.
    """

    widths: Sequence[int]
    outputs: int = 1
    input_norm: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32  # of the computation; parameters stay float32
    kernel_init: Any = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        hidden = inputs
        if self.input_norm:
            norm = nn.BatchNorm(
                use_running_average=not train, momentum=MOMENTUM, epsilon=EPSILON, use_fast_variance=False
            )
            hidden = norm(hidden, mask=None if mask is None else mask[:, None])
        for width in self.widths:
            hidden = nn.relu(nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init)(hidden))
            if self.dropout:
                hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return nn.Dense(self.outputs, dtype=self.dtype, kernel_init=self.kernel_init)(hidden).astype(jnp.float32)


def mlp(
    widths: Sequence[int],
    *,
    outputs: int = 1,
    input_norm: bool = False,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
) -> Model:
    """The MLP as a Model: hidden layers of the given widths, none for a linear model.

    Initial values are Keras's (kernels glorot uniform, biases 0), BatchNorm's momentum 0.99 and epsilon 1e-3 too.
    `dtype` is that of the computation, such as bfloat16; parameters and outputs are float32. Raises
    InputError for widths below 1 and a dropout rate outside [0, 1).

    >>> import jax
    >>> model = mlp((100, 50), input_norm=True)
    >>> weights = model.init(jax.random.key(0), jnp.ones((1, 89)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(weights))
    14457
    """
    if any(width < 1 for width in (*widths, outputs)):
        raise InputError(f"widths must be at least 1, got {tuple(widths)} and outputs={outputs}.")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be a rate from 0 to below 1, got {dropout}.")
    return from_linen(MLP(tuple(widths), outputs, input_norm, dropout, jnp.dtype(dtype)))
