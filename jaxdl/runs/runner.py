"""Run an experiment: train, save, watch, and write its folder."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jax.sharding import Mesh
from rich.console import Console

from jaxdl import _environment, _files, callbacks, distributed, profiling
from jaxdl import saving as saving_module
from jaxdl._environment import compile_clock
from jaxdl._format import table
from jaxdl._startup import STARTED
from jaxdl.data import DataSource
from jaxdl.distributed.sharding import to_host
from jaxdl.errors import InputError
from jaxdl.nn import Summary, summary
from jaxdl.nn.summaries import as_markdown, as_table
from jaxdl.runs import folders, multiprocess, resume
from jaxdl.runs.console import print_warning
from jaxdl.runs.experiment import Experiment, Setup, recipe_of, setup_of, short
from jaxdl.runs.flags import HOW, OWN, told
from jaxdl.runs.folders import locked, workdir
from jaxdl.runs.resume import (
    Beginning,
    beginning,
    changes,
    check_epochs,
    goes_on,
    other_surroundings,
    recorded,
    refused,
)
from jaxdl.runs.signals import NEVER, Signals, StoppedError
from jaxdl.saving.export import save_model
from jaxdl.train.epoch import batches_of_epoch
from jaxdl.train.fit import reason, warn_of_eval_params, without_best
from jaxdl.train.loop import Chunk, Pace, Reached, checked, chunks, run_loop
from jaxdl.train.nonfinite import NonFiniteError, check_finite
from jaxdl.train.plan import check_monitors
from jaxdl.train.step import eval_variables
from jaxdl.types import Callback, Dataset, History, Plan, RunState, Variables


class End(NamedTuple):
    """How a run ended."""

    state: RunState
    history: list[dict[str, float]]


def drive(
    plan: Plan,
    begin: RunState,
    train: Dataset | DataSource,
    validation: Dataset | None,
    *,
    epochs: int,
    history: Iterable[dict[str, float]] = (),
    callbacks: Iterable[Callback] = (),
    watchers: Iterable[Callback] = (),
    keep: Callback | None = None,
    interrupts: Signals = NEVER,
    pause: Callable[[], bool] = lambda: False,
    paused: Callable[[RunState, list[dict[str, float]]], bool] = lambda run_state, history: True,
    on_nan: Literal["stop", "continue"] = "stop",
) -> End:
    """Trains from `begin` up to epoch `epochs` as `fit` does, with a clock, signals and checkpoints.

    Each record holds the epoch's wall `seconds` too, without what was spent on compiling. Callbacks look while the next
    chunk is under way, so they rarely cost any.

    history: the records of the epochs before `begin`.
    callbacks: called after every epoch. watchers: after every chunk. keep: after every chunk whose numbers are finite.
    interrupts: asked before every chunk whether to pause; from the first chunk on, a signal waits for the question.
    pause: asked that too. paused: called where the run stands still, because this process or another that shares it
        asked for a pause; it says whether the run ends there, which is what it does by default.

    Raises NonFiniteError where a number is not finite and `on_nan` is "stop"; `keep` has then seen the progress before.
    """
    warn_of_eval_params(plan, begin)
    reached, began, compiled = Reached(begin, list(history)), time.perf_counter(), 0.0
    rows, validation = checked(plan, train, validation)
    check_monitors(plan, begin, validation)
    pace = Pace(pause=partial(_wanted, interrupts, pause))
    pieces: Iterator[Chunk] = chunks(plan, begin, rows, validation, last=epochs, steps=pace)
    if on_nan == "stop":
        pieces = check_finite(pieces, plan, begin, rows, validation)

    def held(chunk: Chunk) -> Chunk:
        interrupts.hold(True)
        return chunk

    with compile_clock() as compiling:

        def about(record: dict[str, Any]) -> dict[str, Any]:
            nonlocal began, compiled
            now, spent = time.perf_counter(), compiling() - compiled
            seconds, began, compiled = now - began - spent, now, compiled + spent
            return {**record, "seconds": seconds}

        def ends(chunk: Chunk) -> bool:
            if keep and chunk.finite:
                keep(chunk.state, reached.history)
            return chunk.batches == 0 and paused(chunk.state, reached.history)

        try:
            run_loop(map(held, pieces), reached, callbacks=callbacks, watchers=watchers, about=about, ends=ends)
        except NonFiniteError as error:
            if keep:
                keep(error.args[0].state, reached.history)
            raise
    return End(reached.state, reached.history)


def _wanted(interrupts: Signals, pause: Callable[[], bool]) -> bool:
    return interrupts.asked() is not None or pause()


class Job(NamedTuple):
    """A run that is about to begin, or to go on."""

    experiment: Experiment
    config: Any  # resolved
    setup: Setup
    data: dict[str, Any]  # what the files say of the data
    folder: Path
    console: Console
    mesh: Mesh | None
    holds: Callable[[], bool] = lambda: True  # whether the folder is still locked for this process


def run(
    experiment: Experiment | Callable[[Any], Experiment], config: Any, console: Console, interrupts: Signals = NEVER
) -> dict[str, Any]:
    """Trains, compares and writes the run's folder; gives its metrics, which are written last.

    experiment: or a function that gives the one that the flags ask for.

    A folder that holds the same run, begun earlier, is gone on with. Where several processes share it, process 0 does
    all this and the others only train. Raises StoppedError where a signal ended the run, NonFiniteError where nan or
    infinity did, and EndedError where processes have agreed to end.
    """
    experiment = experiment if isinstance(experiment, Experiment) else experiment(config)
    multiprocess.join(config, _agreed(experiment, config))
    if not distributed.is_main():
        return _follow(experiment, config, interrupts)
    with multiprocess.lead() as go:
        return _lead(experiment, config, console, interrupts, go)


def _agreed(experiment: Experiment, config: Any) -> dict[str, Any]:
    """What the processes of a run must agree on before they train: flags and versions, which change its numbers."""
    # The data are compared by their checksum: on another machine they may have another name.
    own = {"process_id", "coordinator", "distributed", "data"}
    flags = {f"--{name.replace('_', '-')}": value for name, value in told(config).items() if name not in own}
    versions = {f"version of {name}": version for name, version in _environment.versions().items()}
    return json.loads(json.dumps({"experiment": experiment.name, **flags, **versions}, default=str))


def _follow(experiment: Experiment, config: Any, interrupts: Signals) -> dict[str, Any]:
    console = Console(quiet=True)
    with multiprocess.preparing():
        resolved = experiment.resolve(config)
        if config.compilation_cache:
            _environment.enable_compilation_cache()
        mesh, (setup, data) = multiprocess.mesh(config), _set_up(experiment, resolved, console)
    multiprocess.check_data(data["sha256"])
    folder, begin = multiprocess.run_follower(setup.start)
    _train(Job(experiment, resolved, setup, data, folder, console, mesh), Beginning(begin, [], None), interrupts)
    return {}


def _lead(
    experiment: Experiment, config: Any, console: Console, interrupts: Signals, go: multiprocess.Broadcast
) -> dict[str, Any]:
    seconds = {"import": time.perf_counter() - STARTED}
    resolved = experiment.resolve(config)
    earlier = None if config.workdir is None or config.fresh else folders.earlier(config.workdir)
    if earlier is not None:
        earlier, _ = recorded(config.workdir, earlier)
    if earlier is not None and earlier.metrics is not None:
        found = changes(told(resolved), earlier)
        if not refused(found, experiment.frozen_flags(resolved)) and not goes_on(found, earlier.metrics):
            return resume.show(experiment, earlier.metrics, config, console)
    if config.compilation_cache:
        _environment.enable_compilation_cache()
    with ExitStack() as stack, _environment.compile_clock() as compiling:
        if earlier is not None:
            holds = stack.enter_context(locked(config.workdir))
        began = time.perf_counter()
        mesh, (setup, data) = multiprocess.mesh(config), _set_up(experiment, resolved, console)
        seconds["data"] = time.perf_counter() - began
        multiprocess.check_data(data["sha256"])
        folder = config.workdir
        if earlier is None:
            folder = workdir(config.workdir, config.fresh, recipe_of(experiment, config), console)
        if earlier is None:
            holds = stack.enter_context(locked(folder))
        _files.remove_drafts(folder)
        interrupts.advise(f"interrupted; the same command with --workdir {folder} goes on from what is saved there.")
        job = Job(experiment, resolved, setup, data, folder, console, mesh, holds)
        begin = _begin(job)
        go(folder, begin.state)
        with _room(folder):
            metrics = _work(job, begin, interrupts, seconds, compiling)
            metrics["seconds"] = {**seconds, "compile": compiling(), "total": time.perf_counter() - STARTED}
            folders.write_json(folder / folders.METRICS, metrics)
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


def _set_up(experiment: Experiment, flags: Any, console: Console) -> tuple[Setup, dict[str, Any]]:
    """Return what is trained, and what the files say of its data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The note is printed instead.
        setup = setup_of(experiment, flags)
    data = experiment.describe_data(setup)
    setup.start  # noqa: B018  made here, where the time for the data is taken
    print_warning(data["note"], console)
    return setup, data


