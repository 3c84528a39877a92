"""Find the first operation that gave a NaN or an infinity."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from jaxdl._tree import named_leaves
from jaxdl.data import DataSource
from jaxdl.data.arrays import precision
from jaxdl.data.batches import default_batch_size, only_counted, validation_batch
from jaxdl.data.streaming import Loader, loader
from jaxdl.distributed.sharding import to_host
from jaxdl.train.epoch import batches_of_epoch
from jaxdl.train.hooks import Chunk
from jaxdl.train.loop import chunks
from jaxdl.train.step import call_model_loss, eval_variables, loss_of_params, optimizer_update, plan_step
from jaxdl.types import LOSS, Array, Dataset, ModelLoss, Plan, PyTree, RunState, TrainState, Variables

# Operations that only call others.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call"}


class _Origin(NamedTuple):
    """The first number that is not finite."""

    layer: str  # a layer and its operation, or the name of another array, such as the gradient of a parameter
    value: str  # "nan", "inf" or "-inf"
    rows: tuple[int, ...]  # positions in the batch; all examples where a single one cannot be named


class _Operation(NamedTuple):
    name: str
    inputs: list[Any]  # empty where none depends on the variables or the batch
    outputs: list[Any]


def in_step(plan: Plan, state: TrainState, batch: Dataset) -> _Origin | None:
    """Return the origin of the first number in a training step that is not finite; None where all are finite.

    Checked are the variables, the batch, every operation of the forward pass, the loss, the gradients and the update.
    """
    key, batch = jax.random.fold_in(state.key, state.step), only_counted(batch)
    origin = _in_arguments(state.variables, batch) or _in_forward(plan, state.variables, batch, train=True, key=key)
    if origin is not None:
        return origin

    params = state.variables.params
    loss = loss_of_params(plan.model, plan.objective, state, batch)
    (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, _ = optimizer_update(plan.optimizer, state, gradients, value, lambda params: loss(params)[0])
    step = plan_step(plan)
    after, sums = step(state, batch)
    return (
        _in_tree("the gradient of params/{}", gradients, batch)
        or _in_tree("the update of params/{}", updates, batch)
        or _in_tree("{} after the step", {"params": after.variables.params, "stats": after.variables.stats}, batch)
        or _in_tree("the average of {}", after.ema, batch)
        or _in_tree("the sum of the losses", sums.totals[LOSS], batch)
    )


def in_evaluation(plan: Plan, variables: Variables, batch: Dataset) -> _Origin | None:
    """Return the origin of the first number in an evaluation that is not finite; None where all are finite."""
    batch = only_counted(batch)
    return _in_arguments(variables, batch) or _in_forward(plan, variables, batch, train=False, key=None)


def _in_arguments(variables: Variables, batch: Dataset) -> _Origin | None:
    return _in_tree("{} before the step", {"params": variables.params, "stats": variables.stats}, batch) or next(
        (
            _Origin(name, *fault)
            for field, tree in (("the inputs", batch.inputs), ("the targets", batch.targets))
            for name, values in named_leaves(field, tree)
            if (fault := _fault(values, batch)) is not None
        ),
        None,
    )


def _in_forward(plan: Plan, variables: Variables, batch: Dataset, *, train: bool, key: Array | None) -> _Origin | None:
    loss = plan.objective.loss
    if isinstance(loss, ModelLoss):

        def values_of(variables: Variables, batch: Any) -> tuple[Array, PyTree, PyTree]:
            return call_model_loss(loss, variables, batch, batch.sample_weight > 0, key, train=train)

        return _in_function(values_of, (variables, batch), batch, "")

    def outputs_of(variables: Variables, inputs: PyTree) -> tuple[PyTree, PyTree]:
        return plan.model.apply(variables, inputs, train=train, key=key, mask=batch.sample_weight > 0)

    def losses_of(outputs: PyTree, targets: PyTree) -> Array:
        return loss(outputs, targets)

    outputs, _ = outputs_of(variables, batch.inputs)
    return _in_function(outputs_of, (variables, batch.inputs), batch, "") or _in_function(
        losses_of, (outputs, jax.tree.map(jnp.asarray, batch.targets)), batch, "the loss"
    )


def _in_function(function: Callable[..., PyTree], arguments: Any, batch: Dataset, scope: str) -> _Origin | None:
    """Return the first operation with finite inputs and other outputs, where the function's result is not finite."""
    faults = [fault for leaf in jax.tree.leaves(function(*arguments)) if (fault := _fault(leaf, batch)) is not None]
    if not faults:
        return None
    first_nan = None
    for operation in _operations(jax.make_jaxpr(function)(*arguments), jax.tree.leaves(arguments), scope):
        fault = next((fault for output in operation.outputs if (fault := _fault(output, batch)) is not None), None)
        if fault is None or not operation.inputs:
            continue
        if all(_fault(value, batch) is None for value in operation.inputs):
            return _Origin(operation.name, *fault)
        if first_nan is None and fault[0] == "nan":
            first_nan = _Origin(operation.name, *fault)
    return first_nan or _Origin(scope or "the outputs", *faults[0])


