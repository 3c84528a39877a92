"""Measure the rows of the benchmark table in rounds, and process starts, data sizes, checkpoints and logs."""

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
from benchmarks.rows import Row, row_seconds
from benchmarks.tasks import BATCH, Task, load
from experiments.weather.experiment import Config, build
from jaxdl import callbacks
from jaxdl.datasets import load_weather
from jaxdl.runs import Setup
from jaxdl.runs.runner import drive
from jaxdl.saving import checkpointer, restore_latest

RUN_SECONDS = 0.2  # target length of a run; it sets the number of epochs or repetitions
# A peer that takes FAR times as long as jaxdl in each of the first SURE rounds is not run again; the best peer is.
FAR, SURE = 3, 2
LONGEST = 1.0  # estimated seconds of a row above which a peer is not run: ten times its tenth row is reported


class Measurement(NamedTuple):
    """The time and memory of a contestant in a row."""

    seconds: tuple[float, ...]  # of each round
    memory: float = 0.0  # peak of the process in MB, after the row
    value: float = 0.0  # the result of the task
    epochs: float = 0.0  # epochs of a run
    derived: bool = False  # calculated from another measurement
    error: str = ""

    @property
    def median(self) -> float:
        """Return the median of the seconds."""
        return statistics.median(self.seconds)


Measurements = dict[str, Measurement]  # by contestant


def measure_row(
    row: Row,
    asks: Mapping[str, Ask],
    rounds: int,
    before: Measurements | None = None,
    warn: Callable[[str], None] = print,
) -> Measurements:
    """Prepare all contestants of a row one after the other, then measure them in turn.

    before: the measurements of the row with a tenth of the work.
    """
    began = time.perf_counter()
    measurements: Measurements = {}
    counts: dict[str, int] = {}
    for name, ask in asks.items():
        tenth = before.get(name) if before and name != OURS.name else None
        if tenth and (tenth.error or 10 * tenth.median > LONGEST):
            measurements[name] = multiply(tenth, 10)
            continue
        answer = prepare(row, ask)
        if "error" in answer:
            measurements[name] = Measurement((), error=str(answer["error"]))
        else:
            counts[name] = repetitions(row, answer["ends"])
    ready = time.perf_counter()
    measurements |= measure_in_turn(row, asks, counts, rounds)
    warn(f"{row.title}: prepared in {ready - began:.0f} s, measured in {time.perf_counter() - ready:.0f} s")
    measurements = {name: measurements[name] for name in asks}
    warn("    " + ", ".join(f"{name} {one.error or f'{one.median:.3g} s'}" for name, one in measurements.items()))
    return measurements


def prepare(row: Row, ask: Ask) -> dict:
    """Prepare the task, run it until nothing is compiled any more, and return the last answer or the error."""
    answer = ask({"prepare": row.task._asdict()})
    if "error" not in answer:
        answer = ask({"run": 2, "seed": 0})
    # Short epochs need a second run: the first may read the ends of two epochs at once.
    if (
        "error" not in answer
        and row.per not in ("stop", "sweep")
        and answer["ends"][-1] - answer["ends"][0] < RUN_SECONDS
    ):
        answer = ask({"run": 3, "seed": 0})
    return answer


def measure_in_turn(row: Row, asks: Mapping[str, Ask], counts: Mapping[str, int], rounds: int) -> Measurements:
    """Run `counts` epochs or repetitions of each contestant in every round; return times, or the error of a failure."""
    taken: dict[str, list[float]] = {name: [] for name in counts}
    epochs: dict[str, list[int]] = {name: [] for name in counts}
    measurements: Measurements = {}
    for seed in range(rounds):
        behind = far_behind(taken) if seed >= SURE else set()
        for name, count in counts.items():
            if name in behind or (name in measurements and measurements[name].error):
                continue
            answer = asks[name]({"run": count, "seed": seed})
            if "error" in answer:
                measurements[name] = Measurement((), error=str(answer["error"]))
                continue
            taken[name].append(row_seconds(row, answer["ends"]))
            epochs[name].append(len(answer["ends"]))
            mean = statistics.mean(epochs[name])
            measurements[name] = Measurement(tuple(taken[name]), answer["memory"], answer["value"], mean)
    return measurements


