"""scikit-learn as a contestant of the table: `MLPRegressor`, an epoch at a time.

    python -m benchmarks.contestants.sklearn_loop

Its biases start uniform like its kernels, because it has no other initializer. It has no convolutions and no BatchNorm.
"""

from __future__ import annotations

import time

import numpy as np
from sklearn import config_context
from sklearn.neural_network import MLPRegressor

from benchmarks.contestants.protocol import Result, Run, serve
from benchmarks.tasks import BATCH, MOST_EPOCHS, PATIENCE, Arrays, Task


def prepare(task: Task, arrays: Arrays) -> Run:
    """Return the run of a task. Raises ValueError for a convnet or BatchNorm."""
    if task.kind != "mlp" or task.norm:
        layer = "BatchNorm" if task.kind == "mlp" else f"a {task.kind}"
        raise ValueError(f"scikit-learn has dense layers only, but the task {task.name} needs {layer}")
    work = train if task.mode in ("train", "stop") else repeat

    def run(times: int, seed: int) -> Result:
        # Its guide to speed advises to skip the checks of arrays and settings in every call.
        with config_context(assume_finite=True, skip_parameter_validation=True):
            return work(network(task, seed), task, arrays, times)

    return run


def network(task: Task, seed: int) -> MLPRegressor:
    """Return a network, whose first `partial_fit` draws the variables."""
    return MLPRegressor(
        hidden_layer_sizes=task.widths,
        alpha=0.0,  # Adam at 1e-3 is the default
        batch_size=BATCH,
        # With a seed each `partial_fit` would start from it, and all epochs would have the same order.
        random_state=np.random.RandomState(seed),
    )


def loss_of(model: MLPRegressor, dataset: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the mean squared error of inputs (N, features) and targets (N, 1)."""
    inputs, targets = dataset
    return float(np.mean((model.predict(inputs) - targets[:, 0]) ** 2))


def train(model: MLPRegressor, task: Task, arrays: Arrays, epochs: int) -> Result:
    """Train and validate epoch by epoch: `fit` can only validate on a part of the training set."""
    inputs, targets = arrays.train[0], arrays.train[1][:, 0]
    ends: list[float] = []
    best, waited = np.inf, 0
    for _ in range(MOST_EPOCHS if task.mode == "stop" else epochs):
        model.partial_fit(inputs, targets)
        loss = loss_of(model, arrays.validation)
        ends.append(time.perf_counter())
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if task.mode == "stop" and waited == PATIENCE:
            break
    return Result(ends, loss)


def repeat(model: MLPRegressor, task: Task, arrays: Arrays, times: int) -> Result:
    """Evaluate or predict, after a training step that draws the variables."""
    model.partial_fit(arrays.train[0][:BATCH], arrays.train[1][:BATCH, 0])
    ends: list[float] = []
    for _ in range(times):
        if task.mode == "evaluate":
            value = loss_of(model, arrays.validation)
        else:
            value = float(model.predict(arrays.validation[0]).sum())
        ends.append(time.perf_counter())
    return Result(ends, value)


if __name__ == "__main__":
    serve(prepare)
