"""Every command of the README and the guides runs as it stands there, or is parsed by the program that it names."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

import jaxdl.__main__
from experiments.weather.experiment import RECIPES
from jaxdl.runs.command import command
from tests.documents import (
    EXPERIMENTS,
    PAGES,
    ROOT,
    blocks,
    lines_of,
    name_of,
    parsed,
    parsed_by_argparse,
    quoted,
    sets_up,
)
from tests.experiments.lesson import test_lesson as small_lesson
from tests.quick import quick_programs
from tests.test_layering import WITHOUT_JAXDL, label

BASH = [(page, [line for block in blocks(page, "bash") for line in lines_of(block.code)]) for page in PAGES]
QUOTED = sorted({(name_of(page), one) for page in PAGES for one in quoted(page)})
# Appended to what stands in the text, so that it takes seconds; the last of two equal flags counts.
SHORT = {
    "experiments.weather": "--data simulated:400 --epochs 2 --no-compilation-cache",
    "experiments.cifar10": "--data simulated:240 --train-size 128 --epochs 1 --no-compilation-cache",
    "experiments.lesson": "--data simulated:400 --seeds 2 --only weather --no-compilation-cache",
}
# What decides whether a change lands runs these; here it is only looked up that it does.
IN_CI = {"ruff", "mypy", "mkdocs"}
# Flags that the texts name and that belong to other programs.
FOREIGN = {"signal", "durations", "strict", "logdir", "bind-all", "limit-concurrency", "to", "update"}


def python_m(words):
    """Runs `python -m MODULE FLAGS` in this process; the exit code."""
    module, *flags = words
    if module in EXPERIMENTS:
        of = EXPERIMENTS[module]
        return command(of.Config, of.run, f"python -m {module}", [*flags, *SHORT[module].split()])
    if module == "jaxdl":
        return jaxdl.__main__.main(flags)
    raise AssertionError(f"no test knows how to run python -m {module}: teach this one")


def run(line):
    """Runs a line of a guide, each of its commands after the other."""
    for part in line.split(" && "):
        program, *words = shlex.split(part)
        program = Path(program).name
        if program == "python" and words[:2] == ["-m", "pytest"]:
            # The tests are running: here it is only looked up that a change is tested so.
            texts = [(ROOT / name).read_text() for name in ("README.md", ".ci/run")]
            assert any(f"{line}\n" in text for text in texts), line
        elif program == "python" and words[0] == "-c":
            exec(words[1], {})
        elif program == "python" and words[0] == "-m":
            assert python_m(words[1:]) == 0, line
        elif program == "python" and words[0].endswith("predict.py"):
            # With nothing but what it needs: tests/saving/test_predict_script.py builds that environment.
            assert subprocess.run([sys.executable, *words], check=False).returncode == 0, line
        elif program in IN_CI:
            assert part in (ROOT / ".ci" / "run").read_text().splitlines(), f".ci/run does not run: {part}"
        elif program == "tensorboard":
            assert shown_by_tensorboard(words) >= {"loss", "rmse"}
        else:
            raise AssertionError(f"no test knows how to run {program}: teach this one")


def shown_by_tensorboard(words):
    """The names of the charts that TensorBoard finds in its --logdir."""
    assert words[0] == "--logdir"
    result = EventMultiplexer().AddRunsFromDirectory(words[1]).Reload()
    return {tag for kinds in result.Runs().values() for tag in kinds["scalars"]}


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_programs():
        yield


@pytest.fixture
def one_size(monkeypatch):
    """Small networks, and the lesson with one of its weather part: its own tests go through the others."""
    small_lesson.make_small(monkeypatch)
    for name, recipe in RECIPES.items():
        monkeypatch.setitem(RECIPES, name, recipe._replace(hidden=(4,)))
    small_lesson.only_steps(monkeypatch, ("10, 5", "BatchNorm").__contains__)


@pytest.mark.slow
@pytest.mark.parametrize("page, lines", BASH, ids=[name_of(page) for page, _ in BASH])
def test_the_commands_of_a_page_run_one_after_the_other(page, lines, tmp_path, monkeypatch, one_size):
    monkeypatch.chdir(tmp_path)
    for line in lines:
        if not sets_up(line):
            run(line)


def test_three_commands_set_up_and_each_installs_what_it_needs():
    lines = {line for _, lines in BASH for line in lines if sets_up(line)}
    assert {re.search(r"-e (\S+)", line).group(1) for line in lines} == {".", "'.[test]'", "'.[dev,docs,test]'"}
    assert all("-c constraints.txt" in line for line in lines)


@pytest.mark.parametrize("page, text", QUOTED, ids=[f"{page}: {text[10:60]}" for page, text in QUOTED])
def test_commands_in_the_text_are_such_as_their_programs_take(page, text):
    parsed(text)


def test_a_command_with_a_flag_that_is_not_there_is_found():
    # The test above is worth what this one sees.
    for wrong in (
        "experiments.weather --hiden 3",
        "tests.faults --kill 3 x",
        "jaxdl.launch --pine -n 2",
        "jaxdl shew runs",
    ):
        with pytest.raises(AssertionError):
            parsed(f"python -m {wrong}")


@pytest.fixture(scope="module")
def known_flags():
    """Of all programs of the repository, and of those that the texts name beside them."""
    names = [field.name for of in EXPERIMENTS.values() for field in fields(of.Config)]
    commands = getattr(jaxdl.__main__.Command, "__args__", (jaxdl.__main__.Command,))
    names += [field.name for one in commands for field in fields(one)]
    known = FOREIGN | {"help"} | {name.replace("_", "-") for name in names}
    tests = (ROOT / "tests" / name for name in ("faults.py", "mutations.py"))
    for path in (*ROOT.glob("benchmarks/**/*.py"), *tests, ROOT / "jaxdl" / "launch.py"):
        # The scripts of the peers import their frameworks, which the tests do without.
        if "import argparse" in path.read_text() and label(path) not in WITHOUT_JAXDL:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            known |= {flag.lstrip("-") for flag in parsed_by_argparse(module, ["--help"])}
    return known


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_that_a_text_names_are_there(page, known_flags):
    spans = re.findall(r"`([^`\n]*)`", page.read_text())
    # A flag that is on by default is named by what turns it off.
    named = {flag.removeprefix("no-") for span in spans for flag in re.findall(r"(?<!\S)--([a-z-]+)", span)}
    assert named <= known_flags
