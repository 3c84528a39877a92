"""The generator: reproducible, plausible, and as predictable as it says."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from jaxdl.datasets import load_weather, place_of, simulated_weather
from jaxdl.datasets._simulated_weather import DAYLIGHT, PLACES, _mean_share, _sky, simulate
from jaxdl.errors import InputError


@pytest.fixture(scope="module")
def long():
    return simulate(20_000, seed=0)


def rmse(errors):
    return float(np.sqrt(np.mean(np.square(errors))))


def column(simulation, name):
    return simulation.values[:, simulation.columns.index(name)]


def errors_of_the_forecast(simulation):
    return column(simulation, "BASEL_sunshine")[1:] - simulation.forecast


def sets(simulation):
    """Standardized inputs, targets, and 70, 15 and 15 % of the rows."""
    train, rest = train_test_split(np.arange(len(simulation.noise)), test_size=0.3, random_state=0)
    validation, test = train_test_split(rest, test_size=0.5, random_state=0)
    inputs = StandardScaler().fit(simulation.values[train]).transform(simulation.values[:-1])
    return inputs, column(simulation, "BASEL_sunshine")[1:], train, validation, test


def test_the_table_has_the_light_files_kind_of_columns(long):
    assert len(long.columns) == len(set(long.columns)) == 89
    assert {place_of(name) for name in long.columns} == set(PLACES) and len(PLACES) == 11
    assert [name for name in long.columns if place_of(name) == "BASEL"] == [
        *("BASEL_cloud_cover", "BASEL_humidity", "BASEL_pressure", "BASEL_global_radiation", "BASEL_precipitation"),
        *("BASEL_sunshine", "BASEL_temp_mean", "BASEL_temp_min", "BASEL_temp_max"),
    ]


@pytest.mark.parametrize(
    ("feature", "low", "high"),
    [
        ("cloud_cover", 0, 8),
        ("humidity", 0, 1),
        ("pressure", 0.94, 1.08),
        ("global_radiation", 0, 4.5),
        ("precipitation", 0, 30),
        ("sunshine", 0, 17.5),
        ("temp_mean", -30, 45),
        ("temp_min", -40, 40),
        ("temp_max", -25, 55),
    ],
)
def test_every_value_is_plausible(long, feature, low, high):
    values = np.stack([column(long, name) for name in long.columns if name.endswith(f"_{feature}")])
    assert low <= values.min() and values.max() <= high


def test_the_sun_shines_by_day_only(long):
    sky = _sky(20_000)
    for number, place in enumerate(PLACES):
        if "sunshine" not in PLACES[place].lacks:
            assert (column(long, f"{place}_sunshine") <= sky.length[:, number]).all()


def test_seasons_persistence_and_neighbours(long):
    season = _sky(20_000).season[:, 0]
    assert (
        column(long, "BASEL_temp_mean")[season > 0.7].mean()
        > column(long, "BASEL_temp_mean")[season < -0.7].mean() + 12
    )
    assert (
        column(long, "BASEL_sunshine")[season > 0.7].mean() > 1.8 * column(long, "BASEL_sunshine")[season < -0.7].mean()
    )
    for name, least in (("BASEL_pressure", 0.8), ("BASEL_humidity", 0.6), ("BASEL_sunshine", 0.4)):
        days = column(long, name)
        assert np.corrcoef(days[1:], days[:-1])[0, 1] > least
    near, far = (column(long, f"{place}_pressure") for place in ("MAASTRICHT", "BUDAPEST"))
    home = column(long, "BASEL_pressure")
    assert np.corrcoef(home, near)[0, 1] > np.corrcoef(home, far)[0, 1] > 0.5


@pytest.mark.parametrize("days", [2, 3, 17, 1001])
def test_more_days_continue_the_same_days(long, days):
    few = simulate(days, seed=0)
    assert np.array_equal(few.values, long.values[:days]) and np.array_equal(few.noise, long.noise[: days - 1])
    assert np.array_equal(few.dates, long.dates[:days])


def test_the_seed_decides():
    same, again, other = (simulate(50, seed) for seed in (3, 3, 4))
    assert np.array_equal(same.values, again.values) and same.sha256 == again.sha256
    assert not np.isclose(same.values, other.values).all(axis=1).any() and same.sha256 != other.sha256


def test_the_forecast_is_a_function_of_todays_row_of_basel(long):
    """Recovers the season from radiation and sunshine, then the anomalies, from what float32 keeps of the row."""
    row = {name: column(long, name)[:-1].astype(np.float32).astype(np.float64) for name in long.columns[:9]}
    # Radiation for each length of day, from midwinter to midsummer; inverted by bisection.
    year = _sky(366)
    length, radiation = year.length[:, 0], year.radiation[:, 0]
    order = np.argsort(length)
    low, high = np.full(len(long.noise), length.min()), np.full(len(long.noise), length.max())
    for _ in range(60):
        middle = (low + high) / 2
        above = np.interp(middle, length[order], radiation[order])
        more = above * (0.2 + 0.55 * row["BASEL_sunshine"] / middle) < row["BASEL_global_radiation"]
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    season = (low - 12) / 4
    humidity = (np.log(row["BASEL_humidity"] / (1 - row["BASEL_humidity"])) - 1.15 + 0.3 * season) / 0.6
    pressure = (row["BASEL_pressure"] - 1.016) / 0.008
    recovered = DAYLIGHT * low * _mean_share(season, pressure, humidity)
    np.testing.assert_allclose(recovered, long.forecast, atol=0.02)


def test_the_noise_has_the_declared_spread_everywhere(long):
    errors = errors_of_the_forecast(long)
    standard = errors / long.noise
    assert abs(standard.mean()) < 4 / np.sqrt(len(standard))
    assert rmse(errors) == pytest.approx(rmse(long.noise), rel=0.02)
    for quantile in np.array_split(np.argsort(long.noise), 5) + np.array_split(np.argsort(long.forecast), 5):
        assert rmse(standard[quantile]) == pytest.approx(1, abs=0.06)
        assert abs(standard[quantile].mean()) < 0.07
    assert 2.5 < rmse(long.noise) < 3.5


def test_the_noise_is_uncorrelated_with_everything_known_the_day_before(long):
    standard = errors_of_the_forecast(long) / long.noise
    known = StandardScaler().fit_transform(long.values[:-1])
    bound = 4.5 / np.sqrt(len(standard))
    assert np.abs(known.T @ standard / len(standard)).max() < bound
    assert np.abs((known**2 - 1).T @ standard / len(standard)).max() < 4 * bound
    assert abs(np.corrcoef(standard[1:], standard[:-1])[0, 1]) < bound


@pytest.mark.slow
def test_a_small_network_comes_near_the_irreducible_rmse_and_a_linear_model_does_not(long):
    inputs, targets, train, validation, test = sets(long)
    irreducible = rmse(long.noise[test])
    network = MLPRegressor(hidden_layer_sizes=(100, 50), batch_size=32, random_state=0, max_iter=1, warm_start=True)
    best, stale, predictions = np.inf, 0, targets[test]
    for _ in range(60):
        network.partial_fit(inputs[train], targets[train])
        error = rmse(network.predict(inputs[validation]) - targets[validation])
        best, stale = (error, 0) if error < best else (best, stale + 1)
        if stale == 0:
            predictions = network.predict(inputs[test])
        if stale == 6:
            break
    linear = Ridge().fit(inputs[train], targets[train]).predict(inputs[test])
    assert rmse(predictions - targets[test]) < 1.06 * irreducible
    assert rmse(linear - targets[test]) > 1.2 * irreducible
    assert rmse(column(long, "BASEL_sunshine")[test] - targets[test]) > 1.4 * irreducible


@pytest.mark.parametrize("seed", [0, 1])
def test_as_today_is_a_bad_forecast_of_a_short_record_too(seed):
    short = simulate(1097, seed)
    inputs, targets, train, _, test = sets(short)
    network = MLPRegressor(hidden_layer_sizes=(100, 50), alpha=1, early_stopping=True, random_state=0, max_iter=200)
    network.fit(inputs[train], targets[train])
    as_today = column(short, "BASEL_sunshine")[test]
    assert rmse(as_today - targets[test]) > 1.15 * rmse(network.predict(inputs[test]) - targets[test])


def test_the_dataset_knows_the_noise_of_its_rows():
    dataset, simulation = load_weather("simulated:500:7", days=400), simulate(500, 7)
    assert (dataset.source, dataset.sha256, dataset.note) == ("simulated:500:seed=7", simulation.sha256, None)
    assert np.array_equal(dataset.noise, simulation.noise[:400])
    np.testing.assert_array_equal(dataset.data.inputs, simulation.values[:400].astype(np.float32))
    assert np.array_equal(load_weather("simulated:500:7", days=400, places=["BASEL"]).noise, dataset.noise)
    # Without Basel's columns, or of another target, it is not known.
    assert load_weather("simulated:500:7", places=["KASSEL"]).noise is None
    assert load_weather("simulated:500:7", target="KASSEL_sunshine").noise is None


def test_written_as_csv_it_reads_back(tmp_path):
    simulated_weather(60, seed=2).to_csv(tmp_path / "weather.csv", index=False)
    read, direct = load_weather(tmp_path / "weather.csv"), load_weather("simulated:60:2")
    np.testing.assert_allclose(read.data.inputs, direct.data.inputs, rtol=1e-7, atol=1e-40)
    assert read.rows == direct.rows and read.columns == direct.columns and read.noise is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("simulated:1", "needs from 2 to 1000000 days, got 1. Use simulated:3654"),
        ("simulated:0", "got 0"),
        ("simulated:2000000", "got 2000000"),
        ("simulated:10:-1", "needs a seed of 0 or more, got -1"),
        ("simulated:", "whole numbers, got simulated:."),
        ("simulated:many", "whole numbers, got simulated:many"),
        ("simulated:10:0:0", "whole numbers, got simulated:10:0:0"),
    ],
)
def test_bad_sources(source, message):
    with pytest.raises(InputError) as caught:
        load_weather(source)
    assert message in str(caught.value)
