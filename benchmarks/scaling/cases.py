"""The training cases of the scaling benchmarks, and the core of a process."""

import os
import platform
from typing import NamedTuple

import jax
import numpy as np
import optax

from jaxdl import losses, make_plan, metrics, mlp
from jaxdl.data import dataset
from jaxdl.distributed.processes import VARIABLES
from jaxdl.nn import convnet, residual_net
from jaxdl.types import Dataset, Loss, Metric, Model, Plan

REGRESSION = losses.squared_error, (metrics.rmse,)
CLASSIFICATION = losses.softmax_cross_entropy, (metrics.accuracy,)


class Case(NamedTuple):
    model: Model
    objective: tuple[Loss, tuple[Metric, ...]]  # the loss and the metrics
    shape: tuple[int, ...]  # of an example
    batch: int
    steps: int  # per epoch


CASES = {
    "weather plain": Case(mlp((100, 50)), REGRESSION, (163,), 32, 24),
    "weather batchnorm": Case(mlp((100, 50), input_norm=True), REGRESSION, (163,), 32, 24),
    "wide": Case(mlp((1024, 1024)), REGRESSION, (163,), 512, 8),
    "CIFAR small": Case(convnet((50, 50)), CLASSIFICATION, (32, 32, 3), 256, 4),
    # The network of the recipe `strong`, without data augmentation.
    "CIFAR strong": Case(residual_net(16), CLASSIFICATION, (32, 32, 3), 128, 4),
}


def plan_of(case: Case, batch: int) -> Plan:
    """Return the plan of a case with a batch size."""
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
    loss, metrics = case.objective
    return make_plan(case.model, loss, optax.flatten(adam), metrics=metrics, batch_size=batch)


def random_dataset(case: Case, count: int) -> Dataset:
    """Return random examples: the time of a step does not depend on their values."""
    rng = np.random.default_rng(0)
    if len(case.shape) == 1:
        inputs = rng.normal(size=(count, *case.shape)).astype(np.float32)
        return dataset(inputs, inputs[:, :1])
    return dataset(rng.integers(0, 256, (count, *case.shape)).astype(np.uint8), rng.integers(0, 10, count))


def on_one_core() -> None:
    """Bind this process to a core of its own. Call it before JAX starts its threads."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get(VARIABLES[2], 0)) % len(cores)]})


def machine() -> str:
    """Return the machine and the versions in one line."""
    cores = len(os.sched_getaffinity(0))
    return f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, jax {jax.__version__}"
