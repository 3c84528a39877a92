"""Hyperparameter sweeps: grids, random samples, successive halving."""

from __future__ import annotations

import inspect
import itertools
import math
import re
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl._checks import (
    check_callbacks,
    check_choice,
    check_examples,
    check_platform,
    explain_calls,
    given_as,
    nearest,
    number,
    whole_number,
)
from jaxdl._environment import enable_compilation_cache
from jaxdl._tree import check_structure, flatten_named, kinds, unflatten_named
from jaxdl.data.batches import evaluation_rows
from jaxdl.data.streaming import loader
from jaxdl.ensembles.members import Method, best_and_final, most_devices, run_members, shard_members, start_members
from jaxdl.ensembles.seeds import Record, member_reason, seed_keys
from jaxdl.errors import InputError
from jaxdl.losses import check_labels
from jaxdl.stats import Estimate, estimate
from jaxdl.train.fit import callback_states, warn_of_eval_params, without_best
from jaxdl.train.history import read_records
from jaxdl.train.hooks import Chunk, Hooks, LoopResult, open_hooks
from jaxdl.train.loop import SECONDS, AdaptiveSteps, chunks, run_loop
from jaxdl.train.plan import PlanFamily, check_rows
from jaxdl.types import Array, CallbackLike, Checkpoint, Dataset, Plan, RunState, Variables

if TYPE_CHECKING:
    import pandas as pd


Trial = Mapping[str, Any]
Draw = Callable[[np.random.Generator], Any]


@explain_calls
def grid(**values: Iterable[Any]) -> list[dict[str, Any]]:
    """Return every combination of the values as a trial; the last name changes fastest.

    A string is one value. Raises InputError for a name without values.

    >>> grid(hidden=((10, 5), (3, 3)), learning_rate=(0.01, 0.001))[1]
    {'hidden': (10, 5), 'learning_rate': 0.001}
    """
    for name, choices in values.items():
        if not isinstance(choices, Iterable):
            raise InputError(f"{name} must be a row of values to try, got {choices!r}. Use ({choices!r},), say.")
    lists = {name: [choices] if isinstance(choices, str) else list(choices) for name, choices in values.items()}
    for name, choices in lists.items():
        if not choices:
            raise InputError(f"{name} must have at least one value to try, got none.")
    return [dict(zip(lists, combination, strict=True)) for combination in itertools.product(*lists.values())]


def sample(count: int, seed: int = 0, **distributions: Draw) -> list[dict[str, Any]]:
    """Return `count` random trials, with independent values.

    Where few of the values matter, they are as good as a grid with far fewer runs. Source: Bergstra and Bengio, Journal
    of Machine Learning Research 13 (2012). Raises InputError for a count below 1, and for what is no distribution.

    >>> sample(2, dropout=uniform(0.0, 0.5), hidden=choice((10, 5), (3, 3)))[1]
    {'dropout': 0.020..., 'hidden': (10, 5)}
    """
    count = whole_number("count", count, 1)
    for name, draw in distributions.items():
        if not callable(draw):
            raise InputError(f"{name} must be a distribution, such as uniform(0.0, 0.5), got {draw!r}.")
    generator = np.random.default_rng(seed)
    return [{name: draw(generator) for name, draw in distributions.items()} for _ in range(count)]


def uniform(low: float, high: float) -> Draw:
    """Return the uniform distribution of floats from `low` to `high`.

    Raises InputError unless low <= high, both finite.

    >>> sample(1, dropout=uniform(0.0, 0.5))
    [{'dropout': 0.318...}]
    """
    if not -math.inf < number("low", low) <= number("high", high) < math.inf:
        raise InputError(f"uniform needs low <= high, both finite, got {low} and {high}.")
    return lambda generator: float(generator.uniform(low, high))


def log_uniform(low: float, high: float) -> Draw:
    """Return the distribution of floats from `low` to `high` whose logarithm is uniform, as for a learning rate.

    Raises InputError unless 0 < low <= high, both finite.

    >>> sample(1, learning_rate=log_uniform(1e-4, 1e-1))
    [{'learning_rate': 0.008...}]
    """
    if not 0 < number("low", low) <= number("high", high) < math.inf:
        raise InputError(f"log_uniform needs 0 < low <= high, both finite, got {low} and {high}.")
    # Rounding may exceed the bounds.
    return lambda generator: float(min(max(low, math.exp(generator.uniform(math.log(low), math.log(high)))), high))


def choice(*values: Any) -> Draw:
    """Return the uniform distribution over some values. Raises InputError where there are none.

    >>> sample(1, hidden=choice((10, 5), (3, 3)))
    [{'hidden': (3, 3)}]
    """
    if not values:
        raise InputError("choice needs at least one value, got none.")
    return lambda generator: values[generator.integers(len(values))]


class TrialGroup(NamedTuple):
    """Trials that share a compiled function; the members of a trial, one for each seed, are consecutive."""

    family: PlanFamily
    trials: tuple[int, ...]  # their indices
    plans: tuple[Plan, ...]  # of the trials
    numbers: dict[str, Array]  # float32 (M,), the values that differ within the compiled function
    state: RunState  # of M = trials x seeds members
    train: Dataset
    validation: Dataset | None
    sign: np.ndarray  # float32 scalar: 1 where a lower monitored value is better, -1 where a higher one is
    checksums: np.ndarray = np.zeros(3, np.uint32)  # of the structure, the training and the validation data


