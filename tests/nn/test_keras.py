"""Keras models as Models: against Keras's own training, prediction and files."""

import importlib.util
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdl
from jaxdl import saving
from jaxdl.data import dataset
from jaxdl.distributed import make_mesh, shard_dataset
from jaxdl.errors import InputError
from jaxdl.losses import softmax_cross_entropy, squared_error
from jaxdl.nn import from_keras, to_keras
from jaxdl.saving.export import export_model, inference, load_model, save_model
from jaxdl.train import make_train_state, make_train_step
from jaxdl.types import Variables

keras = pytest.importorskip("keras", reason="Keras, the oracle of these tests, is not installed")
layers = keras.layers

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(2, 3, (32, 6)).astype(np.float32)
TARGETS = np.abs(ROWS[:, :2]).sum(1, keepdims=True)
DATA = dataset(ROWS, TARGETS)


@pytest.fixture(autouse=True)
def loose_ranks():
    with jax.numpy_rank_promotion("allow"):  # which Keras's own layers need
        keras.utils.set_random_seed(0)
        yield


class Subclassed(keras.Model):
    """Has layers in a list, one of them shared, a variable of its own, and no `training` in its call."""

    def __init__(self, width=4, **keywords):
        super().__init__(**keywords)
        self.width = width
        self.blocks = [layers.Dense(width, activation="tanh") for _ in range(2)]
        self.norm, self.head = layers.BatchNormalization(), layers.Dense(1)

    def build(self, shape):
        self.scale = self.add_weight(shape=(1,), initializer="ones", name="scale")

    def call(self, inputs):
        hidden = self.norm(self.blocks[0](inputs))
        return self.head(self.blocks[1](self.blocks[1](hidden))) * self.scale

    def get_config(self):
        return {"width": self.width, "name": self.name}


def sequential(*inner, width=6):
    return keras.Sequential([keras.Input((width,)), *inner, layers.Dense(1)])


def functional():
    """A nested model, a layer that is shared, and BatchNormalization inside of the nested model and outside."""
    inputs = keras.Input((6,))
    inner = sequential(layers.Dense(5, activation="tanh"), layers.BatchNormalization())
    shared = layers.Dense(6, activation="tanh")
    hidden = layers.Concatenate()([inner(shared(inputs)), shared(shared(inputs))])
    return keras.Model(inputs, layers.Dense(1)(layers.BatchNormalization()(hidden)))


def subclassed():
    network = Subclassed()
    network(ROWS[:1])
    return network


def plain():
    return sequential(layers.Dense(8, activation="relu"))


def normed():
    return sequential(layers.BatchNormalization(), layers.Dense(8, activation="relu"), layers.BatchNormalization())


def frozen():
    network = functional()
    network.layers[2].trainable = False
    assert network.layers[2].weights and len(network.trainable_variables) < 14
    return network


NETWORKS = [plain, normed, functional, subclassed, frozen]


def values_of(network):
    """The numbers of a Keras model in the order of its weights."""
    return [weight.numpy() for weight in network.weights]


def put_back(network, variables):
    """The numbers of variables in the order of the weights of a copy of the Keras model."""
    before = values_of(network)
    result = values_of(to_keras(network, variables))
    network.set_weights(before)
    return result


def assert_close(one, other, **tolerance):
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left, right, **tolerance)


# Parity


@pytest.mark.parametrize("make", NETWORKS)
def test_a_prediction_is_that_of_keras(make):
    network = make()
    model = from_keras(network)
    variables = model.init(KEY, ROWS)
    predicted = jaxdl.predict(model, variables, ROWS)
    np.testing.assert_allclose(predicted, network.predict(ROWS, verbose=0), rtol=1e-5, atol=1e-6)
    outputs, stats = model.apply(variables, ROWS, train=False, mask=jnp.ones(len(ROWS), bool))
    np.testing.assert_allclose(outputs, network(ROWS), rtol=1e-5, atol=1e-6)
    assert stats is variables.stats


@pytest.mark.parametrize("make", NETWORKS)
def test_outputs_gradients_and_statistics_of_training_are_those_of_keras(make):
    network = make()
    model = from_keras(network)
    variables = model.init(KEY, ROWS)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def theirs(trainable):
        with keras.StatelessScope(zip(network.trainable_variables, trainable, strict=True)) as scope:
            outputs = network(ROWS, training=True)
        moved = [scope.get_current_value(variable) for variable in network.non_trainable_variables]
        return ((outputs - TARGETS) ** 2).mean(), moved

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def ours(params, mask):
        outputs, stats = model.apply(Variables(params, variables.stats), ROWS, train=True, mask=mask)
        return ((outputs - TARGETS) ** 2).mean(), stats

    (value, moved), gradients = theirs([variable.value for variable in network.trainable_variables])
    moved = [v.numpy() if new is None else new for v, new in zip(network.non_trainable_variables, moved, strict=True)]
    before = values_of(network)
    for mask in (None, jnp.ones(len(ROWS), bool)):
        (loss, stats), grads = ours(variables.params, mask)
        assert float(loss) == pytest.approx(float(value), rel=1e-5)
        to_keras(network, Variables(grads, stats))
        assert_close([v.value for v in network.trainable_variables], gradients, rtol=1e-4, atol=1e-5)
        assert_close([v.value for v in network.non_trainable_variables], moved, rtol=1e-5, atol=1e-6)
        network.set_weights(before)


