"""The notebooks run from top to bottom, and show figures."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

NOTEBOOKS = sorted((Path(__file__).parent.parent / "experiments" / "notebooks").glob("*.ipynb"))


def cells(path):
    """The code of a notebook, a string a cell, without the lines that only Jupyter understands."""
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(line for line in cell["source"] if not line.startswith("%"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    shown, names = [], {"display": lambda thing: shown.append(thing)}
    for code in cells(path):
        # Few images and one epoch: here it is the calls that are tried.
        code = code.replace("datasets.cifar10()", 'datasets.cifar10("simulated:240")').replace(
            "epochs = 10", "epochs = 1"
        )
        *lines, last = code.rstrip().splitlines()
        try:
            compile(last, path.name, "eval")
        except SyntaxError:
            exec(code, names)
        else:
            exec("\n".join(lines), names)
            shown.append(eval(last, names))
    assert sum(isinstance(thing, Figure) for thing in shown) == 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_its_results(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
