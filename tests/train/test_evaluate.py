"""Passes over data, against the loops that their docstrings say they mean; sources, against rows in memory."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from jaxdl import losses, metrics
from jaxdl.data import DataSource, dataset, take
from jaxdl.data.batches import batches_of
from jaxdl.distributed import make_mesh, shard_state
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.train import epoch, make_eval_step, make_train_step
from jaxdl.train.epoch import sum_steps, zeros_of
from jaxdl.train.evaluate import evaluate, evaluate_source, predict, predict_source
from jaxdl.train.step import train_body
from jaxdl.types import Dataset, MetricSums, Objective, TrainState, Variables

RANDOM = np.random.default_rng(0)
ROWS = jax.tree.map(jnp.asarray, dataset(RANDOM.normal(size=(77, 3)), RANDOM.normal(size=(77, 1))))
METRICS = (metrics.rmse, metrics.r2())
OBJECTIVE = Objective(losses.squared_error, METRICS)
MODEL = mlp((5,))


@functools.cache
def network():
    return jax.jit(MODEL.init)(jax.random.key(0), ROWS.inputs)


@functools.cache
def outputs_of_network():
    return np.asarray(jax.jit(partial(MODEL.apply, train=False))(network(), ROWS.inputs)[0])


# Plain gradient descent without optax, which does not bear strict dtypes.
SGD = optax.GradientTransformation(
    lambda params: (), lambda grads, state, params=None: (jax.tree.map(lambda g: jnp.float32(-0.1) * g, grads), state)
)


def start():
    sums = epoch.zeros_of(
        partial(metrics.measure, OBJECTIVE.loss, metrics=OBJECTIVE.metrics),
        ROWS.targets,
        ROWS.targets,
        ROWS.sample_weight,
    )
    return TrainState(jnp.int32(0), network(), (), jax.random.key(1)), sums


@functools.cache
def a_batch():
    return batches_of(ROWS, jax.random.key(2), 0, 10)


@functools.cache
def chunk_of_steps():
    batch = a_batch()
    body = train_body(MODEL, OBJECTIVE, SGD, batch)
    return jax.jit(lambda state, sums, start, stop: jax.lax.fori_loop(start, stop, body, (state, sums)))


def test_the_loop_over_train_body_is_the_loop_in_its_docstring(meaning):
    state, sums = start()
    names = {
        "step": jax.jit(make_train_step(MODEL, OBJECTIVE.loss, SGD, metrics=OBJECTIVE.metrics)),
        "state": state,
        "sums": sums,
        "batch": a_batch(),
        "start": 0,
        "stop": 8,
    }
    messages = meaning(train_body, **names, merge=metrics.merge)
    result = chunk_of_steps()(state, sums, 0, 8)
    for one, other in zip(
        jax.tree.leaves((messages["state"].variables, messages["sums"])),
        jax.tree.leaves((result[0].variables, result[1])),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert float(result[1].weight) == 77


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_of_any_length_give_the_bits_of_the_whole_from_one_program(chunk, compilations):
    state, sums = start()
    whole = chunk_of_steps()(state, sums, np.int32(0), np.int32(8))
    with compilations() as names:
        for begin in range(0, 8, chunk):
            state, sums = chunk_of_steps()(state, sums, np.int32(begin), np.int32(min(begin + chunk, 8)))
    assert names == []
    for one, other in zip(
        jax.tree.leaves((whole[0].variables, whole[1])), jax.tree.leaves((state.variables, sums)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("batch_size", [1, 10, 38, 76, 77, 1024])
def test_metrics_are_those_of_the_dataset_for_every_batch_size(batch_size, meaning):
    outputs = np.float64(outputs_of_network())
    result = evaluate(MODEL, network(), ROWS, OBJECTIVE.loss, metrics=OBJECTIVE.metrics, batch_size=batch_size)
    mean = ((outputs - np.asarray(ROWS.targets)) ** 2).mean()
    np.testing.assert_allclose(result["loss"], mean, rtol=2e-5)
    np.testing.assert_allclose(result["rmse"], np.sqrt(mean), rtol=2e-5)


def test_sum_steps_is_the_loop_in_its_docstring(meaning):
    evaluation = jax.jit(make_eval_step(MODEL, OBJECTIVE.loss, metrics=OBJECTIVE.metrics))
    zero = zeros_of(evaluation, network(), ROWS)
    for start, stop in ((0, 4), (1, 3), (3, 4), (2, 1)):
        names = {
            "step": evaluation,
            "variables": network(),
            "dataset": ROWS,
            "batch_size": 20,
            "take": take,
            "merge": metrics.merge,
        }
        messages = meaning(sum_steps, sums=zero, start=start, stop=stop, **names)["sums"]
        result = sum_steps(evaluation, network(), ROWS, zero, jnp.int32(start), jnp.int32(stop), batch_size=20)
        assert isinstance(result, MetricSums)
        for one, other in zip(jax.tree.leaves(messages), jax.tree.leaves(result), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)


def test_rows_of_weight_0_are_not_measured():
    some = ROWS._replace(sample_weight=jnp.where(jnp.arange(77) < 50, ROWS.sample_weight, jnp.float32(0)))
    for batch_size in (30, 100):
        result = evaluate(MODEL, network(), some, OBJECTIVE.loss, metrics=OBJECTIVE.metrics, batch_size=batch_size)
        remaining = evaluate(MODEL, network(), take(ROWS, range(50)), OBJECTIVE.loss, metrics=OBJECTIVE.metrics)
        np.testing.assert_allclose(result["rmse"], remaining["rmse"], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 10, 76, 77, 1024])
def test_predictions_do_not_depend_on_the_batch_size(batch_size):
    result = predict(MODEL, network(), ROWS.inputs, batch_size=batch_size)
    np.testing.assert_allclose(result, outputs_of_network(), rtol=1e-5, atol=1e-6)


def test_evaluation_and_prediction_compile_once_for_each_shape(compilations):
    model = mlp((6,))
    weights = jax.jit(model.init)(jax.random.key(0), ROWS.inputs)
    half = jax.tree.map(lambda leaf: leaf[:40], ROWS)
    with compilations() as names:
        for rows in (ROWS, half, ROWS, half):
            evaluate(model, weights, rows, OBJECTIVE.loss, metrics=OBJECTIVE.metrics)
            predict(model, weights, rows.inputs)
    assert sorted(names) == ["_predict"] * 2 + ["evaluate_prepared"] * 2


@pytest.mark.parametrize("kind", [np.asarray, lambda rows: rows.tolist(), pd.DataFrame])
def test_lists_and_tables_can_be_predicted(kind):
    rows = np.asarray(ROWS.inputs)
    np.testing.assert_array_equal(predict(MODEL, network(), kind(rows)), predict(MODEL, network(), ROWS.inputs))


@pytest.mark.parametrize("shape", [(0, 3), (3,)])
def test_predict_refuses_inputs_without_rows(shape):
    with pytest.raises(InputError, match="at least one example, got inputs of shape"):
        predict(MODEL, network(), np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.array([[3_000_000_000], [5]]), "inputs must fit into 32 bits, got 3000000000"),
        (np.array([[1.0], [np.nan]]), r"inputs must be finite, got nan at \(1, 0\)"),
        (np.ma.masked_equal([[1.0], [-9999.0]], -9999.0), "inputs must hold a number everywhere, got 1 masked"),
        (np.array([["1"], ["2"]]), "inputs must hold numbers, got dtype <U1"),
        ([[1.0], [2.0, 3.0]], "inputs must be one array of numbers"),
        ({"a": np.ones((2, 1)), "b": np.ones(3)}, r"inputs\['b'\] must have one row for each of the 2 inputs\['a'\]"),
        ({"a": np.array([[np.nan]])}, r"inputs\['a'\] must be finite"),
    ],
)
def test_predict_refuses_inputs_that_fit_refuses(inputs, message):
    weights = Variables({"Dense_0": {"kernel": np.ones((1, 1), np.float32), "bias": np.zeros(1, np.float32)}}, {})
    with pytest.raises(InputError, match=message):
        predict(mlp(()), weights, inputs)


def test_predictions_do_not_depend_on_the_byte_order_or_the_kind_of_table():
    weights = Variables({"Dense_0": {"kernel": np.ones((2, 1), np.float32), "bias": np.zeros(1, np.float32)}}, {})
    table = pd.DataFrame({"warm": [True, False], "wind": [1.5, 2.5]})
    for inputs in (table, table.astype("Float64"), table.to_numpy(float).astype(">f8"), table.to_numpy(float).tolist()):
        np.testing.assert_array_equal(predict(mlp(()), weights, inputs), [[2.5], [2.5]])


# Sources, against the same rows in memory and NumPy


SOURCE_RANDOM = np.random.default_rng(0)
SOURCE_INPUTS = SOURCE_RANDOM.normal(size=(333, 3))
SOURCE_ROWS = dataset(
    SOURCE_INPUTS, SOURCE_INPUTS[:, :2] + SOURCE_RANDOM.normal(size=(333, 2)), SOURCE_RANDOM.integers(0, 3, 333)
)
SOURCE = DataSource(333, lambda rows: take(SOURCE_ROWS, rows))
SOURCE_MODEL = mlp((5,), outputs=2)


@functools.cache
def source_weights():
    return SOURCE_MODEL.init(jax.random.key(0), SOURCE_ROWS.inputs)


# Batches of 10, 7, all; windows of one batch, of a few, of all.
CUTS = pytest.mark.parametrize(("batch_size", "window_bytes"), [(10, 1), (7, 900), (None, 2**25), (500, 2**25)])
MESHES = pytest.mark.parametrize("axes", [None, {"data": 4}, {"data": 2, "member": 2}])


def weights_on(axes):
    return source_weights() if axes is None else shard_state(source_weights(), make_mesh(jax.devices()[:4], **axes))


@CUTS
@MESHES
def test_the_metrics_of_a_source_are_those_of_its_rows(batch_size, window_bytes, axes):
    result = evaluate_source(
        SOURCE_MODEL, OBJECTIVE, weights_on(axes), SOURCE, batch_size=batch_size, window_bytes=window_bytes
    )
    wanted = evaluate(SOURCE_MODEL, source_weights(), SOURCE_ROWS, losses.squared_error, metrics=METRICS)
    assert {name: float(value) for name, value in result.items()} == pytest.approx(
        {name: float(value) for name, value in wanted.items()}, rel=1e-5
    )


@CUTS
@MESHES
def test_the_predictions_of_a_source_are_those_of_its_rows_in_their_order(batch_size, window_bytes, axes):
    result = list(
        predict_source(SOURCE_MODEL, weights_on(axes), SOURCE, batch_size=batch_size, window_bytes=window_bytes)
    )
    assert all(type(piece) is np.ndarray for piece in result)
    np.testing.assert_allclose(
        np.concatenate(result), predict(SOURCE_MODEL, source_weights(), SOURCE_ROWS.inputs), rtol=1e-5, atol=1e-6
    )


def test_windows_share_one_program(compilations):
    with compilations() as names:
        evaluate_source(SOURCE_MODEL, OBJECTIVE, source_weights(), SOURCE, batch_size=9, window_bytes=900)
        list(predict_source(SOURCE_MODEL, source_weights(), SOURCE, batch_size=9, window_bytes=900))
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


def test_a_batch_size_below_1_is_refused():
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        evaluate(SOURCE_MODEL, source_weights(), SOURCE, losses.squared_error, metrics=METRICS, batch_size=0)
    with pytest.raises(InputError, match="batch_size must be at least 1, got -1"):
        next(predict_source(SOURCE_MODEL, source_weights(), SOURCE, batch_size=-1))


def test_a_source_of_billions_of_rows_gives_its_first_predictions_at_once():
    source = DataSource(2**31 - 1, lambda rows: Dataset(rows[:, None] % 7 / 7, rows, np.ones(len(rows))))
    model = mlp(())
    weights = model.init(jax.random.key(0), np.ones((1, 1), np.float32))
    pieces = predict_source(model, weights, source, window_bytes=16 * 2048)
    first = next(pieces)
    pieces.close()
    wanted = predict(model, weights, (np.arange(2048)[:, None] % 7 / 7).astype(np.float32))
    np.testing.assert_allclose(first, wanted, rtol=1e-6)
