"""Figures, by what the artists hold."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, roc_auc_score, root_mean_squared_error

from jaxdl import metrics, plots

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
    shown = lines(figure)
    assert set(shown) == {"training", "validation", "best: epoch 3", "stopped after epoch 4"}
    np.testing.assert_array_equal(shown["training"], [[1, 2, 3, 4], TABLE["rmse"]])
    np.testing.assert_array_equal(shown["validation"], [[1, 2, 3, 4], TABLE["val_rmse"]])
    np.testing.assert_array_equal(shown["best: epoch 3"], [[3], [2.9]])
    np.testing.assert_array_equal(shown["stopped after epoch 4"][0], [4, 4])
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(shown)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("epoch", "RMSE", "a run")


def test_history_of_another_figure_without_validation():
    figure = plots.history(pd.DataFrame({"accuracy": [0.5, 0.75]}, index=[1, 2]), "accuracy", best_epoch=2)
    shown = lines(figure)
    assert set(shown) == {"training", "best: epoch 2", "stopped after epoch 2"}
    np.testing.assert_array_equal(shown["best: epoch 2"], [[2], [0.75]])
    assert figure.axes[0].get_ylabel() == "accuracy"


def test_history_of_a_resumed_run_keeps_its_epochs():
    shown = lines(plots.history(TABLE.set_axis([11, 12, 13, 14]), best_epoch=13))
    np.testing.assert_array_equal(shown["training"][0], [11, 12, 13, 14])
    np.testing.assert_array_equal(shown["best: epoch 13"], [[13], [2.9]])


@pytest.mark.parametrize("best_epoch", [None, 0])
def test_history_without_a_best_epoch_marks_none(best_epoch):
    shown = lines(plots.history(TABLE, best_epoch=best_epoch))
    assert set(shown) == {"training", "validation", "stopped after epoch 4"}


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


def test_history_shows_negative_figures():
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
    figure = plots.images(pictures, list("abcde"), columns=3, colours=["red"], title="five")
    draw(figure)
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in shown] == list("abcde")
    for axes, picture in zip(shown, pictures, strict=True):
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), picture)
    assert (shown[0].title.get_color(), shown[1].title.get_color()) == ("red", "black")
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
    both = {"model": metrics.roc(SCORES, LABELS), "worse": metrics.roc(SCORES.round(), LABELS)}
    figure = plots.roc(both, {"persistence": (0.2, 0.7)}, title="2026-11-24-182832-batchnorm, weather_prediction.csv")
    draw(figure)
    shown = lines(figure)
    names = [
        f"model (area {roc_auc_score(LABELS, SCORES):.3f})",
        f"worse (area {roc_auc_score(LABELS, SCORES.round()):.3f})",
    ]
    assert list(shown) == [*names, "persistence", "chance (area 0.500)"]
    np.testing.assert_array_equal(shown[names[0]], [both["model"].x, both["model"].y])
    np.testing.assert_array_equal(shown["persistence"], [[0.2], [0.7]])
    np.testing.assert_array_equal(shown["chance (area 0.500)"], [[0, 1], [0, 1]])
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("false positive rate", "true positive rate")
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(styles) == 4
    inside(figure, axes.title)


def test_the_area_under_the_drawn_steps_is_the_average_precision():
    figure = plots.precision_recall({"model": metrics.precision_recall(SCORES, LABELS)}, {"a": (0.5, 0.6)}, share=0.4)
    draw(figure)
    shown = lines(figure)
    score = average_precision_score(LABELS, SCORES)
    assert list(shown) == [f"model (average {score:.3f})", "a", "share of positives (0.400)"]
    x, y = shown[f"model (average {score:.3f})"]
    assert (x[0], x[-1]) == (0, 1) and figure.axes[0].get_lines()[0].get_drawstyle() == "steps-pre"
    np.testing.assert_allclose(np.sum(np.diff(x) * y[1:]), score, rtol=1e-12)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("recall", "precision")


def test_curves_of_a_run_that_went_wrong_can_still_be_drawn():
    draw(plots.roc({}, {"persistence": (0.2, 0.7)}))
    draw(plots.precision_recall({}, share=0.3))
