"""Kill a sweep at random moments, resume it by the same call, and compare the result with that of an undisturbed sweep.

    python -m tests.sweep_kills --kills 20

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

from jaxdl import _files, dataset, early_stopping, grid, losses, make_plan, metrics, mlp, saving, sweep
from jaxdl.train.plan import NEVER
from tests.bits import bits
from tests.faults import ROOT, cache, check

BEGINS = "the sweep begins"


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
    """Run or resume the sweep of a folder, and write the checksum of its result there."""
    inputs = np.random.default_rng(0).normal(size=(72, 3)).astype(np.float32)
    data = dataset(inputs[:48], inputs[:48, :1] ** 2), dataset(inputs[48:], inputs[48:, :1] ** 2)
    trials = grid(kind=(0, 1), learning_rate=(0.1, 0.02, 0.003))
    options = {"seeds": (3, 0), "epochs": 600, "eta": 3, "min_resource": 200, "method": "map"}
    print(BEGINS, flush=True)
    state = saving.restore_latest(folder / "checkpoints", print)
    with saving.checkpointer(folder / "checkpoints", {}, every=0.05, warn=print) as checkpointer:
        result = sweep(make, trials, *data, callbacks=[checkpointer], state=state, **options)
    text = result.table.to_csv() + result.history.to_csv() + repr(bits((result.best, result.final)))
    draft = folder / "draft"
    draft.write_text(hashlib.sha256(text.encode()).hexdigest())
    draft.rename(folder / "result")


class Sweeps:
    """Sweeps in folders of one folder, with a compilation cache of their own, and the result of an undisturbed one."""

    def __init__(self, folder, seed=0):
        self.folder, self.random, self.number = Path(folder), random.Random(seed), 0
        self.reference = self.run_to_end(self.new())
        # The second sweep reads compiled functions from the cache, as resumed ones do.
        process, began = self.start(self.new()), time.monotonic()
        check(process.wait() == 0, "the second sweep has failed")
        self.seconds = time.monotonic() - began

    def new(self):
        """Return a new folder for a sweep."""
        self.number += 1
        folder = self.folder / str(self.number)
        folder.mkdir()
        return folder

    def start(self, folder):
        """Start or resume the sweep of a folder; return the process once its imports are over."""
        command = [sys.executable, "-m", "tests.sweep_kills", "--run", str(folder)]
        environment = {**os.environ, **cache(self.folder / "cache")}
        with (folder / "log").open("a") as log:
            before = (folder / "log").read_text().count(BEGINS)
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        while (folder / "log").read_text().count(BEGINS) == before:
            check(process.poll() is None, (folder / "log").read_text())
            time.sleep(0.01)
        return process

    def run_to_end(self, folder):
        """Return the result of the sweep of a folder."""
        check(self.start(folder).wait() == 0, (folder / "log").read_text())
        return (folder / "result").read_text()


def moment(checkpoints):
    """Return when a sweep was killed, as its checkpoints show it."""
    numbered = [*checkpoints.glob("[0-9]*")]  # also those that orbax was writing
    if any(not (path / _files.CHECKSUMS).exists() for path in numbered):
        return "in a save"
    return "between saves" if numbered else "before a checkpoint"


def kills(sweeps, count):
    """Kill sweeps a number of times; return a summary. Raises AssertionError where a result differs."""
    folder, kinds, finished = sweeps.new(), {"before a checkpoint": 0, "in a save": 0, "between saves": 0}, 0
    while count:
        process = sweeps.start(folder)
        time.sleep(sweeps.random.uniform(0, sweeps.seconds))
        if process.poll() is None:
            process.kill()
            process.wait()
            kind, count = moment(folder / "checkpoints"), count - 1
            kinds[kind] += 1
            print(f"kill of sweep {folder.name}: {kind}", flush=True)
            if count:
                continue
        check(sweeps.run_to_end(folder) == sweeps.reference, f"sweep {folder.name} differs from the undisturbed one")
        finished, folder = finished + 1, sweeps.new()
    text = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return f"{sum(kinds.values())} SIGKILL ({text}) in {finished} sweeps, all with the bits of the undisturbed one"


def main():
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--run", type=Path, help="the folder of a sweep to run or resume, as this program does itself")
    arguments = parser.parse_args()
    if arguments.run:
        run_sweep(arguments.run)
        return
    with tempfile.TemporaryDirectory() as folder:
        sweeps = Sweeps(folder, arguments.seed)
        print(f"a sweep takes {sweeps.seconds:.1f} s")
        print(kills(sweeps, arguments.kills))


if __name__ == "__main__":
    main()
