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
from jaxdl.train.plan import check_monitors, check_rows, record_names
from jaxdl.types import Array, Dataset, Plan, RunState

WHOLE = 2**30  # more batches than an epoch has
# (run_state, train, validation, steps, plan=plan) -> (run_state, row); see `epoch.run_steps` for the row.
Run = Callable[..., tuple[RunState, Array]]


class Chunk(NamedTuple):
    """The result of one call: some batches of an epoch, or all."""

    state: RunState
    record: dict[str, Any] | None  # of the epoch that the chunk ended: a float for each value, of many runs an array
    finite: bool  # whether the variables, and the losses of the unfinished epoch, are finite
    batches: int  # 0 where `steps` asked for none, on this process or on another
    should_stop: bool = False  # whether the stopping rule has ended the run; of many runs, all


def lowered_chunk(
    plan: Plan, run_state: RunState, train: Dataset, validation: Dataset | None = None
) -> jax.stages.Lowered:
    """Return the lowered function of `chunks`, for arguments or their shapes; once compiled, `chunks` compile nothing.

    train and validation: as `batches.training_rows` and `batches.evaluation_rows` prepare them.
    """
    steps = agree_on_steps(WHOLE, mesh_of(run_state))
    return chunk_program.lower(run_state, train, validation, steps, plan=plan, like=shardings_of(run_state), alone=True)


# A signal waits for the current call, a save, and the call ahead: two seconds at most, on a busy machine too.
SECONDS = 0.25


class AdaptiveSteps:
    """The batches of the next call, so that a call takes about `seconds`, by the duration of the last one.

    The first call has one batch, because nothing is known yet; no call has more than twice the batches of the last.
    pause: called before every call; where it returns True, the call has no batches.
    """

    def __init__(self, seconds: float = SECONDS, pause: Callable[[], bool] = lambda: False) -> None:
        """Start with one batch."""
        self.seconds, self.pause, self.size = seconds, pause, 1

    def __call__(self) -> int:
        """Return the batches of the next call; 0 for a pause."""
        return 0 if self.pause() else self.size

    def update(self, seconds: float, batches: int) -> None:
        """Adapt the size to the duration of a call."""
        if batches:
            self.size = max(1, min(2 * self.size, int(self.seconds * batches / max(seconds, 1e-9))))


def prepare_data(
    plan: Plan, train: Dataset | DataSource | Loader, validation: Dataset | None
) -> tuple[Loader, Dataset | None]:
    """Return the data as the loop takes them. Raises InputError where they do not fit the plan or each other."""
    data = loader(train, plan.batch_size)
    check_rows(plan, data.first, validation)
    return data, evaluation_rows(validation)


