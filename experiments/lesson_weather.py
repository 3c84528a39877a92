"""The lesson's weather exercises, and its open questions, as rows over many seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from experiments.features import first_days, of_place, oversampled, with_last_days, with_month
from experiments.lesson_rows import Row
from experiments.lesson_training import Task, Trained, trained
from experiments.weather import OBJECTIVES, RECIPES, Recipe, divide
from experiments.weather_report import baselines
from jaxdl.baselines import root_mean_square
from jaxdl.datasets import Dataset
from jaxdl.datasets.barbecue import SUFFIX
from jaxdl.datasets.weather import TARGET, place_of
from jaxdl.models import mlp
from jaxdl.types import Examples

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
    change: Callable[[Dataset], Dataset] = lambda dataset: dataset
    draw: Callable[[Examples], Examples] = lambda rows: rows  # of the training rows


def _last(days: int) -> Callable[[Dataset], Dataset]:
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

    whole: Dataset  # all days, all places
    target: str = TARGET  # a column, or labels of barbecue weather

    def labels(self) -> bool:
        """Whether yes or no is to be told, else a number."""
        return self.target.endswith(SUFFIX)

    def place(self) -> str:
        """The place of the target."""
        return self.target.removesuffix(SUFFIX) if self.labels() else place_of(self.target)

    def unit(self) -> str:
        """The unit of the figures; "units" where it is not known."""
        return "%" if self.labels() else UNITS.get(self.target.removeprefix(f"{self.place()}_"), "units")

    def dataset(self, exercise: Exercise) -> Dataset:
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
    task = Task(model, OBJECTIVES["bbq" if of.labels() else "sunshine"], sets, recipe.epochs, recipe.patience)
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
