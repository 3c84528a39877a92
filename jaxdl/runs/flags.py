"""The flags that every run has."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from jaxdl.errors import InputError
from jaxdl.train.fit import check_seed


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
PLACEMENT = {field.name for field in fields(Placement)}


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


@dataclass(frozen=True)
class Training:
    """The flags that say how a run trains, and where it is kept."""

    seed: int = 0
    """Draws the initial weights, the order of rows, and what is random in training. The data do not depend on it."""
    epochs: int | None = None
    """Epochs at most; by default the experiment's, or 100."""
    batch_size: int | None = None
    """Rows a step; by default the experiment's, or 32."""
    learning_rate: float | None = None
    """Of the optimizer; by default the experiment's, or 0.001."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss; by default the experiment's, or never."""
    workdir: Path | None = None
    """The run's folder; by default a new one, runs/<time>-<recipe>. One that holds a run, cut off or finished, is gone
    on with; flags that are left out are then those of that run."""
    fresh: bool = False
    """Start over, and keep the run that is in --workdir under another name."""
    save_every: float = 30.0
    """Seconds between checkpoints."""
    on_nan: Literal["stop", "continue"] = "stop"
    """What to do where a weight or a loss is not finite: stop and say where it began, or go on."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""


@dataclass(frozen=True)
class RunFlags(Watching, Placement, Training):
    """The flags of every run; an experiment adds its own in a subclass, and names those again that it has defaults for.

    `dataclass(frozen=True)` makes the subclass; the texts below its fields are what `--help` prints.

    >>> @dataclass(frozen=True)
    ... class Flags(RunFlags):
    ...     epochs: int = 500
    ...     width: int = 32
    >>> Flags().epochs, Flags().save_every
    (500, 30.0)
    """


# Flags of a command, not of a run.
FLAGS = {field.name for field in fields(Watching)}
OWN = {"workdir", "fresh", *PLACEMENT, *FLAGS}
HOW = {"save_every", "on_nan", "compilation_cache"}  # that change nothing of what a run comes to


def check_flags(flags: RunFlags) -> None:
    """Raise InputError for flags of every run that cannot be; those that are left out are not looked at."""
    if flags.learning_rate is not None and not 1e-30 < flags.learning_rate < 1e30:
        bounds = "above 0 and finite (between 1e-30 and 1e30)"
        raise InputError(f"--learning-rate must be {bounds}, got {flags.learning_rate}. Try 0.001.")
    if flags.epochs is not None and flags.epochs < 1:
        raise InputError(f"--epochs must be at least 1, got {flags.epochs}. Leave it out for the recipe's.")
    check_seed(flags.seed)
    if flags.histograms < 0:
        raise InputError(f"--histograms must be 0 epochs or more, got {flags.histograms}. Leave it out for none.")
    if flags.histograms and not flags.tensorboard:
        raise InputError("--histograms must come without --no-tensorboard, which it is written for. Leave one out.")
    if not flags.save_every >= 0:
        raise InputError(f"--save-every must be at least 0 seconds, got {flags.save_every}. Leave it out for 30.")


def told(flags: Any) -> dict[str, Any]:
    """The flags that a run is told; how it is watched belongs to the command."""
    return {name: value for name, value in asdict(flags).items() if name not in FLAGS}
