"""The rows of the benchmark table, and the arrays that all contestants read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.tasks import MEMBERS, Task
from experiments.weather import experiment as weather
from jaxdl import datasets
from jaxdl.data import fit_scaler, standardize, take
from jaxdl.datasets import load_cifar10
from jaxdl.nn.models import unit_range
from jaxdl.types import Dataset

TIMES = (1, 10, 100, 1000)  # multiples of the training examples of the lesson, simulated
IMAGES = 5000  # training images of the lesson
LESSON = 767  # training examples of the weather lesson
PLAIN = (100, 50)
WIDER = (4, 16)  # multiples of the widths
SWEPT = 50  # measured epochs of the sweep; the time of its start is counted four times
CONVNETS = ("small", "pooled", "dropout")
# Images that are measured; the time of all images is calculated, because all steps take equally long.
TRAINED, MEASURED, ALL = 160, 500, 10_000


class Row(NamedTuple):
    """A row of the table: a task and how its time is counted."""

    title: str
    group: str  # one process measures the rows of a group one after the other
    task: Task
    per: str  # "whole": `epochs` epochs from new variables; "epoch"; "once"; "stop", "sweep": until the end
    epochs: int = 1
    times: float = 1.0  # the work of the row divided by the work of the task
    after: str = ""  # title of the row with a tenth of the work: a contestant too slow there is not run here


def table_rows(folder: Path) -> list[Row]:
    """Return all rows of the table, with the arrays of a folder."""
    real, simulated, images = (str(folder / name) for name in ("real", "simulated", "images"))
    plain = Task("plain", "train", "mlp", real, LESSON, PLAIN)
    table = [
        Row("`plain`, 200 epochs", "weather", plain, "whole", epochs=200),
        Row("`batchnorm`, until it stops", "weather", plain._replace(name="batchnorm", mode="stop", norm=True), "stop"),
        Row(
            f"{MEMBERS} seeds of `plain`, 200 epochs",
            "sweep",
            plain._replace(mode="sweep"),
            "sweep",
            SWEPT,
            200 / SWEPT,
        ),
    ]
    for times, before in zip(TIMES, (0, *TIMES), strict=False):
        task = Task(f"x{times}", "train", "mlp", simulated, times * LESSON, PLAIN)
        table.append(Row(size_title(times), "weather", task, "epoch", after=size_title(before) if before else ""))
    for wider in WIDER:
        task = plain._replace(name=f"width x{wider}", widths=tuple(wider * width for width in PLAIN))
        table.append(Row(f"widths x {wider}, an epoch", "weather", task, "epoch"))
    for recipe in CONVNETS:
        table += _image_rows(recipe, Task(recipe, "train", "convnet", images, TRAINED, recipe=recipe))
    return table


def _image_rows(recipe: str, train: Task) -> Sequence[Row]:
    evaluate = train._replace(mode="evaluate", rows=MEASURED)
    whole = ALL / MEASURED
    return (
        Row(f"`{recipe}`, an epoch of 5,000 images", "CIFAR-10", train, "epoch", times=IMAGES / TRAINED),
        Row(f"`{recipe}`, evaluation of 10,000", "CIFAR-10", evaluate, "once", times=whole),
        Row(f"`{recipe}`, prediction of one", "CIFAR-10", evaluate._replace(mode="predict", rows=1), "once"),
        Row(f"`{recipe}`, prediction of 10,000", "CIFAR-10", evaluate._replace(mode="predict"), "once", times=whole),
    )


def size_title(times: int) -> str:
    """Return the title of the row with a multiple of the training examples of the lesson."""
    return f"examples x {times}, an epoch"


def row_seconds(row: Row, ends: Sequence[float]) -> float:
    """Return the seconds of the work of a row, from the end times of the epochs or repetitions of a run.

    The ends after the first give the seconds of an epoch. A whole run counts the first epoch, which starts it, once.

    >>> task = Task("plain", "train", "mlp", "", 767)
    >>> row_seconds(Row("", "", task, "whole", epochs=11), [0.5, 0.75, 1.0])
    3.0
    >>> row_seconds(Row("", "", task, "epoch", times=10), [0.5, 0.75, 1.0])
    2.5
    """
    one = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0]
    if row.per in ("stop", "sweep") or (row.per == "whole" and len(ends) == row.epochs):
        return ends[-1] * row.times
    return (ends[0] + (row.epochs - 1) * one if row.per == "whole" else one) * row.times


# The arrays that all contestants read: .npy files, written once.


def write_sets(folder: Path, sets: dict[str, Dataset]) -> Path:
    """Write the sets into a folder for `tasks.load`, and return the folder."""
    folder.mkdir(parents=True)
    for name, dataset in sets.items():
        np.save(folder / f"{name}-inputs.npy", np.asarray(dataset.inputs))
        np.save(folder / f"{name}-targets.npy", np.asarray(dataset.targets))
    return folder


def write_weather(folder: Path, data: str) -> dict[str, Dataset]:
    """Write and return the three years of the weather lesson, in its split."""
    dataset = datasets.load_weather(data, days=weather.RECIPES["plain"].days)
    _, sets = weather.divide(dataset)
    write_sets(folder, sets)
    return sets


def write_simulated(folder: Path, like: dict[str, Dataset]) -> Path:
    """Write standardized simulated days: the largest training set of the table, and a validation set as in `like`."""
    size, held_out = max(TIMES) * len(like["train"].sample_weight), len(like["validation"].sample_weight)
    simulated = datasets.load_weather(f"simulated:{size + held_out + 1}", days=None).data
    simulated = simulated._replace(inputs=standardize(simulated.inputs, fit_scaler(simulated.inputs)))
    return write_sets(
        folder, {"train": take(simulated, range(size)), "validation": take(simulated, range(size, size + held_out))}
    )


def write_images(folder: Path, data: str) -> None:
    """Write the 5,000 training images of the lesson and the test images as validation, as floats from 0 to 1."""
    images = load_cifar10(data)
    sets = {"train": take(images.train, range(IMAGES)), "validation": images.test}
    write_sets(folder, {name: part._replace(inputs=unit_range(part.inputs)) for name, part in sets.items()})
