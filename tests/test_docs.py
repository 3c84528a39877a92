"""What the documentation names is there, and what it shows runs."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from experiments.cifar10 import Config

ROOT = Path(__file__).parent.parent
ROWS = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")][1:]


def named_in(row):
    """The tests in the last column, with the file of the one before where a name begins with ::."""
    names, file = [], None
    for name in re.findall(r"`(\S*::\w+)`", row.rsplit("|", 2)[1]):
        file = name.partition("::")[0] or file
        names.append((file, name.partition("::")[2]))
    return names


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip()[:40] for row in ROWS])
def test_every_fault_in_the_table_has_a_test(row):
    cells = row.split(" | ")
    assert len(cells) == 5
    assert named_in(row) or cells[-1].strip(" |") == "the same"
    for file, name in named_in(row):
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {name}"


def run_blocks(guide, names):
    """Runs the blocks of a guide one after the other, in which each sees the names of those before."""
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{guide}.md").read_text(), re.DOTALL):
        exec(block, names)
    return names


def test_the_blocks_of_the_guide_to_many_runs_run_one_after_the_other(capsys, tmp_path):
    names = run_blocks("many-runs", {"folder": tmp_path})
    assert "4 seeds" in capsys.readouterr().out
    assert names["rmse"].shape == (8,) and names["choice"] in names["table"].index


def test_the_blocks_of_the_guide_to_growing_run_and_say_what_it_says(capsys):
    names = run_blocks("growing", {})
    assert names["mesh"].size == 8  # as many as the tests have
    assert names["run"].final.params["Dense_0"]["kernel"].sharding.mesh == names["mesh"]
    said = capsys.readouterr().out.split("\n")
    assert said[0] == "{'all-reduce'}"
    # What the guide says is sent for each step, of the network that it trains.
    sent, parameters = map(int, said[1].split())
    assert parameters <= sent < 1.1 * parameters
    # The stream is of the rows that were placed, on one device.
    assert names["streamed"].history["loss"].tolist() == pytest.approx(names["run"].history["loss"].tolist(), rel=1e-5)
    assert float(said[2]) > 0
    assert [float(names["rate"](step)) for step in (0, names["warm_up"])] == pytest.approx([0.1, 0.8])


def test_the_guide_to_growing_names_what_is_there():
    text = (ROOT / "docs" / "growing.md").read_text()
    for name in re.findall(r"`(?:python -m )?((?:benchmarks|experiments|jaxdl)(?:\.\w+)+)`", text):
        assert list(ROOT.glob(f"{name.replace('.', '/')}.py")), name
    known = {field.name.replace("_", "-") for field in fields(Config)}
    for command in re.findall(r"-m experiments\.cifar10(.*)", text):
        assert set(re.findall(r" --([a-z-]+)", command)) <= known, command
