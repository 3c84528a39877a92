"""Read and check a CSV file of daily weather."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdl.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


CALENDAR = ("DATE", "MONTH")
ADVICE = "Correct the file, or get it again."
# The codes of files for missing values.
CODES = (-99.0, -99.9, *(sign * number for number in (999, 999.9, 9999, 9999.9, 99999, 999999) for sign in (-1.0, 1.0)))
MOST = 10_000  # columns


class Table(NamedTuple):
    """Consecutive days of weather."""

    name: str  # for messages
    dates: NDArray[np.datetime64]  # (D,) days
    columns: tuple[str, ...]  # without DATE and MONTH
    values: NDArray[np.float64]  # (D, columns)
    sha256: str


def read_table(path: Path) -> Table:
    """Return the table in a CSV file with the columns DATE (YYYYMMDD), MONTH and any others, all numbers.

    The encoding is UTF-8, with or without a byte order mark. Raises InputError with the line and the column of a cell
    that is no number or too large for float32, of a code for missing values such as -9999, and of a date that does not
    follow the day before. The measured file contains -99 twice, which is allowed.
    """
    content, header = read_header(path, CALENDAR)
    numbers = _numbers(path.name, content, header)
    dates = _dates(path.name, *(numbers[:, header.index(column)] for column in CALENDAR))
    columns = tuple(column for column in header if column not in CALENDAR)
    values = numbers[:, [header.index(column) for column in columns]]
    _refuse_codes(path.name, dates, columns, values)
    return Table(path.name, dates, columns, values, hashlib.sha256(content).hexdigest())


def nearest(name: str, names: Sequence[str]) -> str:
    """Return a part of a message: the name nearest to a misspelt name, whatever the case of its letters."""
    lower = {other.lower(): other for other in reversed(names)}
    near = difflib.get_close_matches(name.lower(), lower, 1, cutoff=0.0)
    return f"the nearest name is {lower[near[0]]}" if near else "it has no names"


def read_header(path: Path, needed: Sequence[str]) -> tuple[bytes, list[str]]:
    """Return the bytes of a CSV file, and its header.

    Raises InputError for a file that cannot be read, and for a header that repeats a name or lacks one in `needed`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Name a CSV file that you may read.") from error
    return content, _header(path.name, content, needed)


def _header(name: str, content: bytes, needed: Sequence[str]) -> list[str]:
    if not content.strip():
        raise InputError(f"{name} must hold a table, got an empty file. Get it again.")
    try:
        header = next(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name} must be a CSV file in UTF-8, got something else ({error}). {ADVICE}") from error
    if len(header) > MOST:
        raise InputError(f"{name} must have at most {MOST:,} columns, got {len(header):,}. Leave some out.")
    for column in needed:
        if column not in header:
            others = [name for name in header if name not in needed] or header
            got = f"{len(header)} columns: {', '.join(header[:3])}{', ...' * (len(header) > 3)}"
            raise InputError(
                f"{name} must be a CSV file with a column {column}, got {got[:200]}; {nearest(column, others)[:200]}."
            )
    # From the header itself: pandas renames the second of two equal names.
    repeated = [column for column, count in Counter(header).items() if count > 1]
    if repeated:
        raise InputError(f"{name} must name every column once, got {repeated[0]!r} more than once. {ADVICE}")
    if "" in header:
        raise InputError(f"{name} must name every column, got no name for column {header.index('') + 1}. {ADVICE}")
    return header


def _numbers(name: str, content: bytes, header: list[str]) -> NDArray[np.float64]:
    """Return the cells (D, columns). Raises InputError for the first that is no finite number."""
    import pandas as pd

    table = _read(name, content, header, low_memory=False)
    if len(table) < 2:
        raise InputError(f"{name} must hold at least 2 days, today and tomorrow, got {len(table)}. {ADVICE}")
    if all(dtype.kind in "iuf" for dtype in table.dtypes):
        numbers = table.to_numpy(np.float64)
        if _fits(numbers).all():
            return numbers
    cells = read_cells(name, content, header)
    numbers = cells.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = np.argwhere(~_fits(numbers))
    if not len(wrong):
        return numbers
    row, column = (int(place) for place in wrong[0])
    raise wrong_cell(name, cells, row, column, "a finite number")


def wrong_cell(name: str, cells: pd.DataFrame, row: int, column: int, wanted: str) -> InputError:
    """Return the error for a cell, with its line, its column and its valid values."""
    cell = cells.iat[row, column]
    got = repr(cell) if isinstance(cell, str) and cell.strip() else "an empty cell"
    where = f"{_line(row)} (DATE {cells['DATE'].iat[row]}), column {cells.columns[column]}"
    return InputError(f"{name}, {where}: must be {wanted}, got {got}. {ADVICE}")


