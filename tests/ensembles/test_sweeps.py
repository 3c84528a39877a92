"""Sweeps: each run is the solo run of its plan and seed, in as few programs as there are shapes."""

import csv
import io
import itertools
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats
from sklearn.model_selection import ParameterGrid
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxdl import _tree, callbacks, losses, metrics, saving
from jaxdl.data import dataset
from jaxdl.ensembles import (
    SweepResult,
    choice,
    grid,
    log_uniform,
    sample,
    summarize,
    sweep,
    sweeps,
    trial_values,
    uniform,
)
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.saving.checkpoints import checkpoint_content
from jaxdl.stats import one_standard_error
from jaxdl.train import early_stopping, make_plan, start
from jaxdl.train.fit import fit
from jaxdl.types import Checkpoint, Objective
from tests import kills
from tests.bits import bits

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(45, 5)).astype(np.float32)
TARGETS = INPUTS[:, :1] ** 2
LABELS = (TARGETS[:, 0] > 0.5).astype(np.int32)
ROWS = dataset(INPUTS[:30], TARGETS[:30]), dataset(INPUTS[30:], TARGETS[30:])
LABELLED = dataset(INPUTS[:30], LABELS[:30]), dataset(INPUTS[30:], LABELS[30:])
SEEDS = (3, 0, 7)
METRICS = (metrics.rmse, metrics.r2())


def make_mlp(hidden=(8,), learning_rate=0.05, decay=0.0, dropout=0.0, scale=1.0):
    model, optimizer = mlp(hidden, dropout=dropout, init_scale=scale), optax.adamw(learning_rate, weight_decay=decay)
    return make_plan(
        model,
        losses.squared_error,
        optimizer,
        metrics=METRICS,
        batch_size=8,
        early_stopping=early_stopping(patience=2),
    )


def make_linear(learning_rate, stop=early_stopping(patience=1)):  # noqa: B008
    """Return the plan of a linear model, which compiles fast."""
    return make_plan(
        mlp(()), losses.squared_error, optax.sgd(learning_rate), metrics=METRICS, batch_size=8, early_stopping=stop
    )


def make_classifier(learning_rate, smoothing):
    objective = Objective(losses.smoothed_cross_entropy(smoothing), (metrics.accuracy,))
    model, optimizer = mlp((8,), outputs=2), optax.sgd(learning_rate, momentum=0.9)
    return make_plan(
        model,
        objective.loss,
        optimizer,
        metrics=objective.metrics,
        batch_size=8,
        early_stopping=early_stopping(patience=2),
    )


def solo(plan, seed, epochs, rows=ROWS):
    """Train a plan with `fit`, with `on_nan` as in a sweep."""
    parts = {
        "batch_size": plan.batch_size,
        "early_stopping": plan.early_stopping,
        "plateau": plan.plateau,
        "ema_decay": plan.ema_decay,
    }
    model, objective, optimizer = plan[:3]
    return fit(
        model,
        objective.loss,
        optimizer,
        *rows,
        metrics=objective.metrics,
        **parts,
        epochs=epochs,
        seed=seed,
        on_nan="continue",
    )


def weights_of(result, index, place):
    """Return the best and the final variables of a run of a sweep."""
    return jax.tree.map(lambda leaf: leaf[place], (result.best[index], result.final[index]))


def history_of(result, index, seed):
    """Return the history of a run of a sweep, in the format of `fit`."""
    chosen = result.history[(result.history["trial"] == index) & (result.history["seed"] == seed)]
    return chosen.drop(columns=["trial", "seed"]).set_index("epoch").astype(float)


def row_of(result, index, seed):
    ((_, row),) = result.table[(result.table["trial"] == index) & (result.table["seed"] == seed)].iterrows()
    return row


EPOCHS = 10
# One of each kind of number that a program may leave open; names that are left out have their defaults.
TRIALS = [
    {"hidden": (8,), "learning_rate": 0.0371, "decay": 0.0123, "dropout": 0.31},
    {"hidden": (8,), "learning_rate": 0.2, "decay": 0.1, "dropout": 0.0},
    {"hidden": (3,), "learning_rate": 0.05},
]


@pytest.fixture(scope="module")
def alone():
    return {(i, seed): solo(make_mlp(**one), seed, EPOCHS) for i, one in enumerate(TRIALS) for seed in SEEDS}


@pytest.fixture(scope="module")
def mapped():
    return sweep(make_mlp, TRIALS, *ROWS, seeds=SEEDS, epochs=EPOCHS, method="map")


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
    result = sweep(make_mlp, TRIALS, *ROWS, seeds=SEEDS, epochs=EPOCHS)
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
        (make_mlp, {"learning_rate": 0.05, "scale": 1.3}, ROWS),
    ],
)
def test_runs_differ_by_rounding_where_xla_folds_constants(make_own, one, rows):
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


def test_trials_that_differ_in_floats_share_one_compilation(compilations):
    with compilations() as names:
        sweep(make_linear, [{"learning_rate": rate} for rate in (0.1, 0.03, 0.01)], *ROWS, seeds=SEEDS, epochs=2)
    assert names.count("_run") == names.count("start_members") == 1
    with compilations() as names:
        sweep(make_linear, [{"learning_rate": rate} for rate in (0.2, 0.3, 0.4)], *ROWS, seeds=(8, 9, 1), epochs=4)
    assert "_run" not in names and "start_members" not in names


def of_kind(kind, learning_rate=0.01):
    return make_linear(learning_rate)


