"""The records of a run: as a table, as a checkpoint holds them, and as a callback has written them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdl.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def as_table(history: list[dict[str, float]]) -> pd.DataFrame:
    """Return records as a DataFrame: a row for each epoch, indexed by the epoch."""
    # Imported here: neither `import jaxdl` nor `fit` must cost what pandas costs.
    import pandas as pd

    return pd.DataFrame(history, columns=None if history else ["epoch"]).set_index("epoch")


def read_records(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return records read from JSON; a list, which holds the values of many runs, becomes an int or float32 array."""

    def as_value(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return np.asarray(value, None if all(isinstance(each, int) for each in value) else np.float32)

    return [{name: as_value(value) for name, value in record.items()} for record in history]


class WrittenRecords:
    """The records that a callback has written, by which it finds the new ones of a history.

    A callback is called after every epoch with all records so far. The last one is new; there are more where the
    callback missed epochs. Where a run was set back to an earlier epoch, written records are taken back. A history that
    begins after epoch 1, as that of a bare RunState does, leaves the records of the epochs before it.
    """

    def __init__(self, records: Iterable[dict[str, Any]] = (), known: bool = True) -> None:
        """Start with written records; of records that are not `known`, only the epochs are compared."""
        self.records = list(records)
        self._unknown = 0 if known else len(self.records)

    def update(self, history: Sequence[dict[str, Any]]) -> tuple[int, Sequence[dict[str, Any]]]:
        """Return how many of the records stay, and the records of the history that follow them.

        Raises InputError where the history is of another run than the records, as where two runs share a callback.
        """
        records = self.records
        if not history or (records and records[-1] is history[-1]):
            return len(records), []
        if len(history) > 1 and records and records[-1] is history[-2]:
            records.append(history[-1])
            return len(records) - 1, history[-1:]
        first = next((index for index, record in enumerate(records) if _reaches(record, history[0])), len(records))
        same = 0
        while same < min(len(history), len(records) - first) and _equal(records[first + same], history[same]):
            same += 1
        stay = first + same
        if self._unknown <= stay < len(records) and len(history) - same > 1:
            raise InputError(
                f"callbacks: a callback has written epoch {records[stay].get('epoch')} of another run than the one "
                "that calls it now. Give each run a callback and a folder of its own."
            )
        self._unknown = min(self._unknown, stay)
        records[stay:] = history[same:]
        return stay, history[same:]

    def whole(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the history after the written records of earlier epochs. Raises what `update` raises."""
        self.update(history)
        before = len(self.records) - len(history) if history else 0
        return [*self.records[:before], *history] if before else history


def _reaches(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether a record is of the epoch of another one, or of a later epoch."""
    if "trial" in other:  # The records of a sweep are not in the order of their epochs.
        return all(_same(record.get(name), other[name]) for name in ("epoch", "trial"))
    return bool(np.max(record["epoch"]) >= np.max(other["epoch"]))


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(map(_same, one.values(), (other[name] for name in one)))


def _same(one: Any, other: Any) -> bool:
    """Return whether two values of records are equal; NaN equals NaN."""
    floats = np.asarray(one).dtype.kind == "f" and np.asarray(other).dtype.kind == "f"
    return one is other or np.array_equal(one, other, equal_nan=floats)