def read_cells(name: str, content: bytes, header: Sequence[str]) -> pd.DataFrame:
    """Return the cells of a CSV file below its header as strings; the missing cells of a short line are NaN.

    Raises InputError for a line with too many cells.
    """
    return _read(name, content, header, dtype=str, keep_default_na=False)


def _read(name: str, content: bytes, header: Sequence[str], **options: Any) -> pd.DataFrame:
    import pandas as pd

    with warnings.catch_warnings():
        # Pandas raises an error for a line that is too long, but only warns where all lines are.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            # Blank lines are read, so that the lines in messages are those of the file.
            return pd.read_csv(
                io.BytesIO(content.rstrip()), encoding="utf-8-sig", index_col=False, skip_blank_lines=False, **options
            )
        except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{name} must have {len(header)} cells in every line ({reason}). {ADVICE}") from error


def _fits(numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether numbers are finite in float32; False for NaN."""
    return np.abs(numbers) <= np.finfo(np.float32).max


def _dates(name: str, stated: NDArray[np.float64], months: NDArray[np.float64]) -> NDArray[np.datetime64]:
    """Return the dates (D,) of numbers YYYYMMDD. Raises InputError unless they are consecutive days of these months."""
    day_numbers = np.where(np.abs(stated) < 1e8, stated, 0).astype(np.int64)
    year, month, day = day_numbers // 10000, day_numbers // 100 % 100, day_numbers % 100
    first = np.array((year - 1970) * 12 + month - 1, "datetime64[M]")
    dates: NDArray[np.datetime64] = first.astype("datetime64[D]") + (day - 1).astype("timedelta64[D]")
    # A month or a day too many runs over into the next year or month.
    real = (
        (day_numbers == stated) & (year >= 1) & (month >= 1) & (month <= 12) & (dates.astype("datetime64[M]") == first)
    )
    for row in np.flatnonzero(~real)[:1]:
        got = f"{stated[row]:.15g}"
        raise InputError(f"{name}, {_line(row)}, column DATE: must be a date as YYYYMMDD, got {got}. {ADVICE}")
    for row in np.flatnonzero(month != months)[:1]:
        where = f"{name}, {_line(row)} (DATE {day_numbers[row]}), column MONTH"
        raise InputError(f"{where}: must be the month of the date, got {months[row]:g}. {ADVICE}")
    order = np.argsort(dates, kind="stable")
    for row in np.flatnonzero(np.diff(dates[order]).astype(int) == 0)[:1]:
        lines = f"{_line(order[row])} and {_line(order[row + 1])}"
        raise InputError(f"{name} must hold every date once, got DATE {day_numbers[order[row]]} on {lines}. {ADVICE}")
    for row in np.flatnonzero(np.diff(dates).astype(int) != 1)[:1]:
        after, before = day_numbers[row + 1], day_numbers[row]
        one = np.timedelta64(1, "D")
        fault = "is earlier" if after < before else f"leaves out {dates[row] + one} to {dates[row + 1] - one}"
        where = f"DATE {after} on {_line(row + 1)} follows {before}"
        raise InputError(f"{name} must hold day after day, but {where} and {fault}. {ADVICE}")
    return dates


def _refuse_codes(
    name: str, dates: NDArray[np.datetime64], columns: Sequence[str], values: NDArray[np.float64]
) -> None:
    """Raise InputError for a code of nines, such as -9999, far from all other values of its column.

    The measured file contains -99 on 2 of 3,654 days: a single one, or fewer than one in a thousand, is allowed.
    """
    for column, numbers in zip(columns, values.T, strict=True):
        coded = np.isin(numbers, CODES)
        if not coded.any():
            continue
        others = numbers[~coded]
        low, high = (others.min(), others.max()) if len(others) else (0.0, 0.0)
        coded &= np.maximum(low - numbers, numbers - high) > high - low
        if (coded & (numbers < -100) | coded & (numbers > 0)).any() or coded.sum() > max(1, len(numbers) / 1000):
            row = int(np.argmax(coded))
            where = f"{name}, {_line(row)} (DATE {str(dates[row]).replace('-', '')}), column {column}"
            raise InputError(
                f"{where}: {numbers[row]:.15g} is a code for a missing value, not a measurement; the column holds "
                f"{coded.sum()} such cells. Fill them, from the days before and after, say, or delete the column."
            )


def _line(row: int) -> str:
    return f"line {row + 2}"
