"""The rows of the table whose contestants train, evaluate or predict."""

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
from jaxdl.nn import unit_range
from jaxdl.types import Dataset

TIMES = (1, 10, 100, 1000)  # as many training rows as the lesson has, simulated
IMAGES = 5000  # of the lesson
LESSON = 767  # training rows of the lesson
PLAIN = (100, 50)
WIDER = (4, 16)  # times as wide
SWEPT = 50  # epochs of the sweep that are measured; starting it is counted four times
CONVNETS = ("small", "pooled", "dropout")
# So much of the images is measured, and the rest calculated: all steps are alike.
TRAINED, MEASURED, ALL = 160, 500, 10_000


class Row(NamedTuple):
    """What a row measures."""

    title: str
    group: str  # rows that a process does one after the other
    task: Task
    per: str  # "whole": `epochs` epochs from new weights; "epoch"; "once"; "stop", "sweep": until the end
    epochs: int = 1
    times: float = 1.0  # the row's work is so many times what the task does
    after: str = ""  # title of the row that is a tenth of this one: who would take too long by that is not run


def rows(folder: Path) -> list[Row]:
    """All rows, on the arrays in a folder."""
    real, simulated, images = (str(folder / name) for name in ("real", "simulated", "images"))
    plain = Task("plain", "train", "mlp", real, LESSON, PLAIN)
    found = [
        Row("`plain`, 200 epochs", "weather", plain, "whole", epochs=200),
        Row("`batchnorm`, until it stops", "weather", plain._replace(name="batchnorm", deed="stop", norm=True), "stop"),
        Row(
            f"{MEMBERS} seeds of `plain`, 200 epochs",
            "sweep",
            plain._replace(deed="sweep"),
            "sweep",
            SWEPT,
            200 / SWEPT,
        ),
    ]
    for times, before in zip(TIMES, (0, *TIMES), strict=False):
        task = Task(f"x{times}", "train", "mlp", simulated, times * LESSON, PLAIN)
        found.append(Row(rows_title(times), "weather", task, "epoch", after=rows_title(before) if before else ""))
    for wider in WIDER:
        task = plain._replace(name=f"width x{wider}", widths=tuple(wider * width for width in PLAIN))
        found.append(Row(f"widths x {wider}, an epoch", "weather", task, "epoch"))
    for recipe in CONVNETS:
        found += _images(recipe, Task(recipe, "train", "convnet", images, TRAINED, recipe=recipe))
    return found


def _images(recipe: str, train: Task) -> Sequence[Row]:
    evaluate = train._replace(deed="evaluate", rows=MEASURED)
    whole = ALL / MEASURED
    return (
        Row(f"`{recipe}`, an epoch of 5,000 images", "CIFAR-10", train, "epoch", times=IMAGES / TRAINED),
        Row(f"`{recipe}`, evaluation of 10,000", "CIFAR-10", evaluate, "once", times=whole),
        Row(f"`{recipe}`, prediction of one", "CIFAR-10", evaluate._replace(deed="predict", rows=1), "once"),
        Row(f"`{recipe}`, prediction of 10,000", "CIFAR-10", evaluate._replace(deed="predict"), "once", times=whole),
    )


def rows_title(times: int) -> str:
    """The title of the row with so many times the lesson's rows.

    >>> rows_title(100)
    'rows x 100, an epoch'
    """
    return f"rows x {times}, an epoch"


def seconds(row: Row, ends: Sequence[float]) -> float:
    """The seconds of the row's work, from when each epoch, or each time, of a run ended.

    What comes after the first is the rate at which a run goes on; of a whole run the first counts once.

    >>> task = Task("plain", "train", "mlp", "", 767)
    >>> seconds(Row("", "", task, "whole", epochs=11), [0.5, 0.75, 1.0])
    3.0
    >>> seconds(Row("", "", task, "epoch", times=10), [0.5, 0.75, 1.0])
    2.5
    """
    one = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0]
    if row.per in ("stop", "sweep") or (row.per == "whole" and len(ends) == row.epochs):
        return ends[-1] * row.times
    return (ends[0] + (row.epochs - 1) * one if row.per == "whole" else one) * row.times


# The arrays that all contestants read: files of NumPy, written once.


def write_sets(folder: Path, sets: dict[str, Dataset]) -> Path:
    """Writes the sets into a folder, as `tasks.load` reads them, and returns it."""
    folder.mkdir(parents=True)
    for name, rows in sets.items():
        np.save(folder / f"{name}-inputs.npy", np.asarray(rows.inputs))
        np.save(folder / f"{name}-targets.npy", np.asarray(rows.targets))
    return folder


def write_weather(folder: Path, data: str) -> dict[str, Dataset]:
    """The lesson's three years and its split."""
    dataset = datasets.load_weather(data, days=weather.RECIPES["plain"].days)
    _, sets = weather.split_sets(dataset)
    write_sets(folder, sets)
    return sets


def write_simulated(folder: Path, like: dict[str, Dataset]) -> Path:
    """The most training rows that any row of the table needs, standardized; as many to validate on as the real data."""
    rows, kept = max(TIMES) * len(like["train"].sample_weight), len(like["validation"].sample_weight)
    simulated = datasets.load_weather(f"simulated:{rows + kept + 1}", days=None).data
    simulated = simulated._replace(inputs=standardize(simulated.inputs, fit_scaler(simulated.inputs)))
    return write_sets(
        folder, {"train": take(simulated, range(rows)), "validation": take(simulated, range(rows, rows + kept))}
    )


def write_images(folder: Path, data: str) -> None:
    """The lesson's 5,000 images, and the test images to validate on, as floats from 0 to 1."""
    images = load_cifar10(data)
    sets = {"train": take(images.train, range(IMAGES)), "validation": images.test}
    write_sets(folder, {name: rows._replace(inputs=unit_range(np.asarray(rows.inputs))) for name, rows in sets.items()})
