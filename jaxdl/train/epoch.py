"""The epoch: its state, its batches, and the compiled functions that run its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdl._checks import explain_calls, given_as, whole_number
from jaxdl._jit import is_traced, jit
from jaxdl._tree import named_leaves
from jaxdl.data.batches import (
    Window,
    batches_of,
    default_batch_size,
    epoch_rows,
    evaluation_rows,
    training_rows,
    validation_batch,
)
from jaxdl.distributed.sharding import Layout, constrain_like, shard_by_size, shardings_of
from jaxdl.errors import InputError
from jaxdl.losses import check_labels
from jaxdl.metrics import compute, merge
from jaxdl.train.plan import (
    check_monitors,
    check_rows,
    learning_rate,
    rate_to_change,
    record_names,
    with_learning_rate,
)
from jaxdl.train.step import EvalStep, eval_step, eval_variables, make_train_state, measure_batch, train_body
from jaxdl.types import (
    LOSS,
    Array,
    Dataset,
    EarlyStoppingState,
    MetricSums,
    Model,
    ModelLoss,
    Plan,
    PyTree,
    Rule,
    RunState,
    Variables,
)


@explain_calls
def start(
    plan: Plan, train: Dataset, validation: Dataset | None = None, *, key: Array, variables: Variables | None = None
) -> RunState:
    """Return the state of a run before its first epoch, with variables drawn with `key`, or with `variables`.

    Raises InputError where the data do not fill a batch, targets do not fit the outputs, a monitor is not measured, or
    reduce-on-plateau finds no learning rate to change.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=2)
    >>> int(start(plan, dataset([[1.0], [2.0]], [[1.0], [2.0]]), key=jax.random.key(0)).epoch)
    0
    """
    if not hasattr(key, "dtype"):
        raise InputError(f"key must be a key of JAX, got {given_as(key)}. Use jax.random.key(0), say.")
    check_rows(plan, train, validation)
    check_labels(plan.model, plan.objective.loss, train, validation)
    run_state = draw(plan, train, key=key, variables=variables)
    check_monitors(plan, run_state, validation)
    return run_state


def draw(plan: Plan, train: Dataset, *, key: Array, variables: Variables | None = None) -> RunState:
    """Return what `start` returns, without its checks."""
    batch = jax.tree.map(lambda leaf: leaf[: plan.batch_size], train)
    # Inside a jit the plan may hold tracers (see PlanFamily), which a nested jit would cache as static arguments.
    with explain_misfit(plan.model, variables, batch.inputs):
        run_state: RunState = (_start if is_traced(key) else _start_compiled)(batch, key, variables, plan=plan)
    return run_state


def start_shapes(plan: Plan, train: Dataset, validation: Dataset | None = None, *, key: Array) -> RunState:
    """Return the shapes and dtypes of what `draw` returns, with checked monitors; nothing is compiled."""
    batch = jax.tree.map(lambda leaf: leaf[: plan.batch_size], train)
    shapes = _start_compiled.eval_shape(batch, key, None, plan=plan)
    check_monitors(plan, shapes, validation)
    return shapes


def _start(batch: Dataset, key: Array, variables: Variables | None, *, plan: Plan) -> RunState:
    init_key, step_key, order_key = jax.random.split(key, 3)
    if variables is None:
        variables = plan.model.init(init_key, batch.inputs)
    variables = jax.tree.map(jnp.asarray, variables)
    if isinstance(plan.objective.loss, ModelLoss):
        zero_sums = zeros_of(eval_step(plan.model, plan.objective, prepared=True), variables, batch)
    else:
        outputs, _ = plan.model.apply(variables, batch.inputs, train=False)
        check_outputs(outputs, batch.inputs)
        zero_sums = zeros_of(partial(measure_batch, plan.objective, prepared=True), outputs, batch)
    state = make_train_state(variables, plan.optimizer, step_key, ema=plan.ema_decay is not None)
    zero = jnp.zeros((), jnp.int32)
    plateau = () if plan.plateau is None else plan.plateau.init(rate_to_change(state.opt_state))
    return shard_by_size(
        RunState(
            epoch=zero,
            cursor=zero,
            train_state=state,
            best=variables,
            stopping=plan.early_stopping.init(),
            plateau=plateau,
            sums=zero_sums,
            val_sums=zero_sums,
            key=order_key,
        )
    )


def check_outputs(outputs: PyTree, inputs: PyTree) -> None:
    """Raise InputError unless outputs are arrays (B, ...) for inputs (B, ...), or pytrees of such arrays."""
    count = jax.tree.leaves(inputs)[0].shape[0]
    leaves = named_leaves("outputs", outputs)
    for name, leaf in leaves or [("outputs", outputs)]:
        if not hasattr(leaf, "shape"):
            raise InputError(
                f"a model must return an array of outputs (batch, ...), or a pytree of such arrays, got "
                f"{given_as(leaf)} for its {name}. Let it return arrays alone."
            )
        if jnp.shape(leaf)[:1] != (count,):
            one_axis = getattr(inputs, "ndim", 0) == 1
            advice = "Use inputs[:, None] for one column." if one_axis else "Let it keep the first axis."
            if isinstance(inputs, jax.Array) and not one_axis and jnp.shape(leaf)[:1] == inputs.shape[1:2]:
                advice += " Several arrays of inputs must be a tuple or a dict, not a list."
            shapes = jax.tree.map(jnp.shape, inputs)
            raise InputError(
                f"a model must return {name} (batch, ...), got {jnp.shape(leaf)} for inputs of shape {shapes}. {advice}"
            )


_start_compiled = jit(_start, static_argnames="plan", once=True)


def run_epoch(
    run_state: RunState, train: Dataset, validation: Dataset | None, *, plan: Plan
) -> tuple[RunState, dict[str, Array]]:
    """Run the rest of the current epoch, then validation, then the rules; return `(state, record)`.

    Every training example is used once, in an order that depends on (state.key, epoch) alone. The record holds float32
    scalars: loss and metrics of each training batch before its update, the same of the validation data after the last
    step with the prefix `val_`, and `learning_rate` where the optimizer's state has one (`optax.inject_hyperparams`).
    Compiles once for each plan and shape of the data.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp
    >>> data = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=2)
    >>> run_state, record = run_epoch(start(plan, data, key=jax.random.key(0)), data, None, plan=plan)
    >>> int(run_state.epoch), list(record)
    (1, ['loss'])
    """
    train, validation = training_rows(train), evaluation_rows(validation)
    return _run_epoch(run_state, train, validation, plan=plan, like=shardings_of(run_state))


@partial(jit, static_argnames=("plan", "like"))
def _run_epoch(
    run_state: RunState, train: Dataset, validation: Dataset | None, *, plan: Plan, like: Layout | None
) -> tuple[RunState, dict[str, Array]]:
    _, length = batches_of_epoch(plan, train, validation)
    after, row = run_steps(run_state, train, validation, length, plan=plan, like=like)
    return after, dict(zip(record_names(plan, run_state, validation), row, strict=False))


def batches_of_epoch(plan: Plan, train: Any, validation: Dataset | None) -> tuple[Any, Any]:
    """Return the number of training batches of an epoch, and that of all batches, with those of validation.

    train: a dataset, a window, or a `Loader`.
    """
    count = -(-epoch_rows(train) // plan.batch_size)
    if validation is None:
        return count, count
    return count, count + -(-validation.sample_weight.shape[0] // default_batch_size(validation.inputs))


def finish_epoch(
    run_state: RunState, validation: Dataset | None, *, plan: Plan, validate: Any = True
) -> tuple[RunState, dict[str, Array]]:
    """Return the state after an epoch whose batches are complete, and its record; applies the rules.

    Before any epoch was the best, the variables of the last one count as the best, never the initial ones.
    validation: only whether there is one matters. validate: whether this epoch was validated; a rule that monitors a
        validation value ignores an epoch that was not.
    """
    state, epoch = run_state.train_state, run_state.epoch + 1
    variables = eval_variables(state, plan.eval_params)
    record = compute(run_state.sums, plan.objective.metrics)
    if validation is not None:
        record |= {f"val_{name}": value for name, value in compute(run_state.val_sums, plan.objective.metrics).items()}
    rate = learning_rate(state.opt_state)
    if rate is not None:
        record["learning_rate"] = jnp.asarray(rate, jnp.float32)
    value, is_measured = _monitored_value(plan.early_stopping, record, validate)
    stopping: EarlyStoppingState = plan.early_stopping.update(run_state.stopping, value, epoch)
    unchanged = run_state.stopping._replace(improved=jnp.zeros_like(stopping.improved))
    stopping = jax.tree.map(partial(jnp.where, is_measured), stopping, unchanged)
    plateau = run_state.plateau
    if plan.plateau is not None:
        value, is_measured = _monitored_value(plan.plateau, record, validate)
        plateau = plan.plateau.update(plateau, value, epoch)
        plateau = jax.tree.map(partial(jnp.where, is_measured), plateau, run_state.plateau)
        state = state._replace(opt_state=with_learning_rate(state.opt_state, plateau.learning_rate))
    replaces = stopping.improved | (stopping.best_epoch == 0)
    best = jax.tree.map(lambda new, old: jnp.where(replaces, new, old), variables, run_state.best)
    sums, val_sums = jax.tree.map(jnp.zeros_like, (run_state.sums, run_state.val_sums))
    zero = jnp.zeros((), jnp.int32)
    return RunState(epoch, zero, state, best, stopping, plateau, sums, val_sums, run_state.key), record


def _monitored_value(rule: Rule, record: dict[str, Array], validate: Any) -> tuple[Array, Any]:
    """Return the value that a rule monitors, and whether this epoch has measured the value."""
    monitor = rule.monitor or (f"val_{LOSS}" if f"val_{LOSS}" in record else LOSS)
    return record[monitor], validate if monitor.startswith("val_") else True


def run_steps(
    run_state: RunState,
    train: Dataset | Window,
    validation: Dataset | None,
    steps: Any,
    *,
    plan: Plan,
    validate: Any = True,
    like: Layout | None = None,
    alone: bool = False,
) -> tuple[RunState, Array]:
    """Run the next `steps` batches of a run, at most to the end of the epoch; return `(state, row)`.

    Training batches come first, one step each, then those of validation. The data are as `training_rows` and
    `evaluation_rows` return them. Of an array of steps (`agree_on_steps`) the minimum counts. The row, float32, holds
    the values of the epoch's record (zeros inside an epoch), whether the run should stop, whether its numbers are
    finite, and the number of batches: one array, because the host waits for each array that it reads.

    validate: whether the epoch ends with validation; False must not be given to an epoch that has begun to validate.
    like: the shardings of the state's leaves. alone: whether to leave a run unchanged that should stop; many runs share
        the cursor, and `map_members` leaves those unchanged that should stop.
    """
    names = record_names(plan, run_state, validation)
    train_batches, length = batches_of_epoch(plan, train, validation)
    if validation is not None:
        length = jnp.where(validate, length, train_batches)
    cursor = run_state.cursor
    steps = jnp.min(jnp.where(run_state.stopping.should_stop, 0, steps) if alone else steps)
    stop = jnp.minimum(cursor + steps, length).astype(jnp.int32)
    batch = batches_of(train, run_state.key, run_state.epoch, plan.batch_size, mask=False)
    body = train_body(plan.model, plan.objective, plan.optimizer, batch, ema_decay=plan.ema_decay, prepared=True)
    first, last = jnp.asarray(cursor, jnp.int32), jnp.asarray(jnp.minimum(stop, train_batches), jnp.int32)
    state, sums = lax.fori_loop(first, last, body, (run_state.train_state, run_state.sums))
    after = run_state._replace(cursor=stop, train_state=state, sums=sums)
    if validation is not None:
        step = eval_step(plan.model, plan.objective, prepared=True)
        variables, size = eval_variables(state, plan.eval_params), default_batch_size(validation.inputs)
        bounds = jnp.maximum(cursor - train_batches, 0), stop - train_batches
        sums = sum_steps(step, variables, validation, run_state.val_sums, *bounds, batch_size=size)
        after = after._replace(val_sums=sums)

    def close(run_state: RunState) -> tuple[RunState, Array]:
        after, record = finish_epoch(run_state, validation, plan=plan, validate=validate)
        should_stop = after.stopping.should_stop.astype(jnp.float32)
        return after, jnp.stack([*(record[name].astype(jnp.float32) for name in names), should_stop])

    def pause(run_state: RunState) -> tuple[RunState, Array]:
        return run_state, jnp.zeros(len(names) + 1, jnp.float32)

    finite_and_batches = jnp.stack([_is_finite(after), after.cursor - cursor]).astype(jnp.float32)
    after, row = lax.cond(after.cursor == length, close, pause, after)
    return constrain_like(after, like), jnp.concatenate([row, finite_and_batches])


chunk_program = jit(run_steps, static_argnames=("plan", "like", "alone"), name="chunk_program")


def run_chunk(
    run_state: RunState,
    train: Dataset | Window,
    validation: Dataset | None,
    steps: Any,
    *,
    plan: Plan,
    validate: Any = True,
) -> tuple[RunState, Array]:
    """Call `run_steps`, compiled; a run that should stop is left unchanged."""
    like = shardings_of(run_state)
    return chunk_program(
        run_state, train, validation, steps, plan=plan, validate=np.bool_(validate), like=like, alone=True
    )


def _is_finite(run_state: RunState) -> Array:
    state = run_state.train_state
    losses = run_state.sums.totals[LOSS], run_state.val_sums.totals[LOSS]
    leaves = jax.tree.leaves((state.variables, state.ema, losses))
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


# Numbers in the inputs of a batch of images whose activations a CPU's caches hold, or that keep a GPU busy.
CPU_BATCH, GPU_BATCH = 2**17, 2**22


def sum_steps(
    step: EvalStep, variables: Variables, dataset: Dataset, sums: MetricSums, start: Any, stop: Any, *, batch_size: int
) -> MetricSums:
    """Add the sums of an evaluation step over the batches `start` to `stop` of a dataset, in one compiled loop.

    Where `batch_size` does not divide the dataset, the last batch repeats earlier examples with weight 0: the network
    is compiled for one shape and no copy is needed for padding. The bounds may be traced int32. It means

        for index in range(start, stop):
            rows = range(index * batch_size, min((index + 1) * batch_size, len(dataset.sample_weight)))
            sums = merge(sums, step(variables, take(dataset, rows)))
    """

    def body(index: Array, sums: MetricSums) -> MetricSums:
        return merge(sums, step(variables, validation_batch(dataset, index, batch_size)))

    return lax.fori_loop(jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32), body, sums)


def zeros_of(function: Callable[..., PyTree], *arguments: Any) -> PyTree:
    """Return zeros of the shapes and dtypes that a function would return, without a call of it."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arguments))


