"""A hand-written PyTorch loop of the speed run: what `benchmarks.speedrun` trains, all of it on the device.

    python -m benchmarks.speedrun.torch_loop [--compile] [--width 64] [--batch-size 512] [--dtype bfloat16]

It answers as `benchmarks.contestants.protocol` says: {"run": epochs, "seed": 0} trains new weights and then measures
the test images; its two ends are those of the training and of the measuring, its figure is the accuracy. With --compile
the network and the change of its images are compiled. Needs NumPy and torch alone.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.contestants.protocol import Result, Run, serve
from benchmarks.tasks import Arrays

# Of the recipe `strong`.
MOMENTUM, DECAY, SMOOTHING, AVERAGE, RISING = 0.9, 5e-4, 0.1, 0.99, 0.25
PIXELS, HIDDEN = 4, 8  # by which images are moved, and the side of the square that is hidden
EVALUATED = 2000  # test images of a call without gradients
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Forward = Callable[[Tensor], Tensor]


def block(inputs: int, filters: int, pool: bool = False) -> nn.Sequential:
    """Convolution, pooling where asked for, BatchNorm with torch's defaults (Flax's 0.9 is torch's 0.1), ReLU."""
    pooling = [nn.MaxPool2d(2)] if pool else []
    convolution = nn.Conv2d(inputs, filters, 3, padding=1, bias=False)
    return nn.Sequential(convolution, *pooling, nn.BatchNorm2d(filters), nn.ReLU(inplace=True))


class Around(nn.Module):
    """Two blocks, around which their input is led."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(block(filters, filters), block(filters, filters))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.blocks(images)


def network(width: int) -> nn.Sequential:
    """`jaxdl.nn.ResidualNet` of 32 x 32 pixels, layer for layer, the weights not yet drawn."""
    stem, first = block(3, width), (block(width, 2 * width, True), Around(2 * width))
    last = block(2 * width, 4 * width, True), block(4 * width, 8 * width, True), Around(8 * width)
    model = nn.Sequential(stem, *first, *last, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * width, 10))
    return model.to(memory_format=torch.channels_last)


def draw(model: nn.Module, seed: int) -> None:
    """Draws new weights in place, of the distributions of Flax, so that what was compiled serves them too."""
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
    """The learning rate of each step: one cycle of two half waves, from a 25th up and down to a 10,000th of that."""
    place = np.interp(range(steps), [0, int(RISING * steps), steps], [0, 1, 2])
    least = greatest / 25 * np.where(place < 1, 1, 1e-4)
    return (least + (greatest - least) * (1 - np.cos(np.pi * place)) / 2).tolist()


def changed(
    padded: Tensor, rows: Tensor, mirrored: Tensor, moves: Tensor, centres: Tensor, dtype: torch.dtype
) -> Tensor:
    """The images of the rows, each mirrored or not, moved, and with a hidden square: (B, 3, H, W) from 0 to 1.

    padded: (N, H + 8, W + 8, 3) uint8; moves: (B, 2) from 0 to 8; centres: (B, 2) of the squares. One gather does most
    of it, and what comes out is channels last.
    """
    places = torch.arange(padded.shape[1] - 2 * PIXELS, device=padded.device)
    down, across = moves[:, :1] + places, moves[:, 1:] + torch.where(mirrored[:, None], places.flip(0), places)
    images = padded[rows[:, None, None], down[:, :, None], across[:, None, :]]
    from_first = places - centres[:, :, None] + HIDDEN // 2
    inside = (from_first >= 0) & (from_first < HIDDEN)
    hidden = inside[:, 0, :, None] & inside[:, 1, None, :]
    return scaled(images.masked_fill(hidden[..., None], 0).permute(0, 3, 1, 2), dtype)


def scaled(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as floats from 0 to 1."""
    return images.to(dtype) / 255


