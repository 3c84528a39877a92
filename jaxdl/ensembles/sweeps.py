"""Hyperparameter sweeps: grids, random samples, successive halving."""

from __future__ import annotations

import inspect
import itertools
import math
import warnings
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
from jaxdl._tree import check_structure, flatten_named, kinds, unflatten_named
from jaxdl.data.batches import evaluation_rows
from jaxdl.data.streaming import loader
from jaxdl.ensembles.members import Method, best_and_final, most_devices, run_members, shard_members, start_members
from jaxdl.ensembles.seeds import Record, reason_of, seed_keys
from jaxdl.errors import InputError
from jaxdl.losses import check_labels
from jaxdl.stats import Estimate, estimate
from jaxdl.train.fit import recalled, warn_of_eval_params, without_best
from jaxdl.train.loop import Chunk, Pace, Reached, chunks, run_loop
from jaxdl.train.plan import Family, check_rows
from jaxdl.types import Array, Checkpoint, Dataset, Plan, RunState, Variables

if TYPE_CHECKING:
    import pandas as pd


Candidate = dict[str, Any]
Draw = Callable[[np.random.Generator], Any]


@explain_calls
def grid(**values: Iterable[Any]) -> list[Candidate]:
    """Every combination of the values, the last name changing fastest.

    A string is one value. Raises InputError for a name without values, or with what is no row of them.

    >>> grid(hidden=((10, 5), (3, 3)), learning_rate=(0.01, 0.001))[1]
    {'hidden': (10, 5), 'learning_rate': 0.001}
    """
    for name, of in values.items():
        if not isinstance(of, Iterable):
            raise InputError(f"{name} must be a row of values to try, got {of!r}. Use ({of!r},), say.")
    lists = {name: [of] if isinstance(of, str) else list(of) for name, of in values.items()}
    for name, listed in lists.items():
        if not listed:
            raise InputError(f"{name} must have at least one value to try, got none.")
    return [dict(zip(lists, combination, strict=True)) for combination in itertools.product(*lists.values())]


def sample(count: int, seed: int = 0, **distributions: Draw) -> list[Candidate]:
    """`count` candidates, each value drawn on its own: as good as a grid with far fewer runs where few values matter.

    Source: Bergstra and Bengio, Journal of Machine Learning Research 13 (2012). Raises InputError for a count below 1,
    and for a draw that is none.

    >>> sample(2, dropout=uniform(0.0, 0.5), hidden=choice((10, 5), (3, 3)))[1]
    {'dropout': 0.020..., 'hidden': (10, 5)}
    """
    count = whole_number("count", count, 1)
    for name, draw in distributions.items():
        if not callable(draw):
            raise InputError(f"{name} must be a draw, such as uniform(0.0, 0.5), got {draw!r}.")
    generator = np.random.default_rng(seed)
    return [{name: draw(generator) for name, draw in distributions.items()} for _ in range(count)]


def uniform(low: float, high: float) -> Draw:
    """A float from `low` to `high`, all equally likely. Raises InputError for bounds that are not finite or in order.

    >>> 1 <= uniform(1.0, 2.0)(np.random.default_rng(0)) <= 2
    True
    """
    if not -math.inf < number("low", low) <= number("high", high) < math.inf:
        raise InputError(f"uniform needs low <= high, both finite, got {low} and {high}.")
    return lambda generator: float(generator.uniform(low, high))


def log_uniform(low: float, high: float) -> Draw:
    """A float from `low` to `high` whose logarithm is uniform, as fits a learning rate.

    Raises InputError unless 0 < low <= high, both finite.

    >>> 1e-4 <= log_uniform(1e-4, 1e-1)(np.random.default_rng(0)) <= 1e-1
    True
    """
    if not 0 < number("low", low) <= number("high", high) < math.inf:
        raise InputError(f"log_uniform needs 0 < low <= high, both finite, got {low} and {high}.")
    # Rounding may pass an end.
    return lambda generator: float(min(max(low, math.exp(generator.uniform(math.log(low), math.log(high)))), high))


def choice(*values: Any) -> Draw:
    """One of the values, all equally likely. Raises InputError where there are none.

    >>> choice("relu")(np.random.default_rng(0))
    'relu'
    """
    if not values:
        raise InputError("choice needs at least one value, got none.")
    return lambda generator: values[generator.integers(len(values))]


