"""Run an experiment: train, save, log, and write the run's folder."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jax.sharding import Mesh
from rich.console import Console

from jaxdl import _environment, _files, callbacks, distributed, profiling
from jaxdl._checks import check_callbacks
from jaxdl._environment import compile_clock
from jaxdl._format import table
from jaxdl._startup import STARTED
from jaxdl.data import DataSource
from jaxdl.distributed.sharding import to_host
from jaxdl.errors import InputError
from jaxdl.nn.summaries import Summary, as_markdown, as_table, summary
from jaxdl.runs import folders, multiprocess, resume
from jaxdl.runs.console import print_warning
from jaxdl.runs.experiment import Experiment, Setup, build_setup, recipe_name
from jaxdl.runs.flags import COMMAND_FLAGS, NO_HYPERPARAMETERS, run_flags
from jaxdl.runs.folders import locked, prepare_workdir, short_source
from jaxdl.runs.resume import CHECKPOINTS, StartPoint
from jaxdl.runs.signals import NEVER, Signals, StoppedError
from jaxdl.saving import save as save_variables
from jaxdl.saving.export import save_model
from jaxdl.train.epoch import batches_of_epoch
from jaxdl.train.fit import end_reason, warn_of_eval_params, without_best
from jaxdl.train.hooks import Chunk, LoopResult, at_intervals, open_hooks
from jaxdl.train.loop import SECONDS, AdaptiveSteps, chunks, prepare_data, run_loop
from jaxdl.train.nonfinite import NonFiniteError, check_finite
from jaxdl.train.plan import check_monitors
from jaxdl.train.step import eval_variables
from jaxdl.types import Callback, CallbackLike, Dataset, History, Plan, RunState, Variables


class End(NamedTuple):
    """The state and the history with which a run ended."""

    state: RunState
    history: list[dict[str, float]]


def drive(
    plan: Plan,
    run_state: RunState,
    train: Dataset | DataSource,
    validation: Dataset | None,
    *,
    epochs: int,
    history: Iterable[dict[str, float]] = (),
    callbacks: Iterable[CallbackLike] = (),
    save: Callable[[RunState, History], None] | None = None,
    interrupts: Signals = NEVER,
    should_pause: Callable[[], bool] = lambda: False,
    on_pause: Callable[[RunState, list[dict[str, float]]], bool] = lambda run_state, history: True,
    on_nan: Literal["stop", "continue"] = "stop",
) -> End:
    """Train up to epoch `epochs` as `fit` does, with a clock, signals and checkpoints.

    The record of an epoch also holds its wall time in `seconds`, without the time of compilation. The device trains the
    next chunk while the callbacks run.

    history: the records of the epochs before `run_state`.
    callbacks: as for `fit`; their `Stop` ends the run, too.
    save: called after every chunk whose state and losses are finite.
    interrupts: a signal pauses the run before its next chunk; from the first chunk on, it no longer ends the process.
    should_pause: called before every chunk; True pauses the run.
    on_pause: called where the run has paused, also because another process asked for it; True ends the run.

    Raises NonFiniteError where a value is not finite and `on_nan` is "stop"; `save` then gets the state before it.
    """
    warn_of_eval_params(plan, run_state)
    reached, last_time, last_compiled = LoopResult(run_state, list(history)), time.perf_counter(), 0.0
    rows, validation = prepare_data(plan, train, validation)
    check_monitors(plan, run_state, validation)

    def hold_signals(chunk: Chunk) -> Chunk:
        interrupts.defer(True)
        return chunk

    with compile_clock() as compiled:

        def add_seconds(record: dict[str, Any]) -> dict[str, Any]:
            nonlocal last_time, last_compiled
            now, compile_seconds = time.perf_counter(), compiled() - last_compiled
            seconds = now - last_time - compile_seconds
            last_time, last_compiled = now, last_compiled + compile_seconds
            return {**record, "seconds": seconds}

        def is_last(chunk: Chunk) -> bool:
            if save and chunk.finite:
                save(chunk.state, reached.history)
            return chunk.batches == 0 and on_pause(chunk.state, reached.history)

        with open_hooks(check_callbacks(callbacks), reached) as hooks:
            size = AdaptiveSteps(hooks.seconds(SECONDS), lambda: interrupts.received() is not None or should_pause())
            options: dict[str, Any] = {"last": epochs, "steps": size, "end_after": hooks.every_steps}
            steps: Iterator[Chunk] = chunks(plan, run_state, rows, validation, **options)
            if on_nan == "stop":
                steps = check_finite(steps, plan, run_state, rows, validation)
            try:
                run_loop(map(hold_signals, steps), reached, hooks=hooks, make_record=add_seconds, is_last=is_last)
            except NonFiniteError as error:
                reached.state = error.args[0].state
                if save:
                    save(reached.state, reached.history)
                raise
    return End(reached.state, reached.history)


class Job(NamedTuple):
    """A run that is about to start or to resume."""

    experiment: Experiment
    config: Any  # flags, with the experiment's defaults
    setup: Setup
    data: dict[str, Any]  # the entry "dataset" of config.json and metrics.json
    folder: Path
    console: Console
    mesh: Mesh | None
    is_locked: Callable[[], bool] = lambda: True  # whether this process still holds the lock of the folder

    def warn(self, text: str | None) -> None:
        """Print a warning, if there is one."""
        print_warning(text, self.console)


def run(
    experiment: Experiment | Callable[[Any], Experiment], config: Any, console: Console, interrupts: Signals = NEVER
) -> dict[str, Any]:
    """Train, evaluate and write the run's folder; return its metrics, the content of metrics.json.

    experiment: or a function that takes the flags and returns the experiment.

    A run that the folder holds is resumed. Where several processes train together, process 0 does all this and the
    others only train. Raises StoppedError where a signal ended the run, NonFiniteError where a value is NaN or
    infinite, and EndedError where the processes have agreed to end.
    """
    experiment = experiment if isinstance(experiment, Experiment) else experiment(config)
    multiprocess.join_processes(config, _shared_settings(experiment, config))
    if not distributed.is_main():
        return _follow(experiment, config, interrupts)
    with multiprocess.leading() as release:
        return _lead(experiment, config, console, interrupts, release)


def _shared_settings(experiment: Experiment, config: Any) -> dict[str, Any]:
    """Return the settings that must be equal in all processes of a run: flags and versions that change its numbers."""
    # The data are compared by their checksum: on another machine they may have another name.
    skipped = {"process_id", "coordinator", "distributed", "data"}
    flags = {f"--{name.replace('_', '-')}": value for name, value in run_flags(config).items() if name not in skipped}
    versions = {f"version of {name}": version for name, version in _environment.versions().items()}
    return json.loads(json.dumps({"experiment": experiment.name, **flags, **versions}, default=str))


def _follow(experiment: Experiment, config: Any, interrupts: Signals) -> dict[str, Any]:
    """Train as a process that is not process 0; write nothing."""
    console = Console(quiet=True)
    with multiprocess.preparing():
        resolved = experiment.resolve(config)
        if config.compilation_cache:
            _environment.enable_compilation_cache()
        mesh, (setup, data) = multiprocess.mesh(config), _set_up(experiment, resolved, console)
    multiprocess.check_data(data["sha256"])
    folder, run_state = multiprocess.receive_start(setup.start)
    _train(Job(experiment, resolved, setup, data, folder, console, mesh), StartPoint(run_state, []), interrupts)
    return {}


def _lead(
    experiment: Experiment, config: Any, console: Console, interrupts: Signals, release: multiprocess.Broadcast
) -> dict[str, Any]:
    """Do the work of process 0: prepare the folder, train, and write the results."""
    seconds = {"import": time.perf_counter() - STARTED}
    resolved = experiment.resolve(config)
    files = None if config.workdir is None or config.fresh else folders.read_run(config.workdir)
    if files is not None:
        files, _ = resume.with_checkpoint_flags(config.workdir, files)
    if files is not None and files.metrics is not None:
        changes = resume.changed_flags(run_flags(resolved), files)
        refusal = resume.refusal(changes, experiment.frozen_flags(resolved))
        if not refusal and not resume.can_continue(changes, files.metrics):
            return resume.print_finished(experiment, files.metrics, config, console)
    if config.compilation_cache:
        _environment.enable_compilation_cache()
    with ExitStack() as stack, _environment.compile_clock() as compiled:
        if files is not None:
            is_locked = stack.enter_context(locked(config.workdir))
        data_start = time.perf_counter()
        mesh, (setup, data) = multiprocess.mesh(config), _set_up(experiment, resolved, console)
        seconds["data"] = time.perf_counter() - data_start
        multiprocess.check_data(data["sha256"])
        folder = config.workdir
        if files is None:
            folder = prepare_workdir(config.workdir, config.fresh, recipe_name(experiment, config), console)
            is_locked = stack.enter_context(locked(folder))
        _files.remove_drafts(folder)
        interrupts.set_message(
            f"interrupted; the same command with --workdir {folder} resumes from what is saved there."
        )
        job = Job(experiment, resolved, setup, data, folder, console, mesh, is_locked)
        start = _start(job)
        release(folder, start.state)
        with _disk_errors(folder):
            metrics = _train_and_evaluate(job, start, interrupts, seconds, compiled)
            metrics["seconds"] = {**seconds, "compile": compiled(), "total": time.perf_counter() - STARTED}
            folders.write_json(folder / folders.METRICS, metrics)
    console.print(experiment.table(metrics))
    console.print(f"Everything about this run is in {folder}", markup=False, soft_wrap=True)
    return metrics


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk into InputError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}). Free some space and start the same command again."
        ) from error


def _set_up(experiment: Experiment, flags: Any, console: Console) -> tuple[Setup, dict[str, Any]]:
    """Return the setup and the entry "dataset" of the run's files; print the note about the data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The note is printed instead.
        setup = build_setup(experiment, flags)
    data = experiment.describe_data(setup)
    setup.start  # noqa: B018  The cached state is created here, so that its time counts as that of the data.
    print_warning(data["note"], console)
    return setup, data


