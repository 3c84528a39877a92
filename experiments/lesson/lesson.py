"""The whole day of the lesson in one command, every figure with its error over seeds.

    python -m experiments.lesson

Writes the table, `lesson.csv`, `seeds.csv`, the pictures, and `lesson.html`, one file to hand out.
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
from jaxdl.datasets import LABEL_SUFFIX, TARGET, ImageData, WeatherData, load_cifar10, load_weather, place_of
from jaxdl.errors import InputError
from jaxdl.runs import environment, folders
from jaxdl.runs.console import print_warning
from jaxdl.runs.environment import STARTED
from jaxdl.runs.flags import Output
from jaxdl.runs.folders import locked, workdir
from jaxdl.runs.signals import NEVER, Signals

MOST_SEEDS = 4096
KIND = "lesson"  # of its folder
SIMULATED = "SIMULATED {0}: no figure of this lesson says anything about real {1}."
ABOUT = {
    EXERCISES: "What a network must beat needs no network: tomorrow will be as today. A large network learns its "
    "training rows by heart; early stopping, BatchNorm and more data are what the lesson tries against that.",
    SIZES: "The plain recipe, 200 epochs, with fewer and fewer nodes. The network to take is the smallest whose mean "
    "RMSE on validation rows is within one standard error of the best one's.",
    NEXT: "What the lesson leaves open, each tried on the network with BatchNorm.",
    BARBECUE: "The same days, another question: will tomorrow be without rain and warm, at least 18 degrees? The "
    "networks tell a chance; above one half counts as yes.",
    CIFAR10: "Ten classes of small photographs; a guess is right once in ten. By default a few epochs on a few hundred "
    "images, which leaves networks with pooling and dropout far from trained: with --full, on the lesson's budget, the "
    "order may be another.",
}


@dataclass(frozen=True)
class Flags:
    """What the lesson is about, and where it is kept."""

    workdir: Path | None = None
    """The folder to write to, by default runs/<time>-lesson. Rows that it holds already are not trained again."""
    data: str = "auto"
    """auto (the folder in JAXDL_DATA, else the cache, else a download, else simulated), a folder that holds both data
    sets, or simulated."""
    seeds: int = 16
    """Networks a row of the weather."""
    full: bool = False
    """For CIFAR-10, 5 seeds on 5,000 images, 10 epochs, and eleven rates of dropout, which takes well over half an hour
    on 2 cores."""
    target: str = TARGET
    """What the weather networks predict, a column such as OSLO_temp_max; its place is the one place of the lesson."""
    only: Literal["all", "weather", "cifar10"] = "all"
    """Which part of the lesson."""
    fresh: bool = False
    """Start over, and keep what is in --workdir under another name."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next lesson starts sooner."""


@dataclass(frozen=True)
class Config(Output, Flags):
    """Goes through the whole lesson with many seeds; writes tables, pictures, a page."""

    folder_kind: ClassVar[str] = KIND


class Data(NamedTuple):
    """What the lesson is about."""

    weather: tuple[Weather, ...]  # numbers and labels of the same days, or nothing
    pictures: tuple[ImageData, ...]  # one, or none

    def checksums(self) -> dict[str, str]:
        """By name."""
        named = zip(("weather", "labels"), (of.whole.sha256 for of in self.weather), strict=False)
        return dict([*named, *(("cifar10", of.sha256) for of in self.pictures)])

    def notes(self) -> list[str]:
        """What must not be overlooked, each once; that data are simulated among it, even where it was asked for."""
        found: list[tuple[WeatherData | ImageData, str]] = [(of.whole, "weather") for of in self.weather]
        found += [(of, "images") for of in self.pictures]
        notes = (of.note or SIMULATED.format(what.upper(), what) * _simulated(of) for of, what in found)
        return list(dict.fromkeys(note for note in notes if note))


def run(config: Config, console: Console, interrupts: Signals = NEVER) -> list[Row]:
    """Goes through the lesson and writes the folder; gives the rows."""
    if not 1 <= config.seeds <= MOST_SEEDS:
        raise InputError(f"--seeds must be from 1 to {MOST_SEEDS}, got {config.seeds}. Leave it out for 16.")
    if config.target.endswith(LABEL_SUFFIX):
        raise InputError(f"--target must be a column of the weather, got {config.target}. Its labels are told anyway.")
    if config.compilation_cache:
        environment.enable_compilation_cache()
    data = read(config)
    for note in data.notes():
        print_warning(note, console)
    with ExitStack() as stack:
        folder = workdir(config.workdir, config.fresh, KIND, console, KIND)
        stack.enter_context(locked(folder))
        if _claim(config, folder, data):
            console.print(f"The lesson in {folder} goes on after its finished rows.", markup=False, soft_wrap=True)
        interrupts.advise(f"interrupted; the same command with --workdir {folder} goes on after the finished rows.")
        lesson = exercises.go(data.weather, data.pictures, config.seeds, config.full, folder / "rows", console)
        truth = exercises.truths(*data.weather) if data.weather else {}
        said = [*findings(lesson.rows), *_calibration(lesson, truth)]
        _write(folder, config, data, lesson, truth, said)
    many = f", {config.seeds} seeds for the weather" if data.weather else ""
    console.print(table(lesson.rows, f"{len(lesson.rows)} rows{many}"))
    for text in said:
        console.print(f"- {text}", highlight=False, markup=False)
    end = f"{time.perf_counter() - STARTED:.0f} s. The page to hand out: {folder / 'lesson.html'}"
    console.print(end, markup=False, soft_wrap=True, highlight=False)
    return lesson.rows


