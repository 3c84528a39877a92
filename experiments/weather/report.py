"""What a weather run says: its figures beside the baselines', tables and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from jaxdl import plots
from jaxdl.baselines import climatology, moving_average, ridge, root_mean_square
from jaxdl.datasets import WeatherData, place_of, terms_of
from jaxdl.plots import residuals
from jaxdl.runs import Setup, experiment
from jaxdl.runs.experiment import short
from jaxdl.saving import OutputSpec
from jaxdl.stats import rmse_standard_error
from jaxdl.train.evaluate import evaluate as evaluate_dataset
from jaxdl.train.evaluate import predict
from jaxdl.train.history import as_table
from jaxdl.types import SETS, RunState, Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LIMITS = (
    "It has learnt from days of {first} to {last} {where}, and was judged on days between them that it had "
    "not seen. What it says of other years, a changed climate or other instruments is not known. It knows what was "
    "measured on one day and no more: do not put it in the place of a weather service."
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
    """Predictions for the test rows, (rows,), of the methods that a network must beat.

    The penalty of the ridge regression is the one that does best on the validation rows.
    """
    inputs, targets = dataset.data.inputs, np.asarray(dataset.data.targets[:, 0], np.float64)
    today = np.asarray(dataset.today, np.float64)
    tomorrow = np.array(dataset.rows, "datetime64[D]") + np.timedelta64(1, "D")
    months = tomorrow.astype("datetime64[M]").astype(int) % 12 + 1
    train, validation, test = (rows[name] for name in SETS)

    def regression(penalty: float, wanted: np.ndarray) -> np.ndarray:
        return ridge(inputs[train], targets[train], inputs[wanted], penalty)

    best = min(PENALTIES, key=lambda penalty: root_mean_square(regression(penalty, validation) - targets[validation]))
    return {
        "persistence": today[test],
        "mean_of_last_days": moving_average(today, DAYS)[test],
        "climatology": climatology(months[train], targets[train], months[test]),
        "ridge": regression(best, test),
    }


def evaluate(setup: Setup, run_state: RunState) -> dict[str, Any]:
    """The entries of metrics.json that say how well the run went."""

    def figures(variables: Variables) -> dict[str, float]:
        return {
            n: float(evaluate_dataset(setup.model, variables, setup.sets[n], setup.loss, metrics=setup.metrics)["rmse"])
            for n in SETS
        }

    def missed(variables: Variables) -> np.ndarray:
        test = setup.sets["test"]
        return np.asarray(predict(setup.plan.model, variables, test.inputs) - test.targets)

    true = setup.dataset.data.targets[setup.rows["test"], 0]
    simple = baselines(setup.dataset, setup.rows)
    misses = {name: guess - true for name, guess in simple.items()}
    final, best = run_state.train_state.variables, run_state.best
    return {
        "baselines": {
            n: {"test_rmse": root_mean_square(m), "test_rmse_error": rmse_standard_error(m)} for n, m in misses.items()
        },
        "rmse": figures(final),
        "rmse_best": figures(best),
        "test_errors": {"rmse": rmse_standard_error(missed(final)), "rmse_best": rmse_standard_error(missed(best))},
    }


def describe_data(setup: Setup) -> dict[str, Any]:
    """The data set in metrics.json and config.json."""
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
    """What it takes to use the model, in config.json."""
    return experiment.model_card(
        setup,
        OutputSpec(("sunshine_hours",), unit="hours"),
        title="Tomorrow's sunshine hours in Basel",
        predicts=f"How long the sun will shine in Basel tomorrow, from what was measured {where(setup.dataset)} today.",
        limits=limits(setup.dataset),
        terms=terms(setup.dataset),
        columns=setup.dataset.columns,
    )


def terms(dataset: WeatherData) -> dict[str, Any]:
    """Where the data come from, and what may be done with them."""
    return terms_of(dataset.name, dataset.source)._asdict()


def limits(dataset: WeatherData) -> str:
    """What a model of this data cannot be trusted with, for its card."""
    return LIMITS.format(first=dataset.rows[0], last=dataset.rows[-1], where=where(dataset))


def where(dataset: WeatherData) -> str:
    """Where the weather was measured, or that it was not."""
    places = {place_of(column) for column in dataset.columns}
    found = f"in {places.pop().replace('_', ' ').title()}" if len(places) == 1 else "at places in Europe"
    return f"{found} (simulated)" if dataset.source.startswith("simulated") else found


def figures(setup: Setup, run_state: RunState, history: list[dict[str, float]], title: str) -> dict[str, Figure]:
    """The run's pictures by name: history, predictions for the test rows beside persistence, what they miss."""
    test = setup.sets["test"]
    model = np.asarray(predict(setup.plan.model, run_state.train_state.variables, test.inputs))
    persistence = setup.dataset.today[setup.rows["test"]]
    best = int(run_state.stopping.best_epoch)
    shown = {f"model after epoch {len(history)}": model, "persistence": persistence}
    return {
        "history": plots.history(as_table(history), best_epoch=best, unit="hours", title=title),
        "predictions": plots.predictions(test.targets, shown, quantity="sunshine hours", title=title),
        "residuals": residuals(
            test.targets, model, quantity="sunshine hours", title=f"{title}, after epoch {len(history)}"
        ),
    }


def table(metrics: dict[str, Any]) -> Table:
    """The run's RMSE beside the baselines', in hours, as a table for a rich console."""
    data, best = metrics["dataset"], metrics["best_epoch"]
    counts = " / ".join(f"{data['rows'][name]:,}" for name in SETS)
    title = f"RMSE in hours of sunshine, {counts} rows of {short(data['source'])}"
    rows = Table(title=title, title_justify="left", title_style="bold")
    rows.add_column("", no_wrap=True)
    for name in SETS:
        rows.add_column(name, justify="right")
    ended = f"model, after epoch {metrics['epochs']} ({metrics['reason']})"
    kept = f"model, best epoch {best}" if best else "model, last epoch (no epoch was finite)"
    for label, key in ((ended, "rmse"), (kept, "rmse_best")):
        rows.add_row(label, *(_number(metrics[key][name]) for name in SETS), style="bold")
    rows.add_section()
    for name, label in NAMES.items():
        rows.add_row(label, "", "", _number(metrics["baselines"][name]["test_rmse"]))
    if "irreducible_test_rmse" in data:
        rows.add_row("irreducible (by construction)", "", "", _number(data["irreducible_test_rmse"]))
    return rows


def _number(value: float | None) -> str:
    return "not finite" if value is None or not np.isfinite(value) else f"{value:.3f}"
