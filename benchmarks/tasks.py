"""What a contestant of the table is given to do. Needs NumPy alone: the peers' environment has no jaxdl."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

BATCH = 32  # rows of a training step, for every contestant
DROPPED = 0.2  # share of values that the recipe `dropout` drops
PATIENCE, MOST_EPOCHS = 10, 1000  # of the deed "stop": early stopping on the validation loss
MEMBERS = 64  # seeds of the deed "sweep"


class Task(NamedTuple):
    """A network, its data and a deed. Adam at 1e-3, glorot uniform kernels, zero biases, float32 throughout.

    mlp: the `widths` with ReLU, then one output; squared error; where `norm`, a BatchNorm before the first layer.
    convnet: the recipe `small`, `pooled` or `dropout` of the CIFAR-10 lesson; cross-entropy of 10 logits.

    "train": run(n) trains new weights for n epochs of the training rows in batches of 32, in a new order each epoch,
        the short last batch included; each epoch ends with the loss of the validation rows (mlp) or nothing more
        (convnet). Its figure is the last validation loss; of a convnet the mean training loss of the last epoch.
    "stop": run(n) trains until the validation loss has not improved for PATIENCE epochs (MOST_EPOCHS at most),
        whatever n.
    "sweep": as "train", for MEMBERS seeds; of jaxdl alone, which trains them together.
    "evaluate": run(n) measures the loss of the validation rows n times. Its figure is that loss.
    "predict": run(n) computes the outputs of the first `rows` validation rows n times, as NumPy arrays in memory. Its
        figure is their sum.
    """

    name: str
    deed: str
    kind: str  # "mlp" or "convnet"
    folder: str  # that of the arrays
    rows: int  # training rows to use, the first ones; of "evaluate" and "predict" the validation rows
    widths: tuple[int, ...] = ()
    norm: bool = False
    recipe: str = ""


class Arrays(NamedTuple):
    """Inputs (N, features) or (N, 32, 32, 3) from 0 to 1, targets (N, 1), of images (N,) int32 labels."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]


def load(task: Task) -> Arrays:
    """The arrays of a task, cut to its rows, in memory."""

    def read(name: str) -> np.ndarray:
        array: np.ndarray = np.load(Path(task.folder) / f"{name}.npy", mmap_mode="r")
        cut = name.startswith("train") if task.deed in ("train", "stop", "sweep") else name.startswith("validation")
        return np.array(array[: task.rows] if cut else array)

    return Arrays(
        (read("train-inputs"), read("train-targets")), (read("validation-inputs"), read("validation-targets"))
    )
