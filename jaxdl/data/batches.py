"""Permutations of rows, and the batches that they give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Int32, Int64, PRNGKeyArray, Shaped, UInt32
from numpy.typing import ArrayLike

from jaxdl._jit import is_traced
from jaxdl.distributed.sharding import data_devices, split_rows
from jaxdl.types import Array, Batch, Dataset

_ROUNDS = 32
# Rows up to which a chunk computes its epoch's order as a whole, which takes less than a millisecond, once. More would
# take too much of a chunk, so each step then computes its own part.
_WHOLE = 2**16


class Draws(NamedTuple):
    """What decides an order: of each round which rows are a pair, and by which hash it is swapped."""

    pivots: Int32[Array, " rounds"]
    salts: UInt32[Array, " rounds"]


def _draws(key: PRNGKeyArray, epoch: Any, count: int) -> Draws:
    """What decides the order of `count` rows in an epoch."""
    bits = jax.random.bits(jax.random.fold_in(key, epoch), (2, _ROUNDS), jnp.uint32)
    return Draws((bits[0] % jnp.uint32(count)).astype(jnp.int32), bits[1])


def permutation(key: PRNGKeyArray, epoch: int | Array, count: int) -> Int32[Array, " {count}"]:
    """The order of `count` rows in an epoch, (count,) int32: a permutation that depends on (key, epoch) alone.

    `count` is static.
    """
    return _rows_at(_draws(key, epoch, count), jnp.arange(count, dtype=jnp.int32), count, 1)


def permuted_rows(
    key: PRNGKeyArray, epoch: int | Array, count: int
) -> Callable[[Int32[Array, " batch"]], Int32[Array, " batch"]]:
    """Which rows stand at given places of `order`: a function from places (B,) int32 to rows (B,) int32."""
    if count <= _WHOLE:
        rows = permutation(key, epoch, count)
        return lambda places: rows[places]
    drawn = _draws(key, epoch, count)
    # Two rounds of the loop, each of 16: as one expression XLA would compute a row's place for each of its columns.
    return lambda places: _rows_at(drawn, places, count, _ROUNDS // 2)


def _rows_at(drawn: Draws, places: Int32[Array, " batch"], count: int, unroll: int) -> Int32[Array, " batch"]:
    def swap_or_not(round_: Array, rows: Array) -> Array:
        partner = drawn.pivots[round_] - rows
        partner = jnp.where(partner < 0, partner + count, partner)
        # Both of a pair must flip the same coin, so it is drawn from the larger of the two.
        coin = hash32(jnp.maximum(rows, partner).astype(jnp.uint32) ^ drawn.salts[round_]) & jnp.uint32(1)
        return jnp.where(coin == 1, partner, rows)

    return lax.fori_loop(0, _ROUNDS, swap_or_not, places, unroll=unroll)


def rows_on_host(drawn: Draws, places: ArrayLike, count: int) -> Int64[np.ndarray, " batch"]:
    """The rows at given places of `order`, computed by NumPy from `draws(key, epoch, count)`: (B,) to (B,) int64."""
    rows = np.asarray(places, np.int32)
    for pivot, salt in zip(np.asarray(drawn.pivots), np.asarray(drawn.salts), strict=True):
        partner = pivot - rows
        partner += np.where(partner < 0, np.int32(count), np.int32(0))
        coin = hash32(np.maximum(rows, partner).view(np.uint32) ^ salt) & np.uint32(1)
        rows = np.where(coin == 1, partner, rows)
    return rows.astype(np.int64)


def hash32(bits: Any) -> Any:
    """MurmurHash3's 32-bit finaliser, a permutation of uint32: every input bit reaches every output bit."""
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))


T = TypeVar("T")
# What a batch of an evaluation holds at most, the same on every platform: a run counts its batches, and may go on
# elsewhere. More numbers would only take memory: images grow large in a ConvNet.
EVAL_ROWS, EVAL_NUMBERS = 1024, 2**19


def only_counted(rows: Any) -> Any:
    """Return the rows with a counted example's inputs and targets in the place of those that do not count.

    What stands in an example of weight 0 may be anything, and its part of a sum or of a gradient would be 0 times that,
    which is nan for nan and infinity. Rows that all count are returned as they are.
    """
    if is_traced(rows.sample_weight):
        counted = rows.sample_weight > 0
        first = jnp.argmax(counted)

        def chosen(leaf: Array) -> Array:
            leaf = jnp.asarray(leaf)
            return jnp.where(counted.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, leaf[first][None])

        return rows._replace(inputs=chosen(rows.inputs), targets=chosen(rows.targets))
    known = np.asarray(rows.sample_weight) > 0
    if known.all():
        return rows
    if not known.any():
        empty = np.zeros_like if isinstance(rows.inputs, np.ndarray) else jnp.zeros_like
        return rows._replace(inputs=empty(rows.inputs), targets=empty(rows.targets))
    places = np.where(known, np.arange(len(known)), np.argmax(known))
    return rows._replace(inputs=rows.inputs[places], targets=rows.targets[places])


