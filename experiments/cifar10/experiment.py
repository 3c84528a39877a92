"""What is in a picture: CIFAR-10 with ConvNets.

    python -m experiments.cifar10 --recipe pooled

The lesson's networks, the first 5,000 training images, 10 epochs; and `strong`, which shows what augmentation,
BatchNorm and a schedule add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import numpy as np
import optax

from experiments.cifar10.report import describe_data, evaluate, figures, model_card, table
from jaxdl.data import take
from jaxdl.datasets import ImageData, load_cifar10
from jaxdl.errors import InputError
from jaxdl.losses import smoothed_cross_entropy, softmax_cross_entropy
from jaxdl.metrics import accuracy
from jaxdl.nn import ModelSpec, build_model, crop, cutout, flip, with_augmentation
from jaxdl.runs import Experiment, RunFlags, Setup, runner
from jaxdl.runs.flags import check_flags
from jaxdl.train import early_stopping
from jaxdl.types import Array, Dataset

Loss = Callable[[Array, Array], Array]
MOST_VALIDATION = 5000
MOST = {"epochs": 10**6, "batch_size": 10**6, "train_size": 10**9, "patience": 10**6, "width": 4096}
DECAY, SMOOTHING, AVERAGE, RISING = 5e-4, 0.1, 0.99, 0.25  # of the recipe `strong`


class Recipe(NamedTuple):
    """What the lesson does in one of its exercises, or what is done beyond it."""

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    dropout: float | None = None
    width: int | None = None


RECIPES = {
    "small": Recipe(),
    "dense": Recipe(),
    "pooled": Recipe(),
    "dropout": Recipe(dropout=0.2),
    "strong": Recipe(epochs=30, batch_size=64, learning_rate=0.2, width=16),
}


@dataclass(frozen=True)
class Flags:
    """What is trained, and on what."""

    recipe: Literal["small", "dense", "pooled", "dropout", "strong"] = "small"
    """small (two convolutions of 50 kernels); dense (no convolution: layers of 100 and 50); pooled (three convolutions
    with max pooling, a layer of 50); dropout (the same with dropout after each pooling); strong (a residual network
    with BatchNorm, changed images, smoothed labels, a one-cycle schedule and averaged weights). They train 10 epochs
    with 32 images a step by Adam at 0.001, never stop before, and strong 30 epochs with 64 at 0.2 at most."""
    data: str = "auto"
    """auto (the folder in JAXDL_DATA, else the cache, else a download, else simulated), tfds, a folder or an archive
    with the published files, or simulated[:IMAGES[:SEED]]."""
    train_size: int = 5000
    """Train on so many of the training images, the first ones; what is left, 5000 at most, is for validation."""
    lesson_split: bool = False
    """Validate on the test images, as the lesson does; the results then say so."""
    dropout: float | None = None
    """The share of numbers that dropout sets to 0, for --recipe dropout; by default 0.2."""
    width: int | None = None
    """Kernels of the first convolution, for --recipe strong; by default 16."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters are float32 always."""


@dataclass(frozen=True)
class Config(RunFlags, Flags):
    """Tells what is in small pictures: cats, ships, horses, ten kinds of things."""


def resolve(config: Config) -> Config:
    """The configuration with the recipe's values where a flag was left out, checked."""
    recipe = RECIPES[config.recipe]
    for name in ("dropout", "width"):
        if getattr(config, name) is not None and getattr(recipe, name) is None:
            of = next(other for other, values in RECIPES.items() if getattr(values, name) is not None)
            raise InputError(f"--{name} must come with --recipe {of}, got --recipe {config.recipe}. Leave it out.")
    left_out = {name: value for name, value in recipe._asdict().items() if getattr(config, name) is None}
    config = replace(config, **left_out)
    for name, most in MOST.items():
        value = getattr(config, name)
        if value is not None and not 1 <= value <= most:
            raise InputError(f"--{name.replace('_', '-')} must be from 1 to {most}, got {value}.")
    check_flags(config)
    return config


