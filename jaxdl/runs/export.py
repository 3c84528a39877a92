"""Export the model of a run, with a card that says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxdl.errors import InputError
from jaxdl.nn import build_model
from jaxdl.nn.models import from_json
from jaxdl.runs import folders
from jaxdl.saving import OutputSpec, load
from jaxdl.saving.export import escape_html, export_model, load_model
from jaxdl.types import SETS, Model, Variables


def export_run(run: str | Path, folder: str | Path, *, kept: Literal["best", "final"] = "best") -> Path:
    """Writes the model of a finished run, the weights of its best epoch or its last, as `export` does.

    Raises InputError for a folder that is not that of a finished run, or of one whose config.json describes no
    network, and as `export` does.

    >>> export_run(Path("no", "such", "folder"), "out")
    Traceback (most recent call last):
    ...
    jaxdl.errors.InputError: no/such/folder holds no run: it has no config.json. Name the folder of a finished run.
    """
    run = Path(run)
    config, metrics = _finished(run)
    if kept == "best" and metrics.get("best_epoch") == 0:
        raise InputError(f"the run in {run} has no best epoch, because no loss was finite. Train it anew.")
    try:
        inputs, outputs = config["inputs"], OutputSpec(**config["outputs"])
        columns = inputs["columns"]
        for name, texts in (("outputs", [*outputs.names, outputs.link, outputs.unit]), ("columns", columns or [])):
            if not all(isinstance(text, str) for text in texts):
                raise TypeError(name)
        rows = np.zeros((1, *inputs["shape"]), inputs["dtype"])
        model = None if config["network"] is None else build_model(from_json(config["network"]))
        card = of_run(config, metrics, kept)
    except InputError:
        raise
    except (AttributeError, KeyError, MemoryError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"{run / folders.CONFIG} and {folders.METRICS} must describe the model, but lack or garble {error}. "
            "Restore them from a copy, or train again."
        ) from error
    variables = load(run / "checkpoints" / kept)
    if model is None:
        model = _own_model(run, variables)
    return export_model(folder, model, variables, rows, columns=columns, outputs=outputs, card=card)


def _own_model(run: Path, variables: Variables) -> Model:
    path = run / folders.PROGRAM
    if not path.is_file():
        raise InputError(
            f"the run in {run} cannot be exported: its model was not saved, as its command said at the end. Call "
            "jaxdl.saving.export.export_model in a script that has the model."
        )
    return load_model(path, variables)


def _finished(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not (run / folders.CONFIG).is_file():
        raise InputError(f"{run} holds no run: it has no {folders.CONFIG}. Name the folder of a finished run.")
    config = folders.read_json(run / folders.CONFIG)
    if isinstance(config, dict) and config.get(folders.KIND, folders.RUN) != folders.RUN:
        raise InputError(f"{run} must be the folder of a run, got {folders.other_kind(config)}. Name that of a run.")
    if not (run / folders.METRICS).is_file():
        raise InputError(
            f"the run in {run} is not finished: it has no {folders.METRICS}. Let its command go on first, with "
            f"--workdir {run}."
        )
    return config, folders.read_json(run / folders.METRICS)


ERRORS = (
    "Behind +- stands the standard error that comes of the few test rows, taken as independent draws; what another "
    "seed of the training would change is not in it."
)


def of_run(config: Mapping[str, Any], metrics: Mapping[str, Any], kept: str) -> str:
    """What the files of a run say of its weights: config.json, metrics.json; `kept` is best or final."""
    about, terms, data = config["card"], config["terms"], metrics["dataset"]
    rows = ", ".join(f"{data['rows'][name]:,} {name}" for name in SETS if name in data["rows"])
    source = data["source"].rpartition("/")[2] if data["source"].startswith("file:") else data["source"]
    epoch = metrics["best_epoch"] if kept == "best" else metrics["epochs"]
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    parts = [
        f"# {about['title']}",
        about["predicts"],
        *([f"**{data['note']}**"] if data.get("note") else []),
        "## How good it is",
        figures(metrics, kept, config.get("outputs", {}).get("unit", "")),
        *([ERRORS] if metrics.get("test_errors") else []),
        "## Limits",
        about["limits"],
        "## Data",
        f"{terms['data']} Read from {source} (SHA-256 {data['sha256']}): {rows} rows.",
        f"Licence: {terms['licence']}",
        *(["To cite:", "\n".join(f"- {work}" for work in terms["cite"])] if terms["cite"] else []),
        "## How it was trained",
        f"The {kept} weights, of epoch {epoch} of {metrics['epochs']}, seed {config['seed']}, recipe "
        f"{config.get('recipe')}. Commit of the code: {config['commit'] or 'unknown'}. Versions: {versions}.",
        f"Network: {_network(config.get('network'))}",
    ]
    return escape_html("\n\n".join(parts) + "\n")


def _network(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return "the author's own."
    words = ", ".join(f"{name} {value}" for name, value in entry.get("arguments", {}).items())
    twice = "; each picture is seen as its mirror image too" if entry.get("flip_averaged") else ""
    return f"{entry.get('kind')} ({words}){twice}."


def figures(metrics: Mapping[str, Any], kept: str, unit: str = "") -> str:
    """The table of a run's figures by set, those of the test rows with their errors, and the baselines' below."""
    suffix = "_best" if kept == "best" else ""
    # Final figures have no suffix, so those of the best epoch are known by it.
    found = [name for name, entry in metrics.items() if isinstance(entry, dict) and {*SETS} <= entry.keys()]
    names = [name.removesuffix("_best") for name in found if name.endswith("_best")]
    errors = metrics.get("test_errors", {})
    lines = ["| | train | validation | test |", "|---|---|---|---|"]
    for name in names:
        entry, label = metrics[name + suffix], f"{name} ({unit})" if unit and name == "rmse" else name
        cells = [_number(entry["train"]), _number(entry["validation"])]
        lines.append(f"| {label} | {' | '.join(cells)} | {_with_error(entry['test'], errors.get(name + suffix))} |")
        for other, judged in metrics.get("baselines", {}).items():
            if f"test_{name}" in judged:
                number = _with_error(judged[f"test_{name}"], judged.get(f"test_{name}_error"))
                lines.append(f"| {label} of {other.replace('_', ' ')} | | | {number} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _with_error(value: float | None, error: float | None) -> str:
    return _number(value) + (f" +- {error:.3f}" if value is not None and error is not None else "")
