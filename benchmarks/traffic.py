"""Traffic: how many programs a piece of work compiles and dispatches, and how many arrays the host reads for it."""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

import jax
import numpy as np

R = TypeVar("R")

COMPILED = "/jax/core/compile/backend_compile_duration"
# What they are called in traces of JAX. A program on several devices is one such event, and one more for each of them
# with "[0] " or the like in front.
DISPATCHED = re.compile(r"\w*Executable::Execute(Helper\w*| \(.*\))")
READ = "np.asarray(jax.Array)"


class Traffic(NamedTuple):
    """What went on between the host and its devices."""

    dispatches: int  # programs that were run, on however many devices
    fetches: int  # arrays that the host read


def compilations(work: Callable[[], R]) -> tuple[int, R]:
    """How many programs XLA compiles in `work()`, and what that gives."""
    found = 0

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        nonlocal found
        found += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        result = work()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return found, result


def traffic(work: Callable[[], Any]) -> Traffic:
    """The traffic of `work()` and of what it gives.

    An array is read by `np.asarray`, `np.array`, `jax.device_get`, `int`, `float`, `bool`, `item` and `tolist`; what
    other functions of NumPy read is not seen. Raises RuntimeError where no program runs: then the work is none, or this
    version of JAX calls it otherwise.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with _read_as_from_a_gpu(), jax.profiler.trace(folder, profiler_options=options):
            jax.block_until_ready(work())
        (path,) = Path(folder).glob("plugins/profile/*/*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    events = [event.name for plane in data.planes for line in plane.lines for event in line.events]
    dispatches = sum(DISPATCHED.fullmatch(name) is not None for name in events)
    if not dispatches:
        raise RuntimeError(
            f"a trace of jax {jax.__version__} must name the programs that run, got none. See DISPATCHED in {__file__}."
        )
    return Traffic(dispatches, events.count(READ))


@contextmanager
def _read_as_from_a_gpu() -> Iterator[None]:
    """Lets NumPy read arrays as it must where they lie on a GPU, which is traced.

    On a CPU it looks into JAX's own memory instead, which nobody is told.
    """

    def traced(read: Callable[..., Any]) -> Callable[..., Any]:
        def by_copy(value: Any, *arguments: Any, **keywords: Any) -> Any:
            return read(value.__array__() if isinstance(value, jax.Array) else value, *arguments, **keywords)

        return by_copy

    with patch.object(np, "asarray", traced(np.asarray)), patch.object(np, "array", traced(np.array)):
        yield
