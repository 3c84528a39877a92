"""One process of the CIFAR-10 benchmark: a recipe trained with `jaxdl.fit`, a line of JSON a seed.

    python -m benchmarks.studies.fit --data DIR --recipe small --seeds 0 1 2 [--time]

The lesson's split: 5,000 images to train on, validation on the test images. With --time an epoch is one training pass
over the 5,000 images and nothing else.
"""

import argparse
import itertools
import json
import resource
import statistics
import time

from experiments.cifar10 import RECIPES, Config, build
from jaxdl.datasets import cifar10
from jaxdl.fitting import fit
from jaxdl.passes import evaluate
from jaxdl.plans import NEVER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="auto")
    parser.add_argument("--recipe", choices=RECIPES, default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--time", action="store_true", help="epochs of training only, without validation")
    arguments = parser.parse_args()
    config = Config(recipe=arguments.recipe, epochs=arguments.epochs, lesson_split=True)
    built = build(config, cifar10(arguments.data))
    plan, sets = built.plan, built.sets
    for seed in arguments.seeds:
        ends = [time.perf_counter()]
        run = fit(
            plan.model,
            plan.objective,
            plan.optimiser,
            sets["train"],
            None if arguments.time else sets["validation"],
            epochs=built.epochs,
            batch_size=plan.batch_size,
            stop=NEVER,
            average=plan.average,
            seed=seed,
            observers=[lambda progress, history, ends=ends: ends.append(time.perf_counter())],
        )
        # Before the evaluations: the peers' peak is that of training too.
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = [after - before for before, after in itertools.pairwise(ends)]
        figures = {n: evaluate(plan.model, plan.objective, run.final, sets[n]) for n in ("train", "test")}
        line = {
            "peer": "jaxdl",
            "recipe": arguments.recipe,
            "seed": seed,
            **{name: {n: float(figures[n][name]) for n in figures} for name in ("accuracy", "loss")},
            "best_val_accuracy": None if arguments.time else float(run.history["val_accuracy"].max()),
            "epochs": built.epochs,
            "seconds": {"epoch": round(statistics.median(seconds[1:]), 4), "epochs": [round(s, 4) for s in seconds]},
            "peak_memory_mb": round(memory, 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
