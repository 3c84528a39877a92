"""Which of ten things is in the picture: the lesson's CIFAR-10 recipes as a hand-written PyTorch loop.

    python cifar10_torch.py --data DIR --recipe small --seeds 0 1 2 [--time] [--threads N] [--compile]

It prints one line of JSON a seed. Initial weights and Adam's epsilon are those of Keras, so that the figures compare.
With --time an epoch is one training pass over the 5,000 images and nothing else; without it an epoch ends with the
validation on the test images, and its seconds count that too.
"""

# ruff: noqa: E402 -- the clock must be started before torch is imported.

import argparse
import json
import os
import pickle
import resource
import statistics
import sys
import time
from pathlib import Path

import_started = time.perf_counter()
import numpy as np
import torch
from torch import nn

import_seconds = time.perf_counter() - import_started

RECIPES = ("small", "dense", "pooled", "dropout")
BATCH, TRAINING_IMAGES = 32, 5000


def load(folder):
    """{split: (images, labels)}; images (N, 32, 32, 3) float32 from 0 to 1, so that batches are channels last."""

    def read(names):
        contents = [
            pickle.loads((Path(folder) / "cifar-10-batches-py" / name).read_bytes(), encoding="bytes") for name in names
        ]
        planes = np.concatenate([content[b"data"] for content in contents]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([content[b"labels"] for content in contents])
        images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1), dtype="float32") / np.float32(255)
        return torch.from_numpy(images), torch.from_numpy(labels)

    images, labels = read([f"data_batch_{number}" for number in range(1, 6)])
    return {"train": (images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]), "test": read(["test_batch"])}


class Rows(nn.Module):
    """Flattens in the order that channels last has in memory, as Keras does: nothing is copied."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def build(recipe, dropout):
    """The model of a recipe; its inputs are (N, 3, 32, 32), channels last in memory."""
    if recipe == "small":
        hidden = [nn.Conv2d(3, 50, 3), nn.ReLU(inplace=True), nn.Conv2d(50, 50, 3), nn.ReLU(inplace=True), Rows()]
        width = 28 * 28 * 50
    elif recipe == "dense":
        hidden = [Rows(), nn.Linear(3072, 100), nn.ReLU(inplace=True), nn.Linear(100, 50), nn.ReLU(inplace=True)]
        width = 50
    else:
        hidden = []
        for channels in (3, 50, 50):
            hidden += [nn.Conv2d(channels, 50, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            if recipe == "dropout":
                hidden.append(nn.Dropout(dropout))
        hidden += [Rows(), nn.Linear(2 * 2 * 50, 50), nn.ReLU(inplace=True)]
        width = 50
    model = nn.Sequential(*hidden, nn.Linear(width, 10))
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model.to(memory_format=torch.channels_last)


def loss_of(model, images, labels):
    return nn.functional.cross_entropy(model(images.permute(0, 3, 1, 2)), labels)


@torch.inference_mode()
def evaluate(model, images, labels):
    """Accuracy and mean loss without dropout."""
    model.eval()
    outputs = torch.cat([model(batch.permute(0, 3, 1, 2)) for batch in images.split(256)])
    model.train()
    accuracy = (outputs.argmax(1) == labels).double().mean()
    return {"accuracy": accuracy.item(), "loss": nn.functional.cross_entropy(outputs, labels).item()}


def fit(model, loss_of, splits, epochs, validate):
    """Trains `model` in place; returns the seconds and the validation accuracy of every epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7, fused=True)
    x, y = splits["train"]
    seconds, accuracies = [], []
    for _ in range(epochs):
        started = time.perf_counter()
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = loss_of(model, x.index_select(0, rows), y.index_select(0, rows))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if validate:
            accuracies.append(evaluate(model, *splits["test"])["accuracy"])
        seconds.append(time.perf_counter() - started)
    return seconds, accuracies


def run(args, seed, splits, loss_of):
    """Trains and scores one model; returns the line to print."""
    torch.manual_seed(seed)
    model = build(args.recipe, args.dropout)
    x, y = splits["train"]
    started = time.perf_counter()
    if args.compile:
        for size in {BATCH, len(x) % BATCH} - {0}:  # both shapes of a batch are compiled before the clock
            loss_of(model, x[:size], y[:size]).backward()
        model.zero_grad()
    compiled = time.perf_counter()
    epoch_seconds, accuracies = fit(model, loss_of, splits, args.epochs, validate=not args.time)
    done = time.perf_counter()
    peak_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scores = {split: evaluate(model, *pair) for split, pair in splits.items()}
    seconds = {"epoch": statistics.median(epoch_seconds[1:]), "fit": done - compiled, "import": import_seconds}
    if args.compile:
        seconds["compile"] = compiled - started
    return {
        "peer": "torch-compile" if args.compile else "torch",
        "recipe": args.recipe,
        "seed": seed,
        "accuracy": {split: score["accuracy"] for split, score in scores.items()},
        "best_val_accuracy": max(accuracies, default=None),
        "loss": {split: score["loss"] for split, score in scores.items()},
        "epochs": args.epochs,
        "seconds": {name: round(value, 3) for name, value in seconds.items()}
        | {"epochs": [round(value, 3) for value in epoch_seconds]},
        "peak_memory_mb": round(peak_memory_mb, 1),
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("JAXDL_DATA"), help="data folder (default: $JAXDL_DATA)")
    parser.add_argument("--recipe", choices=RECIPES, default="small")
    parser.add_argument("--dropout", type=float, default=0.2, help="share dropped, recipe dropout (default: 0.2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--time", action="store_true", help="epochs of training only, without validation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile forward and backward")
    args = parser.parse_args()
    if not args.data:
        parser.error("give --data DIR or set JAXDL_DATA")
    if args.epochs < 2:
        parser.error(f"--epochs must be at least 2, because the first one warms up, got {args.epochs}")
    torch.set_num_threads(args.threads)
    splits = load(args.data)
    compiled_loss = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    for seed in args.seeds:
        try:
            print(json.dumps(run(args, seed, splits, compiled_loss)), flush=True)
        except Exception as error:  # no C++ compiler, no Python headers, ...
            if not args.compile:
                raise
            print(f"--compile skipped: torch.compile does not work here: {error}", file=sys.stderr)
            return


if __name__ == "__main__":
    main()
