"""The short form of tests/faults.py, which anyone can run at length: runs that are killed end as those that are not."""

import os
import signal

import pytest

from jaxdl import checkpoints
from tests.faults import Lab, cut_off, differs, flips, full_disk, kills, newest, repeat

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The weather run with BatchNorm, dropout, a schedule, an average and early stopping; and what it ends with."""
    return Lab("weather", tmp_path_factory.mktemp("lab"), seed=1)


def test_runs_that_are_killed_end_bit_identical(lab):
    assert kills(lab, 4).startswith("4 SIGKILL")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_bit_identical(lab, number):
    folder = lab.new()
    process = lab.start(folder)
    while newest(folder)[0] is None:
        assert process.poll() is None
    os.kill(process.pid, number)
    assert process.wait(timeout=20) == 128 + number
    said = lab.said(folder)
    assert f"{number.name}: the run has stopped" in said and "Traceback" not in said
    found = checkpoints.latest(folder / "checkpoints" / "progress", print)
    lab.go_on(folder, found.number)


def test_a_second_signal_ends_at_once_without_damage(lab):
    folder = lab.new()
    process = lab.start(folder)
    while newest(folder)[0] is None:
        assert process.poll() is None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
    assert process.wait(timeout=20) in (130, 143)
    lab.go_on(folder, None)


def test_flipped_bits_are_detected(lab):
    assert flips(lab, 12).startswith("12 of 12")


def test_a_full_disk_is_told_and_survived(lab):
    assert "bit-identical" in full_disk(lab)


def test_the_same_bits_come_from_a_cold_and_a_warm_cache(lab):
    assert "cold and a warm" in repeat(lab)


def test_a_run_that_was_cut_off_shows_it(lab):
    folder = cut_off(lab)
    assert not (folder / "metrics.json").exists() and (folder / "history.csv").exists()


def test_what_differs_is_seen(lab):
    # The comparison itself: one bit of one array.
    name = next(name for name in lab.reference if name.startswith("progress/state/weights"))
    dtype, content = lab.reference[name]
    assert differs({**lab.reference, name: (dtype, bytes([content[0] ^ 1]) + content[1:])}, lab) == [name]
    assert differs(lab.reference, lab) == []
