"""Keras 3 as a contestant of the table: `fit`, `evaluate` and `predict` on NumPy arrays.

    python -m benchmarks.contestants.keras_loop --backend jax|tensorflow|torch [--large]

With --large all steps of an epoch are one execution (`steps_per_execution`). TensorFlow runs them in one graph; JAX
still calls a program for each step and only spares the work between them; torch refuses, and answers with the error.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from functools import partial

if __name__ == "__main__":  # up here, because the backend must be chosen before Keras is imported
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("jax", "tensorflow", "torch"), default="jax")
    parser.add_argument("--large", action="store_true", help="all steps of an epoch are one execution")
    parser.add_argument("--once", metavar="TASK", help="do this one task for one epoch and end")
    arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = arguments.backend

import keras
import numpy as np

from benchmarks.contestants.protocol import Result, Run, serve
from benchmarks.tasks import BATCH, DROPPED, MOST_EPOCHS, PATIENCE, Arrays, Task


class Clock(keras.callbacks.Callback):
    """When the epochs ended, their validation included."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.ends.append(time.perf_counter())


def prepare(task: Task, arrays: Arrays, large: bool = False) -> Run:
    """Compiles by a first short run. Later runs give the same model new weights, so that they compile nothing."""
    model = compiled(task, arrays, large)
    variables = [*model.variables, *model.optimizer.variables]
    start = [keras.ops.convert_to_numpy(variable) for variable in variables]
    trains = task.deed in ("train", "stop")

    def renewed(seed: int) -> None:
        seeded(seed)
        for number, (variable, value) in enumerate(zip(variables, start, strict=True)):
            if variable.name == "kernel":
                value = keras.initializers.GlorotUniform(1000 * seed + number)(variable.shape)
            elif variable.name == "seed_generator_state":  # of Dropout
                value = np.array([seed, number], value.dtype)
            variable.assign(value)

    def run(times: int, seed: int) -> Result:
        renewed(seed)
        if trains:
            return trained(model, task, arrays, MOST_EPOCHS if task.deed == "stop" else times)
        return repeated(model, task, arrays, times)

    renewed(0)  # drawing compiles too
    if trains:
        # A whole batch and the last one of an epoch, if that is shorter: the shapes that there are.
        rows = BATCH + len(arrays.train[0]) % BATCH
        short = Arrays((arrays.train[0][:rows], arrays.train[1][:rows]), arrays.validation)
        trained(model, task, short, 2)
    else:
        repeated(model, task, arrays, 2)
    return run


def compiled(task: Task, arrays: Arrays, large: bool) -> keras.Model:
    """The task's network with Adam and its loss; no metrics besides, since none is asked for."""
    training = task.deed in ("train", "stop")
    rows, batch = (len(arrays.train[0]), BATCH) if training else (len(arrays.validation[0]), at_once(task))
    model = keras.Sequential([keras.Input(arrays.train[0].shape[1:]), *layers_of(task)])
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss="mse" if task.kind == "mlp" else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # The short last batch needs no care: an execution ends where the rows do.
        steps_per_execution=-(-rows // batch) if large else 1,
        # XLA stays as each backend chooses it: on for jax, off for TensorFlow on a CPU. So does torch.compile, which
        # is off: with it `prepare` of the mlp took 26 s, and an epoch 3.7 s instead of 0.05 s.
    )
    model.optimizer.build(model.trainable_variables)
    return model


def layers_of(task: Task) -> list[keras.Layer]:
    """Keras's own defaults are the initial weights that a task asks for."""
    layers = keras.layers
    if task.kind == "mlp":
        norm = [layers.BatchNormalization()] if task.norm else []
        return [*norm, *(layers.Dense(width, activation="relu") for width in task.widths), layers.Dense(1)]
    if task.recipe == "small":
        return [*(layers.Conv2D(50, 3, activation="relu") for _ in range(2)), layers.Flatten(), layers.Dense(10)]
    hidden = []
    for _ in range(3):
        hidden += [layers.Conv2D(50, 3, activation="relu"), layers.MaxPooling2D()]
        hidden += [layers.Dropout(DROPPED)] if task.recipe == "dropout" else []
    return [*hidden, layers.Flatten(), layers.Dense(50, activation="relu"), layers.Dense(10)]


def at_once(task: Task) -> int:
    """Rows at once: the fastest of 32, 256 and 1024, but for `predict` of `small` with jax, which prefers 32."""
    return 32 if task.kind == "convnet" and keras.backend.backend() == "torch" else 1024


def seeded(seed: int) -> None:
    """What the orders are drawn from. `keras.utils.set_random_seed` imports TensorFlow, whatever the backend."""
    random.seed(seed)
    np.random.seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.random.set_seed(seed)
    elif keras.backend.backend() == "torch":
        import torch

        torch.manual_seed(seed)


def trained(model: keras.Model, task: Task, arrays: Arrays, epochs: int) -> Result:
    """`fit`, with the validation that the task asks for: a table's rows all at once."""
    validated = task.kind == "mlp" or task.deed == "stop"
    clock = Clock()
    stopping = [keras.callbacks.EarlyStopping("val_loss", patience=PATIENCE)] if task.deed == "stop" else []
    history = model.fit(
        *arrays.train,
        batch_size=BATCH,
        epochs=epochs,
        validation_data=arrays.validation if validated else None,
        validation_batch_size=len(arrays.validation[0]) if task.kind == "mlp" else at_once(task),
        callbacks=[clock, *stopping],
        verbose=0,
    )
    return Result(clock.ends, float(history.history["val_loss" if validated else "loss"][-1]))


def repeated(model: keras.Model, task: Task, arrays: Arrays, times: int) -> Result:
    """`evaluate` or `predict`, so many times."""
    inputs, targets = arrays.validation
    batch = at_once(task)
    ends: list[float] = []
    for _ in range(times):
        if task.deed == "evaluate":
            figure = float(model.evaluate(inputs, targets, batch_size=batch, verbose=0))
        else:
            figure = float(model.predict(inputs, batch_size=batch, verbose=0).sum())
        ends.append(time.perf_counter())
    return Result(ends, figure)


if __name__ == "__main__":
    serve(partial(prepare, large=arguments.large))
