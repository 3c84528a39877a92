"""The reports of a weather run on labels of barbecue weather: metrics beside those of baselines, tables and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from experiments.weather import report as weather_report
from jaxdl import plots
from jaxdl.metrics import precision_recall_curve, roc_curve
from jaxdl.runs import Setup
from jaxdl.runs.experiment import evaluate_sets, metrics_table, result_labels
from jaxdl.runs.folders import short_source
from jaxdl.runs.tables import number
from jaxdl.saving import OutputSpec
from jaxdl.stats import proportion_standard_error
from jaxdl.train.evaluate import predict
from jaxdl.train.history import as_table
from jaxdl.types import SETS, RunState, Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CLASSES = ("no", "yes")
NAMES = {
    "majority_class": "majority class",
    "persistence": "persistence (as today)",
    "mean_of_last_days": f"most of the last {weather_report.DAYS} days",
    "climatology": "climatology (month)",
    "ridge": "ridge regression",
}
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced\naccuracy",
    "loss": "loss",
    "roc_area": "ROC\narea",
    "average_precision": "average\nprecision",
}


def describe_data(setup: Setup) -> dict[str, Any]:
    """Return the entry "dataset" of metrics.json and config.json, with the labels' source and share of yes."""
    sets = setup.sets
    shares = {name: float(np.mean(np.asarray(sets[name].targets), dtype=np.float64)) for name in SETS}
    return {**weather_report.describe_data(setup), "labels": setup.dataset.labels, "share_of_yes": shares}


def model_card(setup: Setup) -> dict[str, Any]:
    """Return the entries of config.json that describe the model."""
    return weather_report.card_of(
        setup,
        OutputSpec(("barbecue_probability",), "sigmoid"),
        title="Whether tomorrow is barbecue weather in Basel",
        predicts="The probability that tomorrow is a day in Basel without rain and with at least 18 degrees Celsius, "
        f"from today's measurements {weather_report.location(setup.dataset)}.",
    )


def baselines(setup: Setup) -> dict[str, np.ndarray]:
    """Return the scores of the baselines for the test rows, (test rows,), by name: about 0 to 1, above 0.5 is yes.

    The baselines are those of the regression, applied to labels 0 and 1, and the majority class of the training rows.
    """
    fraction = np.mean(setup.sets["train"].targets)
    majority = np.full(len(setup.rows["test"]), float(fraction > 0.5))
    return {"majority_class": majority, **weather_report.baselines(setup.dataset, setup.rows)}


def quality(scores: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """Return the metrics of scores, (rows,), against labels 0 and 1, (rows,); nan where a score is not finite."""
    matrix = confusion(scores, labels, threshold)
    recalls = matrix.diagonal() / np.bincount(np.asarray(labels, int), minlength=2)
    finite = np.isfinite(scores).all()
    return {
        "accuracy": float(matrix.trace() / len(labels)),
        "balanced_accuracy": float(recalls.mean()),
        "roc_area": roc_curve(scores, labels).area if finite else np.nan,
        "average_precision": precision_recall_curve(scores, labels).area if finite else np.nan,
    }


def confusion(scores: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """Return the counts of true classes (rows) by predicted classes (columns), (2, 2), no before yes, without nan."""
    known = ~np.isnan(scores)
    return np.bincount(2 * np.asarray(labels, int)[known] + (scores[known] > threshold), minlength=4).reshape(2, 2)


def _logits(setup: Setup, variables: Variables, name: str) -> np.ndarray:
    return np.asarray(predict(setup.plan.model, variables, setup.sets[name].inputs))[:, 0].astype(np.float64)


def _labels(setup: Setup, name: str) -> np.ndarray:
    return np.asarray(setup.sets[name].targets)[:, 0]


def evaluate(setup: Setup, run_state: RunState) -> dict[str, Any]:
    """Return the entries of metrics.json about the quality of the model and of the baselines."""

    def values_of(variables: Variables) -> dict[str, dict[str, float]]:
        curves = {name: quality(_logits(setup, variables, name), _labels(setup, name), 0.0) for name in SETS}
        values = {
            metric: {name: float(curves[name][metric]) for name in SETS} for metric in curves["test"]
        } | evaluate_sets(setup, variables)
        return {metric: values[metric] for metric in METRICS}

    def test_values(scores: np.ndarray) -> dict[str, float]:
        return {f"test_{name}": value for name, value in quality(scores, _labels(setup, "test"), 0.5).items()}

    best = {f"{name}_best": values for name, values in values_of(run_state.best).items()}
    values, count = {**values_of(run_state.train_state.variables), **best}, len(setup.rows["test"])
    return {
        "baselines": {name: test_values(scores) for name, scores in baselines(setup).items()},
        **values,
        "test_errors": {
            name: proportion_standard_error(values[name]["test"] * count, count)
            for name in ("accuracy", "accuracy_best")
        },
    }


def figures(setup: Setup, run_state: RunState, history: list[dict[str, float]], title: str) -> dict[str, Figure]:
    """Return the figures by name: histories, and for the test rows both curves and the confusion matrix."""
    records, best, test_title = as_table(history), int(run_state.stopping.best_epoch), f"test days: {title}"
    labels, scores = _labels(setup, "test"), _logits(setup, run_state.train_state.variables, "test")
    simple = baselines(setup)
    curves = {"model": scores, "ridge regression": simple["ridge"], "climatology": simple["climatology"]}
    # A diverged model has no curve.
    curves = {name: values for name, values in curves.items() if np.isfinite(values).all()}
    (true_no, false_yes), (false_no, true_yes) = confusion(simple["persistence"], labels, 0.5)
    recall, predicted_yes = true_yes / (true_yes + false_no), true_yes + false_yes
    precision = {"persistence": (recall, true_yes / predicted_yes)} if predicted_yes else None
    return {
        "loss": plots.history(records, "loss", best_epoch=best, unit="nats", title=title),
        "accuracy": plots.history(records, "accuracy", best_epoch=best, title=title),
        "roc": plots.roc(
            {name: roc_curve(values, labels) for name, values in curves.items()},
            {"persistence": (false_yes / (false_yes + true_no), recall)},
            title=test_title,
        ),
        "precision_recall": plots.precision_recall(
            {name: precision_recall_curve(values, labels) for name, values in curves.items()},
            precision,
            positive_fraction=labels.mean(),
            title=test_title,
        ),
        "confusion": plots.confusion(confusion(scores, labels, 0.0), CLASSES, title=test_title),
    }


def table(metrics: dict[str, Any]) -> Table:
    """Return the metrics of the model and of the baselines as a table of rich."""
    data = metrics["dataset"]
    counts = " / ".join(f"{data['rows'][name]:,} ({data['share_of_yes'][name]:.0%} yes)" for name in SETS)
    rows = metrics_table(
        f"Barbecue weather, {counts} rows of {short_source(data['source'])}", columns=tuple(METRICS.values())
    )
    rows.columns[0].no_wrap = False
    rows.caption, rows.caption_justify = f"Labels: {data['labels']}.", "left"
    for label, suffix in result_labels(metrics):
        rows.add_row(f"model, {label}", style="bold")
        for name in SETS:
            rows.add_row(f"  {name}", *(number(metrics[m + suffix][name], m) for m in METRICS), style="bold")
        rows.add_section()
    for name, label in NAMES.items():
        values = metrics["baselines"][name]
        rows.add_row(label, *(number(values[f"test_{m}"], m) if m != "loss" else "" for m in METRICS))
    return rows
