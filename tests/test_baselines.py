"""Baselines, against scikit-learn and pandas."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import root_mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxdl.baselines import climatology, moving_average, ridge, root_mean_square

DRAWS = np.random.default_rng(0)
# Columns of weather: pressures near 1000, sunshine of a few hours, rain of a few millimetres.
INPUTS = DRAWS.normal([1013, 5, 0.1, 60], [8, 4, 0.05, 20], (120, 4))
TARGETS = INPUTS @ [0.1, 0.5, 20, -0.05] + DRAWS.normal(0, 1, 120)
WANTED = DRAWS.normal([1013, 5, 0.1, 60], [8, 4, 0.05, 20], (30, 4))


@pytest.mark.parametrize("penalty", [0.1, 1.0, 100.0, 1e4])
def test_ridge_is_that_of_scikit_learn_on_standardized_inputs(penalty):
    expected = make_pipeline(StandardScaler(), Ridge(penalty)).fit(INPUTS, TARGETS).predict(WANTED)
    np.testing.assert_allclose(ridge(INPUTS, TARGETS, WANTED, penalty), expected, rtol=1e-9)


def test_ridge_without_a_penalty_is_least_squares():
    expected = LinearRegression().fit(INPUTS, TARGETS).predict(WANTED)
    np.testing.assert_allclose(ridge(INPUTS, TARGETS, WANTED, penalty=0.0), expected, rtol=1e-9)


def test_ridge_of_float32_rows_is_computed_in_float64():
    rows = [array.astype(np.float32) for array in (INPUTS, TARGETS, WANTED)]
    inputs, targets, wanted = (array.astype(np.float64) for array in rows)
    expected = make_pipeline(StandardScaler(), Ridge(1.0)).fit(inputs, targets).predict(wanted)
    np.testing.assert_allclose(ridge(*rows), expected, rtol=1e-9)


def test_ridge_bears_columns_that_are_constant_or_copies():
    def widened(table):
        return np.c_[table, np.full(len(table), 7.0), table[:, 0]]

    expected = make_pipeline(StandardScaler(), Ridge(1.0)).fit(widened(INPUTS), TARGETS).predict(widened(WANTED))
    np.testing.assert_allclose(ridge(widened(INPUTS), TARGETS, widened(WANTED)), expected, rtol=1e-9)
    # Without a penalty no single solution exists, but all that are shortest predict alike.
    expected = LinearRegression().fit(INPUTS, TARGETS).predict(WANTED)
    np.testing.assert_allclose(ridge(widened(INPUTS), TARGETS, widened(WANTED), 0.0), expected, rtol=1e-6)


@pytest.mark.parametrize("days", [1, 2, 7, 400])
def test_mean_of_last_is_pandas_rolling_mean(days):
    values = DRAWS.gamma(2, 2, 365)
    expected = pd.Series(values).rolling(days, min_periods=1).mean()
    np.testing.assert_allclose(moving_average(values, days), expected, rtol=1e-10)


def test_mean_of_the_last_day_is_persistence():
    values = np.array([0.0, 3.5, 12.25])
    np.testing.assert_array_equal(moving_average(values, 1), values)


def test_climatology_is_pandas_groupby_mean():
    months, targets = DRAWS.integers(1, 13, 365), DRAWS.gamma(2, 2, 365)
    wanted = DRAWS.integers(1, 13, 50)
    expected = pd.Series(targets).groupby(months).mean().loc[wanted]
    np.testing.assert_allclose(climatology(months, targets, wanted), expected, rtol=1e-12)


def test_a_month_without_training_days_gets_the_mean_of_all():
    np.testing.assert_allclose(climatology([1, 1, 2], [1.0, 2.0, 6.0], [3, 2, 12]), [3.0, 6.0, 3.0])


def test_root_mean_square_is_that_of_scikit_learn():
    true, guess = DRAWS.normal(5, 3, 1000), DRAWS.normal(5, 3, 1000)
    assert root_mean_square(guess - true) == pytest.approx(root_mean_squared_error(true, guess), rel=1e-12)
    assert isinstance(root_mean_square(np.float32([1, 2])), float)


def test_root_mean_square_of_float32_is_taken_in_float64():
    # In float32 a sum of a million small squares beside one large one would lose most of them.
    errors = np.full(10**6, 1e-3, np.float32)
    errors[0] = 100
    exact = np.sqrt((100.0**2 + (10**6 - 1) * np.float64(np.float32(1e-3)) ** 2) / 10**6)
    assert root_mean_square(errors) == pytest.approx(exact, rel=1e-10)
