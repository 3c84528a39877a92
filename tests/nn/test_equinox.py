"""Equinox modules as Models: against plain loops in Equinox's own idiom."""

import sys

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxdl
from jaxdl import InputError, Variables, dataset, fit, fit_seeds, from_equinox, load, predict, save, summary, to_equinox
from jaxdl.distributed import make_mesh, shard_dataset
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


class Normed(eqx.Module):
    """Normalizes, hides, and returns outputs and state."""

    norm: eqx.nn.BatchNorm
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key, mode="batch"):
        keys = jax.random.split(key)
        self.norm = eqx.nn.BatchNorm(3, axis_name="rows", momentum=0.9, mode=mode)
        self.hidden, self.out = eqx.nn.Linear(3, 5, key=keys[0]), eqx.nn.Linear(5, 1, key=keys[1])

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return self.out(jnp.tanh(self.hidden(x))), state


class Noisy(eqx.Module):
    hidden: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.hidden, self.out = eqx.nn.Linear(3, 16, key=keys[0]), eqx.nn.Linear(16, 1, key=keys[1])
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x, *, key=None):
        return self.out(self.dropout(jax.nn.relu(self.hidden(x)), key=key))


class Images(eqx.Module):
    """A ConvNet with BatchNorm and dropout: (1, 6, 6) to 2 logits."""

    layers: eqx.nn.Sequential

    def __init__(self, key):
        keys = jax.random.split(key)
        self.layers = eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(1, 4, 3, use_bias=False, key=keys[0]),
                eqx.nn.BatchNorm(4, axis_name="batch", momentum=0.9, mode="ema"),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.MaxPool2d(2, 2),
                eqx.nn.Lambda(jnp.ravel),
                eqx.nn.Dropout(0.2),
                eqx.nn.Linear(16, 2, key=keys[1]),
            ]
        )

    def __call__(self, x, state, *, key=None):
        return self.layers(x, state, key=key)


def make_linear(key):
    return eqx.nn.Linear(3, 1, key=key)


def make_normed(key):
    return Normed(key)


def make_noisy(key):
    return Noisy(key)


def call_batch(module, state, rows, axis="rows"):
    """Return the outputs and the new state as an Equinox user computes them."""
    return jax.vmap(module, in_axes=(0, None), out_axes=(0, None), axis_name=axis)(rows, state)


def clone(state):
    return jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(state))


def close(one, other, rtol=1e-5, atol=1e-6):
    """Check that two trees hold the same numbers up to rounding."""
    leaves = [jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (one, other)]
    assert len(leaves[0]) == len(leaves[1])
    for left, right in zip(*leaves, strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=atol)


# Against Equinox


def test_a_module_predicts_what_equinox_computes():
    module = eqx.nn.MLP(3, 2, width_size=4, depth=2, key=KEY)
    model = from_equinox(module)
    variables = model.init(jax.random.key(9), ROWS)
    assert variables.stats == {} and set(variables.params["layers"]["1"]) == {"weight", "bias"}
    outputs, stats = model.apply(variables, ROWS, train=False, mask=jnp.ones(len(ROWS), bool))
    np.testing.assert_allclose(outputs, jax.vmap(module)(ROWS), rtol=1e-6)
    assert stats is variables.stats
    np.testing.assert_allclose(predict(model, variables, ROWS), outputs, rtol=1e-6)


