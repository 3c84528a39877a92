"""A hand-written PyTorch loop of the speed run, with all data on the device.

    python -m benchmarks.speedrun.torch_loop [--compile] [--width 64] [--batch-size 512] [--dtype bfloat16]

It answers the requests of `benchmarks.contestants.protocol`: {"run": epochs, "seed": 0} trains new weights and
evaluates the test images; the two ends are those of training and evaluation, the value is the accuracy. With --compile
network and data augmentation are compiled. Needs NumPy and torch alone.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.contestants.protocol import Result, Run, serve
from benchmarks.tasks import Arrays

# Settings of the recipe `strong`.
MOMENTUM, DECAY, SMOOTHING, AVERAGE, RISING = 0.9, 5e-4, 0.1, 0.99, 0.25
PIXELS, HIDDEN = 4, 8  # maximal shift of an image, and side of the cutout
EVALUATED = 2000  # batch size of the evaluation
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Forward = Callable[[Tensor], Tensor]


def block(inputs: int, filters: int, pool: bool = False) -> nn.Sequential:
    """Return convolution, optional pooling, BatchNorm with the defaults of torch (0.9 in Flax, 0.1 in torch), ReLU."""
    pooling = [nn.MaxPool2d(2)] if pool else []
    convolution = nn.Conv2d(inputs, filters, 3, padding=1, bias=False)
    return nn.Sequential(convolution, *pooling, nn.BatchNorm2d(filters), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two blocks with a residual connection."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(block(filters, filters), block(filters, filters))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.blocks(images)


def network(width: int) -> nn.Sequential:
    """Return `jaxdl.nn.ResidualNet` for 32 x 32 pixels, layer by layer."""
    stem, first = block(3, width), (block(width, 2 * width, True), Residual(2 * width))
    last = block(2 * width, 4 * width, True), block(4 * width, 8 * width, True), Residual(8 * width)
    model = nn.Sequential(stem, *first, *last, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * width, 10))
    return model.to(memory_format=torch.channels_last)


def draw(model: nn.Module, seed: int) -> None:
    """Draw new weights in place from the distributions of Flax, so that the compiled functions stay valid."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()


def rates(steps: int, greatest: float) -> list[float]:
    """Return the learning rate of each step: a cosine cycle from 1/25 of the greatest down to 1/10,000 of that."""
    phase = np.interp(range(steps), [0, int(RISING * steps), steps], [0, 1, 2])
    least = greatest / 25 * np.where(phase < 1, 1, 1e-4)
    return (least + (greatest - least) * (1 - np.cos(np.pi * phase)) / 2).tolist()


