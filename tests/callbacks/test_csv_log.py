"""The file of records, and that callbacks only look at a run."""

import csv

import jax
import numpy as np
import pandas as pd
import pytest

from jaxdl import callbacks
from jaxdl.errors import InputError
from tests.callback_runs import EPOCHS, RECORDS, console, numbered, progress_at, replay, run


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


def test_the_csv_file_of_a_bare_state_has_the_epochs_that_follow(tmp_path):
    first = run(epochs=2)
    with callbacks.csv_log(tmp_path / "history.csv") as callback:
        second = run(callback, state=first.state, variables=None)
    table = pd.read_csv(tmp_path / "history.csv", index_col="epoch")
    assert list(table.index) == list(second.history.index) == [3, 4]


def test_callbacks_do_not_change_the_run(tmp_path):
    plain = run()
    with (
        callbacks.csv_log(tmp_path / "history.csv") as rows,
        callbacks.tensorboard(tmp_path / "tensorboard", every=0.0) as charts,
        callbacks.progress_bar(EPOCHS, ("loss", "val_loss"), console=console(force_terminal=True)) as bar,
        callbacks.progress_bar(EPOCHS, ("loss", "val_loss"), console=console()) as lines,
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
