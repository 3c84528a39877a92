"""What no program that computes directly can undercut, so without Winograd's or Fourier's ways: the FLOPs of a row over
what a matrix product of its shape reaches here, or its bytes over what a copy reaches, whichever takes longer."""

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
from jaxdl.data.batches import epoch_rows, eval_batch_size
from jaxdl.train import make_eval_step, make_plan, start
from jaxdl.train.step import eval_step, eval_variables, plan_step
from jaxdl.types import Array, Dataset, Plan, RunState, Variables

CALL, CALLS = 0.01, 7  # seconds of a timing of many calls, and how many timings
REPEATED = 200  # times that a program does its work
TOGETHER = 256  # rows that contestants measure or predict at once, at most


class Limit(NamedTuple):
    """The work of a row, and how fast this machine does such work."""

    flops: float
    bytes: float  # that must be read and written at least
    rate: float  # FLOP/s of a matrix product, or a convolution, of the shape that most of the work has
    bandwidth: float  # bytes a second, read and written, of a copy as large as what a step touches

    @property
    def seconds(self) -> float:
        """The least that the row can take."""
        return max(self.flops / self.rate, self.bytes / self.bandwidth)


def limit(row: Row, epochs: float) -> Limit:
    """The limit of a row of so many epochs."""
    task = row.task
    arrays = load(task)
    loss, metrics = loss_of(task)
    train, validation = dataset(*arrays.train), dataset(*arrays.validation)
    plan = make_plan(model_of(task), loss, adam_of(task), metrics=metrics, batch_size=BATCH)
    run_state = jax.eval_shape(lambda key: start(plan, train, key=key), jax.random.key(0))
    if task.deed in ("train", "stop", "sweep"):
        steps, members = -(-task.rows // BATCH), MEMBERS if task.deed == "sweep" else 1
        state = 2 * _bytes(run_state.train_state._replace(key=()))  # read and written
        flops_of_one = epoch_flops(plan, run_state, train, validation if task.kind == "mlp" else None)
        times = members * epochs * row.times
        moved = (_bytes(train) / members + steps * state) * times
        # Of members the rows stand side by side, so that all that the machine has can be at work.
        return Limit(flops_of_one * times, moved, rate(task, arrays, BATCH * members), bandwidth(state // 2 * members))
    batch = _batch(validation, task.rows)
    weights = run_state.train_state.variables
    moved = (_bytes(validation) + _bytes(weights)) * row.times
    count = flops(_deed(task), weights, batch if task.deed == "evaluate" else batch.inputs)
    fastest = max(rate(task, arrays, min(task.rows, size)) for size in (BATCH, TOGETHER))
    return Limit(count * row.times, moved, fastest, bandwidth(_bytes(weights)))


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the FLOPs of `function(*arguments)` by XLA, before it optimizes; shapes will do.

    >>> flops(jnp.matmul, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 3), (3, 2))))
    60.0
    """
    return float(jax.jit(function).lower(*arguments).cost_analysis()["flops"])


def epoch_flops(plan: Plan, run_state: RunState, train: Dataset, validation: Dataset | None = None) -> float:
    """Return the FLOPs of an epoch: its training steps and its validation, with the padding of the last batches."""
    step = plan_step(plan, prepared=True)
    total = -(-epoch_rows(train) // plan.batch_size) * flops(
        step, run_state.train_state, _batch(train, plan.batch_size)
    )
    if validation is None:
        return total
    rows, measure = (
        epoch_rows(validation),
        eval_step(plan.model, plan.objective, prepared=True),
    )
    size = min(eval_batch_size(validation.inputs), rows)
    once = flops(measure, eval_variables(run_state.train_state, plan.eval_params), _batch(validation, size))
    return total + -(-rows // size) * once


def _batch(rows: Dataset, size: int) -> Dataset:
    """Return the shapes of so many rows."""
    batch: Dataset = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), rows)
    return batch


def _deed(task: Task) -> Callable[..., Any]:
    model, (loss, measured) = model_of(task), loss_of(task)
    if task.deed == "evaluate":
        return make_eval_step(model, loss, metrics=measured)

    def predict(weights: Variables, inputs: Any) -> Any:
        return model.apply(weights, inputs, train=False)[0]

    return predict


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def shape(task: Task, arrays: Arrays, batch: int) -> tuple[int, int, int]:
    """Rows, inputs and outputs of the matrix product that most of the task's FLOPs are in.

    A convolution is one of as many rows as there are places, of as many inputs as the kernel sees; its outputs are made
    up to 64, since products of 50 are slower than the convolutions.

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
    """FLOP/s of the fastest way here to what most of a task's FLOPs are: a product of their shape, or a convolution."""
    fastest = product_rate(*shape(task, arrays, batch))
    if task.kind == "mlp":
        return fastest
    return max(fastest, convolution_rate(batch, 30 if task.recipe == "small" else 15))


