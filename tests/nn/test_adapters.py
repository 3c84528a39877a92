"""Flax modules as Models: against Flax called directly, and Linen against NNX."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdl.data import dataset
from jaxdl.errors import InputError
from jaxdl.losses import squared_error
from jaxdl.metrics import rmse
from jaxdl.nn import from_linen, from_nnx
from jaxdl.nn.adapters import linen_calls
from jaxdl.saving import load, save
from jaxdl.train.evaluate import predict
from jaxdl.train.fit import fit
from jaxdl.types import Variables

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
        observed = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing() and self.is_mutable_collection("counters"):
            observed.value = observed.value + 1
        return nn.Dense(1)(inputs)


# Linen


@pytest.mark.parametrize("module", [Plain(), Noisy(), Normed()], ids=lambda module: type(module).__name__)
def test_a_linen_module_predicts_what_flax_computes(module):
    model = from_linen(module)
    variables = model.init(KEY, ROWS)
    collections = {"params": variables.params, **variables.stats}
    direct = module.apply(collections, ROWS, **({} if isinstance(module, Plain) else {"train": False}))
    # The mask is given to all and must reach only those that take it.
    outputs, stats = model.apply(variables, ROWS, train=False, mask=jnp.ones(len(ROWS), bool))
    np.testing.assert_array_equal(outputs, direct)
    assert stats is variables.stats


def test_linen_initial_values_are_those_of_flax():
    variables, direct = from_linen(Normed()).init(KEY, ROWS), Normed().init({"params": KEY}, ROWS)
    jax.tree.map(
        np.testing.assert_array_equal, variables, Variables(direct["params"], {"batch_stats": direct["batch_stats"]})
    )


def test_linen_statistics_move_in_training_as_flax_moves_them_and_only_then():
    model, module = from_linen(Normed()), Normed()
    variables = model.init(KEY, ROWS)
    collections = {"params": variables.params, **variables.stats}
    direct_outputs, direct_stats = module.apply(collections, ROWS, train=True, mutable=["batch_stats"])
    outputs, stats = model.apply(variables, ROWS, train=True)
    np.testing.assert_array_equal(outputs, direct_outputs)
    jax.tree.map(np.testing.assert_array_equal, stats, dict(direct_stats))
    assert not np.array_equal(stats["batch_stats"]["BatchNorm_0"]["mean"], np.zeros(3))
    _, unchanged = model.apply(variables, ROWS, train=False)
    jax.tree.map(np.testing.assert_array_equal, unchanged, variables.stats)


def test_a_linen_module_gets_the_mask():
    model = from_linen(Normed())
    variables = model.init(KEY, ROWS)
    _, masked = model.apply(variables, ROWS, train=True, mask=jnp.arange(len(ROWS)) < 8)
    _, alone = model.apply(variables, ROWS[:8], train=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), masked, alone)


def test_a_linen_batch_norm_without_a_mask_leaves_padding_out():
    model = from_linen(Maskless())
    variables = model.init(KEY, ROWS)
    outputs, padded = model.apply(variables, ROWS, train=True, mask=jnp.arange(len(ROWS)) < 8)
    direct, alone = Maskless().apply(
        {"params": variables.params, **variables.stats}, ROWS[:8], train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(outputs[:8], direct, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), padded, dict(alone))


@pytest.mark.parametrize("module", [Noisy(), OtherStream()], ids=lambda module: type(module).__name__)
def test_linen_randomness_is_a_function_of_the_key(module):
    model = from_linen(module)
    variables = model.init(KEY, ROWS)

    def draw(seed):
        return np.asarray(model.apply(variables, ROWS, train=True, key=jax.random.key(seed))[0])

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    # A prediction draws nothing, with a key or without one.
    for key in (None, KEY):
        np.testing.assert_array_equal(model.apply(variables, ROWS, train=False, key=key)[0], ROWS)


def test_other_collections_of_linen_are_kept_as_stats():
    model = from_linen(Counting())
    variables = model.init(KEY, ROWS)
    assert set(variables.stats) == {"counters"}
    for calls in (1, 2):
        _, stats = model.apply(variables, ROWS, train=True)
        variables = variables._replace(stats=stats)
        assert variables.stats["counters"]["calls"] == calls
    assert model.apply(variables, ROWS, train=False)[1]["counters"]["calls"] == 2


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


def to_nnx(variables):
    """Linen's weights as NNX's, which does not name a collection; the layers' names are the same."""
    return Variables(variables.params, variables.stats["batch_stats"])


