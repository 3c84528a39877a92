"""Several processes as one run, on JAX's own distributed runtime."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdl.errors import InputError
from jaxdl.links import LOST as LOST
from jaxdl.links import Links, part, watch
from jaxdl.meetings import local, meet
from jaxdl.places import SECRET, place, whole
from jaxdl.places import launched as launched

# Of what JAX's errors speak when another process has gone.
SIGNS = ("gloo", "nccl", "heartbeat", "socket closed", "coordination", "connection", "unhealthy")
# Seconds in which the connections to the others end if one has gone.
PATIENCE = 5.0

# JAX's runtime is one for the whole process, and so is this.
_joined: list[Links] = []


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat: int = 10,
    timeout: int = 120,
    about: Mapping[str, Any] | None = None,
    secret: str | None = None,
) -> None:
    """Makes this process one of several that compute together; to be called before JAX computes anything.

    `coordinator` is process 0's HOST:PORT. With nothing given it is what the launcher, SLURM, Open MPI, Kubernetes or a
    TPU pod says. All processes wait here for each other, `timeout` seconds at most. From then on, when one of them ends
    without `leave`, each of the others ends too, with one line that names it and exit code LOST, 75. One that is only
    stopped, or whose machine is gone, is found by JAX's heartbeats after about `heartbeat` seconds: JAX then aborts the
    others (SIGABRT). On a CPU each process has one device, and JAX's service for preemptions, which would swallow
    SIGTERM, is off.

    about: what all processes must agree on, as `meetings.meet` compares it: flags, versions, a name of the run.
    secret: a text that only the processes of this run know, by which they turn strangers away; by default that of the
    variable JAXDL_SECRET, which the launcher sets.

    Raises InputError for anything that does not fit, or does not come.

    >>> join("127.0.0.1:4000", processes=2, process_id=2)
    Traceback (most recent call last):
    jaxdl.errors.InputError: process_id must be from 0 to 1 with 2 processes, got 2. Count them from 0.
    """
    if _joined or jax.distributed.is_initialized():
        raise InputError("a process can join others once, and this one has. Call join at one place only.")
    for name, value in (("heartbeat", heartbeat), ("timeout", timeout)):
        if not whole(value) or value < 1:
            raise InputError(f"{name} must be a whole number of seconds, at least 1, got {value!r}.")
    host, port, number, own, devices = place(coordinator, processes, process_id)
    _prepare()
    known = os.environ.get(SECRET, "") if secret is None else secret
    links = meet(host, port, number, own, timeout, about, known)
    watch(links)
    _joined.append(links)
    # A port of its own, told to those who have met: JAX's runtime aborts a process whose coordinator does not come.
    address = f"[{host}]:{links.port}" if ":" in host else f"{host}:{links.port}"
    jax.distributed.initialize(
        *(address, number, own, devices),
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=heartbeat,
        # All have met in `leave` before, so nobody is waited for.
        shutdown_timeout_seconds=heartbeat,
        coordinator_bind_address=address if local(host) else None,
    )


def index() -> int:
    """Which of the processes this is; 0 where it is alone, without asking JAX for its devices.

    >>> index()
    0
    """
    return jax.process_index() if jax.distributed.is_initialized() else 0


def count() -> int:
    """How many processes there are; 1 where this one is alone, without asking JAX for its devices.

    >>> count()
    1
    """
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is process 0, which prints and writes for all.

    >>> is_first()
    True
    """
    return index() == 0


def told(text: str) -> str:
    """Process 0's text, in every process; all of them must call it.

    >>> told("runs/2026-11-24")
    'runs/2026-11-24'
    """
    if count() == 1:
        return text
    content = text.encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    # Rounded up, so that texts of all lengths need few programs.
    padded = np.zeros(1 << max(8, length.bit_length()), np.uint8)
    if is_first():
        padded[:length] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].tobytes().decode()


def gathered(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """The whole numbers (k,) of every process: int64 (P, k), in every process; all of them must call it.

    Raises InputError for anything but a vector of whole numbers. Each process must give equally many.

    >>> gathered([3, 4])
    array([[3, 4]])
    """
    vector = np.asarray(numbers)
    if vector.ndim != 1 or vector.dtype.kind not in "iub":
        raise InputError(
            f"what is gathered must be a vector of whole numbers, got {vector.dtype} {vector.shape}. Use np.ravel."
        )
    vector = vector.astype(np.int64)
    if count() == 1:
        return vector[None]
    # As bytes, because JAX would cut them to 32 bits.
    return np.asarray(multihost_utils.process_allgather(vector.view(np.uint8))).view(np.int64)


def lost(error: BaseException) -> str | None:
    """What to say of an error that JAX raises because another process has gone; None for any other error.

    Where that process has ended, this one ends while it waits here, with its own line (see `join`).

    >>> lost(ValueError("an error of the program")) is None
    True
    """
    if not (_joined and isinstance(error, jax.errors.JaxRuntimeError)):
        return None
    text = str(error)
    if not any(sign in text.lower() for sign in SIGNS):
        return None
    time.sleep(PATIENCE)
    return f"another process cannot be reached: {text.partition(chr(10))[0]}. Start all of them again."


def leave() -> None:
    """Waits until all processes have come here, and ends what `join` began; nothing where none was joined.

    Every process must call it at its end. One that ends otherwise has failed, for the others.

    >>> leave()
    """
    if _joined:
        part(_joined[0])
        jax.distributed.shutdown()


def end(code: int) -> NoReturn:
    """Ends this process at once with an exit code and without waiting for the others, which then end too.

    >>> try:
    ...     end(2)  # where none was joined
    ... except SystemExit as error:
    ...     print(error.code)
    2
    """
    if not _joined:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    # JAX would wait for the others when the interpreter ends.
    os._exit(code)


def _prepare() -> None:
    try:
        # Two processes of two CPU devices each have waited for each other for ever. JAX refuses only a change.
        for devices in (2, 1):
            jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        raise InputError("join must come before JAX computes or lists its devices. Call it first in main.") from None
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
