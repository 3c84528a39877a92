"""Footprints: the compilations, dispatches, transfers, FLOPs and bytes of a run. They need no clock.

    python -m benchmarks.footprints [--write]

The networks of the recipes, on a few simulated examples and one CPU device. Prints each metric and the stored one of
footprints.json, and exits with 1 if they differ; `--write` stores the new metrics. Less is better for all of them.
"""

import argparse
import json
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
# After the first of these numbers of epochs calls have whole epochs; no recipe stops before the second.
FEWER, MORE = 4, 6

COMPILED = "/jax/core/compile/backend_compile_duration"
# Names of events in traces of JAX. A compiled function on several devices is one such event, and one more per device
# with a prefix such as "[0] ".
DISPATCHED = re.compile(r"\w*Executable::Execute(Helper\w*| \(.*\))")
READ = "np.asarray(jax.Array)"

R = TypeVar("R")
Metrics = dict[str, int | None]  # by name; None if the platform does not report it


class Footprints(NamedTuple):
    """The metrics of all cases, with the version and the platform; the JSON object has the same names."""

    jax: str  # version
    platform: str
    tolerances: dict[str, float]  # allowed relative growth of metrics that depend on version and platform
    cases: dict[str, Metrics]


class Case(NamedTuple):
    """A training run."""

    fit: Callable[[int], RunState]  # trains a new run for a number of epochs
    step: Callable[..., Any]  # a training step of (state, batch)
    batch: Dataset


class Traffic(NamedTuple):
    """The traffic between the host and its devices."""

    dispatches: int  # calls of compiled functions, on any number of devices
    fetches: int  # arrays read by the host


class Difference(NamedTuple):
    """A metric that differs from the stored one."""

    case: str
    metric: str
    stored: int | None
    got: int | None
    fails: bool

    def __str__(self) -> str:
        values = f"{self.case}: {self.metric}: stored {_format(self.stored)}, got {_format(self.got)}"
        if self.stored is None or self.got is None:
            return f"{values}. Store the new metrics: {WRITE}"
        if self.got > self.stored:
            return f"{values}. It got worse: undo the change, or store it if it is worth the cost: {WRITE}"
        return f"{values}. It got better: store it: {WRITE}"


# The counters.


def compilations(work: Callable[[], R]) -> tuple[int, R]:
    """Return the number of compilations in `work()`, and its result."""
    count = 0

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        nonlocal count
        count += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        result = work()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return count, result