def test_the_same_network_in_linen_and_in_nnx_takes_the_same_trajectory():
    # 60 rows in batches of 8: 8 steps an epoch, the last one half padding, so that the mask matters; 24 in all.
    inputs = np.random.default_rng(1).normal(2, 3, (60, 3))
    rows = dataset(inputs, np.sin(inputs.sum(1, keepdims=True)))
    linen, other = from_linen(LinenNet()), from_nnx(lambda rngs: NnxNet(rngs))
    variables = linen.init(KEY, rows.inputs[:1])

    def run(model, variables):
        return fit(
            model,
            squared_error,
            optax.adam(1e-2),
            rows,
            rows,
            metrics=[rmse],
            epochs=3,
            batch_size=8,
            variables=variables,
        )

    one, two = run(linen, variables), run(other, to_nnx(variables))
    assert int(one.state.train_state.step) == int(two.state.train_state.step) == 24
    np.testing.assert_allclose(one.history, two.history, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), to_nnx(one.final), two.final)
    # And it went somewhere.
    assert one.history["loss"].iloc[-1] < 0.9 * one.history["loss"].iloc[0]


def test_nnx_statistics_move_in_training_only():
    model = from_nnx(lambda rngs: NnxNet(rngs))
    variables = model.init(KEY, ROWS)
    _, stats = model.apply(variables, ROWS, train=True, mask=jnp.ones(len(ROWS), bool))
    np.testing.assert_allclose(stats["norm"]["mean"], 0.1 * ROWS.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["norm"]["var"], 0.9 + 0.1 * ROWS.var(0), rtol=1e-5)
    assert model.apply(variables, ROWS, train=False)[1] is variables.stats


def test_an_nnx_model_can_be_used_again_after_a_traced_call():
    # A module that remembered a tracer from an earlier trace would fail here.
    model = from_nnx(lambda rngs: NnxNet(rngs))
    variables = model.init(KEY, ROWS)
    traced = jax.jit(lambda variables: model.apply(variables, ROWS, train=True))(variables)
    plain = model.apply(variables, ROWS, train=True)
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
    variables = model.init(KEY, inputs)

    def draw(key):
        return np.asarray(model.apply(variables, inputs, train=True, key=key)[0])

    first, second = (jax.random.fold_in(KEY, step) for step in (0, 1))
    np.testing.assert_array_equal(draw(first), draw(first))
    assert not np.array_equal(draw(first), draw(second))
    assert not np.array_equal(draw(first), inputs)
    np.testing.assert_array_equal(model.apply(variables, inputs, train=False, key=first)[0], inputs)


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
    variables = model.init(KEY, ROWS)
    outputs, padded = model.apply(variables, ROWS, train=True, mask=jnp.arange(len(ROWS)) < 8)
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
    variables = model.init(KEY, ROWS)
    hidden = ROWS
    for number in range(12):
        layer = variables.params["layers"][str(number)]
        hidden = np.tanh(hidden @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]))
    save(tmp_path / "tower", variables)
    restored = load(tmp_path / "tower")
    assert jax.tree.structure(restored) == jax.tree.structure(variables)
    before, after = (np.asarray(predict(model, some, ROWS)) for some in (variables, restored))
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


def test_linen_calls_have_paths_kinds_and_shapes_in_the_order_of_the_calls():
    calls = calls_of(from_linen(Nested()))
    assert [call for call in calls if call.kind == "Dense"] == [
        (("Block_0", "dense"), "Dense", (12, 4)),
        (("shared",), "Dense", (12, 4)),
        (("shared",), "Dense", (12, 4)),
        (("head",), "Dense", (12, 1)),
    ]
    assert {(call.path, call.kind) for call in calls} >= {(("Block_0",), "Block"), ((), "Nested")}


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


# Streams


