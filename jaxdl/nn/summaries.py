"""The table of a model's layers: their output shapes and what they hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from jaxdl._checks import check_model, explain_calls
from jaxdl._format import short, table
from jaxdl.nn.adapters import Call, linen_calls
from jaxdl.types import Array, Dataset, Model, PyTree, Variables

if TYPE_CHECKING:
    from rich.table import Table


Path = tuple[str, ...]
MOST = 10**8  # parameters that are shown to the last one
COLUMNS = "layer", "output shape", "parameters", "trained", "memory"


class Numbers(NamedTuple):
    """How many numbers something holds, and in how many bytes."""

    many: int
    size: int  # bytes


NOTHING = Numbers(0, 0)


class Layer(NamedTuple):
    """One row of a summary."""

    name: str
    kind: str
    shape: tuple[int, ...] | None  # of the output without the rows; None where the model does not tell
    trained: int  # parameters that gradients train
    moving: int  # numbers that are kept but not trained
    trained_bytes: int
    moving_bytes: int


class Summary(NamedTuple):
    """A model's layers and its totals."""

    layers: tuple[Layer, ...]
    trained: int
    moving: int
    trained_bytes: int
    moving_bytes: int

    @property
    def parameters(self) -> int:
        """All numbers that the model holds, as Keras counts them: trained or not."""
        return self.trained + self.moving


@explain_calls
def summary(model: Model, inputs: Any) -> Summary:
    """The layers of a model that takes `inputs` (B, ...), in the order of their calls; nothing is computed.

    Only Linen models tell the output shapes of their layers; of others the layers are named by what they hold. A layer
    that is called again with the same shape is listed once. `costs.step_cost` counts the FLOPs of a training step.

    >>> import jax.numpy as jnp
    >>> from jaxdl import mlp
    >>> table = summary(mlp((100, 50)), jnp.ones((1, 89)))
    >>> [layer.trained for layer in table.layers], table.parameters
    ([9000, 5050, 51], 14101)
    """
    check_model(model)
    inputs = inputs.inputs if isinstance(inputs, Dataset) else inputs
    row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), inputs)
    variables = jax.eval_shape(model.init, jax.random.key(0), row)

    def forward(variables: Variables, row: Array) -> Array:
        return model.apply(variables, row, train=False)[0]

    # The first call of a model traces it in other ways too, which are not to be listed.
    jax.eval_shape(lambda variables, row: forward(variables, row), variables, row)
    with linen_calls() as calls:
        jax.eval_shape(forward, variables, row)
    trained = _numbers([variables.params])
    # Linen keeps statistics by collection and then by layer, NNX by layer.
    moving = _numbers(variables.stats.values() if calls else [variables.stats])
    shown = [call for call in calls if call.path in trained | moving or not _is_outer(call, calls)]
    layers = []
    # Each once: Flax traces the body of a loop more than once.
    for call in dict.fromkeys(shown):
        name = "/".join(call.path) or call.kind
        held = trained.pop(call.path, NOTHING), moving.pop(call.path, NOTHING)
        layers.append(Layer(name, call.kind, call.shape[1:], *_columns(*held)))
    for path in sorted(trained.keys() | moving.keys()):
        held = trained.get(path, NOTHING), moving.get(path, NOTHING)
        layers.append(Layer("/".join(path), "", None, *_columns(*held)))
    return Summary(
        tuple(layers),
        sum(layer.trained for layer in layers),
        sum(layer.moving for layer in layers),
        sum(layer.trained_bytes for layer in layers),
        sum(layer.moving_bytes for layer in layers),
    )


def _columns(trained: Numbers, moving: Numbers) -> tuple[int, int, int, int]:
    return trained.many, moving.many, trained.size, moving.size


def _numbers(trees: Iterable[PyTree]) -> dict[Path, Numbers]:
    """What the layers hold in all of the trees."""
    held: dict[Path, Numbers] = {}
    for tree in trees:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            owner = tuple(str(getattr(part, "key", part)) for part in path[:-1])
            before, size = held.get(owner, NOTHING), math.prod(leaf.shape)
            held[owner] = Numbers(before.many + size, before.size + size * leaf.dtype.itemsize)
    return held


def _is_outer(call: Call, calls: Sequence[Call]) -> bool:
    """Whether other layers are called inside of it: a module that only calls others is told by them."""
    return any(other.path != call.path and other.path[: len(call.path)] == call.path for other in calls)


def as_markdown(of: Summary) -> str:
    """The summary as a table in markdown."""
    return table(COLUMNS, [*_layers(of), *_totals(of)])


def as_table(of: Summary, title: str = "") -> Table:
    """The summary as a rich table, to be printed by a rich console: the layers, then what all of them hold."""
    # Imported here: it is needed only where a table is shown.
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold")
    for name in COLUMNS[:2]:
        table.add_column(name, overflow="fold")
    for name in COLUMNS[2:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in _layers(of):
        table.add_row(*row)
    table.add_section()
    for row in _totals(of):
        table.add_row(*row)
    return table


def _layers(of: Summary) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for layer in of.layers:
        shape = "" if layer.shape is None else str(("rows", *layer.shape)).replace("'", "")
        held = layer.trained + layer.moving, layer.trained_bytes + layer.moving_bytes
        rows.append((layer.name, shape, *_held(*held, _trained(layer))))
    return rows


def _totals(of: Summary) -> list[tuple[str, ...]]:
    every = _held(of.parameters, of.trained_bytes + of.moving_bytes)
    return [
        ("total", "", *every),
        ("trained", "", *_held(of.trained, of.trained_bytes)),
        ("not trained", "", *_held(of.moving, of.moving_bytes)),
    ]


def _held(count: int, size: int, trained: str = "") -> tuple[str, str, str]:
    # Exact as long as there is room for it.
    return f"{count:,}" if count < MOST else short(count), trained, short(size, "B")


def _trained(layer: Layer) -> str:
    if layer.trained and layer.moving:
        return "in part"
    return "yes" if layer.trained else "no" if layer.moving else ""
