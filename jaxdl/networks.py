"""The shipped networks as data: what a file can say of one, so that it can be built again without the code that trained
it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxdl.augment import flip_averaged
from jaxdl.errors import InputError
from jaxdl.models import convnet, mlp, residual_net
from jaxdl.types import Model

KINDS: Mapping[str, Callable[..., Model]] = {"mlp": mlp, "convnet": convnet, "residual_net": residual_net}


class Network(NamedTuple):
    """A shipped network, described."""

    kind: str  # the function of `jaxdl.models` that makes it: mlp, convnet or residual_net
    arguments: Mapping[str, Any]  # of that function, as JSON can hold them: "float32" for a dtype
    flip_averaged: bool = False  # whether predictions are the mean of those of an image and of its mirror image


def as_model(network: Network) -> Model:
    """The model that is described.

    Raises InputError for a kind or an argument that there is not, and for values that its function does not take.

    >>> import jax, jax.numpy as jnp
    >>> model = as_model(Network("mlp", {"widths": [100, 50], "input_norm": True}))
    >>> weights = model.init(jax.random.key(0), jnp.ones((1, 89)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(weights))
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
    return flip_averaged(model) if network.flip_averaged else model


def to_json(network: Network) -> dict[str, Any]:
    """The description as JSON holds it; `from_json` reads it.

    >>> to_json(Network("mlp", {"widths": (8,)}))
    {'kind': 'mlp', 'arguments': {'widths': [8]}, 'flip_averaged': False}
    """
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in network.arguments.items()}
    return {"kind": network.kind, "arguments": plain, "flip_averaged": network.flip_averaged}


def from_json(entry: Any) -> Network:
    """The description that `to_json` wrote.

    Raises InputError for an entry that is anything else; `as_model` judges its kind and its arguments.

    >>> from_json({"kind": "mlp", "arguments": {"widths": [8]}, "flip_averaged": False})
    Network(kind='mlp', arguments={'widths': [8]}, flip_averaged=False)
    """
    types = {"kind": str, "arguments": dict, "flip_averaged": bool}
    if (
        not isinstance(entry, dict)
        or entry.keys() != types.keys()
        or not all(isinstance(entry[name], kind) for name, kind in types.items())
    ):
        raise InputError(f"a network must be an object with kind, arguments and flip_averaged, got {entry!r}.")
    return Network(**entry)
