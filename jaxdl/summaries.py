"""The table of a model's layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from jaxdl.adapters import linen_calls
from jaxdl.types import Model, PyTree

if TYPE_CHECKING:
    from rich.table import Table


class Layer(NamedTuple):
    """One row of a summary."""

    name: str
    kind: str
    shape: tuple[int, ...] | None  # of the output without the rows; None where the model does not tell
    trained: int  # parameters that gradients train
    moving: int  # numbers that are kept but not trained


class Summary(NamedTuple):
    """A model's layers and its totals."""

    layers: tuple[Layer, ...]
    trained: int
    moving: int

    @property
    def parameters(self) -> int:
        """All numbers that the model holds, as Keras counts them: trained or not."""
        return self.trained + self.moving


def summary(model: Model, inputs: Any) -> Summary:
    """The layers of a model that takes `inputs` (B, ...), in the order of their calls; nothing is computed.

    >>> import jax.numpy as jnp
    >>> from jaxdl import mlp
    >>> table = summary(mlp((100, 50)), jnp.ones((1, 89)))
    >>> [layer.trained for layer in table.layers], table.parameters
    ([9000, 5050, 51], 14101)
    """
    weights = jax.eval_shape(model.init, jax.random.key(0), inputs)
    trained = _sizes(weights.params)
    calls = linen_calls(model, inputs)
    moving: dict[tuple[str, ...], int] = {}
    # Linen keeps statistics by collection and then by layer, NNX by layer.
    for collection in weights.stats.values() if calls else [weights.stats]:
        for path, size in _sizes(collection).items():
            moving[path] = moving.get(path, 0) + size
    layers = []
    for call in calls:
        counts = trained.pop(call.path, 0), moving.pop(call.path, 0)
        # A module that only calls others is told by them.
        inner = any(other.path != call.path and other.path[: len(call.path)] == call.path for other in calls)
        if any(counts) or not inner:
            layers.append(Layer("/".join(call.path) or call.kind, call.kind, call.shape[1:], *counts))
    for path in sorted(trained.keys() | moving.keys()):
        layers.append(Layer("/".join(path), "", None, trained.get(path, 0), moving.get(path, 0)))
    return Summary(tuple(layers), sum(layer.trained for layer in layers), sum(layer.moving for layer in layers))


def _sizes(tree: PyTree) -> dict[tuple[str, ...], int]:
    sizes: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        owner = tuple(str(getattr(part, "key", part)) for part in path[:-1])
        sizes[owner] = sizes.get(owner, 0) + math.prod(leaf.shape)
    return sizes


def as_table(of: Summary, title: str = "") -> Table:
    """The summary as a rich table, to be printed by a rich console.

    >>> import jax.numpy as jnp
    >>> from jaxdl import mlp
    >>> as_table(summary(mlp((100, 50)), jnp.ones((1, 89)))).row_count
    3
    """
    # Imported here: it is needed only where a table is shown.
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold", show_footer=True)
    table.add_column("layer", "total")
    table.add_column("output shape")
    table.add_column("parameters", f"{of.parameters:,}", justify="right")
    table.add_column("not trained", f"{of.moving:,}", justify="right")
    for layer in of.layers:
        shape = "" if layer.shape is None else str(("rows", *layer.shape)).replace("'", "")
        table.add_row(layer.name, shape, f"{layer.trained + layer.moving:,}", f"{layer.moving:,}")
    return table
