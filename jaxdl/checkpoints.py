"""Checkpoints of a run: saved beside the training, checked when they are read."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxdl import files
from jaxdl.errors import InputError
from jaxdl.fitting import Written
from jaxdl.locks import exclusive
from jaxdl.saves import (
    History,
    Saved,
    content_of,
    described,
    drafts_in,
    first_line,
    folder_of,
    load_orbax,
    numbers_in,
    read,
    write,
)

# Seconds that the first save is taken to need.
FIRST = 0.5


@contextmanager
def keeper(
    folder: str | Path, about: Mapping[str, Any], *, every: float, tell: Callable[[str], None]
) -> Iterator[Callable[[Any, History], None]]:
    """Gives a callback that saves what it last saw, every so many seconds and when the block ends.

    A save begins earlier by twice what the last one took, so that a process that is killed loses no more than `every`.
    It saves in a thread of its own, so that training goes on meanwhile, keeps the latest checkpoint and the one before,
    and writes checksums over each. A save that fails (the disk is full, say) is told, and nothing else: the run goes
    on, and the last good checkpoint stays. `fit`, `fit_seeds` and `sweep` resume from what `latest` returns.

    about: what `Saved.about` gives back, as `saves.described` says: numbers, strings, paths and nests of these.

    Raises InputError at the start of the block: for an `about` that JSON cannot hold, for a folder that cannot be one
    or in which another run saves, and for an `every` that is no number of seconds from 0 on.
    """
    folder, about = folder_of(folder), described(about)
    try:
        every = float(every)
    except (TypeError, ValueError):
        every = math.nan
    if not every >= 0:
        raise InputError("every must be a number of seconds from 0 on. Use 30, say.")
    if not callable(tell):
        raise InputError(f"tell must be a function of a sentence, such as print, got {tell!r:.80}.")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(folder))
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise InputError(f"folder {folder} cannot be made: {error.strerror}. Choose another folder.") from None
        except OSError:  # A disk that is full now may have room when a save is due.
            pass
        pool = stack.enter_context(ThreadPoolExecutor(1))
        # Loaded while training compiles; else the first save would take as long as several.
        pool.submit(load_orbax)
        now = time.monotonic()
        saver = _Saver(
            folder, about, every, tell, pool, begun=now, observed=now, took=FIRST, place=files.identity(folder)
        )
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
    seen: tuple[Any, History, int] | None = None
    kept: Any = None
    saving: Future[None] | None = None
    written: Written = field(default_factory=Written)
    place: tuple[int, int] | None = None  # the folder itself, whatever its name; None where it could not be made yet

    def observe(self, progress: Any, history: History) -> None:
        now = time.monotonic()
        # With epochs before a bare state of a run, where this callback has seen these.
        history = self.written.whole(history)
        # The history goes on to grow, by epochs too that are not shown here.
        self.seen, since, self.observed = (progress, history, len(history)), now - self.observed, now
        if self.saving is not None and self.saving.done():
            self.settle()
            self.took = now - self.begun
        # Training is likely to be seen next after as long as it was not seen until now, and a save may take twice as
        # long as the one before.
        if self.saving is None and now - self.begun + 2 * self.took + since >= self.every:
            self.begin(progress, history)

    def begin(self, progress: Any, history: History) -> None:
        self.kept, self.begun = progress, time.monotonic()
        self.saving = self.pool.submit(self.save, *content_of(self.about, progress, history))

    def save(self, *content: Any) -> None:
        if self.place is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.place = files.identity(self.folder)
        # Before: a folder that was moved would be made anew, with one checkpoint of the run in it.
        self.check_place()
        try:
            write(self.folder, *content)
        finally:  # It may have been moved in the middle of the save, which then may fail for want of a file.
            self.check_place()

    def check_place(self) -> None:
        check_same(self.folder, self.place)

    def settle(self) -> None:
        if self.saving is not None and (error := self.saving.exception()) is not None:
            self.kept = None
            self.tell(
                f"a checkpoint could not be saved ({first_line(error)}); the last good one in {self.folder} stays."
            )
        self.saving = None

    def finish(self) -> None:
        self.settle()
        if self.seen is not None and self.seen[0] is not self.kept:
            progress, history, epochs = self.seen
            self.begin(progress, history[:epochs])
            self.settle()


def check_same(folder: Path, place: tuple[int, int] | None) -> None:
    """Raise OSError where a folder is no longer the one whose `identity` is `place`.

    >>> check_same(Path("."), files.identity(Path(".")))
    """
    if files.identity(folder) != place:
        raise OSError(f"{folder} was moved or removed while the run was writing there")


def latest(folder: str | Path, tell: Callable[[str], None]) -> Saved | None:
    """The latest checkpoint in a run's folder that is whole; None where no save was ever finished.

    A damaged one is told in one line, put aside as `damaged-<number>`, and the one before is used. What was put aside
    earlier, and what saves that were killed have left, is removed. Where another run is saving there, nothing is
    changed. Raises InputError where all are damaged, or one cannot be read although nothing of it has changed.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder))
        except (InputError, OSError):
            return _latest(folder, tell, tidy=False)
        return _latest(folder, tell, tidy=os.access(folder, os.W_OK))


def _latest(folder: Path, tell: Callable[[str], None], tidy: bool) -> Saved | None:
    numbers, before_now = numbers_in(folder), sorted(folder.glob("damaged-*"))
    # Without checksums a save was not finished, as where a process is killed in its first.
    finished = sorted(folder.glob(f"*/{files.CHECKSUMS}"))
    for draft in drafts_in(folder) if tidy else ():
        tell(f"the checkpoint {draft} is damaged (its save was not finished); it is removed, and the one before used.")
        shutil.rmtree(draft)
    for number in reversed(numbers):
        path = folder / str(number)
        try:
            damage = files.find_damage(path)
        except OSError as error:
            raise InputError(f"the checkpoint {path} cannot be read ({error.strerror}). Make it readable.") from None
        if damage is None:
            saved = read(folder, number)
            for old in before_now if tidy else ():
                shutil.rmtree(old, ignore_errors=True)
            return saved
        if not tidy:
            tell(f"the checkpoint {path} is damaged ({damage}).")
            continue
        aside = _put_aside(path)
        before = "" if number == numbers[0] else ", and the one before is used"
        tell(f"the checkpoint {path} is damaged ({damage}); it is now {aside.name}{before}.")
    if finished:
        raise InputError(
            f"every checkpoint in {folder} is damaged. Restore one from a copy, or start over with --fresh, which "
            "keeps this run under another name."
        )
    return None


def _put_aside(path: Path) -> Path:
    aside = path.with_name(f"damaged-{path.name}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-again")
    return path.rename(aside)
