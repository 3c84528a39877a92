"""The flags that every run has."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from jaxdl.errors import InputError
from jaxdl.train.fit import check_seed

# In the texts below the fields, which --help prints, a line break stays a line break.


@dataclass(frozen=True)
class Output:
    """The flags of what a command prints."""

    quiet: bool = False
    """Print only warnings and errors, on standard error."""
    json: bool = False
    """Print only the results, as JSON, on standard output; warnings and errors go to standard error."""


@dataclass(frozen=True)
class Placement:
    """The flags of the devices and processes that train."""

    mesh: tuple[str, ...] = ()
    """Shape of the device mesh, such as --mesh data=4 or --mesh data=4 model=2; by default all devices are on data."""
    distributed: bool = False
    """Train together with the other processes of this job of SLURM, Open MPI, Kubernetes or a TPU pod."""
    coordinator: str | None = None
    """Address HOST:PORT of process 0, for processes that no launcher connects; needs --processes and --process-id."""
    processes: int | None = None
    """Number of processes that train together."""
    process_id: int | None = None
    """Number of this process, from 0 to one less than --processes."""


@dataclass(frozen=True)
class Watching(Output):
    """The flags of what is written about a run; none of them changes a bit of its results."""

    tensorboard: bool = True
    """Write curves, pictures, flags and the table of layers for TensorBoard."""
    histograms: int = 0
    """Write histograms of each layer's weights and gradients for TensorBoard every N epochs; 0 for none."""
    cost: bool = False
    """Print the cost of a training step: FLOPs, bytes of memory traffic, memory."""
    profile: bool = False
    """Record a trace of a few epochs, for TensorBoard or Perfetto."""


@dataclass(frozen=True)
class Training:
    """The flags of how a run trains, and of its folder."""

    seed: int = 0
    """Seed of the initial weights, of the shuffling and of dropout; the data sets do not depend on it."""
    epochs: int | None = None
    """Maximum number of epochs; by default that of the recipe or experiment, else 100."""
    batch_size: int | None = None
    """Examples in a training step; by default that of the recipe or experiment, else 32."""
    learning_rate: float | None = None
    """Learning rate of the optimizer; by default that of the recipe or experiment, else 0.001."""
    patience: int | None = None
    """Stop after this many epochs without a lower validation loss.
    By default the number of the recipe or experiment, else never."""
    workdir: Path | None = None
    """Folder of the run; by default a new folder runs/<time>-<recipe>.
    If the folder holds a run, interrupted or finished, that run is resumed.
    Flags that are left out then have the values of that run."""
    fresh: bool = False
    """Start a new run in --workdir; a folder of that name is renamed to <workdir>-old-N first."""
    save_every: float = 30.0
    """Seconds between checkpoints."""
    on_nan: Literal["stop", "continue"] = "stop"
    """If a weight or a loss is NaN or infinite: stop, with the step and the layer in the message, or continue."""
    compilation_cache: bool = True
    """Store compiled functions in the user's cache folder, so that the next run starts faster."""


@dataclass(frozen=True)
class RunFlags(Watching, Placement, Training):
    """The flags of every run. An experiment adds its own in a subclass, which may repeat a field for another default.

    `dataclass(frozen=True)` makes the subclass; `--help` prints the strings below its fields.

    >>> @dataclass(frozen=True)
    ... class Flags(RunFlags):
    ...     epochs: int = 500
    ...     width: int = 32
    ...     "Nodes in the hidden layer."
    >>> Flags(width=64).epochs
    500
    """


_WATCHING = {field.name for field in fields(Watching)}
# Flags of a command, not of a run. Another placement gives the same run, except for the last bits of its numbers.
COMMAND_FLAGS = {"workdir", "fresh", *_WATCHING, *(field.name for field in fields(Placement))}
NO_HYPERPARAMETERS = {"save_every", "on_nan", "compilation_cache"}  # flags of a run that change no result


def check_flags(flags: RunFlags) -> None:
    """Raise InputError for a flag of every run that is out of range. A flag that is None is not checked."""
    if flags.learning_rate is not None and not 1e-30 < flags.learning_rate < 1e30:
        bounds = "above 0 and finite (between 1e-30 and 1e30)"
        raise InputError(f"--learning-rate must be {bounds}, got {flags.learning_rate}. Try 0.001.")
    if flags.epochs is not None and flags.epochs < 1:
        raise InputError(f"--epochs must be at least 1, got {flags.epochs}. Leave it out for the recipe's.")
    check_seed(flags.seed)
    if flags.histograms < 0:
        raise InputError(f"--histograms must be 0 epochs or more, got {flags.histograms}. Leave it out for none.")
    if flags.histograms and not flags.tensorboard:
        raise InputError("--histograms must be given without --no-tensorboard, got both. Leave one of them out.")
    if not flags.save_every >= 0:
        raise InputError(f"--save-every must be at least 0 seconds, got {flags.save_every}. Leave it out for 30.")


def run_flags(flags: Any) -> dict[str, Any]:
    """Return the flags of a run and of its placement by name, without those of `Watching`."""
    return {name: value for name, value in asdict(flags).items() if name not in _WATCHING}
