"""A callback that writes one row of a CSV file an epoch."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxdl._files import create_draft, exclusive, open_regular, sync
from jaxdl.errors import InputError
from jaxdl.train.history import WrittenRecords
from jaxdl.types import Callback, History


def rows_of(run_state: Any, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table for a record: one, or of many runs one for each run that did this epoch.

    The first columns of these are `member` and `epoch`, as in the history of `fit_seeds`, or `trial`, `seed` and
    `epoch`, as in that of `sweep`.
    """
    many = {name: value for name, value in record.items() if np.ndim(value)}
    if not many:
        return [dict(record)]
    if "trial" in many:
        runs: dict[str, Any] = {name: many.pop(name).tolist() for name in ("trial", "seed")}
        done = _epochs_of(run_state, runs["trial"])
    else:
        done = np.asarray(run_state.epoch)
        runs = {"member": range(len(done))}
    columns = runs | {"epoch": np.broadcast_to(record["epoch"], done.shape).tolist()}
    columns |= {name: value.tolist() for name, value in many.items() if name != "epoch"}
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [row for row, end in zip(rows, done, strict=True) if row["epoch"] <= end]


def _epochs_of(run_state: Any, trials: Sequence[int]) -> np.ndarray:
    """The epochs that the runs of these trials have done, those of a trial side by side."""
    did: dict[int, np.ndarray] = {}
    for group in (*run_state.racing, *run_state.dropped):
        numbers = np.asarray(group.trials)
        if set(trials) & {*numbers.tolist()}:
            did.update(zip(numbers.tolist(), np.asarray(group.state.epoch).reshape(len(numbers), -1), strict=True))
    return np.concatenate([did[index] for index in dict.fromkeys(trials)])


@contextmanager
def csv_log(path: str | Path, history: Sequence[dict[str, Any]] = ()) -> Iterator[Callback]:
    """Writes a row an epoch, with a header, each row on the disk before the next epoch begins.

    Of many runs it writes a row for each run and epoch that the run did. `history`: records of earlier epochs, which
    the file then begins with; a run that is resumed brings its own. A file of that name is replaced as the first epoch
    ends, but for the rows of epochs before that one. Where the disk is full, rows wait until there is room; InputError
    at the end of the block where there is none, and at its start where another run is writing the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with csv_log(Path(folder, "history.csv")) as observe:
    ...         observe(None, [{"epoch": 1, "loss": 0.5}])
    ...     print(Path(folder, "history.csv").read_text().split())
    ['epoch,loss', '1,0.5']
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"csv_log needs the path of a file, got the folder {path}. Use {path / 'history.csv'}, say.")
    with ExitStack() as stack:
        if path.exists():
            stack.enter_context(exclusive(path))
        draft, number = create_draft(path)
        file = stack.enter_context(os.fdopen(number, "wb", buffering=0))
        # Without an epoch, the file that was there stays.
        stack.callback(draft.unlink, missing_ok=True)
        stack.enter_context(exclusive(draft))
        table = _Table(file, WrittenRecords(history) if history else WrittenRecords(_rows_in(path), known=False))
        waits = not history and path.exists()
        if not waits:
            table.write(None)
            os.replace(draft, path)

        def observe(run_state: Any, history: History) -> None:
            nonlocal waits
            held, _ = table.written.update(history)
            del table.ends[held + 1 :]
            table.write(run_state)
            # Only now, so that the rows of earlier epochs are on the disk at every moment.
            if waits:
                os.replace(draft, path)
                waits = False

        yield observe
        if table.full is not None:
            table.write(table.state)
        if table.full is not None:
            raise InputError(
                f"{path} cannot be written ({table.full.strerror}). Free some space and start the same command again."
            )
        os.fsync(number)
        sync(path.parent)


def _rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that `csv_log` wrote of a run; none where it holds anything else."""
    try:
        with open_regular(path) as content:
            rows = csv.DictReader(io.TextIOWrapper(content, newline=""), strict=True)
            if (rows.fieldnames or [""])[0] != "epoch":  # of many runs, which bring their whole history
                return []
            return [{**row, "epoch": int(row["epoch"])} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []


class _Table:
    """The rows of the records that a callback has written, in a file."""

    def __init__(self, file: IO[bytes], written: WrittenRecords) -> None:
        self.file, self.written = file, written
        self.columns: list[str] = []
        self.ends = [0]  # where the header ends, and where each record does
        self.state: Any = None  # the one seen last
        self.full: OSError | None = None

    def write(self, run_state: Any) -> None:
        """Writes the rows of the records that are not in the file yet; where the disk is full, `full` says so."""
        self.state = run_state
        columns = [] if len(self.ends) == 1 else self.columns
        new = self._new()
        names = [*dict.fromkeys([*columns, *(name for rows in new for row in rows for name in row)])]
        if names != self.columns:
            # Another header, which the whole file then follows.
            self.columns, self.ends = names, [0]
            new = self._new()
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        if len(self.ends) == 1 and names:
            lines.writerow(names)
        header, pieces = text.getvalue().encode(), []
        for rows in new:
            text.seek(text.truncate(0))
            lines.writerows([row.get(name, "") for name in names] for row in rows)
            pieces.append(text.getvalue().encode())
        begin = self.ends[-1] if len(self.ends) > 1 else 0
        content = b"".join((header, *pieces))
        try:
            self.file.truncate(begin)
            self.file.seek(begin)
            if self.file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if len(self.ends) == 1:
                self.ends = [len(header)]
            for piece in pieces:
                self.ends.append(self.ends[-1] + len(piece))
            self.full = None
        except OSError as error:
            self.full = error

    def _new(self) -> list[list[dict[str, Any]]]:
        return [rows_of(self.state, record) for record in self.written.records[len(self.ends) - 1 :]]
