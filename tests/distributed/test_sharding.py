"""Runs on meshes of eight simulated devices, against the same runs on one."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxdl import distributed
from jaxdl.data import dataset
from jaxdl.distributed import sharding
from jaxdl.ensembles import run_members, start_members
from jaxdl.errors import InputError
from jaxdl.losses import softmax_cross_entropy, squared_error
from jaxdl.metrics import accuracy, rmse
from jaxdl.nn import convnet, crop, cutout, flip, mlp, residual_net, with_augmentation
from jaxdl.train import chunks, early_stopping, epochs, make_plan, reduce_on_plateau, run_epoch, start
from jaxdl.train.evaluate import evaluate, predict
from jaxdl.train.fit import fit

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(101, 6)).astype(np.float32)
TARGETS = (INPUTS[:, :1] * 2 + np.sin(3 * INPUTS[:, 1:2])).astype(np.float32)
TRAIN, VALIDATION = dataset(INPUTS[:83], TARGETS[:83]), dataset(INPUTS[83:], TARGETS[83:])
METRICS = (rmse,)
PLAN = make_plan(
    mlp((16, 8), input_norm=True, dropout=0.2),
    squared_error,
    optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    metrics=[rmse],
    batch_size=15,
    early_stopping=early_stopping(patience=4),
    plateau=reduce_on_plateau(patience=2),
    ema_decay=0.9,
)
# A run of less, which compiles faster.
NORMED, SGD = mlp((4,), input_norm=True), optax.sgd(0.01)


@functools.cache
def beginning():
    return start(PLAN, TRAIN, VALIDATION, key=jax.random.key(0))


def mesh_of_size(count, **sizes):
    return distributed.make_mesh(jax.devices()[:count], **sizes)


def placed(mesh, begin=None, rows=(TRAIN, VALIDATION), large=sharding.LARGE):
    begin = beginning() if begin is None else begin
    return (
        distributed.shard_state(begin, mesh, large=large),
        *(each if each is None else distributed.shard_dataset(each, mesh) for each in rows),
    )


def history(plan, run_state, train, validation, last):
    pairs = list(epochs(plan, run_state, train, validation, last=last))
    return pairs[-1][0], [record for _, record in pairs]


@pytest.fixture(scope="module")
def alone():
    # 9 epochs of 6 batches.
    return history(PLAN, beginning(), TRAIN, VALIDATION, 9)


@pytest.mark.parametrize(
    ("count", "sizes", "large"),
    [
        (1, {}, sharding.LARGE),
        (2, {}, sharding.LARGE),
        (8, {}, sharding.LARGE),
        (8, {}, 0),
        (8, {"data": 4, "model": 2}, 0),
        (2, {"data": 1, "model": 2}, 0),
    ],
)
def test_54_steps_on_any_mesh_give_the_losses_of_one_device(count, sizes, large, alone, compilations):
    with compilations() as names:
        run_state, records = history(PLAN, *placed(mesh_of_size(count, **sizes), large=large), 9)
    assert names.count("chunk_program") == 1
    assert int(run_state.train_state.step) == 54
    for result, wanted in zip(records, alone[1], strict=True):
        for name in wanted:
            np.testing.assert_allclose(result[name], wanted[name], rtol=1e-5, err_msg=name)
    assert len(run_state.train_state.step.sharding.device_set) == count


@pytest.mark.parametrize("large", [sharding.LARGE, 0])
def test_a_run_keeps_its_layout(large):
    begin, *rows = placed(mesh_of_size(8), large=large)
    kernel = begin.train_state.variables.params["Dense_0"]["kernel"].sharding
    assert kernel.is_fully_replicated == (large > 0)
    for chunk in chunks(PLAN, begin, *rows, last=2, steps=lambda: 4):
        assert sharding.shardings_of(chunk.state) == sharding.shardings_of(begin)
    after, _ = run_epoch(begin, *rows, plan=PLAN)
    assert sharding.shardings_of(after) == sharding.shardings_of(begin)


def test_fit_needs_nothing_but_placed_rows():
    run = partial(fit, NORMED, squared_error, SGD, metrics=[rmse], epochs=3, batch_size=8)
    wanted = run(TRAIN, VALIDATION)
    result = run(distributed.shard_dataset(TRAIN, mesh_of_size(8)), VALIDATION)
    np.testing.assert_allclose(result.history, wanted.history, rtol=1e-5)
    assert len(result.state.epoch.sharding.device_set) == 8


# Batches of one row, of fewer rows than devices, of as many, of no multiple of them, and of all rows.
@pytest.mark.parametrize(("batch_size", "counts"), [(1, (8,)), (3, (8,)), (8, (3, 8)), (83, (3,))])
def test_every_batch_size_is_exact_on_every_number_of_devices(batch_size, counts):
    run = partial(fit, NORMED, squared_error, SGD, metrics=[rmse], epochs=1, batch_size=batch_size)
    wanted = run(TRAIN, VALIDATION)
    for count in counts:
        result = run(distributed.shard_dataset(TRAIN, mesh_of_size(count)), VALIDATION)
        np.testing.assert_allclose(result.history, wanted.history, rtol=2e-5)


@pytest.mark.parametrize("batch_size", [None, 5, 16, 82, 1000])
def test_evaluation_and_prediction_on_a_mesh_are_those_of_one_device(batch_size):
    mesh, weights = mesh_of_size(8), beginning().train_state.variables
    rows = distributed.shard_dataset(TRAIN, mesh)
    wanted = evaluate(PLAN.model, weights, TRAIN, squared_error, metrics=[rmse])
    on_mesh = sharding.device_put(weights, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), weights))
    result = evaluate(PLAN.model, on_mesh, rows, squared_error, metrics=[rmse], batch_size=batch_size)
    np.testing.assert_allclose(result["rmse"], wanted["rmse"], rtol=1e-6)
    outputs = predict(PLAN.model, on_mesh, rows.inputs, batch_size=batch_size)
    np.testing.assert_allclose(outputs, predict(PLAN.model, weights, TRAIN.inputs), rtol=1e-5, atol=1e-6)


def images(count, classes=10):
    return dataset(RANDOM.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8), RANDOM.integers(0, classes, count))


@pytest.mark.parametrize(
    "model",
    [
        convnet((4,), pool=True, dropout=0.3),
        with_augmentation(residual_net(2), flip, crop(2), cutout(4)),
    ],
    ids=["convnet", "residual"],
)
def test_images_on_eight_devices_are_trained_as_on_one(model):
    plan = make_plan(model, softmax_cross_entropy, optax.sgd(1e-2, momentum=0.9), metrics=[accuracy], batch_size=12)
    rows = images(50), images(20)
    begin = start(plan, *rows, key=jax.random.key(1))
    wanted, messages = history(plan, begin, *rows, 2)
    result, records = history(plan, *placed(mesh_of_size(8), begin, rows), 2)
    for one, other in zip(records, messages, strict=True):
        for name in other:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for one, other in zip(
        jax.tree.leaves(result.train_state.variables), jax.tree.leaves(wanted.train_state.variables), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_large_leaves_are_split_by_one_rule():
    mesh = AbstractMesh((2, 3), ("data", "model"))

    def spec(*shape, large=0):
        return tuple(sharding.partition_spec(np.zeros(shape, np.float32), mesh, large))

    assert spec(6, 8) == ("model", "data")
    assert spec(5, 7) == ()
    assert spec(4, 4) == ("data",)
    assert spec(9, 5) == ("model",)
    assert spec(3, 3, 6, 12) == (None, None, "model", "data")
    assert spec() == ()
    assert spec(6, 8, large=6 * 8 * 4 + 1) == ()
    assert tuple(sharding.partition_spec(np.zeros((8, 8)), AbstractMesh((4,), ("member",)), 0)) == ()


def test_a_split_leaf_takes_its_share_of_each_device():
    tree = {"kernel": jnp.ones((16, 4)), "bias": jnp.ones(3)}
    result = distributed.shard_state(tree, mesh_of_size(8), large=0)
    assert {shard.data.shape for shard in result["kernel"].addressable_shards} == {(2, 4)}
    assert result["bias"].is_fully_replicated
    np.testing.assert_array_equal(sharding.to_host(result)["kernel"], tree["kernel"])
    assert len(sharding.to_host(result)["kernel"].sharding.device_set) == 1


def test_keys_are_placed_and_fetched_as_keys():
    key = distributed.shard_state({"key": jax.random.key(3)}, mesh_of_size(8), large=0)["key"]
    assert len(key.sharding.device_set) == 8
    assert jax.random.bits(sharding.to_host(key)) == jax.random.bits(jax.random.key(3))


def test_a_run_that_starts_on_a_mesh_is_the_run_that_is_placed_there():
    begin = start(PLAN, *placed(mesh_of_size(8))[1:], key=jax.random.key(0))
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(begin))
    for one, other in zip(
        jax.tree.leaves(begin.train_state.variables), jax.tree.leaves(beginning().train_state.variables), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_run_goes_on_on_another_number_of_devices(alone):
    eight, _ = history(PLAN, *placed(mesh_of_size(8)), 3)
    one, _ = history(PLAN, sharding.to_host(eight), TRAIN, VALIDATION, 6)
    two, records = history(PLAN, *placed(mesh_of_size(2), one), 9)
    for result, wanted in zip(records, alone[1][6:], strict=True):
        np.testing.assert_allclose(result["val_loss"], wanted["val_loss"], rtol=1e-5)
    assert int(two.train_state.step) == int(alone[0].train_state.step)


def test_the_least_wish_counts_and_none_is_a_pause():
    mesh = mesh_of_size(8)
    begin, *rows = placed(mesh)
    requests = iter([3, 0, 2, 2, 0, 1, 1, 1, 1])
    result = list(chunks(PLAN, begin, *rows, last=1, steps=lambda: next(requests)))
    # One chunk is always ahead of the one that is looked at; at a pause what was ahead is dropped.
    assert [chunk.batches for chunk in result] == [3, 0, 2, 0, 1, 1]
    assert [chunk.record is not None for chunk in result].count(True) == 1
    paused = result[1].state
    for one, other in zip(jax.tree.leaves(result[0].state), jax.tree.leaves(paused), strict=True):
        np.testing.assert_array_equal(sharding.to_host(one), sharding.to_host(other)) if not jnp.issubdtype(
            one.dtype, jax.dtypes.prng_key
        ) else None


def test_members_and_rows_share_a_mesh():
    keys = jax.random.split(jax.random.key(0), 2)
    plan = make_plan(NORMED, squared_error, SGD, metrics=[rmse], batch_size=10)
    many = start_members(keys, TRAIN, VALIDATION, plan=plan)
    wanted = [record for _, record in epochs(plan, many, TRAIN, VALIDATION, last=2, run=run_members)]
    mesh = mesh_of_size(8, member=2, data=4)
    apart, alike = NamedSharding(mesh, PartitionSpec("member")), NamedSharding(mesh, PartitionSpec())
    there = jax.device_put(many._replace(cursor=()), apart)._replace(cursor=jax.device_put(many.cursor, alike))
    rows = (distributed.shard_dataset(each, mesh) for each in (TRAIN, VALIDATION))
    result = [record for _, record in epochs(plan, there, *rows, last=2, run=run_members)]
    for one, other in zip(result, wanted, strict=True):
        np.testing.assert_allclose(one["val_loss"], other["val_loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"rows": 8}, "a mesh has the axes member, data, model, got rows"),
        ({"data": 3}, "must use up its 8 devices, got data=3, which is 3"),
        ({"data": 0, "model": 8}, "must use up its 8 devices, got data=0, model=8"),
        ({"data": -2, "model": -4}, "got data=-2, model=-4"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        distributed.make_mesh(**sizes)


def test_axes_stand_in_one_order():
    assert distributed.make_mesh(model=2, data=2, member=2).axis_names == ("member", "data", "model")
    assert isinstance(distributed.make_mesh(), Mesh)
