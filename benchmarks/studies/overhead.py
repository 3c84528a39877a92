"""What a run pays for checkpoints and for callbacks: the weather run with each beside the same run without.

    python -m benchmarks.studies.overhead --data DIR [--only checkpoints] [--repeats 31] [--epochs 200]

The recipe `plain`, warm: epochs of a few milliseconds, the worst case. The runs take turns in one process. Checkpoints
are measured with the final one left out; the progress bar is drawn into a terminal of its own. Prints medians with the
least and the greatest value.
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

# Seconds between the checkpoints; those of the experiments are 30.
INTERVALS = (30.0, 1.0, 0.2)
SHOWN = "loss", "val_rmse"


def with_checkpoints(built: Setup, epochs: int, every: float | None) -> Callable[[], float]:
    """Return a function that measures the seconds of a run with a checkpoint every so many seconds, or with none."""

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            keeping = checkpointer(Path(folder, "progress"), {}, every=every, warn=print) if every else nullcontext()
            with keeping as keep:
                began = time.perf_counter()
                drive(built.plan, built.start, built.sets["train"], built.sets["validation"], epochs=epochs, save=keep)
                return time.perf_counter() - began

    return measure


def with_callback(
    built: Setup, epochs: int, callback: Callable[[Path], AbstractContextManager[Any]]
) -> Callable[[], float]:
    """Return a function that measures the seconds of a run with a callback, its beginning and its end included."""

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            with callback(Path(folder)) as observe:
                callbacks = [observe] if observe else []
                sets = built.sets["train"], built.sets["validation"]
                drive(built.plan, built.start, *sets, epochs=epochs, callbacks=callbacks)
            return time.perf_counter() - began

    return measure


@contextmanager
def in_a_terminal(epochs: int, batches: int) -> Iterator[Any]:
    """Draw the bar into a terminal, with someone who reads it."""
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
        progress_bar(epochs, SHOWN, console=Console(file=file, force_terminal=True), batches=batches) as observe,
    ):
        yield observe


def checkpoint_ways(built: Setup, epochs: int) -> dict[str, Callable[[], float]]:
    """Return what is measured of checkpoints, by name."""
    ways = {"no checkpoints": with_checkpoints(built, epochs, None)}
    return ways | {f"every {every:g} s": with_checkpoints(built, epochs, every) for every in INTERVALS}


def callback_ways(built: Setup, epochs: int) -> dict[str, Callable[[], float]]:
    """Return what is measured of callbacks, by name."""
    plain = Console(file=io.StringIO(), width=100)

    def with_histograms(folder: Path) -> AbstractContextManager[Any]:
        return histograms(folder, built.plan, built.sets["train"], built.start, every=10)

    callbacks: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
        "not watched": lambda folder: nullcontext(),
        "a bar in a terminal": lambda folder: in_a_terminal(epochs, 30),
        "lines": lambda folder: progress_bar(epochs, SHOWN, console=plain),
        "history.csv": lambda folder: csv_log(folder / "history.csv"),
        "TensorBoard": tensorboard,
        "histograms every 10": with_histograms,
    }
    return {name: with_callback(built, epochs, callback) for name, callback in callbacks.items()}


WAYS = {"checkpoints": checkpoint_ways, "callbacks": callback_ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", choices=WAYS, help="one of the two tables; without it both")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--epochs", type=int, default=200)
    arguments = parser.parse_args()
    built = build(Config(recipe="plain"), load_weather(arguments.data, days=1096))
    for name, ways in WAYS.items():
        if arguments.only in (None, name):
            alternate(f"{arguments.epochs} epochs of plain", ways(built, arguments.epochs), arguments.repeats)


if __name__ == "__main__":
    main()