def _start(job: Job) -> StartPoint:
    """Return the state in which the run starts or resumes, and write its config.json. The folder is locked."""
    experiment, config, setup, data, folder, console, *_ = job
    flags, card = run_flags(config), experiment.model_card(setup)
    recipe = {folders.KIND: folders.RUN, "recipe": recipe_name(experiment, config)}
    now = {**recipe, **flags, "workdir": str(folder), "dataset": data, **card, **_environment.environment()}
    files = folders.read_run(folder)
    if files is None:
        folders.write_json(folder / folders.CONFIG, now)
        return StartPoint(setup.start, [])
    written = files.config
    files, warning = resume.with_checkpoint_flags(folder, files)
    job.warn(warning)
    changes = resume.changed_flags(flags, files)
    refusal = resume.refusal(changes, experiment.frozen_flags(config))
    start = resume.restore(setup.start, folder, data["sha256"], changes, refusal, job.warn)
    epoch = int(start.state.epoch)
    if setup.epochs < epoch:
        raise InputError(
            f"--epochs must be at least {epoch}, the epochs that the run in {folder} has trained, got {setup.epochs}."
        )
    content = {**files.config, **card, "dataset": data}
    if start.environment is None:
        content = now
    elif changes:
        (folder / folders.METRICS).unlink(missing_ok=True)
        change = {"after_epoch": epoch, **{name: list(values) for name, values in changes.items()}}
        before = written["changes"] if isinstance(written.get("changes"), list) else []
        content |= {
            **{n: now[n] for n in changes},
            "changes": [*(entry for entry in before if entry != change), change],
        }
    if _files.as_json(content) != _files.as_json(written):
        folders.write_json(folder / folders.CONFIG, content)
    if start.environment is not None:
        job.warn(resume.environment_warning(start.environment or files.config, now))
    console.print(start.message, markup=False, soft_wrap=True)
    return start


