"""The table of a model's layers: their output shapes, parameters and memory."""

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
MOST = 10**8  # the largest number of parameters that is shown in full
COLUMNS = "layer", "output shape", "parameters", "trained", "memory"


class Size(NamedTuple):
    """The size of some arrays."""

    numbers: int
    bytes: int


EMPTY = Size(0, 0)


class Layer(NamedTuple):
    """One layer of a summary."""

    name: str
    kind: str
    shape: tuple[int, ...] | None  # of the output without the batch axis; None where it is unknown
    trained: int  # parameters that gradients train
    moving: int  # numbers that are not trained, such as moving averages
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
        """The number of parameters as Keras counts them: trained and not trained."""
        return self.trained + self.moving


@explain_calls
def summary(model: Model, inputs: Any) -> Summary:
    """Return the layers of a model that takes `inputs` (B, ...), in the order of their calls, without computing.

    inputs: an array, shapes and dtypes, or a Dataset. Layers of a Linen model have output shapes; layers of other
    models are the branches of their variables. A layer that is called again with the same shape is listed once.
    `jaxdl.profiling.step_cost` counts the FLOPs of a training step.

    >>> import jax.numpy as jnp
    >>> from jaxdl import mlp
    >>> table = summary(mlp((100, 50)), jnp.ones((1, 89)))
    >>> [layer.trained for layer in table.layers], table.parameters
    ([9000, 5050, 51], 14101)
    """
    check_model(model)
    inputs = inputs.inputs if isinstance(inputs, Dataset) else inputs
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), inputs)
    variables = jax.eval_shape(model.init, jax.random.key(0), example)

    def forward(variables: Variables, example: Array) -> Array:
        # With a key, because a model for `losses.model_loss` may draw in evaluation, too.
        return model.apply(variables, example, train=False, key=jax.random.key(0))[0]

    # The first call of a model traces it in other ways, too, whose calls are no layers of the summary.
    jax.eval_shape(lambda variables, example: forward(variables, example), variables, example)
    with linen_calls() as calls:
        jax.eval_shape(forward, variables, example)
    trained = _sizes([variables.params])
    # The stats of Linen are ordered by collection and then by layer, those of NNX by layer.
    moving = _sizes(variables.stats.values() if calls else [variables.stats])
    listed = [call for call in calls if call.path in trained | moving or not _is_outer(call, calls)]
    layers = []

    def add(name: str, kind: str, shape: tuple[int, ...] | None, path: Path) -> None:
        parameters, moments = trained.pop(path, EMPTY), moving.pop(path, EMPTY)
        layers.append(Layer(name, kind, shape, parameters.numbers, moments.numbers, parameters.bytes, moments.bytes))

    # Without duplicates: Flax traces the body of a loop more than once.
    for call in dict.fromkeys(listed):
        add("/".join(call.path) or call.kind, call.kind, call.shape[1:], call.path)
    for path in sorted(trained.keys() | moving.keys()):
        add("/".join(path), "", None, path)
    return Summary(
        tuple(layers),
        sum(layer.trained for layer in layers),
        sum(layer.moving for layer in layers),
        sum(layer.trained_bytes for layer in layers),
        sum(layer.moving_bytes for layer in layers),
    )


def _sizes(trees: Iterable[PyTree]) -> dict[Path, Size]:
    """Return the sizes of the layers' arrays in all of the trees."""
    sizes: dict[Path, Size] = {}
    for tree in trees:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            layer = tuple(str(getattr(part, "key", part)) for part in path[:-1])
            size, count = sizes.get(layer, EMPTY), math.prod(leaf.shape)
            sizes[layer] = Size(size.numbers + count, size.bytes + count * leaf.dtype.itemsize)
    return sizes


def _is_outer(call: Call, calls: Sequence[Call]) -> bool:
    """Return whether a call contains the calls of other layers."""
    return any(other.path != call.path and other.path[: len(call.path)] == call.path for other in calls)


def as_markdown(summary: Summary) -> str:
    """Return the summary as a table in markdown."""
    return table(COLUMNS, [*_layers(summary), *_totals(summary)])


def as_table(summary: Summary, title: str = "") -> Table:
    """Return the summary as a rich table, for `rich.print`: the layers, then the totals."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold")
    for name in COLUMNS[:2]:
        table.add_column(name, overflow="fold")
    for name in COLUMNS[2:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in _layers(summary):
        table.add_row(*row)
    table.add_section()
    for row in _totals(summary):
        table.add_row(*row)
    return table


def _layers(summary: Summary) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for layer in summary.layers:
        shape = "" if layer.shape is None else str(("batch", *layer.shape)).replace("'", "")
        trained = "no" if layer.moving else ""
        if layer.trained:
            trained = "in part" if layer.moving else "yes"
        count, size = layer.trained + layer.moving, layer.trained_bytes + layer.moving_bytes
        rows.append((layer.name, shape, _count(count), trained, short(size, "B")))
    return rows


def _totals(summary: Summary) -> list[tuple[str, ...]]:
    sizes = {
        "total": (summary.parameters, summary.trained_bytes + summary.moving_bytes),
        "trained": (summary.trained, summary.trained_bytes),
        "not trained": (summary.moving, summary.moving_bytes),
    }
    return [(name, "", _count(count), "", short(size, "B")) for name, (count, size) in sizes.items()]


def _count(count: int) -> str:
    return f"{count:,}" if count < MOST else short(count)
