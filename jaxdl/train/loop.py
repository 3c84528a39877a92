"""The loop over epochs, several steps a call, in memory or streamed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdl.data import Source
from jaxdl.data.batches import Window, draws, evaluation_rows, rows_on_host, training_rows
from jaxdl.data.streaming import BYTES, Cut, cut_rows, fetching, for_training, head, home_of, load
from jaxdl.distributed import place_progress, place_rows
from jaxdl.distributed.sharding import layout, mesh_of, wish
from jaxdl.errors import InputError
from jaxdl.train.epoch import batches_of_epoch, chunk_program, run_chunk
from jaxdl.train.plan import check_monitors, check_rows, measured
from jaxdl.types import Array, Examples, Plan, Progress

WHOLE = 2**30  # more batches than an epoch has
# (progress, train, validation, batches, plan=plan) -> (progress, row); see `pieces.advance` for the row.
Run = Callable[..., tuple[Progress, Array]]


class Chunk(NamedTuple):
    """What a piece of a run leaves."""

    progress: Progress
    record: dict[str, Any] | None  # of the epoch, where the chunk ended one: a float a figure, of many runs an array
    finite: bool  # whether the weights, and the losses of the epoch under way, are
    batches: int  # how many were done; 0 where `steps` asked for none, on this process or on another
    should_stop: bool = False  # whether the rule has ended the run; of many runs, all


class Feed(NamedTuple):
    """The training rows of a run, piece by piece. Batches are counted from the beginning of the run."""

    rows: Callable[[int], tuple[Examples | Window, int]]  # what holds a batch, and how many it holds from there on
    ready: Callable[[int], bool] = lambda at: True  # whether they are at hand, so that a chunk may be ahead


def lowered_chunk(
    plan: Plan, progress: Progress, train: Examples, validation: Examples | None = None
) -> jax.stages.Lowered:
    """The program that `chunks` run, of arguments or of their shapes. Once it is compiled, `chunks` compile nothing.

    >>> import optax
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective
    >>> from jaxdl.train.epoch import start_shapes
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=1)
    >>> "while" in lowered_chunk(plan, start_shapes(plan, rows, key=jax.random.key(0)), rows).as_text()
    True
    """
    steps = wish(WHOLE, mesh_of(progress))
    return chunk_program.lower(progress, train, validation, steps, plan=plan, like=layout(progress))


def chunks(
    plan: Plan,
    progress: Progress,
    train: Examples,
    validation: Examples | None = None,
    *,
    last: int | None = None,
    steps: Callable[[], int] = lambda: WHOLE,
    run: Run = run_chunk,
    prepared: bool = False,
) -> Iterator[Chunk]:
    """Yields after every `steps()` batches, and after every epoch, up to the epoch `last` or until the rule stops.

    However an epoch is cut, one program runs it and gives the same bits. One dispatch and one transfer a chunk, and
    always a chunk ahead: while the caller looks at one, the device is at the next. (One after the end of a run is over
    at once and changes nothing.) It means

        while not progress.stopping.done and (last is None or progress.epoch < last):
            progress, record = run(progress, train, validation, steps(), plan=plan)
            keep(progress, record)  # which the generator yields; there is no record inside of an epoch

    Where `steps()` is 0, nothing is done and nothing under way when that is yielded: a pause. Where several processes
    share the run, each asks for steps of its own and gets the least: a pause that one asks for is a pause of all.
    With `run=ensembles.run_members` the progress is that of many runs, and the figures are arrays.
    prepared: whether the rows have been checked, and are as `training_rows` and `evaluation_rows` give them.
    """
    check_monitors(plan, progress, validation)
    if not prepared:
        check_rows(plan, train, validation)
        train, validation = training_rows(train), evaluation_rows(validation)
    progress, train, validation = _together(progress, train, validation)
    _, length = batches_of_epoch(plan, train, validation)
    feed = Feed(lambda at: (train, length - at % length))
    yield from fed(plan, progress, feed, validation, length, last=last, steps=steps, run=run)


def fed(
    plan: Plan,
    progress: Progress,
    feed: Feed,
    validation: Examples | None,
    length: int,
    *,
    last: int | None = None,
    steps: Callable[[], int] = lambda: WHOLE,
    run: Run = run_chunk,
) -> Iterator[Chunk]:
    """`chunks` of rows that a feed gives: all from memory, or window after window. `length`: the batches of an epoch.

    >>> import optax
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=1)
    >>> feed, begin = Feed(lambda at: (rows, 2 - at % 2)), start(plan, rows, key=jax.random.key(0))
    >>> [chunk.batches for chunk in fed(plan, begin, feed, None, 2, last=2)]
    [2, 2]
    """
    names = measured(plan, progress, validation)
    _check_place(progress, length)
    # Batches since the beginning, counted here too, because the device is asked for nothing but the row.
    mesh, shared = mesh_of(progress), jax.process_count() > 1
    epoch = int(np.asarray(progress.epoch).max())  # of many runs those that have not stopped are furthest
    at, end = epoch * length + int(progress.cursor), math.inf if last is None else last * length
    done = bool(np.asarray(progress.stopping.done).all())

    run = _keeping_layout(run, progress)

    def dispatch(progress: Progress, at: int) -> tuple[Progress, Array, int]:
        train, held = feed.rows(at)
        size = min(max(0, steps()), held)
        return *run(progress, train, validation, wish(size, mesh), plan=plan), at + size

    ahead = None
    while not done and at < end:
        progress, row, most = ahead or dispatch(progress, at)
        # Not where it might be beyond the last epoch. Of processes that share the run each asks for steps of its own,
        # but all must agree on this, or one would wait for a chunk that the others never begin.
        most_of_all = at - at % length + length if shared else most
        ahead = dispatch(progress, most) if most_of_all < end and feed.ready(most) else None
        *figures, over, finite, batches = np.moveaxis(np.asarray(row), -1, 0)
        done = bool((over != 0).all())  # of runs that stopped earlier all is nan
        size = int(np.nan_to_num(batches).max())
        ahead = ahead if size else jax.block_until_ready(ahead) and None
        at += size
        record = None if at % length or not size else _record(at // length, names, figures)
        yield Chunk(progress, record, bool((finite != 0).all()), size, done)


def epochs(
    plan: Plan,
    progress: Progress,
    train: Examples,
    validation: Examples | None = None,
    *,
    last: int | None = None,
    run: Run = run_chunk,
) -> Iterator[tuple[Progress, dict[str, Any]]]:
    """Yields `(progress, record)` after every epoch, up to the epoch `last` or until the stopping rule ends the run.

    It means

        while not progress.stopping.done and (last is None or progress.epoch < last):
            progress, record = run_epoch(progress, train, validation, plan=plan)
            keep(progress, record)  # which the generator yields, as Python numbers, after the number of the epoch
    """
    for chunk in chunks(plan, progress, train, validation, last=last, run=run):
        if chunk.record is not None:
            yield chunk.progress, chunk.record


def _check_place(progress: Progress, length: int) -> None:
    if int(progress.cursor) >= length:
        raise InputError(f"progress stands at batch {progress.cursor} of {length}. Give the rows that it began with.")


def _keeping_layout(run: Run, progress: Progress) -> Run:
    # Asked once and not before every chunk, which would take a fiftieth of an epoch of a small table.
    return partial(chunk_program, like=layout(progress)) if run is run_chunk else run


def _record(epoch: int, names: list[str], figures: list[np.ndarray]) -> dict[str, Any]:
    plain = (each.item() if each.ndim == 0 else each for each in figures)
    return {"epoch": epoch, **dict(zip(names, plain, strict=True))}


def _together(progress: Progress, train: Examples, validation: Examples | None) -> tuple[Any, ...]:
    """All on the device to which the training rows are bound, if they are bound to one, or on their mesh.

    Otherwise the first epoch's results would be bound and its arguments not, which compiles a second program.
    """
    home, everything = train.weights, (progress, train, validation)
    if isinstance(home, jax.Array) and home.committed and len(home.sharding.device_set) == 1:
        # On a mesh of one device too, which is then as fast as a device.
        return jax.device_put(everything, next(iter(home.sharding.device_set)))
    mesh = mesh_of(train)
    if mesh is not None and mesh_of(progress) != mesh:
        progress = place_progress(progress, mesh)
    if mesh is not None and validation is not None:
        validation = place_rows(validation, mesh)
    if mesh is not None:
        return progress, train, validation
    return jax.tree.map(_on_device, everything)


def _on_device(leaf: Any) -> Array:
    # Arrays stay where they are: `device_put` would gather random keys that are spread over devices, and `jnp.asarray`
    # would compile a program for each shape of NumPy's.
    if isinstance(leaf, jax.Array):
        return leaf
    placed = jax.device_put(leaf)
    # On a CPU JAX reads NumPy's own memory where it can, which is the caller's to change.
    shared = isinstance(leaf, np.ndarray) and placed.unsafe_buffer_pointer() == leaf.ctypes.data
    return jax.device_put(leaf.copy()) if shared else placed


def chunks_of(
    plan: Plan,
    progress: Progress,
    train: Examples | Source,
    validation: Examples | None = None,
    *,
    last: int | None = None,
    steps: Callable[[], int] = lambda: WHOLE,
    run: Run = run_chunk,
    prepared: bool = False,
) -> Iterator[Chunk]:
    """`chunks` of rows in memory, `streamed` of a source. Raises InputError for a source and many runs at once.

    >>> import optax
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=1)
    >>> [chunk.batches for chunk in chunks_of(plan, start(plan, rows, key=jax.random.key(0)), rows, last=1)]
    [2]
    """
    if not isinstance(train, Source):
        return chunks(plan, progress, train, validation, last=last, steps=steps, run=run, prepared=prepared)
    if run is not run_chunk:
        raise InputError("a source trains one run at a time. Use fit for each, or rows in memory: examples(...).")
    return streamed(plan, progress, train, validation, last=last, steps=steps)


def streamed(
    plan: Plan,
    progress: Progress,
    source: Source,
    validation: Examples | None = None,
    *,
    last: int | None = None,
    steps: Callable[[], int] = lambda: WHOLE,
    window_bytes: int = BYTES,
) -> Iterator[Chunk]:
    """`chunks` of the rows of a source: the same batches in the same order, of which a few are in memory.

    A thread reads the batches of a window, about `window_bytes` of rows, and puts them on the devices while those of
    the window before are trained. A chunk ends with its window at the latest. With a progress on a mesh
    (`sharding.place_progress`) each process reads the rows of its own devices. What `Source.read` raises is raised
    here; the thread ends with the generator.

    >>> import optax
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective, start
    >>> from jaxdl.data.arrays import take
    >>> rows = examples([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=1)
    >>> begin = start(plan, rows, key=jax.random.key(0))
    >>> source = Source(3, lambda numbers: take(rows, numbers))
    >>> [chunk.record for chunk in streamed(plan, begin, source, last=2)] == [
    ...     chunk.record for chunk in chunks(plan, begin, rows, last=2)
    ... ]
    True
    """
    first = head(source, plan.batch_size)
    check_rows(plan, first, validation)
    check_monitors(plan, progress, validation)
    progress, validation = _same_everywhere(progress, evaluation_rows(validation))
    cut = cut_rows(first, source.count, plan.batch_size, window_bytes)
    length = int(batches_of_epoch(plan, _window(first, 0, source.count), validation)[1])

    def number_of(at: int) -> int:
        """The window of a batch; the last one of an epoch serves its validation too."""
        epoch, batch = divmod(at, length)
        return epoch * cut.windows + min(batch // cut.held, cut.windows - 1)

    def rows(at: int) -> tuple[Window, int]:
        number = number_of(at)
        part = number % cut.windows + 1
        return fetch.get(number), (length if part == cut.windows else part * cut.held) - at % length

    def ready(at: int) -> bool:
        # Which window is next depends on what all processes have done, so where there are several no chunk is ahead.
        return jax.process_count() == 1 and fetch.ready(number_of(at))

    make = _maker(source, first, cut, progress)
    with fetching(make, None if last is None else last * cut.windows) as fetch:
        yield from fed(plan, progress, Feed(rows, ready), validation, length, last=last, steps=steps)


def window_at(plan: Plan, progress: Progress, source: Source) -> Window:
    """The batch at which a progress stands, as a window that holds no other.

    >>> import optax
    >>> from jaxdl import losses, make_plan, mlp, Objective, start
    >>> source = Source(5, lambda rows: Examples(rows[:, None], rows[:, None], np.ones(len(rows), np.float32)))
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=2)
    >>> window_at(plan, start(plan, head(source, 2), key=jax.random.key(0)), source).batches.inputs.shape
    (1, 2, 1)
    """
    first = head(source, 1)
    cut = cut_rows(first, source.count, plan.batch_size, window_bytes=0)
    batch = min(int(progress.cursor), cut.batches - 1)
    return _maker(source, first, cut, progress)(int(progress.epoch) * cut.batches + batch)


def _maker(source: Source, first: Examples, cut: Cut, progress: Progress) -> Callable[[int], Window]:
    """Makes the windows of a run, counted from its beginning. The thread that calls it asks no device for anything."""
    home, impl = home_of(progress), jax.random.key_impl(progress.key)
    bits: Any = np.asarray(jax.random.key_data(progress.key))

    def make(number: int) -> Window:
        epoch, part = divmod(number, cut.windows)
        with _on_host():
            drawn = draws(jax.random.wrap_key_data(bits, impl=impl), epoch, cut.rows)
            order = partial(rows_on_host, jax.tree.map(np.asarray, drawn), count=cut.rows)
        batches = load(source, first, cut, part, order, home, prepare=partial(for_training, source))
        return _window(batches, part * cut.held, cut.rows)

    return make


def _window(batches: Examples, number: int, rows: int) -> Window:
    return Window(batches, np.int32(number), np.int32(rows))  # type: ignore[arg-type]


def _on_host() -> AbstractContextManager[Any]:
    """Small computations on the CPU: an accelerator would do them after the chunk under way."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        # The platforms were chosen without the CPU.
        return nullcontext()


