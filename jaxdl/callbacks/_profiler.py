"""A callback that traces the operations of a run.

TensorBoard with its profile plugin (`pip install xprof`) shows a trace where the folder is its `--logdir`, and
https://ui.perfetto.dev opens the file perfetto_trace.json.gz below the folder.
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
from jaxdl.train.hooks import at_intervals
from jaxdl.train.loop import SECONDS as SECONDS_OF_A_CALL
from jaxdl.types import Callback, RunState

EPOCHS, SECONDS = 3, 2.0  # of a trace, at most: a second may hold a million operations


@contextmanager
def record_trace(folder: str | Path) -> Iterator[None]:
    """Trace the operations of a block on this machine's processors and devices, without Python functions.

    It writes folder/plugins/profile/<time>/, with an .xplane.pb for TensorBoard and a perfetto_trace.json.gz. Raises
    InputError where another trace is running, and where the folder cannot be written.
    """
    folder = Path(folder)
    options = jax.profiler.ProfileOptions()
    # Python's own calls would be most of a trace, and would slow down the operations.
    options.python_tracer_level = 0
    try:
        # Before the trace, because JAX starts no other trace after one that it could not write.
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
            # An incomplete trace is of no use, and the run needs the disk space.
            for incomplete in set(traces.iterdir()) - before:
                shutil.rmtree(incomplete, ignore_errors=True)
            raise InputError(f"{folder} must have space for a trace, got: {error}. Free some space.") from error


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
    """Trace some epochs after the first, which compiles, or the only epoch of a run.

    The trace ends after `epochs`, or with the first call of the device that ends after `seconds`. initial_epoch: the
    last epoch before the run; last: the last epoch of the run, where it is known. Where no trace can be written,
    because of another trace or a full disk, `warn` is called and the run continues. Raises InputError for epochs and
    seconds that are not positive.

    >>> import optax, tempfile
    >>> from jaxdl import dataset, fit, losses, mlp
    >>> train = dataset([[1.0]] * 32, [[2.0]] * 32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with profiler(folder, last=2) as callback:
    ...         _ = fit(mlp(()), losses.squared_error, optax.sgd(0.1), train, epochs=2, callbacks=[callback])
    ...     [path.name for path in Path(folder).glob("plugins/profile/*/perfetto*")]
    ['perfetto_trace.json.gz']
    """
    if epochs < 1 or not seconds > 0:
        raise InputError(f"a trace must have an epoch and some time, got epochs={epochs} and seconds={seconds}.")
    trace = ExitStack()
    until: tuple[int, float] | None = None

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except InputError as error:
            warn(f"there is no profile, because {error}")

    def start(epoch: int) -> None:
        nonlocal until
        until = epoch + epochs, time.monotonic() + seconds
        attempt(lambda: trace.enter_context(record_trace(folder)))

    def on_epoch(run_state: RunState, history: list[dict[str, float]]) -> None:
        # Many runs have many epochs: the last counts.
        epoch = int(np.max(history[-1]["epoch"])) if history else int(run_state.epoch)
        if until is None and epoch > initial_epoch and epoch != last:
            start(epoch)
        elif until is not None and (epoch >= until[0] or time.monotonic() >= until[1]):
            attempt(trace.close)

    if last is not None and last <= initial_epoch + 1:
        start(initial_epoch)
    try:
        yield at_intervals(on_epoch, min(seconds, SECONDS_OF_A_CALL))
    finally:
        attempt(trace.close)