AnyCandidate = Mapping[str, Any]


class Population(NamedTuple):
    """Candidates that share a program; the members of a candidate, one a seed, stand side by side."""

    family: Family
    alive: tuple[int, ...]  # the candidates by their numbers
    plans: tuple[Plan, ...]  # of these
    numbers: dict[str, Array]  # float32 (M,), what differs within the program
    state: RunState  # of M = candidates x seeds members
    train: Dataset
    validation: Dataset | None


class Group(NamedTuple):
    """The state of the candidates that train together, or did until they were dropped."""

    candidates: Array | np.ndarray  # (C,) int32, their numbers
    numbers: dict[str, Array]  # float32 (M,), what differs within the program
    state: RunState  # of M = C x seeds members


class Ended(NamedTuple):
    """Where the runs of a candidate stand."""

    plan: Plan
    best: Variables  # of leaves (seeds, ...), of each run's best epoch
    final: Variables
    epochs: np.ndarray  # (seeds,) int32, as are the best epochs
    best_epochs: np.ndarray
    stopped: np.ndarray  # (seeds,) bool, by the rule of the plan


def populations(
    make: Callable[..., Plan],
    candidates: Sequence[AnyCandidate],
    structure: Collection[str],
    keys: Array,
    see: Callable[..., tuple[Dataset, Dataset | None]],
) -> list[Population]:
    """Candidates with one member for each of the keys (S,), those together that differ in floats alone.

    see: `(**structure) -> (train, validation)`, the rows of a population. Raises InputError for names that `make` does
    not take, and for values that do not hash.
    """
    together: dict[tuple[tuple[tuple[str, Any], ...], tuple[str, ...]], list[int]] = {}
    for index, candidate in enumerate(candidates):
        _check_names(make, index, candidate)
        floats = tuple(sorted(name for name, value in candidate.items() if _floats(name, value, structure)))
        fixed = tuple((name, candidate[name]) for name in sorted(candidate) if name not in floats)
        try:
            together.setdefault((fixed, floats), []).append(index)
        except TypeError as error:
            raise InputError(f"candidates must have values that hash, got {dict(fixed)}. Use tuples.") from error
    found = []
    for (fixed, floats), alive in together.items():
        family, (train, validation) = Family(make, fixed), see(**dict(fixed))
        own = [{name: candidates[index][name] for name in floats} for index in alive]
        plan = family(own[0])
        check_rows(plan, train, validation)
        check_labels(plan.model, plan.objective.loss, train, validation)
        numbers = {name: jnp.repeat(jnp.asarray([of[name] for of in own], jnp.float32), len(keys)) for name in floats}
        plans = tuple(family(of) for of in own)
        run_state = start_members(jnp.tile(keys, len(alive)), train, validation, numbers, plan=family)
        warn_of_eval_params(plans[0], run_state, stacklevel=5)
        found.append(Population(family, tuple(alive), plans, numbers, run_state, train, validation))
    return found


def _check_names(make: Callable[..., Plan], index: int, candidate: AnyCandidate) -> None:
    signature = inspect.signature(make)
    try:
        signature.bind(**candidate)
    except TypeError as error:
        name, taken = getattr(make, "__name__", "make"), ", ".join(signature.parameters)
        raise InputError(
            f"candidates must give {name} what it takes, {taken}; candidate {index}: {error}. Check its names."
        ) from error


def _floats(name: str, value: Any, structure: Collection[str]) -> bool:
    return isinstance(value, (float, np.floating)) and name not in structure


def trained(population: Population, last: int, method: Method) -> Iterator[Chunk]:
    """The chunks of a population up to the epoch `last`, spread over the devices that share it evenly."""
    rows, validation = loader(population.train, population.plans[0].batch_size), population.validation
    devices = most_devices(population.state.epoch.shape[0])
    run_state, examples, validation = shard_members(
        population.state, rows.examples, evaluation_rows(validation), devices=devices
    )

    def run(*arguments: Any, plan: Plan) -> tuple[RunState, Array]:
        return run_members(*arguments, plan=population.family, method=method, numbers=population.numbers)

    rows = replace(rows, examples=examples)
    return chunks(population.plans[0], run_state, rows, validation, last=last, steps=Pace(), run=run)


