"""The runs that the faults are done to: all that a run may remember takes part in them.

python -m tests.faulty weather --workdir DIR
"""

import os
import resource
import sys
from functools import partial

import jax
import optax

from experiments.cifar10 import experiment as cifar10
from experiments.weather import experiment as weather
from jaxdl.nn import mlp
from jaxdl.runs import runner
from jaxdl.runs.command import command
from jaxdl.train import make_plan, start


def build(config, dataset):
    """The weather experiment with BatchNorm, dropout, a schedule and averaged weights."""
    built = weather.build(config, dataset)
    rate = optax.cosine_decay_schedule(config.learning_rate, 5000, 0.1)
    plan = make_plan(
        mlp((20, 10), dropout=0.2, input_norm=True),
        built.plan.objective,
        optax.inject_hyperparams(optax.adam)(learning_rate=rate),
        stop=built.plan.stop,
        average=0.99,
    )
    progress = start(plan, built.sets["train"], built.sets["validation"], key=jax.random.key(config.seed))
    return built._replace(plan=plan, start=progress)


WEATHER = weather.EXPERIMENT._replace(build=build)
RUNS = {"weather": (weather.Config, WEATHER), "cifar10": (cifar10.Config, cifar10.EXPERIMENT)}

if __name__ == "__main__":
    if "FAULTY_LIMIT" in os.environ:
        # No file may grow beyond so many bytes, as if the disk were full.
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FAULTY_LIMIT"]), resource.RLIM_INFINITY))
    config, experiment = RUNS[sys.argv[1]]
    sys.exit(command(config, partial(runner.run, experiment), f"python -m tests.faulty {sys.argv[1]}", sys.argv[2:]))
