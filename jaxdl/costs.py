"""What a training step costs: FLOPs, bytes, memory. It is compiled and nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from jaxdl.batches import batch_rows, epoch_rows
from jaxdl.flops import flops
from jaxdl.programs import compiler_options, convolves
from jaxdl.sources import Source, head
from jaxdl.steps import make_eval_step, make_train_step, shown_weights
from jaxdl.types import Examples, Plan, Progress, PyTree
from jaxdl.units import short

if TYPE_CHECKING:
    from rich.table import Table


MEANINGS = {
    "arguments": "the state and the batch",
    "temporaries": "what the step keeps while it computes",
    "results": "beside the state, which is replaced",
}


class StepCost(NamedTuple):
    """What one training step costs on one device; None where the platform does not tell."""

    batch_size: int  # rows of the step
    flops: int  # by `flops.flops`: the network, its gradients, the optimiser and what is measured
    exact: bool  # whether these are all: not those of libraries, nor the trips of every loop
    xla_flops: int | None  # by XLA, of what it has compiled: a loop's body once, nothing of calls to libraries
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
        return self.flops / self.bytes if self.bytes else None


def step_cost(plan: Plan, progress: Progress, train: Examples | Source) -> StepCost:
    """The cost of a training step of a full batch, compiled for the default device as a run compiles it.

    Only the shapes of progress and rows matter. To compile takes about as long as the run itself does before its first
    step.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives, start
    >>> rows = examples([[1.0, 2.0]] * 8, [[1.0]] * 8)
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=4)
    >>> cost = step_cost(plan, start(plan, rows, key=jax.random.key(0)), rows)
    >>> cost.batch_size, cost.flops >= 4 * 2 * 2 * 2  # four rows of two products, and those of their gradients
    (4, True)
    """
    step = make_train_step(plan.model, plan.objective, plan.optimiser, average=plan.average, prepared=True)
    return cost_of(step, progress.state, _batch(head(train, 1), plan.batch_size))


def cost_of(step: Callable[[Any, Examples], Any], state: PyTree, batch: Examples) -> StepCost:
    """The cost of `step(state, batch)`, compiled as `step_cost` does it; arrays, or anything with shapes and dtypes.

    >>> from jaxdl import examples
    >>> rows, kernel = examples([[1.0, 2.0]] * 4, [[1.0]] * 4), jax.ShapeDtypeStruct((2, 1), "float32")
    >>> cost_of(lambda kernel, rows: kernel - rows.inputs.T @ rows.targets, kernel, rows).flops
    18
    """
    arguments = _shapes(state), _shapes(batch)
    counted = flops(step, *arguments)
    # The new state takes the place of the old one, as in the loop of an epoch.
    options = compiler_options(convolves=convolves(batch, state))
    compiled = jax.jit(step, donate_argnums=0, compiler_options=options).lower(*arguments).compile()
    analysed, memory = _first(compiled.cost_analysis()), compiled.memory_analysis()
    return StepCost(
        batch.weights.shape[0],
        counted.total,
        not counted.least,
        _figure(analysed, "flops"),
        _figure(analysed, "bytes accessed"),
        *_memory(memory),
    )


def epoch_flops(plan: Plan, progress: Progress, train: Examples | Source, validation: Examples | None) -> int:
    """The FLOPs of an epoch: those of its training steps and of its validation, with the rows that only fill a batch.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives, start
    >>> rows = examples([[1.0, 2.0]] * 8, [[1.0]] * 8)
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=4)
    >>> progress = start(plan, rows, key=jax.random.key(0))
    >>> epoch_flops(plan, progress, rows, None) == 2 * step_cost(plan, progress, rows).flops
    True
    """
    step = make_train_step(plan.model, plan.objective, plan.optimiser, average=plan.average, prepared=True)
    count = train.count if isinstance(train, Source) else epoch_rows(train)
    once = flops(step, _shapes(progress.state), _batch(head(train, 1), plan.batch_size)).total
    total: int = -(-count // plan.batch_size) * once
    if validation is None:
        return total
    rows, measure = epoch_rows(validation), make_eval_step(plan.model, plan.objective, prepared=True)
    size = min(batch_rows(validation.inputs), rows)
    once = flops(measure, _shapes(shown_weights(progress.state, plan.eval_params)), _batch(validation, size)).total
    return total + -(-rows // size) * once


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _batch(rows: Examples, size: int) -> Examples:
    batch: Examples = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), rows)
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
    """Return the cost as JSON can hold it.

    >>> record = as_record(StepCost(4, 100, True, None, 50, 20, 10, 5))
    >>> record["peak_memory"], record["intensity"]
    (35, 2.0)
    """
    return {**cost._asdict(), "peak_memory": cost.peak_memory, "intensity": cost.intensity}


def as_table(cost: StepCost, title: str = "") -> Table:
    """Return the cost as a rich table.

    >>> as_table(StepCost(4, 100, True, None, 50, 20, 10, 5)).row_count
    6
    """
    # Imported here: it is needed only where a table is shown.
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold")
    table.add_column(f"a step of {cost.batch_size:,} rows", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    counted = "" if cost.xla_flops is None else f"{short(cost.xla_flops)} by XLA's count"
    table.add_row("FLOPs", f"{'' if cost.exact else '≥ '}{short(cost.flops)}", counted)
    table.add_row("read and written", _known(cost.bytes, "B"), f"{_known(cost.intensity)} FLOPs a byte")
    table.add_row("memory at the peak", _known(cost.peak_memory, "B"), "of which")
    for name in ("arguments", "temporaries", "results"):
        table.add_row(f"  {name}", _known(getattr(cost, name), "B"), MEANINGS[name])
    return table


def _known(value: float | None, unit: str = "") -> str:
    return "unknown" if value is None else short(value, unit)
