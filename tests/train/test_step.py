"""One step, against NumPy by hand, closed forms, Keras and what optax composes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import metrics
from jaxdl.data import dataset
from jaxdl.losses import softmax_cross_entropy, squared_error
from jaxdl.nn import convnet, mlp
from jaxdl.train import make_eval_step, make_train_state, make_train_step
from jaxdl.train.step import eval_variables, make_gradient
from jaxdl.types import Model, Objective, Variables
from tests.padding import pad

RANDOM = np.random.default_rng(0)
ROWS = dataset(RANDOM.normal(size=(31, 4)), RANDOM.normal(size=(31, 1)))
OBJECTIVE = Objective(squared_error, (metrics.rmse,))


def linear(noise=0.0):
    """y = x w + b with optional noise drawn from the step's key; simple enough to do by hand."""

    def init(key, inputs):
        return Variables({"w": jnp.ones((4, 1)), "b": jnp.zeros(1)}, {})

    def apply(weights, inputs, *, train, key=None, mask=None):
        outputs = inputs @ weights.params["w"] + weights.params["b"][None, :]
        return (outputs + noise * jax.random.normal(key, outputs.shape) if noise else outputs), weights.stats

    return Model(init, apply)


@functools.cache
def step_of(model, optimizer):
    """The step as a program, which runs of the same model and optimizer share."""
    return jax.jit(make_train_step(model, squared_error, optimizer, metrics=[metrics.rmse]))


@functools.cache
def begun(model):
    return jax.jit(model.init)(jax.random.key(0), ROWS.inputs)


LINEAR, NOISY, SGD = linear(), linear(noise=1.0), optax.sgd(0.1)


def run(model, optimizer, batches, weights=None, key=3):
    step = step_of(model, optimizer)
    weights = begun(model) if weights is None else weights
    state, measured = make_train_state(weights, optimizer, jax.random.key(key)), []
    for batch in batches:
        state, sums = step(state, batch)
        measured.append(metrics.compute(sums, [metrics.rmse])["loss"])
    return state, np.array(measured)


def test_sgd_on_a_linear_model_is_gradient_descent_by_hand():
    x, y = np.float64(ROWS.inputs), np.float64(ROWS.targets)
    w, b, losses = np.ones((4, 1)), np.zeros(1), []
    for _ in range(5):
        error = x @ w + b - y
        losses.append((error**2).mean())
        w, b = w - 0.1 * 2 * x.T @ error / len(x), b - 0.1 * 2 * error.mean(0)
    state, measured = run(LINEAR, SGD, [ROWS] * 5)
    np.testing.assert_allclose(measured, losses, rtol=1e-5)
    np.testing.assert_allclose(state.variables.params["w"], w, rtol=1e-5)
    assert int(state.step) == 5


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adam(1e-2)], ids=["momentum", "adam"])
@pytest.mark.parametrize("input_norm", [False, True])
def test_padding_changes_neither_loss_nor_weights_nor_statistics(optimizer, input_norm):
    model = mlp((8,), input_norm=input_norm)
    plain, losses = run(model, optimizer, [ROWS] * 3)
    padded, padded_losses = run(model, optimizer, [pad(ROWS, 32)] * 3)
    np.testing.assert_allclose(losses, padded_losses, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(plain.variables), jax.tree.leaves(padded.variables), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_randomness_depends_on_key_and_step_alone():
    _, first = run(NOISY, SGD, [ROWS] * 3)
    _, again = run(NOISY, SGD, [ROWS] * 3)
    _, other = run(NOISY, SGD, [ROWS] * 3, key=4)
    np.testing.assert_array_equal(first, again)
    assert len({*first.tolist(), *other.tolist()}) == 6


def test_the_key_never_advances():
    state, _ = run(LINEAR, SGD, [ROWS] * 2)
    assert jax.random.key_data(state.key).tolist() == jax.random.key_data(jax.random.key(3)).tolist()


def test_clipping_limits_the_norm_of_the_update():
    state, _ = run(LINEAR, optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0)), [ROWS])
    moved = jax.tree.map(lambda new, old: new - old, state.variables.params, {"w": jnp.ones((4, 1)), "b": jnp.zeros(1)})
    np.testing.assert_allclose(optax.tree.norm(moved), 1e-3, rtol=1e-3)


