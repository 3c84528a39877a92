"""Interrupt and damage runs, resume them, and check that the results are bit-identical to an undisturbed run.

    python -m tests.faults --kills 100 --signals 20 --flips 50 --full-disk --repeat --pair-kills 40

Prints a line per round and a summary, and exits with 1 if a check fails.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxdl import _files, saving
from jaxdl.saving import load

ROOT = Path(__file__).parent.parent
EVERY = 1.0
FLAGS = {
    "weather": ("--data", "simulated:400", "--epochs", "4000", "--patience", "800"),
    "cifar10": (
        *("--data", "simulated:600", "--recipe", "strong", "--width", "4", "--batch-size", "32"),
        *("--train-size", "200", "--epochs", "15"),
    ),
}
# Two processes exchange gradients in each step, and take several times as long.
PAIR = {"weather": ("--data", "simulated:400", "--epochs", "400", "--patience", "200"), "cifar10": FLAGS["cifar10"]}
# A resumed run names its checkpoint in this form.
RESUMES = "(checkpoint "
MARGIN = 1.0  # seconds of training that may be lost beyond the interval, because a busy machine saves later


class Lab:
    """A folder for runs of one experiment, with its own compilation cache.

    flags: of every run. every: seconds between checkpoints. processes: number of processes of each run.
    """

    def __init__(self, name, folder, seed=0, flags=None, every=EVERY, processes=1):
        self.name, self.folder, self.random = name, Path(folder), random.Random(seed)
        self.launch = ("-m", "jaxdl.launch", "-n", str(processes), "--grace", "2", "--") if processes > 1 else ()
        self.flags, self.every = FLAGS[name] if flags is None else flags, every
        self.environment = {**os.environ, **cache(self.folder / "cache")}
        self.number = 0
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A shell ignores SIGINT for background processes, and the runs would inherit that.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        check(not self.compiled_programs(), "the cache is not empty before the first run")
        self.reference = self.run_to_end(self.new())
        check(self.compiled_programs(), "the first run has cached no compiled functions")
        # The second run reads compiled functions from the cache, as resumed runs do.
        began = time.monotonic()
        self.second_run = self.run_to_end(self.new())
        self.length = time.monotonic() - began
        check(self.second_run == self.reference, "two undisturbed runs differ")

    def compiled_programs(self):
        """Return the compiled functions in the cache."""
        return sorted((self.folder / "cache").rglob("*-cache"))

    def new(self):
        """Return a new folder for a run."""
        self.number += 1
        return self.folder / f"{self.name}-{self.number}"

    def start(self, folder, environment=None):
        """Start or resume the run of a folder, and return the process."""
        call = [sys.executable, *self.launch, "-m", "tests.faulty", self.name, "--workdir", str(folder)]
        flags = () if (folder / "config.json").exists() else (*self.flags, "--save-every", str(self.every))
        log = folder.with_name(folder.name + ".log").open("a")
        variables = {**self.environment, **(environment or {})}
        process = subprocess.Popen([*call, *flags], cwd=ROOT, env=variables, stdout=log, stderr=log)
        log.close()
        return process

    def log(self, folder):
        """Return the output of a run."""
        path = folder.with_name(folder.name + ".log")
        return path.read_text() if path.exists() else ""

    def run_to_end(self, folder, environment=None):
        """Run to the end, and return the content of the folder."""
        code = self.start(folder, environment).wait()
        check(code == 0, f"exit code {code}: {self.log(folder)[-2000:]}")
        return content_of(folder)

    def check_resume(self, folder, number):
        """Check that a run resumes from a checkpoint, and ends bit-identical to the reference."""
        before = self.log(folder)
        content = self.run_to_end(folder)
        lines = self.log(folder)[len(before) :]
        if number is not None:
            check(f"{RESUMES}{number})" in lines, f"resumes from another checkpoint than {number}: {lines[-2000:]}")
        difference = differing(content, self)
        check(not difference, f"{folder} differs from the undisturbed run: {difference}")


def cache(folder):
    """Return the environment variables of the compilation cache; conftest.py sets the second one too."""
    return {"XDG_CACHE_HOME": str(folder), "JAX_COMPILATION_CACHE_DIR": str(folder)}


def differing(content, lab):
    """Return the names of content that differs from the reference."""
    return [name for name in {**content, **lab.reference} if content.get(name) != lab.reference.get(name)]


def check(condition, message):
    """Raise AssertionError unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def content_of(folder):
    """Return all content that must be bit-identical, by name; without times and the name of the folder."""
    saved = saving.restore_latest(folder / "checkpoints" / "progress", print)
    content = {f"progress/{name}": (str(array.dtype), array.tobytes()) for name, array in saved.arrays.items()}
    content["kinds"] = saved.about["kinds"]
    content["history"] = repr([{**record, "seconds": 0} for record in saved.about["history"]])
    for name in ("best", "final"):
        variables = load(folder / "checkpoints" / name)
        content[name] = [array.tobytes() for part in variables for array in _arrays(part)]
    with (folder / "history.csv").open() as file:
        content["csv"] = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    content["metrics"] = {**json.loads((folder / "metrics.json").read_text()), "seconds": None}
    return content