def augment(
    padded: Tensor, rows: Tensor, mirrored: Tensor, moves: Tensor, centres: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the images of rows with flips, crops and cutout, (B, 3, H, W) from 0 to 1, channels last in memory.

    padded: (N, H + 8, W + 8, 3) uint8; moves: (B, 2) from 0 to 8; centres: (B, 2) of the cutouts.
    """
    positions = torch.arange(padded.shape[1] - 2 * PIXELS, device=padded.device)
    down = moves[:, :1] + positions
    across = moves[:, 1:] + torch.where(mirrored[:, None], positions.flip(0), positions)
    images = padded[rows[:, None, None], down[:, :, None], across[:, None, :]]
    from_first = positions - centres[:, :, None] + HIDDEN // 2
    inside = (from_first >= 0) & (from_first < HIDDEN)
    hidden = inside[:, 0, :, None] & inside[:, 1, None, :]
    return scaled(images.masked_fill(hidden[..., None], 0).permute(0, 3, 1, 2), dtype)


def scaled(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return bytes as floats from 0 to 1."""
    return images.to(dtype) / 255


def draws(count: int, size: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield for each batch of an epoch the rows, flips, shifts and cutout centres."""
    order = torch.randperm(count, device=DEVICE)
    mirrored = torch.rand(count, device=DEVICE) < 0.5
    moves = torch.randint(0, 2 * PIXELS + 1, (count, 2), device=DEVICE)
    centres = torch.randint(0, size, (count, 2), device=DEVICE)
    return zip(*(each.split(batch) for each in (order, mirrored, moves, centres)), strict=True)


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Return the context for computation in bfloat16, if requested, with float32 weights."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=dtype is torch.bfloat16)


def optimizer(model: nn.Module, rate: float) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum, and weight decay for kernels only."""
    kernels, others = ([w for w in model.parameters() if (w.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": kernels, "weight_decay": DECAY}, {"params": others}]
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True, fused=True)


def averaged_tensors(model: nn.Module) -> list[Tensor]:
    """Return the weights and the moments of BatchNorm, which have a moving average."""
    return [each.detach() for each in model.state_dict().values() if each.is_floating_point()]


@torch.no_grad()
def accuracy(forward: Forward, images: Tensor, labels: Tensor, dtype: torch.dtype) -> float:
    """Return the accuracy of the outputs averaged over each image and its mirror image."""
    correct = torch.zeros((), device=DEVICE)
    for part, targets in zip(images.split(EVALUATED), labels.split(EVALUATED), strict=True):
        batch = scaled(part, dtype)
        with autocast(dtype):
            outputs = forward(batch).float() + forward(batch.flip(3)).float()
        correct += (outputs.argmax(1) == targets).sum()
    return correct.item() / len(labels)


def on_device(arrays: Arrays) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return training images, padded with reflected pixels, and test images, with their labels, on the device."""
    (images, labels), (test, test_labels) = arrays
    padded = np.pad(images, ((0, 0), *[(PIXELS, PIXELS)] * 2, (0, 0)), mode="reflect")
    tensors = [torch.from_numpy(array).to(DEVICE) for array in (padded, labels, test, test_labels)]
    return (tensors[0], tensors[1].long()), (tensors[2].permute(0, 3, 1, 2), tensors[3].long())


def prepare(arrays: Arrays, options: argparse.Namespace) -> Run:
    """Put the data and the network on the device; the first run compiles."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32, the default of JAX, and of torch for cuDNN
    (padded, labels), test = on_device(arrays)
    model, dtype, batch = network(options.width).to(DEVICE), getattr(torch, options.dtype), options.batch_size
    mean_model = copy.deepcopy(model).requires_grad_(False).eval()
    current, mean = averaged_tensors(model), averaged_tensors(mean_model)
    compiled: Callable[..., Any] = (
        partial(torch.compile, dynamic=False) if options.compile else lambda function: function
    )
    make_images, forward, forward_mean = map(compiled, (augment, model, mean_model))

    def run(epochs: int, seed: int) -> Result:
        draw(model, seed)
        torch._foreach_copy_(mean, current)
        sgd = optimizer(model, options.learning_rate)
        schedule = rates(epochs * -(-len(labels) // batch), options.learning_rate)
        orders = (draws(len(labels), test[0].shape[2], batch) for _ in range(epochs))
        for number, (rows, *random) in enumerate(chain.from_iterable(orders)):
            for group in sgd.param_groups:
                group["lr"] = schedule[number]
            images = make_images(padded, rows, *random, dtype)
            with autocast(dtype):
                loss = cross_entropy(forward(images), labels[rows], label_smoothing=SMOOTHING)
            loss.backward()
            sgd.step()
            sgd.zero_grad()
            torch._foreach_lerp_(mean, current, 1 - min(AVERAGE, (1 + number) / (10 + number)))
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        trained = time.perf_counter()
        value = accuracy(forward_mean, *test, dtype)
        return Result([trained, time.perf_counter()], value)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--learning-rate", type=float, default=0.4)
    options = parser.parse_args()
    serve(lambda _, arrays: prepare(arrays, options))


if __name__ == "__main__":
    main()
