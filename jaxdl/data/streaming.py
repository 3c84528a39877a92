"""Datasets that are read batch by batch, and windows of them on the device."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
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
from jaxdl.data.arrays import as_numbers
from jaxdl.data.batches import Draws, Window, _draws, batches_of, only_counted, rows_on_host, training_rows
from jaxdl.distributed.sharding import DATA, mesh_of, shard_dataset, shard_state, to_host
from jaxdl.errors import InputError
from jaxdl.types import Array, Batch, Dataset, PyTree, RunState


@dataclass(frozen=True)
class DataSource:
    """Rows that are not in memory.

    Raises InputError for no rows, for more than 32 bits can count, and for a mean weight that is not above 0.
    """

    count: int
    # Row numbers (B,) int64, each once and in rising order, to NumPy rows (B, ...). It is called from another thread.
    read: Callable[[np.ndarray], Dataset]
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
    inputs: str | PathLike[str], targets: str | PathLike[str], sample_weight: str | PathLike[str] | None = None
) -> DataSource:
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
    paths = {"inputs": Path(inputs), "targets": Path(targets)} | (
        {} if sample_weight is None else {"sample_weight": Path(sample_weight)}
    )
    arrays = {name: _mapped(name, path) for name, path in paths.items()}
    count = len(arrays["inputs"])
    for name, array in arrays.items():
        if len(array) != count:
            raise InputError(f"{paths[name]} must have one row for each of the {count} inputs, got {len(array)}.")
    if sample_weight is not None and arrays["sample_weight"].ndim != 1:
        raise InputError(
            f"sample_weight must be a row of numbers, got shape {arrays['sample_weight'].shape} in {sample_weight}."
        )

    def read(rows: np.ndarray) -> Dataset:
        found: dict[str, Any] = {name: array[rows] for name, array in arrays.items()}
        return Dataset(**{"sample_weight": np.ones(len(rows), np.float32), **found})

    mean = None if sample_weight is None else float(np.mean(arrays["sample_weight"], dtype=np.float64))
    return DataSource(count, read, mean)


def from_random_access(
    records: Records, to_row: Callable[[Any], tuple[Any, ...]], *, workers: int = 1, mean_weight: float | None = None
) -> DataSource:
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

    def read(rows: np.ndarray) -> Dataset:
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
        columns = zip(("inputs", "targets", "sample_weight"), zip(*made, strict=True), strict=True)
        leaves: dict[str, Any] = {name: _stacked(name, values, rows) for name, values in columns}
        return Dataset(**leaves)

    return DataSource(len(records), read, mean_weight)


def read_rows(source: DataSource, rows: np.ndarray) -> Dataset:
    """The rows of the given numbers, (B,) int64, in the given order, checked: NumPy arrays (B, ...).

    The source is asked for each of them once and in rising order, so that a file is read from its beginning to its end.
    float64 becomes float32. Raises InputError where it does not give as many rows, or a row that is not finite.
    """
    # Each once: HDF5 wants numbers that rise strictly, and windows are filled with rows that they hold already.
    rising, back = np.unique(rows, return_inverse=True)
    found = source.read(rising)
    if not isinstance(found, Dataset):
        raise InputError(f"a source must read a Dataset, got {type(found).__name__}. Use a Dataset of NumPy arrays.")
    columns = found._asdict()
    counted = _checked("sample_weight", columns["sample_weight"], rising) > 0
    leaves: dict[str, Any] = {name: _checked(name, leaf, rising, counted) for name, leaf in columns.items()}
    return Dataset(**{name: leaf[back] for name, leaf in leaves.items()})


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
    if name == "sample_weight" and (array.ndim != 1 or (array < 0).any()):
        raise InputError(
            f"sample_weight must be numbers >= 0, one a row, got shape {array.shape}, least {array.min()}."
        )
    if array.dtype.kind == "f" or name == "sample_weight":
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


T = TypeVar("T")
BYTES = 2**25  # of the rows of a window, unless told: enough that what a window costs beside its rows does not count


class WindowPlan(NamedTuple):
    """How the rows of a source are cut into batches, and these into windows of one length."""

    rows: int
    batch_size: int
    batches: int
    held: int  # batches of a window; the last window is filled up
    windows: int


class Fetch(NamedTuple, Generic[T]):
    """Things that a thread makes by number, one ahead of what is asked for; they are asked for in rising order."""

    get: Callable[[int], T]  # waits for it; an error of the maker arrives here
    ready: Callable[[int], bool]  # whether it is made


def plan_windows(first: Dataset, rows: int, batch_size: int, window_bytes: int = BYTES) -> WindowPlan:
    """The cut of so many rows like the first ones: windows of about so many bytes, of a batch at least."""
    batches = -(-rows // batch_size)
    of_row = sum(leaf.nbytes // len(leaf) for leaf in first)
    windows = -(-batches // max(1, window_bytes // (of_row * batch_size)))
    held = -(-batches // windows)
    return WindowPlan(rows, batch_size, batches, held, -(-batches // held))


def home_of(tree: PyTree) -> Sharding | None:
    """Where the windows (K, B, ...) of what is trained belong: B split over `data` on a mesh; None for anywhere."""
    mesh = mesh_of(tree)
    if mesh is not None:
        return NamedSharding(mesh, PartitionSpec(None, DATA if DATA in mesh.shape else None))
    homes = [leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) and leaf.committed]
    return homes[0] if homes else None


def load(
    source: DataSource,
    first: Dataset,
    cut: WindowPlan,
    number: int,
    order: Callable[[np.ndarray], np.ndarray],
    home: Sharding | None = None,
    *,
    prepare: Callable[[Dataset], Dataset | Batch] = lambda rows: rows,
) -> Any:
    """Window `number` of the rows in an order: (K, B, ...), where devices that split B fill it up.

    first: a row, or some, whose shapes and dtypes all must have. order: which rows stand at places (B,) of the order.
    Each process reads the rows of its own devices only. Places that are filled up hold padding.
    prepare: what is done to the rows as they are read, such as `only_counted`. Raises InputError for rows of another
    shape or dtype.
    """
    if home is None:
        return jax.device_put(_part(source, first, cut, number, order, 0, cut.batch_size, prepare))
    mesh = home.mesh if isinstance(home, NamedSharding) else None
    size = cut.batch_size + -cut.batch_size % (1 if mesh is None else mesh.shape.get(DATA, 1))
    # Devices that hold the same rows share what is read once.
    shares = {_share(index, size) for index in home.addressable_devices_indices_map((cut.held, size)).values()}
    parts = {share: _part(source, first, cut, number, order, *share, prepare) for share in sorted(shares)}

    def placed(name: str) -> jax.Array:
        shape = (cut.held, size, *(() if name == "mask" else getattr(first, name).shape[1:]))
        return jax.make_array_from_callback(shape, home, lambda index: getattr(parts[_share(index, size)], name))

    kind: Any = type(next(iter(parts.values())))
    return kind(*map(placed, kind._fields))


def for_training(source: DataSource, rows: Dataset) -> Dataset | Batch:
    """Return rows of a source as training takes them: `only_counted`, with weights relative to the mean of all.

    Raises InputError for weights that are not 1 where the source does not know their mean.
    """
    if source.mean_weight is not None:
        mean, mask = np.float32(source.mean_weight), np.ones(len(rows.sample_weight), bool)
        return only_counted(Batch(rows.inputs, rows.targets, rows.sample_weight / mean, mask))  # type: ignore[arg-type]
    others = rows.sample_weight[rows.sample_weight != 1]
    if len(others):
        raise InputError(
            f"to train with sample weights, a source must know their mean over all {source.count} examples, got a "
            f"weight of {others[0]:g}. Give it as mean_weight=..."
        )
    return rows


@contextmanager
def prefetch(make: Callable[[int], T], end: int | None = None) -> Iterator[Fetch[T]]:
    """What `make` makes of the numbers up to `end`, made in a thread that ends with the block.

    Two are held at a time: the one that was asked for last, and the next.
    """
    pool, made = ThreadPoolExecutor(1, "jaxdl-windows"), dict[int, Future[T]]()

    def get(number: int) -> T:
        for old in [each for each in made if each < number]:
            del made[old]
        for each in (number, number + 1):
            if each not in made and (each == number or end is None or each < end):
                made[each] = pool.submit(make, each)
        return made[number].result()

    def ready(number: int) -> bool:
        return number in made and made[number].done() and made[number].exception() is None

    try:
        yield Fetch(get, ready)
    finally:
        pool.shutdown(cancel_futures=True)


class Feed(NamedTuple):
    """The training rows of a run, piece by piece. Batches are counted from the beginning of the run."""

    at: Callable[[int], tuple[Any, int]]  # what holds a batch, rows or a window, and how many batches from there on
    ready: Callable[[int], bool]  # whether that is at hand, so that a call may be ahead


Opened = AbstractContextManager[tuple[RunState, Dataset | None, Feed]]


@dataclass(frozen=True)
class Loader(ABC):
    """The training rows of a run, which `loader` makes; whether they are in memory is decided there and not again."""

    first: Dataset  # rows whose shapes and dtypes all have: the first batch of a source, all that are in memory
    rows: int  # of an epoch
    batch_size: int
    examples: Any  # the rows as training takes them, wherever they lie; None for a source

    @abstractmethod
    def opened(self, run_state: RunState, validation: Dataset | None, length: int, last: int | None) -> Opened:
        """Give the rows from a progress on, up to the epoch `last`; an epoch has `length` batches with its validation.

        The progress and the validation rows come on the devices of the training rows, or of the progress.
        """

    @abstractmethod
    def batch(self, key: Array, epoch: Any, number: int) -> tuple[Any, np.ndarray]:
        """Return a batch of an epoch on this process's device, filled up, and the numbers of its rows, from 0."""

    @abstractmethod
    def checksum(self) -> str:
        """Return what tells these rows from others, of a source its number of rows and the first of them."""


