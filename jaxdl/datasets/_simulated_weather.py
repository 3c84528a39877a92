"""Daily weather of eleven places from a generator whose best possible forecast is known.

Tomorrow's sunshine in Basel is a share, drawn at random, of today's length of day. The mean and the spread of that
share depend on nothing but today's columns of Basel: high pressure brings sun in summer and fog in winter, more so
where the air is dry. So the conditional mean is the best of all forecasts, and the conditional standard deviation is
what even that one misses by.
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
REACH, FRONT = 9000.0, 4000.0  # kilometres over which weather, and one day's clouds, are alike
# The next day is up to 1 % shorter, and the sun cannot shine after it has set.
DAYLIGHT = 0.99


class Place(NamedTuple):
    """Where a place lies, what its year is like, and what is not measured there."""

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
    """Days of weather, and what can be known of each next day's sunshine in Basel."""

    dates: NDArray[np.datetime64]  # (D,) days from 2000-01-01
    columns: tuple[str, ...]  # 89 names, such as "BASEL_sunshine"
    values: Floats  # (D, 89), in the units of the measured file
    forecast: Floats  # (D - 1,) hours: the mean of the next day's sunshine, given the day's columns of Basel
    noise: Floats  # (D - 1,) hours: its standard deviation, given the same
    sha256: str  # of the values, as little-endian float64, row after row


class _Sky(NamedTuple):
    """What only the calendar decides, each (D, places)."""

    length: Floats  # of the day, hours
    radiation: Floats  # above the air, 100 W/m2
    season: Floats  # -1 in winter to 1 in summer


def simulate(days: int = DAYS, seed: int = SEED) -> Simulation:
    """The weather of `days` days; the same seed gives the same days, however many are asked for.

    Units as in the measured file: sunshine in hours, cloud cover in eighths, humidity as a fraction, pressure in
    1000 hPa, global radiation in 100 W/m2, precipitation in cm, temperatures in degrees Celsius. No value is rounded,
    so what is known of the next day is exact. Raises InputError for fewer than 2 days, more than a million, or a
    negative seed.
    """
    if not 2 <= days <= MOST_DAYS:
        raise InputError(f"simulated weather needs from 2 to {MOST_DAYS} days, got {days}. Use simulated:{DAYS}.")
    if seed < 0:
        raise InputError(f"simulated weather needs a seed of 0 or more, got {seed}. Use simulated:{days}:{SEED}.")
    sky = _sky(days)
    # One stream for each use: a table of more days then only continues every one of them.
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(8)]
    pressure, humidity, warmth, *blur = [stream.standard_normal((days, len(PLACES))) for stream in streams[:6]]
    pressure, humidity, warmth = (_lasting(*pair) for pair in ((pressure, 0.82), (humidity, 0.68), (warmth, 0.82)))
    mean = _mean_share(sky.season, pressure, humidity)
    share = _share(_before(mean, 0.35), *(stream.random((days, len(PLACES))) for stream in streams[6:]))
    sunshine = DAYLIGHT * _before(sky.length, sky.length[0]) * share
    columns, values = _columns(_measured(sky, pressure, humidity, warmth, sunshine, blur))
    share_mean, length = mean[:-1, HOME], DAYLIGHT * sky.length[:-1, HOME]
    # The mean square of u ** (1/m - 1), for u uniform on [0, 1], is m / (2 - m).
    deviation = (1 - share_mean) * np.sqrt(share_mean / (2 - share_mean))
    digest = hashlib.sha256(np.ascontiguousarray(values, "<f8").tobytes()).hexdigest()
    dates = FIRST_DAY + np.arange(days).astype("timedelta64[D]")
    return Simulation(dates, columns, values, length * share_mean, length * deviation, digest)


def simulated_weather(days: int = DAYS, seed: int = SEED) -> pd.DataFrame:
    """The same weather as a table like the measured file: DATE (YYYYMMDD) and MONTH, int64, and 89 float64 columns.

    Written with `to_csv(path, index=False)`, it can be read by `weather(path)`. Raises InputError like `simulate`.

    >>> simulated_weather(3)[["DATE", "MONTH"]].values.tolist()
    [[20000101, 1], [20000102, 1], [20000103, 1]]
    """
    import pandas as pd

    simulation = simulate(days, seed)
    index = pd.DatetimeIndex(simulation.dates)
    table = pd.DataFrame(simulation.values, columns=list(simulation.columns))
    calendar = pd.DataFrame({"DATE": (index.year * 100 + index.month) * 100 + index.day, "MONTH": index.month})
    return pd.concat([calendar.astype("int64"), table], axis=1)