def _begin(job: Job) -> Beginning:
    """Where the run begins; its folder then holds its configuration. The folder is locked."""
    experiment, config, setup, data, folder, console, *_ = job
    flags, card = told(config), experiment.model_card(setup)
    about = {folders.KIND: folders.RUN, "recipe": recipe_of(experiment, config)}
    now = {**about, **flags, "workdir": str(folder), "dataset": data, **card, **_environment.environment()}
    earlier = folders.earlier(folder)
    if earlier is None:
        folders.write_json(folder / folders.CONFIG, now)
        return Beginning(setup.start, [], None)
    written = earlier.config
    earlier, doubt = recorded(folder, earlier)
    print_warning(doubt, console)
    found = changes(flags, earlier)
    refusal = refused(found, experiment.frozen_flags(config))
    begin = beginning(setup.start, folder, data["sha256"], found, refusal, partial(print_warning, shown=console))
    done = int(begin.state.epoch)
    check_epochs(setup.epochs, done, folder)
    kept = {**earlier.config, **card, "dataset": data}
    if begin.saved is None:
        kept = now
    elif found:
        (folder / folders.METRICS).unlink(missing_ok=True)
        record = {"after_epoch": done, **{name: list(values) for name, values in found.items()}}
        before = written["changes"] if isinstance(written.get("changes"), list) else []
        kept |= {**{n: now[n] for n in found}, "changes": [*(each for each in before if each != record), record]}
    if _files.as_json(kept) != _files.as_json(written):
        folders.write_json(folder / folders.CONFIG, kept)
    if begin.saved is not None:
        print_warning(other_surroundings(begin.saved or earlier.config, now), console)
    console.print(begin.text, markup=False, soft_wrap=True)
    return begin


