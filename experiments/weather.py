"""Tomorrow's sunshine hours in Basel from today's weather.

    python -m experiments.weather --recipe batchnorm

Real data, 3 years, 18 places, 2 CPU cores: test RMSE about 3.5 hours (mean of the recipe `batchnorm` over seeds),
where "as today" misses by 3.88.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

from experiments import STARTED
from experiments.command import command, new_workdir
from experiments.weather_report import Built, describe, figures, results, short, table
from jaxdl import checkpoints, logs, runs
from jaxdl.data import split, take
from jaxdl.datasets import Dataset, weather
from jaxdl.errors import InputError
from jaxdl.fitting import check_seed, reason
from jaxdl.models import mlp
from jaxdl.objectives import rmse, squared_error
from jaxdl.plans import make_plan
from jaxdl.stopping import early_stopping
from jaxdl.summaries import as_table, summary
from jaxdl.training import start
from jaxdl.types import Objective, Progress


class Recipe(NamedTuple):
    """What the lesson does in one of its exercises."""

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


@dataclass(frozen=True)
class Config:
    """Trains a network to predict tomorrow's sunshine hours in Basel from today's weather, and compares it with
    baselines that need no network."""

    recipe: Literal["plain", "small", "early-stopping", "batchnorm", "basel", "all-years"] = "batchnorm"
    """The lesson's exercise: plain (hidden 100 50, 200 epochs); small (hidden 10 5); early-stopping (plain, until the
    validation loss has not improved for 10 epochs); batchnorm (the same with BatchNorm on the inputs, up to 1000
    epochs); basel (batchnorm on 9 years of Basel alone); all-years (batchnorm on all years and places)."""
    data: str = "auto"
    """auto (the folder in JAXDL_DATA, else the cache, else a download, else simulated), zenodo, zenodo-full, a CSV
    file, a folder that holds one, or simulated[:DAYS[:SEED]]."""
    seed: int = 0
    """Draws the initial weights and the order of rows. The split into sets does not depend on it."""
    epochs: int | None = None
    """Epochs at most; by default the recipe's."""
    batch_size: int = 32
    """Rows a step."""
    learning_rate: float = 1e-3
    """Of Adam."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss; by default the recipe's. Works for every recipe."""
    hidden: tuple[int, ...] | None = None
    """Widths of the hidden layers, as in --hidden 100 50; by default the recipe's."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters are float32 always."""
    workdir: Path | None = None
    """The run's folder; by default a new one, runs/<time>-<recipe>."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""


def settle(config: Config) -> tuple[Config, Recipe]:
    """The configuration with the recipe's values where a flag was left out, and the recipe with the flags' values.

    >>> settle(Config(recipe="small"))[0].hidden
    (10, 5)
    """
    recipe = RECIPES[config.recipe]
    given = {name: getattr(config, name) for name in ("epochs", "patience", "hidden")}
    recipe = recipe._replace(**{name: value for name, value in given.items() if value is not None})
    if not 1e-30 < config.learning_rate < 1e30:
        raise InputError(f"--learning-rate must be above 0 and finite, got {config.learning_rate}. Try 0.001.")
    if recipe.epochs < 1:
        raise InputError(f"--epochs must be at least 1, got {recipe.epochs}. Leave it out for the recipe's.")
    check_seed(config.seed)
    return replace(config, hidden=recipe.hidden, epochs=recipe.epochs, patience=recipe.patience), recipe


def adam(learning_rate: float) -> optax.GradientTransformation:
    """Adam on all parameters as one vector: for small layers that is faster than to update each of them."""
    return optax.flatten(optax.adam(learning_rate))


def build(config: Config, dataset: Dataset) -> Built:
    """The plan, the three sets (70, 15 and 15 % of the rows by two splits) and the initial progress; pure."""
    config, recipe = settle(config)
    train, rest = split(len(dataset.rows), 0.3)
    validation, test = split(len(rest), 0.5)
    rows = {"train": train, "validation": rest[validation], "test": rest[test]}
    sets = {name: take(dataset.examples, chosen) for name, chosen in rows.items()}
    model = mlp(recipe.hidden, input_norm=recipe.input_norm, dtype=jnp.dtype(config.dtype))
    plan = make_plan(
        model,
        Objective(squared_error, (rmse,)),
        # Injected, so that the learning rate is part of the state and recorded every epoch.
        optax.inject_hyperparams(adam)(learning_rate=config.learning_rate),
        batch_size=config.batch_size,
        stop=early_stopping("val_loss", patience=recipe.patience),
    )
    progress = start(plan, sets["train"], sets["validation"], key=jax.random.key(config.seed))
    return Built(dataset, rows, sets, plan, progress, recipe.epochs)


def run(config: Config, console: Console) -> dict[str, Any]:
    """Trains, compares and writes the run's folder; gives its metrics, which are written last."""
    seconds = {"import": time.perf_counter() - STARTED}
    flags = asdict(settle(config)[0])
    metrics = None if config.workdir is None else runs.finished(config.workdir)
    if metrics is not None:
        return _show_again(metrics, config, console)
    if config.compilation_cache:
        runs.keep_compilations()
    with runs.compile_clock() as compiling:
        began = time.perf_counter()
        dataset = _read(config, console)
        seconds["data"] = time.perf_counter() - began
        built = build(config, dataset)
        folder = config.workdir or new_workdir(config.recipe)
        runs.create(folder, {**flags, "workdir": str(folder), "dataset": describe(built), **runs.surroundings()})
        network = summary(built.plan.model, built.sets["train"].inputs[:1])
        console.print(as_table(network, f"{config.recipe}, seed {config.seed}, {short(dataset.source)}"))
        compiled, began = compiling(), time.perf_counter()
        progress, history = _train(built, folder, console)
        seconds["fit"] = time.perf_counter() - began - (compiling() - compiled)
        metrics = results(built, progress)
        seconds["compile"] = compiling()
    metrics |= {
        "recipe": config.recipe,
        "epochs": len(history),
        "best_epoch": int(progress.stopping.best_epoch),
        "reason": reason(progress),
        "seed": config.seed,
        "parameters": network.parameters,
    }
    _keep(built, progress, history, folder)
    metrics["seconds"] = {**seconds, "total": time.perf_counter() - STARTED}
    runs.write_json(folder / runs.METRICS, metrics)
    console.print(table(metrics))
    console.print(f"Everything about this run is in {folder}", markup=False, soft_wrap=True)
    return metrics