@pytest.mark.parametrize("kinds", [(True, False), (2, 3), (None, "one"), ((1,), (2,)), ("sgd", "adam")])
def test_values_that_are_not_floats_are_structure(compilations, kinds):
    calls = []

    def rows(of, kind):
        calls.append(kind)
        return of

    with compilations() as names:
        sweep(of_kind, [{"kind": kind} for kind in kinds], *ROWS, seeds=(0, 1), epochs=1, rows=rows)
    assert names.count("_run") == 2
    # For training and validation rows; each as it was given.
    assert calls == [kind for kind in kinds for _ in range(2)]


def test_floats_named_in_structure_are_structure_too(compilations):
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


# Trials: grids against scikit-learn's and itertools, random draws against the distributions they are named for


GRID = {"hidden": ((10, 5), (3,)), "learning_rate": [0.1, 0.01, 0.001], "norm": (True, False)}


def drawn(count, draw, seed=0):
    return np.array([trial["value"] for trial in sample(count, seed, value=draw)])


def test_a_grid_has_the_combinations_of_scikit_learn():
    assert sorted(map(repr, (sorted(one.items()) for one in grid(**GRID)))) == sorted(
        repr(sorted(one.items())) for one in ParameterGrid({name: list(of) for name, of in GRID.items()})
    )


def test_the_last_name_of_a_grid_changes_fastest():
    assert [tuple(one.values()) for one in grid(**GRID)] == list(itertools.product(*GRID.values()))
    assert all(list(one) == list(GRID) for one in grid(**GRID))


def test_a_grid_takes_any_iterable_once_and_a_string_for_one_value():
    assert grid(rate=(x / 2 for x in (1, 2)), kind="relu") == [
        {"rate": 0.5, "kind": "relu"},
        {"rate": 1.0, "kind": "relu"},
    ]


def test_a_grid_of_no_names_is_one_trial_of_defaults():
    assert grid() == list(ParameterGrid({})) == [{}]


@pytest.mark.parametrize(
    ("draw", "distribution"),
    [
        (uniform(-1.0, 3.0), stats.uniform(-1, 4)),
        (log_uniform(1e-4, 1e-1), stats.loguniform(1e-4, 1e-1)),
        (log_uniform(0.5, 200.0), stats.loguniform(0.5, 200)),
    ],
)
def test_draws_follow_their_distribution(draw, distribution):
    values = drawn(2000, draw)
    low, high = distribution.support()
    assert ((low <= values) & (values <= high)).all() and all(type(value) is float for value in values.tolist())
    assert stats.kstest(values, distribution.cdf).pvalue > 0.01
    # The test can tell them apart.
    assert stats.kstest(values, stats.uniform(low, (high - low) * 1.1).cdf).pvalue < 0.01


def test_choices_are_equally_likely_and_come_as_they_are():
    values = [one["value"] for one in sample(3000, 1, value=choice((1, 2), None, "relu"))]
    counts = [sum(value == of for value in values) for of in ((1, 2), None, "relu")]
    assert sum(counts) == 3000 and stats.chisquare(counts).pvalue > 0.01


def test_values_of_a_trial_are_drawn_independently():
    values = np.array([list(one.values()) for one in sample(2000, 3, a=uniform(0, 1), b=uniform(0, 1))])
    assert stats.spearmanr(*values.T).pvalue > 0.01


def test_the_seed_alone_decides_the_sample():
    draws = {"rate": log_uniform(1e-3, 1.0), "hidden": choice((1,), (2,))}
    assert sample(20, 7, **draws) == sample(20, 7, **draws) != sample(20, 8, **draws)
    # More of them begin with the same ones.
    assert sample(30, 7, **draws)[:20] == sample(20, 7, **draws)


def test_a_range_of_one_value_gives_that_value():
    assert set(drawn(9, uniform(0.5, 0.5))) == {0.5}
    assert all(math.isclose(value, 0.3) for value in drawn(9, log_uniform(0.3, 0.3)))


@pytest.mark.parametrize(
    ("wrong", "output"),
    [
        (lambda: grid(rate=(0.1,), hidden=()), "hidden must have at least one value to try, got none"),
        (lambda: grid(hidden=10), r"hidden must be a row of values to try, got 10\. Use \(10,\), say"),
        (lambda: sample(0, rate=uniform(0, 1)), "count must be at least 1, got 0"),
        (lambda: sample(2, rate=0.1), r"rate must be a distribution, such as uniform\(0\.0, 0\.5\), got 0\.1"),
        (lambda: uniform(2, 1), "uniform needs low <= high, both finite, got 2 and 1"),
        (lambda: uniform(0, math.inf), "uniform needs low <= high, both finite, got 0 and inf"),
        (lambda: uniform(math.nan, 1), "uniform needs low <= high"),
        (lambda: log_uniform(0, 1), "log_uniform needs 0 < low <= high, both finite, got 0 and 1"),
        (lambda: log_uniform(1, math.inf), "log_uniform needs 0 < low <= high, both finite, got 1 and inf"),
        (lambda: log_uniform(0.2, 0.1), "log_uniform needs 0 < low <= high"),
        (lambda: choice(), "choice needs at least one value, got none"),
    ],
)
def test_grids_and_distributions_refuse_bad_arguments(wrong, output):
    with pytest.raises(InputError, match=output):
        wrong()


def test_rounding_never_exceeds_the_upper_end_of_a_range():
    class Last:
        def uniform(self, low, high):
            return high

    assert isinstance(log_uniform(1, 3)(Last()), float)
    assert log_uniform(1e-4, 0.1)(Last()) <= 0.1 and log_uniform(1e-4, 0.3)(Last()) <= 0.3


# Tables and summaries against pandas, and bad input


STOP = early_stopping(patience=1)


def make(hidden=(), learning_rate=0.05, momentum=0.0):
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate, momentum=momentum)
    return make_plan(mlp(hidden), losses.squared_error, optimizer, metrics=METRICS, batch_size=8, early_stopping=STOP)