def ended(population: Population) -> dict[int, Ended]:
    """Where the runs of each candidate stand, by its number."""
    run_state = population.state
    ends = tuple(map(np.asarray, (run_state.epoch, run_state.stopping.best_epoch, run_state.stopping.should_stop)))
    variables = best_and_final(run_state, ends[1], population.plans[0].eval_params)
    count = len(ends[0]) // len(population.alive)
    found = {}
    for place, index in enumerate(population.alive):
        own = slice(place * count, (place + 1) * count)
        parts = jax.tree.map(lambda leaf, own=own: leaf[own], (*variables, *ends))
        found[index] = Ended(population.plans[place], *parts)
    return found


def scores(population: Population) -> dict[int, float]:
    """Each candidate's best monitored figure, a mean over seeds, the lower the better; inf where none was finite."""
    # Before its first epoch, a run's best is the worst there is.
    sign = 1 if float(population.plans[0].early_stopping.init().best) > 0 else -1
    best = np.asarray(population.state.stopping.best, np.float64)
    means = sign * best.reshape(len(population.alive), -1).mean(1)
    return dict(zip(population.alive, means.tolist(), strict=True))


def compacted(population: Population, kept: Collection[int]) -> Population:
    """The population without the members of the candidates that are not kept; some must be."""
    places = [place for place, index in enumerate(population.alive) if index in kept]
    count = population.state.epoch.shape[0] // len(population.alive)
    rows = np.concatenate([np.arange(count) + place * count for place in places])
    many: Any = population.state
    run_state = jax.tree.map(lambda leaf: leaf[rows], many._replace(cursor=()))._replace(cursor=many.cursor)
    return population._replace(
        alive=tuple(population.alive[place] for place in places),
        plans=tuple(population.plans[place] for place in places),
        numbers={name: values[rows] for name, values in population.numbers.items()},
        state=run_state,
    )


def group(population: Population) -> Group:
    """What a population remembers, as a pytree of arrays."""
    return Group(np.asarray(population.alive, np.int32), population.numbers, population.state)


def regrouped(fresh: Collection[Population], group: Group) -> Population:
    """The population of a group, in the state in which the group is; `fresh`: the populations before their first epoch.

    Raises InputError where the group is not of these candidates, seeds or numbers.
    """
    alive = {*np.asarray(group.candidates).tolist()}
    found = [population for population in fresh if alive and alive <= {*population.alive}]
    if not found:
        raise InputError("state must be of a sweep with the same candidates. Give these, or begin a new sweep.")
    whole = compacted(found[0], alive)
    if not _equal_arrays((whole.state.key, whole.numbers), (group.state.key, group.numbers)):
        raise InputError(
            f"state must be of a sweep with the same seeds, and the same values of candidates {sorted(alive)}. Give "
            "these, or begin a new sweep."
        )
    check_structure(kinds(group.state), whole.state)
    return whole._replace(state=group.state)


def _equal_arrays(one: Any, other: Any) -> bool:
    ours, theirs = flatten_named(one), flatten_named(other)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


ENDS = ("epochs", "best_epoch", "reason")
TAKEN = {"candidate", "seed", "parameters", *ENDS, *Estimate._fields}  # the tables' own columns


class SweepProgress(NamedTuple):
    """The state of a sweep, without its records: a pytree of arrays, which a checkpoint can hold."""

    rung: Array | np.ndarray  # int32 scalar, how often candidates were ranked
    racing: tuple[Group, ...]
    dropped: tuple[Group, ...]


class SweepResult(NamedTuple):
    """What a sweep leaves; a candidate is known by its place in the list, from 0."""

    table: pd.DataFrame  # a row for each candidate and seed: what it was, how it ended, the figures of its best epoch
    history: pd.DataFrame  # a row for each candidate, seed and epoch that it did
    plans: tuple[Plan, ...]  # of the candidates
    best: tuple[Variables, ...]  # of the candidates, of leaves (seeds, ...), of each run's best epoch
    final: tuple[Variables, ...]
    state: SweepProgress | None = None
    records: Sequence[
        Record
    ] = ()  # of an epoch and the runs that share a program: `epoch`, and arrays (M,), among them
    # `candidate` and `seed`

    def __repr__(self) -> str:
        """Return one line: the tables and arrays would fill many screens."""
        return f"SweepResult({len(self.plans)} candidates, {len(self.table)} runs, {len(self.history)} epochs in all)"


