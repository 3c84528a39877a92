"""Small runs and made up records, for tests of callbacks."""

import functools
import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from jaxdl.data import dataset
from jaxdl.losses import squared_error
from jaxdl.metrics import rmse
from jaxdl.nn import mlp
from jaxdl.train.fit import fit

EPOCHS = 4
INPUTS = np.linspace(-1, 1, 24, dtype=np.float32)[:, None]
ROWS = dataset(INPUTS, 3 * INPUTS)
# Made once, so that all runs here share one compiled program.
MODEL = mlp(())
ADAM = optax.inject_hyperparams(optax.adam)(learning_rate=0.05)


@functools.cache
def network():
    return MODEL.init(jax.random.key(0), INPUTS)


# A figure for every epoch that no decimal shortening survives.
RECORDS = [
    {"loss": 1 / 3, "val_loss": 0.1 + 0.2},
    {"loss": 1e-300, "val_loss": 2 / 3},
    {"loss": 1e22, "val_loss": 1 / 7},
]


def numbered(records):
    return [{"epoch": epoch, **record} for epoch, record in enumerate(records, 1)]


def run(*on_epoch, **options):
    options = {"epochs": EPOCHS, "batch_size": 8, "variables": network(), **options}
    return fit(MODEL, squared_error, ADAM, ROWS, ROWS, metrics=[rmse], callbacks=on_epoch, **options)


def progress_at(epoch, best_epoch, best=float("inf")):
    """As much of a RunState as a callback may look at."""
    stopping = SimpleNamespace(best=jnp.float32(best), best_epoch=jnp.int32(best_epoch))
    return SimpleNamespace(epoch=jnp.int32(epoch), cursor=jnp.int32(0), stopping=stopping)


def replay(callback, records, best_epoch=1):
    for epoch in range(1, len(records) + 1):
        callback(progress_at(epoch, min(epoch, best_epoch)), numbered(records[:epoch]))


def console(**options):
    return Console(file=io.StringIO(), width=120, **options)
