"""The training runs of the lesson, and where they are kept."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax
from jax import lax

from experiments.lesson.rows import Row
from jaxdl._environment import compile_clock
from jaxdl._files import atomic_write, open_regular
from jaxdl._jit import jit
from jaxdl.ensembles import evaluate_members, fit_seeds
from jaxdl.ensembles.members import Method
from jaxdl.errors import InputError
from jaxdl.train import early_stopping
from jaxdl.train.evaluate import predict
from jaxdl.types import Array, Dataset, Loss, Metric, Model, Variables

if TYPE_CHECKING:
    import pandas as pd


class Task(NamedTuple):
    """What a row is about: a network and its rows of data."""

    model: Model
    loss: Loss
    metrics: tuple[Metric, ...]
    sets: dict[str, Dataset]  # of train, validation and test
    epochs: int
    patience: int | None = None
    batch_size: int = 32
    method: Method = "vmap"


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
            task.loss,
            # Not the experiments' flat Adam: of many members it copies every parameter several times a step.
            optax.adam(1e-3),
            task.sets["train"],
            task.sets["validation"],
            metrics=task.metrics,
            seeds=row.seeds,
            epochs=task.epochs,
            batch_size=task.batch_size,
            early_stopping=early_stopping("val_loss", patience=task.patience),
            method=task.method,
        )
        seconds = time.perf_counter() - began - compiling()
    epochs = runs.history.groupby("member")["epoch"].max().to_numpy()
    return measured(row._replace(epochs=epochs, seconds=seconds), task, runs.history, runs.final)


def measured(row: Row, task: Task, history: pd.DataFrame, final: Variables) -> Trained:
    """The row with the figures of its networks' last weights, of leaves (seeds, ...), in its unit."""
    figures, outputs = _measure(final, task.sets, model=task.model, loss=task.loss, metrics=task.metrics)
    scale = 100 if row.unit == "%" else 1
    values = {name: scale * np.asarray(of[row.figure.lower()], np.float64) for name, of in figures.items()}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(final.params)) // len(row.seeds)
    row = row._replace(values=values, parameters=parameters)
    return Trained(row, history, {name: np.asarray(of) for name, of in outputs.items()})


@partial(jit, static_argnames=("model", "loss", "metrics"))
def _measure(
    variables: Variables, sets: dict[str, Dataset], *, model: Model, loss: Loss, metrics: tuple[Metric, ...]
) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
    # One program for all of it: to compile several would take longer than to run them.
    figures = {name: evaluate_members(model, variables, rows, loss, metrics=metrics) for name, rows in sets.items()}
    told = {name: rows for name, rows in sets.items() if name != "train"}
    return figures, {
        name: lax.map(lambda one, inputs=rows.inputs: predict(model, one, inputs), variables)
        for name, rows in told.items()
    }


LARGEST = 1 << 30  # bytes of what a row unpacks to; a real one has some thousands
ARRAYS = ("values", "outputs", "history")


def save(folder: Path, done: Trained) -> None:
    """Writes what a row's seeds left, whole or not at all."""
    row, path = done.row, _path(folder, done.row.section, done.row.name)
    plain = {"seeds": list(row.seeds), "printed": dict(row.printed)}
    about = row._replace(values={}, epochs=None)._asdict() | plain  # type: ignore[arg-type]
    history = {str(name): column.to_numpy() for name, column in done.history.items()}
    arrays = {"values": row.values, "outputs": done.outputs, "history": history}
    named: dict[str, Any] = {f"{kind}/{name}": array for kind, of in arrays.items() for name, array in of.items()}
    # A zip file checks what it holds, but not that its list of contents is whole.
    about["arrays"] = list(named)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, about=np.array(json.dumps(about)), epochs=row.epochs, **named)


def load(folder: Path, section: str, name: str) -> Trained | None:
    """What a row's seeds left; None where they have not finished.

    Raises InputError for a file that is damaged.
    """
    import pandas as pd

    path = _path(folder, section, name)
    if not path.exists():
        return None
    try:
        # numpy leaves a damaged file open.
        with open_regular(path) as opened, np.load(opened) as file:
            unpacked = sum(entry.file_size for entry in file.zip.infolist())
            if unpacked > LARGEST:
                raise ValueError(f"it unpacks to {unpacked:,} bytes")
            about: dict[str, Any] = json.loads(str(file["about"]))
            if (about["section"], about["name"]) != (section, name):
                raise ValueError(f"it holds {about['name']} of {about['section']}")
            if [key for key in file.files if "/" in key] != about.pop("arrays"):
                raise ValueError("it does not hold all that was saved")
            parts: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in ARRAYS}
            for key in file.files:
                kind, _, entry = key.partition("/")
                if kind in parts:
                    parts[kind][entry] = file[key]
            fields = about | {"seeds": tuple(about["seeds"]), "values": parts["values"], "epochs": file["epochs"]}
            return Trained(Row(**fields), pd.DataFrame(parts["history"]), parts["outputs"])
    except Exception as error:  # Whatever numpy and zipfile raise.
        raise InputError(f"{path} is damaged ({error}). Remove it, and its row is trained anew.") from error


def _path(folder: Path, section: str, name: str) -> Path:
    return folder / (re.sub(r"\W+", "-", f"{section} {name}".lower()).strip("-") + ".npz")


class Truth(NamedTuple):
    """What the networks of an exercise were to tell."""

    validation: np.ndarray  # (rows, 1)
    test: np.ndarray  # (rows, 1)
    today: np.ndarray  # (test rows,)
