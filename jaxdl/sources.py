"""Sources: rows that are not in memory, read by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxdl.data import as_numbers
from jaxdl.errors import InputError
from jaxdl.types import Examples


@dataclass(frozen=True)
class Source:
    """Rows that are not in memory.

    Raises InputError for no rows, for more than 32 bits can count, and for a mean weight that is not above 0.
    """

    count: int
    # Row numbers (B,) int64, each once and in rising order, to NumPy rows (B, ...). It is called from another thread.
    read: Callable[[np.ndarray], Examples]
    # The mean sample weight of all examples, which training needs where the weights are not all 1.
    mean_weight: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count < 2**31:
            raise InputError(f"a source must have from 1 to {2**31 - 1} rows, got {self.count}. Give it others.")
        if self.mean_weight is not None and not 0 < self.mean_weight < np.inf:
            raise InputError(
                f"mean_weight must be above 0, got {self.mean_weight}. Use the mean of all sample weights."
            )


class Records(Protocol):
    """What can be read by number: Grain's and tfds's data sources, an ArrayRecord reader, a list.

    Where there is a `__getitems__`, which takes a list of numbers and gives a list of records, it is used.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


def memory_mapped(
    inputs: str | PathLike[str], targets: str | PathLike[str], weights: str | PathLike[str] | None = None
) -> Source:
    """The rows of .npy files, (N, ...), (N, ...) and (N,), of which only what is asked for is read.

    `numpy.save` writes such files; `numpy.lib.format.open_memmap` writes them part by part. float64 becomes float32,
    integers (labels, pixels) keep their dtype. Weights are ones unless given. Raises InputError for a file that is
    missing or is no .npy file, that does not hold numbers, and for counts of rows that differ.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> np.save(folder / "inputs.npy", np.arange(6.0).reshape(3, 2))
    >>> np.save(folder / "targets.npy", np.arange(3))
    >>> source = memory_mapped(folder / "inputs.npy", folder / "targets.npy")
    >>> source.count, read_rows(source, np.array([2, 0])).inputs.tolist()
    (3, [[4.0, 5.0], [0.0, 1.0]])
    """
    paths = {"inputs": Path(inputs), "targets": Path(targets)} | ({} if weights is None else {"weights": Path(weights)})
    arrays = {name: _mapped(name, path) for name, path in paths.items()}
    count = len(arrays["inputs"])
    for name, array in arrays.items():
        if len(array) != count:
            raise InputError(f"{paths[name]} must have one row for each of the {count} inputs, got {len(array)}.")
    if weights is not None and arrays["weights"].ndim != 1:
        raise InputError(f"weights must be a row of numbers, got shape {arrays['weights'].shape} in {weights}.")

    def read(rows: np.ndarray) -> Examples:
        found: dict[str, Any] = {name: array[rows] for name, array in arrays.items()}
        return Examples(**{"weights": np.ones(len(rows), np.float32), **found})

    mean = None if weights is None else float(np.mean(arrays["weights"], dtype=np.float64))
    return Source(count, read, mean)


