"""Figures, by what the artists hold."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from scipy import stats
from scipy.stats import binom, norm
from sklearn.metrics import average_precision_score, roc_auc_score, root_mean_squared_error

from jaxdl import metrics, plots
from jaxdl.errors import InputError
from jaxdl.plots import residuals
from jaxdl.plots._results import binned

TABLE = pd.DataFrame(
    {"rmse": [4.0, 3.0, 2.0, 1.5], "val_rmse": [4.2, 3.1, 2.9, 3.0]}, index=pd.RangeIndex(1, 5, name="epoch")
)
TRUE = np.random.default_rng(0).normal(5, 2, 50)
GUESSES = {"model": TRUE + np.random.default_rng(1).normal(0, 1, 50), "persistence": np.roll(TRUE, 1)}


def draw(figure):
    """What a file would show; matplotlib finds many mistakes only here."""
    figure.savefig(io.BytesIO(), format="png")


def lines(figure):
    """The labelled lines of a figure with one panel: {label: (x, y)}."""
    (axes,) = figure.axes
    return {line.get_label(): np.array(line.get_data(), float) for line in axes.get_lines()}


def test_history_shows_both_curves_the_best_epoch_and_where_training_stopped():
    figure = plots.history(TABLE, best_epoch=3, title="a run")
    assert isinstance(figure, Figure)
    curves = lines(figure)
    assert set(curves) == {"training", "validation", "best: epoch 3", "stopped after epoch 4"}
    np.testing.assert_array_equal(curves["training"], [[1, 2, 3, 4], TABLE["rmse"]])
    np.testing.assert_array_equal(curves["validation"], [[1, 2, 3, 4], TABLE["val_rmse"]])
    np.testing.assert_array_equal(curves["best: epoch 3"], [[3], [2.9]])
    np.testing.assert_array_equal(curves["stopped after epoch 4"][0], [4, 4])
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(curves)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("epoch", "RMSE", "a run")


def test_history_of_another_metric_without_validation():
    figure = plots.history(pd.DataFrame({"accuracy": [0.5, 0.75]}, index=[1, 2]), "accuracy", best_epoch=2)
    curves = lines(figure)
    assert set(curves) == {"training", "best: epoch 2", "stopped after epoch 2"}
    np.testing.assert_array_equal(curves["best: epoch 2"], [[2], [0.75]])
    assert figure.axes[0].get_ylabel() == "accuracy"


def test_history_of_a_resumed_run_keeps_its_epochs():
    curves = lines(plots.history(TABLE.set_axis([11, 12, 13, 14]), best_epoch=13))
    np.testing.assert_array_equal(curves["training"][0], [11, 12, 13, 14])
    np.testing.assert_array_equal(curves["best: epoch 13"], [[13], [2.9]])


@pytest.mark.parametrize("best_epoch", [None, 0])
def test_history_without_a_best_epoch_marks_none(best_epoch):
    curves = lines(plots.history(TABLE, best_epoch=best_epoch))
    assert set(curves) == {"training", "validation", "stopped after epoch 4"}


def test_history_of_one_epoch():
    figure = plots.history(TABLE[:1], best_epoch=1)
    draw(figure)
    np.testing.assert_array_equal(lines(figure)["best: epoch 1"], [[1], [4.2]])


@pytest.mark.parametrize("values", [[3.0, np.nan, 2.0], [np.inf, 3.0, np.nan], [np.nan] * 3, [0.0] * 3])
def test_history_of_a_run_that_went_wrong_can_still_be_drawn(values):
    figure = plots.history(pd.DataFrame({"rmse": values, "val_rmse": values}, index=[1, 2, 3]), best_epoch=3)
    draw(figure)
    np.testing.assert_array_equal(lines(figure)["training"][1], values)
    assert np.isfinite(figure.axes[0].get_ylim()).all()


def test_history_is_not_flattened_by_its_first_epoch():
    values = np.r_[1000.0, np.linspace(4, 3, 40)]
    low, high = plots.history(pd.DataFrame({"rmse": values}, index=range(1, 42))).axes[0].get_ylim()
    assert low == 0 and 4 < high < 12


def test_history_shows_negative_metrics():
    # R2 of a poor network, or the negative log-likelihood of a good one.
    values = np.array([-2.0, -0.5, -0.1, -0.2])
    low, high = plots.history(pd.DataFrame({"r2": values}, index=[1, 2, 3, 4]), "r2").axes[0].get_ylim()
    assert low <= values.min() and values.max() <= high


def test_predictions_show_every_point_and_the_diagonal():
    figure = plots.predictions(TRUE[:, None], GUESSES, quantity="hours", title="a run")
    assert len(figure.axes) == 2
    for axes, (name, guess) in zip(figure.axes, GUESSES.items(), strict=True):
        np.testing.assert_allclose(axes.collections[0].get_offsets(), np.c_[TRUE, guess])
        x, y = axes.get_lines()[0].get_data()
        np.testing.assert_array_equal(x, y)
        assert axes.get_title() == f"{name} (RMSE {root_mean_squared_error(TRUE, guess):.2f})"
        assert axes.get_xlabel() == "true hours"
    assert [axes.get_ylabel() for axes in figure.axes] == ["predicted hours", ""]
    assert figure.get_suptitle() == "a run"


def test_predictions_have_the_same_limits_in_every_panel_around_every_point():
    figure = plots.predictions(TRUE, {**GUESSES, "far off": TRUE - 20})
    draw(figure)
    limits = {(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}
    assert len(figure.axes) == 3 and len(limits) == 1
    ((x, y),) = limits
    assert x == y
    assert x[0] < (TRUE - 20).min() and TRUE.max() < x[1]


def test_predictions_of_columns_are_compared_row_by_row():
    # (N, 1) against (N,) must not become a table of all pairs.
    figure = plots.predictions(TRUE[:, None], {"model": TRUE[:, None].astype(np.float32)})
    assert figure.axes[0].get_title() == "model (RMSE 0.00)"
    assert len(figure.axes[0].collections[0].get_offsets()) == 50


def test_predictions_that_are_all_the_same_can_be_drawn():
    draw(plots.predictions(np.ones(3), {"model": np.ones(3)}))


def test_predictions_of_a_run_that_went_wrong_can_still_be_drawn():
    figure = plots.predictions(TRUE, {"model": np.full(50, np.nan), "persistence": np.roll(TRUE, 1)})
    draw(figure)
    assert np.isfinite(figure.axes[1].get_xlim()).all()


def test_no_pyplot_is_loaded():
    program = """
