"""Callbacks: what they write, when, and that they only look."""

import csv
import functools
import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from rich.console import Console

from jaxdl import callbacks
from jaxdl.callbacks import _progress_bar
from jaxdl.data import dataset
from jaxdl.errors import InputError
from jaxdl.losses import squared_error
from jaxdl.metrics import rmse
from jaxdl.nn import mlp
from jaxdl.train.fit import fit
from jaxdl.types import Objective

EPOCHS = 4
INPUTS = np.linspace(-1, 1, 24, dtype=np.float32)[:, None]
ROWS = dataset(INPUTS, 3 * INPUTS)
# Made once, so that all runs here share one compiled program.
MODEL, OBJECTIVE = mlp(()), Objective(squared_error, (rmse,))
ADAM = optax.inject_hyperparams(optax.adam)(learning_rate=0.05)


@functools.cache
def network():
    return MODEL.init(jax.random.key(0), INPUTS)


# A figure for every epoch that no decimal shortening survives.
RECORDS = [
    {"loss": 1 / 3, "val_loss": 0.1 + 0.2},
    {"loss": 1e-300, "val_loss": 2 / 3},
    {"loss": 1e22, "val_loss": 1 / 7},
]


def numbered(records):
    return [{"epoch": epoch, **record} for epoch, record in enumerate(records, 1)]


def run(*on_epoch, **options):
    options = {"epochs": EPOCHS, "batch_size": 8, "variables": network(), **options}
    return fit(MODEL, squared_error, ADAM, ROWS, ROWS, metrics=[rmse], callbacks=on_epoch, **options)


def progress_at(epoch, best_epoch, best=float("inf")):
    """As much of a RunState as a callback may look at."""
    stopping = SimpleNamespace(best=jnp.float32(best), best_epoch=jnp.int32(best_epoch))
    return SimpleNamespace(epoch=jnp.int32(epoch), cursor=jnp.int32(0), stopping=stopping)


def replay(callback, records, best_epoch=1):
    for epoch in range(1, len(records) + 1):
        callback(progress_at(epoch, min(epoch, best_epoch)), numbered(records[:epoch]))


# The file of figures


