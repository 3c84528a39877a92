"""One process of the ensembles' benchmark: a recipe for many seeds at once, a line of JSON a repetition.

    python -m benchmarks.studies.fit_ensemble --data DIR --members 64 --devices 2 --how vmap
    python -m benchmarks.studies.fit_ensemble --data DIR --experiment cifar10 --recipe pooled --rows 1000 --members 4 --how map

The first repetition compiles; the others are warm. `--members 0` is a solo run of seed 0, through the same loop.
"""

import argparse
import json
import resource
import time
from functools import partial

import jax
import optax

from experiments import cifar10, weather
from experiments.experiment import Built
from jaxdl.chunks import epochs
from jaxdl.ensembles import run_members, spread, start_members
from jaxdl.pieces import run_chunk


def built_of(options: argparse.Namespace) -> Built:
    """The recipe; for the weather with Adam as it is, because flat vectors are copied where members are many."""
    if options.experiment == "weather":
        config = weather.Config(recipe=options.recipe, data=options.data, epochs=options.epochs)
        built = weather.build(config, weather.read(config))
        adam = optax.inject_hyperparams(optax.adam)(learning_rate=config.learning_rate)
        return built if options.flat else built._replace(plan=built.plan._replace(optimiser=adam))
    config = cifar10.Config(
        recipe=options.recipe, data=options.data, epochs=options.epochs, train_size=options.rows, lesson_split=True
    )
    return cifar10.build(config, cifar10.read(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--experiment", choices=("weather", "cifar10"), default="weather")
    parser.add_argument("--recipe", choices=[*weather.RECIPES, *cifar10.RECIPES], default="plain")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rows", type=int, default=5000, help="training images")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--how", choices=("vmap", "map"), default="vmap")
    parser.add_argument("--flat", action="store_true", help="the experiment's Adam on one flat vector")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.devices > 1:
        jax.config.update("jax_num_cpu_devices", options.devices)
    built = built_of(options)
    plan, train, validation = built.plan, built.sets["train"], built.sets["validation"]
    keys = jax.vmap(jax.random.key)(jax.numpy.arange(max(1, options.members)))
    progress, run = start_members(keys, train, validation, plan=plan), partial(run_members, how=options.how)
    if not options.members:
        progress, run = jax.tree.map(lambda leaf: leaf[0] if leaf.ndim else leaf, progress), run_chunk
    elif options.devices > 1:
        progress, train, validation = spread(progress, train, validation)
    for repeat in range(options.repeats):
        began = time.perf_counter()
        count = sum(1 for _ in epochs(plan, progress, train, validation, last=built.epochs, run=run))
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        each = seconds / max(1, options.members)
        line = {"repeat": repeat, "done": count, "seconds": round(seconds, 3), "seconds_a_member": round(each, 4)}
        print(json.dumps({**vars(options), **line, "peak_mib": round(peak)}), flush=True)


if __name__ == "__main__":
    main()
