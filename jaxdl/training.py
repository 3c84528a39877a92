"""An epoch as one compiled program."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.arguments import explain_calls, given_as
from jaxdl.batches import Window, batch_rows, batches_of, epoch_rows, evaluation_rows, training_rows
from jaxdl.errors import InputError
from jaxdl.objectives import LOSS, check_labels, finish, measure
from jaxdl.passes import explain_misfit, scan_steps, sum_steps, zeros_of
from jaxdl.plans import check_monitors, check_rows
from jaxdl.programs import is_traced, program
from jaxdl.rates import learning_rate, rate_to_change, with_learning_rate
from jaxdl.sharding import Layout, by_rule, laid_out, layout
from jaxdl.steps import make_eval_step, make_train_state, make_train_step, shown_weights
from jaxdl.types import Array, Examples, Plan, Progress, Rule, Stopping, Weights


@explain_calls
def start(
    plan: Plan, train: Examples, validation: Examples | None = None, *, key: Array, weights: Weights | None = None
) -> Progress:
    """The progress before the first epoch: new weights drawn with `key`, or the given ones.

    Raises InputError where the rows do not fill a batch, targets do not fit the outputs, a monitor is not measured, or
    reduce-on-plateau finds no learning rate to change.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=2)
    >>> int(start(plan, examples([[1.0], [2.0]], [[1.0], [2.0]]), key=jax.random.key(0)).epoch)
    0
    """
    if not hasattr(key, "dtype"):
        raise InputError(f"key must be a key of JAX, got {given_as(key)}. Use jax.random.key(0), say.")
    check_rows(plan, train, validation)
    check_labels(plan.model, plan.objective, train, validation)
    batch = jax.tree.map(lambda leaf: leaf[: plan.batch_size], train)
    # Inside a program the plan may hold its traced values (see Family), which a program of its own would keep for good.
    with explain_misfit(plan.model, weights, batch.inputs):
        progress = (_start if is_traced(key) else _start_program)(batch, key, weights, plan=plan)
    check_monitors(plan, progress, validation)
    return progress


def start_shapes(plan: Plan, train: Examples, validation: Examples | None = None, *, key: Array) -> Progress:
    """The shapes and dtypes of what `start` gives; nothing is computed or compiled. Raises what it raises.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=2)
    >>> start_shapes(plan, examples([[1.0], [2.0]], [[1.0], [2.0]]), key=jax.random.key(0)).epoch.dtype
    dtype('int32')
    """
    check_rows(plan, train, validation)
    check_labels(plan.model, plan.objective, train, validation)
    batch = jax.tree.map(lambda leaf: leaf[: plan.batch_size], train)
    shapes = _start_program.eval_shape(batch, key, None, plan=plan)
    check_monitors(plan, shapes, validation)
    return shapes


def _start(batch: Examples, key: Array, weights: Weights | None, *, plan: Plan) -> Progress:
    init_key, step_key, order_key = jax.random.split(key, 3)
    if weights is None:
        weights = plan.model.init(init_key, batch.inputs)
    weights = jax.tree.map(jnp.asarray, weights)
    outputs, _ = plan.model.apply(weights, batch.inputs, train=False)
    if not hasattr(outputs, "shape"):
        raise InputError(
            f"a model must return one array of outputs (rows, ...), got {given_as(outputs)}. Let it return that one "
            "alone, or several concatenated."
        )
    if jnp.shape(outputs)[:1] != batch.weights.shape:
        advice = "Use inputs[:, None] for one column." if batch.inputs.ndim == 1 else "Let it keep the first axis."
        raise InputError(
            f"a model must return outputs (rows, ...), got {jnp.shape(outputs)} for inputs of shape "
            f"{batch.inputs.shape}. {advice}"
        )
    state = make_train_state(weights, plan.optimiser, step_key, average=plan.average is not None)
    zero = jnp.zeros((), jnp.int32)
    plateau = () if plan.plateau is None else plan.plateau.init(rate_to_change(state.opt_state))
    nothing = zeros_of(partial(measure, plan.objective), outputs, batch.targets, batch.weights)
    return by_rule(
        Progress(
            epoch=zero,
            cursor=zero,
            state=state,
            best=weights,
            stopping=plan.stop.init(),
            plateau=plateau,
            sums=nothing,
            val_sums=nothing,
            key=order_key,
        )
    )


_start_program = program(_start, static_argnames="plan", once=True)


def run_epoch(
    progress: Progress, train: Examples, validation: Examples | None, *, plan: Plan
) -> tuple[Progress, dict[str, Array]]:
    """The rest of the epoch under way, then validation, then the rules: one program, `(progress, record)`.

    Every training row is used once, in an order that depends on (progress.key, epoch) alone. The record holds float32
    scalars: the objective's figures over the training rows as they were met, the same of the validation rows after the
    last step with the prefix `val_`, and `learning_rate` where the optimiser's state has one
    (`optax.inject_hyperparams`).

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=2)
    >>> progress, record = run_epoch(start(plan, rows, key=jax.random.key(0)), rows, None, plan=plan)
    >>> int(progress.epoch), list(record)
    (1, ['loss'])
    """
    train, validation = training_rows(train), evaluation_rows(validation)
    return _run_epoch(progress, train, validation, plan=plan, like=layout(progress))


@partial(program, static_argnames=("plan", "like"))
def _run_epoch(
    progress: Progress, train: Examples, validation: Examples | None, *, plan: Plan, like: Layout | None
) -> tuple[Progress, dict[str, Array]]:
    after, record = finish_epoch(run_steps(progress, train, validation, plan=plan), validation, plan=plan)
    return laid_out(after, like), record


def batches_of_epoch(plan: Plan, train: Examples | Window, validation: Examples | None) -> tuple[Any, Any]:
    """The batches of an epoch: those of training, and all with those of validation, which come after.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> rows = examples([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=2)
    >>> batches_of_epoch(plan, rows, rows)
    (2, 3)
    """
    trained = -(-epoch_rows(train) // plan.batch_size)
    if validation is None:
        return trained, trained
    return trained, trained + -(-validation.weights.shape[0] // batch_rows(validation.inputs))


def run_steps(
    progress: Progress, train: Examples | Window, validation: Examples | None, steps: Any = None, *, plan: Plan
) -> Progress:
    """The next `steps` batches of the epoch under way (int32, may be traced), all that are left by default.

    Batches of training first, each of them a step; then those of validation.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> rows = examples([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
    >>> int(run_steps(start(plan, rows, key=jax.random.key(0)), rows, None, 2, plan=plan).cursor)
    2
    """
    train, validation = training_rows(train), evaluation_rows(validation)
    trained, length = batches_of_epoch(plan, train, validation)
    begin, stop = progress.cursor, jnp.asarray(length, jnp.int32)
    if steps is not None:
        stop = jnp.minimum(begin + steps, length).astype(jnp.int32)
    step = make_train_step(plan.model, plan.objective, plan.optimiser, average=plan.average, prepared=True)
    batch = batches_of(train, progress.key, progress.epoch, plan.batch_size, mask=False)
    state, sums = scan_steps(step, progress.state, progress.sums, batch, begin, jnp.minimum(stop, trained))
    progress = progress._replace(cursor=stop, state=state, sums=sums)
    if validation is None:
        return progress
    measure_batch, weights = (
        make_eval_step(plan.model, plan.objective, prepared=True),
        shown_weights(state, plan.eval_params),
    )
    first, size = jnp.maximum(begin - trained, 0), batch_rows(validation.inputs)
    val_sums = sum_steps(measure_batch, weights, validation, progress.val_sums, first, stop - trained, batch_size=size)
    return progress._replace(val_sums=val_sums)


def finish_epoch(progress: Progress, validation: Examples | None, *, plan: Plan) -> tuple[Progress, dict[str, Array]]:
    """Closes an epoch whose batches are done: its record, the rules, the best weights.

    Before any epoch was the best, the weights of the last one count as the best: never the untrained ones.
    `validation` only tells whether there is any.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
    >>> progress = run_steps(start(plan, rows, key=jax.random.key(0)), rows, None, plan=plan)
    >>> finish_epoch(progress, None, plan=plan)[0].stopping.best_epoch.item()
    1
    """
    state, epoch, weights = progress.state, progress.epoch + 1, shown_weights(progress.state, plan.eval_params)
    record = finish(plan.objective, progress.sums)
    if validation is not None:
        record |= {f"val_{name}": value for name, value in finish(plan.objective, progress.val_sums).items()}
    rate = learning_rate(state.opt_state)
    if rate is not None:
        record["learning_rate"] = jnp.asarray(rate, jnp.float32)
    stopping: Stopping = plan.stop.update(progress.stopping, _monitored(plan.stop, record), epoch)
    plateau = progress.plateau
    if plan.plateau is not None:
        plateau = plan.plateau.update(plateau, _monitored(plan.plateau, record), epoch)
        state = state._replace(opt_state=with_learning_rate(state.opt_state, plateau.learning_rate))
    replaces = stopping.improved | (stopping.best_epoch == 0)
    best = jax.tree.map(lambda new, old: jnp.where(replaces, new, old), weights, progress.best)
    sums, val_sums = jax.tree.map(jnp.zeros_like, (progress.sums, progress.val_sums))
    zero = jnp.zeros((), jnp.int32)
    return Progress(epoch, zero, state, best, stopping, plateau, sums, val_sums, progress.key), record


def _monitored(rule: Rule, record: dict[str, Array]) -> Array:
    return record.get(f"val_{LOSS}", record[LOSS]) if rule.monitor is None else record[rule.monitor]