def _train_and_evaluate(
    job: Job, start: StartPoint, interrupts: Signals, seconds: dict[str, float], compiled: Callable[[], float]
) -> dict[str, Any]:
    """Train, write all files except metrics.json, and return its content; add the time of training to `seconds`."""
    experiment, config, setup, data, _, console, *_ = job
    recipe = recipe_name(experiment, config)
    network = summary(setup.plan.model, setup.train.inputs)
    console.print(as_table(network, f"{recipe}, seed {config.seed}, {short_source(data['source'])}"))
    if config.tensorboard:
        _log_description(job, network)
    compiled_before, start_time = compiled(), time.perf_counter()
    end = _train(job, start, interrupts)
    seconds["fit"] = time.perf_counter() - start_time - (compiled() - compiled_before)
    if not int(end.state.stopping.best_epoch):
        job.warn(without_best(setup.plan, setup.validation))
    pictures = _save_results(job, end)
    metrics = {
        "dataset": data,
        **experiment.evaluate(setup, end.state),
        "recipe": recipe,
        "epochs": len(end.history),
        "best_epoch": int(end.state.stopping.best_epoch),
        "reason": end_reason(end.state),
        "seed": config.seed,
        "parameters": network.parameters,
    }
    if config.tensorboard:
        _log_results(job, metrics, pictures)
    if config.cost:
        cost = profiling.step_cost(setup.plan, setup.start, setup.train)
        metrics["cost"] = profiling.as_record(cost)
        console.print(profiling.as_table(cost))
    return metrics


