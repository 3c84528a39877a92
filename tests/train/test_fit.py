"""`fit`, for people who know Keras."""

import json
import subprocess
import sys
from threading import Event
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from jaxdl import losses, metrics
from jaxdl.data import DataSource, dataset
from jaxdl.ensembles import fit_seeds, run_members, start_members, sweep
from jaxdl.ensembles.members import best_and_final
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.train import early_stopping, make_plan, start
from jaxdl.train.epoch import draw
from jaxdl.train.evaluate import evaluate, predict
from jaxdl.train.fit import fit, init_state
from jaxdl.train.loop import chunks, prepare_data
from jaxdl.types import Dataset, Objective
from tests.bits import bits
from tests.groups import scripts

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


def test_the_result_has_history_reason_and_best_epoch():
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


def test_the_seed_decides_the_history():
    one, again, other = (
        fit(SMALL, losses.squared_error, ADAM, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=3, seed=seed)
        for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(one.history, again.history, check_exact=True)
    assert one.history["loss"].iloc[0] != other.history["loss"].iloc[0]


def test_a_run_resumed_from_its_state_ends_as_the_whole_run():
    whole = fit(SMALL, losses.squared_error, ADAM, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=5)
    half = fit(SMALL, losses.squared_error, ADAM, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=2)
    rest = fit(SMALL, losses.squared_error, ADAM, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=5, state=half.state)
    pd.testing.assert_frame_equal(pd.concat([half.history, rest.history]), whole.history, check_exact=True)
    for one, other in zip(jax.tree.leaves(whole.final), jax.tree.leaves(rest.final), strict=True):
        np.testing.assert_array_equal(one, other)


def test_fit_starts_from_given_variables():
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


def test_callbacks_are_called_after_every_epoch():
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


def test_pandas_is_loaded_only_for_the_table_of_a_run():
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


def test_zero_epochs_are_refused():
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


def test_a_resumed_run_with_an_average_ends_as_the_whole_run():
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
def test_an_ema_decay_outside_of_0_to_1_is_refused(average):
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


def test_ctrl_c_returns_the_result_so_far_and_fit_resumes_it():
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


def test_ctrl_c_before_the_first_epoch_returns_the_initial_state(monkeypatch):
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


def test_a_run_may_continue_with_nan_which_is_never_the_best():
    run = fit(
        LINEAR, losses.squared_error, EXPLODING, TRAIN, VALIDATION, metrics=[metrics.rmse], epochs=6, on_nan="continue"
    )
    assert run.reason == "epochs" and run.history["val_loss"].notna().tolist()[:2] == [True, True]
    assert not np.isfinite(run.history["val_loss"].iloc[-1])
    assert run.best_epoch in (1, 2) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.best))


# Runs in which no epoch was the best: the trained variables are the best ones, with a warning


