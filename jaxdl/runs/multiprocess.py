"""A run that several processes train together."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxdl import distributed as distributed_module
from jaxdl import saving as saving_module
from jaxdl._checks import check_platform
from jaxdl._tree import flatten_named, unflatten_named
from jaxdl.distributed import make_mesh, processes, shard_dataset, shard_state
from jaxdl.distributed.processes import is_launched
from jaxdl.distributed.sharding import AXES
from jaxdl.errors import InputError
from jaxdl.runs.flags import Placement
from jaxdl.runs.signals import Signals
from jaxdl.saving.checkpoints import shared_checkpointer
from jaxdl.types import Dataset, History, RunState


class EndedError(Exception):
    """All processes have agreed to end. The argument is the exit code."""


def join_processes(config: Placement, settings: Mapping[str, Any] | None = None) -> None:
    """Connect to the other processes of the run, where the flags or the launcher name any.

    settings: must be equal in all processes. Raises InputError where they are not, and where `JAX_PLATFORMS` names a
    platform that is not available.
    """
    flags = config.coordinator, config.processes, config.process_id
    if config.distributed or is_launched() or any(flag is not None for flag in flags):
        distributed_module.initialize(*flags, about=settings)
    check_platform()


def mesh(config: Placement) -> Mesh | None:
    """Return the mesh that the flags ask for; None for a single device. Raises InputError for a wrong --mesh."""
    sizes: dict[str, int] = {}
    for axis in config.mesh:
        name, _, size = axis.partition("=")
        if name not in AXES or name in sizes or not size.isdecimal():
            raise InputError(f"--mesh must be AXIS=SIZE with each of {', '.join(AXES)} at most once, got {axis}.")
        sizes[name] = int(size)
    devices = jax.devices()
    if not sizes and len(devices) == 1:
        return None
    if processes.count() == 1 and sizes:
        devices = devices[: max(1, math.prod(sizes.values()))]
    return make_mesh(devices, **sizes)


Broadcast = Callable[[Path, RunState], None]


@contextmanager
def leading() -> Iterator[Broadcast]:
    """Yield a function that process 0 calls once: it sends the folder and the first state to the other processes.

    Where the block ends before that call, the other processes end too.
    """
    released = False

    def release(folder: Path, run_state: RunState) -> None:
        nonlocal released
        released = True
        if processes.count() > 1:
            processes.broadcast_text(json.dumps({"folder": str(folder.absolute())}))
            multihost_utils.broadcast_one_to_all(_on_host(run_state))

    try:
        yield release
    except InputError as error:
        if released or processes.count() == 1:
            raise
        print(f"error: {error}", file=sys.stderr)
        processes.broadcast_text(json.dumps({"code": 2}))
        raise EndedError(2) from None
    if not released and processes.count() > 1:
        processes.broadcast_text(json.dumps({"code": 0}))


def _receive(text: str = "") -> dict[str, Any]:
    """Return the message of process 0, which sends `text` itself. Raises EndedError where process 0 has ended."""
    message: dict[str, Any] = json.loads(processes.broadcast_text(text))
    if "code" in message:
        raise EndedError(message["code"])
    return message


def check_data(sha256: str) -> None:
    """End all processes with one message where their data differ. Every process calls this function.

    sha256: the checksum of this process's data. Raises EndedError where the data differ, or process 0 has ended.
    """
    if processes.count() == 1:
        return
    _receive(json.dumps({"reads": "data"}))
    sums = processes.all_gather(np.frombuffer(bytes.fromhex(sha256), np.int64))
    other = np.flatnonzero((sums != sums[0]).any(1))
    if len(other):
        first, second = (sums[index].tobytes().hex() for index in (0, other[0]))
        print(
            f"error: all processes of a run must read the same data, got SHA-256 {first[:12]}... in process 0 and "
            f"{second[:12]}... in process {other[0]}. Give each of them the same --data.",
            file=sys.stderr,
        )
        raise EndedError(2)


@contextmanager
def preparing() -> Iterator[None]:
    """Turn InputError into EndedError where process 0 has met bad input too, and has printed its message."""
    try:
        yield
    except InputError:
        _receive()
        raise


def receive_start(start: RunState) -> tuple[Path, RunState]:
    """Return the run's folder and first state, as process 0 sends them.

    start: the state before the first epoch, for its shapes. Raises EndedError where process 0 has ended.
    """
    message = _receive()
    arrays = multihost_utils.broadcast_one_to_all({name: np.zeros_like(leaf) for name, leaf in _on_host(start).items()})
    run_state: RunState = unflatten_named(start, {name: np.asarray(array) for name, array in arrays.items()})
    return Path(message["folder"]), run_state


def _on_host(run_state: RunState) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten_named(run_state).items()}


def place(
    run_state: RunState, train: Dataset, validation: Dataset | None, mesh: Mesh | None
) -> tuple[RunState, Dataset, Dataset | None]:
    """Return a state and its data sets sharded over a mesh; unchanged without a mesh."""
    if mesh is None:
        return run_state, train, validation
    rows = None if validation is None else shard_dataset(validation, mesh)
    return shard_state(run_state, mesh), shard_dataset(train, mesh), rows


class Saving(NamedTuple):
    """The arguments of `drive` that save a run."""

    save: Callable[[Any, History], None]
    should_pause: Callable[[], bool]
    on_pause: Callable[[RunState, list[dict[str, float]]], bool]


@contextmanager
def saving(
    folder: Path, about: Mapping[str, Any], *, every: float, warn: Callable[[str], None], interrupts: Signals
) -> Iterator[Saving]:
    """Save a run every `every` seconds and at its end.

    A single process saves while it trains. Several processes pause to save; where a signal asks one of them to end, all
    save and end.
    """
    if processes.count() == 1:
        with saving_module.checkpointer(folder, about, every=every, warn=warn) as save:
            yield Saving(save.__call__, lambda: False, lambda run_state, history: True)
        return
    with shared_checkpointer(folder, about, every=every, warn=warn) as checkpointer:

        def on_pause(run_state: RunState, history: list[dict[str, float]]) -> bool:
            signal, due = processes.all_gather([interrupts.received() or 0, checkpointer.due()]).max(0)
            if signal or due:
                checkpointer.save()
            return bool(signal)

        yield Saving(checkpointer.observe, checkpointer.due, on_pause)


def any_signal(interrupts: Signals) -> int:
    """Return the signal that came to any of the processes, 0 for none. Every process calls this function."""
    return int(processes.all_gather([interrupts.received() or 0]).max())
