"""What being watched costs: the weather run with each observer beside the same run without, in alternation.

    python -m benchmarks.watching --data DIR [--repeats 31] [--epochs 200]

The recipe `plain`, warm: epochs of a few milliseconds, the worst case. The bar is drawn into a terminal of its
own. Prints medians with the least and the greatest value.
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

from benchmarks.alternating import alternate
from experiments.experiment import Built
from experiments.weather import Config, build
from jaxdl import logs
from jaxdl.bars import progress_bar
from jaxdl.datasets import weather
from jaxdl.runs import drive
from jaxdl.tensorboard import distributions, tensorboard

SHOWN = "loss", "val_rmse"


@contextmanager
def in_a_terminal(epochs: int, batches: int) -> Iterator[Any]:
    """The bar as a terminal gets it, with someone who reads it."""
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


def seconds_of(
    built: Built, epochs: int, watched: Callable[[Path], AbstractContextManager[Any]]
) -> Callable[[], float]:
    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            with watched(Path(folder)) as observe:
                watchers = [observe] if observe else []
                sets = built.sets["train"], built.sets["validation"]
                drive(built.plan, built.start, *sets, epochs=epochs, observers=watchers)
            return time.perf_counter() - began

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--epochs", type=int, default=200)
    arguments = parser.parse_args()
    built, epochs = build(Config(recipe="plain"), weather(arguments.data, days=1096)), arguments.epochs
    plain = Console(file=io.StringIO(), width=100)

    def spread(folder: Path) -> AbstractContextManager[Any]:
        return distributions(folder, built.plan, built.sets["train"], built.start, every=10)

    ways: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
        "not watched": lambda folder: nullcontext(),
        "a bar in a terminal": lambda folder: in_a_terminal(epochs, 30),
        "lines": lambda folder: progress_bar(epochs, SHOWN, console=plain),
        "history.csv": lambda folder: logs.csv_file(folder / "history.csv"),
        "TensorBoard": tensorboard,
        "histograms every 10": spread,
    }
    runs = {name: seconds_of(built, epochs, watched) for name, watched in ways.items()}
    alternate(f"{epochs} epochs of plain", runs, arguments.repeats)


if __name__ == "__main__":
    main()
