"""Losses against SciPy and their definitions; targets and losses that are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, log_softmax

from jaxdl import dataset, evaluate, fit, fit_seeds, mlp
from jaxdl.data import DataSource
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
from jaxdl.metrics import mean
from jaxdl.types import Dataset, Metric, Objective

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
    for smoothing, values in zip((0.0, 0.1, 0.5), result, strict=True):
        np.testing.assert_allclose(values, of_smoothing(smoothing), rtol=1e-6)


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
def test_targets_that_are_probabilities_are_accepted(targets):
    check_targets(sigmoid_cross_entropy, of_targets(targets), "train")
    check_targets(squared_error, of_targets([[-7.0], [9.0]]), "train")


# Losses and metrics that are no values of single examples are refused before the first step


INPUTS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
ROWS, FLAT = dataset(INPUTS, INPUTS[:, :1]), dataset(INPUTS, INPUTS[:, 0])
MODEL = mlp(())


@functools.cache
def network():
    return MODEL.init(jax.random.key(0), INPUTS)


def squares(outputs, targets):
    return (outputs - targets) ** 2


ALREADY_A_MEAN = "It is already a mean or a sum over the examples"
LOSSES = {
    "a mean": (lambda o, y: jnp.mean(squares(o, y)), ROWS, ALREADY_A_MEAN),
    "a sum": (lambda o, y: jnp.sum(squares(o, y)), ROWS, ALREADY_A_MEAN),
    "(B, 1)": (squares, ROWS, r"got \(examples, 1\)\. Take the mean over the other axes"),
    "(1,)": (lambda o, y: jnp.mean(squares(o, y), keepdims=True)[0], ROWS, r"got \(1,\)"),
    "(B, B)": (squares, FLAT, r"got \(examples, examples\)"),
    "(B,) of (B, B)": (lambda o, y: squares(o, y).mean(1), FLAT, r"outputs \(examples, 1\) and targets \(examples,\)"),
    "a pair": (lambda o, y: (squares(o, y)[:, 0], squares(o, y)[:, 0]), ROWS, "one value for each example"),
}


@pytest.mark.parametrize(("loss", "rows", "words"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("call", ["fit", "fit_seeds", "evaluate", "source"])
def test_a_loss_that_is_no_value_of_each_example_is_refused(call, loss, rows, words):
    calls = {
        "fit": lambda: fit(MODEL, loss, optax.sgd(0.1), rows, epochs=1, batch_size=8),
        "fit_seeds": lambda: fit_seeds(MODEL, loss, optax.sgd(0.1), rows, seeds=(0, 1), epochs=1, batch_size=8),
        "evaluate": lambda: evaluate(MODEL, network(), rows, loss),
        "source": lambda: evaluate(
            MODEL, network(), DataSource(16, lambda n: jax.tree.map(lambda leaf: leaf[n], rows)), loss
        ),
    }
    with jax.numpy_rank_promotion("allow"), pytest.raises(InputError, match=words):
        calls[call]()


METRICS = {
    "(B, 1)": (mean("m", squares), ROWS, 'metric "m" must give one number'),
    "a mean": (mean("m", lambda o, y: jnp.mean(o - y)), ROWS, ALREADY_A_MEAN),
    "(B,) of (B, B)": (mean("m", lambda o, y: jnp.abs(o - y).mean(-1)), FLAT, 'metric "m" combines every output'),
    "no number": (Metric("m", squares, lambda total, weight: {"a": total}), ROWS, 'metric "m" must give one number'),
}


@pytest.mark.parametrize(("metric", "rows", "words"), METRICS.values(), ids=METRICS)
def test_a_metric_that_is_no_number_of_a_data_set_is_refused(metric, rows, words):
    own = Objective(lambda o, y: squared_error(o, y.reshape(o.shape)), (metric,))
    for call in (
        lambda: fit(MODEL, own.loss, optax.sgd(0.1), rows, metrics=own.metrics, epochs=1, batch_size=8),
        lambda: evaluate(MODEL, network(), rows, own.loss, metrics=own.metrics),
    ):
        with jax.numpy_rank_promotion("allow"), pytest.raises(InputError, match=words):
            call()


def test_an_axis_of_classes_is_not_taken_for_the_examples():
    # 16 examples of 16 outputs: a mean over the wrong axis has the shape of the right one.
    rows, model = dataset(INPUTS, np.tile(INPUTS[:, :1], 16)), mlp((), outputs=16)
    with pytest.raises(InputError, match=r"got \(16,\)"):
        evaluate(model, model.init(jax.random.key(0), INPUTS), rows, lambda o, y: squares(o, y).mean(0))
    right = evaluate(model, model.init(jax.random.key(0), INPUTS), rows, lambda o, y: squares(o, y).mean(1))
    assert np.isfinite(right["loss"])


def test_a_loss_may_compare_all_examples_of_a_batch():
    # As contrastive losses do: of (B, D) outputs, and targets that are not used.
    def contrastive(outputs, targets):
        return optax.losses.softmax_cross_entropy_with_integer_labels(outputs @ outputs.T, jnp.arange(len(outputs)))

    model = mlp((), outputs=4)
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        run = fit(model, contrastive, optax.sgd(0.01), dataset(INPUTS, INPUTS[:, :1]), epochs=1, batch_size=8)
    assert np.isfinite(run.records[0]["loss"])


def test_a_loss_of_one_batch_size_alone_still_trains():
    def loss(outputs, targets):
        return (squares(outputs, targets).reshape(8, 1)).mean(1)

    with jax.numpy_dtype_promotion("standard"):
        run = fit(MODEL, loss, optax.sgd(0.1), ROWS, epochs=1, batch_size=8)
    assert run.reason == "epochs"
