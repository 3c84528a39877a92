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
    check_labels,
    check_targets,
    huber,
    masked,
    sigmoid_cross_entropy,
    smoothed_cross_entropy,
    softmax_cross_entropy,
    squared_error,
    weighted_sum,
)
from jaxdl.metrics import accuracy, mean
from jaxdl.types import Dataset, Metric, Model, Objective, Variables

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


SEQUENCES = RANDOM.normal(size=(6, 4, 5)).astype(np.float32)  # (B, T, C)
TOKENS = RANDOM.integers(0, 5, (6, 4)).astype(np.int32)
MASK = np.arange(4)[None, :] < np.array([4, 3, 1, 0, 2, 4])[:, None]
PIXELS, CLASSES = (array.reshape(3, 2, 4, *array.shape[2:]) for array in (SEQUENCES, TOKENS))


def likelihoods(logits, labels):
    """The negative log-likelihood of each position, in float64."""
    return -np.take_along_axis(log_softmax(np.float64(logits), axis=-1), labels[..., None], -1)[..., 0]


@pytest.mark.parametrize(("logits", "labels"), [(SEQUENCES, TOKENS), (PIXELS, CLASSES)], ids=["sequences", "images"])
def test_cross_entropies_of_positions_are_their_mean(logits, labels):
    axes = tuple(range(1, labels.ndim))
    values = likelihoods(logits, labels)
    np.testing.assert_allclose(softmax_cross_entropy(logits, labels), values.mean(axes), rtol=1e-5)
    soft = 0.9 * values - 0.1 * log_softmax(np.float64(logits), axis=-1).mean(-1)
    np.testing.assert_allclose(smoothed_cross_entropy(0.1)(logits, labels), soft.mean(axes), rtol=1e-5)
    wrong = labels.copy()
    wrong[(0,) * labels.ndim] = 5
    assert np.isnan(np.asarray(softmax_cross_entropy(logits, wrong))).tolist() == [True] + [False] * (len(labels) - 1)


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 5), (6,)])
def test_labels_of_other_positions_are_refused(shape):
    with pytest.raises(InputError, match=r"integer labels .*Sequences and images need outputs \(rows, ..., classes\)"):
        softmax_cross_entropy(jnp.asarray(SEQUENCES), jnp.zeros(shape, np.int32))


@pytest.mark.parametrize(
    "targets",
    [
        lambda labels, mask: (labels, mask),
        lambda labels, mask: {"labels": labels, "mask": mask.astype(np.uint8)},
        lambda labels, mask: {"targets": labels, "mask": mask.astype(np.float32)},
    ],
    ids=["tuple", "dict", "floats"],
)
def test_a_masked_loss_is_the_mean_over_its_positions_and_0_without_any(targets):
    values = likelihoods(SEQUENCES, TOKENS) * MASK
    expected = values.sum(1) / np.maximum(MASK.sum(1), 1)
    anything = np.where(MASK, TOKENS, -7)
    result = masked(softmax_cross_entropy)(jnp.asarray(SEQUENCES), jax.tree.map(jnp.asarray, targets(anything, MASK)))
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert result[3] == 0


def test_an_ignored_label_is_a_mask():
    labels = jnp.asarray(np.where(MASK, TOKENS, -1))
    expected = masked(softmax_cross_entropy)(SEQUENCES, (jnp.asarray(TOKENS), jnp.asarray(MASK)))
    loss = masked(softmax_cross_entropy, ignore_label=-1)
    np.testing.assert_array_equal(loss(SEQUENCES, labels), expected)
    both = loss(SEQUENCES, (labels, jnp.ones_like(labels, bool)))
    np.testing.assert_array_equal(both, expected)
    assert loss == masked(softmax_cross_entropy, ignore_label=-1) and hash(loss) is not None


def test_positions_that_do_not_count_have_no_gradient_whatever_they_hold():
    targets = np.where(MASK[..., None], SEQUENCES * 2, np.nan)
    loss = masked(squared_error)
    gradient = jax.grad(lambda outputs: loss(outputs, (jnp.asarray(targets), jnp.asarray(MASK))).sum())(SEQUENCES)
    expected = np.where(MASK[..., None], -2 * SEQUENCES, 0) / 5 / np.maximum(MASK.sum(1), 1)[:, None, None]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_masks_of_images_and_of_whole_examples():
    mask = jnp.asarray(MASK.reshape(3, 2, 4))
    values = (PIXELS**2).mean(-1) * np.asarray(mask)
    result = masked(squared_error)(jnp.asarray(PIXELS), (jnp.zeros_like(PIXELS), mask))
    np.testing.assert_allclose(result, values.sum((1, 2)) / np.asarray(mask).sum((1, 2)), rtol=1e-5)
    one = jnp.array([True, False, True])
    result = masked(squared_error)(jnp.asarray(PIXELS), (jnp.zeros_like(PIXELS), one))
    np.testing.assert_allclose(result, (PIXELS**2).mean((1, 2, 3)) * [1, 0, 1], rtol=1e-5)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (TOKENS, r"needs targets \(targets, mask\) or a dict of both, got an array of shape \(6, 4\)"),
        ((TOKENS, MASK[:, :2]), r"outputs whose first axes are those of the mask, \(6, 2\), got \(6, 4, 5\)"),
        ((TOKENS[:, :2], MASK), r"targets whose first axes are those of the mask, \(6, 4\), got \(6, 2\)"),
    ],
)
def test_masks_of_another_shape_are_refused(targets, words):
    with pytest.raises(InputError, match=words):
        masked(softmax_cross_entropy)(jnp.asarray(SEQUENCES), jax.tree.map(jnp.asarray, targets))


