"""Find the first operation that gave a NaN or an infinity."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from jaxdl.data import DataSource
from jaxdl.data.arrays import precision
from jaxdl.data.batches import eval_batch_size, only_counted, validation_batch
from jaxdl.data.streaming import Loader, loader
from jaxdl.distributed.sharding import to_host
from jaxdl.train.epoch import batches_of_epoch
from jaxdl.train.loop import Chunk, chunks
from jaxdl.train.step import eval_variables, loss_of_params, optimizer_update, plan_step
from jaxdl.types import LOSS, Array, Dataset, Plan, PyTree, RunState, TrainState, Variables

# Operations that only call others.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call"}


class _Origin(NamedTuple):
    """The first number that is not finite."""

    layer: str  # where: a layer and its operation, or what else it was, such as the gradient of a parameter
    value: str  # "nan", "inf" or "-inf"
    rows: tuple[int, ...]  # positions in the batch; all real rows where it cannot be told


class _Operation(NamedTuple):
    name: str
    inputs: list[Any]  # those that depend on the weights or the batch
    outputs: list[Any]


def in_step(plan: Plan, state: TrainState, batch: Dataset) -> _Origin | None:
    """Where a training step first gives a number that is not finite; None where it gives none.

    It looks at the weights, the rows, every operation of the forward pass, the loss, the gradients and the update.
    """
    key, batch = jax.random.fold_in(state.key, state.step), only_counted(batch)
    found = _before(state.variables, batch) or _forward(plan, state.variables, batch, train=True, key=key)
    if found is not None:
        return found

    params = state.variables.params
    loss = loss_of_params(plan.model, plan.objective, state, batch)
    (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, _ = optimizer_update(plan.optimizer, state, gradients, value, lambda params: loss(params)[0])
    step = plan_step(plan)
    after, sums = step(state, batch)
    return (
        _leaf("the gradient of params/{}", gradients, batch)
        or _leaf("the update of params/{}", updates, batch)
        or _leaf("{} after the step", {"params": after.variables.params, "stats": after.variables.stats}, batch)
        or _leaf("the average of {}", after.ema, batch)
        or _leaf("the sum of the losses", sums.totals[LOSS], batch)
    )


def in_evaluation(plan: Plan, variables: Variables, batch: Dataset) -> _Origin | None:
    """Where the evaluation of a batch first gives a number that is not finite; None where it gives none."""
    batch = only_counted(batch)
    return _before(variables, batch) or _forward(plan, variables, batch, train=False, key=None)


def _before(variables: Variables, batch: Dataset) -> _Origin | None:
    return _leaf("{} before the step", {"params": variables.params, "stats": variables.stats}, batch) or next(
        (
            _Origin(name, *bad)
            for name, values in (("the inputs", batch.inputs), ("the targets", batch.targets))
            if (bad := _bad(values, batch)) is not None
        ),
        None,
    )


def _forward(plan: Plan, variables: Variables, batch: Dataset, *, train: bool, key: Array | None) -> _Origin | None:
    def outputs_of(variables: Variables, inputs: Array) -> tuple[Array, PyTree]:
        return plan.model.apply(variables, inputs, train=train, key=key, mask=batch.sample_weight > 0)

    def losses_of(outputs: Array, targets: Array) -> Array:
        return plan.objective.loss(outputs, targets)

    outputs, _ = outputs_of(variables, batch.inputs)
    return _first(outputs_of, (variables, batch.inputs), batch, "") or _first(
        losses_of, (outputs, jnp.asarray(batch.targets)), batch, "the loss"
    )


def _first(function: Callable[..., PyTree], arguments: Any, batch: Dataset, scope: str) -> _Origin | None:
    """The first operation that makes of finite numbers one that is not, if the function's result holds one too."""
    results = [bad for leaf in jax.tree.leaves(function(*arguments)) if (bad := _bad(leaf, batch)) is not None]
    if not results:
        return None
    spread = None
    for operation in _operations(jax.make_jaxpr(function)(*arguments), jax.tree.leaves(arguments), scope):
        bad = next((bad for output in operation.outputs if (bad := _bad(output, batch)) is not None), None)
        if bad is None or not operation.inputs:
            continue
        if all(_bad(value, batch) is None for value in operation.inputs):
            return _Origin(operation.name, *bad)
        if spread is None and bad[0] == "nan":
            spread = _Origin(operation.name, *bad)
    return spread or _Origin(scope or "the outputs", *results[0])