OPTIMIZERS = {
    "sgd": (lambda: keras.optimizers.SGD(1e-2), optax.sgd(1e-2)),
    # Keras adds epsilon before the bias correction and optax after it, so it is made to vanish on both sides.
    "adam": (lambda: keras.optimizers.Adam(1e-2, epsilon=1e-12), optax.adam(1e-2, eps=1e-12)),
}


# Adam would enlarge the rounding errors of gradients that are 0: those of biases in front of a BatchNormalization.
@pytest.mark.parametrize(
    ("make", "optimizer"), [(normed, "sgd"), (normed, "adam"), (functional, "sgd"), (frozen, "sgd")]
)
def test_one_and_ten_steps_are_those_of_train_on_batch(make, optimizer):
    network, (theirs, ours) = make(), OPTIMIZERS[optimizer]
    model = from_keras(network)
    state = make_train_state(model.init(KEY, ROWS), ours, KEY)
    step = jax.jit(make_train_step(model, squared_error, ours))
    network.compile(optimizer=theirs(), loss="mse")
    initial = values_of(network)
    for number in range(10):
        network.reset_metrics()
        batch = ROWS + number
        state, sums = step(state, dataset(batch, TARGETS))
        assert float(sums.totals["loss"] / sums.weight) == pytest.approx(
            float(network.train_on_batch(batch, TARGETS)), rel=1e-4
        )
        if number in (0, 9):
            trained = values_of(network)
            assert_close(put_back(network, state.variables), trained, rtol=1e-3, atol=1e-4)
    assert any(not np.array_equal(*pair) for pair in zip(initial, trained, strict=True))


def test_a_run_of_fit_with_the_networks_of_the_lesson_is_that_of_keras():
    inputs = keras.Input((6,))
    hidden = layers.Dense(100, activation="relu")(layers.BatchNormalization()(inputs))
    network = keras.Model(inputs, layers.Dense(1)(layers.Dense(50, activation="relu")(hidden)))
    model = from_keras(network)
    # One batch an epoch: the order of its rows does not matter.
    run = jaxdl.fit(model, squared_error, optax.adam(1e-2, eps=1e-12), DATA, DATA, epochs=5, batch_size=32)
    network.compile(optimizer=keras.optimizers.Adam(1e-2, epsilon=1e-12), loss="mse")
    history = network.fit(
        ROWS, TARGETS, validation_data=(ROWS, TARGETS), batch_size=32, epochs=5, shuffle=False, verbose=0
    )
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(run.history[name], history.history[name], rtol=1e-3)
    assert_close(put_back(network, run.final), values_of(network), rtol=1e-2, atol=1e-4)


def test_the_convnet_of_the_lesson_trains():
    inputs = keras.Input((32, 32, 3))
    hidden = layers.MaxPooling2D()(layers.Conv2D(4, 3, activation="relu")(inputs))
    hidden = layers.Dropout(0.5)(layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(hidden)))
    network = keras.Model(inputs, layers.Dense(10)(layers.Dense(8, activation="relu")(hidden)))
    images = RANDOM.uniform(0, 1, (16, 32, 32, 3)).astype(np.float32)
    labels = (images[..., 0].mean((1, 2)) > 0.5).astype(np.int32)
    run = jaxdl.fit(
        from_keras(network), softmax_cross_entropy, optax.adam(1e-2), dataset(images, labels), epochs=8, batch_size=16
    )
    assert run.history["loss"].iloc[-1] < 0.9 * run.history["loss"].iloc[0]


def test_recurrent_and_attention_layers_train_and_come_back():
    inputs = keras.Input((6,), dtype="int32")
    embedded = layers.Embedding(9, 4, mask_zero=True)(inputs)
    attended = layers.MultiHeadAttention(2, 2, dropout=0.1)(embedded, embedded)
    hidden = layers.Bidirectional(layers.GRU(3, dropout=0.2, recurrent_dropout=0.2))(
        layers.LayerNormalization()(attended)
    )
    network = keras.Model(inputs, layers.Dense(1)(hidden))
    tokens = RANDOM.integers(0, 9, (32, 6)).astype(np.int32)
    model = from_keras(network)
    run = jaxdl.fit(model, squared_error, optax.adam(1e-2), dataset(tokens, TARGETS), epochs=2, batch_size=8)
    again = jaxdl.fit(model, squared_error, optax.adam(1e-2), dataset(tokens, TARGETS), epochs=2, batch_size=8)
    jax.tree.map(np.testing.assert_array_equal, run.final, again.final)
    predicted = jaxdl.predict(model, run.final, tokens)
    np.testing.assert_allclose(to_keras(network, run.final).predict(tokens, verbose=0), predicted, rtol=1e-4, atol=1e-5)


