"""The pace of a run: how many batches take about a quarter of a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from jaxdl.chunks import Chunk, Run
from jaxdl.pieces import run_chunk
from jaxdl.sources import Source
from jaxdl.streams import chunks_of
from jaxdl.types import Examples, Plan, Progress

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
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives, start
    >>> rows = examples([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
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
