"""Figures of many runs, by what the artists hold."""

import io
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from scipy.stats import sem

from jaxdl import plots
from jaxdl.errors import InputError
from jaxdl.train.lr_finder import LearningRateScan, smoothed, suggestion

LASTS = (6, 4, 9, 5)


def table(lasts=LASTS, seed=0):
    draw = np.random.default_rng(seed)
    rows = [
        (member, epoch, *draw.uniform(2, 4, 2)) for member, last in enumerate(lasts) for epoch in range(1, last + 1)
    ]
    return pd.DataFrame(rows, columns=["member", "epoch", "rmse", "val_rmse"])


def draw(figure):
    """What a file would show; matplotlib finds many mistakes only here."""
    figure.savefig(io.BytesIO(), format="png")


def lines(figure):
    """The labelled lines of a figure with one panel: {label: (x, y)}."""
    (axes,) = figure.axes
    curves = {line.get_label(): np.array(line.get_data(), float) for line in axes.get_lines()}
    return {label: data for label, data in curves.items() if not label.startswith("_")}


def bars(axes):
    """The series with error bars: [(x, y, reach)]."""
    bars = []
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (segments,) = container
        # A bar that is no number has no segment to draw.
        reach = [np.ptp(ends, axis=0).max() / 2 if len(ends) else np.nan for ends in segments.get_segments()]
        bars.append((*np.array(line.get_data(), float), np.array(reach)))
    return bars


def test_histories_show_every_member_and_the_median_while_half_of_them_are_left():
    records = table()
    figure = plots.histories(records, unit="hours", title="4 seeds")
    draw(figure)
    (axes,) = figure.axes
    curves = lines(figure)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("epoch", "RMSE (hours)", "4 seeds")
    for metric, label in (("rmse", "training, median of 4"), ("val_rmse", "validation, median of 4")):
        # At epoch 6 two of the four are left, at epoch 7 one.
        oracle = [np.median(records.loc[records["epoch"] == epoch, metric]) for epoch in range(1, 7)]
        np.testing.assert_array_equal(curves[label], [range(1, 7), oracle])
    thin = [np.array(line.get_data(), float) for line in axes.get_lines() if line.get_label().startswith("_")]
    drawn = [y[np.isfinite(y)].tolist() for _, y in thin]
    for metric in ("rmse", "val_rmse"):
        for _, group in records.groupby("member"):
            assert group[metric].tolist() in drawn
    assert len(thin) == 8


def test_histories_mark_where_members_stopped():
    records = table()
    curves = lines(plots.histories(records))
    assert set(curves["stopped after epoch 6 on average (4 to 9)"][0]) == {np.mean(LASTS)}
    x, y = curves["where a member stopped"]
    assert sorted(x) == sorted(LASTS)
    assert set(y) == set(records.groupby("member")["val_rmse"].last())


def test_members_that_all_end_together_have_one_mark():
    curves = lines(plots.histories(table((5, 5, 5))))
    assert "stopped after epoch 5" in curves and "where a member stopped" not in curves


def test_histories_need_no_validation():
    figure = plots.histories(table().drop(columns="val_rmse").rename(columns={"rmse": "accuracy"}), "accuracy")
    draw(figure)
    assert not any("validation" in label for label in lines(figure))
    assert figure.axes[0].get_ylabel() == "accuracy"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_member_that_diverges_spoils_neither_the_medians_nor_the_scale(value):
    healthy = table((5, 5, 5))
    sick = table((5,), seed=1).assign(member=3, rmse=value)
    figure = plots.histories(pd.concat([healthy, sick]))
    draw(figure)
    medians = healthy.groupby("epoch")["rmse"].median()
    median = lines(figure)["training, median of 4"][1]
    if np.isfinite(value):
        everyone = pd.concat([healthy, sick]).groupby("epoch")["rmse"].median()
        np.testing.assert_array_equal(median, everyone)
    else:
        np.testing.assert_array_equal(median, medians)
    assert figure.axes[0].get_ylim()[1] < 20


def test_histories_of_nothing_finite_and_of_one_epoch_can_be_drawn():
    draw(plots.histories(table().assign(rmse=np.nan, val_rmse=np.inf)))
    draw(plots.histories(table((1,))))


SIZES = [21501, 165, 1701]
MEANS = {"train": [1.0, 3.3, 2.0], "test": [4.0, 3.5, 3.4]}
ERRORS = {"train": [0.1, 0.2, 0.3], "test": [0.01, 0.02, np.nan]}
NAMES = ["100, 50", "1", "10, 5"]


