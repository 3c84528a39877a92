"""One step of training and one of evaluation, as pure functions of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax import lax
from jaxtyping import Float, PRNGKeyArray

from jaxdl._checks import check_model, check_objective, check_optimizer, given_as
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
    ModelLoss,
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
    loss: Loss | ModelLoss,
    optimizer: optax.GradientTransformation,
    *,
    metrics: Sequence[Metric] = (),
    ema_decay: float | None = None,
    prepared: bool = False,
) -> TrainStep:
    """Return a pure function `(state, batch) -> (state, sums)`: one update of the optimizer on the loss of a batch.

    The loss is the weighted sum of the examples' losses, divided by their number: with sample weights whose mean over
    the dataset is 1, as in the loops, the expected gradient is that of the dataset's weighted mean loss, whatever the
    batch size. Padding of a Batch is no example; an example of weight 0 is one, but its values do not count. The sums
    are those of the batch before the update; a batch whose weights are all 0 changes nothing.

    Randomness comes from `fold_in(state.key, state.step)`: the key never changes, and a resumed run draws the same
    numbers as an uninterrupted one. Clipping, accumulation, weight decay and schedules are optax's: compose them into
    `optimizer`. An optimizer with extra arguments gets the loss and its gradient (`value`, `grad`), functions of the
    parameters (`value_fn`, `obj_fn`) and `grad_fn`, all on the same batch with the same key.

    ema_decay: such as 0.999, the factor of the moving average of the variables in each step; lower in the first steps:
        min(ema_decay, (1 + step) / (10 + step)).
    prepared: whether the batches are those of `batches.training_rows`, as in the loops. A batch that is no Batch then
        has weight 0 for padding and weight 1 for all examples.

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

    The bounds of the loop may be traced int32: one compiled function serves every number of steps, bit-identical to
    one call for the whole epoch. With `step` of `make_train_step`, the loop means

        for index in range(start, stop):
            state, batch_sums = step(state, batch(index))
            sums = merge(sums, batch_sums)
    """

    def body(index: Any, carry: tuple[TrainState, Any]) -> tuple[TrainState, MetricSums]:
        state, before = carry
        loss = loss_of_params(model, objective, state, batch(index), prepared=prepared)
        (value, (stats, sums)), grads = jax.value_and_grad(loss, has_aux=True)(state.variables.params)
        counts, unchanged = sums.weight > 0, (state.variables, state.opt_state, state.ema)

        def apply(updates: PyTree, opt_state: PyTree) -> PyTree:
            variables = Variables(optax.apply_updates(state.variables.params, updates), stats)
            return variables, opt_state, () if ema_decay is None else _update_ema(state, variables, ema_decay)

        def select(updates: PyTree, opt_state: PyTree) -> PyTree:
            return jax.tree.map(lambda new, old: jnp.where(counts, new, old), apply(updates, opt_state), unchanged)

        # A batch without weight has no mean and no gradient, but momentum would still change the variables.
        update = partial(optimizer_update, optimizer, state, grads, value, lambda params: loss(params)[0])
        variables, opt_state, ema = lax.platform_dependent(
            # On a CPU, jnp.where copies the state every step. On other devices, lax.cond waits for the host.
            cpu=partial(lax.cond, counts, partial(update, apply), lambda: unchanged),
            default=partial(update, select),
        )
        after = TrainState(state.step + 1, variables, opt_state, state.key, ema)
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
    """Return the updates and the next state of an optimizer, called with the extra arguments that it takes.

    value: the loss, a scalar. value_fn: the loss as a function of the parameters. then: `(updates, opt_state) ->
    result`. Raises InputError for an optimizer that needs other arguments, or whose state changes its structure.
    """
    usual = {"value": value, "grad": grads, "value_fn": value_fn}
    rare = {"obj_fn": value_fn, "grad_fn": lambda params, *_: jax.grad(value_fn)(params)}
    # Line searches refuse unknown arguments, and an optimizer of a chain may take none although the chain does.
    choices: list[dict[str, Any]] = [usual, usual | rare, {"grad_fn": rare["grad_fn"]}, {}]
    parameters = inspect.signature(optimizer.update).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        accepted = {parameter.name for parameter in parameters}
        choices = [{name: extra for name, extra in (usual | rare).items() if name in accepted}]
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
    return then(updates, _with_kinds_of(state.opt_state, opt_state))


def _with_kinds_of(old: PyTree, new: PyTree) -> PyTree:
    """Return the new optimizer state with strong dtypes; it must have the structure of the old, as in any loop."""
    structures: list[Any] = [jax.tree.structure(old), jax.tree.structure(new)]
    if structures[0] != structures[1]:
        raise InputError(
            "the optimizer's update must return a state of the structure that its init returned, got "
            f"{structures[1]} after {structures[0]}."
        )
    for (path, one), other in zip(jax.tree.leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if jnp.shape(one) != jnp.shape(other) or jnp.result_type(one) != jnp.result_type(other):
            name, before, after = jax.tree_util.keystr(path), jnp.result_type(one), jnp.result_type(other)
            raise InputError(
                f"the optimizer's update must keep the shapes and dtypes of its state, got {jnp.shape(other)} of "
                f"{after} after {jnp.shape(one)} of {before} for {name}. "
                "Give its numbers as floats, and its arrays with a dtype."
            )
    return jax.tree.map(_strongly_typed, new)


def _strongly_typed(leaf: Any) -> Array:
    """Return an array without a weak type, which would compile the step a second time."""
    return leaf if isinstance(leaf, jax.Array) and not leaf.aval.weak_type else jnp.asarray(leaf, jnp.result_type(leaf))


def make_gradient(model: Model, objective: Objective) -> Gradient:
    """Return a pure function `(state, batch) -> gradients`, a tree like the parameters.

    The gradients are those that `make_train_step` passes to the optimizer, with the same dropout.
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
        # The moments of no example would be NaN; the results of such a batch are discarded.
        mask = mask | ~mask.any()

    def mean_loss(params: PyTree) -> tuple[Float[Array, ""], tuple[PyTree, MetricSums]]:
        variables = Variables(params, state.variables.stats)
        if isinstance(objective.loss, ModelLoss):
            values, outputs, stats = call_model_loss(objective.loss, variables, batch, mask, key, train=True)
            sums = _measure_values(objective.metrics, values, outputs, batch, prepared=prepared)
        else:
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


