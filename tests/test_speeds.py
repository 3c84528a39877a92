"""What a matrix product reaches, on a pretended clock and beside NumPy's."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl import speeds
from jaxdl.errors import InputError
from jaxdl.speeds import achieved, matmul_rate


def pretend(patch, seconds):
    """Products take `seconds(size)`, by a clock that stands still otherwise. Gives the sizes of all that ran."""
    ran, now = [], [0.0]

    def run(size):
        ran.append(size)
        now[0] += seconds(size)
        return seconds(size)

    patch.setattr(speeds, "_product", lambda size, dtype: size)
    patch.setattr(speeds, "_seconds", run)
    patch.setattr(speeds.time, "perf_counter", lambda: now[0])
    return ran


@given(rate=st.floats(1e9, 1e16), call=st.floats(0, 1e-4))
@settings(max_examples=50, deadline=None)
def test_the_rate_of_any_device_is_found_within_a_second(rate, call):
    with pytest.MonkeyPatch.context() as patch:
        ran = pretend(patch, lambda size: call + 2 * size**3 / rate)
        found = matmul_rate()
        # What a call costs is a small part of what was timed, where matrices of the greatest size allow that.
        if 2 * speeds.MOST**3 / rate > speeds.ENOUGH:
            assert 0.95 * rate <= found <= rate * (1 + 1e-9)
        assert len(set(ran)) <= 5 and sum(size == ran[-1] for size in ran) >= 2 + 3
        assert speeds.time.perf_counter() < 1


def test_the_median_is_told(monkeypatch):
    taken = iter([9, 9, 1, 7, 2, 3, 100])
    monkeypatch.setattr(speeds, "TIMINGS", (5, 5))
    pretend(monkeypatch, lambda size: 0)
    monkeypatch.setattr(speeds, "_seconds", lambda product: next(taken))
    # The first two are the trial.
    assert matmul_rate(size=10) == 2 * 10**3 / statistics.median([1, 7, 2, 3, 100])


def test_a_slow_device_is_timed_three_times(monkeypatch):
    ran = pretend(monkeypatch, lambda size: 0.5)
    assert matmul_rate(size=8) == 2 * 8**3 / 0.5
    assert ran == [8] * (2 + 3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, "float16"])
def test_products_of_every_float_are_timed(dtype):
    assert 1e5 < matmul_rate(dtype, size=32) < 1e16


def test_the_rate_is_of_the_size_of_numpys():
    matrix = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    matrix @ matrix
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    assert 1 / 30 < matmul_rate(size=512) / (2 * 512**3 / statistics.median(seconds)) < 30


def test_results_are_waited_for():
    seen = []

    def product():
        return jax.pure_callback(lambda: (time.sleep(0.05), seen.append(1), np.float32(0))[2], jnp.zeros(()))

    assert speeds._seconds(jax.jit(product)) >= 0.05 and seen == [1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dtype": jnp.int8}, "dtype must be one of floats, got int8"),
        ({"dtype": jnp.float64}, "dtype must be one that JAX keeps, got float64"),
        ({"size": 0}, "size must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_timed_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        matmul_rate(**arguments)


@given(flops=st.floats(0, 1e18), seconds=st.floats(1e-6, 1e6), possible=st.floats(1, 1e18))
def test_the_share_is_that_of_the_time_that_is_needed(flops, seconds, possible):
    speed = achieved(flops, seconds, possible)
    assert speed.share == pytest.approx((flops / possible) / seconds, rel=1e-9, abs=1e-300)
    assert speed.reached == flops / seconds


@pytest.mark.parametrize("arguments", [(-1, 1, 1), (1, 0, 1), (1, 1, 0), (1, float("nan"), 1), (float("nan"), 1, 1)])
def test_speeds_of_nothing_are_refused(arguments):
    with pytest.raises(InputError, match="must be"):
        achieved(*arguments)
