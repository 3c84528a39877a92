"""Mutated run folders and exported models: no traceback, no hang, and no file outside is changed.

    python -m tests.mutations --folders 5000 --models 5000

Prints what went wrong, and ends with 1 if anything did. The mutations keep checksums right in half of the cases, as a
stranger would who wants to be believed.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import jax
import numpy as np

from experiments.weather import experiment as weather
from jaxdl import _files, saving
from jaxdl.__main__ import main as jaxdl_main
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.runs.command import command
from jaxdl.saving import OutputSpec, load, predict_script
from jaxdl.saving.export import export_model

LIMIT = 10  # seconds
FLAGS = ("--data", "simulated:60", "--recipe", "small", "--epochs", "2", "--no-tensorboard", "--no-compilation-cache")
VALUES = (
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    10**40,
    "",
    "x" * 10_000,
    "\x1b[2J",
    "../../..",
    [],
    [[]],
    {},
    {"": {}},
)


def mutate_bytes(content, draws):
    """Flip, cut, lengthen or exchange some bytes."""
    data = bytearray(content)
    for _ in range(draws.choice([1, 1, 2, 8])):
        place = draws.randrange(len(data)) if data else 0
        match draws.randrange(6):
            case 0 if data:
                data[place] ^= 1 << draws.randrange(8)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = draws.randbytes(draws.choice([1, 4, 100]))
            case 3 if data:
                end = min(len(data), place + draws.randrange(64))
                data[place:end] = draws.randbytes(end - place)
            case 4:
                del data[place : place + draws.randrange(64)]
            case _:
                data += data[: draws.randrange(1000)]
    return bytes(data)


def mutate_json(content, draws):
    """Exchange, remove, add or rename an entry at any depth."""
    try:
        tree = json.loads(content)
    except ValueError:
        return mutate_bytes(content, draws)
    for _ in range(draws.choice([1, 1, 3])):
        at = tree
        while isinstance(at, (dict, list)) and at:
            keys = list(at) if isinstance(at, dict) else range(len(at))
            key = draws.choice(keys)
            if not isinstance(at[key], (dict, list)) or not at[key] or draws.random() < 0.3:
                break
            at = at[key]
        if not isinstance(at, (dict, list)) or not at:
            continue
        match draws.randrange(4):
            case 0:
                del at[key]
            case 1 if isinstance(at, dict):
                at[draws.choice(["", "\x1b[2J", "config", "a\nb", "x" * 5000])] = at.pop(key)
            case _:
                at[key] = draws.choice(VALUES)
    return json.dumps(tree).encode()


def mutate(folder, draws):
    """Change one or two files of a folder; say which."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    said = []
    for path in draws.sample(paths, draws.choice([1, 1, 2])):
        kind = draws.choice(["bytes", "json", "json", "link", "pipe", "folder", "gone"])
        said.append(f"{path.relative_to(folder)} {kind}")
        if kind in ("bytes", "json"):
            content = path.read_bytes()
            path.write_bytes(mutate_bytes(content, draws) if kind == "bytes" else mutate_json(content, draws))
            continue
        path.unlink()
        if kind == "link":
            path.symlink_to(draws.choice(["/etc/passwd", "/", "/dev/zero", str(folder.parent / "mine"), "nowhere"]))
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
    return ", ".join(said)


def rewrite_sums(folder, draws):
    """Make the checksums of checkpoints right again, as far as they can be."""
    for path in folder.glob("checkpoints/progress/*"):
        if path.name.isdecimal() and path.is_dir() and draws.random() < 0.5:
            with suppress(OSError, ValueError):
                (path / _files.CHECKSUMS).unlink(missing_ok=True)
                _files.write_checksums(path)


class HangError(Exception):
    """Something took too long."""


def _late(*_):
    raise HangError


def outcome(function):
    """What is wrong with a call that may refuse its input; None where nothing is."""
    said = io.StringIO()
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(LIMIT)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            code = function()
        if code not in (None, 0, 1, 2):
            return f"exit code {code}"
        if "\x1b[2J" in said.getvalue():
            return "a command to the terminal"
        if "Traceback" in said.getvalue():
            return said.getvalue()[-1500:]
    except (InputError, predict_script.DataError):
        return None
    except SystemExit as error:
        return None if error.code in (0, 2) else f"exit code {error.code}"
    except BaseException:
        return traceback.format_exc()[-1500:]
    finally:
        signal.alarm(0)
    return None


