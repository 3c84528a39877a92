"""The short form of tests/faults.py, which anyone can run at length: runs that are killed end as those that are not."""

import os
import shutil
import signal
import time

import pytest

from jaxdl import saving
from tests.faults import GOES_ON, Lab, differs, flips, full_disk, kills, newest

pytestmark = pytest.mark.processes

# Shorter runs than those of the long form, which are saved more often: several checkpoints between two faults.
FLAGS = ("--data", "simulated:400", "--epochs", "600", "--patience", "300")
EVERY = 0.5


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The weather run with BatchNorm, dropout, a schedule, an average and early stopping; and what it ends with."""
    # With this seed the four kills are one of each kind.
    return Lab("weather", tmp_path_factory.mktemp("lab"), seed=2672, flags=FLAGS, every=EVERY)


@pytest.fixture(scope="module")
def stopped(lab):
    """A run that signals have stopped three times; of each start its exit code, what it said, and the newest checkpoint
    after it."""
    folder, starts = lab.new(), []
    for numbers in ((signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGTERM)):
        said, (before, _) = lab.said(folder), newest(folder)
        process = lab.start(folder)
        while newest(folder)[0] == before:
            assert process.poll() is None
            time.sleep(0.01)
        for number in numbers:
            os.kill(process.pid, number)
        code, words = process.wait(timeout=20), lab.said(folder)[len(said) :]
        starts.append((code, words, saving.restore_latest(folder / "checkpoints" / "progress", print).number))
    return folder, starts


def test_runs_that_are_killed_end_bit_identical(lab):
    assert kills(lab, 4).startswith("4 SIGKILL")


@pytest.mark.parametrize(("start", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_saves_and_the_run_goes_on(stopped, start, number):
    _, starts = stopped
    code, said, saved = starts[start]
    assert code == 128 + number
    assert f"{number.name}: the run has stopped" in said and "Traceback" not in said
    assert f"{GOES_ON}{saved})" in starts[start + 1][1]


def test_a_second_signal_ends_at_once_without_damage(stopped):
    _, starts = stopped
    code, said, _ = starts[2]
    assert code in (130, 143) and "Traceback" not in said


def test_a_run_that_signals_have_stopped_ends_bit_identical(lab, stopped):
    folder, starts = stopped
    copy = shutil.copytree(folder, lab.new())
    lab.go_on(copy, starts[-1][2])


def test_flipped_bits_are_detected(lab, stopped):
    assert flips(lab, 12, stopped[0], whole=1).startswith("12 of 12")


def test_a_full_disk_is_told_and_survived(lab):
    assert "bit-identical" in full_disk(lab)


def test_the_same_bits_come_from_a_cold_and_a_warm_cache(lab):
    # The first run began without a compiled program, the second with all of them.
    assert lab.again == lab.reference and lab.programs()


def test_a_run_that_was_cut_off_shows_it(stopped):
    folder, _ = stopped
    assert not (folder / "metrics.json").exists() and (folder / "history.csv").exists()


def test_what_differs_is_seen(lab):
    # The comparison itself: one bit of one array.
    name = next(name for name in lab.reference if name.startswith("progress/train_state/variables"))
    dtype, content = lab.reference[name]
    assert differs({**lab.reference, name: (dtype, bytes([content[0] ^ 1]) + content[1:])}, lab) == [name]
    assert differs(lab.reference, lab) == []
