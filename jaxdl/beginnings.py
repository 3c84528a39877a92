"""The beginning of a run: two programs, compiled side by side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax

from jaxdl.chunks import lowered_chunk
from jaxdl.sources import Source, head
from jaxdl.training import start, start_shapes
from jaxdl.types import Array, Examples, Plan, Progress, Weights


def begin(
    plan: Plan,
    train: Examples | Source,
    validation: Examples | None = None,
    *,
    key: Array,
    weights: Weights | None = None,
) -> Progress:
    """`training.start`, while a thread compiles the program that `chunks` will run.

    Only where weights are drawn and rows come from NumPy: elsewhere it is not known yet where all will lie.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=2)
    >>> int(begin(plan, rows, key=jax.random.key(0)).epoch)
    0
    """
    first = head(train, plan.batch_size)
    placed = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((train, validation, weights)))
    if weights is not None or placed or isinstance(train, Source):
        return start(plan, first, validation, key=key, weights=weights)
    # Traced here, where the caller's settings of JAX hold; the thread only compiles, and Python goes on meanwhile.
    lowered = lowered_chunk(plan, start_shapes(plan, first, validation, key=key), train, validation)
    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(lowered.compile)
        progress = start(plan, first, validation, key=key)
        compiling.result()
    return progress
