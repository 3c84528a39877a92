"""The versions, the devices and the commit of a run, the clock of compilations, the compilation cache."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas")
# Settings of JAX that change the numbers of a run.
SETTINGS = ("threefry_partitionable", "default_prng_impl", "default_matmul_precision", "enable_x64")


def environment() -> dict[str, Any]:
    """What a run ran on: versions, devices, the machine, and the git commit of the code or None."""
    return {
        "versions": versions(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "platform": platform.platform(),
        "machine": machine(),
        "commit": _commit(Path(__file__).parent),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's numbers depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def machine() -> dict[str, Any]:
    """Return what the bits of a run depend on beside versions: processor, cores, settings of XLA and JAX."""
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


def enable_compilation_cache() -> None:
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
