"""The time of many runs trained together, of a single run, and of runs in Keras, measured in turn.

    python -m benchmarks.studies.ensembles --data DIR --peers PYTHON [--repeats 5]

`--peers` names the Python of an environment with keras, jax, scikit-learn and pandas; without it only jaxdl runs.
All values are seconds per run of 200 epochs of `plain`, already compiled; those of Keras are the mean of four runs in a
process. Prints medians with the least and the greatest value.

The subcommand `process` trains a recipe for many seeds together and prints a line of JSON per repetition; the first
repetition compiles. `--members 0` trains seed 0 alone in the same loop:

    python -m benchmarks.studies.ensembles process --data DIR --members 64 --devices 2 --method vmap
    python -m benchmarks.studies.ensembles process --data DIR --experiment cifar10 --recipe pooled --method map
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import optax

from benchmarks.studies.alternating import alternate, output
from experiments.cifar10 import experiment as cifar10
from experiments.weather import experiment as weather
from jaxdl.ensembles import run_members, shard_members, start_members
from jaxdl.runs import Setup
from jaxdl.train import epochs
from jaxdl.train.epoch import run_chunk
from jaxdl.train.loop import Run

PROCESS = "process"  # the subcommand of a single process


def build_setup(options: argparse.Namespace) -> Setup:
    """Build the recipe; without --flat the weather has plain Adam, because many members would copy flat vectors."""
    if options.experiment == "weather":
        weather_config = weather.Config(recipe=options.recipe, data=options.data, epochs=options.epochs)
        setup = weather.build(weather_config, weather.load(weather_config))
        adam = optax.inject_hyperparams(optax.adam)(learning_rate=weather_config.learning_rate)
        return setup if options.flat else replace(setup, optimizer=adam)
    config = cifar10.Config(
        recipe=options.recipe, data=options.data, epochs=options.epochs, train_size=options.rows, lesson_split=True
    )
    return cifar10.build(config, cifar10.load(config))


def run_process(flags: list[str]) -> None:
    """Train in this process, and print a line of JSON per repetition."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.ensembles process")
    parser.add_argument("--data", required=True)
    parser.add_argument("--experiment", choices=("weather", "cifar10"), default="weather")
    parser.add_argument("--recipe", choices=[*weather.RECIPES, *cifar10.RECIPES], default="plain")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rows", type=int, default=5000, help="training images")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--method", choices=("vmap", "map"), default="vmap")
    parser.add_argument("--flat", action="store_true", help="Adam of the experiment, on one flat vector")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(flags)
    if options.devices > 1:
        jax.config.update("jax_num_cpu_devices", options.devices)
    setup = build_setup(options)
    plan, train, validation = setup.plan, setup.train, setup.validation
    keys = jax.vmap(jax.random.key)(jax.numpy.arange(max(1, options.members)))
    run_state = start_members(keys, train, validation, plan=plan)
    run: Run = partial(run_members, method=options.method)
    if not options.members:
        run_state, run = jax.tree.map(lambda leaf: leaf[0] if leaf.ndim else leaf, run_state), run_chunk
    elif options.devices > 1:
        run_state, train, validation = shard_members(run_state, train, validation)
    for repeat in range(options.repeats):
        began = time.perf_counter()
        count = sum(1 for _ in epochs(plan, run_state, train, validation, last=setup.epochs, run=run))
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        per_member = seconds / max(1, options.members)
        line = {"repeat": repeat, "done": count, "seconds": round(seconds, 3), "seconds_a_member": round(per_member, 4)}
        print(json.dumps({**vars(options), **line, "peak_mib": round(peak)}), flush=True)


def measure_last(command: list[str]) -> Callable[[], float]:
    """Return a function that measures the seconds per member of the last repetition of a process."""
    return lambda: float(json.loads(output(command).splitlines()[-1])["seconds_a_member"])


def measure_mean(command: list[str], count: int) -> Callable[[], float]:
    """Return a function that measures the mean seconds of `count` runs of a process, after a run that compiles."""

    def measure() -> float:
        lines = output([*command, "--seeds", *map(str, range(count + 1))]).splitlines()
        return sum(float(json.loads(line)["seconds"]["fit"]) for line in lines[-count:]) / count

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--peers", help="Python of an environment with Keras")
    parser.add_argument("--members", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    print(f"{platform.processor() or platform.machine()}, {cores} cores, Python {platform.python_version()}")
    process = [
        sys.executable,
        "-m",
        "benchmarks.studies.ensembles",
        PROCESS,
        "--data",
        options.data,
        "--recipe",
        "plain",
    ]
    measures = {}
    for members in options.members:
        command = [*process, "--members", str(members), "--devices", str(cores), "--repeats", "2"]
        measures[f"{members} members on {cores} devices, each"] = measure_last(command)
    measures["one run"] = measure_last([*process, "--members", "0", "--flat", "--repeats", "4"])
    if options.peers:
        keras = [options.peers, "-m", "benchmarks.studies.keras_weather", "--data", options.data, "--recipe", "plain"]
        measures["Keras, JAX, each of four"] = measure_mean([*keras, "--warm"], 4)
    alternate("200 epochs of plain, warm", measures, options.repeats)


if __name__ == "__main__":
    if sys.argv[1:2] == [PROCESS]:
        run_process(sys.argv[2:])
    else:
        main()
