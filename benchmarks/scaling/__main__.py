"""Strong and weak scaling over processes of one core each, and the overhead of a mesh of one device.

    python -m benchmarks.scaling [--processes 1 2 4] [--cases wide] [--repeats 5]

Strong: more processes share the same batch. Weak: each process has the same batch. Configurations take turns; a value
is the median of three repetitions in a process, and the table has the median, the least and the greatest over turns.
Prints Markdown. Run it on an idle machine: a step is as slow as the slowest process.
"""

import argparse
import os

import numpy as np

from benchmarks.scaling.cases import CASES, machine
from benchmarks.scaling.process import run_processes

MEASURED = ("weather plain", "wide", "CIFAR small")


def step_seconds(case: str, processes: int, batch: int) -> float:
    """Return the median seconds of a step of a case over processes."""
    result = run_processes(processes, "--case", case, "--batch", str(batch))
    return float(np.median(result["seconds_a_step"]["usual"]))


def cells_of(values: np.ndarray) -> str:
    """Return the median and the range of values as two cells of a table."""
    return f"{np.median(values):.4g} | {values.min():.4g} - {values.max():.4g}"


def print_scaling(case: str, counts: list[int], repeats: int) -> None:
    """Measure strong and weak scaling of a case, and print lines of the table."""
    batch = CASES[case].batch
    sizes = {("one process", 1): batch}
    sizes |= {("strong", count): batch for count in counts if count > 1}
    sizes |= {("weak", count): batch * count for count in counts if count > 1}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in sizes}
    for _ in range(repeats):
        for key, size in sizes.items():
            seconds[key].append(step_seconds(case, key[1], size))
    single = np.array(seconds["one process", 1])
    for (kind, count), size in sizes.items():
        times = np.array(seconds[kind, count])
        # Examples per second, relative to one process.
        faster = float(np.median(single / times)) * size / batch
        efficiency = f"{100 * faster / count:.0f} %"
        print(
            f"| {case} | {kind} | {count} | {size} | {cells_of(1000 * times)} | {faster:.2f} | {efficiency} |",
            flush=True,
        )


def print_overhead(case: str, repeats: int) -> None:
    """Measure steps without and with a mesh in one process, and print a line of the table."""
    result = run_processes(1, "--case", case, "--overhead", "--repeats", str(repeats))
    cells = []
    for key in ("seconds_a_step", "cpu_seconds_a_step"):
        usual, sharded = (1000 * np.array(result[key][name]) for name in ("usual", "sharded"))
        more = 100 * (np.median(sharded / usual) - 1)
        cells += [cells_of(usual), cells_of(sharded), f"{more:+.1f} %"]
    print(f"| {case} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=MEASURED)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    counts = [count for count in options.processes if count <= cores]
    print(machine())
    if counts != options.processes:
        print(f"Skipped, because there are {cores} cores: {sorted({*options.processes} - {*counts})} processes.")
    print(
        "\n| case | scaling | processes | examples per step | ms per step | least - greatest | speedup | efficiency |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for case in options.cases:
        print_scaling(case, counts, options.repeats)
    print("\nOne device: ms per step without and with a mesh, wall time and CPU time; medians of pairs.")
    columns = "plain | least - greatest | on a mesh | least - greatest | more |"
    print(f"\n| case | {columns} CPU, {columns}\n|{'---|' * 11}")
    for case in options.cases:
        print_overhead(case, 5 * options.repeats)


if __name__ == "__main__":
    main()