def far_behind(taken: Mapping[str, Sequence[float]]) -> set[str]:
    """Return the peers that took more than FAR times as long as jaxdl in every round, without the best peer.

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
    """Return the measurement of `times` repetitions, one after the other."""
    if measured.error:
        return measured
    return measured._replace(seconds=tuple(times * s for s in measured.seconds), derived=True)


def repetitions(row: Row, ends: Sequence[float]) -> int:
    """Return the epochs or repetitions of a run of about RUN_SECONDS.

    >>> from benchmarks.tasks import Task
    >>> repetitions(Row("", "", Task("plain", "train", "mlp", "", 767), "whole", epochs=200), [0.3, 0.31])
    20
    """
    if row.per in ("stop", "sweep"):
        return row.epochs
    one = max(1e-6, (ends[-1] - ends[0]) / (len(ends) - 1))
    return max(2, min(row.epochs if row.per == "whole" else 10_000, round(RUN_SECONDS / one)))


# Process starts: the imports, and a whole process of one epoch.

# The first import of a user's program, by contestant.
IMPORTS = {
    "jaxdl": "jaxdl",
    "torch": "torch",
    "scikit-learn": "sklearn.neural_network",
    "Flax, jit a step": "flax.linen, optax",
    "Keras, JAX": "keras",
    "Keras, TensorFlow": "keras",
    "Keras, torch": "keras",
}
FLOOR = "jax, flax, optax"  # the imports that jaxdl cannot avoid


def measure_starts(
    contestants: Sequence[Contestant], peers: str, task: Task, rounds: int
) -> tuple[Mapping[str, Measurement], Mapping[str, Measurement]]:
    """Measure the seconds and the peak memory of a process of one epoch, from start to end.

    Returns the measurements with an empty compilation cache, and with the cache of the process before where the
    contestant has one.
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
    cold, warm_ones = ({name: _merge([pair[i] for pair in pairs]) for name, pairs in whole.items()} for i in (0, 1))
    return cold | failed, warm_ones | failed


def _merge(runs: Sequence[Measurement]) -> Measurement:
    """Return the measurement of several processes, with the largest peak memory."""
    return runs[-1]._replace(seconds=tuple(run.median for run in runs), memory=max(run.memory for run in runs))


def run_once(contestant: Contestant, peers: str, task: Task, cache: Path) -> Measurement:
    """Run and measure a process of one epoch."""
    began = time.perf_counter()
    process = subprocess.run(
        command(contestant, peers, "--once", json.dumps(task._asdict())),
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=environment(cache),
    )
    seconds = time.perf_counter() - began
    answer = json.loads(process.stdout.splitlines()[-1])
    return Measurement((seconds,), answer["memory"], answer["value"], 1)


def measure_imports(contestants: Sequence[Contestant], peers: str, rounds: int) -> tuple[Measurements, Measurement]:
    """Measure the seconds of starting Python and importing each contestant, and of importing FLOOR.

    Call it after other rows, so that the files are in the disk cache.
    """
    commands = {}
    for one in contestants:
        if one.name in IMPORTS:
            backend = {"KERAS_BACKEND": one.flags[1]} if "--backend" in one.flags else {}
            commands[one.name] = (sys.executable if one.own else peers, IMPORTS[one.name], backend)
    commands[FLOOR] = (
        sys.executable,
        f"{FLOOR}; from benchmarks.contestants.protocol import memory; print(memory())",
        {},
    )
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peak = 0.0
    for index in range(rounds):
        behind = far_behind(seconds) if index >= SURE else set()
        for name, (python, modules, more) in commands.items():
            if name in behind:
                continue
            began = time.perf_counter()
            process = subprocess.run(
                [python, "-c", f"import {modules}"],
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                env={**environment(None), **more},
            )
            seconds[name].append(time.perf_counter() - began)
            peak = float(process.stdout.split()[-1]) if name == FLOOR else peak
    imports = {name: Measurement(tuple(values)) for name, values in seconds.items()}
    return imports, imports.pop(FLOOR)._replace(memory=peak)


# Cost against size: seconds and memory of an epoch by the number of examples.

NEAR = (-1, 0, 1, 16, 31, 32, 33)  # examples beyond whole batches
EPOCHS = 40


class Cost(NamedTuple):
    """The cost of an epoch."""

    rows: int  # training examples
    seconds: float
    memory: float = 0.0  # peak in MB of a process that only trains
    data: float = 0.0  # MB of the examples


def memory(task: Task) -> tuple[float, float]:
    """Return the peak in MB of a process that trains for an epoch, and the MB of its examples."""
    arrays = load(task)
    with tempfile.TemporaryDirectory() as folder:
        peak = run_once(OURS, "", task, Path(folder)).memory
    return peak, sum(array.nbytes for array in arrays.train) / 1e6


