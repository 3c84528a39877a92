"""Rows of data, against scikit-learn, NumPy and counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from jaxdl.data import batch_at, examples, fit_scaling, mix, order, pad, split, standardise, take, unstandardise
from jaxdl.errors import InputError


@given(count=st.integers(2, 4000), fraction=st.floats(0.01, 0.9), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_split_is_that_of_scikit_learn_row_for_row(count, fraction, seed):
    if int(np.ceil(fraction * count)) >= count:
        with pytest.raises(InputError, match="a row on each side"):
            split(count, fraction, seed)
        return
    kept, held = train_test_split(np.arange(count), test_size=fraction, random_state=seed)
    ours = split(count, fraction, seed)
    np.testing.assert_array_equal(ours[0], kept)
    np.testing.assert_array_equal(ours[1], held)


@pytest.mark.parametrize(
    ("count", "rows"), [(1096, (767, 164, 165)), (3286, (2300, 493, 493)), (3653, (2557, 548, 548))]
)
def test_the_lessons_two_splits_give_its_counts(count, rows):
    train, rest = split(count, 0.3)
    validation, test = split(len(rest), 0.5)
    assert (len(train), len(validation), len(test)) == rows


def test_standardising_is_that_of_scikit_learn_and_is_undone():
    table = np.random.default_rng(0).normal(5, 3, (200, 4)) * [1, 10, 1e-3, 1] + [0, 0, 100, 0]
    scaling = fit_scaling(table[:150])
    ours = standardise(table, scaling)
    np.testing.assert_allclose(ours, StandardScaler().fit(table[:150]).transform(table), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(unstandardise(ours, scaling), table, rtol=1e-6, atol=1e-6)


def test_a_constant_column_stays_finite():
    table = np.full((50, 1), 0.1)
    np.testing.assert_array_equal(fit_scaling(table).spread, [1.0])
    np.testing.assert_allclose(standardise(table, fit_scaling(table)), 0, atol=1e-15)


def test_mix_is_murmurhash3_of_no_bytes():
    from sklearn.utils import murmurhash3_32

    # The hash of nothing is its finaliser, applied to the seed.
    seeds = np.random.default_rng(0).integers(0, 2**32, 200, np.uint32)
    wanted = [murmurhash3_32(b"", int(seed), positive=True) for seed in seeds]
    np.testing.assert_array_equal(mix(jnp.asarray(seeds)), np.uint32(wanted))


@pytest.mark.parametrize("count", [1, 2, 3, 64, 767])
def test_order_is_a_permutation_that_key_and_epoch_decide(count):
    shuffle = jax.jit(order, static_argnums=2)
    for seed, epoch in [(0, 0), (0, 1), (5, 2**31 - 1)]:
        rows = shuffle(jax.random.key(seed), epoch, count)
        assert rows.dtype == jnp.int32
        np.testing.assert_array_equal(np.sort(rows), np.arange(count))
        np.testing.assert_array_equal(rows, order(jax.random.key(seed), epoch, count))


def test_orders_of_other_epochs_and_keys_differ():
    first = order(jax.random.key(0), 0, 767)
    for other in (order(jax.random.key(0), 1, 767), order(jax.random.key(1), 0, 767)):
        assert (first == other).mean() < 0.02


@pytest.mark.parametrize("count", [3, 8, 31])
def test_every_row_is_equally_likely_at_every_place(count):
    draws = 6000
    orders = jax.vmap(lambda epoch: order(jax.random.key(7), epoch, count))(jnp.arange(draws))
    seen = np.zeros((count, count))
    np.add.at(seen, (np.arange(count)[None, :].repeat(draws, 0), np.asarray(orders)), 1)
    expected = draws / count
    # Rows and columns both add up to `draws`, so (count - 1)^2 of the cells are free.
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(0.9999, (count - 1) ** 2)


def test_neighbouring_places_are_independent():
    count, draws = 7, 8000
    orders = np.asarray(jax.vmap(lambda epoch: order(jax.random.key(3), epoch, count))(jnp.arange(draws)))
    pairs = np.zeros((count, count))
    np.add.at(pairs, (orders[:, 0], orders[:, 1]), 1)
    off_diagonal = pairs[~np.eye(count, dtype=bool)]
    expected = draws / len(off_diagonal)
    assert ((off_diagonal - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, len(off_diagonal) - 1)


def test_order_gives_the_same_bits_under_vmap_and_jit():
    epochs = jnp.arange(4)
    together = jax.jit(jax.vmap(lambda epoch: order(jax.random.key(0), epoch, 100)))(epochs)
    for epoch in range(4):
        np.testing.assert_array_equal(together[epoch], order(jax.random.key(0), epoch, 100))


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (7, 7), (7, 3), (8, 4), (5, 8), (31, 30)])
def test_batches_use_every_row_once(count, batch_size):
    rows_of = jax.tree.map(jnp.asarray, examples(np.arange(count) + 1.0, np.arange(count)))
    rows = order(jax.random.key(0), 0, count)
    batches = [batch_at(rows_of, rows, index, batch_size) for index in range(-(-count // batch_size))]
    weights = np.concatenate([batch.weights for batch in batches])
    used = np.concatenate([batch.inputs for batch in batches])[weights > 0]
    np.testing.assert_array_equal(np.sort(used), np.arange(count) + 1.0)
    assert all(batch.weights.shape == (batch_size,) and batch.weights.sum() > 0 for batch in batches)


def test_767_rows_in_batches_of_32_are_24_steps_the_last_of_31():
    rows_of = jax.tree.map(jnp.asarray, examples(np.arange(767.0), np.arange(767)))
    last = batch_at(rows_of, jnp.arange(767), 23, 32)
    assert float(last.weights.sum()) == 31


def test_padding_repeats_a_real_row_with_weight_0():
    padded = pad(examples([1.0, 2.0, 3.0], [4, 5, 6]), 4)
    np.testing.assert_array_equal(padded.inputs, [1, 2, 3, 3])
    np.testing.assert_array_equal(padded.weights, [1, 1, 1, 0])
    assert pad(padded, 2).inputs.shape == (4,)


def test_take_keeps_rows_aligned():
    chosen = take(examples([[1.0], [2.0], [3.0]], [10, 20, 30], [1, 1, 0]), [2, 0])
    assert (chosen.inputs[:, 0].tolist(), chosen.targets.tolist(), chosen.weights.tolist()) == (
        [3, 1],
        [30, 10],
        [0, 1],
    )


def test_examples_keep_integers_and_make_floats_float32():
    rows = examples(np.zeros((2, 3), np.uint8), np.array([1.0, 2.0]))
    assert (rows.inputs.dtype, rows.targets.dtype, rows.weights.dtype) == (np.uint8, np.float32, np.float32)


def test_weights_may_be_any_numbers():
    for weights in ([1, 0], [True, False], np.array([1.0, 0.0])):
        assert examples([1.0, 2.0], [0, 1], weights).weights.dtype == np.float32


def test_no_rows_may_be_taken():
    assert take(examples([1.0, 2.0], [0, 1]), []).inputs.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2**40], [1]), "inputs must fit into 32 bits, got 1099511627776"),
        (([1e300], [1]), "inputs must be finite, got inf"),
        (([1.0, 2.0], [1.0]), "targets must have one row for each of the 2 inputs, got 1"),
        (([], []), "at least one row"),
        (([1.0, np.nan], [1.0, 2.0]), r"inputs must be finite, got nan at \(1,\)"),
        (([1.0], [np.inf]), "targets must be finite, got inf"),
        ((["a"], [1.0]), "inputs must hold numbers"),
        (([1.0], [1.0], [-1.0]), "weights must be a row of numbers >= 0"),
        (([1.0], [1.0], [0.0]), "not all 0"),
    ],
)
def test_bad_rows_are_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        examples(*arguments)
