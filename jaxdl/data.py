"""Rows of data: checked, split, scaled and padded."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdl.errors import InputError
from jaxdl.types import Examples


def examples(inputs: Any, targets: Any, weights: Any = None) -> Examples:
    """Aligned rows, checked: `inputs` (N, ...), `targets` (N, ...), `weights` (N,) of ones unless given.

    Python numbers and float64 become float32, or stay float64 where JAX's `jax_enable_x64` is set, given weights too;
    integers (labels, pixels) keep their dtype. Weights are 1 for a real row and 0 for padding. Raises InputError where
    the counts of rows differ, there are none, or a value is not finite.

    >>> rows = examples([[1.0], [2.0]], [[3.0], [4.0]])
    >>> rows.inputs.shape, rows.weights
    ((2, 1), array([1., 1.], dtype=float32))
    """
    inputs, targets = _as_rows("inputs", inputs), _as_rows("targets", targets)
    weights = _as_rows("weights", np.ones(len(inputs), np.float32) if weights is None else weights)
    weights = weights.astype(precision(weights.dtype), copy=False)
    for name, array in (("targets", targets), ("weights", weights)):
        if len(array) != len(inputs):
            raise InputError(f"{name} must have one row for each of the {len(inputs)} inputs, got {len(array)}.")
    if weights.ndim != 1 or (weights < 0).any() or not weights.any():
        raise InputError("weights must be a row of numbers >= 0, not all 0. Use 1 for a real row and 0 for padding.")
    return Examples(inputs, targets, weights)


def _as_rows(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim == 0 or len(array) == 0:
        raise InputError(f"{name} must have at least one row, got shape {array.shape}.")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold numbers, got dtype {array.dtype}. Encode them as numbers first.")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(precision(array.dtype), copy=False)
        if not np.isfinite(array).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise InputError(f"{name} must be finite, got {array[place]} at {place}. Drop or fill such rows first.")
    elif array.dtype.itemsize == 8 and np.abs(array).max() > np.iinfo(np.int32).max:
        raise InputError(f"{name} must fit into 32 bits, got {np.abs(array).max()}. Use floats, or smaller numbers.")
    return array


def precision(*dtypes: Any) -> np.dtype:
    """What numbers of these dtypes are computed in together: float64 where one is and JAX keeps it, else float32.

    JAX keeps float64 where `jax_enable_x64` is set.

    >>> precision(np.float16, np.int32)
    dtype('float32')
    """
    wide = any(dtype.kind == "f" and dtype.itemsize > 4 for dtype in map(np.dtype, dtypes))
    return np.dtype(jax.dtypes.canonicalize_dtype(np.float64) if wide else np.float32)


def take(rows_of: Examples, rows: Any) -> Examples:
    """The given rows, in the given order; (N, ...) becomes (len(rows), ...).

    >>> take(examples([1.0, 2.0, 3.0], [0, 1, 0]), [2, 0]).inputs
    array([3., 1.], dtype=float32)
    """
    chosen = np.asarray(rows)
    return jax.tree.map(lambda leaf: leaf[chosen if chosen.size else chosen.astype(int)], rows_of)


def pad(rows_of: Examples, multiple: int) -> Examples:
    """Rows up to a multiple of `multiple`: the last row again, with weight 0, so that nothing is counted twice.

    A repeated real row keeps padded computation finite; zeros might not be (a logarithm, a division).

    >>> pad(examples([1.0, 2.0, 3.0], [0, 1, 0]), 2).weights
    array([1., 1., 1., 0.], dtype=float32)
    """
    count = len(rows_of.weights)
    padded = take(rows_of, np.minimum(np.arange(count + -count % multiple), count - 1))
    weights: Any = np.where(np.arange(len(padded.weights)) < count, padded.weights, np.float32(0))
    return padded._replace(weights=weights)


def split(count: int, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows (kept, held out) of `count`, shuffled: the two sets of scikit-learn's `train_test_split`, row for row.

    `fraction` of the rows, rounded up, are held out; `seed` is its `random_state`. Both are int64 arrays of row
    numbers. Raises InputError where a set would be empty.

    >>> kept, held_out = split(10, 0.3)
    >>> kept.tolist(), held_out.tolist()
    ([9, 1, 6, 7, 3, 0, 5], [2, 8, 4])
    """
    held = math.ceil(fraction * count)
    if not 0 < held < count:
        raise InputError(
            f"split needs a row on each side, got fraction={fraction} of {count} rows. "
            "Use a fraction between 0 and 1, and more rows."
        )
    rows = np.random.RandomState(seed).permutation(count)
    return rows[held:], rows[:held]


class Scaling(NamedTuple):
    """Per-column location and spread, so that `(inputs - mean) / spread` has mean 0 and deviation 1."""

    mean: np.ndarray  # (F,) float64
    spread: np.ndarray  # (F,) float64, 1 where a column is constant


def fit_scaling(inputs: Any) -> Scaling:
    """The scaling of (N, F) inputs: give it training rows only, or the other sets leak into training.

    Means and deviations (ddof 0) are taken in float64 in two passes, which a column of mean 100 and deviation 1e-3
    needs.

    >>> scaling = fit_scaling(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> scaling.mean.tolist(), scaling.spread.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    table = np.asarray(inputs, np.float64)
    mean = table.mean(0)
    spread = np.sqrt(((table - mean) ** 2).mean(0))
    # Rounding leaves a constant column with a spread of a few units in the last place.
    constant = spread <= 8 * np.finfo(np.float64).eps * np.abs(mean)
    return Scaling(mean, np.where(constant, 1.0, spread))


def standardise(inputs: Any, scaling: Scaling) -> np.ndarray:
    """(N, F) inputs in their `precision` with the scaling taken off; `unstandardise` gives them back.

    >>> table = np.array([[1.0], [3.0]])
    >>> standardise(table, fit_scaling(table)).tolist()
    [[-1.0], [1.0]]
    """
    table = np.asarray(inputs)
    return ((table.astype(np.float64) - scaling.mean) / scaling.spread).astype(precision(table.dtype))


def unstandardise(standardised: Any, scaling: Scaling) -> np.ndarray:
    """The inverse of `standardise`, to the `precision` of what is given.

    >>> unstandardise([[-1.0], [1.0]], Scaling(np.array([2.0]), np.array([1.0]))).tolist()
    [[1.0], [3.0]]
    """
    table = np.asarray(standardised)
    return (table.astype(np.float64) * scaling.spread + scaling.mean).astype(precision(table.dtype))
