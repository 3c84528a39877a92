"""Checkpoints of a run, from one process or several."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import _files, distributed
from jaxdl._files import exclusive
from jaxdl._tree import flatten_named, kinds
from jaxdl.distributed import processes
from jaxdl.errors import InputError
from jaxdl.train.history import WrittenRecords
from jaxdl.train.nonfinite import NonFiniteError
from jaxdl.types import Array, Callback, Checkpoint, History, RunState

KEPT = 2  # checkpoints of a run: the latest, and the one before
# The kinds of keys of random numbers, with how many numbers of 32 bits a key has.
KEYS = {"key<fry>": 2, "key<rbg>": 4, "key<urbg>": 4}
OWN = ("kinds", "arrays", "history")  # entries of a checkpoint's `about` that `content_of` writes


def content_of(
    about: Mapping[str, Any], run_state: RunState, history: History
) -> tuple[dict[str, Array], dict[str, Any]]:
    """What a checkpoint holds, as `write` takes it: arrays by name, and what is told about them."""
    arrays = flatten_named(run_state)
    # By the names that they have already.
    shapes = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
    told = {**described(about), "kinds": kinds(run_state), "arrays": shapes, "history": [*map(_recorded, history)]}
    return arrays, told


def size_of(arrays: Mapping[str, Array], about: Mapping[str, Any]) -> int:
    """About how many bytes a checkpoint takes on the disk."""
    return sum(array.nbytes for array in arrays.values()) + len(json.dumps(about))


def described(about: object) -> dict[str, Any]:
    """Return what a caller tells about a run, as `Saved.about` gives it back: of JSON's types alone.

    A NumPy or JAX scalar becomes a number, an array and a set a list, a path a string, a date its ISO form, a dtype its
    name, a dataclass and a named tuple a dict; keys become strings. The result is a copy.

    Raises InputError for any other value, for keys that become the same string, and for names that a checkpoint uses.
    """
    try:
        plain = as_plain(about, "about")
    except RecursionError:
        raise InputError("about must not contain itself. Give a dict of strings and numbers.") from None
    if not isinstance(plain, dict):
        raise InputError(f'about must be a dict, got {type(about).__name__}. Use {{"config": ...}}, say.')
    if taken := [name for name in OWN if name in plain]:
        raise InputError(f'about must not have an entry "{taken[0]}": a checkpoint writes its own. Rename it.')
    return plain


def as_plain(value: Any, name: str) -> Any:
    """Return a value as JSON can hold it. Raises InputError, which calls the value `name`, where it cannot."""
    match value:
        case None | bool():
            return value
        case enum.Enum():
            return as_plain(value.value, name)
        case np.datetime64() | np.timedelta64() | datetime.timedelta():
            return str(value)
        case np.generic() | np.ndarray() | jax.Array():
            return _listed(value, name)
        case int() | float() | str():
            # The types themselves: a subclass may print as something else.
            return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
        case os.PathLike():
            return os.fsdecode(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case np.dtype():
            return value.name
        case Mapping():
            return _with_string_keys(value, name)
        case tuple() if hasattr(value, "_asdict"):
            return _with_string_keys(value._asdict(), name)
        case list() | tuple() | range():
            return [as_plain(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
        case set() | frozenset():
            return sorted((as_plain(entry, name) for entry in value), key=lambda entry: (str(type(entry)), str(entry)))
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return _with_string_keys(own, name)
        case _ if type(value).__name__ == "NAType":  # pandas' missing value
            return None
        case _ if isinstance(value, type) or callable(value):
            # `np.float32` and `jnp.float32` are names of dtypes.
            kind = value if isinstance(value, type) and issubclass(value, np.generic) else getattr(value, "dtype", None)
            if isinstance(kind, np.dtype) or kind is value:
                return np.dtype(kind).name
    raise InputError(
        f"{name} must be a number, a string, None, or a list or a dict of such, got {value!r:.80}, which is of type "
        f"{type(value).__name__}. Give it as a string, or leave it out."
    )


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    # Most values of a long history are floats already.
    return {name: value if type(value) is float else as_plain(value, name) for name, value in record.items()}


def _listed(value: Any, name: str) -> Any:
    """An array as nested lists, of no dimensions as a number."""
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name} must be an array without a mask. Fill it, or leave it out.")
    if jnp.issubdtype(value.dtype, jnp.floating):
        return np.asarray(value).astype(np.float64).tolist()
    if getattr(value.dtype, "kind", "keys of random numbers") in "biuU":
        return np.asarray(value).tolist()
    raise InputError(
        f"{name} must be an array of numbers or strings, got one of dtype {value.dtype}. Give it as a list of them, or "
        "leave it out."
    )


def _with_string_keys(entries: Mapping[Any, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in entries.items():
        text = str(as_plain(key, f"a key of {name}"))
        if text in found:
            raise InputError(f'{name} must have keys that differ as strings, got "{text}" twice. Rename one.')
        found[text] = as_plain(value, f"{name}[{text!r}]")
    return found


def folder_of(folder: object) -> Path:
    """Return the folder of checkpoints as a path. Raises InputError for what cannot be one."""
    if not isinstance(folder, (str, os.PathLike)) or not isinstance(os.fspath(folder), str) or not os.fspath(folder):
        raise InputError(f'folder must be a path or a string, got {folder!r:.80}. Use "checkpoints", say.')
    if "://" in os.fspath(folder) or set("[]\\") & set(str(Path(folder).absolute())):
        raise InputError(
            f"folder must be one of this machine, without [, ] and \\ in its path, got {os.fspath(folder)}. Choose "
            "another folder."
        )
    return Path(folder)


def numbers_in(folder: Path) -> list[int]:
    """The numbers of the checkpoints in a folder, in order."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def drafts_in(folder: Path) -> list[Path]:
    """What saves that were not finished have left in a folder."""
    return sorted(folder.glob("*.orbax-checkpoint-tmp*"))