def traffic(work: Callable[[], Any]) -> Traffic:
    """Return the traffic of `work()`.

    Counts reads by `np.asarray`, `np.array`, `jax.device_get`, `int`, `float`, `bool`, `item` and `tolist`, not by
    other functions of NumPy. Raises RuntimeError if no compiled function runs, or if JAX has renamed the events.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with _read_by_copy(), jax.profiler.trace(folder, profiler_options=options):
            jax.block_until_ready(work())
        (path,) = Path(folder).glob("plugins/profile/*/*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    events = [event.name for plane in data.planes for line in plane.lines for event in line.events]
    dispatches = sum(DISPATCHED.fullmatch(name) is not None for name in events)
    if not dispatches:
        raise RuntimeError(
            f"a trace of jax {jax.__version__} must name compiled functions, got none. See DISPATCHED in {__file__}."
        )
    return Traffic(dispatches, events.count(READ))


@contextmanager
def _read_by_copy() -> Iterator[None]:
    """Make NumPy copy arrays as from a GPU, which JAX traces: on a CPU it reads the memory of JAX directly."""

    def traced(read: Callable[..., Any]) -> Callable[..., Any]:
        def by_copy(value: Any, *arguments: Any, **keywords: Any) -> Any:
            return read(value.__array__() if isinstance(value, jax.Array) else value, *arguments, **keywords)

        return by_copy

    with patch.object(np, "asarray", traced(np.asarray)), patch.object(np, "array", traced(np.array)):
        yield


# The cases.


def weather_setup(recipe: Any) -> Setup:
    """Return the setup of a weather recipe on few simulated days."""
    return weather.build(weather.Config(recipe=recipe), datasets.load_weather("simulated:140"))


def cifar10_setup(recipe: Any) -> Setup:
    """Return the setup of a CIFAR-10 recipe on few simulated images."""
    return cifar10.build(cifar10.Config(recipe=recipe, train_size=70), datasets.load_cifar10("simulated:120"))


def make_case(setup: Setup, seeds: Sequence[int] = ()) -> Case:
    """Return the case of `fit`, or of `fit_seeds` with several seeds; a step then is a step of all seeds."""
    plan, step = setup.plan, plan_step(setup.plan, prepared=True)
    run = partial(
        partial(fit_seeds, seeds=seeds) if seeds else fit,
        *(setup.model, setup.loss, setup.optimizer, setup.train, setup.validation),
        metrics=setup.metrics,
        batch_size=plan.batch_size,
        early_stopping=plan.early_stopping,
    )
    return Case(
        lambda epochs: run(epochs=epochs).state,
        jax.vmap(step, in_axes=(0, None)) if seeds else step,
        take(setup.train, range(plan.batch_size)),
    )


CASES: dict[str, Callable[[], Case]] = {
    "weather plain": lambda: make_case(weather_setup("plain")),
    "weather batchnorm": lambda: make_case(weather_setup("batchnorm")),
    "weather plain, 4 seeds": lambda: make_case(weather_setup("plain"), SEEDS),
    "CIFAR-10 small": lambda: make_case(cifar10_setup("small")),
    "CIFAR-10 pooled": lambda: make_case(cifar10_setup("pooled")),
    "CIFAR-10 dropout": lambda: make_case(cifar10_setup("dropout")),
}


@contextmanager
def stopped_clock() -> Iterator[None]:
    """Stop the clock of the loop, so that calls grow to whole epochs on machines of every speed."""
    with patch.object(loop, "time", SimpleNamespace(perf_counter=lambda: 0.0)):
        yield


def footprint(make: Callable[[], Case]) -> Metrics:
    """Return the metrics of a case, with nothing compiled before."""

    def begin() -> tuple[Case, RunState]:
        case = make()
        return case, case.fit(2)

    # The first call of each kind compiles.
    for kind in ({}, {"convolves": True}, {"once": True}):
        compiler_options(**kind)
    jax.clear_caches()
    with stopped_clock():
        first, (case, run_state) = compilations(begin)
        second, _ = compilations(partial(case.fit, 2))
        fewer, more = (traffic(partial(case.fit, epochs)) for epochs in (FEWER, MORE))
    step, leaves = (case.step, run_state.train_state, case.batch), jax.tree.leaves(run_state)
    analysis: Any = lowered_step(*step).compile().cost_analysis()
    cost = cost_of(*step)
    dispatches, fetches = ((high - low) // (MORE - FEWER) for low, high in zip(fewer, more, strict=True))
    return {
        "compilations of a first fit": first,
        "compilations of a second fit": second,
        "dispatches an epoch": dispatches,
        "dispatches beside them": more.dispatches - MORE * dispatches,
        "fetches an epoch": fetches,
        "fetches beside them": more.fetches - MORE * fetches,
        "leaves carried": len(leaves),
        "bytes carried": sum(leaf.nbytes for leaf in leaves),
        "FLOPs of a step": flops(*step),
        "FLOPs of a step, by XLA": int(analysis["flops"]),
        "bytes read and written": cost.bytes,
        "bytes of arguments": cost.arguments,
        "bytes of temporaries": cost.temporaries,
    }


def measure(tolerances: dict[str, float]) -> Footprints:
    """Return the footprints of all cases on this machine."""
    cases = {name: footprint(make) for name, make in CASES.items()}
    return Footprints(jax.__version__, f"{jax.default_backend()} {platform.machine()}", tolerances, cases)


def compare(stored: Footprints, now: Footprints) -> list[Difference]:
    """Return the metrics that differ from the stored ones.

    Metrics with a tolerance are compared on the same version and platform only, and fail only if they grow beyond it.
    All other differences fail.
    """
    same, differences = (stored.jax, stored.platform) == (now.jax, now.platform), []
    for case in {**stored.cases, **now.cases}:
        before, after = stored.cases.get(case, {}), now.cases.get(case, {})
        for metric in {**before, **after}:
            old, new, tolerance = before.get(metric), after.get(metric), stored.tolerances.get(metric)
            if old == new or (tolerance is not None and not same):
                continue
            if tolerance is None or old is None or new is None:
                differences.append(Difference(case, metric, old, new, fails=True))
            elif abs(new - old) > tolerance * old:
                differences.append(Difference(case, metric, old, new, fails=new > old))
    return differences


def as_table(stored: Footprints, now: Footprints) -> Table:
    """Return a table of the metrics and the stored ones."""
    title = f"{now.platform}, jax {now.jax}; stored: {stored.platform}, jax {stored.jax}"
    table = Table("case", "metric", title=title, title_justify="left")
    for name in ("stored", "now", ""):
        table.add_column(name, justify="right")
    marks = {(each.case, each.metric): "fails" if each.fails else "better" for each in compare(stored, now)}
    for case, metrics in now.cases.items():
        for index, (metric, got) in enumerate(metrics.items()):
            old = stored.cases.get(case, {}).get(metric)
            table.add_row("" if index else case, metric, _format(old), _format(got), marks.get((case, metric), ""))
        table.add_section()
    return table


def _format(value: int | None) -> str:
    return "nothing" if value is None else f"{value:,}"


def read(path: Path = STORED) -> Footprints:
    """Return the stored footprints."""
    return Footprints(**json.loads(path.read_text()))


def write(footprints: Footprints, path: Path = STORED) -> None:
    """Store footprints."""
    path.write_text(json.dumps(footprints._asdict(), indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the new metrics")
    options = parser.parse_args()
    # The stored metrics are those of one CPU device.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    stored = read()
    now = measure(stored.tolerances)
    differences = compare(stored, now)
    Console(width=110).print(as_table(stored, now))
    print(*differences, sep="\n")
    if options.write:
        write(now)
    elif any(each.fails for each in differences):
        sys.exit(1)


if __name__ == "__main__":
    main()
