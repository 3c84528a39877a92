"""The notebooks run from top to bottom, show their figures, and say what is true; their sources are text."""

import ast
import io
import re
import warnings
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jupytext
import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxdl
from jaxdl import datasets
from tests.quick import quick_programs

FOLDER = Path(__file__).parents[2] / "experiments" / "notebooks"
SOURCES = sorted(FOLDER.glob("*.md"))
EVERY = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
REMAKE = "jupytext --to ipynb --update experiments/notebooks/*.md"
# Few rows, seeds and epochs, and what is quick to compile: here it is the calls that are tried.
SMALL = {
    "1-weather": {
        "adam = optax.adam(1e-3)": "adam = optax.sgd(1e-6)",
        "normed = jaxdl.mlp((100, 50), input_norm=True)": "normed = jaxdl.mlp((), input_norm=True)",
        "epochs, most_epochs, seeds = 200, 1000, range(16)": "epochs, most_epochs, seeds = 3, 3, range(2)",
        "in ((25, 12), (10, 5), (5, 5), (3, 3)):": "in ((10, 5),):",
    },
    "2-cifar10": {
        "size, epochs = 2000, 10": "size, epochs = 96, 1",
        "adam = optax.adam(1e-3)": "adam = optax.sgd(1e-3)",
        "nn.convnet((24, 48, 96), widths=(64,), pool=True)": "nn.convnet((4,), pool=True)",
    },
    "3-parts": {
        "epochs, features = 200, ": "epochs, features = 3, ",
        "\nadam = optax.adam(1e-3)": "\nadam = optax.sgd(1e-3)",
        "epochs=50": "epochs=10",
        "curves.loc[[1, 10, 50]]": "curves.loc[[1, 10]]",
        "jaxdl.mlp((20, 10))": "jaxdl.mlp(())",
        "jaxdl.mlp((100, 50))": "jaxdl.mlp(())",
        "width_size=20, depth=2": "width_size=20, depth=1",
        "inject_hyperparams(optax.adam)": "inject_hyperparams(optax.sgd)",
    },
}
TIMES = {"jaxdl.mlp((20, 10))": 9, "inject_hyperparams(optax.adam)": 3}  # what stands more often than once
STEPS = (
    *("Outline the problem", "Inputs and outputs", "Prepare the data", "Choose a network"),
    *("Choose a loss and an optimizer", "Train", "Predict", "Measure", "Refine", "Save"),
)


class Ran(NamedTuple):
    """What a notebook leaves."""

    figures: list
    output: str
    names: dict


def notebook(stem):
    return nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4)


def headings(stem):
    text = "\n".join(cell.source for cell in notebook(stem).cells if cell.cell_type == "markdown")
    return re.findall(r"^(#+) (.*)$", text, re.MULTILINE)


def parts(stem):
    """The code below each heading, a list of cells, without the lines that only Jupyter understands, and made small."""
    whole = "\n".join(cell.source for cell in notebook(stem).cells)
    for large in SMALL[stem]:
        assert whole.count(large) == TIMES.get(large, 1), f"{stem} must say {large!r} {TIMES.get(large, 'once')}"
    result = []
    for cell in notebook(stem).cells:
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            result.append([])
        elif cell.cell_type == "code":
            code = re.sub(r"^%.*\n", "", cell.source, flags=re.MULTILINE)
            for large, small in SMALL[stem].items():
                code = code.replace(large, small)
            result[-1].append(code)
    return [part for part in result if part]


