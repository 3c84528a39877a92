"""Compare `keras.Model.fit` with `jaxdl.fit` of the same Keras model: the lesson's BatchNorm network, 200 epochs.

    python -m benchmarks.studies.keras_fit [--data DIR] [--epochs 200] [--repeats 5]

Both run in one process on Keras's JAX backend, in turn, on the lesson's split of the weather (767 training rows in
batches of 32, 164 validation rows). The clock counts CPU seconds of all threads, without the first call of each, which
compiles and has a table of its own. Keras has each of several `steps_per_execution`.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
import optax

from benchmarks.studies.alternating import cells_of, in_turn
from experiments.weather import experiment as weather
from jaxdl import datasets, fit, from_keras, losses, metrics
from jaxdl.types import Dataset

STEPS = (1, 4, 8, 24)


def build(columns: int) -> keras.Model:
    """Return the network of the lesson with BatchNormalization."""
    inputs = keras.Input((columns,))
    hidden = keras.layers.BatchNormalization()(inputs)
    for width in (100, 50):
        hidden = keras.layers.Dense(width, activation="relu")(hidden)
    return keras.Model(inputs, keras.layers.Dense(1)(hidden))


def of_keras(train: Dataset, validation: Dataset, epochs: int, steps: int) -> Callable[[], float]:
    """Return a function that trains by `keras.Model.fit`, and returns the CPU seconds."""
    network = build(train.inputs.shape[1])
    initial = network.get_weights()
    network.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss="mse",
        metrics=[keras.metrics.RootMeanSquaredError()],
        jit_compile=True,
        steps_per_execution=steps,
    )

    def seconds() -> float:
        network.set_weights(initial)
        began = time.process_time()
        network.fit(
            train.inputs,
            train.targets,
            batch_size=32,
            epochs=epochs,
            validation_data=(validation.inputs, validation.targets),
            verbose=0,
        )
        return time.process_time() - began

    return seconds


def of_jaxdl(train: Dataset, validation: Dataset, epochs: int) -> Callable[[], float]:
    """Return a function that trains by `jaxdl.fit`, and returns the CPU seconds."""
    network, optimizer = build(train.inputs.shape[1]), optax.adam(1e-3, eps=1e-7)

    def seconds() -> float:
        began = time.process_time()
        model = from_keras(network)
        run = fit(
            model,
            losses.squared_error,
            optimizer,
            train,
            validation,
            metrics=[metrics.rmse],
            epochs=epochs,
            batch_size=32,
        )
        assert len(run.records) == epochs and np.isfinite(run.records[-1]["val_loss"])
        return time.process_time() - began

    return seconds


def main() -> None:
    """Print the table of the first calls and that of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="auto")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    recipe = weather.RECIPES["batchnorm"]
    loaded = datasets.load_weather(options.data, days=recipe.days, places=recipe.places)
    sets = weather.build(weather.Config(recipe="batchnorm"), loaded).sets
    train, validation = sets["train"], sets["validation"]
    print(f"{len(train.targets)} training rows, {len(validation.targets)} validation rows, {options.epochs} epochs")
    measures = {"jaxdl.fit(from_keras(network))": of_jaxdl(train, validation, options.epochs)}
    for steps in STEPS:
        measures[f"keras.fit, steps_per_execution={steps}"] = of_keras(train, validation, options.epochs, steps)
    first = {name: measure() for name, measure in measures.items()}
    seconds = in_turn(measures, options.repeats)
    ours = next(iter(seconds.values()))
    print("| | first call, CPU s | median CPU s | least - greatest | ratio to jaxdl, median of pairs |")
    print("|---|---|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {first[name]:.2f} | {cells_of(values)} | {np.median(values / ours):.1f} |")


if __name__ == "__main__":
    main()
