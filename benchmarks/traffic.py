"""Traffic: what a piece of work has XLA compile, devices run and the host read. Counted, not timed."""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import numpy as np

COMPILED = "/jax/core/compile/backend_compile_duration"
# What JAX's own trace calls them. A program on several devices is one event, and so many more with "[0] " in front.
RUN = re.compile(r"\w*Executable::Execute(Helper\w*| \(.*\))")
READ = "np.asarray(jax.Array)"


class Traffic(NamedTuple):
    """What went on between the host and its devices."""

    compilations: int  # programs that XLA compiled
    dispatches: int  # programs that were run, on however many devices
    fetches: int  # arrays that the host read


def traffic(work: Callable[[], Any]) -> Traffic:
    """The traffic of `work()`, which must dispatch a program, and all that its result waits for.

    An array is read by `np.asarray`, `np.array`, `jax.device_get`, `int`, `float`, `bool`, `item` and `tolist`; other
    functions of NumPy that are given one are not seen. Raises RuntimeError where nothing was dispatched, as where a
    version of JAX calls it otherwise in its traces.
    """
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        names = _traced(work)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    dispatches = sum(RUN.fullmatch(name) is not None for name in names)
    if not dispatches:
        raise RuntimeError(f"no program was seen to run in a trace of jax {jax.__version__}. See RUN in {__file__}.")
    return Traffic(len(compiled), dispatches, names.count(READ))


def _traced(work: Callable[[], Any]) -> list[str]:
    """The names of all events of a trace, those of Python functions left out."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with _read_as_from_a_device(), jax.profiler.trace(folder, profiler_options=options):
            jax.block_until_ready(work())
        (path,) = Path(folder).glob("plugins/profile/*/*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    return [event.name for plane in data.planes for line in plane.lines for event in line.events]


@contextmanager
def _read_as_from_a_device() -> Iterator[None]:
    """Lets NumPy read arrays the way that it must where they lie on a GPU, which JAX traces.

    On a CPU it looks into the memory where they lie, of which no one is told.
    """

    def told(read: Callable[..., Any]) -> Callable[..., Any]:
        def by_copy(value: Any, *arguments: Any, **keywords: Any) -> Any:
            return read(value.__array__() if isinstance(value, jax.Array) else value, *arguments, **keywords)

        return by_copy

    with patch.object(np, "asarray", told(np.asarray)), patch.object(np, "array", told(np.array)):
        yield