def _read(config: Config, console: Console) -> Dataset:
    recipe = RECIPES[config.recipe]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The note is printed below.
        dataset = weather(config.data, days=recipe.days, places=recipe.places)
    _warn(dataset.note, console)
    return dataset


def _warn(note: str | None, console: Console) -> None:
    if note:
        console.print(f"WARNING: {note}", style="bold red", markup=False, soft_wrap=True)


def _show_again(metrics: dict[str, Any], config: Config, console: Console) -> dict[str, Any]:
    try:
        result, run = table(metrics), f"{metrics['recipe']}, seed {metrics['seed']}"
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{config.workdir}/{runs.METRICS} must hold the metrics of a weather run, got something else ({error}). "
            "Restore it, or choose another --workdir."
        ) from error
    text = f"{config.workdir} holds a finished run ({run}); nothing is changed, and other flags have no effect."
    console.print(text, markup=False, soft_wrap=True)
    _warn(metrics["dataset"]["note"], console)
    console.print(result)
    return metrics


def _train(built: Built, folder: Path, console: Console) -> tuple[Progress, list[dict[str, float]]]:
    shown = ("loss", "val_rmse")
    with (
        logs.csv_file(folder / "history.csv") as rows,
        logs.tensorboard(folder / "tensorboard") as charts,
        logs.progress_bar(console, built.epochs, shown) as bar,
    ):
        train, validation = built.sets["train"], built.sets["validation"]
        observers = (rows, charts, bar)
        return runs.drive(built.plan, built.start, train, validation, epochs=built.epochs, observers=observers)


def _keep(built: Built, progress: Progress, history: list[dict[str, float]], folder: Path) -> None:
    checkpoints.save(folder / "checkpoints" / "final", progress.state.weights)
    checkpoints.save(folder / "checkpoints" / "best", progress.best)
    (folder / "figures").mkdir()
    title = f"{folder.name}, {short(built.dataset.source)}"
    for name, figure in figures(built, progress, history, title).items():
        figure.savefig(folder / "figures" / f"{name}.png")


if __name__ == "__main__":
    sys.exit(command(Config, run, "python -m experiments.weather"))
