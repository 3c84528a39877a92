"""Figures of predictions with errors of their own, by what the artists hold."""

import io

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from scipy.stats import binom, norm

from jaxdl import plots
from jaxdl.errors import InputError

DRAW = np.random.default_rng(0)
MEAN = DRAW.normal(5, 3, 400)
DEVIATION = DRAW.uniform(0.5, 2, 400)
TRUE = DRAW.normal(MEAN, DEVIATION)


def draw(figure):
    """What a file would show; matplotlib finds many mistakes only here."""
    figure.savefig(io.BytesIO(), format="png")


def drawn(figure):
    """The points of all series, with the two ends of their bars: {(x, y, low, high)}."""
    found = set()
    for line, _, (segments,) in figure.axes[0].containers:
        for x, y, ends in zip(*line.get_data(), segments.get_segments(), strict=True):
            found.add((x, y, *ends[:, 1]))
    return found


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_intervals_are_those_of_the_normal_distribution(level):
    figure = plots.intervals(TRUE[:, None], MEAN[:, None], DEVIATION, level=level, quantity="hours", title="calibrated")
    draw(figure)
    low, high = norm.interval(level, MEAN, DEVIATION)
    found = np.array(sorted(drawn(figure)))
    np.testing.assert_allclose(found, np.array(sorted(zip(TRUE, MEAN, low, high, strict=True))), atol=1e-9)
    holds = int(((low <= TRUE) & (high >= TRUE)).sum())
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    words = f"the {100 * level:.3g} % interval"
    assert labels == [f"{words} holds it: {holds} of 400", f"{words} misses it: {400 - holds} of 400"]
    assert (figure.axes[0].get_xlabel(), figure.get_suptitle()) == ("true hours", "calibrated")


def test_intervals_that_miss_have_a_colour_of_their_own():
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
        plots.intervals(TRUE, MEAN, DEVIATION, level=level)


def test_coverage_shows_shares_against_the_diagonal():
    nominal = [0.5, 0.8, 0.9]
    found = {"raw": [0.2, 0.4, np.nan], "calibrated": [0.5, 0.79, 0.91]}
    figure = plots.coverage(nominal, found)
    draw(figure)
    (axes,) = figure.axes
    shown = {line.get_label(): np.array(line.get_data(), float) for line in axes.get_lines()}
    for name, shares in found.items():
        np.testing.assert_array_equal(shown[name], [nominal, shares])
    diagonal = next(line for label, line in shown.items() if label.startswith("_"))
    np.testing.assert_array_equal(*diagonal)
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (0, 1))


@pytest.mark.parametrize("rows", [165, 2000])
def test_the_band_of_chance_is_that_of_the_binomial_distribution(rows):
    figure = plots.coverage([0.9], {"raw": [0.8]}, rows=rows)
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