class GroupState(NamedTuple):
    """The state of trials that train together, or did until they were dropped."""

    trials: Array | np.ndarray  # (T,) int32, their indices
    numbers: dict[str, Array]  # float32 (M,), the values that differ within the compiled function
    state: RunState  # of M = T x seeds members
    checksums: Array | np.ndarray  # (3,) uint32, of the structure, the training and the validation data
    sign: Array | np.ndarray  # float32 scalar: 1 where a lower monitored value is better, -1 where a higher one is


class TrialRuns(NamedTuple):
    """The runs of a trial, one for each seed."""

    plan: Plan
    best: Variables  # of leaves (seeds, ...), of each run's best epoch
    final: Variables
    epochs: np.ndarray  # (seeds,) int32
    best_epochs: np.ndarray  # (seeds,) int32
    stopped: np.ndarray  # (seeds,) bool, by the rule of the plan


def make_groups(
    make: Callable[..., Plan],
    trials: Sequence[Trial],
    structure: Collection[str],
    keys: Array,
    data_of: Callable[..., tuple[Dataset, Dataset | None]],
) -> list[TrialGroup]:
    """Return trials with one member for each of the keys (S,), in groups that differ in floats alone.

    data_of: `(**structure) -> (train, validation)`, the data of a group. Raises InputError for names that `make` does
    not take, and for values without a hash.
    """
    groups = []
    for (fixed, floats), members in _trials_by_structure(make, trials, structure).items():
        family, (train, validation) = PlanFamily(make, fixed), data_of(**dict(fixed))
        values = [{name: trials[index][name] for name in floats} for index in members]
        plan = family(values[0])
        check_rows(plan, train, validation)
        check_labels(plan.model, plan.objective.loss, train, validation)
        numbers = {
            name: jnp.repeat(jnp.asarray([each[name] for each in values], jnp.float32), len(keys)) for name in floats
        }
        plans = tuple(family(each) for each in values)
        run_state = start_members(jnp.tile(keys, len(members)), train, validation, numbers, plan=family)
        warn_of_eval_params(plans[0], run_state, stacklevel=5)
        # Before its first epoch, the best value of a run is the worst possible.
        sign = np.sign(np.asarray(plans[0].early_stopping.init().best, np.float32))
        groups.append(TrialGroup(family, tuple(members), plans, numbers, run_state, train, validation, sign))
    return groups


def _trials_by_structure(
    make: Callable[..., Plan], trials: Sequence[Trial], structure: Collection[str]
) -> dict[tuple[tuple[tuple[str, Any], ...], tuple[str, ...]], list[int]]:
    """Return the indices of the trials that share a compiled function, by their structure and the names of floats."""
    indices: dict[tuple[tuple[tuple[str, Any], ...], tuple[str, ...]], list[int]] = {}
    for index, trial in enumerate(trials):
        _check_names(make, index, trial)
        floats = tuple(sorted(name for name in trial if _is_number(trial[name]) and name not in structure))
        fixed = tuple((name, trial[name]) for name in sorted(trial) if name not in floats)
        try:
            indices.setdefault((fixed, floats), []).append(index)
        except TypeError as error:
            raise InputError(f"trials must have values that hash, got {dict(fixed)}. Use tuples.") from error
    return indices


def _with_checksums(groups: Iterable[TrialGroup]) -> list[TrialGroup]:
    """Return the groups with the checksums by which a sweep that resumes knows its trials and data."""
    by_id: dict[int, int] = {}  # many groups share their data

    def data_checksum(dataset: Dataset | None) -> int:
        if id(dataset) not in by_id:
            by_id[id(dataset)] = _checksum(jax.tree.leaves(dataset))
        return by_id[id(dataset)]

    def checksums(group: TrialGroup) -> np.ndarray:
        structure = zlib.crc32(_as_text(group.family.fixed).encode())
        return np.asarray([structure, data_checksum(group.train), data_checksum(group.validation)], np.uint32)

    return [group._replace(checksums=checksums(group)) for group in groups]


def _checksum(leaves: Iterable[Any]) -> int:
    crc = 0
    for leaf in leaves:
        crc = zlib.crc32(str((leaf.shape, leaf.dtype)).encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, crc)
    return crc


def _as_text(value: Any) -> str:
    """Return a text of a value of a trial that is the same in every process."""
    match value:
        case tuple() if not hasattr(value, "_fields"):
            return f"({', '.join(map(_as_text, value))})"
        case frozenset():
            return f"{{{', '.join(sorted(map(_as_text, value)))}}}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _check_names(make: Callable[..., Plan], index: int, trial: Trial) -> None:
    signature = inspect.signature(make)
    try:
        signature.bind(**trial)
    except TypeError as error:
        name, arguments = getattr(make, "__name__", "make"), ", ".join(signature.parameters)
        raise InputError(
            f"trials must give {name} its arguments, {arguments}; trial {index}: {error}. Check its names."
        ) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (float, np.floating))


