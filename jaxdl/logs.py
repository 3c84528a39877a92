"""Observers of a run: they look at progress and history and touch neither.

Each is a context manager that gives a function `(progress, history) -> None`, to be called after every epoch. The
history is a list of records, the last of which is the epoch that has just ended.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jaxdl.fitting import Observer
from jaxdl.types import Progress

if TYPE_CHECKING:
    from rich.console import Console

History = list[dict[str, float]]


@contextmanager
def csv_file(path: Path) -> Iterator[Observer]:
    """Writes a row an epoch, with a header, each row on the disk before the next epoch begins.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with csv_file(Path(folder, "history.csv")) as observe:
    ...         observe(None, [{"loss": 0.5}])
    ...     print(Path(folder, "history.csv").read_text().split())
    ['epoch,loss', '1,0.5']
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")

        def observe(progress: Progress, history: History) -> None:
            if len(history) == 1:
                writer.writerow(["epoch", *history[0]])
            writer.writerow([len(history), *history[-1].values()])
            file.flush()

        yield observe


@contextmanager
def tensorboard(folder: Path, *, every: float = 1.0) -> Iterator[Observer]:
    """Writes every figure of every epoch for TensorBoard, training and validation as two runs that share charts.

    Epochs are written together after `every` seconds, and at the end, so that short ones are not slowed down: a crash
    loses no more than those seconds.
    """
    # Imported here: only runs that write for TensorBoard need it.
    from tensorboardX import FileWriter
    from tensorboardX.proto.summary_pb2 import Summary

    writers = {"": FileWriter(str(folder / "train")), "val_": FileWriter(str(folder / "validation"))}
    waiting: list[tuple[int, float, dict[str, float]]] = []
    last = time.monotonic()

    def write() -> None:
        for epoch, moment, record in waiting:
            for prefix, writer in writers.items():
                names = [name for name in record if name.startswith("val_") == bool(prefix)]
                values = [Summary.Value(tag=name.removeprefix(prefix), simple_value=record[name]) for name in names]
                writer.add_summary(Summary(value=values), epoch, moment)
        for writer in writers.values():
            writer.flush()
        waiting.clear()

    def observe(progress: Progress, history: History) -> None:
        nonlocal last
        waiting.append((len(history), time.time(), history[-1]))
        if time.monotonic() - last >= every:
            write()
            last = time.monotonic()

    try:
        yield observe
    finally:
        write()
        for writer in writers.values():
            writer.close()


def progress_bar(console: Console, epochs: int, figures: tuple[str, ...]) -> AbstractContextManager[Observer]:
    """Shows epoch, the given figures, the best epoch so far and the time left; plain lines where it is no terminal.

    The bar is redrawn, and a line is printed, only now and then, so that short epochs are not slowed down.
    """
    return _bar(console, epochs, figures) if console.is_terminal else _lines(console, epochs, figures)


@contextmanager
def _bar(console: Console, epochs: int, figures: tuple[str, ...]) -> Iterator[Observer]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("epoch"), MofNCompleteColumn(), BarColumn(20), TextColumn("{task.description}")
    with Bar(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, auto_refresh=False) as bar:
        task = bar.add_task("", total=epochs)

        def show(progress: Progress, history: History) -> None:
            text = _line(progress, history, figures)
            bar.update(task, completed=len(history), description=text, refresh=True)

        with _now_and_then(show, every=0.1) as observe:
            yield observe


@contextmanager
def _lines(console: Console, epochs: int, figures: tuple[str, ...]) -> Iterator[Observer]:
    began = None

    def show(progress: Progress, history: History) -> None:
        nonlocal began
        done, now = len(history), time.monotonic()
        # The first epoch compiles, so it says nothing about the others.
        left = "" if began is None else f" left at most {(now - began) / (done - 1) * (epochs - done):.0f} s"
        began = began or now
        text = _line(progress, history, figures)
        console.print(f"epoch {done}/{epochs} {text}{left}", highlight=False, soft_wrap=True)

    with _now_and_then(show, every=1.0) as observe:
        yield observe


@contextmanager
def _now_and_then(show: Observer, every: float) -> Iterator[Observer]:
    """Calls `show` for the first epoch, then at most every so many seconds, and for the last epoch at the end."""
    shown, latest = -every, None

    def observe(progress: Progress, history: History) -> None:
        nonlocal shown, latest
        latest = (progress, history)
        if time.monotonic() - shown >= every:
            show(progress, history)
            shown, latest = time.monotonic(), None

    yield observe
    if latest is not None:
        show(*latest)


def _line(progress: Progress, history: History, figures: tuple[str, ...]) -> str:
    shown = " ".join(f"{name} {history[-1][name]:.4f}" for name in figures if name in history[-1])
    best = int(progress.stopping.best_epoch)
    return f"{shown} best {history[best - 1][figures[-1]]:.4f} (epoch {best})" if best else f"{shown} best: none yet"
