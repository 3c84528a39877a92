"""One step of training and one of evaluation, as pure functions of a batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdl.arguments import check_model, check_optimizer
from jaxdl.data import precision
from jaxdl.objectives import LOSS, check_objective, measure
from jaxdl.rates import with_float_rates
from jaxdl.types import Array, Examples, Model, Objective, PyTree, Sums, TrainState, Weights

TrainStep = Callable[[TrainState, Examples], tuple[TrainState, Sums]]
EvalStep = Callable[[Weights, Examples], Sums]
Gradient = Callable[[TrainState, Examples], PyTree]


def make_train_step(
    model: Model, objective: Objective, optimiser: optax.GradientTransformation, *, average: float | None = None
) -> TrainStep:
    """A pure function `(state, batch) -> (state, sums)`: one optimiser update on the batch's weighted mean loss.

    The sums measure the batch before the update; a batch of padding only changes nothing. Randomness comes from
    `fold_in(state.key, state.step)`, so the key never advances and a resumed run draws what the uninterrupted one would
    have drawn. Clipping, accumulation, weight decay and schedules are optax's: compose them into `optimiser`.

    With `average`, such as 0.999, the state's moving average of the weights and stats keeps that share of itself each
    step, and less in the first steps: min(average, (1 + step) / (10 + step)).

    >>> from jaxdl import mlp, objectives
    >>> model, optimiser = mlp((), outputs=1), optax.sgd(0.1)
    >>> step = jax.jit(make_train_step(model, Objective(objectives.squared_error), optimiser))
    >>> batch = Examples(jnp.ones((4, 2)), jnp.ones((4, 1)), jnp.ones(4))
    >>> state = make_train_state(model.init(jax.random.key(0), batch.inputs), optimiser, jax.random.key(1))
    >>> state, first = step(state, batch)
    >>> state, second = step(state, batch)
    >>> int(state.step), bool(second.totals["loss"] < first.totals["loss"])
    (2, True)
    """

    check_model(model)
    check_optimizer(optimiser)
    objective = check_objective(objective)

    def step(state: TrainState, batch: Examples) -> tuple[TrainState, Sums]:
        grads, (stats, sums) = _gradient(model, objective, state, batch)

        def moved() -> PyTree:
            updates, opt_state = optimiser.update(grads, state.opt_state, state.weights.params)
            weights = Weights(optax.apply_updates(state.weights.params, updates), stats)
            return weights, opt_state, () if average is None else _averaged(state, weights, average)

        # Padding alone has no mean and no gradient, but momentum would still move the weights.
        kept = state.weights, state.opt_state, state.average
        weights, opt_state, mean = _either(sums.weight > 0, moved, lambda: kept)
        return TrainState(state.step + 1, weights, opt_state, state.key, mean), sums

    return step


def _either(chosen: Array, one: Callable[[], PyTree], other: Callable[[], PyTree]) -> PyTree:
    """What one of two functions gives."""

    def both() -> PyTree:
        return jax.tree.map(lambda first, second: jnp.where(chosen, first, second), one(), other())

    # On a CPU a choice between arrays has the state copied every step. Elsewhere the host would have to be asked.
    return lax.platform_dependent(cpu=lambda: lax.cond(chosen, one, other), default=both)


def make_gradient(model: Model, objective: Objective) -> Gradient:
    """A pure function `(state, batch) -> gradients`, a tree like the parameters: those of `make_train_step`'s loss.

    They are what the optimiser would be given if the batch came next, with the same dropout. The state's `opt_state`
    and `average` are not looked at.

    >>> from jaxdl import mlp, objectives
    >>> model, batch = mlp(()), Examples(jnp.ones((4, 1)), jnp.ones((4, 1)), jnp.ones(4))
    >>> weights = Weights({"Dense_0": {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}}, {})
    >>> state = make_train_state(weights, optax.sgd(0.1), jax.random.key(1))
    >>> float(make_gradient(model, Objective(objectives.squared_error))(state, batch)["Dense_0"]["bias"][0])
    -2.0
    """

    def gradient(state: TrainState, batch: Examples) -> PyTree:
        return _gradient(model, objective, state, batch)[0]

    return gradient


def _gradient(
    model: Model, objective: Objective, state: TrainState, batch: Examples
) -> tuple[PyTree, tuple[PyTree, Sums]]:
    key = jax.random.fold_in(state.key, state.step)

    def mean_loss(params: PyTree) -> tuple[Array, tuple[PyTree, Sums]]:
        weights = Weights(params, state.weights.stats)
        outputs, stats = model.apply(weights, batch.inputs, train=True, key=key, mask=batch.weights > 0)
        sums = measure(objective, outputs, batch.targets, batch.weights)
        return sums.totals[LOSS] / jnp.where(sums.weight > 0, sums.weight, 1), (stats, sums)

    found: tuple[PyTree, tuple[PyTree, Sums]] = jax.grad(mean_loss, has_aux=True)(state.weights.params)
    return found


def make_eval_step(model: Model, objective: Objective) -> EvalStep:
    """A pure function `(weights, batch) -> sums` that measures a batch and changes nothing.

    >>> from jaxdl import mlp, objectives
    >>> model, batch = mlp(()), Examples(jnp.ones((4, 2)), jnp.ones((4, 1)), jnp.ones(4))
    >>> weights = model.init(jax.random.key(0), batch.inputs)
    >>> float(make_eval_step(model, Objective(objectives.squared_error))(weights, batch).weight)
    4.0
    """

    check_model(model)
    objective = check_objective(objective)

    def step(weights: Weights, batch: Examples) -> Sums:
        outputs, _ = model.apply(weights, batch.inputs, train=False, mask=batch.weights > 0)
        return measure(objective, outputs, batch.targets, batch.weights)

    return step


def _averaged(state: TrainState, weights: Weights, average: float) -> Weights:
    def mix(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(old.dtype, jnp.inexact):
            return new  # Counters and keys have no mean.
        step = state.step.astype(precision(old.dtype))
        kept = jnp.minimum(average, (1 + step) / (10 + step))
        return (kept * old + (1 - kept) * new.astype(old.dtype)).astype(old.dtype)

    return jax.tree.map(mix, state.average, weights)


def _widened(leaf: Array) -> Array:
    """A narrow float as float32: bfloat16 rounds off a change of less than 1/256, and an average stands still."""
    narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if narrow else leaf


def make_train_state(
    weights: Weights, optimiser: optax.GradientTransformation, key: Array, *, average: bool = False
) -> TrainState:
    """The state before the first step; every leaf has a dtype of its own, so that the step compiles once.

    `average`: whether it holds a moving average of the weights, which starts at the weights; that of float16 and
    bfloat16 leaves is float32. A learning rate that is an integer becomes a float.

    >>> state = make_train_state(Weights({"w": jnp.ones(2)}, {}), optax.sgd(0.1), jax.random.key(0))
    >>> int(state.step)
    0
    """
    opt_state = with_float_rates(optimiser.init(weights.params))
    return TrainState(
        jnp.zeros((), jnp.int32), weights, opt_state, key, jax.tree.map(_widened, weights) if average else ()
    )


def shown_weights(state: TrainState) -> Weights:
    """The weights that are measured and kept: the moving average where there is one, else those that are trained.

    The average has the dtypes of the trained weights here, whatever it is kept in.

    >>> state = make_train_state(Weights({"w": jnp.ones(2)}, {}), optax.sgd(0.1), jax.random.key(0))
    >>> shown_weights(state) is state.weights
    True
    """
    if not isinstance(state.average, Weights):
        return state.weights

    def as_trained(mean: Array, own: Array) -> Array:
        return mean if mean.dtype == own.dtype else mean.astype(own.dtype)

    shown: Weights = jax.tree.map(as_trained, state.average, state.weights)
    return shown
