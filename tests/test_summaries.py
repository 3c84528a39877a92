"""The table of layers, against what the network holds."""

import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from rich.console import Console

from jaxdl.adapters import from_linen, from_nnx
from jaxdl.models import mlp
from jaxdl.summaries import Layer, as_table, summary


def test_the_lessons_network_layer_by_layer():
    # 89 features: 89 * 100 + 100, then 100 * 50 + 50, then 50 + 1.
    assert summary(mlp((100, 50)), jnp.ones((1, 89))).layers == (
        Layer("Dense_0", "Dense", (100,), 9000, 0),
        Layer("Dense_1", "Dense", (50,), 5050, 0),
        Layer("Dense_2", "Dense", (1,), 51, 0),
    )


def test_batchnorm_comes_first_and_its_moments_are_not_trained():
    table = summary(mlp((100, 50), input_norm=True), jnp.ones((1, 89)))
    assert table.layers[0] == Layer("BatchNorm_0", "BatchNorm", (89,), 178, 178)
    assert (table.trained, table.moving, table.parameters) == (14279, 178, 14457)


@pytest.mark.parametrize("rows", [1, 7])
def test_shapes_leave_out_the_rows(rows):
    assert [layer.shape for layer in summary(mlp((5,)), jnp.ones((rows, 3))).layers] == [(5,), (1,)]


def test_layers_without_parameters_are_shown():
    layers = summary(mlp((5,), dropout=0.5), jnp.ones((1, 3))).layers
    assert [(layer.kind, layer.trained) for layer in layers] == [("Dense", 20), ("Dropout", 0), ("Dense", 6)]


def test_nothing_is_computed():
    # 1,000,092,000,001 parameters, four terabytes.
    assert summary(mlp((10**6, 10**6)), jnp.ones((1, 89))).parameters == 90 * 10**6 + (10**6 + 1) * 10**6 + 10**6 + 1


class Block(nn.Module):
    """A parameter of its own, and a layer that is called twice."""

    @nn.compact
    def __call__(self, inputs):
        shared = nn.Dense(3, name="shared")
        return shared(shared(inputs)) * self.param("gain", nn.initializers.ones, (1, 3))


class Nested(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(2, name="head")(Block(name="block")(inputs)) + self.param(
            "shift", nn.initializers.zeros, (1, 2)
        )


def test_nested_and_shared_layers_and_loose_parameters_are_counted_once():
    model = from_linen(Nested())
    table = summary(model, jnp.ones((4, 3)))
    own = {}
    for layer in table.layers:
        own[layer.name] = own.get(layer.name, 0) + layer.trained
    assert own == {"block/shared": 12, "block": 3, "head": 8, "Nested": 2}
    held = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((4, 3)))
    assert table.parameters == table.trained == sum(leaf.size for leaf in jax.tree.leaves(held)) == 25


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)])

    def __call__(self, inputs, mask=None):
        for layer in (self.norm, *self.layers):
            inputs = layer(inputs)
        return inputs


def test_an_nnx_model_is_counted_by_name_though_it_tells_no_shapes():
    table = summary(from_nnx(lambda rngs: NnxNet(rngs)), jnp.ones((1, 3)))
    assert {layer.name: (layer.shape, layer.trained, layer.moving) for layer in table.layers} == {
        "norm": (None, 6, 6),
        "layers/0": (None, 16, 0),
        "layers/1": (None, 5, 0),
    }
    assert table.parameters == 33


def test_the_table_shows_every_layer_and_the_totals():
    table = as_table(summary(mlp((100, 50), input_norm=True), jnp.ones((1, 89))), "batchnorm")
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    lines = [line.split() for line in console.file.getvalue().replace("│", " ").replace("┃", " ").splitlines()]
    assert lines[0] == ["batchnorm"]
    assert ["BatchNorm_0", "(rows,", "89)", "356", "178"] in lines
    assert ["Dense_0", "(rows,", "100)", "9,000", "0"] in lines
    assert ["total", "14,457", "178"] in lines
