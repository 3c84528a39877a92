"""Rows of the lesson that are finished, on disk, so that a lesson that was cut off does not begin again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lesson_rows import Row
from experiments.lesson_training import Trained
from jaxdl.errors import InputError
from jaxdl.files import atomic_write, open_regular

LARGEST = 1 << 30  # bytes of what a row unpacks to; a real one has some thousands
ARRAYS = ("values", "outputs", "history")


def save(folder: Path, done: Trained) -> None:
    """Writes what a row's seeds left, whole or not at all.

    >>> import tempfile, pandas as pd
    >>> row = Row("Exercises", "plain", "", "RMSE", "hours", 9, (0, 1), {"test": np.array([4.0, 4.2])})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder), Trained(row, pd.DataFrame({"member": [0]}), {"test": np.ones((2, 1, 1))}))
    ...     load(Path(folder), "Exercises", "plain").row.values["test"].tolist()
    [4.0, 4.2]
    """
    row, path = done.row, _path(folder, done.row.section, done.row.name)
    plain = {"seeds": list(row.seeds), "printed": dict(row.printed)}
    about = row._replace(values={}, epochs=None)._asdict() | plain  # type: ignore[arg-type]
    history = {str(name): column.to_numpy() for name, column in done.history.items()}
    arrays = {"values": row.values, "outputs": done.outputs, "history": history}
    named: dict[str, Any] = {f"{kind}/{name}": array for kind, of in arrays.items() for name, array in of.items()}
    # A zip file checks what it holds, but not that its list of contents is whole.
    about["arrays"] = list(named)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, about=np.array(json.dumps(about)), epochs=row.epochs, **named)


def load(folder: Path, section: str, name: str) -> Trained | None:
    """What a row's seeds left; None where they have not finished.

    Raises InputError for a file that is damaged.

    >>> load(Path("no", "such", "folder"), "Exercises", "plain") is None
    True
    """
    import pandas as pd

    path = _path(folder, section, name)
    if not path.exists():
        return None
    try:
        # numpy leaves a damaged file open.
        with open_regular(path) as opened, np.load(opened) as file:
            unpacked = sum(entry.file_size for entry in file.zip.infolist())
            if unpacked > LARGEST:
                raise ValueError(f"it unpacks to {unpacked:,} bytes")
            about: dict[str, Any] = json.loads(str(file["about"]))
            if (about["section"], about["name"]) != (section, name):
                raise ValueError(f"it holds {about['name']} of {about['section']}")
            if [key for key in file.files if "/" in key] != about.pop("arrays"):
                raise ValueError("it does not hold all that was saved")
            parts: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in ARRAYS}
            for key in file.files:
                kind, _, entry = key.partition("/")
                if kind in parts:
                    parts[kind][entry] = file[key]
            fields = about | {"seeds": tuple(about["seeds"]), "values": parts["values"], "epochs": file["epochs"]}
            return Trained(Row(**fields), pd.DataFrame(parts["history"]), parts["outputs"])
    except Exception as error:  # Whatever numpy and zipfile raise.
        raise InputError(f"{path} is damaged ({error}). Remove it, and its row is trained anew.") from error


def _path(folder: Path, section: str, name: str) -> Path:
    return folder / (re.sub(r"\W+", "-", f"{section} {name}".lower()).strip("-") + ".npz")
