"""The reports of a CIFAR-10 run: metrics beside those of guesses, tables and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.table import Table

from jaxdl import plots
from jaxdl.datasets import terms_of
from jaxdl.plots import learning_rate
from jaxdl.runs import Setup, experiment
from jaxdl.runs.experiment import count_rows, metrics_table, result_labels
from jaxdl.runs.folders import short_source
from jaxdl.runs.tables import number
from jaxdl.saving import OutputSpec
from jaxdl.stats import proportion_standard_error
from jaxdl.train.evaluate import predict
from jaxdl.train.history import as_table
from jaxdl.train.step import eval_variables
from jaxdl.types import SETS, RunState

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LESSON_SPLIT = (
    "VALIDATED ON THE TEST IMAGES, as in the lesson: they chose the best epoch, and when training stopped, so no "
    "value of this run is an honest estimate for new images."
)
LIMITS = (
    "The model was trained on {rows:,} pictures of {size} x {size} pixels of these classes. It assigns every picture "
    "to one of them, also a picture of something else. Its probabilities are not calibrated, and it was not tested on "
    "photographs of other sizes, cameras or crops."
)
SAMPLES, ERRORS = 40, 32


def describe_data(setup: Setup) -> dict[str, Any]:
    """Return the entry "dataset" of metrics.json and config.json."""
    dataset, rows = setup.dataset, setup.rows
    lesson = setup.sets["validation"] is setup.sets["test"]
    notes = [note for note in (dataset.note, LESSON_SPLIT if lesson else None) if note]
    return {
        "name": dataset.name,
        "source": dataset.source,
        "sha256": dataset.sha256,
        "classes": list(dataset.classes),
        "rows": {name: len(rows[name]) for name in SETS},
        "lesson_split": lesson,
        "note": " ".join(notes) or None,
    }


def model_card(setup: Setup) -> dict[str, Any]:
    """Return the entries of config.json that describe the model."""
    return experiment.model_card(
        setup,
        OutputSpec(setup.dataset.classes, "softmax"),
        title="What is in a small picture",
        predicts=f"Which of {len(setup.dataset.classes)} things a picture shows: {', '.join(setup.dataset.classes)}.",
        limits=LIMITS.format(rows=len(setup.rows["train"]), size=setup.train.inputs.shape[1]),
        terms=terms_of(setup.dataset.name, setup.dataset.source)._asdict(),
    )


def evaluate(setup: Setup, run_state: RunState) -> dict[str, Any]:
    """Return the entries of metrics.json about the quality of the model and of guesses."""
    sets, classes = setup.sets, setup.dataset.classes
    values = experiment.evaluate(setup, run_state)
    labels = np.asarray(sets["test"].targets)
    matrix = confusion(labels, classes_of(test_probabilities(setup, run_state)), len(classes))
    counts = np.bincount(labels, minlength=len(classes))
    majority = int(np.bincount(np.asarray(sets["train"].targets), minlength=len(classes)).argmax())
    fractions = matrix.diagonal() / np.maximum(counts, 1)
    return {
        **{f"{name}{suffix}": values[f"{name}{suffix}"] for suffix in ("", "_best") for name in ("accuracy", "loss")},
        "test_errors": {
            name: proportion_standard_error(values[name]["test"] * len(labels), len(labels))
            for name in ("accuracy", "accuracy_best")
        },
        "per_class_accuracy": {
            name: float(fraction) if count else None
            for name, fraction, count in zip(classes, fractions, counts, strict=True)
        },
        "baselines": {
            "chance": {"test_accuracy": 1 / len(classes)},
            "majority_class": {"test_accuracy": float((labels == majority).mean()), "class": classes[majority]},
        },
    }


def test_probabilities(setup: Setup, run_state: RunState) -> np.ndarray:
    """Return the probabilities of the classes of the test images, (rows, classes), with the final variables."""
    outputs = predict(setup.plan.model, eval_variables(run_state.train_state), setup.sets["test"].inputs)
    return np.asarray(jax.nn.softmax(outputs))


def classes_of(probabilities: np.ndarray) -> np.ndarray:
    """Return the class with the highest probability, (rows,); -1 where a probability is not finite."""
    return np.where(np.isfinite(probabilities).all(1), probabilities.argmax(1), -1)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return the counts of true classes (rows) by predicted classes (columns), (classes, classes), without -1."""
    known = predicted >= 0
    return np.bincount(labels[known] * classes + predicted[known], minlength=classes**2).reshape(classes, classes)


def figures(setup: Setup, run_state: RunState, history: list[dict[str, float]], title: str) -> dict[str, Figure]:
    """Return the figures by name: samples, histories, confusion matrix, confident errors, kernels, learning rate."""
    classes, records, best = setup.dataset.classes, as_table(history), int(run_state.stopping.best_epoch)
    train, labels = setup.sets["train"], np.asarray(setup.sets["test"].targets)
    names = [classes[label] for label in np.asarray(train.targets[:SAMPLES])]
    probabilities = test_probabilities(setup, run_state)
    matrix = confusion(labels, classes_of(probabilities), len(classes))
    pictures = {
        "samples": plots.images(train.inputs[:SAMPLES], names, columns=10, title=f"training images: {title}"),
        "accuracy": plots.history(records, "accuracy", best_epoch=best, title=title),
        "loss": plots.history(records, "loss", best_epoch=best, unit="nats", title=title),
        "confusion": plots.confusion(matrix, classes, title=f"test images: {title}"),
        "errors": _errors(setup, probabilities, title),
    }
    kernels = [leaf for leaf in jax.tree.leaves(eval_variables(run_state.train_state).params) if leaf.ndim == 4]
    if kernels:
        pictures["kernels"] = plots.kernels(kernels[0], title=f"first layer: {title}")
    if records["learning_rate"].nunique() > 1:
        pictures["learning-rate"] = learning_rate(records, unit="nats", title=title)
    return pictures


def _errors(setup: Setup, probabilities: np.ndarray, title: str) -> Figure:
    """Return the wrong predictions for test images with the highest probabilities, as pictures."""
    classes, test = setup.dataset.classes, setup.sets["test"]
    predicted, labels, confidence = classes_of(probabilities), np.asarray(test.targets), probabilities.max(1)
    wrong = np.flatnonzero((predicted != labels) & (predicted >= 0))
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:ERRORS]
    captions = [f"{classes[labels[i]]}, predicted\n{classes[predicted[i]]} ({confidence[i]:.0%})" for i in worst]
    title = f"the {len(worst)} most confident of {len(wrong)} errors on {len(labels)} test images: {title}"
    return plots.images(test.inputs[worst], captions, columns=8, title=title)


def table(metrics: dict[str, Any]) -> Table:
    """Return the accuracy of the model and of guesses as a table of rich."""
    data, simple = metrics["dataset"], metrics["baselines"]
    columns = ("train", "test images" if data["lesson_split"] else "validation", "test")
    rows = metrics_table(f"Accuracy, {count_rows(metrics)} images of {short_source(data['source'])}", columns)
    for label, suffix in result_labels(metrics):
        values = metrics[f"accuracy{suffix}"]
        rows.add_row(f"model, {label}", *(number(values[name], "accuracy") for name in SETS), style="bold")
    rows.add_section()
    for label, name in (f"always {simple['majority_class']['class']}", "majority_class"), ("chance", "chance"):
        rows.add_row(label, "", "", number(simple[name]["test_accuracy"], "accuracy"))
    return rows
