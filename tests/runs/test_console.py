"""What the experiments print, where, and what scripts can read."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from experiments.lesson import rows
from experiments.weather import experiment as weather
from jaxdl import _startup
from jaxdl.__main__ import main
from jaxdl.errors import InputError, printable
from jaxdl.runs import console
from jaxdl.runs.command import command
from jaxdl.runs.console import Terminal
from jaxdl.runs.flags import Output
from tests.run_folders import write

ROOT = Path(__file__).parents[2]
SHORT = ["--recipe", "small", "--data", "simulated:120", "--epochs", "2", "--no-compilation-cache", "--no-tensorboard"]


def go(*arguments):
    return command(weather.Config, weather.run, "python -m experiments.weather", [*SHORT, *map(str, arguments)])


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
    messages = json.loads((folder / "config.json").read_text())
    assert not {"quiet", "json", "cost", "histograms", "profile", "tensorboard"} & set(messages)
    assert "flops" in json.loads((folder / "metrics.json").read_text())["cost"]


def test_warnings_are_heard_beside_a_quiet_console_too(capsys):
    console.print_warning("it rains", console.make_console(Output(json=True)))
    assert capsys.readouterr() == ("", "WARNING: it rains\n")
    console.print_warning("it rains", console.make_console(Output()))
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
def test_help_fits_a_terminal_and_has_no_colors_where_it_is_piped(module):
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
    assert "have no effect here" in " ".join(capsys.readouterr().out.split())


# What commands print: texts from elsewhere command no terminal, and no output that fails ends a run.

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b2Jred\u202egreen"
RUN = ("--data", "simulated:60", "--recipe", "small", "--epochs", "1", "--no-tensorboard", "--no-compilation-cache")


@given(st.text())
def test_what_is_printable_commands_nothing_and_stays_as_it_is(text):
    rendered = printable(text)
    assert not set(rendered) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2066)}
    assert printable(rendered) == rendered
    if all(ord(each) < 0x200E and (each.isprintable() or each in "\t\n\xa0\xad") for each in text):
        assert rendered == text


def test_an_error_shows_hostile_names_as_text():
    assert str(InputError(f"no column {HOSTILE}")) == ("no column \\x1b]0;owned\\x07\\x1b[2J\\x9b2Jred\\u202egreen")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_shows_hostile_texts_and_its_own_styles(terminal):
    color = "standard" if terminal else None
    console = Terminal(file=io.StringIO(), width=200, force_terminal=terminal, color_system=color, highlight=False)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE, style="bold red", markup=False)
    rendered = console.file.getvalue()
    assert (
        "\x1b[2J" not in rendered and "\x1b]0" not in rendered and "\x9b" not in rendered and "\u202e" not in rendered
    )
    assert rendered.count("\\x1b[2J") == 4 and ("\x1b[1;31m" in rendered) == terminal


@pytest.mark.parametrize("command", [["runs"], ["runs", "--quiet"], ["runs", "--json"], ["show"], ["show", "--json"]])
def test_a_run_with_hostile_names_is_listed_as_text(command, tmp_path, capsys):
    folder = tmp_path / "runs" / "a\x1b[2Jb"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"kind": "run", "recipe": HOSTILE, "seed": 1, HOSTILE: HOSTILE}))
    assert main([*command, str(folder if command[0] == "show" else folder.parent)]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and not {"\x1b", "\x07", "\x9b", "\u202e"} & set(printed.out)
    assert "x1b" in printed.out or "001b" in printed.out


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


def test_a_full_disk_loses_lines_and_ends_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"))
    console = Terminal()
    for _ in range(3000):
        console.print("a line")
    monkeypatch.setattr(sys, "stdout", None)
    Terminal().print("a line that nobody sees")


def test_a_closed_pipe_is_told_to_the_command():
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    with pytest.raises(BrokenPipeError):
        for _ in range(10_000):
            Terminal(file=stream).print("a line")
        stream.flush()
    with suppress(BrokenPipeError):  # What it still holds cannot be written at its end either.
        stream.close()


def started(*arguments, **options):
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["full", "closed", "both closed"])
def test_a_run_whose_output_cannot_be_written_is_finished(output, tmp_path):
    redirect = {"full": ">/dev/full", "closed": ">&-", "both closed": ">&- 2>&-"}[output]
    line = f"exec {sys.executable} -m experiments.weather {' '.join(RUN)} --workdir {tmp_path}/run {redirect}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.json", "metrics.json", "history.csv", "checkpoints", "figures")
    }


@pytest.mark.slow
@pytest.mark.parametrize("module", ["experiments.weather", "jaxdl"])
def test_ctrl_c_while_python_imports_ends_in_one_line(module, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    codes = set()
    for wait in (0.15, 0.5, 0.9):
        process = started(
            "-m", module, *(RUN if module != "jaxdl" else ("runs", str(tmp_path))), stdout=subprocess.DEVNULL
        )
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=60)
        # Before the package's first line runs, Python itself answers.
        codes.add(130 if "Fatal Python error: init_" in messages else process.returncode)
        assert "jaxdl/" not in messages and "experiments/" not in messages
    signal.signal(signal.SIGINT, before)
    assert codes <= {130, -2, 0}


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["env -u HOME", "ulimit -n 12;", "ulimit -n 20;", "env HOME=/nonexistent"])
def test_a_run_without_a_home_or_with_few_files_ends_in_one_message_or_well(setting, tmp_path):
    line = f"{setting} {sys.executable} -m experiments.weather {' '.join(RUN[:-1])} --workdir {tmp_path}/run"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env={**variables, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "~").exists()


def test_the_numbers_of_closed_streams_are_taken():
    code = (
        "import os; os.close(1); os.close(2)\n"
        "from jaxdl._startup import prepare_process; prepare_process()\n"
        "os._exit(0 if os.fstat(1) and os.fstat(2) and os.open('/dev/null', 0) > 2 else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("flag", [(), ("--json",), ("--quiet",)])
def test_closed_streams_end_no_command(flag, tmp_path):
    write(tmp_path / "run")
    call = f"exec {sys.executable} -m jaxdl runs {tmp_path} {' '.join(flag)} <&- >&-"
    done = subprocess.run(["bash", "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--json", "--quiet"])
def test_a_quiet_run_whose_output_is_closed_is_finished(flag, tmp_path):
    call = f"exec {sys.executable} -m experiments.weather {' '.join(RUN)} {flag} --workdir {tmp_path}/run >&-"
    done = subprocess.run(["bash", "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "run" / "metrics.json").exists(), done.stderr


def test_begin_leaves_the_handlers_of_other_programs(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    _startup.prepare_process()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_file_without_rights_is_one_message(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "/runs/a\x1b[2J")

    monkeypatch.setattr("jaxdl.runs.catalog.list_runs", refuse)
    assert main(["runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: /runs/a\\x1b[2J cannot be read or written (Permission denied).\n"
