"""The work of a contestant in the benchmark table. Needs NumPy alone: the peers' environment has no jaxdl."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

BATCH = 32  # examples of a training step, for every contestant
DROPPED = 0.2  # dropout rate of the recipe `dropout`
PATIENCE, MOST_EPOCHS = 10, 1000  # early stopping on the validation loss, mode "stop"
MEMBERS = 64  # seeds of the mode "sweep"


class Task(NamedTuple):
    """A network, its data and a mode. Adam at 1e-3, glorot uniform kernels, zero biases, float32 throughout.

    mlp: the `widths` with ReLU, then one output; squared error; with `norm` a BatchNorm before the first layer.
    convnet: the recipe `small`, `pooled` or `dropout` of the CIFAR-10 lesson; cross-entropy of 10 logits.

    "train": run(n) trains new variables for n epochs in batches of 32, shuffled each epoch, with the short last batch.
        An mlp is validated after each epoch. Returns the last validation loss of an mlp, the mean training loss of the
        last epoch of a convnet.
    "stop": run(n) trains until the validation loss has not improved for PATIENCE epochs, or for MOST_EPOCHS; n is
        ignored.
    "sweep": the same as "train" for MEMBERS seeds, trained together; jaxdl only.
    "evaluate": run(n) computes the validation loss n times and returns it.
    "predict": run(n) computes the outputs of the first `rows` validation examples n times, as NumPy arrays. Returns
        their sum.
    """

    name: str
    mode: str
    kind: str  # "mlp" or "convnet"
    folder: str  # of the arrays
    rows: int  # number of training examples; with "evaluate" and "predict" of validation examples
    widths: tuple[int, ...] = ()
    norm: bool = False
    recipe: str = ""


class Arrays(NamedTuple):
    """Inputs (N, features) or (N, 32, 32, 3) from 0 to 1, targets (N, 1), of images (N,) int32 labels."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]


def load(task: Task) -> Arrays:
    """Return the arrays of a task in memory, limited to its examples."""

    def read(name: str) -> np.ndarray:
        array: np.ndarray = np.load(Path(task.folder) / f"{name}.npy", mmap_mode="r")
        is_limited = (
            name.startswith("train") if task.mode in ("train", "stop", "sweep") else name.startswith("validation")
        )
        return np.array(array[: task.rows] if is_limited else array)

    return Arrays(
        (read("train-inputs"), read("train-targets")), (read("validation-inputs"), read("validation-targets"))
    )
