"""One process of a small benchmark of all-reduces: process 0 prints, as JSON, seconds of one by its bytes.

    python -m jaxdl.launch -n 2 -- -m benchmarks.scaling.all_reduce

Each process stays on one core. The all-reduces follow each other in a compiled loop, as those of training do.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.scaling.cases import on_one_core
from jaxdl import processes
from jaxdl.sharding import make_mesh

BYTES = (4, 2**14, 2**18, 2**22, 2**24)


def seconds_of(size: int, times: int, repeats: int) -> float:
    """The median seconds of an all-reduce of so many bytes."""
    mesh = make_mesh()

    def body(_: object, x: jax.Array) -> jax.Array:
        # The shift keeps XLA from seeing that they could be one.
        return lax.pmean(x, "data") + 1

    def own(x: jax.Array) -> jax.Array:
        return lax.fori_loop(0, times, body, x)

    loop = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False))
    x = jax.make_array_from_callback(
        (size // 4,), NamedSharding(mesh, PartitionSpec()), lambda index: np.ones(size // 4, np.float32)[index]
    )
    jnp.asarray(loop(x)).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        loop(x).block_until_ready()
        seconds.append((time.perf_counter() - began) / times)
    return float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    on_one_core()
    processes.join()
    found = {size: seconds_of(size, 200 if size < 2**20 else 10, options.repeats) for size in BYTES}
    if processes.is_first():
        print(json.dumps({"processes": processes.count(), "seconds": found}), flush=True)
    processes.leave()


if __name__ == "__main__":
    main()
