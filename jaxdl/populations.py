"""Candidates of one shape and their seeds, as members of one program."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.batches import evaluation_rows, training_rows
from jaxdl.chunks import Chunk
from jaxdl.ensembles import How, best_and_final, most_devices, run_members, spread, start_members
from jaxdl.errors import InputError
from jaxdl.fitting import warn_of_eval_params
from jaxdl.leaves import check_kinds, kinds, named
from jaxdl.objectives import check_labels
from jaxdl.paces import paced
from jaxdl.plans import Family, check_rows
from jaxdl.types import Array, Examples, Plan, Progress, Weights

Candidate = Mapping[str, Any]


class Population(NamedTuple):
    """Candidates that share a program; the members of a candidate, one a seed, stand side by side."""

    family: Family
    alive: tuple[int, ...]  # the candidates by their numbers
    plans: tuple[Plan, ...]  # of these
    numbers: dict[str, Array]  # float32 (M,), what differs within the program
    progress: Progress  # of M = candidates x seeds members
    train: Examples
    validation: Examples | None


class Group(NamedTuple):
    """The state of the candidates that train together, or did until they were dropped."""

    candidates: Array | np.ndarray  # (C,) int32, their numbers
    numbers: dict[str, Array]  # float32 (M,), what differs within the program
    progress: Progress  # of M = C x seeds members


class Ended(NamedTuple):
    """Where the runs of a candidate stand."""

    plan: Plan
    best: Weights  # of leaves (seeds, ...), of each run's best epoch
    final: Weights
    epochs: np.ndarray  # (seeds,) int32, as are the best epochs
    best_epochs: np.ndarray
    stopped: np.ndarray  # (seeds,) bool, by the rule of the plan


def populations(
    make: Callable[..., Plan],
    candidates: Sequence[Candidate],
    structure: Collection[str],
    keys: Array,
    see: Callable[..., tuple[Examples, Examples | None]],
) -> list[Population]:
    """Candidates with one member for each of the keys (S,), those together that differ in floats alone.

    see: `(**structure) -> (train, validation)`, the rows of a population. Raises InputError for names that `make` does
    not take, and for values that do not hash.

    >>> import optax
    >>> from jaxdl import Objective, examples, make_plan, mlp, objectives
    >>> def make(learning_rate):
    ...     return make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(learning_rate), batch_size=2)
    >>> data, keys = (examples([[1.0], [2.0]], [[1.0], [2.0]]), None), jax.random.split(jax.random.key(0), 3)
    >>> (population,) = populations(make, [{"learning_rate": 0.1}, {"learning_rate": 0.2}], (), keys, lambda: data)
    >>> population.alive, population.progress.epoch.shape
    ((0, 1), (6,))
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
        check_labels(plan.model, plan.objective, train, validation)
        numbers = {name: jnp.repeat(jnp.asarray([of[name] for of in own], jnp.float32), len(keys)) for name in floats}
        plans = tuple(family(of) for of in own)
        progress = start_members(jnp.tile(keys, len(alive)), train, validation, numbers, plan=family)
        warn_of_eval_params(plans[0], progress, stacklevel=5)
        found.append(Population(family, tuple(alive), plans, numbers, progress, train, validation))
    return found


def _check_names(make: Callable[..., Plan], index: int, candidate: Candidate) -> None:
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


def trained(population: Population, last: int, how: How) -> Iterator[Chunk]:
    """`paced` chunks of a population up to the epoch `last`, spread over the devices that share it evenly."""
    count = population.progress.epoch.shape[0]
    rows: Any = training_rows(population.train), evaluation_rows(population.validation)
    progress, train, validation = spread(population.progress, *rows, devices=most_devices(count))

    def run(*arguments: Any, plan: Plan) -> tuple[Progress, Array]:
        return run_members(*arguments, plan=population.family, how=how, numbers=population.numbers)

    return paced(population.plans[0], progress, train, validation, last=last, run=run, prepared=True)


def ended(population: Population) -> dict[int, Ended]:
    """Where the runs of each candidate stand, by its number."""
    progress = population.progress
    ends = tuple(map(np.asarray, (progress.epoch, progress.stopping.best_epoch, progress.stopping.done)))
    weights = best_and_final(progress, ends[1], population.plans[0].eval_params)
    count = len(ends[0]) // len(population.alive)
    found = {}
    for place, index in enumerate(population.alive):
        own = slice(place * count, (place + 1) * count)
        parts = jax.tree.map(lambda leaf, own=own: leaf[own], (*weights, *ends))
        found[index] = Ended(population.plans[place], *parts)
    return found


def scores(population: Population) -> dict[int, float]:
    """Each candidate's best monitored figure, a mean over seeds, the lower the better; inf where none was finite."""
    # Before its first epoch, a run's best is the worst there is.
    sign = 1 if float(population.plans[0].stop.init().best) > 0 else -1
    best = np.asarray(population.progress.stopping.best, np.float64)
    means = sign * best.reshape(len(population.alive), -1).mean(1)
    return dict(zip(population.alive, means.tolist(), strict=True))


def compacted(population: Population, kept: Collection[int]) -> Population:
    """The population without the members of the candidates that are not kept; some must be."""
    places = [place for place, index in enumerate(population.alive) if index in kept]
    count = population.progress.epoch.shape[0] // len(population.alive)
    rows = np.concatenate([np.arange(count) + place * count for place in places])
    many: Any = population.progress
    progress = jax.tree.map(lambda leaf: leaf[rows], many._replace(cursor=()))._replace(cursor=many.cursor)
    return population._replace(
        alive=tuple(population.alive[place] for place in places),
        plans=tuple(population.plans[place] for place in places),
        numbers={name: values[rows] for name, values in population.numbers.items()},
        progress=progress,
    )


def group(population: Population) -> Group:
    """What a population remembers, as a pytree of arrays."""
    return Group(np.asarray(population.alive, np.int32), population.numbers, population.progress)


def regrouped(fresh: Collection[Population], group: Group) -> Population:
    """The population of a group, in the state in which the group is; `fresh`: the populations before their first epoch.

    Raises InputError where the group is not of these candidates, seeds or numbers.
    """
    alive = {*np.asarray(group.candidates).tolist()}
    found = [population for population in fresh if alive and alive <= {*population.alive}]
    if not found:
        raise InputError("progress must be of a sweep with the same candidates. Give these, or begin a new sweep.")
    whole = compacted(found[0], alive)
    if not _equal_arrays((whole.progress.key, whole.numbers), (group.progress.key, group.numbers)):
        raise InputError(
            f"progress must be of a sweep with the same seeds, and the same values of candidates {sorted(alive)}. Give "
            "these, or begin a new sweep."
        )
    check_kinds(kinds(group.progress), whole.progress)
    return whole._replace(progress=group.progress)


def _equal_arrays(one: Any, other: Any) -> bool:
    ours, theirs = named(one), named(other)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
