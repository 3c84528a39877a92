"""The folder of a run: what it may hold."""

import pytest

from jaxdl._files import write_json
from jaxdl.errors import InputError
from jaxdl.runs import folders


def test_a_new_or_an_empty_folder_holds_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    assert folders.read_run(tmp_path / "empty") is None
    assert folders.read_run(tmp_path / "new" / "deeper") is None


@pytest.mark.parametrize("name", ["lock", ".config.json.0123456789abcdef.part"])
def test_what_a_process_leaves_that_was_killed_at_once_is_no_run(tmp_path, name):
    (tmp_path / name).touch()
    assert folders.read_run(tmp_path) is None


def test_a_run_gives_its_configuration_and_a_finished_one_its_metrics(tmp_path):
    config, metrics = {"kind": "run", "seed": 1, "hidden": [10, 5]}, {"rmse": {"test": 3.5}, "epochs": 12, "note": None}
    write_json(tmp_path / folders.CONFIG, config)
    assert folders.read_run(tmp_path) == (config, None)
    write_json(tmp_path / folders.METRICS, metrics)
    (tmp_path / "history.csv").touch()
    assert folders.read_run(tmp_path) == (config, metrics)


@pytest.mark.parametrize("name", ["thesis.tex", "metrics.json", ".hidden"])
def test_a_folder_of_other_files_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="must be new, empty or the folder of a run"):
        folders.read_run(tmp_path)


@pytest.mark.parametrize(
    "config, got", [({"kind": "lesson"}, "that of a lesson"), ({"seed": 1}, 'has no "kind"'), ({}, 'has no "kind"')]
)
def test_a_folder_of_another_kind_is_refused(tmp_path, config, got):
    write_json(tmp_path / folders.CONFIG, config)
    with pytest.raises(InputError, match="must be new, empty or the folder of a run, got") as refusal:
        folders.read_run(tmp_path)
    assert got in str(refusal.value)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for ask in (folders.read_run, folders.make_folder):
        with pytest.raises(InputError, match=r"--workdir .*file must be a folder"):
            ask(tmp_path / "file")


def test_a_folder_below_a_file_is_refused(tmp_path):
    # As root writes everywhere, this stands for every place that cannot be written.
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="must be a folder that can be written: Not a directory"):
        folders.make_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize("content", [b"", b'{"rmse": 1', b"[1, 2]", b"null", b"\xff\xfe\x00", b"[" * 10**5])
@pytest.mark.parametrize("name", [folders.CONFIG, folders.METRICS])
def test_what_is_not_a_json_object_is_damaged(tmp_path, name, content):
    write_json(tmp_path / folders.CONFIG, {"kind": "run", "seed": 1})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="is damaged: it must be JSON"):
        folders.read_run(tmp_path)


def test_a_folder_that_is_set_aside_gets_the_next_free_name(tmp_path):
    for number in (1, 2):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "file").write_text(str(number))
        assert folders.rename_old(tmp_path / "run") == tmp_path / f"run-old-{number}"
        assert (tmp_path / f"run-old-{number}" / "file").read_text() == str(number)
    assert folders.rename_old(tmp_path / "run") is None


def test_brackets_in_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"without \[, \] and"):
        folders.make_folder(tmp_path / "[one]")
    assert list(tmp_path.iterdir()) == []
