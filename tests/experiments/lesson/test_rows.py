"""Rows of figures over seeds: what they come to, by pandas and scipy, and what the terminal shows."""

import io
import statistics

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import sem

from experiments.lesson.rows import Row, as_frame, as_seeds, check, mean_over_seeds, number, table
from jaxdl.errors import InputError
from jaxdl.types import SETS

DRAW = np.random.default_rng(0)
SEEDS = tuple(range(8))


def trained(name="early stopping", section="The lesson's exercises", **changes):
    """A made-up row of 8 seeds."""
    values = {set_: center + 0.1 * DRAW.standard_normal(8) for set_, center in zip(SETS, (2.0, 3.4, 3.5), strict=True)}
    row = Row(
        section, name, "100, 50 nodes", "RMSE", "hours", 21501, SEEDS, values, np.arange(20, 28), 1.5, {"test": 3.58}
    )
    return row._replace(**changes)


AS_TODAY = Row("The lesson's exercises", "as today", "", "RMSE", "hours", None, (), {"test": np.array([3.877])})
PHOTOGRAPHS = Row(
    "CIFAR-10",
    "small",
    "two convolutions",
    "accuracy",
    "%",
    415960,
    (0, 1),
    {"validation": np.array([48.0, 49.0]), "test": np.array([47.5, 50.5])},
    np.array([10, 10]),
    80.0,
    best=True,
)


def rendered(rows, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(rows, "all rows"))
    return console.file.getvalue()


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_estimates_are_those_of_scipy(values):
    result = mean_over_seeds(values)
    assert result.diverged == 0
    np.testing.assert_allclose(result.mean, statistics.fmean(values), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(result.sem, sem(values), rtol=1e-6, atol=1e-6)


@given(st.lists(st.floats(1, 9), min_size=2, max_size=9), st.integers(1, 5), st.randoms())
def test_what_diverged_is_counted_and_left_out_of_the_mean(values, lost, random):
    mixed = [*values, *random.choices([np.nan, np.inf, -np.inf], k=lost)]
    random.shuffle(mixed)
    result = mean_over_seeds(mixed)
    assert result.diverged == lost
    np.testing.assert_allclose([result.mean, result.sem], [statistics.fmean(values), sem(values)], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([3.0, 4.0], "3.50 +- 0.50"),
        ([3.0], "3.00"),
        ([3.0, np.nan], "3.00\n1 diverged"),
        ([3.0, 4.0, np.inf], "3.50 +- 0.50\n1 diverged"),
        ([np.nan], "diverged"),
        ([np.nan, np.nan], "all 2 diverged"),
    ],
)
def test_an_estimate_says_what_is_known_of_it(values, text):
    assert mean_over_seeds(values).text("hours") == text


def test_a_unit_has_its_decimals():
    assert (number(3.14159, "hours"), number(48.76, "%"), number(0.5, "nats")) == ("3.14", "48.8", "0.500")


def test_the_frame_has_a_line_a_row_with_the_figures_of_pandas():
    rows = [trained(), AS_TODAY, PHOTOGRAPHS]
    frame = as_frame(rows)
    assert frame["row"].tolist() == ["early stopping", "as today", "small"]
    oracle = pd.DataFrame(dict(rows[0].values))
    for name in SETS:
        np.testing.assert_allclose(frame.loc[0, f"{name}_mean"], oracle[name].mean())
        np.testing.assert_allclose(frame.loc[0, f"{name}_error"], oracle[name].sem())
    assert (frame.loc[0, "epochs_mean"], frame.loc[0, "lesson_test"], frame.loc[0, "seconds"]) == (23.5, 3.58, 1.5)
    assert frame["seeds"].tolist() == [8, 0, 2] and frame["parameters"].tolist() == [21501, pd.NA, 415960]
    assert frame.loc[1, "test_mean"] == 3.877
    assert frame.loc[1, ["train_mean", "validation_mean", "test_error", "epochs_mean", "lesson_test"]].isna().all()
    assert frame["unit"].tolist() == ["hours", "hours", "%"]


def test_a_line_a_seed_comes_to_the_line_a_row():
    rows = [trained(), trained("plain"), AS_TODAY]
    seeds, frame = as_seeds(rows), as_frame(rows).set_index("row")
    assert seeds["row"].value_counts().to_dict() == {"early stopping": 8, "plain": 8, "as today": 1}
    means = seeds.groupby("row")[list(SETS)].mean()
    for name in SETS:
        pd.testing.assert_series_equal(means[name], frame[f"{name}_mean"].sort_index(), check_names=False)
    assert seeds["seed"].isna().sum() == 1
    assert seeds.loc[seeds["row"] == "plain", "seed"].tolist() == list(SEEDS)
    assert seeds.loc[seeds["row"] == "plain", "epochs"].tolist() == list(range(20, 28))


