"""A callback that shows the epoch, the metrics and the time left of a run."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdl.train.hooks import at_intervals
from jaxdl.train.loop import SECONDS
from jaxdl.types import Callback, History, Hook

if TYPE_CHECKING:
    from rich.console import Console


def progress_bar(
    epochs: int,
    metrics: tuple[str, ...] = ("loss",),
    *,
    console: Console | None = None,
    batches: int = 1,
    initial_epoch: int = 0,
) -> AbstractContextManager[Callback]:
    """Show the epoch, the metrics, the best epoch so far and the time left of a run.

    It is one line in a terminal, a bar in a notebook, lines of text in a log, and nothing for a quiet console, each
    updated at most a few times a second, so that short epochs stay fast. metrics: their names; the best epoch is shown
    with its value of the last of them. Of many runs, as of `fit_seeds` and `sweep`, it shows the means; of a sweep also
    the rung, the trials that are left, and the best value so far that early stopping monitors. With `batches`, the
    number of batches of an epoch and its validation, the bar moves within an epoch. initial_epoch: the last epoch
    before the run.

    >>> import optax
    >>> from rich.console import Console
    >>> from jaxdl import dataset, fit, losses, mlp
    >>> train = dataset([[1.0]] * 32, [[2.0]] * 32)
    >>> with progress_bar(1, console=Console(force_terminal=False)) as callback:
    ...     _ = fit(mlp(()), losses.squared_error, optax.sgd(0.1), train, epochs=1, callbacks=[callback])
    epoch 1/1 loss ...
    """
    from rich.console import Console

    console = console or Console()
    if console.quiet:
        return nullcontext(Callback())
    if console.is_jupyter:
        return _notebook_bar(epochs, metrics, batches, initial_epoch)
    if console.is_terminal:
        return _terminal_bar(console, epochs, metrics, batches)
    return _log_lines(console, epochs, metrics, initial_epoch)


@contextmanager
def _terminal_bar(console: Console, epochs: int, metrics: tuple[str, ...], batches: int) -> Iterator[Callback]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    # Narrow enough for 80 columns.
    columns = MofNCompleteColumn(), BarColumn(8), TextColumn("{task.description}"), TimeRemainingColumn(compact=True)
    with Bar(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("", total=epochs)

        def show(run_state: Any, history: History) -> None:
            epoch, text = _fractional_epoch(run_state, history, batches, epochs), _status(run_state, history, metrics)
            if _is_sweep(run_state):
                # The bar shows the part of all epochs of all trials, which is no number of epochs.
                bar.columns, text = columns[1:], f"{_count(run_state, history, epoch, epochs)} {text}"
            bar.update(task, completed=epoch, description=text, refresh=True)

        try:
            with _throttle(show, every=0.2) as callback:
                yield _moving(callback, batches)
        finally:
            # A run that stops early has no time left.
            bar.columns = bar.columns[:-1]
            bar.refresh()


@contextmanager
def _notebook_bar(epochs: int, metrics: tuple[str, ...], batches: int, initial_epoch: int) -> Iterator[Callback]:
    from IPython.display import display

    remaining = _Remaining(epochs)
    count = f"epoch {initial_epoch}/{epochs}"
    last: tuple[float, str, str] = initial_epoch, count, "no epoch has ended"
    output = display(_as_html(initial_epoch, epochs, count, "compiling"), raw=True, display_id=True)

    def show(run_state: Any, history: History) -> None:
        nonlocal last
        epoch, text = _fractional_epoch(run_state, history, batches, epochs), _status(run_state, history, metrics)
        count = _count(run_state, history, epoch, epochs)
        seconds, last = remaining.seconds(epoch), (epoch, count, text)
        left = "" if seconds is None or epoch >= epochs else f", at most {seconds:.0f} s left"
        output.update(_as_html(epoch, epochs, count, text + left), raw=True)

    try:
        with _throttle(show, every=0.2) as callback:
            yield _moving(callback, batches)
    finally:
        # A run may stop early or be interrupted, and then has no time left.
        output.update(_as_html(last[0], epochs, *last[1:]), raw=True)


def _as_html(epoch: float, epochs: int, count: str, text: str) -> dict[str, str]:
    """Return a bar in HTML and as text: a notebook chooses, and the bar takes the colors of the page."""
    bar = f'<progress value="{epoch:.3f}" max="{epochs}" style="width: 12em; vertical-align: middle"></progress>'
    page = f'<div style="white-space: nowrap; font-family: monospace">{count} {bar} {html.escape(text)}</div>'
    return {"text/html": page, "text/plain": f"{count} {text}"}


@contextmanager
def _log_lines(console: Console, epochs: int, metrics: tuple[str, ...], initial_epoch: int) -> Iterator[Callback]:
    record: dict[str, Any] = {"epoch": initial_epoch}
    remaining = _Remaining(epochs)
    last = epochs

    def show(run_state: Any, history: History) -> None:
        nonlocal last
        epoch = int(history[-1]["epoch"])
        seconds = remaining.seconds(_fractional_epoch(run_state, history, 1, epochs) if _is_sweep(run_state) else epoch)
        left = "" if seconds is None else f" left at most {seconds:.0f} s"
        last = epoch if _should_stop(run_state) else epochs
        text = f"{_count(run_state, history, epoch, epochs)} {_status(run_state, history, metrics)}"
        console.print(f"{text}{left}", highlight=False, soft_wrap=True)

    with _throttle(show, every=1.0) as callback:

        def after_epochs(run_state: Any, history: History) -> None:
            nonlocal record
            # The last record of a run that is resumed is not new, and within an epoch there is no new one.
            if history and history[-1] is not record and (len(record) > 1 or history[-1]["epoch"] != initial_epoch):
                record = history[-1]
                callback(run_state, history)

        yield Callback(on_epoch_end=after_epochs)

    if last < epochs:
        console.print(f"ended after epoch {last} of {epochs}", highlight=False)


class _Remaining:
    """An upper bound of the seconds that a run needs for its remaining epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.start: tuple[float, float] | None = None  # the time and the epoch of the first call

    def seconds(self, epoch: float) -> float | None:
        """Return the seconds after this epoch, or None at the first call: the time before it includes compilation."""
        now = time.monotonic()
        # The epoch falls where a run is set back.
        if self.start is None or epoch < self.start[1]:
            self.start = now, epoch
        if epoch == self.start[1]:
            return None
        return (now - self.start[0]) / (epoch - self.start[1]) * (self.epochs - epoch)


