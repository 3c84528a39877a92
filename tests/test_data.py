"""Rows of data, against scikit-learn, NumPy and counting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from jaxdl.data import examples, fit_scaling, pad, split, standardise, take, unstandardise
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
