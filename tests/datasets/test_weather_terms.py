"""The terms of the data name the records that it is downloaded from."""

import pytest

from jaxdl.datasets import _download, terms_of
from jaxdl.datasets._weather import CIFAR10, SIMULATED, WEATHER


@pytest.mark.parametrize("published", [_download.LIGHT, _download.FULL, _download.LABELS])
def test_every_record_of_the_weather_is_to_be_cited(published):
    assert f"https://doi.org/{published.doi}" in " ".join(WEATHER.cite)


@pytest.mark.parametrize(
    ("name", "source", "terms"),
    [
        ("weather", "file:/home/me/simulated/weather.csv", WEATHER),
        ("weather", "zenodo:10.5281/zenodo.5071376", WEATHER),
        ("weather", "simulated:3654:seed=0", SIMULATED),
        ("cifar10", "tfds:cifar10/3.0.2", CIFAR10),
        ("cifar10", "simulated:7200:seed=0", SIMULATED),
    ],
)
def test_terms_go_by_where_the_data_came_from(name, source, terms):
    assert terms_of(name, source) is terms
