"""Measure programs in turn, so that what disturbs one disturbs the others too."""

import os
import subprocess
from collections.abc import Callable, Mapping

import numpy as np


def in_turn(measures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, np.ndarray]:
    """Return the seconds of each repetition by name; a first call, which may compile or fill caches, does not count."""
    for measure in measures.values():
        measure()
    rounds = [[measure() for measure in measures.values()] for _ in range(repeats)]
    return dict(zip(measures, np.array(rounds).T, strict=True))


def spread(values: np.ndarray) -> str:
    """Return the median, and the least and the greatest value, as two cells of a table."""
    return f"{np.median(values):.3f} | {values.min():.3f} - {values.max():.3f}"


def alternate(name: str, programs: Mapping[str, Callable[[], float]], repeats: int) -> None:
    """Run the programs in turn and print a table; the first is what the others are compared with."""
    seconds = in_turn(programs, repeats)
    print(f"\n| {name} | median s | least - greatest | times ours, median of pairs |\n|---|---|---|---|")
    first = next(iter(seconds.values()))
    for program, values in seconds.items():
        print(f"| {program} | {spread(values)} | {np.median(values / first):.2f} |", flush=True)


def output(command: list[str], **environment: str) -> str:
    """Return what a program prints; its errors are kept quiet."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | quiet | environment
    )
    return done.stdout.decode()