EXACT_INPUTS = np.random.default_rng(0).normal(size=(70, 4)).astype(np.float32)
EXACT_TARGETS = (EXACT_INPUTS @ np.array([1, -2, 3, 0.5], np.float32))[:, None]
EXACT_ROWS = dataset(EXACT_INPUTS, EXACT_TARGETS)
SLOW_SGD = optax.sgd(1e-2)
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
    objective, validation = NEVER_FINITE, EXACT_ROWS if monitor == "val_lowest" else None
    with pytest.warns(RuntimeWarning, match="no epoch of the run was the best by .*`best` holds the variables"):
        run = fit(
            LINEAR,
            objective.loss,
            SLOW_SGD,
            EXACT_ROWS,
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
    assert_equal(run.best, fit(LINEAR, objective.loss, SLOW_SGD, EXACT_ROWS, metrics=objective.metrics, epochs=3).final)


def test_a_finite_epoch_is_the_best_whatever_was_before():
    stop = early_stopping("loss", start_from_epoch=2, patience=5)
    run = fit(LINEAR, losses.squared_error, SLOW_SGD, EXACT_ROWS, epochs=4, early_stopping=stop)
    assert run.best_epoch == 4
    assert_equal(run.best, run.final)


def test_a_run_interrupted_in_its_first_epoch_gives_what_it_has_trained(monkeypatch):
    def interrupted(*arguments, **options):
        yield next(chunks(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxdl.train.fit.chunks", interrupted)
    run = fit(LINEAR, losses.squared_error, SLOW_SGD, EXACT_ROWS, epochs=3)
    assert (run.reason, run.best_epoch, int(run.state.train_state.step)) == ("interrupted", 0, 1)
    assert_equal(run.best, run.final)


def test_a_run_that_stops_at_nan_gives_the_network_before():
    rows = EXACT_ROWS._replace(targets=np.where(np.arange(70)[:, None] == 69, np.float32(np.nan), EXACT_TARGETS))
    with pytest.warns(RuntimeWarning, match="the run stopped"):
        run = fit(LINEAR, losses.squared_error, SLOW_SGD, rows, epochs=2)
    assert run.best_epoch == 0 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.best))
    assert_equal(run.best, run.final)


def test_members_without_a_best_epoch_have_their_final_network_and_are_named():
    with pytest.warns(RuntimeWarning, match="no epoch of members 0, 1 of 2 was the best by loss"):
        runs = fit_seeds(
            LINEAR,
            losses.squared_error,
            SLOW_SGD,
            EXACT_ROWS,
            seeds=(0, 1),
            epochs=2,
            batch_size=70,
            early_stopping=LATE,
        )
    assert runs.best_epochs.tolist() == [0, 0]
    assert_equal(runs.best, runs.final)


def test_members_interrupted_in_their_first_epoch_have_what_they_have_trained():
    plan = make_plan(LINEAR, losses.squared_error, SLOW_SGD)
    begin = start_members(jax.random.split(jax.random.key(0), 2), EXACT_ROWS, plan=plan)
    middle, _ = run_members(begin, EXACT_ROWS, None, 1, plan=plan)
    assert_equal(*best_and_final(middle, np.zeros(2)))
    assert_equal(middle.best, begin.best)


def make_late(learning_rate):
    return make_plan(LINEAR, losses.squared_error, optax.sgd(learning_rate), early_stopping=LATE)


def test_trials_without_a_best_epoch_have_their_final_network_and_are_named():
    with pytest.warns(RuntimeWarning, match="no epoch of seeds of the trials 0, 1 was the best by val_loss"):
        result = sweep(
            make_late, [{"learning_rate": 0.1}, {"learning_rate": 0.01}], EXACT_ROWS, EXACT_ROWS, seeds=(0,), epochs=2
        )
    assert_equal(result.best, result.final)


# The initial state, which is drawn while the program of the chunks is compiled


FEW_INPUTS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
FEW_TRAIN, FEW_VALIDATION = dataset(FEW_INPUTS[:33], FEW_INPUTS[:33, :1]), dataset(FEW_INPUTS[33:], FEW_INPUTS[33:, :1])
SOURCE = DataSource(33, lambda rows: Dataset(*(np.asarray(leaf)[rows] for leaf in FEW_TRAIN)))
KEY = jax.random.key(3)
PROGRAMS = {"_start", "chunk_program"}


def make_dropout_plan(width=4):
    model = mlp((width,), input_norm=True, dropout=0.1)
    return make_plan(model, losses.squared_error, optax.adam(0.01), metrics=[metrics.rmse], batch_size=8)


def on_first_device(rows):
    return jax.device_put(rows, jax.devices()[0])


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (FEW_TRAIN, FEW_VALIDATION),
        (FEW_TRAIN, None),
        (SOURCE, FEW_VALIDATION),
        (jax.tree.map(jnp.asarray, FEW_TRAIN), FEW_VALIDATION),
        (on_first_device(FEW_TRAIN), on_first_device(FEW_VALIDATION)),
    ],
    ids=["rows", "without validation", "a source", "arrays of JAX", "on a device"],
)
def test_init_state_equals_start_and_compiles_each_program_once(train, validation, compilations):
    jax.clear_caches()  # an equal plan of another test has compiled functions
    plan = make_dropout_plan()
    with compilations() as names:
        run_state = init_state(plan, *prepare_data(plan, train, validation), key=KEY)
        ends = list(chunks(plan, run_state, train, validation, last=2))
    assert sorted(name for name in names if name in PROGRAMS) == sorted(PROGRAMS)
    assert len(ends) == 2
    assert bits(run_state) == bits(start(plan, FEW_TRAIN, FEW_VALIDATION if validation is not None else None, key=KEY))


