"""Measure the rows of the table, round after round, and what lies around training: starts, sizes and checkpoints."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.contestants import jaxdl_loop
from benchmarks.contestants.start import OURS, ROOT, Ask, Contestant, command, environment
from benchmarks.rows import Row, seconds
from benchmarks.tasks import BATCH, Task, load
from experiments.weather.experiment import Config, build
from jaxdl import callbacks
from jaxdl.datasets import load_weather
from jaxdl.runs import Setup
from jaxdl.runs.runner import drive
from jaxdl.saving import checkpointer, restore_latest

BOX = 0.2  # seconds of a run: it has as many epochs, or times, as fit into them
FAR = 3  # times ours: who takes longer in each of the first rounds is not run again, but for the best peer
SURE = 2  # how many those are
LONGEST = 1.0  # seconds of a row beyond which a peer is not run where a tenth of the row was: ten times that stands


class Measurement(NamedTuple):
    """What a contestant needs for a row."""

    seconds: tuple[float, ...]  # of each round
    memory: float = 0.0  # the process's peak in MB, after the row
    figure: float = 0.0
    epochs: float = 0.0  # that a run had
    derived: bool = False  # whether it is ten times what a tenth of the row needs
    error: str = ""

    @property
    def median(self) -> float:
        """Seconds, the median of the rounds."""
        return statistics.median(self.seconds)


Measurements = dict[str, Measurement]  # by contestant


def measure_row(
    row: Row,
    asks: Mapping[str, Ask],
    rounds: int,
    before: Measurements | None = None,
    warn: Callable[[str], None] = print,
) -> Measurements:
    """Measure a row with all contestants: prepared one after the other, then measured in turn.

    before: the figures of the row that is a tenth of this one.
    """
    began = time.perf_counter()
    found: Measurements = {}
    amounts: dict[str, int] = {}
    for name, ask in asks.items():
        tenth = before.get(name) if before and name != OURS.name else None
        if tenth and (tenth.error or 10 * tenth.median > LONGEST):
            found[name] = multiply(tenth, 10)
            continue
        answer = prepare(row, ask)
        if "error" in answer:
            found[name] = Measurement((), error=str(answer["error"]))
        else:
            amounts[name] = amount(row, answer["ends"])
    ready = time.perf_counter()
    found |= in_turn(row, asks, amounts, rounds)
    warn(f"{row.title}: prepared in {ready - began:.0f} s, measured in {time.perf_counter() - ready:.0f} s")
    found = {name: found[name] for name in asks}
    warn("    " + ", ".join(f"{name} {one.error or f'{one.median:.3g} s'}" for name, one in found.items()))
    return found


def prepare(row: Row, ask: Ask) -> dict:
    """Return the answer to a first run, or to one in which nothing is compiled any more; or the error."""
    answer = ask({"prepare": row.task._asdict()})
    if "error" not in answer:
        answer = ask({"run": 2, "seed": 0})
    # A long epoch is as long as another, but a short one may end with the one before.
    if "error" not in answer and row.per not in ("stop", "sweep") and answer["ends"][-1] - answer["ends"][0] < BOX:
        answer = ask({"run": 3, "seed": 0})
    return answer


def in_turn(row: Row, asks: Mapping[str, Ask], amounts: Mapping[str, int], rounds: int) -> Measurements:
    """Run so many epochs, or times, of each contestant, round after round; one that fails has its error instead."""
    taken: dict[str, list[float]] = {name: [] for name in amounts}
    epochs: dict[str, list[int]] = {name: [] for name in amounts}
    found: Measurements = {}
    for seed in range(rounds):
        behind = far_behind(taken) if seed >= SURE else set()
        for name, many in amounts.items():
            if name in behind or (name in found and found[name].error):
                continue
            answer = asks[name]({"run": many, "seed": seed})
            if "error" in answer:
                found[name] = Measurement((), error=str(answer["error"]))
                continue
            taken[name].append(seconds(row, answer["ends"]))
            epochs[name].append(len(answer["ends"]))
            mean = statistics.mean(epochs[name])
            found[name] = Measurement(tuple(taken[name]), answer["memory"], answer["figure"], mean)
    return found


def far_behind(taken: Mapping[str, Sequence[float]]) -> set[str]:
    """Return who took so much longer than jaxdl in some rounds that it need not go on; never the best peer.

    >>> sorted(far_behind({"jaxdl": [1.0, 1.1], "near": [5.0, 3.0], "far": [5.0, 3.1], "failed": []}))
    ['far']
    >>> far_behind({"jaxdl": [1.0], "best": [9.0]})
    set()
    """
    least = {name: min(seconds) for name, seconds in taken.items() if seconds}
    peers = {name: seconds for name, seconds in least.items() if name != OURS.name}
    if OURS.name not in least or not peers:
        return set()
    most = max(FAR * least[OURS.name], min(peers.values()))
    return {name for name, seconds in peers.items() if seconds > most}


def multiply(measured: Measurement, times: int) -> Measurement:
    """Return the seconds of so many of the same, one after the other."""
    if measured.error:
        return measured
    return measured._replace(seconds=tuple(times * s for s in measured.seconds), derived=True)


def amount(row: Row, ends: Sequence[float]) -> int:
    """Return how many epochs, or times, a run of about BOX seconds has.

    >>> from benchmarks.tasks import Task
    >>> amount(Row("", "", Task("plain", "train", "mlp", "", 767), "whole", epochs=200), [0.3, 0.31])
    20
    """
    if row.per in ("stop", "sweep"):
        return row.epochs
    one = max(1e-6, (ends[-1] - ends[0]) / (len(ends) - 1))
    return max(2, min(row.epochs if row.per == "whole" else 10_000, round(BOX / one)))


# What a process costs before it trains: its imports, and all up to the end of its first epoch.

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


def measure_starts(
    contestants: Sequence[Contestant], peers: str, task: Task, rounds: int
) -> tuple[Mapping[str, Measurement], Mapping[str, Measurement]]:
    """Measure a process from its start to its end after one epoch: the seconds, and the peak memory.

    The first result is of a process that finds nothing compiled, the second of one that finds on the disk what the
    process before has compiled, as far as the contestant can.
    """
    taken: dict[str, list[tuple[Measurement, Measurement]]] = {one.name: [] for one in contestants}
    failed: Measurements = {}
    for index in range(rounds):
        warm = {name: [second.median for _, second in pairs] for name, pairs in taken.items()}
        behind = far_behind(warm) if index >= SURE else set()
        for one in [one for one in contestants if one.name not in behind | failed.keys()]:
            with tempfile.TemporaryDirectory() as cache:
                try:
                    taken[one.name].append(
                        (run_once(one, peers, task, Path(cache)), run_once(one, peers, task, Path(cache)))
                    )
                except subprocess.CalledProcessError as error:
                    failed[one.name] = Measurement((), error=f"ended with {error.returncode}")
    whole = {name: pairs for name, pairs in taken.items() if name not in failed}
    cold, warm_ones = ({name: _together([pair[i] for pair in pairs]) for name, pairs in whole.items()} for i in (0, 1))
    return cold | failed, warm_ones | failed


def _together(runs: Sequence[Measurement]) -> Measurement:
    return runs[-1]._replace(seconds=tuple(run.median for run in runs), memory=max(run.memory for run in runs))


def run_once(contestant: Contestant, peers: str, task: Task, cache: Path) -> Measurement:
    """Run a process of one epoch."""
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
    return Measurement((seconds,), said["memory"], said["figure"], 1)


def measure_imports(contestants: Sequence[Contestant], peers: str, rounds: int) -> tuple[Measurements, Measurement]:
    """Measure the seconds that a Python needs to start and to import each, and those of what jaxdl is made of.

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
        behind = far_behind(seconds) if index >= SURE else set()
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
    found = {name: Measurement(tuple(values)) for name, values in seconds.items()}
    return found, found.pop(FLOOR)._replace(memory=peak)


