"""Many candidates, each with many seeds, in as few programs as they have shapes; successive halving."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np

from jaxdl.arguments import check_choice, check_examples, check_platform, explain_calls, given_as, nearest, whole_number
from jaxdl.comparisons import Estimate, estimate
from jaxdl.ensembles import How
from jaxdl.errors import InputError
from jaxdl.fitting import without_best
from jaxdl.populations import Candidate, Ended, Population, compacted, ended, populations, scores, trained
from jaxdl.seeds import Record, reason_of, seed_keys
from jaxdl.types import Examples, Plan, Weights

if TYPE_CHECKING:
    import pandas as pd

Records = tuple[tuple[int, ...], list[Record]]  # candidates, and the records of their members together
ENDS = ("epochs", "best_epoch", "reason")
TAKEN = {"candidate", "seed", "parameters", *ENDS, *Estimate._fields}  # the tables' own columns


class Sweep(NamedTuple):
    """What a sweep leaves; a candidate is known by its place in the list, from 0."""

    table: pd.DataFrame  # a row for each candidate and seed: what it was, how it ended, the figures of its best epoch
    history: pd.DataFrame  # a row for each candidate, seed and epoch that it did
    plans: tuple[Plan, ...]  # of the candidates
    best: tuple[Weights, ...]  # of the candidates, of leaves (seeds, ...), of each run's best epoch
    final: tuple[Weights, ...]

    def __repr__(self) -> str:
        """Return one line: the tables and arrays would fill many screens."""
        return f"Sweep({len(self.plans)} candidates, {len(self.table)} runs, {len(self.history)} epochs in all)"


@explain_calls
def sweep(
    make: Callable[..., Plan],
    candidates: Sequence[Candidate],
    train: Examples,
    validation: Examples | None = None,
    *,
    seeds: Sequence[int] = tuple(range(8)),
    epochs: int = 10,
    halving: int | None = None,
    least: int = 1,
    structure: Sequence[str] = (),
    rows: Callable[..., Examples] | None = None,
    how: How = "vmap",
) -> Sweep:
    """Trains `make(**candidate)` with every seed, for every candidate, each run with its own early stopping.

    Values that are floats are numbers within a program, which all candidates that differ in them alone share: learning
    rate, weight decay, dropout rate, label smoothing, the length of a schedule. All else (widths, an activation, a
    batch size) is structure: a program for each combination. `make` then gets float32 scalars that it must not decide
    on; it should be a function of a module, because its programs are found again by it.

    halving: such as 3, for successive halving: the best third goes on after `least` epochs, the best third of these
        after three times as many, until the rest has `epochs`. The others hold what they had. Candidates are ranked by
        the mean over seeds of what `stop` watches, at its best so far; one with a seed that is not finite is the last.
        Source: Jamieson and Talwalkar, AISTATS (2016).
    structure: names of floats that are structure too.
    how: as for `fit_seeds`. With "map", runs have the bits of `fit` where numbers are learning rates, weight decays or
        dropout rates, and differ in the last bits where XLA or Python computes beforehand with one that is known.
    rows: `(rows, **structure) -> rows`, what candidates see of the rows, where they differ in that (in columns, say).

    Warns where a run has no best epoch, as `fit` does. Raises InputError for arguments that do not fit together.

    >>> import optax
    >>> from jaxdl import Objective, examples, grid, make_plan, mlp, objectives
    >>> def make(hidden, learning_rate):
    ...     return make_plan(mlp(hidden), Objective(objectives.squared_error), optax.sgd(learning_rate), batch_size=16)
    >>> inputs = np.linspace(-1, 1, 64)[:, None]
    >>> candidates = grid(hidden=((), (4,)), learning_rate=(0.1, 0.01))
    >>> found = sweep(make, candidates, examples(inputs, 3 * inputs), seeds=(0, 1))
    >>> found.table.shape[0], int(found.table.groupby("candidate")["loss"].mean().idxmin())
    (8, 0)
    """
    candidates = _checked(make, candidates, seeds, structure)
    check_choice("how", how, ("vmap", "map"))
    check_examples("train", train)
    if validation is not None:
        check_examples("validation", validation)
    if rows is not None and not callable(rows):
        raise InputError(f"rows must be a function (rows, **structure) -> rows, got {given_as(rows)}.")
    check_platform()
    keys, ends, see = seed_keys(seeds), _rungs(epochs, halving, least), rows or (lambda of, **_: of)

    def seen(**fixed: Any) -> tuple[Examples, Examples | None]:
        return see(train, **fixed), None if validation is None else see(validation, **fixed)

    runs, reasons, records = _race(populations(make, candidates, structure, keys, seen), ends, halving or 1, how)
    history = _history(records, seeds, runs)
    table = _table(candidates, seeds, runs, reasons, history)
    plans, best, final = zip(*(runs[index][:3] for index in range(len(candidates))), strict=True)
    without = [index for index, run in sorted(runs.items()) if ((run.best_epochs == 0) & (run.epochs > 0)).any()]
    if without:
        which = f"seeds of the candidates {', '.join(map(str, without))}"
        warnings.warn(without_best(plans[without[0]], validation, which), RuntimeWarning, stacklevel=3)
    return Sweep(table, history, plans, best, final)


def summary(found: Sweep, figure: str, *, at: Literal["best", "last"] = "best") -> pd.DataFrame:
    """The mean of a figure over the seeds of each candidate, indexed by the candidate, beside what the candidate was.

    at: the best epoch of each run by what it watched, or its last. Columns: the candidate's values, `parameters`, and
    those of `comparisons.estimate`: mean, deviation, standard error, 95 % confidence interval. What it recommends is
    `comparisons.one_standard_error(mean, error, parameters)`, with `mode="max"` for an accuracy. Raises InputError for
    a figure that is not measured.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"candidate": [0, 0], "seed": [0, 1], "parameters": 2, "epochs": 9, "best_epoch": 9})
    >>> history = pd.DataFrame({"candidate": [0, 0], "seed": [0, 1], "epoch": 9, "rmse": [1.0, 3.0]})
    >>> summary(Sweep(table, history, (), (), ()), "rmse").loc[0, ["parameters", "mean", "error"]].tolist()
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
) -> list[Candidate]:
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