def chunks(
    plan: Plan,
    run_state: RunState,
    train: Dataset | DataSource | Loader,
    validation: Dataset | None = None,
    *,
    last: int | None = None,
    steps: AdaptiveSteps | Callable[[], int] = lambda: WHOLE,
    run: Run = run_chunk,
) -> Iterator[Chunk]:
    """Yield after every `steps()` batches, and after every epoch, up to the epoch `last` or until the rule stops.

    One compiled function serves every number of steps, and all of them give bit-identical results. There is one call
    and one transfer for each chunk, and the device is one chunk ahead: while the caller looks at a chunk, the device
    computes the next. (A chunk after the end of a run changes nothing.) It means

        while not run_state.stopping.should_stop and (last is None or run_state.epoch < last):
            run_state, record = run(run_state, train, validation, steps(), plan=plan)
            keep(run_state, record)  # which the generator yields; there is no record inside of an epoch

    Where `steps()` is 0, the call is a pause: nothing is computed, and the device is idle when the chunk is yielded.
    Where several processes share the run, the compiled function takes the minimum of their steps, so a pause of one is
    a pause of all. With `run=ensembles.run_members` the state is that of many runs, and the values are arrays.

    A DataSource gives the same batches in the same order, with a few of them in memory: a chunk ends with its window at
    the latest. With a state on a mesh (`distributed.shard_state`) each process reads the examples of its own devices.
    Errors of `DataSource.read` are raised here; the reading thread ends with the generator.

    Raises InputError for data that do not fit the plan or the state, and for a DataSource and many runs.
    """
    if not isinstance(train, Loader):
        train, validation = prepare_data(plan, train, validation)
        check_monitors(plan, run_state, validation)
    if run is not run_chunk and train.examples is None:
        raise InputError("a source trains one run at a time. Use fit for each, or data in memory: dataset(...).")
    length = int(batches_of_epoch(plan, train, validation)[1])
    if int(run_state.cursor) >= length:
        raise InputError(f"state is at batch {run_state.cursor} of {length}. Give the data with which the epoch began.")
    names, shared = record_names(plan, run_state, validation), jax.process_count() > 1
    # Batches since the first epoch, counted here too, because only the row is read from the device.
    epoch = int(np.asarray(run_state.epoch).max())  # of many runs those that have not stopped are furthest
    at, end = epoch * length + int(run_state.cursor), math.inf if last is None else last * length
    should_stop, began = bool(np.asarray(run_state.stopping.should_stop).all()), time.perf_counter()

    with train.open(run_state, validation, length, last) as (run_state, validation, feed):
        mesh = mesh_of(run_state)
        if run is run_chunk:
            # The shardings are read once: before every chunk, that would take a fiftieth of an epoch of a small table.
            run = partial(chunk_program, like=shardings_of(run_state), alone=True)

        def dispatch(run_state: RunState, at: int) -> tuple[RunState, Array, int]:
            data, available = feed.at(at)
            size = min(max(0, steps()), available)
            return *run(run_state, data, validation, agree_on_steps(size, mesh), plan=plan), at + size

        ahead = None
        while not should_stop and at < end:
            run_state, row, reach = ahead or dispatch(run_state, at)
            # No call beyond the last epoch. Processes that share the run ask for different steps, but must all make
            # this call or none: one process would wait for a chunk that the others never begin.
            furthest = at - at % length + length if shared else reach
            ahead = dispatch(run_state, reach) if furthest < end and feed.ready(reach) else None
            *values, stops, finite, batches = np.moveaxis(np.asarray(row), -1, 0)
            should_stop = bool((stops != 0).all())  # the values of members that stopped earlier are all NaN
            size = int(np.nan_to_num(batches).max())
            ahead = ahead if size else jax.block_until_ready(ahead) and None
            at += size
            record = None if at % length or not size else _record(at // length, names, values)
            now = time.perf_counter()
            if isinstance(steps, AdaptiveSteps):
                steps.update(now - began, size)
            began = now
            yield Chunk(run_state, record, bool((finite != 0).all()), size, should_stop)


@dataclass
class LoopResult:
    """The state and the records of a run, also after an exception has ended its loop."""

    state: RunState
    history: list[dict[str, Any]]
    should_stop: bool = False  # as on the device, which need not be asked


def run_loop(
    parts: Iterable[Chunk],
    result: LoopResult,
    *,
    callbacks: Iterable[Callable[..., Any]] = (),
    on_chunk: Iterable[Callable[..., Any]] = (),
    make_record: Callable[[dict[str, Any]], dict[str, Any]] = lambda record: record,
    is_last: Callable[[Chunk], bool] = lambda chunk: False,
) -> None:
    """Run the chunks of a run: the loop of `fit`, `fit_seeds`, `sweep` and the runs of experiments.

    callbacks: called with (state, history) after every epoch. on_chunk: the same after every chunk. make_record: makes
    the record of the history from that of the chunk. is_last: whether to end after a chunk; called after the callbacks.
    """
    callbacks, on_chunk = tuple(callbacks), tuple(on_chunk)
    for chunk in parts:
        # The record first: Ctrl-C may come between the two, and a record without its state is found by its epoch.
        if chunk.record is not None:
            result.history.append(make_record(chunk.record))
        result.state, result.should_stop = chunk.state, chunk.should_stop
        for callback in (*(callbacks if chunk.record is not None else ()), *on_chunk):
            callback(chunk.state, result.history)
        if is_last(chunk):
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
    """Yield `(state, record)` after every epoch, up to the epoch `last` or until the stopping rule ends the run.

    It means

        while not run_state.stopping.should_stop and (last is None or run_state.epoch < last):
            run_state, record = run_epoch(run_state, train, validation, plan=plan)
            keep(run_state, record)  # which the generator yields, as Python numbers, after the number of the epoch
    """
    for chunk in chunks(plan, run_state, train, validation, last=last, run=run):
        if chunk.record is not None:
            yield chunk.state, chunk.record


def _record(epoch: int, names: list[str], values: list[np.ndarray]) -> dict[str, Any]:
    numbers = (value.item() if value.ndim == 0 else value for value in values)
    return {"epoch": epoch, **dict(zip(names, numbers, strict=True))}
