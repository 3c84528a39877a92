"""Standard errors of figures, against what many simulated data sets show."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from jaxdl.errors import InputError
from jaxdl.stats import rmse_error, share_error

DRAWS = np.random.default_rng(0)


def root_mean_square(values, axis=-1):
    return np.sqrt(np.mean(values**2, axis))


@pytest.mark.parametrize(
    "draw", [DRAWS.standard_normal, DRAWS.standard_exponential, lambda size: DRAWS.uniform(-1, 2, size)]
)
def test_the_error_of_a_root_mean_square_is_its_deviation_over_many_data_sets(draw):
    sets = draw((4000, 165))
    expected = root_mean_square(sets).std()
    assert np.mean([rmse_error(misses) for misses in sets]) == pytest.approx(expected, rel=0.06)


def test_the_error_of_a_root_mean_square_is_that_of_the_bootstrap():
    misses = DRAWS.normal(0.3, 2, 500)
    expected = bootstrap((misses,), root_mean_square, n_resamples=4000, rng=DRAWS).standard_error
    assert rmse_error(misses) == pytest.approx(expected, rel=0.06)


def test_the_error_of_a_root_mean_square_has_the_unit_of_the_misses():
    misses = DRAWS.standard_normal(50)
    assert rmse_error(1000 * misses[:, None]) == pytest.approx(1000 * rmse_error(misses))


def test_equal_misses_have_no_error_and_one_row_tells_none():
    assert rmse_error([0.0, 0.0, 0.0]) == 0 == rmse_error([2.0, -2.0])
    assert math.isnan(rmse_error([1.0]))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_error_of_a_share_is_its_deviation_over_many_data_sets(share):
    hits = DRAWS.binomial(300, share, 4000)
    assert np.mean([share_error(of, 300) for of in hits]) == pytest.approx((hits / 300).std(), rel=0.05)


def test_the_error_of_a_share_is_never_none():
    assert share_error(20, 20) > 0.04
    assert share_error(0, 20) == pytest.approx(share_error(20, 20))


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (3, 2), (-1, 5)])
def test_a_share_of_what_is_not_there_is_refused(hits, count):
    with pytest.raises(InputError, match="hits must be from 0 to a count"):
        share_error(hits, count)
