"""Callbacks that act: the order of their hooks, what ends a run, and runs that resume with the state of callbacks."""

import functools
import io
import itertools
import json
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from jaxdl import (
    InputError,
    callbacks,
    dataset,
    early_stopping,
    fit,
    fit_seeds,
    grid,
    losses,
    make_plan,
    metrics,
    mlp,
    reduce_on_plateau,
    saving,
    start,
    sweep,
)
from jaxdl.callbacks import Callback, Stop, csv_log
from jaxdl.train import hooks
from jaxdl.train.epoch import run_chunk
from jaxdl.train.hooks import LoopResult, open_hooks
from jaxdl.train.loop import chunks, prepare_data, run_loop
from jaxdl.train.plan import record_names
from tests.bits import bits

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(1200, 3)).astype(np.float32)
TARGETS = INPUTS @ np.array([[1], [-2], [0.5]], np.float32) + 1
# 7 batches of training, the last of them short, and 2 of validation.
TRAIN, VALIDATION = dataset(INPUTS[:50], TARGETS[:50]), dataset(INPUTS[50:], TARGETS[50:])
STEPS, BATCHES, VALIDATIONS = 7, 9, 2
MODEL, LOSS = mlp((4,), dropout=0.2), losses.squared_error
OPTIMIZER = optax.inject_hyperparams(optax.adam)(learning_rate=0.05)
RULES = {
    "early_stopping": early_stopping("val_loss", patience=50),
    "plateau": reduce_on_plateau("val_loss", patience=0),
}
OPTIONS = {"metrics": [metrics.rmse], "batch_size": 8, **RULES}
PLAN = make_plan(MODEL, LOSS, OPTIMIZER, **OPTIONS)


def train(validation=VALIDATION, **options):
    return fit(MODEL, LOSS, OPTIMIZER, TRAIN, validation, **{**OPTIONS, **options})


@functools.cache
def whole(epochs, validate_every=1):
    return train(epochs=epochs, validate_every=validate_every)


def same(one, other):
    """Check that two runs are bit-identical: states, variables and records."""
    assert bits(one.state) == bits(other.state)
    assert bits((one.best, one.final)) == bits((other.best, other.final))
    assert json.dumps(one.records) == json.dumps(other.records)


def noting(calls, **options):
    """A callback that notes each call: its name, where the run is, and the metrics."""

    def note(name):
        def hook(state, values):
            entry = (name, int(state.epoch), int(state.cursor), int(state.train_state.step))
            calls.append((*entry, len(values) if name != "on_steps" else dict(values)))

        return hook

    every = {"on_steps": note("on_steps")} if options else {}
    return Callback(
        note("on_train_begin"), on_epoch_end=note("on_epoch_end"), on_train_end=note("on_train_end")
    )._replace(**every, **options)


@functools.cache
def beginning():
    return start(PLAN, TRAIN, VALIDATION, key=jax.random.key(0))


def naive(epochs, max_steps, every_steps, validate_every):
    """Train batch by batch, and note the calls of the hooks in the order of the documentation."""
    state, calls, step, records = beginning(), [], 0, 0
    data, names = prepare_data(PLAN, TRAIN, VALIDATION), record_names(PLAN, beginning(), VALIDATION)

    def note(name, values):
        calls.append((name, int(state.epoch), int(state.cursor), step, values))

    def one_batch(validate):
        after, row = run_chunk(state, data[0].examples, data[1], np.int32(1), plan=PLAN, validate=validate)
        return after, dict(zip(names, np.asarray(row).tolist(), strict=False))

    note("on_train_begin", 0)
    while int(state.epoch) != epochs and step != max_steps:
        epoch = int(state.epoch) + 1
        validate = epoch % validate_every == 0 or epoch == epochs or max_steps == epoch * STEPS
        for batch in range(min(STEPS, STEPS if max_steps is None else max_steps - step)):
            state, row = one_batch(validate)
            step += 1
            ends = not validate and batch == STEPS - 1
            if step % every_steps == 0:
                sums = state.sums
                note("on_steps", row["loss"] if ends else float(sums.totals["loss"] / sums.weight))
        if batch < STEPS - 1:
            break
        for _ in range(VALIDATIONS if validate else 0):
            state, row = one_batch(validate)
        records += 1
        note("on_epoch_end", records)
    note("on_train_end", records)
    return state, calls


