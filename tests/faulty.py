"""The runs of tests/faults.py, with all the kinds of state that a run can have.

python -m tests.faulty weather --workdir DIR
"""

import os
import resource
import sys
from dataclasses import replace

import optax

from experiments.cifar10 import experiment as cifar10
from experiments.weather import experiment as weather
from jaxdl.nn import mlp
from jaxdl.runs import main


def build(config, dataset):
    """Return the weather setup with BatchNorm, dropout, a schedule and averaged weights."""
    rate = optax.cosine_decay_schedule(config.learning_rate, 5000, 0.1)
    return replace(
        weather.build(config, dataset),
        model=mlp((20, 10), dropout=0.2, input_norm=True),
        optimizer=optax.inject_hyperparams(optax.adam)(learning_rate=rate),
        batch_size=32,
        ema_decay=0.99,
    )


WEATHER = weather.SUNSHINE._replace(build=build)
RUNS = {"weather": (weather.Config, WEATHER), "cifar10": (cifar10.Config, cifar10.EXPERIMENT)}

if __name__ == "__main__":
    if "FAULTY_LIMIT" in os.environ:
        # Limits the size of files in bytes, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FAULTY_LIMIT"]), resource.RLIM_INFINITY))
    config, experiment = RUNS[sys.argv[1]]
    sys.exit(main(experiment, config, f"python -m tests.faulty {sys.argv[1]}", sys.argv[2:]))
