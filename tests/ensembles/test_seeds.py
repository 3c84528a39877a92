"""`fit_seeds`: each of many runs is the run that `fit` makes of its seed."""

from functools import partial

import jax
import numpy as np
import optax
import pandas as pd
import pytest

from jaxdl import losses, metrics, saving
from jaxdl._tree import check_structure, unflatten_named
from jaxdl.data import dataset
from jaxdl.ensembles import fit_seeds, start_members
from jaxdl.ensembles.seeds import as_table, seed_keys
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.train import early_stopping, loop, make_plan
from jaxdl.train.fit import fit
from tests.bits import bits

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(45, 5)).astype(np.float32)
TARGETS = INPUTS[:, :1] ** 2
DATA = dataset(INPUTS[:30], TARGETS[:30]), dataset(INPUTS[30:], TARGETS[30:])
MODEL, LOSS, OPTIMIZER = mlp((8,)), losses.squared_error, optax.adam(0.05)
FLAGS = {"epochs": 30, "batch_size": 8, "early_stopping": early_stopping(patience=2)}
SEEDS = (3, 0, 7)
solo = partial(fit, MODEL, LOSS, OPTIMIZER, *DATA, metrics=[metrics.rmse], **FLAGS)
many = partial(fit_seeds, MODEL, LOSS, OPTIMIZER, *DATA, metrics=[metrics.rmse], **{**FLAGS, "seeds": SEEDS})


def of(runs, index):
    return jax.tree.map(lambda leaf: leaf[index], (runs.best, runs.final))


@pytest.fixture(scope="module")
def alone():
    return [solo(seed=seed) for seed in SEEDS]


def test_mapped_runs_are_those_of_fit(alone):
    runs = many(method="map")
    assert len({len(run.history) for run in alone}) > 1
    for index, run in enumerate(alone):
        assert bits(of(runs, index)) == bits((run.best, run.final))
        history = runs.history[runs.history["member"] == index].drop(columns="member").set_index("epoch")
        pd.testing.assert_frame_equal(history.astype(float), run.history, check_exact=True, check_dtype=False)
        assert (runs.reasons[index], runs.best_epochs[index]) == (run.reason, run.best_epoch)


def test_batched_runs_are_those_of_fit_up_to_rounding(alone):
    runs = many()
    ends = runs.history.groupby("member")["epoch"].max()
    best = runs.history.groupby("member")["val_loss"].min()
    for index, run in enumerate(alone):
        assert ends[index] == len(run.history)
        np.testing.assert_allclose(best[index], run.history["val_loss"].min(), rtol=0.01)


def test_runs_that_are_interrupted_go_on_bit_for_bit(monkeypatch):
    whole = many()

    def interrupted(*arguments, **options):
        for number, chunk in enumerate(loop.chunks(*arguments, **options)):
            yield chunk
            if number == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr("jaxdl.ensembles.seeds.chunks", interrupted)
    runs = many()
    monkeypatch.undo()
    assert "interrupted" in runs.reasons and len(runs.history) < len(whole.history)
    rest = many(state=runs.state)
    assert bits(rest.state) == bits(whole.state) and rest.reasons == whole.reasons
    together = pd.concat([runs.history, rest.history]).sort_values(["member", "epoch"], ignore_index=True)
    pd.testing.assert_frame_equal(together, whole.history, check_exact=True)


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({"seeds": ()}, r"seeds must be a row of at least one whole number, got \(\)"),
        ({"seeds": 5}, "seeds must be a row of at least one whole number, got 5"),
        ({"seeds": (1.5,)}, "seeds must be a row of at least one whole number"),
        ({"method": "pmap"}, 'method must be "vmap" or "map", got "pmap"'),
        ({"batch_size": 99}, "batch_size=99 leaves no full batch"),
        ({"seeds": (-1,)}, "seed must be from 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_told(options, output):
    with pytest.raises(InputError, match=output):
        many(**options)


def test_a_progress_of_other_seeds_is_refused():
    run_state = many(epochs=1).state
    with pytest.raises(InputError, match=r"state must be that of 2 seeds, got one of shape \(3,\)"):
        many(seeds=(1, 2), state=run_state)


@pytest.mark.parametrize(("count", "devices"), [(3, 3), (4, 4), (9, 3), (11, 1)])
def test_seeds_are_spread_over_devices_and_train_in_one_program(count, devices, compilations):
    seeds = range(count)
    train = partial(fit_seeds, mlp(()), losses.squared_error, optax.sgd(0.05), DATA[0], epochs=3, batch_size=8)
    with compilations() as names:
        runs = train(seeds=seeds)
    assert names.count("_run") == names.count("start_members") == 1
    assert len(runs.state.epoch.sharding.device_set) == devices
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves((runs.best, runs.final)))
    with compilations() as names:
        train(seeds=range(50, 50 + count))
        train(seeds=seeds, epochs=5, state=runs.state)
    assert "_run" not in names and "start_members" not in names


def test_observers_see_every_epoch_with_the_records_so_far():
    calls = []

    def observe(run_state, records):
        calls.append((run_state.epoch.max().item(), len(records)))

    runs = many(method="map", callbacks=[observe])
    assert calls == [(epoch, epoch) for epoch in range(1, runs.history["epoch"].max() + 1)]


@pytest.mark.parametrize("last", [1, 4])
def test_a_run_that_was_killed_goes_on_from_its_checkpoint_bit_for_bit(last, tmp_path):
    def kill(run_state, records):
        if len(records) == last:
            raise KeyboardInterrupt

    seeds = [3, 0, 7, 1]
    whole = many(seeds=seeds)
    with saving.checkpointer(tmp_path, {"seeds": seeds}, every=99, warn=print) as keep:
        runs = many(seeds=seeds, callbacks=[keep, kill])
    assert runs.history["epoch"].max() == last and "interrupted" in runs.reasons
    # From here on only the files are known.
    saved = saving.restore_latest(tmp_path, print)
    plan = make_plan(
        MODEL,
        losses.squared_error,
        OPTIMIZER,
        metrics=[metrics.rmse],
        batch_size=8,
        early_stopping=FLAGS["early_stopping"],
    )
    template = start_members(seed_keys(saved.about["seeds"]), *DATA, plan=plan)
    check_structure(saved.about["kinds"], template)
    rest = many(seeds=seeds, state=unflatten_named(template, saved.arrays))
    assert bits(rest.state) == bits(whole.state) and rest.reasons == whole.reasons
    assert bits((rest.best, rest.final)) == bits((whole.best, whole.final))
    listed = saved.about["history"]
    records = [{name: np.array(of) if isinstance(of, list) else of for name, of in row.items()} for row in listed]
    before = as_table(records, np.asarray(rest.state.epoch))
    joined = pd.concat([before, rest.history]).sort_values(["member", "epoch"], ignore_index=True)
    # JSON holds the figures as float64, which has every float32.
    pd.testing.assert_frame_equal(joined.astype(float), whole.history.astype(float), check_exact=True)


def test_the_keys_are_those_of_fit_for_every_seed_that_it_takes():
    result = seed_keys(np.array([0, 5, 2**32 - 1]))
    for key, seed in zip(result, (0, 5, 2**32 - 1), strict=True):
        assert bits(key) == bits(jax.random.key(seed))
