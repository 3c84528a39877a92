"""A run that goes on: from its command line, to the bits of one that was never interrupted."""

import csv
import json
import os
import shutil
import signal

import numpy as np
import pytest
from rich.console import Console

from experiments.cifar10 import experiment as cifar10
from experiments.weather.experiment import Config, run
from jaxdl import _environment, saving
from jaxdl._files import lock_folder
from jaxdl.runs.command import StoppedError, command
from jaxdl.runs.folders import RunFiles
from jaxdl.runs.resume import can_continue, changed_flags, environment_warning, refusal
from jaxdl.runs.runner import lock_check
from jaxdl.runs.signals import Signals
from jaxdl.saving import checkpoints, load

# One network for all runs, so that it is compiled once.
DATA = ("--data", "simulated:400", "--no-compilation-cache", "--hidden", 8, 4)


def call(*arguments):
    # Not for TensorBoard, which is none of a run's bits: runs/test_runner.py lets that go on.
    return command(Config, run, "weather", [str(argument) for argument in (*arguments, "--no-tensorboard")])


def bits(folder):
    """All that must be equal; times and names of folders aside."""
    saved = saving.restore_latest(folder / "checkpoints/progress", print)
    result = {name: (str(array.dtype), array.tobytes()) for name, array in saved.arrays.items()}
    with (folder / "history.csv").open() as file:
        result["history.csv"] = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    for name in ("best", "final"):
        kernel = load(folder / "checkpoints" / name).params["Dense_0"]["kernel"]
        result[name] = np.asarray(kernel).tobytes()
    result["metrics"] = {**json.loads((folder / "metrics.json").read_text()), "seconds": None}
    return result


@pytest.fixture(scope="module")
def folder_of_six(tmp_path_factory):
    """A run of six epochs that was never interrupted; only read."""
    folder = tmp_path_factory.mktemp("whole") / "six"
    assert call(*DATA, "--epochs", 6, "--workdir", folder) == 0
    return folder


@pytest.fixture(scope="module")
def folder_of_three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "three"
    assert call(*DATA, "--epochs", 3, "--workdir", folder) == 0
    return folder


@pytest.fixture
def three(folder_of_three, tmp_path):
    """A finished run of three epochs, to do with as a test likes."""
    return shutil.copytree(folder_of_three, tmp_path / "run")


@pytest.mark.slow
def test_a_signal_during_the_last_save_stops_the_run_before_it_reports(folder_of_six, tmp_path, capsys):
    folder = tmp_path / "run"
    saved = folder / "checkpoints/progress/1"
    late = Signals(lambda: signal.SIGTERM if saved.exists() else None, lambda on: None, lambda text: None)
    how = {"compilation_cache": False, "tensorboard": False}
    config = Config(data="simulated:400", epochs=6, hidden=(8, 4), workdir=folder, **how)
    with pytest.raises(StoppedError):
        run(config, Console(), late)
    assert not (folder / "metrics.json").exists()
    assert call("--workdir", folder) == 0
    assert bits(folder) == bits(folder_of_six)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_more_epochs_continue_a_finished_run_to_the_same_bits(three, folder_of_six, capsys):
    # The other flags are left out: they are those of the run.
    assert call("--workdir", three, "--epochs", 6) == 0
    assert "The run resumes after epoch 3 (checkpoint 1)." in capsys.readouterr().out
    assert bits(three) == bits(folder_of_six)
    config = json.loads((three / "config.json").read_text())
    assert config["epochs"] == 6 and config["changes"] == [{"after_epoch": 3, "epochs": [3, 6]}]


@pytest.mark.slow
def test_a_finished_run_is_shown_again_and_not_changed(three, capsys):
    before = contents(three)
    assert call("--workdir", three) == 0
    assert "holds a finished run (batchnorm, seed 0); nothing is changed" in " ".join(capsys.readouterr().out.split())
    assert contents(three) == before


