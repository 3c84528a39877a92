"""Observers of a run: they look at progress and history and touch neither.

Each is a context manager that gives a function `(progress, history) -> None`, to be called after every epoch. The
history is a list of records, the last of which is the epoch that has just ended.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jaxdl import events
from jaxdl.errors import InputError
from jaxdl.fitting import Observer
from jaxdl.types import Progress

History = list[dict[str, float]]


@contextmanager
def csv_file(path: Path, history: Sequence[dict[str, float]] = ()) -> Iterator[Observer]:
    """Writes a row an epoch, with a header, each row on the disk before the next epoch begins.

    `history`: records of earlier epochs, which the file then begins with; a file of that name is replaced. Where the
    disk is full, rows wait until there is room; InputError at the end of the block where there is none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with csv_file(Path(folder, "history.csv")) as observe:
    ...         observe(None, [{"epoch": 1, "loss": 0.5}])
    ...     print(Path(folder, "history.csv").read_text().split())
    ['epoch,loss', '1,0.5']
    """
    written, good, full = 0, 0, None

    def write(history: History) -> None:
        nonlocal written, good, full
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        if written == 0 and history:
            rows.writerow(history[0])
        rows.writerows(record.values() for record in history[written:])
        content = text.getvalue().encode()
        try:
            file.truncate(good)
            file.seek(good)
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written, good, full = len(history), good + len(content), None
        except OSError as error:
            full = (error, history)

    with path.with_name(path.name + ".part").open("wb", buffering=0) as file:
        write(list(history))
        # Only now, so that the rows of earlier epochs are on the disk at every moment.
        os.replace(file.name, path)
        yield lambda progress, history: write(history)
        if full is not None:
            write(full[1])
        if full is not None:
            raise InputError(
                f"{path} cannot be written ({full[0].strerror}). Free some space and start the same command again."
            )


@contextmanager
def tensorboard(
    folder: Path, *, every: float = 1.0, begin: int = 0, tell: Callable[[str], None] = warnings.warn
) -> Iterator[Observer]:
    """Writes every figure of every epoch for TensorBoard, training and validation as two runs that share charts.

    Epochs are written together after `every` seconds, and at the end, so that short ones are not slowed down: a crash
    loses no more than those seconds. `begin`: the epochs that were done before; what the folder says of later ones is
    taken back. Where the disk is full, that is told once and the rest of the charts left out.
    """
    runs = {"train": "", "validation": "val_"}
    waiting: list[tuple[float, dict[str, float]]] = []
    last = time.monotonic()

    def flush(write: events.Write) -> None:
        write(
            (name, events.event(events.scalars(record, prefix), step=int(record["epoch"]), moment=moment))
            for moment, record in waiting
            for name, prefix in runs.items()
        )
        waiting.clear()

    with events.written(folder, list(runs), begin=begin, tell=tell) as write:

        def observe(progress: Progress, history: History) -> None:
            nonlocal last
            waiting.append((time.time(), history[-1]))
            if time.monotonic() - last >= every:
                flush(write)
                last = time.monotonic()

        try:
            yield observe
        finally:
            flush(write)


def pictures(folder: str | Path, files: Sequence[Path], *, step: int) -> None:
    """Writes PNG files for TensorBoard, each under its name, as the pictures of an epoch.

    Raises InputError for a file that is no PNG.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pictures(Path(folder), [], step=1)
    ...     len(list(Path(folder).iterdir()))
    1
    """
    folder = Path(folder)
    from tensorboardX.event_file_writer import EventsWriter

    folder.mkdir(parents=True, exist_ok=True)
    event = events.event(map(events.picture, files), step=step)
    writer = EventsWriter(str(folder / "events"))
    writer.write_event(event)
    writer.flush()
    writer.close()