# Padding and weights


def padded_with(network, mask, inputs=ROWS):
    model = from_keras(network)
    variables = model.init(KEY, inputs)
    return jax.jit(partial(model.apply, train=True))(variables, inputs, mask=jnp.asarray(mask))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: keras.Sequential([keras.Input((6,)), layers.BatchNormalization()]), (6,)),
        (lambda: keras.Sequential([keras.Input((5, 4, 3)), layers.BatchNormalization()]), (5, 4, 3)),
        (lambda: keras.Sequential([keras.Input((5, 4, 3)), layers.BatchNormalization(axis=1)]), (5, 4, 3)),
        (lambda: keras.Sequential([keras.Input((5, 1)), layers.BatchNormalization()]), (5, 1)),
        (lambda: keras.Sequential([keras.Input((6,)), layers.BatchNormalization(renorm=True)]), (6,)),
        (lambda: keras.Sequential([keras.Input((6,)), keras.Sequential([layers.BatchNormalization()])]), (6,)),
        (
            lambda: keras.Sequential(
                [keras.Input((5, 4)), layers.TimeDistributed(layers.BatchNormalization()), layers.Flatten()]
            ),
            (5, 4),
        ),
    ],
    ids=["columns", "images", "first axis", "one channel", "renorm", "nested", "time"],
)
def test_batch_normalization_leaves_padding_and_examples_of_weight_zero_out(make, shape):
    network, inputs = make(), RANDOM.normal(2, 3, (12, *shape)).astype(np.float32)
    counted = np.arange(12) % 3 > 0
    outputs, stats = padded_with(network, counted, inputs)
    alone, moved = network.stateless_call(
        [variable.value for variable in network.trainable_variables],
        [variable.value for variable in network.non_trainable_variables],
        inputs[counted],
        training=True,
    )
    np.testing.assert_allclose(outputs[counted], alone, rtol=1e-4, atol=1e-5)
    to_keras(network, Variables(from_keras(network).init(KEY, inputs).params, stats))
    assert_close([variable.value for variable in network.non_trainable_variables], moved, rtol=1e-5, atol=1e-6)


def test_masks_of_time_steps_hold_beside_that_of_the_examples():
    network = keras.Sequential(
        [keras.Input((5,), dtype="int32"), layers.Embedding(9, 3, mask_zero=True), layers.BatchNormalization()]
    )
    tokens = RANDOM.integers(0, 3, (8, 5)).astype(np.int32)
    _, stats = padded_with(network, np.arange(8) < 6, tokens)
    embedded = np.asarray(network.layers[0](tokens))[:6][tokens[:6] > 0]
    moments = stats["batch_normalization"]
    np.testing.assert_allclose(moments["moving_mean"], 0.01 * embedded.mean(0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(moments["moving_variance"], 0.99 + 0.01 * embedded.var(0), rtol=1e-5)


def test_a_weighted_run_is_that_of_the_examples_that_count():
    network = normed()
    weights = np.repeat([1.0, 0.0], 16)
    weighted = dataset(np.concatenate([ROWS[:16], ROWS[16:] + 100]), TARGETS, weights)
    one, other = (
        jaxdl.fit(from_keras(network), squared_error, optax.sgd(1e-3), rows, epochs=3, batch_size=len(rows.targets))
        for rows in (weighted, dataset(ROWS[:16], TARGETS[:16]))
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), one.final, other.final)


def test_padding_on_several_devices_changes_nothing():
    # 8 devices: batches of 8 and of 4 rows, the second half padding.
    network, data = normed(), dataset(ROWS[:28], TARGETS[:28])
    run = partial(jaxdl.fit, from_keras(network), squared_error, optax.sgd(1e-3), epochs=2, batch_size=8)
    one, many = run(data), run(shard_dataset(data, make_mesh()))
    np.testing.assert_allclose(many.history, one.history, rtol=1e-4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), many.final, one.final)


def test_a_batch_without_examples_gives_finite_values():
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(padded_with(normed(), np.zeros(32, bool))))


def test_batch_normalization_of_keras_is_itself_again_after_a_call():
    before = layers.BatchNormalization._moments
    padded_with(normed(), np.ones(32, bool))
    with pytest.raises(InputError):
        padded_with(folded(), np.ones(32, bool))
    assert layers.BatchNormalization._moments is before


class Folded(keras.Model):
    """Normalizes pairs of examples."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization()

    def call(self, inputs, training=None):
        return keras.ops.reshape(self.norm(keras.ops.reshape(inputs, (-1, 2 * 6)), training=training), (-1, 6))


def folded():
    network = Folded()
    network(ROWS)
    return network


class Moving(layers.Layer):
    """Keeps a moving mean of its inputs, as no layer of Keras does."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), trainable=False, name="mean", initializer="zeros")

    def call(self, inputs, training=None):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(inputs, 0))
        return inputs - self.mean