def test_init_state_holds_given_variables():
    plan = make_dropout_plan()
    weights = plan.model.init(jax.random.key(9), FEW_INPUTS)
    assert bits(
        init_state(plan, *prepare_data(plan, FEW_TRAIN, None), key=KEY, variables=weights).train_state.variables
    ) == bits(weights)


def test_in_float64_nothing_is_compiled_for_float32(compilations):
    plan = make_plan(mlp((4,), dtype=jnp.float64), losses.squared_error, optax.adam(0.01), batch_size=8)
    with jax.enable_x64(True), compilations() as names:
        rows = dataset(FEW_INPUTS.astype(np.float64), FEW_INPUTS[:, :1].astype(np.float64))
        run_state = init_state(plan, *prepare_data(plan, rows, None), key=jax.random.key(0))
        list(chunks(plan, run_state, rows, last=2))
        assert run_state.train_state.variables.params["Dense_0"]["kernel"].dtype == jnp.float64
    assert sorted(name for name in names if name in PROGRAMS) == sorted(PROGRAMS)


def lowering_to(lowered):
    """A function that is lowered to what is given."""
    return SimpleNamespace(lower=lambda *_, **__: lowered)


def test_weights_are_drawn_while_the_other_program_is_compiled(monkeypatch):
    drawn = Event()

    def draw_and_tell(*arguments, **options):
        drawn.set()
        return draw(*arguments, **options)

    monkeypatch.setattr("jaxdl.train.fit.draw", draw_and_tell)
    waiting = SimpleNamespace(compile=lambda: drawn.wait(60) or pytest.fail("nothing was drawn meanwhile"))
    monkeypatch.setattr("jaxdl.train.fit.chunk_program", lowering_to(waiting))
    init_state(make_dropout_plan(), *prepare_data(make_dropout_plan(), FEW_TRAIN, None), key=KEY)
    assert drawn.is_set()


def test_an_error_of_the_compiling_thread_is_raised(monkeypatch):
    def fail():
        raise MemoryError("no room for the program")

    monkeypatch.setattr("jaxdl.train.fit.chunk_program", lowering_to(SimpleNamespace(compile=fail)))
    with pytest.raises(MemoryError, match="no room for the program"):
        init_state(make_dropout_plan(), *prepare_data(make_dropout_plan(), FEW_TRAIN, None), key=KEY)


def test_rows_that_do_not_fit_are_refused_before_anything_is_compiled(compilations):
    with compilations() as names, pytest.raises(InputError, match="compares outputs with targets of the same shape"):
        init_state(
            make_dropout_plan(), *prepare_data(make_dropout_plan(), dataset(FEW_INPUTS, FEW_INPUTS), None), key=KEY
        )
    assert not PROGRAMS.intersection(names)


# One run that several processes share


TRAIN_SCRIPT = """
import json, time
import jax
import numpy as np
import optax
from jaxdl import losses, metrics
from jaxdl.data.arrays import dataset
from jaxdl.train.fit import fit
from jaxdl.nn import mlp
from jaxdl.distributed import make_mesh, shard_dataset
from jaxdl.distributed.sharding import to_host
from jaxdl.train import early_stopping

def trained(placed, callbacks=()):
    random = np.random.default_rng(0)
    inputs = random.normal(size=(120, 6)).astype(np.float32)
    rows = dataset(inputs, inputs[:, :1] + random.normal(size=(120, 1)))
    train, validation = (placed(jax.tree.map(lambda leaf: leaf[part], rows)) for part in (np.s_[:90], np.s_[90:]))
    run = fit(mlp((16,)), losses.squared_error, optax.adam(0.01), train, validation, metrics=[metrics.rmse],
              epochs=60, batch_size=16, early_stopping=early_stopping("val_loss", patience=3), callbacks=callbacks)
    return {
        "reason": run.reason,
        "epochs": len(run.history),
        "best_epoch": run.best_epoch,
        "history": run.history.to_numpy().tolist(),
        "weights": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(to_host((run.best, run.final)))],
    }
"""
# Process 1 sleeps after every epoch.
SHARED_SCRIPT = """
began = time.monotonic()
def slow(state, history):
    if own == 1:
        time.sleep(0.1)
mesh = make_mesh()
summary = trained(lambda rows: shard_dataset(rows, mesh), [slow])
print(json.dumps({**summary, "seconds": time.monotonic() - began}))
processes.shutdown()
"""


