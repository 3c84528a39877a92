"""A replay: a chunk that was not finite once more, batch by batch, to find where it began."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jaxdl.batches import batch_rows, batches_of, epoch_rows, validation_batch
from jaxdl.chunks import Chunk
from jaxdl.nonfinite import Arose, in_evaluation, in_step
from jaxdl.orders import draws, rows_on_host
from jaxdl.sharding import fetched
from jaxdl.sources import Source
from jaxdl.steps import shown_weights
from jaxdl.streams import chunks_of, window_at
from jaxdl.training import batches_of_epoch
from jaxdl.types import Examples, Plan, Progress

SHOWN = 8  # rows that the sentence names


class Trouble(NamedTuple):
    """The first batch after which a number was not finite."""

    progress: Progress  # before it
    epoch: int  # from 1
    batch: int  # of its kind in the epoch, from 1
    batches: int  # of its kind in an epoch
    kind: str  # "training" or "validation"
    where: str  # the layer, or what else it was
    value: str  # "nan", "inf" or "-inf"
    rows: tuple[int, ...]  # of the training rows, or of the validation rows, from 0

    def __str__(self) -> str:
        names = ", ".join(str(row) for row in self.rows[:SHOWN])
        more = f" and {len(self.rows) - SHOWN} more" if len(self.rows) > SHOWN else ""
        word = "row" if len(self.rows) == 1 else "rows"
        return (
            f"epoch {self.epoch}, {'step' if self.kind == 'training' else 'batch'} {self.batch} of {self.batches} of "
            f"{self.kind}: {self.value} in {self.where}, first for {self.kind} {word} {names}{more} (counted from 0)"
        )


class NotFiniteError(ArithmeticError):
    """A run met nan or infinity; its argument is the Trouble."""


def guarded(
    pieces: Iterable[Chunk], plan: Plan, progress: Progress, train: Examples | Source, validation: Examples | None
) -> Iterator[Chunk]:
    """The chunks that began at `progress`, up to one that is not finite: there NotFiniteError says where it began.

    >>> import jax, optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(1e30), batch_size=2)
    >>> begin = start(plan, rows, key=jax.random.key(0))
    >>> try:
    ...     list(guarded(chunks_of(plan, begin, rows, last=9), plan, begin, rows, None))
    ... except NotFiniteError as error:
    ...     print(error.args[0].epoch)
    2
    """
    for chunk in pieces:
        if not chunk.finite:
            raise NotFiniteError(replay(plan, progress, train, validation))
        progress = chunk.progress
        yield chunk


def replay(plan: Plan, progress: Progress, train: Examples | Source, validation: Examples | None) -> Trouble:
    """Where the run first meets a number that is not finite, from a progress before; it runs until there is one.

    >>> import jax, optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(1e30), batch_size=2)
    >>> trouble = replay(plan, start(plan, rows, key=jax.random.key(0)), rows, None)
    >>> trouble.epoch, trouble.batch, trouble.rows
    (2, 1, (0, 1))
    """
    for chunk in chunks_of(plan, progress, train, validation, steps=lambda: 1):
        if not chunk.finite:
            break
        progress = chunk.progress
    rows_of = window_at(plan, progress, train) if isinstance(train, Source) else train
    trained, length = map(int, batches_of_epoch(plan, rows_of, validation))
    epoch, cursor = int(progress.epoch) + 1, int(progress.cursor)
    # Looked at number by number, some of which may lie on devices of other processes.
    here, rows_of, validation = fetched((progress, rows_of, validation))
    if cursor < trained:
        batch = batches_of(rows_of, here.key, here.epoch, plan.batch_size)(cursor)
        arose, count = in_step(plan, here.state, batch), int(epoch_rows(rows_of))
        places = np.arange(cursor * plan.batch_size, min((cursor + 1) * plan.batch_size, count))
        rows = rows_on_host(draws(here.key, here.epoch, count), places, count)
        return _trouble(progress, epoch, cursor + 1, trained, "training", arose, rows)
    assert validation is not None
    size, index = batch_rows(validation.inputs), cursor - trained
    batch = validation_batch(validation, index, size)
    arose = in_evaluation(plan, shown_weights(here.state, plan.eval_params), batch)
    count = validation.weights.shape[0]
    rows = min(index * size, max(0, count - size)) + np.arange(min(size, count))
    return _trouble(progress, epoch, index + 1, length - trained, "validation", arose, rows)


def _trouble(
    progress: Progress, epoch: int, batch: int, batches: int, kind: str, arose: Arose | None, rows: np.ndarray
) -> Trouble:
    # Where nothing is found, it is the totals that were too large, or the compiled step rounded otherwise.
    found = arose or Arose("the step as a whole", "nan", tuple(range(len(rows))))
    chosen = sorted(int(rows[position]) for position in found.rows if position < len(rows))
    return Trouble(progress, epoch, batch, batches, kind, found.layer, found.value, tuple(chosen))