def _work(
    job: Job, begin: Beginning, interrupts: Signals, seconds: dict[str, float], compiling: Callable[[], float]
) -> dict[str, Any]:
    """Trains and writes all but the metrics, which it gives."""
    experiment, config, setup, data, folder, console, *_ = job
    recipe, warn = recipe_of(experiment, config), partial(print_warning, shown=console)
    network = summary(setup.plan.model, setup.train.inputs[:1])
    console.print(as_table(network, f"{recipe}, seed {config.seed}, {short(data['source'])}"))
    if config.tensorboard:
        describe(config, network, folder, warn)
    compiled, began = compiling(), time.perf_counter()
    end = _train(job, begin, interrupts)
    seconds["fit"] = time.perf_counter() - began - (compiling() - compiled)
    if not int(end.state.stopping.best_epoch):
        warn(without_best(setup.plan, setup.validation))
    pictures = _keep(job, end)
    metrics = {
        "dataset": data,
        **experiment.evaluate(setup, end.state),
        "recipe": recipe,
        "epochs": len(end.history),
        "best_epoch": int(end.state.stopping.best_epoch),
        "reason": reason(end.state),
        "seed": config.seed,
        "parameters": network.parameters,
    }
    if config.tensorboard:
        conclude(metrics, pictures, folder, warn)
    if config.cost:
        cost = profiling.step_cost(setup.plan, setup.start, setup.train)
        metrics["cost"] = profiling.as_record(cost)
        console.print(profiling.as_table(cost))
    return metrics


def _train(job: Job, begin: Beginning, interrupts: Signals) -> End:
    experiment, config, setup, data, folder, console, mesh, _ = job
    run_state, train, validation = multiprocess.placed(begin.state, setup.train, setup.validation, mesh)
    about = {
        "config": {**told(config), "workdir": str(folder)},
        "data": data["sha256"],
        "surroundings": _environment.environment(),
    }
    warn = partial(print_warning, shown=console)
    with ExitStack() as stack:
        where = folder / "checkpoints" / "progress"
        save = multiprocess.saving(where, about, every=config.save_every, warn=warn, interrupts=interrupts)
        saving = stack.enter_context(save)
        looking = NOBODY
        if distributed.is_main():
            run = setup, folder, console, run_state, begin.history
            looking = stack.enter_context(watched(config, *run, experiment.progress_metrics, warn))
            notice = noticing(job.holds, folder, config.save_every, warn)
            looking = looking._replace(watchers=(*looking.watchers, notice))
        end = drive(
            setup.plan,
            run_state,
            train,
            validation,
            epochs=setup.epochs,
            history=begin.history,
            **looking._asdict(),
            interrupts=interrupts,
            on_nan=config.on_nan,
            **saving._asdict(),
        )
    interrupts.hold(False)
    # Asked anew, because a signal may have come while the last checkpoint was written.
    if number := multiprocess.asked(interrupts):
        raise StoppedError(number, folder)
    return end._replace(state=to_host(end.state))


