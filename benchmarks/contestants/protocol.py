"""The protocol of the contestants: a request and an answer are a line of JSON each. Needs NumPy alone.

    {"prepare": {task}}           -> {"seconds": 1.5, "memory": 300.2}
    {"run": 5, "seed": 0}         -> {"ends": [0.1, 0.2, ...], "value": 12.3, "memory": 310.0}

`prepare` loads the data and compiles, `run` is measured. With `--once TASK` the process prepares the task, runs it for
one epoch and ends: the cost of a process, measured from outside.
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
    """The result of a run."""

    ends: list[float]  # `time.perf_counter()` at the end of each epoch or repetition
    value: float  # shows that all contestants do the same work


Run = Callable[[int, int], Result]  # (epochs or repetitions, seed)
Prepare = Callable[[Task, Arrays], Run]


def serve(prepare: Prepare) -> None:
    """Answer the requests of the standard input, or run the task of --once."""
    if "--once" in sys.argv:
        task = _task(json.loads(sys.argv[sys.argv.index("--once") + 1]))
        value = prepare(task, load(task))(1, 0).value
        print(json.dumps({"value": value, "memory": memory()}))
        return
    # Libraries print to stdout too, so the answers have a file descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for answer in replies(prepare, sys.stdin):
        print(json.dumps(answer), file=answers, flush=True)


def replies(prepare: Prepare, lines: Iterable[str]) -> Iterable[dict[str, object]]:
    """Yield the answer to each request; the answer to a request that fails is its error."""
    run: Run | None = None
    for line in lines:
        request, began = json.loads(line), time.perf_counter()
        try:
            if "prepare" in request:
                run = None  # frees the memory of the previous task
                task = _task(request["prepare"])
                run = prepare(task, load(task))
                yield {"seconds": time.perf_counter() - began, "memory": memory()}
            else:
                assert run is not None, "nothing is prepared"
                began = time.perf_counter()
                result = run(request["run"], request["seed"])
                yield {"ends": [e - began for e in result.ends], "value": result.value, "memory": memory()}
        except Exception as error:  # for example a missing compiler, or not enough memory
            yield {"error": f"{type(error).__name__}: {error}"}


def _task(fields: dict) -> Task:
    return Task(**{**fields, "widths": tuple(fields["widths"])})


def memory() -> float:
    """Return the peak memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` may return the peak of the parent process
        peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return peak * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
