"""Rows of data: checked, split, scaled and padded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Shaped

from jaxdl._checks import explain_calls, given_as, number, whole_number
from jaxdl.errors import InputError
from jaxdl.types import Dataset


@explain_calls
def dataset(inputs: Any, targets: Any, sample_weight: Any = None) -> Dataset:
    """Aligned rows, checked: `inputs` (N, ...), `targets` (N, ...), `weights` (N,) of ones unless given.

    Python numbers and float64 become float32, or stay float64 where JAX's `jax_enable_x64` is set, given weights too;
    integers (labels, pixels) keep their dtype. Tables of pandas may mix numbers and yes-or-no columns. `weights` are
    sample weights: training minimizes the weighted mean loss, and what an example of weight 0 holds counts nowhere, so
    it may be nan, or a label that is no class. Raises InputError where the counts of rows differ, there are none, a
    value that counts is missing, masked, not finite or no number, a column only counts the rows, or float32 cannot tell
    its values apart.

    >>> rows = dataset([[1.0], [2.0]], [[3.0], [4.0]])
    >>> rows.inputs.shape, rows.sample_weight
    ((2, 1), array([1., 1.], dtype=float32))
    """
    given = inputs
    counted = None
    if sample_weight is not None:
        sample_weight = as_rows("sample_weight", sample_weight)
        sample_weight = sample_weight.astype(precision(sample_weight.dtype), copy=False)
        counted = sample_weight > 0
    inputs, targets = as_rows("inputs", inputs, counted), as_rows("targets", targets, counted)
    sample_weight = np.ones(len(inputs), np.float32) if sample_weight is None else sample_weight
    for name, array in (("targets", targets), ("sample_weight", sample_weight)):
        if len(array) != len(inputs):
            advice = ""
            if isinstance(given, list | tuple) and all(np.ndim(each) > 1 for each in given):
                advice = f" Inputs must be one array, not a {type(given).__name__} of several: concatenate them."
            elif array.shape[-1] == len(inputs):
                advice = f" Their shape is {array.shape}: use {name}.T where they are transposed."
            elif inputs.shape[-1] == len(array):
                advice = f" The inputs' shape is {inputs.shape}: use inputs.T where they are transposed."
            raise InputError(
                f"{name} must have one row for each of the {len(inputs)} inputs, got {len(array)}.{advice}"
            )
    if sample_weight.ndim != 1 or (sample_weight < 0).any() or not sample_weight.any():
        raise InputError(
            f"sample_weight must be a row of numbers >= 0, not all 0, got shape {sample_weight.shape}, least "
            f"{sample_weight.min():g}. Use 1 for each example, and 0 for those that must not count."
        )
    return Dataset(inputs, targets, sample_weight)


def as_rows(
    name: str, values: object, counted: Bool[np.ndarray, " rows"] | None = None
) -> Shaped[np.ndarray, "rows ..."]:
    """Return values as rows (N, ...) of finite numbers that JAX can hold, which errors call `name`.

    Floats become their `precision`, other numbers keep their dtype; the byte order becomes the machine's. Rows that are
    not `counted`, (N,) bool, need not be finite. Raises
    InputError for everything else (see `examples`).
    """
    array, labels = as_numbers(name, values)
    if array.ndim == 0 or len(array) == 0:
        raise InputError(f"{name} must have at least one row, got shape {array.shape}.")
    wide = array
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(precision(array.dtype), copy=False)
        finite = np.isfinite(array)
        if counted is not None and counted.shape == array.shape[:1]:
            finite |= ~counted.reshape(-1, *[1] * (array.ndim - 1))
        if not finite.all():
            place = tuple(int(i) for i in np.argwhere(~finite)[0])
            of = f" ({_column(place[1], labels)})" if labels else ""
            raise InputError(f"{name} must be finite, got {array[place]} at {place}{of}. Drop or fill such rows first.")
    elif array.dtype.itemsize == 8 and array.size:
        largest = max(int(array.max()), -int(array.min()))
        if largest > np.iinfo(np.int32).max:
            raise InputError(f"{name} must fit into 32 bits, got {largest}. Use floats, or smaller numbers.")
    if wide.dtype.kind in "fiu" and wide.dtype.itemsize >= 4 and array.dtype != np.float64 and array.ndim <= 2:
        _check_resolution(name, wide, labels)
    return array


def as_numbers(name: str, values: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return values as an array of numbers in the byte order of the machine, and the names of columns, if it has any.

    bfloat16 and its like become float32. Raises InputError, which calls the values `name`, for what is no array of
    numbers: masked, missing, complex, text, dates, objects, sparse matrices, several arrays.
    """
    if isinstance(values, Mapping):
        kind = f"a {type(values).__name__} of {', '.join(map(str, values))}"
        raise InputError(
            f"{name} must be one array, got {kind}. Concatenate its arrays: np.concatenate([...], axis=1)."
        )
    if hasattr(values, "toarray"):
        raise InputError(f"{name} must be a dense array, got a sparse {type(values).__name__}. Use its .toarray().")
    labels: tuple[str, ...] = ()
    if type(values).__module__.partition(".")[0] == "pandas" and hasattr(
        values, "dtype" if values.ndim == 1 else "iloc"
    ):
        values, labels = _of_pandas(name, values)
    if isinstance(values, list | tuple) and any(isinstance(each, np.ma.MaskedArray) for each in values):
        values = np.ma.array(values)
    if isinstance(values, np.ma.MaskedArray):
        values = _unmasked(name, values)
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        hint = "Give one array of shape (rows, ...): rows of one length, and several arrays concatenated."
        if "grad" in str(error) or "device" in str(error):
            hint = "Use tensor.detach().cpu().numpy()."
        raise InputError(
            f"{name} must be one array of numbers, got {type(values).__name__} ({error}). {hint}"
        ) from error
    if array.dtype.kind == "V" and array.dtype.names is None and jnp.issubdtype(array.dtype, jnp.number):
        # The narrow dtypes of ml_dtypes are no numbers to NumPy.
        array = array.astype(np.float32 if jnp.issubdtype(array.dtype, jnp.floating) else np.int8)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold numbers, got dtype {array.dtype}. {_as_numbers_of(array.dtype)}")
    return (array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))), labels


