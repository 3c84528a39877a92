"""Trials: grids against scikit-learn's and itertools, random draws against the distributions they are named for."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.model_selection import ParameterGrid

from jaxdl.ensembles import choice, grid, log_uniform, sample, uniform
from jaxdl.errors import InputError

VALUES = {"hidden": ((10, 5), (3,)), "learning_rate": [0.1, 0.01, 0.001], "norm": (True, False)}


def drawn(count, draw, seed=0):
    return np.array([trial["value"] for trial in sample(count, seed, value=draw)])


def test_a_grid_has_the_combinations_of_scikit_learn():
    assert sorted(map(repr, (sorted(one.items()) for one in grid(**VALUES)))) == sorted(
        repr(sorted(one.items())) for one in ParameterGrid({name: list(of) for name, of in VALUES.items()})
    )


def test_the_last_name_of_a_grid_changes_fastest():
    assert [tuple(one.values()) for one in grid(**VALUES)] == list(itertools.product(*VALUES.values()))
    assert all(list(one) == list(VALUES) for one in grid(**VALUES))


def test_a_grid_takes_any_iterable_once_and_a_string_for_one_value():
    assert grid(rate=(x / 2 for x in (1, 2)), kind="relu") == [
        {"rate": 0.5, "kind": "relu"},
        {"rate": 1.0, "kind": "relu"},
    ]


def test_a_grid_of_no_names_is_one_trial_of_defaults():
    assert grid() == list(ParameterGrid({})) == [{}]


@pytest.mark.parametrize(
    ("draw", "distribution"),
    [
        (uniform(-1.0, 3.0), stats.uniform(-1, 4)),
        (log_uniform(1e-4, 1e-1), stats.loguniform(1e-4, 1e-1)),
        (log_uniform(0.5, 200.0), stats.loguniform(0.5, 200)),
    ],
)
def test_draws_follow_their_distribution(draw, distribution):
    values = drawn(2000, draw)
    low, high = distribution.support()
    assert ((low <= values) & (values <= high)).all() and all(type(value) is float for value in values.tolist())
    assert stats.kstest(values, distribution.cdf).pvalue > 0.01
    # The test can tell them apart.
    assert stats.kstest(values, stats.uniform(low, (high - low) * 1.1).cdf).pvalue < 0.01


def test_choices_are_equally_likely_and_come_as_they_are():
    values = [one["value"] for one in sample(3000, 1, value=choice((1, 2), None, "relu"))]
    counts = [sum(value == of for value in values) for of in ((1, 2), None, "relu")]
    assert sum(counts) == 3000 and stats.chisquare(counts).pvalue > 0.01


def test_values_of_a_trial_are_drawn_apart():
    values = np.array([list(one.values()) for one in sample(2000, 3, a=uniform(0, 1), b=uniform(0, 1))])
    assert stats.spearmanr(*values.T).pvalue > 0.01


def test_the_seed_alone_decides():
    draws = {"rate": log_uniform(1e-3, 1.0), "hidden": choice((1,), (2,))}
    assert sample(20, 7, **draws) == sample(20, 7, **draws) != sample(20, 8, **draws)
    # More of them begin with the same ones.
    assert sample(30, 7, **draws)[:20] == sample(20, 7, **draws)


def test_a_range_of_one_value_gives_that_value():
    assert set(drawn(9, uniform(0.5, 0.5))) == {0.5}
    assert all(math.isclose(value, 0.3) for value in drawn(9, log_uniform(0.3, 0.3)))


@pytest.mark.parametrize(
    ("wrong", "output"),
    [
        (lambda: grid(rate=(0.1,), hidden=()), "hidden must have at least one value to try, got none"),
        (lambda: grid(hidden=10), r"hidden must be a row of values to try, got 10\. Use \(10,\), say"),
        (lambda: sample(0, rate=uniform(0, 1)), "count must be at least 1, got 0"),
        (lambda: sample(2, rate=0.1), r"rate must be a distribution, such as uniform\(0\.0, 0\.5\), got 0\.1"),
        (lambda: uniform(2, 1), "uniform needs low <= high, both finite, got 2 and 1"),
        (lambda: uniform(0, math.inf), "uniform needs low <= high, both finite, got 0 and inf"),
        (lambda: uniform(math.nan, 1), "uniform needs low <= high"),
        (lambda: log_uniform(0, 1), "log_uniform needs 0 < low <= high, both finite, got 0 and 1"),
        (lambda: log_uniform(1, math.inf), "log_uniform needs 0 < low <= high, both finite, got 1 and inf"),
        (lambda: log_uniform(0.2, 0.1), "log_uniform needs 0 < low <= high"),
        (lambda: choice(), "choice needs at least one value, got none"),
    ],
)
def test_bad_arguments_are_told(wrong, output):
    with pytest.raises(InputError, match=output):
        wrong()


def test_a_value_at_the_very_end_is_not_passed_by_rounding():
    class Last:
        def uniform(self, low, high):
            return high

    assert isinstance(log_uniform(1, 3)(Last()), float)
    assert log_uniform(1e-4, 0.1)(Last()) <= 0.1 and log_uniform(1e-4, 0.3)(Last()) <= 0.3
