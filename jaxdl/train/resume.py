"""Resume an earlier run: read its state and records, and check that they fit the plan and the data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl._tree import check_structure, unflatten_named
from jaxdl.data.streaming import Loader
from jaxdl.errors import InputError
from jaxdl.train.epoch import start_shapes
from jaxdl.train.history import read_records
from jaxdl.train.plan import check_monitors, rate_to_change
from jaxdl.types import LOSS, Array, Checkpoint, Dataset, EarlyStoppingState, Plan, PyTree, RunState


def read_run(
    state: Any, template: Callable[[], RunState], result: type[Any]
) -> tuple[RunState | None, list[dict[str, Any]]]:
    """Return the run state and a copy of the records of an earlier run; None and no records without one.

    state: the caller's argument: a `result`, what `saving.restore_latest` returns, a bare RunState, or None.
    template: makes a state of the same structure, into which the arrays of a checkpoint are put.

    Raises InputError for anything else, and for a checkpoint of another model, optimizer or plan.
    """
    match state:
        case None:
            return None, []
        case RunState():
            return state, []
        case Checkpoint():
            kinds, like = state.about["kinds"], template()
            # A plan may add and leave out `plateau`, as where a result is resumed.
            names = [name for name in kinds if name.startswith("plateau/")]
            if not names or like.plateau == ():
                arrays = {name.removeprefix("plateau/"): np.zeros(*kinds[name][::-1]) for name in names}
                like = like._replace(plateau=arrays or ())
            check_structure(kinds, like)
            run_state: RunState = unflatten_named(like, state.arrays)
            return run_state, read_records(state.about["history"])
        case _ if isinstance(state, result):
            epochs = np.asarray(state.state.epoch)
            return state.state, [{**record} for record in state.records if (record["epoch"] <= epochs).any()]
    raise InputError(
        f"state must be the {result.__name__} that an earlier call returned, what saving.restore_latest returns, or a "
        f"RunState, got {type(state).__name__}. Leave it out to begin a new run."
    )


def resume(
    plan: Plan,
    run_state: RunState,
    train: Loader,
    validation: Dataset | None,
    history: Sequence[Mapping[str, Any]],
    data: str,
) -> RunState:
    """Return the state of an earlier run, or of many, as this plan continues it. Nothing is compiled.

    history: the records of the run so far. data: `data_of_epoch` of the run when it ended; "" where it is unknown.

    The rules of the plan read the state: a run that stopped early resumes where `early_stopping` has more patience or
    is another rule that would not have stopped the run. A new `plateau` begins with the current learning rate.

    Raises InputError where the state does not fit the plan or the data, with the first array that differs.
    """
    check_monitors(plan, run_state, validation)
    many = run_state.epoch.ndim > 0
    if plan.plateau is None:
        run_state = run_state._replace(plateau=())
    elif run_state.plateau == ():
        rate = rate_to_change(run_state.train_state.opt_state)
        run_state = run_state._replace(plateau=(jax.vmap(plan.plateau.init) if many else plan.plateau.init)(rate))
    key = jax.random.key(0, impl=jax.random.key_impl(run_state.key))
    _check_arrays(run_state, start_shapes(plan, train.first, validation, key=key), many)
    if train.examples is not None and int(run_state.cursor):
        _check_examples_of_epoch(plan, run_state, train.first)
    if plan.early_stopping.resume is not None and np.asarray(run_state.stopping.should_stop).any():
        run_state = run_state._replace(stopping=plan.early_stopping.resume(run_state.stopping))
    run_state = run_state._replace(stopping=_stopping_by_rule(plan, run_state, history))
    _check_data(data_of_epoch(run_state, train), data)
    return run_state


def data_of_epoch(run_state: RunState, train: Loader) -> str:
    """Return the batch size and the checksum of the data of an unfinished epoch; "" between two epochs."""
    return f"batch_size={train.batch_size}, {train.checksum()}" if int(run_state.cursor) else ""


def _check_data(data: str, earlier: str) -> None:
    """Raise InputError where an unfinished epoch is resumed with other data; warn where its data are unknown."""
    if earlier and data != earlier:
        raise InputError(
            f"state is inside an epoch of {earlier}, got {data}. Continue with the batch size and the examples with "
            "which the epoch began."
        )
    if data and not earlier:
        warnings.warn(
            "state is inside an epoch and does not hold the data with which the epoch began; the epoch resumes with "
            f"{data}. Pass the result of fit as state: it holds the checksum of the data, which is then compared.",
            RuntimeWarning,
            stacklevel=5,
        )


def _stopping_by_rule(plan: Plan, run_state: RunState, history: Sequence[Mapping[str, Any]]) -> EarlyStoppingState:
    """Return the early-stopping state as the rule of this plan reads the records of the run so far.

    The best value so far is in one of the records. Where it is not the value that the plan monitors, later values
    cannot be compared with it, and the rule starts anew.
    """
    stopping = run_state.stopping
    epochs, best = np.atleast_1d(stopping.best_epoch), np.atleast_1d(stopping.best)
    for record in history:
        values = np.broadcast_to(np.asarray(_monitored_value(plan, record), np.float32), epochs.shape)
        if ((np.asarray(record["epoch"]) == epochs) & (values != best)).any():
            init: EarlyStoppingState = plan.early_stopping.init()
            return init if run_state.epoch.ndim == 0 else jax.tree.map(lambda leaf: jnp.tile(leaf, len(epochs)), init)
    if plan.early_stopping.resume is not None and history and np.asarray(stopping.should_stop).any():
        return _stopping_by_records(plan, run_state, history)
    return stopping


def _stopping_by_records(plan: Plan, run_state: RunState, history: Sequence[Mapping[str, Any]]) -> EarlyStoppingState:
    """Return what the rule of the plan remembers of all records, for runs that the rule would not have stopped.

    The variables of any other best epoch are gone, so the best epoch stays. Nothing changes where the records are not
    those of all epochs of a run.
    """
    epochs, before = np.asarray(run_state.epoch), run_state.stopping
    state, last = plan.early_stopping.init(), np.zeros_like(epochs)
    for record in history:
        epoch = np.broadcast_to(np.asarray(record["epoch"], np.int32), epochs.shape)
        values = np.broadcast_to(_monitored_value(plan, record), epochs.shape)
        after = plan.early_stopping.update(state, jnp.asarray(values), jnp.asarray(epoch))
        if not _is_measured(plan, record, history):
            after = state._replace(improved=jnp.zeros_like(state.improved))
        # A member that stood still while others trained has records of NaN for epochs that it has not run.
        is_next = (epoch == last + 1) & (epoch <= epochs)
        state = jax.tree.map(lambda new, old, is_next=is_next: np.where(is_next, new, old), after, state)
        last = last + is_next
    trains = np.asarray(before.should_stop) & (last == epochs) & ~state.should_stop
    same_best = trains & ((state.best_epoch == 0) | (state.best_epoch == np.asarray(before.best_epoch)))

    def choose(condition: np.ndarray, new: Array, old: Array) -> Array:
        return jnp.asarray(np.where(condition, new, old).astype(old.dtype))

    return EarlyStoppingState(
        choose(same_best, state.best, before.best),
        choose(same_best, state.best_epoch, before.best_epoch),
        choose(trains, state.epochs_without_improvement, before.epochs_without_improvement),
        choose(same_best, state.improved, before.improved),
        choose(trains, state.should_stop, before.should_stop),
    )


def _is_measured(plan: Plan, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a record holds the value that early stopping monitors, which an epoch without validation lacks."""
    has_validation = any(f"val_{LOSS}" in each for each in history)
    return (plan.early_stopping.monitor or (f"val_{LOSS}" if has_validation else LOSS)) in record


