"""Flax modules as Models: against Flax called directly, and Linen against NNX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdl.adapters import from_linen, from_nnx, linen_calls
from jaxdl.data import examples
from jaxdl.errors import InputError
from jaxdl.fitting import fit
from jaxdl.objectives import rmse, squared_error
from jaxdl.passes import predict
from jaxdl.types import Objective, Weights
from jaxdl.weights import load, save

KEY = jax.random.key(0)
ROWS = np.random.default_rng(0).normal(2, 3, (12, 3)).astype(np.float32)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(2)(inputs)


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, inputs, *, train):
        return nn.Dropout(0.5, deterministic=not train)(inputs)


class OtherStream(nn.Module):
    """Draws from a stream of a name of its own."""

    @nn.compact
    def __call__(self, inputs, train=False):
        return inputs + jax.random.normal(self.make_rng("noise"), inputs.shape) if train else inputs


class Normed(nn.Module):
    @nn.compact
    def __call__(self, inputs, *, train=False, mask=None):
        mask = None if mask is None else mask[:, None]
        return nn.BatchNorm(use_running_average=not train, use_fast_variance=False)(inputs, mask=mask)


class Maskless(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=False):
        return nn.BatchNorm(use_running_average=not train)(inputs)


class Counting(nn.Module):
    """Keeps a collection that is neither parameters nor batch statistics."""

    @nn.compact
    def __call__(self, inputs, mask=None):
        seen = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing() and self.is_mutable_collection("counters"):
            seen.value = seen.value + 1
        return nn.Dense(1)(inputs)


# Linen


@pytest.mark.parametrize("module", [Plain(), Noisy(), Normed()], ids=lambda module: type(module).__name__)
def test_a_linen_module_predicts_what_flax_computes(module):
    model = from_linen(module)
    weights = model.init(KEY, ROWS)
    variables = {"params": weights.params, **weights.stats}
    direct = module.apply(variables, ROWS, **({} if isinstance(module, Plain) else {"train": False}))
    # The mask is given to all and must reach only those that take it.
    outputs, stats = model.apply(weights, ROWS, train=False, mask=jnp.ones(len(ROWS), bool))
    np.testing.assert_array_equal(outputs, direct)
    assert stats is weights.stats


def test_linen_initial_values_are_those_of_flax():
    weights, direct = from_linen(Normed()).init(KEY, ROWS), Normed().init({"params": KEY}, ROWS)
    jax.tree.map(
        np.testing.assert_array_equal, weights, Weights(direct["params"], {"batch_stats": direct["batch_stats"]})
    )


def test_linen_statistics_move_in_training_as_flax_moves_them_and_only_then():
    model, module = from_linen(Normed()), Normed()
    weights = model.init(KEY, ROWS)
    variables = {"params": weights.params, **weights.stats}
    direct_outputs, direct_stats = module.apply(variables, ROWS, train=True, mutable=["batch_stats"])
    outputs, stats = model.apply(weights, ROWS, train=True)
    np.testing.assert_array_equal(outputs, direct_outputs)
    jax.tree.map(np.testing.assert_array_equal, stats, dict(direct_stats))
    assert not np.array_equal(stats["batch_stats"]["BatchNorm_0"]["mean"], np.zeros(3))
    _, unchanged = model.apply(weights, ROWS, train=False)
    jax.tree.map(np.testing.assert_array_equal, unchanged, weights.stats)


def test_a_linen_module_gets_the_mask():
    model = from_linen(Normed())
    weights = model.init(KEY, ROWS)
    _, masked = model.apply(weights, ROWS, train=True, mask=jnp.arange(len(ROWS)) < 8)
    _, alone = model.apply(weights, ROWS[:8], train=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), masked, alone)


def test_a_linen_batch_norm_without_a_mask_leaves_padding_out():
    model = from_linen(Maskless())
    weights = model.init(KEY, ROWS)
    outputs, padded = model.apply(weights, ROWS, train=True, mask=jnp.arange(len(ROWS)) < 8)
    direct, alone = Maskless().apply(
        {"params": weights.params, **weights.stats}, ROWS[:8], train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(outputs[:8], direct, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), padded, dict(alone))


@pytest.mark.parametrize("module", [Noisy(), OtherStream()], ids=lambda module: type(module).__name__)
def test_linen_randomness_is_a_function_of_the_key(module):
    model = from_linen(module)
    weights = model.init(KEY, ROWS)

    def draw(seed):
        return np.asarray(model.apply(weights, ROWS, train=True, key=jax.random.key(seed))[0])

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    # A prediction draws nothing, with a key or without one.
    for key in (None, KEY):
        np.testing.assert_array_equal(model.apply(weights, ROWS, train=False, key=key)[0], ROWS)


def test_other_collections_of_linen_are_kept_as_stats():
    model = from_linen(Counting())
    weights = model.init(KEY, ROWS)
    assert set(weights.stats) == {"counters"}
    for calls in (1, 2):
        _, stats = model.apply(weights, ROWS, train=True)
        weights = weights._replace(stats=stats)
        assert weights.stats["counters"]["calls"] == calls
    assert model.apply(weights, ROWS, train=False)[1]["counters"]["calls"] == 2


# NNX


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, inputs, *, train=False, mask=None):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, use_fast_variance=False, name="norm")
        hidden = norm(inputs, mask=None if mask is None else mask[:, None])
        return nn.Dense(1, name="out")(nn.tanh(nn.Dense(5, name="hidden")(hidden)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, momentum=0.9, use_fast_variance=False, rngs=rngs)
        self.hidden = nnx.Linear(3, 5, rngs=rngs)
        self.out = nnx.Linear(5, 1, rngs=rngs)

    def __call__(self, inputs, mask=None):
        hidden = self.norm(inputs, mask=None if mask is None else mask[:, None])
        return self.out(nnx.tanh(self.hidden(hidden)))


def to_nnx(weights):
    """Linen's weights as NNX's, which does not name a collection; the layers' names are the same."""
    return Weights(weights.params, weights.stats["batch_stats"])


