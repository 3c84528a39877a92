"""Predict tomorrow's sunshine hours in Basel from today's weather, or whether tomorrow is barbecue weather.

    python -m experiments.weather --recipe batchnorm
    python -m experiments.weather --recipe batchnorm --labels bbq

On the real data, 3 years of 18 places, the recipe `batchnorm` has a test RMSE of about 3.5 hours (mean over seeds);
the baseline "as today" has 3.88.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import optax

from experiments.weather import bbq_report
from experiments.weather import report as weather_report
from jaxdl import metrics
from jaxdl.data import split, take
from jaxdl.datasets import BASEL, TARGET, WeatherData, load_weather
from jaxdl.errors import InputError
from jaxdl.losses import sigmoid_cross_entropy, squared_error
from jaxdl.metrics import rmse
from jaxdl.nn import ModelSpec, build_model
from jaxdl.runs import Experiment, RunFlags, Setup, runner
from jaxdl.runs.experiment import with_recipe
from jaxdl.train import early_stopping
from jaxdl.types import Dataset


class Recipe(NamedTuple):
    """The settings of an exercise of the lesson."""

    hidden: tuple[int, ...] = (100, 50)
    epochs: int = 1000
    patience: int | None = 10
    input_norm: bool = True
    days: int | None = 1096
    places: tuple[str, ...] | None = None


RECIPES = {
    "plain": Recipe(epochs=200, patience=None, input_norm=False),
    "small": Recipe(hidden=(10, 5), epochs=200, patience=None, input_norm=False),
    "early-stopping": Recipe(epochs=200, input_norm=False),
    "batchnorm": Recipe(),
    "basel": Recipe(days=3286, places=("BASEL",)),
    "all-years": Recipe(days=None),
}
TARGETS = {"sunshine": TARGET, "bbq": BASEL}
LOSSES = {"sunshine": squared_error, "bbq": sigmoid_cross_entropy}
METRICS = {"sunshine": (rmse,), "bbq": (metrics.binary_accuracy, metrics.balanced_accuracy)}


@dataclass(frozen=True)
class Flags:
    """The flags of the model and of the data."""

    recipe: Literal["plain", "small", "early-stopping", "batchnorm", "basel", "all-years"] = "batchnorm"
    """The settings of an exercise of the lesson, which other flags override:
    plain: hidden layers of 100 and 50 nodes, 200 epochs, 3 years of 18 places;
    small: plain with hidden layers of 10 and 5 nodes;
    early-stopping: plain, stops after 10 epochs without a lower validation loss;
    batchnorm: early-stopping with BatchNorm on the inputs, up to 1000 epochs;
    basel: batchnorm on 9 years of Basel only;
    all-years: batchnorm on all years and places."""
    labels: Literal["sunshine", "bbq"] = "sunshine"
    """What to predict of tomorrow.
    sunshine: the hours of sunshine (regression);
    bbq: barbecue weather, a day without rain and with at least 18 degrees Celsius (classification)."""
    data: str = "auto"
    """Source of the data: a CSV file, a folder that holds one, or one of
    auto: the folder in the variable JAXDL_DATA, else the cache, else a download, else simulated;
    zenodo, zenodo-full: a download of the light or of the full file;
    simulated[:DAYS[:SEED]]: simulated weather."""
    hidden: tuple[int, ...] | None = None
    """Nodes of the hidden layers, such as --hidden 100 50; by default the recipe's."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the computation; parameters are always float32."""


@dataclass(frozen=True)
class Config(RunFlags, Flags):
    """Train a network that predicts tomorrow's sunshine in Basel."""

    batch_size: int = 32
    learning_rate: float = 1e-3


def resolve(config: Config) -> Config:
    """Return the flags with the recipe's values for those that are None. Raises InputError for a flag out of range."""
    return with_recipe(config, RECIPES[config.recipe]._asdict())


def adam(learning_rate: float) -> optax.GradientTransformation:
    """Return Adam on all parameters as one vector, which is faster for small layers."""
    return optax.flatten(optax.adam(learning_rate))


def split_sets(dataset: WeatherData) -> tuple[dict[str, np.ndarray], dict[str, Dataset]]:
    """Return the indices of the three sets, 70, 15 and 15 % by two splits, and the sets."""
    train, rest = split(len(dataset.rows), 0.3)
    validation, test = split(len(rest), 0.5)
    rows = {"train": train, "validation": rest[validation], "test": rest[test]}
    return rows, {name: take(dataset.data, chosen) for name, chosen in rows.items()}


def build(config: Config, dataset: WeatherData) -> Setup:
    """Return the setup for flags and data. Raises InputError where a set of barbecue labels has only one class."""
    config = resolve(config)
    assert config.hidden is not None and config.epochs is not None
    rows, sets = split_sets(dataset)
    if config.labels == "bbq":
        check_both_kinds(sets)
    input_norm = RECIPES[config.recipe].input_norm
    network = ModelSpec("mlp", {"widths": config.hidden, "input_norm": input_norm, "dtype": config.dtype})
    return Setup(
        sets["train"],
        sets["validation"],
        sets["test"],
        model=build_model(network),
        loss=LOSSES[config.labels],
        # inject_hyperparams keeps the learning rate in the state, so that every epoch records it.
        optimizer=optax.inject_hyperparams(adam)(learning_rate=config.learning_rate),
        metrics=METRICS[config.labels],
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        early_stopping=early_stopping("val_loss", patience=config.patience),
        network=network,
        dataset=dataset,
        rows=rows,
    )


def check_both_kinds(sets: dict[str, Dataset]) -> None:
    """Raise InputError for a set whose targets are all 0 or all 1: nothing can be learned from it or tested on it."""
    for name, rows in sets.items():
        if len(np.unique(rows.targets)) < 2:
            kind = "only" if np.asarray(rows.targets).all() else "no"
            raise InputError(
                f"--labels bbq needs days with and without barbecue weather, got {kind} days with it among the "
                f"{len(rows.sample_weight)} {name} rows. Use more days."
            )


def load(config: Config) -> WeatherData:
    """Return the days and places of the recipe."""
    recipe = RECIPES[config.recipe]
    return load_weather(config.data, days=recipe.days, places=recipe.places, target=TARGETS[config.labels])


SUNSHINE = Experiment(
    name="weather",
    build=build,
    load=load,
    resolve=resolve,
    describe_data=weather_report.describe_data,
    model_card=weather_report.model_card,
    evaluate=weather_report.evaluate,
    figures=weather_report.figures,
    table=weather_report.table,
    progress_metrics=("loss", "val_rmse"),
)
BBQ = SUNSHINE._replace(
    describe_data=bbq_report.describe_data,
    model_card=bbq_report.model_card,
    evaluate=bbq_report.evaluate,
    figures=bbq_report.figures,
    table=bbq_report.table,
    progress_metrics=("loss", "val_accuracy"),
)


def experiment(config: Config) -> Experiment:
    """Return the experiment for the labels."""
    return BBQ if config.labels == "bbq" else SUNSHINE


run = partial(runner.run, experiment)
