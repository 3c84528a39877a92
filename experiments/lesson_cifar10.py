"""The lesson's CIFAR-10 networks as rows over a few seeds: dense against convolutions, and dropout at every rate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import optax

from experiments.lesson_rows import Row
from experiments.lesson_training import Task, Trained, measured, trained
from jaxdl.candidates import grid
from jaxdl.data import take
from jaxdl.datasets import Images
from jaxdl.models import convnet
from jaxdl.objectives import accuracy, softmax_cross_entropy
from jaxdl.plans import make_plan
from jaxdl.runs import compile_clock
from jaxdl.sweeps import sweep
from jaxdl.types import Examples, Model, Objective, Plan

CIFAR10 = "CIFAR-10"
OBJECTIVE = Objective(softmax_cross_entropy, (accuracy,))


class Budget(NamedTuple):
    """How much is spent on pictures."""

    images: int  # of the training files, the first ones; the next ones are for validation
    validation: int
    epochs: int
    seeds: int
    rates: tuple[float, ...]  # of dropout; the first is none


QUICK = Budget(800, 300, 4, 3, (0.0, 0.2, 0.5, 0.95))
FULL = Budget(5000, 5000, 10, 5, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95))


def divide(dataset: Images, budget: Budget) -> dict[str, Examples]:
    """The three sets; what a smaller data set lacks is taken from the images for validation."""
    count = len(dataset.train.weights)
    images = min(budget.images, count - 1)
    rest = range(images, min(count, images + budget.validation))
    train = jax.tree.map(lambda leaf: leaf[:images], dataset.train)
    return {"train": train, "validation": take(dataset.train, list(rest)), "test": dataset.test}


def dropping(rate: Any) -> Plan:
    """The pooled network with dropout after each pooling; the rate may be traced."""
    model = convnet((50, 50, 50), widths=(50,), pool=True, dropout=rate)
    return make_plan(model, OBJECTIVE, optax.adam(1e-3))


def row_of(budget: Budget, name: str, what: str) -> Row:
    """A row before it is trained."""
    return Row(CIFAR10, name, what, "accuracy", "%", None, tuple(range(budget.seeds)), {})


def task_of(model: Model, dataset: Images, budget: Budget) -> Task:
    """What a network is to learn.

    One after the other: as a batch, convolutions of several networks take twice as long on a CPU.
    """
    return Task(model, OBJECTIVE, divide(dataset, budget), budget.epochs, how="map")


def dense(dataset: Images, budget: Budget) -> Trained:
    """The network without convolutions."""
    what = f"{dataset.train.inputs[0].size:,} features, dense layers of 100 and 50"
    return trained(row_of(budget, "dense", what), task_of(convnet((), widths=(100, 50)), dataset, budget))


def small(dataset: Images, budget: Budget) -> Trained:
    """The network of two convolutions."""
    return trained(
        row_of(budget, "small", "two convolutions of 50 kernels"), task_of(convnet((50, 50)), dataset, budget)
    )


def names_of_rates(budget: Budget) -> tuple[str, ...]:
    """What the rows of `dropout` are called.

    >>> names_of_rates(QUICK)[:2]
    ('pooled', 'dropout 0.2')
    """
    return tuple(f"dropout {rate:g}" if rate else "pooled" for rate in budget.rates)


def dropout(dataset: Images, budget: Budget) -> Iterator[Trained]:
    """The network with pooling, at every rate of dropout, as one program."""
    candidates, seeds = grid(rate=budget.rates), tuple(range(budget.seeds))
    sets = divide(dataset, budget)
    with compile_clock() as compiling:
        began = time.perf_counter()
        found = sweep(
            dropping, candidates, sets["train"], sets["validation"], seeds=seeds, epochs=budget.epochs, how="map"
        )
        seconds = (time.perf_counter() - began - compiling()) / len(candidates)
    # Dropout has no part in predictions, so one network measures all of them.
    task = task_of(found.plans[0].model, dataset, budget)
    for index, (rate, name) in enumerate(zip(budget.rates, names_of_rates(budget), strict=True)):
        what = f"pooled, dropout of {rate:.0%} after each pooling" if rate else "three convolutions of 50 with pooling"
        history = found.history[found.history["candidate"] == index].rename(columns={"seed": "member"})
        epochs = found.table.loc[found.table["candidate"] == index, "epochs"].to_numpy()
        row = row_of(budget, name, what)._replace(epochs=epochs, seconds=seconds)
        yield measured(row, task, history, found.final[index])