def _race(
    racing: list[Population], ends: Sequence[int], halving: int, how: How
) -> tuple[dict[int, Ended], dict[int, str], list[Records]]:
    """Where each candidate's runs ended, why, and what was recorded on the way."""
    runs: dict[int, Ended] = {}
    records: list[Records] = []
    why = "epochs"  # also of runs that have stopped, which have a reason of their own
    try:
        for last in ends:
            for place, population in enumerate(racing):
                records.append((population.alive, []))
                for chunk in trained(population, last, how):
                    racing[place] = population._replace(progress=chunk.progress)
                    if chunk.record is not None:
                        records[-1][1].append(chunk.record)
            if last < ends[-1]:
                runs |= _all_ended(racing)
                kept = _best(racing, halving)
                racing = [compacted(population, kept) for population in racing if kept & {*population.alive}]
    except KeyboardInterrupt:
        why = "interrupted"
    alive = {index for population in racing for index in population.alive}
    runs |= _all_ended(racing)
    whole = {index for index in alive if runs[index].epochs.max() == ends[-1]}
    reasons = {index: "epochs" if index in whole else why if index in alive else "halving" for index in runs}
    return runs, reasons, records


def _all_ended(racing: Collection[Population]) -> dict[int, Ended]:
    return {index: run for population in racing for index, run in ended(population).items()}


def _best(racing: Collection[Population], halving: int) -> set[int]:
    """The candidates that go on."""
    found = {index: score for population in racing for index, score in scores(population).items()}
    return set(sorted(found, key=lambda index: (found[index], index))[: -(-len(found) // halving)])


def _history(records: Collection[Records], seeds: Sequence[int], runs: Mapping[int, Ended]) -> pd.DataFrame:
    """A row for each candidate, seed and epoch that it did."""
    import pandas as pd

    frames = [pd.DataFrame({"candidate": [], "seed": [], "epoch": []}, dtype=int)]
    for alive, of in records:
        if not of:
            continue
        members = pd.DataFrame({"candidate": np.repeat(alive, len(seeds)), "seed": np.tile(seeds, len(alive))})
        epochs = np.repeat([record["epoch"] for record in of], len(members))
        figures = {name: np.concatenate([record[name] for record in of]) for name in of[0] if name != "epoch"}
        frame = pd.concat([members] * len(of), ignore_index=True).assign(epoch=epochs, **figures)
        ends = np.concatenate([runs[index].epochs for index in alive])
        frames.append(frame[epochs <= np.tile(ends, len(of))])
    return pd.concat(frames, ignore_index=True).sort_values(["candidate", "seed", "epoch"], ignore_index=True)


def _table(
    candidates: Sequence[Candidate],
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
    # What an optimiser's state records may have the name of a candidate's value: that one stays.
    shown = [name for name in figures if name not in rows[0] or name in ("candidate", "seed", "best_epoch")]
    return pd.DataFrame(rows).merge(figures[shown], how="left", on=["candidate", "seed", "best_epoch"])
