"""Metrics against scikit-learn, and the algebra that reduces them."""

from functools import cache, partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from sklearn import metrics as sk

from jaxdl import metrics
from jaxdl.errors import InputError
from jaxdl.losses import sigmoid_cross_entropy, softmax_cross_entropy, squared_error
from jaxdl.metrics import compute, measure, merge, precision_recall_curve, roc_curve
from jaxdl.types import Objective

RANDOM = np.random.default_rng(0)
OUTPUTS, TARGETS = RANDOM.normal(size=(2, 57, 3)).astype(np.float32)
LOGITS, LABELS = RANDOM.normal(size=(57, 5)).astype(np.float32), RANDOM.integers(0, 5, 57).astype(np.int32)

REGRESSION = Objective(squared_error, (metrics.rmse, metrics.mae, metrics.r2()))
R2 = Objective(squared_error, (metrics.r2(),))


@cache
def measuring(objective):
    """`o.measure` of an objective as a program."""
    return jax.jit(partial(metrics.measure, objective.loss, metrics=objective.metrics))


MEASURE = measuring(REGRESSION)


def figures(objective, outputs, targets, weights=None):
    weights = np.ones(len(outputs), np.float32) if weights is None else weights
    return metrics.compute(measuring(objective)(outputs, targets, weights), objective.metrics)


def test_regression_metrics_equal_scikit_learn():
    result = figures(REGRESSION, OUTPUTS, TARGETS)
    np.testing.assert_allclose(result["loss"], sk.mean_squared_error(TARGETS, OUTPUTS), rtol=1e-5)
    np.testing.assert_allclose(result["rmse"], np.sqrt(sk.mean_squared_error(TARGETS, OUTPUTS)), rtol=1e-5)
    np.testing.assert_allclose(result["mae"], sk.mean_absolute_error(TARGETS, OUTPUTS), rtol=1e-5)
    np.testing.assert_allclose(result["r2"], sk.r2_score(TARGETS, OUTPUTS), rtol=1e-5)


def test_r2_with_a_center_is_exact_far_from_zero():
    targets = (1000 + RANDOM.normal(size=(500, 1))).astype(np.float32)
    outputs = targets + RANDOM.normal(size=(500, 1)).astype(np.float32) * np.float32(0.5)
    result = figures(Objective(squared_error, (metrics.r2(center=1000.0),)), outputs, targets)
    np.testing.assert_allclose(result["r2"], sk.r2_score(targets.astype(np.float64), outputs), rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_scikit_learn(k):
    metric = metrics.top_k(k)
    result = figures(Objective(softmax_cross_entropy, (metric,)), LOGITS, LABELS)
    expected = sk.top_k_accuracy_score(LABELS, LOGITS, k=k, labels=range(5)) if k < 5 else 1.0
    np.testing.assert_allclose(result["accuracy" if k == 1 else f"top{k}"], expected, rtol=1e-6)


def test_accuracy_of_ties_equals_argmax():
    logits = np.array([[1, 1], [1, 1], [0, 0]], np.float32)
    result = figures(Objective(softmax_cross_entropy, (metrics.accuracy,)), logits, np.array([0, 1, 1], np.int32))
    np.testing.assert_allclose(result["accuracy"], np.mean(logits.argmax(1) == [0, 1, 1]))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_never_correct(label):
    outputs, targets = jnp.array([[0.0, 1.0]]), jnp.array([label], jnp.int32)
    assert np.isnan(softmax_cross_entropy(outputs, targets)).all()
    assert metrics.accuracy.per_example(outputs, targets).tolist() == [0]


def test_outputs_that_are_not_finite_are_not_accurate():
    result = figures(
        Objective(softmax_cross_entropy, (metrics.accuracy,)),
        np.full((4, 3), np.nan, np.float32),
        np.zeros(4, np.int32),
    )
    assert float(result["accuracy"]) == 0


@given(cuts=st.lists(st.integers(1, 56), max_size=6))
@settings(max_examples=40, deadline=None)
def test_metrics_do_not_depend_on_batches_or_padding(cuts):
    total = None
    for rows in np.split(np.arange(57), sorted(set(cuts))):
        padded = np.concatenate([rows, np.repeat(rows[:1], 60 - len(rows))])
        sums = MEASURE(OUTPUTS[padded], TARGETS[padded], (np.arange(60) < len(rows)).astype(np.float32))
        total = sums if total is None else metrics.merge(total, sums)
    result = metrics.compute(total, REGRESSION.metrics)
    np.testing.assert_allclose(result["rmse"], np.sqrt(sk.mean_squared_error(TARGETS, OUTPUTS)), rtol=2e-5)
    np.testing.assert_allclose(result["mae"], sk.mean_absolute_error(TARGETS, OUTPUTS), rtol=2e-5)
    np.testing.assert_allclose(result["r2"], sk.r2_score(TARGETS, OUTPUTS), rtol=2e-5)


def test_weights_count_rows_several_times():
    weights = RANDOM.integers(0, 4, 57).astype(np.float32)
    objective = REGRESSION
    again = np.repeat(np.arange(57), weights.astype(int))
    expected = figures(objective, OUTPUTS[again], TARGETS[again])
    for name, value in figures(objective, OUTPUTS, TARGETS, weights).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5)


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
        for result in (reduce(metrics.merge, sums), jax.tree.map(np.float32, reduce(metrics.merge, wide))):
            np.testing.assert_allclose(metrics.compute(result, R2.metrics)["r2"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.1, 1e5 + 1 / 3, 0.0])