@explain_calls
def sweep(
    make: Callable[..., Plan],
    candidates: Sequence[AnyCandidate],
    train: Dataset,
    validation: Dataset | None = None,
    *,
    seeds: Sequence[int] = tuple(range(8)),
    epochs: int = 10,
    halving: int | None = None,
    least: int = 1,
    structure: Sequence[str] = (),
    rows: Callable[..., Dataset] | None = None,
    method: Method = "vmap",
    callbacks: Iterable[Callable[[SweepProgress, list[Record]], None]] = (),
    state: SweepResult | Checkpoint | None = None,
) -> SweepResult:
    """Trains `make(**candidate)` with every seed, for every candidate, each run with its own early stopping.

    Values that are floats are numbers within a program, which all candidates that differ in them alone share: learning
    rate, weight decay, dropout rate, label smoothing, the length of a schedule. All else (widths, an activation, a
    batch size) is structure: a program for each combination. `make` then gets float32 scalars that it must not decide
    on; it should be a function of a module, because its programs are found again by it.

    Ctrl-C, or the stop button of a notebook, ends the sweep; `sweep(..., state=result)` with the same arguments
    resumes it, to the bits of a sweep that was not interrupted.

    halving: such as 3, for successive halving: the best third goes on after `least` epochs, the best third of these
        after three times as many, until the rest has `epochs`. The others hold what they had. Candidates are ranked by
        the mean over seeds of what `early_stopping` watches, at its best so far; one with a seed that is not finite is
        the last.
        Source: Jamieson and Talwalkar, AISTATS (2016).
    structure: names of floats that are structure too.
    method: as for `fit_seeds`. With "map", runs have the bits of `fit` where numbers are learning rates, weight decays
        or dropout rates, and differ in the last bits where XLA or Python computes beforehand with one that is known.
    rows: `(rows, **structure) -> rows`, what candidates see of the rows, where they differ in that (in columns, say).
    callbacks: functions `(state, records) -> None`, called after every epoch of runs that share a program, with all
        records of the sweep so far. With `saving.checkpointer` for one, the sweep can be resumed after a crash.
    state: an earlier sweep to resume: the result of `sweep`, or what `saving.restore_latest` returns. `epochs` may be
        larger than before.

    Warns where a run has no best epoch, as `fit` does. Raises InputError for arguments that do not fit together.

    >>> import optax
    >>> from jaxdl import dataset, grid, losses, make_plan, mlp
    >>> def make(hidden, learning_rate):
    ...     return make_plan(mlp(hidden), losses.squared_error, optax.sgd(learning_rate), batch_size=16)
    >>> inputs = np.linspace(-1, 1, 64)[:, None]
    >>> candidates = grid(hidden=((), (4,)), learning_rate=(0.1, 0.01))
    >>> found = sweep(make, candidates, dataset(inputs, 3 * inputs), seeds=(0, 1))
    >>> found.table.shape[0], int(found.table.groupby("candidate")["loss"].mean().idxmin())
    (8, 0)
    """
    candidates = _checked(make, candidates, seeds, structure)
    check_choice("method", method, ("vmap", "map"))
    check_examples("train", train)
    if validation is not None:
        check_examples("validation", validation)
    if rows is not None and not callable(rows):
        raise InputError(f"rows must be a function (rows, **structure) -> rows, got {given_as(rows)}.")
    check_platform()
    keys, ends, see = seed_keys(seeds), _rungs(epochs, halving, least), rows or (lambda of, **_: of)

    def seen(**fixed: Any) -> tuple[Dataset, Dataset | None]:
        return see(train, **fixed), None if validation is None else see(validation, **fixed)

    race = _resumed(state, populations(make, candidates, structure, keys, seen), ends)
    interrupted = _run(race, seeds, ends, halving or 1, method, check_callbacks(callbacks))
    runs, reasons = _ended(race, ends, interrupted)
    history = _history(race.records, runs)
    table = _table(candidates, seeds, runs, reasons, history)
    plans, best, final = zip(*(runs[index][:3] for index in range(len(candidates))), strict=True)
    without = [index for index, run in sorted(runs.items()) if ((run.best_epochs == 0) & (run.epochs > 0)).any()]
    if without:
        which = f"seeds of the candidates {', '.join(map(str, without))}"
        warnings.warn(without_best(plans[without[0]], validation, which), RuntimeWarning, stacklevel=3)
    return SweepResult(table, history, plans, best, final, race.snapshot(), race.records)


