"""Haiku networks as Models: against plain loops in Haiku's own idiom."""

import sys

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdl
from jaxdl import InputError, Variables, dataset, fit, fit_seeds, from_haiku, load, predict, save, summary
from jaxdl.losses import softmax_cross_entropy, squared_error
from jaxdl.saving import predict_script
from jaxdl.saving.export import export_model
from jaxdl.train import make_plan
from tests.bits import bits

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(2, 3, (12, 3)).astype(np.float32)
DATA = dataset(ROWS, np.sin(ROWS.sum(1, keepdims=True)))
ADAM = optax.adam(1e-2)


def normed(inputs, is_training):
    hidden = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(inputs, is_training)
    return hk.Linear(1)(jnp.tanh(hk.Linear(5)(hidden)))


def noisy(inputs, is_training):
    hidden = jax.nn.relu(hk.Linear(16)(inputs))
    if is_training:
        hidden = hk.dropout(hk.next_rng_key(), 0.5, hidden)
    return hk.Linear(1)(hidden)


def images(inputs, is_training):
    """A ConvNet with BatchNorm and dropout: (B, 6, 6, 1) to (B, 2)."""
    hidden = hk.Conv2D(4, 3, with_bias=False, padding="VALID")(inputs)
    hidden = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hidden, is_training))
    hidden = hk.Flatten()(hk.max_pool(hidden, (2, 2, 1), (2, 2, 1), "VALID"))
    if is_training:
        hidden = hk.dropout(hk.next_rng_key(), 0.2, hidden)
    return hk.Linear(2)(hidden)


NORMED, NOISY = hk.transform_with_state(normed), hk.transform(noisy)
NORMS = "batch_norm/~/mean_ema", "batch_norm/~/var_ema"


