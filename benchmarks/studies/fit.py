"""Train a recipe of an experiment with `jaxdl.fit`, for the comparison with Keras: a line of JSON a seed.

    python -m benchmarks.studies.fit --data DIR --recipe plain --seeds 0 1 2
    python -m benchmarks.studies.fit --experiment cifar10 --data DIR --recipe small --seeds 0 1 2 [--time]

The first seed compiles; the others are warm. CIFAR-10 has the lesson's split: 5,000 images to train on, validation on
the test images. With --time an epoch of it is one training pass over the 5,000 images and nothing else.
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
from jaxdl.train.fit import fit
from jaxdl.train.plan import NEVER

RECIPES = {"weather": weather.RECIPES, "cifar10": cifar10.RECIPES}
# The recipe and the seeds of each experiment where none are given.
DEFAULTS: dict[str, tuple[str, list[int]]] = {"weather": ("plain", [0, 1]), "cifar10": ("small", [0])}


def fit_built(built: Setup, seed: int, **changes: Any) -> Any:
    """Train what an experiment has built, with some arguments of `fit` changed."""
    plan, sets = built.plan, built.sets
    usual = {
        "validation": sets["validation"],
        "early_stopping": plan.early_stopping,
        "ema_decay": plan.ema_decay,
        "batch_size": plan.batch_size,
    }
    arguments = {**usual, "epochs": built.epochs, **changes}
    return fit(
        plan.model,
        built.loss,
        plan.optimizer,
        sets["train"],
        metrics=built.metrics,
        seed=seed,
        **arguments,
    )


def of_weather(options: argparse.Namespace) -> Callable[[int], dict[str, Any]]:
    """Return a function of a seed that trains the weather recipe and gives the line to print."""
    recipe = weather.RECIPES[options.recipe]
    dataset = datasets.load_weather(options.data, days=recipe.days, places=recipe.places)
    built = weather.build(weather.Config(recipe=options.recipe, epochs=options.epochs), dataset)
    plan = built.plan

    def train(seed: int) -> dict[str, Any]:
        began = time.perf_counter()
        run = fit_built(built, seed)
        seconds = time.perf_counter() - began
        rmse = {
            name: float(evaluate(plan.model, run.final, rows, built.loss, metrics=built.metrics)["rmse"])
            for name, rows in built.sets.items()
        }
        return {"rmse": rmse, "epochs": len(run.history), "seconds": {"fit": round(seconds, 4)}}

    return train


def of_cifar10(options: argparse.Namespace) -> Callable[[int], dict[str, Any]]:
    """Return a function of a seed that trains the CIFAR-10 recipe and gives the line to print."""
    config = cifar10.Config(recipe=options.recipe, epochs=options.epochs, lesson_split=True)
    built = cifar10.build(config, datasets.load_cifar10(options.data))
    plan, sets = built.plan, built.sets
    changes = {"early_stopping": NEVER, **({"validation": None} if options.time else {})}

    def train(seed: int) -> dict[str, Any]:
        ends = [time.perf_counter()]
        run = fit_built(built, seed, callbacks=[lambda run_state, history: ends.append(time.perf_counter())], **changes)
        # Before the evaluations: the peers' peak is that of training too.
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = [after - before for before, after in itertools.pairwise(ends)]
        metrics = {
            n: evaluate(plan.model, run.final, sets[n], built.loss, metrics=built.metrics) for n in ("train", "test")
        }
        return {
            **{name: {n: float(metrics[n][name]) for n in metrics} for name in ("accuracy", "loss")},
            "best_val_accuracy": None if options.time else float(run.history["val_accuracy"].max()),
            "epochs": built.epochs,
            "seconds": {"epoch": round(statistics.median(seconds[1:]), 4), "epochs": [round(s, 4) for s in seconds]},
            "peak_memory_mb": round(memory, 1),
        }

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=RECIPES, default="weather")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--recipe", help="default: plain of the weather, small of CIFAR-10")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 of the weather, 0 of CIFAR-10")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--time", action="store_true", help="epochs of training only, without validation: of CIFAR-10")
    options = parser.parse_args()
    recipe, seeds = DEFAULTS[options.experiment]
    options.recipe, options.seeds = options.recipe or recipe, options.seeds or seeds
    if options.recipe not in RECIPES[options.experiment]:
        parser.error(f"--recipe must be one of {', '.join(RECIPES[options.experiment])}, got {options.recipe}")
    if options.time and options.experiment != "cifar10":
        parser.error("--time is of --experiment cifar10 alone")
    train = (of_weather if options.experiment == "weather" else of_cifar10)(options)
    for seed in options.seeds:
        print(json.dumps({"peer": "jaxdl", "recipe": options.recipe, "seed": seed, **train(seed)}), flush=True)


if __name__ == "__main__":
    main()
