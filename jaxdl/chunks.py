"""Chunks: a run cut into pieces of any length, which give the bits of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdl.errors import InputError
from jaxdl.objectives import LOSS
from jaxdl.plans import check_monitors, check_rows, measured
from jaxdl.programs import program
from jaxdl.training import batches_of_epoch, finish_epoch, run_steps
from jaxdl.types import Array, Examples, Plan, Progress

WHOLE = 2**30  # more batches than an epoch has


class Chunk(NamedTuple):
    """What a piece of a run leaves."""

    progress: Progress
    record: dict[str, float] | None  # of the epoch, where the chunk ended one
    finite: bool  # whether the weights, and the losses of the epoch under way, are
    batches: int  # how many were done


def chunks(
    plan: Plan,
    progress: Progress,
    train: Examples,
    validation: Examples | None = None,
    *,
    last: int | None = None,
    steps: Callable[[], int] = lambda: WHOLE,
) -> Iterator[Chunk]:
    """Yields after every `steps()` batches, and after every epoch, up to the epoch `last` or until the rule stops.

    However an epoch is cut, one program runs it and gives the same bits. One dispatch and one transfer a chunk, and
    always a chunk ahead: while the caller looks at one, the device is at the next. (One after the end of a run is over
    at once and changes nothing.) It means

        while not progress.stopping.done and (last is None or progress.epoch < last):
            progress, record = run_chunk(progress, train, validation, steps(), plan=plan)
            keep(progress, record)  # which the generator yields; there is no record inside of an epoch
    """
    check_rows(plan, train, validation)
    check_monitors(plan, progress, validation)
    progress, train, validation = _together(progress, train, validation)
    names, (_, length) = measured(plan, progress, validation), batches_of_epoch(plan, train, validation)
    if int(progress.cursor) >= length:
        raise InputError(f"progress stands at batch {progress.cursor} of {length}. Give the rows that it began with.")
    # Batches since the beginning, counted here too, because the device is asked for nothing but the row.
    at, end = int(progress.epoch) * length + int(progress.cursor), math.inf if last is None else last * length
    done = bool(progress.stopping.done)

    def dispatch(progress: Progress) -> tuple[Progress, Array, int]:
        size = min(max(1, steps()), length - at % length)
        return *_run_chunk_to_row(progress, train, validation, np.int32(size), plan=plan), size

    ahead = None if done or at >= end else dispatch(progress)
    while ahead is not None and not done:
        progress, row, size = ahead
        at += size
        ahead = None if at >= end else dispatch(progress)
        *figures, done, finite = np.asarray(row).tolist()
        record = {"epoch": at // length, **dict(zip(names, figures, strict=True))}
        yield Chunk(progress, None if at % length else record, bool(finite), size)


def epochs(
    plan: Plan, progress: Progress, train: Examples, validation: Examples | None = None, *, last: int | None = None
) -> Iterator[tuple[Progress, dict[str, float]]]:
    """Yields `(progress, record)` after every epoch, up to the epoch `last` or until the stopping rule ends the run.

    It means

        while not progress.stopping.done and (last is None or progress.epoch < last):
            progress, record = run_epoch(progress, train, validation, plan=plan)
            keep(progress, record)  # which the generator yields, as Python numbers, after the number of the epoch
    """
    for chunk in chunks(plan, progress, train, validation, last=last):
        if chunk.record is not None:
            yield chunk.progress, chunk.record


@partial(program, static_argnames="plan")
def _run_chunk_to_row(
    progress: Progress, train: Examples, validation: Examples | None, steps: Any, *, plan: Plan
) -> tuple[Progress, Array]:
    """The next batches of a run; the epoch's record, the stop flag and whether all is finite.

    These are one array, because each array that the host reads costs it a wait.
    """
    names, (_, length) = measured(plan, progress, validation), batches_of_epoch(plan, train, validation)

    def close(progress: Progress) -> tuple[Progress, Array]:
        after, record = finish_epoch(progress, validation, plan=plan)
        done = after.stopping.done.astype(jnp.float32)
        return after, jnp.stack([*(record[name].astype(jnp.float32) for name in names), done])

    def pause(progress: Progress) -> tuple[Progress, Array]:
        return progress, jnp.zeros(len(names) + 1, jnp.float32)

    # A run that is over stands still: no batches, and nothing to close.
    left = jnp.where(progress.stopping.done, 0, steps)
    after = run_steps(progress, train, validation, left, plan=plan)
    finite = _finite(after).astype(jnp.float32)
    after, row = lax.cond(after.cursor == length, close, pause, after)
    return after, jnp.append(row, finite)


def _finite(progress: Progress) -> Array:
    state = progress.state
    losses = progress.sums.totals[LOSS], progress.val_sums.totals[LOSS]
    leaves = jax.tree.leaves((state.weights, state.average, losses))
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def _together(progress: Progress, train: Examples, validation: Examples | None) -> tuple[Any, ...]:
    """All on the device to which the training rows are bound, if they are bound to one.

    Otherwise the first epoch's results would be bound and its arguments not, which compiles a second program.
    """
    home = train.weights
    bound = isinstance(home, jax.Array) and home.committed and len(home.sharding.device_set) == 1
    return jax.device_put((progress, train, validation), home.sharding if bound else None)
