"""The short form of tests/faults.py: interrupted and damaged runs end bit-identical to undisturbed ones."""

import os
import shutil
import signal
import time

import pytest

from jaxdl import saving
from tests.faults import RESUMES, Lab, differing, flips, full_disk, kills, newest

pytestmark = pytest.mark.processes

# Shorter runs with more checkpoints than in the long form: several checkpoints between two faults.
FLAGS = ("--data", "simulated:400", "--epochs", "600", "--patience", "300")
EVERY = 0.5


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Weather runs with BatchNorm, dropout, a schedule, averaged weights and early stopping."""
    # With this seed there is one kill of each kind.
    return Lab("weather", tmp_path_factory.mktemp("lab"), seed=2672, flags=FLAGS, every=EVERY)


@pytest.fixture(scope="module")
def stopped(lab):
    """A run stopped by signals three times: its folder, and exit code, output and newest checkpoint of each start."""
    folder, starts = lab.new(), []
    for numbers in ((signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGTERM)):
        log, (before, _) = lab.log(folder), newest(folder)
        process = lab.start(folder)
        while newest(folder)[0] == before:
            assert process.poll() is None
            time.sleep(0.01)
        for number in numbers:
            os.kill(process.pid, number)
        code, lines = process.wait(timeout=20), lab.log(folder)[len(log) :]
        starts.append((code, lines, saving.restore_latest(folder / "checkpoints" / "progress", print).number))
    return folder, starts


def test_runs_that_are_killed_end_bit_identical(lab):
    assert kills(lab, 4).startswith("4 SIGKILL")


@pytest.mark.parametrize(("start", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_saves_and_the_run_goes_on(stopped, start, number):
    _, starts = stopped
    code, log, saved = starts[start]
    assert code == 128 + number
    assert f"{number.name}: the run has stopped" in log and "Traceback" not in log
    assert f"{RESUMES}{saved})" in starts[start + 1][1]


def test_a_second_signal_ends_at_once_without_damage(stopped):
    _, starts = stopped
    code, log, _ = starts[2]
    assert code in (130, 143) and "Traceback" not in log


def test_a_run_that_signals_have_stopped_ends_bit_identical(lab, stopped):
    folder, starts = stopped
    copy = shutil.copytree(folder, lab.new())
    lab.check_resume(copy, starts[-1][2])


def test_flipped_bits_are_detected(lab, stopped):
    assert flips(lab, 12, stopped[0], whole=1).startswith("12 of 12")


def test_a_full_disk_is_told_and_survived(lab):
    assert "bit-identical" in full_disk(lab)


def test_the_same_bits_come_from_a_cold_and_a_warm_cache(lab):
    # The first run starts with an empty compilation cache, the second with a complete one.
    assert lab.second_run == lab.reference and lab.compiled_programs()


def test_an_interrupted_run_has_a_history_and_no_metrics(stopped):
    folder, _ = stopped
    assert not (folder / "metrics.json").exists() and (folder / "history.csv").exists()


def test_the_comparison_finds_a_single_bit(lab):
    name = next(name for name in lab.reference if name.startswith("progress/train_state/variables"))
    dtype, content = lab.reference[name]
    assert differing({**lab.reference, name: (dtype, bytes([content[0] ^ 1]) + content[1:])}, lab) == [name]
    assert differing(lab.reference, lab) == []
