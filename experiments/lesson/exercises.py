"""The exercises of the lesson: their networks, data and baselines."""

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
from experiments.lesson.rows import Row, mean_over_seeds
from experiments.lesson.training import Task, Trained, Truth, evaluate, train
from experiments.weather.experiment import LOSSES, METRICS, RECIPES, Recipe, split_sets
from experiments.weather.features import first_days, of_place, oversampled, with_last_days, with_month
from experiments.weather.report import baselines
from jaxdl._environment import compile_clock
from jaxdl.baselines import root_mean_square
from jaxdl.data import take
from jaxdl.datasets import LABEL_SUFFIX, TARGET, ImageData, WeatherData, place_of
from jaxdl.ensembles import grid, sweep
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import accuracy
from jaxdl.nn import convnet, mlp
from jaxdl.train import make_plan
from jaxdl.types import Dataset, Model, Plan

EXERCISES = "The lesson's exercises"
SIZES = "How small may the network be?"
NEXT = "The lesson's open questions"
BARBECUE = "Barbecue weather tomorrow?"
UNITS = {"sunshine": "hours", "precipitation": "cm", "pressure": "1000 hPa", "global_radiation": "100 W/m2"}
UNITS |= {"cloud_cover": "eighths", **dict.fromkeys(("wind_speed", "wind_gust"), "m/s")}
UNITS |= dict.fromkeys(("temp_mean", "temp_min", "temp_max"), "°C")
PRINTED = {  # values that the lesson prints, for the light file
    "plain": {"train": 0.84, "test": 4.05},
    "small": {"validation": 3.2},
    "10, 5": {"validation": 3.2},
    "3, 3": {"validation": 3.1},
    "one place": {"test": 3.376},
    "all years": {"test": 3.23},
    "as today": {"test": 3.877},
}


class Exercise(NamedTuple):
    """A weather network of the lesson and its data."""

    section: str
    name: str
    what: str
    recipe: Recipe
    change: Callable[[WeatherData], WeatherData] = lambda dataset: dataset
    draw: Callable[[Dataset], Dataset] = lambda rows: rows  # samples the training rows


def _last(days: int) -> Callable[[WeatherData], WeatherData]:
    return lambda dataset: with_last_days(dataset, days)


PLAIN, BATCHNORM = RECIPES["plain"], RECIPES["batchnorm"]
SMALLER = tuple(
    Exercise(SIZES, f"{first}, {second}", f"hidden layers of {first} and {second} nodes, 200 epochs", recipe)
    for first, second in ((100, 50), (50, 25), (25, 12), (10, 5), (5, 5), (3, 3), (2, 2))
    for recipe in [PLAIN._replace(hidden=(first, second))]
)
EXERCISED = (
    Exercise(
        EXERCISES, "early stopping", "plain, stops after 10 epochs without improvement", RECIPES["early-stopping"]
    ),
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
    Exercise(
        BARBECUE, "BatchNorm, yes or no", "BatchNorm, 3 years, predicts the probability of barbecue weather", BATCHNORM
    ),
    Exercise(BARBECUE, "one place, yes or no", "the same, 9 years of one place", RECIPES["basel"]),
)


