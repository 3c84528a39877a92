"""The CIFAR-10 speed run: the seconds to 94 % mean accuracy, beside torch on the same device and the published figure.

    python -m benchmarks.speedrun --data DIR [--peers PYTHON] [--runs 5] [--epochs 24] [--out FOLDER]

The recipe `strong` for 50,000 images, a seed a run; `--epochs` fixes the one cycle of its schedule, so no run stops
early. `--peers` names a Python that has torch. Writes <date>-speedrun.md into a folder, benchmarks/results by default.
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
from benchmarks.contestants.start import OURS, Ask, Contestant, present, start_process
from benchmarks.limits import epoch_flops, product_rate
from benchmarks.report import RESULTS, describe_machine
from benchmarks.speedrun.report import FULL, Course, Lap, page
from benchmarks.tasks import Task
from experiments.cifar10.experiment import Config, build, resolve
from jaxdl.data import take
from jaxdl.datasets import ImageData, load_cifar10
from jaxdl.errors import InputError
from jaxdl.runs import Setup
from jaxdl.train.evaluate import evaluate
from jaxdl.train.fit import fit

EVALUATED = 2000  # test images at once
SIDE, SIDE_ON_CPU = 8192, 1024  # of the square matrices whose product is the limit

Race = Callable[[int], Lap | str]  # trains with a seed; words where it fails


def repeated(dataset: ImageData, count: int) -> ImageData:
    """The data set with so many training images: the first ones, or all of them again and again.

    >>> few = repeated(load_cifar10("simulated:120"), 250)
    >>> len(few.train.sample_weight), bool((few.train.inputs[0] == few.train.inputs[200]).all())
    (250, True)
    """
    return dataset._replace(train=take(dataset.train, np.arange(count) % len(dataset.train.sample_weight)))


def ours(built: Setup) -> Race:
    """What a user of jaxdl writes."""
    plan = built.plan
    train, test = jax.block_until_ready(jax.device_put((built.sets["train"], built.sets["test"])))

    def lap(seed: int) -> Lap:
        began = time.perf_counter()
        run = fit(
            plan.model,
            built.loss,
            plan.optimizer,
            train,
            metrics=built.metrics,
            epochs=built.epochs,
            batch_size=plan.batch_size,
            ema_decay=plan.ema_decay,
            seed=seed,
        )
        jax.block_until_ready(run.final)
        trained = time.perf_counter()
        size = min(EVALUATED, len(test.sample_weight))
        accuracy = float(
            evaluate(plan.model, run.final, test, built.loss, metrics=built.metrics, batch_size=size)["accuracy"]
        )
        return Lap(trained - began, time.perf_counter() - trained, accuracy)

    return lap


def contestants(config: Config) -> list[Contestant]:
    """torch, eager and compiled."""
    names = ("width", "batch_size", "dtype", "learning_rate")
    flags = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    loop = Contestant("torch, eager", "benchmarks.speedrun.torch_loop", ("torch",), tuple(flags))
    return [loop, loop._replace(name="torch, compiled", flags=("--compile", *flags))]


def theirs(ask: Ask, task: Task, epochs: int) -> Race:
    """A contestant in a process of its own."""
    prepared = ask({"prepare": task._asdict()})

    def lap(seed: int) -> Lap | str:
        answer = prepared if "error" in prepared else ask({"run": epochs, "seed": seed})
        if "error" in answer:
            return str(answer["error"])
        trained, measured = answer["ends"]
        return Lap(trained, measured - trained, answer["figure"])

    return lap


def raced(races: Mapping[str, Race], runs: int) -> tuple[dict[str, list[Lap]], dict[str, str]]:
    """The laps of each, one to warm up and then `runs`, and the errors of those that failed."""
    laps: dict[str, list[Lap]] = {name: [] for name in races}
    errors: dict[str, str] = {}
    for seed in range(runs + 1):
        for name in [name for name in races if name not in errors]:
            lap = races[name](seed)
            if isinstance(lap, str):
                errors[name] = lap
            else:
                laps[name].append(lap)
            print(f"{name}, run {seed}: {lap}", file=sys.stderr, flush=True)
    return {name: done for name, done in laps.items() if name not in errors}, errors


def torch_of(python: str) -> str:
    """Version and device of the torch of a Python."""
    ask = "import torch as t; print(t.__version__, t.cuda.get_device_name() if t.cuda.is_available() else 'on the CPU')"
    return "torch " + subprocess.run([python, "-c", ask], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def run(options: argparse.Namespace) -> str:
    """The page."""
    if options.runs < 1:
        raise InputError(f"--runs must be at least 1, got {options.runs}. Use 5, say.")
    names = ("epochs", "width", "batch_size", "dtype", "learning_rate")
    chosen = {name: getattr(options, name) for name in names}
    # The lesson's split leaves no training images for validation: there is none here.
    config = resolve(Config(recipe="strong", train_size=options.images, lesson_split=True, **chosen))
    dataset = load_cifar10(options.data)
    built = build(config, repeated(dataset, config.train_size))
    here, missing = present(options.peers, contestants(config))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, cache = Path(name) / "arrays", Path(name) / "compiled"
        rows.write_sets(folder, {"train": built.sets["train"], "validation": built.sets["test"]})
        task = Task("speedrun", "train", "convnet", str(folder), config.train_size)
        races = {OURS.name: ours(built)}
        for one in here:
            races[one.name] = theirs(stack.enter_context(start_process(one, options.peers, cache)), task, built.epochs)
        laps, errors = raced(races, options.runs)
    flops = built.epochs * epoch_flops(built.plan, built.start, built.sets["train"])
    side = SIDE_ON_CPU if jax.default_backend() == "cpu" else SIDE
    rate = product_rate(side, side, side, config.dtype)
    course = Course(config, built, min(len(dataset.train.sample_weight), config.train_size), flops, rate)
    around = describe_machine() + (f"; {torch_of(options.peers)}" if here else "")
    return page(course, around, laps, missing, errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="auto", help="as of the experiments")
    parser.add_argument("--peers", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--runs", type=int, default=5, help="beside the one that warms up")
    parser.add_argument("--images", type=int, default=FULL, help="to train on, repeated where fewer are at hand")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--learning-rate", type=float, default=0.4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    # The peers need room on the card beside JAX, which takes three quarters of it unless told otherwise.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    text = run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{datetime.date.today()}-speedrun.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
