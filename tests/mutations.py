"""Mutate run folders and exported models; check that readers give no traceback, do not hang, and write nothing outside.

    python -m tests.mutations --folders 5000 --models 5000

Prints the failures, and exits with 1 if there are any. Half of the mutations update the checksums, as an attack would.
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
    """Flip, delete, insert or replace some bytes."""
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
    """Replace, remove or rename an entry at any depth."""
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
    """Mutate one or two files of a folder, and return their names and mutations."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    mutations = []
    for path in draws.sample(paths, draws.choice([1, 1, 2])):
        kind = draws.choice(["bytes", "json", "json", "link", "pipe", "folder", "gone"])
        mutations.append(f"{path.relative_to(folder)} {kind}")
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
    return ", ".join(mutations)


def rewrite_sums(folder, draws):
    """Update the checksums of half of the checkpoints, where possible."""
    for path in folder.glob("checkpoints/progress/*"):
        if path.name.isdecimal() and path.is_dir() and draws.random() < 0.5:
            with suppress(OSError, ValueError):
                (path / _files.CHECKSUMS).unlink(missing_ok=True)
                _files.write_checksums(path)


class HangError(Exception):
    """A call takes longer than LIMIT."""


def _raise_hang(*_):
    raise HangError


def failure(function):
    """Return the failure of a call that may reject its input, or None."""
    output = io.StringIO()
    signal.signal(signal.SIGALRM, _raise_hang)
    signal.alarm(LIMIT)
    try:
        with redirect_stdout(output), redirect_stderr(output):
            code = function()
        if code not in (None, 0, 1, 2):
            return f"exit code {code}"
        if "\x1b[2J" in output.getvalue():
            return "an escape sequence for the terminal"
        if "Traceback" in output.getvalue():
            return output.getvalue()[-1500:]
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
    """List, show and read mutated run folders, resume one of twenty, and return the failures."""
    base, failures = place / "base", []
    assert command(weather.Config, weather.run, "weather", [*FLAGS, "--workdir", str(base)]) == 0
    (place / "mine").write_text("mine")
    for number in range(count):
        above = place / "runs"
        folder = shutil.copytree(base, above / "a")
        if draws.random() < 0.5:
            (folder / "metrics.json").unlink()
        mutation = mutate(folder, draws)
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
            problem = failure(call)
            if problem is not None:
                failures.append(f"folder {number}, {name}: {mutation}: {problem}")
                print(failures[-1], flush=True)
        names = {path.name for path in place.iterdir()}
        if (place / "mine").read_text() != "mine" or names != {"base", "mine", "runs"}:
            failures.append(f"folder {number}: {mutation}: a file outside was changed")
        shutil.rmtree(above)
    return failures


def models(place, count, draws):
    """Load mutated exported models and predict with them; return the failures."""
    network, rows = mlp((4,)), np.ones((5, 3), np.float32)
    variables = network.init(jax.random.key(0), rows)
    base = export_model(place / "model", network, variables, rows, columns=["a", "b", "c"], outputs=OutputSpec(["y"]))
    (place / "data.csv").write_text("a,b,c\n1,2,3\n")
    failures = []
    for number in range(count):
        folder = shutil.copytree(base, place / "copy")
        mutation = mutate(folder, draws)
        if draws.random() < 0.5 and not (folder / predict_script.SUMS).is_dir():
            (folder / predict_script.SUMS).unlink(missing_ok=True)
            with suppress(OSError, ValueError):
                (folder / predict_script.SUMS).write_text(_files.checksum_lines(folder))
        (place / "at").write_text(f"{number} {mutation}")
        problem = failure(lambda folder=folder: jaxdl_main(["predict", str(folder), str(place / "data.csv")]))
        if problem:
            failures.append(f"model {number}: {mutation}: {problem}")
        shutil.rmtree(folder)
    return failures


def models_in_process(place, count, draws):
    """Run `models` in another process, restarted after a mutation that kills it; return the failures."""
    failures, done = [], 0
    while done < count:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        call = [sys.executable, "-m", "tests.mutations", "--models-here", str(place), "--models", str(count - done)]
        call += ["--seed", str(draws.randrange(2**31))]
        process = subprocess.run(call, capture_output=True, text=True, errors="replace")
        number, _, mutation = (place / "at").read_text().partition(" ")
        failures += [line for line in process.stdout.splitlines() if line.strip()]
        if process.returncode not in (0, 1):
            failures.append(f"model: {mutation}: ended with {process.returncode}: {process.stderr[-300:]}")
        done += int(number) + 1
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("folders", "models", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--models-here", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.models_here is not None:
        failures = models(options.models_here, options.models, random.Random(options.seed))
        print("\n".join(failures))
        return 1 if failures else 0
    draws, began = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as above:
        failures = []
        for name, function, count in (("f", folders, options.folders), ("m", models_in_process, options.models)):
            (Path(above) / name).mkdir()
            failures += function(Path(above) / name, count, draws) if count else []
    seconds = time.monotonic() - began
    print(f"{options.folders} run folders and {options.models} models in {seconds:.0f} s: {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
