"""Losses against SciPy and their definitions; targets and losses that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax

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
from jaxdl.types import Dataset

RANDOM = np.random.default_rng(0)
OUTPUTS, TARGETS = RANDOM.normal(size=(2, 57, 3)).astype(np.float32)
LOGITS, LABELS = RANDOM.normal(size=(57, 5)).astype(np.float32), RANDOM.integers(0, 5, 57).astype(np.int32)


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
        result = [together(np.float32(smoothing)) for smoothing in (0.0, 0.1, 0.5)]
    assert names.count("of_smoothing") == 1
    for smoothing, losses in zip((0.0, 0.1, 0.5), result, strict=True):
        np.testing.assert_allclose(losses, of_smoothing(smoothing), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothed_cross_entropy_rejects_other_smoothings(smoothing):
    with pytest.raises(InputError, match="smoothing must be from 0 to below 1, got"):
        smoothed_cross_entropy(smoothing)


@pytest.mark.parametrize("target", [-1.0, 2.0, np.nan])
def test_a_sigmoid_target_outside_of_0_to_1_gives_nan(target):
    logits, targets = jnp.zeros((3, 1)), jnp.array([[0.0], [target], [0.3]])
    assert np.isnan(sigmoid_cross_entropy(logits, targets)).tolist() == [False, True, False]


def of_targets(targets, weights=None):
    weights = np.ones(len(targets), np.float32) if weights is None else np.asarray(weights, np.float32)
    return Dataset(np.ones((len(targets), 1), np.float32), np.asarray(targets), weights)


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (sigmoid_cross_entropy, [[0.0], [-1.0]], r"needs targets from 0 to 1, got -1.0 in row 1 of train"),
        (sigmoid_cross_entropy, [[1], [2]], r"needs targets from 0 to 1, got 2 in row 1 of train"),
        (softmax_cross_entropy, [0, -1], r"softmax_cross_entropy needs labels that count classes from 0, got -1"),
        (smoothed_cross_entropy(0.1), [-1, 0], r"labels that count classes from 0, got -1 in row 0 of train"),
    ],
)
def test_check_targets_rejects_targets_of_weight_above_0(loss, targets, message):
    with pytest.raises(InputError, match=message):
        check_targets(loss, of_targets(targets), "train")
    check_targets(loss, of_targets(targets, np.isin(targets, (0, 1)).reshape(len(targets))), "train")


@pytest.mark.parametrize("targets", [[[0], [1]], [[True], [False]], [[0.0], [1.0 + 1e-7]], [[0.2], [0.9]]])
def test_targets_that_are_probabilities_are_taken(targets):
    check_targets(sigmoid_cross_entropy, of_targets(targets), "train")
    check_targets(squared_error, of_targets([[-7.0], [9.0]]), "train")