@settings(max_examples=15, deadline=None)
@given(
    st.none() | st.integers(1, 3), st.none() | st.integers(1, 24), st.integers(1, 9), st.integers(1, 3), st.booleans()
)
@example(epochs=2, max_steps=None, every_steps=7, validate_every=2, checks=True)
@example(epochs=None, max_steps=14, every_steps=7, validate_every=3, checks=True)
def test_hooks_are_called_in_the_order_of_a_loop_over_batches(epochs, max_steps, every_steps, validate_every, checks):
    if epochs is None and max_steps is None:
        epochs = 1
    calls = []
    run = train(
        epochs=epochs,
        max_steps=max_steps,
        validate_every=validate_every,
        callbacks=[noting(calls, every_steps=every_steps)],
        on_nan="stop" if checks else "continue",
    )
    state, expected = naive(epochs, max_steps, every_steps, validate_every)
    assert bits(run.state) == bits(state)
    assert [call[:4] for call in calls] == [call[:4] for call in expected]
    for call, wanted in zip(calls, expected, strict=True):
        if call[0] == "on_steps":
            assert list(call[4]) == ["loss", "rmse"]
            assert call[4]["loss"] == pytest.approx(wanted[4], rel=1e-6)
            assert call[4]["rmse"] == pytest.approx(np.sqrt(call[4]["loss"]), rel=1e-6)
        else:
            assert call[4] == wanted[4]
    assert run.reason == ("max-steps" if epochs is None or int(state.epoch) < epochs else "epochs")


def test_run_loop_is_the_loop_in_its_docstring(meaning):
    def stopper(calls):
        def stop(state, history):
            return Stop("second") if len(history) == 2 else None

        return [noting(calls, every_steps=3), Callback(on_epoch_end=stop), noting(calls, every_steps=5)]

    def parts():
        return chunks(PLAN, beginning(), TRAIN, VALIDATION, last=3, end_after=(3, 5))

    def call(hook, state, values):
        return getattr(None if hook is None else hook(state, values), "reason", "")

    calls, expected = [], []
    result = LoopResult(beginning(), [])
    with open_hooks(stopper(calls), result) as opened:
        assert set(opened.every_steps) == {3, 5}
        run_loop(parts(), result, hooks=opened)
    message = meaning(
        run_loop,
        parts=parts(),
        callbacks=stopper(expected),
        call=call,
        is_due=lambda callback, chunk: callback.every_steps and chunk.step % callback.every_steps == 0,
        is_last=lambda chunk: False,
        state=beginning(),
        history=[],
    )
    assert calls == expected and len(calls) == 2 + (14 // 3) + (14 // 5) + 4 + 2
    assert result.reason == "second" and message["reasons"] == ["", "second", ""]
    assert bits(result.state) == bits(message["state"]) and result.history == message["history"]


def stop_at(hook, epoch, cursor=0, reason="enough"):
    """A callback whose hook stops the run at some batch."""

    def check(state, values):
        return Stop(reason) if (int(state.epoch), int(state.cursor)) == (epoch, cursor) else None

    return Callback(**{hook: check}, **({"every_steps": 1} if hook == "on_steps" else {}))


def test_epochs_steps_and_callbacks_as_limits_agree_bit_for_bit():
    for epochs in (1, 3):
        by_steps = train(max_steps=epochs * STEPS)
        by_callback = train(epochs=9, callbacks=[stop_at("on_epoch_end", epochs)])
        same(by_steps, whole(epochs))
        same(by_callback, whole(epochs))
        reasons = [run.reason for run in (whole(epochs), by_steps, by_callback)]
        assert reasons == ["epochs", "max-steps", "enough"]
    # Of limits together, the first counts.
    assert train(epochs=2, max_steps=STEPS).reason == "max-steps"
    assert train(epochs=1, max_steps=2 * STEPS).reason == "epochs"


def test_other_limits_hooks_and_epochs_of_validation_compile_nothing(compilations):
    train(epochs=2)
    with compilations() as names:
        train(max_steps=10)
        train(epochs=3, validate_every=2)
        train(max_minutes=1e-9)
        train(epochs=2, callbacks=[Callback(on_steps=lambda state, values: None, every_steps=2)])
    assert "chunk_program" not in names


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 9},
        {"max_steps": 14},
        {"callbacks": [stop_at("on_steps", 1, 4)]},
        {"callbacks": [stop_at("on_steps", 1, STEPS)]},
        {"callbacks": [stop_at("on_epoch_end", 2)]},
        {"callbacks": [stop_at("on_train_begin", 0)]},
        {"max_minutes": 1e-9},
    ],
    ids=["steps", "an_epoch_of_steps", "inside", "before_validation", "between", "at_the_start", "minutes"],
)
@pytest.mark.parametrize("validate_every", [1, 3])
def test_a_run_that_was_stopped_resumes_bit_for_bit(options, validate_every):
    if validate_every == 3 and options == {"max_steps": 14}:
        return  # The last epoch of max_steps is validated, which that of the whole run is not.
    first = train(
        **{"epochs": None if {*options} & {"max_steps", "max_minutes"} else 4, **options}, validate_every=validate_every
    )
    if first.reason == "epochs":  # validate_every=3 has no batch STEPS of epoch 2
        return
    assert first.reason in ("max-steps", "max-minutes", "enough")
    assert int(first.state.epoch) < 4
    if int(first.state.cursor):
        assert first.data.startswith("batch_size=8")
    same(train(epochs=4, state=first, validate_every=validate_every), whole(4, validate_every))


