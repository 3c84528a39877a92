"""Checkpoints of a run that several processes share: each writes what it holds, all at the same pause."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxdl import files, processes
from jaxdl.checkpoints import FIRST, check_same
from jaxdl.errors import InputError
from jaxdl.fitting import Observer
from jaxdl.replays import NotFiniteError
from jaxdl.saves import History, content_of, described, first_line, folder_of, size_of, write
from jaxdl.types import Progress


class SharedKeeper(NamedTuple):
    """What a loop asks and tells of a run that several processes share."""

    observe: Observer  # after every chunk whose numbers are finite; only remembers
    due: Callable[[], bool]  # whether to pause, so that all can save
    save: Callable[[], None]  # what was last observed, if it is not saved yet; at a pause, by all of them


@contextmanager
def shared_keeper(
    folder: str | Path, about: Mapping[str, Any], *, every: float, tell: Callable[[str], None]
) -> Iterator[SharedKeeper]:
    """Saves every so many seconds by the clock of process 0, and when the block ends well.

    It saves while the run stands still, because two processes that wait for each other in two ways would wait for ever.
    What fails is told, and the run goes on. Where the block ends with an error nothing is saved: another process may be
    gone, and to wait for it would never end. Raises InputError at the start for a folder or an `about` that `keeper`
    refuses.
    """
    folder, about = folder_of(folder), described(about)
    seen: tuple[Progress, History, int] | None = None
    kept, begun, took = None, time.monotonic(), FIRST
    place = files.identity(folder)

    def observe(progress: Progress, history: History) -> None:
        nonlocal seen
        seen = progress, history, len(history)  # The history goes on to grow.

    def due() -> bool:
        # Else a run that is saved more slowly than it is asked to would do nothing but save.
        new = seen is not None and seen[0] is not kept
        return processes.is_first() and new and time.monotonic() - begun + 2 * took >= every

    def save() -> None:
        nonlocal kept, begun, took, place
        if seen is None or seen[0] is kept:
            return
        progress, history, epochs = seen
        start = time.monotonic()
        place = _save_together(folder, place, about, progress, history[:epochs], tell)
        kept, begun = progress, time.monotonic()
        took = begun - start

    try:
        yield SharedKeeper(observe, due, save)
    except NotFiniteError:
        # All processes have met it, so all of them are here.
        save()
        raise
    save()


def _save_together(
    folder: Path,
    place: tuple[int, int] | None,
    about: Mapping[str, Any],
    progress: Progress,
    history: History,
    tell: Callable[[str], None],
) -> tuple[int, int] | None:
    """Save by all processes, or tell why not. Gives the folder's identity, where it had none before."""
    content = content_of(about, progress, history)
    problem = ""
    try:
        if place is None:
            folder.mkdir(parents=True, exist_ok=True)
            place = files.identity(folder)
        # Before: a folder that was moved would be made anew, with one checkpoint of the run in it.
        check_same(folder, place)
        files.reserve(folder, size_of(*content))
    except (InputError, OSError) as error:
        problem = first_line(error)
    # Before any of them writes: who wrote alone would wait for the others.
    if processes.gathered([bool(problem)]).any():
        tell(f"a checkpoint could not be saved ({problem or 'by another process'}); the last good one stays.")
        return place
    try:
        try:
            write(folder, *content)
        finally:  # It may have been moved in the middle of the save.
            check_same(folder, place)
    except Exception as error:  # Whatever orbax raises.
        tell(f"a checkpoint could not be saved ({first_line(error)}); the last good one stays.")
    return place
