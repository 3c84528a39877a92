"""The figures of the lesson."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.lesson.exercises import BARBECUE, CIFAR10, EXERCISES, NEXT, SIZES
from experiments.lesson.findings import LEVELS, bars, recommended
from experiments.lesson.rows import Row, mean_over_seeds
from experiments.lesson.training import Trained, Truth
from jaxdl import plots
from jaxdl.metrics import roc_curve
from jaxdl.types import SETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawn(NamedTuple):
    """A figure with its caption."""

    section: str
    name: str  # of its file
    caption: str
    figure: Figure


HISTORIES = {
    (EXERCISES, "plain"): "The networks overfit where the training curves still fall and the validation curves rise.",
    (SIZES, "10, 5"): "A small network overfits its training rows less.",
    (EXERCISES, "early stopping"): "Early stopping ends each run after 10 epochs without a lower validation loss.",
    (EXERCISES, "BatchNorm"): "With BatchNorm on the inputs the curves fall earlier, and also separate earlier.",
    (CIFAR10, "dense"): "A network without convolutions, on photographs.",
    (CIFAR10, "small"): "A network with two convolutions: the distance between training and validation.",
    (CIFAR10, "pooled"): "A network with pooling, with a seventh of the parameters.",
}


def figures(
    rows: Sequence[Row], trained: Mapping[tuple[str, str], Trained], truth: Mapping[str, Truth], quantity: str
) -> Iterator[Drawn]:
    """Yield all figures for which there are results.

    trained: by section and name. truth: by kind of target, "numbers" and "labels". quantity: the target, for axes.
    """
    for (section, name), caption in HISTORIES.items():
        if (section, name) in trained:
            row, history, _ = trained[section, name]
            metric, unit = ("accuracy", "") if row.unit == "%" else ("rmse", row.unit)
            figure = plots.histories(history, metric, unit=unit, title=f"{name}: {row.what}")
            yield Drawn(section, f"history {name}", caption, figure)
    if (EXERCISES, "BatchNorm") in trained:
        yield from _predictions(trained[EXERCISES, "BatchNorm"], truth["numbers"], quantity)
    sizes = [row for row in rows if row.section == SIZES]
    if sizes:
        yield _sizes(sizes, rows)
    for section, caption in (
        (
            EXERCISES,
            "Every dot is a seed; the lines are baselines. One place and all years have their own test rows.",
        ),
        (NEXT, "The open questions beside the network that they change."),
        (CIFAR10, "Every dot is a seed."),
    ):
        yield from _seeds(section, caption, rows)
    if (BARBECUE, "one place, yes or no") in trained:
        yield from _roc(trained[BARBECUE, "one place, yes or no"], truth["labels"])


def _sizes(sizes: Sequence[Row], rows: Sequence[Row]) -> Drawn:
    means = {name: [mean_over_seeds(row.values[name]).mean for row in sizes] for name in SETS}
    errors = {name: [mean_over_seeds(row.values[name]).sem for row in sizes] for name in means}
    today = next((float(row.values["test"][0]) for row in rows if row.name == "as today"), None)
    figure = plots.model_size(
        [row.parameters or 1 for row in sizes],
        means,
        {name: np.nan_to_num(values) for name, values in errors.items()},
        [row.name for row in sizes],
        recommended=recommended(sizes),
        baselines={} if today is None else {"as today (test)": today},
        quantity=f"{sizes[0].figure} ({sizes[0].unit})",
    )
    return Drawn(SIZES, "sizes", "RMSE against the number of parameters, with the standard error over seeds.", figure)


def _seeds(section: str, caption: str, rows: Sequence[Row]) -> Iterator[Drawn]:
    networks = [row for row in rows if row.section == section and row.seeds]
    if section == NEXT:
        reference = [row for row in rows if row.section == EXERCISES and row.name == "BatchNorm"]
        # Rows with other test rows than the reference are only in the table.
        networks = [*reference, *(row for row in networks if "one place" not in row.name)]
    if not networks:
        return
    first = networks[0]
    baselines = [row for row in rows if row.section == section and not row.seeds and "," not in row.name]
    figure = plots.seeds(
        [row.name for row in networks],
        [row.values["test"] for row in networks],
        references=[row.printed.get("test") for row in networks],
        reference_label="printed in the lesson",
        baselines={row.name: float(row.values["test"][0]) for row in baselines},
        quantity=f"test {first.figure} ({first.unit})",
        decimals=1 if first.unit == "%" else 2,
    )
    yield Drawn(section, f"seeds {section}", caption, figure)


def _predictions(networks: Trained, truth: Truth, quantity: str) -> Iterator[Drawn]:
    outputs, count = networks.outputs["test"][..., 0], len(networks.row.seeds)
    targets = truth.test[:, 0]
    ensemble = {f"mean of {count}": outputs.mean(0)} if count > 1 else {}
    predictions = {"one network": outputs[0], **ensemble, "as today": truth.today}
    if np.isfinite(outputs).all():
        figure = plots.predictions(targets, predictions, quantity=quantity)
        yield Drawn(EXERCISES, "predictions", "Predictions for the test rows against the measured values.", figure)
    error_bars = bars(networks, truth)
    if error_bars is None:
        return
    caption = f"The fraction of test targets in the intervals of {count} networks, against the level of the intervals."
    coverage = {kind: list(shares.values()) for kind, shares in error_bars.coverage.items()}
    yield Drawn(NEXT, "coverage", caption, plots.coverage(LEVELS, coverage, examples=len(targets)))
    caption = (
        "The mean prediction of all networks, with calibrated intervals that should contain 90 % of the test targets."
    )
    figure = plots.intervals(targets, error_bars.mean, error_bars.std, level=0.9, quantity=quantity)
    yield Drawn(NEXT, "intervals", caption, figure)


def _roc(networks: Trained, truth: Truth) -> Iterator[Drawn]:
    labels, scores = truth.test[:, 0], networks.outputs["test"][..., 0]
    if np.ptp(labels) == 0 or not np.isfinite(scores).all():
        return
    today = truth.today > 0.5
    point = (float(np.mean(today[labels < 0.5])), float(np.mean(today[labels > 0.5])))
    name = f"mean of {len(scores)} networks" if len(scores) > 1 else "one network"
    figure = plots.roc({name: roc_curve(scores.mean(0), labels)}, {"as today": point})
    yield Drawn(BARBECUE, "roc", "Tomorrow's barbecue weather, from 9 years of one place.", figure)
