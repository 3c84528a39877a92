"""Footprints: what a run compiles, dispatches, reads, computes and carries. No clock is needed to see them grow.

    python -m benchmarks.footprints [--write]

The networks of the recipes, on a few simulated rows and one CPU device. Prints each figure beside the stored one of
footprints.json, and ends with 1 where they differ; `--write` stores what it finds instead. Less is better, always.
"""

import argparse
import json
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.flops import flops
from experiments.cifar10 import experiment as cifar10
from experiments.weather import experiment as weather
from jaxdl import datasets
from jaxdl._jit import compiler_options
from jaxdl.data import take
from jaxdl.ensembles import fit_seeds
from jaxdl.profiling import cost_of, lowered_step
from jaxdl.runs import Setup
from jaxdl.train import loop
from jaxdl.train.fit import fit
from jaxdl.train.step import plan_step
from jaxdl.types import Dataset, RunState

STORED = Path(__file__).with_suffix(".json")
WRITE = "python -m benchmarks.footprints --write"
SEEDS = range(4)
# At the first of these the pace has long grown to whole epochs, and before the last no recipe stops.
SOONER, LATER = 4, 6

COMPILED = "/jax/core/compile/backend_compile_duration"
# What they are called in traces of JAX. A program on several devices is one such event, and one more for each of them
# with "[0] " or the like in front.
DISPATCHED = re.compile(r"\w*Executable::Execute(Helper\w*| \(.*\))")
READ = "np.asarray(jax.Array)"

R = TypeVar("R")
# By name; None where the platform does not tell.
Figures = dict[str, int | None]


class Footprints(NamedTuple):
    """The figures of all cases, and what they may depend on. As JSON: an object of the same names."""

    jax: str  # its version
    platform: str
    tolerances: dict[
        str, float
    ]  # of figures that another version or platform changes: the share by which they may grow
    cases: dict[str, Figures]


class Case(NamedTuple):
    """Something to train."""

    fit: Callable[[int], RunState]  # the number of epochs, from the beginning
    step: Callable[..., Any]  # (state, batch) -> what a step gives
    batch: Dataset


class Traffic(NamedTuple):
    """What went on between the host and its devices."""

    dispatches: int  # programs that were run, on however many devices
    fetches: int  # arrays that the host read


class Difference(NamedTuple):
    """A figure that is not what is stored."""

    case: str
    figure: str
    stored: int | None
    got: int | None
    fails: bool

    def __str__(self) -> str:
        told = f"{self.case}: {self.figure}: stored {_shown(self.stored)}, got {_shown(self.got)}"
        if None in (self.stored, self.got):
            return f"{told}. Store what there is now: {WRITE}"
        if self.fails and self.got > self.stored:  # type: ignore[operator]
            return f"{told}. It got worse: undo that, or store it if it is worth its price: {WRITE}"
        return f"{told}. It got better: store it: {WRITE}"


# What is counted.


def compilations(work: Callable[[], R]) -> tuple[int, R]:
    """How many programs XLA compiles in `work()`, and what that gives."""
    found = 0

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        nonlocal found
        found += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        result = work()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return found, result


