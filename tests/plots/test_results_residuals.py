"""What predictions miss, by what the artists hold."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import root_mean_squared_error

from jaxdl.errors import InputError
from jaxdl.plots import residuals
from jaxdl.plots._results import binned

RANDOM = np.random.default_rng(0)
PREDICTED = RANDOM.normal(5, 2, 203)
TRUE = PREDICTED + RANDOM.normal(0.5, 1, 203)


def draw(figure):
    """What a file would show; matplotlib finds many mistakes only here."""
    figure.savefig(io.BytesIO(), format="png")


def test_every_residual_is_a_point_and_counted_in_the_histogram():
    figure = residuals(TRUE[:, None], PREDICTED[:, None].astype(np.float32), quantity="hours", title="a run")
    draw(figure)
    left, right = figure.axes
    np.testing.assert_allclose(left.collections[0].get_offsets(), np.c_[PREDICTED, TRUE - PREDICTED], atol=1e-5)
    assert sum(bar.get_width() for bar in right.patches) == 203
    assert f"RMSE {root_mean_squared_error(TRUE, PREDICTED):.2f}" in left.get_title()
    assert (left.get_xlabel(), left.get_ylabel()) == ("predicted hours", "true minus predicted hours")
    assert left.get_ylim() == right.get_ylim() and figure.get_suptitle() == "a run"


def test_the_curve_is_the_normal_density_of_the_same_moments_at_the_scale_of_the_bars():
    figure = residuals(TRUE, PREDICTED)
    right = figure.axes[1]
    curve = next(line for line in right.get_lines() if len(line.get_xdata()) > 10)
    missed, bar = TRUE - PREDICTED, right.patches[0].get_height()
    oracle = stats.norm(missed.mean(), missed.std(ddof=1)).pdf(curve.get_ydata()) * len(missed) * bar
    np.testing.assert_allclose(curve.get_xdata(), oracle, rtol=1e-9)


def test_the_squares_are_the_means_and_standard_errors_of_equal_groups():
    left = residuals(TRUE, PREDICTED).axes[0]
    line, _, (segments,) = left.containers[0]
    order = np.argsort(PREDICTED)
    groups = np.array_split((TRUE - PREDICTED)[order], 10)
    np.testing.assert_allclose(line.get_ydata(), [group.mean() for group in groups])
    np.testing.assert_allclose(line.get_xdata(), [group.mean() for group in np.array_split(PREDICTED[order], 10)])
    reach = [np.ptp(ends[:, 1]) / 2 for ends in segments.get_segments()]
    np.testing.assert_allclose(reach, [stats.sem(group) for group in groups])


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), max_size=80), st.integers(1, 20))
def test_groups_hold_five_rows_at_least_and_all_rows_together(pairs, bins):
    at, values = np.array(pairs).reshape(-1, 2).T
    middles, means, errors = binned(at, values, bins)
    assert len(middles) == len(means) == len(errors) == (0 if len(at) < 5 else max(1, min(bins, len(at) // 5)))
    assert (np.diff(middles) >= -1e-9).all()
    if len(means):
        sizes = [len(group) for group in np.array_split(at, len(means))]
        np.testing.assert_allclose(np.average(means, weights=sizes), values.mean(), atol=1e-6)


def test_rows_that_are_not_finite_are_left_out_and_counted():
    predicted = np.where(np.arange(203) % 10 == 0, np.nan, PREDICTED)
    figure = residuals(TRUE, predicted)
    draw(figure)
    assert "21 of 203 not finite" in figure.axes[0].get_title()
    assert len(figure.axes[0].collections[0].get_offsets()) == 182


@pytest.mark.parametrize("predicted", [np.full(203, np.nan), TRUE, TRUE + 1, np.where(np.arange(203), TRUE, 1e30)])
def test_predictions_of_all_kinds_can_be_drawn(predicted):
    draw(residuals(TRUE, predicted))


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_few_rows_can_be_drawn(count):
    draw(residuals(TRUE[:count], PREDICTED[:count]))


def test_other_lengths_are_told():
    with pytest.raises(InputError, match="as many predictions as true values, got 3 and 203"):
        residuals(TRUE, [1.0, 2.0, 3.0])
