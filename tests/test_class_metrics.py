"""Precision, recall, F1, ROC AUC and average precision against scikit-learn, however the examples are batched."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit, softmax
from sklearn import metrics as sk

import jaxdl
from jaxdl import metrics
from jaxdl.errors import InputError
from jaxdl.losses import sigmoid_cross_entropy, softmax_cross_entropy
from jaxdl.metrics import compute, exact_average_precision, exact_roc_auc, measure, merge

RANDOM = np.random.default_rng(0)
ROWS, CLASSES, BINS = 40, 4, 32
COUNTS = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}
AREAS = {"roc_auc": sk.roc_auc_score, "average_precision": sk.average_precision_score}
EXACT = {"roc_auc": exact_roc_auc, "average_precision": exact_average_precision}
MEANS = ["macro", "weighted"]


def zero_loss(outputs, targets):
    return jnp.zeros(len(outputs))


@functools.cache
def measuring(names):
    return jax.jit(functools.partial(measure, zero_loss, metrics=names))


merging = jax.jit(merge)


@functools.cache
def computing(names):
    return jax.jit(functools.partial(compute, metrics=names))


def values_of(names, outputs, targets, weights=None, cuts=()):
    """Return the metrics without the loss, of batches that are padded to one length with rows that hold nan."""
    weights = np.ones(len(outputs), np.float32) if weights is None else weights
    sums = []
    for rows in np.split(np.arange(len(outputs)), cuts):
        padding = len(outputs) - len(rows)
        batch = [
            np.concatenate([array[rows], np.zeros_like(array, shape=(padding, *array.shape[1:]))])
            for array in (outputs, targets, weights)
        ]
        batch[0][len(rows) :] = np.nan
        sums.append(measuring(names)(*batch))
    values = computing(names)(functools.reduce(merging, sums))
    return {metric.name: float(values[metric.name]) for metric in names}


def one_value(metric, *arrays):
    (value,) = values_of((metric,), *arrays).values()
    return value


@st.composite
def examples(draw, classes=CLASSES):
    """Return coarse logits with many ties, labels, weights of which some are 0, and places to cut the batches."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = draw(st.sets(st.integers(0, classes - 1), min_size=1))
    logits = random.normal(0, draw(st.sampled_from([0.1, 1, 10])), (ROWS, classes))
    logits = (np.round(logits, 1) + draw(st.sampled_from([0, -3, 3]))).astype(np.float32)
    weights = random.choice([0, 0.5, 1, 3], ROWS).astype(np.float32)
    weights[0] = 1
    labels = random.choice(sorted(present), ROWS).astype(np.int32)
    return logits, labels, weights, sorted(draw(st.sets(st.integers(1, ROWS - 1), max_size=4)))