A, B = (OUTPUTS, TARGETS), (LOGITS, LABELS)
PARTS = {"a": squared_error, "deep": {"b": softmax_cross_entropy}}
SEVERAL, THEIRS = ({"a": A[i], "deep": {"b": B[i]}, "other": B[i]} for i in (0, 1))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.25), (1, 0), (0.0, 3.0), (-1.0, 1.0)])
def test_a_weighted_sum_is_the_sum_of_weighted_losses(weights):
    loss = weighted_sum(PARTS, {"a": weights[0], "deep": {"b": weights[1]}})
    first, second = (np.float64(one(*pair)) for one, pair in ((squared_error, A), (softmax_cross_entropy, B)))
    expected = weights[0] * first + weights[1] * second
    np.testing.assert_allclose(jax.jit(loss)(SEVERAL, THEIRS), expected, rtol=1e-5, atol=1e-6)


def test_equal_weighted_sums_are_equal_and_a_weight_of_0_leaves_a_loss_out():
    one, other = (weighted_sum((squared_error, absolute_error), (1.0, 0)) for _ in range(2))
    assert one == other and hash(one) == hash(other) and one != weighted_sum((squared_error, absolute_error))
    result = one((OUTPUTS, OUTPUTS * np.nan), (TARGETS, TARGETS))
    np.testing.assert_array_equal(result, squared_error(OUTPUTS, TARGETS))


def test_weights_of_numpy_and_jax_are_numbers():
    assert weighted_sum((squared_error,), (jnp.float32(2),)) == weighted_sum((squared_error,), (np.int32(2),))


def test_a_traced_weight_is_a_number_of_a_sweep():
    def value(weight):
        return weighted_sum(PARTS, {"a": 1.0, "deep": {"b": weight}})(SEVERAL, THEIRS).sum()

    slope = jax.grad(value)(2.0)
    assert float(slope) == pytest.approx(float(softmax_cross_entropy(*B).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (({},), "needs a dict of losses, got a dict"),
        ((squared_error,), "needs a dict of losses, got the function squared_error"),
        (({"a": 1.0},), "needs a dict of losses"),
        ((PARTS, {"a": 1.0}), "weights must have the names of the losses"),
        ((PARTS, {"a": "x", "deep": {"b": 1.0}}), r"weights\['a'\] must be a number"),
        ((PARTS, {"a": np.inf, "deep": {"b": 1.0}}), "weights must be finite numbers, not all 0"),
        ((PARTS, {"a": 0.0, "deep": {"b": 0}}), "weights must be finite numbers, not all 0"),
    ],
)
def test_what_is_no_weighted_sum_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        weighted_sum(*arguments)


def test_outputs_without_the_name_of_a_loss_are_refused():
    with pytest.raises(InputError, match="outputs must hold 'deep', got a dict of 'a'"):
        weighted_sum(PARTS)({"a": OUTPUTS}, THEIRS)
    with pytest.raises(InputError, match=r"targets must hold 'a', got an array of shape \(57, 3\)"):
        weighted_sum(PARTS)(SEVERAL, TARGETS)


def test_targets_of_parts_are_checked_as_those_of_one_loss():
    ones = np.ones(6, np.float32)
    loss = weighted_sum({"a": squared_error, "b": masked(softmax_cross_entropy)})
    rows = Dataset(SEQUENCES, {"a": SEQUENCES, "b": (np.where(MASK, TOKENS, -7), MASK)}, ones)
    check_targets(loss, rows, "train")
    labels = TOKENS.copy()
    labels[2, 0] = -1
    for targets, unit in (({"a": SEQUENCES, "b": (labels, MASK)}, loss), (labels, softmax_cross_entropy)):
        with pytest.raises(
            InputError, match=r"labels that count classes from 0, got -1 in row 2 of train.*ignore_label"
        ):
            check_targets(unit, rows._replace(targets=targets), "train")
    check_targets(masked(softmax_cross_entropy, ignore_label=-1), rows._replace(targets=labels), "train")


def test_labels_beyond_one_of_several_outputs_are_refused():
    model = Model(None, lambda variables, inputs, **_: ({"a": inputs, "b": inputs}, {}))
    model = model._replace(init=lambda key, inputs: Variables({}, {}))
    loss = weighted_sum({"b": softmax_cross_entropy})
    labels = TOKENS.copy()
    labels[4, 1] = 9
    rows = Dataset(SEQUENCES, {"b": labels}, np.ones(6, np.float32))
    with pytest.raises(
        InputError, match=r"from 0 to 4, because the model has 5 outputs, got 9 in row 4. Use outputs=10"
    ):
        check_labels(model, loss, rows)
    check_labels(model, loss, rows._replace(targets={"b": TOKENS}))


def test_an_array_has_no_parts_although_it_has_rows():
    with pytest.raises(InputError, match=r"outputs must hold 0, got an array of shape \(57, 3\)"):
        weighted_sum((squared_error,))(OUTPUTS, (TARGETS,))


def test_a_masked_loss_of_other_values_is_refused():
    with pytest.raises(InputError, match=r"one value for each position, shape \(24,\), got \(\)"):
        masked(lambda outputs, targets: (outputs[:, 0] - targets).mean())(SEQUENCES, (SEQUENCES[..., 0], MASK))


def test_a_metric_of_sequences_names_the_function_to_use():
    with pytest.raises(InputError, match=r"For positions use metrics.mean\(\"accuracy\", losses.masked"):
        accuracy.per_example(jnp.asarray(SEQUENCES), jnp.asarray(TOKENS))