def load_orbax() -> None:
    """Imports what saving needs, which takes as long as several saves."""
    import orbax.checkpoint  # noqa: F401


def write(folder: Path, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Saves what `content_of` gave under the next number. Processes that share a run write it together.

    Raises InputError where there is no room, and what orbax raises; nothing half-written then stays.
    """
    import orbax.checkpoint as ocp

    number, first = max(numbers_in(folder), default=0) + 1, jax.process_index() == 0
    path = folder / str(number)
    # Orbax saves no array without numbers; its shape stands in `about`.
    filled = {name: array for name, array in arrays.items() if array.size}
    items = ocp.args.Composite(arrays=ocp.args.StandardSave(filled), about=ocp.args.JsonSave(dict(about)))
    folder.mkdir(parents=True, exist_ok=True)
    _files.reserve(folder, size_of(arrays, about))
    try:
        with _quiet(), _manager(folder) as manager:
            manager.save(number, args=items)
        if first:
            _files.write_checksums(path)
            # Only now: before, what is older was all that a power cut would have left.
            for old in numbers_in(folder)[:-KEPT]:
                shutil.rmtree(folder / str(old), ignore_errors=True)
    except BaseException:
        # What is half-written would only take room on a disk that may be full.
        for rest in (path, *drafts_in(folder)) if first else ():
            shutil.rmtree(rest, ignore_errors=True)
        raise


def read(folder: Path, number: int) -> Checkpoint:
    """A checkpoint by its number, whose checksums were looked at. Each process that calls it reads by itself.

    Raises InputError where it cannot be read.
    """
    import orbax.checkpoint as ocp

    try:
        with (
            _quiet(),
            reads_finished(),
            _manager(folder, create=False, cleanup_tmp_directories=False, **alone()) as manager,
        ):
            about = manager.restore(number, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
            needed = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in about["arrays"].values())
            if needed > (there := _memory()):
                raise ValueError(f"it needs {needed:,} bytes of memory, and this machine has {there:,}")
            like = {name: np.empty(shape, dtype) for name, (dtype, shape) in about["arrays"].items()}
            filled = {name: array for name, array in like.items() if array.size}
            items = ocp.args.Composite(arrays=ocp.args.StandardRestore(filled))
            arrays = {**like, **manager.restore(number, args=items).arrays}
            _check_kinds(about["kinds"], arrays)
            return Checkpoint(arrays, about, number)
    except Exception as error:  # Whatever orbax raises.
        raise InputError(
            f"the checkpoint {folder / str(number)} is as it was saved, but cannot be read ({first_line(error)}). Use "
            "the versions that its run's config.json names."
        ) from error


def _check_kinds(found: object, arrays: Mapping[str, Any]) -> None:
    """Raise ValueError where the kinds that an `about` tells are not those of the arrays beside it."""
    expected = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
    if isinstance(found, dict):
        # Of keys the checkpoint holds the numbers.
        keys = {
            name: [[key, shape[:-1]] for key, size in KEYS.items() if [dtype, shape[-1:]] == ["uint32", [size]]]
            for name, (dtype, shape) in expected.items()
        }
        expected |= {name: found[name] for name in keys if found.get(name) in keys[name]}
    if found != expected:
        raise ValueError("the kinds that it tells are not those of its arrays")


def about_of(folder: Path) -> dict[str, Any] | None:
    """Return what the latest checkpoint in a folder says of its run, without looking at its arrays or importing orbax.

    None where there is no checkpoint whose list of checksums and whose description are as they were saved.
    """
    for number in reversed(numbers_in(folder)):
        text = _files.read_checked(folder / str(number), "about/metadata")
        if text is not None:
            try:
                return {**json.loads(text)}
            except (ValueError, TypeError, RecursionError):
                return None
    return None


def _memory() -> int:
    """The bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


def _manager(folder: Path, **options: Any) -> Any:
    import orbax.checkpoint as ocp

    settings = ocp.CheckpointManagerOptions(
        # The thread that calls it is not the one that trains.
        enable_async_checkpointing=False,
        **{"cleanup_tmp_directories": True, **options},
    )
    return ocp.CheckpointManager(folder.absolute(), options=settings)


def alone() -> dict[str, Any]:
    """Options by which orbax waits for no other process."""
    if jax.process_count() == 1:
        return {}
    import orbax.checkpoint as ocp

    own = jax.process_index()
    prefix = f"process-{own}"
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=prefix
    )
    return {"multiprocessing_options": options}


