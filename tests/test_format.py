"""Numbers with units, against arithmetic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdl._format import PREFIXES, short


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0, "B", "0 B"),
        (999, "", "999"),
        (1000, "", "1 k"),
        (999.6, "B", "1 kB"),
        (999_499, "", "999 k"),
        (999_500, "", "1 M"),
        (2.5e12, "FLOP/s", "2.5 TFLOP/s"),
        (0.5, "", "0.5"),
        (1e30, "", "1e+06 Y"),
        (math.nan, "B", "nan B"),
    ],
)
def test_short_has_three_digits(number, unit, text):
    assert short(number, unit) == text


@given(st.floats(1, 1e26))
def test_the_text_is_the_number_to_three_digits_and_short(number):
    text = short(number, "B")
    value, unit = text.split()
    assert float(value) * 1000 ** PREFIXES.index(unit[:-1]) == pytest.approx(number, rel=0.0051)
    assert len(text) <= len("9.99 kB")
    assert 1 <= float(value) < 1000