def product_rate(rows: int, inputs: int, outputs: int, dtype: str = "float32") -> float:
    """FLOP/s of a product (rows, inputs) by (inputs, outputs): of XLA's or, of float32 on a CPU, NumPy's if faster."""
    rng = np.random.default_rng(0)
    left, right = rng.random((rows, inputs), np.float32), rng.random((inputs, outputs), np.float32)
    ways = [_seconds_of(jnp.matmul, jnp.asarray(left, dtype), jnp.asarray(right, dtype))]
    if jax.default_backend() == "cpu" and dtype == "float32":
        ways.append(_seconds(lambda: left @ right))
    return 2 * rows * inputs * outputs / min(ways)


def convolution_rate(batch: int, side: int) -> float:
    """FLOP/s of a convolution of 50 channels by 50 kernels of 3 x 3, as XLA has it."""
    rng = np.random.default_rng(0)
    images, kernel = rng.random((batch, side, side, 50), np.float32), rng.random((3, 3, 50, 50), np.float32)
    convolve = partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    flops_of_one = 2 * batch * (side - 2) ** 2 * 9 * 50 * 50
    return flops_of_one / _seconds_of(convolve, jnp.asarray(images), jnp.asarray(kernel))


def _seconds_of(work: Callable[[Array, Array], Array], left: Array, right: Array) -> float:
    if jax.default_backend() == "cpu":
        once = jax.jit(work, compiler_options=compiler_options(convolves=left.ndim == 4))
        return _seconds(lambda: jax.block_until_ready(once(left, right)))

    def again(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        left, result = carry
        left = left.at[(0,) * left.ndim].set(result[(-1,) * result.ndim])  # else once would do for all
        return left, work(left, right)

    result = jax.eval_shape(work, left, right)
    return _in_a_loop(again, (left, jnp.zeros(result.shape, result.dtype)))


def bandwidth(size: int) -> float:
    """Bytes a second, read and written, of a copy of so many bytes: of caches, where they hold them."""
    numbers = jnp.zeros(max(1024, size // 4), jnp.float32)
    if jax.default_backend() == "cpu":
        copy = jax.jit(lambda old: old + 1)
        here, there = np.zeros(numbers.shape, np.float32), np.zeros(numbers.shape, np.float32)
        ways = (lambda: jax.block_until_ready(copy(numbers)), lambda: np.copyto(there, here))
        return 2 * numbers.nbytes / min(map(_seconds, ways))
    return 2 * numbers.nbytes / _in_a_loop(lambda old: old + 1, numbers)


def _in_a_loop(step: Callable[[Any], Any], first: Any) -> float:
    """The seconds of a step that a program repeats: to call it from Python takes longer than it does on a GPU."""
    program = jax.jit(lambda first, times: lax.fori_loop(0, times, lambda _, carry: step(carry), first))
    return _seconds(lambda: jax.block_until_ready(program(first, REPEATED))) / REPEATED


def _seconds(call: Callable[[], Any]) -> float:
    """The least seconds of a call, of timings of enough of them."""
    call()
    began = time.perf_counter()
    call()
    many = max(1, round(CALL / max(1e-7, time.perf_counter() - began)))
    timings = []
    for _ in range(CALLS):
        began = time.perf_counter()
        for _ in range(many):
            call()
        timings.append((time.perf_counter() - began) / many)
    return min(timings)
