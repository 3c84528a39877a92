"""ROC and precision-recall curves against scikit-learn, and what their areas mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from jaxdl.errors import InputError
from jaxdl.metrics import precision_recall, roc

RANDOM = np.random.default_rng(0)
LABELS = (RANDOM.random(200) < 0.25).astype(int)
SCORES = LABELS + RANDOM.normal(size=200)

# Few distinct scores, so that most rows are tied with others; both classes are among the labels.
tied = st.integers(2, 40).flatmap(
    lambda count: st.tuples(
        arrays(np.float64, count, elements=st.sampled_from([-1e30, -1.0, 0.0, 0.1, 0.5, 7.0])),
        arrays(np.int64, count, elements=st.integers(0, 1)).filter(lambda labels: 0 < labels.sum() < len(labels)),
    )
)


def check(scores, labels):
    curve = roc(scores, labels)
    x, y, thresholds = sk.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.x, x, rtol=1e-12)
    np.testing.assert_allclose(curve.y, y, rtol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    np.testing.assert_allclose(curve.area, sk.roc_auc_score(labels, scores), rtol=1e-12, atol=1e-15)
    curve = precision_recall(scores, labels)
    precision, recall, thresholds = sk.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(curve.x, recall[::-1], rtol=1e-12)
    np.testing.assert_allclose(curve.y, precision[::-1], rtol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, [np.inf, *thresholds[::-1]])
    np.testing.assert_allclose(curve.area, sk.average_precision_score(labels, scores), rtol=1e-12)


def test_curves_and_areas_are_those_of_scikit_learn():
    check(SCORES, LABELS)


@given(tied)
def test_ties_are_treated_as_scikit_learn_does(rows):
    check(*rows)


def test_the_area_is_the_chance_that_a_positive_scores_higher():
    scores = SCORES.round(1)
    pairs = scores[LABELS == 1][:, None] - scores[LABELS == 0]
    assert roc(scores, LABELS).area == pytest.approx(np.mean((np.sign(pairs) + 1) / 2), rel=1e-12)


@given(tied, st.randoms())
def test_curves_do_not_depend_on_the_order_of_rows_or_the_scale_of_scores(rows, random):
    scores, labels = rows
    order = list(range(len(labels)))
    random.shuffle(order)
    for curve in (roc, precision_recall):
        one, other = curve(scores, labels), curve(np.cbrt(scores[order]), labels[order])
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.y, other.y)


def test_scores_that_are_all_the_same_are_chance():
    assert roc(np.ones(200), LABELS).area == 0.5
    assert precision_recall(np.ones(200), LABELS).area == pytest.approx(LABELS.mean())


def test_perfect_scores_have_an_area_of_one():
    assert roc(LABELS, LABELS).area == precision_recall(LABELS, LABELS).area == 1.0


def test_columns_and_float32_are_rows_too():
    assert roc(SCORES[:, None], LABELS[:, None].astype(np.float32)).area == roc(SCORES, LABELS).area


@pytest.mark.parametrize("curve", [roc, precision_recall])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [0, 0], "a curve needs labels of both kinds, 0 and 1, got only 0. Use more rows."),
        ([0.1, 0.2], [1, 1], "got only 1"),
        ([], [], "got no rows"),
        ([0.1, 0.2, 0.3], [0, 1], "a curve needs a score for each label, got 3 scores and 2 labels."),
        ([0.1, np.nan], [0, 1], "scores must be finite, got nan"),
        ([np.inf, 0.1], [0, 1], "scores must be finite, got inf"),
        ([0.1, 0.2], [0, 2], "labels must be 0 or 1, got 2"),
        ([0.1, 0.2], [0, np.nan], "labels must be 0 or 1, got nan"),
    ],
)
def test_what_makes_no_curve_is_refused(curve, scores, labels, message):
    with pytest.raises(InputError) as caught:
        curve(scores, labels)
    assert message in str(caught.value)
