"""One process of the ensembles' benchmark: a weather recipe for many seeds at once, a line of JSON a repetition.

    python -m benchmarks.fit_ensemble --data DIR --members 64 --devices 2 --how vmap

The first repetition compiles; the others are warm. `--members 0` is a solo run of seed 0, through the same loop.
"""

import argparse
import json
import resource
import time
from functools import partial

import jax

from experiments.weather import RECIPES, Config, build
from jaxdl.chunks import epochs, run_chunk
from jaxdl.datasets import weather
from jaxdl.ensembles import members, run_members, spread
from jaxdl.training import start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="plain")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--how", choices=("vmap", "map"), default="vmap")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.devices > 1:
        jax.config.update("jax_num_cpu_devices", options.devices)
    recipe = RECIPES[options.recipe]
    built = build(Config(recipe=options.recipe), weather(options.data, days=recipe.days, places=recipe.places))
    plan, train, validation = built.plan, built.sets["train"], built.sets["validation"]
    progress, run = built.start, run_chunk
    if options.members:
        keys = jax.vmap(jax.random.key)(jax.numpy.arange(options.members))
        progress = members(keys, lambda key: start(plan, train, validation, key=key))
        run = partial(run_members, how=options.how)
    if options.devices > 1:
        progress, train, validation = spread(progress, train, validation)
    for repeat in range(options.repeats):
        began = time.perf_counter()
        count = sum(1 for _ in epochs(plan, progress, train, validation, last=built.epochs, run=run))
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        each = seconds / max(1, options.members)
        line = {"repeat": repeat, "epochs": count, "seconds": round(seconds, 3), "seconds_a_member": round(each, 4)}
        print(json.dumps({**vars(options), **line, "peak_mib": round(peak)}), flush=True)


if __name__ == "__main__":
    main()
