"""The model card of an exported model, in Markdown: what it is for, how good it is, how it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxdl.errors import printable

SETS = ("train", "validation", "test")
LINKS = {"none": "", "sigmoid": "probabilities, each of its own", "softmax": "probabilities, which add up to 1"}
MOST = 20  # columns that a card lists
ERRORS = (
    "Behind +- stands the standard error that comes of the few test rows, taken as independent draws; what another "
    "seed of the training would change is not in it."
)


def of_run(config: Mapping[str, Any], metrics: Mapping[str, Any], kept: str) -> str:
    """What the files of a run say of its weights: config.json, metrics.json; `kept` is best or final.

    >>> entries = {"name": "noise", "source": "file:/home/me/a.csv", "sha256": "ab", "note": None, "rows": {"test": 60}}
    >>> about = {"title": "Rain", "predicts": "Tomorrow's rain.", "limits": "One place."}
    >>> terms = {"data": "Rain of a year.", "licence": "CC0", "cite": []}
    >>> config = {"card": about, "terms": terms, "dataset": entries, "commit": None, "versions": {}, "seed": 0}
    >>> print(of_run(config, {"epochs": 3, "best_epoch": 2, "dataset": entries}, "best")[:24])
    # Rain
    <BLANKLINE>
    Tomorrow's rain.
    """
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
        ERRORS,
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
    return _escaped("\n\n".join(parts) + "\n")


def _escaped(text: str) -> str:
    """A card without HTML: names and sources may come from elsewhere, and pages show a card's HTML as such."""
    return printable(text.replace("<", "&lt;").replace(">", "&gt;"))


def _network(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return "not told"
    words = ", ".join(f"{name} {value}" for name, value in entry.get("arguments", {}).items())
    twice = "; each picture is seen as its mirror image too" if entry.get("flip_averaged") else ""
    return f"{entry.get('kind')} ({words}){twice}."


def figures(metrics: Mapping[str, Any], kept: str, unit: str = "") -> str:
    """The table of a run's figures by set, those of the test rows with their errors, and the baselines' below.

    >>> sets = {"train": 1.0, "validation": 2.0, "test": 2.5}
    >>> said = {"rmse_best": sets, "test_errors": {"rmse_best": 0.25}, "baselines": {"ridge": {"test_rmse": 3.0}}}
    >>> print(figures(said, "best", "hours"))
    | | train | validation | test |
    |---|---|---|---|
    | rmse (hours) | 1.000 | 2.000 | 2.500 +- 0.250 |
    | rmse (hours) of ridge | | | 3.000 |
    """
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


def usage(about: Mapping[str, Any]) -> str:
    """How a model is used, from what its model.json says: what goes in, what comes out, and the files.

    >>> inputs, outputs = {"shape": [2], "dtype": "float32", "columns": ["a", "b"]}, {"names": ["y"], "link": "none"}
    >>> "columns `a`, `b`" in usage({"inputs": inputs, "outputs": outputs, "platforms": ["cpu"], "versions": {}})
    True
    """
    inputs, outputs = about["inputs"], about["outputs"]
    shape = inputs["shape"]
    rows = f"{inputs['dtype']} of shape {('rows', *shape)}".replace("'", "")
    columns = [f"`{column}`" for column in inputs["columns"] or []]
    listed = ", ".join(columns[:MOST]) + (", and so on (`model.json` has all of them)" * (len(columns) > MOST))
    table = f" A table needs the {len(columns)} columns {listed}, in any order; others are ignored." if columns else ""
    data = "data.csv" if columns else "pictures/" if inputs["dtype"] == "uint8" and len(shape) == 3 else "data.npy"
    numbers = " ".join(part for part in (LINKS[outputs["link"]], outputs.get("unit")) if part)
    parts = [
        "## How it is used",
        f"```text\npip install jax flatbuffers\npython predict.py {data} -o predictions.csv\n```",
        "`predict.py` needs nothing else. It reads files that are larger than the memory piece by piece, and takes "
        "arrays in `.npy` files too, and PNG and JPEG pictures where the model takes pictures and pillow is installed. "
        "In a program: `predict.load(folder).predict(inputs)`.",
        f"In: {rows}, as they are, because all preprocessing is in the program.{table}",
        f"Out: {', '.join(f'`{name}`' for name in outputs['names'])}{f' ({numbers})' if numbers else ''}.",
        f"`model.stablehlo` holds the whole program for {', '.join(about['platforms'])}, preprocessing and weights "
        f"included, as `jax.export` of jax {about['versions'].get('jax')} wrote it; later versions of jax read it for "
        "at least half a year. `weights.safetensors` holds the weights alone, for anything else. `model.json` says "
        "what goes in and out. `sha256sum -c SHA256SUMS` tells whether all is as it was written.",
    ]
    return _escaped("\n\n".join(parts) + "\n")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _with_error(value: float | None, error: float | None) -> str:
    return _number(value) + (f" +- {error:.3f}" if value is not None and error is not None else "")