def _train(job: Job, start: StartPoint, interrupts: Signals) -> End:
    """Train from `start` to the end; raise StoppedError where a signal came to any process."""
    config, setup, folder = job.config, job.setup, job.folder
    run_state, train, validation = multiprocess.place(start.state, setup.train, setup.validation, job.mesh)
    about = {
        "config": {**run_flags(config), "workdir": str(folder)},
        "data": job.data["sha256"],
        "surroundings": _environment.environment(),
    }
    with ExitStack() as stack:
        saving = stack.enter_context(
            multiprocess.saving(
                folder / CHECKPOINTS, about, every=config.save_every, warn=job.warn, interrupts=interrupts
            )
        )
        end = drive(
            setup.plan,
            run_state,
            train,
            validation,
            epochs=setup.epochs,
            history=start.history,
            callbacks=_callbacks(job, run_state, start.history) if distributed.is_main() else (),
            interrupts=interrupts,
            on_nan=config.on_nan,
            **saving._asdict(),
        )
    interrupts.defer(False)
    # Read again, because a signal may come while the last checkpoint is written.
    if number := multiprocess.any_signal(interrupts):
        raise StoppedError(number, folder)
    return end._replace(state=to_host(end.state))


def _save_results(job: Job, end: End) -> list[Path]:
    """Save the final and the best variables and the figures; return the files of the figures."""
    setup, folder = job.setup, job.folder
    for name, variables in (("final", eval_variables(end.state.train_state)), ("best", end.state.best)):
        # The folder exists where a finished run was continued, or where the run was interrupted here.
        shutil.rmtree(folder / "checkpoints" / name, ignore_errors=True)
        save_variables(folder / "checkpoints" / name, variables)
    if setup.network is None:
        _save_program(job, end.state.best)
    (folder / "figures").mkdir(exist_ok=True)
    title = f"{folder.name}, {short_source(job.data['source'])}"
    pictures = []
    for name, figure in job.experiment.figures(setup, end.state, end.history, title).items():
        pictures.append(folder / "figures" / f"{name}.png")
        figure.savefig(pictures[-1])
    return pictures


