"""Observers of a run: they look at progress and history and touch neither.

Each is a context manager that gives a function `(progress, history) -> None`, to be called after every epoch. The
history is a list of records, the last of which is the epoch that has just ended.
"""

from __future__ import annotations

import csv
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jaxdl.errors import InputError
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
    ...         observe(None, [{"epoch": 1, "loss": 0.5}])
    ...     print(Path(folder, "history.csv").read_text().split())
    ['epoch,loss', '1,0.5']
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")

        def observe(progress: Progress, history: History) -> None:
            if len(history) == 1:
                writer.writerow(history[0])
            writer.writerow(history[-1].values())
            file.flush()

        yield observe


@contextmanager
def tensorboard(folder: Path, *, every: float = 1.0) -> Iterator[Observer]:
    """Writes every figure of every epoch for TensorBoard, training and validation as two runs that share charts.

    Epochs are written together after `every` seconds, and at the end, so that short ones are not slowed down: a crash
    loses no more than those seconds.
    """
    # Imported here: only runs that write for TensorBoard need it.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    writers = {}
    for prefix, name in (("", "train"), ("val_", "validation")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        # Not FileWriter: what that flushes may still stand in the queue of its thread.
        writers[prefix] = EventsWriter(str(folder / name / "events"))
    waiting: list[tuple[float, dict[str, float]]] = []
    last = time.monotonic()

    def write() -> None:
        for moment, record in waiting:
            for prefix, writer in writers.items():
                names = [n for n in record if n != "epoch" and n.startswith("val_") == bool(prefix)]
                values = [Summary.Value(tag=name.removeprefix(prefix), simple_value=record[name]) for name in names]
                writer.write_event(Event(wall_time=moment, step=int(record["epoch"]), summary=Summary(value=values)))
        for writer in writers.values():
            writer.flush()
        waiting.clear()

    def observe(progress: Progress, history: History) -> None:
        nonlocal last
        waiting.append((time.time(), history[-1]))
        if time.monotonic() - last >= every:
            write()
            last = time.monotonic()

    try:
        yield observe
    finally:
        write()
        for writer in writers.values():
            writer.close()


def pictures(folder: Path, files: Sequence[Path], *, step: int) -> None:
    """Writes PNG files for TensorBoard, each under its name, as the pictures of an epoch.

    Raises InputError for a file that is no PNG.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pictures(Path(folder), [], step=1)
    ...     len(list(Path(folder).iterdir()))
    1
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    folder.mkdir(parents=True, exist_ok=True)
    values = []
    for file in files:
        content = file.read_bytes()
        if content[:8] != b"\x89PNG\r\n\x1a\n":
            raise InputError(f"{file} must be a PNG file, got something else.")
        # The header of a PNG file: width and height stand at bytes 16 to 24.
        width, height = struct.unpack(">II", content[16:24])
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=content)
        values.append(Summary.Value(tag=file.stem, image=image))
    writer = EventsWriter(str(folder / "events"))
    writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
    writer.flush()
    writer.close()


def progress_bar(console: Console, epochs: int, figures: tuple[str, ...]) -> AbstractContextManager[Observer]:
    """Shows epoch, the given figures, the best epoch so far and the time left; plain lines where it is no terminal.

    The bar is redrawn, and a line is printed, only now and then, so that short epochs are not slowed down. The best
    epoch is shown with the last of the figures.

    >>> from rich.console import Console
    >>> with progress_bar(Console(force_terminal=False), 5, ("loss",)) as observe:
    ...     callable(observe)
    True
    """
    return _bar(console, epochs, figures) if console.is_terminal else _lines(console, epochs, figures)


@contextmanager
def _bar(console: Console, epochs: int, figures: tuple[str, ...]) -> Iterator[Observer]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    # Narrow enough for 80 columns.
    columns = MofNCompleteColumn(), BarColumn(8), TextColumn("{task.description}"), TimeRemainingColumn(compact=True)
    with Bar(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("", total=epochs)

        def show(progress: Progress, history: History) -> None:
            text = _line(progress, history, figures)
            bar.update(task, completed=history[-1]["epoch"], description=text, refresh=True)

        with _now_and_then(show, every=0.1) as observe:
            yield observe


@contextmanager
def _lines(console: Console, epochs: int, figures: tuple[str, ...]) -> Iterator[Observer]:
    began = None

    def show(progress: Progress, history: History) -> None:
        nonlocal began
        epoch, now, left = int(history[-1]["epoch"]), time.monotonic(), ""
        # The first epoch compiles, so it says nothing about the others.
        if began is not None:
            left = f" left at most {(now - began) / (len(history) - 1) * (epochs - epoch):.0f} s"
        began = began or now
        text = _line(progress, history, figures)
        console.print(f"epoch {epoch}/{epochs} {text}{left}", highlight=False, soft_wrap=True)

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
    best, first = int(progress.stopping.best_epoch), int(history[0]["epoch"])
    if best < first or figures[-1] not in history[-1]:
        return f"{shown} best: {f'epoch {best}' if best else 'none yet'}"
    return f"{shown} best {history[best - first][figures[-1]]:.4f} (epoch {best})"