def folders(place, count, draws):
    """Mutated run folders, listed, shown, read, and one in twenty resumed."""
    base, wrong = place / "base", []
    assert command(weather.Config, weather.run, "weather", [*FLAGS, "--workdir", str(base)]) == 0
    (place / "mine").write_text("mine")
    for number in range(count):
        above = place / "runs"
        folder = shutil.copytree(base, above / "a")
        if draws.random() < 0.5:
            (folder / "metrics.json").unlink()
        said = mutate(folder, draws)
        rewrite_sums(folder, draws)
        calls = {
            "runs": lambda above=above: jaxdl_main(["runs", str(above)]),
            "show": lambda folder=folder: jaxdl_main(["show", str(folder)]),
            "latest": lambda folder=folder: saving.restore_latest(folder / "checkpoints/progress", print) and None,
            "load": lambda folder=folder: load(folder / "checkpoints" / "best") and None,
        }
        if number % 20 == 0:
            flags = ["--workdir", str(folder)]
            calls["resume"] = lambda flags=flags: command(weather.Config, weather.run, "weather", flags)
        for name, call in calls.items():
            problem = outcome(call)
            if problem is not None:
                wrong.append(f"folder {number}, {name}: {said}: {problem}")
                print(wrong[-1], flush=True)
        if (place / "mine").read_text() != "mine" or {path.name for path in place.iterdir()} != {
            "base",
            "mine",
            "runs",
        }:
            wrong.append(f"folder {number}: {said}: a file outside was changed")
        shutil.rmtree(above)
    return wrong


def models(place, count, draws):
    """Mutated exported models, loaded and, where that works, asked for a prediction."""
    network, rows = mlp((4,)), np.ones((5, 3), np.float32)
    variables = network.init(jax.random.key(0), rows)
    base = export_model(place / "model", network, variables, rows, columns=["a", "b", "c"], outputs=OutputSpec(["y"]))
    (place / "data.csv").write_text("a,b,c\n1,2,3\n")
    wrong = []
    for number in range(count):
        folder = shutil.copytree(base, place / "copy")
        said = mutate(folder, draws)
        if draws.random() < 0.5 and not (folder / predict_script.SUMS).is_dir():
            (folder / predict_script.SUMS).unlink(missing_ok=True)
            with suppress(OSError, ValueError):
                (folder / predict_script.SUMS).write_text(_files.checksum_lines(folder))
        (place / "at").write_text(f"{number} {said}")
        problem = outcome(lambda folder=folder: jaxdl_main(["predict", str(folder), str(place / "data.csv")]))
        if problem:
            wrong.append(f"model {number}: {said}: {problem}")
        shutil.rmtree(folder)
    return wrong


def guarded_models(place, count, draws):
    """`models` in another process, begun again after a mutation that ends it."""
    wrong, done = [], 0
    while done < count:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        call = [sys.executable, "-m", "tests.mutations", "--models-here", str(place), "--models", str(count - done)]
        call += ["--seed", str(draws.randrange(2**31))]
        ended = subprocess.run(call, capture_output=True, text=True, errors="replace")
        number, _, said = (place / "at").read_text().partition(" ")
        wrong += [line for line in ended.stdout.splitlines() if line.strip()]
        if ended.returncode not in (0, 1):
            wrong.append(f"model: {said}: ended with {ended.returncode}: {ended.stderr[-300:]}")
        done += int(number) + 1
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("folders", "models", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--models-here", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.models_here is not None:
        wrong = models(options.models_here, options.models, random.Random(options.seed))
        print("\n".join(wrong))
        return 1 if wrong else 0
    draws, began = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as above:
        wrong = []
        for name, function, count in (("f", folders, options.folders), ("m", guarded_models, options.models)):
            (Path(above) / name).mkdir()
            wrong += function(Path(above) / name, count, draws) if count else []
    done = f"{options.folders} run folders and {options.models} models in {time.monotonic() - began:.0f} s"
    print(f"{done}: {len(wrong)} went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
