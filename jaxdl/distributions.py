"""How the weights and the gradients of every layer are spread, epoch after epoch, for TensorBoard."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from jaxdl import events
from jaxdl.errors import InputError
from jaxdl.fitting import Observer
from jaxdl.leaves import named
from jaxdl.programs import program
from jaxdl.sharding import fetched
from jaxdl.sources import Source, head
from jaxdl.steps import make_gradient
from jaxdl.types import Array, Examples, Plan, Progress, PyTree, TrainState

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event


class _Look(NamedTuple):
    epoch: int
    moment: float  # seconds since 1970
    arrays: dict[str, dict[str, Array]]  # by run, then by the parameter's name


@contextmanager
def distributions(
    folder: str | Path,
    plan: Plan,
    rows: Examples | Source,
    start: Progress,
    *,
    every: int = 10,
    tell: Callable[[str], None] = warnings.warn,
) -> Iterator[Observer]:
    """Writes histograms of each layer's weights and gradients for TensorBoard, as two runs of the same names.

    Of the epochs that `every` divides, 0 among them: the initial weights. `start` is the progress with which the run
    begins; what the folder says of later epochs is taken back. The gradients are those of the training loss, on the
    first batch of `rows`, at the weights of that moment. Numbers that are not finite are left out.

    Histograms are written when the next epoch has ended, and at the end, so that the device need not wait. Where the
    disk is full, that is told once and the rest left out; so it is where several processes hold parts of the weights.
    Raises InputError for `every` below 1.

    >>> import optax, tempfile
    >>> from jaxdl import Objective, examples, fit, make_plan, mlp, objectives, start
    >>> rows, plan_of = examples([[1.0], [2.0]], [[1.0], [2.0]]), (mlp(()), Objective(objectives.squared_error))
    >>> plan = make_plan(*plan_of, optax.sgd(0.1), batch_size=2)
    >>> begin = start(plan, rows, key=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with distributions(Path(folder), plan, rows, begin, every=2) as observe:
    ...         _ = fit(*plan_of, plan.optimiser, rows, epochs=2, batch_size=2, progress=begin, observers=[observe])
    ...     sorted(run.name for run in Path(folder).iterdir())
    ['gradients', 'weights']
    """
    if every < 1:
        raise InputError(f"every must be at least 1 epoch, got {every}. Use 10, say.")
    if start.epoch.ndim:
        raise InputError(
            "start must be the state of one run, got that of many. Use ensembles.member(progress, 0), say."
        )
    folder = Path(folder)
    if not all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in jax.tree.leaves(start.state.weights)):
        # To put them together, all processes would have to call this, at the same moment.
        tell(f"{folder} gets no histograms, because several processes hold parts of the weights.")
        yield lambda progress, history: None
        return
    batch, waiting, begin = _first(rows, plan.batch_size), list[_Look](), int(start.epoch)

    def look(progress: Progress, epoch: int) -> None:
        if epoch % every == 0:
            waiting.append(_look(plan, progress.state, batch, epoch))

    def flush(write: events.Write) -> None:
        if waiting:
            write(pair for each in waiting for pair in _events(each))
        waiting.clear()

    between = int(start.cursor) == 0  # at an epoch's end, whose own are written again in case they were lost
    with events.written(folder, ("weights", "gradients"), begin=begin - between, tell=tell) as write:

        def observe(progress: Progress, history: list[dict[str, float]]) -> None:
            flush(write)
            look(progress, int(history[-1]["epoch"]))

        if between:
            look(start, begin)
        try:
            yield observe
        finally:
            flush(write)


def _first(rows: Examples | Source, count: int) -> Examples:
    first: Examples = jax.tree.map(lambda leaf: leaf[:count], head(rows, count))
    # On the host, because the device on which the weights are looked at is not always that of the rows.
    return jax.tree.map(np.asarray, fetched(first))


def _look(plan: Plan, state: TrainState, batch: Examples, epoch: int) -> _Look:
    # Bound to one device always: else the first look and the others would be two programs.
    bound = jax.device_put(fetched(state._replace(opt_state=(), average=())), jax.local_devices()[0])
    arrays = {"weights": named(bound.weights.params), "gradients": named(_gradient(bound, batch, plan=plan))}
    return _Look(epoch, time.time(), arrays)


def _gradient_of(state: TrainState, batch: Examples, *, plan: Plan) -> PyTree:
    return make_gradient(plan.model, plan.objective)(state, batch)


_gradient = program(_gradient_of, static_argnames="plan")


def _events(look: _Look) -> Iterator[tuple[str, Event]]:
    for run, arrays in jax.device_get(look.arrays).items():
        values = [events.histogram(name, array) for name, array in arrays.items()]
        yield run, events.event([each for each in values if each is not None], step=look.epoch, moment=look.moment)
