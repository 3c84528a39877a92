"""Train a recipe of an experiment with `jaxdl.fit`, for the comparison with Keras; print a line of JSON per seed.

    python -m benchmarks.studies.fit --data DIR --recipe plain --seeds 0 1 2
    python -m benchmarks.studies.fit --experiment cifar10 --data DIR --recipe small --seeds 0 1 2 [--time]

The first seed compiles. CIFAR-10 has the split of the lesson: 5,000 training images, and the test images as validation.
With --time an epoch of CIFAR-10 is training only, without validation.
"""

import argparse
import itertools
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

from experiments.cifar10 import experiment as cifar10
from experiments.weather import experiment as weather
from jaxdl import datasets
from jaxdl.runs import Setup
from jaxdl.train.evaluate import evaluate
from jaxdl.train.fit import FitResult, fit
from jaxdl.train.plan import NEVER

RECIPES = {"weather": [*weather.RECIPES], "cifar10": [*cifar10.RECIPES]}
# The default recipe and seeds of each experiment.
DEFAULTS: dict[str, tuple[str, list[int]]] = {"weather": ("plain", [0, 1]), "cifar10": ("small", [0])}


def fit_setup(setup: Setup, seed: int, **changes: Any) -> FitResult:
    """Train the setup of an experiment, with some arguments of `fit` changed."""
    plan = setup.plan
    arguments = {
        "validation": setup.validation,
        "metrics": setup.metrics,
        "early_stopping": plan.early_stopping,
        "ema_decay": plan.ema_decay,
        "batch_size": plan.batch_size,
        "epochs": setup.epochs,
        **changes,
    }
    return fit(plan.model, setup.loss, plan.optimizer, setup.train, seed=seed, **arguments)


def prepare_weather(options: argparse.Namespace) -> Callable[[int], dict[str, Any]]:
    """Return a function of a seed that trains the weather recipe and returns the line to print."""
    recipe = weather.RECIPES[options.recipe]
    dataset = datasets.load_weather(options.data, days=recipe.days, places=recipe.places)
    setup = weather.build(weather.Config(recipe=options.recipe, epochs=options.epochs), dataset)

    def train(seed: int) -> dict[str, Any]:
        began = time.perf_counter()
        run = fit_setup(setup, seed)
        seconds = time.perf_counter() - began
        rmse = {
            name: float(evaluate(setup.model, run.final, part, setup.loss, metrics=setup.metrics)["rmse"])
            for name, part in setup.sets.items()
        }
        return {"rmse": rmse, "epochs": len(run.history), "seconds": {"fit": round(seconds, 4)}}

    return train


def prepare_cifar10(options: argparse.Namespace) -> Callable[[int], dict[str, Any]]:
    """Return a function of a seed that trains the CIFAR-10 recipe and returns the line to print."""
    config = cifar10.Config(recipe=options.recipe, epochs=options.epochs, lesson_split=True)
    setup = cifar10.build(config, datasets.load_cifar10(options.data))
    changes = {"early_stopping": NEVER, **({"validation": None} if options.time else {})}

    def train(seed: int) -> dict[str, Any]:
        ends = [time.perf_counter()]
        run = fit_setup(setup, seed, callbacks=[lambda run_state, history: ends.append(time.perf_counter())], **changes)
        # Before the evaluations: the peak of the peers is that of training too.
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = [after - before for before, after in itertools.pairwise(ends)]
        metrics = {
            n: evaluate(setup.model, run.final, setup.sets[n], setup.loss, metrics=setup.metrics)
            for n in ("train", "test")
        }
        return {
            **{name: {n: float(metrics[n][name]) for n in metrics} for name in ("accuracy", "loss")},
            "best_val_accuracy": None if options.time else float(run.history["val_accuracy"].max()),
            "epochs": setup.epochs,
            "seconds": {"epoch": round(statistics.median(seconds[1:]), 4), "epochs": [round(s, 4) for s in seconds]},
            "peak_memory_mb": round(memory, 1),
        }

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=RECIPES, default="weather")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--recipe", help="default: plain for the weather, small for CIFAR-10")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 for the weather, 0 for CIFAR-10")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--time", action="store_true", help="train without validation; CIFAR-10 only")
    options = parser.parse_args()
    recipe, seeds = DEFAULTS[options.experiment]
    options.recipe, options.seeds = options.recipe or recipe, options.seeds or seeds
    if options.recipe not in RECIPES[options.experiment]:
        parser.error(f"--recipe must be one of {', '.join(RECIPES[options.experiment])}, got {options.recipe}")
    if options.time and options.experiment != "cifar10":
        parser.error("--time needs --experiment cifar10")
    train = (prepare_weather if options.experiment == "weather" else prepare_cifar10)(options)
    for seed in options.seeds:
        print(json.dumps({"peer": "jaxdl", "recipe": options.recipe, "seed": seed, **train(seed)}), flush=True)


if __name__ == "__main__":
    main()
