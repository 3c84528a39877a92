"""Programs measured in turn, so that what disturbs one disturbs the others too."""

import os
import subprocess
from collections.abc import Callable

import numpy as np


def alternate(name: str, programs: dict[str, Callable[[], float]], repeats: int) -> None:
    """Runs the programs in turn and prints a table; the first is what the others are compared with."""
    seconds: dict[str, list[float]] = {program: [] for program in programs}
    for program in programs.values():
        program()  # disk caches and the compilation cache
    for _ in range(repeats):
        for program, measure in programs.items():
            seconds[program].append(measure())
    print(f"\n| {name} | median s | least - greatest | times ours, median of pairs |\n|---|---|---|---|")
    ours = np.array(next(iter(seconds.values())))
    for program, measured in seconds.items():
        values = np.array(measured)
        ratio = np.median(values / ours)
        print(
            f"| {program} | {np.median(values):.3f} | {values.min():.3f} - {values.max():.3f} | {ratio:.2f} |",
            flush=True,
        )


def output(command: list[str], **environment: str) -> str:
    """What a program prints; its errors are kept quiet."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | quiet | environment
    )
    return done.stdout.decode()
