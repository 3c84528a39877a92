"""The beginning of a run, from new weights or from where an earlier run stands."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.batches import evaluation_rows, training_rows
from jaxdl.chunks import lowered_chunk
from jaxdl.errors import InputError
from jaxdl.objectives import LOSS
from jaxdl.plans import check_monitors
from jaxdl.rates import rate_to_change
from jaxdl.sources import Source, head
from jaxdl.training import start, start_shapes
from jaxdl.types import Array, Examples, Plan, Progress, PyTree, Stopping, Weights


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
    rows = training_rows(train), evaluation_rows(validation)
    lowered = lowered_chunk(plan, start_shapes(plan, first, validation, key=key), *rows)
    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(lowered.compile)
        progress = start(plan, first, validation, key=key)
        compiling.result()
    return progress


def resume(plan: Plan, progress: Progress, train: Examples | Source, validation: Examples | None = None) -> Progress:
    """Return the progress of an earlier run, or of many, as this plan continues it.

    What the rules remember is read under the rules of this plan: a run that stopped early trains on where `stop` has
    more patience or is another one that would not have stopped it. A new `plateau` begins with the learning rate that
    there is. Nothing is compiled.

    Raises InputError where the progress does not fit the plan or the data, with the first array that differs.

    >>> import optax
    >>> from jaxdl import Objective, early_stopping, examples, fit, make_plan, mlp, objectives
    >>> rows, model, objective = examples([[1.0], [2.0]], [[1.0], [2.0]]), mlp(()), Objective(objectives.squared_error)
    >>> stop, optimizer = early_stopping("loss", min_delta=100.0), optax.sgd(0.1)
    >>> run = fit(model, objective, optimizer, rows, epochs=9, batch_size=2, stop=stop)
    >>> plan = make_plan(model, objective, optimizer, batch_size=2, stop=early_stopping("loss", patience=5))
    >>> bool(run.progress.stopping.done), bool(resume(plan, run.progress, rows).stopping.done)
    (True, False)
    """
    many = progress.epoch.ndim > 0
    check_monitors(plan, progress, validation)
    if plan.plateau is None:
        progress = progress._replace(plateau=())
    elif progress.plateau == ():
        rate = rate_to_change(progress.state.opt_state)
        progress = progress._replace(plateau=(jax.vmap(plan.plateau.init) if many else plan.plateau.init)(rate))
    key = jax.random.key(0, impl=jax.random.key_impl(progress.key))
    _check_same(progress, start_shapes(plan, head(train, plan.batch_size), validation, key=key), many)
    if isinstance(train, Examples) and int(progress.cursor):
        _check_rows_done(plan, progress, train)
    if plan.stop.resume is not None and np.asarray(progress.stopping.done).any():
        progress = progress._replace(stopping=plan.stop.resume(progress.stopping))
    return progress


def data_of_epoch(plan: Plan, progress: Progress, train: Examples | Source) -> str:
    """Return what tells the batch size and the rows of the epoch under way from others; "" between two epochs.

    Of a source it is the number of its rows and the first of them.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
    >>> data_of_epoch(plan, begin(plan, rows, key=jax.random.key(0)), rows)
    ''
    """
    if not int(progress.cursor):
        return ""
    count = train.count if isinstance(train, Source) else train.weights.shape[0]
    crc = 0
    for leaf in head(train, 8):
        array = np.ascontiguousarray(leaf)
        crc = zlib.crc32(array.tobytes() if isinstance(train, Source) else array.data.cast("B"), crc)
    return f"batch_size={plan.batch_size}, {count} rows, checksum {crc:08x}"


def check_data(plan: Plan, progress: Progress, train: Examples | Source, earlier: str) -> None:
    """Raise InputError where an epoch under way is to go on with other data than `data_of_epoch` told of it before.

    Warns where `earlier` is empty, as for a bare Progress: its data cannot be compared.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
    >>> check_data(plan, begin(plan, rows, key=jax.random.key(0)), rows, "")
    """
    now = data_of_epoch(plan, progress, train)
    if earlier and now != earlier:
        raise InputError(
            f"progress stands inside an epoch of {earlier}, got {now}. Continue with the batch size and the rows that "
            "the epoch began with."
        )
    if now and not earlier:
        warnings.warn(
            "progress stands inside an epoch and does not hold which data the epoch began with; it resumes with "
            f"{now}. Pass the result of fit as progress: it holds the checksum of the data, which is then compared.",
            RuntimeWarning,
            stacklevel=3,
        )


def under_new_monitor(plan: Plan, progress: Progress, history: Sequence[Mapping[str, Any]]) -> Progress:
    """Return the progress as the rule of this plan reads the records of the run so far.

    The best value so far is one of the records: where it is not that of the monitored value, it cannot be compared
    with what comes. The best epoch is then one of those to come.

    A run that its rule has ended trains on where this plan's rule, over the same records, would not have ended it.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=1)
    >>> progress = begin(plan, rows, key=jax.random.key(0))
    >>> under_new_monitor(plan, progress, []) is progress
    True
    """
    epochs, best = np.atleast_1d(progress.stopping.best_epoch), np.atleast_1d(progress.stopping.best)
    for record in history:
        values = np.broadcast_to(np.asarray(_monitored(plan, record), np.float32), epochs.shape)
        if ((np.asarray(record["epoch"]) == epochs) & (values != best)).any():
            init = plan.stop.init()
            anew = init if progress.epoch.ndim == 0 else jax.tree.map(lambda leaf: jnp.tile(leaf, len(epochs)), init)
            return progress._replace(stopping=anew)
    if plan.stop.resume is not None and history and np.asarray(progress.stopping.done).any():
        return progress._replace(stopping=_read_again(plan, progress, history))
    return progress


def _read_again(plan: Plan, progress: Progress, history: Sequence[Mapping[str, Any]]) -> Stopping:
    """Return what the rule of the plan remembers of these records, for runs that it would not have ended.

    The variables of another best epoch than the one so far are gone, so that one stays. Nothing changes where the
    records are not those of all epochs of a run.
    """
    done, held = np.asarray(progress.epoch), progress.stopping
    state, last = plan.stop.init(), np.zeros_like(done)
    for record in history:
        epoch = np.broadcast_to(np.asarray(record["epoch"], np.int32), done.shape)
        values = np.broadcast_to(_monitored(plan, record), done.shape)
        after = plan.stop.update(state, jnp.asarray(values), jnp.asarray(epoch))
        # A run that stood still while others trained has records of nan, under epochs that it has not done.
        new = (epoch == last + 1) & (epoch <= done)
        state, last = jax.tree.map(lambda now, old, new=new: np.where(new, now, old), after, state), last + new
    trains = np.asarray(held.done) & (last == done) & ~state.done
    own = trains & ((state.best_epoch == 0) | (state.best_epoch == np.asarray(held.best_epoch)))

    def choose(which: np.ndarray, new: Array, old: Array) -> Array:
        return jnp.asarray(np.where(which, new, old).astype(old.dtype))

    return Stopping(
        choose(own, state.best, held.best),
        choose(own, state.best_epoch, held.best_epoch),
        choose(trains, state.stale, held.stale),
        choose(own, state.improved, held.improved),
        choose(trains, state.done, held.done),
    )


def _monitored(plan: Plan, record: Mapping[str, Any]) -> Any:
    return record.get(plan.stop.monitor or (f"val_{LOSS}" if f"val_{LOSS}" in record else LOSS), np.nan)


def _check_rows_done(plan: Plan, progress: Progress, train: Examples) -> None:
    """Raise InputError where the epoch under way has counted other rows than this plan would; weights of 1 tell."""
    done, count = int(progress.cursor) * plan.batch_size, train.weights.shape[0]
    expected, counted = min(done, count), float(np.asarray(progress.sums.weight).max())
    if abs(counted - expected) > 1e-6 * expected and (np.asarray(train.weights) == 1).all():
        raise InputError(
            f"progress stands inside an epoch after {counted:.0f} rows, this batch_size and these rows make it "
            f"{expected}. Continue with those that it began with."
        )


def _check_same(progress: Progress, expected: Progress, many: bool) -> None:
    """Raise InputError where arrays differ from what the plan expects; `many`: they have an axis of members."""
    advice = "Continue with the model, optimizer, metrics and columns of that run, or begin a new run without progress."
    found, wanted = _kinds(progress._replace(cursor=progress.epoch), many), _kinds(expected, False)
    different = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if different:
        # The arrays of the model say more than those that follow from them, and a kernel more than a bias.
        own = [name for name in different if name.startswith("state/weights")] or different
        name = max(own, key=lambda name: len((wanted.get(name) or found[name])[0]))
        held, needed = (_told(kinds.get(name)) for kinds in (found, wanted))
        raise InputError(f"progress has {held} for {name.removeprefix('state/weights/')}, expected {needed}. {advice}")
    structures: list[Any] = [jax.tree.structure(tree) for tree in (progress, expected)]
    if structures[0] != structures[1]:
        raise InputError(f"progress has the state of another optimizer than optimiser. {advice}")


def _kinds(tree: PyTree, many: bool) -> dict[str, tuple[tuple[int, ...], Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape[many:], leaf.dtype) for path, leaf in leaves
    }


def _told(kind: tuple[tuple[int, ...], Any] | None) -> str:
    return "nothing" if kind is None else f"{kind[1]} of shape {kind[0]}"
