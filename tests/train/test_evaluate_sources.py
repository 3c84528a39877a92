"""Figures and predictions of a source, against those of the same rows in memory and NumPy."""

import functools

import jax
import numpy as np
import pytest

from jaxdl import losses, metrics
from jaxdl.data import DataSource, dataset, take
from jaxdl.distributed import make_mesh, shard_state
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.train.evaluate import evaluate, evaluate_source, predict, predict_source
from jaxdl.types import Dataset, Objective

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(333, 3))
ROWS = dataset(INPUTS, INPUTS[:, :2] + RANDOM.normal(size=(333, 2)), RANDOM.integers(0, 3, 333))
SOURCE = DataSource(333, lambda rows: take(ROWS, rows))
METRICS = (metrics.rmse, metrics.r2())
OBJECTIVE = Objective(losses.squared_error, METRICS)
MODEL = mlp((5,), outputs=2)


@functools.cache
def weights():
    return MODEL.init(jax.random.key(0), ROWS.inputs)


# Batches of 10, 7, all; windows of one batch, of a few, of all.
CUTS = pytest.mark.parametrize(("batch_size", "window_bytes"), [(10, 1), (7, 900), (None, 2**25), (500, 2**25)])
MESHES = pytest.mark.parametrize("axes", [None, {"data": 4}, {"data": 2, "member": 2}])


def on(axes):
    return weights() if axes is None else shard_state(weights(), make_mesh(jax.devices()[:4], **axes))


@CUTS
@MESHES
def test_the_figures_of_a_source_are_those_of_its_rows(batch_size, window_bytes, axes):
    result = evaluate_source(MODEL, OBJECTIVE, on(axes), SOURCE, batch_size=batch_size, window_bytes=window_bytes)
    wanted = evaluate(MODEL, weights(), ROWS, losses.squared_error, metrics=METRICS)
    assert {name: float(value) for name, value in result.items()} == pytest.approx(
        {name: float(value) for name, value in wanted.items()}, rel=1e-5
    )


@CUTS
@MESHES
def test_the_predictions_of_a_source_are_those_of_its_rows_in_their_order(batch_size, window_bytes, axes):
    result = list(predict_source(MODEL, on(axes), SOURCE, batch_size=batch_size, window_bytes=window_bytes))
    assert all(type(piece) is np.ndarray for piece in result)
    np.testing.assert_allclose(np.concatenate(result), predict(MODEL, weights(), ROWS.inputs), rtol=1e-5, atol=1e-6)


def test_a_few_windows_are_one_program(compilations):
    with compilations() as names:
        evaluate_source(MODEL, OBJECTIVE, weights(), SOURCE, batch_size=9, window_bytes=900)
        list(predict_source(MODEL, weights(), SOURCE, batch_size=9, window_bytes=900))
    assert names.count("_sums") == 1 and names.count("_outputs") == 1


def test_totals_beyond_the_digits_of_float32_stay_exact():
    # 2**24 and then 64 windows of 1: in float32 each 1 would be lost.
    weights = np.ones(65, np.float32)
    weights[0] = 2**24
    rows = dataset(np.zeros((65, 1)), np.where(np.arange(65)[:, None] == 0, 0.0, 512.0), weights)
    model, source = mlp(()), DataSource(65, lambda numbers: take(rows, numbers))
    zero = jax.tree.map(np.zeros_like, model.init(jax.random.key(0), rows.inputs))
    objective = Objective(losses.squared_error)
    result = evaluate_source(model, objective, zero, source, batch_size=1, window_bytes=1)
    np.testing.assert_allclose(result["loss"], 64 * 512.0**2 / (2**24 + 64), rtol=1e-7)


def test_a_batch_of_no_rows_is_refused():
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        evaluate(MODEL, weights(), SOURCE, losses.squared_error, metrics=METRICS, batch_size=0)
    with pytest.raises(InputError, match="batch_size must be at least 1, got -1"):
        next(predict_source(MODEL, weights(), SOURCE, batch_size=-1))


def test_a_source_of_billions_of_rows_gives_its_first_predictions_at_once():
    source = DataSource(2**31 - 1, lambda rows: Dataset(rows[:, None] % 7 / 7, rows, np.ones(len(rows))))
    model = mlp(())
    weights = model.init(jax.random.key(0), np.ones((1, 1), np.float32))
    pieces = predict_source(model, weights, source, window_bytes=16 * 2048)
    first = next(pieces)
    pieces.close()
    wanted = predict(model, weights, (np.arange(2048)[:, None] % 7 / 7).astype(np.float32))
    np.testing.assert_allclose(first, wanted, rtol=1e-6)
