"""The flags that every experiment has."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from jaxdl.errors import InputError


@dataclass(frozen=True)
class Output:
    """The flags that say it."""

    quiet: bool = False
    """Print nothing but warnings and errors, which go to the standard error."""
    json: bool = False
    """Be quiet, and print the results as JSON at the end."""


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
PLACEMENT = {"mesh", "distributed", "coordinator", "processes", "process_id"}


@dataclass(frozen=True)
class Watching(Output):
    """The flags that say it; none of them changes a bit of the run."""

    tensorboard: bool = True
    """Write curves, pictures, settings and the table of layers for TensorBoard."""
    histograms: int = 0
    """For TensorBoard, histograms of each layer's weights and gradients every so many epochs; 0 for none."""
    cost: bool = False
    """Print what a training step costs: FLOPs, bytes, memory."""
    profile: bool = False
    """Trace a few epochs, to be looked at in TensorBoard or Perfetto."""


# Flags of a command, not of a run.
FLAGS = {field.name for field in fields(Watching)}
OWN = {"workdir", "fresh", *PLACEMENT, *FLAGS}
HOW = {"save_every", "on_nan", "compilation_cache"}  # that change nothing of what a run comes to


def check(config: Watching) -> None:
    """Raises InputError for histograms that cannot be.

    >>> check(Watching(histograms=10))
    """
    if config.histograms < 0:
        raise InputError(f"--histograms must be 0 epochs or more, got {config.histograms}. Leave it out for none.")
    if config.histograms and not config.tensorboard:
        raise InputError("--histograms must come without --no-tensorboard, which it is written for. Leave one out.")


def told(config: Any) -> dict[str, Any]:
    """The flags that a run is told; how it is watched belongs to the command.

    >>> told(Watching(cost=True))
    {}
    """
    return {name: value for name, value in asdict(config).items() if name not in FLAGS}
