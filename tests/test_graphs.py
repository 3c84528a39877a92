"""The graph of a model: it is that model, whole and legible, and TensorBoard reads it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxdl.adapters import from_linen, from_nnx
from jaxdl.graphs import graph, nodes
from jaxdl.models import convnet, mlp, residual_net
from jaxdl.tensorboard import description
from jaxdl.types import Model, Weights

ROWS = np.ones((32, 89), np.float32)
IMAGES = np.zeros((8, 32, 32, 3), np.uint8)
MODELS = {
    "mlp": (mlp((100, 50), input_norm=True), ROWS),
    "convnet": (convnet((8, 4), widths=(16,), pool=True, dropout=0.2), IMAGES),
    "residual net": (residual_net(4), IMAGES),
    "nnx": (from_nnx(lambda rngs: nnx.Linear(89, 2, rngs=rngs)), ROWS),
    "one layer": (from_linen(nn.Dense(3)), ROWS),
}


def of_one(apply, params=None):
    """A model of a function `(params, inputs) -> outputs`."""
    params = {} if params is None else params
    return Model(
        lambda key, inputs: Weights(params, {}),
        lambda weights, inputs, *, train, key=None, mask=None: (apply(weights.params, inputs), weights.stats),
    )


def by_name(model, inputs):
    return {node.name: node for node in nodes(model, inputs)}


@pytest.mark.parametrize("name", MODELS)
def test_every_input_of_a_node_stands_before_it_and_names_are_unique(name):
    seen = set()
    for node in nodes(*MODELS[name]):
        assert node.name not in seen
        for each in node.inputs:
            source, _, output = each.partition(":")
            assert source in seen and not output
        seen.add(node.name)
    # No node is also the scope of others, or TensorBoard could not tell them apart.
    assert not {other.rpartition("/")[0] for other in seen} & seen


@pytest.mark.parametrize("name", MODELS)
def test_everything_but_the_outputs_is_used(name):
    found = nodes(*MODELS[name])
    used = {each for node in found for each in node.inputs}
    assert {node.name for node in found} - used == {"outputs"}


@pytest.mark.parametrize("name", MODELS)
def test_the_constants_are_the_weights(name):
    model, inputs = MODELS[name]
    weights = jax.eval_shape(model.init, jax.random.key(0), inputs)
    shown = [node for node in nodes(model, inputs) if node.kind == "Const"]
    assert sum(math.prod(node.outputs[0].shape) for node in shown) == sum(x.size for x in jax.tree.leaves(weights))
    last = [str(path[-1].key) for path, _ in jax.tree_util.tree_leaves_with_path(weights)]
    assert sorted(node.name.rpartition("/")[2] for node in shown) == sorted(last)


def test_an_mlp_is_its_layers_with_their_shapes():
    found = by_name(*MODELS["mlp"])
    assert {name.split("/")[0] for name in found if "/" in name} == {"BatchNorm_0", "Dense_0", "Dense_1", "Dense_2"}
    product = found["Dense_0/dot_general"]
    assert product.inputs[1] == "Dense_0/kernel" and product.inputs[0].startswith("BatchNorm_0/")
    assert [out.shape for out in product.outputs] == [(32, 100)]
    assert found["Dense_1/dot_general"].inputs == ("relu", "Dense_1/kernel")
    assert found["BatchNorm_0/mean"].outputs[0].shape == (89,)
    assert (found["relu"].kind, found["relu"].inputs) == ("max", ("Dense_0/add",))


def test_a_convolution_is_shown_as_one_whatever_it_is_on_this_platform():
    found = by_name(*MODELS["convnet"])
    assert found["Conv_0/conv_general_dilated"].inputs[1] == "Conv_0/kernel"
    assert found["Conv_0/conv_general_dilated"].outputs[0].shape == (8, 30, 30, 8)
    kinds = {node.kind for node in found.values()}
    assert not kinds & {"cond", "platform_index", "jit", "pjit", "custom_jvp_call", "custom_vjp_call"}
    assert {"MaxPool_0", "MaxPool_1", "Flatten_0", "Dense_0", "Dense_1"} <= {name.split("/")[0] for name in found}


def test_the_second_output_of_an_operation_is_told_from_the_first():
    found = by_name(of_one(lambda params, x: jax.lax.top_k(x, 2)[1] + 1), ROWS)
    assert found["add"].inputs == ("top_k:1",)
    assert [out.shape for out in found["top_k"].outputs] == [(32, 2), (32, 2)]


def test_one_weight_that_two_layers_share_is_one_node():
    found = by_name(of_one(lambda params, x: (x @ params["tied"]) @ params["tied"], {"tied": jnp.ones((89, 89))}), ROWS)
    assert found["dot_general"].inputs == ("inputs", "tied")
    assert found["dot_general_1"].inputs == ("dot_general", "tied")


def test_arrays_that_a_model_closes_over_are_constants():
    scale = np.arange(89, dtype=np.float32)
    found = by_name(of_one(lambda params, x: x * jnp.asarray(scale)[None, :]), ROWS)
    assert found["constant"].outputs[0].shape in ((89,), (1, 89))


def test_a_model_that_does_nothing_has_a_graph_too():
    assert [(n.name, n.inputs) for n in nodes(of_one(lambda params, x: x), ROWS)] == [
        ("inputs", ()),
        ("outputs", ("inputs",)),
    ]


def test_nothing_is_computed(compilations):
    inputs = np.ones((3, 7), np.float32)
    model, key = mlp((5,)), jax.random.key(0)
    with compilations() as names:
        jax.eval_shape(model.init, key, inputs)
        before = list(names)
        nodes(model, inputs)
    assert names == before


@pytest.mark.parametrize("name", MODELS)
def test_tensorboard_reads_the_graph_back(tmp_path, name):
    description(tmp_path, graph=graph(*MODELS[name]))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["graph"]
    found = by_name(*MODELS[name])
    read = events.Graph().node
    assert [(n.name, n.op, tuple(n.input)) for n in read] == [(n.name, n.kind, n.inputs) for n in found.values()]
    for node in read:
        shapes = node.attr["_output_shapes"].list.shape
        wanted = [out.shape for out in found[node.name].outputs]
        assert [tuple(side.size for side in shape.dim) for shape in shapes] == wanted