def _same_everywhere(progress: Progress, validation: Examples | None) -> tuple[Progress, Examples | None]:
    mesh = mesh_of(progress)
    if mesh is None:
        together: tuple[Progress, Examples | None] = jax.device_put((progress, validation), home_of(progress))
        return together
    return progress, None if validation is None else place_rows(validation, mesh)


# Who stops a run waits for the chunk under way, for a save, and for the chunk that the device is ahead: two seconds at
# most, on a busy machine too.
SECONDS = 0.25


def paced(
    plan: Plan,
    progress: Progress,
    train: Examples | Source,
    validation: Examples | None = None,
    *,
    last: int | None = None,
    seconds: float = SECONDS,
    pause: Callable[[], bool] = lambda: False,
    run: Run = run_chunk,
    prepared: bool = False,
) -> Iterator[Chunk]:
    """`chunks` of about so many seconds each, or of a whole epoch, or a source's window, where that is shorter.

    pause: asked before every chunk whether it should do nothing.

    The first holds one batch, as nothing is known yet; none has more than twice the batches of the one before.

    >>> import jax, optax
    >>> from jaxdl import examples, losses, make_plan, mlp, Objective, start
    >>> rows = examples([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])
    >>> plan = make_plan(mlp(()), Objective(losses.squared_error), optax.sgd(0.1), batch_size=1)
    >>> batches = [chunk.batches for chunk in paced(plan, start(plan, rows, key=jax.random.key(0)), rows, last=2)]
    >>> batches[0], sum(batches)
    (1, 6)
    """
    size, began = 1, time.perf_counter()

    def steps() -> int:
        return 0 if pause() else size

    for chunk in chunks_of(plan, progress, train, validation, last=last, steps=steps, run=run, prepared=prepared):
        now = time.perf_counter()
        if chunk.batches:
            fitting = int(seconds * chunk.batches / max(now - began, 1e-9))
            size = max(1, min(2 * size, fitting))
        began = now
        yield chunk
