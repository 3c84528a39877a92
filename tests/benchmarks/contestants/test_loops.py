"""The peers of the table that are JAX loops: they do the work that a task asks for."""

import numpy as np
import pytest

from benchmarks.contestants import flax_loop, jaxdl_loop, nnx_loop
from benchmarks.tasks import BATCH, PATIENCE, Arrays, Task

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(75, 4)).astype(np.float32)
TARGETS = (INPUTS @ np.array([[0.3], [-0.5], [0.2], [0.0]]) + 0.3 * RANDOM.normal(size=(75, 1))).astype(np.float32)
ROWS = Arrays((INPUTS[:50], TARGETS[:50]), (INPUTS[50:], TARGETS[50:]))
# One whole batch: a short one, as the rows above have, would be compiled apart.
IMAGES = RANDOM.random((BATCH, 32, 32, 3), np.float32)
LABELS = RANDOM.integers(0, 10, BATCH).astype(np.int32)
PICTURES = Arrays((IMAGES, LABELS), (IMAGES[:7], LABELS[:7]))
LOOPS = pytest.mark.parametrize("loop", [flax_loop, nnx_loop, jaxdl_loop], ids=lambda loop: loop.__name__)


def task(mode="train", **changes):
    return Task(**{"name": "a", "mode": mode, "kind": "mlp", "folder": "", "rows": 50, "widths": (), **changes})


@LOOPS
def test_a_linear_network_reaches_least_squares(loop):
    run = loop.prepare(task(), ROWS)
    result = run(1500, 0)
    inputs = np.column_stack([ROWS.train[0], np.ones(50)])
    weights = np.linalg.lstsq(inputs, ROWS.train[1], rcond=None)[0]
    loss = np.mean((np.column_stack([ROWS.validation[0], np.ones(25)]) @ weights - ROWS.validation[1]) ** 2)
    assert result.value == pytest.approx(loss, rel=0.1)
    assert len(result.ends) == 1500 and (np.diff(result.ends) > 0).all()


@LOOPS
@pytest.mark.parametrize("norm", [False, True])
def test_a_seed_determines_a_run_with_new_weights(loop, norm):
    run = loop.prepare(task(widths=(8,), norm=norm), ROWS)
    first, other, again = (run(3, seed).value for seed in (1, 2, 1))
    assert first == again != other


@LOOPS
def test_early_stopping_ends_a_run(loop):
    result = loop.prepare(task("stop", widths=(8,)), ROWS)(1, 0)
    longer = loop.prepare(task(widths=(8,)), ROWS)(len(result.ends), 0)
    assert len(result.ends) > PATIENCE and result.value == pytest.approx(longer.value, rel=1e-3)


@LOOPS
def test_evaluation_and_prediction_use_all_validation_examples(loop):
    # Whatever the weights: the loss of outputs p and targets t and of t + 1 differ by 1 - 2 mean(p - t).
    def value(mode, targets):
        arrays = ROWS._replace(validation=(ROWS.validation[0], targets))
        return loop.prepare(task(mode, rows=25, widths=(8,)), arrays)(1, 0).value

    there = ROWS.validation[1]
    total = value("predict", there)
    difference = value("evaluate", there + 1) - value("evaluate", there)
    assert difference == pytest.approx(1 - 2 * (total - there.sum()) / 25, abs=1e-4)


@LOOPS
@pytest.mark.parametrize("recipe", ["small", "dropout"])
def test_images_are_learned(loop, recipe):
    wanted = task(kind="convnet", recipe=recipe, rows=BATCH)
    run = loop.prepare(wanted, PICTURES)
    values = [run(many, 0).value for many in (1, 3)]
    assert values[1] < values[0] < 3  # the logarithm of ten classes is 2.3
    predicted = loop.prepare(wanted._replace(mode="predict", rows=1), PICTURES)(2, 0)
    assert np.isfinite(predicted.value) and len(predicted.ends) == 2