import io, sys
import pandas as pd
from jaxdl import plots
plots.history(pd.DataFrame({"rmse": [1.0]}, index=[1])).savefig(io.BytesIO())
plots.predictions([1.0], {"model": [1.0]}).savefig(io.BytesIO())
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_images_are_shown_with_their_captions():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    figure = plots.images(pictures, list("abcde"), columns=3, colors=["red"], title="five")
    draw(figure)
    panels = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in panels] == list("abcde")
    for axes, picture in zip(panels, pictures, strict=True):
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), picture)
    assert (panels[0].title.get_color(), panels[1].title.get_color()) == ("red", "black")
    assert len({axes.get_position().y0.round(6) for axes in figure.axes}) == 2


def test_no_images_are_a_figure_too():
    draw(plots.images(np.zeros((0, 8, 8, 3), np.uint8), title="no errors"))


def test_kernels_share_one_scale_and_grey_is_zero():
    values = np.zeros((3, 3, 3, 4), np.float32)
    values[0, 0, 0, 0], values[1, 1, 2, 3] = 2.0, -1.0
    figure = plots.kernels(values, columns=2)
    draw(figure)
    pictures = [axes.get_images()[0].get_array() for axes in figure.axes]
    assert len(pictures) == 4 and (np.asarray(pictures[1]) == 0.5).all()
    assert pictures[0][0, 0, 0] == 1.0 and pictures[3][1, 1, 2] == 0.25


