"""A Flax loop as its tutorials write it: linen, optax, and a training step under `jax.jit` that is called every batch.

python -m benchmarks.contestants.flax_loop
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from benchmarks.contestants.loops import Steps, run_steps
from benchmarks.contestants.protocol import Run, serve
from benchmarks.tasks import DROPPED, Arrays, Task

# Made once: `jax.jit` caches compiled functions by the identity of these objects.
KERNELS, ADAM = nn.initializers.glorot_uniform(), optax.adam(1e-3)


class Network(nn.Module):
    """The network of a task: inputs to (B, outputs)."""

    task: Task

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.task.kind == "mlp":
            if self.task.norm:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.99, epsilon=1e-3)(x)
            for width in self.task.widths:
                x = nn.relu(nn.Dense(width, kernel_init=KERNELS)(x))
            return nn.Dense(1, kernel_init=KERNELS)(x)
        for _ in range(2 if self.task.recipe == "small" else 3):
            x = nn.relu(nn.Conv(50, (3, 3), padding="VALID", kernel_init=KERNELS)(x))
            if self.task.recipe != "small":
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            if self.task.recipe == "dropout":
                x = nn.Dropout(DROPPED, deterministic=not train)(x)
        x = x.reshape(len(x), -1)
        if self.task.recipe != "small":
            x = nn.relu(nn.Dense(50, kernel_init=KERNELS)(x))
        return nn.Dense(10, kernel_init=KERNELS)(x)


class TrainState(train_state.TrainState):
    """The TrainState of Flax with the moving moments of BatchNorm and the key of dropout."""

    batch_stats: Any
    key: jax.Array


def mean_loss(task: Task, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean squared error or the mean cross-entropy."""
    if task.kind == "mlp":
        return jnp.mean((outputs - targets) ** 2)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


@partial(jax.jit, static_argnames="task")
def begin(seed: int, x: jax.Array, task: Task) -> TrainState:
    """Return a state with new variables from a seed."""
    key, init_key = jax.random.split(jax.random.key(seed))
    model = Network(task)
    variables = model.init(init_key, x, train=False)
    stats = variables.get("batch_stats", {})
    return TrainState.create(apply_fn=model.apply, params=variables["params"], tx=ADAM, batch_stats=stats, key=key)


@partial(jax.jit, static_argnames="task", donate_argnames="state")
def train_step(state: TrainState, x: jax.Array, y: jax.Array, task: Task) -> tuple[TrainState, jax.Array]:
    """Return the state after a batch, and the loss of the batch."""

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        rngs = {"dropout": jax.random.fold_in(state.key, state.step)}
        outputs, changed = state.apply_fn(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])
        return mean_loss(task, outputs, y), changed.get("batch_stats", {})

    (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=stats), loss


@jax.jit
def predict_step(state: TrainState, x: jax.Array) -> jax.Array:
    """Return the outputs of a batch."""
    return state.apply_fn({"params": state.params, "batch_stats": state.batch_stats}, x, train=False)


@partial(jax.jit, static_argnames="task")
def eval_step(state: TrainState, x: jax.Array, y: jax.Array, task: Task) -> jax.Array:
    """Return the mean loss of a batch."""
    return mean_loss(task, predict_step(state, x), y)


def prepare(task: Task, arrays: Arrays) -> Run:
    """Return the run of a task with the steps of Flax."""
    first = arrays.validation[0][:1]
    steps = Steps(
        partial(begin, x=first, task=task), partial(train_step, task=task), partial(eval_step, task=task), predict_step
    )
    return run_steps(task, arrays, steps)


if __name__ == "__main__":
    serve(prepare)
