"""Keras 3 as a contestant of the table: `fit`, `evaluate` and `predict` on NumPy arrays.

    python -m benchmarks.contestants.keras_loop --backend jax|tensorflow|torch [--large]

With --large all steps of an epoch are one execution (`steps_per_execution`). TensorFlow runs them in one graph; JAX
calls a compiled function for each step and saves the work between the steps; torch answers with an error.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from functools import partial

if __name__ == "__main__":  # the backend must be set before Keras is imported
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("jax", "tensorflow", "torch"), default="jax")
    parser.add_argument("--large", action="store_true", help="all steps of an epoch are one execution")
    parser.add_argument("--once", metavar="TASK", help="run this task for one epoch and end")
    arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = arguments.backend

import keras
import numpy as np

from benchmarks.contestants.protocol import Result, Run, serve
from benchmarks.tasks import BATCH, DROPPED, MOST_EPOCHS, PATIENCE, Arrays, Task


class Clock(keras.callbacks.Callback):
    """The end times of the epochs, after their validation."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.ends.append(time.perf_counter())


def prepare(task: Task, arrays: Arrays, large: bool = False) -> Run:
    """Return the run of a task, compiled by a short run; runs draw new variables for one model and compile nothing."""
    model = compile_model(task, arrays, large)
    variables = [*model.variables, *model.optimizer.variables]
    start = [keras.ops.convert_to_numpy(variable) for variable in variables]
    trains = task.mode in ("train", "stop")

    def draw(seed: int) -> None:
        set_seed(seed)
        for number, (variable, value) in enumerate(zip(variables, start, strict=True)):
            if variable.name == "kernel":
                value = keras.initializers.GlorotUniform(1000 * seed + number)(variable.shape)
            elif variable.name == "seed_generator_state":  # of Dropout
                value = np.array([seed, number], value.dtype)
            variable.assign(value)

    def run(times: int, seed: int) -> Result:
        draw(seed)
        if trains:
            return train(model, task, arrays, MOST_EPOCHS if task.mode == "stop" else times)
        return repeat(model, task, arrays, times)

    draw(0)  # compiles the initializers
    if trains:
        # A whole batch and the short last one: all shapes of an epoch.
        size = BATCH + len(arrays.train[0]) % BATCH
        short = Arrays((arrays.train[0][:size], arrays.train[1][:size]), arrays.validation)
        train(model, task, short, 2)
    else:
        repeat(model, task, arrays, 2)
    return run


def compile_model(task: Task, arrays: Arrays, large: bool) -> keras.Model:
    """Return the network of a task with Adam and its loss, without metrics."""
    training = task.mode in ("train", "stop")
    rows, batch = (len(arrays.train[0]), BATCH) if training else (len(arrays.validation[0]), at_once(task))
    model = keras.Sequential([keras.Input(arrays.train[0].shape[1:]), *layers_of(task)])
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss="mse" if task.kind == "mlp" else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # An execution ends with the data, so a short last batch is no problem.
        steps_per_execution=-(-rows // batch) if large else 1,
        # `jit_compile` keeps the default of each backend: XLA for jax, none for TensorFlow on a CPU and for torch. With
        # torch.compile `prepare` of the mlp took 26 s, and an epoch 3.7 s instead of 0.05 s.
    )
    model.optimizer.build(model.trainable_variables)
    return model


def layers_of(task: Task) -> list[keras.Layer]:
    """Return the layers of a task; the default initializers of Keras are those of the task."""
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
    """Return the fastest batch size of 32, 256 and 1024; only `predict` of `small` with jax is faster with 32."""
    return 32 if task.kind == "convnet" and keras.backend.backend() == "torch" else 1024


def set_seed(seed: int) -> None:
    """Set the seeds of shuffling; `keras.utils.set_random_seed` would import TensorFlow with every backend."""
    random.seed(seed)
    np.random.seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.random.set_seed(seed)
    elif keras.backend.backend() == "torch":
        import torch

        torch.manual_seed(seed)


def train(model: keras.Model, task: Task, arrays: Arrays, epochs: int) -> Result:
    """Train with `fit`, and validate as the task requires; a table is one validation batch."""
    validates = task.kind == "mlp" or task.mode == "stop"
    clock = Clock()
    stopping = [keras.callbacks.EarlyStopping("val_loss", patience=PATIENCE)] if task.mode == "stop" else []
    history = model.fit(
        *arrays.train,
        batch_size=BATCH,
        epochs=epochs,
        validation_data=arrays.validation if validates else None,
        validation_batch_size=len(arrays.validation[0]) if task.kind == "mlp" else at_once(task),
        callbacks=[clock, *stopping],
        verbose=0,
    )
    return Result(clock.ends, float(history.history["val_loss" if validates else "loss"][-1]))


def repeat(model: keras.Model, task: Task, arrays: Arrays, times: int) -> Result:
    """Evaluate or predict `times` times."""
    inputs, targets = arrays.validation
    batch = at_once(task)
    ends: list[float] = []
    for _ in range(times):
        if task.mode == "evaluate":
            value = float(model.evaluate(inputs, targets, batch_size=batch, verbose=0))
        else:
            value = float(model.predict(inputs, batch_size=batch, verbose=0).sum())
        ends.append(time.perf_counter())
    return Result(ends, value)


if __name__ == "__main__":
    serve(partial(prepare, large=arguments.large))
