"""The least seconds of a row of the table on this machine: its FLOPs or its bytes, whichever takes longer.

FLOPs are divided by the rate of a matrix product of the same shape, bytes by the bandwidth of a copy. Programs that use
Winograd or Fourier convolutions can be faster than this limit.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.contestants.jaxdl_loop import adam_of, loss_of, model_of
from benchmarks.rows import Row
from benchmarks.tasks import BATCH, MEMBERS, Arrays, Task, load
from jaxdl import dataset
from jaxdl._jit import compiler_options
from jaxdl.data.batches import default_batch_size, epoch_rows
from jaxdl.train import make_eval_step, make_plan, start
from jaxdl.train.step import eval_step, eval_variables, plan_step
from jaxdl.types import Array, Dataset, Plan, RunState, Variables

CALL, CALLS = 0.01, 7  # seconds of a timing of repeated calls, and the number of timings
REPEATED = 200  # repetitions inside a compiled loop
TOGETHER = 256  # largest batch of examples that contestants evaluate or predict


class Limit(NamedTuple):
    """The work of a row, and the rates of this machine for such work."""

    flops: float
    bytes: float  # least bytes read and written
    rate: float  # FLOP/s of a matrix product or a convolution of the shape of most of the work
    bandwidth: float  # bytes per second, read and written, of a copy as large as the state of a step

    @property
    def seconds(self) -> float:
        """Return the least seconds of the row."""
        return max(self.flops / self.rate, self.bytes / self.bandwidth)


def limit(row: Row, epochs: float) -> Limit:
    """Return the limit of a row with a number of epochs."""
    task = row.task
    arrays = load(task)
    loss, metrics = loss_of(task)
    train, validation = dataset(*arrays.train), dataset(*arrays.validation)
    plan = make_plan(model_of(task), loss, adam_of(task), metrics=metrics, batch_size=BATCH)
    run_state = jax.eval_shape(lambda key: start(plan, train, key=key), jax.random.key(0))
    if task.mode in ("train", "stop", "sweep"):
        steps, members = -(-task.rows // BATCH), MEMBERS if task.mode == "sweep" else 1
        state = 2 * _bytes(run_state.train_state._replace(key=()))  # read and written
        flops_per_epoch = epoch_flops(plan, run_state, train, validation if task.kind == "mlp" else None)
        times = members * epochs * row.times
        moved = (_bytes(train) / members + steps * state) * times
        # The batches of all members form one product, so that it can use the whole machine.
        return Limit(
            flops_per_epoch * times, moved, rate(task, arrays, BATCH * members), bandwidth(state // 2 * members)
        )
    batch = _batch(validation, task.rows)
    variables = run_state.train_state.variables
    moved = (_bytes(validation) + _bytes(variables)) * row.times
    count = flops(_step_of(task), variables, batch if task.mode == "evaluate" else batch.inputs)
    fastest = max(rate(task, arrays, min(task.rows, size)) for size in (BATCH, TOGETHER))
    return Limit(count * row.times, moved, fastest, bandwidth(_bytes(variables)))


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the FLOPs of `function(*arguments)` by XLA, before its optimizations; arguments may be shapes.

    >>> flops(jnp.matmul, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 3), (3, 2))))
    60.0
    """
    analysis: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return float(analysis["flops"])


def epoch_flops(plan: Plan, run_state: RunState, train: Dataset, validation: Dataset | None = None) -> float:
    """Return the FLOPs of the training steps and the validation of an epoch, with the padding of the last batches."""
    step = plan_step(plan, prepared=True)
    total = -(-epoch_rows(train) // plan.batch_size) * flops(
        step, run_state.train_state, _batch(train, plan.batch_size)
    )
    if validation is None:
        return total
    examples, measure = epoch_rows(validation), eval_step(plan.model, plan.objective, prepared=True)
    size = min(default_batch_size(validation.inputs), examples)
    batch_flops = flops(measure, eval_variables(run_state.train_state, plan.eval_params), _batch(validation, size))
    return total + -(-examples // size) * batch_flops


def _batch(dataset: Dataset, size: int) -> Dataset:
    """Return the shapes of a batch."""
    batch: Dataset = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), dataset)
    return batch


def _step_of(task: Task) -> Callable[..., Any]:
    """Return the evaluation or the prediction of a batch."""
    model, (loss, metrics) = model_of(task), loss_of(task)
    if task.mode == "evaluate":
        return make_eval_step(model, loss, metrics=metrics)

    def predict(variables: Variables, inputs: Any) -> Any:
        return model.apply(variables, inputs, train=False)[0]

    return predict


