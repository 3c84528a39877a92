"""A whole run in one call, new or resumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdl._checks import check_callbacks, check_choice, check_platform, check_variables, explain_calls, whole_number
from jaxdl._tree import check_structure, unflatten_named
from jaxdl.data import DataSource
from jaxdl.data.batches import evaluation_rows
from jaxdl.data.streaming import Loader, loader
from jaxdl.distributed.sharding import agree_on_steps
from jaxdl.errors import InputError
from jaxdl.train.epoch import chunk_program, draw, start, start_shapes
from jaxdl.train.loop import WHOLE, Pace, Reached, checked, chunks, run_loop
from jaxdl.train.nonfinite import NonFiniteError, check_finite
from jaxdl.train.plan import NEVER, check_monitors, make_plan, rate_to_change
from jaxdl.train.step import eval_variables, lacks_eval_params
from jaxdl.types import (
    LOSS,
    Array,
    Callback,
    Checkpoint,
    Dataset,
    EarlyStoppingState,
    EvalParams,
    Loss,
    Metric,
    Model,
    Plan,
    PyTree,
    Rule,
    RunState,
    Variables,
)

if TYPE_CHECKING:
    import pandas as pd


def begin(
    plan: Plan,
    train: Dataset | DataSource | Loader,
    validation: Dataset | None = None,
    *,
    key: Array,
    variables: Variables | None = None,
) -> RunState:
    """`training.start`, while a thread compiles the program that `chunks` will run.

    Only where weights are drawn and rows come from NumPy: elsewhere it is not known yet where all will lie.
    """
    rows = loader(train, plan.batch_size)
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((rows.examples, validation)))
    if variables is not None or on_device or rows.examples is None:
        return start(plan, rows.first, validation, key=key, variables=variables)
    shapes = start_shapes(plan, rows.first, validation, key=key)
    given = shapes, rows.examples, evaluation_rows(validation), agree_on_steps(WHOLE, None)
    # Traced here, where the caller's settings of JAX hold; the thread only compiles, and Python goes on meanwhile.
    lowered = chunk_program.on(*given).lower(*given, plan=plan, like=None, alone=True)
    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(lowered.compile)
        run_state = draw(plan, rows.first, key=key)  # `start_shapes` has checked what `start` checks
        compiling.result()
    return run_state


def resume(
    plan: Plan, run_state: RunState, train: Dataset | DataSource | Loader, validation: Dataset | None = None
) -> RunState:
    """Return the progress of an earlier run, or of many, as this plan continues it.

    What the rules remember is read under the rules of this plan: a run that stopped early trains on where
    `early_stopping` has more patience or is another one that would not have stopped it. A new `plateau` begins with the
    learning rate that there is. Nothing is compiled.

    Raises InputError where the progress does not fit the plan or the data, with the first array that differs.
    """
    many, rows = run_state.epoch.ndim > 0, loader(train, plan.batch_size)
    check_monitors(plan, run_state, validation)
    if plan.plateau is None:
        run_state = run_state._replace(plateau=())
    elif run_state.plateau == ():
        rate = rate_to_change(run_state.train_state.opt_state)
        run_state = run_state._replace(plateau=(jax.vmap(plan.plateau.init) if many else plan.plateau.init)(rate))
    key = jax.random.key(0, impl=jax.random.key_impl(run_state.key))
    _check_same(run_state, start_shapes(plan, rows.first, validation, key=key), many)
    if rows.examples is not None and int(run_state.cursor):
        _check_rows_done(plan, run_state, rows.first)
    if plan.early_stopping.resume is not None and np.asarray(run_state.stopping.should_stop).any():
        run_state = run_state._replace(stopping=plan.early_stopping.resume(run_state.stopping))
    return run_state


def data_of_epoch(plan: Plan, run_state: RunState, train: Dataset | DataSource | Loader) -> str:
    """Return what tells the batch size and the rows of the epoch under way from others; "" between two epochs.

    Of a source it is the number of its rows and the first of them.
    """
    if not int(run_state.cursor):
        return ""
    return f"batch_size={plan.batch_size}, {loader(train, plan.batch_size).checksum()}"


def check_data(plan: Plan, run_state: RunState, train: Dataset | DataSource | Loader, earlier: str) -> None:
    """Raise InputError where an epoch under way is to go on with other data than `data_of_epoch` told of it before.

    Warns where `earlier` is empty, as for a bare RunState: its data cannot be compared.
    """
    now = data_of_epoch(plan, run_state, train)
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


def under_new_monitor(plan: Plan, run_state: RunState, history: Sequence[Mapping[str, Any]]) -> RunState:
    """Return the progress as the rule of this plan reads the records of the run so far.

    The best value so far is one of the records: where it is not that of the monitored value, it cannot be compared
    with what comes. The best epoch is then one of those to come.

    A run that its rule has ended trains on where this plan's rule, over the same records, would not have ended it.
    """
    epochs, best = np.atleast_1d(run_state.stopping.best_epoch), np.atleast_1d(run_state.stopping.best)
    for record in history:
        values = np.broadcast_to(np.asarray(_monitored(plan, record), np.float32), epochs.shape)
        if ((np.asarray(record["epoch"]) == epochs) & (values != best)).any():
            init = plan.early_stopping.init()
            anew = init if run_state.epoch.ndim == 0 else jax.tree.map(lambda leaf: jnp.tile(leaf, len(epochs)), init)
            return run_state._replace(stopping=anew)
    if plan.early_stopping.resume is not None and history and np.asarray(run_state.stopping.should_stop).any():
        return run_state._replace(stopping=_read_again(plan, run_state, history))
    return run_state


def _read_again(plan: Plan, run_state: RunState, history: Sequence[Mapping[str, Any]]) -> EarlyStoppingState:
    """Return what the rule of the plan remembers of these records, for runs that it would not have ended.

    The variables of another best epoch than the one so far are gone, so that one stays. Nothing changes where the
    records are not those of all epochs of a run.
    """
    done, held = np.asarray(run_state.epoch), run_state.stopping
    state, last = plan.early_stopping.init(), np.zeros_like(done)
    for record in history:
        epoch = np.broadcast_to(np.asarray(record["epoch"], np.int32), done.shape)
        values = np.broadcast_to(_monitored(plan, record), done.shape)
        after = plan.early_stopping.update(state, jnp.asarray(values), jnp.asarray(epoch))
        # A run that stood still while others trained has records of nan, under epochs that it has not done.
        new = (epoch == last + 1) & (epoch <= done)
        state, last = jax.tree.map(lambda now, old, new=new: np.where(new, now, old), after, state), last + new
    trains = np.asarray(held.should_stop) & (last == done) & ~state.should_stop
    own = trains & ((state.best_epoch == 0) | (state.best_epoch == np.asarray(held.best_epoch)))

    def choose(which: np.ndarray, new: Array, old: Array) -> Array:
        return jnp.asarray(np.where(which, new, old).astype(old.dtype))

    return EarlyStoppingState(
        choose(own, state.best, held.best),
        choose(own, state.best_epoch, held.best_epoch),
        choose(trains, state.epochs_without_improvement, held.epochs_without_improvement),
        choose(own, state.improved, held.improved),
        choose(trains, state.should_stop, held.should_stop),
    )


def _monitored(plan: Plan, record: Mapping[str, Any]) -> Any:
    return record.get(plan.early_stopping.monitor or (f"val_{LOSS}" if f"val_{LOSS}" in record else LOSS), np.nan)


def _check_rows_done(plan: Plan, run_state: RunState, train: Dataset) -> None:
    """Raise InputError where the epoch under way has counted other rows than this plan would; weights of 1 tell."""
    done, count = int(run_state.cursor) * plan.batch_size, train.sample_weight.shape[0]
    expected, counted = min(done, count), float(np.asarray(run_state.sums.weight).max())
    if abs(counted - expected) > 1e-6 * expected and (np.asarray(train.sample_weight) == 1).all():
        raise InputError(
            f"progress stands inside an epoch after {counted:.0f} rows, this batch_size and these rows make it "
            f"{expected}. Continue with those that it began with."
        )


def _check_same(run_state: RunState, expected: RunState, many: bool) -> None:
    """Raise InputError where arrays differ from what the plan expects; `many`: they have an axis of members."""
    advice = "Continue with the model, optimizer, metrics and columns of that run, or begin a new run without progress."
    found, wanted = _kinds(run_state._replace(cursor=run_state.epoch), many), _kinds(expected, False)
    different = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if different:
        # The arrays of the model say more than those that follow from them, and a kernel more than a bias.
        own = [name for name in different if name.startswith("train_state/variables")] or different
        name = max(own, key=lambda name: len((wanted.get(name) or found[name])[0]))
        held, needed = (_told(kinds.get(name)) for kinds in (found, wanted))
        raise InputError(
            f"progress has {held} for {name.removeprefix('train_state/variables/')}, expected {needed}. {advice}"
        )
    structures: list[Any] = [jax.tree.structure(tree) for tree in (run_state, expected)]
    if structures[0] != structures[1]:
        raise InputError(f"progress has the state of another optimizer than optimizer. {advice}")


def _kinds(tree: PyTree, many: bool) -> dict[str, tuple[tuple[int, ...], Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape[many:], leaf.dtype) for path, leaf in leaves
    }


def _told(kind: tuple[tuple[int, ...], Any] | None) -> str:
    return "nothing" if kind is None else f"{kind[1]} of shape {kind[0]}"


class FitResult(NamedTuple):
    """What a run leaves."""

    records: list[dict[str, float]]  # the figures of each epoch, and its number from 1
    best: Variables  # of the best epoch by the monitored figure; the final ones where no epoch was the best
    final: Variables
    reason: str  # why it ended: "epochs", "early-stopping", "not-finite" or "interrupted"
    state: RunState  # the state of the run, without its records
    data: str = ""  # what the rows of the epoch under way are told by; empty between two epochs

    def __repr__(self) -> str:
        """In one line: the arrays would fill a screen."""
        return f"FitResult({len(self.records)} epochs, best epoch {self.best_epoch}, reason {self.reason!r})"

    @property
    def history(self) -> pd.DataFrame:
        """The records as a table, made anew whenever asked for: a row an epoch, indexed by it, a column a figure."""
        return as_table(self.records)

    @property
    def best_epoch(self) -> int:
        """The epoch that `best` belongs to, from 1; 0 where no epoch was the best, so that `best` is `final`.

        That is so where the monitored figure was never finite, and where `start_from_epoch` left out every epoch.
        """
        return int(self.state.stopping.best_epoch)


@explain_calls
def fit(
    model: Model,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    train: Dataset | DataSource,
    validation: Dataset | None = None,
    *,
    metrics: Sequence[Metric] = (),
    epochs: int = 10,
    batch_size: int = 32,
    early_stopping: Rule = NEVER,
    plateau: Rule | None = None,
    ema_decay: float | None = None,
    seed: int | None = None,
    eval_params: EvalParams | None = None,
    variables: Variables | None = None,
    state: FitResult | Checkpoint | RunState | None = None,
    callbacks: Iterable[Callback] = (),
    on_nan: Literal["stop", "continue"] = "stop",
) -> FitResult:
    """Trains until `epochs` epochs are done, or until `early_stopping` ends the run.

    Ctrl-C, or the stop button of a notebook, ends it too: the result holds what has been reached so far, and
    `fit(..., state=result)` resumes the run, to the bits of a run that was not interrupted.

    train: rows in memory, or a source of rows that are not (`sources.memory_mapped`); the results are the same.
    ema_decay: such as 0.999, to measure and keep a moving average of the weights instead of the weights themselves.
    seed: draws the initial weights, the order of rows and what is random in training; 0 by default.
    eval_params: `(opt_state, params) -> params`, for an optimizer that is evaluated at other parameters than it trains,
        such as `optax.contrib.schedule_free_eval_params`; they are measured and kept. Where a known one lacks it, there
        is a warning.
    variables: initial weights, instead of ones drawn with `seed`.
    state: an earlier run to resume: the result of `fit`, or what `saving.restore_latest` returns. `epochs` counts its
        epochs too, and its records stand before the new ones, in the result and for the callbacks. A bare RunState
        resumes the same run, whose earlier records are not known then, and warns inside of an epoch, whose data it does
        not hold. An earlier run comes without a seed and weights, and must be of the same model, optimizer and metrics;
        inside of an epoch of the same batch size and rows too. A run that stopped early trains on where
        `early_stopping` would not have ended it: with more patience, say, or another `min_delta`, or without a rule.
        Where another value is monitored than before, the best epoch is one of those to come.
    callbacks: functions `(state, history) -> None`, called after every epoch with the records of all epochs so far.
    on_nan: whether to stop where a weight or a loss is not finite, with a warning that says where that arose. The
        result then stands before that step. Such an epoch is never the best.

    Warns where no epoch was the best: `best` then holds the final weights.

    Raises InputError for arguments that do not fit together. Calls with the same model, loss, metrics, optimizer and
    rules share one compiled function, so a second call starts at once.

    >>> import numpy as np
    >>> from jaxdl import dataset, losses, metrics, mlp
    >>> inputs = np.linspace(-1, 1, 64)[:, None]
    >>> data = dataset(inputs, 3 * inputs)
    >>> run = fit(mlp(()), losses.squared_error, optax.sgd(0.1), data, metrics=[metrics.rmse], epochs=40)
    >>> run.reason, bool(run.history["rmse"].iloc[-1] < 0.1)
    ('epochs', True)
    """
    epochs = whole_number("epochs", epochs, 1)
    seed = None if seed is None else check_seed(seed)
    check_choice("on_nan", on_nan, ("stop", "continue"))
    callbacks = check_callbacks(callbacks)
    if variables is not None:
        check_variables(variables)
    if state is not None and (seed is not None or variables is not None):
        name = "variables" if seed is None else f"seed={seed}"
        raise InputError(f"{name} has no effect beside progress, which holds the weights and the keys. Leave one out.")
    check_platform()
    plan = make_plan(
        model,
        loss,
        optimizer,
        metrics=metrics,
        batch_size=batch_size,
        early_stopping=early_stopping,
        plateau=plateau,
        ema_decay=ema_decay,
        eval_params=eval_params,
    )
    rows, validation = checked(plan, train, validation)
    earlier, history = resumed(state, lambda: start(plan, rows.first, validation, key=jax.random.key(0)))
    if earlier is None:
        run_state = begin(plan, rows, validation, key=jax.random.key(seed or 0), variables=variables)
    else:
        if earlier.epoch.ndim:
            raise InputError(f"progress is that of {len(earlier.epoch)} runs. Continue them with fit_seeds.")
        run_state = under_new_monitor(plan, resume(plan, earlier, rows, validation), history)
        check_data(plan, run_state, rows, getattr(state, "data", ""))
    warn_of_eval_params(plan, run_state)
    reached = Reached(run_state, history, bool(earlier is not None and run_state.stopping.should_stop))
    pieces = chunks(plan, run_state, rows, validation, last=max(epochs, int(run_state.epoch)), steps=Pace())
    ended = ""
    try:
        run_loop(
            check_finite(pieces, plan, run_state, rows, validation) if on_nan == "stop" else pieces,
            reached,
            callbacks=callbacks,
        )
    except KeyboardInterrupt:
        ended = "interrupted"
    except NonFiniteError as error:
        reached.state, ended = error.args[0].state, "not-finite"
        warnings.warn(f"the run stopped: {error}.", RuntimeWarning, stacklevel=3)
    run_state = reached.state
    if ended:
        history = [record for record in history if record["epoch"] <= int(run_state.epoch)]
    final = best = eval_variables(run_state.train_state, plan.eval_params)
    if int(run_state.stopping.best_epoch):
        best = run_state.best
    elif int(run_state.epoch):
        warnings.warn(without_best(plan, validation), RuntimeWarning, stacklevel=3)
    reason = ended or ("early-stopping" if reached.stopped else "epochs")
    # Elsewhere a run ends between two epochs, and the device need not be asked.
    data = data_of_epoch(plan, run_state, rows) if ended else ""
    return FitResult(history, best, final, reason, run_state, data)


def without_best(plan: Plan, validation: Dataset | None, which: str = "the run") -> str:
    """Return the sentence for a run that has trained and has no best epoch."""
    monitor = plan.early_stopping.monitor or (LOSS if validation is None else f"val_{LOSS}")
    return (
        f"no epoch of {which} was the best by {monitor}, which was never finite or was left out by start_from_epoch; "
        "`best` holds the variables of the last epoch. Lower start_from_epoch, or monitor a finite value."
    )


def resumed(
    given: Any, template: Callable[[], RunState], result: type[Any] | None = None
) -> tuple[RunState | None, list[dict[str, Any]]]:
    """Return the state of the run that a caller gives as `progress`, and a copy of its records so far.

    given: a result, of type `result` (by default FitResult); what `saving.restore_latest` returns; a bare RunState,
        whose records are not known; or None.
    template: makes a state like that of the run, by which the arrays of a checkpoint are put together.

    Raises InputError for anything else, and for a checkpoint of another model, optimizer or plan.
    """
    result = result or FitResult
    match given:
        case None:
            return None, []
        case RunState():
            return given, []
        case Checkpoint():
            kinds, like = given.about["kinds"], template()
            # `plateau` may be added and left out, as where a result is resumed.
            names = [name for name in kinds if name.startswith("plateau/")]
            if not names or like.plateau == ():
                arrays = {name.removeprefix("plateau/"): np.zeros(*kinds[name][::-1]) for name in names}
                like = like._replace(plateau=arrays or ())
            check_structure(kinds, like)
            state: RunState = unflatten_named(like, given.arrays)
            return state, recalled(given.about["history"])
        case _ if isinstance(given, result):
            done = np.asarray(given.state.epoch)
            return given.state, [{**record} for record in given.records if (record["epoch"] <= done).any()]
    raise InputError(
        f"state must be the {result.__name__} that an earlier call returned, what saving.restore_latest returns, or a "
        f"RunState, got {type(given).__name__}. Leave it out to begin a new run."
    )


def recalled(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return records as they were before JSON held them: the values of many runs are float32 arrays, or integers."""

    def value(of: Any) -> Any:
        if not isinstance(of, list):
            return of
        return np.asarray(of, None if all(isinstance(each, int) for each in of) else np.float32)

    return [{name: value(of) for name, of in record.items()} for record in history]


