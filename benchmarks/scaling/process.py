"""One process of the benchmark of scaling: process 0 prints a line of JSON.

    python -m benchmarks.scaling.process --case wide                                        # alone
    python -m jaxdl.launch -n 2 -- -m benchmarks.scaling.process --case wide       # one of two
    python -m benchmarks.scaling.process --case wide --overhead                             # a mesh of one device, and none

Each process stays on one core. What is compiled before the first repetition does not count.
"""

import argparse
import json
import time

import jax

from benchmarks.scaling.cases import CASES, on_one_core, plan_of, rows_of
from jaxdl import processes, start
from jaxdl.chunks import epochs
from jaxdl.sharding import make_mesh, place_progress, place_rows
from jaxdl.types import Examples, Plan, Progress


def seconds_of(plan: Plan, progress: Progress, train: Examples, last: int) -> tuple[float, float]:
    """Of so many epochs, by the clock and of the CPU; other work on the machine hardly changes the latter."""
    began, used = time.perf_counter(), time.process_time()
    for _ in epochs(plan, progress, train, last=last):
        pass
    return time.perf_counter() - began, time.process_time() - used


def epochs_of(plan: Plan, progress: Progress, train: Examples, seconds: float) -> int:
    """How many epochs take about so long, the same in every process; the first of two is for compilation."""
    seconds_of(plan, progress, train, 1)
    microseconds = int(1e6 * seconds_of(plan, progress, train, 1)[0]) + 1
    return max(1, round(1e6 * seconds / int(processes.gathered([microseconds]).max())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--batch", type=int, help="rows of a step over all processes")
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a repetition takes")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    on_one_core()
    if processes.launched():
        processes.join()
    case = CASES[options.case]
    batch = options.batch or case.batch
    plan, train = plan_of(case, batch), rows_of(case, case.steps * batch)
    usual = start(plan, train, key=jax.random.key(0)), jax.tree.map(jax.numpy.asarray, train)
    mesh = make_mesh() if processes.count() > 1 or options.overhead else None
    sharded = usual if mesh is None else (place_progress(usual[0], mesh), place_rows(train, mesh))
    ways = {"usual": usual, "sharded": sharded} if options.overhead else {"usual": sharded}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu_seconds: dict[str, list[float]] = {way: [] for way in ways}
    last = max(epochs_of(plan, *placed, options.seconds) for placed in ways.values())
    for repeat in range(options.repeats):
        # In turn, and each as often the first.
        for way in list(ways)[:: (-1) ** repeat]:
            took, used = seconds_of(plan, *ways[way], last)
            seconds[way].append(took / (case.steps * last))
            cpu_seconds[way].append(used / (case.steps * last))
    if processes.is_first():
        line = {"case": options.case, "processes": processes.count(), "batch": batch}
        print(json.dumps({**line, "seconds_a_step": seconds, "cpu_seconds_a_step": cpu_seconds}), flush=True)
    processes.leave()


if __name__ == "__main__":
    main()
