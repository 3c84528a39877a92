"""`fit`, for people who know Keras."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from jaxdl import losses, metrics
from jaxdl.data import dataset
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.train import early_stopping
from jaxdl.train.evaluate import evaluate, predict
from jaxdl.train.fit import fit

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(300, 4)).astype(np.float32)
NOISE = 0.3 * RANDOM.normal(size=(300, 1))
TRAIN = dataset(INPUTS[:200], (INPUTS.sum(1, keepdims=True) + NOISE)[:200])
VALIDATION = dataset(INPUTS[200:], (INPUTS.sum(1, keepdims=True) + NOISE)[200:])
METRICS = (metrics.rmse,)
# Runs of the same parts share a program.
LINEAR, SGD = mlp(()), optax.sgd(0.05)
SMALL, ADAM = mlp((5,), dropout=0.2), optax.adam(0.01)


def test_a_linear_model_reaches_least_squares():
    run = fit(
        LINEAR,
        losses.squared_error,
        optax.adam(optax.cosine_decay_schedule(0.05, 700)),
        TRAIN,
        metrics=[metrics.rmse],
        epochs=100,
    )
    best = LinearRegression().fit(TRAIN.inputs, TRAIN.targets)
    np.testing.assert_allclose(
        predict(LINEAR, run.final, VALIDATION.inputs), best.predict(VALIDATION.inputs), atol=0.02
    )


def test_the_result_says_what_happened():
    stop = early_stopping("val_loss", patience=3)
    model = mlp((20,))
    run = fit(
        model,
        losses.squared_error,
        optax.adam(0.05),
        TRAIN,
        VALIDATION,
        metrics=[metrics.rmse],
        epochs=200,
        early_stopping=stop,
    )
    assert isinstance(run.history, pd.DataFrame)
    assert run.history.index.tolist() == list(range(1, len(run.history) + 1))
    assert list(run.history) == ["loss", "rmse", "val_loss", "val_rmse"]
    assert (run.reason, len(run.history)) == ("early-stopping", run.best_epoch + 3)
    assert run.history["val_loss"].idxmin() == run.best_epoch
    result = evaluate(model, run.best, VALIDATION, losses.squared_error, metrics=[metrics.rmse])
    np.testing.assert_allclose(result["loss"], run.history["val_loss"].min(), rtol=1e-5)


def test_a_run_that_reaches_its_epochs_says_so():
    run = fit(LINEAR, losses.squared_error, SGD, TRAIN, metrics=[metrics.rmse], epochs=2)
    assert (run.reason, len(run.history)) == ("epochs", 2)


def test_seeds_decide_everything():
    one, again, other = (
        fit(SMALL, losses.squared_error, ADAM, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=3, seed=seed)
        for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(one.history, again.history, check_exact=True)
    assert one.history["loss"].iloc[0] != other.history["loss"].iloc[0]


def test_a_run_goes_on_where_it_stood():
    whole = fit(SMALL, losses.squared_error, ADAM, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=5)
    half = fit(SMALL, losses.squared_error, ADAM, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=2)
    rest = fit(SMALL, losses.squared_error, ADAM, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=5, state=half.state)
    pd.testing.assert_frame_equal(pd.concat([half.history, rest.history]), whole.history, check_exact=True)
    for one, other in zip(jax.tree.leaves(whole.final), jax.tree.leaves(rest.final), strict=True):
        np.testing.assert_array_equal(one, other)


def test_given_weights_are_where_it_starts():
    first = fit(LINEAR, losses.squared_error, SGD, TRAIN, metrics=[metrics.rmse], epochs=3)
    # All rows make one batch, which is measured before its step.
    second = fit(
        LINEAR,
        losses.squared_error,
        SGD,
        TRAIN,
        metrics=[metrics.rmse],
        epochs=1,
        batch_size=200,
        variables=first.final,
    )
    np.testing.assert_allclose(
        second.history["loss"],
        evaluate(LINEAR, first.final, TRAIN, losses.squared_error, metrics=[metrics.rmse])["loss"],
        rtol=1e-5,
    )


def test_observers_see_every_epoch():
    calls = []
    fit(
        LINEAR,
        losses.squared_error,
        SGD,
        TRAIN,
        metrics=[metrics.rmse],
        epochs=3,
        callbacks=[lambda run_state, history: calls.append((int(run_state.epoch), len(history), history[-1]["loss"]))],
    )
    assert [entry[:2] for entry in calls] == [(1, 1), (2, 2), (3, 3)]


def test_a_first_run_compiles_each_of_its_programs_once(compilations):
    with compilations() as names:
        fit(mlp((6,)), losses.squared_error, optax.adam(0.01), TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=2)
    # In either order: they are compiled side by side.
    assert sorted(name for name in names if name in ("_start", "chunk_program")) == ["_start", "chunk_program"]


def test_a_run_whose_table_nobody_asks_for_does_not_load_pandas():
    code = """
