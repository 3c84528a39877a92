"""An epoch as one compiled program, and the generator over epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdl.data import order
from jaxdl.objectives import LOSS, finish, measure
from jaxdl.passes import evaluate, scan_steps, zeros_of
from jaxdl.plans import check_monitors, check_rows, measured
from jaxdl.programs import program
from jaxdl.rates import learning_rate, rate_to_change, with_learning_rate
from jaxdl.steps import make_train_state, make_train_step, shown_weights
from jaxdl.types import Array, Examples, Plan, Progress, Rule, Stopping, Sums, Weights


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
    check_rows(plan, train, validation)
    batch = jax.tree.map(lambda leaf: leaf[: plan.batch_size], train)
    progress = _start(batch, key, weights, plan=plan)
    check_monitors(plan, progress, validation)
    return progress


@partial(program, static_argnames="plan")
def _start(batch: Examples, key: Array, weights: Weights | None, *, plan: Plan) -> Progress:
    init_key, step_key, order_key = jax.random.split(key, 3)
    if weights is None:
        weights = plan.model.init(init_key, batch.inputs)
    weights = jax.tree.map(jnp.asarray, weights)
    outputs, _ = plan.model.apply(weights, batch.inputs, train=False)
    state = make_train_state(weights, plan.optimiser, step_key, average=plan.average is not None)
    zero = jnp.zeros((), jnp.int32)
    plateau = () if plan.plateau is None else plan.plateau.init(rate_to_change(state.opt_state))
    return Progress(
        epoch=zero,
        cursor=zero,
        state=state,
        best=weights,
        stopping=plan.stop.init(),
        plateau=plateau,
        sums=zeros_of(partial(measure, plan.objective), outputs, batch.targets, batch.weights),
        key=order_key,
    )


@partial(program, static_argnames="plan")
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
    return finish_epoch(run_steps(progress, train, plan=plan), validation, plan=plan)


def run_steps(progress: Progress, train: Examples, steps: Any = None, *, plan: Plan) -> Progress:
    """The next `steps` steps of the epoch under way (int32, may be traced), all that are left by default.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> rows = examples([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
    >>> int(run_steps(start(plan, rows, key=jax.random.key(0)), rows, 2, plan=plan).cursor)
    2
    """
    count = train.weights.shape[0]
    total = -(-count // plan.batch_size)
    stop = jnp.int32(total) if steps is None else jnp.minimum(progress.cursor + steps, total).astype(jnp.int32)
    step = make_train_step(plan.model, plan.objective, plan.optimiser, average=plan.average)
    rows = order(progress.key, progress.epoch, count)
    state, sums = scan_steps(
        step, progress.state, progress.sums, train, rows, progress.cursor, stop, batch_size=plan.batch_size
    )
    return progress._replace(cursor=stop, state=state, sums=sums)


def finish_epoch(progress: Progress, validation: Examples | None, *, plan: Plan) -> tuple[Progress, dict[str, Array]]:
    """Closes an epoch whose steps are done: measures, applies the rules, keeps the best weights.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
    >>> progress = run_steps(start(plan, rows, key=jax.random.key(0)), rows, plan=plan)
    >>> finish_epoch(progress, None, plan=plan)[0].stopping.best_epoch.item()
    1
    """
    state, epoch, weights = progress.state, progress.epoch + 1, shown_weights(progress.state)
    record = finish(plan.objective, progress.sums)
    if validation is not None:
        figures = evaluate(plan.model, plan.objective, weights, validation)
        record |= {f"val_{name}": value for name, value in figures.items()}
    rate = learning_rate(state.opt_state)
    if rate is not None:
        record["learning_rate"] = jnp.asarray(rate, jnp.float32)
    stopping: Stopping = plan.stop.update(progress.stopping, _monitored(plan.stop, record), epoch)
    plateau = progress.plateau
    if plan.plateau is not None:
        plateau = plan.plateau.update(plateau, _monitored(plan.plateau, record), epoch)
        state = state._replace(opt_state=with_learning_rate(state.opt_state, plateau.learning_rate))
    best = jax.tree.map(lambda new, old: jnp.where(stopping.improved, new, old), weights, progress.best)
    sums: Sums = jax.tree.map(jnp.zeros_like, progress.sums)
    return Progress(epoch, jnp.zeros((), jnp.int32), state, best, stopping, plateau, sums, progress.key), record


def epochs(
    plan: Plan, progress: Progress, train: Examples, validation: Examples | None = None, *, last: int | None = None
) -> Iterator[tuple[Progress, dict[str, float]]]:
    """Yields `(progress, record)` after every epoch, up to the epoch `last` or until the stopping rule ends the run.

    One dispatch and one transfer an epoch, and always an epoch ahead: while the caller looks at one, the device is at
    the next. (An epoch after the end of a run is over at once and changes nothing.) It means

        while not progress.stopping.done and (last is None or progress.epoch < last):
            progress, record = run_epoch(progress, train, validation, plan=plan)
            keep(progress, record)  # which the generator yields, as Python numbers, after the number of the epoch
    """
    check_rows(plan, train, validation)
    check_monitors(plan, progress, validation)
    progress, train, validation = _together(progress, train, validation)
    names = measured(plan, progress, validation)
    epoch, done, end = int(progress.epoch), bool(progress.stopping.done), math.inf if last is None else last
    ahead = None if done or epoch >= end else _run_epoch_to_row(progress, train, validation, plan=plan)
    while ahead is not None and not done:
        (progress, row), epoch = ahead, epoch + 1
        ahead = None if epoch >= end else _run_epoch_to_row(progress, train, validation, plan=plan)
        *figures, done = np.asarray(row).tolist()
        yield progress, {"epoch": epoch, **dict(zip(names, figures, strict=True))}


@partial(program, static_argnames="plan")
def _run_epoch_to_row(
    progress: Progress, train: Examples, validation: Examples | None, *, plan: Plan
) -> tuple[Progress, Array]:
    """`run_epoch` of a run that is not over, with its record and the stop flag as one array.

    One, because each array that the host reads costs it a wait.
    """
    names = measured(plan, progress, validation)

    def run() -> tuple[Progress, Array]:
        after, record = run_epoch(progress, train, validation, plan=plan)
        done = after.stopping.done.astype(jnp.float32)
        return after, jnp.stack([*(record[name].astype(jnp.float32) for name in names), done])

    def stand_still() -> tuple[Progress, Array]:
        return progress, jnp.ones(len(names) + 1, jnp.float32)

    return lax.cond(progress.stopping.done, stand_still, run)


def _together(progress: Progress, train: Examples, validation: Examples | None) -> tuple[Any, ...]:
    """All on the device to which the training rows are bound, if they are bound to one.

    Otherwise the first epoch's results would be bound and its arguments not, which compiles a second program.
    """
    home = train.weights
    bound = isinstance(home, jax.Array) and home.committed and len(home.sharding.device_set) == 1
    return jax.device_put((progress, train, validation), home.sharding if bound else None)


def _monitored(rule: Rule, record: dict[str, Array]) -> Array:
    return record.get(f"val_{LOSS}", record[LOSS]) if rule.monitor is None else record[rule.monitor]