def test_steps_of_a_limit_include_those_of_the_earlier_run_with_another_batch_size():
    first = train(epochs=2)
    assert int(first.state.train_state.step) == 14
    second = train(max_steps=20, batch_size=16, state=first)  # 4 steps an epoch
    assert (int(second.state.train_state.step), int(second.state.epoch), int(second.state.cursor)) == (20, 3, 2)
    assert train(max_steps=20, batch_size=16, state=second).state is not None
    same(train(max_steps=18, batch_size=16, state=first), train(epochs=3, batch_size=16, state=first))
    # A limit that is behind the run leaves it as it is.
    assert bits(train(max_steps=3, batch_size=16, state=second).state) == bits(second.state)


def test_minutes_end_a_run_between_two_calls_of_the_device(monkeypatch):
    now = itertools.count(step=20.0)
    monkeypatch.setattr("jaxdl.train.fit.time", SimpleNamespace(monotonic=lambda: next(now)))
    run = train(max_minutes=3.5)  # of calls that take 20 s
    batches = int(run.state.epoch) * BATCHES + int(run.state.cursor)
    assert run.reason == "max-minutes" and 0 < batches < 9 * BATCHES
    monkeypatch.undo()
    same(train(epochs=9, state=run), whole(9))


def test_seconds_between_calls_are_those_of_the_clock(monkeypatch):
    now = SimpleNamespace(time=0.0)
    monkeypatch.setattr(hooks, "time", SimpleNamespace(monotonic=lambda: now.time))
    times = []
    callback = Callback(on_steps=lambda state, values: times.append(now.time), every_seconds=2.0)
    result = LoopResult(beginning(), [])
    with open_hooks([callback], result) as opened:
        assert opened.seconds(0.25) == 0.25 and opened.seconds(9.0) == 2.0
        for chunk in chunks(PLAN, beginning(), TRAIN, VALIDATION, last=1, steps=lambda: 1):
            now.time += 0.9
            opened.call(chunk)
    assert times == pytest.approx([2.7, 5.4, 8.1])


def test_running_metrics_are_computed_when_they_are_read():
    asked = []
    callback = Callback(on_steps=lambda state, values: asked.append(values), every_steps=4)
    train(epochs=1, callbacks=[callback])
    (values,) = asked
    assert isinstance(values, hooks.RunningMetrics) and "_values" not in vars(values)
    assert len(values) == 2 and set(values) == {"loss", "rmse"} and "_values" in vars(values)
    assert repr(values) == repr(dict(values)) and "val_loss" not in values


# Exceptions


class OwnError(Exception):
    """Of a callback."""


@pytest.mark.parametrize("hook", ["on_train_begin", "on_steps", "on_epoch_end", "on_train_end"])
def test_an_exception_of_a_hook_passes_after_the_others_have_ended(hook):
    calls = []

    def fail(state, values):
        raise OwnError

    options = {"every_steps": 3} if hook == "on_steps" else {}
    ends = [Callback(on_train_end=lambda state, history, name=name: calls.append(name)) for name in "abc"]
    broken = Callback(**{hook: fail}, **options)
    with pytest.raises(OwnError):
        train(epochs=2, callbacks=[ends[0], ends[1], broken, ends[2]])
    # Those that had not begun do not end.
    assert calls == (["b", "a"] if hook == "on_train_begin" else ["c", "b", "a"])