@pytest.fixture(scope="module")
def measured_sweep():
    trials = grid(hidden=((), (4,)), learning_rate=(0.05, 0.01, 0.3))
    return sweep(make, trials, *ROWS, seeds=SEEDS, epochs=6)


@pytest.mark.parametrize("at", ["best", "last"])
@pytest.mark.parametrize("figure", ["rmse", "val_loss", "val_r2"])
def test_the_summary_is_that_of_pandas(measured_sweep, figure, at):
    runs = measured_sweep.history.groupby(["trial", "seed"])
    places = runs["val_loss"].idxmin() if at == "best" else runs["epoch"].idxmax()
    of = measured_sweep.history.loc[places].groupby("trial")[figure]
    table = summarize(measured_sweep, figure, at=at)
    for name, expected in {"mean": of.mean(), "std": of.std(), "sem": of.sem(), "count": of.count()}.items():
        np.testing.assert_allclose(table[name], expected, rtol=1e-6)
    half = stats.t.ppf(0.975, 2) * of.sem()
    np.testing.assert_allclose(table["high"], of.mean() + half, rtol=1e-6)
    assert table["parameters"].tolist() == 3 * [6] + 3 * [29] and table["hidden"].tolist() == 3 * [()] + 3 * [(4,)]
    assert table["learning_rate"].tolist() == 2 * [0.05, 0.01, 0.3]


def test_the_recommendation_is_the_cheapest_within_one_standard_error(measured_sweep):
    table = summarize(measured_sweep, "val_rmse")
    best = table["mean"].idxmin()
    near = table[table["mean"] <= table.loc[best, "mean"] + table.loc[best, "sem"]]
    expected = near.sort_values(["parameters", "mean"]).index[0]
    assert one_standard_error(table["mean"], table["sem"], table["parameters"]) == expected


def test_the_number_of_epochs_can_be_summarized_too(measured_sweep):
    for at, column in (("best", "best_epoch"), ("last", "epochs")):
        expected = measured_sweep.table.groupby("trial")[column].mean()
        np.testing.assert_allclose(summarize(measured_sweep, "epoch", at=at)["mean"], expected)


def test_a_run_that_ends_in_nan_has_no_last_figure_though_it_had_earlier_ones():
    history = pd.DataFrame({"trial": 0, "seed": [0, 0, 1, 1], "epoch": [1, 2, 1, 2], "rmse": [1.0, np.nan, 2.0, 1.0]})
    about = {"trial": 0, "seed": [0, 1], "parameters": 5, "epochs": 2, "best_epoch": [1, 2], "reason": "epochs"}
    made = SweepResult(pd.DataFrame(about), history, (), (), ())
    assert np.isnan(summarize(made, "rmse", at="last").loc[0, "mean"])
    assert summarize(made, "rmse", at="last").loc[0, "diverged"] == 1
    assert summarize(made, "rmse").loc[0, "mean"] == 1.0


def test_trials_of_different_names_keep_their_own_values():
    trials = [
        {"learning_rate": 0.05},
        {"learning_rate": 0.05, "momentum": 0.9},
        {"momentum": 0.9, "learning_rate": 0.05},
    ]
    result = sweep(make, trials, *ROWS, seeds=(3, 0), epochs=2, method="map")
    assert row_of(result, 0, 3)["loss"] != row_of(result, 1, 3)["loss"] == row_of(result, 2, 3)["loss"]
    table = summarize(result, "loss")
    assert np.isnan(table.loc[0, "momentum"]) and table["momentum"].tolist()[1:] == [0.9, 0.9]


def test_a_metric_with_the_name_of_a_trial_value_is_summarized_as_measured(measured_sweep):
    table = summarize(measured_sweep, "learning_rate")
    np.testing.assert_allclose(table["mean"], table["learning_rate"], rtol=1e-6)


def decides(learning_rate):
    return make_linear(0.1 if learning_rate > 0.05 else 0.01)


def asks_numpy(learning_rate):
    return make_linear(float(np.sqrt(learning_rate)))


def schedule_of_optax(learning_rate):
    return make_linear(optax.cosine_decay_schedule(0.1, learning_rate))


def forgets(learning_rate):
    make_linear(learning_rate)


ONE = [{"learning_rate": 0.1}]


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ({"trials": []}, r"trials must have at least one entry, got none\. Use grid"),
        ({"trials": [{"hidden": [4]}]}, r"trials must have values that hash, got \{'hidden': \[4\]\}\. Use"),
        ({"trials": [{"learning_rat": 0.1}]}, "trials must give make its arguments, hidden, learning_rate, "
         "momentum; trial 0: got an unexpected keyword argument 'learning_rat'"),
        ({"make": decides, "trials": [*ONE, {}]}, "trial 1: missing a required argument: 'learning_rate'"),
        ({"trials": [{"seed": 3}]}, "trials must not name a value seed, as the tables do"),
        ({"trials": [{"mean": 0.1}]}, "trials must not name a value mean, as the tables do"),
        ({"make": decides}, r"decides must not decide on the value of learning_rate, .* Name those .* in `structure`"),
        ({"make": asks_numpy}, "asks_numpy must not decide on the value of learning_rate"),
        ({"make": schedule_of_optax}, "schedule_of_optax must not decide on the value of learning_rate"),
        ({"make": forgets}, r"forgets must return a Plan, got NoneType\. Use make_plan"),
        ({"structure": ("dropout",)}, 'structure must name values of the trials, learning_rate, got "dropout"'),
        ({"structure": "learning_rate"}, "structure must name values of the trials"),
        ({"seeds": (1, 2, 1)}, r"seeds must differ, got \(1, 2, 1\)"),
        ({"seeds": ()}, "seeds must be a row of at least one whole number"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"min_resource": 0}, "min_resource must be at least 1, got 0"),
        ({"eta": 1}, "eta must be a whole number from 2 on, got 1"),
        ({"eta": 2.5}, r"eta must be a whole number from 2 on, got 2\.5"),
        ({"method": "pmap"}, 'method must be "vmap" or "map", got "pmap"'),
    ],
)  # fmt: skip
def test_sweep_refuses_bad_arguments(arguments, output):
    options = {"make": make, "trials": ONE, "seeds": (0, 1), **arguments}
    with pytest.raises(InputError, match=output):
        sweep(options.pop("make"), options.pop("trials"), *ROWS, **options)


