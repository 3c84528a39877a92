"""Kill a call at random moments, make it again, and compare its result with that of a call that was not disturbed.

    python -m tests.kills sweep --kills 20
    python -m tests.kills keras --kills 20

Prints a line per kill and a summary, and exits with 1 if a result differs.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import optax

from jaxdl import _files, dataset, early_stopping, fit, from_keras, grid, losses, make_plan, metrics, mlp, saving, sweep
from jaxdl.train.plan import NEVER
from tests.bits import bits
from tests.faults import ROOT, cache, check

BEGINS = "the call begins"


def make(learning_rate, kind):
    """Return the plan of a linear model, which compiles fast."""
    return make_plan(
        mlp(()),
        losses.squared_error,
        optax.sgd(learning_rate),
        metrics=[metrics.rmse],
        batch_size=4,
        early_stopping=early_stopping(patience=40) if kind else NEVER,
    )


def run_sweep(folder):
    """Train or resume the sweep of a folder; return its result as text."""
    inputs = np.random.default_rng(0).normal(size=(72, 3)).astype(np.float32)
    data = dataset(inputs[:48], inputs[:48, :1] ** 2), dataset(inputs[48:], inputs[48:, :1] ** 2)
    trials = grid(kind=(0, 1), learning_rate=(0.1, 0.02, 0.003))
    options = {"seeds": (3, 0), "epochs": 600, "eta": 3, "min_resource": 200, "method": "map"}
    state = saving.restore_latest(folder / "checkpoints", print)
    with saving.checkpointer(folder / "checkpoints", {}, every=0.05, warn=print) as checkpointer:
        result = sweep(make, trials, *data, callbacks=[checkpointer], state=state, **options)
    return result.table.to_csv() + result.history.to_csv() + repr(bits((result.best, result.final)))


def run_keras(folder):
    """Train or resume the run of a Keras model with BatchNorm and Dropout in a folder; return its result as text."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((8,)),
            layers.BatchNormalization(),
            *(layers.Dense(32, activation="relu"), layers.Dropout(0.2), layers.BatchNormalization()),
            layers.Dense(1),
        ]
    )
    inputs = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    data = dataset(inputs[:200], inputs[:200, :1] ** 2), dataset(inputs[200:], inputs[200:, :1] ** 2)
    state = saving.restore_latest(folder / "checkpoints", print)
    with saving.checkpointer(folder / "checkpoints", {}, every=0.05, warn=print) as checkpointer:
        options = {"metrics": [metrics.rmse], "epochs": 1500, "state": state, "callbacks": [checkpointer]}
        run = fit(from_keras(network), losses.squared_error, optax.adam(1e-3), *data, **options)
    return run.history.to_csv() + repr(bits((run.best, run.final)))


CALLS = {"sweep": run_sweep, "keras": run_keras}


class Runs:
    """Calls in folders of one folder, with a compilation cache of their own, and the result of an undisturbed one."""

    def __init__(self, name, folder, seed=0):
        self.name, self.folder, self.random, self.number = name, Path(folder), random.Random(seed), 0
        self.reference = self.run_to_end(self.new())
        # The second run reads compiled functions from the cache, as resumed ones do.
        process, began = self.start(self.new()), time.monotonic()
        check(process.wait() == 0, "the second run has failed")
        self.seconds = time.monotonic() - began

    def new(self):
        """Return a new folder for a run."""
        self.number += 1
        folder = self.folder / str(self.number)
        folder.mkdir()
        return folder

    def start(self, folder):
        """Start or resume the run of a folder; return the process once its imports are over."""
        command = [sys.executable, "-m", "tests.kills", self.name, "--run", str(folder)]
        environment = {**os.environ, "KERAS_BACKEND": "jax", **cache(self.folder / "cache")}
        with (folder / "log").open("a") as log:
            before = (folder / "log").read_text().count(BEGINS)
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        while (folder / "log").read_text().count(BEGINS) == before:
            check(process.poll() is None, (folder / "log").read_text())
            time.sleep(0.01)
        return process

    def run_to_end(self, folder):
        """Return the result of the run of a folder."""
        check(self.start(folder).wait() == 0, (folder / "log").read_text())
        return (folder / "result").read_text()


def moment(checkpoints):
    """Return when a run was killed, as its checkpoints show it."""
    numbered = [*checkpoints.glob("[0-9]*")]  # also those that orbax was writing
    if any(not (path / _files.CHECKSUMS).exists() for path in numbered):
        return "in a save"
    return "between saves" if numbered else "before a checkpoint"


def kills(runs, count):
    """Kill runs a number of times; return a summary. Raises AssertionError where a result differs."""
    folder, kinds, finished = runs.new(), {"before a checkpoint": 0, "in a save": 0, "between saves": 0}, 0
    while count:
        process = runs.start(folder)
        time.sleep(runs.random.uniform(0, runs.seconds))
        if process.poll() is None:
            process.kill()
            process.wait()
            kind, count = moment(folder / "checkpoints"), count - 1
            kinds[kind] += 1
            print(f"kill of run {folder.name}: {kind}", flush=True)
            if count:
                continue
        check(runs.run_to_end(folder) == runs.reference, f"run {folder.name} differs from the undisturbed one")
        finished, folder = finished + 1, runs.new()
    text = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return f"{sum(kinds.values())} SIGKILL ({text}) in {finished} runs, all with the bits of the undisturbed one"


def main():
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=CALLS, help="what is trained")
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--run", type=Path, help="the folder of a run to train or resume, as this program does itself")
    arguments = parser.parse_args()
    if arguments.run:
        print(BEGINS, flush=True)
        text = CALLS[arguments.name](arguments.run)
        draft = arguments.run / "draft"
        draft.write_text(hashlib.sha256(text.encode()).hexdigest())
        draft.rename(arguments.run / "result")
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(arguments.name, folder, arguments.seed)
        print(f"a run takes {runs.seconds:.1f} s")
        print(kills(runs, arguments.kills))


if __name__ == "__main__":
    main()