def summarize(found: SweepResult, figure: str, *, at: Literal["best", "last"] = "best") -> pd.DataFrame:
    """The mean of a figure over the seeds of each candidate, indexed by the candidate, beside what the candidate was.

    at: the best epoch of each run by what it watched, or its last. Columns: the candidate's values, `parameters`, and
    those of `comparisons.estimate`: mean, deviation, standard error, 95 % confidence interval. What it recommends is
    `comparisons.one_standard_error(mean, error, parameters)`, with `mode="max"` for an accuracy. Raises InputError for
    a figure that is not measured.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"candidate": [0, 0], "seed": [0, 1], "parameters": 2, "epochs": 9, "best_epoch": 9})
    >>> history = pd.DataFrame({"candidate": [0, 0], "seed": [0, 1], "epoch": 9, "rmse": [1.0, 3.0]})
    >>> summarize(SweepResult(table, history, (), (), ()), "rmse").loc[0, ["parameters", "mean", "error"]].tolist()
    [2.0, 2.0, 1.0]
    """
    import pandas as pd

    measured = [str(name) for name in found.history if name not in ("candidate", "seed")]
    if figure not in measured:
        meant = nearest(figure, measured)
        raise InputError(
            f'figure="{figure}" is not measured. The sweep measures: {", ".join(measured)}.'
            + (f' Use "{meant}".' if meant else "")
        )
    if at not in ("best", "last"):
        raise InputError(f'at must be "best" or "last", got "{at}".')
    # From the history: in the table, a value of the candidates may have the figure's name.
    end = "best_epoch" if at == "best" else "epochs"
    ends = found.table[["candidate", "seed", end]].rename(columns={end: "epoch"})
    values = ends.merge(found.history, how="left", on=["candidate", "seed", "epoch"])
    columns = list(found.table)
    own = [name for name in columns[: columns.index(ENDS[0])] if name not in ("candidate", "seed")]
    about = found.table.groupby("candidate")[own].first()
    estimates = {index: estimate(of)._asdict() for index, of in values.groupby("candidate")[figure]}
    return about.join(pd.DataFrame.from_dict(estimates, orient="index"))


def _checked(
    make: Callable[..., Plan], candidates: Any, seeds: Sequence[int], structure: Sequence[str]
) -> list[AnyCandidate]:
    """The candidates as a list."""
    if not callable(make):
        raise InputError(f"make must be a function that returns make_plan(...), got {given_as(make)}.")
    if isinstance(candidates, (str, Mapping)) or not isinstance(candidates, Iterable):
        advice = (
            "Use grid(**candidates)." if isinstance(candidates, Mapping) else "Use grid(learning_rate=(0.1, 0.01))."
        )
        raise InputError(f"candidates must be a list of dicts, got {given_as(candidates)}. {advice}")
    candidates = list(candidates)
    if not candidates:
        raise InputError("candidates must have at least one entry, got none. Use grid(...), say.")
    for index, candidate in enumerate(candidates):
        if not isinstance(candidate, Mapping) or not all(isinstance(name, str) for name in candidate):
            raise InputError(
                f"candidates must be dicts of the arguments of make by name, got {candidate!r} for candidate {index}. "
                "Use grid(learning_rate=(0.1, 0.01)), say."
            )
    if isinstance(structure, str):
        raise InputError(
            f'structure must name values of the candidates in a tuple, got "{structure}". Use ("{structure}",).'
        )
    seed_keys(seeds)
    if len({*seeds}) < len(seeds):
        raise InputError(f"seeds must differ, got {tuple(seeds)}: the same seed would be counted twice.")
    names = {name for candidate in candidates for name in candidate}
    if names & TAKEN:
        raise InputError(f"candidates must not name a value {min(names & TAKEN)}, as the tables do. Rename it.")
    if unknown := {*structure} - names:
        listed = ", ".join(sorted(names))
        raise InputError(f'structure must name values of the candidates, {listed}, got "{min(unknown, key=str)}".')
    return candidates


