"""The contestants of the benchmark table, and how to start their processes. Needs Python alone."""

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
SHARED_GPU = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}  # all contestants use one GPU
# Processes keep freed memory: otherwise torch returns and requests it in every step. Huge pages of 2 MiB save thousands
# of page faults in a JAX call that allocates 40 MB.
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
COMPILATION_CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


class Contestant(NamedTuple):
    """A program that trains, and the packages that it needs."""

    name: str
    module: str
    needs: tuple[str, ...]
    flags: tuple[str, ...] = ()
    own: bool = False  # runs in this environment


class Missing(NamedTuple):
    """A contestant that cannot take part, and the reason."""

    name: str
    reason: str


Ask = Callable[[dict[str, Any]], dict[str, Any]]  # sends a request to a contestant, returns its answer

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


def find_installed(python: str, contestants: Sequence[Contestant]) -> tuple[list[Contestant], list[Missing]]:
    """Return the contestants whose packages a Python can import, and the missing ones."""
    needed = sorted({name for contestant in contestants for name in contestant.needs})
    code = "import sys, importlib.util as u; print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
    absent = subprocess.run([python, "-c", code, *needed], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    installed, missing = [], []
    for contestant in contestants:
        names = [name for name in contestant.needs if name in absent]
        if names:
            missing.append(Missing(contestant.name, f"not installed: {', '.join(names)}"))
        else:
            installed.append(contestant)
    return installed, missing


def command(contestant: Contestant, peers: str, *more: str) -> list[str]:
    """Return the command that starts a contestant."""
    return [sys.executable if contestant.own else peers, "-m", contestant.module, *contestant.flags, *more]


def environment(cache: Path | None) -> dict[str, str]:
    """Return the environment variables of a contestant's process, with the folder of the compilation cache."""
    folders = (
        {"JAX_ENABLE_COMPILATION_CACHE": "0"}
        if cache is None
        else {"JAX_COMPILATION_CACHE_DIR": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    )
    return {**os.environ, **QUIET, **SHARED_GPU, **MALLOC, **COMPILATION_CACHE, **folders}


@contextmanager
def start_process(contestant: Contestant, peers: str, cache: Path | None = None) -> Iterator[Ask]:
    """Start the process of a contestant, and yield the function that sends it requests of `contestants.protocol`.

    The answer of a process that has ended is {"error": ...}.
    """
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            command(contestant, peers),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env=environment(cache),
        )
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None and stdout is not None

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            try:
                print(json.dumps(request), file=stdin, flush=True)
                line = stdout.readline()
            except BrokenPipeError:
                line = ""
            if line:
                answer: dict[str, Any] = json.loads(line)
                return answer
            stderr.seek(0)
            last = stderr.read().strip().splitlines() or ["no message"]
            return {"error": f"ended with {process.wait()}: {last[-1]}"}

        try:
            yield ask
        finally:
            with suppress(BrokenPipeError):  # the process has ended
                stdin.close()
            process.wait()
