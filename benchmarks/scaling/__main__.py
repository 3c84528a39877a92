"""Strong and weak scaling over processes of one core each, and what a mesh of one device costs.

    python -m benchmarks.scaling [--processes 1 2 4] [--cases wide] [--repeats 5]

Strong: the same batch, shared by more processes. Weak: the same rows a step for each of them. Each figure is a
process's median of three repetitions; programs run in turn, and shown are the medians with the least and the greatest
of the turns. Prints Markdown. Nothing else may run on the machine meanwhile: a step is as slow as the slowest process.
"""

import argparse
import os

import numpy as np

from benchmarks.scaling.cases import CASES, machine
from benchmarks.scaling.process import line_of

MEASURED = ("weather plain", "wide", "CIFAR small")


def seconds_of(case: str, processes: int, batch: int) -> float:
    found = line_of(processes, "--case", case, "--batch", str(batch))
    return float(np.median(found["seconds_a_step"]["usual"]))


def spread(values: np.ndarray) -> str:
    return f"{np.median(values):.4g} | {values.min():.4g} - {values.max():.4g}"


def scaling(case: str, counts: list[int], repeats: int) -> None:
    batch = CASES[case].batch
    ways = {("one process", 1): batch}
    ways |= {("strong", count): batch for count in counts if count > 1}
    ways |= {("weak", count): batch * count for count in counts if count > 1}
    seconds: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, rows in ways.items():
            seconds[way].append(seconds_of(case, way[1], rows))
    alone = np.array(seconds["one process", 1])
    for (kind, count), rows in ways.items():
        own = np.array(seconds[kind, count])
        # Rows a second beside those of one process.
        faster = float(np.median(alone / own)) * rows / batch
        efficiency = f"{100 * faster / count:.0f} %"
        print(
            f"| {case} | {kind} | {count} | {rows} | {spread(1000 * own)} | {faster:.2f} | {efficiency} |", flush=True
        )


def overhead(case: str, repeats: int) -> None:
    """One process in which both ways take turns."""
    found = line_of(1, "--case", case, "--overhead", "--repeats", str(repeats))
    cells = []
    for key in ("seconds_a_step", "cpu_seconds_a_step"):
        usual, sharded = (1000 * np.array(found[key][way]) for way in ("usual", "sharded"))
        more = 100 * (np.median(sharded / usual) - 1)
        cells += [spread(usual), spread(sharded), f"{more:+.1f} %"]
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
        print(f"Left out, as there are {cores} cores: {sorted({*options.processes} - {*counts})} processes.")
    print(
        "\n| case | scaling | processes | rows a step | ms a step | least - greatest | times the rows a second | each |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for case in options.cases:
        scaling(case, counts, options.repeats)
    print("\nOne device: ms a step without a mesh and on a mesh of it, by the clock and of the CPU; medians of pairs.")
    columns = "plain | least - greatest | on a mesh | least - greatest | more |"
    print(f"\n| case | {columns} CPU, {columns}\n|{'---|' * 11}")
    for case in options.cases:
        overhead(case, 5 * options.repeats)


if __name__ == "__main__":
    main()
