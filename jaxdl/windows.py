"""Windows: some batches of a source at a time, read by a thread and put on the devices before they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jaxdl.batches import only_counted
from jaxdl.errors import InputError
from jaxdl.sharding import DATA, mesh_of
from jaxdl.sources import Source, read_rows
from jaxdl.types import Batch, Examples, PyTree

T = TypeVar("T")

BYTES = 2**25  # of the rows of a window, unless told: enough that what a window costs beside its rows does not count


class Cut(NamedTuple):
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


def cut_rows(first: Examples, rows: int, batch_size: int, window_bytes: int = BYTES) -> Cut:
    """The cut of so many rows like the first ones: windows of about so many bytes, of a batch at least.

    >>> cut_rows(Examples(np.ones((1, 24), np.float32), np.ones(1, np.int32), np.ones(1, np.float32)), 95, 10, 3200)
    Cut(rows=95, batch_size=10, batches=10, held=3, windows=4)
    """
    batches = -(-rows // batch_size)
    of_row = sum(leaf.nbytes // len(leaf) for leaf in first)
    windows = -(-batches // max(1, window_bytes // (of_row * batch_size)))
    held = -(-batches // windows)
    return Cut(rows, batch_size, batches, held, -(-batches // held))


def home_of(tree: PyTree) -> Sharding | None:
    """Where the windows (K, B, ...) of what is trained belong: B split over `data` on a mesh; None for anywhere.

    >>> home_of({"a": jax.numpy.ones(2)}) is None
    True
    """
    mesh = mesh_of(tree)
    if mesh is not None:
        return NamedSharding(mesh, PartitionSpec(None, DATA if DATA in mesh.shape else None))
    homes = [leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) and leaf.committed]
    return homes[0] if homes else None


def load(
    source: Source,
    first: Examples,
    cut: Cut,
    number: int,
    order: Callable[[np.ndarray], np.ndarray],
    home: Sharding | None = None,
    *,
    prepare: Callable[[Examples], Examples | Batch] = lambda rows: rows,
) -> Any:
    """Window `number` of the rows in an order: (K, B, ...), where devices that split B fill it up.

    first: a row, or some, whose shapes and dtypes all must have. order: which rows stand at places (B,) of the order.
    Each process reads the rows of its own devices only. Places that are filled up hold padding.
    prepare: what is done to the rows as they are read, such as `only_counted`. Raises InputError for rows of another
    shape or dtype.

    >>> source = Source(5, lambda rows: Examples(rows, rows, np.ones(len(rows), np.float32)))
    >>> first = read_rows(source, np.array([0]))
    >>> window = load(source, first, cut_rows(first, 5, 2), 0, lambda places: 4 - places)
    >>> window.inputs.tolist(), window.weights.tolist()
    ([[4, 3], [2, 1], [0, 4]], [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
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


def for_training(source: Source, rows: Examples) -> Examples | Batch:
    """Return rows of a source as training takes them: `only_counted`, with weights relative to the mean of all.

    Raises InputError for weights that are not 1 where the source does not know their mean.

    >>> source = Source(2, lambda rows: Examples(rows, rows, rows), mean_weight=2.0)
    >>> for_training(source, Examples(np.ones((2, 1)), np.ones((2, 1)), np.array([1.0, 3.0]))).weights.tolist()
    [0.5, 1.5]
    """
    if source.mean_weight is not None:
        mean, mask = np.float32(source.mean_weight), np.ones(len(rows.weights), bool)
        return only_counted(Batch(rows.inputs, rows.targets, rows.weights / mean, mask))  # type: ignore[arg-type]
    others = rows.weights[rows.weights != 1]
    if len(others):
        raise InputError(
            f"to train with sample weights, a source must know their mean over all {source.count} examples, got a "
            f"weight of {others[0]:g}. Give it as mean_weight=..."
        )
    return rows


@contextmanager
def fetching(make: Callable[[int], T], end: int | None = None) -> Iterator[Fetch[T]]:
    """What `make` makes of the numbers up to `end`, made in a thread that ends with the block.

    Two are held at a time: the one that was asked for last, and the next.

    >>> with fetching(lambda number: number**2) as fetch:
    ...     [fetch.get(number) for number in (3, 3, 4)]
    [9, 9, 16]
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


def _share(index: Any, size: int) -> tuple[int, int]:
    start, stop, _ = index[1].indices(size)
    return start, stop


def _part(
    source: Source, first: Examples, cut: Cut, number: int, order: Any, start: int, stop: int, prepare: Any
) -> Any:
    """Rows `start` to `stop` of each batch of a window, (K, stop - start, ...), on the host."""
    begin = number * cut.held
    batches, numbers = np.arange(begin, min(begin + cut.held, cut.batches)), np.arange(start, stop)
    places = batches[:, None] * cut.batch_size + numbers
    rows = read_rows(source, order((places % cut.rows).ravel()))
    for name, leaf, one in zip(Examples._fields, rows, first, strict=True):
        if (leaf.shape[1:], leaf.dtype) != (one.shape[1:], one.dtype):
            raise InputError(
                f"{name} must have one shape and dtype in all rows of a source, got {leaf.shape[1:]} of {leaf.dtype} "
                f"after {one.shape[1:]} of {one.dtype}. Make them alike."
            )
    real = ((places < cut.rows) & (numbers < cut.batch_size)).ravel()
    held = prepare(rows)
    held = held._replace(weights=np.where(real, held.weights, np.float32(0)))
    if isinstance(held, Batch):
        held = held._replace(mask=real & np.asarray(held.mask))
    return jax.tree.map(lambda leaf: _filled(leaf.reshape(*places.shape, *leaf.shape[1:]), cut.held), held)


def _filled(batches: np.ndarray, held: int) -> np.ndarray:
    if len(batches) == held:
        return batches
    whole = np.zeros((held, *batches.shape[1:]), batches.dtype)
    whole[: len(batches)] = batches
    return whole
