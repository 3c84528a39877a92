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
from jaxdl import saving
from jaxdl._files import locked
from jaxdl.runs.command import StoppedError, command
from jaxdl.runs.folders import Earlier
from jaxdl.runs.resume import changes, goes_on, other_surroundings, refused
from jaxdl.runs.signals import Interrupts
from jaxdl.saving import load

# One network for all runs, so that it is compiled once.
DATA = ("--data", "simulated:400", "--no-compilation-cache", "--hidden", 8, 4)


def call(*arguments):
    # Not for TensorBoard, which is none of a run's bits: test_experiments_watching.py lets that go on.
    return command(Config, run, "weather", [str(argument) for argument in (*arguments, "--no-tensorboard")])


def bits(folder):
    """All that must be equal; times and names of folders aside."""
    saved = saving.latest(folder / "checkpoints/progress", print)
    found = {name: (str(array.dtype), array.tobytes()) for name, array in saved.arrays.items()}
    with (folder / "history.csv").open() as file:
        found["history.csv"] = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    for name in ("best", "final"):
        kernel = load(folder / "checkpoints" / name).params["Dense_0"]["kernel"]
        found[name] = np.asarray(kernel).tobytes()
    found["metrics"] = {**json.loads((folder / "metrics.json").read_text()), "seconds": None}
    return found


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
    late = Interrupts(lambda: signal.SIGTERM if saved.exists() else None, lambda on: None, lambda text: None)
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
    assert "The run goes on after epoch 3 (checkpoint 1)." in capsys.readouterr().out
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
    assert "nothing was saved yet" in capsys.readouterr().out
    assert bits(three) == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--seed", 1), "--seed is 0 in the run there, got 1. Use --seed 0"),
        (("--batch-size", 16), "--batch-size is 32 in the run there, got 16. Use --batch-size 32"),
        (
            ("--hidden", 8, 5),
            "the checkpoint holds params/Dense_1/kernel of shape (8, 4); this model expects (8, 5). --hidden is 8 4 in "
            "the run there, got 8 5. Use --hidden 8 4, choose another --workdir, or start over with --fresh.",
        ),
        (("--data", "simulated:500"), "the run in .* cannot go on: it is on other data"),
        (("--epochs", 2), "--epochs must be at least 3"),
    ],
)
@pytest.mark.parametrize("state", ["finished", "cut off"])
def test_a_change_that_may_not_be_is_refused_by_name_with_the_flag(three, capsys, flags, told, state):
    if state == "cut off":
        (three / "metrics.json").unlink()
    elif flags[0] in ("--data", "--epochs"):
        # A finished run is only shown again, whatever these say.
        return
    before = contents(three)
    assert call("--workdir", three, *flags) == 2
    error = capsys.readouterr().err
    assert told in error or (".*" in told and told.split(".*")[1] in error)
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
    kept = tmp_path / "run-old-1"
    assert {path.relative_to(kept): content for path, content in contents(kept).items()} == before
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
    with locked(three):
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
    saved = saving.latest(folder / "checkpoints/progress", print)
    assert all(np.isfinite(array).all() for name, array in saved.arrays.items() if name.startswith("state/weights"))
    number = saved.number
    assert call("--workdir", folder, "--on-nan", "continue") == 0
    # What is not finite is never saved: the last finite checkpoint stays the latest.
    assert saving.latest(folder / "checkpoints/progress", print).number == number
    assert json.loads((folder / "metrics.json").read_text())["best_epoch"] == 0


def test_a_schedule_over_all_epochs_cannot_get_more_of_them():
    found = {"epochs": (1, 2)}
    assert refused(found, cifar10.frozen_flags(cifar10.Config())) is None
    told = refused(found, cifar10.frozen_flags(cifar10.Config(recipe="strong")))
    assert (
        told
        == "--epochs is 1 in the run there (the cycle of the learning rate is spread over them), got 2. Use --epochs 1"
    )


def test_negative_seconds_between_saves_are_refused(tmp_path, capsys):
    assert call(*DATA, "--save-every", "-1", "--workdir", tmp_path / "run") == 2
    assert "--save-every must be at least 0 seconds" in capsys.readouterr().err


# The parts


def test_flags_of_an_older_version_that_are_missing_are_no_change():
    assert changes({"seed": 0, "new": 3, "workdir": "a"}, Earlier({"seed": 0, "workdir": "b"}, None)) == {}


def test_a_flag_that_was_left_out_is_told_as_such():
    assert refused({"dropout": (None, 0.2)}, {}) == "--dropout is None in the run there, got 0.2. Leave --dropout out"
    assert refused({"epochs": (1, 2), "data": ("a", "b")}, {}) is None


@pytest.mark.parametrize(
    ("found", "reason", "expected"),
    [
        ({}, "epochs", False),
        ({"epochs": (3, 2)}, "epochs", False),
        ({"patience": (3, None)}, "early-stopping", True),
        ({"patience": (3, 2)}, "early-stopping", False),
        ({"patience": (3, 20)}, "epochs", False),
    ],
)
def test_a_finished_run_goes_on_only_where_there_is_more_to_do(found, reason, expected):
    assert goes_on(found, {"reason": reason}) is expected


def test_other_versions_are_told():
    now = {"versions": {"jax": "2", "numpy": "1"}, "devices": ["cpu"]}
    assert other_surroundings(now, now) is None and other_surroundings({}, now) is None
    assert "devices ['gpu']" in other_surroundings({**now, "devices": ["gpu"]}, now)