def traffic(work: Callable[[], Any]) -> Traffic:
    """The traffic of `work()` and of what it gives.

    An array is read by `np.asarray`, `np.array`, `jax.device_get`, `int`, `float`, `bool`, `item` and `tolist`; what
    other functions of NumPy read is not seen. Raises RuntimeError where no program runs: then the work is none, or this
    version of JAX calls it otherwise.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with _read_as_from_a_gpu(), jax.profiler.trace(folder, profiler_options=options):
            jax.block_until_ready(work())
        (path,) = Path(folder).glob("plugins/profile/*/*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    events = [event.name for plane in data.planes for line in plane.lines for event in line.events]
    dispatches = sum(DISPATCHED.fullmatch(name) is not None for name in events)
    if not dispatches:
        raise RuntimeError(
            f"a trace of jax {jax.__version__} must name the programs that run, got none. See DISPATCHED in {__file__}."
        )
    return Traffic(dispatches, events.count(READ))


@contextmanager
def _read_as_from_a_gpu() -> Iterator[None]:
    """Lets NumPy read arrays as it must where they lie on a GPU, which is traced.

    On a CPU it looks into JAX's own memory instead, which nobody is told.
    """

    def traced(read: Callable[..., Any]) -> Callable[..., Any]:
        def by_copy(value: Any, *arguments: Any, **keywords: Any) -> Any:
            return read(value.__array__() if isinstance(value, jax.Array) else value, *arguments, **keywords)

        return by_copy

    with patch.object(np, "asarray", traced(np.asarray)), patch.object(np, "array", traced(np.array)):
        yield


# What is trained.


def weather_case(recipe: Any) -> Setup:
    return weather.build(weather.Config(recipe=recipe), datasets.load_weather("simulated:140"))


def cifar10_case(recipe: Any) -> Setup:
    return cifar10.build(cifar10.Config(recipe=recipe, train_size=70), datasets.load_cifar10("simulated:120"))


def alone(built: Setup) -> Case:
    """A run of its own, by `fit`."""
    plan, train, validation = built.plan, built.sets["train"], built.sets["validation"]
    run = partial(fit, built.model, built.loss, built.optimizer, train, validation, metrics=built.metrics)
    return Case(
        lambda epochs: run(epochs=epochs, batch_size=plan.batch_size, early_stopping=plan.early_stopping).state,
        plan_step(plan, prepared=True),
        take(train, range(plan.batch_size)),
    )


def together(built: Setup) -> Case:
    """The same with several seeds at once, by `fit_seeds`; a step is one of all of them."""
    plan, train, validation = built.plan, built.sets["train"], built.sets["validation"]
    run = partial(
        fit_seeds, built.model, built.loss, built.optimizer, train, validation, metrics=built.metrics, seeds=SEEDS
    )
    step = jax.vmap(
        plan_step(plan, prepared=True),
        in_axes=(0, None),
    )
    return Case(
        lambda epochs: run(epochs=epochs, batch_size=plan.batch_size, early_stopping=plan.early_stopping).state,
        step,
        take(train, range(plan.batch_size)),
    )


CASES: dict[str, Callable[[], Case]] = {
    "weather plain": lambda: alone(weather_case("plain")),
    "weather batchnorm": lambda: alone(weather_case("batchnorm")),
    "weather plain, 4 seeds": lambda: together(weather_case("plain")),
    "CIFAR-10 small": lambda: alone(cifar10_case("small")),
    "CIFAR-10 pooled": lambda: alone(cifar10_case("pooled")),
    "CIFAR-10 dropout": lambda: alone(cifar10_case("dropout")),
}


@contextmanager
def endless_epochs() -> Iterator[None]:
    """Lets the pace find that no time passes: its chunks grow to whole epochs, on machines of every speed."""
    with patch.object(loop, "time", SimpleNamespace(perf_counter=lambda: 0.0)):
        yield


def footprint(make: Callable[[], Case]) -> Figures:
    """The figures of a case, from nothing compiled on."""

    def begin() -> tuple[Case, RunState]:
        case = make()
        return case, case.fit(2)

    # Asked once a process, which compiles.
    for kind in ({}, {"convolves": True}, {"once": True}):
        compiler_options(**kind)
    jax.clear_caches()
    with endless_epochs():
        first, (case, run_state) = compilations(begin)
        again, _ = compilations(partial(case.fit, 2))
        sooner, later = (traffic(partial(case.fit, epochs)) for epochs in (SOONER, LATER))
    step, leaves = (case.step, run_state.train_state, case.batch), jax.tree.leaves(run_state)
    cost, compiled = cost_of(*step), lowered_step(*step).compile().cost_analysis()
    dispatches, fetches = ((more - less) // (LATER - SOONER) for less, more in zip(sooner, later, strict=True))
    return {
        "compilations of a first fit": first,
        "compilations of a second fit": again,
        "dispatches an epoch": dispatches,
        "dispatches beside them": later.dispatches - LATER * dispatches,
        "fetches an epoch": fetches,
        "fetches beside them": later.fetches - LATER * fetches,
        "leaves carried": len(leaves),
        "bytes carried": sum(leaf.nbytes for leaf in leaves),
        "FLOPs of a step": flops(*step),
        "FLOPs of a step, by XLA": int(compiled["flops"]),
        "bytes read and written": cost.bytes,
        "bytes of arguments": cost.arguments,
        "bytes of temporaries": cost.temporaries,
    }


def measured(tolerances: dict[str, float]) -> Footprints:
    """What is found here and now."""
    cases = {name: footprint(make) for name, make in CASES.items()}
    return Footprints(jax.__version__, f"{jax.default_backend()} {platform.machine()}", tolerances, cases)


def compared(stored: Footprints, now: Footprints) -> list[Difference]:
    """Where the figures of now are not those stored; figures with a tolerance only on the same version and platform.

    All fail but those with a tolerance that got better; within it they are the same.
    """
    same, found = (stored.jax, stored.platform) == (now.jax, now.platform), []
    for case in {**stored.cases, **now.cases}:
        before, after = stored.cases.get(case, {}), now.cases.get(case, {})
        for figure in {**before, **after}:
            old, new, tolerance = before.get(figure), after.get(figure), stored.tolerances.get(figure)
            if old == new or (tolerance is not None and not same):
                continue
            if tolerance is None or old is None or new is None:
                found.append(Difference(case, figure, old, new, fails=True))
            elif abs(new - old) > tolerance * old:
                found.append(Difference(case, figure, old, new, fails=new > old))
    return found


def as_table(stored: Footprints, now: Footprints) -> Table:
    """Each figure of now beside the stored one."""
    title = f"{now.platform}, jax {now.jax}; stored: {stored.platform}, jax {stored.jax}"
    table = Table("case", "figure", title=title, title_justify="left")
    for name in ("stored", "now", ""):
        table.add_column(name, justify="right")
    told = {(each.case, each.figure): "fails" if each.fails else "better" for each in compared(stored, now)}
    for case, figures in now.cases.items():
        for place, (figure, got) in enumerate(figures.items()):
            old = stored.cases.get(case, {}).get(figure)
            table.add_row(case if not place else "", figure, _shown(old), _shown(got), told.get((case, figure), ""))
        table.add_section()
    return table


def _shown(value: int | None) -> str:
    return "nothing" if value is None else f"{value:,}"


def read(path: Path = STORED) -> Footprints:
    return Footprints(**json.loads(path.read_text()))


def write(footprints: Footprints, path: Path = STORED) -> None:
    path.write_text(json.dumps(footprints._asdict(), indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store what is found")
    options = parser.parse_args()
    # What is stored is of one CPU, whatever else there is.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    stored = read()
    now = measured(stored.tolerances)
    differences = compared(stored, now)
    Console(width=110).print(as_table(stored, now))
    print(*differences, sep="\n")
    if options.write:
        write(now)
    elif any(each.fails for each in differences):
        sys.exit(1)


if __name__ == "__main__":
    main()