class Weather(NamedTuple):
    """The weather data with a target."""

    whole: WeatherData  # all days, all places
    target: str = TARGET  # a column, or labels of barbecue weather

    def labels(self) -> bool:
        """Return whether the target is yes or no, instead of a number."""
        return self.target.endswith(LABEL_SUFFIX)

    def place(self) -> str:
        """Return the place of the target."""
        return self.target.removesuffix(LABEL_SUFFIX) if self.labels() else place_of(self.target)

    def unit(self) -> str:
        """Return the unit of the metric; "units" where it is not known."""
        return "%" if self.labels() else UNITS.get(self.target.removeprefix(f"{self.place()}_"), "units")

    def dataset(self, exercise: Exercise) -> WeatherData:
        """Return the data of an exercise."""
        recipe, dataset = exercise.recipe, first_days(self.whole, exercise.recipe.days)
        return exercise.change(dataset if recipe.places is None else of_place(dataset, self.place()))

    def printed(self, name: str) -> Mapping[str, float]:
        """Return the values that the lesson prints for an exercise, by set; {} for other targets or data."""
        lesson = self.target == TARGET and not self.whole.source.startswith("simulated")
        return PRINTED.get(name, {}) if lesson else {}

    def row(self, exercise: Exercise, seeds: tuple[int, ...], values: dict[str, np.ndarray]) -> Row:
        """Return a row of the table for an exercise."""
        section, name, what = exercise.section, exercise.name, exercise.what
        figure, printed = "accuracy" if self.labels() else "RMSE", self.printed(name)
        return Row(section, name, what, figure, self.unit(), None, seeds, values, printed=printed)


def run_exercise(weather: Weather, exercise: Exercise, seeds: tuple[int, ...]) -> Trained:
    """Train the network of an exercise from every seed."""
    recipe, (_, sets) = exercise.recipe, split_sets(weather.dataset(exercise))
    sets["train"] = exercise.draw(sets["train"])
    model = mlp(recipe.hidden, input_norm=recipe.input_norm)
    labels = "bbq" if weather.labels() else "sunshine"
    task = Task(model, LOSSES[labels], METRICS[labels], sets, recipe.epochs, recipe.patience)
    return train(weather.row(exercise, seeds, {}), task)


def baselines_of(weather: Weather, exercise: Exercise, suffix: str) -> Iterator[Row]:
    """Yield the baselines on the test rows of an exercise: as today, ridge regression, the more frequent label.

    suffix: of their names, such as ", all years".
    """
    dataset = weather.dataset(exercise)
    chosen, sets = split_sets(dataset)
    true = np.asarray(sets["test"].targets[:, 0], np.float64)
    outputs = baselines(dataset, chosen)
    named = {"as today": outputs["persistence"], "ridge regression": outputs["ridge"]}
    if weather.labels():
        named["always the same"] = np.full(len(true), np.mean(sets["train"].targets) > 0.5, float)
    for name, output in named.items():
        value = 100 * np.mean((output > 0.5) == (true > 0.5)) if weather.labels() else root_mean_square(output - true)
        baseline = exercise._replace(name=f"{name}{suffix}", what="without a network")
        yield weather.row(baseline, (), {"test": np.array([value])})


def ensemble_of(weather: Weather, exercise: Exercise, networks: Trained) -> Row:
    """Return the row of the mean prediction of all networks."""
    _, sets = split_sets(weather.dataset(exercise))
    errors = {name: networks.outputs[name].mean(0) - sets[name].targets for name in networks.outputs}
    count = len(networks.row.seeds)
    named = exercise._replace(
        section=NEXT, name=f"all {count} together", what=f"the mean of the predictions of {count} networks"
    )
    return weather.row(named, (), {name: np.array([root_mean_square(error)]) for name, error in errors.items()})


CIFAR10 = "CIFAR-10"


class Budget(NamedTuple):
    """The sizes of the CIFAR-10 exercises."""

    images: int  # for training, the first of the training files
    validation: int  # images for validation, the next of the training files
    epochs: int
    seeds: int
    rates: tuple[float, ...]  # of dropout; the first is 0


QUICK = Budget(800, 300, 4, 3, (0.0, 0.2, 0.5, 0.95))
FULL = Budget(5000, 5000, 10, 5, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95))


def split_images(dataset: ImageData, budget: Budget) -> dict[str, Dataset]:
    """Return the three sets; where the data set is smaller, with fewer images for validation."""
    count = len(dataset.train.sample_weight)
    images = min(budget.images, count - 1)
    rest = range(images, min(count, images + budget.validation))
    train = jax.tree.map(lambda leaf: leaf[:images], dataset.train)
    return {"train": train, "validation": take(dataset.train, list(rest)), "test": dataset.test}


