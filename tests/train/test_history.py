"""Runs that are resumed from their result: every epoch stands once in their records, files, charts and checkpoints."""

import csv
from functools import partial

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxdl import saving
from jaxdl.callbacks import csv_log, progress_bar, tensorboard
from jaxdl.data import dataset
from jaxdl.ensembles import fit_seeds, member
from jaxdl.errors import InputError
from jaxdl.losses import squared_error
from jaxdl.metrics import rmse
from jaxdl.nn import mlp
from jaxdl.runs.runner import drive
from jaxdl.train import make_plan
from jaxdl.train.fit import fit
from jaxdl.train.history import WrittenRecords
from tests.bits import bits

INPUTS = np.linspace(-1, 1, 24, dtype=np.float32)[:, None]
ROWS = dataset(INPUTS, 3 * INPUTS)
MODEL, OPTIMIZER = mlp(()), optax.adam(0.05)
train = partial(fit, MODEL, squared_error, OPTIMIZER, ROWS, ROWS, metrics=[rmse], batch_size=8)
many = partial(fit_seeds, MODEL, squared_error, OPTIMIZER, ROWS, ROWS, metrics=[rmse], batch_size=8, seeds=(3, 0, 7))


def refuse(text):
    raise AssertionError(text)


def rows_in(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def losses_in(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars("loss")]


class Callbacks:
    """A file, charts and checkpoints in a folder, and what callbacks were given."""

    def __init__(self, folder):
        self.folder, self.lengths = folder, []

    def __enter__(self):
        self.open = [
            csv_log(str(self.folder / "history.csv")),
            tensorboard(str(self.folder / "charts"), every=0.0),
            saving.checkpointer(str(self.folder / "kept"), {}, every=99, warn=refuse),
        ]
        return [each.__enter__() for each in self.open] + [lambda _, history: self.lengths.append(len(history))]

    def __exit__(self, *error):
        for each in self.open:
            each.__exit__(None, None, None)

    def check(self, records):
        """Raises where a place does not hold each of these epochs once."""
        assert [int(row["epoch"]) for row in rows_in(self.folder / "history.csv")] == [row["epoch"] for row in records]
        assert [float(row["loss"]) for row in rows_in(self.folder / "history.csv")] == [row["loss"] for row in records]
        assert losses_in(self.folder / "charts/train") == [(row["epoch"], row["loss"]) for row in records]
        steps = [step for step, _ in losses_in(self.folder / "charts/validation")]
        assert steps == [row["epoch"] for row in records]
        assert saving.restore_latest(str(self.folder / "kept"), refuse).about["history"] == records


@pytest.fixture(scope="module")
def whole():
    return train(epochs=5)


@pytest.mark.parametrize("anew", [False, True], ids=["the same callbacks", "callbacks made anew"])
def test_a_run_resumed_from_its_result_keeps_its_whole_history(whole, anew, tmp_path):
    watching = Callbacks(tmp_path)
    with watching as callbacks:
        run = train(epochs=2, callbacks=callbacks)
        if not anew:
            run = train(epochs=5, state=run, callbacks=callbacks)
    if anew:
        with watching as callbacks:
            run = train(epochs=5, state=run, callbacks=callbacks)
    assert run.records == whole.records and bits(run.state) == bits(whole.state)
    pd.testing.assert_frame_equal(run.history, whole.history, check_exact=True)
    assert watching.lengths == [1, 2, 3, 4, 5]
    watching.check(whole.records)


@pytest.mark.parametrize("anew", [False, True], ids=["the same callbacks", "callbacks made anew"])
def test_a_run_that_is_set_back_removes_later_epochs(whole, anew, tmp_path):
    first = train(epochs=2)
    # Another learning rate would give other epochs 3 and 4; so does another order of the rows.
    other = first._replace(state=first.state._replace(key=jax.random.key(9)))
    watching = Callbacks(tmp_path)
    with watching as callbacks:
        train(epochs=4, state=other, callbacks=callbacks)
        if not anew:
            run = train(epochs=3, state=first, callbacks=callbacks)
    if anew:
        with watching as callbacks:
            run = train(epochs=3, state=first, callbacks=callbacks)
    assert run.records == whole.records[:3]
    watching.check(whole.records[:3])


def test_callbacks_that_saw_the_epochs_before_a_bare_state_keep_them(whole, tmp_path):
    watching = Callbacks(tmp_path)
    with watching as callbacks:
        first = train(epochs=2, callbacks=callbacks)
        second = train(epochs=5, state=first.state, callbacks=callbacks)
    assert [row["epoch"] for row in second.records] == [3, 4, 5]
    watching.check(whole.records)


def test_a_file_made_anew_keeps_the_rows_before_a_bare_state(whole, tmp_path):
    with csv_log(tmp_path / "history.csv") as observe:
        first = train(epochs=4, callbacks=[observe])
    second = train(epochs=2)
    with csv_log(tmp_path / "history.csv") as observe:
        assert len(rows_in(tmp_path / "history.csv")) == len(first.records)
        train(epochs=5, state=second.state, callbacks=[observe])
    assert [float(row["loss"]) for row in rows_in(tmp_path / "history.csv")] == [row["loss"] for row in whole.records]


def test_a_new_run_replaces_the_file_of_another(tmp_path):
    for seed, epochs in ((0, 4), (1, 2)):
        with csv_log(tmp_path / "history.csv") as observe:
            run = train(epochs=epochs, seed=seed, callbacks=[observe])
    result = rows_in(tmp_path / "history.csv")
    assert [float(row["loss"]) for row in result] == [row["loss"] for row in run.records]
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_a_checkpoint_is_resumed_with_its_history(whole, tmp_path):
    with saving.checkpointer(tmp_path, {}, every=99, warn=refuse) as keep:
        train(epochs=2, callbacks=[keep])
    saved = saving.restore_latest(tmp_path, refuse)
    run = train(epochs=5, state=saved)
    assert run.records == whole.records and bits(run.state) == bits(whole.state)
    with pytest.raises(InputError, match="the checkpoint holds"):
        fit(mlp((4,)), squared_error, OPTIMIZER, ROWS, ROWS, metrics=[rmse], batch_size=8, epochs=5, state=saved)


def test_an_interrupted_run_has_the_records_of_its_state_and_no_more(whole):
    def stop(run_state, history):
        if len(history) == 3:
            raise KeyboardInterrupt

    run = train(epochs=5, callbacks=[stop])
    assert run.reason == "interrupted" and run.records == whole.records[:3]
    assert train(epochs=5, state=run).records == whole.records


def test_the_result_that_is_resumed_is_not_changed(whole):
    first = train(epochs=2)
    before = [*first.records]
    train(epochs=5, state=first)
    assert first.records == before == whole.records[:2]


def test_a_driven_run_writes_every_epoch_once(whole, tmp_path):
    plan = make_plan(MODEL, squared_error, OPTIMIZER, metrics=[rmse], batch_size=8)
    first = train(epochs=2)
    for _ in range(2):  # the second is set back
        with (
            csv_log(tmp_path / "a.csv", first.records) as rows,
            tensorboard(tmp_path, initial_epoch=2) as charts,
        ):
            assert len(rows_in(tmp_path / "a.csv")) == 2
            flags = {"epochs": 5, "history": first.records, "callbacks": [rows, charts]}
            end = drive(plan, first.state, ROWS, ROWS, **flags)
    assert [row["loss"] for row in end.history] == [row["loss"] for row in whole.records]
    assert [int(row["epoch"]) for row in rows_in(tmp_path / "a.csv")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in losses_in(tmp_path / "train")] == [3, 4, 5]


@pytest.mark.parametrize("given", ["a run", {"epoch": 2}, 3], ids=str)
def test_a_state_that_is_no_run_is_refused(given):
    with pytest.raises(
        InputError, match=r"state must be the FitResult that an earlier call returned.*, got (str|dict|int)"
    ):
        train(state=given)
    with pytest.raises(InputError, match="state must be the SeedsResult that an earlier call returned"):
        many(state=given)


# Two runs


def test_two_runs_that_share_a_callback_are_refused():
    one, other = ([{"epoch": epoch, "loss": loss / epoch} for epoch in (1, 2)] for loss in (1.0, 2.0))
    written = WrittenRecords()
    written.update(one[:1])
    written.update(other[:1])
    with pytest.raises(InputError, match=r"a callback has written epoch 1 of another run .* a callback and a folder"):
        written.update([*one])


@pytest.mark.parametrize("make", [csv_log, tensorboard, partial(saving.checkpointer, about={}, every=9, warn=print)])
def test_two_callbacks_at_one_place_are_refused(make, tmp_path):
    with (
        make(tmp_path / "a"),
        pytest.raises(InputError, match="a is being written by another run"),
        make(tmp_path / "a"),
    ):
        pass
    with make(tmp_path / "a"):
        pass


# Many runs


@pytest.fixture(scope="module")
def all_runs():
    return many(epochs=4)


@pytest.mark.parametrize("anew", [False, True], ids=["the same callbacks", "callbacks made anew"])
def test_many_runs_keep_their_whole_history(all_runs, anew, tmp_path):
    watching = Callbacks(tmp_path)
    with watching as callbacks:
        runs = many(epochs=2, callbacks=callbacks)
        if not anew:
            runs = many(epochs=4, state=runs, callbacks=callbacks)
    if anew:
        with watching as callbacks:
            runs = many(epochs=4, state=runs, callbacks=callbacks)
    assert bits(runs.state) == bits(all_runs.state) and watching.lengths == [1, 2, 3, 4]
    pd.testing.assert_frame_equal(runs.history, all_runs.history, check_exact=True)
    # A row a run and epoch in the file, a folder of charts a run.
    table = pd.DataFrame(rows_in(tmp_path / "history.csv")).astype(float)
    expected = all_runs.history.sort_values(["epoch", "member"], ignore_index=True)
    pd.testing.assert_frame_equal(table, expected, check_exact=True, check_dtype=False)
    for index in range(3):
        of = all_runs.history[all_runs.history["member"] == index]
        for name, column in (("train", "loss"), ("validation", "val_loss")):
            assert losses_in(tmp_path / f"charts/member-{index}" / name) == list(
                zip(of["epoch"], of[column], strict=True)
            )
    saved = saving.restore_latest(tmp_path / "kept", refuse)
    assert [row["epoch"] for row in saved.about["history"]] == [1, 2, 3, 4]


def test_many_runs_are_resumed_from_a_checkpoint(all_runs, tmp_path):
    with saving.checkpointer(tmp_path, {}, every=99, warn=refuse) as keep:
        many(epochs=2, callbacks=[keep])
    runs = many(epochs=4, state=saving.restore_latest(tmp_path, refuse))
    assert bits(runs.state) == bits(all_runs.state)
    pd.testing.assert_frame_equal(runs.history, all_runs.history, check_exact=True)


def test_runs_that_stopped_early_have_no_rows_after_their_end(tmp_path):
    from jaxdl.train import early_stopping

    with csv_log(tmp_path / "a.csv") as observe:
        runs = many(epochs=40, early_stopping=early_stopping(patience=0), callbacks=[observe], seeds=(0, 5, 6))
    ends = runs.history.groupby("member")["epoch"].max()
    assert ends.nunique() > 1
    table = pd.DataFrame(rows_in(tmp_path / "a.csv")).astype(float)
    expected = runs.history.sort_values(["epoch", "member"], ignore_index=True)
    pd.testing.assert_frame_equal(table, expected, check_exact=True, check_dtype=False)


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "a bar"])
def test_the_bar_shows_the_mean_of_many_runs(all_runs, terminal):
    import io

    out = Console(file=io.StringIO(), width=120, force_terminal=terminal)
    with progress_bar(4, ("loss", "val_loss"), console=out) as observe:
        many(epochs=4, callbacks=[observe])
    text = out.file.getvalue()
    mean = np.mean(all_runs.records[-1]["val_loss"], dtype=np.float64)
    assert "4/4" in text and f"val_loss {mean:.4f} (mean of 3 runs)" in text