def test_an_exception_closes_the_file_of_a_callback(tmp_path):
    def fail(state, history):
        if len(history) == 2:
            raise OwnError

    with pytest.raises(OwnError):
        train(epochs=3, callbacks=[csv_log(tmp_path / "history.csv"), fail])
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3
    train(epochs=1, callbacks=[csv_log(tmp_path / "history.csv")])


@pytest.mark.parametrize("hook", ["on_train_begin", "on_steps", "on_epoch_end"])
def test_ctrl_c_in_a_hook_ends_the_run_as_everywhere(hook):
    calls = []

    def interrupt(state, values):
        raise KeyboardInterrupt

    options = {"every_steps": 3} if hook == "on_steps" else {}
    run = train(
        epochs=3,
        callbacks=[
            Callback(on_train_end=lambda state, history: calls.append(int(state.train_state.step))),
            Callback(**{hook: interrupt}, **options),
        ],
    )
    steps = {"on_train_begin": 0, "on_steps": 3, "on_epoch_end": STEPS}[hook]
    assert run.reason == "interrupted" and int(run.state.train_state.step) == steps and calls == [steps]
    same(train(epochs=3, state=run), whole(3))


def test_all_hooks_of_a_moment_are_called_and_the_first_reason_counts(tmp_path):
    after = []
    run = train(
        epochs=5,
        callbacks=[
            stop_at("on_epoch_end", 2, reason="one"),
            stop_at("on_epoch_end", 2, reason="two"),
            lambda state, history: after.append(len(history)),
        ],
    )
    assert run.reason == "one" and after == [1, 2]


def test_the_end_of_a_run_that_is_not_finite_gets_the_state_before():
    ends = []
    rows = TRAIN._replace(targets=np.where(np.arange(50)[:, None] == 11, np.nan, TRAIN.targets))
    with pytest.warns(RuntimeWarning, match="the run stopped"):
        run = fit(
            *(MODEL, LOSS, OPTIMIZER, rows, VALIDATION),
            **OPTIONS,
            callbacks=[Callback(on_train_end=lambda state, history: ends.append(state))],
        )
    assert run.reason == "not-finite" and bits(ends[0]) == bits(run.state)


# Validation after some epochs


def test_records_hold_validation_values_where_they_were_measured():
    run = whole(5, 2)
    assert [record["epoch"] for record in run.records if "val_loss" in record] == [2, 4, 5]
    assert ["val_rmse" in record for record in run.records] == ["val_loss" in record for record in run.records]
    table = run.history
    assert table["val_loss"].notna().tolist() == [False, True, False, True, True]
    assert table["loss"].notna().all() and run.best_epoch in (2, 4, 5)
    # Training itself is that of a run that validates each epoch, as long as the learning rate is.
    assert run.records[0]["loss"] == whole(5).records[0]["loss"]


def test_a_rule_counts_the_epochs_that_have_its_value():
    constant = early_stopping("val_loss", patience=2, min_delta=1e9)
    run = train(epochs=30, validate_every=3, early_stopping=constant, plateau=None)
    # The first value is an improvement over infinity, and no later one is.
    assert run.reason == "early-stopping" and len(run.records) == 9 and run.best_epoch == 3
    of_training = early_stopping("loss", patience=2, min_delta=1e9)
    assert len(train(epochs=30, validate_every=3, early_stopping=of_training, plateau=None).records) == 3


def test_a_run_that_stopped_early_between_validations_trains_on_as_with_more_patience():
    limits = [early_stopping("val_loss", patience=patience, min_delta=1e9) for patience in (1, 2)]
    first = train(epochs=30, validate_every=3, early_stopping=limits[0], plateau=None)
    assert (first.reason, len(first.records)) == ("early-stopping", 6)
    second = train(epochs=30, validate_every=3, early_stopping=limits[1], plateau=None, state=first)
    same(second, train(epochs=30, validate_every=3, early_stopping=limits[1], plateau=None))


def test_files_and_bars_of_a_run_that_validates_seldom_are_written(tmp_path):
    bar = callbacks.progress_bar(5, ("loss", "val_rmse"), console=Console(file=io.StringIO(), width=200))
    files = [csv_log(tmp_path / "history.csv"), callbacks.tensorboard(tmp_path / "board")]
    train(epochs=5, validate_every=2, callbacks=[*files, bar])
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert [line.split(",")[lines[0].split(",").index("val_loss")] == "" for line in lines[1:]] == [
        *(True, False, True, False, False)
    ]


# The state of callbacks