@pytest.mark.slow
def test_a_run_that_was_cut_off_while_it_reported_only_reports_again(three, folder_of_six):
    whole = bits(three)
    (three / "metrics.json").unlink()
    assert call("--workdir", three) == 0
    assert bits(three) == whole


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_again(three, capsys):
    whole = bits(three)
    for path in (three / "checkpoints/progress").iterdir():
        path.rename(three / path.name)
    (three / "metrics.json").unlink()
    assert call("--workdir", three) == 0
    assert "No checkpoint was saved yet" in capsys.readouterr().out
    assert bits(three) == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed", 1), "--seed is 0 in that run, got 1. Use --seed 0"),
        (("--batch-size", 16), "--batch-size is 32 in that run, got 16. Use --batch-size 32"),
        (
            ("--hidden", 8, 5),
            "the checkpoint holds params/Dense_1/kernel of shape (8, 4); this model expects (8, 5). --hidden is 8 4 in "
            "that run, got 8 5. Use --hidden 8 4, choose another --workdir, or start over with --fresh.",
        ),
        (("--data", "simulated:500"), "the run in .* cannot be resumed: it was trained on other data"),
        (("--epochs", 2), "--epochs must be at least 3"),
    ],
)
@pytest.mark.parametrize("state", ["finished", "cut off"])
def test_a_change_that_may_not_be_is_refused_by_name_with_the_flag(three, capsys, flags, message, state):
    if state == "cut off":
        (three / "metrics.json").unlink()
    elif flags[0] in ("--data", "--epochs"):
        # A finished run is only shown again, whatever these say.
        return
    before = contents(three)
    assert call("--workdir", three, *flags) == 2
    error = capsys.readouterr().err
    assert message in error or (".*" in message and message.split(".*")[1] in error)
    assert "Traceback" not in error and contents(three) == before


@pytest.mark.slow
def test_what_may_change_is_allowed_and_recorded(three):
    assert call("--workdir", three, "--save-every", 0.5, "--on-nan", "continue", "--epochs", 4, "--patience", 1) == 0
    config = json.loads((three / "config.json").read_text())
    assert (config["save_every"], config["on_nan"], config["epochs"], config["patience"]) == (0.5, "continue", 4, 1)
    (record,) = config["changes"]
    assert record["save_every"] == [30.0, 0.5] and record["patience"] == [10, 1]


