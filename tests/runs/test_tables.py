"""Runs as tables: every value is there, in the width of the terminal."""

import io

import pytest
from rich.console import Console

from jaxdl.runs import tables
from jaxdl.runs.catalog import Difference, diff_runs, list_runs, run_details
from tests.run_folders import METRICS, accuracy, write


def rendered(thing, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    return console.file.getvalue().splitlines()


@pytest.fixture
def rows(tmp_path):
    write(tmp_path / "2026-11-24-182832-early-stopping", recipe="early-stopping")
    write(tmp_path / "pictures", metrics={**accuracy(0.5, 0.488), "reason": "early-stopping"}, seed=12)
    write(tmp_path / "begun", metrics=None)
    write(tmp_path / "bad")
    (tmp_path / "bad" / "config.json").write_text("{")
    return list_runs(tmp_path)


@pytest.mark.parametrize("width", [80, 100, 139, 140, 200])
def test_a_listing_fits_and_breaks_no_value(rows, width):
    lines = rendered(tables.runs_table(rows, width), width)
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for value in ("3.250", "3.000", "48.8 %", "4.2 s", "0123456", "damaged", "unfinished"):
        assert value in text
    names = ["2026-11-24-182832-", "early-", "stopping"] if width < 100 else ["2026-11-24-182832-early-stopping"]
    assert all(name in text for name in names)
    assert ("parameters" in text and "1701" in text) == (width >= 140)


def test_numbers_stand_right_below_their_titles(rows):
    lines = rendered(tables.runs_table(rows, 80), 80)
    end = lines[0].index("test") + len("test")
    assert all(line[end] == " " and line[end - 1] != " " for line in lines if "3.250" in line or "48.8 %" in line)


def test_the_notes_say_what_the_figures_are_and_what_is_damaged(rows):
    meaning, damage = tables.notes(rows)
    assert meaning.startswith("best: accuracy or rmse on validation rows")
    assert damage.startswith("bad: ") and "is damaged" in damage


def test_a_comparison_shows_both_sides_and_the_change_of_numbers(tmp_path):
    a = write(tmp_path / "a")
    b = write(tmp_path / "b", metrics={**METRICS, "rmse": {**METRICS["rmse"], "test": 3.5}}, seed=1, hidden=[100])
    lines = [line.split() for line in rendered(tables.differences_table(diff_runs(a, b), ("a", "b")), 80)]
    assert lines == [
        ["a", "b", "change"],
        ["config"],
        ["seed", "0", "1"],
        ["hidden", "10", "5", "100"],
        ["metrics"],
        ["rmse.test", "3.8", "3.5", "-0.3"],
    ]


def test_names_and_values_are_no_markup():
    result = [Difference("config", "[bold]", "[red]a", None)]
    assert [line.split() for line in rendered(tables.differences_table(result, ("[x]", "[/y]")), 80)] == [
        ["[x]", "[/y]", "change"],
        ["config"],
        ["[bold]", "[red]a", "none"],
    ]


def test_an_account_tells_everything_in_80_columns(tmp_path):
    change = {"after_epoch": 2, "epochs": [2, 4]}
    note = {"name": "weather", "note": "SIMULATED [not real]"}
    folder = write(tmp_path / "one", metrics={**METRICS, "per_class": {"cat": 0.25}}, changes=[change], dataset=note)
    lines = rendered(tables.details_table(run_details(folder)), 80)
    assert all(len(line) <= 80 for line in lines)
    text = " ".join(" ".join(lines).split())
    for part in (
        *("recipe small, seed 0, epochs 4, learning_rate 0.001, hidden 10 5", "after epoch 2: epochs 2 to 4"),
        *("SIMULATED [not real]", "1,701 parameters", "epochs, after epoch 4; best epoch 2", "4.2 s (fit 1.0 s)"),
        *("commit 0123456789abcdef", "jax 0.10.2", "per_class.cat 0.25", "config.json", "history.csv"),
        *("after epoch 4 0.700 3.700 3.800", "best epoch 2 2.000 3.000 3.250", "persistence 3.877"),
    ):
        assert part in text, part


def test_an_account_of_a_run_that_has_not_ended_can_be_shown(tmp_path):
    text = "\n".join(
        rendered(tables.details_table(run_details(write(tmp_path / "one", metrics=None, history=None))), 80)
    )
    assert "unfinished, after epoch 0" in text and "parameters" not in text


def test_metrics_that_are_not_finite_are_shown(tmp_path):
    none = {"train": None, "validation": None, "test": None}
    folder = write(tmp_path / "one", metrics={**METRICS, "rmse": none, "rmse_best": none, "best_epoch": 0})
    assert "nan" in "\n".join(rendered(tables.details_table(run_details(folder)), 80))
    assert "nan" in "\n".join(rendered(tables.runs_table(list_runs(tmp_path)), 80))


def test_an_account_tells_the_network_and_the_costs_but_not_what_export_needs(tmp_path):
    text = " ".join(" ".join(rendered(tables.details_table(run_details(write(tmp_path / "run"))), 80)).split())
    assert "mlp (widths 10 5, input_norm False), 1,701 parameters" in text
    assert "cost.flops" in text
    assert "A long paragraph" not in text and "BASEL_humidity" not in text
