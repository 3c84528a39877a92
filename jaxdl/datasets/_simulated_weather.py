"""Simulate daily weather of eleven places, for which the best possible forecast is known.

Tomorrow's sunshine in Basel is a random fraction of today's length of day. The mean and the standard deviation of the
fraction depend only on today's columns of Basel: high pressure brings sun in summer and fog in winter, more so in dry
air. So the conditional mean is the best forecast, and the conditional standard deviation is its error.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdl.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


Floats = NDArray[np.float64]
DAYS, SEED, MOST_DAYS = 3654, 0, 1_000_000
FIRST_DAY = np.datetime64("2000-01-01", "D")
HOME = 0  # Basel, among the places
REACH, FRONT = 9000.0, 4000.0  # kilometres over which weather, and one day's clouds, are correlated
# The next day is up to 1 % shorter, and the sun cannot shine after it has set.
DAYLIGHT = 0.99


class Place(NamedTuple):
    """The position and the climate of a place, and its missing columns."""

    latitude: float  # degrees north
    longitude: float  # degrees east
    warmth: float  # yearly mean temperature, degrees Celsius
    swing: float  # half the difference of summer and winter, degrees Celsius
    lacks: tuple[str, ...] = ()


PLACES = {
    "BASEL": Place(47.6, 7.6, 11.0, 9.0),
    "BUDAPEST": Place(47.5, 19.0, 12.2, 11.0, ("temp_min",)),
    "DE_BILT": Place(52.1, 5.2, 10.7, 7.4),
    "DRESDEN": Place(51.1, 13.8, 9.8, 9.3, ("pressure",)),
    "DUSSELDORF": Place(51.3, 6.8, 11.1, 8.0),
    "HEATHROW": Place(51.5, -0.5, 11.8, 6.6),
    "KASSEL": Place(51.3, 9.4, 9.6, 8.8, ("cloud_cover",)),
    "LJUBLJANA": Place(46.1, 14.5, 11.5, 10.3),
    "MAASTRICHT": Place(50.9, 5.8, 10.8, 7.9),
    "MALMO": Place(55.6, 13.1, 9.2, 8.6, ("cloud_cover", "humidity", "pressure", "global_radiation", "sunshine")),
    "MONTELIMAR": Place(44.6, 4.7, 14.2, 8.8, ("cloud_cover", "sunshine")),
}
_LATITUDE, _LONGITUDE, _WARMTH, _SWING = np.array([place[:4] for place in PLACES.values()]).T


class Simulation(NamedTuple):
    """Days of weather, and the distribution of the next day's sunshine in Basel."""

    dates: NDArray[np.datetime64]  # (D,) days from 2000-01-01
    columns: tuple[str, ...]  # 89 names, such as "BASEL_sunshine"
    values: Floats  # (D, 89), in the units of the measured file
    forecast: Floats  # (D - 1,) hours: the mean of the next day's sunshine, given the day's columns of Basel
    noise: Floats  # (D - 1,) hours: its standard deviation, given the same
    sha256: str  # of the values, as little-endian float64, row after row


class _Sky(NamedTuple):
    """The values that depend on the calendar alone, each (D, places)."""

    length: Floats  # of the day, hours
    radiation: Floats  # above the air, 100 W/m2
    season: Floats  # -1 in winter to 1 in summer


def simulate(days: int = DAYS, seed: int = SEED) -> Simulation:
    """Return the weather of `days` days; with the same seed, more days continue the same series.

    The units are those of the measured file (`load_weather`). No value is rounded, so the forecast is exact. Raises
    InputError for fewer than 2 days, more than a million, or a negative seed.
    """
    if not 2 <= days <= MOST_DAYS:
        raise InputError(f"simulated weather needs from 2 to {MOST_DAYS} days, got {days}. Use simulated:{DAYS}.")
    if seed < 0:
        raise InputError(f"simulated weather needs a seed of 0 or more, got {seed}. Use simulated:{days}:{SEED}.")
    sky = _sky(days)
    # One random stream for each series: a table of more days then continues each series.
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(8)]
    pressure, humidity, warmth, *blur = [stream.standard_normal((days, len(PLACES))) for stream in streams[:6]]
    pressure, humidity, warmth = (
        _autoregressive(*pair) for pair in ((pressure, 0.82), (humidity, 0.68), (warmth, 0.82))
    )
    mean = _mean_share(sky.season, pressure, humidity)
    fraction = _sunny_fraction(_shift(mean, 0.35), *(stream.random((days, len(PLACES))) for stream in streams[6:]))
    sunshine = DAYLIGHT * _shift(sky.length, sky.length[0]) * fraction
    columns, values = _columns(_stations(sky, pressure, humidity, warmth, sunshine, blur))
    share_mean, length = mean[:-1, HOME], DAYLIGHT * sky.length[:-1, HOME]
    # The mean square of u ** (1/m - 1), for u uniform on [0, 1], is m / (2 - m).
    deviation = (1 - share_mean) * np.sqrt(share_mean / (2 - share_mean))
    digest = hashlib.sha256(np.ascontiguousarray(values, "<f8").tobytes()).hexdigest()
    dates = FIRST_DAY + np.arange(days).astype("timedelta64[D]")
    return Simulation(dates, columns, values, length * share_mean, length * deviation, digest)


