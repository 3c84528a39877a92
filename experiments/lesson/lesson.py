"""The whole workshop in one command, every value with its standard error over seeds.

    python -m experiments.lesson

It writes `lesson.csv`, `seeds.csv`, the figures, and `lesson.html`, a page to hand out.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import jax
from rich.console import Console

from experiments.lesson import exercises
from experiments.lesson.exercises import BARBECUE, CIFAR10, EXERCISES, NEXT, SIZES, Lesson, Weather
from experiments.lesson.figures import figures
from experiments.lesson.findings import bars, findings, sentence
from experiments.lesson.page import SOURCES, Picture, page, png
from experiments.lesson.rows import Row, as_frame, as_seeds, table
from experiments.lesson.training import Truth
from jaxdl._environment import enable_compilation_cache, environment
from jaxdl._startup import STARTED
from jaxdl.datasets import LABEL_SUFFIX, TARGET, ImageData, WeatherData, load_cifar10, load_weather, place_of
from jaxdl.errors import InputError
from jaxdl.runs import folders
from jaxdl.runs.console import print_warning
from jaxdl.runs.flags import Output
from jaxdl.runs.folders import locked, prepare_workdir
from jaxdl.runs.signals import NEVER, Signals

MAX_SEEDS = 4096
KIND = "lesson"  # of the folder, in its config.json
SIMULATED = "SIMULATED {0}: no value of this lesson says anything about real {1}."
ABOUT = {
    EXERCISES: "A network must beat baselines that need no network, such as: tomorrow will be as today. A large "
    "network overfits its training rows. The lesson tries early stopping, BatchNorm and more data against overfitting.",
    SIZES: "The plain recipe, 200 epochs, with fewer and fewer nodes. The recommended network is the smallest whose "
    "mean RMSE on validation rows is within one standard error of the lowest.",
    NEXT: "Questions that the lesson leaves open, each tried on the network with BatchNorm.",
    BARBECUE: "The same days with another target: will tomorrow be without rain, and have at least 18 degrees Celsius? "
    "The networks predict a probability; above one half counts as yes.",
    CIFAR10: "Small photographs of ten classes; a random guess is correct once in ten. By default the networks train a "
    "few epochs on a few hundred images, so that those with pooling and dropout are far from converged. With --full "
    "they train as long as in the lesson, and their order may differ.",
}


@dataclass(frozen=True)
class Flags:
    """The flags of the lesson."""

    workdir: Path | None = None
    """Folder of the lesson; by default a new folder runs/<time>-lesson.
    If the folder holds a lesson, that lesson is resumed: networks that are trained already are not trained again."""
    data: str = "auto"
    """Source of the data: a folder that holds both data sets, or one of
    auto: the folder in the variable JAXDL_DATA, else the cache, else a download, else simulated;
    simulated[:ROWS[:SEED]]: simulated weather and pictures."""
    seeds: int = 16
    """Number of seeds of each weather network, 1 to 4096."""
    full: bool = False
    """Train the CIFAR-10 networks with 5 seeds on 5,000 images for 10 epochs, at eleven dropout rates.
    This takes more than half an hour on 2 cores. By default 3 seeds, 800 images, 4 epochs, four rates."""
    target: str = TARGET
    """Column that the weather networks predict, such as OSLO_temp_max.
    The exercises with one place use the place of this column."""
    only: Literal["all", "weather", "cifar10"] = "all"
    """Part of the lesson to run."""
    fresh: bool = False
    """Start a new lesson in --workdir; a folder of that name is renamed to <workdir>-old-N first."""
    compilation_cache: bool = True
    """Store compiled functions in the user's cache folder, so that the next lesson starts faster."""


@dataclass(frozen=True)
class Config(Output, Flags):
    """Run all exercises of the lesson with many seeds, and write a page about them."""

    folder_kind: ClassVar[str] = KIND


class Data(NamedTuple):
    """The data sets of the lesson."""

    weather: tuple[Weather, ...]  # with numbers and with labels of the same days, or ()
    pictures: tuple[ImageData, ...]  # one or none

    def checksums(self) -> dict[str, str]:
        """Return the checksums of the data sets by name."""
        named = zip(("weather", "labels"), (weather.whole.sha256 for weather in self.weather), strict=False)
        return dict([*named, *(("cifar10", images.sha256) for images in self.pictures)])

    def notes(self) -> list[str]:
        """Return the warnings about the data, each once, also that the data are simulated."""
        named: list[tuple[WeatherData | ImageData, str]] = [(weather.whole, "weather") for weather in self.weather]
        named += [(images, "images") for images in self.pictures]
        notes = (data.note or SIMULATED.format(name.upper(), name) * _is_simulated(data) for data, name in named)
        return list(dict.fromkeys(note for note in notes if note))


