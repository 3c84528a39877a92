"""The table's own arithmetic, with contestants made up."""

import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measure, report
from benchmarks.__main__ import main
from benchmarks.contestants.start import OURS, PEERS, Contestant, find_installed, start_process
from benchmarks.limits import Limit, limit
from benchmarks.measure import Cost, Measurement, measure_row, memory, multiply
from benchmarks.report import Line, plot
from benchmarks.rows import LESSON, TIMES, Row, row_seconds, table_rows, write_sets
from benchmarks.tasks import Task, load
from jaxdl import dataset

MODULES = (
    *("footprints", "limits", "measure", "report", "rows", "tasks", "scaling.collectives"),
    *(f"contestants.{name}" for name in ("start", "protocol", "loops", "installed", "jaxdl_loop")),
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_benchmarks_hold(name):
    failed, _ = doctest.testmod(importlib.import_module(f"benchmarks.{name}"))
    assert failed == 0


@pytest.fixture
def folder(tmp_path):
    """Small arrays, as all contestants read them."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(100, 5)).astype(np.float32)
    sets = {"train": dataset(inputs, inputs[:, :1]), "validation": dataset(inputs[:20], inputs[:20, :1])}
    return write_sets(tmp_path / "real", sets)


def row(folder="", **changes):
    task = Task("plain", "train", "mlp", str(folder), 100, (4,))
    return Row("a row", "weather", task, **{"per": "epoch", **changes})


def steady(first, each, log=None):
    """A contestant that needs so long for the first epoch and for each other."""

    def ask(request):
        if log is not None:
            log.append(request)
        if "prepare" in request:
            return {"seconds": 0.0, "memory": 1.0}
        return {"ends": [first + each * index for index in range(request["run"])], "value": 1.0, "memory": 2.0}

    return ask


def test_contestants_take_turns_and_a_run_fills_its_time():
    log = []
    asks = {"quick": steady(0.5, 0.1), "slow": steady(5.0, 0.2)}

    def requests(name):
        return lambda request: log.append(name) or asks[name](request)

    result = measure_row(row(), {name: requests(name) for name in asks}, 3, warn=log.append)
    # To prepare, a run that compiles, and where epochs are short one that tells how many fill the time; then in turn.
    assert log[:5] == ["quick"] * 3 + ["slow"] * 2 and log[5:11] == ["quick", "slow"] * 3
    assert result["quick"].seconds == pytest.approx([0.1] * 3) and result["slow"].seconds == pytest.approx([0.2] * 3)
    assert result["quick"].epochs == 2 and result["slow"].epochs == 2  # of 0.2 s, but two at least


def test_slow_peers_run_twice_only():
    asks = {"jaxdl": steady(0.5, 0.01), "near": steady(0.5, 0.02), "far": steady(0.5, 0.05)}
    result = measure_row(row(), asks, 5, warn=str)
    assert [len(result[name].seconds) for name in asks] == [5, 5, 2]
    del asks["near"]  # the best peer goes on, however far it is
    assert len(measure_row(row(), asks, 5, warn=str)["far"].seconds) == 5


def test_a_failing_contestant_is_reported_and_the_others_continue():
    def failing(request):
        return {"error": "no memory"} if request.get("seed") == 2 else steady(0.5, 0.01)(request)

    result = measure_row(row(), {"jaxdl": steady(0.5, 0.01), "failing": failing}, 4, warn=str)
    assert result["failing"].error == "no memory" and len(result["jaxdl"].seconds) == 4


def test_a_whole_run_counts_its_first_epoch_once_and_the_later_rate_for_the_others():
    log = []
    result = measure_row(row(per="whole", epochs=200), {"one": steady(1.0, 0.01, log)}, 1, warn=str)
    assert log[-1] == {"run": 20, "seed": 0}
    assert result["one"].median == pytest.approx(1.0 + 199 * 0.01)
    # All of them, where they fit.
    assert row_seconds(row(per="whole", epochs=3), [0.9, 1.0, 7.0]) == 7.0


def test_slow_peers_are_estimated_from_a_tenth_and_failures_are_reported():
    before = {"slow": Measurement((0.3, 0.4)), "jaxdl": Measurement((0.2,)), "failed": Measurement((), error="no")}
    requests = {name: [] for name in ("slow", "jaxdl", "failed", "broken")}
    asks = {name: steady(0.1, 0.1, requests[name]) for name in requests}
    asks["broken"] = lambda request: {"error": "no compiler"}
    result = measure_row(row(after="before"), asks, 2, before, warn=str)
    assert result["slow"] == Measurement((3.0, 4.0), derived=True) and not requests["slow"]
    assert requests["jaxdl"] and not result["jaxdl"].derived  # ours always
    assert result["failed"].error == "no" and result["broken"].error == "no compiler"
    assert multiply(Measurement((1.0,)), 64).seconds == (64.0,)


def test_the_limit_counts_the_matrix_products(folder):
    task = Task("wide", "train", "mlp", str(folder), 96, (128, 128))
    result = limit(Row("", "", task, "epoch", times=10.0), 2)
    weights = 5 * 128 + 128 * 128 + 128
    # Three steps of 32 rows: forward and both gradients, but for that of the inputs; and 20 rows of validation.
    products = 2 * (3 * 32 * (3 * weights - 5 * 128) + 20 * weights)
    assert 20 * products < result.flops < 20 * 1.25 * products  # biases, the loss and Adam
    measured = limit(Row("", "", task._replace(mode="evaluate", rows=20), "epoch"), 1)
    assert 2 * 20 * weights < measured.flops < 1.25 * 2 * 20 * weights
    assert result.bytes >= 20 * 4 * (96 * 7 + 3 * 2 * 3 * weights)
    assert result.rate > 0 and result.bandwidth > 0
    assert Limit(1e9, 1e3, 1e9, 1e9).seconds == 1.0 and Limit(1e3, 1e9, 1e9, 5e8).seconds == 2.0


@pytest.mark.slow
def test_a_process_of_jaxdl_answers(folder):
    task = Task("plain", "train", "mlp", str(folder), 100, (4,))
    with start_process(OURS, sys.executable) as ask:
        assert "seconds" in ask({"prepare": task._asdict()})
        first, again = ask({"run": 3, "seed": 1}), ask({"run": 3, "seed": 1})
        assert len(first["ends"]) == 3 and first["value"] == again["value"]
        predicted = ask({"prepare": task._replace(mode="predict", rows=20)._asdict()})
        assert "error" not in predicted and "value" in ask({"run": 2, "seed": 0})
        assert "FileNotFoundError" in ask({"prepare": task._replace(folder="nowhere")._asdict()})["error"]


@pytest.mark.slow
def test_a_second_process_reads_the_compilation_cache_and_memory_is_its_peak(folder):
    task = Task("plain", "train", "mlp", str(folder), 100, (4,))
    broken = Contestant("broken", "benchmarks.no_such_module", ())
    cold, warm = measure.measure_starts([OURS, broken], sys.executable, task, 2)
    assert len(cold["jaxdl"].seconds) == len(warm["jaxdl"].seconds) == 2
    assert cold["jaxdl"].value == warm["jaxdl"].value
    assert min(warm["jaxdl"].seconds) < min(cold["jaxdl"].seconds)
    assert cold["broken"].error and warm["broken"].error
    peak, data = memory(task)
    assert data == pytest.approx(100 * 6 * 4 / 1e6) and 50 < peak < 2 * cold["jaxdl"].memory


def test_a_process_that_ends_returns_its_error():
    broken = Contestant("broken", "benchmarks.no_such_module", ())
    with start_process(broken, sys.executable) as ask:
        assert "No module named" in ask({"run": 1, "seed": 0})["error"]


def test_contestants_without_packages_are_missing():
    there, missing = find_installed(sys.executable, [*PEERS, Contestant("none", "m", ("no_such_library",))])
    assert missing[-1] == ("none", "not installed: no_such_library")
    assert {one.name for one in there} | {one.name for one in missing} == {one.name for one in PEERS} | {"none"}


def test_rows_have_unique_titles(tmp_path):
    wanted = table_rows(tmp_path)
    titles = [one.title for one in wanted]
    assert len(set(titles)) == len(titles)
    assert all(one.after in ("", *titles) for one in wanted)
    assert {one.task.rows for one in wanted if "examples x" in one.title} == {LESSON * times for times in TIMES}


def test_tasks_load_their_number_of_examples(folder):
    task = Task("plain", "train", "mlp", str(folder), 7)
    assert [len(pair[0]) for pair in load(task)] == [7, 20]
    assert [len(pair[0]) for pair in load(task._replace(mode="predict"))] == [100, 7]


def test_the_page_names_the_limit_of_every_row(tmp_path):
    result = {
        "jaxdl": Measurement((1.0, 1.1)),
        "torch": Measurement((2.0, 2.0)),
        "sklearn": Measurement((), error="no images"),
    }
    made = [Line("one", result, 0.5), Line("files", {"jaxdl": Measurement((9.0,))}, 3.0, "what it needs", "MB")]
    costs = [Cost(100, 0.1, 300.0, 1.0), Cost(1000, 1.0, 309.0, 10.0)]
    ends = [Cost(95, 0.1), Cost(96, 0.1)]
    text = report.page("a machine", made, [OURS], [], costs, ends, "reading", 1.0, "a.png")
    assert "| one | 1.05 s (1 - 1.1) | torch: 2 s | 0.53 | 0.5 s | 47.6 % |" in text
    assert "| files | 9 MB |  |  | 3 MB, what it needs | 33.3 % |".replace("  ", " ") in text.replace("  ", " ")
    assert "* sklearn: one: no images" in text
    assert "| 1,000 | 1 s | 1000 ms | 309 MB | 10 MB | 0.90 |" in text
    plot(costs, ends, {"torch": [(100, 0.2), (1000, 2.0)]}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_peers_of_a_sweep_train_its_members_one_after_the_other(folder):
    whole, swept = row(folder, per="whole", epochs=2), row(folder, per="sweep", epochs=2)
    swept = swept._replace(title="64", group="sweep", task=swept.task._replace(mode="sweep"))
    result = {
        "a row": {"jaxdl": Measurement((1.0,)), "torch": Measurement((2.0,))},
        "64": {"jaxdl": Measurement((20.0,))},
    }
    line = report.row_lines([whole, swept], result)[1]
    assert line.measurements["jaxdl"].median == 20.0 and line.measurements["torch"].median == 128.0
    alone, together = limit(whole, 2), limit(swept, 2)
    assert together.flops == 64 * alone.flops and line.limit > 0


def test_installed_files_are_counted_once():
    ask = [sys.executable, "-m", "benchmarks.contestants.installed", "numpy", "numpy+scipy", "scipy", "no-such-package"]
    root = Path(__file__).parents[2]
    sizes = json.loads(subprocess.run(ask, check=True, stdout=subprocess.PIPE, cwd=root).stdout)
    assert 0 < sizes["numpy"] < sizes["scipy"] == pytest.approx(sizes["numpy+scipy"])  # scipy requires numpy
    assert sizes["no-such-package"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--peers", "/no/python"], "--peers must be a Python, got /no/python"),
        (["--data", "/nowhere", "--contestants", "torch"], "/nowhere does not exist"),
    ],
)
def test_a_wrong_flag_is_reported_in_a_line(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *flags])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and message in capsys.readouterr().err