def _moving(show: Hook, batches: int) -> Callback:
    """Return a callback that shows each epoch and, where the batches of an epoch are known, moves within one."""
    return at_intervals(show, SECONDS) if batches > 1 else Callback(on_epoch_end=show)


@contextmanager
def _throttle(show: Hook, every: float) -> Iterator[Hook]:
    """Call `show` for the first epoch, then at most once in `every` seconds, and for the last epoch at the end."""
    last_time, pending = -every, None

    def callback(run_state: Any, history: History) -> None:
        nonlocal last_time, pending
        pending = (run_state, history)
        if time.monotonic() - last_time >= every:
            show(run_state, history)
            last_time, pending = time.monotonic(), None

    yield callback
    if pending is not None:
        show(*pending)


def _is_sweep(run_state: Any) -> bool:
    """Return whether a state is a SweepState, which this module does not import: both are of the same layer."""
    return hasattr(run_state, "status")


def _count(run_state: Any, history: History, epoch: float, epochs: int) -> str:
    """Return the epoch as text; of a sweep with the rung and the trials that are left."""
    if not _is_sweep(run_state):
        return f"epoch {int(epoch)}/{epochs}"
    at = run_state.status(history)
    return f"rung {at.rung}/{at.rungs} trials {at.trials}/{at.total_trials} epoch {at.epoch}/{at.epochs}"


def _fractional_epoch(run_state: Any, history: History, batches: int, epochs: int) -> float:
    """Return the finished epochs with the fraction of the current one; for many runs the most whole epochs.

    For a sweep: the part of its work that is finished, times its epochs.
    """
    if _is_sweep(run_state):
        return float(run_state.status(history).fraction * epochs)
    if history and _count_runs(history[-1]):
        return int(np.max(history[-1]["epoch"]))
    return int(run_state.epoch) + int(run_state.cursor) / batches


def _should_stop(run_state: Any) -> bool:
    """Return whether the stopping rule has ended the run, or all of many runs; a sweep has no stopping rule."""
    return bool(np.all(getattr(getattr(run_state, "stopping", None), "should_stop", False)))


def _count_runs(record: dict[str, Any]) -> int:
    """Return the number of runs of a record; 0 where its values are plain numbers."""
    return max((np.size(value) for value in record.values() if np.ndim(value)), default=0)


def _mean_status(record: dict[str, Any], metrics: tuple[str, ...]) -> str:
    """Return the means over the runs with a finite value."""
    values = {name: np.asarray(record[name]) for name in metrics if name in record}
    finite = {name: value[np.isfinite(value)] for name, value in values.items()}
    text = " ".join(f"{name} {value.mean() if value.size else np.nan:.4f}" for name, value in finite.items())
    if "trial" in record:
        return text  # beside the counts of the sweep, within 80 columns
    runs, least = _count_runs(record), min((value.size for value in finite.values()), default=0)
    count = f"{least} of {runs}" if least < runs else runs
    return f"{text} (mean of {count} runs)"


def _status(run_state: Any, history: History, metrics: tuple[str, ...]) -> str:
    """Return the metrics of the last epoch and the best epoch as text."""
    if not history:
        return "first epoch"
    if _is_sweep(run_state):
        return f"{_mean_status(history[-1], metrics)} best {run_state.status(history).best:.4f}"
    if _count_runs(history[-1]):
        return _mean_status(history[-1], metrics)
    text = " ".join(f"{name} {history[-1][name]:.4f}" for name in metrics if name in history[-1])
    best, first = int(run_state.stopping.best_epoch), int(history[0]["epoch"])
    if best < first or metrics[-1] not in history[best - first]:
        return f"{text} best: {f'epoch {best}' if best else 'none yet'}"
    return f"{text} best {history[best - first][metrics[-1]]:.4f} (epoch {best})"
