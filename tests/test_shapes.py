"""The shapes and dtypes in the signatures of the core are true, and wrong ones are refused where they are checked."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKED = (
    *("losses", "metrics", "stats", "data.arrays", "data.batches", "nn.layers", "nn.convolution", "nn.models"),
    *("train.step",),
)
# In another process, in which every call of the modules is checked from the time that they are imported.
CODE = f"""
import jax, jax.numpy as jnp, numpy as np, optax
from jaxtyping import TypeCheckError, install_import_hook

with install_import_hook([f"jaxdl.{{name}}" for name in {CHECKED}], "beartype.beartype"):
    import jaxdl
from jaxdl import losses, metrics, nn, stats
from jaxdl.types import Objective
from jaxdl.data import arrays, batches
from jaxdl.nn import convolution, layers

key, f32, i32 = jax.random.key(0), jnp.float32, jnp.int32
outputs, targets, labels = jnp.ones((4, 3)), jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0])
images, kernel = jnp.ones((4, 8, 8, 3)), jnp.ones((3, 3, 3, 18))


def refused(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except TypeCheckError:
        return True
    return False
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", CODE + code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_signatures_of_the_core_hold_in_a_run_on_each_kind_of_data():
    run("""
rows = jaxdl.dataset(np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 3)
binary = jaxdl.dataset(np.random.default_rng(0).normal(size=(20, 3)), (np.arange(20) % 2)[:, None])
pictures = jaxdl.dataset(np.random.default_rng(0).normal(size=(20, 8, 8, 3)), np.arange(20) % 3)
label_metrics = (metrics.accuracy, metrics.top_k(2), metrics.f1("macro"), metrics.roc_auc("weighted", bins=64))
binary_metrics = (metrics.binary_accuracy, metrics.balanced_accuracy, metrics.recall(), metrics.average_precision())
objective = Objective(losses.softmax_cross_entropy, label_metrics)
number_metrics = (metrics.rmse, metrics.mae, metrics.r2())
calls = [
    (jaxdl.mlp((4,), outputs=3, dropout=0.5, input_norm=True), objective, rows),
    (jaxdl.mlp((4,), outputs=1), Objective(losses.huber(), number_metrics), binary),
    (jaxdl.mlp((4,), outputs=1), Objective(losses.squared_error), binary),
    (jaxdl.mlp((4,), outputs=1), Objective(losses.absolute_error), binary),
    (
        jaxdl.mlp((4,), outputs=1),
        Objective(losses.sigmoid_cross_entropy, binary_metrics),
        binary,
    ),
    (jaxdl.convnet((18,), outputs=3), Objective(losses.smoothed_cross_entropy(0.1), label_metrics), pictures),
]
for model, objective, data in calls:
    result = jaxdl.fit(
        model, objective.loss, optax.adam(0.01), data, data, metrics=objective.metrics, epochs=2, batch_size=8
    )
    assert len(result.history) == 2
    jaxdl.evaluate(model, result.best, data, objective.loss, metrics=objective.metrics)
""")


RIGHT = """
assert nn.max_pool(images).shape == (4, 4, 4, 3) and nn.dropout(key, images, 0.5).shape == images.shape
assert nn.dropout(key, jnp.ones((2, 2), jnp.bfloat16), jnp.float32(0.5)).dtype == jnp.bfloat16
gradient = jax.grad(lambda k: convolution.convolve(images, k, (1, 1), "SAME", None, None, convolution.NUMBERS).sum())
assert gradient(kernel).shape == kernel.shape
assert jax.vmap(losses.squared_error)(outputs[None], targets[None]).shape == (1, 4)
assert batches.permutation(key, 1, 5).shape == (5,)
rounds = batches._swap_rounds(key, 1, 5)
assert batches.rows_on_host(rounds, np.array([3, 1]), 5).shape == (2,)
train, held_out = arrays.split(10, 0.3)
table = np.ones((4, 2))
assert arrays.standardize(table, arrays.fit_scaler(table)).shape == (4, 2)
stats.paired_test([3.0, 4.0, 6.0], [2.0, 2.0, 3.0]), stats.holm([0.01, 0.04]), stats.rmse_standard_error([1.0, 2.0])
stats.one_standard_error([3.5, 3.2], [0.1, 0.2], [10, None])
spread = stats.fit_calibration([0.0, 0.0, 1.0], [0.1, 0.2, 0.3], [1.0, -1.0, 3.0])
stats.calibrated_std([0.0, 2.0], spread), stats.coverage([0.0, 0.0], [1.0, 1.0], [0.1, -0.5])
metrics.roc_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
metrics.precision_recall_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
metrics.exact_roc_auc(2 * np.eye(3), [0, 1, 2], [1.0, 1.0, 2.0], average="weighted")
metrics.exact_average_precision([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
"""
WRONG = {
    "targets of another shape": "losses.squared_error, outputs, targets[:, :1]",
    "one output and a row of targets": "losses.absolute_error, outputs[:, :1], targets[:, 0]",
    "a batch of another length": "losses.huber(), outputs, targets[:2]",
    "labels that are no integers": "losses.softmax_cross_entropy, outputs, labels.astype(f32)",
    "one-hot labels": "losses.smoothed_cross_entropy(0.1), outputs, targets.astype(i32)",
    "outputs without classes": "losses.softmax_cross_entropy, outputs[:, 0], labels",
    "weights of another length": "metrics.measure, losses.squared_error, outputs, targets, jnp.ones(3)",
    "NumPy's arrays": "losses.squared_error, np.ones((4, 3)), np.ones((4, 3))",
    "images without channels": "nn.max_pool, images[..., 0]",
    "a key that is no key": "nn.dropout, jnp.zeros(2), images, 0.5",
    "whole numbers to drop": "nn.dropout, key, images.astype(i32), 0.5",
    "a bias for other filters": "convolution.add_bias, images, jnp.ones(4)",
    "places that are no int32": "batches._rows_at, batches._swap_rounds(key, 1, 5), jnp.ones(3), 5, 1",
}


@pytest.mark.slow
def test_signatures_of_the_core_hold_for_functions_that_are_called_by_themselves():
    run(RIGHT)


def test_wrong_shapes_and_dtypes_are_refused_where_calls_are_checked():
    taken = "\n".join(f"print({name!r}) if not refused({call}) else None" for name, call in WRONG.items())
    assert run(taken) == ""


@pytest.mark.parametrize("name", [name for name in CHECKED if name != "nn.models"])
def test_the_core_says_shapes_in_its_signatures(name):
    text = (ROOT / "jaxdl" / f"{name.replace('.', '/')}.py").read_text()
    assert "from jaxtyping import" in text
