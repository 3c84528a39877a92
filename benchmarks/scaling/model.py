"""A model of the time of a step by the number of devices.

    python -m benchmarks.scaling.model             # assumed machines
    python -m benchmarks.scaling.model --measure   # and the cores of this machine, with gloo
    python -m benchmarks.scaling.model --latency 5e-5 --bandwidth 1e9 --rate 3e10 --cases wide

With n devices and a fixed batch, a step takes

    fixed + FLOPs / (n rate) + sum over its all-reduces of (hops(n) latency + 2 (n - 1) / n bytes / bandwidth)

FLOPs, all-reduces and bytes are read from the compiled function. Hops are 2 (n - 1) in a ring, 2 ceil(log2 n) in a
tree, and 2 (a - 1) along each of two sides a of a torus. The factor of the bytes is that of a ring: Patarasuk and Yuan,
J. Parallel Distrib. Comput. 69 (2009). The model ignores input, because the data are on every device, the work once per
epoch, and overlap. Machines marked as assumed were not measured.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.scaling.cases import CASES, Case, machine, plan_of, random_dataset
from benchmarks.scaling.collectives import Collective, collectives
from benchmarks.scaling.process import run_processes
from jaxdl import start
from jaxdl.data.batches import evaluation_rows, training_rows
from jaxdl.distributed import make_mesh, shard_dataset, shard_state
from jaxdl.train.loop import lowered_chunk
from jaxdl.types import Dataset, Plan, RunState


def ring(devices: int) -> float:
    """Return the hops of an all-reduce in a ring."""
    return 2.0 * (devices - 1)


def tree(devices: int) -> float:
    """Return the hops of an all-reduce in a tree."""
    return 2.0 * math.ceil(math.log2(devices))


def torus(devices: int) -> float:
    """Return the hops of an all-reduce in a square torus."""
    return 4.0 * (math.sqrt(devices) - 1)


class Machine(NamedTuple):
    name: str
    rate: float  # FLOP/s of a step on a device
    latency: float  # seconds of a hop
    bandwidth: float  # bytes per second that a device sends
    hops: Callable[[int], float]  # of an all-reduce, by the number of devices
    separate: bool  # XLA sends each array of an all-reduce separately, as with gloo
    fixed: float  # constant seconds of a step: kernel launches
    devices: tuple[int, ...]


class Work(NamedTuple):
    """The FLOPs and the all-reduces of a step."""

    flops: float
    all_reduces: list[Collective]


# Assumed: a fifth of the float32 peak of 67 TFLOP/s, and half of the 900 GB/s of NVLink, which counts both directions
# (as published by NVIDIA for the H100 SXM); 15 us for an all-reduce over 8 GPUs; 100 kernels of 2 us.
GPUS = Machine("H100 on NVLink (assumed)", 0.2 * 67e12, 2.5e-6, 450e9, tree, False, 200e-6, (1, 2, 4, 8))
# Assumed: a fifth of the bfloat16 peak of 197 TFLOP/s, and a quarter of that for float32; half of the 1600 Gbit/s of
# the links (as published by Google for v5e); 1 us per hop; 50 us of kernel launches.
TPUS = Machine("TPU v5e slice (assumed)", 0.05 * 197e12, 1e-6, 100e9, torus, False, 50e-6, (1, 8, 64, 256))


def step_seconds(work: Work, machine: Machine, devices: int) -> float:
    """Return the modelled seconds of a step."""
    messages = sum(len(one.sizes) if machine.separate else 1 for one in work.all_reduces)
    sent = 2 * (devices - 1) / devices * sum(one.bytes for one in work.all_reduces)
    waiting = machine.hops(devices) * machine.latency * messages
    return machine.fixed + work.flops / (devices * machine.rate) + waiting + sent / machine.bandwidth


def compiled_chunk(
    plan: Plan, run_state: RunState, train: Dataset, validation: Dataset | None = None
) -> jax.stages.Compiled:
    """Compile several training steps for the devices of the arguments, without running them."""
    return lowered_chunk(plan, run_state, training_rows(train), evaluation_rows(validation)).compile()


def work_of(case: Case) -> Work:
    """Return the FLOPs of a step on one device and its all-reduces on eight; XLA counts the body of a loop once."""
    plan, train = plan_of(case, case.batch), random_dataset(case, case.steps * case.batch)
    run_state = start(plan, train, key=jax.random.key(0))
    single = compiled_chunk(plan, run_state, train)
    mesh = make_mesh()
    sharded = compiled_chunk(plan, shard_state(run_state, mesh), shard_dataset(train, mesh))
    analysis: Any = single.cost_analysis()
    return Work(float(analysis["flops"]), [one for one in collectives(sharded.as_text() or "") if one.looped])


def measure_machine(case: str, work: Work, processes: int, all_reduces: dict) -> Machine:
    """Return the cores of this machine: the rate of a measured step, latency and bandwidth of measured all-reduces."""
    step = float(np.median(run_processes(1, "--case", case)["seconds_a_step"]["usual"]))
    seconds = {int(size): value for size, value in all_reduces["seconds"].items()}
    least, most = min(seconds), max(seconds)
    latency = seconds[least] / ring(processes)
    bandwidth = 2 * (processes - 1) / processes * most / max(1e-9, seconds[most] - seconds[least])
    name = f"cores of this machine, gloo ({1e6 * latency:.0f} us per hop, {bandwidth / 1e9:.2f} GB/s, measured)"
    return Machine(name, work.flops / step, latency, bandwidth, ring, True, 0.0, (1, 2, 4, 8))


def print_lines(case: str, work: Work, machine: Machine) -> None:
    """Print a line of the table for each number of devices."""
    first = step_seconds(work, machine, machine.devices[0])
    for devices in machine.devices:
        seconds = step_seconds(work, machine, devices)
        faster = first / seconds
        cells = case, machine.name, devices, f"{1000 * seconds:.3g}", f"{faster:.2f}", f"{100 * faster / devices:.0f} %"
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--measure", action="store_true", help="measure the cores of this machine too")
    parser.add_argument("--processes", type=int, default=2, help="processes of the measured all-reduces")
    for name, what in (("latency", "seconds of a hop"), ("bandwidth", "bytes per second"), ("rate", "FLOP/s")):
        parser.add_argument(f"--{name}", type=float, help=f"{what} of another machine")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    custom = [options.latency, options.bandwidth, options.rate]
    if any(custom) and not all(custom):
        parser.error("--latency, --bandwidth and --rate must be given together")
    print(machine())
    works = {case: work_of(CASES[case]) for case in options.cases}
    print("\n| case | examples per step | MFLOP per step | all-reduces per step | arrays | KiB |")
    print("|---|---|---|---|---|---|")
    for case, work in works.items():
        arrays, size = sum(len(one.sizes) for one in work.all_reduces), sum(one.bytes for one in work.all_reduces)
        cells = CASES[case].batch, f"{work.flops / 1e6:.1f}", len(work.all_reduces), arrays, f"{size / 1024:.1f}"
        print(f"| {case} | {' | '.join(map(str, cells))} |")
    all_reduces = run_processes(options.processes, "--all-reduce") if options.measure else {}
    print("\n| case | machine | devices | ms per step | speedup | efficiency |\n|---|---|---|---|---|---|")
    for case, work in works.items():
        machines = [measure_machine(case, work, options.processes, all_reduces)] if options.measure else []
        if all(custom):
            machines.append(
                Machine("custom", options.rate, options.latency, options.bandwidth, ring, False, 0.0, (1, 2, 4, 8))
            )
        for each in (*machines, GPUS, TPUS):
            print_lines(case, work, each)


if __name__ == "__main__":
    main()