def group_chunks(group: TrialGroup, last: int, method: Method, hooks: Hooks) -> Iterator[Chunk]:
    """Return the chunks of a group up to the epoch `last`, sharded over the devices that divide it evenly.

    hooks: the callbacks, for whose hooks chunks have to end.
    """
    data = loader(group.train, group.plans[0].batch_size)
    devices = most_devices(group.state.epoch.shape[0])
    run_state, examples, validation = shard_members(
        group.state, data.examples, evaluation_rows(group.validation), devices=devices
    )

    def run(*arguments: Any, plan: Plan) -> tuple[RunState, Array]:
        return run_members(*arguments, plan=group.family, method=method, numbers=group.numbers)

    data = replace(data, examples=examples)
    options: dict[str, Any] = {
        "steps": AdaptiveSteps(hooks.seconds(SECONDS)),
        "end_after": hooks.every_steps,
        "run": run,
    }
    return chunks(group.plans[0], run_state, data, validation, last=last, **options)


def trial_runs(group: TrialGroup) -> dict[int, TrialRuns]:
    """Return the runs of each trial, by its index."""
    run_state = group.state
    ends = tuple(map(np.asarray, (run_state.epoch, run_state.stopping.best_epoch, run_state.stopping.should_stop)))
    variables = best_and_final(run_state, ends[1], group.plans[0].eval_params)
    count = len(ends[0]) // len(group.trials)
    runs = {}
    for place, index in enumerate(group.trials):
        members = slice(place * count, (place + 1) * count)
        parts = jax.tree.map(lambda leaf, members=members: leaf[members], (*variables, *ends))
        runs[index] = TrialRuns(group.plans[place], *parts)
    return runs


def best_values(group: GroupState) -> dict[int, float]:
    """Return each trial's best monitored value so far, a mean over seeds; infinite where that of a seed is."""
    best, trials = np.asarray(group.state.stopping.best, np.float64), np.asarray(group.trials).tolist()
    return dict(zip(trials, best.reshape(len(trials), -1).mean(1).tolist(), strict=True))


def scores(group: GroupState) -> dict[int, float]:
    """Return `best_values` where lower is better; inf where none was finite."""
    return {index: float(group.sign) * value for index, value in best_values(group).items()}


def select_trials(group: TrialGroup, trials: Collection[int]) -> TrialGroup:
    """Return the group with the members of some trials alone, at least one."""
    places = [place for place, index in enumerate(group.trials) if index in trials]
    count = group.state.epoch.shape[0] // len(group.trials)
    members = np.concatenate([np.arange(count) + place * count for place in places])
    many: Any = group.state
    run_state = jax.tree.map(lambda leaf: leaf[members], many._replace(cursor=()))._replace(cursor=many.cursor)
    return group._replace(
        trials=tuple(group.trials[place] for place in places),
        plans=tuple(group.plans[place] for place in places),
        numbers={name: values[members] for name, values in group.numbers.items()},
        state=run_state,
    )


def group_state(group: TrialGroup) -> GroupState:
    """Return the state of a group as a pytree of arrays."""
    return GroupState(np.asarray(group.trials, np.int32), group.numbers, group.state, group.checksums, group.sign)


def restore_group(groups: Collection[TrialGroup], state: GroupState) -> TrialGroup:
    """Return the group of a state, with that state. groups: all trials before their first epoch.

    Raises InputError where the state is not of these trials, seeds, numbers or data.
    """
    group = _group_of(groups, state.trials, state.checksums, len(state.state.epoch))
    if not _equal_arrays((group.state.key, group.numbers), (state.state.key, state.numbers)):
        raise InputError(
            f"state must be of a sweep with the same seeds, and the same values of trials {list(group.trials)}. "
            f"{OF_THE_SAME}"
        )
    check_structure(kinds(state.state), group.state)
    return group._replace(state=state.state)


OF_THE_SAME = "Give these, or begin a new sweep."


def _group_of(groups: Collection[TrialGroup], indices: Any, checksums: Any, members: int) -> TrialGroup:
    """Return the trials of a group before their first epoch.

    indices, checksums: of the group as it was saved. members: their number. Raises InputError where they differ from
    those of the sweep that is called.
    """
    trials = {*np.asarray(indices).tolist()}
    whole = next((group for group in groups if trials and trials <= {*group.trials}), None)
    if whole is None:
        raise InputError(f"state must be of a sweep with the same trials. {OF_THE_SAME}")
    group, same = select_trials(whole, trials), np.asarray(checksums) == whole.checksums
    if not same[0]:
        raise InputError(
            f"state must be of a sweep with the same trials; the values of trials {list(group.trials)} are now "
            f"{dict(group.family.fixed)}, and were others. {OF_THE_SAME}"
        )
    for name, is_same in zip(("train", "validation"), same[1:], strict=True):
        if not is_same:
            raise InputError(f"state must be of a sweep with the same data; {name} differs. {OF_THE_SAME}")
    if members != group.state.epoch.shape[0]:
        count = group.state.epoch.shape[0] // len(trials)
        raise InputError(
            f"state must be of a sweep with the same seeds: it has {members // len(trials)}, got {count}. {OF_THE_SAME}"
        )
    return group


def _equal_arrays(one: Any, other: Any) -> bool:
    ours, theirs = flatten_named(one), flatten_named(other)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


