"""`fit` in a program that several processes run at once: one run, in step, and the one of a single process."""

import json

import numpy as np
import pytest

from tests.groups import scripts

pytestmark = pytest.mark.processes

TRAINS = """
import json, time
import jax
import numpy as np
import optax
from jaxdl import losses, metrics
from jaxdl.data.arrays import dataset
from jaxdl.train.fit import fit
from jaxdl.nn import mlp
from jaxdl.distributed import make_mesh, shard_dataset
from jaxdl.distributed.sharding import to_host
from jaxdl.train import early_stopping

def trained(placed, callbacks=()):
    random = np.random.default_rng(0)
    inputs = random.normal(size=(120, 6)).astype(np.float32)
    rows = dataset(inputs, inputs[:, :1] + random.normal(size=(120, 1)))
    train, validation = (placed(jax.tree.map(lambda leaf: leaf[part], rows)) for part in (np.s_[:90], np.s_[90:]))
    run = fit(mlp((16,)), losses.squared_error, optax.adam(0.01), train, validation, metrics=[metrics.rmse],
              epochs=60, batch_size=16, early_stopping=early_stopping("val_loss", patience=3), callbacks=callbacks)
    return {
        "reason": run.reason,
        "epochs": len(run.history),
        "best_epoch": run.best_epoch,
        "history": run.history.to_numpy().tolist(),
        "weights": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(to_host((run.best, run.final)))],
    }
"""
# Process 1 sleeps after every epoch.
SHARED = """
began = time.monotonic()
def slow(state, history):
    if own == 1:
        time.sleep(0.1)
mesh = make_mesh()
told = trained(lambda rows: shard_dataset(rows, mesh), [slow])
print(json.dumps({**told, "seconds": time.monotonic() - began}))
processes.shutdown()
"""


@pytest.fixture(scope="module")
def shared():
    return [json.loads(text) for text in scripts(TRAINS + SHARED, 2)]


def test_two_processes_stop_early_at_the_epoch_of_one_with_its_figures_and_weights(shared):
    names = {}
    exec(TRAINS, names)
    alone = names["trained"](lambda rows: rows)
    assert alone["reason"] == "early-stopping" and 4 < alone["epochs"] < 60
    for message in shared:
        assert [message[name] for name in ("reason", "epochs", "best_epoch")] == [
            alone[name] for name in ("reason", "epochs", "best_epoch")
        ]
        np.testing.assert_allclose(message["history"], alone["history"], rtol=1e-5)
        for array, expected in zip(message["weights"], alone["weights"], strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5)


def test_a_process_waits_for_a_slower_one(shared):
    first, slow = shared
    # A chunk is ahead of what is looked at.
    assert min(first["seconds"], slow["seconds"]) > 0.1 * (slow["epochs"] - 3)
    assert {**first, "seconds": 0} == {**slow, "seconds": 0}


LIMITED = """
from jaxdl.callbacks import Callback
mesh, placed = make_mesh(), lambda rows: shard_dataset(rows, mesh)
inputs = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
rows = dataset(inputs, inputs[:, :1])
steps = []

def note(state, values):
    time.sleep(0.01 * own)
    steps.append((int(state.train_state.step), round(float(values["loss"]), 4)))

def run(**options):
    callback = Callback(on_steps=note, every_steps=4)
    train, validation = ((placed if jax.process_count() > 1 else lambda rows: rows)(
        jax.tree.map(lambda leaf: leaf[part], rows)) for part in (np.s_[:90], np.s_[90:]))
    return fit(mlp(()), losses.squared_error, optax.adam(0.01), train, validation, batch_size=16,
               callbacks=[callback], **options)

def told(run):
    return [run.reason, int(run.state.epoch), int(run.state.cursor),
            ["val_loss" in record for record in run.records], [record["loss"] for record in run.records]]

limited = told(run(max_steps=27, validate_every=3))
"""
LIMITS = """
# One process alone runs out of time, and both end.
timed = run(epochs=10**6, max_minutes=0.05 if own == 1 else 60.0)
print(json.dumps({"limited": limited, "steps": steps[:6], "reason": timed.reason,
                  "end": int(timed.state.train_state.step)}))
processes.shutdown()
"""


def test_two_processes_have_one_limit():
    one, other = (json.loads(text) for text in scripts(TRAINS + LIMITED + LIMITS, 2))
    assert one == other and one["reason"] == "max-minutes" and one["end"] > 0
    names = {"own": 0}
    exec(TRAINS + LIMITED, names)
    expected = names["limited"]
    assert one["limited"][:4] == expected[:4] == ["max-steps", 4, 3, [False, False, True, False]]
    np.testing.assert_allclose(one["limited"][4], expected[4], rtol=1e-5)
    assert [step for step, _ in one["steps"]] == [4, 8, 12, 16, 20, 24] == [step for step, _ in names["steps"]]
    np.testing.assert_allclose([loss for _, loss in one["steps"]], [loss for _, loss in names["steps"]], atol=2e-4)
