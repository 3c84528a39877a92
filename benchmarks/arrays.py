"""The arrays that all contestants of the table read: files of NumPy, written once."""

from pathlib import Path

import numpy as np

from experiments import weather as experiment
from jaxdl.data import fit_scaling, standardise, take
from jaxdl.datasets import cifar10, weather
from jaxdl.models import unit_range
from jaxdl.types import Examples

TIMES = (1, 10, 100, 1000)  # as many training rows as the lesson has, simulated
IMAGES = 5000  # of the lesson


def write(folder: Path, sets: dict[str, Examples]) -> Path:
    """Writes the sets into a folder, as `tasks.load` reads them, and returns it."""
    folder.mkdir(parents=True)
    for name, rows in sets.items():
        np.save(folder / f"{name}-inputs.npy", np.asarray(rows.inputs))
        np.save(folder / f"{name}-targets.npy", np.asarray(rows.targets))
    return folder


def write_weather(folder: Path, data: str) -> dict[str, Examples]:
    """The lesson's three years and its split."""
    dataset = weather(data, days=experiment.RECIPES["plain"].days)
    _, sets = experiment.divide(dataset)
    write(folder, sets)
    return sets


def write_simulated(folder: Path, like: dict[str, Examples]) -> Path:
    """The most training rows that any row of the table needs, standardised; as many to validate on as the real data."""
    rows, kept = max(TIMES) * len(like["train"].weights), len(like["validation"].weights)
    simulated = weather(f"simulated:{rows + kept + 1}", days=None).examples
    simulated = simulated._replace(inputs=standardise(simulated.inputs, fit_scaling(simulated.inputs)))
    return write(
        folder, {"train": take(simulated, range(rows)), "validation": take(simulated, range(rows, rows + kept))}
    )


def write_images(folder: Path, data: str) -> None:
    """The lesson's 5,000 images, and the test images to validate on, as floats from 0 to 1."""
    images = cifar10(data)
    sets = {"train": take(images.train, range(IMAGES)), "validation": images.test}
    write(folder, {name: rows._replace(inputs=unit_range(np.asarray(rows.inputs))) for name, rows in sets.items()})
