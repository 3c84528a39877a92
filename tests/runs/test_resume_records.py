"""What a run is resumed with: its checkpoint's own record, whatever its config.json says."""

import json
import shutil

import numpy as np
import pytest

from experiments.weather.experiment import Config, run
from jaxdl import _environment, saving
from jaxdl._files import locked
from jaxdl.runs.command import command
from jaxdl.runs.resume import other_surroundings
from jaxdl.runs.runner import noticing
from jaxdl.saving import checkpoints

FLAGS = ("--data", "simulated:400", "--no-compilation-cache", "--no-tensorboard", "--hidden", 4)
PROGRESS = "checkpoints/progress"


def call(*arguments):
    return command(Config, run, "weather", [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of patience 1 that has stopped early; only read."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    assert call(*FLAGS, "--epochs", 60, "--patience", 1, "--learning-rate", 0.1, "--workdir", folder) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["reason"] == "early-stopping" and metrics["epochs"] < 20
    return folder


@pytest.fixture(scope="module")
def longer(stopped, tmp_path_factory):
    """The same run with more patience; only read."""
    folder = shutil.copytree(stopped, tmp_path_factory.mktemp("runs") / "longer")
    assert call("--workdir", folder, "--patience", 3) == 0
    assert epochs(folder) > epochs(stopped)
    return folder


@pytest.fixture
def cut(stopped, tmp_path):
    """The run as a process that was killed after its last save leaves it, to do with as a test likes."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    (folder / "metrics.json").unlink()
    return folder


def epochs(folder):
    return len((folder / "history.csv").read_text().splitlines()) - 1


def bits(folder):
    saved = saving.latest(folder / PROGRESS, print)
    return {name: array.tobytes() for name, array in saved.arrays.items()}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def edit(folder, **entries):
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **entries}))


def test_more_patience_counts_where_the_process_was_killed_before_it_saved(cut, longer):
    # What the process writes before it trains, and no checkpoint yet.
    edit(cut, patience=3, changes=[{"after_epoch": 1, "patience": [1, 3]}])
    assert call("--workdir", cut) == 0
    assert epochs(cut) == epochs(longer) and bits(cut) == bits(longer)


def test_more_patience_counts_too_where_the_run_had_finished(stopped, longer, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    edit(folder, patience=3)
    assert call("--workdir", folder, "--patience", 3) == 0
    assert epochs(folder) == epochs(longer) and bits(folder) == bits(longer)


def test_what_may_not_change_is_taken_from_the_checkpoint_and_told(cut, stopped, capsys):
    entries = {"batch_size": 16, "learning_rate": 0.05, "seed": 1, "hidden": [5], "recipe": "small"}
    edit(cut, **entries)
    assert call("--workdir", cut) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, value in entries.items():
        assert f"{name} {value!r}, the checkpoint {config_of(stopped)[name]!r}" in said
        assert config_of(cut)[name] == config_of(stopped)[name]
    assert "WARNING: config.json says " in said and "What the checkpoint says counts." in said
    assert bits(cut) == bits(stopped)


def test_what_config_json_says_beside_the_flags_has_no_effect(cut, stopped):
    computed = {"dataset": {"sha256": "0" * 64}, "network": {"kind": "rnn"}, "inputs": {"columns": ["a"]}}
    others = {"versions": [1], "changes": 7, "devices": None, "machine": "mine", "mesh": ["data=9"], "more": {"x": [1]}}
    edit(cut, **computed, **others)
    assert call("--workdir", cut) == 0
    assert bits(cut) == bits(stopped)
    assert {name: config_of(cut)[name] == config_of(stopped)[name] for name in computed} == dict.fromkeys(
        computed, True
    )


@pytest.mark.parametrize(
    "entries",
    [
        *({"epochs": value} for value in ("many", 2.5, True, [3], {})),
        *({"patience": value} for value in ("x", 1.5)),
        *({"save_every": value} for value in ("x", None)),
        {"on_nan": "ignore"},
        {"compilation_cache": 1},
    ],
    ids=str,
)
def test_a_flag_of_another_type_is_refused_by_name_and_nothing_is_touched(entries, cut, capsys):
    edit(cut, **entries)
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    assert call("--workdir", cut) == 2
    told = capsys.readouterr().err
    ((name, _),) = entries.items()
    assert f"config.json is damaged: {name} is " in told and "--fresh" in told and len(told.splitlines()) == 1
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("entries", [{"seed": "three"}, {"seed": None}, {"recipe": "none"}, {"hidden": [1.5]}], ids=str)
def test_without_a_checkpoint_every_flag_is_checked(entries, cut, capsys):
    shutil.rmtree(cut / PROGRESS)
    edit(cut, **entries)
    assert call("--workdir", cut) == 2
    assert f"config.json is damaged: {next(iter(entries))} is " in capsys.readouterr().err


def test_other_data_before_the_first_save_are_those_of_the_run(cut):
    shutil.rmtree(cut / PROGRESS)
    assert call("--workdir", cut, "--data", "simulated:401", "--epochs", 2) == 0
    metrics = json.loads((cut / "metrics.json").read_text())
    assert config_of(cut)["dataset"]["sha256"] == metrics["dataset"]["sha256"]
    assert config_of(cut)["data"] == "simulated:401" and "changes" not in config_of(cut)


def rewritten(folder, about):
    """A checkpoint whose content is another, and whose checksums are right."""
    saved = saving.latest(folder / PROGRESS, print)
    content = {**saved.about, **about(saved.about)}
    shutil.rmtree(folder / PROGRESS)
    own = {name: content.pop(name) for name in checkpoints.OWN}
    arrays = {name: content.pop(name, array) for name, array in saved.arrays.items()}
    checkpoints.write(folder / PROGRESS, arrays, {**content, **own})


def without(*names):
    return lambda about: dict.fromkeys(names)


HISTORIES = {
    "no list": lambda about: {"history": {"epoch": 1}},
    "no records": lambda about: {"history": [1, 2]},
    "an epoch too few": lambda about: {"history": about["history"][:-1]},
    "an epoch twice": lambda about: {"history": [*about["history"][:-1], about["history"][0]]},
    "a command for a name": lambda about: {"history": [{**each, "rm -rf ~;\n": 1.0} for each in about["history"]]},
    "a text for a value": lambda about: {"history": [{**each, "loss": "=1+1"} for each in about["history"]]},
    "a list for a value": lambda about: {"history": [{**each, "loss": [1.0]} for each in about["history"]]},
    "nothing": without("history"),
    "fewer epochs than none": lambda about: {"history": [], "epoch": np.array(-1, np.int32)},
    "other data": lambda about: {"data": 7},
    "no data": without("data"),
}


KINDS = {
    "no dict": [1],
    "no kind": {"epoch": "int32"},
    "no shape": {"epoch": ["int32"]},
    "a number for a shape": {"epoch": ["int32", 0]},
    "another shape": {"epoch": ["int32", [1]]},
    "another dtype": {"epoch": ["int64", []]},
    "a key for a number": {"epoch": ["key<fry>", []]},
    "an array that is not there": {"epochs": ["int32", []]},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_whose_kinds_are_not_those_of_its_arrays_is_refused(name, cut, capsys):
    kinds = KINDS[name]
    rewritten(cut, lambda about: {"kinds": {**about["kinds"], **kinds} if isinstance(kinds, dict) else kinds})
    assert call("--workdir", cut) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: the checkpoint ") and "not those of its arrays" in told and told.count("\n") == 1


@pytest.mark.parametrize("name", HISTORIES)
def test_a_checkpoint_with_odd_content_is_refused_and_writes_nothing(name, cut, capsys):
    rewritten(cut, HISTORIES[name])
    before = (cut / "history.csv").read_bytes()
    assert call("--workdir", cut) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: the run in ") and len(told.splitlines()) == 1
    assert (cut / "history.csv").read_bytes() == before


def test_a_checkpoint_without_a_record_of_its_flags_leaves_those_of_config_json(cut, stopped):
    rewritten(cut, lambda about: {"config": [1]})
    assert call("--workdir", cut) == 0 and bits(cut) == bits(stopped)


def test_a_machine_is_told_by_all_that_changes_bits(monkeypatch):
    here = {**_environment.surroundings(), "machine": _environment.machine()}
    assert other_surroundings(here, here) is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=SSE4_2")
    text = other_surroundings(here, {**here, "machine": _environment.machine()})
    assert "XLA_FLAGS --xla_cpu_max_isa=SSE4_2: its numbers may differ" in text
    for name, value in (("cores", 64), ("processor", "another"), ("threefry_partitionable", "False")):
        there = {**here, "machine": {**here["machine"], name: value}}
        assert f"{name} {value}" in other_surroundings(there, here)
    assert len(_environment.machine()) == 3 + len(_environment.SETTINGS)


def test_the_record_of_a_checkpoint_is_read_where_it_is_whole_alone(cut, stopped):
    saved = saving.latest(cut / PROGRESS, print)
    assert checkpoints.about_of(cut / PROGRESS) == saved.about
    path = cut / PROGRESS / str(saved.number) / "about" / "metadata"
    path.write_text(path.read_text().replace('"batch_size": 32', '"batch_size": 16'))
    assert checkpoints.about_of(cut / PROGRESS) is None


def test_a_lock_that_is_removed_while_a_run_goes_on_is_told_once(tmp_path):
    told = []
    with locked(tmp_path) as holds:
        notice = noticing(holds, tmp_path, 0.0, told.append)
        notice(None, [])
        assert told == []
        (tmp_path / "lock").unlink()
        notice(None, [])
        notice(None, [])
        # Of another process, say: it is not this one's to remove.
        (tmp_path / "lock").write_text("1 nowhere")
    assert len(told) == 1 and f"{tmp_path} was moved, or its lock removed" in told[0]
    assert (tmp_path / "lock").exists()


def test_drafts_that_a_killed_process_left_are_removed_by_the_next_start(cut):
    for name in (".history.csv.0123456789abcdef.part", "checkpoints/.a.0123456789abcdef.part"):
        (cut / name).write_text("half")
    (cut / "history.csv.part").write_text("mine")
    assert call("--workdir", cut) == 0
    assert [path.name for path in cut.rglob("*.part")] == ["history.csv.part"]
