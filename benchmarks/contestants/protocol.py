"""How a contestant of the table is talked to: a line of JSON in, a line of JSON out. Needs NumPy alone.

    {"prepare": {task}}           -> {"seconds": 1.5, "memory": 300.2}
    {"run": 5, "seed": 0}         -> {"ends": [0.1, 0.2, ...], "figure": 12.3, "memory": 310.0}

`prepare` loads and builds, `run` is what is measured. With `--once TASK` the process prepares that one task, runs it
for one epoch and ends: what a start costs, from outside.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.tasks import Arrays, Task, load


class Result(NamedTuple):
    """What a run leaves."""

    ends: list[float]  # `time.perf_counter()` at the end of each epoch, or of each time it was done
    figure: float  # so that one sees that all have done the same work


Run = Callable[[int, int], Result]  # (how many, seed)
Prepare = Callable[[Task, Arrays], Run]


def serve(prepare: Prepare) -> None:
    """Does what the lines of the standard input, or --once, ask for."""
    if "--once" in sys.argv:
        task = _task(json.loads(sys.argv[sys.argv.index("--once") + 1]))
        figure = prepare(task, load(task))(1, 0).figure
        print(json.dumps({"figure": figure, "memory": memory()}))
        return
    # Libraries print what they like: only this module writes where the answers go.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for answer in replies(prepare, sys.stdin):
        print(json.dumps(answer), file=answers, flush=True)


def replies(prepare: Prepare, lines: Iterable[str]) -> Iterable[dict[str, object]]:
    """The answer to each line; one that fails answers with the error and goes on."""
    run: Run | None = None
    for line in lines:
        asked, began = json.loads(line), time.perf_counter()
        try:
            if "prepare" in asked:
                run = None  # frees the task before
                task = _task(asked["prepare"])
                run = prepare(task, load(task))
                yield {"seconds": time.perf_counter() - began, "memory": memory()}
            else:
                assert run is not None, "nothing is prepared"
                began = time.perf_counter()
                result = run(asked["run"], asked["seed"])
                yield {"ends": [e - began for e in result.ends], "figure": result.figure, "memory": memory()}
        except Exception as error:  # a compiler that is missing, memory that does not suffice
            yield {"error": f"{type(error).__name__}: {error}"}


def _task(fields: dict) -> Task:
    return Task(**{**fields, "widths": tuple(fields["widths"])})


def memory() -> float:
    """The process's peak in MB, so far."""
    told = Path("/proc/self/status")
    if told.exists():  # else a child is told the peak of its parent, if that is higher
        return (
            next(int(line.split()[1]) for line in told.read_text().splitlines() if line.startswith("VmHWM"))
            * 1024
            / 1e6
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