def measure_batch(objective: Objective, outputs: PyTree, batch: Dataset | Batch, *, prepared: bool) -> MetricSums:
    """Return the sums of the loss and the metrics of a batch; prepared: as for `make_train_step`."""
    loss, weights = objective.loss, batch.sample_weight
    assert not isinstance(loss, ModelLoss)
    return measure(loss, outputs, batch.targets, weights, metrics=objective.metrics, prepared=prepared)


def call_model_loss(
    loss: ModelLoss, variables: Variables, batch: Dataset | Batch, mask: Array, key: Array | None, *, train: bool
) -> tuple[Array, PyTree, PyTree]:
    """Return the values (B,), the outputs and the new stats of a loss that calls the model.

    key: None in evaluation, where the loss gets `jax.random.key(0)` for every batch. Raises InputError for other
    results than those of `losses.model_loss`.
    """
    examples = Batch(batch.inputs, batch.targets, batch.sample_weight, mask)
    result = loss.function(variables, examples, jax.random.key(0) if key is None else key, train)
    if type(result) is not tuple or len(result) not in (2, 3):
        kind = f"a tuple of {len(result)}" if type(result) is tuple else given_as(result)
        raise InputError(
            f"a model loss must return (values, outputs) or (values, outputs, stats), got {kind}. Let it return "
            "values, () where it has no outputs."
        )
    values, outputs, stats = result if len(result) == 3 else (*result, variables.stats)
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", np.dtype(object))
    if shape != mask.shape or not jnp.issubdtype(dtype, jnp.floating):
        advice = " Leave out the mean over the examples, so that jaxdl can weight them." if shape == () else ""
        raise InputError(
            f"a model loss must return a float for each of the {len(mask)} examples of a batch, got "
            f"{given_as(values) if shape is None else f'{dtype} of shape {shape}'}.{advice}"
        )
    kinds: list[Any] = [
        (jax.tree.structure(tree), [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)])
        for tree in (stats, variables.stats)
    ]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"a model loss must return stats like those of the variables, {kinds[1]}, got {kinds[0]}. Return those of "
            "model.apply(variables, inputs, train=train, key=key, mask=batch.mask)."
        )
    # A comparison with the other examples may give inf for padding, and inf times the weight 0 would be nan.
    values = jnp.where(mask, values, jnp.zeros((), dtype))
    return values, outputs, stats if train else variables.stats


def _measure_values(
    metrics: Sequence[Metric], values: Array, outputs: PyTree, batch: Dataset | Batch, *, prepared: bool
) -> MetricSums:
    """Return the sums of values (B,) of a loss, and those of the metrics of the outputs."""

    def of_outputs(metric: Metric) -> Metric:
        return metric._replace(per_example=lambda pair, targets: metric.per_example(pair[1], targets))

    pair = values, outputs if metrics else ()
    return measure(
        lambda pair, targets: pair[0],
        pair,
        batch.targets,
        batch.sample_weight,
        metrics=[of_outputs(metric) for metric in metrics],
        prepared=prepared,
    )