def run(config: Config, console: Console, interrupts: Signals = NEVER) -> list[Row]:
    """Run the lesson and write its folder; return the rows."""
    if not 1 <= config.seeds <= MAX_SEEDS:
        raise InputError(f"--seeds must be from 1 to {MAX_SEEDS}, got {config.seeds}. Leave it out for 16.")
    if config.target.endswith(LABEL_SUFFIX):
        raise InputError(
            f"--target must be a column of the weather, got {config.target}. Leave it out: the "
            "lesson predicts the labels anyway."
        )
    if config.compilation_cache:
        enable_compilation_cache()
    data = read(config)
    for note in data.notes():
        print_warning(note, console)
    with ExitStack() as stack:
        folder = prepare_workdir(config.workdir, config.fresh, KIND, console, KIND)
        stack.enter_context(locked(folder))
        if _claim(config, folder, data):
            console.print(f"The lesson in {folder} resumes after its finished rows.", markup=False, soft_wrap=True)
        interrupts.set_message(
            f"interrupted; the same command with --workdir {folder} resumes after the finished rows."
        )
        lesson = exercises.run_all(data.weather, data.pictures, config.seeds, config.full, folder / "rows", console)
        truth = exercises.truths(*data.weather) if data.weather else {}
        sentences = [*findings(lesson.rows), *_calibration(lesson, truth)]
        _write(folder, config, data, lesson, truth, sentences)
    seeds = f", {config.seeds} seeds for the weather" if data.weather else ""
    console.print(table(lesson.rows, f"{len(lesson.rows)} rows{seeds}"))
    for text in sentences:
        console.print(f"- {text}", highlight=False, markup=False)
    end = f"{time.perf_counter() - STARTED:.0f} s. The page to hand out: {folder / 'lesson.html'}"
    console.print(end, markup=False, soft_wrap=True, highlight=False)
    return lesson.rows


def read(config: Config) -> Data:
    """Return the data sets of the parts that run. Raises InputError for a file where both parts need data."""
    if config.only == "all" and Path(config.data).expanduser().is_file():
        raise InputError(
            f"--data must be a folder that holds the weather and the pictures, got the file {config.data}. Give the "
            "folder, or add --only weather or --only cifar10."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The notes are printed instead.
        weathers: tuple[Weather, ...] = ()
        if config.only != "cifar10":
            targets = (config.target, place_of(config.target) + LABEL_SUFFIX)
            weathers = tuple(Weather(load_weather(config.data, days=None, target=name), name) for name in targets)
        return Data(weathers, (load_cifar10(config.data),) if config.only != "weather" else ())


def _claim(config: Config, folder: Path, data: Data) -> bool:
    """Write config.json; return whether the folder holds a lesson. Raises InputError for another lesson."""
    flags = {name: value for name, value in asdict(config).items() if name not in ("quiet", "json")}
    now = {folders.KIND: KIND, **flags, "workdir": str(folder), "checksums": data.checksums(), **environment()}
    files = folders.read_run(folder, KIND)
    if files is not None:
        before = files.config
        for name in ("seeds", "full", "target"):
            if before.get(name, now[name]) != now[name]:
                raise InputError(
                    f"--{name} is {before[name]} in the lesson in {folder}, got {now[name]}. Leave it out, choose "
                    "another --workdir, or start over with --fresh."
                )
        for name, checksum in before.get("checksums", {}).items():
            if now["checksums"].get(name, checksum) != checksum:
                raise InputError(
                    f"the lesson in {folder} has another data set of {name}. Choose another --workdir, or start "
                    "over with --fresh."
                )
        now["checksums"] = before.get("checksums", {}) | now["checksums"]
    folders.write_json(folder / folders.CONFIG, now)
    return files is not None


def _calibration(lesson: Lesson, truth: dict[str, Truth]) -> list[str]:
    networks = lesson.trained.get((EXERCISES, "BatchNorm"))
    intervals = None if networks is None else bars(networks, truth["numbers"])
    return [] if networks is None or intervals is None else [sentence(intervals, len(networks.row.seeds))]


def _write(folder: Path, config: Config, data: Data, lesson: Lesson, truth: dict[str, Truth], text: list[str]) -> None:
    """Write the tables, the figures and the page."""
    as_frame(lesson.rows).to_csv(folder / "lesson.csv", index=False)
    as_seeds(lesson.rows).to_csv(folder / "seeds.csv", index=False)
    (folder / "figures").mkdir(exist_ok=True)
    pictures = []
    for drawn in figures(lesson.rows, lesson.trained, truth, _quantity(config.target)):
        pictures.append(Picture(drawn.section, drawn.name, drawn.caption, png(drawn.figure)))
        name = re.sub(r"\W+", "-", drawn.name.lower()).strip("-")
        (folder / "figures" / f"{name}.png").write_bytes(pictures[-1].png)
    sections = {row.section for row in lesson.rows}
    measured = (
        any(not _is_simulated(weather.whole) for weather in data.weather),
        any(not _is_simulated(images) for images in data.pictures),
    )
    html = page(
        lesson.rows,
        pictures,
        text,
        data.notes(),
        title="Monitoring and refining training, with error bars",
        about={section: text for section, text in ABOUT.items() if section in sections},
        command=_command(config),
        sources=[source for source, known in zip(SOURCES, measured, strict=True) if known],
        made=f"{time.strftime('%Y-%m-%d')}, jax {jax.__version__}, {os.cpu_count()} cores",
    )
    (folder / "lesson.html").write_text(html, encoding="utf-8")


def _command(config: Config) -> str:
    """Return the command that repeats the lesson, without the folder of the data, which is local."""
    flags = [f"--seeds {config.seeds}"] + ["--full"] * config.full
    flags += [f"--target {config.target}"] * (config.target != TARGET)
    flags += [f"--only {config.only}"] * (config.only != "all")
    flags += [f"--data {config.data}"] * config.data.startswith("simulated")
    return " ".join(["python -m experiments.lesson", *flags])


def _is_simulated(data: WeatherData | ImageData) -> bool:
    return data.source.startswith("simulated")


def _quantity(target: str) -> str:
    return "sunshine hours" if target == TARGET else target.replace("_", " ").lower()


def use_all_cores() -> None:
    """Make each core a device, over which the seeds are sharded; without effect once JAX has started."""
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
