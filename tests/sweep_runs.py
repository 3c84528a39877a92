"""Small sweeps for tests, and single runs to compare with."""

import jax
import numpy as np
import optax

from jaxdl import losses, metrics
from jaxdl.data import dataset
from jaxdl.nn import mlp
from jaxdl.train import early_stopping, make_plan
from jaxdl.train.fit import fit
from jaxdl.types import Objective

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(45, 5)).astype(np.float32)
TARGETS = INPUTS[:, :1] ** 2
LABELS = (TARGETS[:, 0] > 0.5).astype(np.int32)
ROWS = dataset(INPUTS[:30], TARGETS[:30]), dataset(INPUTS[30:], TARGETS[30:])
LABELLED = dataset(INPUTS[:30], LABELS[:30]), dataset(INPUTS[30:], LABELS[30:])
SEEDS = (3, 0, 7)
METRICS = (metrics.rmse, metrics.r2())


def make(hidden=(8,), learning_rate=0.05, decay=0.0, dropout=0.0, scale=1.0):
    model, optimizer = mlp(hidden, dropout=dropout, init_scale=scale), optax.adamw(learning_rate, weight_decay=decay)
    return make_plan(
        model,
        losses.squared_error,
        optimizer,
        metrics=METRICS,
        batch_size=8,
        early_stopping=early_stopping(patience=2),
    )


def make_linear(learning_rate, stop=early_stopping(patience=1)):  # noqa: B008
    """Return the plan of a linear model, which compiles fast."""
    return make_plan(
        mlp(()), losses.squared_error, optax.sgd(learning_rate), metrics=METRICS, batch_size=8, early_stopping=stop
    )


def make_classifier(learning_rate, smoothing):
    objective = Objective(losses.smoothed_cross_entropy(smoothing), (metrics.accuracy,))
    model, optimizer = mlp((8,), outputs=2), optax.sgd(learning_rate, momentum=0.9)
    return make_plan(
        model,
        objective.loss,
        optimizer,
        metrics=objective.metrics,
        batch_size=8,
        early_stopping=early_stopping(patience=2),
    )


def solo(plan, seed, epochs, rows=ROWS):
    """Train a plan with `fit`, with `on_nan` as in a sweep."""
    parts = {
        "batch_size": plan.batch_size,
        "early_stopping": plan.early_stopping,
        "plateau": plan.plateau,
        "ema_decay": plan.ema_decay,
    }
    model, objective, optimizer = plan[:3]
    return fit(
        model,
        objective.loss,
        optimizer,
        *rows,
        metrics=objective.metrics,
        **parts,
        epochs=epochs,
        seed=seed,
        on_nan="continue",
    )


def weights_of(result, index, place):
    """Return the best and the final variables of a run of a sweep."""
    return jax.tree.map(lambda leaf: leaf[place], (result.best[index], result.final[index]))


def history_of(result, index, seed):
    """Return the history of a run of a sweep, in the format of `fit`."""
    chosen = result.history[(result.history["trial"] == index) & (result.history["seed"] == seed)]
    return chosen.drop(columns=["trial", "seed"]).set_index("epoch").astype(float)


def row_of(result, index, seed):
    ((_, row),) = result.table[(result.table["trial"] == index) & (result.table["seed"] == seed)].iterrows()
    return row