def loader(train: Dataset | DataSource | Loader, batch_size: int, *, window_bytes: int = BYTES) -> Loader:
    """Return the rows of a run, in memory or streamed; a loader is returned as it is.

    A thread reads the batches of a source window by window, of about `window_bytes`, and puts them on the devices while
    those of the window before are trained. Raises InputError for what is neither Examples nor a DataSource.
    """
    if isinstance(train, Loader):
        return train
    if isinstance(train, DataSource):
        first = read_rows(train, np.arange(min(batch_size, train.count)))
        cut = plan_windows(first, train.count, batch_size, window_bytes)
        return _Stream(first, train.count, batch_size, None, train, cut)
    check_examples("train", train)
    return _Memory(train, train.sample_weight.shape[0], batch_size, training_rows(train))


class _Memory(Loader):
    @contextmanager
    def opened(self, run_state: Any, validation: Any, length: int, last: int | None) -> Iterator[Any]:
        examples, home, mesh = self.examples, self.examples.sample_weight, mesh_of(self.examples)
        # Otherwise the first epoch's results would be bound and its arguments not, which compiles a second program.
        if isinstance(home, jax.Array) and home.committed and len(home.sharding.device_set) == 1:
            # On a mesh of one device too, which is then as fast as a device.
            together = run_state, examples, validation
            run_state, examples, validation = jax.device_put(together, next(iter(home.sharding.device_set)))
        elif mesh is None:
            run_state, examples, validation = jax.tree.map(_on_device, (run_state, examples, validation))
        else:
            run_state = run_state if mesh_of(run_state) == mesh else shard_state(run_state, mesh)
            validation = None if validation is None else shard_dataset(validation, mesh)
        yield run_state, validation, Feed(lambda at: (examples, length - at % length), lambda at: True)

    def batch(self, key: Array, epoch: Any, number: int) -> tuple[Any, np.ndarray]:
        places = np.arange(number * self.batch_size, min((number + 1) * self.batch_size, self.rows))
        batch = batches_of(to_host(self.examples), key, epoch, self.batch_size)(number)
        return batch, rows_on_host(_draws(key, epoch, self.rows), places, self.rows)

    def checksum(self) -> str:
        crc = 0
        for leaf in self.first:
            crc = zlib.crc32(np.ascontiguousarray(leaf).data.cast("B"), crc)
        return f"{self.rows} rows, checksum {crc:08x}"


