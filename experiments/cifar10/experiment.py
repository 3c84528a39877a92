"""Classify the pictures of CIFAR-10 with ConvNets.

    python -m experiments.cifar10 --recipe pooled

The networks of the lesson train on the first 5,000 images for 10 epochs. The recipe `strong` adds augmentation,
BatchNorm and a schedule of the learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from jaxdl.runs.experiment import with_recipe
from jaxdl.train import early_stopping
from jaxdl.types import Array, Dataset

Loss = Callable[[Array, Array], Array]
MAX_VALIDATION = 5000
MAX = {"epochs": 10**6, "batch_size": 10**6, "train_size": 10**9, "patience": 10**6, "width": 4096}
WEIGHT_DECAY, SMOOTHING, EMA_DECAY, WARMUP = 5e-4, 0.1, 0.99, 0.25  # of the recipe `strong`


class Recipe(NamedTuple):
    """The settings of an exercise of the lesson, or of a stronger network."""

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
    """The flags of the model and of the data."""

    recipe: Literal["small", "dense", "pooled", "dropout", "strong"] = "small"
    """The network and its settings, which other flags override.
    small: two convolutions of 50 kernels;
    dense: no convolution, hidden layers of 100 and 50 nodes;
    pooled: three convolutions of 50 kernels with max pooling, a hidden layer of 50 nodes;
    dropout: pooled with dropout after each pooling;
    strong: a residual network with BatchNorm, augmentation, label smoothing and averaged weights.
    The recipe strong trains 30 epochs on batches of 64 images, with a one-cycle learning rate up to 0.2.
    The others train 10 epochs on batches of 32 images, with Adam at a learning rate of 0.001."""
    data: str = "auto"
    """Source of the data: a folder or an archive with the published files, or one of
    auto: the folder in the variable JAXDL_DATA, else the cache, else a download, else simulated;
    tfds: TensorFlow Datasets;
    simulated[:IMAGES[:SEED]]: simulated pictures."""
    train_size: int = 5000
    """Number of training images, the first of the file; up to 5000 of the next images are for validation."""
    lesson_split: bool = False
    """Validate on the test images, as the lesson does; a note in the results says so."""
    dropout: float | None = None
    """Dropout rate, from 0 to below 1, only with --recipe dropout; by default 0.2."""
    width: int | None = None
    """Kernels of the first convolution, 1 to 4096, only with --recipe strong; by default 16."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the computation; parameters are always float32."""


@dataclass(frozen=True)
class Config(RunFlags, Flags):
    """Train a network that classifies small pictures into ten classes."""


def resolve(config: Config) -> Config:
    """Return the flags with the recipe's values where they are None. Raises InputError for a flag out of range."""
    recipe = RECIPES[config.recipe]
    for name in ("dropout", "width"):
        if getattr(config, name) is not None and getattr(recipe, name) is None:
            enabling = next(other for other, values in RECIPES.items() if getattr(values, name) is not None)
            raise InputError(
                f"--{name} must come with --recipe {enabling}, got --recipe {config.recipe}. Leave it out."
            )
    for name, most in MAX.items():
        value = getattr(config, name)
        if value is not None and not 1 <= value <= most:
            raise InputError(f"--{name.replace('_', '-')} must be from 1 to {most}, got {value}.")
    return with_recipe(config, recipe._asdict())


def network(config: Config) -> ModelSpec:
    """Return the network; `strong` averages its predictions over a picture and its mirror image."""
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
    """Return gradient descent with Nesterov momentum 0.9, and weight decay of the kernels only."""
    kernels = partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    decay = optax.add_decayed_weights(WEIGHT_DECAY, mask=kernels)
    return optax.chain(decay, optax.sgd(learning_rate, momentum=0.9, nesterov=True))


def split_sets(config: Config, dataset: ImageData) -> tuple[dict[str, np.ndarray], dict[str, Dataset]]:
    """Return the indices of the three sets in the training and test files, and the sets.

    Raises InputError where the training files have too few images, or the training set lacks a class.
    """
    count, size = len(dataset.train.sample_weight), config.train_size
    needed = 0 if config.lesson_split else 1
    if size > count - needed:
        reason = "" if config.lesson_split else ", so that one is left for validation (or --lesson-split)"
        raise InputError(
            f"--train-size must be at most {count - needed} of the {count} training images{reason}, got {size}. "
            "Use fewer."
        )
    rest = np.arange(size, min(count, size + MAX_VALIDATION))
    test = np.arange(len(dataset.test.sample_weight))
    rows = {"train": np.arange(size), "validation": test if config.lesson_split else rest, "test": test}
    # Slices, because a copy of the images would double the memory of a run.
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
    """Return the setup for flags and data."""
    config = resolve(config)
    rows, sets = split_sets(config, dataset)
    assert config.epochs is not None and config.batch_size is not None and config.learning_rate is not None
    net, optimizer, rate, ema_decay = network(config), optax.adam, config.learning_rate, None
    model = build_model(net)
    loss: Loss = softmax_cross_entropy
    if config.recipe == "strong":
        model = with_augmentation(model, flip, crop(4), cutout(8))
        loss, optimizer, ema_decay = smoothed_cross_entropy(SMOOTHING), momentum, EMA_DECAY
        steps = config.epochs * -(-len(rows["train"]) // config.batch_size)
        rate = optax.cosine_onecycle_schedule(steps, config.learning_rate, WARMUP)
    return Setup(
        sets["train"],
        sets["validation"],
        sets["test"],
        model=model,
        loss=loss,
        # inject_hyperparams keeps the learning rate in the state, so that every epoch records it.
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
    """Return the images of `--data`."""
    return load_cifar10(config.data)


def frozen_flags(config: Config) -> dict[str, str]:
    """Return the flags that may not change when a run is resumed, with the reasons."""
    return {"epochs": "the schedule of the learning rate covers them"} if config.recipe == "strong" else {}


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