def close(one, other, rtol=1e-4, atol=1e-5):
    """Check that two trees hold the same numbers up to rounding."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=rtol, atol=atol), one, other)


# Against Haiku


def test_initial_values_and_predictions_are_those_of_haiku():
    model = from_haiku(NORMED)
    variables = model.init(KEY, ROWS)
    params, state = NORMED.init(KEY, ROWS, True)
    assert bits(variables) == bits(Variables(params, state))
    outputs, stats = model.apply(variables, ROWS, train=False, mask=jnp.ones(len(ROWS), bool))
    expected, _ = NORMED.apply(params, state, None, ROWS, is_training=False)
    np.testing.assert_array_equal(outputs, expected)
    assert stats is variables.stats
    np.testing.assert_allclose(predict(model, variables, ROWS), expected, rtol=1e-6)


def test_a_pair_without_state_needs_no_switch():
    network = hk.transform(lambda inputs: hk.nets.MLP((4, 1))(inputs))
    for pair in (network, hk.without_apply_rng(network)):
        model = from_haiku(pair)
        variables = model.init(KEY, ROWS)
        assert variables.stats == {}
        outputs, stats = model.apply(variables, ROWS, train=True, key=KEY)
        np.testing.assert_array_equal(outputs, network.apply(variables.params, None, ROWS))
        assert stats == {}


def test_gradients_are_those_of_haiku():
    model = from_haiku(NORMED)
    params, state = model.init(KEY, ROWS)

    def loss(params):
        outputs, _ = model.apply(Variables(params, state), ROWS, train=True, mask=jnp.ones(len(ROWS), bool))
        return jnp.mean((outputs - DATA.targets) ** 2)

    def direct(params):
        return jnp.mean((NORMED.apply(params, state, None, ROWS, True)[0] - DATA.targets) ** 2)

    close(jax.value_and_grad(loss)(params), jax.value_and_grad(direct)(params))


def test_ten_steps_are_those_of_a_loop_in_haiku():
    model = from_haiku(NORMED)
    start = model.init(KEY, ROWS)
    run = fit(model, squared_error, ADAM, DATA, epochs=10, batch_size=len(ROWS), variables=start)

    @jax.jit
    def step(params, state, opt_state):
        def loss(params):
            outputs, new_state = NORMED.apply(params, state, None, ROWS, True)
            return jnp.mean((outputs - DATA.targets) ** 2), new_state

        (value, new_state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = ADAM.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_state, opt_state, value

    params, state = NORMED.init(KEY, ROWS, True)
    opt_state, losses = ADAM.init(params), []
    for _ in range(10):
        params, state, opt_state, value = step(params, state, opt_state)
        losses.append(value)
    np.testing.assert_allclose(run.history["loss"], losses, rtol=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    close(run.final, Variables(params, state))
    # The result is Haiku's own.
    expected, _ = NORMED.apply(*run.final, None, ROWS, False)
    np.testing.assert_allclose(predict(model, run.final, ROWS), expected, rtol=1e-5)


# Padding


def test_a_batch_norm_leaves_padding_out():
    model = from_haiku(NORMED)
    variables, mask = model.init(KEY, ROWS), jnp.arange(len(ROWS)) < 8
    for _ in range(2):
        expected, state = NORMED.apply(*variables, None, ROWS[:8], True)
        outputs, stats = model.apply(variables, ROWS, train=True, mask=mask)
        np.testing.assert_allclose(outputs[:8], expected, rtol=1e-4, atol=1e-6)
        close(stats, state)
        variables = variables._replace(stats=stats)


@pytest.mark.parametrize("axis", [None, (0, 1, 2), (0,)], ids=str)
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_batch_norm_of_images_leaves_padding_out(axis, data_format):
    def forward(inputs, is_training):
        return hk.BatchNorm(False, True, 0.9, axis=axis, data_format=data_format)(inputs, is_training)

    transformed = hk.transform_with_state(forward)
    pictures = RANDOM.normal(1, 2, (6, 4, 4, 2)).astype(np.float32)
    model = from_haiku(transformed)
    variables = model.init(KEY, pictures)
    outputs, stats = model.apply(variables, pictures, train=True, mask=jnp.arange(6) < 4)
    expected, state = transformed.apply(*variables, None, pictures[:4], True)
    np.testing.assert_allclose(outputs[:4], expected, rtol=1e-4, atol=1e-5)
    close(stats, state)


def test_a_subclass_of_batch_norm_leaves_padding_out():
    class Doubled(hk.BatchNorm):
        def __call__(self, inputs, is_training):
            return 2 * super().__call__(inputs, is_training)

    transformed = hk.transform_with_state(lambda x, is_training: Doubled(True, True, 0.9)(x, is_training))
    model = from_haiku(transformed)
    variables = model.init(KEY, ROWS)
    outputs, stats = model.apply(variables, ROWS, train=True, mask=jnp.arange(len(ROWS)) < 8)
    expected, state = transformed.apply(*variables, None, ROWS[:8], True)
    np.testing.assert_allclose(outputs[:8], expected, rtol=1e-4, atol=1e-5)
    close(stats, state)


def test_examples_without_weight_change_nothing():
    weights = np.where(np.arange(len(ROWS)) < 8, 1, 0).astype(np.float32)
    model, few = from_haiku(NORMED), dataset(ROWS[:8], DATA.targets[:8])
    one = fit(model, squared_error, ADAM, dataset(ROWS, DATA.targets, weights), epochs=4, batch_size=12)
    two = fit(model, squared_error, ADAM, few, epochs=4, batch_size=8)
    np.testing.assert_allclose(one.history, two.history, rtol=1e-5)
    close(one.final, two.final)


def test_a_batch_without_examples_gives_finite_values():
    model = from_haiku(NORMED)
    outputs, stats = model.apply(model.init(KEY, ROWS), ROWS, train=True, mask=jnp.zeros(len(ROWS), bool))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((outputs, stats)))


def test_the_variance_of_a_feature_with_a_large_mean_is_that_of_numpy():
    inputs = (100 + 1e-2 * RANDOM.normal(0, 1, (64, 1))).astype(np.float32)
    model = from_haiku(hk.transform_with_state(lambda x, is_training: hk.BatchNorm(True, True, 0.9)(x, is_training)))
    _, stats = model.apply(model.init(KEY, inputs), inputs, train=True, mask=jnp.ones(64, bool))
    np.testing.assert_allclose(stats[NORMS[1]]["average"][0], inputs.astype(np.float64).var(0), rtol=1e-3)


def counting(inputs, mask=None):
    """Count the examples of the batches, without padding where it gets the mask."""
    count = hk.get_state("count", (), init=jnp.zeros)
    hk.set_state("count", count + (len(inputs) if mask is None else mask.sum()))
    return hk.Linear(1)(inputs)


def test_state_of_other_layers_needs_a_mask():
    def maskless(inputs):
        return counting(inputs)

    model = from_haiku(hk.transform_with_state(maskless))
    with pytest.raises(InputError, match=r"maskless has state at ~ that may count .*Let it take mask"):
        model.init(KEY, ROWS)
    model = from_haiku(hk.transform_with_state(counting))
    variables = model.init(KEY, ROWS)
    _, stats = model.apply(variables, ROWS, train=True, mask=jnp.arange(len(ROWS)) < 8)
    assert stats["~"]["count"] == 8
    assert model.apply(variables, ROWS, train=False)[1]["~"]["count"] == 0


def test_a_batch_norm_of_another_axis_is_refused():
    def forward(inputs, is_training):
        return hk.BatchNorm(True, True, 0.9)(inputs.T, is_training).T

    with pytest.raises(InputError, match="batch_norm normalizes inputs whose first axis is not that of the examples"):
        from_haiku(hk.transform_with_state(forward)).init(KEY, RANDOM.normal(0, 1, (3, 3)).astype(np.float32))


def test_a_batch_norm_over_mapped_axes_is_refused():
    def forward(inputs, is_training):
        return hk.BatchNorm(True, True, 0.9, cross_replica_axis="i")(inputs, is_training)

    model = from_haiku(hk.transform_with_state(forward))
    mapped = jax.vmap(
        lambda rows: model.apply(Variables({}, {}), rows, train=True, mask=jnp.ones(6, bool)), axis_name="i"
    )
    with pytest.raises(InputError, match="batch_norm has a cross_replica_axis"):
        mapped(ROWS.reshape(2, 6, 3))


# Random layers


def test_dropout_is_a_function_of_the_key():
    model = from_haiku(NOISY)
    variables = model.init(KEY, ROWS)

    def draw(key):
        return np.asarray(model.apply(variables, ROWS, train=True, key=key)[0])

    first, second = (jax.random.fold_in(KEY, step) for step in (0, 1))
    np.testing.assert_array_equal(draw(first), draw(first))
    assert not np.array_equal(draw(first), draw(second))
    np.testing.assert_array_equal(draw(first), NOISY.apply(variables.params, first, ROWS, True))
    predictions = [model.apply(variables, ROWS, train=False, key=key)[0] for key in (None, first)]
    np.testing.assert_array_equal(*predictions)


def test_a_resumed_run_with_dropout_is_bit_identical():
    model = from_haiku(NOISY)
    whole = fit(model, squared_error, ADAM, DATA, epochs=4, batch_size=8)
    half = fit(model, squared_error, ADAM, DATA, epochs=2, batch_size=8)
    rest = fit(model, squared_error, ADAM, DATA, epochs=4, batch_size=8, state=half)
    assert bits(rest.final) == bits(whole.final)
    np.testing.assert_array_equal(rest.history, whole.history)


def test_a_network_that_draws_without_a_key_is_named():
    model = from_haiku(hk.transform(lambda inputs: hk.dropout(hk.next_rng_key(), 0.5, inputs)))
    with pytest.raises(InputError, match="the lambda draws random numbers where no key is given"):
        model.apply(Variables({}, {}), ROWS, train=False)


@pytest.mark.parametrize(("name", "inverted"), [("train", False), ("training", False), ("deterministic", True)])
def test_the_switch_is_known_by_its_name(name, inverted):
    exec(f"def forward(inputs, *, {name}): return inputs * {name}", space := {})
    model = from_haiku(hk.transform(space["forward"]))
    for train in (False, True):
        outputs, _ = model.apply(Variables({}, {}), ROWS, train=train)
        np.testing.assert_array_equal(outputs, ROWS * (train != inverted))


def test_another_switch_is_named_by_the_caller():
    def forward(inputs, noise):
        return inputs * noise

    model = from_haiku(hk.transform(forward), train="noise")
    np.testing.assert_array_equal(model.apply(Variables({}, {}), ROWS, train=True)[0], ROWS)


# Seeds, files and tables


def test_seeds_together_are_the_runs_alone():
    model = from_haiku(NORMED)
    runs = fit_seeds(model, squared_error, ADAM, DATA, epochs=3, batch_size=4, seeds=(0, 1))
    for member in (0, 1):
        alone = fit(model, squared_error, ADAM, DATA, epochs=3, batch_size=4, seed=member)
        history = runs.history[runs.history["member"] == member]["loss"]
        np.testing.assert_allclose(history, alone.history["loss"], rtol=1e-3)


def test_variables_come_back_from_a_file(tmp_path):
    model = from_haiku(NORMED)
    run = fit(model, squared_error, ADAM, DATA, epochs=2, batch_size=4, ema_decay=0.9)
    save(tmp_path / "net", run.final)
    restored = load(tmp_path / "net")
    assert jax.tree.structure(restored) == jax.tree.structure(run.final) and bits(restored) == bits(run.final)
    np.testing.assert_array_equal(predict(model, restored, ROWS), predict(model, run.final, ROWS))


def test_the_summary_lists_the_layers():
    table = summary(from_haiku(NORMED), jnp.ones((1, 3)))
    assert [(layer.name, layer.trained, layer.moving) for layer in table.layers] == [
        ("batch_norm", 6, 0),
        (NORMS[0], 0, 7),
        (NORMS[1], 0, 7),
        ("linear", 6, 0),
        ("linear_1", 20, 0),
    ]


def test_an_exported_network_predicts_the_same(tmp_path):
    model = from_haiku(NORMED)
    run = fit(model, squared_error, ADAM, DATA, epochs=2, batch_size=4)
    folder = export_model(tmp_path / "net", model, run.final, ROWS)
    np.testing.assert_allclose(
        predict_script.load(folder).predict(ROWS), predict(model, run.final, ROWS), rtol=1e-5, atol=1e-6
    )


def test_a_convnet_with_batch_norm_trains():
    labels = np.arange(48) % 2
    pictures = RANDOM.normal(0, 1, (48, 6, 6, 1)).astype(np.float32)
    pictures[labels == 1] += np.linspace(0, 2, 6, dtype=np.float32)[:, None]
    model = from_haiku(hk.transform_with_state(images))
    run = fit(model, softmax_cross_entropy, ADAM, dataset(pictures, labels), epochs=12, batch_size=16)
    assert run.history["loss"].iloc[-1] < 0.5 * run.history["loss"].iloc[0]
    assert np.mean(np.argmax(predict(model, run.final, pictures), 1) == labels) > 0.9


# Models as values


def test_two_models_of_one_pair_are_equal():
    assert from_haiku(NORMED) == from_haiku(NORMED) and hash(from_haiku(NORMED)) == hash(from_haiku(NORMED))
    assert from_haiku(NORMED) != from_haiku(NOISY)
    assert from_haiku(NORMED) != from_haiku(hk.transform_with_state(normed))
    plans = [make_plan(from_haiku(NORMED), squared_error, ADAM) for _ in range(2)]
    assert plans[0] == plans[1] and hash(plans[0]) == hash(plans[1])


# Errors


class LinenNet(nn.Module):
    def __call__(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (normed, r"got function\. Write from_haiku\(hk.transform_with_state\(normed\)\)"),
        (
            hk.nets.MLP,
            r"got MLP\. Write from_haiku\(hk.transform_with_state\(lambda inputs: MLP\(\.\.\.\)\(inputs\)\)\)",
        ),
        (LinenNet(), r"got LinenNet\. Use from_linen\(module\)"),
        (eqx.nn.Identity(), r"got Identity\. Use from_equinox\(module\)"),
        (None, r"got NoneType\. Write from_haiku\(hk.transform_with_state\(forward\)\)"),
        (hk.multi_transform(lambda: (lambda x: x, lambda x: x)), "got MultiTransformed"),
        (jaxdl.mlp(()), "got Model"),
    ],
)
def test_what_is_no_pair_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        from_haiku(given)


def two_inputs(x, y, /):
    return x + y


def two_switches(x, is_training, deterministic):
    return x


def unnamed(x, noisy=True):
    return x


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (two_inputs, "two_inputs takes x, y by position only, and several inputs are given by name"),
        (two_switches, "two_switches takes is_training, which nothing would set"),
        (unnamed, r'unnamed takes noisy, which nothing would set. Write from_haiku\(transformed, train="noisy"\)'),
        (lambda *arrays, **options: arrays, r"the lambda takes \*\*keywords"),
        (lambda: 1, "the lambda takes no inputs"),
    ],
)
def test_what_stays_unset_is_refused(function, words):
    with pytest.raises(InputError, match=words):
        from_haiku(hk.transform(function))


def test_a_second_switch_is_refused():
    with pytest.raises(InputError, match=r"sets one of them\. Let it take train and set the others from it"):
        from_haiku(hk.transform(two_switches), train="is_training")


def attending(inputs, mask=None):
    """Take a mask of attention, (B, F)."""
    return inputs if mask is None else inputs * mask


def test_a_mask_of_another_shape_is_left_alone():
    model = from_haiku(hk.transform(attending))
    outputs, _ = model.apply(Variables({}, {}), ROWS, train=True, mask=jnp.zeros(len(ROWS), bool))
    np.testing.assert_array_equal(outputs, ROWS)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "haiku", None)
    with pytest.raises(InputError, match=r"needs the package dm-haiku\. Write pip install dm-haiku"):
        from_haiku(None)


def test_a_function_that_is_transformed_again_compiles_nothing(compilations):
    def train():
        model = from_haiku(hk.transform(lambda x: hk.nets.MLP([4, 1])(x)))
        return fit(model, squared_error, optax.sgd(0.1), DATA, epochs=1, batch_size=4)

    first = train()
    with compilations() as names:
        again = train()
    assert names == [] and again.records == first.records