ENDS = ("epochs", "best_epoch", "reason")
RESERVED = {"trial", "seed", "parameters", *ENDS, *Estimate._fields}  # columns of the tables


class SweepStatus(NamedTuple):
    """Where a sweep stands."""

    rung: int  # from 1
    rungs: int
    trials: int  # that are not dropped
    total_trials: int
    epoch: int  # of the runs that trained last
    epochs: int
    best: float  # the best monitored value so far, a trial's mean over seeds; infinite where none is finite
    best_trial: int
    fraction: float  # of all epochs of all trials; a sweep ends below 1 where early stopping ends runs


class SweepState(NamedTuple):
    """The state of a sweep, without its records: a pytree of arrays, which a checkpoint can hold."""

    rung: Array | np.ndarray  # int32 scalar, how often trials were ranked
    racing: tuple[GroupState, ...]
    dropped: tuple[GroupState, ...]
    rungs: Array | np.ndarray  # int32 (R, 2): of each rung, its last epoch and the number of its trials

    def status(self, records: Sequence[Record]) -> SweepStatus:
        """Return where the sweep stands; records: those that the callback gets with the state.

        >>> import optax
        >>> from jaxdl import dataset, grid, losses, make_plan, mlp
        >>> def make(learning_rate):
        ...     return make_plan(mlp(()), losses.squared_error, optax.sgd(learning_rate), batch_size=4)
        >>> data = dataset([[1.0]] * 8, [[2.0]] * 8)
        >>> def show(state, records):
        ...     status = state.status(records)
        ...     print(f"{status.trials}/{status.total_trials} trials, epoch {status.epoch}: {status.fraction:.0%}")
        >>> trials = grid(learning_rate=(0.1, 0.01, 0.001))
        >>> _ = sweep(make, trials, data, seeds=(0,), epochs=3, eta=3, callbacks=[show])
        3/3 trials, epoch 1: 60%
        1/3 trials, epoch 2: 80%
        1/3 trials, epoch 3: 100%
        """
        rung, (ends, counts) = int(self.rung), np.asarray(self.rungs).T
        starts = np.concatenate([[0], ends[:-1]])
        work = counts * (ends - starts)
        finished = int(work[:rung].sum())
        for group in self.racing:
            is_over = np.asarray(group.state.stopping.should_stop).all()
            epoch = ends[rung] if is_over else max(np.asarray(group.state.epoch).max(), starts[rung])
            finished += len(group.trials) * int(epoch - starts[rung])
        values = {index: score for group in (*self.racing, *self.dropped) for index, score in scores(group).items()}
        best = min(values, key=lambda index: (values[index], index))
        sign = next(float(group.sign) for group in (*self.racing, *self.dropped) if best in np.asarray(group.trials))
        return SweepStatus(
            rung=rung + 1,
            rungs=len(ends),
            trials=sum(len(group.trials) for group in self.racing),
            total_trials=len(values),
            epoch=int(records[-1]["epoch"]) if records else 0,
            epochs=int(ends[-1]),
            best=sign * values[best],
            best_trial=best,
            fraction=finished / int(work.sum()),
        )


class SweepResult(NamedTuple):
    """The result of a sweep; a trial is the position in the list of trials, from 0."""

    table: pd.DataFrame  # a row for each trial and seed: its arguments, its end, the values of its best epoch
    history: pd.DataFrame  # a row for each trial, seed and epoch
    plans: tuple[Plan, ...]  # of the trials
    best: tuple[Variables, ...]  # of the trials, of leaves (seeds, ...), of each run's best epoch
    final: tuple[Variables, ...]
    state: SweepState | None = None
    # Of an epoch of runs that share a compiled function: `epoch`, and arrays (M,), among them `trial` and `seed`.
    records: Sequence[Record] = ()
    callback_states: dict[str, Any] | None = None  # of the callbacks that have a state, by name

    def __repr__(self) -> str:
        """Return one line: the tables and arrays would fill many screens."""
        return f"SweepResult({len(self.plans)} trials, {len(self.table)} runs, {len(self.history)} epochs in all)"