def test_gradients_are_those_of_equinox():
    module, state = eqx.nn.make_with_state(Normed)(KEY)
    model = from_equinox((module, state))
    variables = model.init(KEY, ROWS)

    def loss(params):
        outputs, _ = model.apply(Variables(params, variables.stats), ROWS, train=True, mask=jnp.ones(len(ROWS), bool))
        return jnp.mean((outputs - DATA.targets) ** 2)

    @eqx.filter_value_and_grad
    def direct(module):
        return jnp.mean((call_batch(module, clone(state), ROWS)[0] - DATA.targets) ** 2)

    value, grads = jax.value_and_grad(loss)(variables.params)
    expected, direct_grads = direct(module)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for name in ("norm", "hidden", "out"):
        for field in ("weight", "bias"):
            np.testing.assert_allclose(
                grads[name][field], getattr(getattr(direct_grads, name), field), rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_ten_steps_are_those_of_a_loop_in_equinox(mode):
    def make(key):
        return Normed(key, mode)

    model = from_equinox(make)
    start = model.init(KEY, ROWS)
    run = fit(model, squared_error, ADAM, DATA, epochs=10, batch_size=len(ROWS), variables=start)
    trained, trained_state = to_equinox(make, run.final)
    module, state = eqx.nn.make_with_state(make)(KEY)
    opt_state = ADAM.init(eqx.filter(module, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(module, state, opt_state):
        @eqx.filter_value_and_grad(has_aux=True)
        def loss(module, state):
            outputs, state = call_batch(module, state, ROWS)
            return jnp.mean((outputs - DATA.targets) ** 2), state

        (value, state), grads = loss(module, state)
        updates, opt_state = ADAM.update(grads, opt_state, eqx.filter(module, eqx.is_inexact_array))
        return eqx.apply_updates(module, updates), state, opt_state, value

    losses = []
    for _ in range(10):
        module, state, opt_state, value = step(module, state, opt_state)
        losses.append(value)
    np.testing.assert_allclose(run.history["loss"], losses, rtol=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    close(trained, module, rtol=1e-4, atol=1e-5)
    close(trained_state, state, rtol=1e-4, atol=1e-5)


def test_predictions_in_inference_mode_are_those_of_equinox():
    run = fit(from_equinox(make_normed), squared_error, ADAM, DATA, epochs=3, batch_size=4)
    module, state = to_equinox(make_normed, run.final)
    expected, _ = call_batch(eqx.nn.inference_mode(module), state, ROWS)
    np.testing.assert_allclose(predict(from_equinox(make_normed), run.final, ROWS), expected, rtol=1e-5)
    assert int(run.final.stats["norm"]["batch_counter"]) == 9


# Padding


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_a_batch_norm_leaves_padding_out(mode):
    module, state = eqx.nn.make_with_state(Normed)(KEY, mode)
    model = from_equinox((module, state))
    variables, mask = model.init(KEY, ROWS), jnp.arange(len(ROWS)) < 8
    for _ in range(2):
        expected, state = call_batch(module, state, ROWS[:8])
        outputs, stats = model.apply(variables, ROWS, train=True, mask=mask)
        variables = variables._replace(stats=stats)
        np.testing.assert_allclose(outputs[:8], expected, rtol=1e-4, atol=1e-6)
        _, new_state = to_equinox((module, state), variables)
        close(new_state, state)


def test_a_batch_norm_of_images_leaves_padding_out():
    images = RANDOM.normal(1, 2, (6, 1, 6, 6)).astype(np.float32)
    module, state = eqx.nn.make_with_state(Images)(KEY)
    module = eqx.tree_at(lambda tree: tree.layers.layers[5].p, module, 0.0)
    model = from_equinox((module, state))
    variables = model.init(KEY, images)
    outputs, stats = model.apply(variables, images, train=True, mask=jnp.arange(6) < 4)
    expected, new_state = call_batch(module, clone(state), images[:4], "batch")
    np.testing.assert_allclose(outputs[:4], expected, rtol=1e-4, atol=1e-5)
    close(to_equinox((module, state), variables._replace(stats=stats))[1], new_state)


def test_examples_without_weight_change_nothing():
    weights = np.where(np.arange(len(ROWS)) < 8, 1, 0).astype(np.float32)
    model, few = from_equinox(make_normed), dataset(ROWS[:8], DATA.targets[:8])
    weighted = dataset(ROWS, DATA.targets, weights)
    one = fit(model, squared_error, ADAM, weighted, epochs=4, batch_size=12)
    two = fit(model, squared_error, ADAM, few, epochs=4, batch_size=8)
    np.testing.assert_allclose(one.history, two.history, rtol=1e-5)
    close(one.final, two.final, rtol=1e-4, atol=1e-5)


def test_padding_on_several_devices_changes_nothing():
    # 8 devices: the batches of 8 and of 4 rows, the second half padding.
    model, mesh = from_equinox(make_normed), make_mesh()
    one = fit(model, squared_error, ADAM, DATA, epochs=3, batch_size=8)
    many = fit(model, squared_error, ADAM, shard_dataset(DATA, mesh), epochs=3, batch_size=8)
    np.testing.assert_allclose(many.history, one.history, rtol=1e-4)
    close(many.final, one.final, rtol=1e-3, atol=1e-5)


def test_a_batch_without_examples_gives_finite_values():
    model = from_equinox(make_normed)
    outputs, stats = model.apply(model.init(KEY, ROWS), ROWS, train=True, mask=jnp.zeros(len(ROWS), bool))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((outputs, stats)))


class Counting(eqx.Module):
    """Counts the examples that it was trained with, in state of its own."""

    index: eqx.nn.StateIndex
    linear: eqx.nn.Linear

    def __init__(self, key):
        self.index, self.linear = eqx.nn.StateIndex(jnp.zeros(())), eqx.nn.Linear(3, 1, key=key)

    def __call__(self, x, state, *, mask=True):
        more = jax.lax.psum(jnp.asarray(mask, jnp.float32), "batch")
        return self.linear(x), state.set(self.index, state.get(self.index) + more)


class Branched(eqx.Module):
    norm: eqx.nn.BatchNorm
    counting: Counting

    def __init__(self, key):
        self.norm, self.counting = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch"), Counting(key)

    def __call__(self, x, state, mask=True):
        x, state = self.norm(x, state)
        return self.counting(x, state, mask=mask)


def test_state_of_other_layers_needs_a_mask():
    with pytest.raises(InputError, match=r'Branched has state at counting/index.*mask="mask"'):
        from_equinox(lambda key: Branched(key))
    model = from_equinox(lambda key: Branched(key), mask="mask")
    variables = model.init(KEY, ROWS)
    _, stats = model.apply(variables, ROWS, train=True, mask=jnp.arange(len(ROWS)) < 8)
    assert stats["counting"]["index"] == 8
    assert model.apply(variables, ROWS, train=False)[1]["counting"]["index"] == 0


def test_a_subclass_of_batch_norm_needs_a_mask():
    class Other(eqx.nn.BatchNorm):
        pass

    with pytest.raises(InputError, match="Other has state at batch_counter"):
        from_equinox(lambda key: Other(3, axis_name="batch", mode="batch"))


def test_spectral_norms_need_no_mask():
    class Net(eqx.Module):
        layer: eqx.nn.SpectralNorm

        def __init__(self, key):
            self.layer = eqx.nn.SpectralNorm(eqx.nn.Linear(3, 4, key=key), "weight", key=key)

        def __call__(self, x, state):
            return self.layer(x, state)

    model = from_equinox(lambda key: Net(key))
    variables = model.init(KEY, ROWS)
    _, stats = model.apply(variables, ROWS, train=True, mask=jnp.arange(len(ROWS)) < 8)
    assert set(stats["layer"]) == {"uv_index_0", "uv_index_1"}
    assert not np.array_equal(stats["layer"]["uv_index_1"], variables.stats["layer"]["uv_index_1"])


# Random layers


def test_dropout_is_a_function_of_the_key_and_differs_for_each_example():
    model, ones = from_equinox(eqx.nn.Dropout(0.5)), np.ones((16, 16), np.float32)
    variables = model.init(KEY, ones)
    assert variables == Variables({}, {})

    def draw(key):
        return np.asarray(model.apply(variables, ones, train=True, key=key)[0])

    first, second = (jax.random.fold_in(KEY, step) for step in (0, 1))
    np.testing.assert_array_equal(draw(first), draw(first))
    assert not np.array_equal(draw(first), draw(second))
    assert len(np.unique(draw(first), axis=0)) == 16
    expected = jax.vmap(lambda x, key: eqx.nn.Dropout(0.5)(x, key=key))(ones, jax.random.split(first, 16))
    np.testing.assert_array_equal(draw(first), expected)
    for key in (None, first):
        np.testing.assert_array_equal(model.apply(variables, ones, train=False, key=key)[0], ones)


def test_a_resumed_run_with_dropout_is_bit_identical():
    model = from_equinox(make_noisy)
    whole = fit(model, squared_error, ADAM, DATA, epochs=4, batch_size=8)
    half = fit(model, squared_error, ADAM, DATA, epochs=2, batch_size=8)
    rest = fit(model, squared_error, ADAM, DATA, epochs=4, batch_size=8, state=half)
    assert bits(rest.final) == bits(whole.final)
    np.testing.assert_array_equal(rest.history, whole.history)


def test_a_module_that_draws_without_a_key_is_named():
    class Sampling(eqx.Module):
        def __call__(self, x, *, key):
            return x + jax.random.normal(key, x.shape)

    model = from_equinox(Sampling())
    assert model.apply(Variables({}, {}), ROWS, train=True, key=KEY)[0].shape == ROWS.shape
    with pytest.raises(InputError, match="Sampling draws random numbers where no key is given"):
        model.apply(Variables({}, {}), ROWS, train=False)


def test_layers_that_are_in_inference_mode_stay_in_it():
    frozen = eqx.nn.inference_mode(Noisy(KEY))
    model = from_equinox(frozen)
    variables = model.init(KEY, ROWS)
    outputs, _ = model.apply(variables, ROWS, train=True, key=KEY)
    np.testing.assert_array_equal(outputs, model.apply(variables, ROWS, train=False)[0])


@pytest.mark.parametrize(("name", "inverted"), [("enable_dropout", False), ("inference", True)])
def test_a_switch_of_the_call_follows_the_training_mode(name, inverted):
    class Net(eqx.Module):
        pass

    exec(f"def call(self, x, {name}={inverted}): return x * {name}", space := {})
    Net.__call__ = space["call"]
    model = from_equinox(Net())
    for train in (False, True):
        outputs, _ = model.apply(Variables({}, {}), ROWS, train=train)
        np.testing.assert_array_equal(outputs, ROWS * (train != inverted))


# Initial values, files and tables


def test_a_function_draws_for_each_seed_and_a_module_starts_from_its_arrays():
    module = make_linear(KEY)
    seeds = {"seeds": (0, 1), "epochs": 2, "batch_size": 4, "method": "map"}
    drawn = fit_seeds(from_equinox(make_linear), squared_error, optax.sgd(0.0), DATA, **seeds)
    assert not np.array_equal(*drawn.final.params["weight"])
    given = fit_seeds(from_equinox(module), squared_error, optax.sgd(0.0), DATA, **seeds)
    for weight in given.final.params["weight"]:
        np.testing.assert_array_equal(weight, module.weight)


def test_seeds_together_are_the_runs_alone():
    model = from_equinox(make_normed)
    runs = fit_seeds(model, squared_error, ADAM, DATA, epochs=3, batch_size=4, seeds=(0, 1))
    for member in (0, 1):
        alone = fit(model, squared_error, ADAM, DATA, epochs=3, batch_size=4, seed=member)
        history = runs.history[runs.history["member"] == member]["loss"]
        np.testing.assert_allclose(history, alone.history["loss"], rtol=1e-3)


def test_variables_come_back_from_a_file(tmp_path):
    module, state = eqx.nn.make_with_state(Images)(KEY)
    images = RANDOM.normal(0, 1, (5, 1, 6, 6)).astype(np.float32)
    model = from_equinox((module, state))
    _, stats = model.apply(model.init(KEY, images), images, train=True, key=KEY)
    variables = model.init(KEY, images)._replace(stats=stats)
    save(tmp_path / "net", variables)
    restored = load(tmp_path / "net")
    assert jax.tree.structure(restored) == jax.tree.structure(variables) and bits(restored) == bits(variables)
    trained, trained_state = to_equinox((module, state), restored)
    expected, _ = call_batch(eqx.nn.inference_mode(trained), trained_state, images, "batch")
    np.testing.assert_allclose(predict(model, restored, images), expected, rtol=1e-5, atol=1e-6)


def test_a_module_comes_back_with_its_own_types():
    module = Noisy(KEY)
    variables = from_equinox(module).init(KEY, ROWS)
    again = to_equinox(module, variables)
    assert eqx.tree_equal(again, module)
    other = to_equinox(module, jax.tree.map(lambda leaf: leaf + 1, variables))
    np.testing.assert_array_equal(other.out.bias, module.out.bias + 1)


def test_arrays_that_are_not_floating_are_stats():
    class Selecting(eqx.Module):
        columns: jax.Array
        linear: eqx.nn.Linear

        def __init__(self, key):
            self.columns, self.linear = jax.random.permutation(key, 3)[:2], eqx.nn.Linear(2, 1, key=key)

        def __call__(self, x):
            return self.linear(x[self.columns])

    def make(key):
        return Selecting(key)

    model = from_equinox(make)
    run = fit(model, squared_error, ADAM, DATA, epochs=2, batch_size=4, ema_decay=0.9)
    module = to_equinox(make, run.final)
    assert set(run.final.stats) == {"columns"} and module.columns.dtype == jnp.int32
    np.testing.assert_allclose(predict(model, run.final, ROWS), jax.vmap(module)(ROWS), rtol=1e-6)


def test_the_summary_lists_the_layers():
    table = summary(from_equinox(make_normed), jnp.ones((1, 3)))
    assert [(layer.name, layer.trained, layer.moving) for layer in table.layers] == [
        ("hidden", 20, 0),
        ("norm", 6, 7),
        ("out", 6, 0),
    ]


def test_an_exported_module_predicts_the_same(tmp_path):
    model = from_equinox(make_normed)
    run = fit(model, squared_error, ADAM, DATA, epochs=2, batch_size=4)
    folder = export_model(tmp_path / "net", model, run.final, ROWS)
    np.testing.assert_allclose(
        predict_script.load(folder).predict(ROWS), predict(model, run.final, ROWS), rtol=1e-5, atol=1e-6
    )


def test_a_convnet_with_batch_norm_trains():
    labels = np.arange(48) % 2
    images = RANDOM.normal(0, 1, (48, 1, 6, 6)).astype(np.float32)
    images[labels == 1] += np.linspace(0, 2, 6, dtype=np.float32)
    model = from_equinox(lambda key: Images(key))
    run = fit(model, softmax_cross_entropy, ADAM, dataset(images, labels), epochs=12, batch_size=16)
    outputs = predict(model, run.final, images)
    assert run.history["loss"].iloc[-1] < 0.5 * run.history["loss"].iloc[0]
    assert np.mean(np.argmax(outputs, 1) == labels) > 0.9


# Models as values


def test_two_models_of_one_module_are_equal():
    module, other = make_linear(KEY), make_linear(KEY)
    assert from_equinox(module) == from_equinox(module) and hash(from_equinox(module)) == hash(from_equinox(module))
    assert from_equinox(module) != from_equinox(other)
    assert from_equinox(make_linear) == from_equinox(make_linear) != from_equinox(make_noisy)
    pair = eqx.nn.make_with_state(Normed)(KEY)
    assert from_equinox(pair) == from_equinox((*pair,))
    plans = [make_plan(from_equinox(module), squared_error, ADAM) for _ in range(2)]
    assert plans[0] == plans[1] and hash(plans[0]) == hash(plans[1])


# Errors


class LinenNet(nn.Module):
    def __call__(self, inputs):
        return inputs


class TwoInputs(eqx.Module):
    def __call__(self, x, y, /):
        return x + y


class MaskedInput(eqx.Module):
    def __call__(self, x, mask):
        return x * mask


class Doubled(eqx.Module):
    moments: eqx.nn.StateIndex
    moments_0: jax.Array

    def __init__(self):
        self.moments, self.moments_0 = eqx.nn.StateIndex((jnp.zeros(1), jnp.ones(1))), jnp.zeros(1, jnp.int32)

    def __call__(self, x, state):
        return x, state


class Silent(eqx.Module):
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")

    def __call__(self, x):
        return x


class TwoAxes(eqx.Module):
    norms: list

    def __init__(self):
        self.norms = [eqx.nn.BatchNorm(3, axis_name=name, mode="batch") for name in ("batch", "rows")]

    def __call__(self, x, state):
        return x, state


class Fields(eqx.Module):
    size: int = 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Noisy, r"got Noisy\. Write from_equinox\(lambda key: Noisy\(\.\.\., key=key\)\)"),
        (lambda: LinenNet(), r"got LinenNet\. Use from_linen\(module\)"),
        (lambda: nnx.Linear, r"got Linear\. Use from_nnx\(lambda rngs: module\)"),
        (lambda: hk.transform(lambda x: x), r"got Transformed\. Use from_haiku"),
        (lambda: None, r"got NoneType\. Write from_equinox\(lambda key: Net\("),
        (lambda: lambda key: key, "a function of a key that returns an Equinox module, got"),
        (
            lambda: eqx.nn.make_with_state(Normed)(KEY)[0],
            r"Normed comes without its state\. Write from_equinox\(\(module, state",
        ),
        (
            lambda: (eqx.nn.make_with_state(Normed)(KEY)[0], eqx.nn.make_with_state(Images)(KEY)[1]),
            "the state has no values of norm/",
        ),
        (lambda: TwoInputs(), r"TwoInputs.__call__ takes x, y by position only"),
        (lambda: Silent(), r"Silent holds state, and its __call__ must take state"),
        (lambda: MaskedInput(), r'MaskedInput.__call__ needs mask\. Write from_equinox\(module, mask="mask"\)'),
        (lambda: Doubled(), r"Doubled holds two arrays of the name moments_0\. Rename one"),
        (lambda: TwoAxes(), r"must have one axis_name, that of the batch, got batch, rows"),
        (lambda: Fields(), "Fields, which has none"),
        (lambda: jaxdl.mlp(()), "got a Model"),
    ],
)
def test_what_is_no_module_is_refused(make, words):
    original = make()
    with pytest.raises(InputError, match=words):
        from_equinox(original)