class Repeated(nn.Module):
    """Dropout at every step of time, through nn.scan."""

    stream: str = "dropout"

    @nn.compact
    def __call__(self, inputs, train=False):
        class Cell(nn.Module):
            stream: str

            @nn.compact
            def __call__(self, carry, step):
                return carry, nn.Dropout(0.5, deterministic=not train, rng_collection=self.stream)(step)

        split = {"params": False, self.stream: True}
        cells = nn.scan(Cell, variable_broadcast="params", split_rngs=split, in_axes=1, out_axes=1)
        return cells(self.stream)(jnp.zeros(()), inputs)[1]


def test_dropout_under_scan_draws_the_masks_of_flax():
    model, inputs = from_linen(Repeated()), jnp.ones((3, 6, 8))
    outputs, _ = jax.jit(partial(model.apply, train=True))(Variables({}, {}), inputs, key=KEY)
    theirs = jax.jit(partial(Repeated().apply, train=True))({}, inputs, rngs={"dropout": KEY})
    np.testing.assert_array_equal(outputs, theirs)
    assert not np.array_equal(outputs[:, 0], outputs[:, 1])


def test_streams_of_any_name_are_split_under_scan():
    run = jax.jit(partial(from_linen(Repeated("noise")).apply, train=True))
    outputs, _ = run(Variables({}, {}), jnp.ones((3, 6, 8)), key=KEY)
    assert not np.array_equal(outputs[:, 0], outputs[:, 1])


@pytest.mark.parametrize("split", [True, False])
def test_dropout_under_vmap_is_split_as_the_module_says(split):
    class Mapped(nn.Module):
        @nn.compact
        def __call__(self, inputs, train=False):
            layer = nn.vmap(nn.Dropout, variable_axes={}, split_rngs={"dropout": split}, in_axes=(1,), out_axes=1)
            return layer(0.5, deterministic=not train)(inputs)

    inputs = np.ones((40, 2), np.float32)
    outputs, _ = jax.jit(partial(from_linen(Mapped()).apply, train=True))(Variables({}, {}), inputs, key=KEY)
    theirs = jax.jit(partial(Mapped().apply, train=True))({}, inputs, rngs={"dropout": KEY})
    np.testing.assert_array_equal(outputs, theirs)
    assert np.array_equal(outputs[:, 0], outputs[:, 1]) != split


def test_two_streams_of_a_module_draw_apart():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, inputs, train=False):
            names = ("one", "two", "params") if train else ()
            return jnp.stack([jax.random.normal(self.make_rng(name), (5,)) for name in names]) if train else inputs

    outputs, _ = from_linen(Two()).apply(Variables({}, {}), ROWS, train=True, key=KEY)
    assert len(np.unique(outputs)) == outputs.size == 15


def test_a_stream_that_evaluation_draws_from_is_named():
    model = from_linen(nn.Sequential([nn.Dropout(0.5, deterministic=False)]))
    with pytest.raises(InputError, match="Sequential draws from the stream 'dropout' where no key is given"):
        model.apply(Variables({}, {}), ROWS, train=False)


