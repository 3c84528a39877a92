"""Where a run is trained: which devices, and which processes share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from jaxdl import processes
from jaxdl.arguments import check_platform
from jaxdl.errors import InputError
from jaxdl.sharding import AXES, make_mesh


@dataclass(frozen=True)
class Placement:
    """The flags that say it."""

    mesh: tuple[str, ...] = ()
    """How devices are laid out, as in --mesh data=4 or --mesh data=4 model=2; by default all are on data."""
    distributed: bool = False
    """Share the run with the other processes of the job that SLURM, Open MPI, Kubernetes or a TPU pod has started."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where nothing else says who shares the run; with --processes and --process-id."""
    processes: int | None = None
    """How many processes share the run."""
    process_id: int | None = None
    """Which of them this is, from 0."""


# Another placement gives the same run, but for the last bits.
FLAGS = {"mesh", "distributed", "coordinator", "processes", "process_id"}


def join(config: Placement, about: Mapping[str, Any] | None = None) -> None:
    """Join the other processes that share the run, if the flags or the launcher say that there are any.

    about: what all of them must agree on.

    Raises InputError where they do not, and where `JAX_PLATFORMS` names a platform that is not there.
    """
    flags = config.coordinator, config.processes, config.process_id
    if config.distributed or processes.launched() or any(flag is not None for flag in flags):
        processes.join(*flags, about=about)
    check_platform()


def sizes(axes: tuple[str, ...]) -> dict[str, int]:
    """The sizes of a mesh's axes from flags. Raises InputError for any that is not AXIS=SIZE.

    >>> sizes(("data=4", "model=2"))
    {'data': 4, 'model': 2}
    """
    found: dict[str, int] = {}
    for axis in axes:
        name, _, size = axis.partition("=")
        if name not in AXES or name in found or not size.isdecimal():
            raise InputError(f"--mesh must be AXIS=SIZE with each of {', '.join(AXES)} at most once, got {axis}.")
        found[name] = int(size)
    return found


def mesh(config: Placement) -> Mesh | None:
    """The mesh of a run; None for the usual one, a single device.

    >>> mesh(Placement(mesh=("data=1",))).shape["data"]
    1
    """
    asked = sizes(config.mesh)
    devices = jax.devices()
    if not asked and len(devices) == 1:
        return None
    if processes.count() == 1 and asked:
        devices = devices[: max(1, _product(asked))]
    return make_mesh(devices, **asked)


def _product(asked: dict[str, int]) -> int:
    product = 1
    for size in asked.values():
        product *= size
    return product