def dropout_plan(rate: Any) -> Plan:
    """Return the plan of the pooled network with dropout after each pooling; the rate may be a tracer."""
    model = convnet((50, 50, 50), widths=(50,), pool=True, dropout=rate)
    return make_plan(model, softmax_cross_entropy, optax.adam(1e-3), metrics=[accuracy])


def row_of(budget: Budget, name: str, what: str) -> Row:
    """Return a row of CIFAR-10 before its network is trained."""
    return Row(CIFAR10, name, what, "accuracy", "%", None, tuple(range(budget.seeds)), {})


def task_of(model: Model, dataset: ImageData, budget: Budget) -> Task:
    """Return the task of a CIFAR-10 network, without vmap, which takes twice as long for convolutions on a CPU."""
    return Task(model, softmax_cross_entropy, (accuracy,), split_images(dataset, budget), budget.epochs, method="map")


def dense(dataset: ImageData, budget: Budget) -> Trained:
    """Train the network without convolutions."""
    what = f"{dataset.train.inputs[0].size:,} features, dense layers of 100 and 50"
    return train(row_of(budget, "dense", what), task_of(convnet((), widths=(100, 50)), dataset, budget))


def small(dataset: ImageData, budget: Budget) -> Trained:
    """Train the network of two convolutions."""
    return train(row_of(budget, "small", "two convolutions of 50 kernels"), task_of(convnet((50, 50)), dataset, budget))


def names_of_rates(budget: Budget) -> tuple[str, ...]:
    """Return the names of the rows of `dropout`."""
    return tuple(f"dropout {rate:g}" if rate else "pooled" for rate in budget.rates)


def dropout(dataset: ImageData, budget: Budget) -> Iterator[Trained]:
    """Train the pooled network at every dropout rate, with one compiled function."""
    trials, seeds = grid(rate=budget.rates), tuple(range(budget.seeds))
    sets = split_images(dataset, budget)
    with compile_clock() as compiling:
        began = time.perf_counter()
        result = sweep(
            dropout_plan, trials, sets["train"], sets["validation"], seeds=seeds, epochs=budget.epochs, method="map"
        )
        seconds = (time.perf_counter() - began - compiling()) / len(trials)
    # Predictions do not depend on dropout, so one model evaluates all rates.
    task = task_of(result.plans[0].model, dataset, budget)
    for index, (rate, name) in enumerate(zip(budget.rates, names_of_rates(budget), strict=True)):
        what = f"pooled, dropout of {rate:.0%} after each pooling" if rate else "three convolutions of 50 with pooling"
        history = result.history[result.history["trial"] == index].rename(columns={"seed": "member"})
        epochs = result.table.loc[result.table["trial"] == index, "epochs"].to_numpy()
        row = row_of(budget, name, what)._replace(epochs=epochs, seconds=seconds)
        yield evaluate(row, task, history, result.final[index])


COPIES = {"100, 50": "plain", "10, 5": "small"}  # sizes that are also exercises


class Lesson(NamedTuple):
    """The results of the lesson."""

    rows: list[Row]
    trained: dict[tuple[str, str], Trained]  # by section and name