def _rungs(epochs: int, halving: int | None, least: int) -> list[int]:
    """The epochs after which candidates are ranked, and the last."""
    epochs, least = whole_number("epochs", epochs, 1), whole_number("least", least, 1)
    if halving is None:
        return [epochs]
    if isinstance(halving, bool) or not isinstance(halving, (int, np.integer)) or halving < 2:
        raise InputError(f"halving must be a whole number from 2 on, got {given_as(halving)}. Use None for no halving.")
    ends = [least]
    while ends[-1] < epochs:
        ends.append(ends[-1] * halving)
    return [*ends[:-1], epochs]


@dataclass
class _Race:
    """Where a sweep stands while it runs."""

    # How often candidates were ranked, who is racing, who was dropped: together, as Ctrl-C may come between two lines.
    state: tuple[int, list[Population], list[Population]]
    records: list[Record]

    def snapshot(self) -> SweepProgress:
        rung, racing, dropped = self.state
        return SweepProgress(np.asarray(rung, np.int32), tuple(map(group, racing)), tuple(map(group, dropped)))


def _resumed(given: Any, fresh: list[Population], ends: Sequence[int]) -> _Race:
    """Where the sweep stands that a caller gives as `progress`; at its beginning without one."""
    run_state: Any
    match given:
        case None:
            return _Race((0, fresh, []), [])
        case Checkpoint():
            run_state, records = _restored(given, fresh), recalled(given.about["history"])
        case SweepResult(state=SweepProgress() as run_state):
            records = [{**record} for record in given.records]
        case _:
            raise InputError(
                "state must be the SweepResult that an earlier call returned, or what saving.restore_latest returns, "
                f"got {type(given).__name__}. Leave it out to begin a new sweep."
            )
    rung, racing, dropped = int(run_state.rung), *([regrouped(fresh, of) for of in side] for side in run_state[1:])
    known = sorted(index for population in (*racing, *dropped) for index in population.alive)
    if known != sorted(index for population in fresh for index in population.alive):
        raise InputError(
            f"state must be of a sweep with the same candidates: it has {len(known)}. Give these, or begin a new sweep."
        )
    done = max(int(population.state.epoch.max()) for population in racing)
    if rung >= len(ends) or done > ends[rung]:
        raise InputError(
            f"epochs, halving and least must fit the progress, whose runs have done {done} epochs after {rung} "
            f"rankings; with these arguments the sweep ends at {ends[-1]} after {len(ends) - 1}. Give those of the "
            "earlier call, or more epochs."
        )
    did = {
        index: int(np.asarray(population.state.epoch).max())
        for population in (*racing, *dropped)
        for index in population.alive
    }
    reached = [record for record in records if record["epoch"] <= did[int(record["candidate"][0])]]
    return _Race((rung, racing, dropped), reached)


def _restored(saved: Checkpoint, fresh: list[Population]) -> SweepProgress:
    """The state that a checkpoint of a sweep holds."""

    def groups(side: str) -> tuple[Group, ...]:
        found, place = [], 0
        while (name := f"{side}/{place}/candidates") in saved.arrays:
            alive = {*np.asarray(saved.arrays[name]).tolist()}
            of = [population for population in fresh if alive <= {*population.alive}]
            if not of:
                raise InputError(f"the checkpoint holds a sweep with other candidates than {len(fresh)} programs have.")
            found.append(group(compacted(of[0], alive)))
            place += 1
        return tuple(found)

    if "rung" not in saved.arrays:
        raise InputError("state must be a checkpoint of a sweep, got one of another run. Begin a new sweep.")
    like = SweepProgress(np.asarray(0, np.int32), groups("racing"), groups("dropped"))
    check_structure(saved.about["kinds"], like)
    run_state: SweepProgress = unflatten_named(like, saved.arrays)
    return run_state


def _run(
    race: _Race,
    seeds: Sequence[int],
    ends: Sequence[int],
    halving: int,
    method: Method,
    callbacks: Collection[Callable[[SweepProgress, list[Record]], None]],
) -> bool:
    """Trains and ranks the candidates; says whether Ctrl-C ended that."""
    try:
        while True:
            rung, racing, dropped = race.state
            for place, population in enumerate(racing):
                candidates, count = population.alive, len(population.alive)
                of = {"candidate": np.repeat(candidates, len(seeds)), "seed": np.tile(seeds, count)}
                reached, about = Reached(population.state, race.records), partial(_about, of)
                update: Any = partial(_update, racing, place)
                looking = update, *(partial(_tell, race, observe) for observe in callbacks)
                pieces = trained(population, ends[rung], method)
                run_loop(pieces, reached, callbacks=looking, watchers=[update], about=about)
            if rung == len(ends) - 1:
                return False
            kept = _best(racing, halving)
            left = [{*population.alive} - kept for population in racing]
            gone = [compacted(population, of) for population, of in zip(racing, left, strict=True) if of]
            on = [compacted(population, kept) for population in racing if kept & {*population.alive}]
            race.state = rung + 1, on, [*dropped, *gone]
    except KeyboardInterrupt:
        return True


