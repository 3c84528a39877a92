"""A row of the lesson's table: one network, trained from many seeds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import optax
from jax import lax

from experiments.lesson_rows import Row
from jaxdl.committees import evaluate_members
from jaxdl.ensembles import How
from jaxdl.passes import predict
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
    outputs: Mapping[str, np.ndarray]  # of the validation and the test rows, (seeds, rows, outputs)


def trained(row: Row, task: Task) -> Trained:
    """The row with its figures, those of the last epoch's weights, from all its seeds at once."""
    with compile_clock() as compiling, warnings.catch_warnings():
        # The lesson uses the last weights alone.
        warnings.filterwarnings("ignore", message="no epoch of members")
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
    return measured(row._replace(epochs=epochs, seconds=seconds), task, runs.history, runs.final)


def measured(row: Row, task: Task, history: pd.DataFrame, final: Weights) -> Trained:
    """The row with the figures of its networks' last weights, of leaves (seeds, ...), in its unit."""
    figures, outputs = _measure(final, task.sets, model=task.model, objective=task.objective)
    scale = 100 if row.unit == "%" else 1
    values = {name: scale * np.asarray(of[row.figure.lower()], np.float64) for name, of in figures.items()}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(final.params)) // len(row.seeds)
    row = row._replace(values=values, parameters=parameters)
    return Trained(row, history, {name: np.asarray(of) for name, of in outputs.items()})


@partial(program, static_argnames=("model", "objective"))
def _measure(
    weights: Weights, sets: dict[str, Examples], *, model: Model, objective: Objective
) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
    # One program for all of it: to compile several would take longer than to run them.
    figures = {name: evaluate_members(model, objective, weights, rows) for name, rows in sets.items()}
    told = {name: rows for name, rows in sets.items() if name != "train"}
    return figures, {
        name: lax.map(lambda one, inputs=rows.inputs: predict(model, one, inputs), weights)
        for name, rows in told.items()
    }
