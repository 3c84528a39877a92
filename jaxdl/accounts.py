"""All that a run's folder says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from jaxdl.errors import InputError
from jaxdl.listings import Row, read, row


class Account(NamedTuple):
    """A run: its row, and what the row is made of."""

    row: Row
    config: dict[str, Any]
    metrics: dict[str, Any] | None  # where it is finished
    files: dict[str, int]  # what the folder holds, by name from the folder, in bytes; folders with all that is in them


def account(folder: str | Path) -> Account:
    """What the folder of a run says. Raises InputError where it holds no run, or a damaged one.

    >>> account(Path("no", "such", "run"))
    Traceback (most recent call last):
    jaxdl.errors.InputError: no/such/run must be the folder of a run, which holds a config.json, got nothing ...
    """
    folder = Path(folder)
    run, of = read(folder), row(folder)
    if of.problem is not None:
        raise InputError(of.problem)
    return Account(of, run.config, run.metrics, files(folder))


def files(folder: str | Path) -> dict[str, int]:
    """What a run's folder holds in bytes: its files, and of each folder in it what that holds, with a / at the end.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     Path(name, "figures", "all").mkdir(parents=True)
    ...     for file in (("config.json",), ("figures", "history.png")):
    ...         _ = Path(name, *file).write_bytes(b"1234")
    ...     files(Path(name))
    {'config.json': 4, 'figures/all/': 0, 'figures/history.png': 4}
    """
    folder = Path(folder)
    found = {}
    for path in _inside(folder):
        for inner in _inside(path) if path.is_dir() and not path.is_symlink() else [path]:
            name = str(inner.relative_to(folder))
            found[f"{name}/" if inner.is_dir() else name] = sum(map(_bytes, _inside(inner, "**/*") or [inner]))
    return found


def _inside(folder: Path, pattern: str = "*") -> list[Path]:
    try:
        # Behind a link lies what is not the run's.
        return [] if folder.is_symlink() else sorted(folder.glob(pattern))
    except OSError:  # A run that goes on replaces its checkpoints.
        return []


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