class Stacked(nnx.Module):
    """Three layers of dropout, made by nnx.vmap and all given the same inputs."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return nnx.Dropout(0.5, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, inputs):
        return nnx.vmap(lambda layer, inputs: layer(inputs), in_axes=(0, None))(self.layers, inputs)


def test_stacked_nnx_layers_draw_apart_and_anew():
    model = from_nnx(lambda rngs: Stacked(rngs))
    run = jax.jit(partial(model.apply, train=True))
    draws = [
        np.asarray(run(Variables({}, {}), np.ones((9, 9), np.float32), key=jax.random.key(n))[0]) for n in (1, 1, 2)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    masks = [*draws[0], *draws[2]]
    assert all(not np.array_equal(a, b) for i, a in enumerate(masks) for b in masks[:i])
    np.testing.assert_array_equal(model.apply(Variables({}, {}), ROWS, train=False)[0], [ROWS] * 3)


# The switch of training


def with_call(parameters, switch="False"):
    """A module whose `__call__` has these parameters and drops where `switch` is true."""
    text = f"def call(self, {parameters}): return nn.Dropout(0.5, deterministic=not ({switch}))(x)"
    exec(text, {"nn": nn}, space := {})
    return type("Net", (nn.Module,), {"__call__": nn.compact(space["call"])})()


def drops(model):
    """Whether a model drops in training, and whether it does in evaluation."""
    inputs = np.ones((8, 8), np.float32)
    return tuple(
        bool((np.asarray(model.apply(Variables({}, {}), inputs, train=train, key=KEY)[0]) != inputs).any())
        for train in (True, False)
    )


@pytest.mark.parametrize(
    "parameters, switch, options",
    [
        ("x, *, train", "train", {}),
        ("*, x, train", "train", {}),
        ("train, x", "train", {}),
        ("x, train=False, features: bool = False", "train", {}),
        ("x, is_train=False", "is_train", {"train": "is_train"}),
        ("x, inference=True", "not inference", {"train": "inference", "inverted": True}),
        ("x, flag: bool = True", "not flag", {"train": "flag", "inverted": True}),
        ("x, **keywords", "keywords['enable']", {"train": "enable"}),
    ],
)
def test_a_switch_of_any_name_is_set(parameters, switch, options):
    assert drops(from_linen(with_call(parameters, switch), **options)) == (True, False)


@pytest.mark.parametrize(
    "parameters, line",
    [
        ("x, is_train=False", 'takes is_train, .* from_linen(module, train="is_train")'),
        ("x, *, enable_dropout: bool", 'takes enable_dropout, .* from_linen(module, train="enable_dropout")'),
        ("x, inference=True", 'from_linen(module, train="inference", inverted=True)'),
        ("x, deterministic: bool | None = None", 'from_linen(module, train="deterministic", inverted=True)'),
        ("x, flag: 'bool' = 1", 'from_linen(module, train="flag", inverted=True) if it is True in evaluation'),
        ("x, **keywords", "takes **keywords, .* from_linen(module, train=None) if there is none"),
        ("x, train, deterministic=True", "takes train and deterministic, and from_linen sets one of them"),
        ("x, y, rng", "needs x, y, rng, and a model is given its inputs alone"),
        ("x, y, /", "takes x, y by position only, and several inputs are given by name"),
        ("x, rngs", "Leave rngs out and draw with self.make_rng"),
    ],
)
def test_an_argument_that_nothing_would_set_is_refused_with_the_line_to_write(parameters, line):
    with pytest.raises(InputError) as caught:
        from_linen(with_call(parameters))
    assert all(part in str(caught.value) for part in line.split(" .* "))


def test_a_switch_that_points_the_other_way_is_refused():
    with pytest.raises(InputError, match=r"deterministic is True in evaluation. Write .*inverted=True"):
        from_linen(with_call("x, deterministic=True"), train="deterministic")
    with pytest.raises(InputError, match=r"does not take flagg, which train= names. It takes x, flag."):
        from_linen(with_call("x, flag=True"), train="flagg")


@pytest.mark.parametrize("argument", [nn.Dense, lambda inputs: inputs, 3])
def test_what_is_no_linen_module_is_refused(argument):
    with pytest.raises(InputError, match=r"from_linen needs an instance of a flax.linen.Module"):
        from_linen(argument)


class Field(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=not self.train)(x)


class Deterministic(nn.Module):
    deterministic: bool = True

    def __call__(self, x):
        return nn.Dropout(0.5, parent=None).apply({}, x, self.deterministic, self.make_rng("dropout"))


def test_a_switch_may_be_a_field_of_the_module():
    assert drops(from_linen(Field())) == (True, False)
    with pytest.raises(InputError, match=r'holds deterministic, .*train="deterministic", inverted=True'):
        from_linen(Deterministic())
    assert drops(from_linen(Deterministic(), train="deterministic", inverted=True)) == (True, False)


def test_layers_of_flax_without_a_switch_follow_the_training_mode():
    model = from_linen(nn.Sequential([nn.Dropout(0.5), nn.BatchNorm(), nn.relu]))
    variables = model.init(KEY, ROWS)
    _, stats = model.apply(variables, ROWS, train=True, key=KEY)
    assert not np.array_equal(stats["batch_stats"]["layers_1"]["mean"], np.zeros(3))
    with pytest.raises(InputError, match=r"nn.Sequential hands train to none but its first layer"):
        from_linen(nn.Sequential([nn.Dense(3), Noisy()]))


def test_a_module_under_remat_gets_a_constant_switch():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            return nn.Dropout(0.5, deterministic=not train)(x)

    assert drops(from_linen(nn.remat(Net, static_argnums=(2,))())) == (True, False)


class NnxSwitch(nnx.Module):
    def __init__(self, rngs):
        self.drop, self.is_train = nnx.Dropout(0.5, rngs=rngs), False

    def __call__(self, inputs):
        return self.drop(inputs) if self.is_train else inputs


class NnxArgument(NnxSwitch):
    def __call__(self, inputs, enable: bool = False):
        return self.drop(inputs) if enable else inputs


class NnxStreams(nnx.Module):
    def __call__(self, inputs, rngs):
        return nnx.Dropout(0.5, deterministic=False)(inputs, rngs=rngs)


@pytest.mark.parametrize("kind, name", [(NnxSwitch, "is_train"), (NnxArgument, "enable")])
def test_a_switch_of_an_nnx_module_is_set_or_refused(kind, name):
    assert drops(from_nnx(lambda rngs: kind(rngs), train=name)) == (True, False)
    with pytest.raises(InputError, match=f'{name}, which nothing would set. Write from_nnx.make, train="{name}"'):
        from_nnx(lambda rngs: kind(rngs))


def test_an_nnx_module_that_takes_streams_in_its_call_gets_them():
    model = from_nnx(lambda rngs: NnxStreams())
    one, two = (model.apply(Variables({}, {}), ROWS, train=True, key=jax.random.key(n))[0] for n in (1, 2))
    assert not np.array_equal(one, two)


def test_what_makes_no_nnx_module_is_refused():
    with pytest.raises(InputError, match="from_nnx needs a function that makes a module, got OneDropout"):
        from_nnx(OneDropout(nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"from_nnx needs a function that makes an nnx.Module, got Dense"):
        from_nnx(lambda rngs: nn.Dense(3))


# Masks and statistics


def with_norm(norm):
    """A module that puts its inputs through `norm(inputs, train)`."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, inputs, train: bool = False):
            return norm(inputs, train)

    return Net


