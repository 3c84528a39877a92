"""What all figures have in common."""

import numpy as np
import pytest

from jaxdl.errors import InputError
from jaxdl.plots import save
from jaxdl.plots._style import blank, fit_axis


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.b.svg", b"<?xml")])
def test_a_figure_is_saved_in_the_format_of_its_name(tmp_path, name, begins):
    save(blank(2, 2, above=0.1), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["a", "a.doc", "a.png.", ".png"])
def test_another_name_is_told_and_nothing_is_written(tmp_path, name):
    with pytest.raises(InputError, match=r"a figure's file must end in \..*png"):
        save(blank(2, 2, above=0.1), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InputError, match=r"a\.png cannot be written: No such file or directory"):
        save(blank(2, 2, above=0.1), tmp_path / "no" / "a.png")


def test_the_page_has_the_margins_that_were_asked_for():
    parts = blank(8, 4, above=0.5).subplotpars
    assert (parts.left * 8, parts.top * 4) == pytest.approx((0.8, 3.5))


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([1.0, 2.0], (0, 2.1)),
        ([1.0] * 20 + [1000.0, np.nan, np.inf], (0, 2.625)),  # what lies far above the rest is cut off
        ([-2.0, -1.0], (-2.1, 1)),
        ([-2.0] + [0.5] * 20 + [1000.0], (-2.1, 1050)),
        ([0.0, 0.0], (0, 1)),
        ([np.nan, np.inf], (0, 1)),  # the limits of an empty axis
        ([], (0, 1)),
    ],
)
def test_an_axis_shows_zero_and_the_finite_values(values, limits):
    axes = blank(2, 2, above=0.1).subplots()
    fit_axis(axes, values)
    assert axes.get_ylim() == pytest.approx(limits)


def test_a_lower_quantile_leaves_more_values_out():
    axes = blank(2, 2, above=0.1).subplots()
    fit_axis(axes, [1.0] * 4 + [1e30], quantile=0.75, factor=3)
    assert axes.get_ylim() == pytest.approx((0, 3.15))
