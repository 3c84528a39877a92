"""A run of an experiment: trains, measures, and writes the run's folder."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from rich.console import Console

from experiments import STARTED, finished, placement, sharing, watching
from experiments.command import StoppedError, workdir
from experiments.experiment import Built, Experiment, short
from experiments.output import warn
from experiments.resuming import (
    Beginning,
    beginning,
    changes,
    check_epochs,
    goes_on,
    other_surroundings,
    recorded,
    refused,
)
from jaxdl import costs, files, folders, processes, runs, weights
from jaxdl.errors import InputError
from jaxdl.fitting import reason, without_best
from jaxdl.interrupts import NEVER, Interrupts
from jaxdl.locks import locked
from jaxdl.sharding import fetched
from jaxdl.steps import shown_weights
from jaxdl.summaries import as_table, summary


class Job(NamedTuple):
    """A run that is about to begin, or to go on."""

    experiment: Experiment
    config: Any  # settled
    built: Built
    folder: Path
    console: Console
    mesh: Mesh | None
    holds: Callable[[], bool] = lambda: True  # whether the folder is still locked for this process


def run(experiment: Experiment, config: Any, console: Console, interrupts: Interrupts = NEVER) -> dict[str, Any]:
    """Trains, compares and writes the run's folder; gives its metrics, which are written last.

    A folder that holds the same run, begun earlier, is gone on with. Where several processes share it, process 0 does
    all this and the others only train. Raises StoppedError where a signal ended the run, NotFiniteError where nan or
    infinity did, and EndedError where processes have agreed to end.
    """
    placement.join(config, _agreed(experiment, config))
    if not processes.is_first():
        return _follow(experiment, config, interrupts)
    with sharing.leading() as go:
        return _lead(experiment, config, console, interrupts, go)


def _agreed(experiment: Experiment, config: Any) -> dict[str, Any]:
    """What the processes of a run must agree on before they train: flags and versions, which change its numbers."""
    # The data are compared by their checksum: on another machine they may have another name.
    own = {"process_id", "coordinator", "distributed", "data"}
    flags = {f"--{name.replace('_', '-')}": value for name, value in watching.told(config).items() if name not in own}
    versions = {f"version of {name}": version for name, version in runs.versions().items()}
    return json.loads(json.dumps({"experiment": experiment.name, **flags, **versions}, default=str))


def _follow(experiment: Experiment, config: Any, interrupts: Interrupts) -> dict[str, Any]:
    console = Console(quiet=True)
    with sharing.preparing():
        settled = experiment.settle(config)
        if config.compilation_cache:
            runs.keep_compilations()
        mesh, built = placement.mesh(config), _built(experiment, config, console)
    sharing.check_data(built.dataset.sha256)
    folder, begin = sharing.following(built.start)
    _train(Job(experiment, settled, built, folder, console, mesh), Beginning(begin, [], None), interrupts)
    return {}


def _lead(
    experiment: Experiment, config: Any, console: Console, interrupts: Interrupts, go: sharing.Go
) -> dict[str, Any]:
    seconds = {"import": time.perf_counter() - STARTED}
    settled = experiment.settle(config)
    earlier = None if config.workdir is None or config.fresh else folders.earlier(config.workdir)
    if earlier is not None:
        earlier, _ = recorded(config.workdir, earlier)
    if earlier is not None and earlier.metrics is not None:
        found = changes(watching.told(settled), earlier)
        if not refused(found, experiment.fixed(settled)) and not goes_on(found, earlier.metrics):
            return finished.show(experiment, earlier.metrics, config, console)
    if config.compilation_cache:
        runs.keep_compilations()
    with ExitStack() as stack, runs.compile_clock() as compiling:
        if earlier is not None:
            holds = stack.enter_context(locked(config.workdir))
        began = time.perf_counter()
        mesh, built = placement.mesh(config), _built(experiment, config, console)
        seconds["data"] = time.perf_counter() - began
        sharing.check_data(built.dataset.sha256)
        folder = (
            config.workdir if earlier is not None else workdir(config.workdir, config.fresh, config.recipe, console)
        )
        if earlier is None:
            holds = stack.enter_context(locked(folder))
        files.remove_drafts(folder)
        interrupts.advise(f"interrupted; the same command with --workdir {folder} goes on from what is saved there.")
        job = Job(experiment, settled, built, folder, console, mesh, holds)
        begin = _begin(job)
        go(folder, begin.progress)
        with _room(folder):
            metrics = _work(job, begin, interrupts, seconds, compiling)
            metrics["seconds"] = {**seconds, "compile": compiling(), "total": time.perf_counter() - STARTED}
            files.write_json(folder / folders.METRICS, metrics)
    console.print(experiment.table(metrics))
    console.print(f"Everything about this run is in {folder}", markup=False, soft_wrap=True)
    return metrics


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}). Free some space and start the same command again."
        ) from error


def _built(experiment: Experiment, config: Any, console: Console) -> Built:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The note is printed instead.
        dataset = experiment.read(config)
    built = experiment.build(config, dataset)
    warn(experiment.describe(built)["note"], console)
    return built


def _begin(job: Job) -> Beginning:
    """Where the run begins; its folder then holds its configuration. The folder is locked."""
    experiment, config, built, folder, console, *_ = job
    about, flags = experiment.describe(built), watching.told(config)
    usage = experiment.usage(built)
    now = {**flags, "workdir": str(folder), "dataset": about, **usage, **runs.surroundings()}
    earlier = folders.earlier(folder)
    if earlier is None:
        files.write_json(folder / folders.CONFIG, now)
        return Beginning(built.start, [], None)
    written = earlier.config
    earlier, doubt = recorded(folder, earlier)
    warn(doubt, console)
    found = changes(flags, earlier)
    refusal = refused(found, experiment.fixed(config))
    begin = beginning(built.start, folder, about["sha256"], found, refusal, partial(warn, shown=console))
    done = int(begin.progress.epoch)
    check_epochs(built.epochs, done, folder)
    kept = {**earlier.config, **usage, "dataset": about}
    if begin.saved is None:
        kept = now
    elif found:
        (folder / folders.METRICS).unlink(missing_ok=True)
        record = {"after_epoch": done, **{name: list(values) for name, values in found.items()}}
        before = written["changes"] if isinstance(written.get("changes"), list) else []
        kept |= {**{n: now[n] for n in found}, "changes": [*(each for each in before if each != record), record]}
    if files.as_json(kept) != files.as_json(written):
        files.write_json(folder / folders.CONFIG, kept)
    if begin.saved is not None:
        warn(other_surroundings(begin.saved or earlier.config, now), console)
    console.print(begin.text, markup=False, soft_wrap=True)
    return begin


def _work(
    job: Job, begin: Beginning, interrupts: Interrupts, seconds: dict[str, float], compiling: Callable[[], float]
) -> dict[str, Any]:
    """Trains and writes all but the metrics, which it gives."""
    experiment, config, built, folder, console, *_ = job
    network, tell = summary(built.plan.model, built.sets["train"].inputs[:1]), partial(warn, shown=console)
    console.print(as_table(network, f"{config.recipe}, seed {config.seed}, {short(built.dataset.source)}"))
    if config.tensorboard:
        watching.describe(config, network, folder, tell)
    compiled, began = compiling(), time.perf_counter()
    end = _train(job, begin, interrupts)
    seconds["fit"] = time.perf_counter() - began - (compiling() - compiled)
    if not int(end.progress.stopping.best_epoch):
        tell(without_best(built.plan, built.sets["validation"]))
    pictures = _keep(job, end)
    metrics = {
        "dataset": experiment.describe(built),
        **experiment.results(built, end.progress),
        "recipe": config.recipe,
        "epochs": len(end.history),
        "best_epoch": int(end.progress.stopping.best_epoch),
        "reason": reason(end.progress),
        "seed": config.seed,
        "parameters": network.parameters,
    }
    if config.tensorboard:
        watching.conclude(metrics, pictures, folder, tell)
    if config.cost:
        cost = costs.step_cost(built.plan, built.start, built.sets["train"])
        metrics["cost"] = costs.as_record(cost)
        console.print(costs.as_table(cost))
    return metrics


def _train(job: Job, begin: Beginning, interrupts: Interrupts) -> runs.End:
    experiment, config, built, folder, console, mesh, _ = job
    sets = built.sets["train"], built.sets["validation"]
    progress, train, validation = sharing.placed(begin.progress, *sets, mesh)
    about = {
        "config": {**watching.told(config), "workdir": str(folder)},
        "data": built.dataset.sha256,
        "surroundings": runs.surroundings(),
    }
    tell = partial(warn, shown=console)
    with ExitStack() as stack:
        where = folder / "checkpoints" / "progress"
        save = sharing.saving(where, about, every=config.save_every, tell=tell, interrupts=interrupts)
        saving = stack.enter_context(save)
        looking = watching.NOBODY
        if processes.is_first():
            run = built, folder, console, progress, begin.history
            looking = stack.enter_context(watching.watched(config, *run, experiment.shown, tell))
            notice = watching.noticing(job.holds, folder, config.save_every, tell)
            looking = looking._replace(watchers=(*looking.watchers, notice))
        end = runs.drive(
            built.plan,
            progress,
            train,
            validation,
            epochs=built.epochs,
            history=begin.history,
            **looking._asdict(),
            interrupts=interrupts,
            on_nan=config.on_nan,
            **saving._asdict(),
        )
    interrupts.hold(False)
    # Asked anew, because a signal may have come while the last checkpoint was written.
    if number := sharing.asked(interrupts):
        raise StoppedError(number, folder)
    return end._replace(progress=fetched(end.progress))


def _keep(job: Job, end: runs.End) -> list[Path]:
    """Writes weights and pictures; gives the pictures."""
    experiment, _, built, folder, *_ = job
    for name, kept in (("final", shown_weights(end.progress.state)), ("best", end.progress.best)):
        # There already where the run was finished before and went on, or was cut off just here.
        shutil.rmtree(folder / "checkpoints" / name, ignore_errors=True)
        weights.save(folder / "checkpoints" / name, kept)
    (folder / "figures").mkdir(exist_ok=True)
    title = f"{folder.name}, {short(built.dataset.source)}"
    pictures = []
    for name, figure in experiment.figures(built, end.progress, end.history, title).items():
        pictures.append(folder / "figures" / f"{name}.png")
        figure.savefig(pictures[-1])
    return pictures