def patience_of(epochs):
    """A callback that stops after some epochs, of all calls of fit together."""
    count = 0

    def on_epoch_end(state, history):
        nonlocal count
        count += 1
        return Stop("patience") if count == epochs else None

    def load(state):
        nonlocal count
        count = state["count"]

    return Callback(
        on_epoch_end=on_epoch_end, name="patience", state_dict=lambda: {"count": count}, load_state_dict=load
    )


def test_a_callback_gets_its_state_back_from_a_result():
    first = train(epochs=2, callbacks=[patience_of(3)])
    assert first.callback_states == {"patience": {"count": 2}}
    second = train(epochs=9, state=first, callbacks=[patience_of(3)])
    assert second.reason == "patience" and len(second.records) == 3
    same(second, train(epochs=9, callbacks=[patience_of(3)]))
    # Without the callback nothing is lost but its state, and a new callback begins anew.
    assert train(epochs=3, state=first).callback_states == {}
    assert len(train(epochs=9, state=train(epochs=2), callbacks=[patience_of(3)]).records) == 5


def test_a_callback_gets_its_state_back_from_a_checkpoint(tmp_path):
    counter = patience_of(3)
    with saving.checkpointer(tmp_path / "run", {}, every=0, warn=print, callbacks=[counter]) as save:
        train(epochs=2, callbacks=[counter, save])
    checkpoint = saving.restore_latest(tmp_path / "run", print)
    assert checkpoint.about["callback_states"] == {"patience": {"count": 2}}
    run = train(epochs=9, state=checkpoint, callbacks=[patience_of(3)])
    assert run.reason == "patience" and len(run.records) == 3
    with saving.checkpointer(tmp_path / "other", {}, every=0, warn=print, callbacks=[counter]) as save:
        for order in ([save, counter], [save]):
            with pytest.raises(InputError, match='saves the state of "patience", which must stand before it'):
                train(epochs=1, callbacks=order)
    with (
        pytest.raises(InputError, match="must hold Callback records with a state_dict"),
        saving.checkpointer(tmp_path / "third", {}, every=0, warn=print, callbacks=[Callback()]),
    ):
        pass


# Many runs


def test_a_callback_ends_many_seeds_and_they_resume():
    options = {"epochs": 3, "batch_size": 8, "seeds": (0, 1)}

    def seeds(**others):
        return fit_seeds(MODEL, LOSS, OPTIMIZER, TRAIN, VALIDATION, **{**options, **others})

    every, asked = seeds(), []

    def note(state, values):
        asked.append((int(np.max(state.train_state.step)), values["loss"].shape))

    stop = stop_at("on_steps", 0, 4)._replace(
        on_steps=lambda state, values: Stop("four") if int(state.cursor) == 4 else None
    )
    first = seeds(callbacks=[Callback(on_steps=note, every_steps=2), stop])
    assert first.reasons == ("four", "four") and int(first.state.cursor) == 4 and first.data
    assert asked == [(2, (2,)), (4, (2,))]
    assert bits(seeds(state=first).state) == bits(every.state)
    counted = seeds(callbacks=[patience_of(2)])
    assert counted.callback_states == {"patience": {"count": 2}} and counted.reasons == ("patience",) * 2
    timed = seeds(epochs=None, max_minutes=1e-9)
    assert timed.reasons == ("max-minutes",) * 2
    assert bits(seeds(state=timed).state) == bits(every.state)


def plan_of(learning_rate):
    return make_plan(mlp(()), LOSS, optax.sgd(learning_rate), batch_size=10)


def test_a_callback_ends_a_sweep_and_it_resumes():
    calls = []

    def search(**others):
        return sweep(plan_of, grid(learning_rate=(0.1, 0.01)), TRAIN, seeds=(0, 1), epochs=3, **others)

    def stop(state, records):
        return Stop("two") if len(records) == 2 else None

    def note(name):
        return lambda state, values: calls.append((name, type(state).__name__))

    whole_sweep = search()
    hook = Callback(note("begin"), note("steps"), stop, note("end"), every_steps=4)
    first = search(callbacks=[hook])
    assert set(first.table["reason"]) == {"two"} and len(first.records) == 2
    assert calls == [(name, "SweepState") for name in ("begin", "steps", "steps", "end")]
    second = search(state=first)
    assert bits(second.final) == bits(whole_sweep.final) and set(second.table["reason"]) == {"epochs"}
    counted = search(callbacks=[patience_of(2)])
    assert counted.callback_states == {"patience": {"count": 2}}
    assert len(search(state=counted, callbacks=[patience_of(3)]).records) == 3