import sys
import numpy as np
import optax
from jaxdl import dataset, fit, losses, mlp
rows = dataset(np.ones((4, 1)), np.ones((4, 1)))
run = fit(mlp(()), losses.squared_error, optax.sgd(0.1), rows, epochs=2, batch_size=2)
assert (len(run.records), repr(run)) == (2, "FitResult(2 epochs, best epoch 2, reason 'epochs')")
assert "pandas" not in sys.modules
assert run.history["loss"].tolist() == [record["loss"] for record in run.records]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_second_run_compiles_nothing(compilations):
    fit(SMALL, losses.squared_error, ADAM, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=1)
    with compilations() as names:
        fit(SMALL, losses.squared_error, ADAM, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=2, seed=5)
    assert names == []


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_would_draw_what_others_draw_are_refused(seed):
    with pytest.raises(InputError, match=f"seed must be from 0 to 4294967295, got {seed}"):
        fit(mlp(()), losses.squared_error, optax.sgd(0.1), TRAIN, metrics=[metrics.rmse], epochs=1, seed=seed)


def test_a_run_that_has_its_epochs_already_is_not_run_again():
    run = fit(LINEAR, losses.squared_error, SGD, TRAIN, metrics=[metrics.rmse], epochs=3)
    again = fit(LINEAR, losses.squared_error, SGD, TRAIN, metrics=[metrics.rmse], epochs=2, state=run.state)
    assert len(again.history) == 0 and int(again.state.epoch) == 3


def test_a_run_works_where_64_bits_are_switched_on():
    with jax.enable_x64(True):
        run = fit(LINEAR, losses.squared_error, ADAM, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=1)
    assert np.isfinite(run.history).all().all()


def test_bfloat16_computes_near_float32():
    runs = [
        fit(mlp((20,), dtype=dtype), losses.squared_error, optax.adam(0.01), TRAIN, metrics=[metrics.rmse], epochs=10)
        for dtype in ("float32", "bfloat16")
    ]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(runs[1].final))
    np.testing.assert_allclose(runs[0].history["rmse"].iloc[-1], runs[1].history["rmse"].iloc[-1], rtol=0.1)


def test_no_epochs_are_refused():
    with pytest.raises(InputError, match="epochs must be at least 1, got 0"):
        fit(mlp(()), losses.squared_error, optax.sgd(0.1), TRAIN, metrics=[metrics.rmse], epochs=0)


def test_an_average_is_what_is_measured_and_kept():
    run = fit(LINEAR, losses.squared_error, SGD, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=3, ema_decay=0.9)
    state = run.state.train_state
    assert run.final is state.ema
    assert not np.array_equal(*(w.params["Dense_0"]["kernel"] for w in (state.variables, state.ema)))
    np.testing.assert_allclose(
        run.history["val_rmse"].iloc[-1],
        evaluate(LINEAR, run.final, VALIDATION, losses.squared_error, metrics=[metrics.rmse])["rmse"],
        rtol=1e-6,
    )
    plain = fit(LINEAR, losses.squared_error, SGD, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=3)
    jax.tree.map(np.testing.assert_array_equal, plain.final.params, state.variables.params)


def test_a_run_with_an_average_goes_on_where_it_stood():
    model, optimizer = LINEAR, SGD
    first = fit(
        model, losses.squared_error, optimizer, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=2, ema_decay=0.9
    )
    rest = fit(
        model,
        losses.squared_error,
        optimizer,
        TRAIN,
        VALIDATION,
        metrics=[metrics.rmse],
        epochs=4,
        ema_decay=0.9,
        state=first.state,
    )
    whole = fit(
        model, losses.squared_error, optimizer, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=4, ema_decay=0.9
    )
    jax.tree.map(np.testing.assert_array_equal, rest.final, whole.final)


