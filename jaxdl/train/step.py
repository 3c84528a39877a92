"""One step of training and one of evaluation, as pure functions of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import lax
from jaxtyping import Float, PRNGKeyArray

from jaxdl._checks import check_model, check_objective, check_optimizer
from jaxdl.data.arrays import precision
from jaxdl.data.batches import only_counted
from jaxdl.errors import InputError
from jaxdl.metrics import measure, merge
from jaxdl.train.plan import with_float_rates
from jaxdl.types import (
    LOSS,
    Array,
    Batch,
    Dataset,
    EvalParams,
    Loss,
    Metric,
    MetricSums,
    Model,
    Objective,
    Plan,
    PyTree,
    TrainState,
    Variables,
)

TrainStep = Callable[[TrainState, Dataset | Batch], tuple[TrainState, MetricSums]]
EvalStep = Callable[[Variables, Dataset | Batch], MetricSums]
Gradient = Callable[[TrainState, Dataset | Batch], PyTree]


def make_train_step(
    model: Model,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    metrics: Sequence[Metric] = (),
    ema_decay: float | None = None,
    prepared: bool = False,
) -> TrainStep:
    """Return a pure function `(state, batch) -> (state, sums)`: one update of the optimizer on the loss of a batch.

    The loss is the sum of weight times loss over the examples, divided by their number: with sample weights whose mean
    over the data set is 1, as the loops give them, the expected gradient is that of the data set's weighted mean loss,
    whatever the batch size. The padding of a Batch is no example; an example of weight 0 is one, but nothing that it
    holds counts. The sums measure the batch before the update; a batch whose weights are all 0 changes nothing.

    Randomness comes from `fold_in(state.key, state.step)`, so the key never advances and a resumed run draws what the
    uninterrupted one would have drawn. Clipping, accumulation, weight decay and schedules are optax's: compose them
    into `optimizer`. One that asks for them is given the loss and its gradient (`value`, `grad`), functions of the
    parameters (`value_fn`, `obj_fn`) and `grad_fn`, all on the same batch with the same key.

    prepared: whether the batches come of data that `batches.training_rows` has prepared, as in the loops. They are
        taken as they are then, and in one that is no Batch padding has weight 0 and all examples weight 1.

    With `ema_decay`, such as 0.999, the state's moving average of the weights and stats keeps that share of itself each
    step, and less in the first steps: min(average, (1 + step) / (10 + step)).

    >>> from jaxdl import losses, mlp
    >>> model, optimizer = mlp((), outputs=1), optax.sgd(0.1)
    >>> step = jax.jit(make_train_step(model, losses.squared_error, optimizer))
    >>> batch = Dataset(jnp.ones((4, 2)), jnp.ones((4, 1)), jnp.ones(4))
    >>> state = make_train_state(model.init(jax.random.key(0), batch.inputs), optimizer, jax.random.key(1))
    >>> state, first = step(state, batch)
    >>> state, second = step(state, batch)
    >>> int(state.step), bool(second.totals["loss"] < first.totals["loss"])
    (2, True)
    """

    check_model(model)
    check_optimizer(optimizer)
    objective = check_objective(loss, metrics)

    def step(state: TrainState, batch: Dataset | Batch) -> tuple[TrainState, MetricSums]:
        body = train_body(model, objective, optimizer, lambda _: batch, ema_decay=ema_decay, prepared=prepared)
        return body(0, (state, None))

    return step


def train_body(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch: Callable[[Any], Dataset | Batch],
    *,
    ema_decay: float | None = None,
    prepared: bool = False,
) -> Callable[[Any, tuple[TrainState, Any]], tuple[TrainState, MetricSums]]:
    """Return the body of the loop over training steps, `body(index, (state, sums))` as `lax.fori_loop` takes it.

    The bounds of the loop may be traced int32: one compiled function serves every number of steps, and gives the bits
    that the whole epoch gives. With `step` of `make_train_step`, the loop means

        for index in range(start, stop):
            state, measured = step(state, batch(index))
            sums = merge(sums, measured)
    """

    def body(index: Any, carry: tuple[TrainState, Any]) -> tuple[TrainState, MetricSums]:
        (state, before), rows = carry, batch(index)
        loss = loss_of_params(model, objective, state, rows, prepared=prepared)
        (value, (stats, sums)), grads = jax.value_and_grad(loss, has_aux=True)(state.variables.params)
        counts, kept = sums.weight > 0, (state.variables, state.opt_state, state.ema)

        def moved(updates: PyTree, opt_state: PyTree) -> PyTree:
            variables = Variables(optax.apply_updates(state.variables.params, updates), stats)
            return variables, opt_state, () if ema_decay is None else _averaged(state, variables, ema_decay)

        def either(updates: PyTree, opt_state: PyTree) -> PyTree:
            return jax.tree.map(lambda new, old: jnp.where(counts, new, old), moved(updates, opt_state), kept)

        # A batch that counts nothing has no mean and no gradient, but momentum would still move the weights.
        update = partial(optimizer_update, optimizer, state, grads, value, lambda params: loss(params)[0])
        variables, opt_state, mean = lax.platform_dependent(
            # On a CPU a choice between arrays has the state copied every step. Elsewhere the host would have to be
            # asked.
            cpu=partial(lax.cond, counts, partial(update, moved), lambda: kept),
            default=partial(update, either),
        )
        after = TrainState(state.step + 1, variables, opt_state, state.key, mean)
        return after, sums if before is None else merge(before, sums)

    return body


def optimizer_update(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    grads: PyTree,
    value: Float[Array, ""],
    value_fn: Callable[[PyTree], Float[Array, ""]],
    then: Callable[[PyTree, PyTree], PyTree] = lambda updates, opt_state: (updates, opt_state),
) -> PyTree:
    """Return the updates and the next state of an optimizer, which is given what it asks for of the loss.

    value: the loss, a scalar. value_fn: the loss as a function of the parameters. then: makes the result of the two.
    Raises InputError for an optimizer that needs anything else, or whose state does not keep its form.
    """
    usual = {"value": value, "grad": grads, "value_fn": value_fn}
    rare = {"obj_fn": value_fn, "grad_fn": lambda params, *_: jax.grad(value_fn)(params)}
    # Line searches refuse what they do not know, and one of a chain may take no argument although the chain does.
    choices: list[dict[str, Any]] = [usual, usual | rare, {"grad_fn": rare["grad_fn"]}, {}]
    parameters = inspect.signature(optimizer.update).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        accepted = {parameter.name for parameter in parameters}
        choices = [{name: given for name, given in (usual | rare).items() if name in accepted}]
    errors: list[Exception] = []
    for extra in choices:
        try:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.variables.params, **extra)
            break
        except (TypeError, ValueError, AttributeError) as error:
            errors.append(error)
    else:
        raise InputError(
            f"the optimizer cannot make an update: {errors[0]}. It is given value, grad, value_fn, obj_fn and grad_fn "
            "of the batch; wrap one that needs anything else in an optax.GradientTransformationExtraArgs."
        ) from errors[0]
    return then(updates, _like(state.opt_state, opt_state))


def _like(old: PyTree, new: PyTree) -> PyTree:
    """The optimizer's new state, checked to have the form of the old one, which a compiled loop needs."""
    forms: list[Any] = [jax.tree.structure(old), jax.tree.structure(new)]
    if forms[0] != forms[1]:
        raise InputError(
            "the optimizer's update must return a state of the structure that its init returned, got "
            f"{forms[1]} after {forms[0]}."
        )
    for (path, one), other in zip(jax.tree.leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if jnp.shape(one) != jnp.shape(other) or jnp.result_type(one) != jnp.result_type(other):
            name, before, after = jax.tree_util.keystr(path), jnp.result_type(one), jnp.result_type(other)
            raise InputError(
                f"the optimizer's update must keep the shapes and dtypes of its state, got {jnp.shape(other)} of "
                f"{after} after {jnp.shape(one)} of {before} for {name}. "
                "Give its numbers as floats, and its arrays with a dtype."
            )
    return jax.tree.map(_typed, new)


def _typed(leaf: Any) -> Array:
    """An array whose dtype is its own: one that came from a Python number would be another program's argument."""
    return leaf if isinstance(leaf, jax.Array) and not leaf.aval.weak_type else jnp.asarray(leaf, jnp.result_type(leaf))


def make_gradient(model: Model, objective: Objective) -> Gradient:
    """A pure function `(state, batch) -> gradients`, a tree like the parameters: those of `make_train_step`'s loss.

    They are what the optimizer would be given if the batch came next, with the same dropout. The state's `opt_state`
    and `ema_decay` are not looked at.
    """

    def gradient(state: TrainState, batch: Dataset | Batch) -> PyTree:
        gradients, _ = jax.grad(loss_of_params(model, objective, state, batch), has_aux=True)(state.variables.params)
        return gradients

    return gradient


def loss_of_params(
    model: Model, objective: Objective, state: TrainState, batch: Dataset | Batch, *, prepared: bool = False
) -> Callable[[PyTree], tuple[Float[Array, ""], tuple[PyTree, MetricSums]]]:
    """Return the loss that a step minimizes, as a function `params -> (loss, (stats, sums))`."""
    key, batch = jax.random.fold_in(state.key, state.step), batch if prepared else only_counted(batch)
    mask = batch.sample_weight > 0
    if not prepared or isinstance(batch, Batch):
        # Moments of no example at all would be nan; what comes of such a batch is thrown away.
        mask = mask | ~mask.any()

    def mean_loss(params: PyTree) -> tuple[Float[Array, ""], tuple[PyTree, MetricSums]]:
        variables = Variables(params, state.variables.stats)
        outputs, stats = model.apply(variables, batch.inputs, train=True, key=key, mask=mask)
        sums = measure_batch(objective, outputs, batch, prepared=prepared)
        if isinstance(batch, Batch):
            count = batch.mask.astype(sums.weight.dtype).sum()
        else:
            count = sums.weight if prepared else jnp.asarray(len(batch.sample_weight), sums.weight.dtype)
        return sums.totals[LOSS] / jnp.where(count > 0, count, 1), (stats, sums)

    return mean_loss


def plan_step(plan: Plan, *, prepared: bool = False) -> TrainStep:
    """Return the training step of a plan; prepared: as for `make_train_step`."""
    loss, metrics = plan.objective
    return make_train_step(
        plan.model, loss, plan.optimizer, metrics=metrics, ema_decay=plan.ema_decay, prepared=prepared
    )


def measure_batch(objective: Objective, outputs: Array, batch: Dataset | Batch, *, prepared: bool) -> MetricSums:
    """Return the sums of the loss and the metrics of a batch; prepared: as for `make_train_step`."""
    weights = batch.sample_weight
    return measure(objective.loss, outputs, batch.targets, weights, metrics=objective.metrics, prepared=prepared)


def make_eval_step(model: Model, loss: Loss, *, metrics: Sequence[Metric] = (), prepared: bool = False) -> EvalStep:
    """Return a pure function `(weights, batch) -> sums` that measures a batch and changes nothing.

    prepared: as for `make_train_step`.

    >>> from jaxdl import losses, mlp
    >>> model, batch = mlp(()), Dataset(jnp.ones((4, 2)), jnp.ones((4, 1)), jnp.ones(4))
    >>> variables = model.init(jax.random.key(0), batch.inputs)
    >>> float(make_eval_step(model, losses.squared_error)(variables, batch).weight)
    4.0
    """
    check_model(model)
    return eval_step(model, check_objective(loss, metrics), prepared=prepared)


def eval_step(model: Model, objective: Objective, *, prepared: bool) -> EvalStep:
    """Return what `make_eval_step` returns, of arguments that have been checked."""

    def step(variables: Variables, batch: Dataset | Batch) -> MetricSums:
        outputs, _ = model.apply(variables, batch.inputs, train=False, mask=batch.sample_weight > 0)
        return measure_batch(objective, outputs, batch, prepared=prepared)

    return step


def _averaged(state: TrainState, variables: Variables, ema_decay: float) -> Variables:
    def mix(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(old.dtype, jnp.inexact):
            return new  # Counters and keys have no mean.
        step = state.step.astype(precision(old.dtype))
        kept = jnp.minimum(ema_decay, (1 + step) / (10 + step))
        return (kept * old + (1 - kept) * new.astype(old.dtype)).astype(old.dtype)

    return jax.tree.map(mix, state.ema, variables)


def _widened(leaf: Array) -> Array:
    """A narrow float as float32: bfloat16 rounds off a change of less than 1/256, and an average stands still."""
    narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if narrow else leaf


def make_train_state(
    variables: Variables, optimizer: optax.GradientTransformation, key: PRNGKeyArray, *, ema: bool = False
) -> TrainState:
    """The state before the first step; every leaf has a dtype of its own, so that the step compiles once.

    `ema_decay`: whether it holds a moving average of the weights, which starts at the weights; that of float16 and
    bfloat16 leaves is float32. A learning rate that is an integer becomes a float.

    >>> state = make_train_state(Variables({"w": jnp.ones(2)}, {}), optax.sgd(0.1), jax.random.key(0))
    >>> int(state.step)
    0
    """
    opt_state = jax.tree.map(_typed, with_float_rates(optimizer.init(variables.params)))
    return TrainState(
        jnp.zeros((), jnp.int32), variables, opt_state, key, jax.tree.map(_widened, variables) if ema else ()
    )


def eval_variables(state: TrainState, eval_params: EvalParams | None = None) -> Variables:
    """Return the weights that are measured and kept.

    They are the moving average where there is one, what `eval_params` gives where the optimizer evaluates elsewhere
    than it trains, and else those that are trained. Raises InputError where it gives no such parameters.

    The average has the dtypes of the trained weights here, whatever it is kept in.
    """
    if isinstance(state.ema, Variables):
        pairs = zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.variables), strict=True)
        if all(mean.dtype == own.dtype for mean, own in pairs):
            return state.ema
        # An average is kept in float32 or wider; the model takes what it trains in.
        ema_decay: Variables = jax.tree.map(lambda mean, own: mean.astype(own.dtype), state.ema, state.variables)
        return ema_decay
    if eval_params is None:
        return state.variables
    try:
        params = eval_params(state.opt_state, state.variables.params)
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"eval_params cannot be taken of this optimizer's state: {error}. It is called with (opt_state, params); "
            "inside of optax.chain the state of one optimizer is a part of it: use "
            "lambda opt_state, params: optax.contrib.schedule_free_eval_params(opt_state[-1], params), say."
        ) from error
    given: Any = jax.tree.structure(params)
    if given != jax.tree.structure(state.variables.params):
        raise InputError(
            f"eval_params must return parameters like those of the model, got {given}. "
            "Use optax.contrib.schedule_free_eval_params, say, or lambda opt_state, params: opt_state.cache for SAM."
        )
    params = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), params, state.variables.params)
    return state.variables._replace(params=params)


def lacks_eval_params(opt_state: PyTree) -> str | None:
    """Return a sentence where an optimizer is known to evaluate at other parameters than it trains; else None."""
    kinds = (optax.contrib.ScheduleFreeState, optax.contrib.SAMState)
    for path, state in jax.tree.leaves_with_path(opt_state, is_leaf=lambda node: isinstance(node, kinds)):
        place = f"opt_state{jax.tree_util.keystr(path)}"
        if isinstance(state, optax.contrib.ScheduleFreeState):
            function = "optax.contrib.schedule_free_eval_params"
            # In a chain, the state is a part of the whole one.
            given = f"lambda opt_state, params: {function}({place}, params)" if path else function
            return (
                f"a schedule-free optimizer is evaluated at other parameters than it trains. Give eval_params={given}."
            )
        if isinstance(state, optax.contrib.SAMState) and state.cache is not None:
            return (
                "between two steps of optax.contrib.sam the parameters are perturbed. "
                f"Give eval_params=lambda opt_state, params: {place}.cache, or use opaque_mode=True."
            )
    return None
