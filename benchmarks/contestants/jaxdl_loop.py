"""jaxdl as a contestant of the table: the code of a user.

    python -m benchmarks.contestants.jaxdl_loop [--devices 2]

It answers the requests of `benchmarks.contestants.protocol`. With --devices the CPU is split into that many devices,
which share the members of a sweep.
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
    """Return the model of a task."""
    if task.kind == "mlp":
        return mlp(task.widths, input_norm=task.norm)
    if task.recipe == "small":
        return convnet((50, 50))
    return convnet((50, 50, 50), widths=(50,), pool=True, dropout=DROPPED if task.recipe == "dropout" else 0.0)


def loss_of(task: Task) -> tuple[Loss, list[Metric]]:
    """Return the loss and the metrics of a task."""
    if task.kind == "mlp":
        return losses.squared_error, [metrics.rmse]
    return losses.softmax_cross_entropy, [metrics.accuracy]


def adam_of(task: Task) -> optax.GradientTransformation:
    """Return Adam, on one flat vector for small layers."""
    # Small layers update faster as one vector, as in the weather experiment, but not in a sweep.
    small = task.kind == "mlp" and max(task.widths, default=1) <= 100 and task.mode != "sweep"
    return optax.flatten(optax.adam(1e-3)) if small else optax.adam(1e-3)


def prepare(task: Task, arrays: Arrays) -> Run:
    """Return the run of a task with jaxdl."""
    train, validation = dataset(*arrays.train), dataset(*arrays.validation)
    if task.mode == "sweep":
        return prepare_sweep(task, train, validation)
    if task.mode in ("train", "stop"):
        return prepare_training(task, train, validation)
    return prepare_evaluation(task, validation)


def prepare_training(task: Task, train: Dataset, validation: Dataset) -> Run:
    """Return a run of `fit`."""
    model, (loss, task_metrics), adam = model_of(task), loss_of(task), adam_of(task)

    def run(epochs: int, seed: int) -> Result:
        ends: list[float] = []
        result = fit(
            model,
            loss,
            adam,
            train,
            validation if task.kind == "mlp" else None,
            metrics=task_metrics,
            epochs=MOST_EPOCHS if task.mode == "stop" else epochs,
            batch_size=BATCH,
            early_stopping=STOP if task.mode == "stop" else NEVER,
            seed=seed,
            callbacks=[lambda run_state, history: ends.append(time.perf_counter())],
        )
        return Result(ends, result.records[-1]["val_loss" if task.kind == "mlp" else "loss"])

    return run


def prepare_sweep(task: Task, train: Dataset, validation: Dataset) -> Run:
    """Return a run of `fit_seeds`."""
    model, (loss, task_metrics), adam = model_of(task), loss_of(task), adam_of(task)

    def run(epochs: int, seed: int) -> Result:
        seeds = range(seed * MEMBERS, (seed + 1) * MEMBERS)
        result = fit_seeds(
            model,
            loss,
            adam,
            train,
            validation,
            metrics=task_metrics,
            seeds=seeds,
            epochs=epochs,
            batch_size=BATCH,
        )
        return Result([time.perf_counter()], float(result.history.groupby("member")["val_loss"].last().mean()))

    return run


def prepare_evaluation(task: Task, validation: Dataset) -> Run:
    """Return repetitions of `evaluate` or `predict`, already compiled."""
    model, (loss, task_metrics) = model_of(task), loss_of(task)
    variables = model.init(jax.random.key(0), validation.inputs[:BATCH])
    held_out = jax.tree.map(jax.numpy.asarray, validation)

    def work() -> Any:
        if task.mode == "evaluate":
            return float(evaluate(model, variables, held_out, loss, metrics=task_metrics)["loss"])
        return np.asarray(predict(model, variables, held_out.inputs))

    def run(times: int, seed: int) -> Result:
        ends, value = [], 0.0
        for _ in range(times):
            value = work()
            ends.append(time.perf_counter())
        return Result(ends, float(np.sum(value)))

    run(1, 0)
    return run


if __name__ == "__main__":
    if "--devices" in sys.argv:
        jax.config.update("jax_num_cpu_devices", int(sys.argv[sys.argv.index("--devices") + 1]))
    serve(prepare)
