"""What a run's folder says, all of it."""

import pytest

from jaxdl.errors import InputError
from jaxdl.runs.catalog import account, files
from tests.run_folders import CONFIG, METRICS, write


def test_an_account_holds_the_files_as_they_are(tmp_path):
    found = account(write(tmp_path / "one"))
    assert (found.config, found.metrics, found.row.test) == (CONFIG, METRICS, 3.25)
    assert list(found.files) == ["config.json", "history.csv", "metrics.json"]


def test_files_are_counted_in_bytes_and_folders_with_all_that_is_in_them(tmp_path):
    for name, size in {"a": 3, "figures/b.png": 5, "checkpoints/best/c": 7, "checkpoints/best/deep/d": 11}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"." * size)
    assert files(tmp_path) == {"a": 3, "checkpoints/best/": 18, "figures/b.png": 5}


@pytest.mark.parametrize("damage", ["config.json", "metrics.json"])
def test_a_damaged_run_has_no_account(tmp_path, damage):
    folder = write(tmp_path / "one")
    (folder / damage).write_text('{"kind": "run"}')
    with pytest.raises(InputError, match="does not hold what a run's files hold"):
        account(folder)
