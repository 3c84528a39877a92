"""Streams: `chunks` of a run whose training rows are not in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxdl.batches import Window, evaluation_rows
from jaxdl.chunks import WHOLE, Chunk, Feed, Run, chunks, fed
from jaxdl.errors import InputError
from jaxdl.orders import draws, rows_on_host
from jaxdl.pieces import run_chunk
from jaxdl.plans import check_monitors, check_rows
from jaxdl.sharding import mesh_of, place_rows
from jaxdl.sources import Source, head
from jaxdl.training import batches_of_epoch
from jaxdl.types import Examples, Plan, Progress
from jaxdl.windows import BYTES, Cut, cut_rows, fetching, for_training, home_of, load


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
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
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
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives, start
    >>> from jaxdl.data import take
    >>> rows = examples([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
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
    progress, validation = _together(progress, evaluation_rows(validation))
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
    >>> from jaxdl import Objective, make_plan, mlp, objectives, start
    >>> source = Source(5, lambda rows: Examples(rows[:, None], rows[:, None], np.ones(len(rows), np.float32)))
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=2)
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


def _together(progress: Progress, validation: Examples | None) -> tuple[Progress, Examples | None]:
    mesh = mesh_of(progress)
    if mesh is None:
        together: tuple[Progress, Examples | None] = jax.device_put((progress, validation), home_of(progress))
        return together
    return progress, None if validation is None else place_rows(validation, mesh)
