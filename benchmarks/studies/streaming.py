"""Training from a file: its memory, its speed compared with data in memory, and the cost of the shuffle.

    python -m benchmarks.studies.streaming [--gigabytes 10] [--folder DIR] [--repeats 7] [--seconds 60]

Three measurements. The anonymous memory (RssAnon, which the kernel cannot drop) while training on a part of a file of
many gigabytes; the file is sparse, so it needs little disk space. The images per second of a ConvNet on 20,000 images,
from memory and from a file, in turn. The seconds of an epoch over 1,000,000 examples of 20 columns, in turn: in order,
in a random order from an array, and in the order of the shuffle.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.studies.alternating import cells_of, in_turn
from jaxdl import losses, metrics
from jaxdl._jit import jit
from jaxdl.data import DataSource, dataset, memory_mapped
from jaxdl.data.batches import batch_at, permutation, permuted_rows
from jaxdl.data.streaming import loader
from jaxdl.nn import convnet, mlp
from jaxdl.train import make_plan, start
from jaxdl.train.loop import AdaptiveSteps, chunks
from jaxdl.train.step import train_body
from jaxdl.types import Array, Dataset, RunState

IMAGE = (32, 32, 3)
IMAGES = make_plan(
    convnet((16, 16), pool=True, widths=(32,)),
    losses.softmax_cross_entropy,
    optax.adam(1e-3),
    metrics=[metrics.accuracy],
    batch_size=128,
)
TABLE = make_plan(mlp((100, 50)), losses.squared_error, optax.adam(1e-3), batch_size=512)


def write_images(folder: Path, count: int, *, sparse: bool) -> DataSource:
    """Write a file of uint8 images; most of a sparse file are holes that read as zeros."""
    folder.mkdir()
    inputs = np.lib.format.open_memmap(folder / "inputs.npy", "w+", np.uint8, (count, *IMAGE))
    random = np.random.default_rng(0)
    for begin in range(0, count, 100_000 if sparse else 1000):
        part = inputs[begin : begin + (10 if sparse else 1000)]
        part[:] = random.integers(0, 256, part.shape, np.uint8)
    del inputs
    np.save(folder / "targets.npy", random.integers(0, 10, count).astype(np.int32))
    return memory_mapped(folder / "inputs.npy", folder / "targets.npy")


def train_epoch(run_state: RunState, train: Dataset | DataSource) -> RunState:
    """Train an epoch of the images."""
    return list(chunks(IMAGES, run_state, train, last=1))[-1].state


def anonymous_memory() -> float:
    """Return the anonymous memory of this process in MiB."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match.group(1)) / 1024


def print_memory(source: DataSource, seconds: float) -> None:
    """Train for `seconds`, and print the anonymous memory ten times."""
    run_state = start(IMAGES, loader(source, IMAGES.batch_size).first, key=jax.random.key(0))
    began, images, lines = time.perf_counter(), 0, 0
    print(f"\nRssAnon over {seconds:g} s, {source.count} images: | s | images | MB |")
    for chunk in chunks(IMAGES, run_state, source, last=1, steps=AdaptiveSteps()):
        images, elapsed = images + chunk.batches * IMAGES.batch_size, time.perf_counter() - began
        if elapsed >= seconds * (lines + 1) / 10:
            lines += 1
            print(f"| {elapsed:.0f} | {images} | {anonymous_memory():.0f} |", flush=True)
        if elapsed >= seconds:
            return


@partial(jit, static_argnames="kind")
def train_steps(run_state: RunState, train: Dataset, order: Array, *, kind: str) -> RunState:
    """Take the training steps of an epoch, in one of three orders of the examples."""
    count = len(order)
    orders: dict[str, Callable[[Array], Array]] = {
        "in order": lambda positions: positions,
        "in an order from an array": lambda positions: order[positions],
        "in the order of the shuffle": permuted_rows(run_state.key, run_state.epoch, count),
    }
    batch = partial(batch_at, train, orders[kind], batch_size=TABLE.batch_size)
    body = train_body(TABLE.model, TABLE.objective, TABLE.optimizer, batch)
    batches = -(-count // TABLE.batch_size)
    state, sums = jax.lax.fori_loop(0, batches, body, (run_state.train_state, run_state.sums))
    return run_state._replace(train_state=state, sums=sums)


def timer(work: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that measures the seconds of `work()`."""

    def measure() -> float:
        began = time.perf_counter()
        jax.block_until_ready(work())
        return time.perf_counter() - began

    return measure


def print_seconds(name: str, count: int, runs: Mapping[str, Callable[[], Any]], repeats: int) -> None:
    """Run epochs of `count` examples in turn, and print a table with ratios to the first."""
    seconds = in_turn({run: timer(work) for run, work in runs.items()}, repeats)
    print(f"\n| an epoch of {count} {name} | median s | least - greatest | {name} per second | ratio to the first |")
    print("|---|---|---|---|---|")
    first = next(iter(seconds.values()))
    for run, values in seconds.items():
        rate, ratio = count / np.median(values), np.median(values / first)
        print(f"| {run} | {cells_of(values)} | {rate:.0f} | {ratio:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--folder", help="for temporary files; default: the system's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=1_000_000, help="examples of the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        large = write_images(Path(folder, "large"), int(arguments.gigabytes * 1e9 / np.prod(IMAGE)), sparse=True)
        print_memory(large, arguments.seconds)
        small = write_images(Path(folder, "small"), arguments.images, sparse=False)
        images = jax.tree.map(jnp.asarray, loader(small, small.count).first)
        sources = {"from memory": images, "from a file": small}
        run_state = start(IMAGES, images, key=jax.random.key(0))
        runs = {name: partial(train_epoch, run_state, source) for name, source in sources.items()}
        print_seconds("images", small.count, runs, arguments.repeats)
    random = np.random.default_rng(0)
    inputs = random.normal(size=(arguments.rows, 20)).astype(np.float32)
    table = jax.tree.map(jnp.asarray, dataset(inputs, inputs.sum(1, keepdims=True)))
    run_state = start(TABLE, table, key=jax.random.key(0))
    order = permutation(run_state.key, run_state.epoch, arguments.rows)
    kinds = "in order", "in an order from an array", "in the order of the shuffle"
    runs = {kind: partial(train_steps, run_state, table, order, kind=kind) for kind in kinds}
    print_seconds("examples", arguments.rows, runs, arguments.repeats)


if __name__ == "__main__":
    main()
