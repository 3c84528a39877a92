"""What `python -m jaxdl` and the experiments do before they import the rest, which takes seconds."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time

# Here, because Python reads this file before the imports that take the time of a command.
STARTED = time.perf_counter()


def _end(*_: object) -> None:
    os.write(2, b"\ninterrupted before the command began.\n")
    os._exit(128 + signal.SIGINT)


if sys.argv[:1] == ["-m"]:
    # Imports and traces make hundreds of thousands of lasting objects. To look through them again and again for garbage
    # takes an eighth of a short run's time.
    gc.set_threshold(100_000, 50, 100)

# So Python calls a command while it looks for its module, and no program that imports this package.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Or Ctrl-C would end in a traceback through whatever is imported at that moment.
    signal.signal(signal.SIGINT, _end)


def begin() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, and open the standard streams that are closed, on nothing.

    The next file that is opened would get the number of one, and whatever a library prints; and Python leaves it out.
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
    """Write what the standard streams still hold, or drop it where that cannot be written.

    Python would try once more, complain, and end with another exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
