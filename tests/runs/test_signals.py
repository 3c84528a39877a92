"""Signals: at once where nothing is held, a question where it is, and nothing left behind."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxdl.runs.signals import NEVER, interrupts
from tests.groups import LIGHT

START = """
import hashlib, os, signal, sys, time
from jaxdl.runs.signals import interrupts
def say(text):
    print(text, flush=True)
def busy():
    # Many seconds in C, where no handler of Python runs.
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 60_000_000)
with interrupts() as signals:
    signals.set_message("start again")
"""
BODIES = {
    "asleep": "    say('ready'); time.sleep(30)",
    "busy": "    say('ready'); busy()",
    "held": """
    signals.defer(True)
    say('ready')
    while signals.received() is None:
        time.sleep(0.01)
    say(f'asked {signals.received()}')
sys.exit(7)
""",
    "held and busy": "    signals.defer(True); say('ready'); busy()",
    "held no more": "    signals.defer(True); signals.defer(False); say('ready'); busy()",
}


def program(body, **handlers):
    """A process that begins with these handlers; only what is ignored is handed down."""
    before = {name: signal.signal(getattr(signal, name), handler) for name, handler in handlers.items()}
    call = [sys.executable, "-c", LIGHT + START + BODIES[body]]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)
    assert process.stdout.readline() == "ready\n"
    return process


# A shell starts what it puts in the background with SIGINT ignored.
DEFAULT = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("body", ["asleep", "busy", "held no more"])
def test_a_signal_that_is_not_held_ends_the_process_at_once(body, number):
    process = program(body, **DEFAULT)
    began = time.monotonic()
    process.send_signal(number)
    _, message = process.communicate(timeout=20)
    assert process.returncode == 128 + number and message == "\nstart again\n"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_held_is_asked_for(number):
    process = program("held", **DEFAULT)
    process.send_signal(number)
    output, message = process.communicate(timeout=20)
    assert output == f"asked {int(number)}\n" and message == "" and process.returncode == 7


def test_a_second_signal_ends_the_process_at_once():
    process = program("held and busy", **DEFAULT)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=20)
    assert process.returncode == 143 and message == "\nended by a second signal: start again\n"


def test_signals_that_were_ignored_stay_ignored():
    process = program("asleep", SIGHUP=signal.SIG_IGN)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.kill()
    process.communicate()


def test_nothing_is_left_behind():
    names = [signal.SIGINT, signal.SIGTERM]
    before, threads = [signal.getsignal(name) for name in names], threading.active_count()
    wakeup = signal.set_wakeup_fd(-1)
    with interrupts() as signals:
        signals.defer(True)
        assert threading.active_count() == threads + 1
        signal.raise_signal(signal.SIGTERM)
        for _ in range(500):
            if signals.received() is not None:
                break
            time.sleep(0.01)
        assert signals.received() == signal.SIGTERM
    assert [signal.getsignal(name) for name in names] == before
    assert signal.set_wakeup_fd(wakeup) == -1 and threading.active_count() == threads


def test_nothing_is_left_behind_where_the_block_fails():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), interrupts():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_of_the_main_thread_nothing_is_asked():
    result = []

    def run():
        with interrupts() as signals:
            result.append(signals)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert result == [NEVER] and NEVER.received() is None
