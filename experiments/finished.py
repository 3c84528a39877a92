"""A run that is finished, when its command is given once more."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from experiments.experiment import Experiment
from experiments.output import warn
from jaxdl import folders
from jaxdl.errors import InputError


def show(experiment: Experiment, metrics: dict[str, Any], config: Any, console: Console) -> dict[str, Any]:
    """Prints its results once more, and what it would go on with; gives its metrics.

    Raises InputError for metrics of another kind of run.
    """
    try:
        result, run = experiment.table(metrics), f"{metrics['recipe']}, seed {metrics['seed']}"
        note = metrics["dataset"]["note"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{config.workdir}/{folders.METRICS} must hold the metrics of a {experiment.name} run, got something else "
            f"({error}). Restore it, or choose another --workdir."
        ) from error
    more = "a larger --patience" if metrics.get("reason") == "early-stopping" else "more --epochs"
    text = f"{config.workdir} holds a finished run ({run}); nothing is changed. It goes on with {more}."
    if config.histograms or config.cost or config.profile:
        text += " So --histograms, --cost and --profile have had nothing to look at."
    console.print(text, markup=False, soft_wrap=True)
    warn(note, console)
    console.print(result)
    return metrics