def reference(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


# Precision, recall and F1

BINARY_COUNTS = (metrics.precision(), metrics.recall(), metrics.f1())
CLASS_COUNTS = tuple(getattr(metrics, name)(average) for name in COUNTS for average in MEANS)


@given(examples(classes=2))
@settings(max_examples=40, deadline=None)
def test_binary_metrics_are_those_of_scikit_learn_for_every_cut(rows):
    logits, labels, weights, cuts = rows
    counted = weights > 0
    for outputs, targets in ((logits[:, 0], labels.astype(np.float32)), (logits, labels)):
        predicted = outputs > 0 if outputs.ndim == 1 else outputs.argmax(1)
        result = values_of(BINARY_COUNTS, outputs, targets, weights, cuts)
        assert list(result) == list(COUNTS)
        for name, function in COUNTS.items():
            expected = reference(function, labels[counted], predicted[counted], sample_weight=weights[counted])
            assert result[name] == pytest.approx(expected, rel=1e-6)


@given(examples())
@settings(max_examples=40, deadline=None)
def test_means_over_classes_are_those_of_scikit_learn_for_every_cut(rows):
    logits, labels, weights, cuts = rows
    counted = weights > 0
    result = values_of(CLASS_COUNTS, logits, labels, weights, cuts)
    arrays = labels[counted], logits.argmax(1)[counted]
    for name, function in COUNTS.items():
        for average in MEANS:
            expected = reference(function, *arrays, sample_weight=weights[counted], average=average)
            assert result[f"{name}_{average}"] == pytest.approx(expected, rel=1e-6)


@given(examples(), st.randoms())
@settings(max_examples=30, deadline=None)
def test_the_order_of_examples_does_not_matter(rows, random):
    logits, labels, weights, _ = rows
    order = random.sample(range(ROWS), ROWS)
    names = (*CLASS_COUNTS, *CLASS_AREAS)
    one, other = values_of(names, logits, labels, weights), values_of(names, *(a[order] for a in rows[:3]))
    assert one == pytest.approx(other, rel=1e-5, nan_ok=True)


def test_several_outputs_count_equally():
    outputs = RANDOM.normal(size=(ROWS, 3)).astype(np.float32)
    targets = (RANDOM.random((ROWS, 3)) < [0.3, 0.5, 0.9]).astype(np.float32)
    result = values_of((*BINARY_COUNTS, metrics.roc_auc(), metrics.average_precision()), outputs, targets)
    for name, function in COUNTS.items():
        assert result[name] == pytest.approx(function(targets, outputs > 0, average="macro"), rel=1e-6)
    for name, function in AREAS.items():
        assert result[name] == pytest.approx(function(targets, outputs, average="macro"), abs=5e-3)
        assert EXACT[name](outputs, targets) == pytest.approx(function(targets, outputs, average="macro"), rel=1e-12)


def test_a_class_that_is_never_predicted_and_never_true_gives_0():
    no = np.zeros(4, np.float32)
    assert values_of(BINARY_COUNTS, no - 1, no) == {"precision": 0, "recall": 0, "f1": 0}
    assert values_of(BINARY_COUNTS, no + 1, no) == {"precision": 0, "recall": 0, "f1": 0}
    assert values_of(BINARY_COUNTS, no - 1, no + 1) == {"precision": 0, "recall": 0, "f1": 0}


def test_counts_are_exact_beyond_the_batch():
    """The mean of the batches' F1 is another number."""
    outputs = np.array([1, 1, -1, -1, -1, 1], np.float32)
    targets = np.array([1, 0, 0, 1, 1, 1], np.float32)
    parts = [one_value(metrics.f1(), outputs[rows], targets[rows]) for rows in (slice(0, 2), slice(2, 6))]
    whole = values_of((metrics.f1(),), outputs, targets, cuts=[2])["f1"]
    assert whole == pytest.approx(sk.f1_score(targets, outputs > 0)) != np.mean(parts)


# ROC AUC and average precision

BINARY_AREAS = tuple(getattr(metrics, name)(bins=BINS) for name in AREAS)
CLASS_AREAS = tuple(getattr(metrics, name)(average, bins=BINS) for name in AREAS for average in MEANS)


def roc_bound(bins, labels, weights):
    """Return half the sum over bins of the fractions of positives times those of negatives."""
    fractions = [np.bincount(bins, weights * (labels == yes), BINS) / weights[labels == yes].sum() for yes in (0, 1)]
    return np.sum(fractions[0] * fractions[1]) / 2


def precision_bound(bins, labels, weights):
    """Return the mean distance to the farther end, over the positives."""
    positives, negatives = (np.bincount(bins, weights * (labels == yes), BINS)[::-1] for yes in (1, 0))
    above, below = np.cumsum(positives) - positives, np.cumsum(negatives) - negatives

    def ratio(true, false):
        return true / np.where(true + false > 0, true + false, 1)

    value = ratio(above + positives, below + negatives)
    lowest, highest = ratio(above, below + negatives), ratio(above + positives, below)
    return np.sum(positives * np.maximum(value - lowest, highest - value)) / positives.sum()


BIN = jax.jit(functools.partial(metrics._bin, bins=BINS))
LOG_ODDS = jax.jit(metrics._log_odds)


def bins_of(scores):
    return np.asarray(BIN(np.asarray(scores, np.float32)))


@given(examples(classes=2))
@settings(max_examples=40, deadline=None)
def test_binary_areas_are_those_of_binned_scores_and_within_the_bound(rows):
    logits, labels, weights, cuts = rows
    scores = logits[:, 0]
    result = values_of(BINARY_AREAS, scores, labels.astype(np.float32), weights, cuts)
    counted = weights > 0
    scores, labels, weights = scores[counted], labels[counted], weights[counted]
    if len(set(labels)) < 2:
        assert np.isnan(list(result.values())).all()
        return
    bins = bins_of(scores)
    for (name, function), bound in zip(AREAS.items(), (roc_bound, precision_bound), strict=True):
        binned = function(labels, bins, sample_weight=weights)
        assert result[name] == pytest.approx(binned, rel=1e-5, abs=1e-6)
        exact = function(labels, scores, sample_weight=weights)
        assert abs(result[name] - exact) <= bound(bins, labels, weights) + 1e-6
        assert EXACT[name](scores, labels, weights) == pytest.approx(exact, rel=1e-12, abs=1e-15)


def expected_means(function, scores, labels, weights, average):
    """Return scikit-learn's area of each class that occurs, averaged."""
    present = [k for k in range(CLASSES) if 0 < np.sum(labels == k) < len(labels)]
    if not present:
        return np.nan
    areas = [function(labels == k, scores[:, k], sample_weight=weights) for k in present]
    return np.average(areas, weights=[weights[labels == k].sum() for k in present] if average == "weighted" else None)


@given(examples())
@settings(max_examples=40, deadline=None)
def test_areas_of_classes_are_those_of_one_against_the_rest(rows):
    logits, labels, weights, cuts = rows
    result = values_of(CLASS_AREAS, logits, labels, weights, cuts)
    binned = bins_of(LOG_ODDS(logits))
    counted = weights > 0
    logits, labels, weights, binned = logits[counted], labels[counted], weights[counted], binned[counted]
    for name, function in AREAS.items():
        for average in MEANS:
            expected = expected_means(function, binned, labels, weights, average)
            assert result[f"{name}_{average}"] == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)
            if len(set(labels)) < 2:
                with pytest.raises(InputError, match="at least two classes"):
                    EXACT[name](logits, labels, weights, average=average)


