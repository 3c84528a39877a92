"""Figures of learning rates, by what the artists hold."""

import io

import numpy as np
import pandas as pd
import pytest

from jaxdl import plots
from jaxdl.errors import InputError
from jaxdl.train.lr_finder import RateRange, smoothed, steepest

TABLE = pd.DataFrame(
    {"learning_rate": [0.1, 0.1, 0.001], "loss": [4.0, 2.0, 1.0], "val_loss": [5.0, 3.0, 3.5], "rmse": [2, 1.4, 1]},
    index=[1, 2, 3],
)


def draw(figure):
    """What a file would show; matplotlib finds many mistakes only here."""
    figure.savefig(io.BytesIO(), format="png")


def lines(axes):
    return {line.get_label(): np.array(line.get_data(), float) for line in axes.get_lines()}


def test_the_rate_stands_above_the_losses_of_the_same_epochs():
    figure = plots.learning_rates(TABLE, title="a run")
    draw(figure)
    upper, lower = figure.axes
    (rate,) = upper.get_lines()
    np.testing.assert_array_equal(rate.get_data(), [[1, 2, 3], TABLE["learning_rate"]])
    assert rate.get_drawstyle() == "steps-mid" and upper.get_yscale() == "log"
    shown = lines(lower)
    assert set(shown) == {"training", "validation"}
    np.testing.assert_array_equal(shown["validation"], [[1, 2, 3], TABLE["val_loss"]])
    assert len({line.get_linestyle() for line in lower.get_lines()}) == 2
    assert upper.get_xlim() == lower.get_xlim()
    assert (upper.get_ylabel(), lower.get_xlabel(), lower.get_ylabel()) == ("learning rate", "epoch", "loss")


def test_another_figure_and_a_constant_rate():
    figure = plots.learning_rates(TABLE.assign(learning_rate=0.1), "rmse", unit="hours")
    draw(figure)
    assert figure.axes[0].get_yscale() == "linear" and figure.axes[1].get_ylabel() == "RMSE (hours)"
    assert set(lines(figure.axes[1])) == {"training"}


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
    draw(plots.learning_rates(table))


def test_a_table_without_rates_is_told():
    with pytest.raises(InputError, match="the table must have a column learning_rate, got loss, rmse"):
        plots.learning_rates(TABLE[["loss", "rmse"]])


RATES = np.geomspace(1e-6, 1, 50).astype(np.float32)
LOSSES = (1 + 3 / (1 + (RATES / 1e-3) ** 1.5) + 0.1 * np.random.default_rng(0).normal(size=50)).astype(np.float32)


def test_a_range_test_shows_batches_the_smoothed_loss_and_where_it_falls_fastest():
    found = RateRange(RATES, LOSSES)
    figure = plots.rate_range(found, unit="nats", title="a run")
    draw(figure)
    (axes,) = figure.axes
    shown = lines(axes)
    np.testing.assert_allclose(shown["loss of a batch"], [RATES, LOSSES])
    np.testing.assert_allclose(shown["smoothed"], [RATES, smoothed(found)])
    (mark,) = [label for label in shown if label.startswith("falls fastest")]
    assert mark == f"falls fastest: {steepest(found):.1e}"
    x, y = shown[mark].ravel()
    assert x == pytest.approx(steepest(found)) and y == pytest.approx(smoothed(found)[np.argmin(np.abs(RATES - x))])
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "learning rate", "loss (nats)")


def test_divergence_is_marked_and_does_not_flatten_the_rest():
    losses = np.where(RATES > 0.1, np.inf, np.where(RATES > 0.05, 1e20, LOSSES))
    figure = plots.rate_range(RateRange(RATES, losses))
    draw(figure)
    (axes,) = figure.axes
    first = RATES[RATES > 0.1][0]
    assert f"not finite from {first:.1e}" in lines(axes)
    assert axes.get_ylim()[1] < 10


@pytest.mark.parametrize("losses", [np.full(50, np.nan), np.ones(50), np.linspace(1, 2, 50)])
def test_a_range_test_that_suggests_nothing_can_be_drawn(losses):
    figure = plots.rate_range(RateRange(RATES, losses))
    draw(figure)
    assert not any(label.startswith("falls") for label in lines(figure.axes[0]))
