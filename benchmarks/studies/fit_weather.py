"""One process of the weather benchmark: recipes trained with `jaxdl.fit`, a line of JSON a seed.

    python -m benchmarks.studies.fit_weather --data DIR --recipe plain --seeds 0 1 2

The first seed compiles; the others are warm.
"""

import argparse
import json
import time

from experiments.weather import RECIPES, Config, build
from jaxdl.datasets import weather
from jaxdl.fitting import fit
from jaxdl.passes import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="auto")
    parser.add_argument("--recipe", choices=RECIPES, default="plain")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.recipe]
    dataset = weather(arguments.data, days=recipe.days, places=recipe.places)
    built = build(Config(recipe=arguments.recipe), dataset)
    plan, sets = built.plan, built.sets
    for seed in arguments.seeds:
        began = time.perf_counter()
        run = fit(
            plan.model,
            plan.objective,
            plan.optimiser,
            sets["train"],
            sets["validation"],
            epochs=built.epochs,
            batch_size=plan.batch_size,
            stop=plan.stop,
            seed=seed,
        )
        seconds = time.perf_counter() - began
        figures = {n: float(evaluate(plan.model, plan.objective, run.final, rows)["rmse"]) for n, rows in sets.items()}
        line = {"peer": "jaxdl", "recipe": arguments.recipe, "seed": seed, "rmse": figures}
        print(json.dumps({**line, "epochs": len(run.history), "seconds": {"fit": round(seconds, 4)}}), flush=True)


if __name__ == "__main__":
    main()