def _operations(closed: ClosedJaxpr, arguments: list[Any], scope: str) -> Iterator[_Operation]:
    variables = set(closed.jaxpr.invars)
    return _evaluate(closed, arguments, [variable in variables for variable in closed.jaxpr.invars], scope)


def _evaluate(
    closed: ClosedJaxpr, arguments: list[Any], depends: list[bool], scope: str
) -> Generator[_Operation, None, tuple[list[Any], list[bool]]]:
    """Run the equations one after the other; return each result and whether it depends on the arguments."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, ((value, False) for value in closed.consts), strict=True))
    known |= dict(zip(jaxpr.invars, zip(arguments, depends, strict=True), strict=True))

    def read(variable: Any) -> tuple[Any, bool]:
        return (variable.val, False) if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        values, flags = [list(column) for column in zip(*map(read, equation.invars), strict=True)] or [[], []]
        inner, name = _called_jaxpr(equation), "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
        if inner is not None:
            outputs, after = yield from _evaluate(inner, values, flags, name)
        else:
            outputs = _run(equation, values, jaxpr.debug_info)
            after = [any(flags)] * len(outputs)
            live = [value for value, flag in zip(values, flags, strict=True) if flag]
            # A constant is an input too: minus infinity may be the value of a mask.
            yield _Operation(_layer_name(name, str(equation.primitive)), values if live else [], outputs)
        known |= dict(zip(equation.outvars, zip(outputs, after, strict=True), strict=True))
    results = [read(variable) for variable in jaxpr.outvars]
    return [value for value, _ in results], [flag for _, flag in results]


def _run(equation: Any, values: list[Any], info: Any) -> list[Any]:
    """Run one equation as a jaxpr of its own: the call of a primitive differs between versions of JAX."""
    arguments = {v: value for v, value in zip(equation.invars, values, strict=True) if not isinstance(v, Literal)}
    info = info._replace(arg_names=None, result_paths=None)
    jaxpr = Jaxpr((), list(arguments), equation.outvars, [equation], equation.effects, info)
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))(*arguments.values())


def _called_jaxpr(equation: Any) -> ClosedJaxpr | None:
    """Return the jaxpr that an equation calls; None for an equation that is an operation."""
    if str(equation.primitive) not in _CALLS:
        return None
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    if inner is None or isinstance(inner, ClosedJaxpr):
        return inner
    return ClosedJaxpr(inner, ())


def _layer_name(stack: str, primitive: str) -> str:
    """Return the layer, without the name of the network, and the operation."""
    scopes = [re.sub(r"\w+\(([^()]*)\)", r"\1", scope) for scope in stack.split("/") if scope]
    inside = scopes[1:] if len(scopes) > 1 else scopes
    return f"{'/'.join(inside)} ({primitive})" if inside else f"an operation ({primitive})"


def _in_tree(text: str, tree: PyTree, batch: Dataset) -> _Origin | None:
    """Return the first leaf that is not finite, by name, with all examples of the batch."""
    examples = tuple(np.flatnonzero(np.asarray(batch.sample_weight) > 0).tolist())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        value = _non_finite_value(np.asarray(leaf)) if jnp.issubdtype(leaf.dtype, jnp.inexact) else None
        if value is not None:
            return _Origin(text.format(jax.tree_util.keystr(path, simple=True, separator="/")), value, examples)
    return None


def _fault(value: Any, batch: Dataset) -> tuple[str, tuple[int, ...]] | None:
    """Return the non-finite value that an array holds, and for which examples; padding is ignored."""
    if not jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.inexact):
        return None
    array, examples = np.asarray(value), np.asarray(batch.sample_weight) > 0
    if array.ndim == 0 or len(array) != len(examples):
        kind = _non_finite_value(array)
    else:
        examples = examples & ~np.isfinite(array.astype(precision(array.dtype))).reshape(len(examples), -1).all(1)
        kind = _non_finite_value(array[examples])
    return None if kind is None else (kind, tuple(np.flatnonzero(examples).tolist()))


def _non_finite_value(array: np.ndarray) -> str | None:
    numbers = array.astype(precision(array.dtype))
    if np.isnan(numbers).any():
        return "nan"
    return "inf" if np.isposinf(numbers).any() else "-inf" if np.isneginf(numbers).any() else None


MAX_ROWS = 8  # rows that the sentence names


class NonFinite(NamedTuple):
    """The first batch after which a number was not finite."""

    state: RunState  # before the batch
    epoch: int  # from 1
    batch: int  # of its kind in the epoch, from 1
    batches: int  # of its kind in an epoch
    kind: str  # "training" or "validation"
    where: str  # the layer, or the name of another array
    value: str  # "nan", "inf" or "-inf"
    rows: tuple[int, ...]  # of the training data, or of the validation data, from 0

    def __str__(self) -> str:
        names = ", ".join(str(row) for row in self.rows[:MAX_ROWS])
        more = f" and {len(self.rows) - MAX_ROWS} more" if len(self.rows) > MAX_ROWS else ""
        word = "row" if len(self.rows) == 1 else "rows"
        return (
            f"epoch {self.epoch}, {'step' if self.kind == 'training' else 'batch'} {self.batch} of {self.batches} of "
            f"{self.kind}: {self.value} in {self.where}, first for {self.kind} {word} {names}{more} (counted from 0)"
        )


class NonFiniteError(ArithmeticError):
    """A number of a run is NaN or infinite; the argument is a NonFinite."""


def check_finite(
    parts: Iterable[Chunk],
    plan: Plan,
    run_state: RunState,
    train: Dataset | DataSource | Loader,
    validation: Dataset | None,
    **limits: Any,
) -> Iterator[Chunk]:
    """Yield the chunks of a run; raise NonFiniteError with the origin at the first chunk that is not finite.

    limits: arguments of `chunks`, which decide on the epochs that are validated.
    """
    for chunk in parts:
        if not chunk.finite:
            raise NonFiniteError(find_origin(plan, run_state, train, validation, **limits))
        run_state = chunk.state
        yield chunk


def find_origin(
    plan: Plan, run_state: RunState, train: Dataset | DataSource | Loader, validation: Dataset | None, **limits: Any
) -> NonFinite:
    """Return the first number of a run that is not finite: re-run it batch by batch from an earlier state."""
    data = loader(train, plan.batch_size)
    for chunk in chunks(plan, run_state, data, validation, steps=lambda: 1, **limits):
        if not chunk.finite:
            break
        run_state = chunk.state
    train_batches, length = map(int, batches_of_epoch(plan, data, validation))
    epoch, cursor = int(run_state.epoch) + 1, int(run_state.cursor)
    # Every number is read here, and some may be on devices of other processes.
    local, validation = to_host((run_state, validation))
    if cursor < train_batches:
        batch, rows = data.batch(local.key, local.epoch, cursor)
        kind, number, count, origin = "training", cursor, train_batches, in_step(plan, local.train_state, batch)
    else:
        assert validation is not None
        size, examples = default_batch_size(validation.inputs), validation.sample_weight.shape[0]
        kind, number, count = "validation", cursor - train_batches, length - train_batches
        variables = eval_variables(local.train_state, plan.eval_params)
        origin = in_evaluation(plan, variables, validation_batch(validation, number, size))
        rows = min(number * size, max(0, examples - size)) + np.arange(min(size, examples))
    # Without an origin, the totals were too large, or the compiled step rounded otherwise.
    origin = origin or _Origin("the step as a whole", "nan", tuple(range(len(rows))))
    positions = sorted(int(rows[position]) for position in origin.rows if position < len(rows))
    return NonFinite(run_state, epoch, number + 1, count, kind, origin.layer, origin.value, tuple(positions))
