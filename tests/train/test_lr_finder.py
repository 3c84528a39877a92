"""The range test against the loop in its docstring, and what is read from it."""

import functools

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl import metrics
from jaxdl._tree import flatten_named
from jaxdl.data import dataset
from jaxdl.data.batches import batches_of
from jaxdl.distributed import make_mesh, shard_dataset
from jaxdl.errors import InputError
from jaxdl.losses import squared_error
from jaxdl.nn import mlp
from jaxdl.train import find_learning_rate, make_plan, make_train_step, run_epoch, start
from jaxdl.train.lr_finder import LearningRateScan, smoothed, suggestion
from jaxdl.train.plan import with_learning_rate

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(37, 3)).astype(np.float32)
TRAIN = dataset(INPUTS, INPUTS.sum(1, keepdims=True) + 0.1 * RANDOM.normal(size=(37, 1)))
PLAN = make_plan(
    mlp((5,), dropout=0.2, input_norm=True),
    squared_error,
    optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
    metrics=[metrics.rmse],
    batch_size=10,
    ema_decay=0.9,
)


@functools.cache
def beginning():
    return start(PLAN, TRAIN, key=jax.random.key(1))


@functools.cache
def least_squares(rate=0.1):
    plan = make_plan(
        mlp(()),
        squared_error,
        optax.inject_hyperparams(optax.sgd)(learning_rate=rate),
    )
    plan = plan._replace(batch_size=37)
    return plan, start(plan, TRAIN, key=jax.random.key(0))


train_step = jax.jit(
    make_train_step(
        PLAN.model, PLAN.objective.loss, PLAN.optimizer, metrics=PLAN.objective.metrics, ema_decay=PLAN.ema_decay
    )
)


@pytest.mark.parametrize("begun", [0, 2])
def test_it_is_the_loop_in_its_docstring(meaning, begun):
    run_state = beginning()
    for _ in range(begun):
        run_state, _ = run_epoch(run_state, TRAIN, None, plan=PLAN)
    calls = []
    meaning(
        find_learning_rate,
        np=np,
        low=1e-4,
        high=0.5,
        steps=11,
        batches=4,
        plan=PLAN,
        train=TRAIN,
        run_state=run_state,
        state=run_state.train_state,
        batches_of=batches_of,
        with_learning_rate=lambda state, rate: with_learning_rate(state, jax.numpy.asarray(rate)),
        step=train_step,
        keep=lambda rate, loss: calls.append((rate, float(loss))),
    )
    result = find_learning_rate(PLAN, run_state, TRAIN, low=1e-4, high=0.5, steps=11)
    rates, losses = zip(*calls, strict=True)
    np.testing.assert_allclose(result.rates, rates, rtol=1e-6)
    np.testing.assert_allclose(result.losses, losses, rtol=2e-5)


def test_full_batches_of_a_linear_model_follow_gradient_descent_in_float64():
    plan, begin = least_squares()
    result = find_learning_rate(plan, begin, TRAIN, low=1e-3, high=0.3, steps=20)
    (kernel, bias) = (
        np.asarray(begin.train_state.variables.params["Dense_0"][name], np.float64) for name in ("kernel", "bias")
    )
    inputs, targets, losses = np.asarray(TRAIN.inputs, np.float64), np.asarray(TRAIN.targets, np.float64), []
    for rate in np.geomspace(1e-3, 0.3, 20):
        missed = inputs @ kernel + bias - targets
        losses.append((missed**2).mean())
        kernel = kernel - rate * 2 * inputs.T @ missed / len(missed)
        bias = bias - rate * 2 * missed.mean(0)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-4)


def test_the_progress_stays_as_it_is_and_so_does_the_learning_rate_of_a_run_after_it():
    before = {name: np.asarray(leaf).tobytes() for name, leaf in flatten_named(beginning()).items()}
    find_learning_rate(PLAN, beginning(), TRAIN, steps=11)
    assert {name: np.asarray(leaf).tobytes() for name, leaf in flatten_named(beginning()).items()} == before


def test_other_rates_are_the_same_program(compilations):
    find_learning_rate(PLAN, beginning(), TRAIN, low=1e-5, high=0.1, steps=11)
    with compilations() as names:
        find_learning_rate(PLAN, beginning(), TRAIN, low=1e-3, high=2.0, steps=11)
    assert names == []