def _about(of: Record, record: Record) -> Record:
    return {"epoch": record["epoch"], **of, **record}


def _update(racing: list[Population], place: int, run_state: RunState, _: Any) -> None:
    racing[place] = racing[place]._replace(state=run_state)


def _tell(race: _Race, observe: Callable[[SweepProgress, list[Record]], None], *_: Any) -> None:
    observe(race.snapshot(), race.records)


def _ended(race: _Race, ends: Sequence[int], interrupted: bool) -> tuple[dict[int, Ended], dict[int, str]]:
    """Where each candidate's runs ended, and why; runs that have stopped have a reason of their own."""
    _, racing, dropped = race.state
    runs = {index: run for population in (*racing, *dropped) for index, run in ended(population).items()}

    def done(record: Record) -> bool:
        return any(runs[index].epochs.max() >= record["epoch"] for index in {*record["candidate"].tolist()})

    race.records = [record for record in race.records if done(record)]
    alive = {index for population in racing for index in population.alive}
    whole = {index for index in alive if runs[index].epochs.max() == ends[-1]}
    why = "interrupted" if interrupted else "epochs"
    return runs, {index: "epochs" if index in whole else why if index in alive else "halving" for index in runs}


def _best(racing: Collection[Population], halving: int) -> set[int]:
    """The candidates that go on."""
    found = {index: score for population in racing for index, score in scores(population).items()}
    return set(sorted(found, key=lambda index: (found[index], index))[: -(-len(found) // halving)])


def _history(records: Collection[Record], runs: Mapping[int, Ended]) -> pd.DataFrame:
    """A row for each candidate, seed and epoch that it did."""
    import pandas as pd

    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("candidate", "seed", "epoch")}
    columns |= {name: [] for record in records for name in record if name not in columns}
    # Who did how many epochs, in the order of a record's rows.
    did = {index: run.epochs for index, run in runs.items()}
    for record in records:
        candidates = record["candidate"]
        done = np.concatenate([did[index] for index in dict.fromkeys(candidates.tolist())]) >= record["epoch"]
        for name, of in columns.items():
            value = record.get(name, np.float32(np.nan))
            of.append(np.broadcast_to(value, candidates.shape)[done])
    whole = {name: np.concatenate(of) if of else np.zeros(0, int) for name, of in columns.items()}
    # In float64, so that what is computed with the table is not rounded as float32 is.
    table = pd.DataFrame({name: of.astype(np.float64) if of.dtype.kind == "f" else of for name, of in whole.items()})
    return table.sort_values(["candidate", "seed", "epoch"], ignore_index=True)


def _table(
    candidates: Sequence[AnyCandidate],
    seeds: Sequence[int],
    runs: Mapping[int, Ended],
    reasons: Mapping[int, str],
    history: pd.DataFrame,
) -> pd.DataFrame:
    """A row for each candidate and seed, with the figures of its best epoch."""
    import pandas as pd

    rows, names = [], dict.fromkeys(name for candidate in candidates for name in candidate)
    for index, candidate in enumerate(candidates):
        run = runs[index]
        sizes = [leaf.size for leaf in jax.tree.leaves(run.final.params)]
        for place, seed in enumerate(seeds):
            ends = int(run.epochs[place]), int(run.best_epochs[place]), reason_of(run.stopped[place], reasons[index])
            about = {"candidate": index, **names, **candidate, "seed": seed, "parameters": sum(sizes) // len(seeds)}
            rows.append({**about, **dict(zip(ENDS, ends, strict=True))})
    figures = history.rename(columns={"epoch": "best_epoch"})
    # What an optimizer's state records may have the name of a candidate's value: that one stays.
    shown = [name for name in figures if name not in rows[0] or name in ("candidate", "seed", "best_epoch")]
    return pd.DataFrame(rows).merge(figures[shown], how="left", on=["candidate", "seed", "best_epoch"])
