"""A run from outside: its folder, its clock, its configuration on disk."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxdl.errors import InputError
from jaxdl.fitting import Observer
from jaxdl.training import epochs as run_epochs
from jaxdl.types import Examples, Plan, Progress

CONFIG, METRICS = "config.json", "metrics.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas")


def drive(
    plan: Plan,
    begin: Progress,
    train: Examples,
    validation: Examples | None,
    *,
    epochs: int,
    observers: Iterable[Observer] = (),
) -> tuple[Progress, list[dict[str, float]]]:
    """Trains from `begin` up to epoch `epochs` as `fit` does; each record holds the epoch's wall `seconds` too, without
    what was spent on compiling. Observers look while the next epoch is under way, so they rarely cost any.

    >>> import optax
    >>> from jaxdl import Objective, examples, mlp, objectives
    >>> from jaxdl import make_plan, start
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> plan = make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), batch_size=2)
    >>> progress, history = drive(plan, start(plan, rows, key=jax.random.key(0)), rows, None, epochs=2)
    >>> int(progress.epoch), list(history[-1])
    (2, ['epoch', 'loss', 'seconds'])
    """
    history: list[dict[str, float]] = []
    progress, began, compiled = begin, time.perf_counter(), 0.0
    with compile_clock() as compiling:
        for progress, record in run_epochs(plan, begin, train, validation, last=epochs):
            now = time.perf_counter()
            history.append({**record, "seconds": now - began - (compiling() - compiled)})
            began, compiled = now, compiling()
            for observe in observers:
                observe(progress, history)
    return progress, history


def finished(folder: Path) -> dict[str, Any] | None:
    """The metrics of the finished run that a folder holds; None for a folder that is new or empty.

    Raises InputError for any other folder: a run never writes among files that are not its own.

    >>> finished(Path("no", "such", "folder")) is None
    True
    """
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return None
        content = (folder / METRICS).read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"--workdir {folder} must be new, empty or a finished run, got a folder that holds other files or a run "
            "that was cut off. Choose another folder, or remove this one."
        ) from None
    except NotADirectoryError:
        raise InputError(f"--workdir {folder} must be a folder, got a file. Choose another name.") from None
    except OSError as error:
        raise InputError(f"--workdir {folder} cannot be read: {error.strerror}. Choose another folder.") from None
    try:
        return {**json.loads(content)}
    except (ValueError, TypeError):
        raise InputError(
            f"{folder / METRICS} must be JSON with an object, got something else. Restore or remove this run."
        ) from None


def create(folder: Path, config: dict[str, Any]) -> None:
    """Makes the folder of a run and claims it with its `config.json`.

    Raises InputError where it cannot be written, or another run has claimed it in the meantime.
    """
    if set("[]\\") & set(str(folder.absolute())):
        raise InputError(f"--workdir must be a path without [, ] and \\, got {folder}. Choose another name.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CONFIG).exists():
            raise InputError(f"--workdir {folder} is taken by a run that has just begun. Choose another folder.")
        with (folder / CONFIG).open("x") as file:
            file.write(_as_json(config))
    except OSError as error:
        raise InputError(
            f"--workdir {folder} must be a folder that can be written: {error.strerror}. Choose another folder."
        ) from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file that is there whole or not at all; a number that is not finite becomes null.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "a.json"), {"rmse": float("nan")})
    ...     json.loads(Path(folder, "a.json").read_text())
    {'rmse': None}
    """
    draft = path.with_name(path.name + ".part")
    draft.write_text(_as_json(content))
    os.replace(draft, path)


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def surroundings() -> dict[str, Any]:
    """What a run ran on: versions, devices, and the git commit of the code or None."""
    return {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "devices": [str(device.device_kind) for device in jax.devices()],
        "platform": platform.platform(),
        "commit": _commit(Path(__file__).parent),
    }


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
    """Switches on JAX's persistent compilation cache in the user's cache folder, however short a compilation."""
    import platformdirs

    jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("jaxdl") + "/compilations")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