def test_statistics_that_would_count_padding_are_refused():
    with pytest.raises(InputError, match=r"first axis is not that of the examples \(shape \(16, 12\) for 32"):
        padded_with(folded(), np.ones(32, bool))
    network = keras.Sequential([keras.Input((6,)), Moving(name="moving")])
    with pytest.raises(InputError, match="changes moving/mean in its call but its layer moving takes no mask"):
        padded_with(network, np.ones(32, bool))
    # Without padding nothing is counted wrong.
    model = from_keras(network)
    _, stats = model.apply(model.init(KEY, ROWS), ROWS, train=True)
    np.testing.assert_allclose(stats["moving"]["mean"], 0.1 * ROWS.mean(0), rtol=1e-5)


def test_a_trained_variable_that_a_call_changes_is_refused():
    network = keras.Sequential([keras.Input((6,)), layers.SpectralNormalization(layers.Dense(2))])
    with pytest.raises(InputError, match="changes spectral_normalization/dense/kernel in its call, which is trained"):
        padded_with(network, np.arange(32) < 9)


# Random layers


RANDOM_LAYERS = {
    "dropout": lambda: layers.Dropout(0.5),
    "noise": lambda: layers.GaussianNoise(1.0),
    "seeded": lambda: layers.Dropout(0.5, seed=3),
}


@pytest.mark.parametrize("kind", RANDOM_LAYERS)
def test_draws_are_a_function_of_the_key_alone(kind):
    network = keras.Sequential([keras.Input((6,)), RANDOM_LAYERS[kind]()])
    model = from_keras(network)
    variables = model.init(KEY, ROWS)
    assert variables == Variables({}, {})
    states = [variable.numpy() for variable in network.variables]
    run = jax.jit(partial(model.apply, variables, train=True))
    draws = [np.asarray(run(ROWS, key=jax.random.key(seed))[0]) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2]) and not np.array_equal(draws[0], ROWS)
    np.testing.assert_array_equal(model.apply(variables, ROWS, train=False)[0], ROWS)
    assert_close(states, network.variables)