def training_rows(rows: object) -> Any:
    """Return a data set as training takes it: `only_counted`, with sample weights relative to their mean.

    Steps need not know the other batches then. Where the weights are not all 1 they come as a Batch, whose mask tells
    padding from examples of weight 0. Windows, which are made so, and traced rows are returned as they are: a
    program of one's own must be given rows that have been prepared.
    """
    if not isinstance(rows, Dataset) or is_traced(rows.sample_weight):
        return rows
    known = np.asarray(rows.sample_weight)
    if (known == 1).all():
        return rows
    # Divided in their own precision, as weights of a source are.
    mean = known.dtype.type(known.mean(dtype=np.float64))
    mask = (
        jnp.ones_like(rows.sample_weight, bool)
        if isinstance(rows.sample_weight, jax.Array)
        else np.ones(known.shape, bool)
    )
    return only_counted(Batch(rows.inputs, rows.targets, rows.sample_weight / mean, mask))


def evaluation_rows(rows: object) -> Any:
    """Return a data set as an evaluation takes it: `only_counted`. None and traced rows are returned as they are."""
    return only_counted(rows) if isinstance(rows, Dataset) and not is_traced(rows.sample_weight) else rows


class Window(NamedTuple):
    """Some consecutive batches of an epoch, already in its order: of data that are too large for the memory."""

    batches: Dataset  # (K, B, ...): the last batch of the epoch is padded; weights are relative to their mean
    first: Array  # int32 scalar, the number in the epoch of the first of them, from 0
    rows: Array  # int32 scalar, those of the whole epoch


def epoch_rows(train: Any) -> Any:
    """The rows of an epoch: of rows in memory, of a window, or of a `Loader`."""
    return train.sample_weight.shape[0] if isinstance(train, (Dataset, Batch)) else train.rows


def batches_of(
    train: Dataset | Batch | Window, key: Array, epoch: int | Array, batch_size: int, *, mask: bool = True
) -> Callable[[Any], Any]:
    """The batches of an epoch by number: rows of data in the order that (key, epoch) gives, or those of a window.

    train: as `training_rows` gives it. mask: whether each is a Batch, as a step of one's own needs it to tell padding
    from examples. Without, rows whose weights are all 1 come as a Dataset, in which padding alone has weight 0.
    """
    at = None if isinstance(train, Window) else permuted_rows(key, epoch, train.sample_weight.shape[0])

    def batch(index: int | Array) -> Any:
        rows = _of_window(train, index) if isinstance(train, Window) else batch_at(train, at, index, batch_size)
        return Batch(*rows, rows.sample_weight > 0) if mask and isinstance(rows, Dataset) else rows

    return batch


def batch_at(dataset: Any, at: Any, index: Any, batch_size: int) -> Any:
    """Batch number `index` of rows in an order; the last one is filled with padding: weight 0, out of a mask.

    at: which rows stand at the places (B,) of the order. On several devices each takes its share of the batch, which
    is filled up where they do not divide it.
    """
    count = dataset.sample_weight.shape[0]
    numbers = split_rows(jnp.arange(filled(batch_size), dtype=jnp.int32))
    places = index * batch_size + numbers
    return _masked(_taken(dataset, at(places % count)), (places < count) & (numbers < batch_size))


def filled(batch_size: int) -> int:
    """The rows of a batch that devices share evenly: up to the next multiple of their number."""
    return batch_size + -batch_size % data_devices()


def validation_batch(dataset: Dataset, index: int | Array, batch_size: int) -> Dataset:
    """Batch number `index` of the rows as they stand; the last one reaches back, with weight 0 for rows seen before."""
    count = dataset.sample_weight.shape[0]
    size = min(batch_size, count)
    wanted = jnp.asarray(index, jnp.int32) * size
    start = jnp.minimum(wanted, count - size)
    if data_devices() == 1:
        rows = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(jnp.asarray(leaf), start, size), dataset)
        return _masked(rows, start + jnp.arange(size, dtype=jnp.int32) >= wanted)
    numbers = split_rows(jnp.arange(filled(size), dtype=jnp.int32))
    rows = _taken(dataset, jnp.minimum(start + numbers, count - 1))
    return _masked(rows, (start + numbers >= wanted) & (numbers < size))


def batch_rows(inputs: Shaped[Array | np.ndarray, "rows ..."], numbers: int = EVAL_NUMBERS) -> int:
    """How many rows of (N, ...) inputs an evaluation takes at once unless told: 1024, or fewer that hold `numbers`."""
    return max(1, min(EVAL_ROWS, numbers // max(1, math.prod(inputs.shape[1:]))))


def _of_window(window: Window, index: int | Array) -> Dataset:
    place = jnp.asarray(index, jnp.int32) - window.first
    batch: Dataset = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, place, 0, False), window.batches)
    return split_rows(batch)


def _taken(dataset: Dataset, rows: Array) -> Dataset:
    batch: Dataset = jax.tree.map(lambda leaf: jnp.asarray(leaf).at[rows].get(mode="promise_in_bounds"), dataset)
    return split_rows(batch)


def _masked(rows: Any, real: Array) -> Any:
    """The rows with those that are not real as padding: of weight 0, and out of the mask where there is one."""
    if isinstance(rows, Dataset):
        # Of rows that all weigh 1, the weights say as much as a mask would.
        return rows._replace(sample_weight=jnp.where(real, rows.sample_weight, jnp.zeros((), rows.sample_weight.dtype)))
    mask = real & rows.mask
    return rows._replace(
        sample_weight=jnp.where(mask, rows.sample_weight, jnp.zeros((), rows.sample_weight.dtype)), mask=mask
    )
