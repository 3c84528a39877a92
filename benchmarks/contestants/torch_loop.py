"""A hand-written PyTorch loop. With --compile its whole training step, Adam included, is one compiled program.

    python -m benchmarks.contestants.torch_loop [--compile]

On a GPU where there is one, with all rows there, and TF32 in its products as in JAX's. Images stay channels last.
Adam's epsilon and BatchNorm's momentum and epsilon are Keras's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contestants.loops import laps, warm_up
from benchmarks.contestants.protocol import Result, Run, serve
from benchmarks.tasks import BATCH, DROPPED, Arrays, Task

RATE, EPSILON, DECAY = 1e-3, 1e-7, (0.9, 0.999)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Rows of a call without gradients: what fits the caches, or keeps a GPU busy.
EVALUATED = {"mlp": 4096, "convnet": 64 if DEVICE.type == "cpu" else 1024}
ONE_THREAD = 2 * 10**6  # products of a pass forward below which a second thread costs more than it does
ONE_THREAD_COMPILED = 2 * 10**7  # the same of a compiled training step
ALL_THREADS = torch.get_num_threads()
COMPILED = "--compile" in sys.argv

Loss = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[Tensor, Tensor], Tensor]  # changes the model, gives the loss


class Planes(nn.Module):
    """Images (N, 32, 32, 3) as torch counts their axes, channels last in memory: nothing is copied."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 3, 1, 2)