def test_divergence_leaves_losses_that_are_not_finite_and_a_suggestion_before_it():
    plan, begin = least_squares()
    result = find_learning_rate(plan, begin, TRAIN, low=1e-4, high=1e8, steps=60)
    assert not np.isfinite(result.losses[-1]) and np.isfinite(result.losses[0])
    # Gradient descent on a quadratic diverges beyond 2 over the largest eigenvalue of its second derivative.
    design = np.c_[np.asarray(TRAIN.inputs, np.float64), np.ones(37)]
    limit = 2 / np.linalg.eigvalsh(2 * design.T @ design / 37).max()
    assert 1e-4 < suggestion(result) < limit


def test_rows_on_a_mesh_give_the_same_losses():
    alone = find_learning_rate(PLAN, beginning(), TRAIN, low=1e-4, high=0.1, steps=11)
    shared = find_learning_rate(
        PLAN, beginning(), shard_dataset(TRAIN, make_mesh(jax.devices()[:2])), low=1e-4, high=0.1, steps=11
    )
    np.testing.assert_allclose(shared.losses, alone.losses, rtol=1e-4)


@pytest.mark.parametrize(
    ("given_", "output"),
    [
        ({"low": 0.0}, "low and high must be 0 < low < high, got low=0.0 and high=1.0"),
        ({"low": 1.0, "high": 0.1}, "low and high must be 0 < low < high"),
        ({"high": float("inf")}, "low and high must be 0 < low < high"),
        ({"low": float("nan")}, "low and high must be 0 < low < high"),
        ({"steps": 1}, "steps must be at least 2, got 1"),
    ],
)
def test_bad_arguments_are_told(given_, output):
    with pytest.raises(InputError, match=output):
        find_learning_rate(PLAN, beginning(), TRAIN, **given_)


@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(0.1), optax.inject_hyperparams(optax.sgd)(learning_rate=optax.constant_schedule(0.1))],
)
def test_an_optimiser_whose_rate_cannot_be_set_is_told(optimizer):
    plan = PLAN._replace(optimizer=optimizer)
    with pytest.raises(InputError, match="find_learning_rate needs an optimizer whose state holds one learning rate"):
        find_learning_rate(plan, start(plan, TRAIN, key=jax.random.key(0)), TRAIN)


@settings(max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=90), st.integers(0, 90))
def test_smoothing_is_the_mean_of_the_neighbours_up_to_the_first_that_is_not_finite(losses, end):
    losses = np.array([*losses[:end], *[np.inf] * (len(losses) - end)])
    means = smoothed(LearningRateScan(np.geomspace(1e-3, 1, len(losses) + 1)[1:], losses))
    reach, end = len(losses) // 20, min(end, len(losses))
    for index, mean in enumerate(means):
        near = [losses[i] for i in range(len(losses)) if abs(i - index) <= reach and i < end]
        assert np.isnan(mean) if index >= end else np.isclose(mean, np.mean(near))


@pytest.mark.parametrize("middle", [1e-4, 3e-3, 0.1])
def test_the_steepest_rate_of_a_sigmoid_is_its_middle(middle):
    rates = np.geomspace(1e-6, 10, 200)
    losses = 1 + 3 / (1 + (rates / middle) ** 1.5)
    assert suggestion(LearningRateScan(rates, losses)) == pytest.approx(middle, rel=0.1)


def test_after_the_lowest_loss_nothing_is_suggested():
    rates = np.geomspace(1e-6, 1, 8)
    # The fall from 90 is steeper, but it follows on a divergence.
    losses = np.array([5.0, 4.0, 2.0, 1.0, 1.0, 50.0, 90.0, 10.0])
    assert suggestion(LearningRateScan(rates, losses)) in rates[1:4]


@pytest.mark.parametrize("losses", [[1.0, 2.0, 3.0], [np.nan] * 3, [1.0, np.inf, np.inf], [2.0, 2.0, 2.0]])
def test_where_the_loss_never_falls_nothing_is_suggested(losses):
    assert np.isnan(suggestion(LearningRateScan(np.geomspace(1e-3, 1, 3), np.array(losses))))
