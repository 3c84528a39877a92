"""The reports of a weather run: metrics beside those of baselines, tables and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from jaxdl import plots
from jaxdl.baselines import climatology, moving_average, ridge, root_mean_square
from jaxdl.datasets import WeatherData, place_of, terms_of
from jaxdl.plots import residuals
from jaxdl.runs import Setup, experiment
from jaxdl.runs.experiment import count_rows, evaluate_sets, metrics_table, result_labels
from jaxdl.runs.folders import short_source
from jaxdl.runs.tables import number
from jaxdl.saving import OutputSpec
from jaxdl.stats import rmse_standard_error
from jaxdl.train.evaluate import predict
from jaxdl.train.history import as_table
from jaxdl.types import SETS, RunState, Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LIMITS = (
    "The model was trained on days from {first} to {last} {where}, and tested on other days of the same years. Its "
    "quality in other years, in a changed climate or with other instruments is not known. Its inputs are the "
    "measurements of one day: do not use it in the place of a weather service."
)
DAYS = 7  # of the baseline that averages the last days
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
NAMES = {
    "persistence": "persistence (as today)",
    "mean_of_last_days": f"mean of the last {DAYS} days",
    "climatology": "climatology (mean of the month)",
    "ridge": "ridge regression",
}


def baselines(dataset: WeatherData, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the predictions of the baselines for the test rows, (test rows,), by name.

    The penalty of the ridge regression is the one with the lowest error on the validation rows.
    """
    inputs, targets = dataset.data.inputs, np.asarray(dataset.data.targets[:, 0], np.float64)
    today = np.asarray(dataset.today, np.float64)
    tomorrow = np.array(dataset.rows, "datetime64[D]") + np.timedelta64(1, "D")
    months = tomorrow.astype("datetime64[M]").astype(int) % 12 + 1
    train, validation, test = (rows[name] for name in SETS)

    def regression(penalty: float, chosen: np.ndarray) -> np.ndarray:
        return ridge(inputs[train], targets[train], inputs[chosen], penalty)

    best = min(PENALTIES, key=lambda penalty: root_mean_square(regression(penalty, validation) - targets[validation]))
    return {
        "persistence": today[test],
        "mean_of_last_days": moving_average(today, DAYS)[test],
        "climatology": climatology(months[train], targets[train], months[test]),
        "ridge": regression(best, test),
    }


def evaluate(setup: Setup, run_state: RunState) -> dict[str, Any]:
    """Return the entries of metrics.json about the quality of the model and of the baselines."""

    def test_error(variables: Variables) -> float:
        test = setup.sets["test"]
        return rmse_standard_error(np.asarray(predict(setup.plan.model, variables, test.inputs) - test.targets))

    targets = setup.dataset.data.targets[setup.rows["test"], 0]
    errors = {name: outputs - targets for name, outputs in baselines(setup.dataset, setup.rows).items()}
    final, best = run_state.train_state.variables, run_state.best
    return {
        "baselines": {
            name: {"test_rmse": root_mean_square(error), "test_rmse_error": rmse_standard_error(error)}
            for name, error in errors.items()
        },
        "rmse": evaluate_sets(setup, final)["rmse"],
        "rmse_best": evaluate_sets(setup, best)["rmse"],
        "test_errors": {"rmse": test_error(final), "rmse_best": test_error(best)},
    }


def describe_data(setup: Setup) -> dict[str, Any]:
    """Return the entry "dataset" of metrics.json and config.json."""
    dataset, rows = setup.dataset, setup.rows
    entry: dict[str, Any] = {
        "name": dataset.name,
        "source": dataset.source,
        "sha256": dataset.sha256,
        "features": len(dataset.columns),
        "rows": {name: len(rows[name]) for name in SETS},
        "note": dataset.note,
    }
    if dataset.noise is not None:
        entry["irreducible_test_rmse"] = root_mean_square(dataset.noise[rows["test"]])
    return entry


def model_card(setup: Setup) -> dict[str, Any]:
    """Return the entries of config.json that describe the model."""
    return card_of(
        setup,
        OutputSpec(("sunshine_hours",), unit="hours"),
        title="Tomorrow's sunshine hours in Basel",
        predicts=f"Tomorrow's hours of sunshine in Basel, from today's measurements {location(setup.dataset)}.",
    )


def card_of(setup: Setup, outputs: OutputSpec, *, title: str, predicts: str) -> dict[str, Any]:
    """Return the model card of a weather model, with the limits and terms of the data."""
    dataset, where = setup.dataset, location(setup.dataset)
    return experiment.model_card(
        setup,
        outputs,
        title=title,
        predicts=predicts,
        limits=LIMITS.format(first=dataset.rows[0], last=dataset.rows[-1], where=where),
        terms=terms_of(dataset.name, dataset.source)._asdict(),
        columns=dataset.columns,
    )


def location(dataset: WeatherData) -> str:
    """Return where the weather was measured, and whether it is simulated."""
    places = {place_of(column) for column in dataset.columns}
    text = f"in {places.pop().replace('_', ' ').title()}" if len(places) == 1 else "at places in Europe"
    return f"{text} (simulated)" if dataset.source.startswith("simulated") else text


def figures(setup: Setup, run_state: RunState, history: list[dict[str, float]], title: str) -> dict[str, Figure]:
    """Return the figures by name: history, predictions for the test rows beside persistence, residuals."""
    test = setup.sets["test"]
    outputs = np.asarray(predict(setup.plan.model, run_state.train_state.variables, test.inputs))
    persistence = setup.dataset.today[setup.rows["test"]]
    best, epochs = int(run_state.stopping.best_epoch), len(history)
    predictions = {f"model after epoch {epochs}": outputs, "persistence": persistence}
    return {
        "history": plots.history(as_table(history), best_epoch=best, unit="hours", title=title),
        "predictions": plots.predictions(test.targets, predictions, quantity="sunshine hours", title=title),
        "residuals": residuals(
            test.targets, outputs, quantity="sunshine hours", title=f"{title}, after epoch {epochs}"
        ),
    }


def table(metrics: dict[str, Any]) -> Table:
    """Return the RMSE of the model and of the baselines, in hours, as a table of rich."""
    data = metrics["dataset"]
    rows = metrics_table(f"RMSE in hours of sunshine, {count_rows(metrics)} rows of {short_source(data['source'])}")
    for label, suffix in result_labels(metrics):
        values = metrics[f"rmse{suffix}"]
        rows.add_row(f"model, {label}", *(number(values[name], "rmse") for name in SETS), style="bold")
    rows.add_section()
    for name, label in NAMES.items():
        rows.add_row(label, "", "", number(metrics["baselines"][name]["test_rmse"], "rmse"))
    if "irreducible_test_rmse" in data:
        rows.add_row("irreducible (by construction)", "", "", number(data["irreducible_test_rmse"], "rmse"))
    return rows