@pytest.mark.slow
def test_more_patience_continues_a_run_that_stopped_early(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    flags = (*DATA, "--epochs", 60)
    assert call(*flags, "--patience", 1, "--workdir", one) == 0
    stopped = json.loads((one / "metrics.json").read_text())
    assert stopped["reason"] == "early-stopping" and stopped["epochs"] < 60
    # More epochs do not help a run whose patience is at its end.
    assert call("--workdir", one, "--epochs", 70) == 0
    assert json.loads((one / "metrics.json").read_text()) == stopped
    assert call("--workdir", one, "--patience", 10) == 0
    assert call(*flags, "--patience", 10, "--workdir", other) == 0
    assert bits(one) == bits(other)


@pytest.mark.slow
def test_fresh_starts_over_and_keeps_the_old_run(three, tmp_path, capsys):
    before = {path.relative_to(three): content for path, content in contents(three).items()}
    assert call(*DATA, "--epochs", 1, "--seed", 1, "--workdir", three, "--fresh") == 0
    remaining = tmp_path / "run-old-1"
    assert {path.relative_to(remaining): content for path, content in contents(remaining).items()} == before
    assert json.loads((three / "config.json").read_text())["seed"] == 1
    assert "is now" in capsys.readouterr().out


def test_fresh_does_not_touch_a_folder_of_other_files(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert call(*DATA, "--epochs", 1, "--workdir", tmp_path, "--fresh") == 2
    assert "a folder that holds other files" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.slow
def test_a_folder_in_use_is_refused_with_the_process(three, capsys):
    (three / "metrics.json").unlink()
    with lock_folder(three):
        assert call("--workdir", three) == 2
    assert f"is in use by process {os.getpid()} on " in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(three, capsys, folder_of_six):
    assert call("--workdir", three, "--epochs", 4) == 0
    (three / "checkpoints/progress/2/arrays/_METADATA").write_text("{}")
    assert call("--workdir", three, "--epochs", 6) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "is damaged (arrays/_METADATA is not what was saved)" in out and "after epoch 3 (checkpoint 1)" in out
    assert bits(three) == bits(folder_of_six)


@pytest.mark.slow
def test_nan_stops_a_run_which_then_can_continue(tmp_path, capsys):
    folder = tmp_path / "run"
    flags = (*DATA, "--learning-rate", "1e12", "--epochs", 3, "--workdir", folder)
    for _ in range(2):
        assert call(*flags) == 1
        error = capsys.readouterr().err
        assert "error: epoch 1, step 2 of 9 of training: inf in Dense_" in error and "--on-nan continue" in error
    saved = saving.restore_latest(folder / "checkpoints/progress", print)
    assert all(
        np.isfinite(array).all() for name, array in saved.arrays.items() if name.startswith("train_state/variables")
    )
    number = saved.number
    assert call("--workdir", folder, "--on-nan", "continue") == 0
    # What is not finite is never saved: the last finite checkpoint stays the latest.
    assert saving.restore_latest(folder / "checkpoints/progress", print).number == number
    assert json.loads((folder / "metrics.json").read_text())["best_epoch"] == 0


def test_a_schedule_over_all_epochs_cannot_get_more_of_them():
    result = {"epochs": (1, 2)}
    assert refusal(result, cifar10.frozen_flags(cifar10.Config())) is None
    message = refusal(result, cifar10.frozen_flags(cifar10.Config(recipe="strong")))
    assert message == "--epochs is 1 in that run (the schedule of the learning rate covers them), got 2. Use --epochs 1"


def test_negative_seconds_between_saves_are_refused(tmp_path, capsys):
    assert call(*DATA, "--save-every", "-1", "--workdir", tmp_path / "run") == 2
    assert "--save-every must be at least 0 seconds" in capsys.readouterr().err


# The parts


def test_flags_of_an_older_version_that_are_missing_are_no_change():
    assert changed_flags({"seed": 0, "new": 3, "workdir": "a"}, RunFiles({"seed": 0, "workdir": "b"}, None)) == {}


def test_a_flag_that_was_left_out_is_told_as_such():
    assert refusal({"dropout": (None, 0.2)}, {}) == "--dropout is None in that run, got 0.2. Leave --dropout out"
    assert refusal({"epochs": (1, 2), "data": ("a", "b")}, {}) is None


@pytest.mark.parametrize(
    ("result", "reason", "expected"),
    [
        ({}, "epochs", False),
        ({"epochs": (3, 2)}, "epochs", False),
        ({"patience": (3, None)}, "early-stopping", True),
        ({"patience": (3, 2)}, "early-stopping", False),
        ({"patience": (3, 20)}, "epochs", False),
    ],
)
def test_a_finished_run_goes_on_only_where_there_is_more_to_do(result, reason, expected):
    assert can_continue(result, {"reason": reason}) is expected


def test_other_versions_are_told():
    now = {"versions": {"jax": "2", "numpy": "1"}, "devices": ["cpu"]}
    assert environment_warning(now, now) is None and environment_warning({}, now) is None
    assert "devices ['gpu']" in environment_warning({**now, "devices": ["gpu"]}, now)


# What a run is resumed with: its checkpoint's own record, whatever its config.json says.

FLAGS = ("--data", "simulated:400", "--no-compilation-cache", "--no-tensorboard", "--hidden", 4)
PROGRESS = "checkpoints/progress"


def charted_call(*arguments):
    return command(Config, run, "weather", [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of patience 1 that has stopped early; only read."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    assert charted_call(*FLAGS, "--epochs", 60, "--patience", 1, "--learning-rate", 0.1, "--workdir", folder) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["reason"] == "early-stopping" and metrics["epochs"] < 20
    return folder


@pytest.fixture(scope="module")
def longer(stopped, tmp_path_factory):
    """The same run with more patience; only read."""
    folder = shutil.copytree(stopped, tmp_path_factory.mktemp("runs") / "longer")
    assert charted_call("--workdir", folder, "--patience", 3) == 0
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


def checkpoint_bits(folder):
    saved = saving.restore_latest(folder / PROGRESS, print)
    return {name: array.tobytes() for name, array in saved.arrays.items()}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def edit(folder, **entries):
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **entries}))


def test_more_patience_counts_where_the_process_was_killed_before_it_saved(cut, longer):
    # What the process writes before it trains, and no checkpoint yet.
    edit(cut, patience=3, changes=[{"after_epoch": 1, "patience": [1, 3]}])
    assert charted_call("--workdir", cut) == 0
    assert epochs(cut) == epochs(longer) and checkpoint_bits(cut) == checkpoint_bits(longer)


def test_more_patience_counts_too_where_the_run_had_finished(stopped, longer, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    edit(folder, patience=3)
    assert charted_call("--workdir", folder, "--patience", 3) == 0
    assert epochs(folder) == epochs(longer) and checkpoint_bits(folder) == checkpoint_bits(longer)


def test_what_may_not_change_is_taken_from_the_checkpoint_and_told(cut, stopped, capsys):
    entries = {"batch_size": 16, "learning_rate": 0.05, "seed": 1, "hidden": [5], "recipe": "small"}
    edit(cut, **entries)
    assert charted_call("--workdir", cut) == 0
    output = " ".join(capsys.readouterr().out.split())
    for name, value in entries.items():
        assert f"{name} {value!r}, the checkpoint {config_of(stopped)[name]!r}" in output
        assert config_of(cut)[name] == config_of(stopped)[name]
    assert "WARNING: config.json says " in output and "The run resumes with the flags of the checkpoint." in output
    assert checkpoint_bits(cut) == checkpoint_bits(stopped)


def test_what_config_json_says_beside_the_flags_has_no_effect(cut, stopped):
    computed = {"dataset": {"sha256": "0" * 64}, "network": {"kind": "rnn"}, "inputs": {"columns": ["a"]}}
    others = {"versions": [1], "changes": 7, "devices": None, "machine": "mine", "mesh": ["data=9"], "more": {"x": [1]}}
    edit(cut, **computed, **others)
    assert charted_call("--workdir", cut) == 0
    assert checkpoint_bits(cut) == checkpoint_bits(stopped)
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
    assert charted_call("--workdir", cut) == 2
    message = capsys.readouterr().err
    ((name, _),) = entries.items()
    assert f"config.json is damaged: {name} is " in message and "--fresh" in message and len(message.splitlines()) == 1
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("entries", [{"seed": "three"}, {"seed": None}, {"recipe": "none"}, {"hidden": [1.5]}], ids=str)
def test_without_a_checkpoint_every_flag_is_checked(entries, cut, capsys):
    shutil.rmtree(cut / PROGRESS)
    edit(cut, **entries)
    assert charted_call("--workdir", cut) == 2
    assert f"config.json is damaged: {next(iter(entries))} is " in capsys.readouterr().err


def test_other_data_before_the_first_save_are_those_of_the_run(cut):
    shutil.rmtree(cut / PROGRESS)
    assert charted_call("--workdir", cut, "--data", "simulated:401", "--epochs", 2) == 0
    metrics = json.loads((cut / "metrics.json").read_text())
    assert config_of(cut)["dataset"]["sha256"] == metrics["dataset"]["sha256"]
    assert config_of(cut)["data"] == "simulated:401" and "changes" not in config_of(cut)


def rewritten(folder, about):
    """A checkpoint whose content is another, and whose checksums are right."""
    saved = saving.restore_latest(folder / PROGRESS, print)
    content = {**saved.about, **about(saved.about)}
    shutil.rmtree(folder / PROGRESS)
    own = {name: content.pop(name) for name in checkpoints.RESERVED if name in content}
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
    assert charted_call("--workdir", cut) == 2
    message = capsys.readouterr().err
    assert (
        message.startswith("error: the checkpoint ")
        and "not those of its arrays" in message
        and message.count("\n") == 1
    )


@pytest.mark.parametrize("name", HISTORIES)
def test_a_checkpoint_with_odd_content_is_refused_and_writes_nothing(name, cut, capsys):
    rewritten(cut, HISTORIES[name])
    before = (cut / "history.csv").read_bytes()
    assert charted_call("--workdir", cut) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: the run in ") and len(message.splitlines()) == 1
    assert (cut / "history.csv").read_bytes() == before


def test_a_checkpoint_without_a_record_of_its_flags_leaves_those_of_config_json(cut, stopped):
    rewritten(cut, lambda about: {"config": [1]})
    assert charted_call("--workdir", cut) == 0 and checkpoint_bits(cut) == checkpoint_bits(stopped)


def test_a_machine_is_told_by_all_that_changes_bits(monkeypatch):
    here = {**_environment.environment(), "machine": _environment.machine()}
    assert environment_warning(here, here) is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=SSE4_2")
    text = environment_warning(here, {**here, "machine": _environment.machine()})
    assert "XLA_FLAGS --xla_cpu_max_isa=SSE4_2: its numbers may differ" in text
    for name, value in (("cores", 64), ("processor", "another"), ("threefry_partitionable", "False")):
        there = {**here, "machine": {**here["machine"], name: value}}
        assert f"{name} {value}" in environment_warning(there, here)
    assert len(_environment.machine()) == 3 + len(_environment.SETTINGS)


def test_the_record_of_a_checkpoint_is_read_where_it_is_whole_alone(cut, stopped):
    saved = saving.restore_latest(cut / PROGRESS, print)
    assert checkpoints.read_about(cut / PROGRESS) == saved.about
    path = cut / PROGRESS / str(saved.number) / "about" / "metadata"
    path.write_text(path.read_text().replace('"batch_size": 32', '"batch_size": 16'))
    assert checkpoints.read_about(cut / PROGRESS) is None


def test_a_lock_that_is_removed_while_a_run_goes_on_is_told_once(tmp_path):
    message = []
    with lock_folder(tmp_path) as holds:
        notice = lock_check(holds, tmp_path, 0.0, message.append)
        notice(None, [])
        assert message == []
        (tmp_path / "lock").unlink()
        notice(None, [])
        notice(None, [])
        # Of another process, say: it is not this one's to remove.
        (tmp_path / "lock").write_text("1 nowhere")
    assert len(message) == 1 and f"{tmp_path} was moved, or its lock removed" in message[0]
    assert (tmp_path / "lock").exists()


def test_drafts_that_a_killed_process_left_are_removed_by_the_next_start(cut):
    for name in (".history.csv.0123456789abcdef.part", "checkpoints/.a.0123456789abcdef.part"):
        (cut / name).write_text("half")
    (cut / "history.csv.part").write_text("mine")
    assert charted_call("--workdir", cut) == 0
    assert [path.name for path in cut.rglob("*.part")] == ["history.csv.part"]