def test_random_flips_differ_between_keys():
    images = RANDOM.uniform(0, 1, (16, 4, 4, 1)).astype(np.float32)
    network = keras.Sequential([keras.Input((4, 4, 1)), layers.RandomFlip("horizontal")])
    model = from_keras(network)
    draws = [
        np.asarray(model.apply(Variables({}, {}), images, train=True, key=jax.random.key(seed))[0])
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_two_layers_and_two_calls_of_a_layer_draw_apart():
    inputs = keras.Input((64,))
    one, two = layers.Dropout(0.5), layers.Dropout(0.5)
    network = keras.Model(inputs, [one(inputs), two(inputs), one(inputs)])
    outputs, _ = from_keras(network).apply(Variables({}, {}), np.ones((8, 64), np.float32), train=True, key=KEY)
    assert all(not np.array_equal(outputs[i], outputs[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_dropout_acts_in_a_model_whose_call_takes_no_training():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.drop = layers.Dropout(0.5)

        def call(self, inputs):
            return self.drop(inputs)

    model = from_keras(Net())
    variables = model.init(KEY, ROWS)
    outputs, _ = model.apply(variables, ROWS, train=True, key=KEY)
    assert 0.3 < float((np.asarray(outputs) == 0).mean()) < 0.7


def test_training_with_random_layers_needs_a_key():
    model = from_keras(sequential(layers.Dropout(0.5)))
    with pytest.raises(InputError, match="draws random numbers in training, and no key is given"):
        model.apply(model.init(KEY, ROWS), ROWS, train=True)


def test_an_interrupted_run_resumes_bit_identical():
    network = sequential(layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(5, activation="relu"))
    run = partial(jaxdl.fit, from_keras(network), squared_error, optax.adam(1e-2), DATA, batch_size=8)
    whole, first = run(epochs=4), run(epochs=2)
    # Keras draws and trains meanwhile, which must not change the run.
    network(ROWS, training=True)
    to_keras(network, first.final)
    resumed = run(epochs=4, state=first)
    jax.tree.map(np.testing.assert_array_equal, whole.final, resumed.final)
    assert whole.history["loss"].tolist() == resumed.history["loss"].tolist()


# Initial values


def test_training_starts_from_the_weights_of_the_model_and_leaves_them():
    network = plain()
    before = values_of(network)
    model = from_keras(network)
    run = partial(jaxdl.fit, model, squared_error, optax.sgd(1e-3), DATA, epochs=1)
    first = run()
    assert_close(before, values_of(network))
    # A compiled function must not remember the weights of an earlier time.
    to_keras(network, first.final)
    second = run()
    assert second.history["loss"].iloc[0] < first.history["loss"].iloc[0]
    expected = np.mean((network.predict(ROWS, verbose=0) - TARGETS) ** 2)
    assert second.history["loss"].iloc[0] == pytest.approx(expected, rel=1e-5)


def test_variables_outlive_further_training_in_keras():
    network = plain()
    network.compile(optimizer="sgd", loss="mse")
    variables = from_keras(network).init(KEY, ROWS)
    to_keras(network, variables)
    before = jax.tree.map(np.array, variables)
    network.fit(ROWS, TARGETS, epochs=2, verbose=0)  # which donates its arrays
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_reinitialized_values_depend_on_the_key_and_have_the_spread_of_the_initializers():
    network = keras.Sequential([keras.Input((100,)), layers.BatchNormalization(), layers.Dense(50)])
    network.layers[0].moving_mean.assign(np.full(100, 7.0))
    model = from_keras(network, reinitialize=True)
    draw = jax.jit(lambda key: model.init(key, np.zeros((2, 100), np.float32)))
    one, same, other = (draw(jax.random.key(seed)) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    kernel = np.asarray(one.params["dense"]["kernel"])
    assert not np.array_equal(kernel, other.params["dense"]["kernel"])
    # Glorot's uniform distribution.
    limit = np.sqrt(6 / 150)
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.05)
    assert not one.stats["batch_normalization"]["moving_mean"].any() and not one.params["dense"]["bias"].any()
    assert network.layers[0].moving_mean.numpy()[0] == 7


def test_reinitialization_leaves_frozen_layers_and_adapted_moments():
    network = sequential(layers.Dense(5, activation="relu"), layers.Normalization())
    network.layers[1].adapt(np.asarray(network.layers[0](ROWS)))
    network.layers[0].trainable = False
    variables = from_keras(network, reinitialize=True).init(KEY, ROWS)
    np.testing.assert_array_equal(variables.stats["dense"]["kernel"], network.layers[0].kernel)
    assert not np.array_equal(variables.params["dense_1"]["kernel"], network.layers[-1].kernel)
    np.testing.assert_array_equal(variables.stats["normalization"]["mean"], network.layers[1].mean.ravel())


@pytest.mark.parametrize("make", [functional, subclassed])
def test_members_of_a_reinitialized_model_differ(make):
    model = from_keras(make(), reinitialize=True)
    runs = jaxdl.fit_seeds(model, squared_error, optax.sgd(1e-3), DATA, DATA, seeds=range(2), epochs=1)
    leaves = [leaf for leaf in jax.tree.leaves(runs.best.params) if leaf.ndim == 3]
    assert leaves and all(not np.array_equal(leaf[0], leaf[1]) for leaf in leaves)


def test_members_without_reinitialization_start_from_the_weights_of_the_model():
    network = plain()
    runs = jaxdl.fit_seeds(from_keras(network), squared_error, optax.sgd(0.0), DATA, DATA, seeds=range(2), epochs=1)
    for member in range(2):
        kernel = runs.best.params["dense"]["kernel"][member]
        np.testing.assert_array_equal(kernel, network.layers[0].kernel)


def test_a_model_that_keras_cannot_copy_is_refused_for_reinitialization():
    class Net(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, inputs):
            return self.layer(inputs)

        def get_config(self):
            raise NotImplementedError("no config")

    network = Net(layers.Dense(1))
    network(ROWS)
    assert from_keras(network).init(KEY, ROWS).params["dense"]["kernel"].shape == (6, 1)
    with pytest.raises(InputError, match="reinitialize=True needs a model that Keras can make again"):
        from_keras(network, reinitialize=True).init(KEY, ROWS)


@pytest.mark.parametrize("make", [lambda: keras.Sequential([layers.Dense(3), layers.Dense(1)]), Subclassed])
def test_a_model_without_variables_is_built_for_the_inputs(make):
    network = make()
    model = from_keras(network)
    assert not network.built
    run = jaxdl.fit(model, squared_error, optax.sgd(1e-3), DATA, epochs=1)
    assert network.built and not any(isinstance(weight.value, jax.core.Tracer) for weight in network.weights)
    to_keras(model, run.final)
    np.testing.assert_allclose(network(ROWS), jaxdl.predict(model, run.final, ROWS), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*unbuilt state")
def test_a_model_that_keras_cannot_build_asks_for_a_call():
    model = from_keras(Folded())
    with pytest.raises(InputError, match=r"cannot be built for inputs of shape \(batch, 6\): .*Call it on a batch"):
        model.init(KEY, ROWS)
    with pytest.raises(InputError, match="makes variables in its call"):
        model.apply(model.init(KEY, ROWS), ROWS, train=True)


def test_a_model_without_variables_cannot_be_applied():
    with pytest.raises(InputError, match=r"not built yet. Call model.init"):
        from_keras(keras.Sequential([layers.Dense(1)])).apply(Variables({}, {}), ROWS, train=False)


# Names


def test_names_depend_on_the_model_alone():
    trees = [jax.tree.structure(from_keras(functional()).init(KEY, ROWS)) for _ in range(2)]
    assert trees[0] == trees[1]
    variables = from_keras(functional()).init(KEY, ROWS)
    assert set(variables.params) == {"dense", "sequential", "batch_normalization", "dense_1"}
    assert set(variables.params["sequential"]) == {"dense", "batch_normalization", "dense_1"}
    assert set(variables.stats) == {"sequential", "batch_normalization"}


def test_layers_of_one_name_have_names_of_their_own():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = layers.Dense(2, name="head"), layers.Dense(1, name="head")
            self.head = self.add_weight(shape=(), initializer="ones", name="head")

        def call(self, inputs):
            return self.two(self.one(inputs)) * self.head

    model = from_keras(Net())
    params = model.init(KEY, ROWS).params
    assert {name: jax.tree.map(jnp.shape, tree) for name, tree in params.items()} == {
        "head": {"kernel": (6, 2), "bias": (2,)},
        "head_1": {"kernel": (2, 1), "bias": (1,)},
        "head_2": (),
    }


# Frozen parts


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_frozen_leaves_are_unchanged_to_the_bit_and_frozen_norms_predict(ema_decay):
    network = frozen()
    before = values_of(network)
    model = from_keras(network)
    run = jaxdl.fit(model, squared_error, optax.adamw(1e-2), DATA, epochs=2, batch_size=8, ema_decay=ema_decay)
    assert set(run.final.params) == {"dense", "batch_normalization", "dense_1"}
    trained = {id(variable) for variable in network.trainable_variables}
    outer = {id(variable) for variable in network.layers[-2].weights}
    after = values_of(to_keras(network, run.final))
    for variable, old, new in zip(network.weights, before, after, strict=True):
        assert np.array_equal(old, new) == (id(variable) not in trained | outer)


def test_a_change_of_trainable_asks_for_a_new_model():
    network = functional()
    model = from_keras(network)
    variables = model.init(KEY, ROWS)
    network.layers[2].trainable = False
    with pytest.raises(InputError, match=r"trainable of the Keras model .* has changed since from_keras"):
        model.apply(variables, ROWS, train=True)
    again = from_keras(network)
    assert again != model
    with pytest.raises(InputError, match=r"variables must(?: not)? have sequential/"):
        again.apply(variables, ROWS, train=True)
    # The way on: variables are recognized by their names.
    to_keras(network, jax.tree.map(lambda leaf: leaf + 1, variables))
    np.testing.assert_array_equal(
        again.init(KEY, ROWS).stats["sequential"]["dense"]["kernel"],
        variables.params["sequential"]["dense"]["kernel"] + 1,
    )


# Equality


def test_models_of_one_keras_model_are_equal_and_compile_once(compilations):
    network = plain()
    one, two = from_keras(network), from_keras(network)
    assert one == two and hash(one) == hash(two)
    assert one != from_keras(network, reinitialize=True) and one != from_keras(plain())
    assert one.init != one.apply
    jaxdl.fit(one, squared_error, OPTIMIZERS["sgd"][1], DATA, epochs=1)
    with compilations() as names:
        jaxdl.fit(two, squared_error, OPTIMIZERS["sgd"][1], DATA, epochs=1)
    assert names == []


def test_a_change_of_a_layer_makes_another_model():
    network = sequential(layers.Dropout(0.5))
    before = from_keras(network)
    network.layers[0].rate = 0.0
    assert from_keras(network) != before


# The way back


def test_the_variables_of_a_run_come_back_through_a_keras_file(tmp_path):
    network = functional()
    run = jaxdl.fit(from_keras(network), squared_error, optax.sgd(1e-3), DATA, epochs=2)
    assert to_keras(network, run.best) is network
    network.save(tmp_path / "network.keras")
    again = keras.models.load_model(tmp_path / "network.keras")
    predicted = jaxdl.predict(from_keras(network), run.best, ROWS)
    np.testing.assert_allclose(again.predict(ROWS, verbose=0), predicted, rtol=1e-5, atol=1e-6)
    # The names of the model that was read are those of the model that was saved.
    np.testing.assert_allclose(jaxdl.predict(from_keras(again), run.best, ROWS), predicted, rtol=1e-5, atol=1e-6)


def test_variables_come_back_through_save_and_load(tmp_path):
    network = functional()
    run = jaxdl.fit(from_keras(network), squared_error, optax.sgd(1e-3), DATA, epochs=1)
    saving.save(tmp_path / "variables", run.best)
    restored = saving.load(tmp_path / "variables")
    assert jax.tree.structure(restored) == jax.tree.structure(run.best)
    other = functional()
    to_keras(other, restored)
    np.testing.assert_allclose(other(ROWS), jaxdl.predict(from_keras(network), run.best, ROWS), rtol=1e-5, atol=1e-6)


def test_other_variables_are_refused_before_any_has_changed():
    network = plain()
    before = values_of(network)
    params = jax.tree.map(lambda leaf: leaf + 1, from_keras(network).init(KEY, ROWS).params)
    wrong = {
        "float32 of shape .3, 3. for dense_1/kernel, which has float32 of shape .8, 1.": {"kernel": np.ones((3, 3))},
        "int8 of shape .1,. for dense_1/bias": {"bias": np.ones(1, np.int8)},
        "for dense_1/extra, which has no such array": {"extra": np.ones(1)},
    }
    for message, leaf in wrong.items():
        leaf = {name: value.astype(np.float32) if value.dtype == float else value for name, value in leaf.items()}
        changed = {**params, "dense_1": {**params["dense_1"], **leaf}}
        with pytest.raises(InputError, match=message):
            to_keras(network, Variables(changed, {}))
    with pytest.raises(InputError, match="got no such array for dense_1/bias"):
        to_keras(network, Variables({**params, "dense_1": {"kernel": params["dense_1"]["kernel"]}}, {}))
    assert_close(before, values_of(network))
    with pytest.raises(InputError, match="to_keras needs a built model"):
        to_keras(keras.Sequential([layers.Dense(1)]), Variables(params, {}))


# Several inputs and outputs


def test_pytrees_of_inputs_and_outputs_pass_unchanged():
    left, right = keras.Input((2,), name="left"), keras.Input((3,), name="right")
    hidden = layers.Concatenate()([left, right])
    network = keras.Model({"left": left, "right": right}, {"sum": layers.Dense(1, name="sum")(hidden), "all": hidden})
    inputs = {"left": ROWS[:, :2], "right": ROWS[:, 2:5]}
    model = from_keras(network)
    outputs, _ = model.apply(model.init(KEY, inputs), inputs, train=True, mask=jnp.ones(32, bool))
    assert set(outputs) == {"sum", "all"}
    np.testing.assert_array_equal(outputs["all"], ROWS[:, :5])
    np.testing.assert_allclose(outputs["sum"], network(inputs)["sum"], rtol=1e-5)


# Policies


def test_a_mixed_policy_computes_in_its_dtype():
    policy = keras.DTypePolicy("mixed_bfloat16")
    network = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, dtype=policy), layers.BatchNormalization(dtype=policy)]
    )
    model = from_keras(network)
    variables = model.init(KEY, ROWS)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    outputs, stats = model.apply(variables, ROWS, train=True, mask=jnp.ones(32, bool))
    assert outputs.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    theirs, _ = network.stateless_call(
        [v.value for v in network.trainable_variables],
        [v.value for v in network.non_trainable_variables],
        ROWS,
        training=True,
    )
    np.testing.assert_allclose(outputs.astype(float), theirs.astype(float), rtol=0.02, atol=0.02)


# Summary and export


def test_a_summary_has_the_parameters_of_keras():
    network = functional()
    table = jaxdl.summary(from_keras(network), ROWS)
    assert table.parameters == network.count_params()
    assert {layer.name for layer in table.layers} >= {"sequential/dense", "batch_normalization", "dense_1"}


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (functional, ROWS),
        (
            lambda: keras.Sequential(
                [
                    keras.Input((8, 8, 3)),
                    layers.Conv2D(4, 3, activation="relu"),
                    layers.MaxPooling2D(),
                    layers.Flatten(),
                    layers.Dropout(0.5),
                    layers.Dense(2),
                ]
            ),
            RANDOM.uniform(0, 1, (5, 8, 8, 3)).astype(np.float32),
        ),
    ],
    ids=["functional", "images"],
)
def test_an_exported_model_predicts_what_keras_predicts(make, inputs, tmp_path):
    network = make()
    model = from_keras(network)
    variables = model.init(KEY, inputs)
    expected = network.predict(inputs, verbose=0)
    exported = inference(model, variables, inputs)
    np.testing.assert_allclose(exported.call(inputs), expected, rtol=1e-4, atol=1e-5)
    save_model(tmp_path / "model", model, variables, inputs)
    outputs, _ = load_model(tmp_path / "model", variables).apply(variables, inputs[:3], train=False)
    np.testing.assert_allclose(outputs, expected[:3], rtol=1e-4, atol=1e-5)
    folder = export_model(tmp_path / "exported", model, variables, inputs)
    assert (folder / "model.stablehlo").is_file()


