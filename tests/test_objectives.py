"""Losses and metrics against scikit-learn and SciPy, and the algebra that reduces them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax
from sklearn import metrics as sk

from jaxdl import objectives as o
from jaxdl.errors import InputError
from jaxdl.types import Objective

RANDOM = np.random.default_rng(0)
OUTPUTS, TARGETS = RANDOM.normal(size=(2, 57, 3)).astype(np.float32)
LOGITS, LABELS = RANDOM.normal(size=(57, 5)).astype(np.float32), RANDOM.integers(0, 5, 57).astype(np.int32)

REGRESSION = Objective(o.squared_error, (o.rmse, o.mae, o.r2()))
MEASURE = jax.jit(partial(o.measure, REGRESSION))


def figures(objective, outputs, targets, weights=None):
    weights = np.ones(len(outputs), np.float32) if weights is None else weights
    return o.finish(objective, o.measure(objective, *map(jnp.asarray, (outputs, targets, weights))))


def test_regression_figures_are_those_of_scikit_learn():
    found = figures(Objective(o.squared_error, (o.rmse, o.mae, o.r2())), OUTPUTS, TARGETS)
    np.testing.assert_allclose(found["loss"], sk.mean_squared_error(TARGETS, OUTPUTS), rtol=1e-5)
    np.testing.assert_allclose(found["rmse"], np.sqrt(sk.mean_squared_error(TARGETS, OUTPUTS)), rtol=1e-5)
    np.testing.assert_allclose(found["mae"], sk.mean_absolute_error(TARGETS, OUTPUTS), rtol=1e-5)
    np.testing.assert_allclose(found["r2"], sk.r2_score(TARGETS, OUTPUTS), rtol=1e-5)


def test_r2_with_a_center_is_exact_far_from_zero():
    targets = (1000 + RANDOM.normal(size=(500, 1))).astype(np.float32)
    outputs = targets + RANDOM.normal(size=(500, 1)).astype(np.float32) * np.float32(0.5)
    found = figures(Objective(o.squared_error, (o.r2(center=1000.0),)), outputs, targets)
    np.testing.assert_allclose(found["r2"], sk.r2_score(targets.astype(np.float64), outputs), rtol=1e-4)


@pytest.mark.parametrize("delta", [0.3, 1.0, 2.5])
def test_huber_is_its_definition(delta):
    error = np.abs(OUTPUTS - TARGETS)
    expected = np.where(error <= delta, error**2 / 2, delta * (error - delta / 2)).mean(1)
    np.testing.assert_allclose(o.huber(delta)(jnp.asarray(OUTPUTS), jnp.asarray(TARGETS)), expected, rtol=1e-5)


def test_cross_entropies_are_log_likelihoods():
    softmax = o.softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    expected = -log_softmax(LOGITS.astype(np.float64), axis=1)[np.arange(57), LABELS]
    np.testing.assert_allclose(softmax, expected, rtol=1e-5)
    answers = (TARGETS > 0).astype(np.float32)
    likely = np.where(answers > 0, expit(OUTPUTS), expit(-OUTPUTS))
    sigmoid = o.sigmoid_cross_entropy(jnp.asarray(OUTPUTS), jnp.asarray(answers))
    np.testing.assert_allclose(sigmoid, -np.log(likely).mean(1), rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_that_of_scikit_learn(k):
    metric = o.top_k(k)
    found = figures(Objective(o.softmax_cross_entropy, (metric,)), LOGITS, LABELS)
    expected = sk.top_k_accuracy_score(LABELS, LOGITS, k=k, labels=range(5)) if k < 5 else 1.0
    np.testing.assert_allclose(found["accuracy" if k == 1 else f"top{k}"], expected, rtol=1e-6)


def test_accuracy_of_ties_is_that_of_argmax():
    logits = np.array([[1, 1], [1, 1], [0, 0]], np.float32)
    found = figures(Objective(o.softmax_cross_entropy, (o.accuracy,)), logits, np.array([0, 1, 1], np.int32))
    np.testing.assert_allclose(found["accuracy"], np.mean(logits.argmax(1) == [0, 1, 1]))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_never_right(label):
    outputs, targets = jnp.array([[0.0, 1.0]]), jnp.array([label], jnp.int32)
    assert np.isnan(o.softmax_cross_entropy(outputs, targets)).all()
    assert o.accuracy.statistics(outputs, targets).tolist() == [0]


def test_outputs_that_are_not_finite_are_not_accurate():
    found = figures(
        Objective(o.softmax_cross_entropy, (o.accuracy,)), np.full((4, 3), np.nan, np.float32), np.zeros(4, np.int32)
    )
    assert float(found["accuracy"]) == 0


@given(cuts=st.lists(st.integers(1, 56), max_size=6))
@settings(max_examples=40, deadline=None)
def test_figures_do_not_depend_on_batches_or_padding(cuts):
    total = None
    for rows in np.split(np.arange(57), sorted(set(cuts))):
        padded = np.concatenate([rows, np.repeat(rows[:1], 60 - len(rows))])
        sums = MEASURE(OUTPUTS[padded], TARGETS[padded], (np.arange(60) < len(rows)).astype(np.float32))
        total = sums if total is None else o.add(total, sums)
    found = o.finish(REGRESSION, total)
    np.testing.assert_allclose(found["rmse"], np.sqrt(sk.mean_squared_error(TARGETS, OUTPUTS)), rtol=2e-5)
    np.testing.assert_allclose(found["mae"], sk.mean_absolute_error(TARGETS, OUTPUTS), rtol=2e-5)
    np.testing.assert_allclose(found["r2"], sk.r2_score(TARGETS, OUTPUTS), rtol=2e-5)


def test_weights_count_rows_several_times():
    weights = RANDOM.integers(0, 4, 57).astype(np.float32)
    objective = Objective(o.squared_error, (o.rmse, o.r2()))
    again = np.repeat(np.arange(57), weights.astype(int))
    expected = figures(objective, OUTPUTS[again], TARGETS[again])
    for name, value in figures(objective, OUTPUTS, TARGETS, weights).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5)


@pytest.mark.parametrize("loss", [o.squared_error, o.absolute_error, o.huber(), o.sigmoid_cross_entropy])
def test_targets_of_another_shape_are_refused(loss):
    with pytest.raises(InputError, match=r"outputs \(4, 1\) and targets \(4,\).*shape \(rows, 1\)"):
        loss(jnp.zeros((4, 1)), jnp.zeros(4))


@pytest.mark.parametrize("labels", [np.zeros((4, 1), np.int32), np.zeros(4, np.float32), np.zeros(3, np.int32)])
def test_labels_of_another_shape_or_type_are_refused(labels):
    with pytest.raises(InputError, match="integer labels"):
        jax.eval_shape(o.softmax_cross_entropy, jnp.zeros((4, 3)), jnp.asarray(labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_is_that_of_the_smoothed_labels(smoothing):
    soft = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
    wanted = -(soft * log_softmax(np.float64(LOGITS), axis=1)).sum(1)
    np.testing.assert_allclose(o.smoothed_cross_entropy(smoothing)(LOGITS, LABELS), wanted, rtol=1e-5)


def test_one_program_serves_all_smoothings(compilations):
    def of_smoothing(smoothing):
        return o.smoothed_cross_entropy(smoothing)(LOGITS, LABELS)

    together = jax.jit(of_smoothing)
    with compilations() as names:
        found = [together(np.float32(smoothing)) for smoothing in (0.0, 0.1, 0.5)]
    assert names.count("of_smoothing") == 1
    for smoothing, losses in zip((0.0, 0.1, 0.5), found, strict=True):
        np.testing.assert_allclose(losses, of_smoothing(smoothing), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_that_is_no_share_is_refused(smoothing):
    with pytest.raises(InputError, match="smoothing must be from 0 to below 1, got"):
        o.smoothed_cross_entropy(smoothing)