class _FinishingLoop(asyncio.SelectorEventLoop):
    def close(self) -> None:
        if not self.is_closed() and (unfinished := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.wait(unfinished))
        super().close()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Log nothing: the first read that fails raises, and the others have the same to tell."""


class _FinishingLoops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _FinishingLoop()


@contextmanager
def reads_finished() -> Iterator[None]:
    """Let orbax close an event loop only after all reads in it have ended.

    It closes the loop at the first read that fails, and then every other read prints a traceback when it ends.
    """
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_FinishingLoops())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


def first_line(error: BaseException) -> str:
    """What an error says in one line."""
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


# Seconds that the first save is taken to need.
FIRST = 0.5


@contextmanager
def checkpointer(
    folder: str | Path, about: Mapping[str, Any], *, every: float, warn: Callable[[str], None]
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
    if not callable(warn):
        raise InputError(f"tell must be a function of a sentence, such as print, got {warn!r:.80}.")
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
            folder, about, every, warn, pool, begun=now, observed=now, took=FIRST, place=_files.identity(folder)
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
    warn: Callable[[str], None]
    pool: ThreadPoolExecutor
    begun: float  # when the last save began, or the run
    observed: float  # when training was last seen
    took: float  # what the last save took
    seen: tuple[Any, History, int] | None = None
    kept: Any = None
    saving: Future[None] | None = None
    written: WrittenRecords = field(default_factory=WrittenRecords)
    place: tuple[int, int] | None = None  # the folder itself, whatever its name; None where it could not be made yet

    def observe(self, run_state: Any, history: History) -> None:
        now = time.monotonic()
        # With epochs before a bare state of a run, where this callback has seen these.
        history = self.written.whole(history)
        # The history goes on to grow, by epochs too that are not shown here.
        self.seen, since, self.observed = (run_state, history, len(history)), now - self.observed, now
        if self.saving is not None and self.saving.done():
            self.settle()
            self.took = now - self.begun
        # Training is likely to be seen next after as long as it was not seen until now, and a save may take twice as
        # long as the one before.
        if self.saving is None and now - self.begun + 2 * self.took + since >= self.every:
            self.begin(run_state, history)

    def begin(self, run_state: Any, history: History) -> None:
        self.kept, self.begun = run_state, time.monotonic()
        self.saving = self.pool.submit(self.save, *content_of(self.about, run_state, history))

    def save(self, *content: Any) -> None:
        if self.place is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.place = _files.identity(self.folder)
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
            self.warn(
                f"a checkpoint could not be saved ({first_line(error)}); the last good one in {self.folder} stays."
            )
        self.saving = None

    def finish(self) -> None:
        self.settle()
        if self.seen is not None and self.seen[0] is not self.kept:
            run_state, history, epochs = self.seen
            self.begin(run_state, history[:epochs])
            self.settle()


def check_same(folder: Path, place: tuple[int, int] | None) -> None:
    """Raise OSError where a folder is no longer the one whose `identity` is `place`."""
    if _files.identity(folder) != place:
        raise OSError(f"{folder} was moved or removed while the run was writing there")


def restore_latest(
    folder: str | Path, warn: Callable[[str], None], *, again: str = "another folder"
) -> Checkpoint | None:
    """The latest checkpoint in a run's folder that is whole; None where no save was ever finished.

    A damaged one is told in one line, put aside as `damaged-<number>`, and the one before is used. What was put aside
    earlier, and what saves that were killed have left, is removed. Where another run is saving there, nothing is
    changed. Raises InputError where all are damaged, or one cannot be read although nothing of it has changed.

    again: with what to start over where all are damaged, for the message.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder))
        except (InputError, OSError):
            return _latest(folder, warn, again, tidy=False)
        return _latest(folder, warn, again, tidy=os.access(folder, os.W_OK))


