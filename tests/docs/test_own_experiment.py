"""The guide to an experiment of one's own: its script has 40 lines, and does what the guide says."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxdl import runs
from jaxdl.runs.experiment import complete, resolve
from tests.documents import ROOT, blocks

PAGE = ROOT / "docs" / "own-experiment.md"
(SCRIPT,) = (block.code for block in blocks(PAGE, "python"))
FLAGS = ("--patience", "5000", "--epochs", "1500", "--save-every", "0.2")


def call(folder, *arguments):
    """A process of the script or of `python -m jaxdl`, in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=folder, env=environment, **pipes)


def output_of(folder, *arguments):
    process = call(folder, *arguments)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def history_of(run):
    """The records without their seconds, as they are written: to the bit."""
    with (run / "history.csv").open() as file:
        return [line[:-1] for line in csv.reader(file)]


def test_the_script_has_40_lines():
    assert len(SCRIPT.splitlines()) <= 40
    assert "40 lines" in PAGE.read_text()


def names_of(script):
    names = {"__name__": "my_experiment"}
    exec(script, names)
    return names


def test_build_is_all_that_an_author_gives():
    names = names_of(SCRIPT)
    flags = resolve(names["Flags"](seed=3, width=2))
    setup = complete(names["build"](flags), flags, "wave")
    assert (setup.epochs, setup.batch_size, setup.seed, setup.name) == (2000, 32, 3, "wave")
    assert [len(rows.sample_weight) for rows in (setup.train, setup.validation, setup.test)] == [700, 150, 150]
    assert names["build"](flags).sha256 == setup.sha256


def test_the_table_of_the_guide_names_what_is_there():
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    for owner, fields in ((runs.Setup, runs.Setup.__dataclass_fields__), (runs.Experiment, runs.Experiment._fields)):
        for line in table:
            for arguments in re.findall(rf"`{owner.__name__}\(\.\.\., (.*?)\)`", line):
                assert set(re.findall(r"(?:^|, )(\w+)=", re.sub(r"\(.*?\)", "", arguments))) <= set(fields), line


@pytest.mark.slow
def test_the_script_trains_is_interrupted_resumes_and_gives_a_model(tmp_path):
    (tmp_path / "my_experiment.py").write_text(SCRIPT)
    first, whole = tmp_path / "runs" / "first", tmp_path / "runs" / "whole"
    assert "--width" in output_of(tmp_path, "my_experiment.py", "--help")

    process = call(tmp_path, "my_experiment.py", "--workdir", "runs/first", *FLAGS)
    while process.poll() is None and not ((first / "history.csv").exists() and len(history_of(first)) > 30):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130 and "--workdir runs/first resumes it from its last checkpoint" in output
    done = len(history_of(first)) - 1
    assert 30 <= done < 1500 and not (first / "metrics.json").exists()

    assert f"The run resumes after epoch {done}" in output_of(tmp_path, "my_experiment.py", "--workdir", "runs/first")
    output_of(tmp_path, "my_experiment.py", "--workdir", "runs/whole", "--quiet", *FLAGS)
    assert len(history_of(first)) == 1501 and history_of(first) == history_of(whole)

    assert {path.name for path in first.iterdir()} >= {
        *("config.json", "history.csv", "metrics.json", "checkpoints", "figures", "tensorboard", "model.stablehlo")
    }
    config, metrics = (json.loads((first / f"{name}.json").read_text()) for name in ("config", "metrics"))
    assert (config["kind"], config["width"], metrics["recipe"]) == ("run", 64, "wave")
    assert metrics["rmse_best"]["test"] < 0.2  # the noise alone is 0.1
    listed = output_of(tmp_path, "-m", "jaxdl", "runs", "--json")
    assert [(run["run"], run["recipe"], run["figure"]) for run in json.loads(listed)] == [
        ("first", "wave", "rmse"),
        ("whole", "wave", "rmse"),
    ]

    output_of(tmp_path, "-m", "jaxdl", "export", "runs/first", "wave-model")
    (tmp_path / "points.csv").write_text("x1\n0.5\n1.0\n")
    predicted = output_of(tmp_path, "-m", "jaxdl", "predict", "wave-model", "points.csv").split()
    assert predicted[0] == "prediction"
    assert np.allclose(np.array(predicted[1:], float), np.sin([1.0, 2.0]), atol=0.2)
