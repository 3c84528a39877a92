"""Measure functions in turn, so that other work on the machine disturbs all of them alike."""

import os
import subprocess
from collections.abc import Callable, Mapping

import numpy as np


def in_turn(measures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, np.ndarray]:
    """Return the seconds of each repetition by name, without the first call, which may compile or fill caches."""
    for measure in measures.values():
        measure()
    rounds = [[measure() for measure in measures.values()] for _ in range(repeats)]
    return dict(zip(measures, np.array(rounds).T, strict=True))


def cells_of(values: np.ndarray) -> str:
    """Return the median and the range of values as two cells of a table."""
    return f"{np.median(values):.3f} | {values.min():.3f} - {values.max():.3f}"


def alternate(title: str, measures: Mapping[str, Callable[[], float]], repeats: int) -> None:
    """Measure functions in turn, and print a table with ratios to the first."""
    seconds = in_turn(measures, repeats)
    print(f"\n| {title} | median s | least - greatest | ratio to the first, median of pairs |\n|---|---|---|---|")
    first = next(iter(seconds.values()))
    for name, values in seconds.items():
        print(f"| {name} | {cells_of(values)} | {np.median(values / first):.2f} |", flush=True)


def output(command: list[str]) -> str:
    """Return the stdout of a command; discard its stderr."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"}
    process = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    return process.stdout