def network(config: Config) -> ModelSpec:
    """The network of a resolved configuration as data; `strong` predicts twice."""
    dtype = {"dtype": config.dtype}
    if config.recipe == "strong":
        return ModelSpec("residual_net", {"width": config.width, **dtype}, flip_averaged=True)
    if config.recipe == "dense":
        return ModelSpec("convnet", {"filters": (), "widths": (100, 50), **dtype})
    if config.recipe == "small":
        return ModelSpec("convnet", {"filters": (50, 50), **dtype})
    pooled = {"filters": (50, 50, 50), "widths": (50,), "pool": True, "dropout": config.dropout or 0}
    return ModelSpec("convnet", {**pooled, **dtype})


def momentum(learning_rate: float) -> optax.GradientTransformation:
    """Gradient descent with Nesterov's momentum 0.9, and weight decay of the kernels alone."""
    kernels = partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    decay = optax.add_decayed_weights(DECAY, mask=kernels)
    return optax.chain(decay, optax.sgd(learning_rate, momentum=0.9, nesterov=True))


def divide(config: Config, dataset: ImageData) -> tuple[dict[str, np.ndarray], dict[str, Dataset]]:
    """The rows of the training files for training and validation, those of the test file, and the three sets of them.

    Raises InputError where the training files have too few images, or a class has none among those to train on.
    """
    count, size = len(dataset.train.sample_weight), config.train_size
    left = 0 if config.lesson_split else 1
    if size > count - left:
        kept = "" if config.lesson_split else ", so that one is left for validation (or --lesson-split)"
        raise InputError(
            f"--train-size must be at most {count - left} of the {count} training images{kept}, got {size}. Use fewer."
        )
    rest = np.arange(size, min(count, size + MOST_VALIDATION))
    test = np.arange(len(dataset.test.sample_weight))
    rows = {"train": np.arange(size), "validation": test if config.lesson_split else rest, "test": test}
    # Slices: a copy of the images would double what a run keeps in memory.
    train = jax.tree.map(lambda leaf: leaf[:size], dataset.train)
    validation = dataset.test if config.lesson_split else take(dataset.train, rest)
    missing = set(range(len(dataset.classes))) - set(np.unique(train.targets).tolist())
    if missing:
        names = ", ".join(dataset.classes[label] for label in sorted(missing))
        raise InputError(
            f"every class must be among the {size} images to train on, got none of {names}. Use a larger --train-size."
        )
    return rows, {"train": train, "validation": validation, "test": dataset.test}


def build(config: Config, dataset: ImageData) -> Setup:
    """The model, the three sets and how they train; pure."""
    config = resolve(config)
    rows, sets = divide(config, dataset)
    assert config.epochs is not None and config.batch_size is not None and config.learning_rate is not None
    net, optimizer, rate, ema_decay = network(config), optax.adam, config.learning_rate, None
    model = build_model(net)
    loss: Loss = softmax_cross_entropy
    if config.recipe == "strong":
        model = with_augmentation(model, flip, crop(4), cutout(8))
        loss, optimizer, ema_decay = smoothed_cross_entropy(SMOOTHING), momentum, AVERAGE
        steps = config.epochs * -(-len(rows["train"]) // config.batch_size)
        rate = optax.cosine_onecycle_schedule(steps, config.learning_rate, RISING)
    return Setup(
        sets["train"],
        sets["validation"],
        sets["test"],
        model=model,
        loss=loss,
        # Injected, so that the learning rate is part of the state and recorded every epoch.
        optimizer=optax.inject_hyperparams(optimizer)(learning_rate=rate),
        metrics=(accuracy,),
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        early_stopping=early_stopping("val_loss", patience=config.patience),
        ema_decay=ema_decay,
        network=net,
        dataset=dataset,
        rows=rows,
    )


def load(config: Config) -> ImageData:
    """The images that the configuration names."""
    return load_cifar10(config.data)


def frozen_flags(config: Config) -> dict[str, str]:
    """The flags that a run cannot change later beyond those of every run, and why."""
    return {"epochs": "the cycle of the learning rate is spread over them"} if config.recipe == "strong" else {}


EXPERIMENT = Experiment(
    name="CIFAR-10",
    build=build,
    load=load,
    resolve=resolve,
    describe_data=describe_data,
    model_card=model_card,
    evaluate=evaluate,
    figures=figures,
    table=table,
    frozen_flags=frozen_flags,
    progress_metrics=("loss", "val_accuracy"),
)
run = partial(runner.run, EXPERIMENT)
