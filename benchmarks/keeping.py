"""What it costs to keep a run: checkpoints, logs, and to go on from a checkpoint. Recipe `plain`, 200 epochs, warm."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rounds import Measured
from experiments.experiment import Built
from experiments.weather import Config, build
from jaxdl import logs, tensorboard
from jaxdl.checkpoints import keeper, latest
from jaxdl.datasets import weather
from jaxdl.runs import drive

EVERY = 30.0  # seconds between checkpoints, as the experiments have


class Kept(NamedTuple):
    """A figure of keeping, and what it cannot undercut."""

    title: str
    measured: Measured
    limit: float  # seconds
    of: str  # what the limit is


def keeping(data: str, rounds: int) -> list[Kept]:
    """The rows, each with its limit."""
    built = build(Config(recipe="plain"), weather(data, days=1096))
    ways: dict[str, Callable[[Path], float]] = {
        "alone": lambda folder: trained(built, folder),
        "kept": lambda folder: trained(built, folder, keep=True),
        "logged": lambda folder: trained(built, folder, logged=True),
        "resumed": lambda folder: resumed(built, folder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    sizes = dict.fromkeys(ways, 0)
    for index in range(-1, rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                took = way(Path(folder))
                sizes[name] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            if index >= 0:
                seconds[name].append(took)
    measured = {name: Measured(tuple(values)) for name, values in seconds.items()}

    def on_disk(speed: Callable[[int], float], name: str) -> float:
        return sizes[name] / statistics.median(speed(sizes[name]) for _ in range(rounds))

    alone, beside = measured["alone"].median, "without, and its bytes to the disk"
    kept, logged = (alone + on_disk(written, name) for name in ("kept", "logged"))
    return [
        Kept("200 epochs, checkpoints every 30 s and at the end", measured["kept"], kept, beside),
        Kept("200 epochs, history.csv and TensorBoard", measured["logged"], logged, beside),
        Kept("a checkpoint, read and checked", measured["resumed"], on_disk(read, "resumed"), "its bytes read back"),
    ]


def trained(built: Built, folder: Path, *, keep: bool = False, logged: bool = False) -> float:
    """Seconds of the run."""
    began = time.perf_counter()
    with ExitStack() as stack:
        enter: Callable[[AbstractContextManager[Any]], Any] = stack.enter_context
        keeping = enter(keeper(folder / "progress", {}, every=EVERY, tell=print)) if keep else None
        observers = (
            [enter(logs.csv_file(folder / "history.csv")), enter(tensorboard.tensorboard(folder))] if logged else []
        )
        sets = built.sets["train"], built.sets["validation"]
        drive(built.plan, built.start, *sets, epochs=built.epochs, observers=observers, keep=keeping)
    return time.perf_counter() - began


def resumed(built: Built, folder: Path) -> float:
    """Seconds until the progress of a checkpoint is in memory."""
    with keeper(folder / "progress", {}, every=EVERY, tell=print) as keep:
        keep(built.start, [{"epoch": 1}])
    began = time.perf_counter()
    assert latest(folder / "progress", print) is not None
    return time.perf_counter() - began


def written(size: int) -> float:
    """Bytes a second that so many are written with, down to the disk."""
    with tempfile.TemporaryFile(buffering=0) as file:
        began = time.perf_counter()
        file.write(bytes(size))
        os.fsync(file.fileno())
        return size / (time.perf_counter() - began)


def read(size: int) -> float:
    """Bytes a second that so many are read with, from a file that was written just now."""
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(bytes(size))
        file.seek(0)
        began = time.perf_counter()
        file.read()
        return size / (time.perf_counter() - began)
