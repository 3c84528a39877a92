"""The training runs of the lesson and their files."""

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
    """A network and its data."""

    model: Model
    loss: Loss
    metrics: tuple[Metric, ...]
    sets: dict[str, Dataset]  # train, validation and test
    epochs: int
    patience: int | None = None
    batch_size: int = 32
    method: Method = "vmap"


class Trained(NamedTuple):
    """The networks of a row, one for each seed."""

    row: Row
    history: pd.DataFrame  # columns member, epoch, and the metrics
    outputs: Mapping[str, np.ndarray]  # by set, validation and test: (seeds, rows, outputs)


def train(row: Row, task: Task) -> Trained:
    """Train the networks of all seeds of a row; return them with the metrics of their final variables."""
    with compile_clock() as compiled, warnings.catch_warnings():
        # The lesson uses the final variables only.
        warnings.filterwarnings("ignore", message="no epoch of members")
        start = time.perf_counter()
        runs = fit_seeds(
            task.model,
            task.loss,
            # The flat Adam of the experiments copies every parameter several times a step under vmap.
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
        seconds = time.perf_counter() - start - compiled()
    epochs = runs.history.groupby("member")["epoch"].max().to_numpy()
    return evaluate(row._replace(epochs=epochs, seconds=seconds), task, runs.history, runs.final)


def evaluate(row: Row, task: Task, history: pd.DataFrame, final: Variables) -> Trained:
    """Return the networks of a row with the metrics of their final variables, of leaves (seeds, ...)."""
    metrics, outputs = _evaluate(final, task.sets, model=task.model, loss=task.loss, metrics=task.metrics)
    scale = 100 if row.unit == "%" else 1
    values = {name: scale * np.asarray(entry[row.figure.lower()], np.float64) for name, entry in metrics.items()}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(final.params)) // len(row.seeds)
    row = row._replace(values=values, parameters=parameters)
    return Trained(row, history, {name: np.asarray(array) for name, array in outputs.items()})


@partial(jit, static_argnames=("model", "loss", "metrics"))
def _evaluate(
    variables: Variables, sets: dict[str, Dataset], *, model: Model, loss: Loss, metrics: tuple[Metric, ...]
) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
    # One compiled function for all sets: compiling takes longer than running.
    values = {name: evaluate_members(model, variables, rows, loss, metrics=metrics) for name, rows in sets.items()}
    return values, {
        name: lax.map(lambda one, inputs=rows.inputs: predict(model, one, inputs), variables)
        for name, rows in sets.items()
        if name != "train"
    }


MAX_BYTES = 1 << 30  # of an unpacked file; a real one has some thousands
ARRAYS = ("values", "outputs", "history")


def save(folder: Path, networks: Trained) -> None:
    """Write the results of a row's networks into a file, whole or not at all."""
    row, path = networks.row, _path(folder, networks.row.section, networks.row.name)
    plain = {"seeds": list(row.seeds), "printed": dict(row.printed)}
    about = row._replace(values={}, epochs=None)._asdict() | plain  # type: ignore[arg-type]
    history = {str(name): column.to_numpy() for name, column in networks.history.items()}
    arrays = {"values": row.values, "outputs": networks.outputs, "history": history}
    named: dict[str, Any] = {f"{kind}/{name}": array for kind, group in arrays.items() for name, array in group.items()}
    # A zip file has checksums of its entries, but not of its directory.
    about["arrays"] = list(named)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, about=np.array(json.dumps(about)), epochs=row.epochs, **named)


def load(folder: Path, section: str, name: str) -> Trained | None:
    """Return the results of a row's networks; None where there is no file. Raises InputError for a damaged file."""
    import pandas as pd

    path = _path(folder, section, name)
    if not path.exists():
        return None
    try:
        # NumPy does not close a damaged file.
        with open_regular(path) as opened, np.load(opened) as file:
            unpacked = sum(entry.file_size for entry in file.zip.infolist())
            if unpacked > MAX_BYTES:
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
        raise InputError(
            f"{path} is damaged ({error}). Remove it; the same command then trains its row again."
        ) from error


def _path(folder: Path, section: str, name: str) -> Path:
    return folder / (re.sub(r"\W+", "-", f"{section} {name}".lower()).strip("-") + ".npz")


class Truth(NamedTuple):
    """The targets of an exercise."""

    validation: np.ndarray  # (rows, 1)
    test: np.ndarray  # (rows, 1)
    today: np.ndarray  # (test rows,)
