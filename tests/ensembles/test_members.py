"""Ensembles: each member is its solo run, whatever the others do."""

import functools
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from jaxdl import _tree, ensembles, losses, metrics, saving
from jaxdl.data import dataset
from jaxdl.ensembles import evaluate_members, members, predict_mean
from jaxdl.errors import InputError
from jaxdl.nn import convnet, mlp
from jaxdl.train import chunks, early_stopping, epochs, make_plan, reduce_on_plateau, run_epoch, start
from jaxdl.train.evaluate import evaluate, predict
from jaxdl.train.plan import PlanFamily
from jaxdl.types import Objective
from tests.bits import bits

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(45, 5)).astype(np.float32)
TARGETS = INPUTS[:, :1] ** 2
TRAIN, VALIDATION = dataset(INPUTS[:30], TARGETS[:30]), dataset(INPUTS[30:], TARGETS[30:])
# All that a run may remember: BatchNorm, dropout, the learning rate, momentum, an average, both rules.
PLAN = make_plan(
    mlp((8,), dropout=0.1, input_norm=True),
    losses.squared_error,
    optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
    metrics=[metrics.rmse],
    batch_size=8,
    early_stopping=early_stopping("val_loss", patience=3),
    plateau=reduce_on_plateau("val_loss", factor=0.5, patience=1),
    ema_decay=0.5,
)
WITHOUT_BATCHNORM = PLAN._replace(model=mlp((8,), dropout=0.1))
# What compiles fast and still draws in training.
QUICK = make_plan(mlp((4,), dropout=0.1), losses.squared_error, optax.adam(0.05), batch_size=8)


@functools.cache
def keys():
    return jax.random.split(jax.random.key(0), 4)


@functools.cache
def beginning():
    return members.map_keys(keys(), lambda key: start(PLAN, TRAIN, VALIDATION, key=key))


LAST = 40


def together(how="vmap", begin=None, last=LAST, plan=PLAN):
    begin = beginning() if begin is None else begin
    return list(epochs(plan, begin, TRAIN, VALIDATION, last=last, run=partial(ensembles.run_members, method=how)))


@pytest.fixture(scope="module")
def alone():
    """The solo runs, each a list of (state, record)."""
    begins = [start(PLAN, TRAIN, VALIDATION, key=key) for key in keys()]
    return [list(epochs(PLAN, begin, TRAIN, VALIDATION, last=LAST)) for begin in begins]


@pytest.fixture(scope="module")
def mapped():
    return together("map")


@pytest.fixture(scope="module")
def batched():
    return together("vmap")


def test_members_begin_as_solo_runs(alone):
    for index, key in enumerate(keys()):
        assert bits(ensembles.member(beginning(), index)) == bits(start(PLAN, TRAIN, VALIDATION, key=key))


def test_these_runs_end_at_different_epochs(alone):
    ends = {len(run) for run in alone}
    assert len(ends) > 1 and max(ends) < LAST


def test_mapped_members_are_solo_runs_bit_for_bit(alone, mapped):
    assert len(mapped) == max(map(len, alone))
    many, _ = mapped[-1]
    for index, run in enumerate(alone):
        assert bits(ensembles.member(many, index)) == bits(run[-1][0])
        for (_, record), (_, expected) in zip(mapped, run, strict=False):
            assert {
                name: value if name == "epoch" else value[index].item() for name, value in record.items()
            } == expected


def test_batched_members_are_solo_runs_up_to_rounding(alone, batched):
    first, last = batched[0][0], batched[-1][0]
    for index, run in enumerate(alone):
        expected = _tree.flatten_named(run[0][0])
        for name, leaf in _tree.flatten_named(ensembles.member(first, index)).items():
            np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
        result, solo = ensembles.member(last, index), run[-1][0]
        assert int(result.epoch) == int(solo.epoch) == len(run)
        np.testing.assert_allclose(result.stopping.best, solo.stopping.best, rtol=0.01)


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_who_has_stopped_stands_still(how, request):
    history = request.getfixturevalue("mapped" if how == "map" else "batched")
    ends = np.asarray(history[-1][0].epoch)
    for number, (many, record) in enumerate(history, 1):
        assert record["epoch"] == number
        for index, end in enumerate(ends):
            assert np.isnan(record["val_loss"][index]) == (number > end)
            if number >= end:
                assert bits(ensembles.member(many, index)) == bits(ensembles.member(history[-1][0], index))


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_chunks_of_an_ensemble_give_the_bits_of_the_whole(how, request):
    expected = request.getfixturevalue("mapped" if how == "map" else "batched")[-1][0]
    lengths, run = itertools.cycle([1, 3, 2, 100]), partial(ensembles.run_members, method=how)
    *_, end = chunks(PLAN, beginning(), TRAIN, VALIDATION, last=LAST, steps=lambda: next(lengths), run=run)
    assert bits(end.state) == bits(expected)


