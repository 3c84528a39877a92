"""What the lesson does, step by step: each trains some rows of the table, or finds them trained already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from experiments import lesson_cifar10, lesson_store
from experiments.lesson_calibration import Truth
from experiments.lesson_cifar10 import CIFAR10, FULL, QUICK, Budget
from experiments.lesson_rows import Row, estimate
from experiments.lesson_training import Trained
from experiments.lesson_weather import (
    BARBECUE,
    BBQ,
    EXERCISED,
    EXERCISES,
    NEXT,
    SIZES,
    SMALLER,
    Exercise,
    Weather,
    run,
    together,
    without_network,
)
from experiments.weather import divide
from jaxdl.datasets import Images

COPIED = {"100, 50": "plain", "10, 5": "small"}  # sizes that are exercises too


class Lesson(NamedTuple):
    """What the lesson came to."""

    rows: list[Row]
    done: dict[tuple[str, str], Trained]  # by section and name


def go(
    weathers: Sequence[Weather],
    pictures: Sequence[Images],
    seeds: int,
    full: bool,
    folder: Path,
    console: Console,
) -> Lesson:
    """All steps, one after the other; what each row came to is told as it is there."""
    lesson = Lesson([], {})
    steps: list[Step] = []
    if weathers:
        numbers, labels = weathers
        lesson.rows.extend(baseline_rows(numbers, labels))
        steps += weather_steps(numbers, labels, tuple(range(seeds)))
    steps += [step for dataset in pictures for step in cifar10_steps(dataset, FULL if full else QUICK)]
    for step in steps:
        for done in finished(step, folder):
            console.print(_told(done.row), markup=False, highlight=False, soft_wrap=True)
            for each in (done, *copies(done, weathers)):
                lesson.rows.append(each.row)
                lesson.done[each.row.section, each.row.name] = each
            if done.row.name == "BatchNorm" and seeds > 1:
                lesson.rows.append(together(weathers[0], EXERCISED[1], done))
    order = (EXERCISES, SIZES, NEXT, BARBECUE, CIFAR10)
    lesson.rows.sort(key=lambda row: order.index(row.section))
    return lesson


def _told(row: Row) -> str:
    test = estimate(row.values["test"]).text(row.unit).replace("\n", ", ")
    return f"{row.section}: {row.name}, {row.figure} {test} {row.unit} on test rows, {row.seconds:.1f} s"


class Step(NamedTuple):
    """Rows of one section that are trained together."""

    section: str
    names: tuple[str, ...]
    train: Callable[[], Iterable[Trained]]


def weather_steps(numbers: Weather, labels: Weather, seeds: tuple[int, ...]) -> Iterator[Step]:
    """The weather exercises: the sizes of the network first, of which two are exercises too."""

    def one(of: Weather, exercise: Exercise) -> Step:
        return Step(exercise.section, (exercise.name,), lambda: [run(of, exercise, seeds)])

    yield from (one(numbers, exercise) for exercise in (*SMALLER, *EXERCISED))
    yield from (one(labels, exercise) for exercise in BBQ)


def cifar10_steps(dataset: Images, budget: Budget) -> Iterator[Step]:
    """The networks for pictures."""
    for name, train in (("dense", lesson_cifar10.dense), ("small", lesson_cifar10.small)):
        yield Step(CIFAR10, (name,), partial(lambda train: [train(dataset, budget)], train))
    names = lesson_cifar10.names_of_rates(budget)
    yield Step(CIFAR10, names, lambda: lesson_cifar10.dropout(dataset, budget))


def finished(step: Step, folder: Path) -> Iterator[Trained]:
    """What the step's seeds left: from the folder if they have finished before, else trained now and kept there."""
    found = [lesson_store.load(folder, step.section, name) for name in step.names]
    if all(done is not None for done in found):
        yield from (done for done in found if done is not None)
        return
    for done in step.train():
        lesson_store.save(folder, done)
        yield done


def baseline_rows(numbers: Weather, labels: Weather) -> list[Row]:
    """The rows that need no network."""
    _, batchnorm, place, years, *_ = EXERCISED
    named = [(numbers, batchnorm, ""), (numbers, place, ", one place"), (numbers, years, ", all years")]
    named += [(labels, BBQ[0], ", yes or no"), (labels, BBQ[1], ", one place, yes or no")]
    return [row for of, exercise, rows in named for row in without_network(of, exercise, rows)]


def copies(done: Trained, weathers: Sequence[Weather]) -> Iterator[Trained]:
    """What is trained as a size of the network and is an exercise too."""
    name = COPIED.get(done.row.name)
    if name is not None:
        yield done._replace(row=done.row._replace(section=EXERCISES, name=name, printed=weathers[0].printed(name)))


def truths(numbers: Weather, labels: Weather) -> dict[str, Truth]:
    """What the networks with BatchNorm were to tell, and those that say yes or no from one place."""
    found = {}
    for key, of, exercise in (("numbers", numbers, EXERCISED[1]), ("labels", labels, BBQ[1])):
        dataset = of.dataset(exercise)
        rows, sets = divide(dataset)
        validation, test = (np.asarray(sets[name].targets, np.float64) for name in ("validation", "test"))
        found[key] = Truth(validation, test, np.asarray(dataset.today, np.float64)[rows["test"]])
    return found
