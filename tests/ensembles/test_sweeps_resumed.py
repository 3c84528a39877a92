"""Sweeps that are interrupted and resumed, from their result or a checkpoint, have the bits of uninterrupted ones."""

import csv
import io
from functools import partial

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxdl import callbacks, saving
from jaxdl.ensembles import sweep, sweeps
from jaxdl.errors import InputError
from jaxdl.train import early_stopping
from tests.bits import bits
from tests.sweep_runs import ROWS, make_linear

# A trial diverges, which a sweep warns of.
pytestmark = pytest.mark.filterwarnings("ignore:no epoch of seeds:RuntimeWarning")

NEVER = early_stopping(patience=None)
SEEDS = (3, 0)
TRIALS = [{"learning_rate": rate, "kind": index % 2} for index, rate in enumerate((0.03, 0.15, 1e-3, 1e30, 0.1))]


def make(learning_rate, kind=0):
    return make_linear(learning_rate, early_stopping(patience=1) if kind else NEVER)


halved = {"epochs": 5, "eta": 2, "min_resource": 1}
run = partial(sweep, make, TRIALS, *ROWS, seeds=SEEDS)


def refuse(text):
    raise AssertionError(text)


def same(result, whole):
    """Raises where two sweeps differ in a bit."""
    pd.testing.assert_frame_equal(result.table, whole.table, check_exact=True)
    pd.testing.assert_frame_equal(result.history, whole.history, check_exact=True)
    for parts in ("best", "final", "state"):
        assert bits(getattr(result, parts)) == bits(getattr(whole, parts))
    assert [*map(str, result.records)] == [*map(str, whole.records)]


@pytest.fixture(scope="module", params=[halved, {"epochs": 3}], ids=["halving", "no halving"])
def flags(request):
    return request.param


@pytest.fixture(scope="module")
def whole(flags):
    calls = []
    result = run(**flags, callbacks=[lambda run_state, records: calls.append(len(records))])
    assert calls == list(range(1, len(result.records) + 1))
    return result


def interrupted(after, callbacks=(), **flags):
    """A sweep that Ctrl-C ends after some epochs, and all epochs of others."""

    def stop(run_state, records):
        if len(records) == after:
            raise KeyboardInterrupt

    return run(**flags, callbacks=[*callbacks, stop])


def test_an_interrupted_sweep_is_resumed_to_the_bit(flags, whole):
    for after in (1, len(whole.records) // 2, len(whole.records) - 1):
        first = interrupted(after, **flags)
        assert len(first.records) == after and "interrupted" in {*first.table["reason"]}
        same(run(**flags, state=first), whole)


def test_a_sweep_that_is_interrupted_inside_an_epoch_is_resumed_to_the_bit(flags, whole, monkeypatch):
    group_chunks, count = sweeps.group_chunks, iter(range(10**6))

    def stopping(*arguments):
        for chunk in group_chunks(*arguments):
            yield chunk
            if next(count) % 4 == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "group_chunks", stopping)
    result, times = None, 0
    while result is None or "interrupted" in {*result.table["reason"]}:
        result, times = run(**flags, state=result), times + 1
    assert times > 1
    same(result, whole)


def test_a_sweep_that_was_killed_is_resumed_from_its_checkpoint_to_the_bit(flags, whole, tmp_path):
    for after in (1, len(whole.records) // 2, len(whole.records) - 1):
        folder = tmp_path / str(after)
        with saving.checkpointer(folder, {"seeds": SEEDS}, every=99, warn=refuse) as keep:
            interrupted(after, **flags, callbacks=[keep])
        # From here on only the files are known.
        same(run(**flags, state=saving.restore_latest(folder, refuse)), whole)


def test_a_finished_sweep_is_resumed_with_more_epochs():
    flags = {"epochs": 4, "eta": 2, "min_resource": 2}
    whole = run(**flags)
    same(run(**flags, state=run(**{**flags, "epochs": 2})), whole)
    same(run(**flags, state=whole), whole)


def test_the_sweep_that_is_resumed_is_not_changed(flags):
    first = interrupted(2, **flags)
    before, records = bits(first.state), [*first.records]
    run(**flags, state=first)
    assert bits(first.state) == before and len(first.records) == len(records) == 2


@pytest.mark.parametrize(
    ("change", "output"),
    [
        ({"seeds": (3, 1)}, "state must be of a sweep with the same seeds"),
        ({"trials": TRIALS[:4]}, "state must be of a sweep with the same trials"),
        ({"trials": [{**one, "learning_rate": 0.5} for one in TRIALS]}, "the same values of trials"),
        ({"eta": None}, "epochs, eta and min_resource must fit the state"),
        ({"epochs": 1}, "epochs, eta and min_resource must fit the state"),
        ({"state": "a sweep"}, "state must be the SweepResult that an earlier call returned, .* got str"),
    ],
)
def test_a_sweep_of_other_arguments_is_not_resumed(change, output):
    given = {"trials": TRIALS, "seeds": SEEDS, **halved, "state": interrupted(4, **halved), **change}
    with pytest.raises(InputError, match=output):
        sweep(make, given.pop("trials"), *ROWS, **given)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    from tests.sweep_runs import solo

    alone = solo(make(0.1), 0, 1)
    with saving.checkpointer(tmp_path, {}, every=99, warn=refuse) as keep:
        keep(alone.state, alone.records)
    with pytest.raises(InputError, match="state must be a checkpoint of a sweep"):
        run(**halved, state=saving.restore_latest(tmp_path, refuse))


# Callbacks


@pytest.mark.parametrize("anew", [False, True], ids=["the same callbacks", "callbacks made anew"])
def test_callbacks_of_a_sweep_write_every_run_and_epoch_once(flags, whole, anew, tmp_path):
    def opened():
        return callbacks.csv_log(tmp_path / "history.csv"), callbacks.tensorboard(tmp_path / "charts", every=0.0)

    rows, charts = opened()
    with rows as one, charts as other:
        first = interrupted(3, **flags, callbacks=[one, other])
        if not anew:
            run(**flags, state=first, callbacks=[one, other])
    if anew:
        rows, charts = opened()
        with rows as one, charts as other:
            run(**flags, state=first, callbacks=[one, other])
    with (tmp_path / "history.csv").open(newline="") as file:
        table = pd.DataFrame(csv.DictReader(file)).astype(float)
    table = table.sort_values(["trial", "seed", "epoch"], ignore_index=True)
    pd.testing.assert_frame_equal(table, whole.history.astype(float), check_exact=True)
    for (trial, seed), of in whole.history.groupby(["trial", "seed"]):
        accumulator = EventAccumulator(str(tmp_path / f"charts/trial-{trial}-seed-{seed}/validation"))
        accumulator.Reload()
        result = [(event.step, event.value) for event in accumulator.Scalars("loss")]
        np.testing.assert_array_equal(result, of[["epoch", "val_loss"]].to_numpy())


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "a bar"])
def test_the_bar_shows_the_mean_of_the_runs_that_share_a_program(flags, whole, terminal):
    out = Console(file=io.StringIO(), width=120, force_terminal=terminal)
    with callbacks.progress_bar(flags["epochs"], ("loss",), console=out) as observe:
        run(**flags, callbacks=[observe])
    record = whole.records[-1]
    values = record["loss"][np.isfinite(record["loss"])].astype(np.float64)
    assert f"{record['epoch']}/{flags['epochs']}" in out.file.getvalue()
    assert f"loss {values.mean():.4f} (mean of " in out.file.getvalue()