def _save_program(job: Job, variables: Variables) -> None:
    """Save the compiled model, so that the run can be exported without the code of the experiment."""
    path = job.folder / folders.PROGRAM
    try:
        save_model(path, job.setup.plan.model, variables, job.setup.train.inputs)
    except OSError:
        raise
    except Exception as error:  # Whatever the user's model raises where the batch size is symbolic.
        path.unlink(missing_ok=True)
        text = str(error).partition("\n")[0]
        job.warn(f"the run cannot be exported, because its model does not work for every batch size: {text}")


CHARTS, RUN, PROFILE = "tensorboard", "run", "profile"  # folders


def _callbacks(job: Job, run_state: RunState, history: History) -> list[CallbackLike]:
    """Return the callbacks of a run, which `drive` opens and closes.

    run_state: placed as it is trained, after the epochs in `history`.
    """
    config, setup, folder = job.config, job.setup, job.folder
    initial_epoch, epochs = len(history), setup.epochs
    _, batches = batches_of_epoch(setup.plan, setup.train, setup.validation)
    bar = callbacks.progress_bar(
        epochs, job.experiment.progress_metrics, console=job.console, batches=batches, initial_epoch=initial_epoch
    )
    result: list[CallbackLike] = [callbacks.csv_log(folder / "history.csv", history), bar]
    if config.tensorboard:
        result.append(callbacks.tensorboard(folder / CHARTS, initial_epoch=initial_epoch, warn=job.warn))
    if config.histograms:
        every = config.histograms
        result.append(
            callbacks.histograms(folder / CHARTS, setup.plan, setup.train, run_state, every=every, warn=job.warn)
        )
    if config.profile:
        result.append(callbacks.profiler(folder / PROFILE, initial_epoch=initial_epoch, last=epochs, warn=job.warn))
    return [*result, lock_check(job.is_locked, folder, config.save_every, job.warn)]


def lock_check(is_locked: Callable[[], bool], folder: Path, every: float, warn: Callable[[str], None]) -> Callback:
    """Return a callback that checks the lock of the folder every `every` seconds, and warns once where it is lost."""
    last_check, has_warned = time.monotonic(), False

    def observe(run_state: RunState, history: History) -> None:
        nonlocal last_check, has_warned
        if has_warned or time.monotonic() - last_check < every:
            return
        last_check = time.monotonic()
        if not is_locked():
            has_warned = True
            warn(
                f"{folder} was moved, or its lock removed, while the run trains: another process could write there "
                "too. Start no other run in it before this run has ended."
            )

    return at_intervals(observe, SECONDS)


def _log_description(job: Job, network: Summary) -> None:
    """Write the flags and the layers of the run for TensorBoard."""
    flags = {name: value for name, value in asdict(job.config).items() if name not in COMMAND_FLAGS}
    hyperparameters = {name: value for name, value in flags.items() if name not in NO_HYPERPARAMETERS}
    text = {"configuration": table(("flag", "value"), flags.items()), "layers": as_markdown(network)}
    with _warn_of_charts(job):
        callbacks.description(job.folder / CHARTS / RUN, text=text, hyperparameters=hyperparameters)


def _log_results(job: Job, metrics: Mapping[str, Any], pictures: list[Path]) -> None:
    """Write the figures and the metrics of the best epoch for TensorBoard."""
    with _warn_of_charts(job):
        callbacks.pictures(job.folder / CHARTS / "pictures", pictures, step=metrics["epochs"])
        # Each entry is a column of a table, so only those of the best epoch.
        best = {name: value for name, value in metrics.items() if name.endswith("_best")}
        callbacks.results(job.folder / CHARTS / RUN, best, step=metrics["epochs"])


@contextmanager
def _warn_of_charts(job: Job) -> Iterator[None]:
    """Warn instead of raising: a run does not end because TensorBoard's files cannot be written."""
    try:
        yield
    except (InputError, OSError) as error:
        job.warn(f"the files for TensorBoard are incomplete: {error}")
