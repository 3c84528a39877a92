"""Other views of the weather rows, by pandas and by what `weather` itself gives."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from experiments.weather.experiment import split_sets
from experiments.weather.features import first_days, of_place, oversampled, with_last_days, with_month
from jaxdl.data import dataset
from jaxdl.datasets import load_weather, simulated_weather
from jaxdl.errors import InputError

DAYS = 500
WHOLE = load_weather(f"simulated:{DAYS}", days=None)


def frame_of(dataset):
    return pd.DataFrame(dataset.data.inputs, columns=list(dataset.columns))


def assert_equal(one, other):
    """Data sets that are equal in every field, to the bit."""
    for name in one._fields:
        left, right = getattr(one, name), getattr(other, name)
        parts = zip(left, right, strict=True) if name == "data" else [(left, right)]
        for a, b in parts:
            assert type(a) is type(b), name
            np.testing.assert_array_equal(a, b, err_msg=name)


def assert_same_rows(view, dataset):
    """A view of other columns: the rows, what is to be told of them, and so the rows of each set stay."""
    assert view.rows == dataset.rows
    np.testing.assert_array_equal(view.data.targets, dataset.data.targets)
    np.testing.assert_array_equal(view.data.sample_weight, dataset.data.sample_weight)
    np.testing.assert_array_equal(view.today, dataset.today)
    before, after = split_sets(dataset), split_sets(view)
    for name in before[0]:
        np.testing.assert_array_equal(after[0][name], before[0][name])
        np.testing.assert_array_equal(after[1][name].targets, before[1][name].targets)
    assert view.data.inputs.dtype == np.float32 and view.data.inputs.shape[1] == len(view.columns)
    assert len(set(view.columns)) == len(view.columns)


# The month


def test_the_month_is_that_of_pandas_on_the_circle_of_the_year():
    view = with_month(WHOLE)
    assert_same_rows(view, WHOLE)
    months = pd.to_datetime(list(WHOLE.rows)).month.to_numpy()
    np.testing.assert_array_equal(months, simulated_weather(DAYS)["MONTH"].to_numpy()[:-1])
    point = np.exp(2j * np.pi * (months - 1) / 12)
    result = frame_of(view)
    np.testing.assert_allclose(result["MONTH_sine"], point.imag, atol=1e-6)
    np.testing.assert_allclose(result["MONTH_cosine"], point.real, atol=1e-6)
    pd.testing.assert_frame_equal(result.iloc[:, :-2], frame_of(WHOLE))


def test_december_is_next_to_january():
    result = frame_of(with_month(WHOLE)).groupby(pd.to_datetime(list(WHOLE.rows)).month)[["MONTH_sine", "MONTH_cosine"]]
    points = result.first().to_numpy()
    assert len(points) == 12
    # A month is one point, and all neighbours, December and January among them, are equally far apart.
    np.testing.assert_array_equal(points, result.last().to_numpy())
    apart = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1)
    np.testing.assert_allclose(apart, 2 * np.sin(np.pi / 12), rtol=1e-5)
    others = np.linalg.norm(points[:, None] - points, axis=2)
    assert (np.sort(others, axis=1)[:, 1:3] < 1.01 * apart[0]).all() and (np.sort(others, axis=1)[:, 3] > 0.9).all()


# The days before


@pytest.mark.parametrize("days", [1, 2, 3, 7])
def test_the_days_before_are_those_that_pandas_shifts(days):
    view = with_last_days(WHOLE, days)
    assert_same_rows(view, WHOLE)
    frame = frame_of(WHOLE)
    # What there is no day for is filled with the first day.
    shifted = [frame.shift(back).fillna(frame.iloc[0]) for back in range(days)]
    np.testing.assert_array_equal(view.data.inputs, pd.concat(shifted, axis=1).to_numpy(np.float32))
    width = len(WHOLE.columns)
    assert len(view.columns) == days * width and view.columns[:width] == WHOLE.columns
    for back in range(1, days):
        for column, name in zip(WHOLE.columns, view.columns[back * width :], strict=False):
            assert name.startswith(column) and f"_{back}_day" in name


def test_the_first_days_know_the_first_day_alone():
    frame = frame_of(with_last_days(of_place(WHOLE, "BASEL"), 3))
    first, second = frame.iloc[0].to_numpy().reshape(3, -1), frame.iloc[1].to_numpy().reshape(3, -1)
    assert (first == first[0]).all()
    assert (second[1] == first[0]).all() and (second[2] == first[0]).all() and (second[0] != first[0]).any()


def test_fewer_days_than_one_are_refused():
    for days in (0, -1):
        with pytest.raises(InputError, match=f"days must be at least 1, got {days}"):
            with_last_days(WHOLE, days)


# Rare targets


def rows_of(hours):
    """Rows whose input is their own number."""
    return dataset(np.arange(len(hours))[:, None], np.asarray(hours, np.float32)[:, None])


def test_all_bins_come_equally_often():
    rng = np.random.default_rng(0)
    hours = np.minimum(rng.exponential(2.5, 6000), 11.9)
    bins = (hours // 2).astype(int)
    assert np.bincount(bins).min() < 130 and len(np.bincount(bins)) == 6
    drawn = oversampled(rows_of(hours))
    result = np.bincount((np.asarray(drawn.targets)[:, 0] // 2).astype(int), minlength=6)
    low, high = binom.ppf([1e-4, 1 - 1e-4], 6000, 1 / 6)
    assert result.sum() == 6000 and (low <= result).all() and (result <= high).all(), result
    # Inside of a bin, every row has the same chance.
    rare = np.flatnonzero(bins == 5)
    times = np.bincount(np.asarray(drawn.inputs)[:, 0].astype(int), minlength=6000)[rare]
    assert (times <= binom.ppf(1 - 1e-7, 6000, 1 / 6 / len(rare))).all() and (times > 0).all()


@given(st.lists(st.floats(0, 16, width=32), min_size=1, max_size=60), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_only_rows_that_were_given_are_drawn_and_as_many(hours, seed):
    rows = rows_of(hours)
    drawn, again = oversampled(rows, seed=seed), oversampled(rows, seed=seed)
    numbers = np.asarray(drawn.inputs)[:, 0].astype(int)
    assert len(numbers) == len(hours) and set(numbers) <= set(range(len(hours)))
    np.testing.assert_array_equal(drawn.targets, np.asarray(rows.targets)[numbers])
    np.testing.assert_array_equal(drawn.inputs, again.inputs)


def test_another_seed_draws_other_rows():
    rows = rows_of(np.linspace(0, 10, 200))
    assert (np.asarray(oversampled(rows, seed=0).inputs) != np.asarray(oversampled(rows, seed=1).inputs)).any()


def test_a_draw_of_the_training_rows_leaves_the_other_sets_as_they_are():
    _, sets = split_sets(WHOLE)
    remaining = {name: np.asarray(sets[name].targets).copy() for name in sets}
    drawn = oversampled(sets["train"])
    days = {tuple(row) for row in np.asarray(sets["train"].inputs)}
    assert all(tuple(row) in days for row in np.asarray(drawn.inputs))
    for name in sets:
        np.testing.assert_array_equal(sets[name].targets, remaining[name])


# Fewer days and places


@pytest.mark.parametrize("target", ["BASEL_sunshine", "KASSEL_temp_max", "BASEL_BBQ_weather"])
@pytest.mark.parametrize("place", [None, "BASEL", "KASSEL", "DE_BILT"])
@pytest.mark.parametrize("days", [None, 1, 365, DAYS - 1, 10 * DAYS])
def test_fewer_days_and_places_are_those_that_the_data_set_gives(days, place, target):
    whole = load_weather(f"simulated:{DAYS}", days=None, target=target)
    view = first_days(whole, days)
    view = view if place is None else of_place(view, place)
    expected = load_weather(f"simulated:{DAYS}", days=days, places=None if place is None else (place,), target=target)
    assert_equal(view, expected)


@pytest.mark.parametrize("target", ["BASEL_sunshine", "BASEL_BBQ_weather"])
@pytest.mark.parametrize(("days", "place"), [(1096, None), (3286, "BASEL"), (None, "OSLO")])
def test_fewer_days_and_places_of_the_real_data(days, place, target, real_data):
    view = first_days(load_weather(real_data, days=None, target=target), days)
    view = view if place is None else of_place(view, place)
    assert_equal(view, load_weather(real_data, days=days, places=None if place is None else (place,), target=target))


def test_a_place_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(InputError, match=r"weather has no place BASLE\. It has BASEL, BUDAPEST, DE_BILT, "):
        of_place(WHOLE, "BASLE")