@pytest.mark.parametrize("average", MEANS)
def test_exact_areas_of_classes_equal_scikit_learn(average):
    labels = RANDOM.integers(0, CLASSES, 300)
    logits, weights = RANDOM.normal(size=(300, CLASSES)) + np.eye(CLASSES)[labels], RANDOM.uniform(0.1, 2, 300)
    options = {"average": average, "sample_weight": weights}
    expected = sk.roc_auc_score(labels, softmax(logits, 1), multi_class="ovr", **options)
    assert exact_roc_auc(logits, labels, weights, average=average) == pytest.approx(expected, rel=1e-12)
    expected = sk.average_precision_score(labels, softmax(logits, 1), **options)
    assert exact_average_precision(logits, labels, weights, average=average) == pytest.approx(expected, rel=1e-12)
    assert exact_roc_auc(np.log(softmax(logits, 1)), labels, weights, average=average) == pytest.approx(
        exact_roc_auc(logits, labels, weights, average=average), rel=1e-12
    )
    arrays = logits.astype(np.float32), labels.astype(np.int32), weights.astype(np.float32)
    for name, exact in EXACT.items():
        value = one_value(getattr(metrics, name)(average), *arrays)
        assert value == pytest.approx(exact(logits, labels, weights, average=average), abs=3e-3)


def test_two_classes_have_the_scores_of_their_difference():
    logits, labels = RANDOM.normal(size=(ROWS, 2)).astype(np.float32), RANDOM.integers(0, 2, ROWS).astype(np.int32)
    difference = logits[:, 1] - logits[:, 0]
    two = values_of(BINARY_AREAS, logits, labels)
    assert two == values_of(BINARY_AREAS, difference, labels.astype(np.float32))
    for exact in EXACT.values():
        assert exact(logits, labels) == exact(difference, labels) == exact(difference[:, None], labels)


@pytest.mark.parametrize(("center", "deviation"), [(0, 0.3), (0, 1), (-3, 2), (-8, 3), (0, 10), (-30, 20)])
def test_the_default_bins_are_exact_enough_for_logits(center, deviation):
    random = np.random.default_rng(1)
    labels = (random.random(20_000) < 0.2).astype(np.float32)
    scores = (center + deviation * (random.normal(size=20_000) + 1.2 * labels)).astype(np.float32)
    names = metrics.roc_auc(), metrics.average_precision()
    sums = [
        measuring(names)(scores[rows], labels[rows], np.ones(200, np.float32))
        for rows in np.split(np.arange(20_000), 100)
    ]
    total = functools.reduce(merge, sums)
    result = compute(total, names)
    counts = total.totals["roc_auc"]
    bound = np.sum(counts["positives"] / labels.sum() * counts["negatives"] / (1 - labels).sum()) / 2
    assert 0.0004 < bound < 0.004
    assert float(result["roc_auc"]) == pytest.approx(sk.roc_auc_score(labels, scores), abs=2e-4)
    assert float(result["average_precision"]) == pytest.approx(sk.average_precision_score(labels, scores), abs=3e-3)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
