"""Datasets in memory: conversion, split, and standardization."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Shaped

from jaxdl._checks import check_examples, explain_calls, given_as, number, whole_number
from jaxdl._tree import named_leaves
from jaxdl.distributed.sharding import device_put
from jaxdl.errors import InputError
from jaxdl.types import Dataset, PyTree


@explain_calls
def dataset(inputs: Any, targets: Any = None, sample_weight: Any = None) -> Dataset:
    """Return inputs (N, ...), targets (N, ...) and sample weights (N,) as a dataset of arrays that JAX can hold.

    inputs, targets: an array, or a dict, tuple or NamedTuple of arrays, also nested, whose first axis is that of the
        examples. A list of arrays is an array of rows, or, where it has one array for each of several inputs, a tuple.
    targets: None for a loss that takes none (`losses.model_loss`).

    Python numbers and float64 become float32, or stay float64 if `jax_enable_x64` is set. Integers (labels, pixels)
    keep their dtype. Tables of pandas may have columns of numbers and Booleans.

    sample_weight: (N,), >= 0; None means ones. Training minimizes the weighted mean loss. An example of weight 0 never
        counts, so its inputs and targets may be nan, or a label that is no class.

    Raises InputError for lengths that differ, for no examples, for values that are missing, masked, not finite or not
    numbers, for a column that only numbers the rows, and for a column whose values are equal in float32.

    >>> examples = dataset([[1.0], [2.0]], [[3.0], [4.0]])
    >>> examples.inputs.shape, examples.sample_weight
    ((2, 1), array([1., 1.], dtype=float32))
    >>> dataset({"image": np.zeros((5, 8, 8, 3)), "age": np.arange(5.0)}, np.arange(5)).inputs["age"].shape
    (5,)
    """
    raw_inputs, counted = inputs, None
    if sample_weight is not None:
        sample_weight = as_rows("sample_weight", sample_weight)
        sample_weight = sample_weight.astype(precision(sample_weight.dtype), copy=False)
        counted = sample_weight > 0
    several = _lists_are_containers(inputs, targets, sample_weight)
    inputs = as_trees("inputs", inputs, counted, several)
    targets = None if targets is None else as_trees("targets", targets, counted, several)
    (first_name, first), *others = named_leaves("inputs", inputs)
    sample_weight = np.ones(len(first), np.float32) if sample_weight is None else sample_weight
    for name, array in (*others, *named_leaves("targets", targets), ("sample_weight", sample_weight)):
        if len(array) != len(first):
            advice = ""
            if isinstance(raw_inputs, list) and inputs is first and all(np.ndim(each) > 1 for each in raw_inputs):
                advice = (
                    f" The inputs are a list of {len(raw_inputs)} arrays, which were read as rows: each of several "
                    "inputs needs one row for each example."
                )
            elif array.shape[-1] == len(first):
                advice = f" Their shape is {array.shape}: use {name}.T if they are transposed."
            elif first.shape[-1] == len(array):
                advice = f" The inputs' shape is {first.shape}: use inputs.T if they are transposed."
            raise InputError(
                f"{name} must have one row for each of the {len(first)} {first_name}, got {len(array)}.{advice}"
            )
    if sample_weight.ndim != 1 or (sample_weight < 0).any() or not sample_weight.any():
        raise InputError(
            f"sample_weight must be a row of numbers >= 0, not all 0, got shape {sample_weight.shape}, minimum "
            f"{sample_weight.min():g}. Use 1 for each example, and 0 for an example that must not count."
        )
    return Dataset(inputs, targets, sample_weight)


def as_trees(
    name: str, values: Any, counted: Bool[np.ndarray, " rows"] | None = None, lists: bool = False, convert: Any = None
) -> PyTree:
    """Return `convert(name, leaf, counted)`, by default `as_rows`, of an array, or of each of a container's arrays.

    Dicts, and tuples and NamedTuples of arrays, are containers; lists of arrays are too, if `lists`, and become tuples.
    Raises InputError for a container without arrays, and for dicts whose keys JAX cannot sort.
    """
    if not _is_container(values, lists):
        return (as_rows if convert is None else convert)(name, values, counted)
    if not len(values):
        raise InputError(f"{name} must have at least one array, got an empty {type(values).__name__}.")
    if isinstance(values, Mapping):
        if len({type(key) for key in values}) > 1:
            raise InputError(f"{name} must have keys of one type, got {', '.join(map(repr, values))}. Use strings.")
        return {key: as_trees(f"{name}[{key!r}]", each, counted, lists, convert) for key, each in values.items()}
    fields = getattr(values, "_fields", None)
    names = (f"[{number}]" for number in range(len(values))) if fields is None else (f".{field}" for field in fields)
    parts = [as_trees(name + part, each, counted, lists, convert) for part, each in zip(names, values, strict=True)]
    return tuple(parts) if fields is None else type(values)(*parts)


def _is_container(values: object, lists: bool) -> bool:
    """Return whether values are several arrays: a dict, or a tuple, NamedTuple or list of arrays or of containers."""
    if isinstance(values, Mapping):
        return True
    if not isinstance(values, (tuple, list) if lists else tuple):
        return False
    return len(values) > 0 and all(_is_array(each) or _is_container(each, lists) for each in values)


def _is_array(values: Any) -> bool:
    return len(getattr(values, "shape", ())) > 0


def _lists_are_containers(*trees: Any) -> bool:
    """Return whether lists of arrays are several arrays of N rows each, and not rows; by the numbers of examples.

    Raises InputError where they may be both.
    """
    lists = [each for tree in trees for each in _lists_of_arrays(tree)]
    rows, several = ({length for tree in trees for length in _lengths(tree, both)} for both in (False, True))
    if not lists or len(several) != 1:
        return False
    if len(rows) == 1 and all(len({getattr(array, "shape", None) for array in each}) == 1 for each in lists):
        raise InputError(
            f"a list of {len(lists[0])} arrays of {several.pop()} rows may be {len(lists[0])} examples or "
            f"{len(lists[0])} inputs. Use np.stack(...) for examples, tuple(...) for several inputs."
        )
    return True


def _lists_of_arrays(values: Any) -> list[list[Any]]:
    """Return the lists of a container that may be containers, the container itself among them."""
    if not _is_container(values, lists=True):
        return []
    parts = values.values() if isinstance(values, Mapping) else values
    return [values] * isinstance(values, list) + [each for part in parts for each in _lists_of_arrays(part)]


def _lengths(values: Any, lists: bool) -> list[int]:
    """Return the numbers of rows of the arrays of a container, or of values that are no container."""
    if values is None:
        return []
    if _is_container(values, lists):
        parts = values.values() if isinstance(values, Mapping) else values
        return [length for each in parts for length in _lengths(each, lists)]
    return [values.shape[0] if _is_array(values) else len(values) if hasattr(values, "__len__") else 0]


def as_rows(
    name: str, values: object, counted: Bool[np.ndarray, " rows"] | None = None
) -> Shaped[np.ndarray, "rows ..."]:
    """Return values as an array (N, ...) of finite numbers that JAX can hold.

    Floats are converted to their `precision`. Rows where `counted` (N,) is False may be nan or infinite. Raises
    InputError, with the argument's `name`, for other values (see `dataset`).
    """
    raw, labels = as_numbers(name, values)
    if raw.ndim == 0 or len(raw) == 0:
        raise InputError(f"{name} must have at least one row, got shape {raw.shape}.")
    array = raw
    if raw.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = raw.astype(precision(raw.dtype), copy=False)
        finite = np.isfinite(array)
        if counted is not None and counted.shape == array.shape[:1]:
            finite |= ~counted.reshape(-1, *[1] * (array.ndim - 1))
        if not finite.all():
            place = tuple(int(i) for i in np.argwhere(~finite)[0])
            column = f" ({_column_name(place[1], labels)})" if labels else ""
            raise InputError(
                f"{name} must be finite, got {array[place]} at {place}{column}. Drop or fill such rows first."
            )
    elif raw.dtype.itemsize == 8 and raw.size:
        largest = max(int(raw.max()), -int(raw.min()))
        if largest > np.iinfo(np.int32).max:
            raise InputError(f"{name} must fit into 32 bits, got {largest}. Use floats, or smaller numbers.")
    if raw.dtype.kind in "fiu" and raw.dtype.itemsize >= 4 and array.dtype != np.float64 and raw.ndim <= 2:
        _check_resolution(name, raw, labels)
    return array


def as_numbers(name: str, values: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return values as an array of numbers in native byte order, and the names of its columns, () if it has none.

    bfloat16 and float8 become float32. Raises InputError, with the argument's `name`, for anything but one dense array
    of real numbers.
    """
    if isinstance(values, Mapping):
        raise InputError(
            f"{name} must be one array, got a {type(values).__name__} of {', '.join(map(str, values))}. Concatenate "
            "its arrays: np.concatenate([...], axis=1)."
        )
    if hasattr(values, "toarray"):
        raise InputError(f"{name} must be a dense array, got a sparse {type(values).__name__}. Use its .toarray().")
    labels: tuple[str, ...] = ()
    if type(values).__module__.partition(".")[0] == "pandas" and hasattr(
        values, "dtype" if values.ndim == 1 else "iloc"
    ):
        values, labels = _from_pandas(name, values)
    if isinstance(values, list | tuple) and any(isinstance(each, np.ma.MaskedArray) for each in values):
        values = np.ma.array(values)
    if isinstance(values, np.ma.MaskedArray):
        masked = np.argwhere(np.ma.getmaskarray(values))
        if len(masked):
            raise InputError(
                f"{name} must hold a number everywhere, got {len(masked)} masked values, the first at "
                f"{tuple(masked[0].tolist())}. Drop such rows, or fill them with values.filled(number) and set their "
                "sample_weight to 0."
            )
        values = values.data
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
        # NumPy does not count the narrow dtypes of ml_dtypes as numbers.
        array = array.astype(np.float32 if jnp.issubdtype(array.dtype, jnp.floating) else np.int8)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold numbers, got dtype {array.dtype}. {_dtype_advice(array.dtype)}")
    return (array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))), labels


