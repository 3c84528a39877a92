"""What the speed run says, as Markdown."""

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

FULL, AIM = 50_000, 0.94  # training images of CIFAR-10, and the accuracy that the speed run is about
PUBLISHED = (
    "| airbench94_muon, published | 2.59 | 94.01 % | | | | | |\n"
    "| airbench94_compiled, published | 3.09 | 94.01 % | | | | | |"
)
SOURCE = (
    "Published, not measured here: airbench on one NVIDIA A100, of another network and, the first, another optimizer. "
    "From github.com/KellerJordan/cifar10-airbench; its paper, arXiv:2404.00498, has 3.29 s for the second."
)
CLOCK = (
    "All data are on the device before the clock starts. It runs from the drawing of new weights until the trained "
    "ones are there; measuring the test images is timed apart. The contestants take turns, a seed a round. Of each the "
    "first run is not counted: its compile time is what it took beyond the median of the others. +- is the standard "
    "deviation over runs; least and greatest are in brackets."
)


class Lap(NamedTuple):
    """A training of new weights."""

    seconds: float
    measuring: float  # seconds for the test images
    accuracy: float  # of them, by the averaged weights


class Course(NamedTuple):
    """What all are given to do."""

    config: Config  # settled
    built: Setup
    at_hand: int  # different training images
    flops: float  # of a run
    rate: float  # FLOP/s of a matrix product


def page(
    course: Course,
    around: str,
    laps: Mapping[str, Sequence[Lap]],
    missing: Sequence[Missing],
    errors: Mapping[str, str],
) -> str:
    """The figures; `laps` of each contestant, the first to warm up; `around` is the machine in words."""
    config = course.config
    count = sum(leaf.size for leaf in jax.tree.leaves(course.built.start.train_state.variables.params))
    recipe = (
        f"Recipe `strong`: a residual network of width {config.width} ({count:,} parameters), {config.epochs} epochs "
        f"of {config.train_size:,} images, {config.batch_size} a step, {config.dtype}, greatest learning rate "
        f"{config.learning_rate:g}; images flipped, cropped and cut out on the device, smoothed labels, momentum with "
        "a one-cycle schedule, averaged weights, predictions averaged over mirror images."
    )
    limit = (
        f"A run of jaxdl is {short(course.flops, 'FLOP')}, and a matrix product in {config.dtype} reaches "
        f"{short(course.rate, 'FLOP/s')} on this device, so it cannot take less than "
        f"{quantity(course.flops / course.rate)}. Of the limit: this over the mean seconds."
    )
    head = "| | seconds | accuracy | images a second | seconds an epoch | measuring, s | compile, s | of the limit |"
    rows = [_row(name, course, *done) for name, done in laps.items()]
    table = "\n".join([head, "|---" * 8 + "|", *rows, PUBLISHED])
    title = f"# CIFAR-10 speed run, {datetime.date.today()}"
    parts = [title, f"{around}.", recipe, verdict(course, laps[OURS.name]), table, CLOCK, limit, SOURCE]
    return "\n\n".join([*parts, *filter(None, [list_missing(missing, errors)])]) + "\n"


def _row(name: str, course: Course, first: Lap, *later: Lap) -> str:
    seconds, measuring, accuracy = zip(*later, strict=True)
    mean, epochs = statistics.mean(seconds), course.built.epochs
    ends = " - ".join(quantity(end(seconds), bare=True) for end in (min, max))
    cells = (
        f"{_mean(seconds)} ({ends})",
        f"{_mean([100 * share for share in accuracy], 4)} %",
        f"{course.config.train_size * epochs / mean:,.0f}",
        quantity(mean / epochs, bare=True),
        _mean(measuring),
        quantity(max(0.0, first.seconds - statistics.median(seconds)), bare=True),
        f"{100 * course.flops / mean / course.rate:.3g} %",
    )
    return f"| {name} | {' | '.join(cells)} |"


def _mean(values: Sequence[float], digits: int = 3) -> str:
    deviation = f" +- {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}g}{deviation}"


def verdict(course: Course, laps: Sequence[Lap]) -> str:
    """Whether jaxdl reaches 94 % in the mean, or why this cannot be said."""
    dataset, size = course.built.dataset, course.config.train_size
    if min(course.at_hand, size) < FULL or dataset.source.startswith("simulated"):
        again = f", repeated up to {size:,}, so that the seconds are those of so many" if course.at_hand < size else ""
        return (
            f"THE ACCURACIES SAY NOTHING ABOUT 94 %: {course.at_hand:,} different training images and "
            f"{len(dataset.test.sample_weight):,} test images are at hand ({dataset.source.partition(':')[0]}){again}."
        )
    seconds, _, accuracy = (statistics.mean(each) for each in zip(*laps[1:], strict=True))
    reached = "reached" if accuracy >= AIM else "NOT reached"
    return f"94 % in the mean: {reached} by jaxdl, {100 * accuracy:.2f} % after {seconds:.3g} s."
