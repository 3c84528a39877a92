"""A small weather table as a file, for tests that read or damage it."""

import warnings

import pytest

from jaxdl.datasets import load_weather, simulated_weather
from jaxdl.errors import InputError

TABLE = simulated_weather(40).round(4)
LINES = TABLE.to_csv(index=False).splitlines()
HEADER = LINES[0].split(",")


def write(folder, content, name="weather.csv"):
    """Write a file from lines or bytes, and return its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else "\n".join([*content, ""]).encode())
    return path


def refusal(source, **options):
    """Return the message of the InputError of `load_weather`, which must give no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            load_weather(source, **options)
    return str(caught.value)