@explain_calls
def sweep(
    make: Callable[..., Plan],
    trials: Sequence[Trial],
    train: Dataset,
    validation: Dataset | None = None,
    *,
    seeds: Sequence[int] = tuple(range(8)),
    epochs: int = 10,
    eta: int | None = None,
    min_resource: int = 1,
    structure: Sequence[str] = (),
    rows: Callable[..., Dataset] | None = None,
    method: Method = "vmap",
    callbacks: Iterable[CallbackLike] = (),
    state: SweepResult | Checkpoint | None = None,
) -> SweepResult:
    """Train the plan `make(**trial)` of every trial with every seed, each run with its own early stopping.

    Trials that differ in floats alone share one compiled function: floats, such as a learning rate, weight decay, a
    dropout rate, label smoothing or the length of a schedule, are its arguments. All other values (widths, an
    activation, a batch size) are structure, with one compiled function for each combination. So `make` gets float32
    scalars, on whose values it must not decide. Define `make` in a module: its compiled functions are found by it.

    Ctrl-C, or the stop button of a notebook, ends the sweep; `sweep(..., state=result)` with the same arguments
    resumes it, bit-identical to a sweep that was not interrupted.

    eta: such as 3, for successive halving: after `min_resource` epochs the best third of the trials continues, after
        three times as many the best third of these, until the last ones reach `epochs`. The others keep their state.
        Trials are ranked by the mean over seeds of the best value so far that `early_stopping` monitors; a trial with
        a seed that is not finite is the last. Source: Jamieson and Talwalkar, AISTATS (2016).
    min_resource: the epochs of every trial before the first ranking.
    structure: names of floats that are structure too.
    rows: `(dataset, **structure) -> dataset`, the dataset of trials that differ in their data (in columns, say).
    method: as for `fit_seeds`. With "map", runs are bit-identical to `fit` where floats are learning rates, weight
        decays or dropout rates, and differ in the last bits where XLA or Python folds constants.
    callbacks: as for `fit`, with the SweepState and all records of the sweep so far; an epoch is that of runs that
        share a compiled function. `state.status(records)` is where the sweep stands: the rung, the trials that are
        left, the best value. A `Stop` ends the sweep. With `saving.checkpointer`, a sweep that was killed is resumed by
        the same call.
    state: an earlier sweep to resume: the result of `sweep`, or of `saving.restore_latest`, or None to begin.
        `epochs` may be larger than before; trials, seeds and data must be the same.

    Warns where a run has no best epoch, as `fit` does. Raises InputError for arguments that do not fit together.

    >>> import optax
    >>> from jaxdl import dataset, grid, losses, make_plan, mlp
    >>> def make(hidden, learning_rate):
    ...     return make_plan(mlp(hidden), losses.squared_error, optax.sgd(learning_rate), batch_size=16)
    >>> inputs = np.linspace(-1, 1, 64)[:, None]
    >>> trials = grid(hidden=((), (4,)), learning_rate=(0.1, 0.01))
    >>> result = sweep(make, trials, dataset(inputs, 3 * inputs), seeds=(0, 1))
    >>> result.table.shape[0], int(result.table.groupby("trial")["loss"].mean().idxmin())
    (8, 0)
    """
    trials = _check_arguments(make, trials, seeds, structure)
    data_of = _check_data(train, validation, rows, method)
    keys, ends = seed_keys(seeds), _rungs(epochs, eta, min_resource)
    groups = _with_checksums(make_groups(make, trials, structure, keys, data_of))
    race = _read_race(state, groups, ends, eta or 1)
    result = LoopResult(race.snapshot(), race.records)
    _run(race, seeds, ends, eta or 1, method, check_callbacks(callbacks), callback_states(state), result)
    runs, reasons = _runs_and_reasons(race, ends, result.reason)
    history = _history(race.records, runs)
    table = _table(trials, seeds, runs, reasons, history)
    plans, best, final = zip(*(runs[index][:3] for index in range(len(trials))), strict=True)
    without = [index for index, run in sorted(runs.items()) if ((run.best_epochs == 0) & (run.epochs > 0)).any()]
    if without:
        names = f"seeds of the trials {', '.join(map(str, without))}"
        warnings.warn(without_best(plans[without[0]], validation, names), RuntimeWarning, stacklevel=3)
    return SweepResult(table, history, plans, best, final, race.snapshot(), race.records, result.callback_states)


@explain_calls
def trial_values(
    make: Callable[..., Plan],
    trials: Sequence[Trial],
    train: Dataset,
    validation: Dataset | None = None,
    *,
    size: int = 8,
    seeds: Sequence[int] = tuple(range(8)),
    epochs: int = 10,
    structure: Sequence[str] = (),
    rows: Callable[..., Dataset] | None = None,
    method: Method = "vmap",
) -> np.ndarray:
    """Train a round of trials, and return the value of each that `early_stopping` monitors, float64 (len(trials),).

    A sampler that learns from earlier trials (of Optuna, for example) suggests the trials of each round and gets their
    values. All rounds of up to `size` trials share one compiled function, where their floats have the same names and
    their other values are equal, because missing trials are filled with repeats; other structure is compiled once
    each. With a function `train_alone`, which trains a plan with `fit` and returns the history, it means

        for index, trial in enumerate(trials):
            histories = [train_alone(make(**trial), seed) for seed in seeds]
            values[index] = np.mean([history["val_loss"].min() for history in histories])

    for a rule that monitors `val_loss`. The value of a trial of which a run has no finite value is inf, or -inf for a
    rule that maximizes.

    size: the most trials of a round. The other arguments are those of `sweep`. Ctrl-C raises KeyboardInterrupt.

    Raises InputError for more trials than `size`, and for arguments that do not fit together.

    >>> import optax
    >>> from jaxdl import dataset, losses, make_plan, mlp
    >>> def make(learning_rate):
    ...     return make_plan(mlp(()), losses.squared_error, optax.sgd(learning_rate), batch_size=16)
    >>> inputs = np.linspace(-1, 1, 64)[:, None]
    >>> train = dataset(inputs, 3 * inputs)
    >>> for rates in ((0.001, 0.01), (0.1, 0.2)):
    ...     values = trial_values(make, [{"learning_rate": rate} for rate in rates], train, size=2, seeds=(0, 1))
    ...     print(rates[int(values.argmin())])
    0.01
    0.2
    """
    trials, size = _check_arguments(make, trials, seeds, structure), whole_number("size", size, 1)
    if len(trials) > size:
        raise InputError(
            f"trials must be at most size={size}, got {len(trials)}. Use size={len(trials)}, or more rounds."
        )
    data_of = _check_data(train, validation, rows, method)
    last = whole_number("epochs", epochs, 1)
    # Each group has the same number of members in every round, and so the same compiled function.
    by_structure = _trials_by_structure(make, trials, structure).values()
    places = [index for members in by_structure for index in itertools.islice(itertools.cycle(members), size)]
    values = np.zeros(len(trials))
    for group in make_groups(make, [trials[index] for index in places], structure, seed_keys(seeds), data_of):
        run_state = group.state
        for chunk in group_chunks(group, last, method, Hooks((), LoopResult(run_state, []))):
            run_state = chunk.state
        for place, value in best_values(group_state(group._replace(state=run_state))).items():
            values[places[place]] = value
    return values


