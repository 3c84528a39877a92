"""Versions, devices and commit of a run, the time of compilations, and the compilation cache."""

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
# Settings of JAX that change the results of a run.
SETTINGS = ("threefry_partitionable", "default_prng_impl", "default_matmul_precision", "enable_x64")


def environment() -> dict[str, Any]:
    """Return versions, devices, machine, and the git commit of the code or None."""
    return {
        "versions": versions(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "platform": platform.platform(),
        "machine": machine(),
        "commit": _commit(Path(__file__).parent),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the results of a run."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def machine() -> dict[str, Any]:
    """Return processor, cores and settings of XLA and JAX, on which bit-identical results depend."""
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
        # The first command fails for an installed copy inside of another repository, which does not track it.
        for call in (["ls-files", "--error-unmatch", Path(__file__).name], ["rev-parse", "HEAD"]):
            result = subprocess.run(
                ["git", "-C", str(folder), *call], capture_output=True, text=True, timeout=5, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


@contextmanager
def compile_clock() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the seconds of tracing and compiling since the block began.

    JAX reports each span at its end. Spans nest, so the result is the time that they cover together.
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
    """Switch on JAX's persistent compilation cache in the user's cache folder, for all compilations.

    A folder from JAX_COMPILATION_CACHE_DIR stays. Each entry has a checksum, so that a damaged entry is compiled again.
    Nothing changes where JAX_ENABLE_COMPILATION_CACHE is 0, or where the folder cannot be written.
    """
    if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        import platformdirs

        folder = Path(platformdirs.user_cache_dir("jaxdl")) / "compilations"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        if not os.access(folder, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    from jax._src import compilation_cache

    # JAX would compress with zstandard, which has no checksum; zlib, its fallback, has one.
    for name in ("zstd", "zstandard"):
        if hasattr(compilation_cache, name):
            setattr(compilation_cache, name, None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
