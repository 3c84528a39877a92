"""What saving costs: the weather run with checkpoints beside the same run without, in one process, alternating.

    python -m benchmarks.studies.saving --data DIR [--repeats 31] [--epochs 200]

The recipe `plain`, warm, with the final save left out. Prints medians with the least and the greatest value.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from benchmarks.studies.alternating import alternate
from experiments.experiment import Built
from experiments.weather import Config, build
from jaxdl.checkpoints import keeper
from jaxdl.datasets import weather
from jaxdl.runs import drive

# Seconds between the checkpoints; those of the experiments are 30.
INTERVALS = (30.0, 1.0, 0.2)


def seconds_of(built: Built, epochs: int, every: float | None) -> Callable[[], float]:
    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            keeping = keeper(Path(folder, "progress"), {}, every=every, tell=print) if every else nullcontext()
            with keeping as keep:
                began = time.perf_counter()
                drive(built.plan, built.start, built.sets["train"], built.sets["validation"], epochs=epochs, keep=keep)
                return time.perf_counter() - began

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--epochs", type=int, default=200)
    arguments = parser.parse_args()
    built = build(Config(recipe="plain"), weather(arguments.data, days=1096))
    runs = {"no checkpoints": seconds_of(built, arguments.epochs, None)}
    runs |= {f"every {every:g} s": seconds_of(built, arguments.epochs, every) for every in INTERVALS}
    alternate(f"{arguments.epochs} epochs of plain", runs, arguments.repeats)


if __name__ == "__main__":
    main()