@settings(max_examples=40, deadline=None)
def test_a_larger_score_has_no_lower_bin(scores):
    bins = bins_of(sorted([*scores, *[0] * (20 - len(scores))]))
    assert (np.diff(bins) >= 0).all() and bins.min() >= 0 and bins.max() < BINS


def test_the_ends_of_the_bins_are_those_of_infinity():
    assert bins_of([-np.inf, -1e30, -0.0, 0.0, 1e30, np.inf]).tolist() == [
        0,
        0,
        BINS // 2,
        BINS // 2,
        BINS - 1,
        BINS - 1,
    ]


def test_log_odds_are_precise_for_certain_predictions():
    logits = np.array([[0, 1, 2], [50, 0, -50], [-200, 0, 300], [1, 1, 1], [0, 0, -np.inf]], np.float32)
    odds = np.asarray(LOG_ODDS(logits))
    np.testing.assert_allclose(odds[0], logit(softmax(np.float64(logits[0]))), rtol=1e-6)
    np.testing.assert_allclose(odds[1:3], [[50, -50, -100], [-500, -300, 300]], rtol=1e-6)
    np.testing.assert_allclose(odds[3:], [[-np.log(2)] * 3, [0, 0, -np.inf]], atol=1e-6)


# Values that are not finite, and classes without examples

EVERY_BINARY, EVERY_CLASS = (*BINARY_COUNTS, *BINARY_AREAS), (*CLASS_COUNTS, *CLASS_AREAS)


@pytest.mark.parametrize("place", [0, 17])
@pytest.mark.parametrize("column", [0, 1])
def test_nan_gives_nan(place, column):
    outputs = RANDOM.normal(size=(ROWS, CLASSES)).astype(np.float32)
    labels = (np.arange(ROWS) % CLASSES).astype(np.int32)
    answers = (RANDOM.random((ROWS, CLASSES)) < 0.5).astype(np.float32)

    def results(names, outputs, targets):
        return [*values_of(names, outputs, targets).values()]

    assert np.isfinite(results(EVERY_BINARY, outputs, answers)).all()
    assert np.isfinite(results(EVERY_CLASS, outputs, labels)).all()
    wrong = outputs.copy()
    for value in (np.inf, np.nan):
        wrong[place, column] = value
        assert np.isnan(results(EVERY_CLASS, wrong, labels)).all()
    for answer in (0, 1):
        answers[place, column] = answer
        assert np.isnan(results(EVERY_BINARY, wrong, answers)).all()
        assert np.isnan(results(EVERY_BINARY, wrong[:, column], answers[:, column])).all()
    answers[place, column] = np.nan
    assert np.isnan(results(EVERY_BINARY, outputs, answers)).all()
    for label in (-1, CLASSES):
        labels[place] = label
        assert np.isnan(results(EVERY_CLASS, outputs, labels)).all()


def test_no_examples_give_nan():
    nothing = np.zeros(ROWS, np.float32)
    outputs, labels = np.ones((ROWS, CLASSES), np.float32), np.zeros(ROWS, np.int32)
    assert np.isnan([*values_of(EVERY_CLASS, outputs, labels, nothing).values()]).all()
    assert np.isnan([*values_of(EVERY_BINARY, outputs[:, 0], nothing, nothing).values()]).all()


@pytest.mark.parametrize("label", [0, 1])
def test_areas_of_one_class_are_not_defined(label):
    outputs = RANDOM.normal(size=ROWS).astype(np.float32)
    targets = np.full(ROWS, label, np.float32)
    assert np.isnan([*values_of(BINARY_AREAS, outputs, targets).values()]).all()
    for exact in EXACT.values():
        with pytest.raises(InputError, match=f"labels of both kinds, 0 and 1, got only {label}"):
            exact(outputs, targets)


