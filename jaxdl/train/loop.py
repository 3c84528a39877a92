"""The loop over epochs, several steps a call, in memory or streamed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxdl.data import DataSource
from jaxdl.data.batches import evaluation_rows
from jaxdl.data.streaming import Loader, loader
from jaxdl.distributed.sharding import agree_on_steps, mesh_of, shardings_of
from jaxdl.errors import InputError
from jaxdl.metrics import compute
from jaxdl.train.epoch import batches_of_epoch, chunk_program, run_chunk
from jaxdl.train.hooks import Chunk, Hooks, LoopResult, RunningMetrics
from jaxdl.train.plan import check_monitors, check_rows, record_names
from jaxdl.types import LOSS, Array, Dataset, Plan, RunState

WHOLE = 2**30  # more batches than an epoch has
# (run_state, train, validation, steps, plan=plan) -> (run_state, row); see `epoch.run_steps` for the row.
Run = Callable[..., tuple[RunState, Array]]


# Of `chunk_program` for one run. Of NumPy, so that epochs with and without validation share one compiled function.
OPTIONS: dict[str, Any] = {"alone": True, "validate": np.bool_(True)}


def lowered_chunk(
    plan: Plan, run_state: RunState, train: Dataset, validation: Dataset | None = None
) -> jax.stages.Lowered:
    """Return the lowered function of `chunks`, for arguments or their shapes; once compiled, `chunks` compile nothing.

    train and validation: as `batches.training_rows` and `batches.evaluation_rows` prepare them.
    """
    steps, options = agree_on_steps(WHOLE, mesh_of(run_state)), {**OPTIONS, "like": shardings_of(run_state)}
    return chunk_program.lower(run_state, train, validation, steps, plan=plan, **options)


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
    max_steps: int | None = None,
    validate_every: int = 1,
    end_after: Sequence[int] = (),
) -> Iterator[Chunk]:
    """Yield after every `steps()` batches, and after every epoch, up to the epoch `last` or until the rule stops.

    One compiled function serves every number of steps, and all of them give bit-identical results. There is one call
    and one transfer for each chunk, and the device is one chunk ahead: while the caller looks at a chunk, the device
    computes the next. (A chunk after the end of a run changes nothing.) It means

        while not run_state.stopping.should_stop and (last is None or run_state.epoch < last):
            run_state, record = run(run_state, train, validation, steps(), plan=plan)
            keep(run_state, record)  # which the generator yields; there is no record inside of an epoch

    max_steps: the training steps of the run, with earlier ones, after which it ends, also inside an epoch.
    validate_every: validation runs after each epoch whose number is a multiple, and after the epoch `last`; the records
        of the other epochs have no `val_` values.
    end_after: a call ends after each training step whose number in the run is a multiple of one of these.

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
    at, train_batches = epoch * length + int(run_state.cursor), int(batches_of_epoch(plan, train, validation)[0])
    # More or fewer steps were trained before where an earlier epoch had another batch size. Read only where it counts.
    extra = 0
    if max_steps is not None or end_after:
        extra = int(np.asarray(run_state.train_state.step).max()) - _steps_at(at, train_batches, length)
    end = math.inf if last is None else last * length
    if max_steps is not None:
        whole, rest = divmod(max(0, max_steps - extra), train_batches)
        end = min(end, whole * length + rest)
        last = math.ceil(end / length)
    # Processes that share the run know the position of a call only after the one before.
    shared_bounds = shared and (max_steps is not None or validate_every > 1 or len(end_after) > 0)
    should_stop, began = bool(np.asarray(run_state.stopping.should_stop).all()), time.perf_counter()

    with train.open(run_state, validation, length, last) as (run_state, validation, feed):
        mesh = mesh_of(run_state)
        if run is run_chunk:
            # The shardings are read once: before every chunk, that would take a fiftieth of an epoch of a small table.
            run = partial(chunk_program, like=shardings_of(run_state), **OPTIONS)

        def validates(at: int) -> bool:
            """Return whether the epoch of a batch ends with validation, as each does that has begun to validate."""
            epoch, cursor = at // length + 1, at % length
            return cursor >= train_batches or epoch % validate_every == 0 or epoch * length == end

        def position(at: int, size: int) -> int:
            """Return the position after some batches; an epoch without validation is shorter."""
            cursor = at % length + size
            return at + size if cursor < train_batches or validates(at) else at - at % length + length

        def dispatch(run_state: RunState, at: int) -> tuple[RunState, Array, int]:
            data, available = feed.at(at)
            size = min(max(0, steps()), available)
            if max_steps is not None:
                size = min(size, int(end) - at)
            if end_after and at % length < train_batches:
                step = extra + _steps_at(at, train_batches, length)
                size = min(size, *(each - step % each for each in end_after))
            options = {"validate": np.bool_(validates(at))} if validate_every > 1 else {}
            result = run(run_state, data, validation, agree_on_steps(size, mesh), plan=plan, **options)
            return *result, position(at, size)

        ahead = None
        while not should_stop and at < end:
            run_state, row, reach = ahead or dispatch(run_state, at)
            # No call beyond the last epoch. Processes that share the run ask for different steps, but must all make
            # this call or none: one process would wait for a chunk that the others never begin.
            furthest = math.inf if shared_bounds else at - at % length + length if shared else reach
            ahead = dispatch(run_state, reach) if furthest < end and feed.ready(reach) else None
            *values, stops, finite, batches = np.moveaxis(np.asarray(row), -1, 0)
            should_stop = bool((stops != 0).all())  # the values of members that stopped earlier are all NaN
            size = int(np.nan_to_num(batches).max())
            ahead = ahead if size else jax.block_until_ready(ahead) and None
            validated, at = validates(at), position(at, size)
            record = None
            if size and at % length == 0:
                record = _record(at // length, names, values, validated)
            now = time.perf_counter()
            if isinstance(steps, AdaptiveSteps):
                steps.update(now - began, size)
            began = now
            step = extra + _steps_at(at, train_batches, length)
            metrics = RunningMetrics(partial(_running_metrics, plan, run_state, record))
            yield Chunk(run_state, record, bool((finite != 0).all()), size, should_stop, step, metrics)


def _steps_at(at: int, train_batches: int, length: int) -> int:
    """Return the training steps among the batches before a position, of epochs of `length` batches."""
    return at // length * train_batches + min(at % length, train_batches)


def _running_metrics(plan: Plan, run_state: RunState, record: dict[str, Any] | None) -> dict[str, Any]:
    """Return loss and metrics of the training steps of an epoch: of its record, or of the sums so far."""
    if record is not None:
        return {name: record[name] for name in (LOSS, *(metric.name for metric in plan.objective.metrics))}
    values = partial(compute, metrics=plan.objective.metrics)
    if np.ndim(run_state.epoch):
        values = jax.vmap(values)
    # On the host first: the arrays may be on devices of several processes.
    numbers = values(jax.tree.map(np.asarray, run_state.sums))
    return {name: value.item() if np.ndim(value) == 0 else np.asarray(value) for name, value in numbers.items()}


def run_loop(
    parts: Iterable[Chunk],
    result: LoopResult,
    *,
    hooks: Hooks | None = None,
    make_record: Callable[[dict[str, Any]], dict[str, Any]] = lambda record: record,
    make_state: Callable[[RunState], Any] = lambda state: state,
    is_last: Callable[[Chunk], bool] = lambda chunk: False,
) -> None:
    """Run the chunks of a run: the loop of `fit`, `fit_seeds`, `sweep` and the runs of experiments.

    hooks: of the callbacks, which `open_hooks` opens. make_record and make_state: make the record of the history and
    the state of the result from those of the chunk. is_last: whether to end after a chunk; called after the
    callbacks. With `open_hooks` around it, it means

        # `call` calls a hook, if there is one, and returns the reason of its Stop, or ""
        reasons = [call(callback.on_train_begin, state, history) for callback in callbacks]
        for chunk in [] if any(reasons) else parts:
            state = chunk.state
            if chunk.record is not None:
                history.append(chunk.record)
            due = [callback for callback in callbacks if is_due(callback, chunk)]
            reasons = [call(callback.on_steps, state, chunk.metrics) for callback in due]
            if chunk.record is not None:
                reasons += [call(callback.on_epoch_end, state, history) for callback in callbacks]
            if is_last(chunk) or any(reasons):
                break
        for callback in reversed(callbacks):  # also after an exception
            call(callback.on_train_end, state, history)
    """
    for chunk in () if result.reason else parts:
        # The record first: Ctrl-C may come between the two, and a record without its state is found by its epoch.
        if chunk.record is not None:
            result.history.append(make_record(chunk.record))
        result.state, result.should_stop = make_state(chunk.state), chunk.should_stop
        if hooks is not None:
            hooks.call(chunk)
        if is_last(chunk) or result.reason:
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


def _record(epoch: int, names: list[str], values: list[np.ndarray], validated: bool) -> dict[str, Any]:
    numbers = (value.item() if value.ndim == 0 else value for value in values)
    record = {"epoch": epoch, **dict(zip(names, numbers, strict=True))}
    return record if validated else {name: value for name, value in record.items() if not name.startswith("val_")}
