"""Streaming datasets: examples that are read from disk in batches while a run trains."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jaxdl._checks import check_examples
from jaxdl._tree import map_named, named_leaves
from jaxdl.data.arrays import as_numbers, as_trees
from jaxdl.data.batches import SwapRounds, Window, _swap_rounds, batches_of, only_counted, rows_on_host, training_rows
from jaxdl.distributed.sharding import DATA, mesh_of, shard_dataset, shard_state, to_host
from jaxdl.errors import InputError
from jaxdl.types import Array, Batch, Dataset, PyTree, RunState


@dataclass(frozen=True)
class DataSource:
    """A streaming dataset: the number of its examples, and a function that reads some of them.

    Raises InputError for a count that is not from 1 to 2**31 - 1, and for a mean weight that is not above 0.
    """

    count: int
    # (B,) int64 row numbers, rising and unique, -> a Dataset of NumPy arrays (B, ...), or of pytrees of such arrays. A
    # thread calls it.
    read: Callable[[np.ndarray], Dataset]
    # The mean sample weight of all examples, which training needs for weights that are not all 1.
    mean_weight: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count < 2**31:
            raise InputError(f"a source must have from 1 to {2**31 - 1} rows, got {self.count}.")
        if self.mean_weight is not None and not 0 < self.mean_weight < np.inf:
            raise InputError(
                f"mean_weight must be above 0, got {self.mean_weight}. Use the mean of all sample weights."
            )


class Records(Protocol):
    """A list, or a data source of Grain, tfds or ArrayRecord: records by number, with `__getitems__` also by list."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


def memory_mapped(
    inputs: PyTree, targets: PyTree = None, sample_weight: str | PathLike[str] | None = None
) -> DataSource:
    """Return a streaming dataset of .npy files, which are read only where a batch needs them.

    inputs, targets: the path of a file, or a dict, tuple, list or NamedTuple of paths for several arrays; targets may
        be None, as for `dataset`.

    The files hold arrays (N, ...), (N, ...) and (N,), as from `numpy.save`, or from `numpy.lib.format.open_memmap` for
    data larger than the memory. float64 becomes float32; integers (labels, pixels) keep their dtype. Without
    `sample_weight` the weights are ones. Raises InputError for a file that is missing or does not hold numbers, and for
    lengths that differ.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> np.save(folder / "inputs.npy", np.arange(6.0).reshape(3, 2))
    >>> np.save(folder / "targets.npy", np.arange(3))
    >>> source = memory_mapped(folder / "inputs.npy", folder / "targets.npy")
    >>> source.count, source.read(np.array([0, 2])).inputs.tolist()
    (3, [[0.0, 1.0], [4.0, 5.0]])
    """
    trees = {"inputs": inputs, "targets": targets, "sample_weight": sample_weight}
    paths = {name: Path(path) for field, tree in trees.items() for name, path in named_leaves(field, tree)}
    arrays = {name: _open_npy(name, path) for name, path in paths.items()}
    if not named_leaves("inputs", inputs):
        raise InputError(f"inputs must be the path of an .npy file, or a dict of paths, got {inputs!r}.")
    count = len(next(iter(arrays.values())))
    for name, array in arrays.items():
        if len(array) != count:
            raise InputError(f"{paths[name]} must have one row for each of the {count} inputs, got {len(array)}.")
    if sample_weight is not None and arrays["sample_weight"].ndim != 1:
        raise InputError(
            f"sample_weight must be a row of numbers, got shape {arrays['sample_weight'].shape} in {sample_weight}."
        )

    def read(rows: np.ndarray) -> Dataset:
        parts = {field: map_named(lambda name, _: arrays[name][rows], field, tree) for field, tree in trees.items()}
        if sample_weight is None:
            parts["sample_weight"] = np.ones(len(rows), np.float32)
        return Dataset(**parts)

    mean = None if sample_weight is None else float(np.mean(arrays["sample_weight"], dtype=np.float64))
    return DataSource(count, read, mean)


