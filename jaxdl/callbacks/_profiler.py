"""Traces of what a run does, operation by operation.

TensorBoard shows them with its profile plugin (`pip install xprof`) where the folder is its
`--logdir`, and https://ui.perfetto.dev opens the file perfetto_trace.json.gz below it.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np

from jaxdl.errors import InputError
from jaxdl.types import Callback, RunState

EPOCHS, SECONDS = 3, 2.0  # that are traced at most: a second may hold a million operations


@contextmanager
def profiled(folder: str | Path) -> Iterator[None]:
    """Traces what happens in the block, on this machine's processors and devices, but no Python functions.

    What was begun in the block must have ended: wait for results with `jax.block_until_ready`. It writes
    folder/plugins/profile/<time>/, with an .xplane.pb for TensorBoard and a perfetto_trace.json.gz. Raises InputError
    where a profile is running already, and where the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with profiled(Path(folder)):
    ...         _ = jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
    ...     [path.name for path in Path(folder).glob("plugins/profile/*/perfetto*")]
    ['perfetto_trace.json.gz']
    """
    folder = Path(folder)
    options = jax.profiler.ProfileOptions()
    # Python's own calls would be most of a trace, and slow down what is measured.
    options.python_tracer_level = 0
    try:
        # Now, because JAX begins no other trace after one that it could not write.
        traces = folder / "plugins" / "profile"
        traces.mkdir(parents=True, exist_ok=True)
        before = set(traces.iterdir())
        jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
    except RuntimeError as error:
        raise InputError(f"a profile must be the only one that runs, got: {error} End the other one.") from error
    except OSError as error:
        raise InputError(f"{folder} must be a folder that can be written, got: {error}. Use another.") from error
    try:
        yield
    finally:
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            # A part of a trace is of no use, and the run needs the room.
            for part in set(traces.iterdir()) - before:
                shutil.rmtree(part, ignore_errors=True)
            raise InputError(f"{folder} must have room for a trace, got: {error}. Free some space.") from error


@contextmanager
def profiler(
    folder: str | Path,
    *,
    initial_epoch: int = 0,
    last: int | None = None,
    epochs: int = EPOCHS,
    seconds: float = SECONDS,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[Callback]:
    """Traces (`profiled`) some epochs after the first, which compiles; where there is only one, that one.

    To be called after every chunk, or every epoch. The trace ends at the first call after so many epochs or seconds.
    initial_epoch: the epochs that were done before; last: the one that ends the run, where that is known. What stands
    in its way, as another profile or a full disk, is told, and the run goes on. Raises InputError for epochs and
    seconds that are not positive.

    >>> with profiler(Path("unused"), last=9) as observe:
    ...     callable(observe)
    True
    """
    if epochs < 1 or not seconds > 0:
        raise InputError(f"a trace must have an epoch and some time, got epochs={epochs} and seconds={seconds}.")
    trace = ExitStack()
    until: tuple[int, float] | None = None

    def attempt(what: Callable[[], object]) -> None:
        try:
            what()
        except InputError as error:
            warn(f"there is no profile, because {error}")

    def start(epoch: int) -> None:
        nonlocal until
        until = epoch + epochs, time.monotonic() + seconds
        attempt(lambda: trace.enter_context(profiled(folder)))

    def observe(run_state: RunState, history: list[dict[str, float]]) -> None:
        # Of many runs the one that is furthest.
        epoch = int(np.max(history[-1]["epoch"])) if history else int(run_state.epoch)
        if until is None and epoch > initial_epoch and epoch != last:
            start(epoch)
        elif until is not None and (epoch >= until[0] or time.monotonic() >= until[1]):
            attempt(trace.close)

    if last is not None and last <= initial_epoch + 1:
        start(initial_epoch)
    try:
        yield observe
    finally:
        attempt(trace.close)
