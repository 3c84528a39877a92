"""The best variables of runs in which no epoch was the best: the trained ones, with a warning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import dataset, early_stopping, fit, fit_seeds, losses, make_plan, metrics, mlp
from jaxdl.ensembles import run_members, start_members, sweep
from jaxdl.ensembles.members import best_and_final
from jaxdl.train.loop import chunks
from jaxdl.types import Objective

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(70, 4)).astype(np.float32)
TARGETS = (INPUTS @ np.array([1, -2, 3, 0.5], np.float32))[:, None]
ROWS = dataset(INPUTS, TARGETS)
MODEL, OPTIMIZER = mlp(()), optax.sgd(1e-2)
NEVER_FINITE = Objective(
    losses.squared_error,
    (
        metrics.mean("worst", lambda outputs, targets: outputs[:, 0] * np.nan, mode="min"),
        metrics.mean("lowest", lambda outputs, targets: jnp.full(len(outputs), -jnp.inf), mode="max"),
    ),
)
LATE = early_stopping(start_from_epoch=10, patience=2)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("monitor", ["late", "worst", "val_lowest"])
def test_best_is_the_trained_network_where_no_epoch_was_the_best(monitor):
    stop = LATE if monitor == "late" else early_stopping(monitor, patience=9)
    objective, validation = NEVER_FINITE, ROWS if monitor == "val_lowest" else None
    with pytest.warns(RuntimeWarning, match="no epoch of the run was the best by .*`best` holds the variables"):
        run = fit(
            MODEL,
            objective.loss,
            OPTIMIZER,
            ROWS,
            validation,
            metrics=objective.metrics,
            epochs=3,
            early_stopping=stop,
            on_nan="continue",
        )
    assert run.best_epoch == 0
    assert_equal(run.best, run.final)
    assert_equal(run.state.best, run.final)
    # The oracle: the network that a run without any rule has trained.
    assert_equal(run.best, fit(MODEL, objective.loss, OPTIMIZER, ROWS, metrics=objective.metrics, epochs=3).final)


def test_a_finite_epoch_is_the_best_whatever_was_before():
    stop = early_stopping("loss", start_from_epoch=2, patience=5)
    run = fit(MODEL, losses.squared_error, OPTIMIZER, ROWS, epochs=4, early_stopping=stop)
    assert run.best_epoch == 4
    assert_equal(run.best, run.final)


def test_a_run_interrupted_in_its_first_epoch_gives_what_it_has_trained(monkeypatch):
    def interrupted(*arguments, **options):
        yield next(chunks(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxdl.train.fit.chunks", interrupted)
    run = fit(MODEL, losses.squared_error, OPTIMIZER, ROWS, epochs=3)
    assert (run.reason, run.best_epoch, int(run.state.train_state.step)) == ("interrupted", 0, 1)
    assert_equal(run.best, run.final)


def test_a_run_that_stops_at_nan_gives_the_network_before():
    rows = ROWS._replace(targets=np.where(np.arange(70)[:, None] == 69, np.float32(np.nan), TARGETS))
    with pytest.warns(RuntimeWarning, match="the run stopped"):
        run = fit(MODEL, losses.squared_error, OPTIMIZER, rows, epochs=2)
    assert run.best_epoch == 0 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.best))
    assert_equal(run.best, run.final)


def test_members_without_a_best_epoch_have_their_final_network_and_are_named():
    with pytest.warns(RuntimeWarning, match="no epoch of members 0, 1 of 2 was the best by loss"):
        runs = fit_seeds(
            MODEL, losses.squared_error, OPTIMIZER, ROWS, seeds=(0, 1), epochs=2, batch_size=70, early_stopping=LATE
        )
    assert runs.best_epochs.tolist() == [0, 0]
    assert_equal(runs.best, runs.final)


def test_members_interrupted_in_their_first_epoch_have_what_they_have_trained():
    plan = make_plan(MODEL, losses.squared_error, OPTIMIZER)
    begin = start_members(jax.random.split(jax.random.key(0), 2), ROWS, plan=plan)
    middle, _ = run_members(begin, ROWS, None, 1, plan=plan)
    assert_equal(*best_and_final(middle, np.zeros(2)))
    assert_equal(middle.best, begin.best)


def make_late(learning_rate):
    return make_plan(MODEL, losses.squared_error, optax.sgd(learning_rate), early_stopping=LATE)


def test_trials_without_a_best_epoch_have_their_final_network_and_are_named():
    with pytest.warns(RuntimeWarning, match="no epoch of seeds of the trials 0, 1 was the best by val_loss"):
        result = sweep(make_late, [{"learning_rate": 0.1}, {"learning_rate": 0.01}], ROWS, ROWS, seeds=(0,), epochs=2)
    assert_equal(result.best, result.final)