def from_random_access(
    records: Records, to_row: Callable[[Any], tuple[Any, ...]], *, workers: int = 1, mean_weight: float | None = None
) -> DataSource:
    """Return a streaming dataset of records by number, such as an ArrayRecord reader or tfds's `data_source`.

    to_row: converts a record to (inputs, targets) or (inputs, targets, weight) of one example, of which inputs and
        targets may be dicts, tuples or NamedTuples of arrays; targets may be None, as for `dataset`. It must be
        deterministic, or a resumed run sees other examples; random augmentation belongs in the model.
    workers: number of threads that read and convert records, for a slow disk or a network. For more than 1 both
        `records` and `to_row` must be thread-safe.
    mean_weight: the mean weight of all records, which training needs for weights that are not all 1.

    Raises InputError for no records, and for fewer than 1 worker.

    >>> source = from_random_access([b"a1", b"b0"], lambda record: ([float(record[0])], int(record[1:])))
    >>> examples = source.read(np.array([0, 1]))
    >>> examples.inputs.tolist(), examples.targets.tolist()
    ([[97.0], [98.0]], [1, 0])
    """
    if isinstance(workers, bool) or not isinstance(workers, int | np.integer) or workers < 1:
        raise InputError(f"workers must be a whole number of at least 1, got {workers!r}. Use 16, say.")
    pool = ThreadPoolExecutor(int(workers), "jaxdl-records") if workers > 1 else None
    get_many = getattr(records, "__getitems__", None)

    def read_examples(numbers: list[int]) -> list[tuple[Any, ...]]:
        batch: Iterable[Any] = get_many(numbers) if get_many else (records[number] for number in numbers)
        return [_as_example(number, to_row(record)) for number, record in zip(numbers, batch, strict=True)]

    def read(rows: np.ndarray) -> Dataset:
        numbers = rows.tolist()
        if pool is None:
            examples = read_examples(numbers)
        else:
            # Several parts per worker, because some records take longer than others.
            size = max(1, len(numbers) // (4 * workers))
            parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            examples = [example for part in pool.map(read_examples, parts) for example in part]
        columns = zip(Dataset._fields, zip(*examples, strict=True), strict=True)
        trees: dict[str, Any] = {name: _stack_trees(name, values, numbers) for name, values in columns}
        return Dataset(**trees)

    return DataSource(len(records), read, mean_weight)


def read_rows(source: DataSource, rows: np.ndarray) -> Dataset:
    """Return the examples of rows (B,), in their order, as float32 or integers, or raise InputError for bad values."""
    # Rising and unique, because HDF5 takes no other indices and padding repeats rows.
    unique, inverse = np.unique(rows, return_inverse=True)
    examples = source.read(unique)
    if not isinstance(examples, Dataset):
        raise InputError(f"a source must read a Dataset, got {type(examples).__name__}. Use a Dataset of NumPy arrays.")
    counted = _check_column("sample_weight", examples.sample_weight, unique) > 0

    def column(name: str, values: Any, counted: Any) -> Any:
        return _check_column(name, values, unique, counted)[inverse]

    inputs = as_trees("inputs", examples.inputs, counted, convert=column)
    targets = None if examples.targets is None else as_trees("targets", examples.targets, counted, convert=column)
    return Dataset(inputs, targets, column("sample_weight", examples.sample_weight, counted))


def _open_npy(name: str, path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise InputError(f"{name} must be an .npy file, got {path}, which does not exist. Write it first.") from error
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{name} must be an .npy file of numbers, got {path}: {error}. Use numpy.save.") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0 or len(array) == 0:
        shape = getattr(array, "shape", None)
        raise InputError(f"{name} must be an .npy file with at least one row, got {path} of shape {shape}.")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} in {path} must hold numbers, got dtype {array.dtype}. Encode them as numbers first.")
    # A view as an ndarray, because indexing a numpy.memmap costs a call of Python for each result.
    return array.view(np.ndarray)


def _as_example(row: int, values: Any) -> tuple[Any, ...]:
    """Return inputs, targets and weight of the result of `to_row`."""
    if not isinstance(values, tuple) or len(values) not in (2, 3):
        kind = f"{len(values)} values" if isinstance(values, tuple) else type(values).__name__
        raise InputError(f"to_row must make (inputs, targets) or (inputs, targets, weight), got {kind} for row {row}.")
    return values if len(values) == 3 else (*values, np.float32(1))


def _stack_trees(name: str, trees: Sequence[Any], rows: list[int]) -> Any:
    """Return the inputs or targets of some records as arrays (B, ...), in the containers of each record."""
    if all(tree is None for tree in trees):
        return None
    if not isinstance(trees[0], Mapping) and not _is_several(trees[0]):
        return _stack(name, tuple(trees), rows)
    keys = _keys(trees[0])
    for row, tree in zip(rows, trees, strict=True):
        if type(tree) is not type(trees[0]) or _keys(tree) != keys:
            raise InputError(
                f"{name} must have one structure in all rows, got a {type(trees[0]).__name__} of {keys} for row "
                f"{rows[0]} and a {type(tree).__name__} for row {row}. Let to_row return the same keys for each."
            )
    parts = {key: _stack_trees(f"{name}[{key!r}]", [tree[key] for tree in trees], rows) for key in keys}
    if isinstance(trees[0], Mapping):
        return parts
    return type(trees[0])(*parts.values()) if hasattr(trees[0], "_fields") else (*parts.values(),)


def _keys(tree: Any) -> list[Any]:
    return sorted(tree) if isinstance(tree, Mapping) else [*range(len(tree))] if isinstance(tree, tuple) else []


def _is_several(value: Any) -> bool:
    """Return whether a tuple of an example is no row of numbers: it holds an array, a dict, or such a tuple."""
    return isinstance(value, tuple) and any(
        len(getattr(each, "shape", ())) > 0 or isinstance(each, Mapping) or _is_several(each) for each in value
    )


def _stack(name: str, values: tuple[Any, ...], rows: list[int]) -> np.ndarray:
    arrays = [as_numbers(f"{name} of row {row}", value)[0] for row, value in zip(rows, values, strict=True)]
    for row, array in zip(rows, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise InputError(
                f"{name} must have one shape in all rows, got {arrays[0].shape} for row {rows[0]} and {array.shape} "
                f"for row {row}. Crop or pad them in to_row."
            )
    return np.stack(arrays)


def _check_column(name: str, values: Any, rows: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Return a column of `read` as float32 or integers; rows that do not count may be nan or infinite."""
    array, _ = as_numbers(name, values)
    if array.ndim == 0 or len(array) != len(rows):
        raise InputError(f"a source must read as many {name} as rows, got shape {array.shape} for {len(rows)} rows.")
    if name == "sample_weight" and (array.ndim != 1 or (array < 0).any()):
        raise InputError(
            f"sample_weight must be numbers >= 0, one a row, got shape {array.shape}, minimum {array.min()}."
        )
    if array.dtype.kind == "f" or name == "sample_weight":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        valid, need = np.isfinite(array), "be finite"
        if counted is not None and array.dtype.kind == "f":
            valid |= ~counted.reshape(-1, *[1] * (array.ndim - 1))
    elif array.dtype.itemsize == 8:
        valid, need = (array <= np.iinfo(np.int32).max) & (array >= -np.iinfo(np.int32).max), "fit into 32 bits"
    else:
        return array
    if not valid.all():
        place = tuple(np.argwhere(~valid)[0])
        raise InputError(
            f"{name} must {need}, got {array[place]} in row {rows[place[0]]}. Drop or fill such rows first."
        )
    return array


T = TypeVar("T")
BYTES = 2**25  # default size of a window: the fixed cost of a window is then small beside that of its batches


class WindowPlan(NamedTuple):
    """How the examples of a source are divided into batches, and the batches into windows of one length."""

    rows: int
    batch_size: int
    batches: int
    per_window: int  # batches of a window; the last window is padded
    windows: int


class Prefetched(NamedTuple, Generic[T]):
    """The results of a function of 0, 1, 2, ..., which a thread computes one ahead of the request."""

    get: Callable[[int], T]  # waits for a result, or raises the error of the function; numbers must not fall
    ready: Callable[[int], bool]  # whether `get` would return at once


def plan_windows(first: Dataset, rows: int, batch_size: int, window_bytes: int = BYTES) -> WindowPlan:
    """Divide `rows` examples like the `first` into windows of about `window_bytes`, at least one batch each."""
    batches = -(-rows // batch_size)
    row_bytes = sum(leaf.nbytes // len(leaf) for leaf in jax.tree.leaves(first))
    windows = -(-batches // max(1, window_bytes // (row_bytes * batch_size)))
    per_window = -(-batches // windows)
    return WindowPlan(rows, batch_size, batches, per_window, -(-batches // per_window))


def window_sharding(tree: PyTree) -> Sharding | None:
    """Return the sharding of windows (K, B, ...) for the arrays of a run, B over `data`; None if any device serves."""
    mesh = mesh_of(tree)
    if mesh is not None:
        return NamedSharding(mesh, PartitionSpec(None, DATA if DATA in mesh.shape else None))
    shardings = [leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) and leaf.committed]
    return shardings[0] if shardings else None


def load_window(
    source: DataSource,
    first: Dataset,
    plan: WindowPlan,
    index: int,
    order: Callable[[np.ndarray], np.ndarray],
    sharding: Sharding | None = None,
    *,
    prepare: Callable[[Dataset], Dataset | Batch] = lambda examples: examples,
) -> Any:
    """Read a window (K, B, ...) onto the devices, with B padded to a multiple of the devices that share a batch.

    Each process reads only the rows of its own devices.

    first: an example or more, whose shapes and dtypes all examples must have.
    order: a function from places (B,) in the order of the epoch to rows (B,).
    prepare: a function of the examples after they are read, such as `only_counted`.

    Raises InputError for examples of another shape or dtype.
    """
    read = partial(_read_part, source, first, plan, index, order, prepare)
    if sharding is None:
        return jax.device_put(read(0, plan.batch_size))
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    size = plan.batch_size + -plan.batch_size % (1 if mesh is None else mesh.shape.get(DATA, 1))

    def columns(index: Any) -> tuple[int, int]:
        start, stop, _ = index[1].indices(size)
        return start, stop

    # A set, so that devices with the same rows share one read.
    indices = sharding.addressable_devices_indices_map((plan.per_window, size)).values()
    parts = {part: read(*part) for part in sorted(set(map(columns, indices)))}

    # The arrays of each part of the window, in the same order.
    leaves = {part: jax.tree.leaves(examples) for part, examples in parts.items()}

    def place(number: int, leaf: np.ndarray) -> jax.Array:
        shape = (plan.per_window, size, *leaf.shape[2:])
        return jax.make_array_from_callback(shape, sharding, lambda index: leaves[columns(index)][number])

    one = next(iter(parts.values()))
    return jax.tree.unflatten(jax.tree.structure(one), map(place, *zip(*enumerate(jax.tree.leaves(one)), strict=True)))


@contextmanager
def prefetch(make: Callable[[int], T], end: int | None = None) -> Iterator[Prefetched[T]]:
    """Compute `make(0)`, `make(1)`, ... before `end` in a thread, until the block ends; at most two results exist."""
    pool, futures = ThreadPoolExecutor(1, "jaxdl-windows"), dict[int, Future[T]]()

    def get(number: int) -> T:
        for old in [each for each in futures if each < number]:
            del futures[old]
        for each in (number, number + 1):
            if each not in futures and (each == number or end is None or each < end):
                futures[each] = pool.submit(make, each)
        return futures[number].result()

    def ready(number: int) -> bool:
        return number in futures and futures[number].done() and futures[number].exception() is None

    try:
        yield Prefetched(get, ready)
    finally:
        pool.shutdown(cancel_futures=True)


class Feed(NamedTuple):
    """The training batches of a run. A batch is counted from the beginning of the run."""

    at: Callable[[int], tuple[Any, int]]  # the dataset or window that holds a batch, and its batches from there on
    ready: Callable[[int], bool]  # whether `at` would return at once


Opened = AbstractContextManager[tuple[RunState, Dataset | None, Feed]]


@dataclass(frozen=True)
class Loader(ABC):
    """The training data of a run, from `loader`: a dataset in memory, or a streaming one."""

    first: Dataset  # examples with the shapes and dtypes of all: the first batch of a source, or the whole dataset
    rows: int  # number of examples
    batch_size: int
    examples: Any  # the result of `training_rows`; None for a source

    @abstractmethod
    def open(self, run_state: RunState, validation: Dataset | None, length: int, last: int | None) -> Opened:
        """Return the run state and validation data on the devices of the run, and the feed of its batches.

        length: batches of an epoch with its validation. last: the last epoch; None if unknown.
        """

    @abstractmethod
    def batch(self, key: Array, epoch: Any, number: int) -> tuple[Any, np.ndarray]:
        """Return a padded batch of an epoch on this process's device, and its row numbers."""

    @abstractmethod
    def checksum(self) -> str:
        """Return a text that identifies the data: number and checksum; of a source, checksum of the first rows."""


def loader(train: Dataset | DataSource | Loader, batch_size: int, *, window_bytes: int = BYTES) -> Loader:
    """Return the loader of a dataset or source; a loader is returned unchanged.

    A thread reads windows of about `window_bytes` from a source while the window before trains. Raises InputError for
    other types.
    """
    if isinstance(train, Loader):
        return train
    if isinstance(train, DataSource):
        first = read_rows(train, np.arange(min(batch_size, train.count)))
        window_plan = plan_windows(first, train.count, batch_size, window_bytes)
        return _Stream(first, train.count, batch_size, None, train, window_plan)
    check_examples("train", train)
    return _Memory(train, train.sample_weight.shape[0], batch_size, training_rows(train))


class _Memory(Loader):
    @contextmanager
    def open(self, run_state: Any, validation: Any, length: int, last: int | None) -> Iterator[Any]:
        examples, first, mesh = self.examples, self.examples.sample_weight, mesh_of(self.examples)
        # All arguments go to one place. Otherwise the results of the first call are committed to a device and its
        # arguments are not, so that the second call compiles again.
        if isinstance(first, jax.Array) and first.committed and len(first.sharding.device_set) == 1:
            # A mesh of one device too, which is then as fast as a device.
            device = next(iter(first.sharding.device_set))
            run_state, examples, validation = jax.device_put((run_state, examples, validation), device)
        elif mesh is None:
            run_state, examples, validation = jax.tree.map(_to_device, (run_state, examples, validation))
        else:
            run_state = run_state if mesh_of(run_state) == mesh else shard_state(run_state, mesh)
            validation = None if validation is None else shard_dataset(validation, mesh)
        yield run_state, validation, Feed(lambda at: (examples, length - at % length), lambda at: True)

    def batch(self, key: Array, epoch: Any, number: int) -> tuple[Any, np.ndarray]:
        batch = batches_of(to_host(self.examples), key, epoch, self.batch_size)(number)
        return batch, _batch_row_numbers(self, _swap_rounds(key, epoch, self.rows), number)

    def checksum(self) -> str:
        return _checksum(self.rows, jax.tree.leaves(self.first))


@dataclass(frozen=True)
class _Stream(Loader):
    source: DataSource
    window_plan: WindowPlan

    @contextmanager
    def open(self, run_state: Any, validation: Any, length: int, last: int | None) -> Iterator[Any]:
        if (mesh := mesh_of(run_state)) is None:
            run_state, validation = jax.device_put((run_state, validation), window_sharding(run_state))
        elif validation is not None:
            validation = shard_dataset(validation, mesh)
        plan, key, sharding = self.window_plan, run_state.key, window_sharding(run_state)
        impl = jax.random.key_impl(key)
        bits: Any = np.asarray(jax.random.key_data(key))

        def window_of(at: int) -> int:
            """Return the index of a batch's window; the last window of an epoch serves its validation too."""
            epoch, batch = divmod(at, length)
            return epoch * plan.windows + min(batch // plan.per_window, plan.windows - 1)

        def window_at(at: int) -> tuple[Window, int]:
            number = window_of(at)
            next_index = number % plan.windows + 1
            end = length if next_index == plan.windows else next_index * plan.per_window
            return windows.get(number), end - at % length

        def ready(at: int) -> bool:
            # Several processes agree on the number of steps only after a call, so the next window is not known before.
            return jax.process_count() == 1 and windows.ready(window_of(at))

        def make(number: int) -> Window:
            # This thread must not queue work on an accelerator behind the training steps.
            epoch, index = divmod(number, plan.windows)
            with _cpu_device():
                rounds = _swap_rounds(jax.random.wrap_key_data(bits, impl=impl), epoch, plan.rows)
                rounds = jax.tree.map(np.asarray, rounds)
            return self._window(plan, index, rounds, sharding)

        with prefetch(make, None if last is None else last * plan.windows) as windows:
            yield run_state, validation, Feed(window_at, ready)

    def batch(self, key: Array, epoch: Any, number: int) -> tuple[Any, np.ndarray]:
        plan = plan_windows(self.first, self.rows, self.batch_size, window_bytes=0)
        rounds = _swap_rounds(key, epoch, self.rows)
        batch = batches_of(self._window(plan, number, rounds), key, epoch, self.batch_size)(number)
        return batch, _batch_row_numbers(self, rounds, number)

    def checksum(self) -> str:
        return _checksum(self.rows, jax.tree.leaves(read_rows(self.source, np.arange(min(8, self.rows)))))

    def _window(self, plan: WindowPlan, index: int, rounds: SwapRounds, sharding: Sharding | None = None) -> Window:
        order = partial(rows_on_host, rounds, count=plan.rows)
        batches = load_window(self.source, self.first, plan, index, order, sharding, prepare=self._prepare)
        return Window(batches, np.int32(index * plan.per_window), np.int32(plan.rows))  # type: ignore[arg-type]

    def _prepare(self, examples: Dataset) -> Any:
        """Return the result of `training_rows`, with the mean weight of the source."""
        if self.source.mean_weight is not None:
            mean, mask = np.float32(self.source.mean_weight), np.ones(len(examples.sample_weight), bool)
            weights: Any = examples.sample_weight / mean
            return only_counted(Batch(examples.inputs, examples.targets, weights, mask))  # type: ignore[arg-type]
        others = examples.sample_weight[examples.sample_weight != 1]
        if len(others):
            raise InputError(
                f"to train with sample weights, a source must know their mean over all {self.source.count} examples, "
                f"got a weight of {others[0]:g}. Give it as mean_weight=..."
            )
        return examples


def _batch_row_numbers(train: Loader, rounds: SwapRounds, number: int) -> np.ndarray:
    places = np.arange(number * train.batch_size, min((number + 1) * train.batch_size, train.rows))
    return rows_on_host(rounds, places, train.rows)


def _checksum(count: int, leaves: Iterable[Any]) -> str:
    crc = 0
    for leaf in leaves:
        crc = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, crc)
    return f"{count} rows, checksum {crc:08x}"


def _to_device(leaf: Any) -> Array:
    # Arrays of JAX stay where they are: `device_put` would gather sharded random keys, and `jnp.asarray` would compile
    # a program for each shape.
    if isinstance(leaf, jax.Array):
        return leaf
    array = jax.device_put(leaf)
    # On a CPU JAX may share the memory of a NumPy array, which the caller may change.
    shared = isinstance(leaf, np.ndarray) and array.unsafe_buffer_pointer() == leaf.ctypes.data
    return jax.device_put(leaf.copy()) if shared else array


def _cpu_device() -> AbstractContextManager[Any]:
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        # JAX_PLATFORMS does not name the CPU.
        return nullcontext()


def _read_part(
    source: DataSource, first: Dataset, plan: WindowPlan, index: int, order: Any, prepare: Any, start: int, stop: int
) -> Any:
    """Read examples `start` to `stop` of each batch of a window, (K, stop - start, ...), as NumPy arrays."""
    first_batch = index * plan.per_window
    batches, numbers = np.arange(first_batch, min(first_batch + plan.per_window, plan.batches)), np.arange(start, stop)
    places = batches[:, None] * plan.batch_size + numbers
    examples = read_rows(source, order((places % plan.rows).ravel()))
    structures: list[Any] = [jax.tree.structure(each) for each in (examples, first)]
    if structures[0] != structures[1]:
        raise InputError(
            f"a source must read inputs and targets of one structure in all rows, got {examples} after {first}."
        )
    for (name, leaf), like in zip(
        (part for field, tree in examples._asdict().items() for part in named_leaves(field, tree)),
        jax.tree.leaves(first),
        strict=True,
    ):
        if (leaf.shape[1:], leaf.dtype) != (like.shape[1:], like.dtype):
            raise InputError(
                f"{name} must have one shape and dtype in all rows of a source, got {leaf.shape[1:]} of {leaf.dtype} "
                f"after {like.shape[1:]} of {like.dtype}. Convert them in the source."
            )
    real = ((places < plan.rows) & (numbers < plan.batch_size)).ravel()
    batch = prepare(examples)
    batch = batch._replace(sample_weight=np.where(real, batch.sample_weight, np.float32(0)))
    if isinstance(batch, Batch):
        batch = batch._replace(mask=real & np.asarray(batch.mask))

    def pad(leaf: np.ndarray) -> np.ndarray:
        leaf = leaf.reshape(*places.shape, *leaf.shape[1:])
        if len(leaf) == plan.per_window:
            return leaf
        window = np.zeros((plan.per_window, *leaf.shape[1:]), leaf.dtype)
        window[: len(leaf)] = leaf
        return window

    return jax.tree.map(pad, batch)