def test_seeds_that_diverged_stand_in_the_frame():
    values = {"train": np.array([1.0, np.nan, 3.0]), "test": np.array([2.0, np.nan, np.inf])}
    frame = as_frame([trained(seeds=(0, 1, 2), values=values, epochs=np.array([1, 2, 3]))])
    assert (frame.loc[0, "diverged"], frame.loc[0, "train_mean"], frame.loc[0, "test_mean"]) == (2, 2.0, 2.0)


def test_both_frames_survive_a_file():
    rows = [trained(), AS_TODAY, PHOTOGRAPHS]
    for frame in (as_frame(rows), as_seeds(rows)):
        read = pd.read_csv(
            io.StringIO(frame.to_csv(index=False)), keep_default_na=False, na_values={"parameters": [""]}
        )
        assert list(read) == list(frame) and len(read) == len(frame)
        assert read["what"].tolist() == frame["what"].tolist()


def test_no_rows_are_frames_without_lines():
    assert len(as_frame([])) == len(as_seeds([])) == 0


def test_the_terminal_shows_every_row_in_its_section_within_80_columns():
    rows = [
        trained(),
        trained("a name that is far longer than any column would like", printed={"train": 2.43, "test": 4.08}),
        AS_TODAY,
        trained("[red]five[/red]", "Next steps", parameters=1234567, printed={}),
        PHOTOGRAPHS,
    ]
    text = rendered(rows)
    assert max(map(len, text.splitlines())) <= 80
    first = [line[:24].split() for line in text.splitlines()]
    words = [word for line in first for word in line]
    assert [w for w in words if w in ("lesson's", "early", "today", "Next", "CIFAR-10", "small")] == [
        *("lesson's", "early", "today", "Next", "CIFAR-10", "small"),
    ]
    mean, error = np.mean(rows[0].values["test"]), sem(rows[0].values["test"])
    assert f"{mean:.2f} +- {error:.2f}" in text and "49.0 +- 1.5" in text
    assert "lesson 2.43" in text and "lesson 4.08" in text and "lesson 3.58" in text
    assert "1,234,567" in text and "23.5" in text and "10 *" in text and "3.88" in text
    # Names are shown as they are, not taken for markup.
    assert "[red]five[/red]" in text
    assert "RMSE in hours" in text and "accuracy in %" in text


def test_rows_of_a_section_are_shown_side_by_side():
    text = rendered([trained("one"), trained("two", "Next steps"), trained("three")])
    assert text.index("one") < text.index("three") < text.index("Next steps") < text.index("two")
    assert text.count("The lesson's") == 1


def test_the_terminal_does_not_hide_what_diverged():
    values = {"test": np.r_[np.nan, np.full(7, 3.5)]}
    assert "1 diverged" in rendered([trained(values=values)])
    assert "all 8 diverged" in rendered([trained(values={"test": np.full(8, np.nan)})])


def test_a_star_is_explained_only_where_there_is_one():
    assert "* of the best" in rendered([PHOTOGRAPHS]) and "* of the best" not in rendered([trained()])


def test_what_the_lesson_prints_stands_below_the_figure_of_its_set():
    assert "lesson" not in rendered([PHOTOGRAPHS])
    lines = rendered([trained(printed={"validation": 3.21})]).splitlines()
    (place,) = [line.index("3.21") + 4 for line in lines if "lesson 3.21" in line]
    assert place == next(line for line in lines if "validation" in line).index("validation") + len("validation")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {"test": np.ones(7)}}, r"one test value for each of its seeds, \(8,\), got \(7,\)"),
        ({"values": {"test": np.ones((8, 1))}}, r"got \(8, 1\)"),
        ({"values": {"tests": np.ones(8)}}, "among train, validation, test, got tests"),
        ({"printed": {"dev": 3.0}}, "got dev"),
        ({"epochs": np.ones(3)}, "epochs of each of its 8 seeds"),
        ({"seeds": (), "epochs": np.zeros(0)}, r"\(1,\), got \(8,\)"),
    ],
)
def test_rows_that_do_not_fit_their_seeds_are_refused(changes, message):
    for made in (check, as_frame, as_seeds, table):
        with pytest.raises(InputError, match=message):
            made([trained(**changes)])