def _sky(days: int) -> _Sky:
    """Length of day and radiation from the sun's declination alone, so that each of them tells the other."""
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
    return np.arange(days, dtype=np.float64)[:, None] * (2 * np.pi / 365.2425)


def _mean_share(season: Floats, pressure: Floats, humidity: Floats) -> Floats:
    """The mean share of the next day that is sunny, of anomalies in standard deviations; 0.05 to 0.95."""
    score = 3.2 * season * pressure - 0.3 * pressure * humidity + 0.65 * season - 0.9
    return 0.05 + 0.9 / (1 + np.exp(-score))


def _share(mean: Floats, own: Floats, front: Floats) -> Floats:
    """Shares in [0, 1] of the given means. A place near Basel often has Basel's luck, which is uniform like its own."""
    luck = np.where(front < np.exp(-_distances()[HOME] / FRONT), own[:, HOME, None], own)
    return luck ** (1 / mean - 1)


def _lasting(shocks: Floats, memory: float) -> Floats:
    """Standard normal series (D, places), alike in places that are near, that fade by `memory` a day."""
    root = np.linalg.cholesky(np.exp(-_distances() / REACH))
    # Not a matrix product, whose last bits may change with the number of days.
    series = np.zeros_like(shocks)
    for place in range(len(root)):
        series += shocks[:, place, None] * root[:, place]
    for day in range(1, len(series)):
        series[day] = memory * series[day - 1] + np.sqrt(1 - memory**2) * series[day]
    return series


def _distances() -> Floats:
    """Kilometres between the places, on a map that is true at 50 degrees north."""
    north = np.subtract.outer(_LATITUDE, _LATITUDE)
    east = np.subtract.outer(_LONGITUDE, _LONGITUDE) * np.cos(np.radians(50))
    distances: Floats = 111.2 * np.hypot(north, east)
    return distances


def _before(series: Floats, first: float | Floats) -> Floats:
    return np.concatenate([np.broadcast_to(first, (1, series.shape[1])), series[:-1]])


def _measured(
    sky: _Sky, pressure: Floats, humidity: Floats, warmth: Floats, sunshine: Floats, blur: list[Floats]
) -> dict[str, Floats]:
    """What stations report, each (D, places), in the order of the measured file.

    Radiation follows sunshine by the law of Angstrom (1924) and Prescott (1940), so the two together tell the season,
    and with it humidity and pressure tell their anomalies.
    """
    sunny = sunshine / sky.length
    mean = _WARMTH - _SWING * np.cos(_turn(len(sunny)) - 0.45) + 3.3 * warmth
    spread = 2 + 4 * sunny + 0.3 * np.abs(blur[2])
    return {
        "cloud_cover": 8 / (1 + np.exp(5.5 * sunny - 2.5 + 0.2 * blur[0])),
        "humidity": 1 / (1 + np.exp(0.3 * sky.season - 1.15 - 0.6 * humidity)),
        "pressure": 1.016 + 0.008 * pressure,
        "global_radiation": sky.radiation * (0.2 + 0.55 * sunny),
        "precipitation": 1.2 * np.maximum(0.8 * humidity - 0.5 * pressure - 2 * sunny + 0.25 * blur[1] - 0.3, 0) ** 2,
        "sunshine": sunshine,
        "temp_mean": mean,
        "temp_min": mean - spread,
        "temp_max": mean + 1.1 * spread,
    }


def _columns(measured: dict[str, Floats]) -> tuple[tuple[str, ...], Floats]:
    named = {
        f"{name}_{feature}": values[:, number]
        for number, (name, place) in enumerate(PLACES.items())
        for feature, values in measured.items()
        if feature not in place.lacks
    }
    return tuple(named), np.stack(list(named.values()), axis=1)