def _unmasked(name: str, values: np.ma.MaskedArray) -> np.ndarray:
    masked = np.argwhere(np.ma.getmaskarray(values))
    if len(masked):
        place = tuple(masked[0].tolist())
        raise InputError(
            f"{name} must hold a number everywhere, got {len(masked)} masked values, the first at {place}. Drop such "
            "rows, or fill them with values.filled(number) and give them the weight 0."
        )
    return values.data


def _as_numbers_of(dtype: object) -> str:
    """What to type where numbers are needed."""
    if getattr(dtype, "kind", "O") in "Mm":
        return "Use numbers that mean something, such as the day of the year, or the seconds since a start as floats."
    if getattr(dtype, "kind", "O") == "c":
        return "Give the real and the imaginary part as columns of their own."
    if getattr(dtype, "names", None):
        return "Use numpy.lib.recfunctions.structured_to_unstructured."
    return (
        "Encode them as numbers first: .astype(float) where they are numbers, one-hot (pandas.get_dummies) for words."
    )


def _of_pandas(name: str, table: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """The numbers of a DataFrame, a Series or an array of pandas."""
    if table.ndim == 1:
        label = getattr(table, "name", None)
        return _of_column(name if label is None else f'column "{label}" of {name}', table), ()
    labels = tuple(map(str, table.columns))
    parts = [_of_column(f'column "{label}" of {name}', table.iloc[:, place]) for place, label in enumerate(labels)]
    for label, part in zip(labels, parts, strict=True):
        if _counts_rows(label, part):
            raise InputError(
                f'column "{label}" of {name} numbers the rows: a network would learn their order. Leave it out, '
                f'table.drop(columns="{label}"), or give table.to_numpy() if it is meant.'
            )
    return (np.stack(parts, axis=1) if parts else np.zeros((len(table), 0), np.float32)), labels


def _of_column(where: str, column: Any) -> np.ndarray:
    dtype = column.dtype
    if getattr(dtype, "kind", "O") not in "fiub" or hasattr(dtype, "categories"):
        raise InputError(f"{where} must hold numbers, got dtype {dtype}. {_as_numbers_of(dtype)}")
    missing = np.flatnonzero(np.asarray(column.isna()))
    if len(missing):
        raise InputError(
            f"{where} must hold a number in every row, got {len(missing)} missing, the first in row {missing[0]}. "
            "Drop such rows (dropna) or fill them (fillna)."
        )
    plain = dtype if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", None))
    return np.asarray(column.to_numpy(dtype=plain))


def _counts_rows(label: str, column: np.ndarray) -> bool:
    """Whether a column is called like an index and holds what an index holds: whole numbers, each of them once."""
    unnamed = re.fullmatch(r"Unnamed: \d+(_level_\d+)?|__index_level_\d+__", label) is not None
    index = re.fullmatch(r"index|idx|id|level_\d+|row([ _-]?(id|no|nr|num|number|index))?|.*[ _-]id", label.lower())
    named = index is not None or re.fullmatch(r".*[a-z](Id|ID)", label) is not None
    if not (unnamed or named) or column.dtype.kind not in "iuf" or not np.array_equal(column, np.floor(column)):
        return False
    return unnamed or (len(column) > 1 and len(np.unique(column)) == len(column))


def _check_resolution(name: str, array: np.ndarray, labels: Sequence[str]) -> None:
    """Raises InputError for a column, such as Unix times, whose values are the same number in float32."""
    table = array.reshape(len(array), -1)
    low, high = (each.astype(np.float64) for each in (table.min(0), table.max(0)))
    largest = np.maximum(np.abs(low), np.abs(high))
    spacing = np.spacing(largest.astype(np.float32)).astype(np.float64)
    # What differs by the rounding of float64 alone is meant to be equal.
    fine = (spacing > 0.025 * (high - low)) & (high - low > 1e-10 * largest)
    for place in np.flatnonzero((largest > 2**24) | fine).tolist():
        column = table[:100_000, place]
        distinct, left = len(np.unique(column)), len(np.unique(column.astype(np.float32)))
        # Of fractions a few may merge, because they were measured no better; a whole number is a time or a name.
        whole = array.dtype.kind != "f" or np.array_equal(column, np.floor(column))
        merged = left < 0.9 * distinct and (whole or spacing[place] > 0.05 * column.std())
        if merged:
            raise InputError(
                f"{_column(place, labels)} of {name} has {distinct} values that float32 rounds to {left}, from "
                f"{low[place]:.15g} to {high[place]:.15g}. Subtract an origin and divide by a unit in float64 first "
                "(of times), or leave the column out (of identifiers)."
            )


def _column(place: int, labels: Sequence[str]) -> str:
    return f'column "{labels[place]}"' if labels else f"column {place}"


def precision(*dtypes: Any) -> np.dtype:
    """What numbers of these dtypes are computed in together: float64 where one is and JAX keeps it, else float32.

    JAX keeps float64 where `jax_enable_x64` is set.
    """
    wide = any(dtype.kind == "f" and dtype.itemsize > 4 for dtype in map(np.dtype, dtypes))
    return np.dtype(jax.dtypes.canonicalize_dtype(np.float64) if wide else np.float32)


def take(dataset: Dataset, rows: Any) -> Dataset:
    """The given rows, in the given order; (N, ...) becomes (len(rows), ...).

    >>> take(dataset([1.0, 2.0, 3.0], [0, 1, 0]), [2, 0]).inputs
    array([3., 1.], dtype=float32)
    """
    chosen = np.asarray(rows)
    return jax.tree.map(lambda leaf: leaf[chosen if chosen.size else chosen.astype(int)], dataset)


@explain_calls
def split(
    count: int, fraction: float, seed: int = 0
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " held_out"]]:
    """Rows (kept, held out) of `count`, shuffled: the two sets of scikit-learn's `train_test_split`, row for row.

    `fraction` of the rows, rounded up, are held out; `seed` is its `random_state`. Both are int64 arrays of row
    numbers. Raises InputError where a set would be empty.

    >>> kept, held_out = split(10, 0.3)
    >>> kept.tolist(), held_out.tolist()
    ([9, 1, 6, 7, 3, 0, 5], [2, 8, 4])
    """
    if getattr(count, "ndim", 0) or (not isinstance(count, bool) and not hasattr(type(count), "__index__")):
        counted = "len(rows.weights)" if isinstance(count, Dataset) else "len(rows)"
        raise InputError(f"count must be the number of rows, got {given_as(count)}. Use split({counted}, 0.3), say.")
    count, seed = whole_number("count", count, 1), whole_number("seed", seed, 0, 2**32 - 1)
    if not 0 < number("fraction", fraction) < 1:
        advice = f"Use {fraction / 100:g}." if 1 < fraction < 100 else "Use 0.3, say."
        raise InputError(f"split needs a fraction between 0 and 1, got fraction={fraction}. {advice}")
    held = math.ceil(fraction * count)
    if not 0 < held < count:
        raise InputError(
            f"split needs a row on each side, got fraction={fraction} of {count} rows. "
            "Use a fraction between 0 and 1, and more rows."
        )
    rows = np.random.RandomState(seed).permutation(count)
    return rows[held:], rows[:held]