def _operations(closed: ClosedJaxpr, arguments: list[Any], scope: str) -> Iterator[_Operation]:
    variables = set(closed.jaxpr.invars)
    return _evaluate(closed, arguments, [variable in variables for variable in closed.jaxpr.invars], scope)


def _evaluate(
    closed: ClosedJaxpr, arguments: list[Any], depends: list[bool], scope: str
) -> Generator[_Operation, None, tuple[list[Any], list[bool]]]:
    """Runs the equations one after the other; each value comes with whether it depends on the arguments."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, ((value, False) for value in closed.consts), strict=True))
    known |= dict(zip(jaxpr.invars, zip(arguments, depends, strict=True), strict=True))

    def read(variable: Any) -> tuple[Any, bool]:
        return (variable.val, False) if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        values, flags = [list(column) for column in zip(*map(read, equation.invars), strict=True)] or [[], []]
        inner, name = called(equation), "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
        if inner is not None:
            outputs, after = yield from _evaluate(inner, values, flags, name)
        else:
            outputs = _run(equation, values, jaxpr.debug_info)
            after = [any(flags)] * len(outputs)
            live = [value for value, flag in zip(values, flags, strict=True) if flag]
            # Constants count as inputs too: minus infinity as a mask is meant.
            yield _Operation(_layer(name, str(equation.primitive)), values if live else [], outputs)
        known |= dict(zip(equation.outvars, zip(outputs, after, strict=True), strict=True))
    results = [read(variable) for variable in jaxpr.outvars]
    return [value for value, _ in results], [flag for _, flag in results]


def _run(equation: Any, values: list[Any], info: Any) -> list[Any]:
    """One equation, as a program of its own: how a primitive is called differs between versions of JAX."""
    variables = dict.fromkeys(v for v in equation.invars if not isinstance(v, Literal))
    found = {v: value for v, value in zip(equation.invars, values, strict=True) if not isinstance(v, Literal)}
    info = info._replace(arg_names=None, result_paths=None)
    jaxpr = Jaxpr((), list(variables), equation.outvars, [equation], equation.effects, info)
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))(*(found[v] for v in variables))


def called(equation: Any) -> ClosedJaxpr | None:
    """The function that an equation of a jaxpr only calls; None for an equation that does something itself."""
    if str(equation.primitive) not in _CALLS:
        return None
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    if inner is None or isinstance(inner, ClosedJaxpr):
        return inner
    return ClosedJaxpr(inner, ())


def _layer(stack: str, primitive: str) -> str:
    """A name for people: the layer without the network's own name, and the operation."""
    scopes = [re.sub(r"\w+\(([^()]*)\)", r"\1", scope) for scope in stack.split("/") if scope]
    inside = scopes[1:] if len(scopes) > 1 else scopes
    return f"{'/'.join(inside)} ({primitive})" if inside else f"an operation ({primitive})"


def _leaf(text: str, tree: PyTree, batch: Dataset) -> _Origin | None:
    """The first leaf that is not finite, by name; no rows can be told."""
    real = tuple(np.flatnonzero(np.asarray(batch.sample_weight) > 0).tolist())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        bad = _value(np.asarray(leaf)) if jnp.issubdtype(leaf.dtype, jnp.inexact) else None
        if bad is not None:
            return _Origin(text.format(jax.tree_util.keystr(path, simple=True, separator="/")), bad, real)
    return None


def _bad(value: Any, batch: Dataset) -> tuple[str, tuple[int, ...]] | None:
    """What kind of number that is not finite an array holds, and in which rows; padding does not count."""
    if not jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.inexact):
        return None
    array, real = np.asarray(value), np.asarray(batch.sample_weight) > 0
    if array.ndim == 0 or len(array) != len(real):
        found = _value(array)
        return None if found is None else (found, tuple(np.flatnonzero(real).tolist()))
    rows = real & ~np.isfinite(array.astype(precision(array.dtype))).reshape(len(real), -1).all(1)
    found = _value(array[rows])
    return None if found is None else (found, tuple(np.flatnonzero(rows).tolist()))