@pytest.mark.parametrize("batches", [3, 4, 13, 50])
def test_an_ensemble_goes_on_from_a_checkpoint_bit_for_bit(batches, batched, tmp_path):
    run = ensembles.run_members
    pieces = chunks(PLAN, beginning(), TRAIN, VALIDATION, last=LAST, steps=lambda: 1, run=run)
    middle = list(itertools.islice(pieces, batches))[-1].state
    with saving.checkpointer(tmp_path, {}, every=99, warn=print) as keep:
        keep(middle, [])
    saved = saving.restore_latest(tmp_path, print)
    *_, (many, _) = together(begin=_tree.unflatten_named(beginning(), saved.arrays))
    assert bits(many) == bits(batched[-1][0])


def test_a_member_goes_on_alone(mapped, alone):
    third = mapped[2][0]
    for index, run in enumerate(alone):
        run_state = ensembles.member(third, index)
        rest = list(epochs(PLAN, run_state, TRAIN, VALIDATION, last=LAST))
        assert bits(rest[-1][0] if rest else run_state) == bits(run[-1][0])


def test_a_member_of_nan_harms_no_other(batched):
    params = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), beginning().train_state.variables.params)
    state = beginning().train_state._replace(variables=beginning().train_state.variables._replace(params=params))
    result = together(begin=beginning()._replace(train_state=state))[-1][0]
    for index in (0, 2, 3):
        assert bits(ensembles.member(result, index)) == bits(ensembles.member(batched[-1][0], index))
    ill = ensembles.member(result, 1)
    assert int(ill.stopping.best_epoch) == 0 and bool(ill.stopping.should_stop)


def test_an_ensemble_is_one_program(compilations, batched):
    with compilations() as names:
        together()
    assert "_run" not in names
    # Members differ in their data alone: other keys compile nothing.
    other = members.map_keys(
        jax.random.split(jax.random.key(9), 4), lambda key: start(PLAN, TRAIN, VALIDATION, key=key)
    )
    with compilations() as names:
        together(begin=other, last=2)
    assert "_run" not in names


def test_ensemble_is_the_loop_in_its_docstring(meaning):
    epoch = partial(run_epoch, plan=PLAN)
    together = jax.jit(members.map_members(epoch, "map"))
    many, states = beginning(), [start(PLAN, TRAIN, VALIDATION, key=key) for key in keys()]
    for _ in range(8):
        many, record = together(many, TRAIN, VALIDATION)
        loop = {"states": states, "values": [dict.fromkeys(record, np.nan) for _ in keys()]}
        names = {"epoch": epoch, "arguments": (TRAIN, VALIDATION), "named": {}, **loop}
        expected = meaning(members.map_members, **names)["values"]
        for name, values in record.items():
            np.testing.assert_array_equal(values, [float(each[name]) for each in expected])
    assert any(int(run_state.epoch) < 8 for run_state in states)
    for index, run_state in enumerate(states):
        assert bits(ensembles.member(many, index)) == bits(run_state)


@pytest.fixture(scope="module")
def apart():
    """The ensemble and its data on two devices."""
    return ensembles.shard_members(beginning(), TRAIN, VALIDATION, devices=jax.devices()[:2])


