"""The learning rate inside the state of an optimiser."""

from __future__ import annotations

from typing import Any

import jax
import optax

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

    Raises InputError where there is none, where there are several, or where a schedule sets it.

    >>> optimiser = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    >>> float(rate_to_change(optimiser.init({})))
    0.5
    """
    rates = optax.tree.get_all_with_path(opt_state, "learning_rate", filtering=_is_array)
    scheduled = optax.tree.get_all_with_path(opt_state, "hyperparams_states")
    if len(rates) != 1 or any("learning_rate" in states for _, states in scheduled):
        raise InputError(
            f"{who} needs an optimiser whose state holds one learning rate that no schedule sets, got {len(rates)}."
            " Use optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), say."
        )
    return rates[0][1]


def with_learning_rate(opt_state: PyTree, rate: Array) -> PyTree:
    """The state with another learning rate, which keeps its dtype.

    >>> optimiser = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    >>> float(learning_rate(with_learning_rate(optimiser.init({}), jax.numpy.float32(0.25))))
    0.25
    """
    return optax.tree.set(opt_state, _is_array, learning_rate=rate.astype(rate_to_change(opt_state).dtype))


def _is_array(path: Any, value: Any) -> bool:
    return isinstance(value, jax.Array)
