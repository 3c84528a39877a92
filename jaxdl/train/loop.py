"""The loop over epochs, several steps a call, in memory or streamed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdl.data import DataSource
from jaxdl.data.batches import evaluation_rows
from jaxdl.data.streaming import Loader, loader
from jaxdl.distributed.sharding import agree_on_steps, mesh_of, shardings_of
from jaxdl.errors import InputError
from jaxdl.train.epoch import batches_of_epoch, chunk_program, run_chunk
from jaxdl.train.plan import check_monitors, check_rows, measured
from jaxdl.types import Array, Dataset, Plan, RunState

WHOLE = 2**30  # more batches than an epoch has
# (progress, train, validation, batches, plan=plan) -> (progress, row); see `epoch.advance` for the row.
Run = Callable[..., tuple[RunState, Array]]


class Chunk(NamedTuple):
    """What a piece of a run leaves."""

    state: RunState
    record: dict[str, Any] | None  # of the epoch, where the chunk ended one: a float a figure, of many runs an array
    finite: bool  # whether the weights, and the losses of the epoch under way, are
    batches: int  # how many were done; 0 where `steps` asked for none, on this process or on another
    should_stop: bool = False  # whether the rule has ended the run; of many runs, all


def lowered_chunk(
    plan: Plan, run_state: RunState, train: Dataset, validation: Dataset | None = None
) -> jax.stages.Lowered:
    """The program that `chunks` run, of arguments or of their shapes. Once it is compiled, `chunks` compile nothing."""
    steps = agree_on_steps(WHOLE, mesh_of(run_state))
    return chunk_program.lower(run_state, train, validation, steps, plan=plan, like=shardings_of(run_state), alone=True)


# Who stops a run waits for the call under way, for a save, and for the call that the device is ahead: two seconds at
# most, on a busy machine too.
SECONDS = 0.25


class Pace:
    """How many batches take about so many seconds: it is told what the last ones took.

    The first call holds one batch, as nothing is known yet; none has more than twice the batches of the one before.
    pause: asked before every call whether it should do nothing.
    """

    def __init__(self, seconds: float = SECONDS, pause: Callable[[], bool] = lambda: False) -> None:
        """Begins with one batch."""
        self.seconds, self.pause, self.size = seconds, pause, 1

    def __call__(self) -> int:
        """The batches of the next call; 0 for a pause."""
        return 0 if self.pause() else self.size

    def update(self, seconds: float, batches: int) -> None:
        """Take in what the batches of a call took."""
        if batches:
            self.size = max(1, min(2 * self.size, int(self.seconds * batches / max(seconds, 1e-9))))


def checked(
    plan: Plan, train: Dataset | DataSource | Loader, validation: Dataset | None
) -> tuple[Loader, Dataset | None]:
    """Return the rows as the loop takes them. Raises InputError where they do not fit the plan or each other."""
    rows = loader(train, plan.batch_size)
    check_rows(plan, rows.first, validation)
    return rows, evaluation_rows(validation)


def chunks(
    plan: Plan,
    run_state: RunState,
    train: Dataset | DataSource | Loader,
    validation: Dataset | None = None,
    *,
    last: int | None = None,
    steps: Pace | Callable[[], int] = lambda: WHOLE,
    run: Run = run_chunk,
) -> Iterator[Chunk]:
    """Yields after every `steps()` batches, and after every epoch, up to the epoch `last` or until the rule stops.

    However an epoch is cut, one program runs it and gives the same bits. One dispatch and one transfer a chunk, and
    always a chunk ahead: while the caller looks at one, the device is at the next. (One after the end of a run is over
    at once and changes nothing.) It means

        while not run_state.stopping.should_stop and (last is None or run_state.epoch < last):
            run_state, record = run(run_state, train, validation, steps(), plan=plan)
            keep(run_state, record)  # which the generator yields; there is no record inside of an epoch

    Where `steps()` is 0, nothing is done and nothing under way when that is yielded: a pause. Where several processes
    share the run, each asks for steps of its own and gets the least: a pause that one asks for is a pause of all.
    With `run=ensembles.run_members` the progress is that of many runs, and the figures are arrays.

    The rows of a source are the same batches in the same order, of which a few are in memory: a chunk ends with its
    window at the latest. With a progress on a mesh (`distributed.shard_state`) each process reads the rows of its own
    devices. What `DataSource.read` raises is raised here; the thread ends with the generator.

    Raises InputError for rows that do not fit the plan or the progress, and for a source and many runs.
    """
    if not isinstance(train, Loader):
        train, validation = checked(plan, train, validation)
        check_monitors(plan, run_state, validation)
    if run is not run_chunk and train.examples is None:
        raise InputError("a source trains one run at a time. Use fit for each, or rows in memory: dataset(...).")
    length = int(batches_of_epoch(plan, train, validation)[1])
    if int(run_state.cursor) >= length:
        raise InputError(f"progress stands at batch {run_state.cursor} of {length}. Give the rows that it began with.")
    names, shared = measured(plan, run_state, validation), jax.process_count() > 1
    # Batches since the beginning, counted here too, because the device is asked for nothing but the row.
    epoch = int(np.asarray(run_state.epoch).max())  # of many runs those that have not stopped are furthest
    at, end = epoch * length + int(run_state.cursor), math.inf if last is None else last * length
    done, began = bool(np.asarray(run_state.stopping.should_stop).all()), time.perf_counter()

    with train.open(run_state, validation, length, last) as (run_state, validation, feed):
        mesh = mesh_of(run_state)
        if run is run_chunk:
            # Asked once and not before every chunk, which would take a fiftieth of an epoch of a small table.
            run = partial(chunk_program, like=shardings_of(run_state), alone=True)

        def dispatch(run_state: RunState, at: int) -> tuple[RunState, Array, int]:
            rows, held = feed.at(at)
            size = min(max(0, steps()), held)
            return *run(run_state, rows, validation, agree_on_steps(size, mesh), plan=plan), at + size

        ahead = None
        while not done and at < end:
            run_state, row, most = ahead or dispatch(run_state, at)
            # Not where it might be beyond the last epoch. Of processes that share the run each asks for steps of its
            # own, but all must agree on this, or one would wait for a chunk that the others never begin.
            most_of_all = at - at % length + length if shared else most
            ahead = dispatch(run_state, most) if most_of_all < end and feed.ready(most) else None
            *figures, over, finite, batches = np.moveaxis(np.asarray(row), -1, 0)
            done = bool((over != 0).all())  # of runs that stopped earlier all is nan
            size = int(np.nan_to_num(batches).max())
            ahead = ahead if size else jax.block_until_ready(ahead) and None
            at += size
            record = None if at % length or not size else _record(at // length, names, figures)
            now = time.perf_counter()
            if isinstance(steps, Pace):
                steps.update(now - began, size)
            began = now
            yield Chunk(run_state, record, bool((finite != 0).all()), size, done)


@dataclass
class Reached:
    """Where a run stands, also after an exception has ended its loop."""

    state: RunState
    history: list[dict[str, Any]]
    stopped: bool = False  # whether the rule has ended the run


def run_loop(
    pieces: Iterable[Chunk],
    reached: Reached,
    *,
    callbacks: Iterable[Callable[..., Any]] = (),
    watchers: Iterable[Callable[..., Any]] = (),
    about: Callable[[dict[str, Any]], dict[str, Any]] = lambda record: record,
    ends: Callable[[Chunk], bool] = lambda chunk: False,
) -> None:
    """Go through the chunks of a run: the loop under `fit`, `fit_seeds`, `sweep` and the runs of experiments.

    callbacks: called with (progress, history) after every epoch. watchers: after every chunk. about: gives the record
    of an epoch as it is kept. ends: asked last, whether this chunk is the last one.
    """
    callbacks, watchers = tuple(callbacks), tuple(watchers)
    for chunk in pieces:
        # The record first: Ctrl-C may come between the two, and a record too many is seen by its epoch.
        if chunk.record is not None:
            reached.history.append(about(chunk.record))
        reached.state, reached.stopped = chunk.state, chunk.should_stop
        for observe in (*(callbacks if chunk.record is not None else ()), *watchers):
            observe(chunk.state, reached.history)
        if ends(chunk):
            break


def epochs(
    plan: Plan,
    run_state: RunState,
    train: Dataset | DataSource | Loader,
    validation: Dataset | None = None,
    *,
    last: int | None = None,
    run: Run = run_chunk,
) -> Iterator[tuple[RunState, dict[str, Any]]]:
    """Yields `(progress, record)` after every epoch, up to the epoch `last` or until the stopping rule ends the run.

    It means

        while not run_state.stopping.should_stop and (last is None or run_state.epoch < last):
            run_state, record = run_epoch(run_state, train, validation, plan=plan)
            keep(run_state, record)  # which the generator yields, as Python numbers, after the number of the epoch
    """
    for chunk in chunks(plan, run_state, train, validation, last=last, run=run):
        if chunk.record is not None:
            yield chunk.state, chunk.record


def _record(epoch: int, names: list[str], figures: list[np.ndarray]) -> dict[str, Any]:
    plain = (each.item() if each.ndim == 0 else each for each in figures)
    return {"epoch": epoch, **dict(zip(names, plain, strict=True))}
