"""The pages of the documentation, with their blocks of code and commands."""

import argparse
import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import tyro

import jaxdl.__main__
from experiments.cifar10 import experiment as cifar10
from experiments.lesson import lesson
from experiments.weather import experiment as weather
from jaxdl import launch

ROOT = Path(__file__).parent.parent
PAGES = sorted((*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("benchmarks/**/*.md")))
EXPERIMENTS = {module.__package__: module for module in (weather, cifar10, lesson)}


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    title: str  # "" without one
    code: str


def name_of(page):
    """Return the name of a page in the tests."""
    return str(page.relative_to(ROOT))


def blocks(page, *languages):
    """Return the blocks of a page in some languages."""
    matches = re.findall(r'^```(\w+)(?: title="(\w+)")?\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(*block) for block in matches if block[0] in languages]


def lines_of(code):
    """Return the commands of a block, each on one line."""
    return [line for line in re.sub(r"\\\n\s*", "", code).splitlines() if line.strip()]


def sets_up(line):
    """Return whether a command creates an environment."""
    return "pip install" in line


def quoted(page):
    """Return the commands outside of bash blocks: in the text, in tables and in cluster scripts."""
    text = re.sub(r"^```(?:bash|python).*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\n\s*--(?=\w)", " --", text.replace("\\\n", " "))  # flags on the next line
    return [command.rstrip("')") for command in re.findall(r"python3? -m [\w.]+(?![\w.:])[^`\n|]*", text)]


def parsed(command):
    """Parse `python -m MODULE FLAGS` with the parser of the module, which rejects unknown flags."""
    module, *flags = shlex.split(re.sub(r"\$\w+", "0", command).partition(" -m ")[2])
    if module in ("pytest", "venv"):
        return
    try:
        if module in EXPERIMENTS:
            tyro.cli(EXPERIMENTS[module].Config, args=flags)
        elif module == "jaxdl":
            tyro.cli(jaxdl.__main__.Command, args=flags)
        else:
            parsed_by_argparse(module, flags)
    except SystemExit as end:
        # --help exits with 0, a rejected flag with 2.
        assert end.code == 0, command
    if "--" in flags:
        inner = flags[flags.index("--") + 1 :]
        parsed(f"python {shlex.join(inner)}")


def parsed_by_argparse(module, flags):
    """Parse flags with the argparse parser of the `main` of a module, run nothing else, and return its flags."""
    read, known = argparse.ArgumentParser.parse_args, set()

    def only_parse(parser, *_):
        known.update(parser._option_string_actions)
        read(parser, flags)
        raise SystemExit(0)

    package = importlib.util.find_spec(module).submodule_search_locations is not None
    main = (
        launch.main
        if module == "jaxdl.launch"
        else importlib.import_module(f"{module}.__main__" if package else module).main
    )
    with patch.object(argparse.ArgumentParser, "parse_args", only_parse):
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
    return known