# Cost against size: seconds and memory of an epoch of more and more rows.

NEAR = (-1, 0, 1, 16, 31, 32, 33)  # rows beyond whole batches
EPOCHS = 40


class Cost(NamedTuple):
    """What an epoch of so many rows costs."""

    rows: int
    seconds: float
    memory: float = 0.0  # MB, the peak of a process that trains on them and does nothing else
    data: float = 0.0  # MB of the rows themselves


def memory(task: Task) -> tuple[float, float]:
    """Return the peak in MB of a process that trains for an epoch, and the MB of its rows."""
    arrays = load(task)
    with tempfile.TemporaryDirectory() as folder:
        peak = run_once(OURS, "", task, Path(folder)).memory
    return peak, sum(array.nbytes for array in arrays.train) / 1e6


def around_batches(task: Task, rounds: int) -> list[Cost]:
    """Measure epochs of a few rows less and more than whole batches, in turn."""
    whole = task.rows // BATCH * BATCH
    tried = [task._replace(rows=whole + more) for more in NEAR]
    runs = {task.rows: jaxdl_loop.prepare(task, load(task)) for task in tried}
    seconds: dict[int, list[float]] = {rows: [] for rows in runs}
    for index in range(-1, rounds):
        for rows, run in runs.items():
            ends = run(EPOCHS if index >= 0 else 2, max(0, index)).ends
            if index >= 0:
                seconds[rows].append((ends[-1] - ends[0]) / (len(ends) - 1))
    return [Cost(rows, statistics.median(values)) for rows, values in seconds.items()]


