"""A small weather table as a file, for the tests that read one or damage one."""

import warnings

import pytest

from jaxdl.datasets import load_weather, simulated_weather
from jaxdl.errors import InputError

TABLE = simulated_weather(40).round(4)
LINES = TABLE.to_csv(index=False).splitlines()
HEADER = LINES[0].split(",")


def write(folder, content, name="weather.csv"):
    """The path of a new file with the given lines or bytes."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else "\n".join([*content, ""]).encode())
    return path


def refusal(source, **options):
    """The message of the InputError; no warning may come with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            load_weather(source, **options)
    return str(caught.value)
