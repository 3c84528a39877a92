"""What a weather run on labels of barbecue weather says: its figures beside the baselines', tables and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from experiments.weather import report as weather_report
from jaxdl import plots
from jaxdl.metrics import precision_recall_curve, roc_curve
from jaxdl.runs import Setup, experiment
from jaxdl.runs.experiment import short
from jaxdl.saving import OutputSpec
from jaxdl.stats import proportion_standard_error
from jaxdl.train.evaluate import evaluate as evaluate_dataset
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
FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced\naccuracy",
    "loss": "loss",
    "roc_area": "ROC\narea",
    "average_precision": "average\nprecision",
}


def describe_data(setup: Setup) -> dict[str, Any]:
    """The data set in metrics.json and config.json, with where the labels come from and how many say yes."""
    sets = setup.sets
    shares = {name: float(np.mean(np.asarray(sets[name].targets), dtype=np.float64)) for name in SETS}
    return {**weather_report.describe_data(setup), "labels": setup.dataset.labels, "share_of_yes": shares}


def model_card(setup: Setup) -> dict[str, Any]:
    """What it takes to use the model, in config.json."""
    return experiment.model_card(
        setup,
        OutputSpec(("barbecue_probability",), "sigmoid"),
        title="Whether tomorrow is barbecue weather in Basel",
        predicts=f"From what was measured {weather_report.where(setup.dataset)} today: the probability that tomorrow "
        "is a day in Basel without rain and with at least 18 degrees Celsius.",
        limits=weather_report.limits(setup.dataset),
        terms=weather_report.terms(setup.dataset),
        columns=setup.dataset.columns,
    )


def baselines(setup: Setup) -> dict[str, np.ndarray]:
    """Scores for the test rows, (rows,) from about 0 to 1, of the methods that a network must beat; above 0.5 is yes.

    They are those of the regression, on labels: the share of the last days, or of the month's days, that were barbecue
    weather, and ridge regression on 0 and 1. The majority class is that of the training rows.
    """
    share = np.mean(setup.sets["train"].targets)
    majority = np.full(len(setup.rows["test"]), float(share > 0.5))
    return {"majority_class": majority, **weather_report.baselines(setup.dataset, setup.rows)}


def quality(scores: np.ndarray, true: np.ndarray, threshold: float) -> dict[str, float]:
    """Return the metrics of scores against yes and no, (rows,) each; nan where a score is not finite."""
    matrix = confusion(scores, true, threshold)
    shares = matrix.diagonal() / np.bincount(np.asarray(true, int), minlength=2)
    finite = np.isfinite(scores).all()
    return {
        "accuracy": float(matrix.trace() / len(true)),
        "balanced_accuracy": float(shares.mean()),
        "roc_area": roc_curve(scores, true).area if finite else np.nan,
        "average_precision": precision_recall_curve(scores, true).area if finite else np.nan,
    }


def confusion(scores: np.ndarray, true: np.ndarray, threshold: float) -> np.ndarray:
    """How many rows of each true class (down) were taken for each class (across), (2, 2), no before yes.

    A score that is no number is for none.
    """
    told = ~np.isnan(scores)
    return np.bincount(2 * np.asarray(true, int)[told] + (scores[told] > threshold), minlength=4).reshape(2, 2)


def _logits(setup: Setup, variables: Variables, name: str) -> np.ndarray:
    return np.asarray(predict(setup.plan.model, variables, setup.sets[name].inputs))[:, 0].astype(np.float64)


def _true(setup: Setup, name: str) -> np.ndarray:
    return np.asarray(setup.sets[name].targets)[:, 0]


def evaluate(setup: Setup, run_state: RunState) -> dict[str, Any]:
    """The entries of metrics.json that say how well the run went."""

    def figures(variables: Variables) -> dict[str, dict[str, float]]:
        measured: dict[str, dict[str, Any]] = {
            n: {
                **quality(_logits(setup, variables, n), _true(setup, n), 0.0),
                **evaluate_dataset(setup.model, variables, setup.sets[n], setup.loss, metrics=setup.metrics),
            }
            for n in SETS
        }
        return {figure: {n: float(measured[n][figure]) for n in SETS} for figure in FIGURES}

    def judged(scores: np.ndarray) -> dict[str, float]:
        return {f"test_{name}": value for name, value in quality(scores, _true(setup, "test"), 0.5).items()}

    best = {f"{name}_best": value for name, value in figures(run_state.best).items()}
    figured, count = {**figures(run_state.train_state.variables), **best}, len(setup.rows["test"])
    accuracies = {name: figured[name]["test"] for name in ("accuracy", "accuracy_best")}
    return {
        "baselines": {name: judged(scores) for name, scores in baselines(setup).items()},
        **figured,
        "test_errors": {name: proportion_standard_error(share * count, count) for name, share in accuracies.items()},
    }


def figures(setup: Setup, run_state: RunState, history: list[dict[str, float]], title: str) -> dict[str, Figure]:
    """The run's pictures by name: histories, and for the test rows both curves and the confusion matrix."""
    records, best, of_test = as_table(history), int(run_state.stopping.best_epoch), f"test days: {title}"
    true, scores = _true(setup, "test"), _logits(setup, run_state.train_state.variables, "test")
    simple = baselines(setup)
    shown = {"model": scores, "ridge regression": simple["ridge"], "climatology": simple["climatology"]}
    # A diverged model has no curve.
    shown = {name: values for name, values in shown.items() if np.isfinite(values).all()}
    (right, alarms), (missed, found) = confusion(simple["persistence"], true, 0.5)
    at = {"persistence": (alarms / (alarms + right), found / (found + missed))}
    precision = {"persistence": (found / (found + missed), found / (found + alarms))} if found + alarms else None
    return {
        "loss": plots.history(records, "loss", best_epoch=best, unit="nats", title=title),
        "accuracy": plots.history(records, "accuracy", best_epoch=best, title=title),
        "roc": plots.roc({name: roc_curve(values, true) for name, values in shown.items()}, at, title=of_test),
        "precision_recall": plots.precision_recall(
            {name: precision_recall_curve(values, true) for name, values in shown.items()},
            precision,
            positive_fraction=true.mean(),
            title=of_test,
        ),
        "confusion": plots.confusion(confusion(scores, true, 0.0), CLASSES, title=of_test),
    }


