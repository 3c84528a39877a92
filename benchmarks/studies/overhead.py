"""The overhead of checkpoints and callbacks: a weather run with and without each of them.

    python -m benchmarks.studies.overhead --data DIR [--only checkpoints] [--repeats 31] [--epochs 200]

Recipe `plain`, already compiled: epochs of a few milliseconds are the worst case. The runs take turns in one process.
The time of the final checkpoint does not count; the progress bar has a pseudo-terminal. Prints medians with the least
and the greatest value.
"""

import argparse
import io
import os
import pty
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.studies.alternating import alternate
from experiments.weather.experiment import Config, build
from jaxdl.callbacks import csv_log, histograms, progress_bar, tensorboard
from jaxdl.datasets import load_weather
from jaxdl.runs import Setup
from jaxdl.runs.runner import drive
from jaxdl.saving import checkpointer

INTERVALS = (30.0, 1.0, 0.2)  # seconds between checkpoints; the experiments have 30
PROGRESS_METRICS = "loss", "val_rmse"


def with_checkpoints(setup: Setup, epochs: int, every: float | None) -> Callable[[], float]:
    """Return a function that measures the seconds of a run with a checkpoint every `every` seconds, or with none."""

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = (
                checkpointer(Path(folder, "progress"), {}, every=every, warn=print) if every else nullcontext()
            )
            with checkpoints as keep:
                began = time.perf_counter()
                drive(setup.plan, setup.start, setup.train, setup.validation, epochs=epochs, keep=keep)
                return time.perf_counter() - began

    return measure


def with_callback(
    setup: Setup, epochs: int, callback: Callable[[Path], AbstractContextManager[Any]]
) -> Callable[[], float]:
    """Return a function that measures the seconds of a run with a callback, including entering and leaving it."""

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            with callback(Path(folder)) as on_epoch:
                callbacks = [on_epoch] if on_epoch else []
                drive(setup.plan, setup.start, setup.train, setup.validation, epochs=epochs, callbacks=callbacks)
            return time.perf_counter() - began

    return measure


@contextmanager
def bar_in_terminal(epochs: int, batches: int) -> Iterator[Any]:
    """Yield a progress bar on a pseudo-terminal whose output a thread reads."""
    reader, writer = pty.openpty()

    def read() -> None:
        try:
            while os.read(reader, 65536):
                pass
        except OSError:
            pass  # The other end is closed.

    threading.Thread(target=read, daemon=True).start()
    with (
        os.fdopen(writer, "w") as file,
        progress_bar(
            epochs, PROGRESS_METRICS, console=Console(file=file, force_terminal=True), batches=batches
        ) as on_epoch,
    ):
        yield on_epoch


def checkpoint_measures(setup: Setup, epochs: int) -> dict[str, Callable[[], float]]:
    """Return the measurements of checkpoints by name."""
    measures = {"no checkpoints": with_checkpoints(setup, epochs, None)}
    return measures | {f"every {every:g} s": with_checkpoints(setup, epochs, every) for every in INTERVALS}


def callback_measures(setup: Setup, epochs: int) -> dict[str, Callable[[], float]]:
    """Return the measurements of callbacks by name."""
    plain = Console(file=io.StringIO(), width=100)

    def with_histograms(folder: Path) -> AbstractContextManager[Any]:
        return histograms(folder, setup.plan, setup.train, setup.start, every=10)

    callbacks: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
        "no callback": lambda folder: nullcontext(),
        "a bar in a terminal": lambda folder: bar_in_terminal(epochs, 30),
        "lines": lambda folder: progress_bar(epochs, PROGRESS_METRICS, console=plain),
        "history.csv": lambda folder: csv_log(folder / "history.csv"),
        "TensorBoard": tensorboard,
        "histograms every 10": with_histograms,
    }
    return {name: with_callback(setup, epochs, callback) for name, callback in callbacks.items()}


TABLES = {"checkpoints": checkpoint_measures, "callbacks": callback_measures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", choices=TABLES, help="measure one of the two tables")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--epochs", type=int, default=200)
    arguments = parser.parse_args()
    setup = build(Config(recipe="plain"), load_weather(arguments.data, days=1096))
    for name, measures in TABLES.items():
        if arguments.only in (None, name):
            alternate(f"{arguments.epochs} epochs of plain", measures(setup, arguments.epochs), arguments.repeats)


if __name__ == "__main__":
    main()
