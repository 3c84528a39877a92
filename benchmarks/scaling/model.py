"""The time of a step as devices grow, on paper.

    python -m benchmarks.scaling.model             # assumed machines
    python -m benchmarks.scaling.model --measure   # and this one's cores, joined by gloo
    python -m benchmarks.scaling.model --latency 5e-5 --bandwidth 1e9 --rate 3e10 --cases wide

With n devices, a step of always as many rows takes

    fixed + FLOPs / (n rate) + sum over its all-reduces of (hops(n) latency + 2 (n - 1) / n bytes / bandwidth)

FLOPs, all-reduces and bytes are read from the compiled program; hops are 2 (n - 1) around a ring, 2 ceil(log2 n) up
and down a tree, and 2 (a - 1) along each of two sides a of a torus. The factor of the bytes is that of a ring:
Patarasuk and Yuan, J. Parallel Distrib. Comput. 69 (2009). Rows lie on every device, so input costs nothing; what a
program does once an epoch is left out; nothing overlaps. What is assumed is said to be, and not measured here.
"""

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.scaling.cases import CASES, Case, machine, plan_of, rows_of
from benchmarks.scaling.collectives import Collective, collectives
from benchmarks.scaling.process import line_of
from jaxdl import start
from jaxdl.data.batches import evaluation_rows, training_rows
from jaxdl.distributed import make_mesh, shard_dataset, shard_state
from jaxdl.train.loop import lowered_chunk
from jaxdl.types import Dataset, Plan, RunState


def ring(devices: int) -> float:
    return 2.0 * (devices - 1)


def tree(devices: int) -> float:
    return 2.0 * math.ceil(math.log2(devices))


def torus(devices: int) -> float:
    return 4.0 * (math.sqrt(devices) - 1)


class Machine(NamedTuple):
    name: str
    rate: float  # FLOP/s that a step reaches on a device
    latency: float  # seconds of a hop
    bandwidth: float  # bytes a second that a device sends
    hops: Callable[[int], float]  # of an all-reduce, by the number of devices
    apart: bool  # each array of an all-reduce is sent by itself, as XLA does with gloo
    fixed: float  # seconds of a step that do not shrink: starting kernels
    devices: tuple[int, ...]


class Work(NamedTuple):
    """What a step does."""

    flops: float
    reduced: list[Collective]


# Assumed: a fifth of the peak of float32, 67 TFLOP/s, and half of NVLink's 900 GB/s, which counts both directions (both
# as NVIDIA publishes them for the H100 SXM); 15 us an all-reduce over 8 GPUs; 100 kernels of 2 us.
GPUS = Machine("H100 on NVLink (assumed)", 0.2 * 67e12, 2.5e-6, 450e9, tree, False, 200e-6, (1, 2, 4, 8))
# Assumed: a fifth of the peak of bfloat16, 197 TFLOP/s, at a fourth for float32; half of the links' 1600 Gbit/s (peak
# and links as Google publishes them for v5e); 1 us a hop; 50 us to start a step's parts.
TPUS = Machine("TPU v5e slice (assumed)", 0.05 * 197e12, 1e-6, 100e9, torus, False, 50e-6, (1, 8, 64, 256))


def seconds_of(work: Work, on: Machine, devices: int) -> float:
    """Of a step."""
    reduced = sum(len(one.sizes) if on.apart else 1 for one in work.reduced)
    sent = 2 * (devices - 1) / devices * sum(one.bytes for one in work.reduced)
    waiting = on.hops(devices) * on.latency * reduced
    return on.fixed + work.flops / (devices * on.rate) + waiting + sent / on.bandwidth


def compiled_chunk(
    plan: Plan, run_state: RunState, train: Dataset, validation: Dataset | None = None
) -> jax.stages.Compiled:
    """Return the program of several training steps, compiled for the devices of its arguments and not run."""
    return lowered_chunk(plan, run_state, training_rows(train), evaluation_rows(validation)).compile()


def work_of(case: Case) -> Work:
    """FLOPs from the program of one device, all-reduces from that of eight; a loop's body counts once, as one step."""
    plan, rows = plan_of(case, case.batch), rows_of(case, case.steps * case.batch)
    run_state = start(plan, rows, key=jax.random.key(0))
    alone = compiled_chunk(plan, run_state, rows)
    mesh = make_mesh()
    shared = compiled_chunk(plan, shard_state(run_state, mesh), shard_dataset(rows, mesh))
    analysis = alone.cost_analysis()
    return Work(float(analysis["flops"]), [one for one in collectives(shared.as_text()) if one.looped])


def measured(case: str, work: Work, processes: int, line: dict) -> Machine:
    """This machine's cores: the rate from a step on one of them, the network from two sizes of an all-reduce."""
    alone = float(np.median(line_of(1, "--case", case)["seconds_a_step"]["usual"]))
    seconds = {int(size): value for size, value in line["seconds"].items()}
    least, most = min(seconds), max(seconds)
    latency = seconds[least] / ring(processes)
    bandwidth = 2 * (processes - 1) / processes * most / max(1e-9, seconds[most] - seconds[least])
    name = f"cores of this machine, gloo ({1e6 * latency:.0f} us a hop, {bandwidth / 1e9:.2f} GB/s, measured)"
    return Machine(name, work.flops / alone, latency, bandwidth, ring, True, 0.0, (1, 2, 4, 8))


def show(case: str, work: Work, on: Machine) -> None:
    alone = seconds_of(work, on, on.devices[0])
    for devices in on.devices:
        seconds = seconds_of(work, on, devices)
        faster = alone / seconds
        cells = case, on.name, devices, f"{1000 * seconds:.3g}", f"{faster:.2f}", f"{100 * faster / devices:.0f} %"
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--measure", action="store_true", help="this machine's cores and their connection")
    parser.add_argument("--processes", type=int, default=2, help="between which all-reduces are measured")
    for name, what in (("latency", "seconds of a hop"), ("bandwidth", "bytes a second"), ("rate", "FLOP/s")):
        parser.add_argument(f"--{name}", type=float, help=f"{what} of a machine of your own")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    own = [options.latency, options.bandwidth, options.rate]
    if any(own) and not all(own):
        parser.error("--latency, --bandwidth and --rate belong together")
    print(machine())
    works = {case: work_of(CASES[case]) for case in options.cases}
    print("\n| case | rows a step | MFLOP a step | all-reduces a step | arrays in them | KiB in them |")
    print("|---|---|---|---|---|---|")
    for case, work in works.items():
        arrays, size = sum(len(one.sizes) for one in work.reduced), sum(one.bytes for one in work.reduced)
        cells = CASES[case].batch, f"{work.flops / 1e6:.1f}", len(work.reduced), arrays, f"{size / 1024:.1f}"
        print(f"| {case} | {' | '.join(map(str, cells))} |")
    line = line_of(options.processes, "--all-reduce") if options.measure else {}
    print("\n| case | machine | devices | ms a step | times as fast | each |\n|---|---|---|---|---|---|")
    for case, work in works.items():
        machines = [measured(case, work, options.processes, line)] if options.measure else []
        if all(own):
            machines.append(
                Machine("given", options.rate, options.latency, options.bandwidth, ring, False, 0.0, (1, 2, 4, 8))
            )
        for on in (*machines, GPUS, TPUS):
            show(case, work, on)


if __name__ == "__main__":
    main()