def test_an_error_of_make_is_raised_unchanged():
    def make_own(momentum):
        return make_plan(mlp((), dropout=momentum), losses.squared_error, optax.sgd(0.1), metrics=METRICS, batch_size=8)

    with pytest.raises(InputError, match=r"dropout must be a rate from 0 to below 1, got 1\.5"):
        sweep(make_own, [{"momentum": 0.1}, {"momentum": 1.5}], *ROWS, seeds=(0, 1))


@pytest.mark.parametrize("figure", ["nope", "reason", "seed", "parameters"])
def test_summarize_refuses_a_metric_that_is_not_measured(measured_sweep, figure):
    with pytest.raises(
        InputError, match=f'metric="{figure}" is not measured. The sweep measures: epoch, loss, rmse, r2'
    ):
        summarize(measured_sweep, figure)


def test_summarize_refuses_another_value_of_at(measured_sweep):
    with pytest.raises(InputError, match='at must be "best" or "last", got "first"'):
        summarize(measured_sweep, "loss", at="first")


# Successive halving, against a loop over solo runs


HALVING_EPOCHS = 12
NEVER = early_stopping(patience=None)
RATES = (0.03, 0.15, 1e-3, 1e30, 0.1)
RULES = {"lowest": early_stopping(patience=0), "highest": early_stopping("val_r2", mode="max", patience=2)}


def make_injected(learning_rate, stop):
    """The learning rate is a part of the state, so the solo runs of all trials are one program."""
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate)
    return make_plan(mlp(()), losses.squared_error, optimizer, metrics=METRICS, batch_size=8, early_stopping=stop)


def make_lowest(learning_rate, kind=0):
    return make_injected(learning_rate, RULES["lowest"])


def make_highest(learning_rate, kind=0):
    return make_injected(learning_rate, RULES["highest"])


# Two shapes, whose trials are ranked together.
TWO_KINDS = [{"learning_rate": rate, "kind": index % 2} for index, rate in enumerate(RATES)]
MAKES = {"lowest": make_lowest, "highest": make_highest}


@pytest.fixture(scope="module", params=["lowest", pytest.param("highest", marks=pytest.mark.slow)])
def watched(request):
    """The name of a rule, each trial's plan and its solo histories, one a seed, and the sweep without halving."""
    make = MAKES[request.param]
    plans = [make(**one) for one in TWO_KINDS]
    alone = [[solo(plan, seed, HALVING_EPOCHS).history for seed in SEEDS] for plan in plans]
    whole = sweep(make, TWO_KINDS, *ROWS, seeds=SEEDS, epochs=HALVING_EPOCHS, method="map")
    return request.param, plans, alone, whole


def looped(alone, figure, sign, rungs, eta):
    """The epoch after which each trial was dropped; the last rung for those that were not."""
    left, dropped = list(range(len(alone))), {}
    for rung in rungs[:-1]:
        cost = {}
        for index in left:
            bests = [(sign * history.loc[:rung, figure]).replace(np.inf, np.nan).min() for history in alone[index]]
            cost[index] = np.inf if np.isnan(bests).any() else np.mean(bests)
        ranked = sorted(left, key=lambda index: cost[index])
        count = int(np.ceil(len(left) / eta))
        dropped |= dict.fromkeys(ranked[count:], rung)
        left = ranked[:count]
    return {**dict.fromkeys(left, rungs[-1]), **dropped}


@pytest.mark.parametrize(
    ("eta", "min_resource", "rungs"), [(2, 1, (1, 2, 4, 8, 12)), (3, 2, (2, 6, 12)), (4, 12, (12,))]
)
def test_halving_is_a_loop_over_solo_runs(watched, eta, min_resource, rungs):
    name, _, alone, whole = watched
    figure, sign = {"lowest": ("val_loss", 1), "highest": ("val_r2", -1)}[name]
    expected = looped(alone, figure, sign, rungs, eta)
    result = sweep(
        MAKES[name],
        TWO_KINDS,
        *ROWS,
        seeds=SEEDS,
        epochs=HALVING_EPOCHS,
        eta=eta,
        min_resource=min_resource,
        method="map",
    )
    for index, end in expected.items():
        for place, seed in enumerate(SEEDS):
            ended, row = alone[index][place].loc[:end], row_of(result, index, seed)
            history = history_of(result, index, seed)
            pd.testing.assert_frame_equal(history, ended, check_exact=True, check_index_type=False)
            stopped = len(alone[index][place]) <= end and row_of(whole, index, seed)["reason"] == "early-stopping"
            assert row["reason"] == ("early-stopping" if stopped else "epochs" if end == HALVING_EPOCHS else "halving")
            if end == HALVING_EPOCHS or stopped:
                assert bits(weights_of(result, index, place)) == bits(weights_of(whole, index, place))
    if len(rungs) > 1:
        # What is nan goes first; and there are several ends.
        assert expected[RATES.index(1e30)] == rungs[0] and len(set(expected.values())) > 1


