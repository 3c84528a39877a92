"""Sweeps: each run is the solo run of its plan and seed, in as few programs as there are shapes."""

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from jaxdl import _tree, losses
from jaxdl.data import dataset
from jaxdl.ensembles import grid, sweep
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.train import early_stopping, make_plan
from jaxdl.types import Checkpoint
from tests.bits import bits
from tests.sweep_runs import (
    INPUTS,
    LABELLED,
    METRICS,
    ROWS,
    SEEDS,
    TARGETS,
    history_of,
    make,
    make_classifier,
    make_linear,
    row_of,
    solo,
    weights_of,
)

EPOCHS = 10
# One of each kind of number that a program may leave open; names that are left out have their defaults.
TRIALS = [
    {"hidden": (8,), "learning_rate": 0.0371, "decay": 0.0123, "dropout": 0.31},
    {"hidden": (8,), "learning_rate": 0.2, "decay": 0.1, "dropout": 0.0},
    {"hidden": (3,), "learning_rate": 0.05},
]


@pytest.fixture(scope="module")
def alone():
    return {(i, seed): solo(make(**one), seed, EPOCHS) for i, one in enumerate(TRIALS) for seed in SEEDS}


@pytest.fixture(scope="module")
def mapped():
    return sweep(make, TRIALS, *ROWS, seeds=SEEDS, epochs=EPOCHS, method="map")


def test_these_runs_end_at_different_epochs_for_both_reasons(alone):
    assert {run.reason for run in alone.values()} == {"epochs", "early-stopping"}
    assert len({len(run.history) for run in alone.values()}) > 2


def test_mapped_runs_are_solo_runs_bit_for_bit(alone, mapped):
    for (index, seed), run in alone.items():
        assert bits(weights_of(mapped, index, SEEDS.index(seed))) == bits((run.best, run.final))
        history, row = history_of(mapped, index, seed), row_of(mapped, index, seed)
        pd.testing.assert_frame_equal(history, run.history, check_exact=True, check_index_type=False)
        assert (row["epochs"], row["best_epoch"], row["reason"]) == (len(run.history), run.best_epoch, run.reason)
        assert row["val_rmse"] == run.history.loc[run.best_epoch, "val_rmse"]


def test_batched_runs_are_solo_runs_up_to_rounding(alone):
    result = sweep(make, TRIALS, *ROWS, seeds=SEEDS, epochs=EPOCHS)
    for (index, seed), run in alone.items():
        history, row = history_of(result, index, seed), row_of(result, index, seed)
        # Rounding is that of the numbers that were added up, not of a small difference of theirs.
        np.testing.assert_allclose(history.loc[1], run.history.loc[1], rtol=1e-5, atol=1e-6)
        assert (row["epochs"], row["reason"]) == (len(run.history), run.reason)
        np.testing.assert_allclose(row["val_loss"], run.history["val_loss"].min(), rtol=0.01)


@pytest.mark.parametrize(
    ("make_own", "one", "rows"),
    [
        (make_classifier, {"learning_rate": 0.1, "smoothing": 0.37}, LABELLED),
        (make, {"learning_rate": 0.05, "scale": 1.3}, ROWS),
    ],
)
def test_numbers_of_which_xla_computes_more_beforehand_differ_by_rounding(make_own, one, rows):
    """Where a number is known, XLA multiplies it with other constants first: the runs differ in their last bits."""
    result = sweep(make_own, [one], *rows, seeds=(3, 0), epochs=6, method="map")
    for place, seed in enumerate((3, 0)):
        run, history = solo(make_own(**one), seed, 6, rows), history_of(result, 0, seed)
        assert len(history) == len(run.history)
        np.testing.assert_allclose(history, run.history, rtol=1e-4)
        expected = _tree.flatten_named((run.best, run.final))
        for name, leaf in _tree.flatten_named(weights_of(result, 0, place)).items():
            np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-5)


def own_schedule(learning_rate, length):
    """A linear decay of optax refuses a length that is not known; this one is written with jnp."""

    def rate(step):
        return learning_rate * (1 - jnp.minimum(step, length) / length)

    return make_plan(
        mlp((4,)), losses.squared_error, optax.inject_hyperparams(optax.sgd)(rate), metrics=METRICS, batch_size=8
    )


def test_the_length_of_a_schedule_may_be_a_number(compilations):
    trials = [{"learning_rate": 0.05, "length": length} for length in (4.0, 11.0, 40.0)]
    with compilations() as names:
        result = sweep(own_schedule, trials, *ROWS, seeds=(0, 1), epochs=5, method="map")
    assert names.count("_run") == 1
    for index, one in enumerate(trials):
        # Four batches an epoch; the rate that is recorded is that of the epoch's last step.
        steps = 4 * np.arange(1, 6) - 1
        expected = 0.05 * (1 - np.minimum(steps, one["length"]) / one["length"])
        np.testing.assert_allclose(history_of(result, index, 1)["learning_rate"], expected, rtol=1e-5, atol=1e-9)
        # The schedule's own value stays beside the trial's in the history alone.
        assert row_of(result, index, 1)["learning_rate"] == 0.05


