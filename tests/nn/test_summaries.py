"""The table of layers, against what the network holds."""

import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from rich.console import Console

from jaxdl.nn import from_linen, from_nnx, mlp, residual_net, summary
from jaxdl.nn.summaries import Layer, as_markdown, as_table
from jaxdl.types import Model, Variables


def test_the_lessons_network_layer_by_layer():
    # 89 features: 89 * 100 + 100 parameters, then 100 * 50 + 50, then 50 + 1.
    assert summary(mlp((100, 50)), jnp.ones((1, 89))).layers == (
        Layer("Dense_0", "Dense", (100,), 9000, 0, 4 * 9000, 0),
        Layer("Dense_1", "Dense", (50,), 5050, 0, 4 * 5050, 0),
        Layer("Dense_2", "Dense", (1,), 51, 0, 4 * 51, 0),
    )


def test_batchnorm_comes_first_and_its_moments_are_not_trained():
    table = summary(mlp((100, 50), input_norm=True), jnp.ones((1, 89)))
    assert table.layers[0] == Layer("BatchNorm_0", "BatchNorm", (89,), 178, 178, 4 * 178, 4 * 178)
    assert (table.trained, table.moving, table.parameters) == (14279, 178, 14457)
    assert (table.trained_bytes, table.moving_bytes) == (4 * 14279, 4 * 178)


def test_bytes_follow_the_dtypes():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Dense(5, param_dtype=jnp.bfloat16)(inputs) + self.param("shift", nn.initializers.zeros, (1, 5))

    table = summary(from_linen(Half()), jnp.ones((1, 3)))
    assert [layer.trained_bytes for layer in table.layers] == [2 * 20, 4 * 5]


@pytest.mark.parametrize("rows", [1, 7])
def test_shapes_are_those_of_one_row(rows):
    table = summary(mlp((5,)), jnp.ones((rows, 3)))
    assert [layer.shape for layer in table.layers] == [(5,), (1,)]


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
    trained = {}
    for layer in table.layers:
        trained[layer.name] = trained.get(layer.name, 0) + layer.trained
    assert trained == {"block/shared": 12, "block": 3, "head": 8, "Nested": 2}
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((4, 3)))
    assert table.parameters == table.trained == sum(leaf.size for leaf in jax.tree.leaves(variables)) == 25


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


def test_a_pair_of_functions_is_counted_in_total():
    def init(key, inputs):
        return Variables({"kernel": jnp.zeros((inputs.shape[1], 2))}, {})

    def apply(weights, inputs, *, train, key=None, mask=None):
        return inputs @ weights.params["kernel"], weights.stats

    table = summary(Model(init, apply), jnp.ones((7, 3)))
    assert table.layers == (Layer("", "", None, 6, 0, 24, 0),)


def test_a_shared_layer_is_listed_once():
    table = summary(from_linen(Nested()), jnp.ones((4, 3)))
    assert [layer.name for layer in table.layers] == ["block/shared", "block", "head", "Nested"]


def test_a_layer_in_a_loop_is_listed_once():
    class Loop(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            def body(dense, carry, _):
                return dense(carry), None

            scan = nn.scan(body, variable_broadcast="params", split_rngs={"params": False}, length=6)
            return scan(nn.Dense(3, name="dense"), inputs, None)[0]

    table = summary(from_linen(Loop()), jnp.ones((4, 3)))
    assert [layer.trained for layer in table.layers if layer.kind == "Dense"] == [12]


def test_a_layer_of_training_alone_is_not_listed():
    class Trained(nn.Module):
        @nn.compact
        def __call__(self, inputs, train=False, mask=None):
            hidden = nn.Dense(5)(inputs)
            return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(hidden) if train else hidden)

    table = summary(from_linen(Trained()), jnp.ones((4, 3)))
    assert [layer.kind for layer in table.layers] == ["Dense", "Dense"]


def test_shapes_without_numbers_will_do():
    shapes = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    assert summary(mlp((5,)), shapes) == summary(mlp((5,)), jnp.ones((4, 3)))


def lines_of(table, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return [line.replace("│", " ").replace("┃", " ").split() for line in lines]


def test_the_table_shows_every_layer_and_the_totals():
    lines = lines_of(as_table(summary(mlp((100, 50), input_norm=True), jnp.ones((1, 89))), "batchnorm"))
    assert lines[0] == ["batchnorm"]
    assert ["BatchNorm_0", "(batch,", "89)", "356", "in", "part", "1.42", "kB"] in lines
    assert ["Dense_0", "(batch,", "100)", "9,000", "yes", "36", "kB"] in lines
    assert ["total", "14,457", "57.8", "kB"] in lines
    assert ["trained", "14,279", "57.1", "kB"] in lines
    assert ["not", "trained", "178", "712", "B"] in lines


def test_the_table_of_a_large_network_fits_80_columns():
    lines = lines_of(as_table(summary(mlp((10**6, 10**6)), jnp.ones((1, 89)))))
    assert ["Dense_1", "(batch,", "1000000)", "1", "T", "yes", "4", "TB"] in lines
    images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    # No line of it is broken: a layer, one of three totals, and five for the frame and the head.
    table = summary(residual_net(), images)
    assert len(lines_of(as_table(table))) == len(table.layers) + 3 + 5


def test_the_table_in_markdown_says_the_same():
    lines = as_markdown(summary(mlp((100, 50), input_norm=True), jnp.ones((1, 89)))).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert ["BatchNorm_0", "(batch, 89)", "356", "in part", "1.42 kB"] in cells
    assert ["total", "", "14,457", "", "57.8 kB"] in cells
    assert {len(row) for row in cells} == {5}