def test_dropped_trials_keep_their_variables_of_the_rung(watched):
    name, plans, *_ = watched
    result = sweep(
        MAKES[name], TWO_KINDS, *ROWS, seeds=SEEDS, epochs=HALVING_EPOCHS, eta=3, min_resource=2, method="map"
    )
    dropped = result.table[(result.table["reason"] == "halving")]
    assert set(dropped["epochs"]) <= {2, 6} and len(dropped)
    for _, row in dropped.iterrows():
        run = solo(plans[row["trial"]], row["seed"], row["epochs"])
        assert bits(weights_of(result, row["trial"], SEEDS.index(row["seed"]))) == bits((run.best, run.final))


def test_members_that_stopped_early_stay_in_a_trial_that_is_kept(watched):
    name, _, alone, whole = watched
    result = sweep(
        MAKES[name], TWO_KINDS, *ROWS, seeds=SEEDS, epochs=HALVING_EPOCHS, eta=2, min_resource=4, method="map"
    )
    index = RATES.index(0.15)
    ends = [len(history) for history in alone[index]]
    assert min(ends) <= 4 < max(ends)
    for place, seed in enumerate(SEEDS):
        row = row_of(result, index, seed)
        assert (row["epochs"], row["reason"]) == (ends[place], "early-stopping")
        assert bits(weights_of(result, index, place)) == bits(weights_of(whole, index, place))


def make_unstopped(learning_rate):
    return make_linear(learning_rate, NEVER)


def test_halving_compiles_once_for_each_size_of_the_group(compilations):
    trials = [{"learning_rate": rate} for rate in (0.1, 0.03, 0.01, 0.003)]
    with compilations() as names:
        sweep(make_unstopped, trials, *ROWS, seeds=SEEDS, epochs=9, eta=2)
    assert names.count("_run") == 3 and names.count("start_members") == 1  # of 4, 2 and 1 trials
    with compilations() as names:
        sweep(make_unstopped, trials, *ROWS, seeds=SEEDS, epochs=9, eta=2)
    assert "_run" not in names


def interrupt_chunks(monkeypatch, after):
    """`group_chunks` stops at Ctrl-C after some chunks of the sweep."""
    group_chunks, done = sweeps.group_chunks, []

    def stopping(*arguments):
        if len(done) == after:
            raise KeyboardInterrupt
        for chunk in group_chunks(*arguments):
            yield chunk
            done.append(chunk)
            if len(done) == after:
                raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "group_chunks", stopping)


def make_unstopped_kind(kind, learning_rate=0.05):
    return make_linear(learning_rate, NEVER)


@pytest.mark.parametrize("after", [0, 1, 6])
def test_an_interrupted_sweep_returns_what_was_reached(monkeypatch, after):
    trials = [{"kind": 0}, {"kind": 1}]
    interrupt_chunks(monkeypatch, after)
    result = sweep(make_unstopped_kind, trials, *ROWS, seeds=SEEDS, epochs=99, method="map")
    assert set(result.table["reason"]) == {"interrupted"} and len(result.table) == 6
    first, second = (result.table[result.table["trial"] == index]["epochs"] for index in (0, 1))
    assert first.max() == first.min() <= after and (first.min() > 0) == (after == 6) and second.max() == 0
    assert len(result.history) == first.sum()
    if first.min():
        run = solo(make_unstopped_kind(0), SEEDS[0], int(first.min()))
        assert bits(weights_of(result, 0, 0)[0]) == bits(run.best)
    # Who never began has the weights that it would have begun with.
    begun = start(make_unstopped_kind(1), *ROWS, key=jax.random.key(SEEDS[2]))
    assert bits(weights_of(result, 1, 2)) == bits((begun.best, begun.train_state.variables))


def test_a_group_that_finished_before_an_interrupt_keeps_its_reason(monkeypatch):
    group_chunks = sweeps.group_chunks

    def stopping(group, *arguments):
        if group.trials == (1,):
            raise KeyboardInterrupt
        yield from group_chunks(group, *arguments)

    monkeypatch.setattr(sweeps, "group_chunks", stopping)
    result = sweep(make_unstopped_kind, [{"kind": 0}, {"kind": 1}], *ROWS, seeds=SEEDS, epochs=2)
    assert result.table["reason"].tolist() == 3 * ["epochs"] + 3 * ["interrupted"]
    assert result.table["epochs"].tolist() == 3 * [2] + 3 * [0] and result.table["loss"].isna().sum() == 3
    assert set(result.history["trial"]) == {0}


def test_an_interrupt_keeps_the_reasons_of_trials_that_had_ended(monkeypatch):
    trials = [{"learning_rate": rate} for rate in (0.1, 0.03, 0.01)]
    group_chunks = sweeps.group_chunks

    def stopping(group, end, *arguments):
        if end > 1:
            raise KeyboardInterrupt
        yield from group_chunks(group, end, *arguments)

    monkeypatch.setattr(sweeps, "group_chunks", stopping)
    result = sweep(make_unstopped, trials, *ROWS, seeds=SEEDS, epochs=9, eta=3)
    assert sorted(result.table["reason"].tolist()) == 6 * ["halving"] + 3 * ["interrupted"]
    assert set(result.table["epochs"]) == {1}


# Sweeps that are resumed, from their result or a checkpoint, have the bits of uninterrupted ones


# A trial diverges, which a sweep warns of.
with_a_diverging_trial = pytest.mark.filterwarnings("ignore:no epoch of seeds:RuntimeWarning")

TWO_SEEDS = (3, 0)


def make_kind(learning_rate, kind=0):
    return make_linear(learning_rate, early_stopping(patience=1) if kind else NEVER)


HALVED = {"epochs": 5, "eta": 2, "min_resource": 1}
run_sweep = partial(sweep, make_kind, TWO_KINDS, *ROWS, seeds=TWO_SEEDS)


def refuse(text):
    raise AssertionError(text)


