"""Start several processes of one program on this machine: python -m jaxdl.launch -n 2 -- train.py."""

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
LAST_GRACE, POLL = 5.0, 0.05  # seconds between SIGTERM and SIGKILL, and between two polls of the processes


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One line, as for any other bad input.
        self.exit(2, f"error: {message}. See --help.\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m jaxdl.launch",
        usage="%(prog)s [-n N] [--grace SECONDS] [--pin] -- PROGRAM ...",
        description="Start N processes of a program on this machine, which connect with each other by "
        "jaxdl.distributed.initialize(). PROGRAM is an argument of python: -m MODULE, SCRIPT.py or -c CODE, with its "
        "flags. Each process receives every signal once. The exit code is the code of the first process that failed by "
        "itself, 128 plus the signal of a process that was killed, and 0 where all succeeded.",
    )
    parser.add_argument(
        "-n", "--processes", type=_at_least(int, 1), default=2, metavar="N", help="number of processes (2)"
    )
    parser.add_argument(
        "--grace",
        type=_at_least(float, 0),
        default=30.0,
        metavar="SECONDS",
        help="time for the other processes to end after one has failed (30)",
    )
    parser.add_argument(
        "--pin",
        action="store_true",
        help="give each process its own cores; with one core each, messages between processes take ten times as long",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    parsed.command = parsed.command[1:] if parsed.command[:1] == ["--"] else parsed.command
    if not parsed.command:
        parser.error("a program must be given after --, for instance -- train.py")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the processes, forward signals, and return the exit code of all."""
    parsed = _parse(arguments)
    with _signals() as received:
        children = _start(parsed.command, parsed.processes, parsed.pin)
        readers = [_reader(number, child) for number, child in enumerate(children) if number]
        try:
            code = _wait(children, received, parsed.grace)
        finally:
            for child in children:
                # Also the processes that a child has started.
                with suppress(OSError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    for reader in readers:
        reader.join(1)
    return code


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
    """Yield a list to which the signals of the block are appended; ignored signals stay ignored."""
    received: list[int] = []
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(command: list[str], processes: int, pin: bool) -> list[subprocess.Popen[bytes]]:
    """Start the processes, each with its place in its environment."""
    coordinator = f"127.0.0.1:{free_port()}"
    # Before the fork: afterwards no library may be loaded.
    kernel = ctypes.CDLL(None) if sys.platform == "linux" else None
    children, secret = [], os.environ.get(SECRET, secrets.token_hex(16))
    for number, cores in enumerate(_shares(processes, pin)):

        def prepare(cores: set[int] = cores) -> None:
            if cores:
                os.sched_setaffinity(0, cores)
            if kernel is not None:
                # PR_SET_PDEATHSIG: the processes end with the launcher, even one that is killed.
                kernel.prctl(1, signal.SIGKILL)

        place = dict(zip(VARIABLES, (coordinator, str(processes), str(number)), strict=True))
        # On a machine with several GPUs each process has one.
        defaults = {"JAX_LOCAL_DEVICE_IDS": str(number), "PYTHONUNBUFFERED": "1"}
        environment = {**defaults, **os.environ, **place, SECRET: secret}
        children.append(
            subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                preexec_fn=prepare,
                # Ctrl-C in a terminal then reaches the launcher alone, which forwards it once.
                start_new_session=True,
                # Process 0 has the terminal.
                stdin=subprocess.DEVNULL if number else None,
                stdout=subprocess.PIPE if number else None,
                stderr=subprocess.STDOUT if number else None,
            )
        )
    return children


def _shares(processes: int, pin: bool) -> list[set[int]]:
    """Return the cores of each process; empty sets without `pin`, or with fewer cores than processes."""
    cores = sorted(os.sched_getaffinity(0)) if pin and hasattr(os, "sched_getaffinity") else []
    edges = [len(cores) * number // processes for number in range(processes + 1)]
    # Neighboring cores share a cache.
    shares = [set(cores[first:last]) for first, last in pairwise(edges)]
    return shares if all(shares) else [set()] * processes


def _reader(number: int, child: subprocess.Popen[bytes]) -> threading.Thread:
    """Start a thread that copies the output of a process to stderr, each line with the process's number."""

    def read() -> None:
        for line in child.stdout or ():
            with suppress(OSError):  # A closed stderr must not stop the process.
                os.write(2, f"[{number}] ".encode() + line.rstrip(b"\n") + b"\n")

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _wait(children: list[subprocess.Popen[bytes]], received: list[int], grace: float) -> int:
    """Wait until all processes have ended, at most `grace` seconds after a failure, and return the exit code of all."""
    forwarded, deadline, terminated = 0, float("inf"), False
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        time.sleep(POLL)
        for number in received[forwarded:]:
            for child in children:
                child.send_signal(number)
            forwarded += 1
        expected = [128 + number for number in received]
        for number, child in enumerate(children):
            if number in codes or child.poll() is None:
                continue
            codes[number] = code = child.returncode if child.returncode >= 0 else 128 - child.returncode
            if code and code not in expected:
                if not terminated and code != LOST:  # A process that ends with LOST has named another one.
                    _print(f"process {number} {_describe_exit(child.returncode)}")
                deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline and len(codes) < len(children):
            running = [number for number in range(len(children)) if number not in codes]
            if not terminated:
                _print(f"process {', '.join(map(str, running))} still running {grace:g} seconds later: ended")
            for number in running:
                children[number].send_signal(signal.SIGKILL if terminated else signal.SIGTERM)
            deadline, terminated = time.monotonic() + LAST_GRACE, True
    failures = [code for code in codes.values() if code]
    return next((code for code in failures if code != LOST), failures[0] if failures else 0)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _print(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{text}.\n".encode())


if __name__ == "__main__":
    sys.exit(main())
