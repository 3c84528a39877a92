"""Sunshine in Basel tomorrow: the lesson's plain recipe (100, 50, 200 epochs) as a hand-written PyTorch loop.

    python weather_torch.py --data DIR --seeds 0 1 2 [--threads N] [--compile]

It prints one line of JSON a seed. Initial weights and Adam's epsilon are those of Keras, so that the figures compare.
"""

# ruff: noqa: E402 -- the clock must be started before torch is imported.

import argparse
import json
import os
import sys
import time
from pathlib import Path

import_started = time.perf_counter()
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from torch import nn

import_seconds = time.perf_counter() - import_started

BATCH, EPOCHS = 32, 200


def load(folder):
    """{split: (features, target)}; the target is the sunshine in Basel on the following day."""
    data = pd.read_csv(Path(folder) / "weather" / "weather_prediction_dataset.csv")
    x = torch.tensor(data.loc[:1095].drop(columns=["DATE", "MONTH"]).to_numpy("float32"))
    y = torch.tensor(data.loc[1:1096][["BASEL_sunshine"]].to_numpy("float32"))
    train, rest = train_test_split(range(len(x)), test_size=0.3, random_state=0)
    validation, test = train_test_split(rest, test_size=0.5, random_state=0)
    return {"train": (x[train], y[train]), "validation": (x[validation], y[validation]), "test": (x[test], y[test])}


def build(n_features):
    model = nn.Sequential(nn.Linear(n_features, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 1))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def rmse(model, x, y):
    with torch.no_grad():
        return nn.functional.mse_loss(model(x), y).sqrt()


def fit(model, loss_of, splits):
    """Trains `model` in place; returns a row (training loss, validation RMSE) an epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7, fused=True)
    x, y = splits["train"]
    history = []
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        losses = []
        batches = zip(x.index_select(0, order).split(BATCH), y.index_select(0, order).split(BATCH), strict=True)
        for x_batch, y_batch in batches:
            loss = loss_of(model, x_batch, y_batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        history.append((torch.stack(losses).mean(), rmse(model, *splits["validation"])))
    return torch.tensor(history)


def squared_error(model, x, y):
    return nn.functional.mse_loss(model(x), y)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("JAXDL_DATA"), help="data folder (default: $JAXDL_DATA)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1, help="1 is the faster of 1 and 2 for layers this small")
    parser.add_argument("--compile", action="store_true", help="torch.compile forward and backward (slower here)")
    args = parser.parse_args()
    if not args.data:
        parser.error("give --data DIR or set JAXDL_DATA")
    torch.set_num_threads(args.threads)
    splits = load(args.data)
    x, y = splits["train"]
    loss_of = torch.compile(squared_error, dynamic=False) if args.compile else squared_error

    for seed in args.seeds:
        torch.manual_seed(seed)
        model = build(x.shape[1])
        started = time.perf_counter()
        if args.compile:
            try:
                for size in {BATCH, len(x) % BATCH} - {0}:  # both shapes of a batch are compiled before the clock
                    loss_of(model, x[:size], y[:size]).backward()
            except Exception as error:  # no C++ compiler, no Python headers, ...
                print(f"--compile skipped: torch.compile does not work here: {error}", file=sys.stderr)
                return
            model.zero_grad()
        compiled = time.perf_counter()
        fit(model, loss_of, splits)
        done = time.perf_counter()
        seconds = {"fit": done - compiled, "import": import_seconds}
        if args.compile:
            seconds["compile"] = compiled - started
        line = {
            "peer": "torch-compile" if args.compile else "torch",
            "recipe": "plain",
            "seed": seed,
            "rmse": {split: rmse(model, *pair).item() for split, pair in splits.items()},
            "epochs": EPOCHS,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
