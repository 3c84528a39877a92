"""The histories of runs over each other, by what the artists hold."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest

from jaxdl.comparison_plots import COLOURS, overlay, shared
from jaxdl.errors import InputError


def table(epochs=6, seed=0):
    values = np.random.default_rng(seed).uniform(2, 4, (epochs, 2))
    return pd.DataFrame(values, columns=["rmse", "val_rmse"], index=pd.RangeIndex(1, epochs + 1, name="epoch"))


def many(count):
    return {f"run-{number}": table(seed=number) for number in range(count)}


def draw(figure):
    """What a file would show; matplotlib finds many mistakes only here."""
    figure.savefig(io.BytesIO(), format="png")


def named(figure):
    (axes,) = figure.axes
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


@pytest.mark.parametrize("metric", ["rmse", "val_rmse"])
def test_validation_is_thick_and_training_thin_in_the_same_colour(metric):
    runs = {"a": table(6), "b": table(4, seed=1)}
    figure = overlay(runs, metric, unit="hours", title="two")
    draw(figure)
    (axes,) = figure.axes
    thin = [line for line in axes.get_lines() if line.get_label().startswith("_")]
    assert len(thin) == 2
    for name, thick in named(figure).items():
        np.testing.assert_array_equal(thick.get_data(), [runs[name].index, runs[name]["val_rmse"]])
        (training,) = [line for line in thin if line.get_color() == thick.get_color()]
        np.testing.assert_array_equal(training.get_data(), [runs[name].index, runs[name]["rmse"]])
        assert training.get_linewidth() < thick.get_linewidth()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("epoch", "RMSE (hours)", "two")


def test_the_legend_names_runs_in_the_order_of_their_last_values_and_what_is_thick():
    figure = overlay({"low": table() - 1, "high": table() + 5, "middle": table() + 1})
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["high", "middle", "low", "validation", "training"]


@pytest.mark.parametrize("count", [1, 6, 7, 30])
@pytest.mark.parametrize("length", [1, 80])
def test_the_legend_stays_on_the_page_and_off_the_panel(count, length):
    runs = {f"{number:0{length}}": table(seed=number) for number in range(count)}
    figure = overlay(runs)
    draw(figure)
    (axes,) = figure.axes
    box, page = axes.get_legend().get_window_extent(), figure.bbox
    assert box.x0 >= axes.get_window_extent().x1
    assert page.y0 <= box.y0 and box.y1 <= page.y1 and box.x1 <= page.x1


def test_no_two_of_many_runs_look_alike_and_neighbours_differ_without_colours():
    lines = [*named(overlay(many(40))).values()]
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines]
    assert len({*looks}) == 40
    grey = {line.get_label(): line.get_marker() for line in lines}
    assert all(grey[f"run-{number}"] != grey[f"run-{number + 1}"] for number in range(39))


def test_of_more_than_6_runs_only_validation_is_drawn():
    assert len(overlay(many(6)).axes[0].get_lines()) == 12
    assert len(overlay(many(7)).axes[0].get_lines()) == 7


# Machado, Oliveira and Fernandes (2009): what eyes without one kind of cones see, of linear RGB.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "none": np.eye(3),
}


@pytest.mark.parametrize("eyes", BLIND)
def test_the_colours_differ_for_colour_blind_eyes(eyes):
    from matplotlib.colors import to_rgb

    encoded = np.array([to_rgb(colour) for colour in COLOURS])
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(BLIND[eyes]).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = seen @ to_xyz.T / to_xyz.sum(1)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = np.c_[116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])]
    # A difference of 2.3 is just noticeable.
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 10
    assert lab[:, 0].max() < 75  # dark enough on white paper


def test_first_epochs_and_divergence_do_not_flatten_the_rest():
    late = table(50)
    late.iloc[:5] = 1000.0
    sick = table(50, seed=1)
    sick.iloc[30:] = 1e30
    figure = overlay({"late": late, "sick": sick, "healthy": table(50, seed=2)})
    draw(figure)
    low, high = figure.axes[0].get_ylim()
    assert low < 2.2 and 3.8 < high < 12


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_runs_of_all_kinds_can_be_drawn(value):
    broken = table(20)
    broken.iloc[10:] = value
    draw(overlay({"broken": broken, "nothing": table() * np.nan, "one epoch": table(1)}))


def test_much_longer_runs_have_a_logarithmic_axis():
    assert overlay({"a": table(10), "b": table(100)}).axes[0].get_xscale() == "linear"
    assert overlay({"a": table(10), "b": table(300)}).axes[0].get_xscale() == "log"


def test_runs_without_validation_show_training():
    runs = {"a": table()[["rmse"]], "b": table(seed=1)}
    lines = named(overlay(runs))
    np.testing.assert_array_equal(lines["a"].get_ydata(), runs["a"]["rmse"])
    np.testing.assert_array_equal(lines["b"].get_ydata(), runs["b"]["val_rmse"])


def test_the_shared_figure_is_the_first_that_all_have():
    def of(*names):
        return pd.DataFrame({name: [1.0] for name in names})

    a, b, c = of("val_loss", "val_rmse"), of("val_loss", "val_accuracy"), of("loss")
    assert shared({"a": a}) == "val_rmse" and shared({"b": b}) == "val_accuracy"
    assert shared({"a": a, "b": b}) == "val_loss"
    with pytest.raises(InputError, match="the runs share none of val_rmse, val_accuracy, val_loss"):
        shared({"a": a, "c": c})


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(InputError, match='"f1" is not measured by a, which measures rmse, val_rmse'):
        overlay({"a": table()}, "f1")
    with pytest.raises(InputError, match="at least one run with an epoch, got none"):
        overlay({})