def test_accumulating_halves_is_one_step_on_the_whole():
    halves = [jax.tree.map(lambda leaf, part=part: leaf[part], ROWS) for part in (slice(0, 15), slice(15, 30))]
    whole = jax.tree.map(lambda leaf: leaf[:30], ROWS)
    accumulated, _ = run(LINEAR, optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), halves)
    direct, _ = run(LINEAR, SGD, [whole])
    np.testing.assert_allclose(accumulated.variables.params["w"], direct.variables.params["w"], rtol=1e-6)


def test_weight_decay_shrinks_by_its_closed_form():
    batch = ROWS._replace(inputs=np.zeros_like(ROWS.inputs), targets=np.zeros_like(ROWS.targets))
    state, _ = run(LINEAR, optax.adamw(0.1, weight_decay=0.5), [batch] * 3)
    np.testing.assert_allclose(state.variables.params["w"], (1 - 0.1 * 0.5) ** 3, rtol=1e-6)


def test_a_schedule_with_warm_up_sets_each_steps_rate():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, warmup_steps=2, decay_steps=6)
    state, _ = run(LINEAR, optax.inject_hyperparams(optax.sgd)(learning_rate=schedule), [ROWS] * 4)
    expected = 0.1 * 0.5 * (1 + np.cos(np.pi * 1 / 4))  # step 3: one of four steps of decay after two of warm-up
    np.testing.assert_allclose(state.opt_state.hyperparams["learning_rate"], expected, rtol=1e-5)


@pytest.mark.parametrize("input_norm", [False, True])
def test_a_batch_of_padding_only_changes_nothing(input_norm):
    # Not even by Adam's momentum, nor BatchNorm's moments.
    empty = ROWS._replace(sample_weight=np.zeros_like(ROWS.sample_weight))
    model, optimizer = mlp((4,), input_norm=input_norm), optax.adam(0.1)
    before, _ = run(model, optimizer, [ROWS])
    after, _ = run(model, optimizer, [ROWS, empty])
    for one, other in zip(*map(jax.tree.leaves, (before[1:3], after[1:3])), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_eval_step_changes_nothing_and_ignores_padding():
    model = mlp((8,), input_norm=True, dropout=0.5)
    weights = begun(model)
    step = jax.jit(make_eval_step(model, squared_error, metrics=[metrics.rmse]))
    one, padded = step(weights, ROWS), step(weights, pad(ROWS, 40))
    np.testing.assert_allclose(one.totals["loss"], padded.totals["loss"], rtol=1e-6)
    assert float(one.weight) == float(padded.weight) == 31


def test_one_compilation_serves_every_step(compilations):
    model, optimizer = mlp((8,), input_norm=True, dropout=0.1), optax.adam(1e-3)
    step = jax.jit(make_train_step(model, squared_error, optimizer, metrics=[metrics.rmse]))
    batch = jax.tree.map(jnp.asarray, ROWS)
    state = make_train_state(begun(model), optimizer, jax.random.key(1))
    with compilations() as names:
        for _ in range(4):
            state, _ = step(state, batch)
    assert names == ["step"]


def golden():
    """The same three Adam steps in NumPy, float64, with the gradient written out."""
    inputs = np.linspace(-1, 1.3, 32).reshape(8, 4)
    targets = inputs.sum(1, keepdims=True)
    params = [np.linspace(-1, 0.9, 20).reshape(4, 5), np.zeros(5), np.linspace(1, -0.9, 5).reshape(5, 1), np.zeros(1)]
    first, second, losses = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params], []
    for step in range(1, 4):
        before = inputs @ params[0] + params[1]
        hidden = np.maximum(before, 0)
        error = hidden @ params[2] + params[3] - targets
        losses.append((error**2).mean())
        out = 2 * error / len(error)
        inner = (out @ params[2].T) * (before > 0)
        grads = [inputs.T @ inner, inner.sum(0), hidden.T @ out, out.sum(0)]
        first = [0.9 * m + 0.1 * g for m, g in zip(first, grads, strict=True)]
        second = [0.999 * v + 0.001 * g**2 for v, g in zip(second, grads, strict=True)]
        scaled = [
            (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8) for m, v in zip(first, second, strict=True)
        ]
        params = [p - 0.05 * s for p, s in zip(params, scaled, strict=True)]
    return losses


