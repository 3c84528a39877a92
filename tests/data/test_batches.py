"""Batches, against counting and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.data import examples
from jaxdl.data.batches import Window, batch_at, batches_of, epoch_rows, order, shuffle


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (7, 7), (7, 3), (8, 4), (5, 8), (31, 30)])
def test_batches_use_every_row_once(count, batch_size):
    rows_of = jax.tree.map(jnp.asarray, examples(np.arange(count) + 1.0, np.arange(count)))
    at = shuffle(jax.random.key(0), 0, count)
    batches = [batch_at(rows_of, at, index, batch_size) for index in range(-(-count // batch_size))]
    weights = np.concatenate([batch.weights for batch in batches])
    used = np.concatenate([batch.inputs for batch in batches])[weights > 0]
    np.testing.assert_array_equal(np.sort(used), np.arange(count) + 1.0)
    assert all(batch.weights.shape == (batch_size,) and batch.weights.sum() > 0 for batch in batches)


def test_767_rows_in_batches_of_32_are_24_steps_the_last_of_31():
    rows_of = jax.tree.map(jnp.asarray, examples(np.arange(767.0), np.arange(767)))
    last = batch_at(rows_of, lambda places: places, 23, 32)
    assert float(last.weights.sum()) == 31


def test_a_window_gives_the_batches_that_it_holds():
    rows = examples(np.arange(12.0), np.arange(12))
    whole = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(3, 4, *leaf.shape[1:]), rows)
    window = Window(whole, jnp.int32(5), jnp.int32(100))
    assert int(epoch_rows(window)) == 100
    batch = batches_of(window, jax.random.key(0), 0, 4)
    for index in (5, 6, 7):
        np.testing.assert_array_equal(batch(index).inputs, np.arange(4) + 4.0 * (index - 5))


def test_batches_of_rows_are_those_of_their_order():
    rows = jax.tree.map(jnp.asarray, examples(np.arange(10.0), np.arange(10)))
    batch, wanted = batches_of(rows, jax.random.key(3), 2, 4), np.asarray(order(jax.random.key(3), 2, 10))
    found = np.concatenate([batch(index).targets for index in range(3)])[:10]
    np.testing.assert_array_equal(found, wanted)