def test_a_switch_that_nothing_would_set_is_refused():
    class Net(eqx.Module):
        def __call__(self, x, noisy=True):
            return x

    with pytest.raises(InputError, match=r'Net.__call__ takes noisy, .*from_equinox\(module, train="noisy"\)'):
        from_equinox(Net())
    assert from_equinox(Net(), train=None).apply(Variables({}, {}), ROWS, train=True)[0].shape == ROWS.shape


def test_a_module_that_returns_no_state_is_refused():
    class Net(eqx.Module):
        norm: eqx.nn.BatchNorm

        def __init__(self):
            self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")

        def __call__(self, x, state):
            return self.norm(x, state)[0]

    model = from_equinox(Net())
    with pytest.raises(InputError, match=r"takes state, and must return \(outputs, state\)"):
        model.apply(model.init(KEY, ROWS), ROWS, train=True)


def test_variables_of_another_module_are_refused():
    module = make_linear(KEY)
    variables = from_equinox(module).init(KEY, ROWS)
    with pytest.raises(InputError, match=r"one Linear, got nothing at bias, where the module has float32\[1\]"):
        to_equinox(module, Variables({"weight": variables.params["weight"]}, {}))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), variables)
    with pytest.raises(InputError, match=r"got float32\[2, 1, 3\] at weight"):
        to_equinox(module, stacked)


def test_variables_without_an_array_are_refused():
    with pytest.raises(InputError, match="variables must be those of one Linear, got no weight"):
        from_equinox(make_linear).apply(Variables({"bias": np.zeros(1, np.float32)}, {}), ROWS, train=False)


def test_calls_of_the_original_do_not_use_up_the_state():
    pair = eqx.nn.make_with_state(Normed)(KEY)
    model = from_equinox(pair)
    before = bits(model.init(KEY, ROWS))
    pair[1].set(pair[0].norm.batch_counter, jnp.array(1))
    with pytest.raises(ValueError, match="old state"):
        jax.tree.leaves(pair[1])
    assert bits(model.init(KEY, ROWS)) == before


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    for call in (lambda: from_equinox(None), lambda: to_equinox(None, Variables({}, {}))):
        with pytest.raises(InputError, match=r"needs the package equinox\. Write pip install equinox"):
            call()


def test_a_module_that_is_made_again_compiles_nothing(compilations):
    def train(seed=0):
        module = eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(seed))
        return fit(from_equinox(module), squared_error, optax.sgd(0.1), DATA, epochs=1, batch_size=4)

    first = train()
    with compilations() as names:
        again = train()
    assert names == [] and again.records == first.records
    assert train(seed=1).records != first.records
