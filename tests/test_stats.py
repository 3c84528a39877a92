"""Statistics over seeds, against SciPy, definitions that are too slow for use, and simulated seeds."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings
from scipy import optimize, stats
from scipy.stats import bootstrap

from jaxdl.errors import InputError
from jaxdl.stats import (
    Calibration,
    Comparison,
    calibrated_std,
    coverage,
    estimate,
    fit_calibration,
    holm,
    one_standard_error,
    paired_test,
    proportion_standard_error,
    rmse_standard_error,
    verdict,
)

figures = st.floats(-100, 100).map(lambda number: round(number, 3))
rows = st.lists(figures, min_size=2, max_size=20)
pairs = st.integers(2, 20).flatmap(lambda count: st.tuples(*[st.lists(figures, min_size=count, max_size=count)] * 2))


def simulated(seed, *shape):
    return np.random.default_rng(seed).normal(3.5, 0.2, shape)


@pytest.mark.parametrize("count", [2, 3, 16, 200])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_estimate_equals_scipy(count, confidence):
    values = simulated(count, count)
    result = estimate(values, confidence)
    error = stats.sem(values)
    assert (result.count, result.diverged) == (count, 0)
    np.testing.assert_allclose(result[:3], (values.mean(), values.std(ddof=1), error), rtol=1e-12)
    np.testing.assert_allclose(result[3:5], stats.t.interval(confidence, count - 1, values.mean(), error), rtol=1e-9)


@settings(deadline=None)
@given(rows, st.floats(-50, 50), st.floats(0.1, 10))
def test_an_estimate_moves_and_scales_with_its_values(values, shift, factor):
    one, other = estimate(values), estimate(factor * np.array(values) + shift)
    np.testing.assert_allclose(other.mean, factor * one.mean + shift, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(other.low, factor * one.low + shift, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(other[1:3], factor * np.array(one[1:3]), rtol=1e-7, atol=1e-9)
    assert one.low <= one.mean <= one.high


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    result = [estimate(values, 0.9) for values in simulated(0, 4000, 5)]
    held = sum(one.low <= 3.5 <= one.high for one in result)
    low, high = stats.binom.interval(1 - 1e-5, 4000, 0.9)
    assert low <= held <= high


def test_estimate_of_one_seed_is_the_mean_alone(recwarn):
    result = estimate([3.5])
    assert result.mean == 3.5 and result.count == 1 and np.isnan(result[1:5]).all()
    assert not recwarn


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_seed_that_diverged_is_counted_and_leaves_no_mean(bad, recwarn):
    result = estimate([3.5, bad, 3.6, bad])
    assert np.isnan(result[:5]).all() and (result.count, result.diverged) == (4, 2)
    assert not recwarn


@settings(deadline=None)
@given(figures, st.integers(2, 30))
def test_equal_values_have_no_deviation(value, count):
    assert estimate([value] * count)[:5] == (value, 0, 0, value, value)


@pytest.mark.parametrize("count", [2, 3, 16])
@pytest.mark.parametrize("apart", [0.0, 0.1, 1.0])
def test_paired_test_equals_scipy(count, apart):
    one, other = simulated(1, count), simulated(2, count) + apart
    result, wanted = paired_test(one, other, 0.9), stats.ttest_rel(one, other)
    interval = wanted.confidence_interval(0.9)
    expected = ((one - other).mean(), stats.sem(one - other), interval.low, interval.high, wanted.pvalue, count)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


@settings(deadline=None)
@given(pairs, st.integers(-50, 50), st.floats(0.01, 100))
def test_a_comparison_turns_round_scales_and_does_not_see_what_all_share(pair, shift, factor):
    one, other = map(np.array, pair)
    result = paired_test(one, other)
    turned = paired_test(other, one)
    assert (turned.difference, turned.low, turned.high) == (-result.difference, -result.high, -result.low)
    assert (turned.error, turned.p_value) == (result.error, result.p_value)
    # Whether differences are equal is told to float32's rounding of the figures.
    assume(np.ptp(one - other) == 0 or np.ptp(one - other) >= 1e-3)
    for changed, scale in (
        (paired_test(factor * one, factor * other), factor),
        (paired_test(one + shift, other + shift), 1),
    ):
        np.testing.assert_allclose(changed[:4], scale * np.array(result[:4]), rtol=1e-6, atol=1e-9 * scale)
        np.testing.assert_allclose(changed.p_value, result.p_value, rtol=1e-6, atol=1e-12)


@settings(deadline=None)
@given(rows)
def test_runs_that_are_equal_do_not_differ(values):
    assert paired_test(values, values) == Comparison(0, 0, 0, 0, 1, len(values))


@pytest.mark.parametrize("count", [2, 5, 16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_difference_that_is_always_the_same_has_the_p_value_of_the_sign_test(count, dtype, recwarn):
    one = simulated(0, count).astype(dtype)
    result = paired_test(one + dtype(0.01), one)
    np.testing.assert_allclose(result[:4], (0.01, 0, 0.01, 0.01), rtol=1e-4)
    assert result.p_value == pytest.approx(stats.binomtest(count, count, 0.5).pvalue)
    assert paired_test(one, one + dtype(0.01)).p_value == result.p_value
    assert not recwarn


def test_a_difference_of_rounding_is_none():
    one = simulated(0, 8).astype(np.float32)
    result = paired_test(np.nextafter(one, np.float32(9)), one)
    assert result.p_value == 1 and verdict("a", "b", result).startswith("these 8 seeds show no difference")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_seed_that_diverged_leaves_no_comparison(bad, recwarn):
    for one, other in (([1.0, bad, 2.0], [1.0, 2.0, 3.0]), ([1.0, bad, 2.0], [1.0, bad, 3.0])):
        result = paired_test(one, other)
        assert np.isnan(result[:5]).all() and result.count == 3
        assert verdict("A", "B", result) == "A and B cannot be compared: not all of the 3 seeds have finite values"
    assert not recwarn


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_the_rate_of_false_claims_is_the_level(level):
    runs = simulated(0, 4000, 2, 6)
    claims = sum("is better than" in verdict("A", "B", paired_test(*pair), level=level) for pair in runs)
    low, high = stats.binom.interval(1 - 1e-5, 4000, level)
    assert low <= claims <= high


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_the_verdict_names_the_better_one(lower_is_better):
    low, high = simulated(0, 16), simulated(1, 16) + 1
    for names, pair in ((("low", "high"), (low, high)), (("high", "low"), (high, low))):
        output = verdict(*names, paired_test(*pair), lower_is_better=lower_is_better)
        assert output.startswith("low is better than high" if lower_is_better else "high is better than low")
        assert "paired t test over 16 seeds, p < 0.001" in output and " by -" not in output


@pytest.mark.parametrize(
    ("comparison", "output"),
    [
        (Comparison(-0.4432, 0.0512, -0.55, -0.33, 1e-6, 16), "A is better than B by 0.44 +- 0.05 (paired t test over"),
        (Comparison(0.4432, 0.0512, 0.33, 0.55, 0.0123, 16), "B is better than A by 0.44 +- 0.05 (paired t test over"),
        (Comparison(0.4432, 0.0512, 0.33, 0.55, 0.0123, 16), "over 16 seeds, p = 0.012)"),
        (
            Comparison(0.02, 0.05, -0.1, 0.1, 0.7, 16),
            "these 16 seeds show no difference between A and B (0.02 +- 0.05, p = 0.7)",
        ),
        (Comparison(0.3, 0.05, 0.2, 0.4, 0.05, 16), "these 16 seeds show no difference between A and B"),
        (Comparison(-12.34, 1.26, -14, -10, 1e-3, 16), "by 12.3 +- 1.3 (paired t test over 16 seeds, p = 0.001)"),
        (Comparison(1234.5, 321.0, 1, 2, 0.01, 16), "by 1234 +- 321"),
        (Comparison(-0.01, 0.0, -0.01, -0.01, 2**-15, 16), "A is better than B by 0.01 +- 0 (sign test over 16 seeds"),
        (
            Comparison(0.0, 0.0, 0.0, 0.0, 1.0, 2),
            "these 2 seeds show no difference between A and B (0 +- 0, p = 1)",
        ),
    ],
)
def test_text_of_verdicts(comparison, output):
    assert output in verdict("A", "B", comparison)


probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=7)


@settings(deadline=None)
@given(probabilities)
def test_adjusted_p_values_are_those_of_the_closure_of_bonferronis_tests(p_values):
    # A claim is made where every set of claims that holds it is refused by Bonferroni's test; that is Holm's method.
    every = [
        chosen for size in range(len(p_values)) for chosen in itertools.combinations(range(len(p_values)), size + 1)
    ]
    wanted = [
        max(min(1, len(chosen) * min(p_values[i] for i in chosen)) for chosen in every if index in chosen)
        for index in range(len(p_values))
    ]
    np.testing.assert_allclose(holm(p_values), wanted, rtol=1e-12)


@settings(deadline=None)
@given(probabilities)
def test_adjusting_keeps_the_order_and_lowers_nothing(p_values):
    result = holm(p_values)
    assert (result >= p_values).all() and (result <= 1).all()
    assert (np.diff(result[np.argsort(p_values)]) >= 0).all()


def test_a_comparison_that_failed_counts_among_the_others():
    np.testing.assert_allclose(holm([math.nan, 0.01, 0.3]), [math.nan, 0.03, 0.6])


def test_false_claims_among_many_comparisons_are_as_rare_as_the_level_says():
    p_values = np.random.default_rng(0).uniform(size=(4000, 10))
    false = sum((holm(row) < 0.05).any() for row in p_values)
    # The smallest of ten independent p values decides.
    low, high = stats.binom.interval(1 - 1e-5, 4000, 1 - (1 - 0.005) ** 10)
    assert low <= false <= high


candidates = st.integers(1, 8).flatmap(
    lambda count: st.tuples(
        *(
            st.lists(st.one_of(st.sampled_from(values), st.just(math.nan)), min_size=count, max_size=count)
            for values in ((1.0, 1.5, 2.0, 2.5), (0.0, 0.5, 1.0), (1.0, 2.0, 3.0))
        )
    )
)


@settings(deadline=None)
@given(candidates)
def test_one_standard_error_returns_the_cheapest_candidate_near_the_best(table):
    sound = [index for index in range(len(table[0])) if all(math.isfinite(row[index]) for row in table)]
    assume(sound)
    means, errors, costs = table
    chosen = one_standard_error(*table)
    best = min(sound, key=lambda index: means[index])
    near = [index for index in sound if means[index] <= means[best] + errors[best]]
    assert chosen in near
    for index in near:
        assert (costs[chosen], means[chosen]) <= (costs[index], means[index])


def test_without_errors_the_best_candidate_is_taken():
    assert one_standard_error([3.0, 1.0, 2.0], [0, 0, 0], [1, 2, 3]) == 1


@pytest.mark.parametrize(
    ("call", "output"),
    [
        (lambda: estimate([]), r"values must be a row of at least one number, got shape \(0,\)"),
        (lambda: estimate(np.ones((2, 3))), r"values must be a row .* got shape \(2, 3\)"),
        (lambda: estimate([1.0, 2.0], 95), "confidence must be between 0 and 1, got 95"),
        (lambda: paired_test([1.0, 2.0], [1.0, 2.0, 3.0]), "the same seeds, 2 or more, got 2 and 3 values"),
        (lambda: paired_test([1.0], [2.0]), "the same seeds, 2 or more, got 1 and 1 values"),
        (
            lambda: verdict("A", "B", paired_test([1.0, 2.0], [3.0, 5.0]), level=0),
            "level must be between 0 and 1, got 0",
        ),
        (lambda: holm([0.5, 1.5]), "p_values must be from 0 to 1, got 1.5"),
        (lambda: one_standard_error([1.0], [1.0, 2.0], [1.0]), "must be of one length, got 1, 2, 1"),
        (lambda: one_standard_error([math.nan, 1.0], [0.1, math.nan], [1, 1]), "mean, error and cost are finite"),
    ],
)
def test_statistics_reject_bad_arguments(call, output):
    with pytest.raises(InputError, match=output):
        call()


# Error bars of ensembles: simulated normals whose deviation is known, and SciPy's likelihood.

LEVELS = (0.5, 0.8, 0.9, 0.95)


def simulated_errors(seed, count, scale, noise):
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
    result = fit_calibration(*simulated_errors(0, 40_000, scale, noise))
    np.testing.assert_allclose(result, (scale, noise), rtol=0.04, atol=0.06)


def test_a_spread_that_is_honest_is_left_as_it_is():
    result = fit_calibration(*simulated_errors(1, 40_000, 1, 0))
    np.testing.assert_allclose(result, (1, 0), atol=0.03)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 60), st.floats(0, 3), st.floats(0, 3))
def test_nothing_is_more_likely_on_a_grid_or_to_a_search_from_many_starts(seed, count, scale, noise):
    rows = simulated_errors(seed, count, scale + 0.01, noise)
    ours = loss(fit_calibration(*rows), *rows)
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
    mean, spread, targets = simulated_errors(seed, 200, 1.5, 0.7)
    one = fit_calibration(mean, spread, targets)
    other = fit_calibration(factor * mean + shift, factor * spread, factor * targets + shift)
    np.testing.assert_allclose(other, (one.scale, factor * one.noise), rtol=1e-3, atol=1e-4 * factor)
    # A spread in another unit than the targets only changes the scale.
    wider = fit_calibration(mean, factor * spread, targets)
    np.testing.assert_allclose((factor * wider.scale, wider.noise), one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_spreads_that_are_all_equal_leave_noise_alone(spread):
    mean, _, targets = simulated_errors(0, 50, 0, 2)
    result = fit_calibration(mean, np.full(50, spread), targets)
    np.testing.assert_allclose(result, (0, np.sqrt(np.mean((targets - mean) ** 2))))


def test_without_any_error_no_deviation_is_left():
    assert fit_calibration([1.0, 2.0], [0.5, 1.0], [1.0, 2.0]) == Calibration(0, 0)


def test_members_that_agree_on_some_rows_need_noise():
    mean, spread, targets = simulated_errors(0, 400, 2, 1)
    spread[::4] = 0
    assert fit_calibration(mean, spread, targets).noise > 0.3


def test_a_calibrated_spread_covers_new_rows_as_often_as_it_says():
    mean, spread, targets = simulated_errors(0, 20_000, 2.5, 0.8)
    deviation = calibrated_std(spread, fit_calibration(mean, spread, targets))
    new_mean, new_spread, new_targets = simulated_errors(1, 20_000, 2.5, 0.8)
    result = coverage(new_mean, calibrated_std(new_spread, fit_calibration(mean, spread, targets)), new_targets)
    assert tuple(result) == LEVELS and deviation.shape == spread.shape
    np.testing.assert_allclose(list(result.values()), LEVELS, atol=0.015)
    # The spread alone is less than half of the deviation here.
    assert coverage(new_mean, new_spread, new_targets)[0.95] < 0.7


@pytest.mark.parametrize("shape", [(500,), (250, 2), (50, 5, 2)])
def test_coverage_is_the_share_inside_of_scipys_interval(shape):
    mean, deviation, targets = (array.reshape(shape) for array in simulated_errors(0, 500, 1.3, 0.2))
    for level, share in coverage(mean, deviation, targets, levels=(0.1, 0.683, 0.99)).items():
        low, high = stats.norm.interval(level, mean, deviation)
        assert share == ((low <= targets) & (targets <= high)).mean()


def test_a_mean_without_deviation_covers_what_it_meets():
    assert coverage([1.0, 2.0], [0.0, 0.0], [1.0, 2.5], levels=(0.9,)) == {0.9: 0.5}


def test_calibrated_std_adds_variances():
    spread = np.random.default_rng(0).gamma(2, 1, (30, 2)).astype(np.float32)
    np.testing.assert_allclose(calibrated_std(spread, Calibration(1.5, 0.4)) ** 2, 2.25 * spread**2 + 0.16, rtol=1e-6)


@pytest.mark.parametrize("call", [fit_calibration, coverage])
@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (([[1.0]], [1.0], [1.0]), r"must be of one shape with at least one row, got \(1, 1\), \(1,\), \(1,\)"),
        (([], [], []), r"must be of one shape with at least one row, got \(0,\), \(0,\), \(0,\)"),
        ((1.0, 1.0, 1.0), r"must be of one shape with at least one row, got \(\), \(\), \(\)"),
        (([np.nan], [1.0], [1.0]), "mean must be finite, got nan. Leave out diverged runs"),
        (([1.0], [1.0], [np.inf]), "targets must be finite, got inf"),
        (([1.0], [-0.5], [1.0]), "(std|deviation) must be 0 or more, got -0.5"),
    ],
)
def test_calibration_rejects_bad_arguments(call, arguments, output):
    with pytest.raises(InputError, match=output):
        call(*arguments)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_coverage_rejects_levels_outside_of_0_to_1(level):
    with pytest.raises(InputError, match=f"levels must be between 0 and 1, got {level}"):
        coverage([1.0], [1.0], [1.0], levels=(level,))


# Standard errors of figures, against what many simulated data sets show.

DRAWS = np.random.default_rng(0)


def root_mean_square(values, axis=-1):
    return np.sqrt(np.mean(values**2, axis))


@pytest.mark.parametrize(
    "draw", [DRAWS.standard_normal, DRAWS.standard_exponential, lambda size: DRAWS.uniform(-1, 2, size)]
)
def test_the_error_of_a_root_mean_square_is_its_deviation_over_many_data_sets(draw):
    sets = draw((4000, 165))
    expected = root_mean_square(sets).std()
    assert np.mean([rmse_standard_error(misses) for misses in sets]) == pytest.approx(expected, rel=0.06)


def test_the_error_of_a_root_mean_square_is_that_of_the_bootstrap():
    misses = DRAWS.normal(0.3, 2, 500)
    expected = bootstrap((misses,), root_mean_square, n_resamples=4000, rng=DRAWS).standard_error
    assert rmse_standard_error(misses) == pytest.approx(expected, rel=0.06)


def test_the_error_of_a_root_mean_square_has_the_unit_of_the_misses():
    misses = DRAWS.standard_normal(50)
    assert rmse_standard_error(1000 * misses[:, None]) == pytest.approx(1000 * rmse_standard_error(misses))


def test_equal_misses_have_no_error_and_one_row_tells_none():
    assert rmse_standard_error([0.0, 0.0, 0.0]) == 0 == rmse_standard_error([2.0, -2.0])
    assert math.isnan(rmse_standard_error([1.0]))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_error_of_a_share_is_its_deviation_over_many_data_sets(share):
    hits = DRAWS.binomial(300, share, 4000)
    assert np.mean([proportion_standard_error(of, 300) for of in hits]) == pytest.approx((hits / 300).std(), rel=0.05)


def test_the_error_of_a_share_is_never_none():
    assert proportion_standard_error(20, 20) > 0.04
    assert proportion_standard_error(0, 20) == pytest.approx(proportion_standard_error(20, 20))


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (3, 2), (-1, 5)])
def test_proportion_standard_error_rejects_bad_counts(hits, count):
    with pytest.raises(InputError, match="correct must be from 0 to a count"):
        proportion_standard_error(hits, count)
