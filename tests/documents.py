"""The texts of the documentation, and what stands in them to be run: blocks of code, and commands."""

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
    title: str  # "" where it has none
    code: str


def name_of(page):
    """A page as the tests call it."""
    return str(page.relative_to(ROOT))


def blocks(page, *languages):
    """The blocks of a page in these languages."""
    found = re.findall(r'^```(\w+)(?: title="(\w+)")?\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(*block) for block in found if block[0] in languages]


def lines_of(code):
    """The commands of a block, each on one line."""
    return [line for line in re.sub(r"\\\n\s*", "", code).splitlines() if line.strip()]


def sets_up(line):
    """Whether a command is one that makes an environment: to train, to test, to contribute."""
    return "pip install" in line


def quoted(page):
    """Commands of a page that are not in bash blocks: in the text, in tables, and in the scripts of a cluster."""
    text = re.sub(r"^```(?:bash|python).*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\n\s*--(?=\w)", " --", text.replace("\\\n", " "))  # flags that stand on the next line
    return [command.rstrip("')") for command in re.findall(r"python3? -m [\w.]+(?![\w.:])[^`\n|]*", text)]


def parsed(command):
    """Parses `python -m MODULE FLAGS` with the parser of the module itself, which refuses what it does not know."""
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
        # --help ends so; what is refused ends with 2.
        assert end.code == 0, command
    if "--" in flags:
        inner = flags[flags.index("--") + 1 :]
        parsed(f"python {shlex.join(inner)}")


def parsed_by_argparse(module, flags):
    """The same where a module's `main` begins with argparse, nothing after which is run; gives the flags it knows."""
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