def test_three_adam_steps_are_those_of_numpy():
    """If this breaks, the step no longer means what it says: mend the step, not the figures, which NumPy gives."""
    inputs = np.linspace(-1, 1.3, 32, dtype=np.float32).reshape(8, 4)
    batch = dataset(inputs, inputs.sum(1, keepdims=True))
    weights = Variables(
        {
            "Dense_0": {"kernel": jnp.linspace(-1, 0.9, 20).reshape(4, 5), "bias": jnp.zeros(5)},
            "Dense_1": {"kernel": jnp.linspace(1, -0.9, 5).reshape(5, 1), "bias": jnp.zeros(1)},
        },
        {},
    )
    _, losses = run(mlp((5,)), optax.adam(0.05), [batch] * 3, weights)
    np.testing.assert_allclose(losses, golden(), rtol=1e-5)


def test_the_moving_average_is_numpys_and_padding_leaves_it_alone():
    decay, optimizer, model = 0.9, optax.sgd(0.1), linear()
    step = jax.jit(make_train_step(model, squared_error, optimizer, metrics=[metrics.rmse], ema_decay=decay))
    state = make_train_state(begun(model), optimizer, jax.random.key(3), ema=True)
    average = np.ones((4, 1))
    for number in range(30):
        state, _ = step(state, ROWS)
        remaining = min(decay, (1 + number) / (10 + number))
        average = remaining * average + (1 - remaining) * np.float64(state.variables.params["w"])
    np.testing.assert_allclose(eval_variables(state).params["w"], average, rtol=1e-5)
    padding = ROWS._replace(sample_weight=np.zeros(31, np.float32))
    np.testing.assert_array_equal(step(state, padding)[0].ema.params["w"], state.ema.params["w"])


def test_without_an_average_eval_variables_returns_the_trained_variables():
    state = make_train_state(Variables({"w": jnp.ones(2)}, {}), optax.sgd(0.1), jax.random.key(0))
    assert eval_variables(state) is state.variables and state.ema == ()


def test_the_gradient_is_numpys():
    x, y = np.float64(ROWS.inputs), np.float64(ROWS.targets)
    error = x.sum(1, keepdims=True) - y
    state = make_train_state(begun(LINEAR), optax.sgd(0.1), jax.random.key(3))
    result = jax.jit(make_gradient(LINEAR, OBJECTIVE))(state, ROWS)
    np.testing.assert_allclose(result["w"], 2 * x.T @ error / len(x), rtol=1e-5)
    np.testing.assert_allclose(result["b"], 2 * error.mean(0), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"input_norm": True, "dropout": 0.5}], ids=["plain", "norm and dropout"])
