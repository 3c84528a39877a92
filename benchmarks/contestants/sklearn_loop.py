"""scikit-learn as a contestant of the table: `MLPRegressor`, an epoch at a time.

    python -m benchmarks.contestants.sklearn_loop

Its biases start uniform like its kernels, because it offers no other way. Convnets and BatchNorm it has not.
"""

from __future__ import annotations

import time

import numpy as np
from sklearn import config_context
from sklearn.neural_network import MLPRegressor

from benchmarks.contestants.protocol import Result, Run, serve
from benchmarks.tasks import BATCH, MOST_EPOCHS, PATIENCE, Arrays, Task


def prepare(task: Task, arrays: Arrays) -> Run:
    """There is nothing to compile. ValueError says which tasks are not for scikit-learn."""
    if task.kind != "mlp" or task.norm:
        asked = "BatchNorm" if task.kind == "mlp" else f"a {task.kind}"
        raise ValueError(f"scikit-learn's networks are dense layers alone, the task {task.name} asks for {asked}")
    work = trained if task.deed in ("train", "stop") else repeated

    def run(times: int, seed: int) -> Result:
        # Without the checks of arrays and settings in every call, as its guide to speed advises.
        with config_context(assume_finite=True, skip_parameter_validation=True):
            return work(network(task, seed), task, arrays, times)

    return run


def network(task: Task, seed: int) -> MLPRegressor:
    """New weights, drawn in the first `partial_fit`."""
    return MLPRegressor(
        hidden_layer_sizes=task.widths,
        alpha=0.0,  # its Adam at 1e-3 is the default
        batch_size=BATCH,
        # Not the seed itself: each `partial_fit` would start from it anew, and all epochs have the same order.
        random_state=np.random.RandomState(seed),
    )


def loss_of(model: MLPRegressor, rows: tuple[np.ndarray, np.ndarray]) -> float:
    """The mean squared error of inputs (N, features) and targets (N, 1)."""
    inputs, targets = rows
    return float(np.mean((model.predict(inputs) - targets[:, 0]) ** 2))


def trained(model: MLPRegressor, task: Task, arrays: Arrays, epochs: int) -> Result:
    """Epochs with the validation loss after each: `fit` alone could only validate on rows cut from the training."""
    inputs, targets = arrays.train[0], arrays.train[1][:, 0]
    ends: list[float] = []
    best, since = np.inf, 0
    for _ in range(MOST_EPOCHS if task.deed == "stop" else epochs):
        model.partial_fit(inputs, targets)
        loss = loss_of(model, arrays.validation)
        ends.append(time.perf_counter())
        best, since = (loss, 0) if loss < best else (best, since + 1)
        if task.deed == "stop" and since == PATIENCE:
            break
    return Result(ends, loss)


def repeated(model: MLPRegressor, task: Task, arrays: Arrays, times: int) -> Result:
    """The deed "evaluate" or "predict", of weights that have seen one batch: without one there are none."""
    model.partial_fit(arrays.train[0][:BATCH], arrays.train[1][:BATCH, 0])
    ends: list[float] = []
    for _ in range(times):
        if task.deed == "evaluate":
            figure = loss_of(model, arrays.validation)
        else:
            figure = float(model.predict(arrays.validation[0]).sum())
        ends.append(time.perf_counter())
    return Result(ends, figure)


if __name__ == "__main__":
    serve(prepare)
