"""Training on data that are not in memory: its pace beside memory, its memory, and the share of the shuffle.

    python -m benchmarks.studies.streaming [--gigabytes 10] [--folder DIR] [--repeats 7] [--seconds 60]

Three measurements. Anonymous memory (RssAnon: what the kernel cannot drop) while a part of a file of many gigabytes is
trained; the file is sparse, so it costs little room on the disk. Images a second of a ConvNet on 20,000 images, from
memory and from a file, alternating. Seconds of an epoch over 1,000,000 rows of 20 columns, alternating: in their order,
in a random order from an array, in that of the shuffle.
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

from benchmarks.studies.alternating import in_turn, spread
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


def images_in(folder: Path, count: int, *, filled: bool) -> DataSource:
    """Write a file of so many uint8 images; where it is not filled, most of it are holes that read as zeros."""
    folder.mkdir()
    inputs = np.lib.format.open_memmap(folder / "inputs.npy", "w+", np.uint8, (count, *IMAGE))
    random = np.random.default_rng(0)
    for begin in range(0, count, 1000 if filled else 100_000):
        part = inputs[begin : begin + (1000 if filled else 10)]
        part[:] = random.integers(0, 256, part.shape, np.uint8)
    del inputs
    np.save(folder / "targets.npy", random.integers(0, 10, count).astype(np.int32))
    return memory_mapped(folder / "inputs.npy", folder / "targets.npy")


def epoch(begin: RunState, train: Dataset | DataSource) -> RunState:
    """Train an epoch of the images."""
    return list(chunks(IMAGES, begin, train, last=1))[-1].state


def anonymous() -> float:
    """Return the megabytes that the kernel cannot drop."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def show_memory(source: DataSource, seconds: float) -> None:
    """Train for so long and print the anonymous memory ten times."""
    begin = start(IMAGES, loader(source, IMAGES.batch_size).first, key=jax.random.key(0))
    began, done, shown = time.perf_counter(), 0, 0
    print(f"\nRssAnon over {seconds:g} s, {source.count} images: | s | images | MB |")
    for chunk in chunks(IMAGES, begin, source, last=1, steps=AdaptiveSteps()):
        done, past = done + chunk.batches * IMAGES.batch_size, time.perf_counter() - began
        if past >= seconds * (shown + 1) / 10:
            shown += 1
            print(f"| {past:.0f} | {done} | {anonymous():.0f} |", flush=True)
        if past >= seconds:
            return


@partial(jit, static_argnames="kind")
def steps_of(run_state: RunState, train: Dataset, rows: Array, *, kind: str) -> RunState:
    """Take the training steps of an epoch, in one of three orders of the rows; `rows`: the order from an array."""
    count = len(rows)
    orders: dict[str, Callable[[Array], Array]] = {
        "in their order": lambda places: places,
        "in an order from an array": lambda places: rows[places],
        "in the order of the shuffle": permuted_rows(run_state.key, run_state.epoch, count),
    }
    batch = partial(batch_at, train, orders[kind], batch_size=TABLE.batch_size)
    body = train_body(TABLE.model, TABLE.objective, TABLE.optimizer, batch)
    batches = -(-count // TABLE.batch_size)
    state, sums = jax.lax.fori_loop(0, batches, body, (run_state.train_state, run_state.sums))
    return run_state._replace(train_state=state, sums=sums)


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that measures the seconds of some work."""

    def measure() -> float:
        began = time.perf_counter()
        jax.block_until_ready(work())
        return time.perf_counter() - began

    return measure


def show_seconds(name: str, count: int, runs: Mapping[str, Callable[[], Any]], repeats: int) -> None:
    """Run an epoch of so many rows in turn and print a table; the first is what the others are compared with."""
    seconds = in_turn({run: timed(work) for run, work in runs.items()}, repeats)
    print(
        f"\n| an epoch of {count} {name} | median s | least - greatest | {name} a second | times the first, of pairs |"
    )
    print("|---|---|---|---|---|")
    first = next(iter(seconds.values()))
    for run, values in seconds.items():
        rate, ratio = count / np.median(values), np.median(values / first)
        print(f"| {run} | {spread(values)} | {rate:.0f} | {ratio:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--folder", help="where the files are made for the time of the measurement")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        large = images_in(Path(folder, "large"), int(arguments.gigabytes * 1e9 / np.prod(IMAGE)), filled=False)
        show_memory(large, arguments.seconds)
        small = images_in(Path(folder, "small"), arguments.images, filled=True)
        images = jax.tree.map(jnp.asarray, loader(small, small.count).first)
        begin = start(IMAGES, images, key=jax.random.key(0))
        runs = {"from memory": partial(epoch, begin, images), "from a file": partial(epoch, begin, small)}
        show_seconds("images", small.count, runs, arguments.repeats)
    random = np.random.default_rng(0)
    inputs = random.normal(size=(arguments.rows, 20)).astype(np.float32)
    table = jax.tree.map(jnp.asarray, dataset(inputs, inputs.sum(1, keepdims=True)))
    begin = start(TABLE, table, key=jax.random.key(0))
    rows = permutation(begin.key, begin.epoch, arguments.rows)
    kinds = "in their order", "in an order from an array", "in the order of the shuffle"
    runs = {kind: partial(steps_of, begin, table, rows, kind=kind) for kind in kinds}
    show_seconds("rows", arguments.rows, runs, arguments.repeats)


if __name__ == "__main__":
    main()