def assert_same(result, whole_sweep):
    """Raises where two sweeps differ in a bit."""
    pd.testing.assert_frame_equal(result.table, whole_sweep.table, check_exact=True)
    pd.testing.assert_frame_equal(result.history, whole_sweep.history, check_exact=True)
    for parts in ("best", "final", "state"):
        assert bits(getattr(result, parts)) == bits(getattr(whole_sweep, parts))
    assert [*map(str, result.records)] == [*map(str, whole_sweep.records)]


@pytest.fixture(scope="module", params=[HALVED, {"epochs": 3}], ids=["halving", "no halving"])
def flags(request):
    return request.param


@pytest.fixture(scope="module")
def whole_sweep(flags):
    calls = []
    result = run_sweep(**flags, callbacks=[lambda run_state, records: calls.append(len(records))])
    assert calls == list(range(1, len(result.records) + 1))
    return result


def interrupted_sweep(after, callbacks=(), **flags):
    """A sweep that Ctrl-C ends after some epochs, and all epochs of others."""

    def stop(run_state, records):
        if len(records) == after:
            raise KeyboardInterrupt

    return run_sweep(**flags, callbacks=[*callbacks, stop])


@with_a_diverging_trial
def test_an_interrupted_sweep_is_resumed_to_the_bit(flags, whole_sweep):
    for after in (1, len(whole_sweep.records) // 2, len(whole_sweep.records) - 1):
        first = interrupted_sweep(after, **flags)
        assert len(first.records) == after and "interrupted" in {*first.table["reason"]}
        assert_same(run_sweep(**flags, state=first), whole_sweep)


@with_a_diverging_trial
def test_a_sweep_that_is_interrupted_inside_an_epoch_is_resumed_to_the_bit(flags, whole_sweep, monkeypatch):
    group_chunks, count = sweeps.group_chunks, iter(range(10**6))

    def stopping(*arguments):
        for chunk in group_chunks(*arguments):
            yield chunk
            if next(count) % 4 == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "group_chunks", stopping)
    result, times = None, 0
    while result is None or "interrupted" in {*result.table["reason"]}:
        result, times = run_sweep(**flags, state=result), times + 1
    assert times > 1
    assert_same(result, whole_sweep)


@with_a_diverging_trial
def test_a_sweep_that_was_killed_is_resumed_from_its_checkpoint_to_the_bit(flags, whole_sweep, tmp_path):
    for after in (1, len(whole_sweep.records) // 2, len(whole_sweep.records) - 1):
        folder = tmp_path / str(after)
        with saving.checkpointer(folder, {"seeds": TWO_SEEDS}, every=99, warn=refuse) as keep:
            interrupted_sweep(after, **flags, callbacks=[keep])
        # From here on only the files are known.
        assert_same(run_sweep(**flags, state=saving.restore_latest(folder, refuse)), whole_sweep)


@with_a_diverging_trial
def test_a_finished_sweep_is_resumed_with_more_epochs():
    flags = {"epochs": 4, "eta": 2, "min_resource": 2}
    whole = run_sweep(**flags)
    assert_same(run_sweep(**flags, state=run_sweep(**{**flags, "epochs": 2})), whole)
    assert_same(run_sweep(**flags, state=whole), whole)


def test_epochs_of_a_dropped_trial_that_outlasted_the_first_of_its_group_stay_in_the_history():
    flags = {"seeds": (3,), "epochs": 12, "eta": 3, "min_resource": 10, "method": "map"}
    trials = [{"learning_rate": rate} for rate in (0.1, 0.004, 0.003)]
    whole = sweep(make_linear, trials, *ROWS, **flags)
    # The first trial stops at epoch 6, has the best value, and alone is left after epoch 10.
    assert whole.table["reason"].tolist() == ["early-stopping", "halving", "halving"]
    assert whole.table["epochs"].tolist() == [6, 10, 10] == [*whole.history.groupby("trial").size()]
    assert_same(sweep(make_linear, trials, *ROWS, **flags, state=whole), whole)


@with_a_diverging_trial
def test_the_sweep_that_is_resumed_is_not_changed(flags):
    first = interrupted_sweep(2, **flags)
    before, records = bits(first.state), [*first.records]
    run_sweep(**flags, state=first)
    assert bits(first.state) == before and len(first.records) == len(records) == 2


@pytest.fixture(scope="module")
def first_half():
    return interrupted_sweep(4, **HALVED)


@with_a_diverging_trial
@pytest.mark.parametrize(
    ("change", "output"),
    [
        ({"seeds": (3, 1)}, "state must be of a sweep with the same seeds"),
        ({"trials": TWO_KINDS[:4]}, "state must be of a sweep with the same trials"),
        ({"trials": [{**one, "learning_rate": 0.5} for one in TWO_KINDS]}, "the same values of trials"),
        ({"eta": None}, "epochs, eta and min_resource must fit the state"),
        ({"epochs": 1}, "epochs, eta and min_resource must fit the state"),
        ({"eta": 3}, "epochs, eta and min_resource must fit the state"),
        (
            {"trials": [{**one, "kind": 3 + one["kind"]} for one in TWO_KINDS]},
            r"with the same trials; the values of trials \[.*\] are now \{'kind': [34]\}, and were others\. Give these",
        ),
        ({"seeds": (3, 0, 1)}, "the same seeds: it has 2, got 3"),
        ({"data": (ROWS[0]._replace(targets=-ROWS[0].targets), ROWS[1])}, "the same data; train differs"),
        ({"data": (ROWS[0], ROWS[0])}, "the same data; validation differs"),
        ({"data": (ROWS[0], None)}, "the same data; validation differs"),
        ({"state": "a sweep"}, "state must be the SweepResult that an earlier call returned, .* got str"),
    ],
)
@pytest.mark.parametrize("as_checkpoint", [False, True], ids=["a result", "a checkpoint"])
def test_a_sweep_of_other_arguments_is_not_resumed(change, output, as_checkpoint, first_half):
    state = first_half
    if as_checkpoint:
        arrays, about = checkpoint_content({}, first_half.state, first_half.records)
        state = Checkpoint(arrays, json.loads(json.dumps(about)), 1)
    given = {"trials": TWO_KINDS, "seeds": TWO_SEEDS, **HALVED, "data": ROWS, "state": state, **change}
    with pytest.raises(InputError, match=output):
        sweep(make_kind, given.pop("trials"), *given.pop("data"), **given)


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (1, True),
        (1, 1.5),
        ("relu", "tanh"),
        ((1, 2), (12,)),
        (None, "None"),
        (jnp.tanh, jnp.sin),
        (partial(refuse, text="a"), partial(refuse, text="b")),
    ],
)
def test_values_of_trials_have_different_texts_without_addresses(value, other):
    assert sweeps._as_text(value) != sweeps._as_text(other)
    assert "0x" not in sweeps._as_text((value, other))