def test_sizes_stand_on_a_logarithmic_axis_with_their_errors():
    figure = plots.model_size(SIZES, MEANS, ERRORS, NAMES, recommended=2, baselines={"as today": 3.88})
    draw(figure)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and (axes.get_xlabel(), axes.get_ylabel()) == ("parameters", "value")
    for (x, y, reach), name in zip(bars(axes), MEANS, strict=True):
        order = [1, 2, 0]
        np.testing.assert_array_equal(x, np.array(SIZES)[order])
        np.testing.assert_array_equal(y, np.array(MEANS[name])[order])
        np.testing.assert_allclose(reach, np.array(ERRORS[name])[order])
    curves = lines(figure)
    assert set(curves["as today"][1]) == {3.88} and set(curves["recommended: 10, 5"][0]) == {1701}
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(labels) == {"train", "test", "as today", "recommended: 10, 5"}


def test_names_stand_above_their_sizes_and_the_recommended_one_is_bold():
    axes = plots.model_size(SIZES, MEANS, ERRORS, NAMES, recommended=2).axes[0]
    texts = {text.get_text(): text for text in axes.texts}
    assert set(texts) == set(NAMES)
    assert [name for name in NAMES if texts[name].get_weight() == "bold"] == ["10, 5"]
    for name, size in zip(NAMES, SIZES, strict=True):
        place = axes.transAxes.inverted().transform(axes.transData.transform((size, 3.0)))[0]
        np.testing.assert_allclose(texts[name].get_position()[0], place, atol=1e-6)


@pytest.mark.parametrize("sizes", [[100, 100, 100, 100], [1000, 1001, 1002, 90000], [1, 89999, 90000, 90001]])
def test_names_keep_apart_and_inside_however_near_the_sizes_are(sizes):
    figure = plots.model_size(sizes, {"test": np.ones(4)}, {"test": np.ones(4)}, list("abcd"))
    draw(figure)
    places = [text.get_position()[0] for text in figure.axes[0].texts]
    assert np.diff(places).min() > 0.03 and max(places) <= 1
    assert [text.get_text() for text in figure.axes[0].texts] == list("abcd")


def test_sizes_without_names_marks_and_numbers_can_be_drawn():
    draw(plots.model_size([10], {"test": [np.nan]}, {"test": [np.nan]}))


@pytest.mark.parametrize("size", [0, -5, np.nan])
def test_sizes_below_1_are_refused(size):
    with pytest.raises(InputError, match="sizes must be at least 1"):
        plots.model_size([10, size], {"test": [1, 1]}, {"test": [0, 0]})


def test_seeds_show_every_value_and_the_mean_with_its_standard_error():
    seeds = [np.random.default_rng(place).normal(3.5, 0.2, 12) for place in range(3)]
    marks = {"references": [4.08, None, np.nan], "reference_label": "published"}
    figure = plots.seeds(["plain", "small", "$x$"], seeds, baselines={"as today": 3.88}, **marks)
    draw(figure)
    (axes,) = figure.axes
    dots = [line for line in axes.get_lines() if line.get_marker() == "o" and len(line.get_xdata()) == 12]
    for place, (line, values) in enumerate(zip(dots, seeds, strict=True)):
        np.testing.assert_array_equal(line.get_xdata(), values)
        assert np.abs(line.get_ydata() - place).max() < 0.3
    for place, ((x, y, reach), values) in enumerate(zip(bars(axes), seeds, strict=True)):
        np.testing.assert_allclose([x[0], y[0], reach[0]], [values.mean(), place, sem(values)])
        assert f"{values.mean():.2f} ± {sem(values):.2f}" == axes.texts[place].get_text()
    rings = [line for line in axes.get_lines() if len(line.get_xdata()) == 1 and line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(4.08, 0)]
    assert set(lines(figure)["as today"][0]) == {3.88}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "small", r"\$x\$"]
    low, high = axes.get_ylim()
    assert low > high  # The first recipe is at the top.
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["a seed", "mean ± standard error", "published", "as today"]


