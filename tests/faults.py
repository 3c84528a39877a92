"""Faults done to runs until they are finished; what they leave must be what an uninterrupted run leaves, bit for bit.

    python -m tests.faults --kills 100 --signals 20 --flips 50 --full-disk --repeat --pair-kills 40

Prints a line a round and a table, and ends with 1 if anything went wrong.
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
# Two processes exchange gradients at each step, and take several times as long.
PAIR = {"weather": ("--data", "simulated:400", "--epochs", "400", "--patience", "200"), "cifar10": FLAGS["cifar10"]}
# What a start says of the checkpoint that it goes on from.
GOES_ON = "(checkpoint "
# What may be lost beyond the interval, in seconds, because a machine with other work does not keep to any.
MARGIN = 1.0


class Lab:
    """A place for runs of one experiment, with a cache of compiled programs of its own.

    flags: of every run. every: seconds between its checkpoints. processes: how many share each run.
    """

    def __init__(self, name, folder, seed=0, flags=None, every=EVERY, processes=1):
        self.name, self.folder, self.random = name, Path(folder), random.Random(seed)
        self.launch = ("-m", "jaxdl.launch", "-n", str(processes), "--grace", "2", "--") if processes > 1 else ()
        self.flags, self.every = FLAGS[name] if flags is None else flags, every
        self.environment = {**os.environ, **cache(self.folder / "cache")}
        self.number = 0
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A shell ignores it for what it puts in the background, and so would the runs that are started here.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        check(not self.programs(), "the cache of the first run is not cold")
        self.reference = self.finished(self.new())
        check(self.programs(), "the first run has kept no programs")
        # The second start takes its programs from the cache, as those do that go on.
        began = time.monotonic()
        self.again = self.finished(self.new())
        self.length = time.monotonic() - began
        check(self.again == self.reference, "two runs without interruption differ")

    def programs(self):
        """The compiled programs that are kept."""
        return sorted((self.folder / "cache").rglob("*-cache"))

    def new(self):
        self.number += 1
        return self.folder / f"{self.name}-{self.number}"

    def start(self, folder, environment=None):
        call = [sys.executable, *self.launch, "-m", "tests.faulty", self.name, "--workdir", str(folder)]
        flags = () if (folder / "config.json").exists() else (*self.flags, "--save-every", str(self.every))
        log = folder.with_name(folder.name + ".log").open("a")
        surroundings = {**self.environment, **(environment or {})}
        process = subprocess.Popen([*call, *flags], cwd=ROOT, env=surroundings, stdout=log, stderr=log)
        log.close()
        return process

    def said(self, folder):
        path = folder.with_name(folder.name + ".log")
        return path.read_text() if path.exists() else ""

    def finished(self, folder, environment=None):
        """Runs to the end; what the run leaves."""
        code = self.start(folder, environment).wait()
        check(code == 0, f"exit code {code}: {self.said(folder)[-2000:]}")
        return content(folder)

    def go_on(self, folder, before):
        """What must hold when a run goes on: from the newest checkpoint that was whole, and to the same bits."""
        said = self.said(folder)
        found = self.finished(folder)
        words = self.said(folder)[len(said) :]
        if before is not None:
            check(f"{GOES_ON}{before})" in words, f"goes on from another checkpoint than {before}: {words[-2000:]}")
        check(
            found == self.reference, f"{folder} differs from the run that was not interrupted: {differs(found, self)}"
        )


def cache(folder):
    """The variables that name the folder of compiled programs; who runs the tests may have set the second."""
    return {"XDG_CACHE_HOME": str(folder), "JAX_COMPILATION_CACHE_DIR": str(folder)}


def differs(found, lab):
    return [name for name in {**found, **lab.reference} if found.get(name) != lab.reference.get(name)]


def check(holds, text):
    if not holds:
        raise AssertionError(text)


def content(folder):
    """All that must be equal, by name; times and the name of the folder aside."""
    saved = saving.restore_latest(folder / "checkpoints" / "progress", print)
    found = {f"progress/{name}": (str(array.dtype), array.tobytes()) for name, array in saved.arrays.items()}
    found["kinds"] = saved.about["kinds"]
    found["history"] = repr([{**record, "seconds": 0} for record in saved.about["history"]])
    for name in ("best", "final"):
        weights = load(folder / "checkpoints" / name)
        found[name] = [array.tobytes() for part in weights for array in _arrays(part)]
    with (folder / "history.csv").open() as file:
        found["csv"] = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    found["metrics"] = {**json.loads((folder / "metrics.json").read_text()), "seconds": None}
    return found


def _arrays(tree):
    return [leaf for _, child in sorted(tree.items()) for leaf in _arrays(child)] if isinstance(tree, dict) else [tree]


def newest(folder):
    """The number of the newest checkpoint that is whole, and when its save began; (None, None) without one."""
    run_state = folder / "checkpoints" / "progress"
    for number in sorted((int(path.name) for path in run_state.glob("*") if path.name.isdecimal()), reverse=True):
        if (run_state / str(number) / _files.CHECKSUMS).exists():
            about = json.loads((run_state / str(number) / "_CHECKPOINT_METADATA").read_text())
            return number, about["init_timestamp_nsecs"] / 1e9
    return None, None


def wait_for_event(lab, folder, process, which):
    """Until a save begins, is committed, or is finished, or the process ends."""
    run_state = folder / "checkpoints" / "progress"

    def seen():
        names = {path.name for path in run_state.glob("*")}
        if which == "draft":
            return {name for name in names if "tmp" in name}
        if which == "commit":
            return {name for name in names if name.isdecimal()}
        return {path.parent.name for path in run_state.glob(f"*/{_files.CHECKSUMS}")}

    before, skip = seen(), lab.random.randrange(3)
    while process.poll() is None:
        now = seen()
        if now - before:
            skip, before = skip - 1, now | before
            if skip < 0:
                return
        time.sleep(0.0005)


def kill(lab, folder):
    """One start that is killed at a random moment; (whether it was, what is lost in seconds, the newest checkpoint)."""
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
    # Lost is what was trained since; a run whose training is over loses nothing more.
    over = (folder / "checkpoints" / "final").exists() or any((folder / "checkpoints").glob("final*"))
    lost = now - saved if number is not None and saved > began and not over else 0.0
    return alive, event or "moment", lost, number


def kills(lab, count):
    """Kills until there were so many; every run must end as the reference."""
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
        over = (folder / "metrics.json").exists()
        lab.go_on(folder, None if over else number)
        runs += 1
        print(f"{lab.name} kills: {done} in {runs} runs, all equal; lost at most {most:.2f} s", flush=True)
        shutil.rmtree(folder)
    return f"{done} SIGKILL in {runs} runs, all bit-identical; since the begin of the last save at most {most:.2f} s"


def pair_kills(lab, count):
    """One of two processes, or what has started both, is killed at a random moment: all end, and go on together."""
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
            ended_by = time.monotonic() + 60
            while any(map(alive, family)):
                check(
                    time.monotonic() < ended_by, f"a process outlives the others by a minute: {lab.said(folder)[-500:]}"
                )
                time.sleep(0.05)
            done += 1
        lab.go_on(folder, None)
        runs += 1
        print(f"{lab.name} of two processes: {done} kills in {runs} runs, all equal", flush=True)
        shutil.rmtree(folder)
    return f"{done} SIGKILL to one of two processes or to their launcher in {runs} runs, all bit-identical"


def children(pid):
    """The processes that a process has started, in Linux."""
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    """Whether a process runs; one that nobody has waited for yet runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def signals(lab, count):
    """SIGTERM and SIGINT at random moments: exit code, answer, and the same bits at the end."""
    slowest = {"training": 0.0, "before": 0.0}
    done = 0
    while done < count:
        folder = lab.new()
        number = [signal.SIGTERM, signal.SIGINT][done % 2]
        process, moment = lab.start(folder), lab.random.uniform(0.05, lab.length)
        time.sleep(moment)
        phase = "training" if "epoch 1/" in lab.said(folder) else "before"
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
            check(code in allowed, f"exit code {code} after signal {number}: {lab.said(folder)[-2000:]}")
            slowest[phase] = max(slowest[phase], answer)
            done += 1
        lab.go_on(folder, None)
        print(f"{lab.name} signals: {done}, all equal; answered in {slowest}", flush=True)
        shutil.rmtree(folder)
    return (
        f"{done} signals, exit codes right, all bit-identical; answered in training within {slowest['training']:.2f} s"
    )


