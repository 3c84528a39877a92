"""What a process costs before it trains: its imports, and all up to the end of its first epoch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.contestants import ROOT, Contestant, command, environment
from benchmarks.rounds import SURE, Found, Measured, far
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
    contestants: Sequence[Contestant], peers: str, task: Task, rounds: int, cached: bool
) -> Mapping[str, Measured]:
    """Seconds from the start of a process to its end after one epoch, and its peak memory.

    cached: whether programs that it has compiled before are kept on disk, as each can; the first time is not counted.
    """
    runs: dict[str, list[tuple[float, float, float]]] = {one.name: [] for one in contestants}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(-1 if cached else 0, rounds):
            behind = far({name: [run[0] for run in done] for name, done in runs.items()}) if index >= SURE else set()
            for one in [one for one in contestants if one.name not in failed and one.name not in behind]:
                cache = Path(folder, one.name.replace(" ", "-") if cached else f"{one.name}-{index}".replace(" ", "-"))
                try:
                    run = once(one, peers, task, cache)
                except subprocess.CalledProcessError as error:
                    failed[one.name] = f"ended with {error.returncode}"
                    continue
                if index >= 0:
                    runs[one.name].append(run)
    found = {name: Measured((), error=failed[name]) for name in failed}
    for name, all_runs in runs.items():
        if name not in failed:
            seconds, memory, figure = zip(*all_runs, strict=True)
            found[name] = Measured(seconds, max(memory), figure[-1], 1)
    return found


def once(contestant: Contestant, peers: str, task: Task, cache: Path) -> tuple[float, float, float]:
    """Seconds of a process of one epoch, its peak memory in MB, and its figure."""
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
    return seconds, said["memory"], said["figure"]


def imports(contestants: Sequence[Contestant], peers: str, rounds: int) -> tuple[Found, Measured]:
    """Seconds that a Python needs to start and to import each, and those of what jaxdl is made of."""
    programs = {}
    for one in contestants:
        if one.name in IMPORTS:
            backend = {"KERAS_BACKEND": one.flags[1]} if "--backend" in one.flags else {}
            programs[one.name] = (sys.executable if one.own else peers, IMPORTS[one.name], backend)
    programs[FLOOR] = (sys.executable, f"{FLOOR}; from benchmarks.contestant import memory; print(memory())", {})
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    peak = 0.0
    for _ in range(-1, rounds):
        for name, (python, modules, more) in programs.items():
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
    # The first round read the files from disk.
    found = {name: Measured(tuple(values[1:])) for name, values in seconds.items()}
    return found, found.pop(FLOOR)._replace(memory=peak)