def test_members_on_several_devices_are_the_same_runs(batched, apart):
    many, train, validation = apart
    *_, (result, _) = epochs(PLAN, many, train, validation, last=LAST, run=ensembles.run_members)
    assert len(result.epoch.sharding.device_set) == 2
    for name, leaf in _tree.flatten_named(result).items():
        np.testing.assert_allclose(leaf, _tree.flatten_named(batched[-1][0])[name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_devices_only_tell_each_other_whether_all_have_stopped(how, apart):
    options = {"plan": PLAN, "method": how, "mesh": apart[0].epoch.sharding.mesh}
    text = members._run.lower(*apart, np.int32(4), np.bool_(True), {}, **options).compile().as_text()
    result = re.findall(r"= (\S+) ((?:all|collective|reduce-scatter|ragged)[a-z-]*)\(", text)
    assert result == [("pred[]", "all-reduce")]


def test_members_that_cannot_be_shared_evenly_are_refused():
    with pytest.raises(InputError, match=r"4 members cannot be sharded evenly over 3 devices\. Use a multiple\."):
        ensembles.shard_members(beginning(), TRAIN, devices=jax.devices()[:3])


@pytest.mark.parametrize(("count", "size"), [(1, 1), (8, 8), (9, 3), (16, 8), (17, 1), (24, 8)])
def test_members_are_batched_in_equal_blocks_of_at_most_eight_on_a_cpu(count, size):
    assert members._member_batch_size(count) == size


# The larger ones take as long again.
@pytest.mark.parametrize("count", [9, *(pytest.param(count, marks=pytest.mark.slow) for count in (16, 17))])
def test_members_in_blocks_are_their_solo_runs(count):
    keys = jax.random.split(jax.random.key(5), count)
    many = ensembles.start_members(keys, TRAIN, VALIDATION, plan=QUICK)
    ((result, record),) = together(begin=many, last=1, plan=QUICK)
    for index in (0, count // 2, count - 1):
        begin = start(QUICK, TRAIN, VALIDATION, key=keys[index])
        ((run_state, expected),) = epochs(QUICK, begin, TRAIN, VALIDATION, last=1)
        for name, value in expected.items():
            if name != "epoch":
                np.testing.assert_allclose(record[name][index], value, rtol=1e-5)
        for name, leaf in _tree.flatten_named(ensembles.member(result, index)).items():
            np.testing.assert_allclose(leaf, _tree.flatten_named(run_state)[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("count", [2, 4])
def test_mapped_members_on_several_devices_are_solo_runs_bit_for_bit_without_batchnorm(count):
    plan = WITHOUT_BATCHNORM
    begin = ensembles.start_members(keys(), TRAIN, VALIDATION, plan=plan)
    many, train, validation = ensembles.shard_members(begin, TRAIN, VALIDATION, devices=jax.devices()[:count])
    *_, (result, _) = epochs(plan, many, train, validation, last=LAST, run=partial(ensembles.run_members, method="map"))
    assert len(result.epoch.sharding.device_set) == len(result.key.sharding.device_set) == count
    for index, key in enumerate(keys()):
        run = epochs(plan, start(plan, TRAIN, VALIDATION, key=key), TRAIN, VALIDATION, last=LAST)
        assert bits(ensembles.member(result, index)) == bits(list(run)[-1][0])


def test_mapped_members_with_batchnorm_on_several_devices_are_solo_runs_up_to_rounding(alone, apart):
    many, train, validation = apart
    *_, (result, _) = epochs(PLAN, many, train, validation, last=LAST, run=partial(ensembles.run_members, method="map"))
    for index, run in enumerate(alone):
        expected = _tree.flatten_named(run[-1][0])
        for name, leaf in _tree.flatten_named(ensembles.member(result, index)).items():
            np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("count", "devices"), [(1, 1), (3, 3), (8, 8), (11, 1), (9, 3), (12, 6), (16, 8)])
def test_as_many_devices_are_used_as_share_the_members_evenly(count, devices):
    assert members.most_devices(count) == jax.local_devices()[:devices]


def test_what_was_gathered_is_the_same_on_one_device():
    (many,) = ensembles.shard_members(beginning(), devices=jax.devices()[:4])
    result = ensembles.gather(many.train_state.variables)
    assert bits(result) == bits(beginning().train_state.variables)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(result))


def family(learning_rate, dropout, scale):
    model, optimizer = mlp((4,), dropout=dropout, init_scale=scale), optax.adam(learning_rate)
    return make_plan(model, losses.squared_error, optimizer, batch_size=8)


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_the_plans_of_a_family_leave_none_of_their_traced_values_behind(how):
    numbers = {name: jnp.array([0.1, 0.2]) for name in ("learning_rate", "dropout", "scale")}
    with jax.checking_leaks():
        many = ensembles.start_members(keys()[:2], TRAIN, VALIDATION, numbers, plan=PlanFamily(family))
        ensembles.run_members(
            many, TRAIN, VALIDATION, np.int32(3), plan=PlanFamily(family), method=how, numbers=numbers
        )


# Predictions: the mean of many networks, and the values of each network alone.

IMAGES = RANDOM.integers(0, 256, (23, 8, 8, 3), np.uint8)
LABELS = RANDOM.integers(0, 10, 23)
CLASSES = Objective(losses.softmax_cross_entropy, (metrics.accuracy,))
NETWORKS = {
    "mlp": (
        mlp((8,), input_norm=True),
        dataset(INPUTS, INPUTS[:, :1] ** 2),
        Objective(losses.squared_error, (metrics.rmse,)),
    ),
    "convnet": (
        convnet((4,), widths=(5,), padding="SAME", pool=True),
        dataset(IMAGES, RANDOM.integers(0, 10, 23)),
        CLASSES,
    ),
}


def begun(model, inputs, count):
    """The weights of many networks as they begin."""
    begin = jax.jit(jax.vmap(lambda key: model.init(key, inputs)))
    return begin(jax.random.split(jax.random.key(0), count))


@pytest.fixture(scope="module", params=list(NETWORKS))
def networks(request):
    """A model, the weights of four, rows, and what is measured."""
    model, rows, objective = NETWORKS[request.param]
    return model, begun(model, rows.inputs[:1], 4), rows, objective


def member(weights, index):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], weights)


def test_the_mean_and_spread_are_those_of_numpy(networks):
    model, weights, rows, _ = networks
    alone = np.asarray([predict(model, member(weights, index), rows.inputs) for index in range(4)], np.float64)
    result = predict_mean(model, weights, rows.inputs, batch_size=7)
    np.testing.assert_allclose(result.mean, alone.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.std, alone.std(0), rtol=1e-4, atol=1e-6)


def test_the_spread_of_equal_members_is_nothing(networks):
    model, weights, rows, _ = networks
    equal = jax.tree.map(lambda leaf: np.stack([leaf[2]] * 3), jax.tree.map(np.asarray, weights))
    assert float(predict_mean(model, equal, rows.inputs).std.max()) == 0


@pytest.mark.parametrize("batch_size", [None, 7, 1])
def test_each_member_is_measured_as_it_is_alone(networks, batch_size):
    """Bit for bit; what convolutions give may be rounded otherwise within the loop over members."""
    model, weights, rows, objective = networks
    result = evaluate_members(model, weights, rows, objective.loss, metrics=objective.metrics, batch_size=batch_size)
    for index in range(4):
        expected = evaluate(
            model, member(weights, index), rows, objective.loss, metrics=objective.metrics, batch_size=batch_size
        )
        assert set(result) == set(expected)
        for name, value in expected.items():
            rtol = 1e-6 if rows is NETWORKS["convnet"][1] else 0
            np.testing.assert_allclose(result[name][index], value, rtol=rtol, atol=0, err_msg=name)


def test_a_prediction_of_nan_harms_no_other(networks):
    model, weights, rows, objective = networks
    spoilt = jax.tree.map(np.array, weights.params)
    for leaf in jax.tree.leaves(spoilt):
        leaf[1] = np.nan
    ill = weights._replace(params=spoilt)
    result, expected = (
        evaluate_members(model, of, rows, objective.loss, metrics=objective.metrics)["loss"] for of in (ill, weights)
    )
    assert np.isnan(result[1]) and not np.isnan(expected).any()
    np.testing.assert_array_equal(np.delete(result, 1), np.delete(expected, 1))


def test_the_weights_of_a_single_run_are_refused_and_those_of_an_ensemble_of_one_are_not(networks):
    model, weights, rows, objective = networks
    alone, of_one = member(weights, 0), member(weights, slice(0, 1))
    for name, use, single in (
        ("predict_mean", lambda of: predict_mean(model, of, rows.inputs), "predict"),
        (
            "evaluate_members",
            lambda of: evaluate_members(model, of, rows, objective.loss, metrics=objective.metrics),
            "evaluate",
        ),
    ):
        with pytest.raises(
            InputError, match=rf"{name} needs the variables of many networks, .* Use jaxdl\.{single} for"
        ):
            use(alone)
        assert len(jax.tree.leaves(use(of_one))) == 2


def test_inputs_may_be_lists():
    model, rows, _ = NETWORKS["mlp"]
    weights = begun(model, rows.inputs, 2)
    assert predict_mean(model, weights, INPUTS.tolist()).mean.shape == (45, 1)


def test_tables_are_predicted_from_as_arrays_are_and_masked_values_are_refused():
    table = pd.DataFrame(INPUTS, columns=list("abcde")).assign(a=INPUTS[:, 0] > 0)
    model = mlp((3,))
    weights = begun(model, INPUTS, 2)
    plain = np.hstack([INPUTS[:, :1] > 0, INPUTS[:, 1:]]).astype(np.float32)
    np.testing.assert_array_equal(predict_mean(model, weights, table).mean, predict_mean(model, weights, plain).mean)
    with pytest.raises(InputError, match="inputs must hold a number everywhere"):
        predict_mean(model, weights, np.ma.masked_greater(INPUTS, 1))