def _monitored_value(plan: Plan, record: Mapping[str, Any]) -> Any:
    return record.get(plan.early_stopping.monitor or (f"val_{LOSS}" if f"val_{LOSS}" in record else LOSS), np.nan)


def _check_examples_of_epoch(plan: Plan, run_state: RunState, train: Dataset) -> None:
    """Raise InputError where the unfinished epoch has summed more or fewer examples than this plan would."""
    count = train.sample_weight.shape[0]
    expected = min(int(run_state.cursor) * plan.batch_size, count)
    summed = float(np.asarray(run_state.sums.weight).max())
    # Only with weights of 1 is the sum of weights the number of examples.
    if abs(summed - expected) > 1e-6 * expected and (np.asarray(train.sample_weight) == 1).all():
        raise InputError(
            f"state is inside an epoch after {summed:.0f} examples; with this batch_size and these data there are "
            f"{expected}. Continue with the batch size and the examples with which the epoch began."
        )


def _check_arrays(run_state: RunState, expected: RunState, many: bool) -> None:
    """Raise InputError where arrays differ from those that the plan expects; `many`: they have an axis of members."""
    advice = "Continue with the model, optimizer, metrics and columns of that run, or begin a new run without state."
    kinds, wanted = _kinds(run_state._replace(cursor=run_state.epoch), many), _kinds(expected, False)
    different = [name for name in {**wanted, **kinds} if kinds.get(name) != wanted.get(name)]
    if different:
        # The arrays of the model say more than those that follow from them, and a kernel more than a bias.
        names = [name for name in different if name.startswith("train_state/variables")] or different
        name = max(names, key=lambda name: len((wanted.get(name) or kinds[name])[0]))
        raise InputError(
            f"state has {_kind_text(kinds.get(name))} for {name.removeprefix('train_state/variables/')}, expected "
            f"{_kind_text(wanted.get(name))}. {advice}"
        )
    structures: list[Any] = [jax.tree.structure(tree) for tree in (run_state, expected)]
    if structures[0] != structures[1]:
        raise InputError(f"state is that of another optimizer. {advice}")


def _kinds(tree: PyTree, many: bool) -> dict[str, tuple[tuple[int, ...], Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape[many:], leaf.dtype) for path, leaf in leaves
    }


def _kind_text(kind: tuple[tuple[int, ...], Any] | None) -> str:
    return "nothing" if kind is None else f"{kind[1]} of shape {kind[0]}"
