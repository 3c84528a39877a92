"""How a run is watched while it trains."""

from __future__ import annotations

from dataclasses import dataclass, fields

from experiments.output import Output
from jaxdl.errors import InputError


@dataclass(frozen=True)
class Watching(Output):
    """The flags that say it; none of them changes a bit of the run."""

    tensorboard: bool = True
    """Write curves, pictures, settings and the network's graph for TensorBoard."""
    histograms: int = 0
    """For TensorBoard, histograms of each layer's weights and gradients every so many epochs; 0 for none."""
    profile: bool = False
    """Trace a few epochs, to be looked at in TensorBoard or Perfetto."""


# Flags of a command, not of a run.
FLAGS = {field.name for field in fields(Watching)}


def check(config: Watching) -> None:
    """Raises InputError for histograms that cannot be.

    >>> check(Watching(histograms=10))
    """
    if config.histograms < 0:
        raise InputError(f"--histograms must be 0 epochs or more, got {config.histograms}. Leave it out for none.")
    if config.histograms and not config.tensorboard:
        raise InputError("--histograms must come without --no-tensorboard, which it is written for. Leave one out.")