def test_the_same_network_in_linen_and_in_nnx_takes_the_same_trajectory():
    # 60 rows in batches of 8: 8 steps an epoch, the last one half padding, so that the mask matters; 24 in all.
    inputs = np.random.default_rng(1).normal(2, 3, (60, 3))
    rows = examples(inputs, np.sin(inputs.sum(1, keepdims=True)))
    linen, other = from_linen(LinenNet()), from_nnx(lambda rngs: NnxNet(rngs))
    weights = linen.init(KEY, rows.inputs[:1])

    def run(model, weights):
        objective = Objective(squared_error, (rmse,))
        return fit(model, objective, optax.adam(1e-2), rows, rows, epochs=3, batch_size=8, weights=weights)

    one, two = run(linen, weights), run(other, to_nnx(weights))
    assert int(one.progress.state.step) == int(two.progress.state.step) == 24
    np.testing.assert_allclose(one.history, two.history, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), to_nnx(one.final), two.final)
    # And it went somewhere.
    assert one.history["loss"].iloc[-1] < 0.9 * one.history["loss"].iloc[0]


def test_nnx_statistics_move_in_training_only():
    model = from_nnx(lambda rngs: NnxNet(rngs))
    weights = model.init(KEY, ROWS)
    _, stats = model.apply(weights, ROWS, train=True, mask=jnp.ones(len(ROWS), bool))
    np.testing.assert_allclose(stats["norm"]["mean"], 0.1 * ROWS.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["norm"]["var"], 0.9 + 0.1 * ROWS.var(0), rtol=1e-5)
    assert model.apply(weights, ROWS, train=False)[1] is weights.stats


def test_an_nnx_model_can_be_used_again_after_a_traced_call():
    # A module that remembered a tracer from an earlier trace would fail here.
    model = from_nnx(lambda rngs: NnxNet(rngs))
    weights = model.init(KEY, ROWS)
    traced = jax.jit(lambda weights: model.apply(weights, ROWS, train=True))(weights)
    plain = model.apply(weights, ROWS, train=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), traced, plain)


class OneDropout(nnx.Module):
    def __init__(self, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return self.drop(inputs)


class OwnStream(nnx.Module):
    """Draws from the streams that it was given, the default one included."""

    def __init__(self, rngs):
        self.rngs, self.training = rngs, False

    def train(self, **attributes):
        self.training = True

    def eval(self, **attributes):
        self.training = False

    def __call__(self, inputs):
        return inputs + jax.random.normal(self.rngs(), inputs.shape) if self.training else inputs


class TwoDropouts(nnx.Module):
    def __init__(self, rngs):
        self.one, self.two = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return jnp.stack([self.one(inputs), self.two(inputs)])


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: OneDropout(rngs),
        # The stream named dropout and the default stream are keyed apart by NNX; both must follow the step's key.
        lambda rngs: OneDropout(nnx.Rngs(7, dropout=8)),
        lambda rngs: OwnStream(rngs),
    ],
    ids=["default stream", "dropout stream", "own stream"],
)
def test_nnx_randomness_is_a_function_of_the_key(make):
    model, inputs = from_nnx(make), np.ones((16, 16), np.float32)
    weights = model.init(KEY, inputs)

    def draw(key):
        return np.asarray(model.apply(weights, inputs, train=True, key=key)[0])

    first, second = (jax.random.fold_in(KEY, step) for step in (0, 1))
    np.testing.assert_array_equal(draw(first), draw(first))
    assert not np.array_equal(draw(first), draw(second))
    assert not np.array_equal(draw(first), inputs)
    np.testing.assert_array_equal(model.apply(weights, inputs, train=False, key=first)[0], inputs)


def test_two_dropouts_of_an_nnx_module_draw_apart():
    model, inputs = from_nnx(lambda rngs: TwoDropouts(rngs)), np.ones((16, 16), np.float32)
    one, two = model.apply(model.init(KEY, inputs), inputs, train=True, key=KEY)[0]
    assert not np.array_equal(one, two)