# Refusals


def test_regularizers_losses_and_constraints_are_refused_by_name():
    decayed = sequential(layers.Dense(3, kernel_regularizer="l2"))
    with pytest.raises(InputError, match=r"regularizes dense/kernel \(L2\), .*optax.add_decayed_weights.*drop_losses"):
        from_keras(decayed)
    from_keras(decayed, drop_losses=True)
    with pytest.raises(InputError, match=r"regularizes the activity of dense\w* \(L1\)"):
        from_keras(sequential(layers.Dense(3, activity_regularizer="l1")))
    bound = sequential(layers.Dense(3, kernel_constraint="non_neg"))
    with pytest.raises(InputError, match=r"constrains dense/kernel \(NonNeg\), .*drop_constraints=True"):
        from_keras(bound)
    from_keras(bound, drop_constraints=True)
    # What is not trained has neither.
    decayed.layers[0].trainable = False
    from_keras(decayed)


def test_the_line_that_the_message_gives_is_the_gradient_of_the_regularizer():
    network = keras.Sequential([keras.Input((6,)), layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.01))])

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    optimizer = optax.chain(optax.add_decayed_weights(2 * 0.01, mask=kernels), optax.sgd(1e-2))
    model = from_keras(network, drop_losses=True)
    state = make_train_state(model.init(KEY, ROWS), optimizer, KEY)
    network.compile(optimizer=keras.optimizers.SGD(1e-2), loss="mse")
    step = jax.jit(make_train_step(model, squared_error, optimizer))
    for _ in range(3):
        state, _ = step(state, DATA)
        network.train_on_batch(ROWS, TARGETS)
    assert_close(put_back(network, state.variables), values_of(network), rtol=1e-4)


