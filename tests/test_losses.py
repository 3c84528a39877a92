"""Losses and metrics against scikit-learn and SciPy, and the algebra that reduces them."""

from functools import cache, partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax
from sklearn import metrics as sk

from jaxdl import metrics
from jaxdl.errors import InputError
from jaxdl.losses import (
    absolute_error,
    check_targets,
    huber,
    sigmoid_cross_entropy,
    smoothed_cross_entropy,
    softmax_cross_entropy,
    squared_error,
)
from jaxdl.types import Examples, Objective

RANDOM = np.random.default_rng(0)
OUTPUTS, TARGETS = RANDOM.normal(size=(2, 57, 3)).astype(np.float32)
LOGITS, LABELS = RANDOM.normal(size=(57, 5)).astype(np.float32), RANDOM.integers(0, 5, 57).astype(np.int32)

REGRESSION = Objective(squared_error, (metrics.rmse, metrics.mae, metrics.r2()))
R2 = Objective(squared_error, (metrics.r2(),))


@cache
def measuring(objective):
    """`o.measure` of an objective as a program."""
    return jax.jit(partial(metrics.measure, objective))


MEASURE = measuring(REGRESSION)


def figures(objective, outputs, targets, weights=None):
    weights = np.ones(len(outputs), np.float32) if weights is None else weights
    return metrics.finish(objective, measuring(objective)(outputs, targets, weights))


def test_regression_figures_are_those_of_scikit_learn():
    found = figures(REGRESSION, OUTPUTS, TARGETS)
    np.testing.assert_allclose(found["loss"], sk.mean_squared_error(TARGETS, OUTPUTS), rtol=1e-5)
    np.testing.assert_allclose(found["rmse"], np.sqrt(sk.mean_squared_error(TARGETS, OUTPUTS)), rtol=1e-5)
    np.testing.assert_allclose(found["mae"], sk.mean_absolute_error(TARGETS, OUTPUTS), rtol=1e-5)
    np.testing.assert_allclose(found["r2"], sk.r2_score(TARGETS, OUTPUTS), rtol=1e-5)


def test_r2_with_a_center_is_exact_far_from_zero():
    targets = (1000 + RANDOM.normal(size=(500, 1))).astype(np.float32)
    outputs = targets + RANDOM.normal(size=(500, 1)).astype(np.float32) * np.float32(0.5)
    found = figures(Objective(squared_error, (metrics.r2(center=1000.0),)), outputs, targets)
    np.testing.assert_allclose(found["r2"], sk.r2_score(targets.astype(np.float64), outputs), rtol=1e-4)


@pytest.mark.parametrize("delta", [0.3, 1.0, 2.5])
def test_huber_is_its_definition(delta):
    error = np.abs(OUTPUTS - TARGETS)
    expected = np.where(error <= delta, error**2 / 2, delta * (error - delta / 2)).mean(1)
    np.testing.assert_allclose(huber(delta)(jnp.asarray(OUTPUTS), jnp.asarray(TARGETS)), expected, rtol=1e-5)


