"""Starts several processes of one program on this machine: python -m jaxdl.launch -n 2 -- train.py."""

from __future__ import annotations

import argparse
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import NoReturn

from jaxdl.distributed.processes import LOST, SECRET, VARIABLES, free_port

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Seconds between SIGTERM and SIGKILL, and between two looks at the processes.
LAST_GRACE, LOOK = 5.0, 0.05


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One message, as for any other bad input.
        self.exit(2, f"error: {message}. See --help.\n")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m jaxdl.launch",
        usage="%(prog)s [-n N] [--grace SECONDS] [--pin] -- PROGRAM ...",
        description="Starts N processes of a program on this machine, which join each other with "
        "jaxdl.distributed.initialize(). PROGRAM is what python itself takes: -m MODULE, SCRIPT.py or -c CODE, and its "
        "flags. Signals are passed on to each process once. The exit code is that of the first process that "
        "failed by itself, 128 and the signal where one was killed, 0 where all ended well.",
    )
    parser.add_argument("-n", "--processes", type=_at_least(int, 1), default=2, metavar="N", help="how many (2)")
    parser.add_argument(
        "--grace",
        type=_at_least(float, 0),
        default=30.0,
        metavar="SECONDS",
        help="how long the others may go on after one has failed (30)",
    )
    parser.add_argument(
        "--pin",
        action="store_true",
        help="give each process its share of the cores; on one core each, their messages take ten times as long",
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    parsed.program = parsed.program[1:] if parsed.program[:1] == ["--"] else parsed.program
    if not parsed.program:
        parser.error("a program must be given after --, for instance -- train.py")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the processes, passes signals on, waits for all of them; the exit code."""
    parsed = _parsed(arguments)
    with _signals() as came:
        children = _started(parsed.program, parsed.processes, parsed.pin)
        readers = [_reader(number, child) for number, child in enumerate(children) if number]
        try:
            failed = _waited(children, came, parsed.grace)
        finally:
            for child in children:
                # What a child has started, too.
                with suppress(OSError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    for reader in readers:
        reader.join(1)
    return failed


def _at_least(kind: type, least: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        with suppress(ValueError):
            if kind(text) >= least:
                return kind(text)
        name = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {name}, at least {least}, got {text!r}")

    return number


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that come during the block, in their order; those that were ignored stay ignored."""
    came: list[int] = []
    watched = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in watched}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _started(program: list[str], processes: int, pin: bool) -> list[subprocess.Popen[bytes]]:
    coordinator = f"127.0.0.1:{free_port()}"
    # Before the fork, after which no library may be loaded.
    kernel = ctypes.CDLL(None) if sys.platform == "linux" else None
    children, secret = [], os.environ.get(SECRET, secrets.token_hex(16))
    for number, cores in enumerate(_shares(processes, pin)):

        def begin(cores: set[int] = cores) -> None:
            if cores:
                os.sched_setaffinity(0, cores)
            if kernel is not None:
                # PR_SET_PDEATHSIG: with the launcher its processes go, even where it cannot pass on a signal.
                kernel.prctl(1, signal.SIGKILL)

        own = dict(zip(VARIABLES, (coordinator, str(processes), str(number)), strict=True))
        # On a machine with several GPUs each process has one.
        environment = {
            "JAX_LOCAL_DEVICE_IDS": str(number),
            "PYTHONUNBUFFERED": "1",
            **os.environ,
            **own,
            SECRET: secret,
        }
        children.append(
            subprocess.Popen(
                [sys.executable, *program],
                env=environment,
                preexec_fn=begin,
                # A terminal's Ctrl-C reaches the launcher alone, which passes it on once.
                start_new_session=True,
                # Process 0 has the terminal.
                stdin=subprocess.DEVNULL if number else None,
                stdout=subprocess.PIPE if number else None,
                stderr=subprocess.STDOUT if number else None,
            )
        )
    return children


def _shares(processes: int, pin: bool) -> list[set[int]]:
    """The cores of each process, none where they are not to be set."""
    cores = sorted(os.sched_getaffinity(0)) if pin and hasattr(os, "sched_getaffinity") else []
    edges = [len(cores) * number // processes for number in range(processes + 1)]
    # Neighbours stay together, because they share a cache.
    shares = [set(cores[first:last]) for first, last in pairwise(edges)]
    return shares if all(shares) else [set()] * processes


def _reader(number: int, child: subprocess.Popen[bytes]) -> threading.Thread:
    """Writes what a process says to stderr, line by line, with its number."""

    def read() -> None:
        for line in child.stdout or ():
            with suppress(OSError):  # Nobody reads it; the process may go on.
                os.write(2, f"[{number}] ".encode() + line.rstrip(b"\n") + b"\n")

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _waited(children: list[subprocess.Popen[bytes]], came: list[int], grace: float) -> int:
    """Waits until all have ended, not longer than the grace after a failure; the exit code of all."""
    passed, deadline, last = 0, float("inf"), False
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        time.sleep(LOOK)
        for number in came[passed:]:
            for child in children:
                child.send_signal(number)
            passed += 1
        asked = [128 + number for number in came]
        for number, child in enumerate(children):
            if number in codes or child.poll() is None:
                continue
            codes[number] = code = child.returncode if child.returncode >= 0 else 128 - child.returncode
            if code and code not in asked:
                if not last and code != LOST:  # That one has named another itself.
                    _say(f"process {number} {_ending(child.returncode)}")
                deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline and len(codes) < len(children):
            running = [number for number in range(len(children)) if number not in codes]
            if not last:
                _say(f"process {', '.join(map(str, running))} still running {grace:g} seconds later: ended")
            for number in running:
                children[number].send_signal(signal.SIGKILL if last else signal.SIGTERM)
            deadline, last = time.monotonic() + LAST_GRACE, True
    failures = [code for code in codes.values() if code]
    return next((code for code in failures if code != LOST), failures[0] if failures else 0)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{text}.\n".encode())


if __name__ == "__main__":
    sys.exit(main())
