"""Rates, averages and dtypes of a run, against arithmetic in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import Dataset, InputError, dataset, evaluate, fit, fit_seeds, from_linen, mlp, reduce_on_plateau
from jaxdl.losses import sigmoid_cross_entropy, softmax_cross_entropy, squared_error
from jaxdl.nn import convnet
from jaxdl.train import find_learning_rate, make_plan, start
from jaxdl.train.step import eval_variables

LINEAR, SGD = mlp(()), optax.sgd(0.05)
INPUTS = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
ROWS = dataset(INPUTS * 0.01, INPUTS @ np.ones((2, 1), np.float32))


LOWERED = reduce_on_plateau(patience=0, factor=0.5, min_delta=10.0)


def lowered_rates(train, learning_rate):
    """The learning rate of each epoch of a run in which a rule lowers it."""
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate)
    seeds = {"seeds": (0, 1)} if train is fit_seeds else {}
    history = train(LINEAR, squared_error, optimizer, ROWS, epochs=4, plateau=LOWERED, **seeds).history
    return history["learning_rate"].to_numpy()


@pytest.mark.parametrize("rate", [1, jnp.int32(1), jnp.asarray(1, jnp.uint8)])
@pytest.mark.parametrize("train", [fit, fit_seeds])
def test_a_rate_that_is_an_integer_is_lowered_as_a_float_is(train, rate):
    result = lowered_rates(train, rate)
    np.testing.assert_array_equal(result, lowered_rates(train, 1.0))
    assert set(result) == {1, 0.5, 0.25}


def test_the_range_test_begins_at_its_lowest_rate_where_the_optimizers_is_an_integer():
    def losses(rate):
        plan = make_plan(
            mlp(()),
            squared_error,
            optax.inject_hyperparams(optax.sgd)(learning_rate=rate),
            batch_size=8,
        )
        return find_learning_rate(
            plan, start(plan, ROWS, key=jax.random.key(0)), ROWS, low=1e-3, high=10.0, steps=8
        ).losses

    np.testing.assert_array_equal(losses(1), losses(1.0))


class Narrow(nn.Module):
    dtype: object

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(1, dtype=jnp.float32, param_dtype=self.dtype)(inputs)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_moving_average_of_narrow_parameters_is_that_of_numpy_in_float32(dtype):
    def kernel(weights):
        return weights.params["Dense_0"]["kernel"]

    # One step an epoch: a callback sees the weights after each.
    path, steps, model = [], 40, from_linen(Narrow(dtype))
    common = {"batch_size": 32, "ema_decay": 0.99}
    run = fit(
        model,
        squared_error,
        SGD,
        ROWS,
        epochs=steps,
        callbacks=[lambda run_state, _: path.append(np.asarray(kernel(run_state.train_state.variables), np.float32))],
        **common,
    )
    plan = make_plan(model, squared_error, SGD, batch_size=32)
    mean = np.asarray(kernel(start(plan, ROWS, key=jax.random.key(0)).train_state.variables), np.float32)
    for step, weights in enumerate(path):
        remaining = min(0.99, (1 + step) / (10 + step))
        mean = remaining * mean + (1 - remaining) * weights
    result = kernel(run.state.train_state.ema)
    assert result.dtype == jnp.float32
    # XLA may hand the average the new weights before it rounds them.
    np.testing.assert_allclose(result, mean, rtol=float(jnp.finfo(dtype).eps) + 1e-5, atol=1e-6)
    for weights in (run.final, run.best, eval_variables(run.state.train_state)):
        assert kernel(weights).dtype == dtype
    again = fit(model, squared_error, SGD, ROWS, epochs=steps + 1, state=run.state, **common)
    assert kernel(again.state.train_state.ema).dtype == jnp.float32 and kernel(again.final).dtype == dtype


def test_bytes_beside_floats_are_refused():
    images, labels = np.zeros((8, 8, 8, 3), np.uint8), np.arange(8) % 2
    pairs = [(images, images.astype(np.float32)), (images.astype(np.float32), images), (images, images.astype(int))]
    for train, validation in pairs:
        with pytest.raises(InputError, match="train and validation must both hold bytes or neither, got inputs of"):
            fit(
                convnet((4,), outputs=2),
                softmax_cross_entropy,
                optax.sgd(0.1),
                dataset(train, labels),
                dataset(validation, labels),
                batch_size=8,
            )


def test_labels_of_minus_one_and_one_are_refused_before_the_first_step():
    signs = np.where(INPUTS[:, :1] > 0, 1, -1)
    good, bad = dataset(INPUTS, signs > 0), dataset(INPUTS, signs)
    for name, rows in (("train", (bad, good)), ("validation", (good, bad))):
        with pytest.raises(InputError, match=rf"targets from 0 to 1, got -1 in row \d+ of {name}"):
            fit(mlp(()), sigmoid_cross_entropy, optax.sgd(0.1), *rows, epochs=1)
        with pytest.raises(InputError, match=rf"targets from 0 to 1, got -1 in row \d+ of {name}"):
            fit_seeds(mlp(()), sigmoid_cross_entropy, optax.sgd(0.1), *rows, epochs=1, seeds=(0, 1))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (INPUTS.astype(">f4"), "got the byte order of >f4 in it"),
        (np.ma.masked_greater(INPUTS, 1), "got a masked array in it"),
        (np.full((32, 2), 3_000_000_000), "got 3000000000, beyond 32 bits, in it"),
    ],
)
def test_arrays_of_examples_made_by_hand_are_checked(inputs, message):
    rows, weights = Dataset(inputs, ROWS.targets, ROWS.sample_weight), jax.jit(LINEAR.init)(jax.random.key(0), INPUTS)
    with pytest.raises(InputError, match=f"train.inputs must be an array of numbers that JAX can hold, {message}"):
        fit(mlp(()), squared_error, optax.sgd(0.1), rows, epochs=1)
    with pytest.raises(InputError, match=f"validation.inputs must be an array .*{message}"):
        fit(mlp(()), squared_error, optax.sgd(0.1), ROWS, rows, epochs=1)
    with pytest.raises(InputError, match=f"dataset.inputs must be an array .*{message}. Use dataset"):
        evaluate(mlp(()), weights, rows, squared_error)


def test_an_evaluation_refuses_targets_that_its_loss_cannot_take():
    signs = np.where(INPUTS[:, :1] > 0, 1, -1)
    weights = jax.jit(LINEAR.init)(jax.random.key(0), INPUTS)
    with pytest.raises(InputError, match=r"targets from 0 to 1, got -1 in row \d+ of dataset"):
        evaluate(mlp(()), weights, dataset(INPUTS, signs), sigmoid_cross_entropy)
