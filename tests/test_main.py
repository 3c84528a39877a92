"""`python -m jaxdl`: what people and scripts see."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdl.__main__ import main
from tests.run_folders import HISTORY, METRICS, accuracy, write

ROOT = Path(__file__).parent.parent


@pytest.fixture
def runs(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", metrics={**METRICS, "rmse_best": {"train": 1, "validation": 2.5, "test": 3.0}}, seed=1)
    write(tmp_path / "pictures" / "c", metrics=accuracy(0.5, 0.25), history=HISTORY.rename(columns=lambda n: n))
    return tmp_path


def process(*arguments, **settings):
    command = [sys.executable, "-m", "jaxdl", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80", **settings.pop("env", {})}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **settings
    )


def test_a_listing_has_a_line_a_run_and_its_notes(runs, capsys):
    assert main(["runs", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["run", "a", "b", "pictures/c"]
    assert lines[2].split() == ["b", "small", "1", "2.500", "3.000", "epochs", "4.2", "s", "0123456"]
    assert lines[3].split()[3:7] == ["50.0", "%", "25.0", "%"]


def test_a_listing_is_sorted_by_any_column(runs, capsys):
    for by, names in {"test": ["c", "b", "a"], "seed": ["a", "c", "b"], "run": ["a", "b", "c"]}.items():
        assert main(["runs", str(runs), "--sort", by, "--json"]) == 0
        assert [Path(each["folder"]).name for each in json.loads(capsys.readouterr().out)] == names
    assert main(["runs", str(runs), "--sort", "run", "--reverse", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{runs}/pictures/c\n{runs}/b\n{runs}/a\n"


def test_json_is_a_list_of_plain_objects(runs, capsys):
    (runs / "b" / "metrics.json").write_text("{")
    assert main(["runs", str(runs), "--json"]) == 0
    a, b, c = json.loads(capsys.readouterr().out)
    assert (a["run"], a["test"], a["seconds"], a["folder"]) == ("a", 3.25, 4.25, str(runs / "a"))
    assert (b["reason"], b["test"]) == ("damaged", None) and "metrics.json is damaged" in b["problem"]
    assert (c["figure"], c["best"]) == ("accuracy", 0.5)


def test_no_runs_are_said_and_are_no_error(tmp_path, capsys):
    for flags, output in (([], f"There are no runs in {tmp_path}.\n"), (["--json"], "[]\n"), (["--quiet"], "")):
        assert main(["runs", str(tmp_path), *flags]) == 0
        assert capsys.readouterr().out.replace("\n", "") == output.replace("\n", "")


def test_two_runs_are_compared_by_name_or_by_path(runs, capsys):
    for names in (("a", "b"), (str(runs / "a"), str(runs / "b"))):
        assert main(["runs", str(runs), "--compare", *names, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result[0] == {"part": "config", "entry": "seed", "a": 0, "b": 1}
    assert main(["runs", str(runs), "--compare", "a", "b", "--quiet"]) == 0
    assert capsys.readouterr().out.split() == [each["entry"] for each in result]
    assert main(["runs", str(runs), "--compare", "a", "b"]) == 0
    assert re.search(r"rmse_best\.test +3\.25 +3 +-0\.25", capsys.readouterr().out)
    assert main(["runs", str(runs), "--compare", "a", "a"]) == 0
    assert capsys.readouterr().out == "a and a do not differ.\n"


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["runs", "DIR/none"], "must be a folder with runs, got nothing"),
        (["runs", "DIR", "--json", "--quiet"], "--json and --quiet exclude each other"),
        (["runs", "DIR", "--compare", "a", "none"], "none must be the folder of a run"),
        (["show", "DIR"], "must be the folder of a run, which holds a config.json, got a folder without"),
    ],
)
def test_bad_input_is_one_paragraph_and_2(runs, capsys, arguments, output):
    assert main([argument.replace("DIR", str(runs)) for argument in arguments]) == 2
    message = capsys.readouterr()
    assert message.out == "" and message.err.count("\n") == 1
    assert re.search("error: .*" + output.replace("DIR", str(runs)), message.err)


def test_a_run_is_shown_to_people_and_to_scripts(runs, capsys):
    assert main(["show", str(runs / "a")]) == 0
    text = capsys.readouterr().out
    assert "1,701 parameters" in text and "persistence" in text
    assert main(["show", str(runs / "a"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["config"]["seed"], result["metrics"], result["test"]) == (0, METRICS, 3.25)
    assert "config.json" in result["files"]
    assert main(["show", str(runs / "a"), "--quiet"]) == 0
    assert capsys.readouterr().out == "epochs\n"


def test_the_help_of_every_command_fits_a_terminal_and_tells_the_exit_codes(monkeypatch, capsys):
    with process("--help") as rendered:
        text, _ = rendered.communicate(timeout=120)
    assert rendered.returncode == 0 and all(f"* {code}: " in text for code in (0, 2, 130, 141))
    names = re.search(r"\{([\w,-]+)\}", text).group(1).split(",")
    assert {"runs", "show"} <= {*names}
    texts = {"": text}
    monkeypatch.setenv("COLUMNS", "80")
    for name in names:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        texts[name] = capsys.readouterr().out
    for name, text in texts.items():
        assert "\x1b" not in text and 0 < max(map(len, text.splitlines())) <= 80, name


def test_what_is_piped_has_no_colors_and_a_terminal_of_80_columns_is_enough(runs):
    with process("runs", runs) as piped:
        text, errors = piped.communicate(timeout=120)
    assert piped.returncode == 0 and errors == ""
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 80
    with process("show", runs) as refused:
        text, errors = refused.communicate(timeout=120)
    assert refused.returncode == 2 and text == "" and errors.startswith("error: ") and "\x1b" not in errors


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_reader_that_closes_the_pipe_ends_it_in_silence(runs, flags):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jaxdl", "runs", str(runs), *flags]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_is_130(runs, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxdl.__main__.run", interrupted)
    assert main(["show", str(runs / "a")]) == 130
