"""The weather experiment beside Keras and torch, in one run, alternating.

    python -m benchmarks.weather --data DIR --peers PYTHON [--repeats 5]

`--peers` names the Python of an environment that has keras, tensorflow-cpu or jax, torch, scikit-learn, pandas and
matplotlib; without it only this project is measured. Prints medians with the least and the greatest value.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PEERS = Path(__file__).parent / "peers"
TIMED_IMPORT = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"


def output(command: list[str], **environment: str) -> str:
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | quiet | environment
    )
    return done.stdout.decode()


def fit_seconds(command: list[str]) -> Callable[[], float]:
    """The seconds of the last of three fits in one process."""

    def measure() -> float:
        return float(json.loads(output([*command, "--seeds", "0", "1", "2"]).splitlines()[-1])["seconds"]["fit"])

    return measure


def wall_seconds(command: list[str]) -> Callable[[], float]:
    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            output([part.replace("FOLDER", folder) for part in command])
            return time.perf_counter() - began

    return measure


def import_seconds(modules: str) -> Callable[[], float]:
    return lambda: float(output([sys.executable, "-c", TIMED_IMPORT.format(modules)]))


def alternate(name: str, programs: dict[str, Callable[[], float]], repeats: int) -> None:
    """Runs the programs in turn and prints a table; the first is what the others are compared with."""
    seconds: dict[str, list[float]] = {program: [] for program in programs}
    for program in programs.values():
        program()  # disk caches and the compilation cache
    for _ in range(repeats):
        for program, measure in programs.items():
            seconds[program].append(measure())
    print(f"\n| {name} | median s | least - greatest | times ours, median of pairs |\n|---|---|---|---|")
    ours = np.array(next(iter(seconds.values())))
    for program, measured in seconds.items():
        values = np.array(measured)
        ratio = np.median(values / ours)
        print(
            f"| {program} | {np.median(values):.3f} | {values.min():.3f} - {values.max():.3f} | {ratio:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--peers", help="the Python of the peers' environment")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    us, data, peers = sys.executable, ["--data", arguments.data], arguments.peers
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    fits = {"jaxdl": fit_seconds([us, "-m", "benchmarks.fit_weather", *data])}
    whole = {
        "python -m experiments.weather": wall_seconds(
            [us, "-m", "experiments.weather", *data, "--recipe", "plain", "--workdir", "FOLDER/run"]
        )
    }
    if peers:
        keras = [peers, str(PEERS / "weather_keras.py"), *data, "--recipe", "plain"]
        fits |= {
            "Keras, JAX": fit_seconds([*keras, "--warm"]),
            "torch, eager": fit_seconds([peers, str(PEERS / "weather_torch.py"), *data]),
        }
        whole["the same in Keras, JAX"] = wall_seconds([*keras, "--full", "--out", "FOLDER"])
    alternate("200 epochs of plain, warm", fits, arguments.repeats)
    alternate("whole command, warm compilation cache", whole, arguments.repeats)
    imports = {"jax, flax, optax": import_seconds("jax, flax, optax"), "jaxdl": import_seconds("jaxdl")}
    alternate("import", imports, 3 * arguments.repeats)


if __name__ == "__main__":
    main()