def _value(array: np.ndarray) -> str | None:
    numbers = array.astype(precision(array.dtype))
    if np.isnan(numbers).any():
        return "nan"
    return "inf" if np.isposinf(numbers).any() else "-inf" if np.isneginf(numbers).any() else None


SHOWN = 8  # rows that the sentence names


class NonFinite(NamedTuple):
    """The first batch after which a number was not finite."""

    state: RunState  # before it
    epoch: int  # from 1
    batch: int  # of its kind in the epoch, from 1
    batches: int  # of its kind in an epoch
    kind: str  # "training" or "validation"
    where: str  # the layer, or what else it was
    value: str  # "nan", "inf" or "-inf"
    rows: tuple[int, ...]  # of the training rows, or of the validation rows, from 0

    def __str__(self) -> str:
        names = ", ".join(str(row) for row in self.rows[:SHOWN])
        more = f" and {len(self.rows) - SHOWN} more" if len(self.rows) > SHOWN else ""
        word = "row" if len(self.rows) == 1 else "rows"
        return (
            f"epoch {self.epoch}, {'step' if self.kind == 'training' else 'batch'} {self.batch} of {self.batches} of "
            f"{self.kind}: {self.value} in {self.where}, first for {self.kind} {word} {names}{more} (counted from 0)"
        )


class NonFiniteError(ArithmeticError):
    """A run met nan or infinity; its argument is the report."""


def check_finite(
    pieces: Iterable[Chunk],
    plan: Plan,
    run_state: RunState,
    train: Dataset | DataSource | Loader,
    validation: Dataset | None,
) -> Iterator[Chunk]:
    """The chunks that began at `progress`, up to one that is not finite: there NonFiniteError says where it began."""
    for chunk in pieces:
        if not chunk.finite:
            raise NonFiniteError(replay(plan, run_state, train, validation))
        run_state = chunk.state
        yield chunk


def replay(
    plan: Plan, run_state: RunState, train: Dataset | DataSource | Loader, validation: Dataset | None
) -> NonFinite:
    """Where the run first meets a number that is not finite, from a progress before; it runs until there is one."""
    rows = loader(train, plan.batch_size)
    for chunk in chunks(plan, run_state, rows, validation, steps=lambda: 1):
        if not chunk.finite:
            break
        run_state = chunk.state
    trained, length = map(int, batches_of_epoch(plan, rows, validation))
    epoch, cursor = int(run_state.epoch) + 1, int(run_state.cursor)
    # Looked at number by number, some of which may lie on devices of other processes.
    here, validation = to_host((run_state, validation))
    if cursor < trained:
        batch, numbers = rows.batch(here.key, here.epoch, cursor)
        arose = in_step(plan, here.train_state, batch)
        return _trouble(run_state, epoch, cursor + 1, trained, "training", arose, numbers)
    assert validation is not None
    size, index = eval_batch_size(validation.inputs), cursor - trained
    variables = eval_variables(here.train_state, plan.eval_params)
    arose = in_evaluation(plan, variables, validation_batch(validation, index, size))
    count = validation.sample_weight.shape[0]
    numbers = min(index * size, max(0, count - size)) + np.arange(min(size, count))
    return _trouble(run_state, epoch, index + 1, length - trained, "validation", arose, numbers)


def _trouble(
    run_state: RunState, epoch: int, batch: int, batches: int, kind: str, arose: _Origin | None, rows: np.ndarray
) -> NonFinite:
    # Where nothing is found, it is the totals that were too large, or the compiled step rounded otherwise.
    found = arose or _Origin("the step as a whole", "nan", tuple(range(len(rows))))
    chosen = sorted(int(rows[position]) for position in found.rows if position < len(rows))
    return NonFinite(run_state, epoch, batch, batches, kind, found.layer, found.value, tuple(chosen))
