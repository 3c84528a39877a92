"""The exercises of the lesson."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console

from experiments.lesson import training
from experiments.lesson.rows import Row, estimate
from experiments.lesson.training import Task, Trained, Truth, measured, trained
from experiments.weather.experiment import LOSSES, METRICS, RECIPES, Recipe, divide
from experiments.weather.features import first_days, of_place, oversampled, with_last_days, with_month
from experiments.weather.report import baselines
from jaxdl.baselines import root_mean_square
from jaxdl.data import take
from jaxdl.datasets import LABEL_SUFFIX, TARGET, ImageData, WeatherData, place_of
from jaxdl.ensembles import grid, sweep
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import accuracy
from jaxdl.nn import convnet, mlp
from jaxdl.runs.environment import compile_clock
from jaxdl.train import make_plan
from jaxdl.types import Dataset, Model, Plan

EXERCISES = "The lesson's exercises"
SIZES = "How small may the network be?"
NEXT = "The lesson's open questions"
BARBECUE = "Barbecue weather tomorrow?"
UNITS = {"sunshine": "hours", "precipitation": "cm", "pressure": "1000 hPa", "global_radiation": "100 W/m2"}
UNITS |= {"cloud_cover": "eighths", **dict.fromkeys(("wind_speed", "wind_gust"), "m/s")}
UNITS |= dict.fromkeys(("temp_mean", "temp_min", "temp_max"), "°C")
PRINTED = {  # by the lesson, for its light file
    "plain": {"train": 0.84, "test": 4.05},
    "small": {"validation": 3.2},
    "10, 5": {"validation": 3.2},
    "3, 3": {"validation": 3.1},
    "one place": {"test": 3.376},
    "all years": {"test": 3.23},
    "as today": {"test": 3.877},
}


class Exercise(NamedTuple):
    """A network of the lesson, and the rows that it sees."""

    section: str
    name: str
    what: str
    recipe: Recipe
    change: Callable[[WeatherData], WeatherData] = lambda dataset: dataset
    draw: Callable[[Dataset], Dataset] = lambda rows: rows  # of the training rows


def _last(days: int) -> Callable[[WeatherData], WeatherData]:
    return lambda dataset: with_last_days(dataset, days)


PLAIN, BATCHNORM = RECIPES["plain"], RECIPES["batchnorm"]
SMALLER = tuple(
    Exercise(SIZES, f"{first}, {second}", f"hidden layers of {first} and {second} nodes, 200 epochs", recipe)
    for first, second in ((100, 50), (50, 25), (25, 12), (10, 5), (5, 5), (3, 3), (2, 2))
    for recipe in [PLAIN._replace(hidden=(first, second))]
)
EXERCISED = (
    Exercise(EXERCISES, "early stopping", "plain, until 10 epochs bring nothing better", RECIPES["early-stopping"]),
    Exercise(EXERCISES, "BatchNorm", "early stopping, with BatchNorm on the inputs", BATCHNORM),
    Exercise(EXERCISES, "one place", "BatchNorm, 9 years of one place", RECIPES["basel"]),
    Exercise(EXERCISES, "all years", "BatchNorm, all years and places", RECIPES["all-years"]),
    Exercise(NEXT, "month", "BatchNorm, with the month as a feature", BATCHNORM, with_month),
    Exercise(NEXT, "3 days", "BatchNorm, the last 3 days as inputs", BATCHNORM, _last(3)),
    Exercise(NEXT, "7 days, one place", "9 years of one place, the last 7 days as inputs", RECIPES["basel"], _last(7)),
    Exercise(NEXT, "deeper", "BatchNorm, four layers of 64 nodes", BATCHNORM._replace(hidden=(64,) * 4)),
    Exercise(NEXT, "oversampled", "BatchNorm, days of rare targets drawn more often", BATCHNORM, draw=oversampled),
)
BBQ = (
    Exercise(BARBECUE, "BatchNorm, yes or no", "BatchNorm, 3 years, tells the chance of barbecue weather", BATCHNORM),
    Exercise(BARBECUE, "one place, yes or no", "the same, 9 years of one place", RECIPES["basel"]),
)


class Weather(NamedTuple):
    """What is to be told of tomorrow, from which days."""

    whole: WeatherData  # all days, all places
    target: str = TARGET  # a column, or labels of barbecue weather

    def labels(self) -> bool:
        """Whether yes or no is to be told, else a number."""
        return self.target.endswith(LABEL_SUFFIX)

    def place(self) -> str:
        """The place of the target."""
        return self.target.removesuffix(LABEL_SUFFIX) if self.labels() else place_of(self.target)

    def unit(self) -> str:
        """The unit of the figures; "units" where it is not known."""
        return "%" if self.labels() else UNITS.get(self.target.removeprefix(f"{self.place()}_"), "units")

    def dataset(self, exercise: Exercise) -> WeatherData:
        """The rows that an exercise sees."""
        recipe, dataset = exercise.recipe, first_days(self.whole, exercise.recipe.days)
        return exercise.change(dataset if recipe.places is None else of_place(dataset, self.place()))

    def printed(self, name: str) -> Mapping[str, float]:
        """What the lesson prints for the exercise of that name, which it does for its own target and data alone."""
        lesson = self.target == TARGET and not self.whole.source.startswith("simulated")
        return PRINTED.get(name, {}) if lesson else {}

    def row(self, exercise: Exercise, seeds: tuple[int, ...], values: dict[str, np.ndarray]) -> Row:
        """A row of the exercise beside what the lesson prints for it."""
        section, name, what = exercise.section, exercise.name, exercise.what
        figure, printed = "accuracy" if self.labels() else "RMSE", self.printed(name)
        return Row(section, name, what, figure, self.unit(), None, seeds, values, printed=printed)


def run(of: Weather, exercise: Exercise, seeds: tuple[int, ...]) -> Trained:
    """The exercise with every seed."""
    recipe, (_, sets) = exercise.recipe, divide(of.dataset(exercise))
    sets["train"] = exercise.draw(sets["train"])
    model = mlp(recipe.hidden, input_norm=recipe.input_norm)
    labels = "bbq" if of.labels() else "sunshine"
    task = Task(model, LOSSES[labels], METRICS[labels], sets, recipe.epochs, recipe.patience)
    return trained(of.row(exercise, seeds, {}), task)


def without_network(of: Weather, exercise: Exercise, rows: str) -> Iterator[Row]:
    """What needs no network, on the test rows of an exercise: as today, ridge regression, the more frequent label.

    rows: what these rows are called, such as ", all years".
    """
    dataset = of.dataset(exercise)
    chosen, sets = divide(dataset)
    true = np.asarray(sets["test"].targets[:, 0], np.float64)
    guesses = baselines(dataset, chosen)
    shown = {"as today": guesses["persistence"], "ridge regression": guesses["ridge"]}
    if of.labels():
        shown["always the same"] = np.full(len(true), np.mean(sets["train"].targets) > 0.5, float)
    for name, guess in shown.items():
        off = 100 * np.mean((guess > 0.5) == (true > 0.5)) if of.labels() else root_mean_square(guess - true)
        named = exercise._replace(name=f"{name}{rows}", what="without a network")
        yield of.row(named, (), {"test": np.array([off])})


def together(of: Weather, exercise: Exercise, done: Trained) -> Row:
    """The mean of all networks' predictions, as one."""
    _, sets = divide(of.dataset(exercise))
    errors = {name: done.outputs[name].mean(0) - sets[name].targets for name in done.outputs}
    count = len(done.row.seeds)
    named = exercise._replace(
        section=NEXT, name=f"all {count} together", what=f"the mean of the predictions of {count} networks"
    )
    return of.row(named, (), {name: np.array([root_mean_square(error)]) for name, error in errors.items()})