def cut_off(lab, least=2):
    """The folder of a run that was killed once it had two checkpoints."""
    folder = lab.new()
    process = lab.start(folder)
    while (newest(folder)[0] or 0) < least + 1 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    check(not (folder / "metrics.json").exists(), "the run was over before it was killed")
    return folder


def flips(lab, count, folder=None, whole=2):
    """A bit flipped at a random place of the newest checkpoint: detected, and the one before is used.

    folder: of a run that was cut off. whole: how many runs go on to their end.
    """
    folder = folder or cut_off(lab)
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
            lab.go_on(copy, number - 1)
            told = lab.said(copy)
        else:
            lines = []
            saved = saving.restore_latest(path, lines.append)
            told = "\n".join(lines)
            check(saved.number == number - 1, f"{file} flipped: checkpoint {saved.number} was used")
        check("damaged" in told, f"{file} flipped, and nothing was told")
        shutil.rmtree(copy)
    return f"{count} of {count} flipped bits detected, the checkpoint before used"


def full_disk(lab):
    """No file may grow beyond 20 kB, as if the disk were full; then there is room again."""
    folder = lab.new()
    # The cache of compiled programs, which would meet the limit too, holds all of them already.
    code = lab.start(folder, {"FAULTY_LIMIT": "20000"}).wait()
    said = lab.said(folder)
    check("could not be saved" in said, f"the full disk was not told: {said[-2000:]}")
    check("Traceback" not in said and code in (0, 2), f"exit code {code}: {said[-3000:]}")
    lab.go_on(folder, None)
    return "a full disk is told, the run goes on, and ends bit-identical once there is room"