def run_all(
    weathers: Sequence[Weather],
    pictures: Sequence[ImageData],
    seeds: int,
    full: bool,
    folder: Path,
    console: Console,
) -> Lesson:
    """Run all steps one after the other; print the result of each row when it is finished."""
    lesson = Lesson([], {})
    steps: list[Step] = []
    if weathers:
        numbers, labels = weathers
        lesson.rows.extend(baseline_rows(numbers, labels))
        steps += weather_steps(numbers, labels, tuple(range(seeds)))
    steps += [step for dataset in pictures for step in cifar10_steps(dataset, FULL if full else QUICK)]
    for step in steps:
        for networks in load_or_train(step, folder):
            console.print(_summary(networks.row), markup=False, highlight=False, soft_wrap=True)
            for copy in (networks, *copies(networks, weathers)):
                lesson.rows.append(copy.row)
                lesson.trained[copy.row.section, copy.row.name] = copy
            if networks.row.name == "BatchNorm" and seeds > 1:
                lesson.rows.append(ensemble_of(weathers[0], EXERCISED[1], networks))
    order = (EXERCISES, SIZES, NEXT, BARBECUE, CIFAR10)
    lesson.rows.sort(key=lambda row: order.index(row.section))
    return lesson


def _summary(row: Row) -> str:
    test = mean_over_seeds(row.values["test"]).text(row.unit).replace("\n", ", ")
    return f"{row.section}: {row.name}, {row.figure} {test} {row.unit} on test rows, {row.seconds:.1f} s"


class Step(NamedTuple):
    """Rows of one section whose networks are trained together."""

    section: str
    names: tuple[str, ...]
    train: Callable[[], Iterable[Trained]]


def weather_steps(numbers: Weather, labels: Weather, seeds: tuple[int, ...]) -> Iterator[Step]:
    """Yield the steps of the weather: first the sizes, of which two are also exercises."""

    def step(weather: Weather, exercise: Exercise) -> Step:
        return Step(exercise.section, (exercise.name,), lambda: [run_exercise(weather, exercise, seeds)])

    yield from (step(numbers, exercise) for exercise in (*SMALLER, *EXERCISED))
    yield from (step(labels, exercise) for exercise in BBQ)


def cifar10_steps(dataset: ImageData, budget: Budget) -> Iterator[Step]:
    """Yield the steps of CIFAR-10."""
    for name, network in (("dense", dense), ("small", small)):
        yield Step(CIFAR10, (name,), partial(lambda network: [network(dataset, budget)], network))
    names = names_of_rates(budget)
    yield Step(CIFAR10, names, lambda: dropout(dataset, budget))


def load_or_train(step: Step, folder: Path) -> Iterator[Trained]:
    """Yield the networks of a step: loaded from the folder where all are there, else trained and saved."""
    loaded = [training.load(folder, step.section, name) for name in step.names]
    if None not in loaded:
        yield from (networks for networks in loaded if networks is not None)
        return
    for networks in step.train():
        training.save(folder, networks)
        yield networks


def baseline_rows(numbers: Weather, labels: Weather) -> list[Row]:
    """Return the rows of all baselines."""
    _, batchnorm, place, years, *_ = EXERCISED
    cases = [(numbers, batchnorm, ""), (numbers, place, ", one place"), (numbers, years, ", all years")]
    cases += [(labels, BBQ[0], ", yes or no"), (labels, BBQ[1], ", one place, yes or no")]
    return [row for case in cases for row in baselines_of(*case)]


def copies(networks: Trained, weathers: Sequence[Weather]) -> Iterator[Trained]:
    """Yield the networks of a size again as those of an exercise, where the exercise is the same."""
    row, name = networks.row, COPIES.get(networks.row.name)
    if name is not None:
        yield networks._replace(row=row._replace(section=EXERCISES, name=name, printed=weathers[0].printed(name)))


def truths(numbers: Weather, labels: Weather) -> dict[str, Truth]:
    """Return the targets of the networks with BatchNorm, and of those that predict yes or no from one place."""
    truth = {}
    for key, weather, exercise in (("numbers", numbers, EXERCISED[1]), ("labels", labels, BBQ[1])):
        dataset = weather.dataset(exercise)
        rows, sets = split_sets(dataset)
        validation, test = (np.asarray(sets[name].targets, np.float64) for name in ("validation", "test"))
        truth[key] = Truth(validation, test, np.asarray(dataset.today, np.float64)[rows["test"]])
    return truth