def run_cell(code, names, rendered):
    """As Jupyter does: what the last line comes to is shown."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is not None:
        rendered.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))


@pytest.fixture
def run(monkeypatch):
    """`run(parts)` runs them; `apart`: each with the names of the first part alone."""
    monkeypatch.setattr(datasets, "load_weather", partial(datasets.load_weather, "simulated:240"))
    monkeypatch.setattr(datasets, "load_cifar10", partial(datasets.load_cifar10, "simulated:240"))

    def go(of, apart=False):
        rendered, output = [], io.StringIO()
        names = {"display": rendered.append}
        with redirect_stdout(output), warnings.catch_warnings():
            # A notebook shows its readers all warnings but those that Python leaves out.
            warnings.simplefilter("error")
            for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", kind)
            for number, part in enumerate(of):
                own = dict(names) if apart and number else names
                for code in part:
                    run_cell(code, own, rendered)
                # A part that overwrote a common name would change the parts that follow when all run.
                changed = [name for name in names if own[name] is not names[name]]
                assert not changed, f"{changed} of the first cell are overwritten in\n{part[0]}"
        figures = [thing for thing in rendered if isinstance(thing, Figure)]
        for figure in figures:
            figure.savefig(io.BytesIO(), dpi=30)
        return Ran(figures, output.getvalue(), names)

    with quick_programs():
        yield go


@pytest.mark.slow
def test_the_notebook_on_weather_runs(run):
    ran = run(parts("1-weather"))
    names = ran.names
    assert len(ran.figures) == 11
    assert "the same predictions: True" in ran.output
    # The exercise's count, made of the widths, beside that of the weights themselves.
    leaves = jax.tree.leaves(names["run"].final)
    assert names["parameters"][0] == (len(names["weather"].columns) + 1) * 100
    assert sum(names["parameters"]) == sum(leaf.size for leaf in leaves) > len(names["rows"]["train"])
    drawn = np.concatenate([*names["rows"].values()])
    assert sorted(drawn) == list(range(len(names["weather"].rows)))
    # Every recipe beside both baselines, and three of them beside each other.
    assert len(names["claims"]) == 3 + 2 * len(names["test_rmse"]) and len(names["test_rmse"]) == 6
    test = names["sets"]["test"].targets[:, 0]
    as_today = np.sqrt(np.mean((names["weather"].today[names["rows"]["test"]] - test) ** 2))
    assert names["simple"]["as today"] == pytest.approx(as_today, rel=1e-6)


@pytest.mark.slow
def test_the_notebook_on_pictures_runs(run):
    ran = run(parts("2-cifar10"))
    names, image = ran.names, ran.names["train"].inputs[:1]
    assert len(ran.figures) == 14
    assert "the same: True" in ran.output and "the same predictions: True" in ran.output
    assert "307,300 + 5,050 + 510\n= 312,860\n" in ran.output
    assert "1,400 + 22,550 + 392,010\n= 415,960\n" in ran.output
    assert "the loss of ten equal numbers is 2.303" in ran.output  # log 10
    counted = {name: jaxdl.summary(names[name], image).parameters for name in ("dense", "small", "pooled")}
    assert counted == {"dense": 312_860, "small": 415_960, "pooled": 57_060}
    assert "A seventh of the parameters" in text("2-cifar10") and round(415_960 / 57_060) == 7
    expected = np.zeros((4, 4))
    expected[:, 1:3] = 3  # where the kernel's left column is dark and its right one bright
    assert np.array_equal(names["by_hand"], expected)


@pytest.mark.slow
def test_the_notebook_on_the_parts_runs_and_each_part_alone(run):
    ran = run(parts("3-parts"), apart=True)
    assert len(ran.figures) == 11
    assert "the same bits: True" in ran.output and "as the toolkit's: True" in ran.output
    of_batches, of_all = re.search(r"in batches of 7 (\S+), NumPy's of all rows (\S+)", ran.output).groups()
    assert float(of_batches) == pytest.approx(float(of_all), abs=2e-4)
    assert "the same predictions: True" in ran.output


def text(stem):
    return (FOLDER / f"{stem}.md").read_text()


@EVERY
def test_a_notebook_is_what_its_text_says(source):
    wanted = [(cell.cell_type, cell.source) for cell in jupytext.read(source).cells]
    result = [(cell.cell_type, cell.source) for cell in notebook(source.stem).cells]
    assert result == wanted, f"{source.name} and its notebook differ. Make it anew: {REMAKE}"


def test_every_notebook_has_a_text_and_the_way_from_one_to_the_other_is_documented():
    assert [path.stem for path in SOURCES] == sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(SMALL)
    assert REMAKE in (FOLDER.parent.parent / "docs" / "inside.md").read_text()


@EVERY
def test_a_notebook_is_kept_without_its_results(source):
    for cell in notebook(source.stem).cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


@EVERY
def test_a_notebook_goes_through_the_ten_steps(source):
    assert [title for level, title in headings(source.stem) if level == "##"] == [
        f"{number}. {step}" for number, step in enumerate(STEPS, 1)
    ]


@EVERY
def test_every_exercise_is_asked_in_words_and_solved_in_code_right_after(source):
    cells = notebook(source.stem).cells
    requests = [place for place, cell in enumerate(cells) if cell.source.startswith("### Exercise")]
    assert len(requests) == len([title for _, title in headings(source.stem) if title == "Solution"]) >= 3
    for place in requests:
        question, solution, code = cells[place : place + 3]
        assert len(question.source.split()) > 20
        assert solution.source.startswith("### Solution") and code.cell_type == "code"


@EVERY
def test_cells_are_short(source):
    for cell in notebook(source.stem).cells:
        assert len(cell.source.splitlines()) <= 30, cell.source[:80]
