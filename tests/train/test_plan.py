"""Directions: a rule follows the direction that its metric carries, or asks for one."""

import jax
import numpy as np
import optax
import pytest

from jaxdl import (
    dataset,
    early_stopping,
    fit,
    fit_seeds,
    losses,
    make_plan,
    metrics,
    mlp,
    reduce_on_plateau,
    start,
)
from jaxdl.ensembles import sweep
from jaxdl.errors import InputError
from jaxdl.runs.catalog import higher_is_better
from jaxdl.stats import one_standard_error

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(70, 4)).astype(np.float32)
LABELS = (INPUTS @ [1, -2, 3, 0.5] > 0).astype(np.int32)
ROWS = dataset(INPUTS, LABELS)
UNKNOWN = metrics.mean("largest_output", lambda outputs, targets: outputs.max(1))
MODEL, OPTIMIZER = mlp((), outputs=2), optax.sgd(1e-2)


def test_every_metric_of_the_toolkit_carries_its_direction():
    lower = [metrics.rmse, metrics.mae]
    higher = [metrics.r2(), metrics.accuracy, metrics.top_k(3), metrics.binary_accuracy, metrics.balanced_accuracy]
    higher += [metrics.precision(), metrics.recall(), metrics.f1(), metrics.roc_auc(), metrics.average_precision()]
    assert {metric.mode for metric in lower} == {"min"} and {metric.mode for metric in higher} == {"max"}


@pytest.mark.parametrize("monitor", ["accuracy", "val_accuracy"])
def test_the_best_epoch_of_an_accuracy_is_the_one_where_it_is_highest(monitor):
    run = fit(
        MODEL,
        losses.softmax_cross_entropy,
        OPTIMIZER,
        ROWS,
        ROWS,
        metrics=[metrics.accuracy],
        epochs=12,
        early_stopping=early_stopping(monitor, patience=5),
    )
    assert run.best_epoch == np.argmax([record[monitor] for record in run.records]) + 1 > 1


def test_the_best_epoch_of_many_seeds_is_where_each_accuracy_is_highest():
    stop = early_stopping("val_accuracy", patience=5)
    runs = fit_seeds(
        MODEL,
        losses.softmax_cross_entropy,
        OPTIMIZER,
        ROWS,
        ROWS,
        metrics=[metrics.accuracy],
        seeds=(0, 1),
        epochs=12,
        early_stopping=stop,
    )
    result = runs.history.groupby("member")["val_accuracy"].apply(lambda values: np.argmax(values) + 1)
    np.testing.assert_array_equal(runs.best_epochs, result)


def make_by_accuracy(learning_rate):
    return make_plan(
        MODEL,
        losses.softmax_cross_entropy,
        optax.sgd(learning_rate),
        metrics=[metrics.accuracy],
        early_stopping=early_stopping("val_accuracy", patience=5),
    )


def test_successive_halving_keeps_the_trial_of_the_higher_accuracy():
    trials = [{"learning_rate": 1e-6}, {"learning_rate": 3e-2}]
    result = sweep(make_by_accuracy, trials, ROWS, ROWS, seeds=(0, 1), epochs=4, eta=2, min_resource=2)
    assert result.table.groupby("trial")["reason"].first().tolist() == ["halving", "epochs"]


def test_a_plateau_of_an_accuracy_that_rises_keeps_the_learning_rate():
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.05)
    plateau = reduce_on_plateau("accuracy", factor=0.5, patience=1, min_delta=0.0)
    run = fit(
        MODEL, losses.softmax_cross_entropy, optimizer, ROWS, metrics=[metrics.accuracy], epochs=6, plateau=plateau
    )
    best, rate, rates = -np.inf, np.float32(0.05), []
    for record in run.records:
        rate = rate if record["accuracy"] > best else rate * np.float32(0.5)
        best = max(best, record["accuracy"])
        rates.append(rate)
    after = float(run.state.plateau.learning_rate)
    assert after == rates[-1] and [record["learning_rate"] for record in run.records][1:] == rates[:-1]
    assert rates[0] == np.float32(0.05)


@pytest.mark.parametrize("rule", [early_stopping, reduce_on_plateau])
@pytest.mark.parametrize("monitor", ["largest_output", "val_largest_output", "learning_rate"])
def test_a_monitor_of_unknown_direction_needs_a_mode(rule, monitor):
    name = "early_stopping" if rule is early_stopping else "plateau"
    with pytest.raises(InputError, match=f'{name} monitors "{monitor}" without a mode.*mode="min"'):
        make_plan(MODEL, losses.softmax_cross_entropy, OPTIMIZER, metrics=[UNKNOWN], **{name: rule(monitor)})
    assert make_plan(
        MODEL, losses.softmax_cross_entropy, OPTIMIZER, metrics=[UNKNOWN], **{name: rule(monitor, mode="max")}
    )


def test_a_metric_of_unknown_direction_may_be_measured():
    run = fit(
        MODEL,
        losses.softmax_cross_entropy,
        OPTIMIZER,
        ROWS,
        ROWS,
        metrics=[UNKNOWN],
        epochs=1,
        early_stopping=early_stopping("val_loss"),
    )
    assert "val_largest_output" in run.records[0]


@pytest.mark.parametrize(
    ("monitor", "mode"), [("val_accuracy", "min"), ("accuracy", "min"), ("val_loss", "max"), (None, "max")]
)
def test_a_mode_that_contradicts_the_metric_is_refused(monitor, mode):
    with pytest.raises(InputError, match=f'early_stopping has mode="{mode}".*Leave mode out'):
        make_plan(
            MODEL,
            losses.softmax_cross_entropy,
            OPTIMIZER,
            metrics=[metrics.accuracy],
            early_stopping=early_stopping(monitor, mode=mode),
        )


def test_plans_of_the_same_rule_are_equal_in_both_directions():
    for monitor in ("val_loss", "val_accuracy"):
        stop = early_stopping(monitor)
        one, other = (
            make_plan(MODEL, losses.softmax_cross_entropy, OPTIMIZER, metrics=[metrics.accuracy], early_stopping=stop)
            for _ in range(2)
        )
        assert one == other and hash(one) == hash(other)


def test_a_rule_that_was_put_into_a_plan_by_hand_must_have_its_mode():
    plan = make_plan(MODEL, losses.softmax_cross_entropy, OPTIMIZER, metrics=[metrics.accuracy])._replace(
        early_stopping=early_stopping("accuracy")
    )
    with pytest.raises(InputError, match="Use make_plan"):
        start(plan, ROWS, key=jax.random.key(0))


def test_a_user_defined_rule_decides_on_its_direction_itself():
    stop = early_stopping("largest_output", mode="max")._replace(mode=None)
    assert (
        make_plan(MODEL, losses.softmax_cross_entropy, OPTIMIZER, metrics=[UNKNOWN], early_stopping=stop).early_stopping
        is stop
    )


def test_the_candidate_within_one_standard_error_of_the_highest_mean_is_that_of_the_lowest_negated_one():
    means, errors, costs = np.array([0.7, 0.9, 0.91]), np.full(3, 0.02), [1, 2, 3]
    assert one_standard_error(means, errors, costs, mode="max") == one_standard_error(-means, errors, costs) == 1
    with pytest.raises(InputError, match='mode must be "min" or "max"'):
        one_standard_error(means, errors, costs, mode="highest")


@pytest.mark.parametrize(
    ("metric", "higher"), [("r2", True), ("top5", True), ("accuracy", True), ("rmse", False), ("stop", False)]
)
def test_lists_of_runs_know_which_metrics_are_better_the_higher(metric, higher):
    assert higher_is_better(metric) is higher
