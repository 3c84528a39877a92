"""Batches, against counting and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from jaxdl.data import batches as batches_module
from jaxdl.data import dataset
from jaxdl.data.batches import (
    Window,
    _swap_rounds,
    batch_at,
    batches_of,
    epoch_rows,
    hash32,
    permutation,
    permuted_rows,
    rows_on_host,
)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (7, 7), (7, 3), (8, 4), (5, 8), (31, 30)])
def test_batches_contain_every_example_once(count, batch_size):
    rows_of = jax.tree.map(jnp.asarray, dataset(np.arange(count) + 1.0, np.arange(count)))
    at = permuted_rows(jax.random.key(0), 0, count)
    batches = [batch_at(rows_of, at, index, batch_size) for index in range(-(-count // batch_size))]
    weights = np.concatenate([batch.sample_weight for batch in batches])
    used = np.concatenate([batch.inputs for batch in batches])[weights > 0]
    np.testing.assert_array_equal(np.sort(used), np.arange(count) + 1.0)
    assert all(batch.sample_weight.shape == (batch_size,) and batch.sample_weight.sum() > 0 for batch in batches)


def test_the_last_batch_of_767_examples_has_31():
    rows_of = jax.tree.map(jnp.asarray, dataset(np.arange(767.0), np.arange(767)))
    last = batch_at(rows_of, lambda places: places, 23, 32)
    assert float(last.sample_weight.sum()) == 31


def test_a_window_returns_its_batches():
    rows = dataset(np.arange(12.0), np.arange(12))
    whole = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(3, 4, *leaf.shape[1:]), rows)
    window = Window(whole, jnp.int32(5), jnp.int32(100))
    assert int(epoch_rows(window)) == 100
    batch = batches_of(window, jax.random.key(0), 0, 4)
    for index in (5, 6, 7):
        np.testing.assert_array_equal(batch(index).inputs, np.arange(4) + 4.0 * (index - 5))


def test_batches_follow_the_permutation():
    rows = jax.tree.map(jnp.asarray, dataset(np.arange(10.0), np.arange(10)))
    batch, wanted = batches_of(rows, jax.random.key(3), 2, 4), np.asarray(permutation(jax.random.key(3), 2, 10))
    result = np.concatenate([batch(index).targets for index in range(3)])[:10]
    np.testing.assert_array_equal(result, wanted)


# The order of rows, against counting and MurmurHash3.

# As one program each.
ordered, rounds_of = (jax.jit(function, static_argnums=2) for function in (permutation, _swap_rounds))


def test_hash32_is_the_finalizer_of_murmurhash3():
    from sklearn.utils import murmurhash3_32

    # The hash of nothing is its finaliser, applied to the seed.
    seeds = np.random.default_rng(0).integers(0, 2**32, 200, np.uint32)
    wanted = [murmurhash3_32(b"", int(seed), positive=True) for seed in seeds]
    np.testing.assert_array_equal(hash32(jnp.asarray(seeds)), np.uint32(wanted))


@pytest.mark.parametrize("count", [1, 2, 3, 64, 767])
def test_permutation_depends_on_key_and_epoch(count):
    for seed, epoch in [(0, 0), (0, 1), (5, 2**31 - 1)]:
        rows = ordered(jax.random.key(seed), epoch, count)
        assert rows.dtype == jnp.int32
        np.testing.assert_array_equal(np.sort(rows), np.arange(count))
        np.testing.assert_array_equal(rows, permutation(jax.random.key(seed), epoch, count))


def test_permutations_of_other_epochs_and_keys_differ():
    first = np.asarray(ordered(jax.random.key(0), 0, 767))
    for other in (ordered(jax.random.key(0), 1, 767), ordered(jax.random.key(1), 0, 767)):
        assert (first == other).mean() < 0.02


@pytest.mark.parametrize("count", [3, 8, 31])
def test_every_row_is_equally_likely_at_every_place(count):
    draws = 6000
    orders = jax.jit(jax.vmap(lambda epoch: permutation(jax.random.key(7), epoch, count)))(np.arange(draws))
    calls = np.zeros((count, count))
    np.add.at(calls, (np.arange(count)[None, :].repeat(draws, 0), np.asarray(orders)), 1)
    expected = draws / count
    # Rows and columns both add up to `draws`, so (count - 1)^2 of the cells are free.
    statistic = ((calls - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(0.9999, (count - 1) ** 2)


def test_neighbouring_places_are_independent():
    count, draws = 7, 8000
    orders = np.asarray(jax.jit(jax.vmap(lambda epoch: permutation(jax.random.key(3), epoch, count)))(np.arange(draws)))
    pairs = np.zeros((count, count))
    np.add.at(pairs, (orders[:, 0], orders[:, 1]), 1)
    off_diagonal = pairs[~np.eye(count, dtype=bool)]
    expected = draws / len(off_diagonal)
    assert ((off_diagonal - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, len(off_diagonal) - 1)


def test_permutation_is_bit_identical_under_vmap_and_jit():
    epochs = jnp.arange(4)
    together = jax.jit(jax.vmap(lambda epoch: permutation(jax.random.key(0), epoch, 100)))(epochs)
    for epoch in range(4):
        np.testing.assert_array_equal(together[epoch], permutation(jax.random.key(0), epoch, 100))


# Each number of rows is a program.
COUNTS = st.sampled_from([1, 2, 3, 10, 64, 100, 767, 1024, 2999])


@given(count=COUNTS, seed=st.integers(0, 5), epoch=st.integers(0, 2**31 - 1), data=st.data())
@settings(max_examples=40, deadline=None)
def test_rows_on_host_equals_the_permutation(count, seed, epoch, data):
    key = jax.random.key(seed)
    places = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20)))
    wanted = np.asarray(ordered(key, epoch, count))[places]
    np.testing.assert_array_equal(rows_on_host(rounds_of(key, epoch, count), places, count), wanted)


@pytest.mark.parametrize("whole", [0, 767])
def test_permuted_rows_equals_the_permutation(whole, monkeypatch):
    monkeypatch.setattr(batches_module, "_WHOLE", whole)
    key, places = jax.random.key(1), jnp.array([0, 766, 5, 5], jnp.int32)
    result = jax.jit(lambda places: permuted_rows(key, 3, 767)(places))(places)
    assert result.dtype == jnp.int32
    np.testing.assert_array_equal(result, np.asarray(ordered(key, 3, 767))[np.asarray(places)])


def test_permuted_rows_of_two_billion_rows_needs_no_array_of_all():
    # Two billion rows, as many as int32 can count: an array of them would not fit.
    count = 2**31 - 1
    rounds = _swap_rounds(jax.random.key(0), 0, count)
    places = np.arange(1000) * 2_000_003
    rows = rows_on_host(rounds, places, count)
    assert len(set(rows.tolist())) == 1000
    np.testing.assert_array_equal(
        jax.jit(permuted_rows(jax.random.key(0), 0, count))(jnp.asarray(places, jnp.int32)), rows
    )
