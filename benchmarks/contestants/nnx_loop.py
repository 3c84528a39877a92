"""An NNX loop as its tutorials write it: `nnx.Optimizer`, and a training step under `nnx.jit` called every batch.

    python -m benchmarks.contestants.nnx_loop

The step is `nnx.jit_partial`, the form of `nnx.jit` that flattens the model once and saves a third of a call.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.contestants.loops import Steps, run_steps
from benchmarks.contestants.protocol import Run, serve
from benchmarks.tasks import DROPPED, Arrays, Task

# Made once: `jax.jit` caches compiled functions by the identity of these objects.
KERNELS, ADAM = nnx.initializers.glorot_uniform(), optax.adam(1e-3)
PIXELS = {"small": 28 * 28, "pooled": 2 * 2, "dropout": 2 * 2}  # after the convolutions of a recipe


class Perceptron(nnx.Module):
    """Dense layers with ReLU between them: (B, F) to (B, 1)."""

    def __init__(self, task: Task, features: int, rngs: nnx.Rngs):
        widths = (features, *task.widths, 1)
        moments = {"momentum": 0.99, "epsilon": 1e-3}
        self.norm = nnx.BatchNorm(features, **moments, rngs=rngs) if task.norm else None
        self.layers = nnx.List([nnx.Linear(*pair, kernel_init=KERNELS, rngs=rngs) for pair in pairwise(widths)])

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.norm is not None:
            x = self.norm(x, use_running_average=not train)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Convolutions(nnx.Module):
    """Convolutions of 50 filters, pooled or not: (B, 32, 32, 3) to (B, 10)."""

    def __init__(self, task: Task, rngs: nnx.Rngs):
        channels = (3, 50, 50) if task.recipe == "small" else (3, 50, 50, 50)
        conv = partial(nnx.Conv, kernel_size=(3, 3), padding="VALID", kernel_init=KERNELS, rngs=rngs)
        self.convs = nnx.List([conv(*pair) for pair in pairwise(channels)])
        self.pools = task.recipe != "small"
        self.dropout = nnx.Dropout(DROPPED, rngs=rngs) if task.recipe == "dropout" else None
        widths = (PIXELS[task.recipe] * 50, 10) if task.recipe == "small" else (PIXELS[task.recipe] * 50, 50, 10)
        self.layers = nnx.List([nnx.Linear(*pair, kernel_init=KERNELS, rngs=rngs) for pair in pairwise(widths)])

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for conv in self.convs:
            x = nnx.relu(conv(x))
            x = nnx.max_pool(x, (2, 2), strides=(2, 2)) if self.pools else x
            x = x if self.dropout is None else self.dropout(x, deterministic=not train)
        x = x.reshape(len(x), -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def network(task: Task, features: int, seed: int) -> nnx.Module:
    """Return the network of a task with new variables from a seed."""
    rngs = nnx.Rngs(jax.random.key(seed))
    return Perceptron(task, features, rngs) if task.kind == "mlp" else Convolutions(task, rngs)


def mean_loss(task: Task, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean squared error or the mean cross-entropy."""
    if task.kind == "mlp":
        return jnp.mean((outputs - targets) ** 2)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def steps_of(task: Task, features: int) -> Steps:
    """Return the compiled steps, which change one model in place; `begin` draws its variables."""

    @partial(nnx.jit, graph=False)
    def new(seed: int) -> tuple[nnx.Module, nnx.Optimizer]:
        model = network(task, features, seed)
        return model, nnx.Optimizer(model, ADAM, wrt=nnx.Param)

    def train_step(model: nnx.Module, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
        # The other variables of a model, such as the keys of dropout, have no gradient.
        graph, params, others = nnx.split(model, nnx.Param, ...)

        def loss_of(params: nnx.State) -> tuple[jax.Array, nnx.State]:
            merged = nnx.merge(graph, params, others, copy=True)
            loss = mean_loss(task, merged(x, train=True), y)
            return loss, nnx.state(merged, nnx.Not(nnx.Param))

        (loss, changes), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        nnx.update(model, changes)
        optimizer.update(model, grads)
        return loss

    def predict_step(model: nnx.Module, x: jax.Array) -> jax.Array:
        return model(x, train=False)

    def eval_step(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_loss(task, model(x, train=False), y)

    both = model, _ = new(0)
    trains = nnx.jit_partial(train_step, *both, graph=False)
    measures = nnx.jit_partial(eval_step, model, graph=False)
    predicts = nnx.jit_partial(predict_step, model, graph=False)

    def begin(seed: int) -> None:
        for current, fresh in zip(both, new(seed), strict=True):
            nnx.update(current, nnx.state(fresh))

    return Steps(
        begin,
        lambda _, x, y: (None, trains(x, y)),
        lambda _, x, y: measures(x, y),
        lambda _, x: predicts(x),
    )


def prepare(task: Task, arrays: Arrays) -> Run:
    """Return the run of a task with the steps of NNX."""
    return run_steps(task, arrays, steps_of(task, arrays.train[0].shape[-1]))


if __name__ == "__main__":
    serve(prepare)