class StandardScaler(NamedTuple):
    """Per-column mean and scale, so that `(inputs - mean) / scale` has mean 0 and deviation 1."""

    mean: Float64[np.ndarray, " features"]
    scale: Float64[np.ndarray, " features"]  # 1 where a column is constant


def fit_scaler(inputs: Any) -> StandardScaler:
    """The scaling of (N, F) inputs: give it training rows only, or the other sets leak into training.

    Means and deviations (ddof 0) are taken in float64 in two passes, which a column of mean 100 and deviation 1e-3
    needs. Raises InputError for masked values and for what is no number.

    >>> scaling = fit_scaler(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> scaling.mean.tolist(), scaling.scale.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    table = as_numbers("inputs", inputs)[0].astype(np.float64)
    mean = table.mean(0)
    scale = np.sqrt(((table - mean) ** 2).mean(0))
    # Rounding leaves a constant column with a spread of a few units in the last place.
    constant = scale <= 8 * np.finfo(np.float64).eps * np.abs(mean)
    return StandardScaler(mean, np.where(constant, 1.0, scale))


def standardize(inputs: Any, scaling: StandardScaler) -> Float[np.ndarray, "rows features"]:
    """(N, F) inputs in their `precision` with the scaling taken off.

    >>> table = np.array([[1.0], [3.0]])
    >>> standardize(table, fit_scaler(table)).tolist()
    [[-1.0], [1.0]]
    """
    table, _ = as_numbers("inputs", inputs)
    return ((table.astype(np.float64) - scaling.mean) / scaling.scale).astype(precision(table.dtype))