def _latest(folder: Path, warn: Callable[[str], None], again: str, tidy: bool) -> Checkpoint | None:
    numbers, before_now = numbers_in(folder), sorted(folder.glob("damaged-*"))
    # Without checksums a save was not finished, as where a process is killed in its first.
    finished = sorted(folder.glob(f"*/{_files.CHECKSUMS}"))
    for draft in drafts_in(folder) if tidy else ():
        warn(f"the checkpoint {draft} is damaged (its save was not finished); it is removed, and the one before used.")
        shutil.rmtree(draft)
    for number in reversed(numbers):
        path = folder / str(number)
        try:
            damage = _files.find_damage(path)
        except OSError as error:
            raise InputError(f"the checkpoint {path} cannot be read ({error.strerror}). Make it readable.") from None
        if damage is None:
            saved = read(folder, number)
            for old in before_now if tidy else ():
                shutil.rmtree(old, ignore_errors=True)
            return saved
        if not tidy:
            warn(f"the checkpoint {path} is damaged ({damage}).")
            continue
        aside = _put_aside(path)
        before = "" if number == numbers[0] else ", and the one before is used"
        warn(f"the checkpoint {path} is damaged ({damage}); it is now {aside.name}{before}.")
    if finished:
        raise InputError(
            f"every checkpoint in {folder} is damaged. Restore one from a copy, or start over with {again}."
        )
    return None


def _put_aside(path: Path) -> Path:
    aside = path.with_name(f"damaged-{path.name}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-again")
    return path.rename(aside)


class SharedCheckpointer(NamedTuple):
    """What a loop asks and tells of a run that several processes share."""

    observe: Callback  # after every chunk whose numbers are finite; only remembers
    due: Callable[[], bool]  # whether to pause, so that all can save
    save: Callable[[], None]  # what was last observed, if it is not saved yet; at a pause, by all of them


@contextmanager
def shared_checkpointer(
    folder: str | Path, about: Mapping[str, Any], *, every: float, warn: Callable[[str], None]
) -> Iterator[SharedCheckpointer]:
    """Saves every so many seconds by the clock of process 0, and when the block ends well.

    It saves while the run stands still, because two processes that wait for each other in two ways would wait for ever.
    What fails is told, and the run goes on. Where the block ends with an error nothing is saved: another process may be
    gone, and to wait for it would never end. Raises InputError at the start for a folder or an `about` that
    `checkpointer` refuses.
    """
    folder, about = folder_of(folder), described(about)
    seen: tuple[RunState, History, int] | None = None
    kept, begun, took = None, time.monotonic(), FIRST
    place = _files.identity(folder)

    def observe(run_state: RunState, history: History) -> None:
        nonlocal seen
        seen = run_state, history, len(history)  # The history goes on to grow.

    def due() -> bool:
        # Else a run that is saved more slowly than it is asked to would do nothing but save.
        new = seen is not None and seen[0] is not kept
        return distributed.is_main() and new and time.monotonic() - begun + 2 * took >= every

    def save() -> None:
        nonlocal kept, begun, took, place
        if seen is None or seen[0] is kept:
            return
        run_state, history, epochs = seen
        start = time.monotonic()
        place = _save_together(folder, place, about, run_state, history[:epochs], warn)
        kept, begun = run_state, time.monotonic()
        took = begun - start

    try:
        yield SharedCheckpointer(observe, due, save)
    except NonFiniteError:
        # All processes have met it, so all of them are here.
        save()
        raise
    save()


def _save_together(
    folder: Path,
    place: tuple[int, int] | None,
    about: Mapping[str, Any],
    run_state: RunState,
    history: History,
    warn: Callable[[str], None],
) -> tuple[int, int] | None:
    """Save by all processes, or tell why not. Gives the folder's identity, where it had none before."""
    content = content_of(about, run_state, history)
    problem = ""
    try:
        if place is None:
            folder.mkdir(parents=True, exist_ok=True)
            place = _files.identity(folder)
        # Before: a folder that was moved would be made anew, with one checkpoint of the run in it.
        check_same(folder, place)
        _files.reserve(folder, size_of(*content))
    except (InputError, OSError) as error:
        problem = first_line(error)
    # Before any of them writes: who wrote alone would wait for the others.
    if processes.all_gather([bool(problem)]).any():
        warn(f"a checkpoint could not be saved ({problem or 'by another process'}); the last good one stays.")
        return place
    try:
        try:
            write(folder, *content)
        finally:  # It may have been moved in the middle of the save.
            check_same(folder, place)
    except Exception as error:  # Whatever orbax raises.
        warn(f"a checkpoint could not be saved ({first_line(error)}); the last good one stays.")
    return place