def _bytes(tree: Any) -> int:
    """Return the bytes of all leaves."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def shape(task: Task, arrays: Arrays, batch: int) -> tuple[int, int, int]:
    """Return (M, K, N) of the matrix product with most of the FLOPs of a task.

    A convolution counts as a product with M output positions and K numbers under the kernel; N is 64 instead of 50,
    because products with 50 columns are slower than the convolutions.

    >>> images = np.zeros((1, 32, 32, 3), np.float32), np.zeros(1, np.int32)
    >>> shape(Task("small", "train", "convnet", "", 1, recipe="small"), Arrays(images, images), 32)
    (25088, 450, 64)
    """
    if task.kind == "mlp":
        sides = (arrays.train[0].shape[1], *task.widths, 1)
        inputs, outputs = max(itertools.pairwise(sides), key=lambda pair: pair[0] * pair[1])
        return batch, inputs, outputs
    places = 28 * 28 if task.recipe == "small" else 13 * 13
    return batch * places, 9 * 50, 64


def rate(task: Task, arrays: Arrays, batch: int) -> float:
    """Return the FLOP/s of the faster of a product of the shape of a task and, for images, a convolution."""
    fastest = product_rate(*shape(task, arrays, batch))
    if task.kind == "mlp":
        return fastest
    return max(fastest, convolution_rate(batch, 30 if task.recipe == "small" else 15))


def product_rate(rows: int, inputs: int, outputs: int, dtype: str = "float32") -> float:
    """Return the FLOP/s of (rows, inputs) @ (inputs, outputs) by XLA; for float32 on a CPU by NumPy, if faster."""
    rng = np.random.default_rng(0)
    left, right = rng.random((rows, inputs), np.float32), rng.random((inputs, outputs), np.float32)
    seconds = [_seconds_of(jnp.matmul, jnp.asarray(left, dtype), jnp.asarray(right, dtype))]
    if jax.default_backend() == "cpu" and dtype == "float32":
        seconds.append(_seconds(lambda: left @ right))
    return 2 * rows * inputs * outputs / min(seconds)


def convolution_rate(batch: int, side: int) -> float:
    """Return the FLOP/s of a convolution by XLA: 50 channels in and out, kernels of 3 x 3."""
    rng = np.random.default_rng(0)
    images, kernel = rng.random((batch, side, side, 50), np.float32), rng.random((3, 3, 50, 50), np.float32)
    convolve = partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    count = 2 * batch * (side - 2) ** 2 * 9 * 50 * 50
    return count / _seconds_of(convolve, jnp.asarray(images), jnp.asarray(kernel))


def _seconds_of(work: Callable[[Array, Array], Array], left: Array, right: Array) -> float:
    """Return the seconds of a compiled function of two arrays."""
    if jax.default_backend() == "cpu":
        call = jax.jit(work, compiler_options=compiler_options(convolves=left.ndim == 4))
        return _seconds(lambda: jax.block_until_ready(call(left, right)))

    def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        left, result = carry
        # Without this change XLA would move the work out of the loop.
        left = left.at[(0,) * left.ndim].set(result[(-1,) * result.ndim])
        return left, work(left, right)

    result = jax.eval_shape(work, left, right)
    return _seconds_in_loop(step, (left, jnp.zeros(result.shape, result.dtype)))


def bandwidth(size: int) -> float:
    """Return the bytes per second, read and written, of a copy of `size` bytes; small copies stay in the caches."""
    numbers = jnp.zeros(max(1024, size // 4), jnp.float32)
    if jax.default_backend() == "cpu":
        copy = jax.jit(lambda old: old + 1)
        source, target = np.zeros(numbers.shape, np.float32), np.zeros(numbers.shape, np.float32)
        copies = (lambda: jax.block_until_ready(copy(numbers)), lambda: np.copyto(target, source))
        return 2 * numbers.nbytes / min(map(_seconds, copies))
    return 2 * numbers.nbytes / _seconds_in_loop(lambda old: old + 1, numbers)


def _seconds_in_loop(step: Callable[[Any], Any], first: Any) -> float:
    """Return the seconds of a step inside a compiled loop: on a GPU a call from Python takes longer than the step."""
    loop = jax.jit(lambda first, times: lax.fori_loop(0, times, lambda _, carry: step(carry), first))
    return _seconds(lambda: jax.block_until_ready(loop(first, REPEATED))) / REPEATED


def _seconds(call: Callable[[], Any]) -> float:
    """Return the least mean seconds of a call over CALLS timings."""
    call()
    began = time.perf_counter()
    call()
    count = max(1, round(CALL / max(1e-7, time.perf_counter() - began)))
    timings = []
    for _ in range(CALLS):
        began = time.perf_counter()
        for _ in range(count):
            call()
        timings.append((time.perf_counter() - began) / count)
    return min(timings)
