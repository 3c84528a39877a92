"""Which of several processes this one is, and where they meet."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from jaxdl.errors import InputError

# What the launcher tells its processes.
NAMES = ("JAXDL_COORDINATOR", "JAXDL_PROCESSES", "JAXDL_PROCESS_ID")
SECRET = "JAXDL_SECRET"  # by which the processes of a run know each other


class Place(NamedTuple):
    """Where a process belongs."""

    host: str
    port: int
    processes: int
    own: int  # which of them this process is
    devices: list[int] | None  # those of this machine that are its own; None: all


def launched() -> bool:
    """Whether the launcher, `python -m jaxdl.launch`, has started this process.

    >>> launched()
    False
    """
    return any(name in os.environ for name in NAMES)


def place(coordinator: str | None, processes: int | None, process_id: int | None) -> Place:
    """The place that is given; with nothing given the one that the launcher or a cluster tells.

    Raises InputError where it is not whole or cannot be.

    >>> place("node-3:4000", 2, 1)
    Place(host='node-3', port=4000, processes=2, own=1, devices=None)
    """
    given, subjects, devices = [coordinator, processes, process_id], ("coordinator", "processes", "process_id"), None
    if all(value is None for value in given):
        if launched():
            given, subjects = [os.environ.get(name) for name in NAMES], NAMES
        else:
            *given, devices = _detected()
        if given == [None] * 3:
            raise InputError(
                "coordinator, processes and process_id must be given, as no launcher or cluster was detected. "
                "Give all three, or start the program by python -m jaxdl.launch."
            )
    missing = [name for name, value in zip(subjects, given, strict=True) if value is None]
    if missing:
        raise InputError(f"{', '.join(subjects)} must be given together, got no {' and no '.join(missing)}.")
    host, port = _address(subjects[0], given[0])
    number, own = (_number(name, value) for name, value in zip(subjects[1:], given[1:], strict=True))
    if number < 1:
        raise InputError(f"{subjects[1]} must be at least 1, got {number}.")
    if not 0 <= own < number:
        raise InputError(
            f"{subjects[2]} must be from 0 to {number - 1} with {number} processes, got {own}. Count them from 0."
        )
    return Place(host, port, number, own, devices)


def _address(subject: str, address: Any) -> tuple[str, int]:
    host, _, port = str(address).rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise InputError(f"{subject} must be HOST:PORT with a port from 1 to 65535, got {address!r}.")
    return host, int(port)


def whole(value: Any) -> bool:
    """Whether a value is a whole number.

    >>> whole(2), whole(2.0), whole(True)
    (True, False, False)
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _number(subject: str, value: Any) -> int:
    try:
        return int(value) if whole(value) or isinstance(value, str) else int("")
    except ValueError:
        raise InputError(f"{subject} must be a whole number, got {value!r}.") from None


def _detected() -> list[Any]:
    """Coordinator, processes, process_id and devices as JAX finds them; each None where it finds none."""
    try:
        # JAX has no public name for it.
        from jax._src.clusters import ClusterEnv

        return list(ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 30))
    except Exception as error:
        raise InputError(
            f"coordinator, processes and process_id must be given, as the cluster does not tell them: {error}."
        ) from None