@pytest.mark.parametrize("values", [np.zeros((3, 3, 3, 2)), np.full((3, 3, 3, 2), np.nan), np.ones((3, 3, 5, 2))])
def test_kernels_of_all_kinds_can_be_drawn(values):
    draw(plots.kernels(values))


def test_the_confusion_matrix_shows_counts_and_shades_shares():
    counts = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    figure = plots.confusion(counts, ["cat", "dog", "ship"])
    draw(figure)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [str(count) for count in counts.ravel()]
    shares = np.asarray(axes.get_images()[0].get_array())
    np.testing.assert_allclose(shares, [[0.8, 0.2, 0], [0.25, 0.75, 0], [0, 0, 0]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "ship"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


@pytest.mark.parametrize("count", [2, 10])
def test_a_long_title_stays_within_a_confusion_matrix(count):
    title = "test days: 2026-11-24-182832-batchnorm, weather_prediction_dataset.csv"
    figure = plots.confusion(np.eye(count, dtype=int), list("abcdefghij")[:count], title=title)
    draw(figure)
    inside(figure, figure.axes[0].title)


def inside(figure, text):
    box, page = text.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1


LABELS = np.random.default_rng(2).integers(0, 2, 60)
SCORES = LABELS + np.random.default_rng(3).normal(0, 1, 60)


def test_the_roc_curves_stand_beside_chance_and_points():
    both = {"model": metrics.roc_curve(SCORES, LABELS), "worse": metrics.roc_curve(SCORES.round(), LABELS)}
    figure = plots.roc(both, {"persistence": (0.2, 0.7)}, title="2026-11-24-182832-batchnorm, weather_prediction.csv")
    draw(figure)
    curves = lines(figure)
    names = [
        f"model (area {roc_auc_score(LABELS, SCORES):.3f})",
        f"worse (area {roc_auc_score(LABELS, SCORES.round()):.3f})",
    ]
    assert list(curves) == [*names, "persistence", "chance (area 0.500)"]
    np.testing.assert_array_equal(curves[names[0]], [both["model"].x, both["model"].y])
    np.testing.assert_array_equal(curves["persistence"], [[0.2], [0.7]])
    np.testing.assert_array_equal(curves["chance (area 0.500)"], [[0, 1], [0, 1]])
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("false positive rate", "true positive rate")
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(styles) == 4
    inside(figure, axes.title)


def test_the_area_under_the_drawn_steps_is_the_average_precision():
    figure = plots.precision_recall(
        {"model": metrics.precision_recall_curve(SCORES, LABELS)}, {"a": (0.5, 0.6)}, positive_fraction=0.4
    )
    draw(figure)
    curves = lines(figure)
    score = average_precision_score(LABELS, SCORES)
    assert list(curves) == [f"model (average {score:.3f})", "a", "fraction of positives (0.400)"]
    x, y = curves[f"model (average {score:.3f})"]
    assert (x[0], x[-1]) == (0, 1) and figure.axes[0].get_lines()[0].get_drawstyle() == "steps-pre"
    np.testing.assert_allclose(np.sum(np.diff(x) * y[1:]), score, rtol=1e-12)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("recall", "precision")


def test_curves_of_a_run_that_went_wrong_can_still_be_drawn():
    draw(plots.roc({}, {"persistence": (0.2, 0.7)}))
    draw(plots.precision_recall({}, positive_fraction=0.3))


# Figures of predictions with errors of their own, by what the artists hold.

DRAW = np.random.default_rng(0)
MEAN = DRAW.normal(5, 3, 400)
DEVIATION = DRAW.uniform(0.5, 2, 400)
DRAWS = DRAW.normal(MEAN, DEVIATION)


def drawn(figure):
    """The points of all series, with the two ends of their bars: {(x, y, low, high)}."""
    result = set()
    for line, _, (segments,) in figure.axes[0].containers:
        for x, y, ends in zip(*line.get_data(), segments.get_segments(), strict=True):
            result.add((x, y, *ends[:, 1]))
    return result


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_intervals_are_those_of_the_normal_distribution(level):
    figure = plots.intervals(
        DRAWS[:, None], MEAN[:, None], DEVIATION, level=level, quantity="hours", title="calibrated"
    )
    draw(figure)
    low, high = norm.interval(level, MEAN, DEVIATION)
    result = np.array(sorted(drawn(figure)))
    np.testing.assert_allclose(result, np.array(sorted(zip(DRAWS, MEAN, low, high, strict=True))), atol=1e-9)
    holds = int(((low <= DRAWS) & (high >= DRAWS)).sum())
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    words = f"the {100 * level:.3g} % interval"
    assert labels == [f"{words} holds it: {holds} of 400", f"{words} misses it: {400 - holds} of 400"]
    assert (figure.axes[0].get_xlabel(), figure.get_suptitle()) == ("true hours", "calibrated")


def test_intervals_that_miss_have_a_color_of_their_own():
    figure = plots.intervals([0.0, 1.0], [0.1, 5.0], [1.0, 1.0])
    inside, outside = figure.axes[0].containers
    assert inside[0].get_xdata().tolist() == [0.0] and outside[0].get_xdata().tolist() == [1.0]
    assert inside[0].get_color() != outside[0].get_color()


def test_predictions_that_are_no_numbers_are_left_out_and_still_counted():
    figure = plots.intervals([0.0, 1.0, 2.0], [0.0, np.nan, 2.0], [1.0, 1.0, np.inf])
    draw(figure)
    assert len(drawn(figure)) == 1
    assert "1 of 3" in figure.axes[0].get_legend().get_texts()[0].get_text()
    draw(plots.intervals([1.0], [np.nan], [np.nan]))


@pytest.mark.parametrize("level", [0, 1, 1.5, -0.1, np.nan])
def test_levels_that_are_no_share_are_refused(level):
    with pytest.raises(InputError, match="level must be between 0 and 1"):
        plots.intervals(DRAWS, MEAN, DEVIATION, level=level)


def test_coverage_shows_shares_against_the_diagonal():
    nominal = [0.5, 0.8, 0.9]
    result = {"raw": [0.2, 0.4, np.nan], "calibrated": [0.5, 0.79, 0.91]}
    figure = plots.coverage(nominal, result)
    draw(figure)
    (axes,) = figure.axes
    curves = {line.get_label(): np.array(line.get_data(), float) for line in axes.get_lines()}
    for name, shares in result.items():
        np.testing.assert_array_equal(curves[name], [nominal, shares])
    diagonal = next(line for label, line in curves.items() if label.startswith("_"))
    np.testing.assert_array_equal(*diagonal)
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (0, 1))


@pytest.mark.parametrize("rows", [165, 2000])
def test_the_band_of_chance_is_that_of_the_binomial_distribution(rows):
    figure = plots.coverage([0.9], {"raw": [0.8]}, examples=rows)
    draw(figure)
    (band,) = (artist for artist in figure.axes[0].collections if isinstance(artist, PolyCollection))
    corners = band.get_paths()[0].vertices
    for share in (0.3, 0.5, 0.9):
        low, high = binom.interval(0.95, rows, share)
        at = corners[np.isclose(corners[:, 0], share)][:, 1]
        np.testing.assert_allclose([at.min(), at.max()], [low / rows, high / rows], atol=1.0 / rows)


def test_any_number_of_lines_is_drawn():
    many = {f"model {number}": [number / 10] for number in range(7)}
    figure = plots.coverage([0.5], many)
    assert {line.get_label() for line in figure.axes[0].get_lines()} >= set(many)


# What predictions miss, by what the artists hold.

RANDOM = np.random.default_rng(0)
PREDICTED = RANDOM.normal(5, 2, 203)
MEASURED = PREDICTED + RANDOM.normal(0.5, 1, 203)


def test_every_residual_is_a_point_and_counted_in_the_histogram():
    figure = residuals(MEASURED[:, None], PREDICTED[:, None].astype(np.float32), quantity="hours", title="a run")
    draw(figure)
    left, right = figure.axes
    np.testing.assert_allclose(left.collections[0].get_offsets(), np.c_[PREDICTED, MEASURED - PREDICTED], atol=1e-5)
    assert sum(bar.get_width() for bar in right.patches) == 203
    assert f"RMSE {root_mean_squared_error(MEASURED, PREDICTED):.2f}" in left.get_title()
    assert (left.get_xlabel(), left.get_ylabel()) == ("predicted hours", "true minus predicted hours")
    assert left.get_ylim() == right.get_ylim() and figure.get_suptitle() == "a run"


def test_the_curve_is_the_normal_density_of_the_same_moments_at_the_scale_of_the_bars():
    figure = residuals(MEASURED, PREDICTED)
    right = figure.axes[1]
    curve = next(line for line in right.get_lines() if len(line.get_xdata()) > 10)
    missed, bar = MEASURED - PREDICTED, right.patches[0].get_height()
    oracle = stats.norm(missed.mean(), missed.std(ddof=1)).pdf(curve.get_ydata()) * len(missed) * bar
    np.testing.assert_allclose(curve.get_xdata(), oracle, rtol=1e-9)


def test_the_squares_are_the_means_and_standard_errors_of_equal_groups():
    left = residuals(MEASURED, PREDICTED).axes[0]
    line, _, (segments,) = left.containers[0]
    order = np.argsort(PREDICTED)
    groups = np.array_split((MEASURED - PREDICTED)[order], 10)
    np.testing.assert_allclose(line.get_ydata(), [group.mean() for group in groups])
    np.testing.assert_allclose(line.get_xdata(), [group.mean() for group in np.array_split(PREDICTED[order], 10)])
    reach = [np.ptp(ends[:, 1]) / 2 for ends in segments.get_segments()]
    np.testing.assert_allclose(reach, [stats.sem(group) for group in groups])


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), max_size=80), st.integers(1, 20))
def test_groups_hold_five_examples_at_least_and_all_examples_together(pairs, bins):
    at, values = np.array(pairs).reshape(-1, 2).T
    middles, means, errors = binned(at, values, bins)
    assert len(middles) == len(means) == len(errors) == (0 if len(at) < 5 else max(1, min(bins, len(at) // 5)))
    assert (np.diff(middles) >= -1e-9).all()
    if len(means):
        sizes = [len(group) for group in np.array_split(at, len(means))]
        np.testing.assert_allclose(np.average(means, weights=sizes), values.mean(), atol=1e-6)


def test_examples_that_are_not_finite_are_left_out_and_counted():
    predicted = np.where(np.arange(203) % 10 == 0, np.nan, PREDICTED)
    figure = residuals(MEASURED, predicted)
    draw(figure)
    assert "21 of 203 not finite" in figure.axes[0].get_title()
    assert len(figure.axes[0].collections[0].get_offsets()) == 182


@pytest.mark.parametrize(
    "predicted", [np.full(203, np.nan), MEASURED, MEASURED + 1, np.where(np.arange(203), MEASURED, 1e30)]
)
def test_predictions_of_all_kinds_can_be_drawn(predicted):
    draw(residuals(MEASURED, predicted))


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_few_examples_can_be_drawn(count):
    draw(residuals(MEASURED[:count], PREDICTED[:count]))


def test_other_lengths_are_refused():
    with pytest.raises(InputError, match="as many predictions as true values, got 3 and 203"):
        residuals(MEASURED, [1.0, 2.0, 3.0])