def around_batches(task: Task, rounds: int) -> list[Cost]:
    """Measure epochs with slightly fewer and more examples than whole batches, in turn."""
    whole = task.rows // BATCH * BATCH
    tasks = [task._replace(rows=whole + more) for more in NEAR]
    runs = {task.rows: jaxdl_loop.prepare(task, load(task)) for task in tasks}
    seconds: dict[int, list[float]] = {rows: [] for rows in runs}
    for index in range(-1, rounds):
        for rows, run in runs.items():
            ends = run(EPOCHS if index >= 0 else 2, max(0, index)).ends
            if index >= 0:
                seconds[rows].append((ends[-1] - ends[0]) / (len(ends) - 1))
    return [Cost(rows, statistics.median(values)) for rows, values in seconds.items()]


# The cost of checkpoints, of logs and of resuming. Recipe `plain`, 200 epochs, already compiled.

EVERY = 30.0  # seconds between checkpoints, as the experiments have


class SavingCost(NamedTuple):
    """The cost of checkpoints or logs, and its lower limit."""

    title: str
    measured: Measurement
    limit: float  # seconds
    of: str  # what the limit consists of


def measure_saving(data: str, rounds: int) -> list[SavingCost]:
    """Measure a run without and with checkpoints or logs, and reading a checkpoint; each with its limit."""
    built = build(Config(recipe="plain"), load_weather(data, days=1096))
    measures: dict[str, Callable[[Path], float]] = {
        "alone": lambda folder: train_seconds(built, folder),
        "saved": lambda folder: train_seconds(built, folder, keep=True),
        "logged": lambda folder: train_seconds(built, folder, logged=True),
        "resumed": lambda folder: resume_seconds(built, folder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    sizes = dict.fromkeys(measures, 0)
    for index in range(-1, rounds):
        for name, measure in measures.items():
            with tempfile.TemporaryDirectory() as folder:
                took = measure(Path(folder))
                sizes[name] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            if index >= 0:
                seconds[name].append(took)
    times = {name: Measurement(tuple(values)) for name, values in seconds.items()}

    def on_disk(speed: Callable[[int], float], name: str) -> float:
        return sizes[name] / statistics.median(speed(sizes[name]) for _ in range(rounds))

    alone, beside = times["alone"].median, "without, and its bytes to the disk"
    saved, logged = (alone + on_disk(write_rate, name) for name in ("saved", "logged"))
    return [
        SavingCost("200 epochs, checkpoints every 30 s and at the end", times["saved"], saved, beside),
        SavingCost("200 epochs, history.csv and TensorBoard", times["logged"], logged, beside),
        SavingCost(
            "a checkpoint, read and checked", times["resumed"], on_disk(read_rate, "resumed"), "its bytes read back"
        ),
    ]


def train_seconds(built: Setup, folder: Path, *, keep: bool = False, logged: bool = False) -> float:
    """Return the seconds of a run, optionally with checkpoints or logs."""
    began = time.perf_counter()
    with ExitStack() as stack:
        enter: Callable[[AbstractContextManager[Any]], Any] = stack.enter_context
        keeping = enter(checkpointer(folder / "progress", {}, every=EVERY, warn=print)) if keep else None
        on_epoch = (
            [enter(callbacks.csv_log(folder / "history.csv")), enter(callbacks.tensorboard(folder))] if logged else []
        )
        sets = built.sets["train"], built.sets["validation"]
        drive(built.plan, built.start, *sets, epochs=built.epochs, callbacks=on_epoch, keep=keeping)
    return time.perf_counter() - began


def resume_seconds(built: Setup, folder: Path) -> float:
    """Return the seconds of restoring a checkpoint into memory."""
    with checkpointer(folder / "progress", {}, every=EVERY, warn=print) as keep:
        keep(built.start, [{"epoch": 1}])
    began = time.perf_counter()
    assert restore_latest(folder / "progress", print) is not None
    return time.perf_counter() - began


def write_rate(size: int) -> float:
    """Return the bytes per second of writing a file of `size` bytes to the disk."""
    with tempfile.TemporaryFile(buffering=0) as file:
        began = time.perf_counter()
        file.write(bytes(size))
        os.fsync(file.fileno())
        return size / (time.perf_counter() - began)


def read_rate(size: int) -> float:
    """Return the bytes per second of reading a file of `size` bytes that was just written."""
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(bytes(size))
        file.seek(0)
        began = time.perf_counter()
        file.read()
        return size / (time.perf_counter() - began)
