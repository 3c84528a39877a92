"""A callback that writes a row of a CSV file for each epoch."""

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


def table_rows(run_state: Any, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table for a record: one, or one for each of many runs that trained in this epoch.

    The first columns of many runs are `member` and `epoch`, as in the history of `fit_seeds`, or `trial`, `seed`
    and `epoch`, as in that of `sweep`.
    """
    arrays = {name: value for name, value in record.items() if np.ndim(value)}
    if not arrays:
        return [dict(record)]
    if "trial" in arrays:
        runs: dict[str, Any] = {name: arrays.pop(name).tolist() for name in ("trial", "seed")}
        last_epochs = _last_epochs(run_state, runs["trial"])
    else:
        last_epochs = np.asarray(run_state.epoch)
        runs = {"member": range(len(last_epochs))}
    columns = runs | {"epoch": np.broadcast_to(record["epoch"], last_epochs.shape).tolist()}
    columns |= {name: value.tolist() for name, value in arrays.items() if name != "epoch"}
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [row for row, last in zip(rows, last_epochs, strict=True) if row["epoch"] <= last]


def _last_epochs(run_state: Any, trials: Sequence[int]) -> np.ndarray:
    """Return the last epoch of each run of these trials, in the order of the trials."""
    epochs: dict[int, np.ndarray] = {}
    for group in (*run_state.racing, *run_state.dropped):
        numbers = np.asarray(group.trials)
        if set(trials) & {*numbers.tolist()}:
            epochs.update(zip(numbers.tolist(), np.asarray(group.state.epoch).reshape(len(numbers), -1), strict=True))
    return np.concatenate([epochs[index] for index in dict.fromkeys(trials)])


@contextmanager
def csv_log(path: str | Path, history: Sequence[dict[str, Any]] = ()) -> Iterator[Callback]:
    """Write a header and a row for each epoch, each of which is on the disk before the next epoch begins.

    For many runs it writes a row for each run and epoch. `history`: records of earlier epochs for the start of the
    file; a run that is resumed gives its own. After the first epoch the file replaces a file of its name, whose rows of
    earlier epochs it keeps. Where the disk is full, rows wait for free space. Raises InputError at the end of the block
    for rows that still wait, and at its start where another run writes the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with csv_log(Path(folder, "history.csv")) as callback:
    ...         callback(None, [{"epoch": 1, "loss": 0.5}])
    ...     print(Path(folder, "history.csv").read_text().split())
    ['epoch,loss', '1,0.5']
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"csv_log needs the path of a file, got the folder {path}. Use {path / 'history.csv'}.")
    with ExitStack() as stack:
        if path.exists():
            stack.enter_context(exclusive(path))
        draft, number = create_draft(path)
        file = stack.enter_context(os.fdopen(number, "wb", buffering=0))
        # Without an epoch, an earlier file stays.
        stack.callback(draft.unlink, missing_ok=True)
        stack.enter_context(exclusive(draft))
        table = _Table(file, WrittenRecords(history) if history else WrittenRecords(_read_rows(path), known=False))
        replace_later = not history and path.exists()
        if not replace_later:
            table.write(None)
            os.replace(draft, path)

        def on_epoch(run_state: Any, history: History) -> None:
            nonlocal replace_later
            count, _ = table.written.update(history)
            del table.ends[count + 1 :]
            table.write(run_state)
            # After the write, so that the rows of earlier epochs are on the disk at every moment.
            if replace_later:
                os.replace(draft, path)
                replace_later = False

        yield Callback(on_epoch_end=on_epoch)
        if table.full is not None:
            table.write(table.state)
        if table.full is not None:
            raise InputError(
                f"{path} cannot be written ({table.full.strerror}). Free some space and start the same command again."
            )
        os.fsync(number)
        sync(path.parent)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that `csv_log` wrote for one run, or [] for any other file."""
    try:
        with open_regular(path) as content:
            rows = csv.DictReader(io.TextIOWrapper(content, newline=""), strict=True)
            if (rows.fieldnames or [""])[0] != "epoch":  # many runs give their whole history
                return []
            return [{**row, "epoch": int(row["epoch"])} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []


class _Table:
    """A file with the rows of a run's records."""

    def __init__(self, file: IO[bytes], written: WrittenRecords) -> None:
        self.file, self.written = file, written
        self.columns: list[str] = []
        self.ends = [0]  # offsets in the file: the end of the header, and of each record
        self.state: Any = None  # of the last call
        self.full: OSError | None = None  # the error of the last write

    def write(self, run_state: Any) -> None:
        """Write the rows of the records that are not in the file yet; where the disk is full, set `full`."""
        self.state = run_state
        columns = [] if len(self.ends) == 1 else self.columns
        records = self._new_rows()
        names = [*dict.fromkeys([*columns, *(name for rows in records for row in rows for name in row)])]
        if names != self.columns:
            # The whole file needs the new header.
            self.columns, self.ends = names, [0]
            records = self._new_rows()
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        if len(self.ends) == 1 and names:
            lines.writerow(names)
        header, blocks = text.getvalue().encode(), []
        for rows in records:
            text.seek(text.truncate(0))
            lines.writerows([row.get(name, "") for name in names] for row in rows)
            blocks.append(text.getvalue().encode())
        offset = self.ends[-1] if len(self.ends) > 1 else 0
        content = b"".join((header, *blocks))
        try:
            self.file.truncate(offset)
            self.file.seek(offset)
            if self.file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if len(self.ends) == 1:
                self.ends = [len(header)]
            for block in blocks:
                self.ends.append(self.ends[-1] + len(block))
            self.full = None
        except OSError as error:
            self.full = error

    def _new_rows(self) -> list[list[dict[str, Any]]]:
        return [table_rows(self.state, record) for record in self.written.records[len(self.ends) - 1 :]]