def power_cuts(lab, count, every):
    """Cuts of power: a new start finds only what had reached the disk, an image of ext4, at a random moment.

    Needs root, mkfs.ext4 and loop devices. Each cut leaves a whole checkpoint, no older than the interval and a save,
    and the run goes on from it.
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
            check(saved is not None, f"cut {turn + 1}: no checkpoint was whole: {lines}")
            _, began = newest(place / "run")
            most = max(most, cut - began)
            check(cut - began <= every + MARGIN, f"cut {turn + 1}: {cut - began:.2f} s lost")
            log = lab.folder / "again.log"
            with log.open("w") as file:
                process = subprocess.Popen(
                    [*call[:-1], place / "run"], cwd=ROOT, env=lab.environment, stdout=file, stderr=file
                )
                while f"{GOES_ON}{saved.number})" not in log.read_text():
                    check(process.poll() is None, f"the run does not go on: {log.read_text()[-2000:]}")
                    time.sleep(0.01)
                process.kill()
                process.wait()
        print(f"{lab.name} power cuts: {turn + 1} with {every} s, lost at most {most:.2f} s", flush=True)
    return f"{count} power cuts, a whole checkpoint each; with {every} s between saves at most {most:.2f} s lost"


@contextmanager
def mounted(image):
    place = Path(tempfile.mkdtemp(dir=image.parent))
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        place.rmdir()


def repeat(lab):
    """The same bits twice, and with a cold and a warm cache of compiled programs."""
    environment = cache(lab.folder / "another cache")
    for turn in ("cold", "warm"):
        check(lab.finished(lab.new(), environment=environment) == lab.reference, f"a {turn} cache gives other bits")
    return "the same bits twice in a row, and with a cold and a warm compile cache"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", choices=[*FLAGS, "both"], default="both")
    parser.add_argument("--power-every", type=float, default=2.0, help="seconds between saves where power is cut")
    for name in ("kills", "pair-kills", "signals", "flips", "power-cuts", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--full-disk", action="store_true")
    parser.add_argument("--repeat", action="store_true")
    options = parser.parse_args()
    counted = [(kills, options.kills), (signals, options.signals), (flips, options.flips)]
    wanted = [(1, fault, (count,)) for fault, count in counted if count]
    wanted += [(1, power_cuts, (options.power_cuts, options.power_every))] if options.power_cuts else []
    wanted += [(1, fault, ()) for fault, on in ((full_disk, options.full_disk), (repeat, options.repeat)) if on]
    wanted += [(2, pair_kills, (options.pair_kills,))] if options.pair_kills else []
    told, failed = [], 0
    for name in FLAGS if options.experiment == "both" else [options.experiment]:
        with tempfile.TemporaryDirectory() as place:
            labs = {}
            for processes, fault, arguments in wanted:
                if processes not in labs:
                    folder = Path(place, str(processes))
                    folder.mkdir()
                    flags = (FLAGS if processes == 1 else PAIR)[name]
                    labs[processes] = Lab(name, folder, options.seed, flags, processes=processes)
                try:
                    told.append(f"{name}: {fault(labs[processes], *arguments)}")
                except AssertionError as error:
                    failed += 1
                    told.append(f"{name}: {fault.__name__} FAILED: {error}")
                print(told[-1], flush=True)
    print("\n".join(["", *told]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