def test_r2_of_equal_targets_is_1_for_exact_predictions_else_0(value):
    targets = np.full((50, 1), value, np.float32)
    for predicted in (targets, targets + np.float32(1)):
        expected = sk.r2_score(targets.astype(np.float64), predicted)
        parts = [
            measuring(R2)(predicted[rows], targets[rows], np.ones(10, np.float32))
            for rows in np.arange(50).reshape(5, 10)
        ]
        assert metrics.compute(reduce(metrics.merge, parts), R2.metrics)["r2"] == expected
    assert np.isnan(figures(R2, targets * np.float32(np.nan), targets)["r2"])


# Metrics of yes-or-no answers against scikit-learn, whatever the batches.

ANSWERS = (RANDOM.random((91, 1)) < 0.25).astype(np.float32)
BINARY_LOGITS = (2 * ANSWERS - 1.5 + RANDOM.normal(size=(91, 1))).astype(np.float32)
BINARY = [metrics.binary_accuracy, metrics.balanced_accuracy]
MEASURE_BINARY = jax.jit(lambda *rows: measure(sigmoid_cross_entropy, *rows, metrics=BINARY))


def binary_figures(outputs, targets, weights=None):
    weights = np.ones(len(outputs), np.float32) if weights is None else weights
    return compute(MEASURE_BINARY(outputs, targets, weights), BINARY)


def binary_expected(logits, labels):
    guess = expit(logits.astype(np.float64)) > 0.5
    return {
        "loss": sk.log_loss(labels, expit(logits.astype(np.float64)), labels=[0, 1]),
        "accuracy": sk.accuracy_score(labels, guess),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, guess),
    }


def test_binary_metrics_equal_scikit_learn():
    result = binary_figures(BINARY_LOGITS, ANSWERS)
    assert list(result) == ["loss", "accuracy", "balanced_accuracy"]
    for name, value in binary_expected(BINARY_LOGITS, ANSWERS).items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6)


@given(cuts=st.lists(st.integers(1, 90), max_size=6))
@settings(max_examples=40, deadline=None)
def test_binary_metrics_do_not_depend_on_batches_or_padding(cuts):
    total = None
    for rows in np.split(np.arange(91), sorted(set(cuts))):
        padded = np.concatenate([rows, np.repeat(rows[:1], 95 - len(rows))])
        sums = MEASURE_BINARY(BINARY_LOGITS[padded], ANSWERS[padded], (np.arange(95) < len(rows)).astype(np.float32))
        total = sums if total is None else merge(total, sums)
    result = compute(total, [metrics.binary_accuracy, metrics.balanced_accuracy])
    for name, value in binary_expected(BINARY_LOGITS, ANSWERS).items():
        np.testing.assert_allclose(result[name], value, rtol=1e-5)


def test_weights_count_rows_of_answers_several_times():
    weights = RANDOM.integers(0, 4, 91)
    result = binary_figures(BINARY_LOGITS, ANSWERS, weights.astype(np.float32))
    for name, value in binary_expected(np.repeat(BINARY_LOGITS, weights, 0), np.repeat(ANSWERS, weights, 0)).items():
        np.testing.assert_allclose(result[name], value, rtol=1e-5)


@pytest.mark.parametrize("label", [0, 1])
def test_balanced_accuracy_leaves_out_a_class_without_examples(label):
    remaining = ANSWERS[:, 0] == label
    result = binary_figures(BINARY_LOGITS[remaining], ANSWERS[remaining])
    assert 0 < float(result["accuracy"]) < 1
    np.testing.assert_allclose(result["balanced_accuracy"], result["accuracy"], rtol=1e-6)


@pytest.mark.parametrize("answer", [-1.0, 1.0])
def test_a_constant_prediction_has_a_balanced_accuracy_of_half(answer):
    assert float(binary_figures(np.full_like(BINARY_LOGITS, answer), ANSWERS)["balanced_accuracy"]) == 0.5


def test_a_logit_of_zero_means_no_and_nan_is_never_correct():
    logits = np.array([[0.0], [0.0], [np.nan], [np.nan], [np.inf], [-np.inf]], np.float32)
    labels = np.array([[0.0], [1.0], [0.0], [1.0], [1.0], [0.0]], np.float32)
    assert metrics._correct("a metric", jnp.asarray(logits), jnp.asarray(labels))[:, 0].tolist() == [1, 0, 0, 0, 1, 1]


