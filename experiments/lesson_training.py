"""A row of the lesson's table: one network, trained from many seeds."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import optax

from experiments.lesson_rows import Row
from jaxdl.committees import evaluate_members
from jaxdl.ensembles import How
from jaxdl.programs import program
from jaxdl.runs import compile_clock
from jaxdl.seeds import fit_seeds
from jaxdl.stopping import early_stopping
from jaxdl.types import Array, Examples, Model, Objective, Weights

if TYPE_CHECKING:
    import pandas as pd


class Task(NamedTuple):
    """What a row is about: a network and its rows of data."""

    model: Model
    objective: Objective
    sets: dict[str, Examples]  # of train, validation and test
    epochs: int
    patience: int | None = None
    batch_size: int = 32
    how: How = "vmap"


class Trained(NamedTuple):
    """What the seeds of a row leave."""

    row: Row
    history: pd.DataFrame  # columns member, epoch, and the figures
    model: Model
    final: Weights  # of leaves (seeds, ...)


def trained(row: Row, task: Task) -> Trained:
    """The row with its figures, those of the last epoch's weights, from all its seeds at once."""
    with compile_clock() as compiling:
        began = time.perf_counter()
        runs = fit_seeds(
            task.model,
            task.objective,
            # Not the experiments' flat Adam: of many members it copies every parameter several times a step.
            optax.adam(1e-3),
            task.sets["train"],
            task.sets["validation"],
            seeds=row.seeds,
            epochs=task.epochs,
            batch_size=task.batch_size,
            stop=early_stopping("val_loss", patience=task.patience),
            how=task.how,
        )
        seconds = time.perf_counter() - began - compiling()
    epochs = runs.history.groupby("member")["epoch"].max().to_numpy()
    row = measured(row._replace(epochs=epochs, seconds=seconds), task, runs.final)
    return Trained(row, runs.history, task.model, runs.final)


def measured(row: Row, task: Task, weights: Weights) -> Row:
    """The row with the figures of networks of leaves (seeds, ...), in its unit, and their number of parameters."""
    figures = _figures(weights, task.sets, model=task.model, objective=task.objective)
    scale = 100 if row.unit == "%" else 1
    values = {name: scale * np.asarray(of[row.figure.lower()], np.float64) for name, of in figures.items()}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights.params)) // len(row.seeds)
    return row._replace(values=values, parameters=parameters)


@partial(program, static_argnames=("model", "objective"))
def _figures(
    weights: Weights, sets: dict[str, Examples], *, model: Model, objective: Objective
) -> dict[str, dict[str, Array]]:
    # One program for all sets: to compile one for each of them would take longer than to run it.
    return {name: evaluate_members(model, objective, weights, rows) for name, rows in sets.items()}
