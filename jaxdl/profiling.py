"""What a training step costs, by XLA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    "temporaries": "what the step keeps while it computes",
    "results": "beside the state, which is replaced",
}


class StepCost(NamedTuple):
    """What one training step costs on one device; None where the platform does not tell."""

    batch_size: int  # rows of the step
    flops: int | None  # by XLA, before it optimizes: network, gradients, optimizer and metrics; a loop's body once
    bytes: int | None  # that the operations read and write, as XLA fuses them; caches may hold some
    arguments: int | None  # bytes of memory: the state before the step, and the batch
    temporaries: int | None  # bytes of memory: what the step keeps until its gradients are done, and room to compute
    results: int | None  # bytes of memory: what does not take the place of an argument, as the new state does

    @property
    def peak_memory(self) -> int | None:
        """Bytes of memory at the peak: arguments, temporaries and results, but neither data set nor program."""
        parts = self.arguments, self.temporaries, self.results
        return None if None in parts else sum(part or 0 for part in parts)

    @property
    def intensity(self) -> float | None:
        """FLOPs for each byte that is read or written; where it is low, memory is what limits the speed."""
        return self.flops / self.bytes if self.flops is not None and self.bytes else None


def step_cost(plan: Plan, run_state: RunState, train: Dataset | DataSource) -> StepCost:
    """The cost of a training step of a full batch, compiled for the default device as a run compiles it.

    Only the shapes of progress and rows matter. To compile takes about as long as the run itself does before its first
    step.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp, start
    >>> rows = dataset([[1.0, 2.0]] * 8, [[1.0]] * 8)
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=4)
    >>> cost = step_cost(plan, start(plan, rows, key=jax.random.key(0)), rows)
    >>> cost.batch_size, cost.flops >= 4 * 2 * 2 * 2  # four rows of two products, and as many for the gradient
    (4, True)
    """
    step = plan_step(plan, prepared=True)
    # The rows of a dataset may be shapes alone, which no loader takes.
    rows = train if isinstance(train, Dataset) else loader(train, 1).first
    return cost_of(step, run_state.train_state, _batch(rows, plan.batch_size))


def lowered_step(step: Callable[[Any, Dataset], Any], state: PyTree, batch: Dataset) -> jax.stages.Lowered:
    """Return `step(state, batch)` as a run compiles it, lowered; arrays, or anything with shapes and dtypes."""
    # The new state takes the place of the old one, as in the loop of an epoch.
    options = compiler_options(convolves=has_convolution(batch, state))
    return jax.jit(step, donate_argnums=0, compiler_options=options).lower(_shapes(state), _shapes(batch))


def cost_of(step: Callable[[Any, Dataset], Any], state: PyTree, batch: Dataset) -> StepCost:
    """Return the cost of `step(state, batch)`, compiled as `step_cost` does it."""
    lowered = lowered_step(step, state, batch)
    compiled = lowered.compile()
    return StepCost(
        batch.sample_weight.shape[0],
        # Of what is lowered: a compiled program hides the FLOPs of libraries that it calls.
        _figure(_first(lowered.cost_analysis()), "flops"),
        _figure(_first(compiled.cost_analysis()), "bytes accessed"),
        *_memory(compiled.memory_analysis()),
    )


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _batch(rows: Dataset, size: int) -> Dataset:
    batch: Dataset = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), rows)
    return batch


def _first(analysis: Any) -> Mapping[str, float]:
    """What XLA says of a program: some versions give a list of it, some platforms nothing."""
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if analysis else None
    return analysis or {}


def _figure(analysis: Mapping[str, float], name: str) -> int | None:
    value = analysis.get(name, -1)
    # What is not known is negative on some platforms.
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
    """Return the cost as a rich table."""
    # Imported here: it is needed only where a table is shown.
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold")
    table.add_column(f"a step of {cost.batch_size:,} rows", no_wrap=True)
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