@pytest.mark.parametrize("average", [-0.1, 1.0])
def test_an_average_that_is_no_share_is_refused(average):
    with pytest.raises(InputError, match="ema_decay must be from 0 to below 1, got"):
        fit(mlp(()), losses.squared_error, optax.sgd(0.05), TRAIN, metrics=[metrics.rmse], ema_decay=average)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (None, 0.9, "state holds no moving average for ema_decay=0.9. Leave ema_decay out"),
        (0.9, None, "state holds a moving average, which .* Give ema_decay"),
    ],
)
def test_an_average_cannot_begin_or_end_midway(before, after, message):
    first = fit(
        LINEAR, losses.squared_error, SGD, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=1, ema_decay=before
    )
    with pytest.raises(InputError, match=message):
        fit(
            LINEAR,
            losses.squared_error,
            SGD,
            TRAIN,
            VALIDATION,
            metrics=[metrics.rmse],
            epochs=2,
            ema_decay=after,
            state=first.state,
        )


def test_evaluations_need_a_batch_of_one_row_at_least():
    model = mlp(())
    weights = model.init(jax.random.key(0), TRAIN.inputs)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        predict(model, weights, TRAIN.inputs, batch_size=0)
    with pytest.raises(InputError, match="batch_size must be at least 1, got -1"):
        evaluate(model, weights, TRAIN, losses.squared_error, metrics=[metrics.rmse], batch_size=-1)


def interrupting(epoch):
    """An callback that does what Ctrl-C does in a notebook."""

    def observe(run_state, history):
        if len(history) == epoch:
            raise KeyboardInterrupt

    return observe


def test_ctrl_c_gives_what_was_reached_and_fit_goes_on_from_there():
    model, optimizer = SMALL, ADAM
    whole = fit(model, losses.squared_error, optimizer, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=6)
    run = fit(
        model,
        losses.squared_error,
        optimizer,
        TRAIN,
        VALIDATION,
        metrics=[metrics.rmse],
        epochs=6,
        callbacks=[interrupting(4)],
    )
    assert run.reason == "interrupted" and run.history.index.tolist() == [1, 2, 3, 4]
    assert predict(model, run.final, INPUTS).shape == (300, 1)
    rest = fit(
        model, losses.squared_error, optimizer, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=6, state=run.state
    )
    pd.testing.assert_frame_equal(pd.concat([run.history, rest.history]), whole.history, check_exact=True)
    jax.tree.map(np.testing.assert_array_equal, rest.final, whole.final)
    jax.tree.map(np.testing.assert_array_equal, rest.best, whole.best)


def test_ctrl_c_before_the_first_epoch_gives_the_beginning(monkeypatch):
    def chunks(*arguments, **options):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("jaxdl.train.fit.chunks", chunks)
    run = fit(LINEAR, losses.squared_error, SGD, TRAIN, metrics=[metrics.rmse], epochs=3)
    assert (run.reason, len(run.history), run.best_epoch, int(run.state.epoch)) == ("interrupted", 0, 0, 0)


# Finite for two epochs of seven steps, then enormous.
EXPLODING = optax.chain(optax.scale_by_schedule(lambda n: jnp.where(n < 15, 0.01, 1e38)), optax.scale(-1.0))


def test_a_run_that_meets_nan_stops_and_says_where():
    with pytest.warns(RuntimeWarning, match=r"the run stopped: epoch 3, step [23] of 7 of training: \w+ in "):
        run = fit(LINEAR, losses.squared_error, EXPLODING, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=6)
    assert run.reason == "not-finite" and run.history.index.tolist() == [1, 2]
    for weights in (run.best, run.final):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))
    assert run.best_epoch in (1, 2)


def test_a_run_may_go_on_with_nan_which_is_never_the_best():
    run = fit(
        LINEAR, losses.squared_error, EXPLODING, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=6, on_nan="continue"
    )
    assert run.reason == "epochs" and run.history["val_loss"].notna().tolist()[:2] == [True, True]
    assert not np.isfinite(run.history["val_loss"].iloc[-1])
    assert run.best_epoch in (1, 2) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.best))
