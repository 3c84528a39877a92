"""What the documentation names is there, and what it shows runs."""

import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("guide", ["many-runs"])
def test_the_blocks_of_a_guide_run_one_after_the_other(guide, capsys, tmp_path):
    names = {"folder": tmp_path}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{guide}.md").read_text(), re.DOTALL):
        exec(block, names)
    assert "4 seeds" in capsys.readouterr().out
    assert names["rmse"].shape == (8,) and names["choice"] in names["table"].index
