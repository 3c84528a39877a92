"""Epochs of one ConvNet as four libraries write it, in `jaxdl.fit` and in a plain loop that jits a step.

    python -m benchmarks.studies.convolutions [--repeats 7] [--examples 2000]

Three convolutions of 50 filters with pooling and two dense layers, on images of 32 x 32 x 3 in batches of 64; random
numbers, because only time counts. Every contestant trains one epoch in turn; `--cpu-seconds` counts the CPU seconds of
the process, which other work on the machine disturbs less. Prints medians with the least and the greatest value.
"""

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxdl
from benchmarks.studies.alternating import alternate
from jaxdl.losses import softmax_cross_entropy

BATCH, FILTERS, WIDTH, CLASSES = 64, 50, 50, 10
ADAM = optax.adam(1e-3)


class Linen(nn.Module):
    """The network in stock layers of Flax Linen."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = images.astype(jnp.float32) / 255
        for _ in range(3):
            hidden = nn.relu(nn.Conv(FILTERS, (3, 3), padding="VALID")(hidden))
            hidden = nn.max_pool(hidden, (2, 2), (2, 2))
        hidden = nn.relu(nn.Dense(WIDTH)(hidden.reshape(len(hidden), -1)))
        return nn.Dense(CLASSES)(hidden)


class Nnx(nnx.Module):
    """The network in stock layers of Flax NNX."""

    def __init__(self, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, kernel_size=(3, 3), padding="VALID", rngs=rngs)
        self.convs = nnx.List([conv(3, FILTERS), conv(FILTERS, FILTERS), conv(FILTERS, FILTERS)])
        self.dense, self.last = nnx.Linear(4 * FILTERS, WIDTH, rngs=rngs), nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = images.astype(jnp.float32) / 255
        for conv in self.convs:
            hidden = nnx.max_pool(nnx.relu(conv(hidden)), (2, 2), strides=(2, 2))
        return self.last(nnx.relu(self.dense(hidden.reshape(len(hidden), -1))))


def keras_model() -> jaxdl.Model:
    """Return the network in stock layers of Keras."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    from keras import Sequential, layers

    net = Sequential([layers.Input((32, 32, 3)), layers.Rescaling(1 / 255)])
    for _ in range(3):
        net.add(layers.Conv2D(FILTERS, 3, activation="relu"))
        net.add(layers.MaxPooling2D())
    for layer in (layers.Flatten(), layers.Dense(WIDTH, activation="relu"), layers.Dense(CLASSES)):
        net.add(layer)
    model: jaxdl.Model = jaxdl.from_keras(net)  # type: ignore[attr-defined, unused-ignore]
    return model


def equinox_model() -> jaxdl.Model:
    """Return the network in stock layers of Equinox, whose images have their channels first."""
    from equinox import nn as layers

    def make(key: jax.Array) -> layers.Sequential:
        keys = iter(jax.random.split(key, 5))
        parts = [layers.Lambda(lambda image: image.astype(jnp.float32).transpose(2, 0, 1) / 255)]
        for channels in (3, FILTERS, FILTERS):
            conv = layers.Conv2d(channels, FILTERS, 3, key=next(keys))
            parts += [conv, layers.Lambda(jax.nn.relu), layers.MaxPool2d(2, 2)]
        parts += [layers.Lambda(jnp.ravel), layers.Linear(4 * FILTERS, WIDTH, key=next(keys))]
        parts += [layers.Lambda(jax.nn.relu), layers.Linear(WIDTH, CLASSES, key=next(keys))]
        return layers.Sequential(parts)

    model: jaxdl.Model = jaxdl.from_equinox(make)  # type: ignore[attr-defined, unused-ignore]
    return model


def fitted(model: jaxdl.Model, data: jaxdl.Dataset, clock: Callable[[], float]) -> Callable[[], float]:
    """Return a function that measures the last of two epochs of `jaxdl.fit`."""

    def measure() -> float:
        ends: list[float] = []
        jaxdl.fit(
            model,
            softmax_cross_entropy,
            ADAM,
            data,
            epochs=2,
            batch_size=BATCH,
            callbacks=[lambda *_: ends.append(clock())],
        )
        return ends[1] - ends[0]

    return measure


def plain(data: jaxdl.Dataset, clock: Callable[[], float]) -> Callable[[], float]:
    """Return a function that measures an epoch of a loop of Flax and optax that jits a step."""
    images, labels = jnp.asarray(data.inputs), jnp.asarray(data.targets)
    net = Linen()
    params = net.init(jax.random.key(0), images[:1])["params"]
    optimizer = ADAM.init(params)

    @jax.jit
    def step(params, optimizer, images, labels):  # type: ignore[no-untyped-def]
        def loss(params):  # type: ignore[no-untyped-def]
            logits = net.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        gradients = jax.grad(loss)(params)
        updates, optimizer = ADAM.update(gradients, optimizer)
        return optax.apply_updates(params, updates), optimizer

    def measure() -> float:
        began, state = clock(), (params, optimizer)
        order = np.random.default_rng(0).permutation(len(images))
        for start in range(0, len(images), BATCH):
            rows = order[start : start + BATCH]
            state = step(*state, images[rows], labels[rows])
        jax.block_until_ready(state)
        return clock() - began

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--cpu-seconds", action="store_true")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_seconds else time.perf_counter
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (arguments.examples, 32, 32, 3)).astype(np.uint8)
    data = jaxdl.dataset(images, draws.integers(0, CLASSES, arguments.examples).astype(np.int32))
    models = {
        "jaxdl.convnet": jaxdl.convnet((FILTERS,) * 3, widths=(WIDTH,), pool=True),
        "Flax Linen": jaxdl.from_linen(Linen()),
        "Flax NNX": jaxdl.from_nnx(lambda rngs: Nnx(rngs)),
    }
    for name, adapter, make in (("keras", "from_keras", keras_model), ("equinox", "from_equinox", equinox_model)):
        if hasattr(jaxdl, adapter) and importlib.util.find_spec(name):
            models[name.capitalize()] = make()
        else:
            print(f"without {name}: jaxdl.{adapter} or the library is missing")
    measures = {name: fitted(model, data, clock) for name, model in models.items()}
    measures["a loop that jits a step"] = plain(data, clock)
    alternate(f"one epoch of {arguments.examples} images", measures, arguments.repeats)


if __name__ == "__main__":
    main()
