"""Shuffle permutations, and the batches of a dataset in their order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Int32, Int64, PRNGKeyArray, UInt32
from numpy.typing import ArrayLike

from jaxdl._jit import is_traced
from jaxdl.distributed.sharding import data_devices, split_rows
from jaxdl.types import Array, Batch, Dataset, PyTree

_ROUNDS = 32
# Datasets up to this size compute the whole permutation once per compiled call, in less than a millisecond. For larger
# ones each step computes only the places of its batch.
_WHOLE = 2**16


class SwapRounds(NamedTuple):
    """The random numbers of a swap-or-not shuffle: each round pairs up the rows and swaps a pair by a hash."""

    pivots: Int32[Array, " rounds"]
    salts: UInt32[Array, " rounds"]


def _swap_rounds(key: PRNGKeyArray, epoch: Any, count: int) -> SwapRounds:
    """Return the rounds that permute `count` rows in an epoch."""
    bits = jax.random.bits(jax.random.fold_in(key, epoch), (2, _ROUNDS), jnp.uint32)
    return SwapRounds((bits[0] % jnp.uint32(count)).astype(jnp.int32), bits[1])


def permutation(key: PRNGKeyArray, epoch: int | Array, count: int) -> Int32[Array, " {count}"]:
    """Return the permutation of `count` rows in an epoch, (count,) int32; it depends on key and epoch alone."""
    return _rows_at(_swap_rounds(key, epoch, count), jnp.arange(count, dtype=jnp.int32), count, 1)


def permuted_rows(
    key: PRNGKeyArray, epoch: int | Array, count: int
) -> Callable[[Int32[Array, " batch"]], Int32[Array, " batch"]]:
    """Return a function from places (B,) int32 in the `permutation` to rows (B,) int32."""
    if count <= _WHOLE:
        rows = permutation(key, epoch, count)
        return lambda places: rows[places]
    rounds = _swap_rounds(key, epoch, count)
    # Unrolled by half: in one expression XLA would compute the row anew for each of its columns.
    return lambda places: _rows_at(rounds, places, count, _ROUNDS // 2)


def _rows_at(rounds: SwapRounds, places: Int32[Array, " batch"], count: int, unroll: int) -> Int32[Array, " batch"]:
    """Return the rows at places of the permutation; source: Hoang, Morris and Rogaway, CRYPTO (2012)."""

    def swap_or_not(index: Array, rows: Array) -> Array:
        partner = rounds.pivots[index] - rows
        partner = jnp.where(partner < 0, partner + count, partner)
        # The larger row of a pair decides, so that both rows of the pair get the same coin.
        coin = hash32(jnp.maximum(rows, partner).astype(jnp.uint32) ^ rounds.salts[index]) & jnp.uint32(1)
        return jnp.where(coin == 1, partner, rows)

    return lax.fori_loop(0, _ROUNDS, swap_or_not, places, unroll=unroll)


def rows_on_host(rounds: SwapRounds, places: ArrayLike, count: int) -> Int64[np.ndarray, " batch"]:
    """Return the rows (B,) at places (B,) of the permutation, computed with NumPy."""
    rows = np.asarray(places, np.int32)
    for pivot, salt in zip(np.asarray(rounds.pivots), np.asarray(rounds.salts), strict=True):
        partner = pivot - rows
        partner += np.where(partner < 0, np.int32(count), np.int32(0))
        coin = hash32(np.maximum(rows, partner).view(np.uint32) ^ salt) & np.uint32(1)
        rows = np.where(coin == 1, partner, rows)
    return rows.astype(np.int64)


def hash32(bits: Any) -> Any:
    """Return the 32-bit finalizer of MurmurHash3: a bijection of uint32 whose output bits depend on all input bits."""
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))


# The maximum numbers of examples and of values in an evaluation batch. They are the same on every platform, because a
# run counts its batches and may resume elsewhere. Larger batches would only need more memory.
EVAL_ROWS, EVAL_NUMBERS = 1024, 2**19


def only_counted(examples: Any) -> Any:
    """Replace inputs and targets of examples of weight 0 by those of the first counted example.

    An example of weight 0 may hold nan or infinity, and 0 times these is nan in a sum or a gradient. Examples that all
    count are returned unchanged.
    """
    if is_traced(examples.sample_weight):
        counted = examples.sample_weight > 0
        first = jnp.argmax(counted)

        def replace(leaf: Array) -> Array:
            leaf = jnp.asarray(leaf)
            return jnp.where(counted.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, leaf[first][None])

        return _map_values(replace, examples)
    mask = np.asarray(examples.sample_weight) > 0
    if mask.all():
        return examples
    if not mask.any():
        return _map_values(lambda leaf: (np if isinstance(leaf, np.ndarray) else jnp).zeros_like(leaf), examples)
    places = np.where(mask, np.arange(len(mask)), np.argmax(mask))
    return _map_values(lambda leaf: leaf[places], examples)


def _map_values(function: Callable[[Any], Any], examples: Any) -> Any:
    """Return examples with a function of each array of their inputs and targets."""
    inputs, targets = jax.tree.map(function, (examples.inputs, examples.targets))
    return examples._replace(inputs=inputs, targets=targets)


def training_rows(train: object) -> Any:
    """Return a dataset with weights relative to their mean, and `only_counted`, so that steps need no other batch.

    Weights that are not all 1 give a Batch, whose mask distinguishes padding from examples of weight 0. Traced arrays
    and Windows must be prepared already and are returned unchanged.
    """
    if not isinstance(train, Dataset) or is_traced(train.sample_weight):
        return train
    sample_weight = np.asarray(train.sample_weight)
    if (sample_weight == 1).all():
        return train
    # In the dtype of the weights, as for a source.
    mean = sample_weight.dtype.type(sample_weight.mean(dtype=np.float64))
    ones = jnp.ones_like if isinstance(train.sample_weight, jax.Array) else np.ones_like
    mask: Any = ones(train.sample_weight, bool)
    return only_counted(Batch(train.inputs, train.targets, train.sample_weight / mean, mask))


def evaluation_rows(dataset: object) -> Any:
    """Return `only_counted` of a dataset; None and traced datasets are returned unchanged."""
    return only_counted(dataset) if isinstance(dataset, Dataset) and not is_traced(dataset.sample_weight) else dataset


class Window(NamedTuple):
    """Consecutive batches of a streaming dataset in the order of the epoch."""

    batches: Dataset  # (K, B, ...), with padding in the last batch of the epoch; weights are relative to their mean
    first: Array  # int32 scalar, the index in the epoch of the first batch
    rows: Array  # int32 scalar, the number of examples of the epoch


def epoch_rows(train: Any) -> Any:
    """Return the number of examples in an epoch of a dataset, a Window or a `Loader`."""
    return train.sample_weight.shape[0] if isinstance(train, (Dataset, Batch)) else train.rows


def batches_of(
    train: Dataset | Batch | Window, key: Array, epoch: int | Array, batch_size: int, *, mask: bool = True
) -> Callable[[Any], Any]:
    """Return a function from the index of a batch to the batch: of a dataset in shuffled order, or of a Window.

    train: the result of `training_rows`.
    mask: whether a dataset of weights 1 gives a Batch, whose mask marks padding. If False it gives a Dataset, where the
        weight 0 marks padding.
    """
    rows_at = None if isinstance(train, Window) else permuted_rows(key, epoch, train.sample_weight.shape[0])

    def batch(index: int | Array) -> Any:
        if isinstance(train, Window):
            place = jnp.asarray(index, jnp.int32) - train.first
            examples: Any = split_rows(
                jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, place, 0, False), train.batches)
            )
        else:
            examples = batch_at(train, rows_at, index, batch_size)
        return Batch(*examples, examples.sample_weight > 0) if mask and isinstance(examples, Dataset) else examples

    return batch


def batch_at(dataset: Any, rows_at: Any, index: Any, batch_size: int) -> Any:
    """Return a batch of a dataset in shuffled order, with padding of weight 0 in the last batch.

    rows_at: a function from places (B,) of the order to rows (B,).
    """
    count = dataset.sample_weight.shape[0]
    numbers = split_rows(jnp.arange(padded_size(batch_size), dtype=jnp.int32))
    places = index * batch_size + numbers
    return _mask_padding(_take(dataset, rows_at(places % count)), (places < count) & (numbers < batch_size))


def padded_size(batch_size: int) -> int:
    """Return the next multiple of the number of devices that share a batch."""
    return batch_size + -batch_size % data_devices()


def validation_batch(dataset: Dataset, index: int | Array, batch_size: int) -> Dataset:
    """Return a batch in dataset order; the last one starts earlier, with weight 0 for examples of the batch before."""
    count = dataset.sample_weight.shape[0]
    size = min(batch_size, count)
    first = jnp.asarray(index, jnp.int32) * size
    start = jnp.minimum(first, count - size)
    if data_devices() == 1:
        examples = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(jnp.asarray(leaf), start, size), dataset)
        return _mask_padding(examples, start + jnp.arange(size, dtype=jnp.int32) >= first)
    numbers = split_rows(jnp.arange(padded_size(size), dtype=jnp.int32))
    examples = _take(dataset, jnp.minimum(start + numbers, count - 1))
    return _mask_padding(examples, (start + numbers >= first) & (numbers < size))


def default_batch_size(inputs: PyTree, numbers: int = EVAL_NUMBERS) -> int:
    """Return the default evaluation batch size for inputs (N, ...): 1024, or fewer examples of `numbers` values.

    Of several inputs the largest array counts.
    """
    largest = max(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(inputs))
    return max(1, min(EVAL_ROWS, numbers // max(1, largest)))


def _take(dataset: Any, rows: Array) -> Any:
    return split_rows(jax.tree.map(lambda leaf: jnp.asarray(leaf).at[rows].get(mode="promise_in_bounds"), dataset))


def _mask_padding(examples: Any, real: Array) -> Any:
    """Set the weight of examples that are not `real` to 0, and their mask to False."""
    mask = real if isinstance(examples, Dataset) else real & examples.mask
    zero = jnp.zeros((), examples.sample_weight.dtype)
    examples = examples._replace(sample_weight=jnp.where(mask, examples.sample_weight, zero))
    return examples if isinstance(examples, Dataset) else examples._replace(mask=mask)