def draws(count: int, size: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
    """What is random in an epoch, batch by batch: rows in a new order, and the changes of their images."""
    order = torch.randperm(count, device=DEVICE)
    mirrored = torch.rand(count, device=DEVICE) < 0.5
    moves = torch.randint(0, 2 * PIXELS + 1, (count, 2), device=DEVICE)
    centres = torch.randint(0, size, (count, 2), device=DEVICE)
    return zip(*(each.split(batch) for each in (order, mirrored, moves, centres)), strict=True)


def narrow(dtype: torch.dtype) -> torch.autocast:
    """Weights stay float32; what is computed with them is bfloat16 where that is asked for."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=dtype is torch.bfloat16)


def optimizer(model: nn.Module, rate: float) -> torch.optim.SGD:
    """Nesterov's momentum, and weight decay of the kernels alone."""
    kernels, others = ([w for w in model.parameters() if (w.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": kernels, "weight_decay": DECAY}, {"params": others}]
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True, fused=True)


def averaged(model: nn.Module) -> list[Tensor]:
    """The weights and BatchNorm's moments, of which a moving average is kept."""
    return [each.detach() for each in model.state_dict().values() if each.is_floating_point()]


@torch.no_grad()
def accuracy(forward: Forward, images: Tensor, labels: Tensor, dtype: torch.dtype) -> float:
    """The share of images whose label has the greatest mean of the outputs for the image and for its mirror image."""
    right = torch.zeros((), device=DEVICE)
    for some, wanted in zip(images.split(EVALUATED), labels.split(EVALUATED), strict=True):
        batch = scaled(some, dtype)
        with narrow(dtype):
            outputs = forward(batch).float() + forward(batch.flip(3)).float()
        right += (outputs.argmax(1) == wanted).sum()
    return right.item() / len(labels)


def on_device(arrays: Arrays) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The training images with their margins of reflected pixels, the test images, and the labels of both."""
    (images, labels), (test, answers) = arrays
    padded = np.pad(images, ((0, 0), *[(PIXELS, PIXELS)] * 2, (0, 0)), mode="reflect")
    tensors = [torch.from_numpy(array).to(DEVICE) for array in (padded, labels, test, answers)]
    return (tensors[0], tensors[1].long()), (tensors[2].permute(0, 3, 1, 2), tensors[3].long())


def prepare(arrays: Arrays, options: argparse.Namespace) -> Run:
    """Puts the data and the network on the device; the first run compiles."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32, as JAX does by default; of cuDNN it is torch's default too
    (padded, labels), test = on_device(arrays)
    model, dtype, batch = network(options.width).to(DEVICE), getattr(torch, options.dtype), options.batch_size
    shown = copy.deepcopy(model).requires_grad_(False).eval()
    now, mean = averaged(model), averaged(shown)
    change, forward, forward_mean = changed, model, shown
    if options.compile:
        compiled = partial(torch.compile, dynamic=False)
        change, forward, forward_mean = compiled(changed), compiled(model), compiled(shown)

    def run(epochs: int, seed: int) -> Result:
        draw(model, seed)
        torch._foreach_copy_(mean, now)
        sgd = optimizer(model, options.learning_rate)
        schedule = rates(epochs * -(-len(labels) // batch), options.learning_rate)
        orders = (draws(len(labels), test[0].shape[2], batch) for _ in range(epochs))
        for number, (rows, *random) in enumerate(chain.from_iterable(orders)):
            for group in sgd.param_groups:
                group["lr"] = schedule[number]
            images = change(padded, rows, *random, dtype)
            with narrow(dtype):
                loss = cross_entropy(forward(images), labels[rows], label_smoothing=SMOOTHING)
            loss.backward()
            sgd.step()
            sgd.zero_grad()
            torch._foreach_lerp_(mean, now, 1 - min(AVERAGE, (1 + number) / (10 + number)))
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        trained = time.perf_counter()
        figure = accuracy(forward_mean, *test, dtype)
        return Result([trained, time.perf_counter()], figure)

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