def plain(inputs, train):
    return nn.BatchNorm(use_running_average=not train)(inputs)


def over_features(inputs, train):
    kind = nn.vmap(
        nn.BatchNorm, in_axes=2, out_axes=2, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}
    )
    return kind(use_running_average=not train)(jnp.stack([inputs, inputs**2], 2))


@pytest.mark.parametrize(
    "module",
    [
        with_norm(plain)(),
        nn.remat(with_norm(plain), static_argnums=(2,))(),
        nn.jit(with_norm(plain), static_argnums=(2,))(),
        with_norm(over_features)(),
    ],
    ids=["plain", "remat", "jit", "vmap over features"],
)
def test_every_call_leaves_out_the_padding_of_its_own_mask(module):
    model = from_linen(module)
    variables = jax.jit(model.init)(KEY, ROWS)
    ours = jax.jit(partial(model.apply, train=True))
    theirs = jax.jit(lambda collections, rows: module.apply(collections, rows, True, mutable=["batch_stats"]))
    for real in (5, 8):
        outputs, stats = ours(variables, ROWS, mask=np.arange(12) < real)
        direct, alone = theirs({"params": variables.params, **variables.stats}, ROWS[:real])
        np.testing.assert_allclose(outputs[:real], direct, rtol=1e-4, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, dict(alone))


def over_examples(inputs, train):
    kind = nn.vmap(
        nn.BatchNorm,
        axis_name="batch",
        variable_axes={"params": None, "batch_stats": None},
        split_rngs={"params": False},
    )
    return kind(use_running_average=not train, axis_name="batch")(inputs)


def flattened(inputs, train):
    return plain(inputs.reshape(-1, 1), train).reshape(inputs.shape)


@pytest.mark.parametrize("norm", [over_examples, flattened])
def test_statistics_over_other_axes_than_the_first_are_refused(norm):
    with pytest.raises(InputError, match="normalizes inputs whose first axis is not that of the examples"):
        from_linen(with_norm(norm)()).init(KEY, ROWS)


