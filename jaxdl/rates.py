"""The learning rate inside the state of an optimiser."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdl.data import precision
from jaxdl.errors import InputError
from jaxdl.types import Array, PyTree


def learning_rate(opt_state: PyTree) -> Array | None:
    """The learning rate of the last step, a scalar; None where the state holds none (see `optax.inject_hyperparams`).

    >>> optimiser = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    >>> float(learning_rate(optimiser.init({})))
    0.5
    """
    found = optax.tree.get_all_with_path(opt_state, "learning_rate", filtering=_is_array)
    return found[0][1] if found else None


def rate_to_change(opt_state: PyTree, who: str = "reduce_on_plateau") -> Array:
    """The learning rate, where setting it has an effect; `who` sets it.

    Raises InputError where there is none, where there are several, where a schedule sets it, or where it is an integer.

    >>> optimiser = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    >>> float(rate_to_change(optimiser.init({})))
    0.5
    """
    rates = optax.tree.get_all_with_path(opt_state, "learning_rate", filtering=_is_array)
    scheduled = optax.tree.get_all_with_path(opt_state, "hyperparams_states")
    if len(rates) != 1 or any("learning_rate" in states for _, states in scheduled):
        raise InputError(
            f"{who} needs an optimiser whose state holds one learning rate that no schedule sets, got {len(rates)}."
            " Use optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), with a Python float."
        )
    rate: Array = rates[0][1]
    if not jnp.issubdtype(rate.dtype, jnp.floating):
        raise InputError(
            f"{who} needs a learning rate that is a float, got {rate.dtype}: its fractions would be cut off. "
            "Use learning_rate=1.0, not 1."
        )
    return rate


def with_learning_rate(opt_state: PyTree, rate: Array) -> PyTree:
    """The state with another learning rate, which keeps its dtype.

    >>> optimiser = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    >>> float(learning_rate(with_learning_rate(optimiser.init({}), jax.numpy.float32(0.25))))
    0.25
    """
    return optax.tree.set(opt_state, _is_array, learning_rate=rate.astype(rate_to_change(opt_state).dtype))


def with_float_rates(opt_state: PyTree) -> PyTree:
    """Return the state whose integer learning rates are floats of the same value, so that they can be lowered.

    >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=1)
    >>> learning_rate(with_float_rates(optimizer.init({}))).dtype
    dtype('float32')
    """

    def as_float(path: Any, leaf: Any) -> Any:
        last = path[-1] if path else None
        named = "learning_rate" in (getattr(last, "key", None), getattr(last, "name", None))
        whole = named and isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.integer)
        return leaf.astype(precision(leaf.dtype)) if whole else leaf

    return jax.tree_util.tree_map_with_path(as_float, opt_state)


def _is_array(path: Any, value: Any) -> bool:
    return isinstance(value, jax.Array)
