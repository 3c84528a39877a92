"""What devices tell each other: read rightly from programs that say it themselves, and little in training."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from benchmarks.scaling.collectives import Collective, collectives
from benchmarks.scaling.model import compiled_chunk
from jaxdl import dataset, losses, make_plan, metrics, mlp, start
from jaxdl.distributed import make_mesh, shard_dataset, shard_state
from jaxdl.nn import convnet, residual_net
from jaxdl.types import Objective

ADAM = optax.adam(1e-3)
SQUARED = Objective(losses.squared_error, (metrics.rmse,))
CLASSES = Objective(losses.softmax_cross_entropy, (metrics.accuracy,))


def compiled(function):
    """A function of (8, 16) float32 in which each of 8 devices has a row."""
    mesh = make_mesh()
    on_mesh = jax.shard_map(function, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    return collectives(jax.jit(on_mesh).lower(jnp.ones((8, 16))).compile().as_text())


ROUND = [(device, (device + 1) % 8) for device in range(8)]


@pytest.mark.parametrize(
    ("kind", "size", "function"),
    [
        ("all-reduce", 64, lambda x: x + lax.psum(x, "data")),
        ("all-reduce", 16, lambda x: x + lax.pmax(x.astype(jnp.int8), "data").astype(x.dtype)),
        ("all-gather", 8 * 64, lambda x: x + lax.all_gather(x, "data").sum(0)),
        ("reduce-scatter", 8, lambda x: x[:, :2] + lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True)),
        ("all-to-all", 64, lambda x: lax.all_to_all(x, "data", 1, 0, tiled=True).reshape(1, 16) + 1),
        ("collective-permute", 64, lambda x: x + lax.ppermute(x, "data", ROUND)),
    ],
)
def test_collectives_of_a_function_are_listed_with_their_bytes(kind, size, function):
    (result,) = compiled(function)
    assert (result.kind, result.bytes, result.looped) == (kind, size, False)


def test_collectives_inside_and_outside_of_a_loop_are_distinguished():
    def function(x):
        x = lax.fori_loop(0, 5, lambda _, x: jnp.sin(lax.psum(x, "data")) + lax.ppermute(x, "data", ROUND), x)
        return x + lax.all_gather(x, "data").max(0)

    result = [(one.kind, one.looped) for one in compiled(function)]
    assert Counter(result) == Counter([("all-reduce", True), ("collective-permute", True), ("all-gather", False)])


def test_a_collective_called_from_a_loop_is_in_the_loop():
    def function(x):
        def body(_, x):
            return lax.cond(x.sum() > 3, lambda: jnp.sin(lax.psum(x, "data")), lambda: x * 2)

        return lax.fori_loop(0, 5, body, x)

    mesh = make_mesh()
    # The sum that decides is not that of all devices, which JAX would refuse.
    on_mesh = jax.shard_map(
        function, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), check_vma=False
    )
    (result,) = collectives(jax.jit(on_mesh).lower(jnp.ones((8, 16))).compile().as_text())
    assert result.kind == "all-reduce" and result.looped


def test_an_asynchronous_collective_counts_once():
    # As XLA writes it for accelerators.
    text = """
