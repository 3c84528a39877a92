"""Committees: what many networks say together, and each of them alone."""

import jax
import numpy as np
import pandas as pd
import pytest

from jaxdl import losses, metrics
from jaxdl.data import examples
from jaxdl.ensembles import evaluate_members, predict_mean
from jaxdl.errors import InputError
from jaxdl.nn import convnet, mlp
from jaxdl.train.evaluate import evaluate, predict
from jaxdl.types import Objective

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(45, 5)).astype(np.float32)
IMAGES = RANDOM.integers(0, 256, (23, 8, 8, 3), np.uint8)
LABELS = RANDOM.integers(0, 10, 23)
CLASSES = Objective(losses.softmax_cross_entropy, (metrics.accuracy,))
COMMITTEES = {
    "mlp": (
        mlp((8,), input_norm=True),
        examples(INPUTS, INPUTS[:, :1] ** 2),
        Objective(losses.squared_error, (metrics.rmse,)),
    ),
    "convnet": (
        convnet((4,), widths=(5,), padding="SAME", pool=True),
        examples(IMAGES, RANDOM.integers(0, 10, 23)),
        CLASSES,
    ),
}


def begun(model, inputs, count):
    """The weights of many networks as they begin."""
    begin = jax.jit(jax.vmap(lambda key: model.init(key, inputs)))
    return begin(jax.random.split(jax.random.key(0), count))


@pytest.fixture(scope="module", params=list(COMMITTEES))
def committee(request):
    """A model, the weights of four, rows, and what is measured."""
    model, rows, objective = COMMITTEES[request.param]
    return model, begun(model, rows.inputs[:1], 4), rows, objective


def member(weights, index):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], weights)


def test_the_mean_and_spread_are_those_of_numpy(committee):
    model, weights, rows, _ = committee
    alone = np.asarray([predict(model, member(weights, index), rows.inputs) for index in range(4)], np.float64)
    found = predict_mean(model, weights, rows.inputs, batch_size=7)
    np.testing.assert_allclose(found.mean, alone.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.spread, alone.std(0), rtol=1e-4, atol=1e-6)


def test_the_spread_of_equal_members_is_nothing(committee):
    model, weights, rows, _ = committee
    equal = jax.tree.map(lambda leaf: np.stack([leaf[2]] * 3), jax.tree.map(np.asarray, weights))
    assert float(predict_mean(model, equal, rows.inputs).spread.max()) == 0


@pytest.mark.parametrize("batch_size", [None, 7, 1])
def test_each_member_is_measured_as_it_is_alone(committee, batch_size):
    """Bit for bit; what convolutions give may be rounded otherwise within the loop over members."""
    model, weights, rows, objective = committee
    found = evaluate_members(model, objective, weights, rows, batch_size=batch_size)
    for index in range(4):
        expected = evaluate(model, objective, member(weights, index), rows, batch_size=batch_size)
        assert set(found) == set(expected)
        for name, value in expected.items():
            rtol = 1e-6 if rows is COMMITTEES["convnet"][1] else 0
            np.testing.assert_allclose(found[name][index], value, rtol=rtol, atol=0, err_msg=name)


def test_a_member_of_nan_harms_no_other(committee):
    model, weights, rows, objective = committee
    spoilt = jax.tree.map(np.array, weights.params)
    for leaf in jax.tree.leaves(spoilt):
        leaf[1] = np.nan
    ill = weights._replace(params=spoilt)
    found, expected = (evaluate_members(model, objective, of, rows)["loss"] for of in (ill, weights))
    assert np.isnan(found[1]) and not np.isnan(expected).any()
    np.testing.assert_array_equal(np.delete(found, 1), np.delete(expected, 1))


def test_the_weights_of_a_single_run_are_refused_and_those_of_an_ensemble_of_one_are_not(committee):
    model, weights, rows, objective = committee
    alone, of_one = member(weights, 0), member(weights, slice(0, 1))
    for name, use, single in (
        ("predict_mean", lambda of: predict_mean(model, of, rows.inputs), "predict"),
        ("evaluate_members", lambda of: evaluate_members(model, objective, of, rows), "evaluate"),
    ):
        with pytest.raises(InputError, match=rf"{name} needs the weights of many networks, .* Use jaxdl\.{single} for"):
            use(alone)
        assert len(jax.tree.leaves(use(of_one))) == 2


def test_inputs_may_be_lists():
    model, rows, _ = COMMITTEES["mlp"]
    weights = begun(model, rows.inputs, 2)
    assert predict_mean(model, weights, INPUTS.tolist()).mean.shape == (45, 1)


def test_tables_are_predicted_from_as_arrays_are_and_masked_values_are_refused():
    table = pd.DataFrame(INPUTS, columns=list("abcde")).assign(a=INPUTS[:, 0] > 0)
    model = mlp((3,))
    weights = begun(model, INPUTS, 2)
    plain = np.hstack([INPUTS[:, :1] > 0, INPUTS[:, 1:]]).astype(np.float32)
    np.testing.assert_array_equal(predict_mean(model, weights, table).mean, predict_mean(model, weights, plain).mean)
    with pytest.raises(InputError, match="inputs must hold a number everywhere"):
        predict_mean(model, weights, np.ma.masked_greater(INPUTS, 1))
