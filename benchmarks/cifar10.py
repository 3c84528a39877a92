"""The CIFAR-10 experiment beside Keras and torch, in one run, alternating.

    python -m benchmarks.cifar10 --data DIR --peers PYTHON [--repeats 5] [--recipes small pooled]

`--peers` names the Python of an environment that has keras, tensorflow-cpu, jax and torch; without it only this
project is measured. An epoch is one training pass over 5,000 images, in steady state: the median of the epochs of a
process after the first. Prints medians over processes with the least and the greatest value, and peak memory.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

PEERS = Path(__file__).parent / "peers"
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"}
EPOCHS = {"Keras, JAX": 2}  # it takes several times as long as the others
USUAL = 4


def measure(command: list[str]) -> tuple[float, float]:
    """The seconds of an epoch and the peak memory in MB of one process."""
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | QUIET
    )
    line = json.loads(done.stdout.splitlines()[-1])
    return line["seconds"]["epoch"], line["peak_memory_mb"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--peers", help="the Python of the peers' environment")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=["small", "pooled"])
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for recipe in arguments.recipes:
        common = ["--data", arguments.data, "--recipe", recipe, "--time"]
        programs = {"jaxdl": [sys.executable, "-m", "benchmarks.fit_cifar10"]}
        if arguments.peers:
            keras = [arguments.peers, str(PEERS / "cifar10_keras.py"), "--backend"]
            programs |= {
                "torch, eager, channels last": [arguments.peers, str(PEERS / "cifar10_torch.py")],
                "Keras, TensorFlow": [*keras, "tensorflow"],
                "Keras, JAX": [*keras, "jax"],
            }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        for _ in range(arguments.repeats):
            for name, command in programs.items():
                measured[name].append(measure([*command, *common, "--epochs", str(EPOCHS.get(name, USUAL))]))
        show(recipe, measured)


def show(recipe: str, measured: dict[str, list[tuple[float, float]]]) -> None:
    """Prints a table; the first program is what the others are compared with."""
    print(f"\n| epoch of {recipe} | median s | least - greatest | ours / its, of pairs | peak MB | ours / its |")
    print("|---|---|---|---|---|---|")
    ours = np.array(next(iter(measured.values())))
    for name, pairs in measured.items():
        seconds, memory = np.array(pairs).T
        ratio = np.median(ours[:, 0] / seconds)
        print(
            f"| {name} | {np.median(seconds):.2f} | {seconds.min():.2f} - {seconds.max():.2f} | {ratio:.2f} "
            f"| {np.median(memory):.0f} | {np.median(ours[:, 1] / memory):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