def test_cross_entropies_are_log_likelihoods():
    softmax = jax.jit(softmax_cross_entropy)(LOGITS, LABELS)
    expected = -log_softmax(LOGITS.astype(np.float64), axis=1)[np.arange(57), LABELS]
    np.testing.assert_allclose(softmax, expected, rtol=1e-5)
    answers = (TARGETS > 0).astype(np.float32)
    likely = np.where(answers > 0, expit(OUTPUTS), expit(-OUTPUTS))
    sigmoid = jax.jit(sigmoid_cross_entropy)(OUTPUTS, answers)
    np.testing.assert_allclose(sigmoid, -np.log(likely).mean(1), rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_that_of_scikit_learn(k):
    metric = metrics.top_k(k)
    found = figures(Objective(softmax_cross_entropy, (metric,)), LOGITS, LABELS)
    expected = sk.top_k_accuracy_score(LABELS, LOGITS, k=k, labels=range(5)) if k < 5 else 1.0
    np.testing.assert_allclose(found["accuracy" if k == 1 else f"top{k}"], expected, rtol=1e-6)


def test_accuracy_of_ties_is_that_of_argmax():
    logits = np.array([[1, 1], [1, 1], [0, 0]], np.float32)
    found = figures(Objective(softmax_cross_entropy, (metrics.accuracy,)), logits, np.array([0, 1, 1], np.int32))
    np.testing.assert_allclose(found["accuracy"], np.mean(logits.argmax(1) == [0, 1, 1]))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_never_right(label):
    outputs, targets = jnp.array([[0.0, 1.0]]), jnp.array([label], jnp.int32)
    assert np.isnan(softmax_cross_entropy(outputs, targets)).all()
    assert metrics.accuracy.statistics(outputs, targets).tolist() == [0]


def test_outputs_that_are_not_finite_are_not_accurate():
    found = figures(
        Objective(softmax_cross_entropy, (metrics.accuracy,)),
        np.full((4, 3), np.nan, np.float32),
        np.zeros(4, np.int32),
    )
    assert float(found["accuracy"]) == 0


@given(cuts=st.lists(st.integers(1, 56), max_size=6))
@settings(max_examples=40, deadline=None)
def test_figures_do_not_depend_on_batches_or_padding(cuts):
    total = None
    for rows in np.split(np.arange(57), sorted(set(cuts))):
        padded = np.concatenate([rows, np.repeat(rows[:1], 60 - len(rows))])
        sums = MEASURE(OUTPUTS[padded], TARGETS[padded], (np.arange(60) < len(rows)).astype(np.float32))
        total = sums if total is None else metrics.add(total, sums)
    found = metrics.finish(REGRESSION, total)
    np.testing.assert_allclose(found["rmse"], np.sqrt(sk.mean_squared_error(TARGETS, OUTPUTS)), rtol=2e-5)
    np.testing.assert_allclose(found["mae"], sk.mean_absolute_error(TARGETS, OUTPUTS), rtol=2e-5)
    np.testing.assert_allclose(found["r2"], sk.r2_score(TARGETS, OUTPUTS), rtol=2e-5)


def test_weights_count_rows_several_times():
    weights = RANDOM.integers(0, 4, 57).astype(np.float32)
    objective = REGRESSION
    again = np.repeat(np.arange(57), weights.astype(int))
    expected = figures(objective, OUTPUTS[again], TARGETS[again])
    for name, value in figures(objective, OUTPUTS, TARGETS, weights).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5)


@pytest.mark.parametrize("loss", [squared_error, absolute_error, huber(), sigmoid_cross_entropy])
def test_targets_of_another_shape_are_refused(loss):
    with pytest.raises(InputError, match=r"outputs \(4, 1\) and targets \(4,\).*shape \(rows, 1\)"):
        loss(jnp.zeros((4, 1)), jnp.zeros(4))


