"""What a process costs before it trains: its imports, and all up to the end of its first epoch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.contestants.start import ROOT, Contestant, command, environment
from benchmarks.measure import SURE, Found, Measured, far
from benchmarks.tasks import Task

# What a user's program imports first, by contestant.
IMPORTS = {
    "jaxdl": "jaxdl",
    "torch": "torch",
    "scikit-learn": "sklearn.neural_network",
    "Flax, jit a step": "flax.linen, optax",
    "Keras, JAX": "keras",
    "Keras, TensorFlow": "keras",
    "Keras, torch": "keras",
}
FLOOR = "jax, flax, optax"  # what jaxdl is made of


def first_epochs(
    contestants: Sequence[Contestant], peers: str, task: Task, rounds: int
) -> tuple[Mapping[str, Measured], Mapping[str, Measured]]:
    """Seconds from the start of a process to its end after one epoch, and its peak memory: of one that finds nothing
    compiled, and of one that finds on the disk what the one before has compiled, as each contestant can.
    """
    taken: dict[str, list[tuple[Measured, Measured]]] = {one.name: [] for one in contestants}
    failed: Found = {}
    for index in range(rounds):
        warm = {name: [second.median for _, second in pairs] for name, pairs in taken.items()}
        behind = far(warm) if index >= SURE else set()
        for one in [one for one in contestants if one.name not in behind | failed.keys()]:
            with tempfile.TemporaryDirectory() as cache:
                try:
                    taken[one.name].append((once(one, peers, task, Path(cache)), once(one, peers, task, Path(cache))))
                except subprocess.CalledProcessError as error:
                    failed[one.name] = Measured((), error=f"ended with {error.returncode}")
    whole = {name: pairs for name, pairs in taken.items() if name not in failed}
    cold, warm_ones = ({name: _together([pair[i] for pair in pairs]) for name, pairs in whole.items()} for i in (0, 1))
    return cold | failed, warm_ones | failed


def _together(runs: Sequence[Measured]) -> Measured:
    return runs[-1]._replace(seconds=tuple(run.median for run in runs), memory=max(run.memory for run in runs))


def once(contestant: Contestant, peers: str, task: Task, cache: Path) -> Measured:
    """A process of one epoch."""
    began = time.perf_counter()
    done = subprocess.run(
        command(contestant, peers, "--once", json.dumps(task._asdict())),
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=environment(cache),
    )
    seconds = time.perf_counter() - began
    said = json.loads(done.stdout.splitlines()[-1])
    return Measured((seconds,), said["memory"], said["figure"], 1)


def imports(contestants: Sequence[Contestant], peers: str, rounds: int) -> tuple[Found, Measured]:
    """Seconds that a Python needs to start and to import each, and those of what jaxdl is made of.

    To be asked after other rows, which have read the files from the disk.
    """
    programs = {}
    for one in contestants:
        if one.name in IMPORTS:
            backend = {"KERAS_BACKEND": one.flags[1]} if "--backend" in one.flags else {}
            programs[one.name] = (sys.executable if one.own else peers, IMPORTS[one.name], backend)
    programs[FLOOR] = (
        sys.executable,
        f"{FLOOR}; from benchmarks.contestants.protocol import memory; print(memory())",
        {},
    )
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    peak = 0.0
    for index in range(rounds):
        behind = far(seconds) if index >= SURE else set()
        for name, (python, modules, more) in programs.items():
            if name in behind:
                continue
            began = time.perf_counter()
            done = subprocess.run(
                [python, "-c", f"import {modules}"],
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                env={**environment(None), **more},
            )
            seconds[name].append(time.perf_counter() - began)
            peak = float(done.stdout.split()[-1]) if name == FLOOR else peak
    found = {name: Measured(tuple(values)) for name, values in seconds.items()}
    return found, found.pop(FLOOR)._replace(memory=peak)