def eval_batch_size(inputs: PyTree, batch_size: int | None) -> int:
    """Return the batch size of an evaluation: the caller's, or one that suits the device."""
    if batch_size is not None:
        return whole_number("batch_size", batch_size, 1)
    if all(leaf.ndim < 4 for leaf in jax.tree.leaves(inputs)):
        return default_batch_size(inputs)
    return default_batch_size(inputs, CPU_BATCH if jax.default_backend() == "cpu" else GPU_BATCH)


@contextmanager
def explain_misfit(model: Model, variables: Any, inputs: Any) -> Iterator[None]:
    """Raise InputError for an error of the block where the variables do not fit the model and the inputs.

    The model's library would report them in its own words, with a long traceback. Other errors pass.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        misfit = None if variables is None else _misfit(model, variables, inputs)
        if misfit is None:
            _check_container(model, inputs)
            raise
        shapes = [f"({', '.join(['batch', *map(str, leaf.shape[1:])])})" for leaf in jax.tree.leaves(inputs)]
        raise InputError(
            f"variables do not fit the model and inputs of shape {', '.join(shapes)}: {misfit}. Give inputs with the "
            "columns of the training data, or the variables of this model."
        ) from error


def _check_container(model: Model, inputs: PyTree) -> None:
    """Raise InputError where the model cannot be made for inputs that are several arrays."""
    if hasattr(inputs, "shape"):
        return
    try:
        jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), _one_example(inputs))
    except InputError:
        raise
    except Exception as error:  # Whatever the model's library raises.
        names = ", ".join(name for name, _ in named_leaves("inputs", inputs))
        raise InputError(
            f"the model must take inputs that are {given_as(inputs)}, of {names}, and fails with {error!r:.200}. It is "
            "given all of them as one argument, as in def __call__(self, inputs)."
        ) from error


def _one_example(inputs: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), inputs)


def _misfit(model: Model, variables: Any, inputs: Any) -> str | None:
    """Return the first array of the variables that the model would make otherwise for such inputs."""
    try:
        expected = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), _one_example(inputs))
    except Exception:  # Whatever the model's library raises: then the variables cannot be compared.
        return None
    expected_shapes, shapes = (
        {
            jax.tree_util.keystr(path).removeprefix("."): jnp.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (expected, variables)
    )
    for name, shape in expected_shapes.items():
        if name not in shapes:
            return f"{name} of shape {shape} is missing"
        if shapes[name] != shape:
            return f"{name} must be of shape {shape}, got {shapes[name]}"
    return None