def test_the_csv_file_holds_the_history_to_the_last_digit(tmp_path):
    with callbacks.csv_log(tmp_path / "history.csv") as callback:
        history = run(callback).history
    # Python's own float, because pandas reads the last digit as it likes.
    with (tmp_path / "history.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["epoch", *history] == ["epoch", "loss", "rmse", "val_loss", "val_rmse", "learning_rate"]
    assert [int(row[0]) for row in rows] == list(history.index) == [1, 2, 3, 4]
    np.testing.assert_array_equal([[float(figure) for figure in row[1:]] for row in rows], history)


@pytest.mark.parametrize("value", [1 / 3, 1e-300, 1e22, float("nan"), float("inf"), 0.0])
def test_the_csv_file_keeps_every_number(tmp_path, value):
    with callbacks.csv_log(tmp_path / "history.csv") as callback:
        callback(progress_at(1, 0), numbered([{"loss": value}]))
    header, row = (tmp_path / "history.csv").read_text().splitlines()
    assert header == "epoch,loss"
    np.testing.assert_array_equal(float(row.removeprefix("1,")), value)


def test_each_row_is_on_the_disk_before_the_next_epoch(tmp_path):
    rows = []

    def count(run_state, history):
        rows.append(len((tmp_path / "history.csv").read_text().splitlines()) - 1)

    with callbacks.csv_log(tmp_path / "history.csv") as callback:
        run(callback, count)
    assert rows == [1, 2, 3, 4]


def test_an_interrupted_run_keeps_its_rows(tmp_path):
    with pytest.raises(KeyboardInterrupt), callbacks.csv_log(tmp_path / "history.csv") as callback:
        replay(callback, RECORDS)
        raise KeyboardInterrupt
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 1 + len(RECORDS)


def test_the_epochs_of_a_resumed_run_go_on_in_the_csv_file(tmp_path):
    first = run(epochs=2)
    with callbacks.csv_log(tmp_path / "history.csv") as callback:
        second = run(callback, state=first.state, variables=None)
    table = pd.read_csv(tmp_path / "history.csv", index_col="epoch")
    assert list(table.index) == list(second.history.index) == [3, 4]


# The console


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when the test says so."""
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr(_progress_bar, "time", SimpleNamespace(monotonic=lambda: time.now, time=lambda: time.now))
    return time


def console(**options):
    return Console(file=io.StringIO(), width=120, **options)


FIGURES = ("loss", "val_loss")


def test_a_file_gets_plain_lines_of_the_first_and_the_last_epoch(clock):
    out = console()
    with callbacks.progress_bar(10, FIGURES, console=out) as callback:
        replay(callback, RECORDS)
    lines = out.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "3/10"]
    assert "loss 0.3333 val_loss 0.3000" in lines[0]
    assert "\x1b" not in out.file.getvalue()


def test_a_line_is_printed_only_now_and_then(clock):
    out = console()
    with callbacks.progress_bar(9, FIGURES, console=out) as callback:
        for epoch in range(1, 10):
            callback(progress_at(epoch, 1), numbered(RECORDS[:1] * epoch))
            clock.now += 0.4
    # Every 1.0 s at most, at 0.4 s an epoch: each third epoch, and the last.
    assert [line.split()[1] for line in out.file.getvalue().splitlines()] == ["1/9", "4/9", "7/9", "9/9"]


def test_the_last_epoch_is_not_printed_twice(clock):
    out = console()
    with callbacks.progress_bar(1, FIGURES, console=out) as callback:
        replay(callback, RECORDS[:1])
    assert len(out.file.getvalue().splitlines()) == 1


def test_a_line_shows_the_best_epoch_and_the_time_that_is_left(clock):
    out = console()
    with callbacks.progress_bar(9, FIGURES, console=out) as callback:
        for epoch in (1, 2, 3):
            clock.now += 2.0
            best_epoch = min(epoch, 2)
            callback(progress_at(epoch, best_epoch, RECORDS[best_epoch - 1]["val_loss"]), numbered(RECORDS[:epoch]))
    first, *_, last = out.file.getvalue().splitlines()
    # The first epoch compiles, so it says nothing about the others.
    assert "left" not in first
    # The best epoch is the second, at 2 / 3; six more epochs at 2 s each are left.
    assert "best 0.6667 (epoch 2)" in last
    assert "12 s" in last


def test_a_line_says_so_where_no_epoch_was_finite_yet(clock):
    out = console()
    with callbacks.progress_bar(2, FIGURES, console=out) as callback:
        callback(progress_at(1, 0), numbered([{"loss": float("nan"), "val_loss": float("nan")}]))
    assert "loss nan val_loss nan best: none yet" in out.file.getvalue()


def test_metrics_that_a_run_does_not_compute_are_left_out(clock):
    # A run without validation, shown by a program that asks for validation figures too.
    out = console()
    with callbacks.progress_bar(2, FIGURES, console=out) as callback:
        replay(callback, [{"loss": 0.5}, {"loss": 0.25}])
    assert "loss 0.2500" in out.file.getvalue()
    assert "val_loss" not in out.file.getvalue()


def test_a_resumed_run_can_be_shown(clock):
    # The best epoch may lie before the history, which holds only the epochs since.
    first, out = run(epochs=3), console()
    assert first.best_epoch == 3
    with callbacks.progress_bar(EPOCHS, FIGURES, console=out) as callback:
        second = run(callback, state=first.state, variables=None)
    assert len(second.history) == 1
    assert f"epoch {EPOCHS}/{EPOCHS}" in out.file.getvalue()


@pytest.mark.parametrize("epochs", [EPOCHS, EPOCHS + 5], ids=["to the end", "stopped early"])
def test_a_terminal_gets_a_bar(epochs):
    out = console(force_terminal=True)
    with callbacks.progress_bar(epochs, FIGURES, console=out) as callback:
        history = run(callback).history
    text = out.file.getvalue()
    assert "━" in text and "\x1b[" in text
    assert f"1/{epochs}" in text and f"{EPOCHS}/{epochs}" in text
    assert f"val_loss {history['val_loss'].iloc[-1]:.4f}" in text


# All of them


def test_callbacks_do_not_change_the_run(tmp_path):
    plain = run()
    with (
        callbacks.csv_log(tmp_path / "history.csv") as rows,
        callbacks.tensorboard(tmp_path / "tensorboard", every=0.0) as charts,
        callbacks.progress_bar(EPOCHS, FIGURES, console=console(force_terminal=True)) as bar,
        callbacks.progress_bar(EPOCHS, FIGURES, console=console()) as lines,
    ):
        watched = run(rows, charts, bar, lines)
    jax.tree.map(np.testing.assert_array_equal, watched.final, plain.final)
    jax.tree.map(np.testing.assert_array_equal, watched.best, plain.best)
    pd.testing.assert_frame_equal(watched.history, plain.history, check_exact=True)


def test_a_folder_in_the_place_of_the_csv_file_is_refused_at_the_start(tmp_path):
    with (
        pytest.raises(InputError, match="csv_log needs the path of a file, got the folder"),
        callbacks.csv_log(tmp_path),
    ):
        pass