def _arrays(tree):
    """Return the leaves of nested dicts, in the order of their names."""
    return [leaf for _, child in sorted(tree.items()) for leaf in _arrays(child)] if isinstance(tree, dict) else [tree]


def newest(folder):
    """Return the number of the newest complete checkpoint and the start time of its save, or (None, None)."""
    run_state = folder / "checkpoints" / "progress"
    for number in sorted((int(path.name) for path in run_state.glob("*") if path.name.isdecimal()), reverse=True):
        if (run_state / str(number) / _files.CHECKSUMS).exists():
            about = json.loads((run_state / str(number) / "_CHECKPOINT_METADATA").read_text())
            return number, about["init_timestamp_nsecs"] / 1e9
    return None, None


def wait_for_event(lab, folder, process, event):
    """Wait until a save begins, is committed or is finished, or the process ends."""
    run_state = folder / "checkpoints" / "progress"

    def saves():
        names = {path.name for path in run_state.glob("*")}
        if event == "draft":
            return {name for name in names if "tmp" in name}
        if event == "commit":
            return {name for name in names if name.isdecimal()}
        return {path.parent.name for path in run_state.glob(f"*/{_files.CHECKSUMS}")}

    before, skip = saves(), lab.random.randrange(3)
    while process.poll() is None:
        now = saves()
        if now - before:
            skip, before = skip - 1, now | before
            if skip < 0:
                return
        time.sleep(0.0005)


def kill(lab, folder):
    """Start a run and kill it at a random moment.

    Returns whether it was still alive, the event before the kill, the lost seconds and the newest checkpoint.
    """
    began, process = time.time(), lab.start(folder)
    event = lab.random.choice([None, None, None, "draft", "commit", "whole"])
    if event is None:
        moment = lab.random.uniform(0, 1.05 * lab.length)
        while process.poll() is None and time.time() - began < moment:
            time.sleep(0.005)
    else:
        wait_for_event(lab, folder, process, event)
        time.sleep(lab.random.choice([0, 0, lab.random.uniform(0, 0.05)]))
    alive = process.poll() is None
    process.kill()
    process.wait()
    now, (number, saved) = time.time(), newest(folder)
    # Training since the last save is lost, unless the training had ended.
    ended = (folder / "checkpoints" / "final").exists() or any((folder / "checkpoints").glob("final*"))
    lost = now - saved if number is not None and saved > began and not ended else 0.0
    return alive, event or "moment", lost, number


def kills(lab, count):
    """Kill runs `count` times; check that every run ends bit-identical to the reference."""
    done, runs, most = 0, 0, 0.0
    while done < count:
        folder = lab.new()
        for _ in range(lab.random.randint(2, 6)):
            alive, event, lost, number = kill(lab, folder)
            if not alive:
                break
            done, most = done + 1, max(most, lost)
            check(lost <= lab.every + MARGIN, f"{lost:.2f} s lost after a kill ({event})")
            if done >= count:
                break
        number, _ = newest(folder)
        ended = (folder / "metrics.json").exists()
        lab.check_resume(folder, None if ended else number)
        runs += 1
        print(f"{lab.name} kills: {done} in {runs} runs, all equal; lost at most {most:.2f} s", flush=True)
        shutil.rmtree(folder)
    return f"{done} SIGKILL in {runs} runs, all bit-identical; at most {most:.2f} s since the start of the last save"


