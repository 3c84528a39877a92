"""The order of rows in an epoch: a permutation of which any part can be computed without the rest.

It is the swap-or-not shuffle (Hoang, Morris and Rogaway, CRYPTO 2012): each round pairs every row with one other and
swaps the pair or not. It needs no sort, which on a CPU costs many times more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdl.types import Array

_ROUNDS = 32
# Rows up to which a chunk computes its epoch's order as a whole, which takes less than a millisecond, once. More would
# take too much of a chunk, so each step then computes its own part.
_WHOLE = 2**16


class Draws(NamedTuple):
    """What decides an order: of each round which rows are a pair, and by which hash it is swapped."""

    pivots: Any  # (32,) int32
    salts: Any  # (32,) uint32


def draws(key: Array, epoch: Any, count: int) -> Draws:
    """What decides the order of `count` rows in an epoch.

    >>> draws(jax.random.key(0), 1, 5).pivots.shape
    (32,)
    """
    bits = jax.random.bits(jax.random.fold_in(key, epoch), (2, _ROUNDS), jnp.uint32)
    return Draws((bits[0] % jnp.uint32(count)).astype(jnp.int32), bits[1])


def order(key: Array, epoch: Any, count: int) -> Array:
    """The order of `count` rows in an epoch, (count,) int32: a permutation that depends on (key, epoch) alone.

    `count` is static.

    >>> rows = order(jax.random.key(0), 1, 5)
    >>> sorted(rows.tolist())
    [0, 1, 2, 3, 4]
    """
    return _rows_at(draws(key, epoch, count), jnp.arange(count, dtype=jnp.int32), count, 1)


def shuffle(key: Array, epoch: Any, count: int) -> Callable[[Array], Array]:
    """Which rows stand at given places of `order`: a function from places (B,) int32 to rows (B,) int32.

    >>> rows, places = order(jax.random.key(0), 1, 5), jnp.array([3, 1], jnp.int32)
    >>> shuffle(jax.random.key(0), 1, 5)(places).tolist() == rows[places].tolist()
    True
    """
    if count <= _WHOLE:
        rows = order(key, epoch, count)
        return lambda places: rows[places]
    drawn = draws(key, epoch, count)
    # Two rounds of the loop, each of 16: as one expression XLA would compute a row's place for each of its columns.
    return lambda places: _rows_at(drawn, places, count, _ROUNDS // 2)


def _rows_at(drawn: Draws, places: Array, count: int, unroll: int) -> Array:
    def swap_or_not(round_: Array, rows: Array) -> Array:
        partner = drawn.pivots[round_] - rows
        partner = jnp.where(partner < 0, partner + count, partner)
        # Both of a pair must flip the same coin, so it is drawn from the larger of the two.
        coin = mix(jnp.maximum(rows, partner).astype(jnp.uint32) ^ drawn.salts[round_]) & jnp.uint32(1)
        return jnp.where(coin == 1, partner, rows)

    return lax.fori_loop(0, _ROUNDS, swap_or_not, places, unroll=unroll)


def rows_on_host(drawn: Draws, places: Any, count: int) -> np.ndarray:
    """The rows at given places of `order`, computed by NumPy from `draws(key, epoch, count)`: (B,) to (B,) int64.

    >>> key, places = jax.random.key(0), np.array([3, 1])
    >>> rows_on_host(draws(key, 1, 5), places, 5).tolist() == order(key, 1, 5)[places].tolist()
    True
    """
    rows = np.asarray(places, np.int32)
    for pivot, salt in zip(np.asarray(drawn.pivots), np.asarray(drawn.salts), strict=True):
        partner = pivot - rows
        partner += np.where(partner < 0, np.int32(count), np.int32(0))
        coin = mix(np.maximum(rows, partner).view(np.uint32) ^ salt) & np.uint32(1)
        rows = np.where(coin == 1, partner, rows)
    return rows.astype(np.int64)


def mix(bits: Any) -> Any:
    """MurmurHash3's 32-bit finaliser, a permutation of uint32: every input bit reaches every output bit.

    >>> [hex(number) for number in mix(jnp.arange(3, dtype=jnp.uint32)).tolist()]
    ['0x0', '0x514e28b7', '0x30f4c306']
    """
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))