def test_the_text_of_a_set_is_sorted():
    assert sweeps._as_text((1, frozenset("cab"))) == "(1, {'a', 'b', 'c'})"


@with_a_diverging_trial
def test_a_checkpoint_of_a_single_run_is_refused(tmp_path):
    alone = solo(make_kind(0.1), 0, 1)
    with saving.checkpointer(tmp_path, {}, every=99, warn=refuse) as keep:
        keep(alone.state, alone.records)
    with pytest.raises(InputError, match="state must be a checkpoint of a sweep"):
        run_sweep(**HALVED, state=saving.restore_latest(tmp_path, refuse))


@with_a_diverging_trial
@pytest.mark.parametrize("anew", [False, True], ids=["the same callbacks", "callbacks made anew"])
def test_callbacks_of_a_sweep_write_every_run_and_epoch_once(flags, whole_sweep, anew, tmp_path):
    def opened():
        return callbacks.csv_log(tmp_path / "history.csv"), callbacks.tensorboard(tmp_path / "charts", every=0.0)

    rows, charts = opened()
    with rows as one, charts as other:
        first = interrupted_sweep(3, **flags, callbacks=[one, other])
        if not anew:
            run_sweep(**flags, state=first, callbacks=[one, other])
    if anew:
        rows, charts = opened()
        with rows as one, charts as other:
            run_sweep(**flags, state=first, callbacks=[one, other])
    with (tmp_path / "history.csv").open(newline="") as file:
        table = pd.DataFrame(csv.DictReader(file)).astype(float)
    table = table.sort_values(["trial", "seed", "epoch"], ignore_index=True)
    pd.testing.assert_frame_equal(table, whole_sweep.history.astype(float), check_exact=True)
    for (trial, seed), of in whole_sweep.history.groupby(["trial", "seed"]):
        accumulator = EventAccumulator(str(tmp_path / f"charts/trial-{trial}-seed-{seed}/validation"))
        accumulator.Reload()
        result = [(event.step, event.value) for event in accumulator.Scalars("loss")]
        np.testing.assert_array_equal(result, of[["epoch", "val_loss"]].to_numpy())


@with_a_diverging_trial
@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "a bar"])
def test_the_bar_shows_where_a_sweep_stands_and_the_mean_of_the_runs_that_share_a_program(flags, whole_sweep, terminal):
    out = Console(file=io.StringIO(), width=80, force_terminal=terminal, highlight=False, no_color=True)
    with callbacks.progress_bar(flags["epochs"], ("loss",), console=out) as observe:
        run_sweep(**flags, callbacks=[observe])
    record = whole_sweep.records[-1]
    values = record["loss"][np.isfinite(record["loss"])].astype(np.float64)
    rungs, left = (4, 1) if "eta" in flags else (1, len(TWO_KINDS))
    best = whole_sweep.table.groupby("trial")["val_loss"].mean().min()
    last = f"rung {rungs}/{rungs} trials {left}/{len(TWO_KINDS)} epoch {flags['epochs']}/{flags['epochs']} "
    assert f"{last}loss {values.mean():.4f} best {best:.4f}" in " ".join(out.file.getvalue().split())


# Where a sweep stands


def statuses(**options):
    """Return the status after each call of a callback, with the records and the SweepState of the call."""
    calls = []

    def observe(run_state, records):
        calls.append((run_state.status(records), [*records], run_state))

    return run_sweep(**options, callbacks=[observe]), calls


@with_a_diverging_trial
def test_a_callback_reads_where_the_sweep_stands(flags):
    result, calls = statuses(**flags)
    ends = [1, 2, 4, 5] if "eta" in flags else [3]
    counts = [math.ceil(len(TWO_KINDS) / 2**rung) for rung in range(len(ends))]
    for status, records, run_state in calls:
        assert (status.rungs, status.total_trials, status.epochs) == (len(ends), len(TWO_KINDS), ends[-1])
        assert status.epoch == records[-1]["epoch"]
        assert status.rung - 1 == np.searchsorted(ends, status.epoch)
        assert status.trials == counts[status.rung - 1]
        # The oracle of the best value: the records, which hold NaN for runs that have stopped.
        best = {}
        for record in records:
            for trial, seed, value in zip(record["trial"], record["seed"], record["val_loss"], strict=True):
                value = np.inf if np.isnan(value) else np.float64(value)
                best[trial, seed] = min(value, best.get((trial, seed), np.inf))
        means = [np.mean([best.get((trial, seed), np.inf) for seed in TWO_SEEDS]) for trial in range(len(TWO_KINDS))]
        assert (status.best, status.best_trial) == (min(means), int(np.argmin(means)))
        assert "status" not in _tree.flatten_named(run_state)
    fractions = [status.fraction for status, *_ in calls]
    assert fractions == sorted(fractions) and fractions[0] > 0 and fractions[-1] == 1
    assert calls[-1][0] == result.state.status(result.records)