class Holding(nnx.Module):
    def __init__(self, rngs, kind):
        self.layer, self.extra = nnx.Linear(3, 1, rngs=rngs), kind(jnp.zeros(2))

    def __call__(self, inputs):
        return self.layer(inputs)


class NnxMaskless(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, inputs):
        return self.norm(inputs)


@pytest.mark.parametrize("kind", [nnx.Cache, nnx.Intermediate, nnx.Variable])
def test_other_state_of_nnx_is_refused_by_name(kind):
    with pytest.raises(InputError, match=rf"Holding must hold .*\['{kind.__name__}'\]"):
        from_nnx(lambda rngs: Holding(rngs, kind))


def test_an_nnx_batch_norm_without_a_mask_leaves_padding_out():
    model = from_nnx(lambda rngs: NnxMaskless(rngs))
    weights = model.init(KEY, ROWS)
    outputs, padded = model.apply(weights, ROWS, train=True, mask=jnp.arange(len(ROWS)) < 8)
    module = NnxMaskless(nnx.Rngs(0))
    np.testing.assert_allclose(outputs[:8], module(ROWS[:8]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(padded["norm"]["mean"], module.norm.mean[...], rtol=1e-5)
    np.testing.assert_allclose(padded["norm"]["var"], module.norm.var[...], rtol=1e-5)


class Tower(nnx.Module):
    def __init__(self, rngs):
        # Twelve: sorted as strings, "10" and "11" come before "2", which must not exchange layers.
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(12)])

    def __call__(self, inputs):
        for layer in self.layers:
            inputs = nnx.tanh(layer(inputs))
        return inputs


def test_lists_of_nnx_layers_keep_their_order_through_a_file(tmp_path):
    model = from_nnx(lambda rngs: Tower(rngs))
    weights = model.init(KEY, ROWS)
    hidden = ROWS
    for number in range(12):
        layer = weights.params["layers"][str(number)]
        hidden = np.tanh(hidden @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]))
    save(tmp_path / "tower", weights)
    restored = load(tmp_path / "tower")
    assert jax.tree.structure(restored) == jax.tree.structure(weights)
    before, after = (np.asarray(predict(model, some, ROWS)) for some in (weights, restored))
    np.testing.assert_allclose(before, hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after, before)


# The layers of a model


class Block(nn.Module):
    width: int

    def setup(self):
        self.dense = nn.Dense(self.width)

    def __call__(self, inputs):
        return nn.relu(self.dense(inputs))


class Nested(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        shared = nn.Dense(4, name="shared")
        return nn.Dense(1, name="head")(shared(shared(Block(4)(inputs))))


def calls_of(model):
    with linen_calls() as calls:
        jax.eval_shape(lambda key: model.init(key, ROWS), KEY)
    return calls


def test_linen_calls_tell_paths_kinds_and_shapes_in_the_order_of_the_calls():
    calls = calls_of(from_linen(Nested()))
    assert [call[:3] for call in calls if call.kind == "Dense"] == [
        (("Block_0", "dense"), "Dense", (12, 4)),
        (("shared",), "Dense", (12, 4)),
        (("shared",), "Dense", (12, 4)),
        (("head",), "Dense", (12, 1)),
    ]
    assert {(call.path, call.kind) for call in calls} >= {(("Block_0",), "Block"), ((), "Nested")}


def test_every_linen_call_computes_in_a_scope_of_its_own():
    model = from_linen(Nested())
    weights = model.init(KEY, ROWS)
    with linen_calls() as calls:
        jaxpr = jax.make_jaxpr(lambda weights: model.apply(weights, ROWS, train=False))(weights)
    assert len({call.scope for call in calls}) == len(calls)
    products = [str(e.source_info.name_stack) for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    dense = [call.scope for call in calls if call.kind == "Dense"]
    assert len(products) == 4 and all(scope in product for scope, product in zip(dense, products, strict=True))


def test_linen_calls_can_be_asked_for_again():
    model = from_linen(Nested())
    assert calls_of(model) == calls_of(model) != []


def test_linen_calls_end_with_their_block():
    model = from_linen(Nested())
    with linen_calls() as calls:
        pass
    model.init(KEY, ROWS)
    assert calls == []


def test_linen_calls_of_an_nnx_model_are_none():
    assert calls_of(from_nnx(lambda rngs: Tower(rngs))) == []


@pytest.mark.parametrize("name", ["deterministic", "training", "use_running_average"])
def test_a_switch_that_nobody_would_set_is_refused(name):
    class Net(nn.Module):
        pass

    exec(f"def call(self, inputs, {name}=True): return inputs", space := {})
    Net.__call__ = space["call"]
    with pytest.raises(InputError, match=f"Net.__call__ takes {name}, which nothing would set. Write .*train=.{name}"):
        from_linen(Net())
