"""A process of the scaling benchmarks, and the function that starts them; process 0 prints a line of JSON.

    python -m benchmarks.scaling.process --case wide                           # one process
    python -m jaxdl.launch -n 2 -- -m benchmarks.scaling.process --case wide   # two processes
    python -m benchmarks.scaling.process --case wide --overhead                # without and with a mesh
    python -m jaxdl.launch -n 2 -- -m benchmarks.scaling.process --all-reduce  # seconds of an all-reduce by size

Each process is bound to one core. Compilation is not measured. The all-reduces run in a compiled loop, as in training.
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

from benchmarks.scaling.cases import CASES, on_one_core, plan_of, random_dataset
from jaxdl import distributed, start
from jaxdl.distributed import make_mesh, processes, shard_dataset, shard_state
from jaxdl.train import epochs
from jaxdl.types import Dataset, Plan, RunState

BYTES = (4, 2**14, 2**18, 2**22, 2**24)


def run_processes(count: int, *arguments: str) -> dict:
    """Run `count` processes with flags, and return the JSON line of process 0."""
    launch = ["-m", "jaxdl.launch", "-n", str(count), "--"] if count > 1 else []
    process = subprocess.run(
        [sys.executable, *launch, "-m", "benchmarks.scaling.process", *arguments], capture_output=True, text=True
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}:\n{process.stderr}")
    result: dict = json.loads(lines[-1])
    return result


def epoch_seconds(plan: Plan, run_state: RunState, train: Dataset, last: int) -> tuple[float, float]:
    """Return the wall and the CPU seconds of epochs; other work on the machine hardly changes the CPU seconds."""
    began, used = time.perf_counter(), time.process_time()
    for _ in epochs(plan, run_state, train, last=last):
        pass
    return time.perf_counter() - began, time.process_time() - used


def count_epochs(plan: Plan, run_state: RunState, train: Dataset, seconds: float) -> int:
    """Return the number of epochs that take about `seconds`, equal in all processes."""
    epoch_seconds(plan, run_state, train, 1)  # compiles
    microseconds = int(1e6 * epoch_seconds(plan, run_state, train, 1)[0]) + 1
    return max(1, round(1e6 * seconds / int(processes.all_gather([microseconds]).max())))


def all_reduce_seconds(size: int, times: int, repeats: int) -> float:
    """Return the median seconds of an all-reduce of `size` bytes."""
    mesh = make_mesh()

    def body(_: object, x: jax.Array) -> jax.Array:
        # Without the addition XLA could merge the all-reduces.
        return lax.pmean(x, "data") + 1

    def repeat(x: jax.Array) -> jax.Array:
        return lax.fori_loop(0, times, body, x)

    loop = jax.jit(
        jax.shard_map(repeat, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    )
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
    """Return the seconds of an all-reduce between the processes, by size in bytes."""
    seconds = {size: all_reduce_seconds(size, 200 if size < 2**20 else 10, repeats) for size in BYTES}
    return {"processes": processes.count(), "seconds": seconds}


def measure_case(options: argparse.Namespace) -> dict:
    """Train a case in this process and its peers; return the seconds per step of each repetition."""
    case = CASES[options.case]
    batch = options.batch or case.batch
    plan, train = plan_of(case, batch), random_dataset(case, case.steps * batch)
    run_state = start(plan, train, key=jax.random.key(0))
    placements: dict[str, tuple[RunState, Dataset]] = {"usual": (run_state, jax.tree.map(jnp.asarray, train))}
    if processes.count() > 1 or options.overhead:
        mesh = make_mesh()
        name = "sharded" if options.overhead else "usual"
        placements[name] = shard_state(run_state, mesh), shard_dataset(train, mesh)
    seconds: dict[str, list[float]] = {name: [] for name in placements}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in placements}
    last = max(count_epochs(plan, *placement, options.seconds) for placement in placements.values())
    for repeat in range(options.repeats or 3):
        # In turn, in alternating order.
        for name in list(placements)[:: (-1) ** repeat]:
            wall, cpu = epoch_seconds(plan, *placements[name], last)
            seconds[name].append(wall / (case.steps * last))
            cpu_seconds[name].append(cpu / (case.steps * last))
    return {
        "case": options.case,
        "processes": processes.count(),
        "batch": batch,
        "seconds_a_step": seconds,
        "cpu_seconds_a_step": cpu_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--case", choices=CASES)
    mode.add_argument(
        "--all-reduce", action="store_true", help="measure all-reduces between processes, without training"
    )
    parser.add_argument("--batch", type=int, help="examples of a step over all processes")
    parser.add_argument("--overhead", action="store_true", help="measure without and with a mesh")
    parser.add_argument("--seconds", type=float, default=1.0, help="target seconds of a repetition")
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