def test_the_best_value_of_a_rule_that_maximizes_is_the_highest():
    seen = []
    trials = [{"learning_rate": rate} for rate in (0.001, 0.05)]
    sweep(make_highest, trials, *ROWS, seeds=(3,), epochs=2, callbacks=[lambda *call: seen.append(call)])
    run_state, records = seen[-1]
    status, highest = run_state.status(records), np.max([record["val_r2"] for record in records], axis=0)
    assert status.best == highest.max() and status.best_trial == highest.argmax()
    assert run_state.status([]).epoch == 0


def test_the_fraction_is_the_part_of_all_epochs_of_all_trials():
    trials, seen = [{"learning_rate": rate} for rate in (0.1, 0.03, 0.01, 0.003)], []
    sweep(make_unstopped, trials, *ROWS, seeds=(3,), epochs=5, eta=2, callbacks=[lambda *call: seen.append(call)])
    # 4 trials to epoch 1, 2 to epoch 2, 1 to epochs 4 and 5.
    expected = np.cumsum([4, 2, 1, 1, 1]) / 9
    np.testing.assert_allclose([run_state.status(records).fraction for run_state, records in seen], expected)


@with_a_diverging_trial
def test_a_sweep_that_is_killed_at_random_moments_ends_with_the_bits_of_an_undisturbed_one(tmp_path):
    assert kills.kills(kills.Runs("sweep", tmp_path), 3).startswith("3 SIGKILL")


# The values of trials, for samplers that suggest trials round after round


def expected_values(make_own, trials, mode=min, epochs=4):
    figure = "val_loss" if mode is min else "val_r2"
    runs = [[solo(make_own(**one), seed, epochs) for seed in TWO_SEEDS] for one in trials]
    return [np.mean([mode(run.history[figure]) for run in of_trial]) for of_trial in runs]


ROUND = {"seeds": TWO_SEEDS, "epochs": 4, "size": 4, "method": "map"}


@pytest.mark.parametrize(("make_own", "mode"), [(make_lowest, min), (make_highest, max)])
def test_values_of_trials_are_those_of_fit_and_sweep(make_own, mode):
    trials = [{"learning_rate": rate} for rate in (0.1, 0.003, 0.02)]
    values = trial_values(make_own, trials, *ROWS, **ROUND)
    assert values.tolist() == expected_values(make_own, trials, mode)
    result = sweep(make_own, trials, *ROWS, seeds=TWO_SEEDS, epochs=4, method="map")
    figure = "val_loss" if mode is min else "val_r2"
    assert values.tolist() == [np.mean(column) for _, column in result.table.groupby("trial")[figure]]


def test_values_of_trials_are_the_loop_in_the_docstring(meaning):
    def train_alone(plan, seed):
        return solo(plan, seed, 4).history

    trials = [{"learning_rate": rate} for rate in (0.1, 0.003)]
    names = {"make": make_lowest, "trials": trials, "seeds": TWO_SEEDS, "np": np, "train_alone": train_alone}
    expected = meaning(trial_values, **names, values=np.zeros(2))["values"]
    assert trial_values(make_lowest, trials, *ROWS, **ROUND).tolist() == expected.tolist()


def test_later_rounds_compile_nothing(compilations):
    def rounds(rates):
        return trial_values(make_linear, [{"learning_rate": rate} for rate in rates], *ROWS, **{**ROUND, "size": 3})

    rounds((0.1, 0.02, 0.01))
    with compilations() as names:
        values = rounds((0.03, 0.05, 0.2))
        fewer = rounds((0.05, 0.03))
    assert names == []
    assert values.tolist() == expected_values(make_linear, [{"learning_rate": rate} for rate in (0.03, 0.05, 0.2)])
    assert fewer.tolist() == [values[1], values[0]]


def test_a_round_may_have_trials_of_several_structures(compilations):
    trials = [{"learning_rate": rate, "kind": kind} for rate, kind in ((0.1, 0), (0.02, 1), (0.05, 0))]
    with compilations() as names:
        values = trial_values(make_kind, trials, *ROWS, **ROUND)
    assert names.count("_run") <= 2
    for one, value in zip(trials, values, strict=True):
        assert trial_values(make_kind, [one], *ROWS, **ROUND).tolist() == [value]
    # In batches, trials of a round share a batch: they differ by rounding.
    batched = trial_values(make_kind, trials, *ROWS, **{**ROUND, "method": "vmap"})
    np.testing.assert_allclose(batched, values, rtol=1e-5)


@pytest.mark.parametrize(("make_own", "worst"), [(make_lowest, np.inf), (make_highest, -np.inf)])
def test_a_trial_that_diverges_has_the_worst_value(make_own, worst):
    trials = [{"learning_rate": 1e30}, {"learning_rate": 0.02}]
    values = trial_values(make_own, trials, *ROWS, **ROUND)
    assert values[0] == worst and values[1] == expected_values(make_own, trials[1:], max if worst < 0 else min)[0]


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ({"trials": 3 * ONE, "size": 2}, r"trials must be at most size=2, got 3\. Use size=3"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"trials": []}, "trials must have at least one entry"),
        ({"trials": [{"learning_rat": 0.1}]}, "trials must give make its arguments"),
        ({"seeds": (1, 1)}, "seeds must differ"),
        ({"method": "pmap"}, "method must be"),
        ({"rows": 3}, "rows must be a function"),
    ],
)
def test_values_of_trials_refuse_bad_arguments(arguments, output):
    options = {"trials": ONE, "seeds": (0,), **arguments}
    with pytest.raises(InputError, match=output):
        trial_values(make, options.pop("trials"), *ROWS, **options)
