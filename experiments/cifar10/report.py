"""What a CIFAR-10 run says: its figures beside what needs no network, tables and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.table import Table

from jaxdl import plots
from jaxdl.datasets import terms_of
from jaxdl.plots import learning_rate
from jaxdl.runs import Setup, experiment
from jaxdl.runs.experiment import short
from jaxdl.saving import OutputSpec
from jaxdl.stats import proportion_standard_error
from jaxdl.train.evaluate import evaluate as evaluate_dataset
from jaxdl.train.evaluate import predict
from jaxdl.train.history import as_table
from jaxdl.train.step import eval_variables
from jaxdl.types import SETS, RunState, Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LESSON_SPLIT = (
    "VALIDATED ON THE TEST IMAGES, as in the lesson: the best epoch, and early stopping, have seen them, so "
    "no figure of this run is an honest estimate for new images."
)
LIMITS = (
    "It has learnt from {rows:,} pictures of {size} x {size} pixels of these classes, and calls every picture one of "
    "them, however sure: it does not know what it has not seen. Its probabilities are not calibrated, and photographs "
    "of other sizes, cameras or cuts are not what it was judged on."
)
SAMPLES, ERRORS = 40, 32


def describe_data(setup: Setup) -> dict[str, Any]:
    """The data set in metrics.json and config.json."""
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
    """What it takes to use the model, in config.json."""
    return experiment.model_card(
        setup,
        OutputSpec(setup.dataset.classes, "softmax"),
        title="What is in a small picture",
        predicts=f"Which of {len(setup.dataset.classes)} things a picture shows: {', '.join(setup.dataset.classes)}.",
        limits=LIMITS.format(rows=len(setup.rows["train"]), size=setup.train.inputs.shape[1]),
        terms=terms_of(setup.dataset.name, setup.dataset.source)._asdict(),
    )


def evaluate(setup: Setup, run_state: RunState) -> dict[str, Any]:
    """The entries of metrics.json that say how well the run went."""
    sets, classes = setup.sets, setup.dataset.classes

    def figures(variables: Variables) -> dict[str, dict[str, float]]:
        measured = {
            name: evaluate_dataset(setup.model, variables, sets[name], setup.loss, metrics=setup.metrics)
            for name in SETS
        }
        return {figure: {name: float(measured[name][figure]) for name in SETS} for figure in ("accuracy", "loss")}

    final, best = figures(eval_variables(run_state.train_state)), figures(run_state.best)
    true = np.asarray(sets["test"].targets)
    matrix = confusion(true, guesses(predicted(setup, run_state)), len(classes))
    counts = np.bincount(np.asarray(sets["train"].targets), minlength=len(classes))
    majority = int(counts.argmax())
    of_class = np.bincount(true, minlength=len(classes))
    shares = matrix.diagonal() / np.maximum(of_class, 1)
    figured = {**final, **{f"{name}_best": value for name, value in best.items()}}
    accuracies = {name: figured[name]["test"] for name in ("accuracy", "accuracy_best")}
    return {
        **figured,
        "test_errors": {
            name: proportion_standard_error(share * len(true), len(true)) for name, share in accuracies.items()
        },
        "per_class_accuracy": {
            name: float(share) if has else None for name, share, has in zip(classes, shares, of_class, strict=True)
        },
        "baselines": {
            "chance": {"test_accuracy": 1 / len(classes)},
            "majority_class": {"test_accuracy": float((true == majority).mean()), "class": classes[majority]},
        },
    }


def predicted(setup: Setup, run_state: RunState) -> np.ndarray:
    """The probabilities of the classes, (rows, classes), that the final weights give the test images."""
    outputs = predict(setup.plan.model, eval_variables(run_state.train_state), setup.sets["test"].inputs)
    return np.asarray(jax.nn.softmax(outputs))


def guesses(chances: np.ndarray) -> np.ndarray:
    """The likeliest class of each row (rows, classes), (rows,); -1 where a diverged model gives no number."""
    return np.where(np.isfinite(chances).all(1), chances.argmax(1), -1)


def confusion(true: np.ndarray, guessed: np.ndarray, classes: int) -> np.ndarray:
    """Count the rows of each true class (down) by predicted class (across), (classes, classes); -1 is for none."""
    told = guessed >= 0
    return np.bincount(true[told] * classes + guessed[told], minlength=classes**2).reshape(classes, classes)


def figures(setup: Setup, run_state: RunState, history: list[dict[str, float]], title: str) -> dict[str, Figure]:
    """The run's pictures by name: samples, histories, the confusion matrix, confident errors, the first kernels, and
    the learning rate where it changes."""
    classes, records, best = setup.dataset.classes, as_table(history), int(run_state.stopping.best_epoch)
    train, test = setup.sets["train"], setup.sets["test"]
    names = [classes[label] for label in np.asarray(train.targets[:SAMPLES])]
    chances = predicted(setup, run_state)
    guessed, true = guesses(chances), np.asarray(test.targets)
    pictures = {
        "samples": plots.images(train.inputs[:SAMPLES], names, columns=10, title=f"training images: {title}"),
        "accuracy": plots.history(records, "accuracy", best_epoch=best, title=title),
        "loss": plots.history(records, "loss", best_epoch=best, unit="nats", title=title),
        "confusion": plots.confusion(confusion(true, guessed, len(classes)), classes, title=f"test images: {title}"),
        "errors": _errors(setup, chances, title),
    }
    first = next(
        (leaf for leaf in jax.tree.leaves(eval_variables(run_state.train_state).params) if leaf.ndim == 4), None
    )
    if first is not None:
        pictures["kernels"] = plots.kernels(first, title=f"first layer: {title}")
    if records["learning_rate"].nunique() > 1:
        pictures["learning-rate"] = learning_rate(records, unit="nats", title=title)
    return pictures


def _errors(setup: Setup, chances: np.ndarray, title: str) -> Figure:
    """The test images about which the model is surest and wrong."""
    classes, test = setup.dataset.classes, setup.sets["test"]
    guessed, true, sure = guesses(chances), np.asarray(test.targets), chances.max(1)
    wrong = np.flatnonzero((guessed != true) & (guessed >= 0))
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:ERRORS]
    captions = [f"{classes[true[row]]}, taken for\n{classes[guessed[row]]} ({sure[row]:.0%})" for row in worst]
    found = f"the {len(worst)} most confident of {len(wrong)} errors on {len(true)} test images: {title}"
    return plots.images(test.inputs[worst], captions, columns=8, title=found)


def table(metrics: dict[str, Any]) -> Table:
    """The run's accuracy beside that of guesses, as a table for a rich console."""
    data, best = metrics["dataset"], metrics["best_epoch"]
    counts = " / ".join(f"{data['rows'][name]:,}" for name in SETS)
    title = f"Accuracy, {counts} images of {short(data['source'])}"
    rows = Table(title=title, title_justify="left", title_style="bold")
    rows.add_column("", no_wrap=True)
    for name in SETS:
        rows.add_column("test images" if data["lesson_split"] and name == "validation" else name, justify="right")
    ended = f"model, after epoch {metrics['epochs']} ({metrics['reason']})"
    kept = f"model, best epoch {best}" if best else "model, last epoch (no epoch was finite)"
    for label, key in ((ended, "accuracy"), (kept, "accuracy_best")):
        rows.add_row(label, *(_share(metrics[key][name]) for name in SETS), style="bold")
    rows.add_section()
    simple = metrics["baselines"]
    rows.add_row(
        f"always {simple['majority_class']['class']}", "", "", _share(simple["majority_class"]["test_accuracy"])
    )
    rows.add_row("chance", "", "", _share(simple["chance"]["test_accuracy"]))
    return rows


def _share(value: float | None) -> str:
    return "not finite" if value is None or not np.isfinite(value) else f"{100 * value:.1f} %"
