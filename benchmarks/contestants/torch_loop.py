"""A hand-written PyTorch loop. With --compile its whole training step, Adam included, is one compiled program.

    python -m benchmarks.contestants.torch_loop [--compile]

On a GPU if there is one, with all data on the GPU, and with TF32 products as in JAX. Images are channels last. Adam's
epsilon and BatchNorm's momentum and epsilon are those of Keras.
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
# Examples of a call without gradients: they fit the caches of a CPU, or keep a GPU busy.
EVALUATED = {"mlp": 4096, "convnet": 64 if DEVICE.type == "cpu" else 1024}
ONE_THREAD = 2 * 10**6  # multiplications of a forward pass below which one thread is faster than two
ONE_THREAD_COMPILED = 2 * 10**7  # the same for a compiled training step
ALL_THREADS = torch.get_num_threads()
COMPILED = "--compile" in sys.argv

Loss = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[Tensor, Tensor], Tensor]  # changes the model, returns the loss


class Planes(nn.Module):
    """Convert images (N, 32, 32, 3) to the axes of torch, channels last in memory, without a copy."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 3, 1, 2)


class Rows(nn.Module):
    """Flatten channels-last images in the order of memory, without a copy."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).flatten(1)


def network(task: Task, features: int) -> nn.Sequential:
    """Return the network of a task."""
    if task.kind == "mlp":
        norm = [nn.BatchNorm1d(features, momentum=0.01, eps=1e-3)] if task.norm else []
        return nn.Sequential(*norm, *dense((features, *task.widths)), nn.Linear((features, *task.widths)[-1], 1))
    if task.recipe == "small":
        convolutions = [nn.Conv2d(3, 50, 3), nn.ReLU(inplace=True), nn.Conv2d(50, 50, 3), nn.ReLU(inplace=True)]
        layers = [Planes(), *convolutions, Rows(), nn.Linear(28 * 28 * 50, 10)]
    else:
        layers = [Planes()]
        for channels in (3, 50, 50):
            layers += [nn.Conv2d(channels, 50, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            layers += [nn.Dropout(DROPPED)] if task.recipe == "dropout" else []
        layers += [Rows(), *dense((2 * 2 * 50, 50)), nn.Linear(50, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def dense(widths: tuple[int, ...]) -> list[nn.Module]:
    """Return dense layers from each width to the next, with ReLU."""
    return [
        layer for width, following in pairwise(widths) for layer in (nn.Linear(width, following), nn.ReLU(inplace=True))
    ]


def draw(model: nn.Module, seed: int) -> None:
    """Draw new weights in place, so that the compiled functions stay valid."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm1d):
            layer.reset_running_stats()
            layer.reset_parameters()


def eager(model: nn.Module, loss: Loss) -> Callable[[], Step]:
    """Return a function that starts training with the fused Adam of torch."""

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
    """Return a function that starts training with gradient and Adam compiled together: twice as fast for small nets."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    moments = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in weights.items()}
    averages, count = dict(model.named_buffers()), torch.zeros((), device=DEVICE)

    def value(weights: dict, averages: dict, inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(torch.func.functional_call(model, (weights, averages), (inputs,)), targets)

    @torch.compile(dynamic=False)
    def program(weights: dict, moments: dict, averages: dict, count: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        grads, mean_loss = torch.func.grad_and_value(value)(weights, averages, inputs, targets)
        count.add_(1)
        short, long = (1 - decay**count for decay in DECAY)
        for name, grad in grads.items():
            first, second = moments[name]
            first.lerp_(grad, 1 - DECAY[0])
            second.lerp_(grad * grad, 1 - DECAY[1])
            weights[name].sub_(RATE * (first / short) / ((second / long).sqrt() + EPSILON))
        return mean_loss

    def begin() -> Step:
        for moment in (count, *(each for pair in moments.values() for each in pair)):
            moment.zero_()
        return lambda inputs, targets: program(weights, moments, averages, count, inputs, targets)

    return begin


def threads(task: Task, features: int) -> int:
    """Return the number of threads: one for an mlp with small calls."""
    if task.kind != "mlp":
        return ALL_THREADS
    trains = task.mode in ("train", "stop")
    rows = BATCH if trains else min(EVALUATED["mlp"], task.rows)
    products = rows * sum(width * following for width, following in pairwise((features, *task.widths, 1)))
    return 1 if products < (ONE_THREAD_COMPILED if COMPILED and trains else ONE_THREAD) else ALL_THREADS


def batches(inputs: Tensor, targets: Tensor, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches in an order; tables are permuted as a whole, images batch by batch."""
    if inputs.ndim == 2:
        return zip(inputs.index_select(0, order).split(BATCH), targets.index_select(0, order).split(BATCH), strict=True)
    return ((inputs.index_select(0, rows), targets.index_select(0, rows)) for rows in order.split(BATCH))


def tensors(task: Task, inputs: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the arrays on the device; cross_entropy takes no int32."""
    on_device = torch.from_numpy(targets).to(DEVICE)
    return torch.from_numpy(inputs).to(DEVICE), on_device.long() if task.kind == "convnet" else on_device


def prepare(task: Task, arrays: Arrays) -> Run:
    """Build the network and run it on a few examples, which compiles it with --compile."""
    if DEVICE.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if COMPILED:
        torch.compiler.reset()  # otherwise the functions of earlier tasks count towards a limit
    train, validation = (tensors(task, *rows) for rows in arrays)
    model = network(task, train[0].shape[-1]).to(DEVICE)
    loss = nn.functional.mse_loss if task.kind == "mlp" else nn.functional.cross_entropy
    size = EVALUATED[task.kind]
    # Without gradients a compiled mlp is slower than an eager one.
    forward = torch.compile(model, dynamic=False) if COMPILED and task.kind == "convnet" else model
    begin = (compiled if COMPILED else eager)(model, loss)
    torch.set_num_threads(threads(task, train[0].shape[-1]))

    @torch.inference_mode()
    def outputs(rows: int) -> Tensor:
        model.eval()
        return torch.cat([forward(batch) for batch in validation[0][:rows].split(size)])

    def validate(rows: int) -> float:
        return loss(outputs(rows), validation[1][:rows]).item()

    def epoch(step: Step, order: Tensor, rows: int) -> float:
        model.train()
        losses, sizes = zip(*((step(*batch), len(batch[0])) for batch in batches(*train, order)), strict=True)
        mean = np.average(torch.stack(losses).cpu().numpy(), weights=sizes)
        return validate(rows) if task.kind == "mlp" else mean

    def run(times: int, seed: int, train_rows: int = len(train[0]), rows: int = len(validation[0])) -> Result:
        draw(model, seed)
        if task.mode == "evaluate":
            return laps(task, times, lambda: validate(rows))
        if task.mode == "predict":
            return laps(task, times, lambda: outputs(rows).cpu().numpy())
        step = begin()
        return laps(task, times, lambda: epoch(step, torch.randperm(train_rows, device=DEVICE), rows))

    run(1, 0, warm_up(len(train[0]), BATCH), warm_up(len(validation[0]), size))
    return run


if __name__ == "__main__":
    serve(prepare)
