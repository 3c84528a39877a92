"""A run that several processes share."""

from __future__ import annotations

import json
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
from jaxdl.distributed.processes import count, is_launched
from jaxdl.distributed.sharding import AXES
from jaxdl.errors import InputError
from jaxdl.runs.flags import Placement
from jaxdl.runs.signals import Signals
from jaxdl.saving.checkpoints import shared_checkpointer
from jaxdl.types import Callback, Dataset, RunState


def join(config: Placement, about: Mapping[str, Any] | None = None) -> None:
    """Join the other processes that share the run, if the flags or the launcher say that there are any.

    about: what all of them must agree on.

    Raises InputError where they do not, and where `JAX_PLATFORMS` names a platform that is not there.
    """
    flags = config.coordinator, config.processes, config.process_id
    if config.distributed or is_launched() or any(flag is not None for flag in flags):
        distributed_module.initialize(*flags, about=about)
    check_platform()


def sizes(axes: tuple[str, ...]) -> dict[str, int]:
    """The sizes of a mesh's axes from flags. Raises InputError for any that is not AXIS=SIZE."""
    found: dict[str, int] = {}
    for axis in axes:
        name, _, size = axis.partition("=")
        if name not in AXES or name in found or not size.isdecimal():
            raise InputError(f"--mesh must be AXIS=SIZE with each of {', '.join(AXES)} at most once, got {axis}.")
        found[name] = int(size)
    return found


def mesh(config: Placement) -> Mesh | None:
    """The mesh of a run; None for the usual one, a single device."""
    asked = sizes(config.mesh)
    devices = jax.devices()
    if not asked and len(devices) == 1:
        return None
    if count() == 1 and asked:
        devices = devices[: max(1, _product(asked))]
    return make_mesh(devices, **asked)


def _product(asked: dict[str, int]) -> int:
    product = 1
    for size in asked.values():
        product *= size
    return product


Broadcast = Callable[[Path, RunState], None]


class EndedError(Exception):
    """All processes have agreed to end; the argument is the exit code."""


class Saving(NamedTuple):
    """What a loop asks and tells so that its run is saved, as `runs.drive` takes it."""

    keep: Callback
    pause: Callable[[], bool]
    paused: Callable[[RunState, list[dict[str, float]]], bool]


@contextmanager
def lead() -> Iterator[Broadcast]:
    """Gives what process 0 calls once: it lets the others go, with the run's folder and where it begins.

    Where the block ends before that, they end too. Where a process is alone there is nobody to tell.
    """
    went = False

    def go(folder: Path, begin: RunState) -> None:
        nonlocal went
        went = True
        if processes.count() > 1:
            processes.broadcast_text(json.dumps({"folder": str(folder.absolute())}))
            multihost_utils.broadcast_one_to_all(_on_host(begin))

    try:
        yield go
    except InputError as error:
        if went or processes.count() == 1:
            raise
        print(f"error: {error}", file=sys.stderr)
        processes.broadcast_text(json.dumps({"code": 2}))
        raise EndedError(2) from None
    if not went and processes.count() > 1:
        processes.broadcast_text(json.dumps({"code": 0}))


def check_data(checksum: str) -> None:
    """End all processes with one message where they have read different data; every process calls it.

    checksum: the SHA-256 of the data that this process has read. Raises EndedError where another process has ended, or
    the data differ.
    """
    if processes.count() == 1:
        return
    message = json.loads(processes.broadcast_text(json.dumps({"reads": "data"})))
    if "code" in message:
        raise EndedError(message["code"])
    sums = processes.all_gather(np.frombuffer(bytes.fromhex(checksum), np.int64))
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
    """What a process does before it follows. Where bad input ends that, process 0 may have met it too, and told it."""
    try:
        yield
    except InputError:
        message = json.loads(processes.broadcast_text(""))
        if "code" in message:
            raise EndedError(message["code"]) from None
        raise


def run_follower(start: RunState) -> tuple[Path, RunState]:
    """What process 0 lets this one go with: the run's folder, and where it begins.

    `start` is the progress before the first epoch. Raises EndedError where process 0 has ended instead.
    """
    message = json.loads(processes.broadcast_text(""))
    if "code" in message:
        raise EndedError(message["code"])
    arrays = multihost_utils.broadcast_one_to_all({name: np.zeros_like(leaf) for name, leaf in _on_host(start).items()})
    begin: RunState = unflatten_named(start, {name: np.asarray(array) for name, array in arrays.items()})
    return Path(message["folder"]), begin


def _on_host(run_state: RunState) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten_named(run_state).items()}


def placed(
    run_state: RunState, train: Dataset, validation: Dataset | None, mesh: Mesh | None
) -> tuple[RunState, Dataset, Dataset | None]:
    """A run and its rows on a mesh; as they are where there is none."""
    if mesh is None:
        return run_state, train, validation
    rows = None if validation is None else shard_dataset(validation, mesh)
    return shard_state(run_state, mesh), shard_dataset(train, mesh), rows


@contextmanager
def saving(
    folder: Path, about: Mapping[str, Any], *, every: float, warn: Callable[[str], None], interrupts: Signals
) -> Iterator[Saving]:
    """Saves a run every so many seconds and at its end, beside the training or, of many processes, at pauses.

    Where a signal asks one process to end, all of them save and end.
    """
    if processes.count() == 1:
        with saving_module.checkpointer(folder, about, every=every, warn=warn) as keep:
            yield Saving(keep, lambda: False, lambda run_state, history: True)
        return
    with shared_checkpointer(folder, about, every=every, warn=warn) as checkpointer:

        def paused(run_state: RunState, history: list[dict[str, float]]) -> bool:
            signal, due = processes.all_gather([interrupts.asked() or 0, checkpointer.due()]).max(0)
            if signal or due:
                checkpointer.save()
            return bool(signal)

        yield Saving(checkpointer.observe, checkpointer.due, paused)


def asked(interrupts: Signals) -> int:
    """The signal that came to any of the processes, 0 for none; all of them must call it."""
    return int(processes.all_gather([interrupts.asked() or 0]).max())
