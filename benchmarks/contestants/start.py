"""The contestants of the table, and how the process of one of them is started. Needs Python alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
SHARING = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # a GPU, which all are on
# What is freed is kept: else a process may give memory back and ask for it anew, torch's every step. What is kept for a
# thread has bounds, and is asked for in pages of 2 MiB, or a call of JAX that takes 40 MB waits for 10,000 of them.
KEPT = {
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
CACHED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


class Contestant(NamedTuple):
    """A program that trains, and what it must have installed."""

    name: str
    module: str
    needs: tuple[str, ...]
    flags: tuple[str, ...] = ()
    own: bool = False  # whether it runs in this environment


class Missing(NamedTuple):
    """A contestant that cannot take part, and why."""

    name: str
    reason: str


Ask = Callable[[dict[str, Any]], dict[str, Any]]

OURS = Contestant("jaxdl", "benchmarks.contestants.jaxdl_loop", (), own=True)


def _keras(name: str, backend: str, needs: str, *flags: str) -> Contestant:
    return Contestant(name, "benchmarks.contestants.keras_loop", ("keras", needs), ("--backend", backend, *flags))


PEERS = (
    Contestant("torch", "benchmarks.contestants.torch_loop", ("torch",)),
    Contestant("torch, compiled", "benchmarks.contestants.torch_loop", ("torch",), ("--compile",)),
    Contestant("scikit-learn", "benchmarks.contestants.sklearn_loop", ("sklearn",)),
    Contestant("Flax, jit a step", "benchmarks.contestants.flax_loop", ("flax", "optax")),
    Contestant("NNX, nnx.jit a step", "benchmarks.contestants.nnx_loop", ("flax", "optax")),
    _keras("Keras, JAX", "jax", "jax"),
    _keras("Keras, JAX, large", "jax", "jax", "--large"),
    _keras("Keras, TensorFlow", "tensorflow", "tensorflow"),
    _keras("Keras, TensorFlow, large", "tensorflow", "tensorflow", "--large"),
    _keras("Keras, torch", "torch", "torch"),
    _keras("Keras, torch, large", "torch", "torch", "--large"),
)


def present(python: str, contestants: Sequence[Contestant]) -> tuple[list[Contestant], list[Missing]]:
    """Return the contestants whose libraries the Python has, and those that are missing."""
    needed = sorted({name for contestant in contestants for name in contestant.needs})
    ask = "import sys, importlib.util as u; print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
    lacking = subprocess.run([python, "-c", ask, *needed], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    here, missing = [], []
    for contestant in contestants:
        absent = [name for name in contestant.needs if name in lacking]
        if absent:
            missing.append(Missing(contestant.name, f"not installed: {', '.join(absent)}"))
        else:
            here.append(contestant)
    return here, missing


def command(contestant: Contestant, peers: str, *more: str) -> list[str]:
    """Return the command that starts it."""
    return [sys.executable if contestant.own else peers, "-m", contestant.module, *contestant.flags, *more]


def environment(cache: Path | None) -> dict[str, str]:
    """The environment of its process: with a folder, compiled programs are kept there."""
    kept = {} if cache is None else {"JAX_COMPILATION_CACHE_DIR": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    return {**os.environ, **QUIET, **SHARING, **KEPT, **CACHED, **kept}


@contextmanager
def start_process(contestant: Contestant, peers: str, cache: Path | None = None) -> Iterator[Ask]:
    """Start its process, which answers as `benchmarks.contestants.protocol` says.

    Where the process ends, the answer is {"error": ...} too.
    """
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command(contestant, peers),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=ROOT,
            env=environment(cache),
        )
        assert process.stdin is not None and process.stdout is not None

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            try:
                print(json.dumps(request), file=process.stdin, flush=True)
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            if line:
                answer: dict[str, Any] = json.loads(line)
                return answer
            said.seek(0)
            last = said.read().strip().splitlines() or ["it said nothing"]
            return {"error": f"ended with {process.wait()}: {last[-1]}"}

        try:
            yield ask
        finally:
            with suppress(BrokenPipeError):  # it has ended
                process.stdin.close()
            process.wait()