def test_losses_that_a_call_adds_are_refused():
    class Adding(layers.Layer):
        def call(self, inputs):
            self.add_loss(keras.ops.mean(inputs))
            return inputs

    network = sequential(Adding())
    model = from_keras(network)
    variables = model.init(KEY, ROWS)
    with pytest.raises(InputError, match="adds losses in its call"):
        model.apply(variables, ROWS, train=True)
    model.apply(variables, ROWS, train=False)
    from_keras(network, drop_losses=True).apply(variables, ROWS, train=True)
    assert not any(isinstance(loss, jax.core.Tracer) for loss in network.losses)


def test_state_between_batches_is_refused():
    network = keras.Sequential([keras.Input(batch_shape=(4, 3, 2)), layers.LSTM(2, stateful=True, name="memory")])
    with pytest.raises(InputError, match="the layer memory is stateful"):
        from_keras(network)


def test_metrics_inside_of_layers_are_refused():
    class Measuring(layers.Layer):
        def __init__(self):
            super().__init__()
            self.mean = keras.metrics.Mean()

        def call(self, inputs):
            self.mean.update_state(inputs)
            return inputs

    model = from_keras(sequential(Measuring()))
    with pytest.raises(InputError, match=r"changes a variable in its call that is not among model.variables"):
        model.apply(model.init(KEY, ROWS), ROWS, train=True)