# Transformations, and what a run does with the metrics


def test_members_under_vmap_have_the_values_of_each():
    outputs = RANDOM.normal(size=(3, ROWS, CLASSES)).astype(np.float32)
    labels, weights = (np.arange(ROWS) % CLASSES).astype(np.int32), np.ones(ROWS, np.float32)

    def values(outputs):
        return compute(measure(softmax_cross_entropy, outputs, labels, weights, metrics=EVERY_CLASS), EVERY_CLASS)

    together = jax.jit(jax.vmap(values))(outputs)
    for member in range(3):
        alone = values_of(EVERY_CLASS, outputs[member], labels)
        assert {name: float(together[name][member]) for name in alone} == pytest.approx(alone, rel=1e-5)


def test_dtypes_are_never_promoted():
    names = (*EVERY_BINARY, *EVERY_CLASS)

    def values(*arrays):
        return compute(measure(softmax_cross_entropy, *arrays, metrics=names), names)

    outputs, labels = jax.ShapeDtypeStruct((ROWS, 2), jnp.float32), jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    with jax.numpy_dtype_promotion("strict"):
        shapes = jax.eval_shape(values, outputs, labels, jax.ShapeDtypeStruct((ROWS,), jnp.float32))
    assert {(value.dtype, value.shape) for value in shapes.values()} == {(np.dtype(np.float32), ())}


def test_equal_calls_return_one_metric_for_which_nothing_compiles_again():
    for name in (*COUNTS, *AREAS):
        function = getattr(metrics, name)
        assert function() == function("binary") == function(average="binary")
        assert function() != function("macro") and hash(function()) == hash(function())
        assert function().name == name and function("macro").name == f"{name}_macro" and function().mode == "max"
    assert metrics.roc_auc() == metrics.roc_auc(bins=1024) != metrics.roc_auc(bins=9)


def test_a_run_monitors_an_area_of_all_validation_examples():
    inputs = RANDOM.normal(size=(90, 3)).astype(np.float32)
    targets = (inputs @ [1, -1, 0.5] + RANDOM.normal(size=90) > 0.5).astype(np.float32)[:, None]
    data, validation = jaxdl.dataset(inputs[:60], targets[:60]), jaxdl.dataset(inputs[60:], targets[60:])
    names = [metrics.roc_auc(), metrics.f1()]
    run = jaxdl.fit(
        jaxdl.mlp(()),
        sigmoid_cross_entropy,
        optax.adam(0.05),
        data,
        validation,
        metrics=names,
        epochs=4,
        batch_size=16,
        early_stopping=jaxdl.early_stopping("val_roc_auc", patience=2),
    )
    values = jaxdl.evaluate(jaxdl.mlp(()), run.final, validation, sigmoid_cross_entropy, metrics=names, batch_size=7)
    outputs = jaxdl.predict(jaxdl.mlp(()), run.final, inputs[60:])
    assert float(values["roc_auc"]) == pytest.approx(exact_roc_auc(outputs, targets[60:]), abs=5e-3)
    assert float(values["f1"]) == pytest.approx(sk.f1_score(targets[60:], outputs > 0), rel=1e-6)
    assert run.records[-1]["val_roc_auc"] == pytest.approx(float(values["roc_auc"]), abs=1e-6)


# Curves with weights


