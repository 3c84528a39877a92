"""Which of ten things is in the picture: the CIFAR-10 recipes of the Carpentries deep-learning lesson, in Keras 3.

    python -m benchmarks.studies.keras_cifar10 --data DIR --recipe small --seeds 0 1 2 [--backend jax] [--time]

Prints a line of JSON per seed. Each epoch trains on 5,000 images and validates on the test images; its seconds include
the validation. With --time there is no validation.
"""

# ruff: noqa: E402 -- the backend must be set, and the clock started, before Keras is imported.

import argparse
import json
import os
import pickle
import resource
import statistics
import time
from pathlib import Path

RECIPES = ("small", "dense", "pooled", "dropout")
BATCH, TRAINING_IMAGES = 32, 5000

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default=os.environ.get("JAXDL_DATA"), help="data folder (default: $JAXDL_DATA)")
parser.add_argument("--recipe", choices=RECIPES, default="small")
parser.add_argument("--dropout", type=float, default=0.2, help="dropout rate of the recipe dropout (default: 0.2)")
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--backend", choices=("jax", "tensorflow", "torch"), default="tensorflow")
parser.add_argument("--time", action="store_true", help="train without validation")
args = parser.parse_args()
if not args.data:
    parser.error("give --data DIR or set JAXDL_DATA")
if args.epochs < 2:
    parser.error(f"--epochs must be at least 2, because the first one compiles, got {args.epochs}")
os.environ["KERAS_BACKEND"] = args.backend

import_started = time.perf_counter()
import keras
import numpy as np

import_seconds = time.perf_counter() - import_started


class EpochSeconds(keras.callbacks.Callback):
    """The seconds of each epoch."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.started)


def load():
    """Return {split: (images, labels)}; images (N, 32, 32, 3) are float32 from 0 to 1."""

    def read(names):
        contents = [
            pickle.loads((Path(args.data) / "cifar-10-batches-py" / name).read_bytes(), encoding="bytes")
            for name in names
        ]
        planes = np.concatenate([content[b"data"] for content in contents]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([content[b"labels"] for content in contents])
        return planes.transpose(0, 2, 3, 1), labels

    images, labels = read([f"data_batch_{number}" for number in range(1, 6)])
    splits = {"train": (images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]), "test": read(["test_batch"])}
    return {
        split: (np.ascontiguousarray(x, dtype="float32") / np.float32(255), y.astype("int32"))
        for split, (x, y) in splits.items()
    }


def build():
    """Return the compiled model of the recipe."""

    def conv():
        return keras.layers.Conv2D(50, (3, 3), activation="relu")

    if args.recipe == "small":
        hidden = [conv(), conv(), keras.layers.Flatten()]
    elif args.recipe == "dense":
        hidden = [keras.layers.Flatten(), keras.layers.Dense(100, "relu"), keras.layers.Dense(50, "relu")]
    else:
        hidden = []
        for _ in range(3):
            hidden += [conv(), keras.layers.MaxPooling2D((2, 2))]
            if args.recipe == "dropout":
                hidden.append(keras.layers.Dropout(args.dropout))
        hidden += [keras.layers.Flatten(), keras.layers.Dense(50, "relu")]
    model = keras.Sequential([keras.Input(shape=(32, 32, 3)), *hidden, keras.layers.Dense(10)])
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def run(seed, splits):
    """Train and evaluate a model; return the line to print."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = build()
    clock = EpochSeconds()
    started = time.perf_counter()
    history = model.fit(
        *splits["train"],
        batch_size=BATCH,
        epochs=args.epochs,
        validation_data=None if args.time else splits["test"],
        callbacks=[clock],
        verbose=0,
    )
    fit = time.perf_counter() - started
    peak_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scores = {split: model.evaluate(x, y, verbose=0, return_dict=True) for split, (x, y) in splits.items()}
    seconds = {"epoch": statistics.median(clock.seconds[1:]), "fit": fit, "import": import_seconds}
    return {
        "peer": f"keras-{args.backend}",
        "recipe": args.recipe,
        "seed": seed,
        "accuracy": {split: score["accuracy"] for split, score in scores.items()},
        "best_val_accuracy": None if args.time else max(history.history["val_accuracy"]),
        "loss": {split: score["loss"] for split, score in scores.items()},
        "epochs": len(history.epoch),
        "seconds": {name: round(value, 3) for name, value in seconds.items()}
        | {"epochs": [round(value, 3) for value in clock.seconds]},
        "peak_memory_mb": round(peak_memory_mb, 1),
        "parameters": model.count_params(),
    }


def main():
    splits = load()
    for seed in args.seeds:
        print(json.dumps(run(seed, splits)), flush=True)


if __name__ == "__main__":
    main()
