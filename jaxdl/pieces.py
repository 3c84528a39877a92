"""Pieces: the next batches of a run as one program."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdl.batches import Window
from jaxdl.objectives import LOSS
from jaxdl.plans import measured
from jaxdl.programs import program
from jaxdl.sharding import Layout, laid_out, layout
from jaxdl.training import batches_of_epoch, finish_epoch, run_steps
from jaxdl.types import Array, Examples, Plan, Progress


def advance(
    progress: Progress, train: Examples | Window, validation: Examples | None, steps: Any, *, plan: Plan
) -> tuple[Progress, Array]:
    """The next `steps` batches of a run, no more than its epoch has; closes the epoch where they end it.

    Of several `steps` (`sharding.wish`) the least counts. The row, float32, holds the figures of the epoch (zeros
    inside of one), whether the run should stop, whether its numbers are finite, and how many batches were done: one
    array, because each array that the host reads costs it a wait.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
    >>> progress, row = advance(start(plan, rows, key=jax.random.key(0)), rows, None, 1, plan=plan)
    >>> int(progress.cursor), row.tolist()
    (1, [0.0, 0.0, 1.0, 1.0])
    """
    names, (_, length) = measured(plan, progress, validation), batches_of_epoch(plan, train, validation)

    def close(progress: Progress) -> tuple[Progress, Array]:
        after, record = finish_epoch(progress, validation, plan=plan)
        done = after.stopping.done.astype(jnp.float32)
        return after, jnp.stack([*(record[name].astype(jnp.float32) for name in names), done])

    def pause(progress: Progress) -> tuple[Progress, Array]:
        return progress, jnp.zeros(len(names) + 1, jnp.float32)

    after = run_steps(progress, train, validation, jnp.min(steps), plan=plan)
    told = jnp.stack([_finite(after), after.cursor - progress.cursor]).astype(jnp.float32)
    after, row = lax.cond(after.cursor == length, close, pause, after)
    return after, jnp.concatenate([row, told])


def run_chunk(
    progress: Progress, train: Examples | Window, validation: Examples | None, steps: Any, *, plan: Plan
) -> tuple[Progress, Array]:
    """`advance` as a program; a run that is over stands still.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
    >>> int(run_chunk(start(plan, rows, key=jax.random.key(0)), rows, None, 2, plan=plan)[0].epoch)
    1
    """
    return chunk_program(progress, train, validation, steps, plan=plan, like=layout(progress))


@partial(program, static_argnames=("plan", "like"))
def chunk_program(
    progress: Progress,
    train: Examples | Window,
    validation: Examples | None,
    steps: Any,
    *,
    plan: Plan,
    like: Layout | None,
) -> tuple[Progress, Array]:
    """`run_chunk` as JAX compiles it; `like`: where the leaves of the progress lie.

    >>> chunk_program.__name__
    'chunk_program'
    """
    left = jnp.where(progress.stopping.done, 0, steps)
    after, row = advance(progress, train, validation, left, plan=plan)
    return laid_out(after, like), row


def _finite(progress: Progress) -> Array:
    state = progress.state
    losses = progress.sums.totals[LOSS], progress.val_sums.totals[LOSS]
    leaves = jax.tree.leaves((state.weights, state.average, losses))
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()
