"""Error bars of ensembles: simulated normals whose deviation is known, and SciPy's likelihood."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import optimize, stats

from jaxdl.errors import InputError
from jaxdl.stats import Calibration, calibrate, coverage, widened

LEVELS = (0.5, 0.8, 0.9, 0.95)


def simulated(seed, count, scale, noise):
    """Means, spreads and targets of which the true deviation is that of a calibration."""
    draws = np.random.default_rng(seed)
    mean, spread = draws.normal(5, 3, count), draws.gamma(2, 0.5, count)
    return mean, spread, draws.normal(mean, np.sqrt((scale * spread) ** 2 + noise**2))


def loss(calibration, mean, spread, targets):
    """The negative log-likelihood by SciPy."""
    scale, noise = calibration
    with np.errstate(all="ignore"):
        deviation = np.sqrt((scale * spread) ** 2 + noise**2)
        return -stats.norm.logpdf(targets, mean, deviation).sum() if (deviation > 0).all() else np.inf


@pytest.mark.parametrize(("scale", "noise"), [(1, 1), (3, 0.5), (0.5, 2), (2, 0), (0, 1.5)])
def test_a_known_scale_and_noise_are_found_again(scale, noise):
    found = calibrate(*simulated(0, 40_000, scale, noise))
    np.testing.assert_allclose(found, (scale, noise), rtol=0.04, atol=0.06)


def test_a_spread_that_is_honest_is_left_as_it_is():
    found = calibrate(*simulated(1, 40_000, 1, 0))
    np.testing.assert_allclose(found, (1, 0), atol=0.03)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 60), st.floats(0, 3), st.floats(0, 3))
def test_nothing_is_more_likely_on_a_grid_or_to_a_search_from_many_starts(seed, count, scale, noise):
    rows = simulated(seed, count, scale + 0.01, noise)
    ours = loss(calibrate(*rows), *rows)
    grid = [(a, b) for a in np.linspace(0, 6, 25) for b in np.linspace(0, 6, 25)]
    begins = [(1, 1), (0.01, 2), (2, 0.01), (scale + 0.01, noise + 0.01)]
    searched = [
        optimize.minimize(lambda logs: loss(np.exp(logs), *rows), np.log(begin), method="Nelder-Mead").fun
        for begin in begins
    ]
    assert ours <= min([*(loss(point, *rows) for point in grid), *searched]) + 1e-6


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_the_noise_has_the_unit_of_the_targets_and_the_scale_has_none(seed, factor, shift):
    mean, spread, targets = simulated(seed, 200, 1.5, 0.7)
    one = calibrate(mean, spread, targets)
    other = calibrate(factor * mean + shift, factor * spread, factor * targets + shift)
    np.testing.assert_allclose(other, (one.scale, factor * one.noise), rtol=1e-3, atol=1e-4 * factor)
    # A spread in another unit than the targets only changes the scale.
    wider = calibrate(mean, factor * spread, targets)
    np.testing.assert_allclose((factor * wider.scale, wider.noise), one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_spreads_that_are_all_equal_leave_noise_alone(spread):
    mean, _, targets = simulated(0, 50, 0, 2)
    found = calibrate(mean, np.full(50, spread), targets)
    np.testing.assert_allclose(found, (0, np.sqrt(np.mean((targets - mean) ** 2))))


def test_without_any_error_no_deviation_is_left():
    assert calibrate([1.0, 2.0], [0.5, 1.0], [1.0, 2.0]) == Calibration(0, 0)


def test_members_that_agree_on_some_rows_need_noise():
    mean, spread, targets = simulated(0, 400, 2, 1)
    spread[::4] = 0
    assert calibrate(mean, spread, targets).noise > 0.3


def test_a_calibrated_spread_covers_new_rows_as_often_as_it_says():
    mean, spread, targets = simulated(0, 20_000, 2.5, 0.8)
    deviation = widened(spread, calibrate(mean, spread, targets))
    new_mean, new_spread, new_targets = simulated(1, 20_000, 2.5, 0.8)
    found = coverage(new_mean, widened(new_spread, calibrate(mean, spread, targets)), new_targets)
    assert tuple(found) == LEVELS and deviation.shape == spread.shape
    np.testing.assert_allclose(list(found.values()), LEVELS, atol=0.015)
    # The spread alone is less than half of the deviation here.
    assert coverage(new_mean, new_spread, new_targets)[0.95] < 0.7


@pytest.mark.parametrize("shape", [(500,), (250, 2), (50, 5, 2)])
def test_coverage_is_the_share_inside_of_scipys_interval(shape):
    mean, deviation, targets = (array.reshape(shape) for array in simulated(0, 500, 1.3, 0.2))
    for level, share in coverage(mean, deviation, targets, levels=(0.1, 0.683, 0.99)).items():
        low, high = stats.norm.interval(level, mean, deviation)
        assert share == ((low <= targets) & (targets <= high)).mean()


def test_a_mean_without_deviation_covers_what_it_meets():
    assert coverage([1.0, 2.0], [0.0, 0.0], [1.0, 2.5], levels=(0.9,)) == {0.9: 0.5}


def test_widened_adds_variances():
    spread = np.random.default_rng(0).gamma(2, 1, (30, 2)).astype(np.float32)
    np.testing.assert_allclose(widened(spread, Calibration(1.5, 0.4)) ** 2, 2.25 * spread**2 + 0.16, rtol=1e-6)


@pytest.mark.parametrize("call", [calibrate, coverage])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([[1.0]], [1.0], [1.0]), r"must be of one shape with at least one row, got \(1, 1\), \(1,\), \(1,\)"),
        (([], [], []), r"must be of one shape with at least one row, got \(0,\), \(0,\), \(0,\)"),
        ((1.0, 1.0, 1.0), r"must be of one shape with at least one row, got \(\), \(\), \(\)"),
        (([np.nan], [1.0], [1.0]), "mean must be finite, got nan. Leave out what diverged"),
        (([1.0], [1.0], [np.inf]), "targets must be finite, got inf"),
        (([1.0], [-0.5], [1.0]), "(spread|deviation) must be 0 or more, got -0.5"),
    ],
)
def test_what_makes_no_sense_is_refused(call, arguments, said):
    with pytest.raises(InputError, match=said):
        call(*arguments)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_that_is_no_share_is_refused(level):
    with pytest.raises(InputError, match=f"levels must be between 0 and 1, got {level}"):
        coverage([1.0], [1.0], [1.0], levels=(level,))