def summarize(result: SweepResult, metric: str, *, at: Literal["best", "last"] = "best") -> pd.DataFrame:
    """Return the mean of a value over the seeds of each trial, indexed by the trial, beside the trial's arguments.

    result: of a sweep. metric: a column of its history, such as "val_rmse". at: the best epoch of each run by its
    monitored value, or its last. Columns: the trial's arguments, `parameters`, and those of `stats.estimate`: `mean`,
    `std`, `sem`, and the 95 % confidence interval. `stats.one_standard_error(mean, sem, parameters)` recommends a
    trial, with `mode="max"` for an accuracy. Raises InputError for a value that the history does not hold.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"trial": [0, 0], "seed": [0, 1], "parameters": 2, "epochs": 9, "best_epoch": 9})
    >>> history = pd.DataFrame({"trial": [0, 0], "seed": [0, 1], "epoch": 9, "rmse": [1.0, 3.0]})
    >>> summarize(SweepResult(table, history, (), (), ()), "rmse").loc[0, ["parameters", "mean", "sem"]].tolist()
    [2.0, 2.0, 1.0]
    """
    import pandas as pd

    names = [str(name) for name in result.history if name not in ("trial", "seed")]
    if metric not in names:
        similar = nearest(metric, names)
        raise InputError(
            f'metric="{metric}" is not measured. The sweep measures: {", ".join(names)}.'
            + (f' Use "{similar}".' if similar else "")
        )
    if at not in ("best", "last"):
        raise InputError(f'at must be "best" or "last", got "{at}".')
    # From the history: in the table, an argument of the trials may have the same name.
    end = "best_epoch" if at == "best" else "epochs"
    ends = result.table[["trial", "seed", end]].rename(columns={end: "epoch"})
    values = ends.merge(result.history, how="left", on=["trial", "seed", "epoch"])
    columns = list(result.table)
    arguments = [name for name in columns[: columns.index(ENDS[0])] if name not in ("trial", "seed")]
    estimates = {index: estimate(column)._asdict() for index, column in values.groupby("trial")[metric]}
    return result.table.groupby("trial")[arguments].first().join(pd.DataFrame.from_dict(estimates, orient="index"))


def _check_arguments(
    make: Callable[..., Plan], trials: Any, seeds: Sequence[int], structure: Sequence[str]
) -> list[Trial]:
    """Return the trials as a list."""
    if not callable(make):
        raise InputError(f"make must be a function that returns make_plan(...), got {given_as(make)}.")
    if isinstance(trials, (str, Mapping)) or not isinstance(trials, Iterable):
        advice = "Use grid(**trials)." if isinstance(trials, Mapping) else "Use grid(learning_rate=(0.1, 0.01))."
        raise InputError(f"trials must be a list of dicts, got {given_as(trials)}. {advice}")
    trials = list(trials)
    if not trials:
        raise InputError("trials must have at least one entry, got none. Use grid(...), say.")
    for index, trial in enumerate(trials):
        if not isinstance(trial, Mapping) or not all(isinstance(name, str) for name in trial):
            raise InputError(
                f"trials must be dicts of the arguments of make by name, got {trial!r} for trial {index}. "
                "Use grid(learning_rate=(0.1, 0.01)), say."
            )
    if isinstance(structure, str):
        raise InputError(
            f'structure must name values of the trials in a tuple, got "{structure}". Use ("{structure}",).'
        )
    seed_keys(seeds)
    if len({*seeds}) < len(seeds):
        raise InputError(f"seeds must differ, got {tuple(seeds)}: the same seed would be counted twice.")
    names = {name for trial in trials for name in trial}
    if names & RESERVED:
        raise InputError(f"trials must not name a value {min(names & RESERVED)}, as the tables do. Rename it.")
    if unknown := {*structure} - names:
        listed = ", ".join(sorted(names))
        raise InputError(f'structure must name values of the trials, {listed}, got "{min(unknown, key=str)}".')
    return trials


