"""Rows of data, against scikit-learn, NumPy and counting."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from jaxdl.data import dataset, fit_scaler, split, standardize, take
from jaxdl.errors import InputError


@given(count=st.integers(2, 4000), fraction=st.floats(0.01, 0.9), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_split_equals_train_test_split_of_scikit_learn(count, fraction, seed):
    if int(np.ceil(fraction * count)) >= count:
        with pytest.raises(InputError, match="a row on each side"):
            split(count, fraction, seed)
        return
    remaining, held = train_test_split(np.arange(count), test_size=fraction, random_state=seed)
    ours = split(count, fraction, seed)
    np.testing.assert_array_equal(ours[0], remaining)
    np.testing.assert_array_equal(ours[1], held)


@pytest.mark.parametrize(
    ("count", "rows"), [(1096, (767, 164, 165)), (3286, (2300, 493, 493)), (3653, (2557, 548, 548))]
)
def test_two_splits_give_the_set_sizes_of_the_lesson(count, rows):
    train, rest = split(count, 0.3)
    validation, test = split(len(rest), 0.5)
    assert (len(train), len(validation), len(test)) == rows


def test_standardize_equals_standard_scaler_of_scikit_learn():
    table = np.random.default_rng(0).normal(5, 3, (200, 4)) * [1, 10, 1e-3, 1] + [0, 0, 100, 0]
    scaling = fit_scaler(table[:150])
    ours = standardize(table, scaling)
    np.testing.assert_allclose(ours, StandardScaler().fit(table[:150]).transform(table), rtol=1e-5, atol=1e-6)


def test_a_constant_column_stays_finite():
    table = np.full((50, 1), 0.1)
    np.testing.assert_array_equal(fit_scaler(table).scale, [1.0])
    np.testing.assert_allclose(standardize(table, fit_scaler(table)), 0, atol=1e-15)


def test_take_keeps_inputs_targets_and_weights_aligned():
    chosen = take(dataset([[1.0], [2.0], [3.0]], [10, 20, 30], [1, 1, 0]), [2, 0])
    assert (chosen.inputs[:, 0].tolist(), chosen.targets.tolist(), chosen.sample_weight.tolist()) == (
        [3, 1],
        [30, 10],
        [0, 1],
    )


def test_dataset_keeps_integers_and_converts_floats_to_float32():
    rows = dataset(np.zeros((2, 3), np.uint8), np.array([1.0, 2.0]))
    assert (rows.inputs.dtype, rows.targets.dtype, rows.sample_weight.dtype) == (np.uint8, np.float32, np.float32)


def test_weights_may_be_any_numbers():
    for weights in ([1, 0], [True, False], np.array([1.0, 0.0])):
        assert dataset([1.0, 2.0], [0, 1], weights).sample_weight.dtype == np.float32


def test_take_accepts_no_rows():
    assert take(dataset([1.0, 2.0], [0, 1]), []).inputs.shape == (0,)


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
        (([1.0], [1.0], [-1.0]), "sample_weight must be a row of numbers >= 0"),
        (([1.0], [1.0], [0.0]), "not all 0"),
    ],
)
def test_dataset_rejects_bad_values_by_the_name_of_the_argument(arguments, message):
    with pytest.raises(InputError, match=message):
        dataset(*arguments)


NUMBERS = np.random.default_rng(0).normal(size=(70, 3)).astype(np.float32)
TABLE = pd.DataFrame(NUMBERS, columns=["warm", "wind", "rain"])
COUNT = np.arange(70)


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (TABLE.warm > 0, NUMBERS[:, 0] > 0),
        ((TABLE.warm > 0).astype("boolean"), NUMBERS[:, 0] > 0),
        (pd.array(COUNT, dtype="Int64"), COUNT),
        (TABLE.warm.astype("Float64"), NUMBERS[:, 0]),
        (TABLE.warm.astype("double[pyarrow]"), NUMBERS[:, 0]),
        (pd.arrays.SparseArray(COUNT * 1.0), COUNT),
        (COUNT.astype(">i4"), COUNT),
    ],
    ids=["bool", "boolean", "Int64", "Float64", "arrow", "sparse", "big-endian"],
)
def test_dataset_accepts_numeric_columns_of_pandas(column, wanted):
    rows = dataset(TABLE.assign(warm=column), column)
    assert rows.inputs.dtype == np.float32 and rows.targets.dtype.isnative
    np.testing.assert_array_equal(rows.inputs[:, 0], np.asarray(wanted, np.float32))
    np.testing.assert_array_equal(rows.inputs[:, 1:], NUMBERS[:, 1:])
    np.testing.assert_array_equal(rows.targets, wanted)


def test_dataset_accepts_one_hot_columns_of_pandas():
    words = pd.DataFrame({"wind": NUMBERS[:, 0], "sky": ["clear", "grey"] * 35})
    np.testing.assert_array_equal(dataset(pd.get_dummies(words), COUNT).inputs[:2, 1:], [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            pd.array([None, *range(69)], dtype="Int64"),
            r"a number in every row, got 1 missing, the first in row 0.*fillna",
        ),
        (pd.array([True] * 69 + [None], dtype="boolean"), r"got 1 missing, the first in row 69"),
        (TABLE.warm.where(TABLE.warm < 1), r"a number in every row, got \d+ missing"),
        (pd.Categorical(["x", "y"] * 35), r"must hold numbers, got dtype category.*get_dummies"),
        (["x", "y"] * 35, r"must hold numbers, got dtype \w+\..*one-hot"),
        ([1.0] * 69 + [None], r"got 1 missing"),
        (pd.Series([1.0] * 70, dtype=object), r"got dtype object.*astype\(float\)"),
        (pd.date_range("2000", periods=70), r"got dtype datetime64.*day of the year"),
        (pd.date_range("2000", periods=70, tz="UTC"), r"got dtype datetime64"),
        (1.7e9 + 60 * COUNT, r"has 70 values that float32 rounds to 33, from 1700000000 to 1700004140"),
    ],
)
def test_dataset_rejects_a_column_of_pandas_by_its_name(column, message):
    with pytest.raises(InputError, match=rf'column "(warm)" of inputs.*{message}'):
        dataset(TABLE.assign(warm=column), COUNT)


@pytest.mark.parametrize("name", ["Unnamed: 0", "index", "id", "ID", "row_id", "PassengerId", "customer_id"])
def test_dataset_rejects_a_column_that_numbers_the_rows(name):
    for numbers in (COUNT, COUNT[::-1] + 1000, COUNT * 1.0):
        with pytest.raises(InputError, match=rf'column "{name}" of inputs numbers the rows.*drop'):
            dataset(TABLE.assign(**{name: numbers}), COUNT)
    dataset(TABLE.assign(**{name: NUMBERS[:, 0]}), COUNT)
    dataset(TABLE.assign(**{name: COUNT}).to_numpy(), COUNT)


@pytest.mark.parametrize(
    ("column", "left"),
    [
        (1.7e9 + 60 * COUNT, 33),  # Unix times of minutes
        ((1.7e9 + 60 * COUNT).astype(np.int64), 33),
        (1.7e9 + COUNT / 4, 1),
        (30_000_000 + COUNT, 35),  # identifiers
        (3e9 + COUNT, 1),
    ],
)
def test_dataset_rejects_values_that_are_equal_in_float32(column, left):
    assert len(np.unique(column.astype(np.float32))) == left
    for rows in ((column[:, None], COUNT), (NUMBERS, column[:, None])):
        with pytest.raises(
            InputError, match=rf"column 0 of (inputs|targets) has \d+ values that float32 rounds to {left}"
        ):
            dataset(*rows)


@pytest.mark.parametrize(
    "column",
    [
        1e5 + NUMBERS[:, 0],  # a pressure in Pa
        1.7e9 + 3600.0 * COUNT,
        1.7e9 + 60.0 * COUNT - 1.7e9,
        np.where(COUNT % 2, 0.1 + 0.2, 0.3),  # equal but for rounding
        np.random.default_rng(0).integers(0, 10**9, 70),
        np.full(70, 2.0**40),
    ],
)
def test_dataset_accepts_values_that_float32_resolves(column):
    assert dataset(column[:, None], COUNT).inputs.shape == (70, 1)


def test_dataset_converts_narrow_floats_to_float32():
    for dtype in (jnp.bfloat16, jnp.float8_e4m3fn, np.float16):
        for array in (NUMBERS.astype(dtype), jnp.asarray(NUMBERS, dtype)):
            result = dataset(array, COUNT).inputs
            assert result.dtype == np.float32
            np.testing.assert_array_equal(result, NUMBERS.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("kind", [">f8", ">f4", ">i4", ">u2", ">i8", "<f4"])
def test_dataset_converts_the_byte_order(kind):
    values = np.arange(12).reshape(6, 2)
    rows = dataset(values.astype(kind), values.astype(kind), np.ones(6, ">f4"))
    assert all(leaf.dtype.isnative for leaf in rows)
    np.testing.assert_array_equal(rows.inputs, values)
    np.testing.assert_array_equal(rows.targets, values)


@pytest.mark.parametrize("name", ["inputs", "targets", "sample_weight"])
def test_dataset_rejects_masked_values(name):
    plain = {"inputs": NUMBERS, "targets": COUNT * 1.0, "sample_weight": np.ones(70)}
    hidden = np.ma.array(plain[name], mask=False)
    assert len(dataset(**plain | {name: hidden}).inputs) == 70
    hidden[5] = np.ma.masked
    with pytest.raises(
        InputError, match=rf"{name} must hold a number everywhere, got \d masked values, the first at \(5,"
    ):
        dataset(**plain | {name: hidden})
    with pytest.raises(InputError, match=rf"{name} must hold a number everywhere"):
        dataset(**plain | {name: list(hidden)})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": NUMBERS, "b": {}}, r"inputs\['b'\] must have at least one array, got an empty dict"),
        ({"a": NUMBERS, 1: NUMBERS}, "must have keys of one type, got 'a', 1. Use strings"),
        ({"a": NUMBERS, "b": NUMBERS[:9]}, r"inputs\['b'\] must have one row for each of the 70 inputs\['a'\], got 9"),
        ({"a": NUMBERS, "b": [["x"]] * 70}, r"inputs\['b'\] must hold numbers, got dtype <U1"),
        ([NUMBERS[:9], NUMBERS[:9]], "for each of the 2 inputs, got 70. The inputs are a list of 2 arrays"),
        ([NUMBERS, NUMBERS[:9]], "inputs must be one array of numbers, got list"),
        ([[[1, 2], [3]], [[1, 2], [3]]], "inputs must be one array of numbers, got list"),
        (scipy.sparse.csr_matrix(NUMBERS), "must be a dense array, got a sparse csr_matrix. Use its .toarray"),
        (NUMBERS + 1j, "got dtype complex64. Give the real and the imaginary part"),
        (COUNT.astype("M8[s]"), "got dtype datetime64.*day of the year"),
        (np.zeros(70, [("a", "f4")]), "structured_to_unstructured"),
        (np.full((70, 1), -(2**63)), "must fit into 32 bits, got 9223372036854775808"),
    ],
)
def test_dataset_rejects_values_that_are_not_an_array_of_numbers(inputs, message):
    with pytest.raises(InputError, match=message):
        dataset(inputs, COUNT)


def test_scaling_reads_pandas_and_rejects_masked_values():
    table = pd.DataFrame({"warm": NUMBERS[:, 0] > 0, "wind": pd.array(COUNT, dtype="Int64")})
    plain = np.stack([NUMBERS[:, 0] > 0, COUNT], 1).astype(float)
    np.testing.assert_allclose(
        standardize(table, fit_scaler(table)), StandardScaler().fit_transform(plain), rtol=1e-5, atol=1e-6
    )
    hidden = np.ma.masked_equal(plain, 5)
    for scale in (fit_scaler, lambda inputs: standardize(inputs, fit_scaler(plain))):
        with pytest.raises(InputError, match="inputs must hold a number everywhere, got 1 masked values"):
            scale(hidden)