def pair_kills(lab, count):
    """Kill one of two processes or their launcher at random moments; check that all end, and resume together."""
    done, runs = 0, 0
    while done < count:
        folder = lab.new()
        for _ in range(min(lab.random.randint(1, 4), count - done)):
            process, moment = lab.start(folder), lab.random.uniform(0.5, 1.05 * lab.length)
            with suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            if process.poll() is not None:
                break
            family = [process.pid, *children(process.pid)]
            os.kill(lab.random.choice(family), signal.SIGKILL)
            process.wait(60)
            deadline = time.monotonic() + 60
            while any(map(alive, family)):
                late = time.monotonic() > deadline
                check(not late, f"a process outlives the others by a minute: {lab.log(folder)[-500:]}")
                time.sleep(0.05)
            done += 1
        lab.check_resume(folder, None)
        runs += 1
        print(f"{lab.name} of two processes: {done} kills in {runs} runs, all equal", flush=True)
        shutil.rmtree(folder)
    return f"{done} SIGKILL to one of two processes or to their launcher in {runs} runs, all bit-identical"


def children(pid):
    """Return the child processes of a process, on Linux."""
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    """Return whether a process runs and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def signals(lab, count):
    """Send SIGTERM and SIGINT at random moments; check the exit codes and that runs end bit-identical."""
    slowest = {"training": 0.0, "before": 0.0}
    done = 0
    while done < count:
        folder = lab.new()
        number = [signal.SIGTERM, signal.SIGINT][done % 2]
        process, moment = lab.start(folder), lab.random.uniform(0.05, lab.length)
        time.sleep(moment)
        phase = "training" if "epoch 1/" in lab.log(folder) else "before"
        sent = time.monotonic()
        if process.poll() is None:
            process.send_signal(number)
            if done % 5 == 4:
                time.sleep(lab.random.uniform(0, 0.05))
                process.send_signal(number)
            code = process.wait()
            answer = time.monotonic() - sent
            finished = (folder / "metrics.json").exists()
            allowed = {128 + number, -number, *((0,) if finished else ())}
            check(code in allowed, f"exit code {code} after signal {number}: {lab.log(folder)[-2000:]}")
            slowest[phase] = max(slowest[phase], answer)
            done += 1
        lab.check_resume(folder, None)
        print(f"{lab.name} signals: {done}, all equal; answered in {slowest}", flush=True)
        shutil.rmtree(folder)
    seconds = slowest["training"]
    return f"{done} signals, correct exit codes, all bit-identical; answered in training within {seconds:.2f} s"


def interrupt(lab, least=2):
    """Return the folder of a run that is killed after `least` checkpoints."""
    folder = lab.new()
    process = lab.start(folder)
    while (newest(folder)[0] or 0) < least + 1 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    check(not (folder / "metrics.json").exists(), "the run ended before it was killed")
    return folder


def flips(lab, count, folder=None, whole=2):
    """Flip a random bit of the newest checkpoint; check that it is detected, and that the previous checkpoint is used.

    folder: of an interrupted run. whole: number of runs that are resumed to the end.
    """
    folder = folder or interrupt(lab)
    number, _ = newest(folder)
    for turn in range(count):
        copy = lab.new()
        shutil.copytree(folder, copy)
        path = copy / "checkpoints" / "progress"
        paths = sorted(file for file in (path / str(number)).rglob("*") if file.is_file())
        file = lab.random.choices(paths, [file.stat().st_size for file in paths])[0]
        data = bytearray(file.read_bytes())
        data[lab.random.randrange(len(data))] ^= 1 << lab.random.randrange(8)
        file.write_bytes(data)
        if turn < whole:
            lab.check_resume(copy, number - 1)
            messages = lab.log(copy)
        else:
            lines = []
            saved = saving.restore_latest(path, lines.append)
            messages = "\n".join(lines)
            check(saved.number == number - 1, f"{file} flipped: checkpoint {saved.number} was used")
        check("damaged" in messages, f"{file} flipped, and no message")
        shutil.rmtree(copy)
    return f"{count} of {count} flipped bits detected, the previous checkpoint used"


def full_disk(lab):
    """Limit files to 20 kB, as on a full disk; check the messages, and that the run resumes without the limit."""
    folder = lab.new()
    # The compilation cache is complete already, so the limit does not affect it.
    code = lab.start(folder, {"FAULTY_LIMIT": "20000"}).wait()
    log = lab.log(folder)
    check("could not be saved" in log, f"no message about the full disk: {log[-2000:]}")
    check("Traceback" not in log and code in (0, 2), f"exit code {code}: {log[-3000:]}")
    lab.check_resume(folder, None)
    return "a full disk is reported, the run continues, and ends bit-identical once there is free space"


def power_cuts(lab, count, every):
    """Copy the disk, an ext4 image, at random moments, as after a power cut; check that the run resumes from the copy.

    Needs root, mkfs.ext4 and loop devices. Each copy must hold a complete checkpoint no older than the interval.
    """
    disk, left = (lab.folder / name for name in ("disk", "left"))
    most = 0.0
    for turn in range(count):
        flags = ("--epochs", "10000000", "--patience", "10000000", "--no-tensorboard", "--save-every", str(every))
        with disk.open("wb") as file:
            file.truncate(1 << 28)
        subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
        with mounted(disk) as place:
            call = [sys.executable, "-m", "tests.faulty", lab.name, "--workdir", place / "run"]
            process = subprocess.Popen(
                [*call, *lab.flags[:2], *flags], cwd=ROOT, env=lab.environment, stdout=subprocess.DEVNULL
            )
            while newest(place / "run")[0] is None:
                check(process.poll() is None, "the run ended before its first checkpoint")
                time.sleep(0.01)
            time.sleep(lab.random.uniform(0, 2 * every))
            process.send_signal(signal.SIGSTOP)
            cut = time.time()
            shutil.copyfile(disk, left)
            process.kill()
            process.wait()
        with mounted(left) as place:
            lines = []
            saved = saving.restore_latest(place / "run" / "checkpoints" / "progress", lines.append)
            check(saved is not None, f"cut {turn + 1}: no complete checkpoint: {lines}")
            _, began = newest(place / "run")
            most = max(most, cut - began)
            check(cut - began <= every + MARGIN, f"cut {turn + 1}: {cut - began:.2f} s lost")
            log = lab.folder / "again.log"
            with log.open("w") as file:
                process = subprocess.Popen(
                    [*call[:-1], place / "run"], cwd=ROOT, env=lab.environment, stdout=file, stderr=file
                )
                while f"{RESUMES}{saved.number})" not in log.read_text():
                    check(process.poll() is None, f"the run does not resume: {log.read_text()[-2000:]}")
                    time.sleep(0.01)
                process.kill()
                process.wait()
        print(f"{lab.name} power cuts: {turn + 1} with {every} s, lost at most {most:.2f} s", flush=True)
    return f"{count} power cuts, a complete checkpoint each; with {every} s between saves at most {most:.2f} s lost"


@contextmanager
def mounted(image):
    """Mount an image, and yield the folder."""
    place = Path(tempfile.mkdtemp(dir=image.parent))
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        place.rmdir()


def repeat(lab):
    """Check that runs are bit-identical with a cold and a warm compilation cache."""
    environment = cache(lab.folder / "another cache")
    for turn in ("cold", "warm"):
        check(lab.run_to_end(lab.new(), environment=environment) == lab.reference, f"a run with a {turn} cache differs")
    return "bit-identical twice in a row, and with a cold and a warm compilation cache"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", choices=[*FLAGS, "both"], default="both")
    parser.add_argument(
        "--power-every", type=float, default=2.0, help="seconds between the checkpoints of --power-cuts"
    )
    for name in ("kills", "pair-kills", "signals", "flips", "power-cuts", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--full-disk", action="store_true")
    parser.add_argument("--repeat", action="store_true")
    options = parser.parse_args()
    counted = [(kills, options.kills), (signals, options.signals), (flips, options.flips)]
    faults = [(1, fault, (count,)) for fault, count in counted if count]
    faults += [(1, power_cuts, (options.power_cuts, options.power_every))] if options.power_cuts else []
    faults += [(1, fault, ()) for fault, on in ((full_disk, options.full_disk), (repeat, options.repeat)) if on]
    faults += [(2, pair_kills, (options.pair_kills,))] if options.pair_kills else []
    summary, failed = [], 0
    for name in FLAGS if options.experiment == "both" else [options.experiment]:
        with tempfile.TemporaryDirectory() as place:
            labs = {}
            for processes, fault, arguments in faults:
                if processes not in labs:
                    folder = Path(place, str(processes))
                    folder.mkdir()
                    flags = (FLAGS if processes == 1 else PAIR)[name]
                    labs[processes] = Lab(name, folder, options.seed, flags, processes=processes)
                try:
                    summary.append(f"{name}: {fault(labs[processes], *arguments)}")
                except AssertionError as error:
                    failed += 1
                    summary.append(f"{name}: {fault.__name__} FAILED: {error}")
                print(summary[-1], flush=True)
    print("\n".join(["", *summary]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