def test_statistics_of_another_kind_without_a_mask_are_refused_by_name():
    class Centered(nn.Module):
        @nn.compact
        def __call__(self, inputs, train=False):
            mean = self.variable("batch_stats", "mean", jnp.zeros, 3)
            if train:
                mean.value = 0.9 * mean.value + 0.1 * inputs.mean(0)
            return inputs - mean.value[None]

    with pytest.raises(InputError, match=r"Centered has moving statistics but takes no mask, .* in batch_stats/mean"):
        from_linen(Centered()).init(KEY, ROWS)


def test_statistics_of_the_parameters_need_no_mask():
    def spectral(inputs, train):
        return nn.SpectralNorm(nn.Dense(1))(inputs, update_stats=train)

    rows = dataset(ROWS, ROWS[:, :1])
    result = fit(
        from_linen(with_norm(spectral)()),
        squared_error,
        optax.sgd(0.01),
        rows,
        epochs=1,
        batch_size=4,
    )
    assert np.isfinite(result.history["loss"]).all()


class Attention(nn.Module):
    """Takes a mask of its own, (B, T)."""

    @nn.compact
    def __call__(self, inputs, mask=None):
        allowed = None if mask is None else nn.make_attention_mask(mask, mask)
        return nn.MultiHeadDotProductAttention(2, qkv_features=4)(inputs[:, :, None], mask=allowed)[:, 0]


def test_a_mask_of_another_meaning_is_left_alone():
    model = from_linen(Attention())
    variables = jax.jit(model.init)(KEY, ROWS)
    # Three examples of three steps: their shapes alone would allow the mask.
    run = jax.jit(partial(model.apply, train=True))
    outputs, _ = run(variables, ROWS[:3], mask=np.array([True, True, False]))
    np.testing.assert_array_equal(outputs, jax.jit(Attention().apply)({"params": variables.params}, ROWS[:3]))


class InBatch(nn.Module):
    """Compares every example with the others of the batch."""

    def __call__(self, inputs, mask=None):
        mask = jnp.ones(len(inputs), bool) if mask is None else mask
        return inputs - inputs.mean(0, where=mask[:, None])


def test_the_mask_of_the_examples_is_given_by_default_by_name_or_never():
    for option, real in (("auto", 8), ("mask", 8), (None, 12)):
        model = from_linen(InBatch(), mask=option)
        outputs, _ = model.apply(Variables({}, {}), ROWS, train=True, mask=jnp.arange(12) < 8)
        np.testing.assert_allclose(outputs, ROWS - ROWS[:real].mean(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="does not take rows, which mask= names"):
        from_linen(InBatch(), mask="rows")


# Sown values


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_sown_losses_are_refused_by_their_name(late, summed):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, inputs, train=False, mask=None):
            options = {"init_fn": lambda: 0.0, "reduce_fn": jnp.add} if summed else {}
            if train or not late:
                self.sow("losses", "l2", (inputs**2).mean(), **options)
            return nn.Dense(1)(inputs)

    rows = dataset(ROWS, ROWS[:, :1])
    with pytest.raises(InputError, match="Net sows values into 'losses', which is not added to the loss"):
        fit(
            from_linen(Net()),
            squared_error,
            optax.sgd(0.01),
            rows,
            epochs=1,
            batch_size=4,
        )


def test_intermediates_and_perturbations_are_dropped():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            self.sow("intermediates", "inputs", inputs)
            return nn.Dense(1)(self.perturb("inputs", inputs))

    model = from_linen(Net())
    variables = model.init(KEY, ROWS)
    assert variables.stats == model.apply(variables, ROWS[:5], train=True)[1] == {}


def test_sown_values_of_an_nnx_module_are_refused_by_their_kind():
    class Penalty(nnx.Variable):
        pass

    class Net(nnx.Module):
        def __call__(self, inputs):
            self.penalty = Penalty((inputs**2).mean())
            return inputs

    with pytest.raises(InputError, match="Net sows values into 'Penalty'"):
        from_nnx(lambda rngs: Net()).apply(Variables({}, {}), ROWS, train=True)