def test_a_member_of_many_runs_is_resumed_alone(all_runs):
    one = member(all_runs.state, 1)
    assert [row["epoch"] for row in train(epochs=5, state=one).records] == [5]


def test_members_that_stopped_and_train_on_keep_their_own_epochs():
    from jaxdl.train import early_stopping

    seeds = (0, 5, 6)
    first = many(epochs=40, early_stopping=early_stopping(patience=0), seeds=seeds, method="map")
    ends = np.asarray(first.state.epoch)
    assert len({*ends}) > 1
    rest = many(epochs=int(ends.max()) + 3, state=first, seeds=seeds, method="map")
    whole = many(epochs=int(ends.max()) + 3, seeds=seeds, method="map")
    for index in range(len(seeds)):
        history, expected = (runs.history[runs.history["member"] == index] for runs in (rest, whole))
        assert len(history) == ends.max() + 3
        np.testing.assert_array_equal(history, expected[: len(history)])


def test_many_runs_refuse_the_checkpoint_of_one(tmp_path):
    with saving.checkpointer(tmp_path, {}, every=0, warn=refuse) as keep:
        train(epochs=1, callbacks=[keep])
    with pytest.raises(InputError, match=r"got that of a single run\. Continue it with fit"):
        many(epochs=2, state=saving.restore_latest(tmp_path, refuse))
