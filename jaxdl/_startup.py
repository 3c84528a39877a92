"""The first and last actions of a command: `python -m jaxdl`, or an experiment. Its imports take seconds."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time

# The start of a command, because Python runs this file before its slow imports.
STARTED = time.perf_counter()


def _end(*_: object) -> None:
    os.write(2, b"\ninterrupted before the command began.\n")
    os._exit(128 + signal.SIGINT)


if sys.argv[:1] == ["-m"]:
    # Imports and traces make hundreds of thousands of lasting objects. Their garbage collection takes an eighth of the
    # time of a short run.
    gc.set_threshold(100_000, 50, 100)

# Python sets argv to ["-m"] while it searches the module of a command. A program that imports jaxdl has another argv.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Otherwise Ctrl-C during the imports would print a long traceback.
    signal.signal(signal.SIGINT, _end)


def prepare_process() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, and open closed standard streams on the null device.

    Otherwise the next open file would get the number of a standard stream, and the output of libraries.
    """
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def end() -> None:
    """Flush the standard streams, and drop output that cannot be written.

    Otherwise Python would try again at exit, print an error and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