CIFAR10 = "CIFAR-10"


class Budget(NamedTuple):
    """How much is spent on pictures."""

    images: int  # of the training files, the first ones; the next ones are for validation
    validation: int
    epochs: int
    seeds: int
    rates: tuple[float, ...]  # of dropout; the first is none


QUICK = Budget(800, 300, 4, 3, (0.0, 0.2, 0.5, 0.95))
FULL = Budget(5000, 5000, 10, 5, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95))


def divide_images(dataset: ImageData, budget: Budget) -> dict[str, Dataset]:
    """The three sets; what a smaller data set lacks is taken from the images for validation."""
    count = len(dataset.train.sample_weight)
    images = min(budget.images, count - 1)
    rest = range(images, min(count, images + budget.validation))
    train = jax.tree.map(lambda leaf: leaf[:images], dataset.train)
    return {"train": train, "validation": take(dataset.train, list(rest)), "test": dataset.test}


def dropping(rate: Any) -> Plan:
    """The pooled network with dropout after each pooling; the rate may be traced."""
    model = convnet((50, 50, 50), widths=(50,), pool=True, dropout=rate)
    return make_plan(model, softmax_cross_entropy, optax.adam(1e-3), metrics=[accuracy])


def row_of(budget: Budget, name: str, what: str) -> Row:
    """A row before it is trained."""
    return Row(CIFAR10, name, what, "accuracy", "%", None, tuple(range(budget.seeds)), {})


