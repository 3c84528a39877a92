"""The results page of the speed run, as Markdown."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from benchmarks.contestants.start import OURS, Missing
from benchmarks.report import list_missing, quantity
from experiments.cifar10.experiment import Config
from jaxdl._format import short
from jaxdl.runs import Setup

FULL, AIM = 50_000, 0.94  # training images of CIFAR-10, and the target accuracy
PUBLISHED = (
    "| airbench94_muon, published | 2.59 | 94.01 % | | | | | |\n"
    "| airbench94_compiled, published | 3.09 | 94.01 % | | | | | |"
)
SOURCE = (
    "Published, not measured here: airbench on one NVIDIA A100, with another network and, in the first line, another "
    "optimizer. Source: github.com/KellerJordan/cifar10-airbench; its paper, arXiv:2404.00498, has 3.29 s for the last."
)
CLOCK = (
    "All data are on the device before the clock starts. The seconds include the initialization and the training of "
    "the network; the evaluation of the test images is timed separately. The contestants take turns, with a new seed "
    "each round. The first run of each is not counted; its compile time is its excess over the median of the others. "
    "+- is the standard deviation over runs; least and greatest are in brackets."
)


class RunResult(NamedTuple):
    """The result of a run."""

    seconds: float  # of training
    evaluation: float  # seconds of the evaluation of the test images
    accuracy: float  # on the test images, with averaged weights


class Workload(NamedTuple):
    """The work of all contestants."""

    config: Config  # with all defaults resolved
    setup: Setup
    images: int  # different training images
    flops: float  # of a run
    rate: float  # FLOP/s of a matrix product


def page(
    workload: Workload,
    machine: str,
    results: Mapping[str, Sequence[RunResult]],
    missing: Sequence[Missing],
    errors: Mapping[str, str],
) -> str:
    """Return the page. The first result of each contestant is its warm-up."""
    config = workload.config
    count = sum(leaf.size for leaf in jax.tree.leaves(workload.setup.start.train_state.variables.params))
    recipe = (
        f"Recipe `strong`: a residual network of width {config.width} ({count:,} parameters), {config.epochs} epochs "
        f"of {config.train_size:,} images, {config.batch_size} per step, {config.dtype}, maximum learning rate "
        f"{config.learning_rate:g}; flips, crops and cutout on the device, label smoothing, momentum with a "
        "one-cycle schedule, averaged weights, predictions averaged over mirror images."
    )
    limit = (
        f"A run of jaxdl is {short(workload.flops, 'FLOP')}, and a matrix product in {config.dtype} reaches "
        f"{short(workload.rate, 'FLOP/s')} on this device, so a run cannot take less than "
        f"{quantity(workload.flops / workload.rate)}. Of the limit: this time over the mean seconds."
    )
    head = (
        "| | seconds | accuracy | images per second | seconds per epoch | evaluation, s | compile, s | of the limit |"
    )
    lines = [_line(name, workload, *runs) for name, runs in results.items()]
    table = "\n".join([head, "|---" * 8 + "|", *lines, PUBLISHED])
    title = f"# CIFAR-10 speed run, {datetime.date.today()}"
    parts = [title, f"{machine}.", recipe, verdict(workload, results[OURS.name]), table, CLOCK, limit, SOURCE]
    return "\n\n".join([*parts, *filter(None, [list_missing(missing, errors)])]) + "\n"


def _line(name: str, workload: Workload, first: RunResult, *later: RunResult) -> str:
    seconds, evaluation, accuracy = zip(*later, strict=True)
    mean, epochs = statistics.mean(seconds), workload.setup.epochs
    ends = " - ".join(quantity(end(seconds), bare=True) for end in (min, max))
    cells = (
        f"{_mean(seconds)} ({ends})",
        f"{_mean([100 * value for value in accuracy], 4)} %",
        f"{workload.config.train_size * epochs / mean:,.0f}",
        quantity(mean / epochs, bare=True),
        _mean(evaluation),
        quantity(max(0.0, first.seconds - statistics.median(seconds)), bare=True),
        f"{100 * workload.flops / mean / workload.rate:.3g} %",
    )
    return f"| {name} | {' | '.join(cells)} |"


def _mean(values: Sequence[float], digits: int = 3) -> str:
    deviation = f" +- {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}g}{deviation}"


def verdict(workload: Workload, results: Sequence[RunResult]) -> str:
    """Return whether jaxdl reaches 94 % in the mean, or why the data cannot show it."""
    dataset, size = workload.setup.dataset, workload.config.train_size
    if min(workload.images, size) < FULL or dataset.source.startswith("simulated"):
        repeated = f", repeated up to {size:,} to time a full run" if workload.images < size else ""
        return (
            f"THE ACCURACIES SAY NOTHING ABOUT 94 %: the data have {workload.images:,} different training images and "
            f"{len(dataset.test.sample_weight):,} test images ({dataset.source.partition(':')[0]}){repeated}."
        )
    seconds, _, accuracy = (statistics.mean(each) for each in zip(*results[1:], strict=True))
    reached = "reached" if accuracy >= AIM else "NOT reached"
    return f"94 % in the mean: {reached} by jaxdl, {100 * accuracy:.2f} % after {seconds:.3g} s."
