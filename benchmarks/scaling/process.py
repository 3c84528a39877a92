"""One process of the benchmarks of scaling, and how several are started: process 0 prints a line of JSON.

    python -m benchmarks.scaling.process --case wide                           # alone
    python -m jaxdl.launch -n 2 -- -m benchmarks.scaling.process --case wide   # one of two
    python -m benchmarks.scaling.process --case wide --overhead                # a mesh of one device, and none
    python -m jaxdl.launch -n 2 -- -m benchmarks.scaling.process --all-reduce  # seconds of an all-reduce by its bytes

Each process stays on one core. What is compiled before the first repetition does not count. The all-reduces follow each
other in a compiled loop, as those of training do.
"""

import argparse
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.scaling.cases import CASES, on_one_core, plan_of, rows_of
from jaxdl import distributed, start
from jaxdl.distributed import make_mesh, processes, shard_dataset, shard_state
from jaxdl.train import epochs
from jaxdl.types import Dataset, Plan, RunState

BYTES = (4, 2**14, 2**18, 2**22, 2**24)


def line_of(count: int, *arguments: str) -> dict:
    """Start so many processes with these flags, and return the JSON that process 0 prints."""
    launch = ["-m", "jaxdl.launch", "-n", str(count), "--"] if count > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, "-m", "benchmarks.scaling.process", *arguments], capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    found: dict = json.loads(lines[-1])
    return found


def epoch_seconds(plan: Plan, run_state: RunState, train: Dataset, last: int) -> tuple[float, float]:
    """Return the seconds of so many epochs, by the clock and of the CPU; other work hardly changes the latter."""
    began, used = time.perf_counter(), time.process_time()
    for _ in epochs(plan, run_state, train, last=last):
        pass
    return time.perf_counter() - began, time.process_time() - used


def epochs_of(plan: Plan, run_state: RunState, train: Dataset, seconds: float) -> int:
    """Return how many epochs take about so long, the same in every process; the first of two is for compilation."""
    epoch_seconds(plan, run_state, train, 1)
    microseconds = int(1e6 * epoch_seconds(plan, run_state, train, 1)[0]) + 1
    return max(1, round(1e6 * seconds / int(processes.all_gather([microseconds]).max())))


def all_reduce_seconds(size: int, times: int, repeats: int) -> float:
    """Return the median seconds of an all-reduce of so many bytes."""
    mesh = make_mesh()

    def body(_: object, x: jax.Array) -> jax.Array:
        # The shift keeps XLA from seeing that they could be one.
        return lax.pmean(x, "data") + 1

    def own(x: jax.Array) -> jax.Array:
        return lax.fori_loop(0, times, body, x)

    loop = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False))
    x = jax.make_array_from_callback(
        (size // 4,), NamedSharding(mesh, PartitionSpec()), lambda index: np.ones(size // 4, np.float32)[index]
    )
    jnp.asarray(loop(x)).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        loop(x).block_until_ready()
        seconds.append((time.perf_counter() - began) / times)
    return float(np.median(seconds))


def measure_all_reduces(repeats: int) -> dict:
    """Return the seconds of an all-reduce between the processes, by its bytes."""
    seconds = {size: all_reduce_seconds(size, 200 if size < 2**20 else 10, repeats) for size in BYTES}
    return {"processes": processes.count(), "seconds": seconds}


def measure_case(options: argparse.Namespace) -> dict:
    """Train a case as one of however many processes there are; return the seconds a step of each repetition."""
    case = CASES[options.case]
    batch = options.batch or case.batch
    plan, train = plan_of(case, batch), rows_of(case, case.steps * batch)
    usual = start(plan, train, key=jax.random.key(0)), jax.tree.map(jax.numpy.asarray, train)
    mesh = make_mesh() if processes.count() > 1 or options.overhead else None
    sharded = usual if mesh is None else (shard_state(usual[0], mesh), shard_dataset(train, mesh))
    ways = {"usual": usual, "sharded": sharded} if options.overhead else {"usual": sharded}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu_seconds: dict[str, list[float]] = {way: [] for way in ways}
    last = max(epochs_of(plan, *placed, options.seconds) for placed in ways.values())
    for repeat in range(options.repeats or 3):
        # In turn, and each as often the first.
        for way in list(ways)[:: (-1) ** repeat]:
            took, used = epoch_seconds(plan, *ways[way], last)
            seconds[way].append(took / (case.steps * last))
            cpu_seconds[way].append(used / (case.steps * last))
    return {
        "case": options.case,
        "processes": processes.count(),
        "batch": batch,
        "seconds_a_step": seconds,
        "cpu_seconds_a_step": cpu_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--case", choices=CASES)
    measured.add_argument("--all-reduce", action="store_true", help="all-reduces between processes, without a network")
    parser.add_argument("--batch", type=int, help="rows of a step over all processes")
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a repetition takes")
    parser.add_argument("--repeats", type=int, help="default: 3, of all-reduces 5")
    options = parser.parse_args()
    on_one_core()
    if options.all_reduce or processes.is_launched():
        distributed.initialize()
    line = measure_all_reduces(options.repeats or 5) if options.all_reduce else measure_case(options)
    if distributed.is_main():
        print(json.dumps(line), flush=True)
    distributed.shutdown()


if __name__ == "__main__":
    main()