def simulated_weather(days: int = DAYS, seed: int = SEED) -> pd.DataFrame:
    """Return simulated weather as a table in the form of the measured file.

    The columns are DATE (YYYYMMDD) and MONTH, int64, and 89 measurements, float64. `load_weather(path)` reads the file
    that `to_csv(path, index=False)` writes. Raises InputError for fewer than 2 days, more than a million, or a negative
    seed.

    >>> simulated_weather(days=2, seed=0)[["DATE", "MONTH", "BASEL_sunshine"]].round(1).values.tolist()
    [[20000101.0, 1.0, 0.1], [20000102.0, 1.0, 0.0]]
    """
    import pandas as pd

    simulation = simulate(days, seed)
    index = pd.DatetimeIndex(simulation.dates)
    table = pd.DataFrame(simulation.values, columns=list(simulation.columns))
    calendar = pd.DataFrame({"DATE": (index.year * 100 + index.month) * 100 + index.day, "MONTH": index.month})
    return pd.concat([calendar.astype("int64"), table], axis=1)


def _sky(days: int) -> _Sky:
    """Return the length of day and the radiation, both from the declination of the sun."""
    turn = _turn(days)
    declination = np.radians(-23.4) * np.cos(turn + 0.17)
    latitude = np.radians(_LATITUDE)
    sunset = np.arccos(-np.tan(latitude) * np.tan(declination))
    height: Floats = np.cos(latitude) * np.cos(declination) * np.sin(sunset) + sunset * np.sin(latitude) * np.sin(
        declination
    )
    length = 24 / np.pi * sunset
    return _Sky(length, 13.67 / np.pi * height, (length - 12) / 4)


def _turn(days: int) -> Floats:
    """Return the angle of the year (D, 1), in radians."""
    return np.arange(days, dtype=np.float64)[:, None] * (2 * np.pi / 365.2425)


def _mean_share(season: Floats, pressure: Floats, humidity: Floats) -> Floats:
    """Return the mean sunny fraction of the next day, 0.05 to 0.95, from anomalies in standard deviations."""
    score = 3.2 * season * pressure - 0.3 * pressure * humidity + 0.65 * season - 0.9
    return 0.05 + 0.9 / (1 + np.exp(-score))


def _sunny_fraction(mean: Floats, noise: Floats, front: Floats) -> Floats:
    """Return random sunny fractions with the given means; a place near Basel often shares Basel's uniform draw."""
    luck = np.where(front < np.exp(-_distances()[HOME] / FRONT), noise[:, HOME, None], noise)
    return luck ** (1 / mean - 1)


def _autoregressive(shocks: Floats, memory: float) -> Floats:
    """Return standard normal series (D, places), correlated in space and by `memory` from day to day."""
    root = np.linalg.cholesky(np.exp(-_distances() / REACH))
    # Not a matrix product: its last bits may change with the number of days.
    series = np.zeros_like(shocks)
    for place in range(len(root)):
        series += shocks[:, place, None] * root[:, place]
    for day in range(1, len(series)):
        series[day] = memory * series[day - 1] + np.sqrt(1 - memory**2) * series[day]
    return series


def _distances() -> Floats:
    """Return the kilometres between the places, on a map that is exact at 50 degrees north."""
    north = np.subtract.outer(_LATITUDE, _LATITUDE)
    east = np.subtract.outer(_LONGITUDE, _LONGITUDE) * np.cos(np.radians(50))
    distances: Floats = 111.2 * np.hypot(north, east)
    return distances


def _shift(series: Floats, first: float | Floats) -> Floats:
    """Return a series one day later, with `first` on the first day."""
    return np.concatenate([np.broadcast_to(first, (1, series.shape[1])), series[:-1]])


def _stations(
    sky: _Sky, pressure: Floats, humidity: Floats, warmth: Floats, sunshine: Floats, blur: list[Floats]
) -> dict[str, Floats]:
    """Return the measurements of the stations, each (D, places), in the order of the measured file.

    Radiation depends on sunshine by the law of Angstrom (1924) and Prescott (1940): the two determine the season and,
    with it, humidity and pressure determine their anomalies.
    """
    sunny = sunshine / sky.length
    mean = _WARMTH - _SWING * np.cos(_turn(len(sunny)) - 0.45) + 3.3 * warmth
    half_range = 2 + 4 * sunny + 0.3 * np.abs(blur[2])
    return {
        "cloud_cover": 8 / (1 + np.exp(5.5 * sunny - 2.5 + 0.2 * blur[0])),
        "humidity": 1 / (1 + np.exp(0.3 * sky.season - 1.15 - 0.6 * humidity)),
        "pressure": 1.016 + 0.008 * pressure,
        "global_radiation": sky.radiation * (0.2 + 0.55 * sunny),
        "precipitation": 1.2 * np.maximum(0.8 * humidity - 0.5 * pressure - 2 * sunny + 0.25 * blur[1] - 0.3, 0) ** 2,
        "sunshine": sunshine,
        "temp_mean": mean,
        "temp_min": mean - half_range,
        "temp_max": mean + 1.1 * half_range,
    }


def _columns(measurements: dict[str, Floats]) -> tuple[tuple[str, ...], Floats]:
    """Return the names of the columns, and their values (D, columns)."""
    columns = {
        f"{name}_{feature}": values[:, number]
        for number, (name, place) in enumerate(PLACES.items())
        for feature, values in measurements.items()
        if feature not in place.lacks
    }
    return tuple(columns), np.stack(list(columns.values()), axis=1)