@dataclass(frozen=True)
class _Stream(Loader):
    source: DataSource
    cut: WindowPlan

    @contextmanager
    def opened(self, run_state: Any, validation: Any, length: int, last: int | None) -> Iterator[Any]:
        if (mesh := mesh_of(run_state)) is None:
            run_state, validation = jax.device_put((run_state, validation), home_of(run_state))
        elif validation is not None:
            validation = shard_dataset(validation, mesh)
        cut, key, home = self.cut, run_state.key, home_of(run_state)
        impl = jax.random.key_impl(key)
        bits: Any = np.asarray(jax.random.key_data(key))

        def window_of(at: int) -> int:
            """The window of a batch; the last one of an epoch serves its validation too."""
            epoch, batch = divmod(at, length)
            return epoch * cut.windows + min(batch // cut.held, cut.windows - 1)

        def rows_at(at: int) -> tuple[Window, int]:
            number = window_of(at)
            part = number % cut.windows + 1
            return fetch.get(number), (length if part == cut.windows else part * cut.held) - at % length

        def ready(at: int) -> bool:
            # Which window is next depends on what all processes have done, so where there are several no call is ahead.
            return jax.process_count() == 1 and fetch.ready(window_of(at))

        def make(number: int) -> Window:
            # The thread that calls this asks no device for anything.
            epoch, part = divmod(number, cut.windows)
            with _on_host():
                drawn = jax.tree.map(np.asarray, _draws(jax.random.wrap_key_data(bits, impl=impl), epoch, cut.rows))
            return self._window(cut, part, drawn, home)

        with prefetch(make, None if last is None else last * cut.windows) as fetch:
            yield run_state, validation, Feed(rows_at, ready)

    def batch(self, key: Array, epoch: Any, number: int) -> tuple[Any, np.ndarray]:
        cut, drawn = plan_windows(self.first, self.rows, self.batch_size, window_bytes=0), _draws(key, epoch, self.rows)
        places = np.arange(number * self.batch_size, min((number + 1) * self.batch_size, self.rows))
        batch = batches_of(self._window(cut, number, drawn), key, epoch, self.batch_size)(number)
        return batch, rows_on_host(drawn, places, self.rows)

    def checksum(self) -> str:
        crc = 0
        for leaf in read_rows(self.source, np.arange(min(8, self.rows))):
            crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
        return f"{self.rows} rows, checksum {crc:08x}"

    def _window(self, cut: WindowPlan, number: int, drawn: Draws, home: Sharding | None = None) -> Window:
        order, prepare = partial(rows_on_host, drawn, count=cut.rows), partial(for_training, self.source)
        batches = load(self.source, self.first, cut, number, order, home, prepare=prepare)
        return Window(batches, np.int32(number * cut.held), np.int32(cut.rows))  # type: ignore[arg-type]


def _on_device(leaf: Any) -> Array:
    # Arrays stay where they are: `device_put` would gather random keys that are spread over devices, and `jnp.asarray`
    # would compile a program for each shape of NumPy's.
    if isinstance(leaf, jax.Array):
        return leaf
    put = jax.device_put(leaf)
    # On a CPU JAX reads NumPy's own memory where it can, which is the caller's to change.
    shared = isinstance(leaf, np.ndarray) and put.unsafe_buffer_pointer() == leaf.ctypes.data
    return jax.device_put(leaf.copy()) if shared else put


def _on_host() -> AbstractContextManager[Any]:
    """Small computations on the CPU: an accelerator would do them after the call under way."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        # The platforms were chosen without the CPU.
        return nullcontext()


def _share(index: Any, size: int) -> tuple[int, int]:
    start, stop, _ = index[1].indices(size)
    return start, stop


def _part(
    source: DataSource, first: Dataset, cut: WindowPlan, number: int, order: Any, start: int, stop: int, prepare: Any
) -> Any:
    """Rows `start` to `stop` of each batch of a window, (K, stop - start, ...), on the host."""
    begin = number * cut.held
    batches, numbers = np.arange(begin, min(begin + cut.held, cut.batches)), np.arange(start, stop)
    places = batches[:, None] * cut.batch_size + numbers
    rows = read_rows(source, order((places % cut.rows).ravel()))
    for name, leaf, one in zip(Dataset._fields, rows, first, strict=True):
        if (leaf.shape[1:], leaf.dtype) != (one.shape[1:], one.dtype):
            raise InputError(
                f"{name} must have one shape and dtype in all rows of a source, got {leaf.shape[1:]} of {leaf.dtype} "
                f"after {one.shape[1:]} of {one.dtype}. Make them alike."
            )
    real = ((places < cut.rows) & (numbers < cut.batch_size)).ravel()
    held = prepare(rows)
    held = held._replace(sample_weight=np.where(real, held.sample_weight, np.float32(0)))
    if isinstance(held, Batch):
        held = held._replace(mask=real & np.asarray(held.mask))
    return jax.tree.map(lambda leaf: _filled(leaf.reshape(*places.shape, *leaf.shape[1:]), cut.held), held)


def _filled(batches: np.ndarray, held: int) -> np.ndarray:
    if len(batches) == held:
        return batches
    whole = np.zeros((held, *batches.shape[1:]), batches.dtype)
    whole[: len(batches)] = batches
    return whole