def task_of(model: Model, dataset: ImageData, budget: Budget) -> Task:
    """What a network is to learn.

    One after the other: as a batch, convolutions of several networks take twice as long on a CPU.
    """
    return Task(model, softmax_cross_entropy, (accuracy,), divide_images(dataset, budget), budget.epochs, method="map")


def dense(dataset: ImageData, budget: Budget) -> Trained:
    """The network without convolutions."""
    what = f"{dataset.train.inputs[0].size:,} features, dense layers of 100 and 50"
    return trained(row_of(budget, "dense", what), task_of(convnet((), widths=(100, 50)), dataset, budget))


def small(dataset: ImageData, budget: Budget) -> Trained:
    """The network of two convolutions."""
    return trained(
        row_of(budget, "small", "two convolutions of 50 kernels"), task_of(convnet((50, 50)), dataset, budget)
    )


def names_of_rates(budget: Budget) -> tuple[str, ...]:
    """What the rows of `dropout` are called."""
    return tuple(f"dropout {rate:g}" if rate else "pooled" for rate in budget.rates)


def dropout(dataset: ImageData, budget: Budget) -> Iterator[Trained]:
    """The network with pooling, at every rate of dropout, as one program."""
    candidates, seeds = grid(rate=budget.rates), tuple(range(budget.seeds))
    sets = divide_images(dataset, budget)
    with compile_clock() as compiling:
        began = time.perf_counter()
        found = sweep(
            dropping, candidates, sets["train"], sets["validation"], seeds=seeds, epochs=budget.epochs, method="map"
        )
        seconds = (time.perf_counter() - began - compiling()) / len(candidates)
    # Dropout has no part in predictions, so one network measures all of them.
    task = task_of(found.plans[0].model, dataset, budget)
    for index, (rate, name) in enumerate(zip(budget.rates, names_of_rates(budget), strict=True)):
        what = f"pooled, dropout of {rate:.0%} after each pooling" if rate else "three convolutions of 50 with pooling"
        history = found.history[found.history["candidate"] == index].rename(columns={"seed": "member"})
        epochs = found.table.loc[found.table["candidate"] == index, "epochs"].to_numpy()
        row = row_of(budget, name, what)._replace(epochs=epochs, seconds=seconds)
        yield measured(row, task, history, found.final[index])


COPIED = {"100, 50": "plain", "10, 5": "small"}  # sizes that are exercises too


class Lesson(NamedTuple):
    """What the lesson came to."""

    rows: list[Row]
    done: dict[tuple[str, str], Trained]  # by section and name


def go(
    weathers: Sequence[Weather],
    pictures: Sequence[ImageData],
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


def cifar10_steps(dataset: ImageData, budget: Budget) -> Iterator[Step]:
    """The networks for pictures."""
    for name, train in (("dense", dense), ("small", small)):
        yield Step(CIFAR10, (name,), partial(lambda train: [train(dataset, budget)], train))
    names = names_of_rates(budget)
    yield Step(CIFAR10, names, lambda: dropout(dataset, budget))


def finished(step: Step, folder: Path) -> Iterator[Trained]:
    """What the step's seeds left: from the folder if they have finished before, else trained now and kept there."""
    found = [training.load(folder, step.section, name) for name in step.names]
    if all(done is not None for done in found):
        yield from (done for done in found if done is not None)
        return
    for done in step.train():
        training.save(folder, done)
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