def test_one_step_of_gradient_descent_subtracts_the_gradient(options):
    model, optimizer = mlp((8,), **options), optax.sgd(1.0)
    batch = pad(ROWS, 40)
    state = make_train_state(begun(model), optimizer, jax.random.key(3))
    gradient = jax.jit(make_gradient(model, OBJECTIVE))
    for _ in range(2):
        gradients = gradient(state, batch)
        after, _ = step_of(model, optimizer)(state, batch)
        taken = jax.tree.map(lambda old, new: old - new, state.variables.params, after.variables.params)
        for one, other in zip(*map(jax.tree.leaves, (taken, gradients)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
        state = after


def test_the_gradient_is_that_of_a_loss_written_out():
    model = mlp((8,))
    weights = begun(model)

    def loss(params):
        hidden = jax.nn.relu(ROWS.inputs @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
        outputs = hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None]
        return ((outputs - ROWS.targets) ** 2).mean()

    state = make_train_state(weights, optax.sgd(0.1), jax.random.key(3))
    result, expected = jax.jit(make_gradient(model, OBJECTIVE))(state, ROWS), jax.jit(jax.grad(loss))(weights.params)
    for one, other in zip(*map(jax.tree.leaves, (result, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_batch_of_padding_only_has_no_gradient():
    empty = ROWS._replace(sample_weight=np.zeros_like(ROWS.sample_weight))
    state = make_train_state(begun(LINEAR), optax.sgd(0.1), jax.random.key(3))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.jit(make_gradient(LINEAR, OBJECTIVE))(state, empty)))


# Keras as the reference: the same initial weights and batches give the same losses, step by step


KERAS_RANDOM = np.random.default_rng(0)
# 50 batches of 32 examples of 20 columns.
KERAS_INPUTS = KERAS_RANDOM.normal(3, 2, (50, 32, 20)).astype(np.float32)
NOISE = KERAS_RANDOM.normal(size=(50, 32, 1)).astype(np.float32)
KERAS_TARGETS = np.abs(KERAS_INPUTS[..., :3]).sum(-1, keepdims=True) + NOISE
WIDTHS = (16, 8)
OPTIMIZERS = {
    "sgd": (lambda keras: keras.optimizers.SGD(1e-3), optax.sgd(1e-3)),
    # Keras adds epsilon before the bias correction and optax after it, so it is made to vanish on both sides.
    "adam": (lambda keras: keras.optimizers.Adam(1e-3, epsilon=1e-12), optax.adam(1e-3, eps=1e-12)),
}


@pytest.fixture
def keras():
    keras = pytest.importorskip("keras", reason="Keras, the reference of these tests, is not installed")
    with jax.numpy_rank_promotion("allow"):  # which Keras's own layers need
        yield keras


def keras_network(keras, input_norm):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.BatchNormalization()] if input_norm else []
    layers += [keras.layers.Dense(width, activation="relu") for width in WIDTHS] + [keras.layers.Dense(1)]
    return keras.Sequential([keras.layers.Input((20,)), *layers])


def keras_variables(keras, network):
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
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fifty_steps_are_those_of_keras(keras, optimizer, input_norm):
    network, (make, ours) = keras_network(keras, input_norm), OPTIMIZERS[optimizer]
    model = mlp(WIDTHS, input_norm=input_norm)
    state = make_train_state(jax.tree.map(jax.numpy.asarray, keras_variables(keras, network)), ours, jax.random.key(0))
    network.compile(optimizer=make(keras), loss="mse")
    step = jax.jit(make_train_step(model, squared_error, ours))
    losses = []
    for inputs, targets in zip(KERAS_INPUTS, KERAS_TARGETS, strict=True):
        network.reset_metrics()  # or Keras would report the mean over all batches so far
        state, sums = step(state, dataset(inputs, targets))
        losses.append((float(sums.totals["loss"] / sums.weight), float(network.train_on_batch(inputs, targets))))
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)
    theirs = keras_variables(keras, network)
    for one, other in zip(jax.tree.leaves(state.variables), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    result, _ = model.apply(state.variables, KERAS_INPUTS[0], train=False)
    np.testing.assert_allclose(result, network.predict(KERAS_INPUTS[0], verbose=0), rtol=1e-3, atol=1e-4)


def keras_convnet(keras):
    keras.utils.set_random_seed(0)
    conv = [keras.layers.Conv2D(18, 3, activation="relu"), keras.layers.MaxPooling2D(), keras.layers.Conv2D(20, 3)]
    tail = [keras.layers.ReLU(), keras.layers.MaxPooling2D(), keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential([keras.layers.Input((14, 14, 3)), *conv, *tail])


def convnet_params(keras, network):
    kinds = {"Conv": keras.layers.Conv2D, "Dense": keras.layers.Dense}
    return {
        f"{name}_{number}": {"kernel": np.asarray(layer.kernel), "bias": np.asarray(layer.bias)}
        for name, kind in kinds.items()
        for number, layer in enumerate(layer for layer in network.layers if isinstance(layer, kind))
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_twenty_steps_of_a_convnet_are_those_of_keras(keras, optimizer):
    network, (make, ours) = keras_convnet(keras), OPTIMIZERS[optimizer]
    pictures = KERAS_RANDOM.integers(0, 256, (20, 16, 14, 14, 3)).astype(np.uint8)
    labels = (pictures[..., :7, 0].mean((2, 3)) // 8 % 10).astype(np.int32)
    state = make_train_state(
        Variables(jax.tree.map(jax.numpy.asarray, convnet_params(keras, network)), {}), ours, jax.random.key(0)
    )
    network.compile(optimizer=make(keras), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    step = jax.jit(make_train_step(convnet((18, 20), pool=True), softmax_cross_entropy, ours))
    losses = []
    for images, targets in zip(pictures, labels, strict=True):
        network.reset_metrics()
        state, sums = step(state, dataset(images, targets))
        theirs = network.train_on_batch(images.astype(np.float32) / np.float32(255), targets)
        losses.append((float(sums.totals["loss"] / sums.weight), float(theirs)))
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)
    params = convnet_params(keras, network)
    for one, other in zip(jax.tree.leaves(state.variables.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
