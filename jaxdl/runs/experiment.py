"""What the author of an experiment gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.table import Table

from jaxdl.datasets import terms_of
from jaxdl.errors import InputError
from jaxdl.nn import Network
from jaxdl.nn.models import to_json
from jaxdl.saving import Outputs
from jaxdl.types import Examples, History, Plan, Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Built(NamedTuple):
    """What a configuration and a data set amount to."""

    dataset: Any  # with name, source, sha256 and note
    rows: dict[str, np.ndarray]  # of the data set, by set
    sets: dict[str, Examples]
    plan: Plan
    start: Progress  # before the first epoch
    epochs: int  # at most
    network: Network  # the plan's model as data, without what it does in training alone


class Experiment(NamedTuple):
    """What makes one experiment different from another, as functions."""

    name: str
    settle: Callable[[Any], Any]  # a configuration -> the same with the recipe's values where a flag was left out
    read: Callable[[Any], Any]  # a configuration -> its data set
    build: Callable[[Any, Any], Built]  # a configuration and its data set -> what is trained
    describe: Callable[[Built], dict[str, Any]]  # the data set in config.json and metrics.json
    usage: Callable[[Built], dict[str, Any]]  # what it takes to use the model, in config.json
    results: Callable[[Built, Progress], dict[str, Any]]  # what metrics.json says of the weights
    figures: Callable[[Built, Progress, History, str], dict[str, Figure]]  # the pictures by name, with a title
    table: Callable[[dict[str, Any]], Table]  # metrics.json for people
    fixed: Callable[[Any], dict[str, str]]  # flags that this configuration cannot change later, and why
    shown: tuple[str, str]  # what the progress bar shows of an epoch


def usage(
    built: Built, outputs: Outputs, *, title: str, predicts: str, limits: str, columns: Sequence[str] | None = None
) -> dict[str, Any]:
    """What it takes to use a run's model without its code, in config.json: the texts are for its model card."""
    inputs, dataset = built.sets["train"].inputs, built.dataset
    return {
        "network": to_json(built.network),
        "inputs": {"shape": list(inputs.shape[1:]), "dtype": str(inputs.dtype), "columns": columns},
        "outputs": outputs._asdict(),
        "card": {"title": title, "predicts": predicts, "limits": limits},
        "terms": terms_of(dataset.name, dataset.source)._asdict(),
    }


def short(source: str) -> str:
    """A source in few words, for titles: of a path only the file's name.

    >>> short("file:/home/me/weather.csv")
    'weather.csv'
    """
    return source.rpartition("/")[2] if source.startswith("file:") else source


def check_save_every(seconds: float) -> None:
    """Raises InputError for seconds between checkpoints that are negative or no number.

    >>> check_save_every(0.5)
    """
    if not seconds >= 0:
        raise InputError(f"--save-every must be at least 0 seconds, got {seconds}. Leave it out for 30.")
