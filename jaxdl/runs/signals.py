"""Interrupts: the signals that ask a process to end, as a question that a loop asks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StoppedError(Exception):
    """A signal ended the run, which is saved; the arguments are the signal and the folder."""


class Signals(NamedTuple):
    """What a loop asks and tells; without signals nothing happens."""

    asked: Callable[[], int | None]  # the signal that came, if one did
    hold: Callable[[bool], None]  # whether a first signal waits for the question, or ends the process at once
    advise: Callable[[str], None]  # what the process says when it is ended at once


NEVER = Signals(lambda: None, lambda on: None, lambda text: None)


@contextmanager
def interrupts() -> Iterator[Signals]:
    """While the block runs, SIGINT, SIGTERM and SIGHUP end the process at once, with a text and 128 + the signal.

    Where the signals are held, the first one is only noted, and a second one ends the process. "At once" holds even
    while XLA compiles or a device is waited for, which Python's own handlers would have to wait for too. Signals that
    were ignored stay ignored. Outside of the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield NEVER
        return
    came: list[int] = []
    held, advice = False, "interrupted."

    def hold(on: bool) -> None:
        nonlocal held
        held = on

    def advise(text: str) -> None:
        nonlocal advice
        advice = text

    def listen() -> None:
        while content := os.read(reading, 1):
            number = content[0]
            if number in watched:
                came.append(number)
                if len(came) > 1 or not held:
                    _end(f"ended by a second signal: {advice}" if len(came) > 1 else advice, number)

    watched = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # They do nothing: what counts is that the default does not happen, and that the pipe is written.
    before = {number: signal.signal(number, lambda *_: None) for number in watched}
    try:
        yield Signals(lambda: came[0] if came else None, hold, advise)
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