def test_seeds_count_diverged_runs():
    figure = plots.seeds(["one", "all", "single"], [[3.0, np.nan, 4.0, np.inf], [np.nan] * 2, [3.25]], title="seeds")
    draw(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["3.50 ± 0.50\n2 diverged", "2 diverged", "3.25"]
    assert figure.get_suptitle() == "seeds"


def test_more_baselines_than_dashes_are_all_drawn():
    many = {f"baseline {number}": 3 + number / 10 for number in range(7)}
    assert set(lines(plots.seeds(["a"], [[3.5]], baselines=many))) >= set(many)
    assert set(lines(plots.model_size([9], {"test": [3]}, {"test": [0]}, baselines=many))) >= set(many)


def test_names_of_any_length_stay_inside_the_figure():
    figure = plots.seeds(["BatchNorm, nine years of Basel alone, dropout 0.25", "b"], [[3.0, 3.1], [3.2, 3.3]])
    draw(figure)
    axes = figure.axes[0]
    boxes = [label.get_window_extent() for label in (*axes.get_yticklabels(), *axes.texts)]
    width = figure.get_figwidth() * figure.dpi
    assert min(box.x0 for box in boxes) > 0 and max(box.x1 for box in boxes) < width


def test_no_pyplot_is_loaded():
    program = """
import io, sys
from jaxdl import plots
plots.seeds(["a"], [[1.0]]).savefig(io.BytesIO())
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_mark_of_the_mean_epoch_is_rounded_in_words_only():
    (label,) = (label for label in lines(plots.histories(table((4, 5)))) if label.startswith("stopped"))
    assert re.fullmatch(r"stopped after epoch 4 on average \(4 to 5\)", label)


# Figures of learning rates, by what the artists hold.

TABLE = pd.DataFrame(
    {"learning_rate": [0.1, 0.1, 0.001], "loss": [4.0, 2.0, 1.0], "val_loss": [5.0, 3.0, 3.5], "rmse": [2, 1.4, 1]},
    index=[1, 2, 3],
)


def lines_of(axes):
    return {line.get_label(): np.array(line.get_data(), float) for line in axes.get_lines()}


def test_the_rate_stands_above_the_losses_of_the_same_epochs():
    figure = plots.learning_rate(TABLE, title="a run")
    draw(figure)
    upper, lower = figure.axes
    (rate,) = upper.get_lines()
    np.testing.assert_array_equal(rate.get_data(), [[1, 2, 3], TABLE["learning_rate"]])
    assert rate.get_drawstyle() == "steps-mid" and upper.get_yscale() == "log"
    curves = lines_of(lower)
    assert set(curves) == {"training", "validation"}
    np.testing.assert_array_equal(curves["validation"], [[1, 2, 3], TABLE["val_loss"]])
    assert len({line.get_linestyle() for line in lower.get_lines()}) == 2
    assert upper.get_xlim() == lower.get_xlim()
    assert (upper.get_ylabel(), lower.get_xlabel(), lower.get_ylabel()) == ("learning rate", "epoch", "loss")


def test_another_metric_and_a_constant_rate():
    figure = plots.learning_rate(TABLE.assign(learning_rate=0.1), "rmse", unit="hours")
    draw(figure)
    assert figure.axes[0].get_yscale() == "linear" and figure.axes[1].get_ylabel() == "RMSE (hours)"
    assert set(lines_of(figure.axes[1])) == {"training"}


@pytest.mark.parametrize(
    "table",
    [
        TABLE[:1],
        TABLE[["learning_rate"]],
        TABLE.assign(learning_rate=0.0),
        TABLE * np.nan,
        TABLE.assign(loss=[np.inf, np.nan, -1.0]),
    ],
)
def test_runs_of_all_kinds_can_be_drawn(table):
    draw(plots.learning_rate(table))


def test_a_table_without_rates_is_refused():
    with pytest.raises(InputError, match="the table must have a column learning_rate, got loss, rmse"):
        plots.learning_rate(TABLE[["loss", "rmse"]])


RATES = np.geomspace(1e-6, 1, 50).astype(np.float32)
LOSSES = (1 + 3 / (1 + (RATES / 1e-3) ** 1.5) + 0.1 * np.random.default_rng(0).normal(size=50)).astype(np.float32)


def test_a_range_test_shows_batches_the_smoothed_loss_and_where_it_falls_fastest():
    scan = LearningRateScan(RATES, LOSSES)
    figure = plots.lr_finder(scan, unit="nats", title="a run")
    draw(figure)
    (axes,) = figure.axes
    curves = lines_of(axes)
    np.testing.assert_allclose(curves["loss of a batch"], [RATES, LOSSES])
    np.testing.assert_allclose(curves["smoothed"], [RATES, smoothed(scan)])
    (mark,) = [label for label in curves if label.startswith("falls fastest")]
    assert mark == f"falls fastest: {suggestion(scan):.1e}"
    x, y = curves[mark].ravel()
    assert x == pytest.approx(suggestion(scan)) and y == pytest.approx(smoothed(scan)[np.argmin(np.abs(RATES - x))])
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "learning rate", "loss (nats)")


def test_divergence_is_marked_and_does_not_flatten_the_rest():
    losses = np.where(RATES > 0.1, np.inf, np.where(RATES > 0.05, 1e20, LOSSES))
    figure = plots.lr_finder(LearningRateScan(RATES, losses))
    draw(figure)
    (axes,) = figure.axes
    first = RATES[RATES > 0.1][0]
    assert f"not finite from {first:.1e}" in lines_of(axes)
    assert axes.get_ylim()[1] < 10


@pytest.mark.parametrize("losses", [np.full(50, np.nan), np.ones(50), np.linspace(1, 2, 50)])
def test_a_range_test_that_suggests_nothing_can_be_drawn(losses):
    figure = plots.lr_finder(LearningRateScan(RATES, losses))
    draw(figure)
    assert not any(label.startswith("falls") for label in lines_of(figure.axes[0]))