def _keep(job: Job, end: End) -> list[Path]:
    """Writes weights and pictures; gives the pictures."""
    experiment, _, setup, data, folder, *_ = job
    for name, kept in (("final", eval_variables(end.state.train_state)), ("best", end.state.best)):
        # There already where the run was finished before and went on, or was cut off just here.
        shutil.rmtree(folder / "checkpoints" / name, ignore_errors=True)
        saving_module.save(folder / "checkpoints" / name, kept)
    if setup.network is None:
        _keep_program(job, end.state.best)
    (folder / "figures").mkdir(exist_ok=True)
    title = f"{folder.name}, {short(data['source'])}"
    pictures = []
    for name, figure in experiment.figures(setup, end.state, end.history, title).items():
        pictures.append(folder / "figures" / f"{name}.png")
        figure.savefig(pictures[-1])
    return pictures


def _keep_program(job: Job, variables: Variables) -> None:
    """Write the model itself, so that the run can be exported without the code of the experiment."""
    path = job.folder / folders.PROGRAM
    try:
        save_model(path, job.setup.plan.model, variables, job.setup.train.inputs[:1])
    except OSError:
        raise
    except Exception as error:  # whatever a model of the user's own cannot do without the number of its rows
        path.unlink(missing_ok=True)
        text = str(error).partition("\n")[0]
        print_warning(
            f"the run cannot be exported, because its model works only as it is called here: {text}", job.console
        )


CHARTS, RUN, PROFILE = "tensorboard", "run", "profile"  # folders


def noticing(
    holds: Callable[[], bool], folder: Path, every: float, warn: Callable[[str], None]
) -> Callable[[RunState, History], None]:
    """Return a callback that tells, once, that a run has lost its folder. holds: whether its lock is still there."""
    looked, told = time.monotonic(), False

    def observe(run_state: RunState, history: History) -> None:
        nonlocal looked, told
        if told or time.monotonic() - looked < every:
            return
        looked = time.monotonic()
        if not holds():
            told = True
            warn(
                f"{folder} was moved, or its lock removed, while the run goes on: another process could write there "
                "too. Start nothing else in it before this run has ended."
            )

    return observe


class Watchers(NamedTuple):
    """Who looks at a run."""

    callbacks: tuple[Callback, ...]  # after every epoch
    watchers: tuple[Callback, ...]  # after every chunk


NOBODY = Watchers((), ())


@contextmanager
def watched(
    config: Any,
    setup: Setup,
    folder: Path,
    console: Console,
    begin: RunState,
    history: History,
    shown: tuple[str, str],
    warn: Callable[[str], None],
) -> Iterator[Watchers]:
    """Those who look at a run that begins at `begin`, after the epochs in `history`, and write into its folder.

    begin: placed as it is trained. shown: what the bar shows of an epoch. tell: is told what could not be written.
    """
    done, epochs = len(history), setup.epochs
    _, batches = batches_of_epoch(setup.plan, setup.train, setup.validation)
    with ExitStack() as stack:
        on_epoch = [callbacks.csv_log(folder / "history.csv", history)]
        watchers = [callbacks.progress_bar(epochs, shown, console=console, batches=batches, initial_epoch=done)]
        if config.tensorboard:
            on_epoch.append(callbacks.tensorboard(folder / CHARTS, initial_epoch=done, warn=warn))
        if config.histograms:
            every = config.histograms
            plan, train = setup.plan, setup.train
            on_epoch.append(callbacks.histograms(folder / CHARTS, plan, train, begin, every=every, warn=warn))
        if config.profile:
            watchers.append(callbacks.profiler(folder / PROFILE, initial_epoch=done, last=epochs, warn=warn))
        yield Watchers(*(tuple(map(stack.enter_context, each)) for each in (on_epoch, watchers)))


def describe(config: Any, network: Summary, folder: Path, warn: Callable[[str], None]) -> None:
    """Tells TensorBoard what the run is: its flags and its layers."""
    flags = {name: value for name, value in asdict(config).items() if name not in OWN}
    told = {name: value for name, value in flags.items() if name not in HOW}
    text = {"configuration": table(("flag", "value"), flags.items()), "layers": as_markdown(network)}
    with _told(warn):
        callbacks.description(folder / CHARTS / RUN, text=text, hyperparameters=told)


def conclude(metrics: Mapping[str, Any], pictures: list[Path], folder: Path, warn: Callable[[str], None]) -> None:
    """Tells TensorBoard what came of the run."""
    with _told(warn):
        callbacks.pictures(folder / CHARTS / "pictures", pictures, step=metrics["epochs"])
        # Of the best epoch alone: each is a column of a table.
        figures = {name: value for name, value in metrics.items() if name.endswith("_best")}
        callbacks.results(folder / CHARTS / RUN, figures, step=metrics["epochs"])


@contextmanager
def _told(warn: Callable[[str], None]) -> Iterator[None]:
    """Charts are not worth a run: where they cannot be written, that is told."""
    try:
        yield
    except (InputError, OSError) as error:
        warn(f"TensorBoard is told less than usual: {error}")
