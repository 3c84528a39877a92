"""What a matrix product reaches on this device, and what share of it a run does."""

from __future__ import annotations

import math
import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdl.errors import InputError
from jaxdl.programs import compiler_options
from jaxdl.types import Array

FIRST, MOST = 256, 16384  # sides of the matrices that are tried
ENOUGH, AIM = 2e-3, 4e-3  # seconds of a product that outweigh its call, and those that are aimed at
TIMINGS, BUDGET = (3, 15), 0.3  # how many at least and at most, and seconds after which no more are begun


class Speed(NamedTuple):
    """How fast something computed, in FLOP/s."""

    reached: float
    possible: float  # what a matrix product reaches

    @property
    def share(self) -> float:
        """What was reached of what is possible, 1 for all."""
        return self.reached / self.possible


def achieved(flops: float, seconds: float, possible: float) -> Speed:
    """The speed of a computation of so many FLOPs in so many seconds, beside a possible FLOP/s (of all its devices).

    Raises InputError for FLOPs below 0, and for seconds and FLOP/s that are not positive.

    >>> achieved(6e9, 2.0, 12e9)
    Speed(reached=3000000000.0, possible=12000000000.0)
    >>> _.share
    0.25
    """
    if not flops >= 0:
        raise InputError(f"flops must be at least 0, got {flops}.")
    for name, value in (("seconds", seconds), ("possible", possible)):
        if not value > 0:
            raise InputError(f"{name} must be above 0, got {value}. Measure something that takes time.")
    return Speed(flops / seconds, possible)


def matmul_rate(dtype: Any = jnp.float32, *, size: int | None = None) -> float:
    """FLOP/s of a product of two square matrices of a dtype on the default device: the median of several.

    size: the matrices' side; by default one of which a product takes some milliseconds, found by trials. All takes less
    than a second on a CPU; to compile for other devices may take longer. Precision is JAX's default, as in training.
    Raises InputError for a dtype that is no float, or that JAX is not told to keep, and for a size below 1.

    >>> matmul_rate(size=64) > 0
    True
    """
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"dtype must be one of floats, got {dtype}. Use float32 or bfloat16.")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise InputError(f"dtype must be one that JAX keeps, got {dtype}. Set jax_enable_x64, or use float32.")
    if size is not None and size < 1:
        raise InputError(f"size must be at least 1, got {size}.")
    at = FIRST if size is None else size
    while True:
        product = _product(at, dtype)
        trial = min(_seconds(product) for _ in range(2))
        if size is not None or trial >= ENOUGH or at >= MOST:
            break
        # Twice the side takes eight times as long, or less where the call is most of it.
        at = min(MOST, at * 2 ** max(1, round(math.log(AIM / trial, 8))))
    began = time.perf_counter()
    seconds: list[float] = []
    while len(seconds) < TIMINGS[0] or (len(seconds) < TIMINGS[1] and time.perf_counter() - began < BUDGET):
        seconds.append(_seconds(product))
    return 2 * at**3 / statistics.median(seconds)


def _product(size: int, dtype: Any) -> Any:
    """A matrix product that is compiled and has run once."""

    def matrix() -> Array:
        # All digits differ: some devices multiply ones and zeros faster.
        return jnp.sin(jnp.arange(size * size, dtype=jnp.float32)).reshape(size, size).astype(dtype)

    values = jax.jit(matrix)()
    product = partial(jax.jit(jnp.matmul, compiler_options=compiler_options()), values, values)
    jax.block_until_ready(product())
    return product


def _seconds(product: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(product())
    return time.perf_counter() - began
