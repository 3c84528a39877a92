"""The runs under a folder: found, read and ordered, whatever lies there."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdl._files import lock_folder
from jaxdl.errors import InputError
from jaxdl.runs.catalog import (
    Difference,
    RunInfo,
    diff_runs,
    files,
    find,
    flat,
    history,
    list_runs,
    ordered,
    read,
    row,
    run_details,
)
from tests.run_folders import CONFIG, HISTORY, METRICS, accuracy, write


def test_a_finished_run_is_judged_by_the_weights_of_its_best_epoch(tmp_path):
    result = row(write(tmp_path / "one", seed=3))
    assert (result.run, result.recipe, result.seed, result.figure, result.reason) == (
        "one",
        "small",
        3,
        "rmse",
        "epochs",
    )
    assert (result.best, result.test, result.test_last) == (3.0, 3.25, 3.8)
    assert (result.best_epoch, result.epochs, result.parameters) == (2, 4, 1701)
    assert (result.seconds, result.commit, result.problem) == (4.25, "0123456", None)


def test_a_run_that_has_not_ended_has_the_best_epoch_of_its_history(tmp_path):
    result = row(write(tmp_path / "one", metrics=None))
    assert (result.reason, result.figure, result.best, result.best_epoch, result.epochs) == (
        "unfinished",
        "rmse",
        3.0,
        2,
        4,
    )
    assert (result.test, result.parameters, result.seconds) == (None, None, HISTORY["seconds"].sum())


@pytest.mark.parametrize("losses", [[np.nan] * 4, [np.inf, np.nan, np.inf, np.nan]])
def test_an_unfinished_run_without_a_finite_epoch_has_no_best_one(tmp_path, losses):
    result = row(write(tmp_path / "one", metrics=None, history=HISTORY.assign(val_loss=losses)))
    assert (result.reason, result.epochs, result.best, result.best_epoch) == ("unfinished", 4, None, None)


def test_infinity_is_never_the_best_epoch(tmp_path):
    result = row(write(tmp_path / "one", metrics=None, history=HISTORY.assign(val_loss=[-np.inf, np.nan, 7, 8])))
    assert (result.best_epoch, result.best) == (3, 3.5)


@pytest.mark.parametrize("empty", [None, HISTORY[:0]])
def test_a_run_that_was_killed_before_its_first_epoch_is_unfinished(tmp_path, empty):
    result = row(write(tmp_path / "one", metrics=None, history=empty))
    assert (result.reason, result.epochs, result.problem) == ("unfinished", 0, None)


def test_a_run_that_a_process_holds_is_running_until_that_process_ends(tmp_path):
    folder = write(tmp_path / "one", metrics=None)
    program = "import sys\nfrom pathlib import Path\nfrom jaxdl._files import lock_folder\n"
    program += "with lock_folder(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        assert row(folder).reason == "running"
        holder.kill()
        holder.wait()
        assert (folder / "lock").exists() and row(folder).reason == "unfinished"


def test_to_list_runs_never_keeps_one_from_beginning(tmp_path):
    folder = write(tmp_path / "one", metrics=None)
    (folder / "lock").write_text(f"{2**22 + 1} nowhere")
    row(folder)
    with lock_folder(folder):
        assert row(folder).reason == "running"


DAMAGES = {
    "config.json is cut off": ("config.json", '{"recipe": "sm'),
    "config.json is a list": ("config.json", "[1]"),
    "config.json is binary": ("config.json", b"\xff\xfe\x00"),
    "the seed is no number": ("config.json", json.dumps({**CONFIG, "seed": "first"})),
    "metrics.json is empty": ("metrics.json", ""),
    "metrics.json lacks everything": ("metrics.json", "{}"),
    "metrics.json lacks the sets": ("metrics.json", json.dumps({**METRICS, "rmse_best": {"train": 1}})),
    "a figure is a word": ("metrics.json", json.dumps({**METRICS, "rmse": {"test": "low"}})),
    "the seconds are a number": ("metrics.json", json.dumps({**METRICS, "seconds": 3})),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_a_row_that_says_so_beside_the_others(tmp_path, name):
    file, content = DAMAGES[name]
    write(tmp_path / "a")
    write(tmp_path / "b")
    (tmp_path / "a" / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    damaged, healthy = list_runs(tmp_path)
    assert (damaged.run, damaged.reason, healthy.reason) == ("a", "damaged", "epochs")
    assert str(tmp_path / "a") in damaged.problem


@pytest.mark.parametrize("content", ["loss\n1\n", "epoch,loss\n1,low\n", "epoch,loss\n1,2,3,4\n1\n", "\x00\n"])
def test_a_damaged_history_is_told_and_only_needed_where_nothing_else_tells(tmp_path, content):
    folder = write(tmp_path / "one")
    (folder / "history.csv").write_text(content)
    with pytest.raises(InputError, match=r"history\.csv is damaged"):
        history(folder)
    assert row(folder).reason == "epochs"
    (folder / "metrics.json").unlink()
    assert row(folder).reason == "damaged"


def test_a_history_is_what_was_written_without_a_line_that_is_being_written(tmp_path):
    folder = write(tmp_path / "one")
    pd.testing.assert_frame_equal(history(folder), HISTORY, check_index_type=False)
    with (folder / "history.csv").open("a") as file:
        file.write("5,0.1")
    pd.testing.assert_frame_equal(history(folder), HISTORY, check_index_type=False)


def test_runs_are_found_at_any_depth_but_not_inside_of_runs_and_not_hidden(tmp_path):
    for name in ("b", "deep/er/a", ".hidden/c", "b/copies/d"):
        write(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path)
    assert [each.run for each in list_runs(tmp_path)] == ["b", "deep/er/a"]
    assert {*find(tmp_path)} == {tmp_path / "b", tmp_path / "deep" / "er" / "a"}


def test_the_folder_of_a_run_lists_that_run(tmp_path):
    (result,) = list_runs(write(tmp_path / "one"))
    assert (result.run, result.folder) == ("one", tmp_path / "one")


def test_what_is_no_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file must be a folder with runs, got a file"):
        list_runs(tmp_path / "file")
    with pytest.raises(InputError, match=r"the folder of a run, which holds a config\.json, got a folder without"):
        read(tmp_path)
    assert list_runs(tmp_path) == []


def test_the_best_run_comes_first_within_its_kind_of_figure(tmp_path):
    values = {"a": (0.5, 0.6), "b": (0.7, 0.4)}
    for name, figures in values.items():
        write(tmp_path / name, metrics=accuracy(*figures))
    write(tmp_path / "c")
    write(tmp_path / "d", metrics={**METRICS, "rmse_best": {"validation": 2.0, "test": 5.0}})
    write(tmp_path / "e", metrics={**METRICS, "rmse_best": {"validation": None, "test": None}})
    write(tmp_path / "f", metrics=None, history=None)
    rows = list_runs(tmp_path)
    assert math.isnan(rows[4].best)
    assert "".join(each.run for each in ordered(rows, "best")) == "badcef"
    assert "".join(each.run for each in ordered(rows, "test")) == "abcdef"
    assert "".join(each.run for each in ordered(rows, "test", reverse=True)) == "badcef"


COLUMNS = ("run", "recipe", "seed", "best", "test", "reason", "time", "commit", "when", "figure", "epochs")


@given(
    st.lists(
        st.builds(
            RunInfo,
            run=st.text("ab1²٣-", max_size=5),
            folder=st.none(),
            reason=st.sampled_from(["epochs", "damaged"]),
            recipe=st.none() | st.text(max_size=3),
            seed=st.none() | st.integers(),
            figure=st.sampled_from([None, "rmse", "accuracy"]),
            best=st.none() | st.floats(),
            test=st.none() | st.floats(),
        )
    ),
    st.sampled_from(COLUMNS),
    st.booleans(),
)
def test_any_rows_can_be_ordered_by_any_column_and_those_without_a_value_are_last(rows, by, reverse):
    result = ordered(rows, by, reverse)
    assert sorted(map(id, result)) == sorted(map(id, rows))
    values = [getattr(each, "seconds" if by == "time" else by) for each in result]
    missing = [value is None or value != value for value in values]
    assert missing == sorted(missing)


@given(st.lists(st.integers(0, 10**6)), st.booleans())
def test_numbers_order_as_numbers_do(seeds, reverse):
    by_seed = ordered([RunInfo("", None, "epochs", seed=seed) for seed in seeds], "seed", reverse)
    assert [each.seed for each in by_seed] == sorted(seeds, reverse=reverse)
    by_name = ordered([RunInfo(f"run-{seed}", None, "epochs") for seed in seeds], "run", reverse)
    assert [each.run for each in by_name] == [f"run-{seed}" for seed in sorted(seeds, reverse=reverse)]


def test_a_folder_that_may_not_be_read_is_a_row(tmp_path, monkeypatch):
    folder = write(tmp_path / "one")

    def refuse(path):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("jaxdl.runs.catalog.read_json", refuse)
    assert row(folder).problem == f"{folder} cannot be read: Permission denied."


def test_lessons_and_other_programs_are_no_runs(tmp_path):
    write(tmp_path / "run")
    for name, message in (("lesson", {"kind": "lesson", "seed": 1}), ("other", {"recipe": "cake", "seed": 1})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(message))
    assert [each.run for each in list_runs(tmp_path)] == ["run"]
    with pytest.raises(InputError, match="got that of a lesson"):
        read(tmp_path / "lesson")
    with pytest.raises(InputError, match=r'config\.json has no "kind"'):
        read(tmp_path / "other")


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "history.csv"])
def test_a_pipe_in_the_folder_of_a_run_holds_nobody_up(name, tmp_path):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.json").write_text('{"kind": "run", "recipe": "small", "seed": 1}')
    (tmp_path / "a" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "a" / name)
    assert [(row.run, row.reason) for row in list_runs(tmp_path)] == [("a", "damaged"), ("b", "unfinished")]


def test_what_lies_behind_a_link_is_not_the_runs(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (tmp_path / "large").write_bytes(bytes(1000))
    for name in ("figures", "checkpoints"):
        (folder / name).symlink_to("/")
    assert files(folder) == {"config.json": 2, "checkpoints/": 0, "figures/": 0}


# What a run's folder says, all of it.


def test_an_account_holds_the_files_as_they_are(tmp_path):
    result = run_details(write(tmp_path / "one"))
    assert (result.config, result.metrics, result.row.test) == (CONFIG, METRICS, 3.25)
    assert list(result.files) == ["config.json", "history.csv", "metrics.json"]


def test_files_are_counted_in_bytes_and_folders_with_all_that_is_in_them(tmp_path):
    for name, size in {"a": 3, "figures/b.png": 5, "checkpoints/best/c": 7, "checkpoints/best/deep/d": 11}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"." * size)
    assert files(tmp_path) == {"a": 3, "checkpoints/best/": 18, "figures/b.png": 5}


@pytest.mark.parametrize("damage", ["config.json", "metrics.json"])
def test_a_damaged_run_has_no_account(tmp_path, damage):
    folder = write(tmp_path / "one")
    (folder / damage).write_text('{"kind": "run"}')
    with pytest.raises(InputError, match="does not hold what a run's files hold"):
        run_details(folder)


# What differs between two runs.


def test_only_what_differs_is_listed_and_the_folders_do_not_count(tmp_path):
    a = write(tmp_path / "a", workdir="a")
    b = write(
        tmp_path / "b",
        metrics={**METRICS, "rmse": {**METRICS["rmse"], "test": 3.5}, "reason": "early-stopping"},
        workdir="b",
        seed=1,
        hidden=[100],
        dropout=0.5,
        commit="fedcba",
        versions={**CONFIG["versions"], "jax": "0.11.0"},
    )
    assert diff_runs(a, b) == [
        Difference("config", "seed", 0, 1),
        Difference("config", "hidden", [10, 5], [100]),
        Difference("config", "versions.jax", "0.10.2", "0.11.0"),
        Difference("config", "commit", "0123456789abcdef", "fedcba"),
        Difference("config", "dropout", None, 0.5),
        Difference("metrics", "reason", "epochs", "early-stopping"),
        Difference("metrics", "rmse.test", 3.8, 3.5),
    ]
    mirrored = [(each.entry, each.b, each.a) for each in diff_runs(b, a)]
    assert sorted(mirrored, key=str) == sorted(((e.entry, e.a, e.b) for e in diff_runs(a, b)), key=str)


def test_a_run_differs_from_itself_in_nothing(tmp_path):
    a = write(tmp_path / "a")
    assert diff_runs(a, a) == []


def test_a_run_that_has_not_ended_is_compared_by_its_best_epoch_so_far(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", metrics=None)
    result = {each.entry: (each.a, each.b) for each in diff_runs(a, b)}
    assert result["reason"] == ("epochs", "unfinished") and result["rmse.test"] == (3.8, None)
    # Its best epoch is the one that the finished run had too.
    assert "rmse_best.validation" not in result and "epochs" not in result


def test_what_is_no_run_is_told(tmp_path):
    a = write(tmp_path / "a")
    with pytest.raises(InputError, match="must be the folder of a run"):
        diff_runs(a, tmp_path / "b")
    (a / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        diff_runs(a, a)


NESTED = st.recursive(
    st.none() | st.integers() | st.lists(st.integers()),
    lambda inner: st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
)


@given(st.dictionaries(st.text("abc", min_size=1), NESTED))
def test_flat_entries_are_found_by_their_path(entries):
    for name, value in flat(entries):
        result = entries
        for part in name.split("."):
            result = result[part]
        assert result == value and not isinstance(value, dict)


def test_what_follows_from_the_flags_is_not_told_again(tmp_path):
    a = write(tmp_path / "a")
    b = write(tmp_path / "b", inputs={"shape": [3]}, card={"limits": "Others."}, hidden=[3, 3])
    assert [each.entry for each in diff_runs(a, b)] == ["hidden"]
