"""Sunshine in Basel tomorrow: the recipes of the Carpentries deep-learning lesson, in Keras 3.

    python -m benchmarks.studies.keras_weather --data DIR --recipe early-stopping --seeds 0 1 2 [--backend jax]
        [--full --out DIR]

Prints a line of JSON per seed. --full runs the whole script of the lesson: baseline, plots, saved model.
"""

# ruff: noqa: E402 -- the backend must be set, and the clock started, before Keras is imported.

import argparse
import json
import os
import time
from pathlib import Path

RECIPES = {  # hidden: layer widths; rows: label of the last row (None: all); patience None: no early stopping
    "plain": {"hidden": (100, 50), "epochs": 200, "patience": None, "norm": False, "rows": 1095, "basel": False},
    "small": {"hidden": (10, 5), "epochs": 200, "patience": None, "norm": False, "rows": 1095, "basel": False},
    "early-stopping": {"hidden": (100, 50), "epochs": 200, "patience": 10, "norm": False, "rows": 1095, "basel": False},
    "batchnorm": {"hidden": (100, 50), "epochs": 1000, "patience": 10, "norm": True, "rows": 1095, "basel": False},
    "basel": {"hidden": (100, 50), "epochs": 1000, "patience": 10, "norm": True, "rows": 3285, "basel": True},
    "all-years": {"hidden": (100, 50), "epochs": 1000, "patience": 10, "norm": True, "rows": None, "basel": False},
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default=os.environ.get("JAXDL_DATA"), help="data folder (default: $JAXDL_DATA)")
parser.add_argument("--recipe", choices=RECIPES, default="plain")
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--backend", choices=("jax", "tensorflow", "torch"), default="jax")
parser.add_argument("--full", action="store_true", help="write the baseline, the plots, the model and the history too")
parser.add_argument("--warm", action="store_true", help="compile before the clock starts, with one more epoch")
parser.add_argument("--out", default="out", help="folder of --full")
args = parser.parse_args()
if not args.data:
    parser.error("give --data DIR or set JAXDL_DATA")
os.environ["KERAS_BACKEND"] = args.backend

import_started = time.perf_counter()
import keras
import pandas as pd
from sklearn.metrics import root_mean_squared_error
from sklearn.model_selection import train_test_split

if args.full:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
import_seconds = time.perf_counter() - import_started


def load(recipe):
    """Return {split: (features, target)}; the target is the sunshine in Basel on the next day."""
    data = pd.read_csv(Path(args.data) / "weather" / "weather_prediction_dataset.csv")
    last = len(data) - 2 if recipe["rows"] is None else recipe["rows"]
    x = data.loc[:last].drop(columns=["DATE", "MONTH"])
    y = data.loc[1 : last + 1]["BASEL_sunshine"]
    if recipe["basel"]:
        x = x.filter(like="BASEL_")
    x_train, x_rest, y_train, y_rest = train_test_split(x, y, test_size=0.3, random_state=0)
    x_val, x_test, y_val, y_test = train_test_split(x_rest, y_rest, test_size=0.5, random_state=0)
    return {"train": (x_train, y_train), "validation": (x_val, y_val), "test": (x_test, y_test)}


def build(recipe, n_features):
    """Return the compiled model of a recipe."""
    layers = [keras.layers.BatchNormalization()] if recipe["norm"] else []
    layers += [keras.layers.Dense(width, activation="relu") for width in recipe["hidden"]]
    model = keras.Sequential([keras.Input(shape=(n_features,)), *layers, keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse", metrics=[keras.metrics.RootMeanSquaredError()])
    return model


def write_all(out, model, history, splits):
    """Write history, model and plots of the lesson; return the test RMSE of the baseline tomorrow = today."""
    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(history.history, index=pd.Index(history.epoch, name="epoch"))
    table.to_csv(out / "history.csv")
    model.save(out / "model.keras")

    fig, ax = plt.subplots()
    table[["root_mean_squared_error", "val_root_mean_squared_error"]].plot(ax=ax, xlabel="epochs", ylabel="RMSE")
    fig.savefig(out / "history.png")
    plt.close(fig)

    fig, axes = plt.subplots(1, 2, figsize=(10, 5), sharex=True, sharey=True)
    for ax, split in zip(axes, ("train", "test"), strict=True):
        x, y = splits[split]
        ax.scatter(model.predict(x.to_numpy("float32"), verbose=0)[:, 0], y, s=10, alpha=0.5)
        ax.set(xlabel="predicted sunshine hours", ylabel="true sunshine hours", title=f"Predictions on the {split} set")
    fig.savefig(out / "predictions.png")
    plt.close(fig)

    x_test, y_test = splits["test"]
    return float(root_mean_squared_error(y_test, x_test["BASEL_sunshine"]))


def main():
    recipe = RECIPES[args.recipe]
    splits = load(recipe)
    arrays = {split: (x.to_numpy("float32"), y.to_numpy("float32")) for split, (x, y) in splits.items()}
    for seed in args.seeds:
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        started = time.perf_counter()
        model = build(recipe, arrays["train"][0].shape[1])
        patience = recipe["patience"]
        if args.warm:
            model.fit(*arrays["train"], batch_size=32, epochs=1, validation_data=arrays["validation"], verbose=0)
            started = time.perf_counter()
        history = model.fit(
            *arrays["train"],
            batch_size=32,
            epochs=recipe["epochs"],
            validation_data=arrays["validation"],
            callbacks=[keras.callbacks.EarlyStopping(monitor="val_loss", patience=patience)] if patience else [],
            verbose=0,
        )
        seconds = {"fit": round(time.perf_counter() - started, 3), "import": round(import_seconds, 3)}
        scores = {split: model.evaluate(x, y, verbose=0, return_dict=True) for split, (x, y) in arrays.items()}
        line = {
            "peer": f"keras-{args.backend}",
            "recipe": args.recipe,
            "seed": seed,
            "rmse": {split: float(score["root_mean_squared_error"]) for split, score in scores.items()},
            "epochs": len(history.epoch),
            "seconds": seconds,
        }
        if args.full:
            line["persistence"] = write_all(Path(args.out) / f"{args.recipe}-{seed}", model, history, splits)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
