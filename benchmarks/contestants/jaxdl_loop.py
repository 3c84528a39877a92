"""The contestant jaxdl: what a user of the library writes.

    python -m benchmarks.contestants.jaxdl_loop [--devices 2]

It answers as `benchmarks.contestants.protocol` says. With --devices a CPU is so many devices, which share the members
of a sweep.
"""

import sys
import time
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.contestants.protocol import Result, Run, serve
from benchmarks.tasks import BATCH, DROPPED, MEMBERS, MOST_EPOCHS, PATIENCE, Arrays, Task
from jaxdl import dataset, early_stopping, evaluate, fit, fit_seeds, losses, metrics, mlp, predict
from jaxdl.nn import convnet
from jaxdl.train.plan import NEVER
from jaxdl.types import Dataset, Loss, Metric, Model

STOP = early_stopping(patience=PATIENCE)


def model_of(task: Task) -> Model:
    if task.kind == "mlp":
        return mlp(task.widths, input_norm=task.norm)
    if task.recipe == "small":
        return convnet((50, 50))
    return convnet((50, 50, 50), widths=(50,), pool=True, dropout=DROPPED if task.recipe == "dropout" else 0.0)


def loss_of(task: Task) -> tuple[Loss, list[Metric]]:
    if task.kind == "mlp":
        return losses.squared_error, [metrics.rmse]
    return losses.softmax_cross_entropy, [metrics.accuracy]


def adam_of(task: Task) -> optax.GradientTransformation:
    # On one vector where layers are small, as the weather experiment does; but not of many members.
    small = task.kind == "mlp" and max(task.widths, default=1) <= 100 and task.deed != "sweep"
    return optax.flatten(optax.adam(1e-3)) if small else optax.adam(1e-3)


def prepare(task: Task, arrays: Arrays) -> Run:
    train, validation = dataset(*arrays.train), dataset(*arrays.validation)
    if task.deed == "sweep":
        return sweeping(task, train, validation)
    return training(task, train, validation) if task.deed in ("train", "stop") else measuring(task, validation)


def training(task: Task, train: Dataset, validation: Dataset) -> Run:
    model, (loss, measured), adam = model_of(task), loss_of(task), adam_of(task)

    def trained(epochs: int, seed: int) -> Result:
        ends: list[float] = []
        run = fit(
            model,
            loss,
            adam,
            train,
            validation if task.kind == "mlp" else None,
            metrics=measured,
            epochs=MOST_EPOCHS if task.deed == "stop" else epochs,
            batch_size=BATCH,
            early_stopping=STOP if task.deed == "stop" else NEVER,
            seed=seed,
            callbacks=[lambda run_state, history: ends.append(time.perf_counter())],
        )
        return Result(ends, run.records[-1]["val_loss" if task.kind == "mlp" else "loss"])

    return trained


def sweeping(task: Task, train: Dataset, validation: Dataset) -> Run:
    model, (loss, measured), adam = model_of(task), loss_of(task), adam_of(task)

    def swept(epochs: int, seed: int) -> Result:
        seeds = range(seed * MEMBERS, (seed + 1) * MEMBERS)
        runs = fit_seeds(
            model,
            loss,
            adam,
            train,
            validation,
            metrics=measured,
            seeds=seeds,
            epochs=epochs,
            batch_size=BATCH,
        )
        return Result([time.perf_counter()], float(runs.history.groupby("member")["val_loss"].last().mean()))

    return swept


def measuring(task: Task, validation: Dataset) -> Run:
    model, (loss, measured) = model_of(task), loss_of(task)
    weights = model.init(jax.random.key(0), validation.inputs[:BATCH])
    rows = jax.tree.map(jax.numpy.asarray, validation)

    def once() -> Any:
        if task.deed == "evaluate":
            return float(evaluate(model, weights, rows, loss, metrics=measured)["loss"])
        return np.asarray(predict(model, weights, rows.inputs))

    def repeated(times: int, seed: int) -> Result:
        ends, value = [], 0.0
        for _ in range(times):
            value = once()
            ends.append(time.perf_counter())
        return Result(ends, float(np.sum(value)))

    repeated(1, 0)
    return repeated


if __name__ == "__main__":
    if "--devices" in sys.argv:
        jax.config.update("jax_num_cpu_devices", int(sys.argv[sys.argv.index("--devices") + 1]))
    serve(prepare)
