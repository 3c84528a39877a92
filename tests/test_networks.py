"""Networks as data: built again from JSON they are the same to the bit, and what is no network is refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cifar10 import experiment as cifar10
from experiments.weather import experiment as weather
from jaxdl.errors import InputError
from jaxdl.nn import Network, as_model, convnet, flip_averaged, mlp, residual_net
from jaxdl.nn.models import from_json, to_json

ROWS = np.random.default_rng(0).normal(0, 1, (5, 7)).astype(np.float32)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("network", "original", "inputs"),
    [
        (Network("mlp", {"widths": (9, 4), "input_norm": True}), mlp((9, 4), input_norm=True), ROWS),
        (Network("mlp", {"widths": (), "outputs": 3, "dtype": "bfloat16"}), mlp((), outputs=3, dtype="bfloat16"), ROWS),
        (
            Network("convnet", {"filters": (18, 5), "widths": (6,), "pool": True, "dropout": 0.2}),
            convnet((18, 5), widths=(6,), pool=True, dropout=0.2),
            IMAGES,
        ),
        (Network("residual_net", {"width": 2}, True), flip_averaged(residual_net(2)), IMAGES),
    ],
)
def test_a_network_that_went_through_a_file_is_the_original_to_the_bit(network, original, inputs):
    rebuilt = as_model(from_json(json.loads(json.dumps(to_json(network)))))
    weights = [jax.jit(model.init)(jax.random.key(3), inputs) for model in (original, rebuilt)]
    assert jax.tree.structure(weights[0]) == jax.tree.structure(weights[1])
    for train in (False, True):
        outputs = [
            jax.jit(lambda w, x, model=model, train=train: model.apply(w, x, train=train, key=jax.random.key(1)))(
                w, inputs
            )
            for model, w in zip((original, rebuilt), weights, strict=True)
        ]
        for one, other in zip(*map(jax.tree.leaves, outputs), strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_the_experiments_describe_the_networks_that_their_help_describes():
    # Parameters as Keras counts them, from the tables of the README.
    counted = {"small": 415_960, "dense": 312_860, "pooled": 57_060, "dropout": 57_060, "strong": 414_074}
    images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    for recipe, count in counted.items():
        network = cifar10.network(cifar10.resolve(cifar10.Config(recipe=recipe)))
        weights = jax.eval_shape(as_model(network).init, jax.random.key(0), images)
        assert sum(leaf.size for leaf in jax.tree.leaves(weights)) == count, recipe
        assert network.flip_averaged == (recipe == "strong")


def test_what_a_weather_run_trains_is_what_it_describes():
    dataset = weather.load(weather.Config(data="simulated:90"))
    for recipe in weather.RECIPES:
        built = weather.build(weather.Config(recipe=recipe, data="simulated:90"), dataset)
        described = as_model(built.network)
        weights, inputs = built.start.state.weights, built.sets["test"].inputs
        for train in (False, True):
            ours, theirs = (m.apply(weights, inputs, train=train)[0] for m in (described, built.plan.model))
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Network("transformer", {}), "one of mlp, convnet, residual_net, got 'transformer'"),
        (Network("mlp", {"widths": [5], "depth": 3}), "takes widths, .*init_scale, got 'depth'"),
        (Network("mlp", {}), "cannot be made of {}: .*widths"),
        (Network("mlp", {"widths": [0]}), "widths must be at least 1"),
        (Network("mlp", {"widths": 5}), "cannot be made of"),
        (Network("mlp", {"widths": [5], "dtype": "float31"}), "cannot be made of .*float31"),
        (Network("convnet", {"filters": ["a"]}), "cannot be made of"),
    ],
)
def test_what_describes_no_network_is_refused(network, said):
    with pytest.raises(InputError, match=said):
        as_model(network)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "mlp",
        {"kind": "mlp", "arguments": {}},
        {"kind": "mlp", "arguments": [], "flip_averaged": False},
        {"kind": 1, "arguments": {}, "flip_averaged": False},
        {"kind": "mlp", "arguments": {}, "flip_averaged": False, "more": 1},
    ],
)
def test_an_entry_that_is_no_description_is_refused(entry):
    with pytest.raises(InputError, match=re.escape(f"kind, arguments and flip_averaged, got {entry!r}")):
        from_json(entry)
