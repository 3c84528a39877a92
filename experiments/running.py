"""A run of an experiment: trains, measures, and writes the run's folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import STARTED
from experiments.command import new_workdir
from jaxdl import checkpoints, logs, runs
from jaxdl.errors import InputError
from jaxdl.fitting import reason
from jaxdl.steps import shown_weights
from jaxdl.summaries import as_table, summary
from jaxdl.types import Examples, Plan, Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETS = ("train", "validation", "test")
History = list[dict[str, float]]


class Built(NamedTuple):
    """What a configuration and a data set amount to."""

    dataset: Any  # with name, source, sha256 and note
    rows: dict[str, np.ndarray]  # of the data set, by set
    sets: dict[str, Examples]
    plan: Plan
    start: Progress  # before the first epoch
    epochs: int  # at most


class Experiment(NamedTuple):
    """What makes one experiment different from another, as functions."""

    name: str
    settle: Callable[[Any], Any]  # a configuration -> the same with the recipe's values where a flag was left out
    read: Callable[[Any], Any]  # a configuration -> its data set
    build: Callable[[Any, Any], Built]  # a configuration and its data set -> what is trained
    describe: Callable[[Built], dict[str, Any]]  # the data set in config.json and metrics.json
    results: Callable[[Built, Progress], dict[str, Any]]  # what metrics.json says of the weights
    figures: Callable[[Built, Progress, History, str], dict[str, Figure]]  # the pictures by name, with a title
    table: Callable[[dict[str, Any]], Table]  # metrics.json for people
    shown: tuple[str, str]  # what the progress bar shows of an epoch


def short(source: str) -> str:
    """A source in few words, for titles: of a path only the file's name.

    >>> short("file:/home/me/weather.csv")
    'weather.csv'
    """
    return source.rpartition("/")[2] if source.startswith("file:") else source


def run(experiment: Experiment, config: Any, console: Console) -> dict[str, Any]:
    """Trains, compares and writes the run's folder; gives its metrics, which are written last."""
    seconds = {"import": time.perf_counter() - STARTED}
    flags = asdict(experiment.settle(config))
    metrics = None if config.workdir is None else runs.finished(config.workdir)
    if metrics is not None:
        return _show_again(experiment, metrics, config, console)
    if config.compilation_cache:
        runs.keep_compilations()
    with runs.compile_clock() as compiling:
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The note is printed instead.
            dataset = experiment.read(config)
        seconds["data"] = time.perf_counter() - began
        built = experiment.build(config, dataset)
        about = experiment.describe(built)
        _warn(about["note"], console)
        folder = config.workdir or new_workdir(config.recipe)
        runs.create(folder, {**flags, "workdir": str(folder), "dataset": about, **runs.surroundings()})
        network = summary(built.plan.model, built.sets["train"].inputs[:1])
        console.print(as_table(network, f"{config.recipe}, seed {config.seed}, {short(dataset.source)}"))
        compiled, began = compiling(), time.perf_counter()
        progress, history = _train(experiment, built, folder, console)
        seconds["fit"] = time.perf_counter() - began - (compiling() - compiled)
        metrics = {"dataset": about, **experiment.results(built, progress)}
        seconds["compile"] = compiling()
    metrics |= {
        "recipe": config.recipe,
        "epochs": len(history),
        "best_epoch": int(progress.stopping.best_epoch),
        "reason": reason(progress),
        "seed": config.seed,
        "parameters": network.parameters,
    }
    _keep(experiment, built, progress, history, folder)
    metrics["seconds"] = {**seconds, "total": time.perf_counter() - STARTED}
    runs.write_json(folder / runs.METRICS, metrics)
    console.print(experiment.table(metrics))
    console.print(f"Everything about this run is in {folder}", markup=False, soft_wrap=True)
    return metrics


def _warn(note: str | None, console: Console) -> None:
    if note:
        console.print(f"WARNING: {note}", style="bold red", markup=False, soft_wrap=True)


def _show_again(experiment: Experiment, metrics: dict[str, Any], config: Any, console: Console) -> dict[str, Any]:
    try:
        result, run = experiment.table(metrics), f"{metrics['recipe']}, seed {metrics['seed']}"
        note = metrics["dataset"]["note"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{config.workdir}/{runs.METRICS} must hold the metrics of a {experiment.name} run, got something else "
            f"({error}). Restore it, or choose another --workdir."
        ) from error
    text = f"{config.workdir} holds a finished run ({run}); nothing is changed, and other flags have no effect."
    console.print(text, markup=False, soft_wrap=True)
    _warn(note, console)
    console.print(result)
    return metrics


def _train(experiment: Experiment, built: Built, folder: Any, console: Console) -> tuple[Progress, History]:
    with (
        logs.csv_file(folder / "history.csv") as rows,
        logs.tensorboard(folder / "tensorboard") as charts,
        logs.progress_bar(console, built.epochs, experiment.shown) as bar,
    ):
        train, validation = built.sets["train"], built.sets["validation"]
        observers = (rows, charts, bar)
        return runs.drive(built.plan, built.start, train, validation, epochs=built.epochs, observers=observers)


def _keep(experiment: Experiment, built: Built, progress: Progress, history: History, folder: Any) -> None:
    checkpoints.save(folder / "checkpoints" / "final", shown_weights(progress.state))
    checkpoints.save(folder / "checkpoints" / "best", progress.best)
    (folder / "figures").mkdir()
    title = f"{folder.name}, {short(built.dataset.source)}"
    pictures = []
    for name, figure in experiment.figures(built, progress, history, title).items():
        pictures.append(folder / "figures" / f"{name}.png")
        figure.savefig(pictures[-1])
    logs.pictures(folder / "tensorboard" / "pictures", pictures, step=len(history))