def _dtype_advice(dtype: object) -> str:
    """Return the advice for an array whose dtype is not a real number."""
    if getattr(dtype, "kind", "O") in "Mm":
        return "Use numbers with a meaning, such as the day of the year, or the seconds since a date as floats."
    if getattr(dtype, "kind", "O") == "c":
        return "Give the real and the imaginary part as two columns."
    if getattr(dtype, "names", None):
        return "Use numpy.lib.recfunctions.structured_to_unstructured."
    return "Encode them first: .astype(float) for numbers, one-hot (pandas.get_dummies) for words."


def _from_pandas(name: str, table: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the numbers and column names of a DataFrame, a Series or an array of pandas."""
    if table.ndim == 1:
        label = getattr(table, "name", None)
        return _from_column(name if label is None else f'column "{label}" of {name}', table), ()
    labels = tuple(map(str, table.columns))
    columns = [_from_column(f'column "{label}" of {name}', table.iloc[:, place]) for place, label in enumerate(labels)]
    for label, column in zip(labels, columns, strict=True):
        if _is_row_number(label, column):
            raise InputError(
                f'column "{label}" of {name} numbers the rows: a network would learn their order. Drop the column with '
                f'table.drop(columns="{label}"), or give table.to_numpy() to keep it.'
            )
    return (np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), np.float32)), labels


def _from_column(name: str, column: Any) -> np.ndarray:
    dtype = column.dtype
    if getattr(dtype, "kind", "O") not in "fiub" or hasattr(dtype, "categories"):
        raise InputError(f"{name} must hold numbers, got dtype {dtype}. {_dtype_advice(dtype)}")
    missing = np.flatnonzero(np.asarray(column.isna()))
    if len(missing):
        raise InputError(
            f"{name} must hold a number in every row, got {len(missing)} missing, the first in row {missing[0]}. "
            "Drop such rows (dropna) or fill them (fillna)."
        )
    plain = dtype if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", None))
    return np.asarray(column.to_numpy(dtype=plain))


def _is_row_number(label: str, column: np.ndarray) -> bool:
    """Return whether a column has the name of an index, and whole numbers without repetition."""
    without_name = re.fullmatch(r"Unnamed: \d+(_level_\d+)?|__index_level_\d+__", label) is not None
    is_index = re.fullmatch(
        r"index|idx|id|level_\d+|row([ _-]?(id|no|nr|num|number|index))?|.*[ _-]id", label.lower()
    ) or re.fullmatch(r".*[a-z](Id|ID)", label)
    if not (without_name or is_index) or column.dtype.kind not in "iuf" or not np.array_equal(column, np.floor(column)):
        return False
    return without_name or (len(column) > 1 and len(np.unique(column)) == len(column))


def _check_resolution(name: str, array: np.ndarray, labels: Sequence[str]) -> None:
    """Raise InputError for a column, such as Unix times, whose different values are equal in float32."""
    table = array.reshape(len(array), -1)
    low, high = (each.astype(np.float64) for each in (table.min(0), table.max(0)))
    largest = np.maximum(np.abs(low), np.abs(high))
    spacing = np.spacing(largest.astype(np.float32)).astype(np.float64)
    # Values that differ only by the rounding of float64 are equal to the caller.
    fine = (spacing > 0.025 * (high - low)) & (high - low > 1e-10 * largest)
    for place in np.flatnonzero((largest > 2**24) | fine).tolist():
        column = table[:100_000, place]
        distinct, remaining = len(np.unique(column)), len(np.unique(column.astype(np.float32)))
        # A few measurements may merge, because they are no more precise; whole numbers are times or identifiers.
        whole = array.dtype.kind != "f" or np.array_equal(column, np.floor(column))
        if remaining < 0.9 * distinct and (whole or spacing[place] > 0.05 * column.std()):
            raise InputError(
                f"{_column_name(place, labels)} of {name} has {distinct} values that float32 rounds to {remaining}, "
                f"from {low[place]:.15g} to {high[place]:.15g}. For times, subtract an origin and divide by a unit in "
                "float64 first; leave identifiers out."
            )


def _column_name(place: int, labels: Sequence[str]) -> str:
    return f'column "{labels[place]}"' if labels else f"column {place}"


def precision(*dtypes: Any) -> np.dtype:
    """Return float64 if one of the dtypes is and `jax_enable_x64` is set, else float32."""
    wide = any(dtype.kind == "f" and dtype.itemsize > 4 for dtype in map(np.dtype, dtypes))
    return np.dtype(jax.dtypes.canonicalize_dtype(np.float64) if wide else np.float32)


def take(dataset: Dataset, rows: Any) -> Dataset:
    """Return the examples at the places `rows`, in their order, as a dataset of len(rows) examples.

    >>> take(dataset([1.0, 2.0, 3.0], [0, 1, 0]), [2, 0]).inputs
    array([3., 1.], dtype=float32)
    """
    places = np.asarray(rows)
    places = places if places.size else places.astype(int)
    return jax.tree.map(lambda leaf: leaf[places], dataset)


def with_class_weight(train: Any, class_weight: Mapping[int, float] | Sequence[float]) -> Dataset:
    """Return a dataset whose sample weights are multiplied by the weights of their classes.

    class_weight: a dict {class: weight}, where other classes have weight 1, or the weight of each class from 0.

    Raises InputError for a source, for targets that are no integer labels (N,), for labels without a weight and classes
    without an example, and for weights that are negative or not finite.

    >>> with_class_weight(dataset([1.0, 2.0, 3.0], [0, 1, 1]), {1: 0.5}).sample_weight
    array([1. , 0.5, 0.5], dtype=float32)
    """
    if not isinstance(train, Dataset):
        raise InputError(
            f"class_weight needs a dataset in memory, got {given_as(train)}. Let a source read sample weights: the "
            "weight of each label."
        )
    check_examples("train", train)
    if len(getattr(train.targets, "shape", ())) != 1 or not jnp.issubdtype(train.targets.dtype, jnp.integer):
        raise InputError(
            f"class_weight needs integer labels (N,) as targets, got {train}. Use targets.astype(int) for labels, "
            "targets.argmax(1) for one-hot targets, or dataset(inputs, targets, sample_weight)."
        )
    labels, sample_weight = np.asarray(train.targets), np.asarray(train.sample_weight)
    counted = sample_weight > 0
    classes = np.unique(labels[counted])
    if isinstance(class_weight, Mapping):
        weights = {whole_number("a class of class_weight", key): value for key, value in class_weight.items()}
        unknown = [key for key in weights if key not in classes]
    elif isinstance(class_weight, str) or np.ndim(class_weight) != 1:
        raise InputError(
            f"class_weight must be a dict {{class: weight}}, or the weight of each class, got {given_as(class_weight)}."
        )
    else:
        weights = dict(enumerate(class_weight))
        unknown = [label for label in classes.tolist() if label not in weights]
    if unknown:
        raise InputError(
            f"class_weight must be that of the labels of train, {_some(classes.tolist())}, got the weights of "
            f"{_some([*weights])}: {unknown[0]} is in one of them alone."
        )
    factors = np.ones(len(labels), sample_weight.dtype)
    for key, weight in weights.items():
        if not 0 <= number(f"class_weight[{key}]", weight) < np.inf:
            raise InputError(f"class_weight[{key}] must be a number from 0 on, got {weight}.")
        factors[labels == key] = weight
    product: Any = sample_weight * factors
    if isinstance(train.sample_weight, jax.Array):
        product = device_put(product, train.sample_weight.sharding)
    return train._replace(sample_weight=product)


def _some(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:10])) + ", ..." * (len(values) > 10)


@explain_calls
def split(
    count: int, fraction: float, seed: int = 0
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " held_out"]]:
    """Return the row numbers of two random sets: the rest, and a `fraction` of `count` rows, rounded up.

    Both are shuffled int64 arrays, equal to those of scikit-learn's `train_test_split` with `random_state=seed`. Raises
    InputError for a set without rows.

    >>> train, held_out = split(10, 0.3)
    >>> train.tolist(), held_out.tolist()
    ([9, 1, 6, 7, 3, 0, 5], [2, 8, 4])
    """
    if getattr(count, "ndim", 0) or (not isinstance(count, bool) and not hasattr(type(count), "__index__")):
        length = "len(rows.targets)" if isinstance(count, Dataset) else "len(rows)"
        raise InputError(f"count must be the number of rows, got {given_as(count)}. Use split({length}, 0.3), say.")
    count, seed = whole_number("count", count, 1), whole_number("seed", seed, 0, 2**32 - 1)
    if not 0 < number("fraction", fraction) < 1:
        advice = f"Use {fraction / 100:g}." if 1 < fraction < 100 else "Use 0.3, say."
        raise InputError(f"split needs a fraction between 0 and 1, got fraction={fraction}. {advice}")
    size = math.ceil(fraction * count)
    if not 0 < size < count:
        raise InputError(
            f"split needs a row on each side, got fraction={fraction} of {count} rows. "
            "Use a fraction between 0 and 1, and more rows."
        )
    rows = np.random.RandomState(seed).permutation(count)
    return rows[size:], rows[:size]


class StandardScaler(NamedTuple):
    """The mean and scale of each column: `(inputs - mean) / scale` has mean 0 and standard deviation 1."""

    mean: Float64[np.ndarray, " features"]
    scale: Float64[np.ndarray, " features"]  # 1 for a constant column


def fit_scaler(inputs: Any) -> StandardScaler:
    """Return the mean and standard deviation (ddof 0) of the columns of training inputs (N, F), in float64.

    Inputs of the validation and test sets would leak into training. Raises InputError for masked values and for values
    that are not numbers.

    >>> scaler = fit_scaler(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> scaler.mean.tolist(), scaler.scale.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    table = _one_array(inputs).astype(np.float64)
    mean = table.mean(0)
    # In two passes: the mean of squares would lose the digits of a column of mean 100 and deviation 1e-3.
    scale = np.sqrt(((table - mean) ** 2).mean(0))
    # Rounding gives a constant column a deviation of a few units in the last place.
    constant = scale <= 8 * np.finfo(np.float64).eps * np.abs(mean)
    return StandardScaler(mean, np.where(constant, 1.0, scale))


def standardize(inputs: Any, scaling: StandardScaler) -> Float[np.ndarray, "rows features"]:
    """Return `(inputs - mean) / scale` of inputs (N, F), computed in float64.

    >>> table = np.array([[1.0], [3.0]])
    >>> standardize(table, fit_scaler(table)).tolist()
    [[-1.0], [1.0]]
    """
    table = _one_array(inputs)
    return ((table.astype(np.float64) - scaling.mean) / scaling.scale).astype(precision(table.dtype))


def _one_array(inputs: Any) -> np.ndarray:
    """Return the inputs of a scaler, one array of numbers. Raises InputError for several."""
    if _is_container(inputs, lists=False):
        names = [name for name, _ in named_leaves("inputs", inputs)]
        raise InputError(
            f"a scaler takes one array, got a {type(inputs).__name__} of {', '.join(names)}. Scale each array by "
            f"itself: standardize({names[0]}, fit_scaler({names[0]}))."
        )
    return as_numbers("inputs", inputs)[0]