@pytest.fixture(scope="module")
def shared():
    return [json.loads(text) for text in scripts(TRAIN_SCRIPT + SHARED_SCRIPT, 2)]


@pytest.mark.processes
def test_two_processes_stop_early_at_the_epoch_of_one_with_its_figures_and_weights(shared):
    names = {}
    exec(TRAIN_SCRIPT, names)
    alone = names["trained"](lambda rows: rows)
    assert alone["reason"] == "early-stopping" and 4 < alone["epochs"] < 60
    for message in shared:
        assert [message[name] for name in ("reason", "epochs", "best_epoch")] == [
            alone[name] for name in ("reason", "epochs", "best_epoch")
        ]
        np.testing.assert_allclose(message["history"], alone["history"], rtol=1e-5)
        for array, expected in zip(message["weights"], alone["weights"], strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.processes
def test_a_process_waits_for_a_slower_one(shared):
    first, slow = shared
    # A chunk is ahead of what is looked at.
    assert min(first["seconds"], slow["seconds"]) > 0.1 * (slow["epochs"] - 3)
    assert {**first, "seconds": 0} == {**slow, "seconds": 0}


LIMITED_SCRIPT = """
from jaxdl.callbacks import Callback
mesh, placed = make_mesh(), lambda rows: shard_dataset(rows, mesh)
inputs = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
rows = dataset(inputs, inputs[:, :1])
steps = []

def note(state, values):
    time.sleep(0.01 * own)
    steps.append((int(state.train_state.step), round(float(values["loss"]), 4)))

def run(**options):
    callback = Callback(on_steps=note, every_steps=4)
    train, validation = ((placed if jax.process_count() > 1 else lambda rows: rows)(
        jax.tree.map(lambda leaf: leaf[part], rows)) for part in (np.s_[:90], np.s_[90:]))
    return fit(mlp(()), losses.squared_error, optax.adam(0.01), train, validation, batch_size=16,
               callbacks=[callback], **options)

def summary_of(run):
    return [run.reason, int(run.state.epoch), int(run.state.cursor),
            ["val_loss" in record for record in run.records], [record["loss"] for record in run.records]]

limited = summary_of(run(max_steps=27, validate_every=3))
"""
LIMITS_SCRIPT = """
# One process alone runs out of time, and both end.
timed = run(epochs=10**6, max_minutes=0.05 if own == 1 else 60.0)
print(json.dumps({"limited": limited, "steps": steps[:6], "reason": timed.reason,
                  "end": int(timed.state.train_state.step)}))
processes.shutdown()
"""


@pytest.mark.processes
def test_two_processes_have_one_limit():
    one, other = (json.loads(text) for text in scripts(TRAIN_SCRIPT + LIMITED_SCRIPT + LIMITS_SCRIPT, 2))
    assert one == other and one["reason"] == "max-minutes" and one["end"] > 0
    names = {"own": 0}
    exec(TRAIN_SCRIPT + LIMITED_SCRIPT, names)
    expected = names["limited"]
    assert one["limited"][:4] == expected[:4] == ["max-steps", 4, 3, [False, False, True, False]]
    np.testing.assert_allclose(one["limited"][4], expected[4], rtol=1e-5)
    assert [step for step, _ in one["steps"]] == [4, 8, 12, 16, 20, 24] == [step for step, _ in names["steps"]]
    np.testing.assert_allclose([loss for _, loss in one["steps"]], [loss for _, loss in names["steps"]], atol=2e-4)
