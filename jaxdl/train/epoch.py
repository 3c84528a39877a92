"""The epoch: its state, its batches, and the compiled functions that run its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdl._arguments import explain_calls, given_as, whole_number
from jaxdl._jit import is_traced, program
from jaxdl.data.batches import (
    Window,
    batch_rows,
    batches_of,
    epoch_rows,
    evaluation_rows,
    training_rows,
    validation_batch,
)
from jaxdl.distributed.sharding import Layout, by_rule, laid_out, layout
from jaxdl.errors import InputError
from jaxdl.losses import check_labels
from jaxdl.metrics import add, finish, measure
from jaxdl.train.plan import check_monitors, check_rows, learning_rate, measured, rate_to_change, with_learning_rate
from jaxdl.train.step import EvalStep, TrainStep, make_eval_step, make_train_state, make_train_step, shown_weights
from jaxdl.types import LOSS, Array, Examples, Model, Plan, Progress, PyTree, Rule, Stopping, Sums, TrainState, Weights


@explain_calls
def start(
    plan: Plan, train: Examples, validation: Examples | None = None, *, key: Array, weights: Weights | None = None
) -> Progress:
    """The progress before the first epoch: new weights drawn with `key`, or the given ones.

    Raises InputError where the rows do not fill a batch, targets do not fit the outputs, a monitor is not measured, or
    reduce-on-plateau finds no learning rate to change.

    >>> import optax
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=2)
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
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=2)
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
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=2)
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
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective
    >>> rows = examples([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=2)
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
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective
    >>> rows = examples([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=1)
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
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=1)
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


def advance(
    progress: Progress, train: Examples | Window, validation: Examples | None, steps: Any, *, plan: Plan
) -> tuple[Progress, Array]:
    """The next `steps` batches of a run, no more than its epoch has; closes the epoch where they end it.

    Of several `steps` (`sharding.wish`) the least counts. The row, float32, holds the figures of the epoch (zeros
    inside of one), whether the run should stop, whether its numbers are finite, and how many batches were done: one
    array, because each array that the host reads costs it a wait.

    >>> import optax
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=1)
    >>> progress, row = advance(start(plan, rows, key=jax.random.key(0)), rows, None, 1, plan=plan)
    >>> int(progress.cursor), row.tolist()
    (1, [0.0, 0.0, 1.0, 1.0])
    """
    names, (_, length) = measured(plan, progress, validation), batches_of_epoch(plan, train, validation)

    def close(progress: Progress) -> tuple[Progress, Array]:
        after, record = finish_epoch(progress, validation, plan=plan)
        done = after.stopping.done.astype(jnp.float32)
        return after, jnp.stack([*(record[name].astype(jnp.float32) for name in names), done])

    def pause(progress: Progress) -> tuple[Progress, Array]:
        return progress, jnp.zeros(len(names) + 1, jnp.float32)

    after = run_steps(progress, train, validation, jnp.min(steps), plan=plan)
    told = jnp.stack([_finite(after), after.cursor - progress.cursor]).astype(jnp.float32)
    after, row = lax.cond(after.cursor == length, close, pause, after)
    return after, jnp.concatenate([row, told])


def run_chunk(
    progress: Progress, train: Examples | Window, validation: Examples | None, steps: Any, *, plan: Plan
) -> tuple[Progress, Array]:
    """`advance` as a program; a run that is over stands still.

    >>> import optax
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=1)
    >>> int(run_chunk(start(plan, rows, key=jax.random.key(0)), rows, None, 2, plan=plan)[0].epoch)
    1
    """
    return chunk_program(progress, train, validation, steps, plan=plan, like=layout(progress))


@partial(program, static_argnames=("plan", "like"))
def chunk_program(
    progress: Progress,
    train: Examples | Window,
    validation: Examples | None,
    steps: Any,
    *,
    plan: Plan,
    like: Layout | None,
) -> tuple[Progress, Array]:
    """`run_chunk` as JAX compiles it; `like`: where the leaves of the progress lie.

    >>> chunk_program.__name__
    'chunk_program'
    """
    left = jnp.where(progress.stopping.done, 0, steps)
    after, row = advance(progress, train, validation, left, plan=plan)
    return laid_out(after, like), row


def _finite(progress: Progress) -> Array:
    state = progress.state
    losses = progress.sums.totals[LOSS], progress.val_sums.totals[LOSS]
    leaves = jax.tree.leaves((state.weights, state.average, losses))
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


CACHED, FILLING = 2**17, 2**22  # numbers of images whose activations a CPU's caches hold, or that keep a GPU busy


def scan_steps(
    step: TrainStep,
    state: TrainState,
    sums: Sums,
    batch: Callable[[Array], Examples],
    start: Any,
    stop: Any,
) -> tuple[TrainState, Sums]:
    """Training steps `start` to `stop` of an epoch with the batches `batch(index)`, in one compiled loop.

    The bounds may be traced int32, so one program serves chunks of every length, and chunks give the bits that the
    whole epoch gives. It means

        for index in range(start, stop):
            state, measured = step(state, batch(index))
            sums = add(sums, measured)
    """

    def body(index: Array, carry: tuple[TrainState, Sums]) -> tuple[TrainState, Sums]:
        state, sums = carry
        state, measured = step(state, batch(index))
        return state, add(sums, measured)

    return lax.fori_loop(jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32), body, (state, sums))


