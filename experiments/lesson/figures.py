"""The pictures of the lesson."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.lesson.exercises import BARBECUE, CIFAR10, EXERCISES, NEXT, SIZES
from experiments.lesson.findings import LEVELS, bars, recommended
from experiments.lesson.rows import Row, estimate
from experiments.lesson.training import Trained, Truth
from jaxdl import plots
from jaxdl.metrics import roc_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawn(NamedTuple):
    """A figure, and what is said below it."""

    section: str
    name: str  # of its file
    caption: str
    figure: Figure


HISTORIES = {
    (EXERCISES, "plain"): "Where the training curves fall on and the validation curves turn, the networks overfit.",
    (SIZES, "10, 5"): "How far a small network can learn the training rows by heart.",
    (EXERCISES, "early stopping"): "Early stopping ends each run where 10 epochs brought nothing better.",
    (EXERCISES, "BatchNorm"): "The same with BatchNorm on the inputs: how soon the curves fall, and part.",
    (CIFAR10, "dense"): "A network without convolutions, on photographs.",
    (CIFAR10, "small"): "Two convolutions: how far training and validation part.",
    (CIFAR10, "pooled"): "Pooling: a seventh of the parameters.",
}


def figures(
    rows: Sequence[Row], done: Mapping[tuple[str, str], Trained], truth: Mapping[str, Truth], quantity: str
) -> Iterator[Drawn]:
    """All figures that the rows and runs allow.

    done: by section and name. truth: of "numbers" and of "labels". quantity: what is predicted.
    """
    for (section, name), caption in HISTORIES.items():
        if (section, name) in done:
            row, history, _ = done[section, name]
            metric, unit = ("accuracy", "") if row.unit == "%" else ("rmse", row.unit)
            figure = plots.histories(history, metric, unit=unit, title=f"{name}: {row.what}")
            yield Drawn(section, f"history {name}", caption, figure)
    if (EXERCISES, "BatchNorm") in done:
        yield from _predictions(done[EXERCISES, "BatchNorm"], truth["numbers"], quantity)
    sizes = [row for row in rows if row.section == SIZES]
    if sizes:
        yield _sizes(sizes, rows)
    for section, caption in (
        (
            EXERCISES,
            "Every dot is a seed; the lines need no network. One place and all years have test rows of their own.",
        ),
        (NEXT, "The open questions beside the network they change."),
        (CIFAR10, "Every dot is a seed."),
    ):
        yield from _spreads(section, caption, rows)
    if (BARBECUE, "one place, yes or no") in done:
        yield from _roc(done[BARBECUE, "one place, yes or no"], truth["labels"])


def _sizes(sizes: Sequence[Row], rows: Sequence[Row]) -> Drawn:
    means = {name: [estimate(row.values[name]).mean for row in sizes] for name in ("train", "validation", "test")}
    errors = {name: [estimate(row.values[name]).error for row in sizes] for name in means}
    today = next((float(row.values["test"][0]) for row in rows if row.name == "as today"), None)
    figure = plots.model_size(
        [row.parameters or 1 for row in sizes],
        means,
        {name: np.nan_to_num(of) for name, of in errors.items()},
        [row.name for row in sizes],
        recommended=recommended(sizes),
        baselines={} if today is None else {"as today (test)": today},
        quantity=f"{sizes[0].figure} ({sizes[0].unit})",
    )
    return Drawn(SIZES, "sizes", "RMSE against the number of parameters, with the standard error over seeds.", figure)


def _spreads(section: str, caption: str, rows: Sequence[Row]) -> Iterator[Drawn]:
    shown = [row for row in rows if row.section == section and row.seeds]
    if section == NEXT:
        beside = [row for row in rows if row.section == EXERCISES and row.name == "BatchNorm"]
        # What has other test rows than the network beside it is left to the table.
        shown = [*beside, *(row for row in shown if "one place" not in row.name)]
    if not shown:
        return
    first = shown[0]
    alone = [row for row in rows if row.section == section and not row.seeds and "," not in row.name]
    figure = plots.seeds(
        [row.name for row in shown],
        [row.values["test"] for row in shown],
        references=[row.printed.get("test") for row in shown],
        reference_label="printed in the lesson",
        baselines={row.name: float(row.values["test"][0]) for row in alone},
        quantity=f"test {first.figure} ({first.unit})",
        decimals=1 if first.unit == "%" else 2,
    )
    yield Drawn(section, f"seeds {section}", caption, figure)


def _predictions(done: Trained, truth: Truth, quantity: str) -> Iterator[Drawn]:
    outputs, count = done.outputs["test"][..., 0], len(done.row.seeds)
    true = truth.test[:, 0]
    mean = outputs.mean(0)
    many = {f"mean of {count}": mean} if count > 1 else {}
    shown = {"one network": outputs[0], **many, "as today": truth.today}
    if np.isfinite(outputs).all():
        figure = plots.predictions(true, shown, quantity=quantity)
        yield Drawn(EXERCISES, "predictions", "Predictions for the test rows against the truth.", figure)
    found = bars(done, truth)
    if found is None:
        return
    caption = f"How often the truth lies in the intervals of {count} networks; narrow ones hold less than they should."
    held = {kind: list(shares.values()) for kind, shares in found.held.items()}
    yield Drawn(NEXT, "coverage", caption, plots.coverage(LEVELS, held, rows=len(true)))
    caption = "The mean of all networks with calibrated intervals, which should hold 90 % of the test rows."
    figure = plots.intervals(true, found.mean, found.deviation, level=0.9, quantity=quantity)
    yield Drawn(NEXT, "intervals", caption, figure)


def _roc(done: Trained, truth: Truth) -> Iterator[Drawn]:
    true, scores = truth.test[:, 0], done.outputs["test"][..., 0]
    if np.ptp(true) == 0 or not np.isfinite(scores).all():
        return
    today = truth.today > 0.5
    point = (float(np.mean(today[true < 0.5])), float(np.mean(today[true > 0.5])))
    name = f"mean of {len(scores)} networks" if len(scores) > 1 else "one network"
    figure = plots.roc({name: roc_curve(scores.mean(0), true)}, {"as today": point})
    yield Drawn(BARBECUE, "roc", "Tomorrow's barbecue weather, from 9 years of one place.", figure)