ENTRY %main (a: bf16[4,8], b: f32[3]) -> (bf16[32,8], f32[3]) {
  %s = (bf16[4,8]{1,0}, bf16[32,8]{1,0:T(8,128)(2,1)}) all-gather-start(%a), dimensions={0}
  %r = (f32[3]{0}, /*index=1*/pred[9]{0}) all-reduce-start(%b, %c), to_apply=%add
  %d = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather-done(%s), metadata={op_name="layer"}
  ROOT %e = (f32[3]{0}, /*index=1*/pred[9]{0}) all-reduce-done(%r)
}
"""
    assert collectives(text) == [
        Collective("all-gather", (32 * 8 * 2,), "layer", False),
        Collective("all-reduce", (12, 9), "", False),
    ]


def images():
    rng = np.random.default_rng(0)
    return dataset(rng.integers(0, 255, (64, 16, 16, 3)).astype(np.uint8), rng.integers(0, 10, 64))


def numbers():
    inputs = np.random.default_rng(0).normal(size=(96, 23)).astype(np.float32)
    return dataset(inputs, inputs[:, :1])


CASES = {
    "mlp": (mlp((32, 16)), numbers, SQUARED),
    "mlp with BatchNorm": (mlp((32, 16), input_norm=True), numbers, SQUARED),
    "convnet": (convnet((8, 8), widths=(12,), pool=True, dropout=0.2), images, CLASSES),
    "residual_net": (residual_net(4), images, CLASSES),
}


def of_training(model, rows, objective, *, optimizer=ADAM, place=shard_state, validation=None):
    plan = make_plan(model, objective.loss, optimizer, metrics=objective.metrics, batch_size=32)
    run_state, mesh = start(plan, rows, validation, key=jax.random.key(0)), make_mesh()
    validation = None if validation is None else shard_dataset(validation, mesh)
    chunk = compiled_chunk(plan, place(run_state, mesh), shard_dataset(rows, mesh), validation)
    return run_state, collectives(chunk.as_text())


def bytes_of(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("case", CASES)
def test_training_reduces_gradients_metrics_and_moments_and_nothing_else(case):
    model, rows, objective = CASES[case]
    run_state, result = of_training(model, rows(), objective)
    assert {one.kind for one in result} == {"all-reduce"}
    assert all(one.looped for one in result)
    weights = run_state.train_state.variables
    # The loss, the metric and the sum of the weights of the rows; of each BatchNorm layer two moments.
    message, moments = bytes_of(weights.params) + bytes_of(run_state.sums), bytes_of(weights.stats)
    layers = len(jax.tree.leaves(weights.stats)) // 2
    # Moments again on the way back or, where those of the inputs need none, as counts; and a count a layer.
    assert 0 <= sum(one.bytes for one in result) - message - 2 * moments <= 4 * layers
    of_leaves = Counter(leaf.nbytes for leaf in jax.tree.leaves(weights.params))
    assert of_leaves <= Counter(size for one in result for size in one.sizes)


def test_one_all_reduce_has_the_gradients_of_all_layers():
    run_state, result = of_training(*cased("convnet"))
    first, last = sorted(result, key=lambda one: one.bytes)
    assert first.bytes == 4  # the weights of the batch's rows, by which the loss is divided
    assert last.bytes == bytes_of(run_state.train_state.variables.params) + bytes_of(run_state.sums) - 4


def test_a_flat_optimizer_has_the_same_collectives():
    usual, flat = (
        of_training(*cased("convnet"), optimizer=optimizer)[1]
        for optimizer in (optax.adam(1e-3), optax.flatten(optax.adam(1e-3)))
    )
    assert [(one.kind, one.bytes) for one in usual] == [(one.kind, one.bytes) for one in flat]


def test_validation_reduces_its_sums_only():
    model, rows, objective = cased("convnet")
    run_state, without = of_training(model, rows, objective)
    _, with_it = of_training(model, rows, objective, validation=rows)
    more = Counter(map(kind_and_bytes, with_it)) - Counter(map(kind_and_bytes, without))
    assert {kind for kind, _ in more} == {"all-reduce"}
    assert sum(size * count for (_, size), count in more.items()) == bytes_of(run_state.sums)


def test_sharded_weights_are_gathered_in_the_loop():
    # So that the tests above could fail.
    _, result = of_training(*cased("mlp"), place=partial(shard_state, large=0))
    assert "all-gather" in {one.kind for one in result if one.looped}


def test_one_device_has_no_collectives():
    model, rows, objective = cased("mlp")
    plan = make_plan(model, objective.loss, optax.adam(1e-3), metrics=objective.metrics, batch_size=32)
    compiled = compiled_chunk(plan, start(plan, rows, key=jax.random.key(0)), rows)
    assert collectives(compiled.as_text()) == []


def cased(name):
    model, rows, objective = CASES[name]
    return model, rows(), objective


def kind_and_bytes(one):
    return one.kind, one.bytes