def make_eval_step(
    model: Model, loss: Loss | ModelLoss, *, metrics: Sequence[Metric] = (), prepared: bool = False
) -> EvalStep:
    """Return a pure function `(variables, batch) -> sums`: the sums of the loss and the metrics of a batch.

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
    """Return what `make_eval_step` returns, without its checks."""

    def step(variables: Variables, batch: Dataset | Batch) -> MetricSums:
        mask = batch.sample_weight > 0
        if isinstance(objective.loss, ModelLoss):
            values, outputs, _ = call_model_loss(objective.loss, variables, batch, mask, None, train=False)
            return _measure_values(objective.metrics, values, outputs, batch, prepared=prepared)
        outputs, _ = model.apply(variables, batch.inputs, train=False, mask=mask)
        return measure_batch(objective, outputs, batch, prepared=prepared)

    return step


def _update_ema(state: TrainState, variables: Variables, ema_decay: float) -> Variables:
    def mix(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(old.dtype, jnp.inexact):
            return new  # Counters and keys have no mean.
        step = state.step.astype(precision(old.dtype))
        decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
        new = new.astype(old.dtype)
        # Frozen values stay as they are: their mean would differ by rounding.
        return jnp.where(new == old, old, (decay * old + (1 - decay) * new).astype(old.dtype))

    return jax.tree.map(mix, state.ema, variables)


def _as_wide(leaf: Array) -> Array:
    """Return a narrow float as float32: in bfloat16, changes below 1/256 would be lost from an average."""
    narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if narrow else leaf


def make_train_state(
    variables: Variables, optimizer: optax.GradientTransformation, key: PRNGKeyArray, *, ema: bool = False
) -> TrainState:
    """Return the state before the first step; no leaf has a weak type, so that the step compiles once.

    ema: whether the state holds a moving average of the variables, which starts at `variables`; that of float16 and
    bfloat16 leaves is float32. An integer learning rate becomes a float.

    >>> state = make_train_state(Variables({"w": jnp.ones(2)}, {}), optax.sgd(0.1), jax.random.key(0))
    >>> int(state.step)
    0
    """
    opt_state = jax.tree.map(_strongly_typed, with_float_rates(optimizer.init(variables.params)))
    return TrainState(
        jnp.zeros((), jnp.int32), variables, opt_state, key, jax.tree.map(_as_wide, variables) if ema else ()
    )


def eval_variables(state: TrainState, eval_params: EvalParams | None = None) -> Variables:
    """Return the variables to evaluate.

    They are the moving average where there is one, with the dtypes of the variables; else the variables, with the
    parameters that `eval_params` returns where it is given. Raises InputError where it returns other parameters.
    """
    if isinstance(state.ema, Variables):
        pairs = zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.variables), strict=True)
        if all(mean.dtype == leaf.dtype for mean, leaf in pairs):
            return state.ema
        ema: Variables = jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), state.ema, state.variables)
        return ema
    if eval_params is None:
        return state.variables
    try:
        params = eval_params(state.opt_state, state.variables.params)
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"eval_params does not fit this optimizer's state: {error}. It is called with (opt_state, params); of "
            "optax.chain, opt_state is a tuple with the state of each optimizer: use "
            "lambda opt_state, params: optax.contrib.schedule_free_eval_params(opt_state[-1], params), say."
        ) from error
    structure: Any = jax.tree.structure(params)
    if structure != jax.tree.structure(state.variables.params):
        raise InputError(
            f"eval_params must return parameters like those of the model, got {structure}. "
            "Use optax.contrib.schedule_free_eval_params, say, or lambda opt_state, params: opt_state.cache for SAM."
        )
    params = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), params, state.variables.params)
    return state.variables._replace(params=params)


def lacks_eval_params(opt_state: PyTree) -> str | None:
    """Return a warning where an optimizer is known to need `eval_params`; None elsewhere."""
    kinds = (optax.contrib.ScheduleFreeState, optax.contrib.SAMState)
    for path, state in jax.tree.leaves_with_path(opt_state, is_leaf=lambda node: isinstance(node, kinds)):
        place = f"opt_state{jax.tree_util.keystr(path)}"
        if isinstance(state, optax.contrib.ScheduleFreeState):
            function = "optax.contrib.schedule_free_eval_params"
            # In a chain, it is one of several states.
            argument = f"lambda opt_state, params: {function}({place}, params)" if path else function
            return (
                "a schedule-free optimizer is evaluated at other parameters than it trains. "
                f"Give eval_params={argument}."
            )
        if isinstance(state, optax.contrib.SAMState) and state.cache is not None:
            return (
                "between two steps of optax.contrib.sam the parameters are perturbed. "
                f"Give eval_params=lambda opt_state, params: {place}.cache, or use opaque_mode=True."
            )
    return None
