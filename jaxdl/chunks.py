"""Chunks: a run cut into pieces of any length, which give the bits of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdl.batches import Window, evaluation_rows, training_rows
from jaxdl.errors import InputError
from jaxdl.pieces import chunk_program, run_chunk
from jaxdl.plans import check_monitors, check_rows, measured
from jaxdl.sharding import layout, mesh_of, place_progress, place_rows, wish
from jaxdl.training import batches_of_epoch
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
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> from jaxdl.training import start_shapes
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
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
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
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