# What it costs to keep a run: checkpoints, logs, and to resume. Recipe `plain`, 200 epochs, warm.

EVERY = 30.0  # seconds between checkpoints, as the experiments have


class Kept(NamedTuple):
    """What checkpoints or logs cost, and what they cannot undercut."""

    title: str
    measured: Measurement
    limit: float  # seconds
    of: str  # what the limit is


def measure_keeping(data: str, rounds: int) -> list[Kept]:
    """Measure a run with and without checkpoints and logs, and a resume; each with its limit."""
    built = build(Config(recipe="plain"), load_weather(data, days=1096))
    ways: dict[str, Callable[[Path], float]] = {
        "alone": lambda folder: train_seconds(built, folder),
        "kept": lambda folder: train_seconds(built, folder, keep=True),
        "logged": lambda folder: train_seconds(built, folder, logged=True),
        "resumed": lambda folder: resume_seconds(built, folder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    sizes = dict.fromkeys(ways, 0)
    for index in range(-1, rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                took = way(Path(folder))
                sizes[name] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            if index >= 0:
                seconds[name].append(took)
    measured = {name: Measurement(tuple(values)) for name, values in seconds.items()}

    def on_disk(speed: Callable[[int], float], name: str) -> float:
        return sizes[name] / statistics.median(speed(sizes[name]) for _ in range(rounds))

    alone, beside = measured["alone"].median, "without, and its bytes to the disk"
    kept, logged = (alone + on_disk(write_rate, name) for name in ("kept", "logged"))
    return [
        Kept("200 epochs, checkpoints every 30 s and at the end", measured["kept"], kept, beside),
        Kept("200 epochs, history.csv and TensorBoard", measured["logged"], logged, beside),
        Kept(
            "a checkpoint, read and checked", measured["resumed"], on_disk(read_rate, "resumed"), "its bytes read back"
        ),
    ]


def train_seconds(built: Setup, folder: Path, *, keep: bool = False, logged: bool = False) -> float:
    """Return the seconds of a run, with checkpoints and logs where asked for."""
    began = time.perf_counter()
    with ExitStack() as stack:
        enter: Callable[[AbstractContextManager[Any]], Any] = stack.enter_context
        keeping = enter(checkpointer(folder / "progress", {}, every=EVERY, warn=print)) if keep else None
        on_epoch = (
            [enter(callbacks.csv_log(folder / "history.csv")), enter(callbacks.tensorboard(folder))] if logged else []
        )
        sets = built.sets["train"], built.sets["validation"]
        drive(built.plan, built.start, *sets, epochs=built.epochs, callbacks=on_epoch, save=keeping)
    return time.perf_counter() - began


def resume_seconds(built: Setup, folder: Path) -> float:
    """Return the seconds until the progress of a checkpoint is in memory."""
    with checkpointer(folder / "progress", {}, every=EVERY, warn=print) as keep:
        keep(built.start, [{"epoch": 1}])
    began = time.perf_counter()
    assert restore_latest(folder / "progress", print) is not None
    return time.perf_counter() - began


def write_rate(size: int) -> float:
    """Return the bytes a second with which so many are written, down to the disk."""
    with tempfile.TemporaryFile(buffering=0) as file:
        began = time.perf_counter()
        file.write(bytes(size))
        os.fsync(file.fileno())
        return size / (time.perf_counter() - began)


def read_rate(size: int) -> float:
    """Return the bytes a second with which so many are read, from a file that was written just now."""
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(bytes(size))
        file.seek(0)
        began = time.perf_counter()
        file.read()
        return size / (time.perf_counter() - began)
