"""What the experiments print, where, and what scripts can read."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import jax
import pytest

from experiments.lesson import rows
from experiments.weather import experiment as weather
from jaxdl.runs import console
from jaxdl.runs.command import command
from jaxdl.runs.flags import Output

ROOT = Path(__file__).parents[2]
SHORT = ["--recipe", "small", "--data", "simulated:120", "--epochs", "2", "--no-compilation-cache", "--no-tensorboard"]


def go(*arguments):
    return command(weather.Config, weather.run, "python -m experiments.weather", [*SHORT, *map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """Programs run for a moment here, so it is compiling them that takes the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def heard(folder, *flags):
    """The folder of a finished run, only read, and what it printed to stdout and stderr."""
    texts = StringIO(), StringIO()
    with redirect_stdout(texts[0]), redirect_stderr(texts[1]):
        assert go(*flags, "--workdir", folder) == 0
    return folder, *(text.getvalue() for text in texts)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return heard(tmp_path_factory.mktemp("runs") / "short", "--json")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    return heard(tmp_path_factory.mktemp("runs") / "quiet", "--quiet", "--cost")


@pytest.fixture
def finished(short, tmp_path):
    """A finished run, to do with as a test likes."""
    return shutil.copytree(short[0], tmp_path / "run")


def test_json_is_what_the_folder_keeps_and_all_that_is_printed(short, capsys):
    folder, out, err = short
    assert json.loads(out) == json.loads((folder / "metrics.json").read_text())
    assert err == ""
    # A finished run, asked again, says it again.
    assert go("--json", "--workdir", folder) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out)


def test_quiet_prints_nothing(quiet):
    assert quiet[1:] == ("", "")


def test_how_a_run_was_watched_is_not_part_of_it(quiet):
    folder, *_ = quiet
    told = json.loads((folder / "config.json").read_text())
    assert not {"quiet", "json", "cost", "histograms", "profile", "tensorboard"} & set(told)
    assert "flops" in json.loads((folder / "metrics.json").read_text())["cost"]


def test_warnings_are_heard_beside_a_quiet_console_too(capsys):
    console.warn("it rains", console.make_console(Output(json=True)))
    assert capsys.readouterr() == ("", "WARNING: it rains\n")
    console.warn("it rains", console.make_console(Output()))
    assert capsys.readouterr() == ("WARNING: it rains\n", "")


def test_errors_are_one_paragraph_beside_what_scripts_read(tmp_path, capsys):
    assert go("--json", "--workdir", tmp_path / "run", "--learning-rate", "-1") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: --learning-rate must be")


def test_how_a_run_is_watched_can_change_when_it_goes_on(finished):
    assert not (finished / "tensorboard").exists()
    assert go("--workdir", finished, "--epochs", "3", "--quiet", "--tensorboard") == 0
    assert (finished / "tensorboard").is_dir()


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--histograms", "-1"], "0 epochs or more"), (["--histograms", "2"], "without --no-tensorboard")],
)
def test_histograms_that_cannot_be_are_refused(tmp_path, capsys, flags, message):
    assert go("--workdir", tmp_path / "run", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", ["weather", "cifar10", "lesson"])
def test_help_fits_a_terminal_and_has_no_colours_where_it_is_piped(module):
    surroundings = os.environ | {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    call = [sys.executable, "-m", f"experiments.{module}", "--help"]
    text = subprocess.run(call, capture_output=True, check=True, cwd=ROOT, env=surroundings).stdout.decode()
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    # What is asked for most stands first, and all flags are explained.
    flags = re.findall(r"^│ (--[\w-]+)", text, re.MULTILINE)
    assert flags[0] == {"lesson": "--workdir"}.get(module, "--recipe")
    assert {"--quiet", "--json"} <= set(flags)


def test_the_rows_of_a_lesson_are_data():
    assert rows.as_records([]) == []


def test_a_reader_that_is_gone_ends_a_command_without_a_word(tmp_path):
    flags = [*SHORT, "--json", "--workdir", str(tmp_path / "run")]
    call = [sys.executable, "-m", "experiments.weather", *flags]
    # As here, so that it finds the programs of the run above.
    surroundings = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=surroundings)
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, b"")
    # What it has done is kept.
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_finished_run_says_that_nothing_was_looked_at(finished, capsys):
    assert go("--workdir", finished, "--cost") == 0
    assert "have had nothing to look at" in " ".join(capsys.readouterr().out.split())
