"""The CIFAR-10 speed run: the seconds to 94 % mean accuracy, compared with torch on this device and published values.

    python -m benchmarks.speedrun --data DIR [--peers PYTHON] [--runs 5] [--epochs 24] [--out FOLDER]

The recipe `strong` on 50,000 images, one seed per run; `--epochs` sets the length of its one-cycle schedule, and no run
stops early. `--peers` names a Python with torch. Writes <date>-speedrun.md into a folder (default:
benchmarks/results).
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np

from benchmarks import rows
from benchmarks.contestants.start import OURS, Ask, Contestant, find_installed, start_process
from benchmarks.limits import epoch_flops, product_rate
from benchmarks.report import RESULTS, describe_machine
from benchmarks.speedrun.report import FULL, RunResult, Workload, page
from benchmarks.tasks import Task
from experiments.cifar10.experiment import Config, build, resolve
from jaxdl.data import take
from jaxdl.datasets import ImageData, load_cifar10
from jaxdl.errors import InputError
from jaxdl.runs import Setup
from jaxdl.train.evaluate import evaluate
from jaxdl.train.fit import fit

EVALUATED = 2000  # batch size of the evaluation
SIDE, SIDE_ON_CPU = 8192, 1024  # of the square matrices whose product gives the limit

Train = Callable[[int], RunResult | str]  # trains with a seed; returns the message of an error


def resize(dataset: ImageData, count: int) -> ImageData:
    """Return the data set with `count` training images: the first ones, or all of them repeated.

    >>> few = resize(load_cifar10("simulated:120"), 250)
    >>> len(few.train.sample_weight), bool((few.train.inputs[0] == few.train.inputs[200]).all())
    (250, True)
    """
    return dataset._replace(train=take(dataset.train, np.arange(count) % len(dataset.train.sample_weight)))


def train_jaxdl(setup: Setup) -> Train:
    """Return the training of jaxdl, with the data on the device."""
    plan = setup.plan
    train, test = jax.block_until_ready(jax.device_put((setup.train, setup.test)))

    def run(seed: int) -> RunResult:
        began = time.perf_counter()
        result = fit(
            plan.model,
            setup.loss,
            plan.optimizer,
            train,
            metrics=setup.metrics,
            epochs=setup.epochs,
            batch_size=plan.batch_size,
            ema_decay=plan.ema_decay,
            seed=seed,
        )
        jax.block_until_ready(result.final)
        trained = time.perf_counter()
        size = min(EVALUATED, len(test.sample_weight))
        metrics = evaluate(plan.model, result.final, test, setup.loss, metrics=setup.metrics, batch_size=size)
        return RunResult(trained - began, time.perf_counter() - trained, float(metrics["accuracy"]))

    return run


def contestants(config: Config) -> list[Contestant]:
    """Return torch, eager and compiled."""
    names = ("width", "batch_size", "dtype", "learning_rate")
    flags = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    loop = Contestant("torch, eager", "benchmarks.speedrun.torch_loop", ("torch",), tuple(flags))
    return [loop, loop._replace(name="torch, compiled", flags=("--compile", *flags))]


def train_peer(ask: Ask, task: Task, epochs: int) -> Train:
    """Return the training of a contestant in its own process."""
    setup = ask({"prepare": task._asdict()})

    def run(seed: int) -> RunResult | str:
        answer = setup if "error" in setup else ask({"run": epochs, "seed": seed})
        if "error" in answer:
            return str(answer["error"])
        trained, evaluated = answer["ends"]
        return RunResult(trained, evaluated - trained, answer["value"])

    return run


def train_in_turn(trainings: Mapping[str, Train], runs: int) -> tuple[dict[str, list[RunResult]], dict[str, str]]:
    """Return the results of a warm-up and `runs` runs by contestant, and the errors of those that fail."""
    results: dict[str, list[RunResult]] = {name: [] for name in trainings}
    errors: dict[str, str] = {}
    for seed in range(runs + 1):
        for name in [name for name in trainings if name not in errors]:
            result = trainings[name](seed)
            if isinstance(result, str):
                errors[name] = result
            else:
                results[name].append(result)
            print(f"{name}, run {seed}: {result}", file=sys.stderr, flush=True)
    return {name: runs for name, runs in results.items() if name not in errors}, errors


def torch_version(python: str) -> str:
    """Return the version and the device of the torch of a Python."""
    code = (
        "import torch as t; print(t.__version__, t.cuda.get_device_name() if t.cuda.is_available() else 'on the CPU')"
    )
    return "torch " + subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def run(options: argparse.Namespace) -> str:
    """Run all contestants, and return the page."""
    if options.runs < 1:
        raise InputError(f"--runs must be at least 1, got {options.runs}. Use 5, say.")
    names = ("epochs", "width", "batch_size", "dtype", "learning_rate")
    flags = {name: getattr(options, name) for name in names}
    # The split of the lesson takes no training images for validation.
    config = resolve(Config(recipe="strong", train_size=options.images, lesson_split=True, **flags))
    dataset = load_cifar10(options.data)
    setup = build(config, resize(dataset, config.train_size))
    installed, missing = find_installed(options.peers, contestants(config))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, cache = Path(name) / "arrays", Path(name) / "compiled"
        rows.write_sets(folder, {"train": setup.train, "validation": setup.test})
        task = Task("speedrun", "train", "convnet", str(folder), config.train_size)
        trainings = {OURS.name: train_jaxdl(setup)}
        for one in installed:
            ask = stack.enter_context(start_process(one, options.peers, cache))
            trainings[one.name] = train_peer(ask, task, setup.epochs)
        results, errors = train_in_turn(trainings, options.runs)
    flops = setup.epochs * epoch_flops(setup.plan, setup.start, setup.train)
    side = SIDE_ON_CPU if jax.default_backend() == "cpu" else SIDE
    rate = product_rate(side, side, side, config.dtype)
    workload = Workload(config, setup, min(len(dataset.train.sample_weight), config.train_size), flops, rate)
    machine = describe_machine() + (f"; {torch_version(options.peers)}" if installed else "")
    return page(workload, machine, results, missing, errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="auto", help="as in the experiments")
    parser.add_argument("--peers", default=sys.executable, help="a Python with torch")
    parser.add_argument("--runs", type=int, default=5, help="runs after the warm-up")
    parser.add_argument("--images", type=int, default=FULL, help="training images; a smaller data set is repeated")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--learning-rate", type=float, default=0.4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    # The peers need GPU memory too: JAX takes three quarters of it by default.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    text = run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{datetime.date.today()}-speedrun.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
