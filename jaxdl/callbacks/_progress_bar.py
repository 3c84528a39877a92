"""The bar that shows how far a run is."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdl.types import Callback, History

if TYPE_CHECKING:
    from rich.console import Console


def progress_bar(
    epochs: int,
    figures: tuple[str, ...] = ("loss",),
    *,
    console: Console | None = None,
    batches: int = 1,
    initial_epoch: int = 0,
) -> AbstractContextManager[Callback]:
    """Shows epoch, the given figures, the best epoch so far and the time left, as fits where it is shown.

    That is one line in a terminal, one bar in a notebook, plain lines in a log, and nothing where the console is quiet.
    To be called after every epoch, or every chunk: `batches`, of an epoch, let the bar move inside of one;
    `initial_epoch`: the epochs that were done before. Of many runs, as of `fit_seeds` and `sweep`, it shows the means.
    It is redrawn, and a line is printed, only now and then, so that short epochs are not slowed down. The best epoch is
    shown with the last of the figures.

    >>> from rich.console import Console
    >>> with progress_bar(5, ("loss", "val_loss"), console=Console(quiet=True)) as observe:
    ...     callable(observe)
    True
    """
    from rich.console import Console

    console = console or Console()
    if console.quiet:
        return nullcontext(lambda run_state, history: None)
    if console.is_jupyter:
        return _html(epochs, figures, batches, initial_epoch)
    return (
        _bar(console, epochs, figures, batches)
        if console.is_terminal
        else _lines(console, epochs, figures, initial_epoch)
    )


@contextmanager
def _bar(console: Console, epochs: int, figures: tuple[str, ...], batches: int) -> Iterator[Callback]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    # Narrow enough for 80 columns.
    columns = MofNCompleteColumn(), BarColumn(8), TextColumn("{task.description}"), TimeRemainingColumn(compact=True)
    with Bar(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("", total=epochs)

        def show(run_state: Any, history: History) -> None:
            done = _done(run_state, history, batches)
            bar.update(task, completed=done, description=_line(run_state, history, figures), refresh=True)

        try:
            with _now_and_then(show, every=0.2) as observe:
                yield observe
        finally:
            # A run that stops early has no time left.
            bar.columns = columns[:-1]
            bar.refresh()


@contextmanager
def _html(epochs: int, figures: tuple[str, ...], batches: int, initial_epoch: int) -> Iterator[Callback]:
    from IPython.display import display

    began: tuple[float, float] | None = None
    latest: tuple[float, str] = initial_epoch, "no epoch has ended"
    shown = display(_as_html(initial_epoch, epochs, "compiling"), raw=True, display_id=True)

    def show(run_state: Any, history: History) -> None:
        nonlocal began, latest
        done, now = _done(run_state, history, batches), time.monotonic()
        text, left = _line(run_state, history, figures), ""
        # What came before the first call compiled, so it says nothing about the rest.
        if began is not None and began[1] < done < epochs:
            left = f", at most {(now - began[0]) / (done - began[1]) * (epochs - done):.0f} s left"
        # A run may be set back, and a sweep begins with other trials.
        began, latest = began if began and began[1] <= done else (now, done), (done, text)
        shown.update(_as_html(done, epochs, text + left), raw=True)

    try:
        with _now_and_then(show, every=0.2) as observe:
            yield observe
    finally:
        # Where it ended: a run may stop early, or be stopped.
        shown.update(_as_html(latest[0], epochs, latest[1]), raw=True)


def _as_html(done: float, epochs: int, text: str) -> dict[str, str]:
    """A bar in the formats that a notebook chooses from: it takes the colors of the page around it."""
    count = f"epoch {int(done)}/{epochs}"
    bar = f'<progress value="{done:.3f}" max="{epochs}" style="width: 12em; vertical-align: middle"></progress>'
    page = f'<div style="white-space: nowrap; font-family: monospace">{count} {bar} {html.escape(text)}</div>'
    return {"text/html": page, "text/plain": f"{count} {text}"}


@contextmanager
def _lines(console: Console, epochs: int, figures: tuple[str, ...], initial_epoch: int) -> Iterator[Callback]:
    seen: dict[str, Any] = {"epoch": initial_epoch}
    began: tuple[float, int] | None = None
    latest = epochs

    def show(run_state: Any, history: History) -> None:
        nonlocal began, latest
        epoch, now, left = int(history[-1]["epoch"]), time.monotonic(), ""
        # The first epoch compiles, so it says nothing about the others.
        if began is not None and epoch > began[1]:
            left = f" left at most {(now - began[0]) / (epoch - began[1]) * (epochs - epoch):.0f} s"
        # A run may be set back, and a sweep begins with other trials.
        began = began if began and began[1] <= epoch else (now, epoch)
        latest = epoch if _stopped_early(run_state) else epochs
        text = _line(run_state, history, figures)
        console.print(f"epoch {epoch}/{epochs} {text}{left}", highlight=False, soft_wrap=True)

    with _now_and_then(show, every=1.0) as observe:

        def after_epochs(run_state: Any, history: History) -> None:
            nonlocal seen
            # The records of a run that is resumed are not new, and inside an epoch there is no new one.
            if history and history[-1] is not seen and (len(seen) > 1 or history[-1]["epoch"] != initial_epoch):
                seen = history[-1]
                observe(run_state, history)

        yield after_epochs

    if latest < epochs:
        console.print(f"ended after epoch {latest} of {epochs}", highlight=False)


@contextmanager
def _now_and_then(show: Callback, every: float) -> Iterator[Callback]:
    """Calls `show` for the first epoch, then at most every so many seconds, and for the last epoch at the end."""
    shown, latest = -every, None

    def observe(run_state: Any, history: History) -> None:
        nonlocal shown, latest
        latest = (run_state, history)
        if time.monotonic() - shown >= every:
            show(run_state, history)
            shown, latest = time.monotonic(), None

    yield observe
    if latest is not None:
        show(*latest)


def _done(run_state: Any, history: History, batches: int) -> float:
    """How many epochs are done, with the part of the one under way; of many runs whole ones."""
    if history and _runs(history[-1]):
        return int(np.max(history[-1]["epoch"]))
    return int(run_state.epoch) + int(run_state.cursor) / batches


def _stopped_early(run_state: Any) -> bool:
    """Whether the stopping rule has ended the run, or all of many; a sweep has no rule of its own."""
    return bool(np.all(getattr(getattr(run_state, "stopping", None), "should_stop", False)))


def _runs(record: dict[str, Any]) -> int:
    """How many runs a record is of; 0 for one whose values are plain numbers."""
    return max((np.size(value) for value in record.values() if np.ndim(value)), default=0)


def _mean_line(record: dict[str, Any], figures: tuple[str, ...]) -> str:
    """The means over the runs that have a finite value."""
    values = {name: np.asarray(record[name]) for name in figures if name in record}
    finite = {name: value[np.isfinite(value)] for name, value in values.items()}
    shown = " ".join(f"{name} {of.mean() if of.size else np.nan:.4f}" for name, of in finite.items())
    runs, left = _runs(record), min((of.size for of in finite.values()), default=0)
    count = f"{left} of {runs}" if left < runs else runs
    if "trial" in record:
        trials = np.unique(record["trial"]).tolist()
        many = ", ".join(map(str, trials[:3])) + ", ..." * (len(trials) > 3)
        return f"{shown} (mean of {count} runs, trial{'s' * (len(trials) > 1)} {many})"
    return f"{shown} (mean of {count} runs)"


def _line(run_state: Any, history: History, figures: tuple[str, ...]) -> str:
    if not history:
        return "first epoch"
    if _runs(history[-1]):
        return _mean_line(history[-1], figures)
    shown = " ".join(f"{name} {history[-1][name]:.4f}" for name in figures if name in history[-1])
    best, first = int(run_state.stopping.best_epoch), int(history[0]["epoch"])
    if best < first or figures[-1] not in history[-1]:
        return f"{shown} best: {f'epoch {best}' if best else 'none yet'}"
    return f"{shown} best {history[best - first][figures[-1]]:.4f} (epoch {best})"
