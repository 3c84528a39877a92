"""Signals that ask a process to end, as a function that a loop calls."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StoppedError(Exception):
    """A signal ended the run, and the run is saved. The arguments are the number of the signal and the folder."""


class Signals(NamedTuple):
    """Functions of a loop that ends on a signal."""

    received: Callable[[], int | None]  # returns the number of the first signal, None before one came
    defer: Callable[[bool], None]  # True: a first signal only sets `received`; False: it ends the process at once
    set_message: Callable[[str], None]  # sets the text that is printed where a signal ends the process at once


NEVER = Signals(lambda: None, lambda on: None, lambda text: None)  # no signal ever comes


@contextmanager
def interrupts() -> Iterator[Signals]:
    """Let SIGINT, SIGTERM and SIGHUP end the process at once within the block, with a text and 128 + the signal.

    While signals are deferred, the first one is only recorded, and a second one ends the process. A thread reads the
    signals, so the process ends even while XLA compiles or a device is busy, where Python's handlers would wait.
    Signals that were ignored stay ignored. Outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield NEVER
        return
    numbers: list[int] = []
    deferred, message = False, "interrupted."

    def defer(on: bool) -> None:
        nonlocal deferred
        deferred = on

    def set_message(text: str) -> None:
        nonlocal message
        message = text

    def listen() -> None:
        while content := os.read(reading, 1):
            number = content[0]
            if number in watched:
                numbers.append(number)
                if len(numbers) > 1 or not deferred:
                    _end(f"ended by a second signal: {message}" if len(numbers) > 1 else message, number)

    watched = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # The handlers do nothing. They replace the default action, and Python writes the signal into the pipe.
    before = {number: signal.signal(number, lambda *_: None) for number in watched}
    try:
        yield Signals(lambda: numbers[0] if numbers else None, defer, set_message)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writing)
        thread.join()
        os.close(reading)


def _end(text: str, number: int) -> None:
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
    os._exit(128 + number)