def test_binary_metrics_are_means_over_outputs():
    logits, labels = RANDOM.normal(size=(50, 3)).astype(np.float32), (RANDOM.random((50, 3)) < 0.4).astype(np.float32)
    result, each = binary_figures(logits, labels), [binary_expected(logits[:, [k]], labels[:, [k]]) for k in range(3)]
    for name in result:
        np.testing.assert_allclose(result[name], np.mean([of[name] for of in each]), rtol=1e-5)


def test_targets_of_another_shape_are_refused():
    for metric in (metrics.binary_accuracy, metrics.balanced_accuracy):
        with pytest.raises(InputError, match=r"outputs \(4, 1\) and targets \(4,\).*shape \(rows, 1\)"):
            metric.per_example(jnp.zeros((4, 1)), jnp.zeros(4))


# ROC and precision-recall curves against scikit-learn, and what their areas mean.

CURVE_LABELS = (RANDOM.random(200) < 0.25).astype(int)
SCORES = CURVE_LABELS + RANDOM.normal(size=200)

# Few distinct scores, so that most rows are tied with others; both classes are among the labels.
tied = st.integers(2, 40).flatmap(
    lambda count: st.tuples(
        arrays(np.float64, count, elements=st.sampled_from([-1e30, -1.0, 0.0, 0.1, 0.5, 7.0])),
        arrays(np.int64, count, elements=st.integers(0, 1)).filter(lambda labels: 0 < labels.sum() < len(labels)),
    )
)


def check_curves(scores, labels):
    curve = roc_curve(scores, labels)
    x, y, thresholds = sk.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.x, x, rtol=1e-12)
    np.testing.assert_allclose(curve.y, y, rtol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    np.testing.assert_allclose(curve.area, sk.roc_auc_score(labels, scores), rtol=1e-12, atol=1e-15)
    curve = precision_recall_curve(scores, labels)
    precision, recall, thresholds = sk.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(curve.x, recall[::-1], rtol=1e-12)
    np.testing.assert_allclose(curve.y, precision[::-1], rtol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, [np.inf, *thresholds[::-1]])
    np.testing.assert_allclose(curve.area, sk.average_precision_score(labels, scores), rtol=1e-12)


def test_curves_and_areas_are_those_of_scikit_learn():
    check_curves(SCORES, CURVE_LABELS)


@given(tied)
def test_ties_are_treated_as_scikit_learn_does(rows):
    check_curves(*rows)


def test_the_area_is_the_chance_that_a_positive_scores_higher():
    scores = SCORES.round(1)
    pairs = scores[CURVE_LABELS == 1][:, None] - scores[CURVE_LABELS == 0]
    assert roc_curve(scores, CURVE_LABELS).area == pytest.approx(np.mean((np.sign(pairs) + 1) / 2), rel=1e-12)


@given(tied, st.randoms())
def test_curves_do_not_depend_on_the_order_of_rows_or_the_scale_of_scores(rows, random):
    scores, labels = rows
    order = list(range(len(labels)))
    random.shuffle(order)
    for curve in (roc_curve, precision_recall_curve):
        one, other = curve(scores, labels), curve(np.cbrt(scores[order]), labels[order])
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.y, other.y)


def test_scores_that_are_all_the_same_are_chance():
    assert roc_curve(np.ones(200), CURVE_LABELS).area == 0.5
    assert precision_recall_curve(np.ones(200), CURVE_LABELS).area == pytest.approx(CURVE_LABELS.mean())


def test_perfect_scores_have_an_area_of_one():
    assert roc_curve(CURVE_LABELS, CURVE_LABELS).area == precision_recall_curve(CURVE_LABELS, CURVE_LABELS).area == 1.0


def test_columns_and_float32_are_rows_too():
    assert (
        roc_curve(SCORES[:, None], CURVE_LABELS[:, None].astype(np.float32)).area
        == roc_curve(SCORES, CURVE_LABELS).area
    )


@pytest.mark.parametrize("curve", [roc_curve, precision_recall_curve])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [0, 0], "a curve needs labels of both kinds, 0 and 1, got only 0. Use more examples."),
        ([0.1, 0.2], [1, 1], "got only 1"),
        ([], [], "got no rows"),
        ([0.1, 0.2, 0.3], [0, 1], "a curve needs a score for each label, got 3 scores and 2 labels."),
        ([0.1, np.nan], [0, 1], "scores must be finite, got nan"),
        ([np.inf, 0.1], [0, 1], "scores must be finite, got inf"),
        ([0.1, 0.2], [0, 2], "labels must be 0 or 1, got 2"),
        ([0.1, 0.2], [0, np.nan], "labels must be 0 or 1, got nan"),
    ],
)
def test_curves_reject_bad_scores_and_labels(curve, scores, labels, message):
    with pytest.raises(InputError) as caught:
        curve(scores, labels)
    assert message in str(caught.value)