def test_trials_that_differ_in_floats_compile_one_program_and_again_none(compilations):
    with compilations() as names:
        sweep(make_linear, [{"learning_rate": rate} for rate in (0.1, 0.03, 0.01)], *ROWS, seeds=SEEDS, epochs=2)
    assert names.count("_run") == names.count("start_members") == 1
    with compilations() as names:
        sweep(make_linear, [{"learning_rate": rate} for rate in (0.2, 0.3, 0.4)], *ROWS, seeds=(8, 9, 1), epochs=4)
    assert "_run" not in names and "start_members" not in names


def of_kind(kind, learning_rate=0.01):
    return make_linear(learning_rate)


@pytest.mark.parametrize("kinds", [(True, False), (2, 3), (None, "one"), ((1,), (2,)), ("sgd", "adam")])
def test_what_is_no_float_is_structure(compilations, kinds):
    calls = []

    def rows(of, kind):
        calls.append(kind)
        return of

    with compilations() as names:
        sweep(of_kind, [{"kind": kind} for kind in kinds], *ROWS, seeds=(0, 1), epochs=1, rows=rows)
    assert names.count("_run") == 2
    # For training and validation rows; each as it was given.
    assert calls == [kind for kind in kinds for _ in range(2)]


def test_floats_that_are_named_are_structure_too(compilations):
    def make_own(learning_rate):
        return make_linear(0.1 if learning_rate > 0.05 else 0.01)

    trials = [{"learning_rate": 0.1}, {"learning_rate": np.float32(0.02)}]
    with compilations() as names:
        result = sweep(make_own, trials, *ROWS, seeds=(0, 1), epochs=1, structure=("learning_rate",))
    assert names.count("_run") == 2
    assert history_of(result, 0, 0)["loss"].item() != history_of(result, 1, 0)["loss"].item()


def on_columns(columns, learning_rate=0.05):
    return make_linear(learning_rate)


def test_trials_may_see_different_columns():
    def rows(of, columns):
        return of._replace(inputs=of.inputs[:, np.array(columns)])

    trials = [{"columns": (0,)}, {"columns": (1, 4)}, {"columns": (0, 1, 2, 3, 4)}]
    result = sweep(on_columns, trials, *ROWS, seeds=(3,), epochs=3, rows=rows, method="map")
    for index, one in enumerate(trials):
        chosen = INPUTS[:, one["columns"]]
        own = dataset(chosen[:30], TARGETS[:30]), dataset(chosen[30:], TARGETS[30:])
        assert bits(weights_of(result, index, 0)[1]) == bits(solo(result.plans[index], 3, 3, own).final)
    assert result.table["parameters"].tolist() == [2, 3, 6]


def test_a_sweep_needs_no_validation_rows():
    result = sweep(make_linear, [{"learning_rate": 0.05}], ROWS[0], seeds=(3,), epochs=3, method="map")
    run = solo(make_linear(0.05), 3, 3, (ROWS[0], None))
    pd.testing.assert_frame_equal(history_of(result, 0, 3), run.history, check_exact=True, check_index_type=False)


def test_a_trial_of_nan_harms_no_other():
    stop = early_stopping(patience=None)

    def make_own(learning_rate):
        return make_linear(learning_rate, stop)

    ill = sweep(
        make_own, [{"learning_rate": 0.05}, {"learning_rate": 1e30}], *ROWS, seeds=SEEDS, epochs=3, method="map"
    )
    assert np.isnan(history_of(ill, 1, 0).loc[3, "loss"]) and row_of(ill, 1, 0)["best_epoch"] == 0
    for place, seed in enumerate(SEEDS):
        run = solo(make_linear(0.05, stop), seed, 3)
        assert bits(weights_of(ill, 0, place)) == bits((run.best, run.final))
    assert np.isnan(row_of(ill, 1, 0)["loss"])


@pytest.mark.parametrize(
    "arrays", [{"epoch": np.zeros(())}, {"rung": np.zeros(()), "racing/0/candidates": np.zeros(2)}]
)
def test_a_checkpoint_of_another_kind_or_version_is_refused(arrays):
    checkpoint = Checkpoint(arrays, {"kinds": {}, "history": []}, 1)
    with pytest.raises(InputError, match=r"got one of another run or of an earlier version"):
        sweep(make_linear, grid(learning_rate=(0.1,)), *ROWS, seeds=SEEDS, epochs=1, state=checkpoint)
