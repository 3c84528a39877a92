"""Compare the mean test RMSE of every weather recipe with Keras, over many seeds.

    python -m benchmarks.studies.parity --data DIR [--seeds 24]

The values of Keras in `keras_weather.json` were measured with `benchmarks.studies.keras_weather`. The last column is
the difference of the mean test RMSE, divided by its standard error.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.weather.experiment import RECIPES

KERAS = json.loads(Path(__file__).with_name("keras_weather.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="auto")
    parser.add_argument("--seeds", type=int, default=24)
    arguments = parser.parse_args()
    print("| recipe | seeds | epochs | train | validation | test | Keras: test | difference / standard error |")
    print("|---|---|---|---|---|---|---|---|")
    for recipe in RECIPES:
        command = [sys.executable, "-m", "benchmarks.studies.fit", "--data", arguments.data, "--recipe", recipe]
        seeds = [str(seed) for seed in range(arguments.seeds)]
        text = subprocess.run([*command, "--seeds", *seeds], check=True, capture_output=True, text=True).stdout
        lines = [json.loads(line) for line in text.splitlines()]
        rmse = {name: np.array([line["rmse"][name] for line in lines]) for name in ("train", "validation", "test")}
        epochs = [line["epochs"] for line in lines]
        theirs, test = KERAS[recipe], rmse["test"]
        error = np.hypot(test.std(ddof=1) / np.sqrt(len(test)), theirs["test"][1] / np.sqrt(theirs["seeds"]))
        ours = " | ".join(f"{values.mean():.3f} +- {values.std(ddof=1):.3f}" for values in rmse.values())
        difference = (test.mean() - theirs["test"][0]) / error
        keras = f"{theirs['test'][0]:.3f} +- {theirs['test'][1]:.3f} ({theirs['seeds']} seeds)"
        print(
            f"| {recipe} | {len(lines)} | {min(epochs)}-{max(epochs)} | {ours} | {keras} | {difference:+.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