def table(metrics: dict[str, Any]) -> Table:
    """The run's figures beside the baselines', as a table for a rich console."""
    data, best = metrics["dataset"], metrics["best_epoch"]
    counts = " / ".join(f"{data['rows'][name]:,} ({data['share_of_yes'][name]:.0%} yes)" for name in SETS)
    title = f"Barbecue weather, {counts} rows of {short(data['source'])}"
    rows = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    rows.caption = f"Ended by {metrics['reason']}. Labels: {data['labels']}."
    rows.add_column("")
    for label in FIGURES.values():
        rows.add_column(label, justify="right")
    ended = f"model, after epoch {metrics['epochs']}"
    kept = f"model, best epoch {best}" if best else "model, last epoch (no epoch was finite)"
    for label, suffix in ((ended, ""), (kept, "_best")):
        rows.add_row(label, style="bold")
        for name in SETS:
            rows.add_row(f"  {name}", *(_number(n, metrics[n + suffix][name]) for n in FIGURES), style="bold")
        rows.add_section()
    for name, label in NAMES.items():
        of = metrics["baselines"][name]
        rows.add_row(label, *(_number(n, of[f"test_{n}"]) if n != "loss" else "" for n in FIGURES))
    return rows


def _number(figure: str, value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "nan"
    return f"{100 * value:.1f} %" if figure.endswith("accuracy") else f"{value:.3f}"
