"""The code and the commands of the README work, and print what it says."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

import jax
import matplotlib.figure

from jaxdl.datasets import simulated_weather
from tests.quick import quick_programs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MAP = (ROOT / "docs" / "inside.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 75


def test_the_notebook_cell_trains_prints_plots_and_predicts_in_15_lines(tmp_path, monkeypatch):
    simulated_weather(1200).to_csv(tmp_path / "weather.csv", index=False)
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path))
    (cell,), (output,) = blocks("python"), blocks("text")
    lines = [line for line in cell.splitlines() if line.strip()]
    assert len(lines) <= 15 and lines[0] == "%matplotlib inline"
    figures, printed = [], io.StringIO()
    names = {"display": figures.append}
    with quick_programs(), contextlib.redirect_stdout(printed):
        exec("\n".join(lines[1:-1]), names)
    figures.append(eval(lines[-1], names))
    # The README shows the output on the published data: other numbers.
    assert re.sub(r"[\d.]+", "N", printed.getvalue()) == re.sub(r"[\d.]+", "N", output)
    assert names["run"].reason == "early-stopping" and names["run"].best_epoch >= 1
    for number, figure in enumerate(figures):
        assert isinstance(figure, matplotlib.figure.Figure)
        figure.savefig(tmp_path / f"{number}.png")
    assert len(figures) == 2
    names["jaxdl"].save(tmp_path / "sunshine", names["run"].best)
    loaded = names["jaxdl"].load(tmp_path / "sunshine")
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (loaded, names["run"].best)), strict=True))


def test_the_commands_are_each_one_line_and_both_set_up():
    commands = [block.strip() for block in blocks("bash")]
    assert len(commands) == 2 and all("\n" not in command for command in commands)
    assert commands[0].endswith("-m experiments.weather") and commands[1].endswith("-m pytest -n auto --dist loadfile")
    assert all("-c constraints.txt -e" in command for command in commands)
    assert "```bash\n.venv/bin/python -m experiments.lesson\n```" in (ROOT / "docs" / "lesson.md").read_text()


def test_nothing_says_to_install_another_project_of_the_same_name():
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("jaxdl/**/*.py")):
        assert not re.search(r"pip install (-\S+ )*jaxdl\b", path.read_text()), path


def test_the_map_lists_what_is_public():
    library, experiments = MAP.split("\nexperiments/\n")
    listed = set(re.findall(r"^  (\w+(?:\.py|/))", library, re.MULTILINE))
    packages = {f"{path.parent.name}/" for path in (ROOT / "jaxdl").glob("*/__init__.py")}
    files = {path.name for path in (ROOT / "jaxdl").glob("*.py") if not path.name.startswith("_")}
    assert listed == packages | files | {"__main__.py"}
    assert all((ROOT / "experiments" / name).is_dir() for name in re.findall(r"^  (\w+)/", experiments, re.MULTILINE))


def test_every_dependency_has_a_tested_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in ("test", "dev", "docs") for one in project["optional-dependencies"][extra]),
    ]
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    for requirement in wanted:
        assert re.match(r"[\w-]+", requirement).group().lower() in pinned, requirement
