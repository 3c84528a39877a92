"""Export the model of a run with its model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxdl.errors import InputError
from jaxdl.nn import build_model
from jaxdl.nn.models import from_json
from jaxdl.runs import folders
from jaxdl.runs.catalog import read
from jaxdl.runs.folders import short_source
from jaxdl.saving import OutputSpec, load
from jaxdl.saving.export import escape_html, export_model, load_model
from jaxdl.types import SETS, Model, Variables


def export_run(run: str | Path, folder: str | Path, *, which: Literal["best", "final"] = "best") -> Path:
    """Export the model of a finished run into a new folder, as `export_model` does; return the folder.

    which: the variables of the best epoch, or of the last. Raises InputError for a folder without a finished run, for a
    run whose files do not describe its model, and as `export_model` does.
    """
    run = Path(run)
    config, metrics = _read_finished(run)
    if which == "best" and metrics.get("best_epoch") == 0:
        raise InputError(
            f"the run in {run} has no best epoch, because no loss was finite. Train it again with other flags."
        )
    try:
        inputs, outputs = config["inputs"], OutputSpec(**config["outputs"])
        columns = inputs["columns"]
        if not isinstance(inputs["shape"], list):
            raise InputError(
                f"export takes a run with one array of inputs, got inputs of shape {inputs['shape']}. Call "
                "jaxdl.saving.export.export_model in a script that has the model."
            )
        for name, texts in (("outputs", [*outputs.names, outputs.link, outputs.unit]), ("columns", columns or [])):
            if not all(isinstance(text, str) for text in texts):
                raise TypeError(name)
        rows = np.zeros((1, *inputs["shape"]), inputs["dtype"])
        model = None if config["network"] is None else build_model(from_json(config["network"]))
        card = model_card(config, metrics, which)
    except InputError:
        raise
    except (AttributeError, KeyError, MemoryError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"{run / folders.CONFIG} and {folders.METRICS} must describe the model, but {error} is missing or wrong. "
            "Restore them from a copy, or train again."
        ) from error
    variables = load(run / "checkpoints" / which)
    if model is None:
        model = _load_program(run, variables)
    return export_model(folder, model, variables, rows, columns=columns, outputs=outputs, card=card)


def _load_program(run: Path, variables: Variables) -> Model:
    path = run / folders.PROGRAM
    if not path.is_file():
        raise InputError(
            f"the run in {run} cannot be exported: its model was not saved, for the reason in the warning at its end. "
            "Call jaxdl.saving.export.export_model in a script that has the model."
        )
    return load_model(path, variables)


def _read_finished(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    config, metrics = read(run)
    if metrics is None:
        raise InputError(
            f"the run in {run} is not finished: it has no {folders.METRICS}. Resume it first: start its command with "
            f"--workdir {run}."
        )
    return config, metrics


ERRORS = (
    "The number after +- is the standard error over the test rows, as independent examples. It does not include the "
    "variation between seeds."
)


def model_card(config: Mapping[str, Any], metrics: Mapping[str, Any], which: str) -> str:
    """Return the model card of a run, in Markdown, from config.json and metrics.json. which: best or final."""
    about, terms, data = config["card"], config["terms"], metrics["dataset"]
    rows = ", ".join(f"{data['rows'][name]:,} {name}" for name in SETS if name in data["rows"])
    epoch = metrics["best_epoch"] if which == "best" else metrics["epochs"]
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    parts = [
        f"# {about['title']}",
        about["predicts"],
        *([f"**{data['note']}**"] if data.get("note") else []),
        "## How good it is",
        metrics_table(metrics, which, config.get("outputs", {}).get("unit", "")),
        *([ERRORS] if metrics.get("test_errors") else []),
        "## Limits",
        about["limits"],
        "## Data",
        f"{terms['data']} Read from {short_source(data['source'])} (SHA-256 {data['sha256']}): {rows} rows.",
        f"Licence: {terms['licence']}",
        *(["To cite:", "\n".join(f"- {work}" for work in terms["cite"])] if terms["cite"] else []),
        "## How it was trained",
        f"The {which} weights, of epoch {epoch} of {metrics['epochs']}, seed {config['seed']}, recipe "
        f"{config.get('recipe')}. Commit of the code: {config['commit'] or 'unknown'}. Versions: {versions}.",
        f"Network: {_network(config.get('network'))}",
    ]
    return escape_html("\n\n".join(parts) + "\n")


def _network(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return "the author's own model."
    words = ", ".join(f"{name} {value}" for name, value in entry.get("arguments", {}).items())
    twice = "; predictions are averaged over each picture and its mirror image" if entry.get("flip_averaged") else ""
    return f"{entry.get('kind')} ({words}){twice}."


def metrics_table(metrics: Mapping[str, Any], which: str, unit: str = "") -> str:
    """Return the metrics of a run as a Markdown table, with standard errors on the test rows, and the baselines."""
    suffix = "_best" if which == "best" else ""
    # The final values have no suffix, so the names of metrics come from those of the best epoch.
    entries = [name for name, entry in metrics.items() if isinstance(entry, dict) and {*SETS} <= entry.keys()]
    names = [name.removesuffix("_best") for name in entries if name.endswith("_best")]
    errors = metrics.get("test_errors", {})
    lines = ["| | train | validation | test |", "|---|---|---|---|"]
    for name in names:
        entry, label = metrics[name + suffix], f"{name} ({unit})" if unit and name == "rmse" else name
        cells = [_number(entry["train"]), _number(entry["validation"])]
        lines.append(f"| {label} | {' | '.join(cells)} | {_with_error(entry['test'], errors.get(name + suffix))} |")
        for baseline, values in metrics.get("baselines", {}).items():
            if f"test_{name}" in values:
                number = _with_error(values[f"test_{name}"], values.get(f"test_{name}_error"))
                lines.append(f"| {label} of {baseline.replace('_', ' ')} | | | {number} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _with_error(value: float | None, error: float | None) -> str:
    return _number(value) + (f" +- {error:.3f}" if value is not None and error is not None else "")
