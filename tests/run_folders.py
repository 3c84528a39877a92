"""Folders of runs in the format of the experiments, with values set by hand."""

import json

import pandas as pd

CONFIG = {
    "kind": "run",
    "recipe": "small",
    "seed": 0,
    "epochs": 4,
    "learning_rate": 0.001,
    "hidden": [10, 5],
    "patience": None,
    "workdir": "somewhere",
    "dataset": {"name": "weather", "source": "file:/data/weather.csv", "sha256": "ab" * 32, "note": None},
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
    "devices": ["cpu"],
    "platform": "Linux",
    "commit": "0123456789abcdef",
    "network": {"kind": "mlp", "arguments": {"widths": [10, 5], "input_norm": False}, "flip_averaged": False},
    "inputs": {"shape": [2], "dtype": "float32", "columns": ["BASEL_sunshine", "BASEL_humidity"]},
    "outputs": {"names": ["sunshine_hours"], "link": "none", "unit": "hours"},
    "card": {"title": "Sunshine", "predicts": "Hours.", "limits": "A long paragraph."},
    "terms": {"what": "Daily weather", "licence": "CC BY 4.0", "cite": ["Huber et al."]},
}
HISTORY = pd.DataFrame(
    {
        "loss": [9.0, 4.0, 1.0, 0.5],
        "rmse": [3.0, 2.0, 1.0, 0.7],
        "val_loss": [16.0, 9.0, 12.0, 14.0],
        "val_rmse": [4.0, 3.0, 3.5, 3.7],
        "seconds": [0.5, 0.25, 0.25, 0.25],
    },
    index=pd.RangeIndex(1, 5, name="epoch"),
)


def by_set(train, validation, test):
    return {"train": train, "validation": validation, "test": test}


METRICS = {
    "dataset": CONFIG["dataset"],
    "recipe": "small",
    "seed": 0,
    "epochs": 4,
    "best_epoch": 2,
    "reason": "epochs",
    "parameters": 1701,
    "seconds": {"fit": 1.0, "total": 4.25},
    "baselines": {"persistence": {"test_rmse": 3.877}},
    "rmse": by_set(0.7, 3.7, 3.8),
    "rmse_best": by_set(2.0, 3.0, 3.25),
    "cost": {"batch_size": 32, "flops": 3_420_000},
}


def write(folder, metrics=METRICS, history=HISTORY, **config):
    """Write the folder of a run; `metrics=None` for an unfinished run."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if history is not None:
        history.to_csv(folder / "history.csv", na_rep="nan")
    if metrics is not None:
        identity = {name: config[name] for name in ("recipe", "seed") if name in config}
        (folder / "metrics.json").write_text(json.dumps({**metrics, **identity}))
    return folder


def accuracy(validation, test):
    """Return the metrics of a run of a classifier."""
    others = {name: value for name, value in METRICS.items() if not name.startswith("rmse")}
    return {**others, "accuracy": by_set(0.9, validation, test), "accuracy_best": by_set(0.9, validation, test)}