def from_random_access(
    records: Records, to_row: Callable[[Any], tuple[Any, ...]], *, workers: int = 1, mean_weight: float | None = None
) -> Source:
    """The rows of records that are read by number, such as an ArrayRecord reader's or those of tfds's `data_source`.

    to_row: makes of a record the pair (inputs, targets) of one row, or (inputs, targets, weight). Rows that are random,
    such as changed images, are not the same when a run goes on: do that in the model.
    workers: threads that read and make rows side by side, for records that wait for a disk or a network; both must then
    bear several threads.
    mean_weight: the mean weight of all records, where `to_row` makes weights that are not all 1; training needs it.

    Raises InputError where there are no records, and for fewer than 1 worker.

    >>> source = from_random_access([b"a1", b"b0"], lambda record: ([float(record[0])], int(record[1:])))
    >>> rows = read_rows(source, np.array([1, 0]))
    >>> rows.inputs.tolist(), rows.targets.tolist()
    ([[98.0], [97.0]], [0, 1])
    """
    if isinstance(workers, bool) or not isinstance(workers, int | np.integer) or workers < 1:
        raise InputError(f"workers must be a whole number of at least 1, got {workers!r}. Use 16, say.")
    pool = ThreadPoolExecutor(int(workers), "jaxdl-records") if workers > 1 else None

    def read(rows: np.ndarray) -> Examples:
        numbers = rows.tolist()
        many = getattr(records, "__getitems__", None)

        def made_of(some: list[int]) -> list[tuple[Any, ...]]:
            read_ones: Iterator[Any] = iter(many(some)) if many else (records[number] for number in some)
            return [_three(row, to_row(record)) for row, record in zip(some, read_ones, strict=True)]

        if pool is None:
            made = made_of(numbers)
        else:
            # Several parts a worker, because some records take longer than others.
            size = max(1, len(numbers) // (4 * workers))
            parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            made = [row for part in pool.map(made_of, parts) for row in part]
        columns = zip(("inputs", "targets", "weights"), zip(*made, strict=True), strict=True)
        leaves: dict[str, Any] = {name: _stacked(name, values, rows) for name, values in columns}
        return Examples(**leaves)

    return Source(len(records), read, mean_weight)


def head(train: Examples | Source, count: int) -> Examples:
    """The first `count` rows of a source, or all where there are fewer; rows in memory as they are.

    >>> head(from_random_access([7.0, 8.0, 9.0], lambda record: (record, 0)), 2).inputs
    array([7., 8.], dtype=float32)
    """
    return read_rows(train, np.arange(min(count, train.count))) if isinstance(train, Source) else train


def read_rows(source: Source, rows: np.ndarray) -> Examples:
    """The rows of the given numbers, (B,) int64, in the given order, checked: NumPy arrays (B, ...).

    The source is asked for each of them once and in rising order, so that a file is read from its beginning to its end.
    float64 becomes float32. Raises InputError where it does not give as many rows, or a row that is not finite.

    >>> source = Source(9, lambda rows: Examples(rows / 2, rows, np.ones(len(rows), np.float32)))
    >>> read_rows(source, np.array([4, 1])).inputs
    array([2. , 0.5], dtype=float32)
    """
    # Each once: HDF5 wants numbers that rise strictly, and windows are filled with rows that they hold already.
    rising, back = np.unique(rows, return_inverse=True)
    found = source.read(rising)
    if not isinstance(found, Examples):
        raise InputError(f"a source must read Examples, got {type(found).__name__}. Use Examples of NumPy arrays.")
    columns = found._asdict()
    counted = _checked("weights", columns["weights"], rising) > 0
    leaves: dict[str, Any] = {name: _checked(name, leaf, rising, counted) for name, leaf in columns.items()}
    return Examples(**{name: leaf[back] for name, leaf in leaves.items()})


def _mapped(name: str, path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise InputError(f"{name} must be an .npy file, got {path}, which does not exist. Write it first.") from error
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{name} must be an .npy file of numbers, got {path}: {error}. Use numpy.save.") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0 or len(array) == 0:
        shape = getattr(array, "shape", None)
        raise InputError(f"{name} must be an .npy file with at least one row, got {path} of shape {shape}.")
    _check_kind(f"{name} in {path}", array)
    # A plain view: a row of a numpy.memmap would be one too, which costs a call of Python.
    return array.view(np.ndarray)


def _check_kind(name: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold numbers, got dtype {array.dtype}. Encode them as numbers first.")


def _three(row: int, made: Any) -> tuple[Any, ...]:
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        what = f"{len(made)} values" if isinstance(made, tuple) else type(made).__name__
        raise InputError(f"to_row must make (inputs, targets) or (inputs, targets, weight), got {what} for row {row}.")
    return made if len(made) == 3 else (*made, np.float32(1))


def _stacked(name: str, values: tuple[Any, ...], rows: np.ndarray) -> np.ndarray:
    arrays = [as_numbers(f"{name} of row {row}", value)[0] for row, value in zip(rows.tolist(), values, strict=True)]
    for row, array in zip(rows.tolist(), arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise InputError(
                f"{name} must have one shape in all rows, got {arrays[0].shape} for row {rows[0]} and {array.shape} "
                f"for row {row}. Cut or fill them in to_row."
            )
    return np.stack(arrays)


def _checked(name: str, values: Any, rows: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """The column of a read, checked; what does not count may hold anything."""
    array, _ = as_numbers(name, values)
    if array.ndim == 0 or len(array) != len(rows):
        raise InputError(f"a source must read as many {name} as rows, got shape {array.shape} for {len(rows)} rows.")
    if name == "weights" and (array.ndim != 1 or (array < 0).any()):
        raise InputError(f"weights must be numbers >= 0, one a row, got shape {array.shape}, least {array.min()}.")
    if array.dtype.kind == "f" or name == "weights":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        fitting, need = np.isfinite(array), "be finite"
    elif array.dtype.itemsize == 8:
        fitting, need = (array <= np.iinfo(np.int32).max) & (array >= -np.iinfo(np.int32).max), "fit into 32 bits"
    else:
        return array
    if counted is not None and array.dtype.kind == "f":
        fitting = fitting | ~counted.reshape(-1, *[1] * (array.ndim - 1))
    if not fitting.all():
        place = tuple(np.argwhere(~fitting)[0])
        raise InputError(
            f"{name} must {need}, got {array[place]} in row {rows[place[0]]}. Drop or fill such rows first."
        )
    return array