class Written:
    """The records that a callback has written, by which it tells what a history has that is new.

    A callback is called after every epoch with all records so far. The last is new, and more where the callback was not
    called before; where a run was set back, records that were written are taken back. A history that begins after
    epoch 1, as that of a bare RunState does, leaves the records of the epochs before as they are.
    """

    def __init__(self, records: Iterable[dict[str, Any]] = (), known: bool = True) -> None:
        """Begins with records that are written already; where they are not `known`, only their epochs are compared."""
        self.records = list(records)
        self._unknown = 0 if known else len(self.records)

    def update(self, history: Sequence[dict[str, Any]]) -> tuple[int, Sequence[dict[str, Any]]]:
        """Return how many of the records stay, and those of the history that come after these.

        Raises InputError where the history is of another run than the records, as where two runs share a callback.
        """
        records = self.records
        if not history or (records and records[-1] is history[-1]):
            return len(records), []
        if len(history) > 1 and records and records[-1] is history[-2]:
            records.append(history[-1])
            return len(records) - 1, history[-1:]
        first = next((index for index, record in enumerate(records) if _not_before(record, history[0])), len(records))
        same = 0
        while same < min(len(history), len(records) - first) and _equal(records[first + same], history[same]):
            same += 1
        held = first + same
        if self._unknown <= held < len(records) and len(history) - same > 1:
            raise InputError(
                f"callbacks: a callback has written epoch {records[held].get('epoch')} of another run than the one "
                "that calls it now. Give each run a callback and a folder of its own."
            )
        self._unknown = min(self._unknown, held)
        records[held:] = history[same:]
        return held, history[same:]

    def whole(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the history after the records of earlier epochs that were written. Raises what `update` raises."""
        self.update(history)
        before = len(self.records) - len(history) if history else 0
        return [*self.records[:before], *history] if before else history


def _not_before(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if "candidate" in other:  # The records of a sweep are not in the order of their epochs.
        return _equal({name: record.get(name) for name in _PLACE}, {name: other[name] for name in _PLACE})
    return bool(np.max(record["epoch"]) >= np.max(other["epoch"]))


_PLACE = ("epoch", "candidate")


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records hold the same; nan is nan."""
    return one.keys() == other.keys() and all(map(_same, one.values(), (other[name] for name in one)))


def _same(one: Any, other: Any) -> bool:
    floats = np.asarray(one).dtype.kind == "f" and np.asarray(other).dtype.kind == "f"
    return one is other or np.array_equal(one, other, equal_nan=floats)


def warn_of_eval_params(plan: Plan, run_state: RunState, stacklevel: int = 4) -> None:
    """Warn where an optimizer is known to evaluate at other parameters than it trains, and the plan does not say so."""
    sentence = lacks_eval_params(run_state.train_state.opt_state)
    if sentence is not None and plan.eval_params is None:
        warnings.warn(sentence, UserWarning, stacklevel=stacklevel)


def check_seed(seed: int) -> int:
    """Return a seed from 0 to 2**32 - 1. Raises InputError beyond, where different seeds would draw the same."""
    return whole_number("seed", seed, 0, 2**32 - 1)


def reason(run_state: RunState) -> str:
    """Why a run ended here: "early-stopping" where its rule said so, else "epochs"."""
    return "early-stopping" if bool(run_state.stopping.should_stop) else "epochs"


def as_table(history: list[dict[str, float]]) -> pd.DataFrame:
    """Records as a DataFrame, a row an epoch, indexed by the epoch."""
    # Imported here: neither `import jaxdl` nor `fit` must cost what pandas costs.
    import pandas as pd

    return pd.DataFrame(history, columns=None if history else ["epoch"]).set_index("epoch")