@given(examples(classes=2))
@settings(max_examples=40, deadline=None)
def test_curves_with_weights_are_those_of_scikit_learn(rows):
    logits, labels, weights, _ = rows
    scores, counted = logits[:, 0].astype(np.float64), weights > 0
    scores[~counted] = np.nan
    if len(set(labels[counted])) < 2:
        return
    arrays = labels[counted], scores[counted]
    curve = metrics.roc_curve(scores, labels, weights)
    x, y, thresholds = sk.roc_curve(*arrays, sample_weight=weights[counted], drop_intermediate=False)
    np.testing.assert_allclose(curve.x, x, rtol=1e-12)
    np.testing.assert_allclose(curve.y, y, rtol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    curve = metrics.precision_recall_curve(scores, labels, weights)
    precision, recall, _ = sk.precision_recall_curve(*arrays, sample_weight=weights[counted])
    np.testing.assert_allclose(curve.x, recall[::-1], rtol=1e-12)
    np.testing.assert_allclose(curve.y, precision[::-1], rtol=1e-12)


# Bad arguments


@pytest.mark.parametrize("name", [*COUNTS, *AREAS])
def test_bad_arguments_are_refused(name):
    function = getattr(metrics, name)
    for average in ("micro", None, ["macro"], "Macro"):
        with pytest.raises(InputError, match=f'{name} takes average="binary", "macro" or "weighted", got '):
            function(average)
    outputs, labels = jnp.zeros((5, 3)), jnp.zeros(5, jnp.int32)
    with pytest.raises(InputError, match=rf'{name} is of two classes.*metrics.{name}\("macro"\)'):
        function().per_example(outputs, labels)
    with pytest.raises(InputError, match=r"outputs \(5, 1\) and targets \(5,\)"):
        function().per_example(outputs[:, :1], labels)
    with pytest.raises(InputError, match=r"integer labels \(rows,\).*argmax"):
        function("macro").per_example(outputs, jnp.zeros((5, 3)))
    for one in (outputs[:, :1], outputs[:, 0]):
        with pytest.raises(InputError, match=r'at least two classes.*average="binary"'):
            function("macro").per_example(one, labels)
    with pytest.raises(InputError, match=rf"call it: {name}\(\.\.\.\)"):
        jaxdl.make_plan(jaxdl.mlp(()), sigmoid_cross_entropy, optax.sgd(0.1), metrics=[function], batch_size=2)


def test_the_micro_average_is_the_accuracy():
    with pytest.raises(InputError, match=r"use metrics\.accuracy"):
        metrics.f1("micro")
    logits, labels = RANDOM.normal(size=(ROWS, CLASSES)), RANDOM.integers(0, CLASSES, ROWS)
    assert sk.f1_score(labels, logits.argmax(1), average="micro") == pytest.approx(np.mean(logits.argmax(1) == labels))


@pytest.mark.parametrize("bins", [1, 0, 2.5, True, None])
def test_bad_bins_are_refused(bins):
    for function in (metrics.roc_auc, metrics.average_precision):
        with pytest.raises(InputError, match="bins"):
            function(bins=bins)


LOGITS = np.array([[0.0, 1, 2], [2, 1, 0], [0, 3, 1]])


@pytest.mark.parametrize("exact", EXACT.values())
@pytest.mark.parametrize(
    ("outputs", "targets", "options", "message"),
    [
        ([0.1, 0.2], [0, 1], {"average": "micro"}, 'average="binary", "macro" or "weighted", got "micro"'),
        ([0.1, 0.2, 0.3], [0, 1], {}, "a target for each row"),
        ([0.1, 0.2], 1, {}, "a target for each row"),
        (LOGITS, [0.0, 1, 1], {}, "a target for each output"),
        (LOGITS, [0, 1, 2], {}, 'two classes, got outputs (3, 3). Use average="macro".'),
        (LOGITS, [0, 1, 3], {"average": "macro"}, "labels must be from 0 to 2, got 3"),
        (LOGITS, [0, 1, -1], {"average": "macro"}, "labels must be from 0 to 2, got -1"),
        (LOGITS, [1, 1, 1], {"average": "macro"}, "examples of at least two classes, got 3 of one"),
        (LOGITS, [0.0, 1, 2], {"average": "macro"}, "integer labels"),
        (LOGITS * np.nan, [0, 1, 2], {"average": "macro"}, "logits must be finite, got nan"),
        (softmax(LOGITS, 1), [0, 1, 2], {"average": "macro"}, "takes logits, got probabilities. Use np.log(outputs)."),
        ([0.1, np.nan], [0, 1], {}, "scores must be finite, got nan"),
        ([0.1, 0.2], [0, 1], {"sample_weight": [1, -1]}, "sample_weight must be finite and at least 0, got -1"),
        ([0.1, 0.2], [0, 1], {"sample_weight": [1, np.nan]}, "sample_weight must be finite and at least 0, got nan"),
        ([0.1, 0.2], [0, 1], {"sample_weight": [1]}, "sample_weight needs shape (2,)"),
    ],
)
def test_exact_areas_reject_bad_arrays(exact, outputs, targets, options, message):
    with pytest.raises(InputError) as caught:
        exact(outputs, targets, **options)
    assert message in str(caught.value)