@pytest.mark.parametrize("labels", [np.zeros((4, 1), np.int32), np.zeros(4, np.float32), np.zeros(3, np.int32)])
def test_labels_of_another_shape_or_type_are_refused(labels):
    with pytest.raises(InputError, match="integer labels"):
        jax.eval_shape(softmax_cross_entropy, jnp.zeros((4, 3)), jnp.asarray(labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_is_that_of_the_smoothed_labels(smoothing):
    soft = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
    wanted = -(soft * log_softmax(np.float64(LOGITS), axis=1)).sum(1)
    np.testing.assert_allclose(smoothed_cross_entropy(smoothing)(LOGITS, LABELS), wanted, rtol=1e-5)


def test_one_program_serves_all_smoothings(compilations):
    def of_smoothing(smoothing):
        return smoothed_cross_entropy(smoothing)(LOGITS, LABELS)

    together = jax.jit(of_smoothing)
    with compilations() as names:
        found = [together(np.float32(smoothing)) for smoothing in (0.0, 0.1, 0.5)]
    assert names.count("of_smoothing") == 1
    for smoothing, losses in zip((0.0, 0.1, 0.5), found, strict=True):
        np.testing.assert_allclose(losses, of_smoothing(smoothing), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_that_is_no_share_is_refused(smoothing):
    with pytest.raises(InputError, match="smoothing must be from 0 to below 1, got"):
        smoothed_cross_entropy(smoothing)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(("mean", "deviation"), [(1e5, 1), (101325, 70), (-1e6, 20), (5, 1e-3)])
def test_r2_is_that_of_scikit_learn_far_from_zero_for_every_cut_of_the_rows(mean, deviation, outputs):
    targets = RANDOM.normal(mean, deviation, (2000, outputs)).astype(np.float32)
    predicted = (targets + RANDOM.normal(0, deviation / 2, targets.shape)).astype(np.float32)
    weights = RANDOM.uniform(0, 3, 2000).astype(np.float32)
    # The first batch has no row of weight above 0, and the rows rise, so that no batch is like the others.
    weights[:20] = 0
    targets[:, 0].sort()
    expected = sk.r2_score(targets.astype(np.float64), predicted.astype(np.float64), sample_weight=weights)
    batch = measuring(R2)
    for size in (2000, 500, 20):
        parts = [slice(start, start + size) for start in range(0, 2000, size)]
        sums = [batch(predicted[part], targets[part], weights[part]) for part in parts]
        wide = [jax.tree.map(lambda total: np.asarray(total, np.float64), each) for each in sums]
        for found in (reduce(metrics.add, sums), jax.tree.map(np.float32, reduce(metrics.add, wide))):
            np.testing.assert_allclose(metrics.finish(R2, found)["r2"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.1, 1e5 + 1 / 3, 0.0])
def test_r2_of_equal_targets_is_1_where_all_is_right_else_0(value):
    targets = np.full((50, 1), value, np.float32)
    for predicted in (targets, targets + np.float32(1)):
        expected = sk.r2_score(targets.astype(np.float64), predicted)
        parts = [
            measuring(R2)(predicted[rows], targets[rows], np.ones(10, np.float32))
            for rows in np.arange(50).reshape(5, 10)
        ]
        assert metrics.finish(R2, reduce(metrics.add, parts))["r2"] == expected
    assert np.isnan(figures(R2, targets * np.float32(np.nan), targets)["r2"])


@pytest.mark.parametrize("target", [-1.0, 2.0, np.nan])
def test_a_sigmoid_target_outside_of_0_to_1_gives_nan(target):
    logits, targets = jnp.zeros((3, 1)), jnp.array([[0.0], [target], [0.3]])
    assert np.isnan(sigmoid_cross_entropy(logits, targets)).tolist() == [False, True, False]


def of_targets(targets, weights=None):
    weights = np.ones(len(targets), np.float32) if weights is None else np.asarray(weights, np.float32)
    return Examples(np.ones((len(targets), 1), np.float32), np.asarray(targets), weights)


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (sigmoid_cross_entropy, [[0.0], [-1.0]], r"needs targets from 0 to 1, got -1.0 in row 1 of train"),
        (sigmoid_cross_entropy, [[1], [2]], r"needs targets from 0 to 1, got 2 in row 1 of train"),
        (softmax_cross_entropy, [0, -1], r"softmax_cross_entropy needs labels that count classes from 0, got -1"),
        (smoothed_cross_entropy(0.1), [-1, 0], r"labels that count classes from 0, got -1 in row 0 of train"),
    ],
)
def test_targets_that_a_loss_cannot_take_are_refused_unless_they_weigh_nothing(loss, targets, message):
    with pytest.raises(InputError, match=message):
        check_targets(loss, of_targets(targets), "train")
    check_targets(loss, of_targets(targets, np.isin(targets, (0, 1)).reshape(len(targets))), "train")


@pytest.mark.parametrize("targets", [[[0], [1]], [[True], [False]], [[0.0], [1.0 + 1e-7]], [[0.2], [0.9]]])
def test_targets_that_are_probabilities_are_taken(targets):
    check_targets(sigmoid_cross_entropy, of_targets(targets), "train")
    check_targets(squared_error, of_targets([[-7.0], [9.0]]), "train")