def sum_steps(
    step: EvalStep, weights: Weights, rows_of: Examples, sums: Sums, start: Any, stop: Any, *, batch_size: int
) -> Sums:
    """The sums with those of an evaluation step over the batches `start` to `stop` of the rows, in one compiled loop.

    Where `batch_size` does not divide the rows, the last batch reaches back over rows that were counted already, with
    weight 0: the network is compiled for one shape and nothing is copied to pad. The bounds may be traced int32. It
    means

        for index in range(start, stop):
            rows = range(index * batch_size, min((index + 1) * batch_size, len(rows_of.weights)))
            sums = add(sums, step(weights, take(rows_of, rows)))
    """

    def body(index: Array, sums: Sums) -> Sums:
        return add(sums, step(weights, validation_batch(rows_of, index, batch_size)))

    return lax.fori_loop(jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32), body, sums)


def zeros_of(function: Callable[..., PyTree], *arguments: Any) -> PyTree:
    """Zeros of the shapes and dtypes that a function would return; it is not computed.

    >>> zeros_of(lambda a: {"twice": 2 * a}, jnp.ones(3))["twice"].tolist()
    [0.0, 0.0, 0.0]
    """
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arguments))


def rows_at_once(inputs: Array, batch_size: int | None) -> int:
    """Return how many rows an evaluation takes at once: the batch size that is given, or one that suits the device.

    >>> rows_at_once(jnp.zeros((5, 163)), None)
    1024
    """
    if batch_size is not None:
        return whole_number("batch_size", batch_size, 1)
    if inputs.ndim < 4:
        return batch_rows(inputs)
    return batch_rows(inputs, CACHED if jax.default_backend() == "cpu" else FILLING)


@contextmanager
def explain_misfit(model: Model, weights: Any, inputs: Any) -> Iterator[None]:
    """Raise InputError for an error of the block, where the weights are not those of this model for such inputs.

    A library reports such weights in words of its own, with its own traceback. Other errors pass.

    >>> from jaxdl import predict
    >>> from jaxdl import mlp
    >>> model = mlp((), outputs=2)
    >>> weights = model.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> try:
    ...     predict(model, weights, jnp.ones((5, 4)))
    ... except InputError as error:
    ...     print(error)
    weights do not fit the model and inputs of shape (rows, 4): params['Dense_0']['kernel'] must be of shape (4, 2), got
    (3, 2). Give inputs with the columns of the training data, or the weights of this model.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        misfit = None if weights is None else _misfit(model, weights, inputs)
        if misfit is None:
            raise
        shape = str(("rows", *inputs.shape[1:])).replace("'", "")
        raise InputError(
            f"weights do not fit the model and inputs of shape {shape}: {misfit}. Give inputs with the columns of the "
            "training data, or the weights of this model."
        ) from error


def _misfit(model: Model, weights: Any, inputs: Any) -> str | None:
    """Return the first array of the weights that is not as the model would make it for such inputs."""
    rows = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    try:
        made = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), rows)
    except Exception:  # Whatever the model's library raises: then it cannot be told.
        return None
    wanted, given = (
        {
            jax.tree_util.keystr(path).removeprefix("."): jnp.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (made, weights)
    )
    for name, shape in wanted.items():
        if name not in given:
            return f"{name} of shape {shape} is missing"
        if given[name] != shape:
            return f"{name} must be of shape {shape}, got {given[name]}"
    return None
