"""Metrics of yes-or-no answers against scikit-learn, whatever the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as sk

from jaxdl import metrics
from jaxdl.errors import InputError
from jaxdl.losses import sigmoid_cross_entropy
from jaxdl.metrics import add, finish, measure
from jaxdl.types import Objective

RANDOM = np.random.default_rng(0)
LABELS = (RANDOM.random((91, 1)) < 0.25).astype(np.float32)
LOGITS = (2 * LABELS - 1.5 + RANDOM.normal(size=(91, 1))).astype(np.float32)
OBJECTIVE = Objective(sigmoid_cross_entropy, (metrics.binary_accuracy, metrics.balanced_accuracy))
MEASURE = jax.jit(lambda *rows: measure(OBJECTIVE, *rows))


def figures(outputs, targets, weights=None):
    weights = np.ones(len(outputs), np.float32) if weights is None else weights
    return finish(OBJECTIVE, MEASURE(outputs, targets, weights))


def expected(logits, labels):
    guess = expit(logits.astype(np.float64)) > 0.5
    return {
        "loss": sk.log_loss(labels, expit(logits.astype(np.float64)), labels=[0, 1]),
        "accuracy": sk.accuracy_score(labels, guess),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, guess),
    }


def test_figures_are_those_of_scikit_learn():
    found = figures(LOGITS, LABELS)
    assert list(found) == ["loss", "accuracy", "balanced_accuracy"]
    for name, value in expected(LOGITS, LABELS).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


@given(cuts=st.lists(st.integers(1, 90), max_size=6))
@settings(max_examples=40, deadline=None)
def test_figures_do_not_depend_on_batches_or_padding(cuts):
    total = None
    for rows in np.split(np.arange(91), sorted(set(cuts))):
        padded = np.concatenate([rows, np.repeat(rows[:1], 95 - len(rows))])
        sums = MEASURE(LOGITS[padded], LABELS[padded], (np.arange(95) < len(rows)).astype(np.float32))
        total = sums if total is None else add(total, sums)
    found = finish(OBJECTIVE, total)
    for name, value in expected(LOGITS, LABELS).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_weights_count_rows_several_times():
    weights = RANDOM.integers(0, 4, 91)
    found = figures(LOGITS, LABELS, weights.astype(np.float32))
    for name, value in expected(np.repeat(LOGITS, weights, 0), np.repeat(LABELS, weights, 0)).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


@pytest.mark.parametrize("label", [0, 1])
def test_a_class_without_rows_is_left_out(label):
    kept = LABELS[:, 0] == label
    found = figures(LOGITS[kept], LABELS[kept])
    assert 0 < float(found["accuracy"]) < 1
    np.testing.assert_allclose(found["balanced_accuracy"], found["accuracy"], rtol=1e-6)


@pytest.mark.parametrize("answer", [-1.0, 1.0])
def test_one_answer_for_all_is_worth_half(answer):
    assert float(figures(np.full_like(LOGITS, answer), LABELS)["balanced_accuracy"]) == 0.5


def test_a_logit_of_zero_says_no_and_one_that_is_no_number_says_nothing():
    logits = np.array([[0.0], [0.0], [np.nan], [np.nan], [np.inf], [-np.inf]], np.float32)
    labels = np.array([[0.0], [1.0], [0.0], [1.0], [1.0], [0.0]], np.float32)
    assert metrics.right(jnp.asarray(logits), jnp.asarray(labels))[:, 0].tolist() == [1, 0, 0, 0, 1, 1]


def test_several_answers_a_row_are_averaged():
    logits, labels = RANDOM.normal(size=(50, 3)).astype(np.float32), (RANDOM.random((50, 3)) < 0.4).astype(np.float32)
    found, each = figures(logits, labels), [expected(logits[:, [k]], labels[:, [k]]) for k in range(3)]
    for name in found:
        np.testing.assert_allclose(found[name], np.mean([of[name] for of in each]), rtol=1e-5)


def test_targets_of_another_shape_are_refused():
    for metric in (metrics.binary_accuracy, metrics.balanced_accuracy):
        with pytest.raises(InputError, match=r"outputs \(4, 1\) and targets \(4,\).*shape \(rows, 1\)"):
            metric.statistics(jnp.zeros((4, 1)), jnp.zeros(4))
