"""Checkpoints of a run: saved beside the training, checked when they are read."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdl import checksums, room
from jaxdl.errors import InputError
from jaxdl.leaves import kinds, named
from jaxdl.types import Progress

History = list[dict[str, float]]

# Seconds that the first save is taken to need.
FIRST = 0.5


class Saved(NamedTuple):
    """What a checkpoint of a run holds."""

    arrays: dict[str, np.ndarray]  # by name, as `leaves.named` gives them
    about: dict[str, Any]  # whatever `keeper` was told, the `kinds` of the progress, and the `history`
    number: int


@contextmanager
def keeper(
    folder: Path, about: Mapping[str, Any], *, every: float, tell: Callable[[str], None]
) -> Iterator[Callable[[Progress, History], None]]:
    """Gives an observer that saves what it last saw, every so many seconds and when the block ends.

    A save begins earlier by twice what the last one took, so that a process that is killed loses no more than `every`.
    It saves in a thread of its own, so that training goes on meanwhile, keeps the latest checkpoint and the one before,
    and writes checksums over each. A save that fails (the disk is full, say) is told, and nothing else: the run goes
    on, and the last good checkpoint stays.
    """
    with ThreadPoolExecutor(1) as pool:
        # Loaded while training compiles; else the first save would take as long as several.
        pool.submit(_load_orbax)
        now = time.monotonic()
        saver = _Saver(folder, about, every, tell, pool, begun=now, observed=now, took=FIRST)
        try:
            yield saver.observe
        finally:
            saver.finish()


@dataclass
class _Saver:
    """Decides when to save, and sees how each save ended."""

    folder: Path
    about: Mapping[str, Any]
    every: float
    tell: Callable[[str], None]
    pool: ThreadPoolExecutor
    begun: float  # when the last save began, or the run
    observed: float  # when training was last seen
    took: float  # what the last save took
    seen: tuple[Progress, History] | None = None
    kept: Progress | None = None
    saving: Future[None] | None = None

    def observe(self, progress: Progress, history: History) -> None:
        now = time.monotonic()
        self.seen, since, self.observed = (progress, history), now - self.observed, now
        if self.saving is not None and self.saving.done():
            self.settle()
            self.took = now - self.begun
        # Training is likely to be seen next after as long as it was not seen until now, and a save may take twice as
        # long as the one before.
        if self.saving is None and now - self.begun + 2 * self.took + since >= self.every:
            self.begin(progress, history)

    def begin(self, progress: Progress, history: History) -> None:
        self.kept, self.begun = progress, time.monotonic()
        arrays = named(progress)
        content = {**self.about, "kinds": kinds(progress), "arrays": kinds(arrays), "history": [*map(_listed, history)]}
        self.saving = self.pool.submit(_write, self.folder, arrays, content)

    def settle(self) -> None:
        if self.saving is not None and (error := self.saving.exception()) is not None:
            self.kept = None
            self.tell(
                f"a checkpoint could not be saved ({_first_line(error)}); the last good one in {self.folder} stays."
            )
        self.saving = None

    def finish(self) -> None:
        self.settle()
        if self.seen is not None and self.seen[0] is not self.kept:
            self.begin(*self.seen)
            self.settle()


def latest(folder: Path, tell: Callable[[str], None]) -> Saved | None:
    """The latest checkpoint in a run's folder that is whole; None where no save was ever finished.

    A damaged one is told in one line, put aside as `damaged-<number>`, and the one before is used. Raises InputError
    where all are damaged, or one cannot be read although nothing of it has changed.
    """
    numbers = _numbers(folder)
    # Without checksums a save was not finished, as where a process is killed in its first.
    finished = sorted(folder.glob(f"*/{checksums.NAME}"))
    for draft in _drafts(folder):
        tell(f"the checkpoint {draft} is damaged (its save was not finished); it is removed, and the one before used.")
        shutil.rmtree(draft)
    for number in reversed(numbers):
        path = folder / str(number)
        damage = checksums.damage(path)
        if damage is None:
            return _read(folder, number)
        aside = _put_aside(path)
        before = "" if number == numbers[0] else ", and the one before is used"
        tell(f"the checkpoint {path} is damaged ({damage}); it is now {aside.name}{before}.")
    if finished:
        raise InputError(
            f"every checkpoint in {folder} is damaged. Restore one from a copy, or start over with --fresh, which "
            "keeps this run under another name."
        )
    return None


def _listed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON can hold it: those of many runs are arrays."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in record.items()}


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def _drafts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.orbax-checkpoint-tmp*"))


def _put_aside(path: Path) -> Path:
    aside = path.with_name(f"damaged-{path.name}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-again")
    return path.rename(aside)


def _manager(folder: Path) -> Any:
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy

    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(2),
        cleanup_tmp_directories=True,
        # The thread that calls it is not the one that trains.
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _load_orbax() -> None:
    import orbax.checkpoint  # noqa: F401


def _write(folder: Path, arrays: dict[str, Any], about: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    number = max(_numbers(folder), default=0) + 1
    path = folder / str(number)
    items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about))
    folder.mkdir(parents=True, exist_ok=True)
    room.require(folder, sum(array.nbytes for array in arrays.values()) + len(json.dumps(about)))
    try:
        with _quiet(), _manager(folder) as manager:
            manager.save(number, args=items)
        checksums.write(path)
    except BaseException:
        # What is half-written would only take room on a disk that may be full.
        for rest in (path, *_drafts(folder)):
            shutil.rmtree(rest, ignore_errors=True)
        raise


def _read(folder: Path, number: int) -> Saved:
    import orbax.checkpoint as ocp

    try:
        with _quiet(), _manager(folder) as manager:
            about = manager.restore(number, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
            like = {name: np.empty(shape, dtype) for name, (dtype, shape) in about["arrays"].items()}
            items = ocp.args.Composite(arrays=ocp.args.StandardRestore(like))
            return Saved(manager.restore(number, args=items).arrays, about, number)
    except Exception as error:  # Whatever orbax raises.
        raise InputError(
            f"the checkpoint {folder / str(number)} is as it was saved, but cannot be read ({_first_line(error)}). Use "
            "the versions that its run's config.json names."
        ) from error


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without orbax's own log, which repeats as tracebacks what is told in a line."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
