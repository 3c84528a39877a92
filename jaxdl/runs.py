"""A run from outside: its clock, its signals, what it ran on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxdl.chunks import Chunk
from jaxdl.fitting import Observer, warn_of_eval_params
from jaxdl.interrupts import NEVER, Interrupts
from jaxdl.paces import paced
from jaxdl.replays import NotFiniteError, guarded
from jaxdl.sources import Source
from jaxdl.types import Examples, Plan, Progress

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas")


# Settings of JAX that change the numbers of a run.
SETTINGS = ("threefry_partitionable", "default_prng_impl", "default_matmul_precision", "enable_x64")


class End(NamedTuple):
    """How a run ended."""

    progress: Progress
    history: list[dict[str, float]]


def drive(
    plan: Plan,
    begin: Progress,
    train: Examples | Source,
    validation: Examples | None,
    *,
    epochs: int,
    history: Iterable[dict[str, float]] = (),
    observers: Iterable[Observer] = (),
    watchers: Iterable[Observer] = (),
    keep: Observer | None = None,
    interrupts: Interrupts = NEVER,
    pause: Callable[[], bool] = lambda: False,
    paused: Callable[[Progress, list[dict[str, float]]], bool] = lambda progress, history: True,
    on_nan: Literal["stop", "continue"] = "stop",
) -> End:
    """Trains from `begin` up to epoch `epochs` as `fit` does, with a clock, signals and checkpoints.

    Each record holds the epoch's wall `seconds` too, without what was spent on compiling. Observers look while the next
    chunk is under way, so they rarely cost any.

    history: the records of the epochs before `begin`.
    observers: called after every epoch. watchers: after every chunk. keep: after every chunk whose numbers are finite.
    interrupts: asked before every chunk whether to pause; from the first chunk on, a signal waits for the question.
    pause: asked that too. paused: called where the run stands still, because this process or another that shares it
        asked for a pause; it says whether the run ends there, which is what it does by default.

    Raises NotFiniteError where a number is not finite and `on_nan` is "stop"; `keep` has then seen the progress before.

    >>> import optax
    >>> from jaxdl import Objective, examples, mlp, objectives
    >>> from jaxdl import make_plan, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=2)
    >>> end = drive(plan, start(plan, rows, key=jax.random.key(0)), rows, None, epochs=2)
    >>> int(end.progress.epoch), list(end.history[-1])
    (2, ['epoch', 'loss', 'seconds'])
    """
    warn_of_eval_params(plan, begin)
    progress, records, began, compiled = begin, list(history), time.perf_counter(), 0.0
    wanted, observers, watchers = partial(_wanted, interrupts, pause), tuple(observers), tuple(watchers)
    chunks: Iterator[Chunk] = paced(plan, begin, train, validation, last=epochs, pause=wanted)
    if on_nan == "stop":
        chunks = guarded(chunks, plan, begin, train, validation)
    with compile_clock() as compiling:
        try:
            for progress, record, finite, batches, _ in chunks:
                interrupts.hold(True)
                if record is not None:
                    now = time.perf_counter()
                    records.append({**record, "seconds": now - began - (compiling() - compiled)})
                    began, compiled = now, compiling()
                called = (*(observers if record is not None else ()), *watchers, *((keep,) if keep and finite else ()))
                for observe in called:
                    observe(progress, records)
                if batches == 0 and paused(progress, records):
                    break
        except NotFiniteError as error:
            if keep:
                keep(error.args[0].progress, records)
            raise
    return End(progress, records)


def _wanted(interrupts: Interrupts, pause: Callable[[], bool]) -> bool:
    return interrupts.asked() is not None or pause()


def surroundings() -> dict[str, Any]:
    """What a run ran on: versions, devices, the machine, and the git commit of the code or None."""
    return {
        "versions": versions(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "platform": platform.platform(),
        "machine": machine(),
        "commit": _commit(Path(__file__).parent),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's numbers depend on.

    >>> versions()["jax"] == jax.__version__
    True
    """
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def machine() -> dict[str, Any]:
    """Return what the bits of a run depend on beside versions and devices: processor, cores, settings of XLA and JAX.

    >>> machine()["cores"] > 0
    True
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    settings = {name: getattr(jax.config, f"jax_{name}", None) for name in SETTINGS}
    return {
        "processor": _processor(),
        "cores": len(cores),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **{name: value if value is None else str(value) for name, value in settings.items()},
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")


def _commit(folder: Path) -> str | None:
    try:
        # An installed copy may lie in a repository that is not its own, where it is not tracked.
        for call in (["ls-files", "--error-unmatch", Path(__file__).name], ["rev-parse", "HEAD"]):
            done = subprocess.run(
                ["git", "-C", str(folder), *call], capture_output=True, text=True, timeout=5, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@contextmanager
def compile_clock() -> Iterator[Callable[[], float]]:
    """Gives a function that tells the wall seconds spent on tracing and compiling since the block began.

    JAX reports each of them as it ends; they nest, so what counts is the time that their spans cover together.

    >>> with compile_clock() as compiling:
    ...     _ = jax.jit(lambda x: x + 1)(1.0)
    ...     compiling() > 0
    True
    """
    spans: list[tuple[float, float]] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if not event.startswith("/jax/core/compile/"):
            return
        end = time.perf_counter()
        start = end - duration_secs
        while spans and spans[-1][0] >= start:
            spans.pop()
        spans.append((max(start, spans[-1][1]) if spans else start, end))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: sum(end - start for start, end in spans)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def keep_compilations() -> None:
    """Switch on JAX's persistent compilation cache in the user's cache folder, however short a compilation.

    A folder that was chosen before, as by the variable JAX_COMPILATION_CACHE_DIR, stays. Each program is kept with a
    checksum, so that one that was damaged on the disk is compiled anew.
    """
    import platformdirs
    from jax._src import compilation_cache

    # JAX compresses with zstandard where that is installed, without a checksum; zlib, its other way, ends with one.
    for name in ("zstd", "zstandard"):
        if hasattr(compilation_cache, name):
            setattr(compilation_cache, name, None)

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("jaxdl") + "/compilations")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