def _check_data(
    train: Dataset, validation: Dataset | None, rows: Callable[..., Dataset] | None, method: Method
) -> Callable[..., tuple[Dataset, Dataset | None]]:
    """Return the function of a group's structure that returns its data."""
    check_choice("method", method, ("vmap", "map"))
    check_examples("train", train)
    if validation is not None:
        check_examples("validation", validation)
    if rows is not None and not callable(rows):
        raise InputError(f"rows must be a function (dataset, **structure) -> dataset, got {given_as(rows)}.")
    check_platform()
    enable_compilation_cache()
    view = rows or (lambda dataset, **_: dataset)

    def data_of(**fixed: Any) -> tuple[Dataset, Dataset | None]:
        return view(train, **fixed), None if validation is None else view(validation, **fixed)

    return data_of


def _rungs(epochs: int, eta: int | None, min_resource: int) -> list[int]:
    """Return the epochs after which trials are ranked, and the last epoch."""
    epochs, min_resource = whole_number("epochs", epochs, 1), whole_number("min_resource", min_resource, 1)
    if eta is None:
        return [epochs]
    if isinstance(eta, bool) or not isinstance(eta, (int, np.integer)) or eta < 2:
        raise InputError(f"eta must be a whole number from 2 on, got {given_as(eta)}. Use None for no halving.")
    ends = [min_resource]
    while ends[-1] < epochs:
        ends.append(ends[-1] * eta)
    return [*ends[:-1], epochs]


@dataclass
class _Race:
    """The state of a sweep while it runs."""

    rungs: np.ndarray  # int32 (R, 2): of each rung, its last epoch and the number of its trials
    # The rung, the groups that train and those that were dropped: one tuple, because Ctrl-C may come between two lines.
    state: tuple[int, list[TrialGroup], list[TrialGroup]]
    records: list[Record]

    def snapshot(self) -> SweepState:
        rung, racing, dropped = self.state
        parts = tuple(map(group_state, racing)), tuple(map(group_state, dropped))
        return SweepState(np.asarray(rung, np.int32), *parts, self.rungs)


def _read_race(state: Any, groups: list[TrialGroup], ends: Sequence[int], eta: int) -> _Race:
    """Return the sweep of the caller's `state`, or a new one of the groups."""
    sweep_state: Any
    counts = [sum(len(group.trials) for group in groups)]
    while len(counts) < len(ends):
        counts.append(_count_best(counts[-1], eta))
    rungs = np.stack([ends, counts], 1).astype(np.int32)
    match state:
        case None:
            return _Race(rungs, (0, groups, []), [])
        case Checkpoint():
            sweep_state, records = _read_checkpoint(state, groups), read_records(state.about["history"])
        case SweepResult(state=SweepState() as sweep_state):
            records = [{**record} for record in state.records]
        case _:
            raise InputError(
                "state must be the SweepResult that an earlier call returned, or what saving.restore_latest returns, "
                f"got {type(state).__name__}. Leave it out to begin a new sweep."
            )
    rung, racing, dropped = (
        int(sweep_state.rung),
        *([restore_group(groups, one) for one in side] for side in (sweep_state.racing, sweep_state.dropped)),
    )
    trials = sorted(index for group in (*racing, *dropped) for index in group.trials)
    if trials != sorted(index for group in groups for index in group.trials):
        raise InputError(f"state must be of a sweep with the same trials: it has {len(trials)}. {OF_THE_SAME}")
    furthest = max(int(group.state.epoch.max()) for group in racing)
    same_rankings = rung < len(ends) and np.array_equal(np.asarray(sweep_state.rungs)[:rung], rungs[:rung])
    left = sum(len(group.trials) for group in racing)
    if not same_rankings or furthest > ends[rung] or left != rungs[rung, 1]:
        raise InputError(
            f"epochs, eta and min_resource must fit the state, whose runs are at epoch {furthest} after {rung} "
            f"rankings; with these arguments the sweep ends at {ends[-1]} after {len(ends) - 1}. Give those of the "
            "earlier call, or more epochs."
        )
    epochs = {
        index: int(np.asarray(group.state.epoch).max()) for group in (*racing, *dropped) for index in group.trials
    }
    # Of the trials of a record some may have been dropped since, and those that are left may have stopped before.
    records = [
        record for record in records if any(record["epoch"] <= epochs[index] for index in record["trial"].tolist())
    ]
    return _Race(rungs, (rung, racing, dropped), records)


def _read_checkpoint(checkpoint: Checkpoint, groups: list[TrialGroup]) -> SweepState:
    """Return the state that a checkpoint of a sweep holds."""

    arrays = checkpoint.arrays

    def group_states(side: str) -> tuple[GroupState, ...]:
        states: list[GroupState] = []
        while (name := f"{side}/{len(states)}/trials") in arrays:
            checksums, epochs = (arrays[f"{side}/{len(states)}/{part}"] for part in ("checksums", "state/epoch"))
            states.append(group_state(_group_of(groups, arrays[name], checksums, len(epochs))))
        return tuple(states)

    if "rungs" not in arrays:
        raise InputError(
            "state must be a checkpoint of a sweep, got one of another run or of an earlier version. Begin a new sweep."
        )
    rungs = np.asarray(arrays["rungs"])
    like = SweepState(np.asarray(0, np.int32), group_states("racing"), group_states("dropped"), rungs)
    check_structure(checkpoint.about["kinds"], like)
    sweep_state: SweepState = unflatten_named(like, checkpoint.arrays)
    return sweep_state