def read(config: Config) -> Data:
    """The weather with its labels, and the pictures, as far as they are asked for.

    Raises InputError for a file, which holds one of the two, where both are asked for.
    """
    if config.only == "all" and Path(config.data).expanduser().is_file():
        raise InputError(
            f"--data must name a folder that holds the weather and the pictures, got the file {config.data}. Name the "
            "folder, or add --only weather or --only cifar10."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The notes are printed instead.
        weathers: tuple[Weather, ...] = ()
        if config.only != "cifar10":
            targets = (config.target, place_of(config.target) + LABEL_SUFFIX)
            weathers = tuple(Weather(load_weather(config.data, days=None, target=of), of) for of in targets)
        return Data(weathers, (load_cifar10(config.data),) if config.only != "weather" else ())


def _claim(config: Config, folder: Path, data: Data) -> bool:
    """Writes config.json, and says whether the folder holds rows already; raises InputError where they are others."""
    flags = {name: value for name, value in asdict(config).items() if name not in ("quiet", "json")}
    about = {"workdir": str(folder), "checksums": data.checksums(), **environment.environment()}
    now = {folders.KIND: KIND, **flags, **about}
    earlier = folders.earlier(folder, KIND)
    if earlier is not None:
        before = earlier.config
        for name in ("seeds", "full", "target"):
            if before.get(name, now[name]) != now[name]:
                raise InputError(
                    f"--{name} is {before[name]} in the lesson in {folder}, got {now[name]}. Leave it out, choose "
                    "another --workdir, or start over with --fresh."
                )
        for name, checksum in before.get("checksums", {}).items():
            if now["checksums"].get(name, checksum) != checksum:
                raise InputError(
                    f"the lesson in {folder} is on another data set of {name}. Choose another --workdir, or start "
                    "over with --fresh."
                )
        now["checksums"] = before.get("checksums", {}) | now["checksums"]
    folders.write_json(folder / folders.CONFIG, now)
    return earlier is not None


def _calibration(lesson: Lesson, truth: dict[str, Truth]) -> list[str]:
    done = lesson.done.get((EXERCISES, "BatchNorm"))
    found = None if done is None else bars(done, truth["numbers"])
    return [] if done is None or found is None else [sentence(found, len(done.row.seeds))]


def _write(folder: Path, config: Config, data: Data, lesson: Lesson, truth: dict[str, Truth], said: list[str]) -> None:
    """The tables, the pictures and the page."""
    as_frame(lesson.rows).to_csv(folder / "lesson.csv", index=False)
    as_seeds(lesson.rows).to_csv(folder / "seeds.csv", index=False)
    (folder / "figures").mkdir(exist_ok=True)
    pictures = []
    for drawn in figures(lesson.rows, lesson.done, truth, _quantity(config.target)):
        pictures.append(Picture(drawn.section, drawn.name, drawn.caption, png(drawn.figure)))
        name = re.sub(r"\W+", "-", drawn.name.lower()).strip("-")
        (folder / "figures" / f"{name}.png").write_bytes(pictures[-1].png)
    sections = {row.section for row in lesson.rows}
    measured = (any(not _simulated(of.whole) for of in data.weather), any(not _simulated(of) for of in data.pictures))
    surroundings = environment.environment()
    text = page(
        lesson.rows,
        pictures,
        said,
        data.notes(),
        title="Monitoring and refining training, with error bars",
        about={section: text for section, text in ABOUT.items() if section in sections},
        command=_command(config),
        sources=[source for source, known in zip(SOURCES, measured, strict=True) if known],
        made=f"{time.strftime('%Y-%m-%d')}, jax {surroundings['versions']['jax']}, {os.cpu_count()} cores",
    )
    (folder / "lesson.html").write_text(text, encoding="utf-8")


def _command(config: Config) -> str:
    """What makes the lesson anew; a folder of data is left out, because others have theirs."""
    given = [f"--seeds {config.seeds}"] + ["--full"] * config.full
    given += [f"--target {config.target}"] * (config.target != TARGET)
    given += [f"--only {config.only}"] * (config.only != "all")
    given += [f"--data {config.data}"] * config.data.startswith("simulated")
    return " ".join(["python -m experiments.lesson", *given])


def _simulated(of: WeatherData | ImageData) -> bool:
    return of.source.startswith("simulated")


def _quantity(target: str) -> str:
    return "sunshine hours" if target == TARGET else target.replace("_", " ").lower()


def use_all_cores() -> None:
    """Makes a device of each core, where JAX has not started yet: seeds are spread over devices."""
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
