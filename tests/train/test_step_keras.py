"""Keras as the oracle: the same initial weights and batches give the same losses, step by step."""

import jax
import numpy as np
import optax
import pytest

from jaxdl.data import dataset
from jaxdl.losses import softmax_cross_entropy, squared_error
from jaxdl.nn import convnet, mlp
from jaxdl.train import make_train_state, make_train_step
from jaxdl.types import Variables

keras = pytest.importorskip("keras", reason="Keras, the oracle of these tests, is not installed")

RANDOM = np.random.default_rng(0)
STEPS, ROWS, COLUMNS = 50, 32, 20
INPUTS = RANDOM.normal(3, 2, (STEPS, ROWS, COLUMNS)).astype(np.float32)
TARGETS = np.abs(INPUTS[..., :3]).sum(-1, keepdims=True) + RANDOM.normal(size=(STEPS, ROWS, 1)).astype(np.float32)
WIDTHS = (16, 8)
OPTIMISERS = {
    "sgd": (lambda: keras.optimizers.SGD(1e-3), optax.sgd(1e-3)),
    # Keras adds epsilon before the bias correction and optax after it, so it is made to vanish on both sides.
    "adam": (lambda: keras.optimizers.Adam(1e-3, epsilon=1e-12), optax.adam(1e-3, eps=1e-12)),
}


@pytest.fixture(autouse=True)
def loose_ranks():
    with jax.numpy_rank_promotion("allow"):  # which Keras's own layers need
        yield


def keras_network(input_norm):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.BatchNormalization()] if input_norm else []
    layers += [keras.layers.Dense(width, activation="relu") for width in WIDTHS] + [keras.layers.Dense(1)]
    return keras.Sequential([keras.layers.Input((COLUMNS,)), *layers])


def weights_of(network):
    """The Keras network's numbers, by the names that the MLP gives its layers."""
    dense = [layer for layer in network.layers if isinstance(layer, keras.layers.Dense)]
    params = {
        f"Dense_{i}": {"kernel": np.asarray(layer.kernel), "bias": np.asarray(layer.bias)}
        for i, layer in enumerate(dense)
    }
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        return Variables(params, {})
    scale, bias, mean, variance = map(
        np.asarray, (norms[0].gamma, norms[0].beta, norms[0].moving_mean, norms[0].moving_variance)
    )
    params["BatchNorm_0"] = {"scale": scale, "bias": bias}
    return Variables(params, {"batch_stats": {"BatchNorm_0": {"mean": mean, "var": variance}}})


@pytest.mark.parametrize("input_norm", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_fifty_steps_are_those_of_keras(optimizer, input_norm):
    network, (make, ours) = keras_network(input_norm), OPTIMISERS[optimizer]
    model = mlp(WIDTHS, input_norm=input_norm)
    state = make_train_state(jax.tree.map(jax.numpy.asarray, weights_of(network)), ours, jax.random.key(0))
    network.compile(optimizer=make(), loss="mse")
    step = jax.jit(make_train_step(model, squared_error, ours))
    losses = []
    for inputs, targets in zip(INPUTS, TARGETS, strict=True):
        network.reset_metrics()  # or Keras would report the mean over all batches so far
        state, sums = step(state, dataset(inputs, targets))
        losses.append((float(sums.totals["loss"] / sums.weight), float(network.train_on_batch(inputs, targets))))
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)
    theirs = weights_of(network)
    for one, other in zip(jax.tree.leaves(state.variables), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    result, _ = model.apply(state.variables, INPUTS[0], train=False)
    np.testing.assert_allclose(result, network.predict(INPUTS[0], verbose=0), rtol=1e-3, atol=1e-4)


def keras_convnet():
    keras.utils.set_random_seed(0)
    conv = [keras.layers.Conv2D(18, 3, activation="relu"), keras.layers.MaxPooling2D(), keras.layers.Conv2D(20, 3)]
    tail = [keras.layers.ReLU(), keras.layers.MaxPooling2D(), keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential([keras.layers.Input((14, 14, 3)), *conv, *tail])


def convnet_params(network):
    kinds = {"Conv": keras.layers.Conv2D, "Dense": keras.layers.Dense}
    return {
        f"{name}_{number}": {"kernel": np.asarray(layer.kernel), "bias": np.asarray(layer.bias)}
        for name, kind in kinds.items()
        for number, layer in enumerate(layer for layer in network.layers if isinstance(layer, kind))
    }


@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_twenty_steps_of_a_convnet_are_those_of_keras(optimizer):
    network, (make, ours) = keras_convnet(), OPTIMISERS[optimizer]
    pictures = RANDOM.integers(0, 256, (20, 16, 14, 14, 3)).astype(np.uint8)
    labels = (pictures[..., :7, 0].mean((2, 3)) // 8 % 10).astype(np.int32)
    state = make_train_state(
        Variables(jax.tree.map(jax.numpy.asarray, convnet_params(network)), {}), ours, jax.random.key(0)
    )
    network.compile(optimizer=make(), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    step = jax.jit(make_train_step(convnet((18, 20), pool=True), softmax_cross_entropy, ours))
    losses = []
    for images, targets in zip(pictures, labels, strict=True):
        network.reset_metrics()
        state, sums = step(state, dataset(images, targets))
        theirs = network.train_on_batch(images.astype(np.float32) / np.float32(255), targets)
        losses.append((float(sums.totals["loss"] / sums.weight), float(theirs)))
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)
    params = convnet_params(network)
    for one, other in zip(jax.tree.leaves(state.variables.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