def _run(
    race: _Race,
    seeds: Sequence[int],
    ends: Sequence[int],
    eta: int,
    method: Method,
    callbacks: Sequence[CallbackLike],
    states: Mapping[str, Any],
    result: LoopResult,
) -> None:
    """Train and rank the trials, until the last epoch, Ctrl-C or a callback, which become the reason of the result."""
    try:
        with open_hooks(callbacks, result, states) as hooks:
            while not result.reason:
                rung, racing, dropped = race.state
                for place, group in enumerate(racing):
                    columns = {"trial": np.repeat(group.trials, len(seeds)), "seed": np.tile(seeds, len(group.trials))}
                    run_loop(
                        group_chunks(group, ends[rung], method, hooks),
                        result,
                        hooks=hooks,
                        make_record=partial(_with_columns, columns),
                        make_state=partial(_update, race, racing, place),
                    )
                    # Trials that a callback has stopped are not ranked.
                    if result.reason:
                        return
                if rung == len(ends) - 1:
                    return
                best = _best_trials(racing, eta)
                dropped = [*dropped, *(select_trials(each, out) for each in racing if (out := {*each.trials} - best))]
                race.state = rung + 1, [select_trials(each, best) for each in racing if best & {*each.trials}], dropped
    except KeyboardInterrupt:
        result.reason = "interrupted"


def _with_columns(columns: Record, record: Record) -> Record:
    return {"epoch": record["epoch"], **columns, **record}


def _update(race: _Race, racing: list[TrialGroup], place: int, run_state: RunState) -> SweepState:
    racing[place] = racing[place]._replace(state=run_state)
    return race.snapshot()


def _runs_and_reasons(race: _Race, ends: Sequence[int], reason: str) -> tuple[dict[int, TrialRuns], dict[int, str]]:
    """Return the runs of each trial, and why those ended that no rule stopped; drop records of unfinished epochs.

    reason: why the sweep ended early; "" for one that is complete.
    """
    _, racing, dropped = race.state
    runs = {index: run for group in (*racing, *dropped) for index, run in trial_runs(group).items()}

    def is_complete(record: Record) -> bool:
        return any(runs[index].epochs.max() >= record["epoch"] for index in {*record["trial"].tolist()})

    race.records = [record for record in race.records if is_complete(record)]
    reasons = dict.fromkeys(runs, "halving")
    for index in (index for group in racing for index in group.trials):
        is_whole = runs[index].epochs.max() == ends[-1] or not reason
        reasons[index] = "epochs" if is_whole else reason
    return runs, reasons


def _best_trials(racing: Collection[TrialGroup], eta: int) -> set[int]:
    """Return the trials that continue."""
    values = {index: score for group in racing for index, score in scores(group_state(group)).items()}
    return set(sorted(values, key=lambda index: (values[index], index))[: _count_best(len(values), eta)])


def _count_best(trials: int, eta: int) -> int:
    """Return how many of the trials continue after a ranking."""
    return -(-trials // eta)


def _history(records: Collection[Record], runs: Mapping[int, TrialRuns]) -> pd.DataFrame:
    """Return a row for each trial, seed and epoch."""
    import pandas as pd

    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("trial", "seed", "epoch")}
    columns |= {name: [] for record in records for name in record if name not in columns}
    for record in records:
        trials = record["trial"]
        # The epochs of the members, in the order of the record's arrays.
        epochs = np.concatenate([runs[index].epochs for index in dict.fromkeys(trials.tolist())])
        for name, parts in columns.items():
            value = record.get(name, np.float32(np.nan))
            parts.append(np.broadcast_to(value, trials.shape)[epochs >= record["epoch"]])
    arrays = {name: np.concatenate(parts) if parts else np.zeros(0, int) for name, parts in columns.items()}
    # In float64, so that computations with the table do not round as float32 does.
    table = pd.DataFrame({name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in arrays.items()})
    return table.sort_values(["trial", "seed", "epoch"], ignore_index=True)


def _table(
    trials: Sequence[Trial],
    seeds: Sequence[int],
    runs: Mapping[int, TrialRuns],
    reasons: Mapping[int, str],
    history: pd.DataFrame,
) -> pd.DataFrame:
    """Return a row for each trial and seed, with the values of its best epoch."""
    import pandas as pd

    rows, names = [], dict.fromkeys(name for trial in trials for name in trial)
    for index, trial in enumerate(trials):
        run = runs[index]
        size = sum(leaf.size for leaf in jax.tree.leaves(run.final.params)) // len(seeds)
        for place, seed in enumerate(seeds):
            reason = member_reason(run.stopped[place], reasons[index])
            ends = int(run.epochs[place]), int(run.best_epochs[place]), reason
            columns = {"trial": index, **names, **trial, "seed": seed, "parameters": size}
            rows.append({**columns, **dict(zip(ENDS, ends, strict=True))})
    values = history.rename(columns={"epoch": "best_epoch"})
    # A value of the history may have the name of an argument of the trials: the argument stays.
    shared = [name for name in values if name not in rows[0] or name in ("trial", "seed", "best_epoch")]
    return pd.DataFrame(rows).merge(values[shared], how="left", on=["trial", "seed", "best_epoch"])