def test_anything_but_a_keras_model_is_refused():
    for value, message in {
        keras.Sequential: "got the class Sequential. Give Sequential",
        Subclassed: "got the class Subclassed. Give Subclassed",
        print: "got the built-in|got .*print",
    }.items():
        with pytest.raises(InputError, match=message):
            from_keras(value)
    with pytest.raises(InputError, match=r"got the Keras object Dense. Give keras.Sequential\(\[layer\]\)"):
        from_keras(layers.Dense(1))
    with pytest.raises(InputError, match="from_keras needs a Keras model, got"):
        from_keras(jaxdl.mlp(()))
    with pytest.raises(InputError, match="to_keras needs a Keras model, got"):
        to_keras(jaxdl.mlp(()), Variables({}, {}))
    with pytest.raises(InputError, match="Variables"):
        to_keras(plain(), {})
    with pytest.raises(InputError, match=r"Use from_keras\(model\)"):
        jaxdl.fit(plain(), squared_error, optax.sgd(0.1), DATA)


def test_another_backend_and_a_missing_keras_are_named(monkeypatch):
    network = plain()
    with monkeypatch.context() as patch:
        patch.setattr(keras.config, "backend", lambda: "torch")
        with pytest.raises(InputError, match=r"JAX backend, got torch. Type export KERAS_BACKEND=jax"):
            from_keras(network)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="Keras is not installed: type pip install keras"):
        from_keras(3)
    assert "keras" in sys.modules


def test_a_small_network_of_the_applications_trains_as_keras_does():
    network = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, classes=3, classifier_activation=None
    )
    images, labels = RANDOM.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32), np.array([0, 2], np.int32)
    model = from_keras(network)
    state = make_train_state(model.init(KEY, images), optax.sgd(1e-2), KEY)
    state, sums = jax.jit(make_train_step(model, softmax_cross_entropy, optax.sgd(1e-2)))(
        state, dataset(images, labels)
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer=keras.optimizers.SGD(1e-2), loss=loss)
    assert float(sums.totals["loss"] / 2) == pytest.approx(float(network.train_on_batch(images, labels)), rel=1e-3)
    names = [weight.path.rpartition("/")[2] for weight in network.weights]
    for name, ours, theirs in zip(names, put_back(network, state.variables), values_of(network), strict=True):
        if name.startswith("moving"):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_same_model_again_compiles_nothing(compilations):
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="relu"), keras.layers.Dense(1)])
    inputs = np.linspace(-1, 1, 64, dtype=np.float32).reshape(16, 4)
    data = jaxdl.dataset(inputs, inputs[:, :1])

    def train():
        model = jaxdl.from_keras(network)
        return jaxdl.fit(model, squared_error, optax.sgd(0.1), data, epochs=1, batch_size=8)

    first = train()
    with compilations() as names:
        again = train()
    assert names == [] and again.records == first.records
    jaxdl.to_keras(network, first.final)
    with compilations() as names:
        later = train()
    # From the values that the Keras model has now.
    assert names == [] and later.records[0]["loss"] < first.records[0]["loss"]