class Rows(nn.Module):
    """Flattens in the order that channels last has in memory: nothing is copied."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).flatten(1)


def network(task: Task, features: int) -> nn.Sequential:
    """The task's network, its weights not yet drawn."""
    if task.kind == "mlp":
        norm = [nn.BatchNorm1d(features, momentum=0.01, eps=1e-3)] if task.norm else []
        return nn.Sequential(*norm, *dense((features, *task.widths)), nn.Linear((features, *task.widths)[-1], 1))
    if task.recipe == "small":
        both = [nn.Conv2d(3, 50, 3), nn.ReLU(inplace=True), nn.Conv2d(50, 50, 3), nn.ReLU(inplace=True)]
        layers = [Planes(), *both, Rows(), nn.Linear(28 * 28 * 50, 10)]
    else:
        layers = [Planes()]
        for channels in (3, 50, 50):
            layers += [nn.Conv2d(channels, 50, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            layers += [nn.Dropout(DROPPED)] if task.recipe == "dropout" else []
        layers += [Rows(), *dense((2 * 2 * 50, 50)), nn.Linear(50, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def dense(widths: tuple[int, ...]) -> list[nn.Module]:
    """Dense layers from each width to the next, with ReLU."""
    return [
        layer for width, following in pairwise(widths) for layer in (nn.Linear(width, following), nn.ReLU(inplace=True))
    ]


def draw(model: nn.Module, seed: int) -> None:
    """Draws new weights in place, so that what was compiled for the old ones serves them too."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm1d):
            layer.reset_running_stats()
            layer.reset_parameters()


def eager(model: nn.Module, loss: Loss) -> Callable[[], Step]:
    """Begins training with torch's fused Adam."""

    def begin() -> Step:
        adam = torch.optim.Adam(model.parameters(), lr=RATE, betas=DECAY, eps=EPSILON, fused=True)

        def step(inputs: Tensor, targets: Tensor) -> Tensor:
            value = loss(model(inputs), targets)
            value.backward()
            adam.step()
            adam.zero_grad()
            return value.detach()

        return step

    return begin


def compiled(model: nn.Module, loss: Loss) -> Callable[[], Step]:
    """Begins training with one program for gradient and Adam, half the time of two for a small network."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    moments = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in weights.items()}
    averages, count = dict(model.named_buffers()), torch.zeros((), device=DEVICE)

    def value(weights: dict, averages: dict, inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(torch.func.functional_call(model, (weights, averages), (inputs,)), targets)

    @torch.compile(dynamic=False)
    def program(weights: dict, moments: dict, averages: dict, count: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        slopes, found = torch.func.grad_and_value(value)(weights, averages, inputs, targets)
        count.add_(1)
        short, long = (1 - decay**count for decay in DECAY)
        for name, slope in slopes.items():
            first, second = moments[name]
            first.lerp_(slope, 1 - DECAY[0])
            second.lerp_(slope * slope, 1 - DECAY[1])
            weights[name].sub_(RATE * (first / short) / ((second / long).sqrt() + EPSILON))
        return found

    def begin() -> Step:
        for moment in (count, *(each for pair in moments.values() for each in pair)):
            moment.zero_()
        return lambda inputs, targets: program(weights, moments, averages, count, inputs, targets)

    return begin


def threads(task: Task, features: int) -> int:
    """One for an mlp whose calls are so small that a second costs more than it does."""
    if task.kind != "mlp":
        return ALL_THREADS
    trains = task.deed in ("train", "stop")
    rows = BATCH if trains else min(EVALUATED["mlp"], task.rows)
    products = rows * sum(width * following for width, following in pairwise((features, *task.widths, 1)))
    return 1 if products < (ONE_THREAD_COMPILED if COMPILED and trains else ONE_THREAD) else ALL_THREADS


def batches(inputs: Tensor, targets: Tensor, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows in the given order, 32 at a time. Few numbers a row: all are put in order at once."""
    if inputs.ndim == 2:
        return zip(inputs.index_select(0, order).split(BATCH), targets.index_select(0, order).split(BATCH), strict=True)
    return ((inputs.index_select(0, rows), targets.index_select(0, rows)) for rows in order.split(BATCH))


def tensors(task: Task, inputs: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    """The rows on the device; cross_entropy takes no int32."""
    targets = torch.from_numpy(targets).to(DEVICE)
    return torch.from_numpy(inputs).to(DEVICE), targets.long() if task.kind == "convnet" else targets


def prepare(task: Task, arrays: Arrays) -> Run:
    """Builds the network and warms up with few rows, which compiles where that was asked for."""
    if DEVICE.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if COMPILED:
        torch.compiler.reset()  # else the programs of earlier tasks count towards a limit
    train, validation = (tensors(task, *rows) for rows in arrays)
    model = network(task, train[0].shape[-1]).to(DEVICE)
    loss = nn.functional.mse_loss if task.kind == "mlp" else nn.functional.cross_entropy
    size = EVALUATED[task.kind]
    # Without gradients a compiled mlp takes longer than an eager one.
    forward = torch.compile(model, dynamic=False) if COMPILED and task.kind == "convnet" else model
    begin = (compiled if COMPILED else eager)(model, loss)
    torch.set_num_threads(threads(task, train[0].shape[-1]))

    @torch.inference_mode()
    def outputs(rows: int) -> Tensor:
        model.eval()
        return torch.cat([forward(batch) for batch in validation[0][:rows].split(size)])

    def measured(rows: int) -> float:
        return loss(outputs(rows), validation[1][:rows]).item()

    def epoch(step: Step, order: Tensor, rows: int) -> float:
        model.train()
        losses, sizes = zip(*((step(*batch), len(batch[0])) for batch in batches(*train, order)), strict=True)
        mean = np.average(torch.stack(losses).cpu().numpy(), weights=sizes)
        return measured(rows) if task.kind == "mlp" else mean

    def run(times: int, seed: int, train_rows: int = len(train[0]), rows: int = len(validation[0])) -> Result:
        draw(model, seed)
        if task.deed == "evaluate":
            return laps(task, times, lambda: measured(rows))
        if task.deed == "predict":
            return laps(task, times, lambda: outputs(rows).cpu().numpy())
        step = begin()
        return laps(task, times, lambda: epoch(step, torch.randperm(train_rows, device=DEVICE), rows))

    run(1, 0, warm_up(len(train[0]), BATCH), warm_up(len(validation[0]), size))
    return run


if __name__ == "__main__":
    serve(prepare)
