"""How a run is watched while it trains, and what is told of it for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from experiments import placement
from experiments.experiment import Built, History
from experiments.output import Output
from jaxdl import bars, logs, profiles, tensorboard
from jaxdl.errors import InputError
from jaxdl.fitting import Observer
from jaxdl.summaries import Summary, as_markdown
from jaxdl.training import batches_of_epoch
from jaxdl.types import Progress
from jaxdl.units import table

CHARTS, RUN, PROFILE = "tensorboard", "run", "profile"  # folders


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
OWN = {"workdir", "fresh", *placement.FLAGS, *FLAGS}
HOW = {"save_every", "on_nan", "compilation_cache"}  # that change nothing of what a run comes to


def noticing(
    holds: Callable[[], bool], folder: Path, every: float, tell: Callable[[str], None]
) -> Callable[[Progress, History], None]:
    """Return a callback that tells, once, that a run has lost its folder. holds: whether its lock is still there."""
    looked, told = time.monotonic(), False

    def observe(progress: Progress, history: History) -> None:
        nonlocal looked, told
        if told or time.monotonic() - looked < every:
            return
        looked = time.monotonic()
        if not holds():
            told = True
            tell(
                f"{folder} was moved, or its lock removed, while the run goes on: another process could write there "
                "too. Start nothing else in it before this run has ended."
            )

    return observe


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


class Watchers(NamedTuple):
    """Who looks at a run."""

    observers: tuple[Observer, ...]  # after every epoch
    watchers: tuple[Observer, ...]  # after every chunk


NOBODY = Watchers((), ())


@contextmanager
def watched(
    config: Any,
    built: Built,
    folder: Path,
    console: Console,
    begin: Progress,
    history: History,
    shown: tuple[str, str],
    tell: Callable[[str], None],
) -> Iterator[Watchers]:
    """Those who look at a run that begins at `begin`, after the epochs in `history`, and write into its folder.

    begin: placed as it is trained. shown: what the bar shows of an epoch. tell: is told what could not be written.
    """
    done, (train, validation) = len(history), (built.sets[name] for name in ("train", "validation"))
    _, batches = batches_of_epoch(built.plan, train, validation)
    with ExitStack() as stack:
        observers = [logs.csv_file(folder / "history.csv", history)]
        watchers = [bars.progress_bar(built.epochs, shown, console=console, batches=batches, begin=done)]
        if config.tensorboard:
            observers.append(tensorboard.tensorboard(folder / CHARTS, begin=done, tell=tell))
        if config.histograms:
            every = config.histograms
            observers.append(
                tensorboard.distributions(folder / CHARTS, built.plan, train, begin, every=every, tell=tell)
            )
        if config.profile:
            watchers.append(profiles.tracing(folder / PROFILE, begin=done, last=built.epochs, tell=tell))
        yield Watchers(*(tuple(map(stack.enter_context, each)) for each in (observers, watchers)))


def describe(config: Any, network: Summary, folder: Path, tell: Callable[[str], None]) -> None:
    """Tells TensorBoard what the run is: its flags and its layers."""
    flags = {name: value for name, value in asdict(config).items() if name not in OWN}
    told = {name: value for name, value in flags.items() if name not in HOW}
    text = {"configuration": table(("flag", "value"), flags.items()), "layers": as_markdown(network)}
    with _told(tell):
        tensorboard.description(folder / CHARTS / RUN, text=text, hyperparameters=told)


def conclude(metrics: Mapping[str, Any], pictures: list[Path], folder: Path, tell: Callable[[str], None]) -> None:
    """Tells TensorBoard what came of the run."""
    with _told(tell):
        tensorboard.pictures(folder / CHARTS / "pictures", pictures, step=metrics["epochs"])
        # Of the best epoch alone: each is a column of a table.
        figures = {name: value for name, value in metrics.items() if name.endswith("_best")}
        tensorboard.results(folder / CHARTS / RUN, figures, step=metrics["epochs"])


@contextmanager
def _told(tell: Callable[[str], None]) -> Iterator[None]:
    """Charts are not worth a run: where they cannot be written, that is told."""
    try:
        yield
    except (InputError, OSError) as error:
        tell(f"TensorBoard is told less than usual: {error}")
