"""The cost of a training step, by XLA's analysis."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from jaxdl._format import short
from jaxdl._jit import compiler_options, has_convolution
from jaxdl.data import DataSource
from jaxdl.data.streaming import loader
from jaxdl.train.step import plan_step
from jaxdl.types import Dataset, Plan, PyTree, RunState

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["StepCost", "step_cost"]


def __dir__() -> list[str]:
    return __all__


MEANINGS = {
    "arguments": "the state and the batch",
    "temporaries": "activations and gradients",
    "results": "without the new state",
}


class StepCost(NamedTuple):
    """The cost of one training step on one device; None where the platform gives no value."""

    batch_size: int
    flops: int | None  # before XLA's optimizations: network, gradients, optimizer, metrics; a loop's body counts once
    bytes: int | None  # that the operations read and write, as XLA fuses them; caches may hold some of them
    arguments: int | None  # bytes of memory: the state before the step, and the batch
    temporaries: int | None  # bytes of memory: activations, gradients and other intermediate results
    results: int | None  # bytes of memory: results that do not replace an argument, as the new state does

    @property
    def peak_memory(self) -> int | None:
        """Peak memory in bytes: arguments, temporaries and results, without the dataset and the compiled code."""
        sizes = self.arguments, self.temporaries, self.results
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def intensity(self) -> float | None:
        """FLOPs for each byte that is read or written; for low values the memory limits the speed."""
        return self.flops / self.bytes if self.flops is not None and self.bytes else None


def step_cost(plan: Plan, run_state: RunState, train: Dataset | DataSource) -> StepCost:
    """Return the cost of a training step of a full batch, compiled for the default device as in a run.

    Only the shapes and dtypes of the state and the dataset matter. The compilation takes about as long as that of a
    run.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp, start
    >>> train = dataset([[1.0, 2.0]] * 8, [[1.0]] * 8)
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=4)
    >>> cost = step_cost(plan, start(plan, train, key=jax.random.key(0)), train)
    >>> cost.flops >= 4 * 2 * 2 * 2  # 4 examples of 2 products and 2 sums, and as many for the gradient
    True
    """
    # A dataset may hold shapes alone, which no loader takes.
    dataset = train if isinstance(train, Dataset) else loader(train, 1).first
    batch: Dataset = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((plan.batch_size, *leaf.shape[1:]), leaf.dtype), dataset
    )
    return cost_of(plan_step(plan, prepared=True), run_state.train_state, batch)


def lowered_step(step: Callable[[Any, Dataset], Any], state: PyTree, batch: Dataset) -> jax.stages.Lowered:
    """Return `step(state, batch)` lowered as in a run; the arguments need only shapes and dtypes."""
    # The new state replaces the old one, as in the loop of an epoch.
    options = compiler_options(convolves=has_convolution(batch, state))
    return jax.jit(step, donate_argnums=0, compiler_options=options).lower(_shapes(state), _shapes(batch))


def cost_of(step: Callable[[Any, Dataset], Any], state: PyTree, batch: Dataset) -> StepCost:
    """Return the cost of `step(state, batch)`, compiled as in a run."""
    lowered = lowered_step(step, state, batch)
    compiled = lowered.compile()
    return StepCost(
        batch.sample_weight.shape[0],
        # Before the compilation, which hides the FLOPs of library calls.
        _value(lowered.cost_analysis(), "flops"),
        _value(compiled.cost_analysis(), "bytes accessed"),
        *_memory(compiled.memory_analysis()),
    )


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _value(analysis: Any, name: str) -> int | None:
    """Return a value of XLA's analysis: a dict, in some versions in a list, on some platforms None."""
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if analysis else None
    value = (analysis or {}).get(name, -1)
    # Some platforms give a negative number for an unknown value.
    return int(value) if value >= 0 else None


def _memory(stats: Any) -> tuple[int | None, int | None, int | None]:
    if stats is None:
        return None, None, None
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes, stats.temp_size_in_bytes, results


def as_record(cost: StepCost) -> dict[str, float | None]:
    """Return the cost as JSON can hold it."""
    return {**cost._asdict(), "peak_memory": cost.peak_memory, "intensity": cost.intensity}


def as_table(cost: StepCost, title: str = "") -> Table:
    """Return the cost as a rich table, for `rich.print`."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold")
    table.add_column(f"a step of {cost.batch_size:,} examples", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    table.add_row("FLOPs", _known(cost.flops), "by XLA's count")
    table.add_row("read and written", _known(cost.bytes, "B"), f"{_known(cost.intensity)} FLOPs a byte")
    table.add_row("memory at the peak", _known(cost.peak_memory, "B"), "of which")
    for name in ("arguments", "temporaries", "results"):
        table.add_row(f"  {name}", _known(getattr(cost, name), "B"), MEANINGS[name])
    return table


def _known(value: float | None, unit: str = "") -> str:
    return "unknown" if value is None else short(value, unit)
