"""Checkpoints of a run, from one process or several."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import importlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import _files, distributed
from jaxdl._files import exclusive
from jaxdl._tree import flatten_named, kinds
from jaxdl.distributed import processes
from jaxdl.errors import InputError
from jaxdl.train.history import WrittenRecords
from jaxdl.train.hooks import states_of
from jaxdl.train.nonfinite import NonFiniteError
from jaxdl.types import Array, Callback, Checkpoint, History, RunState

MAX_TO_KEEP = 2  # checkpoints of a run: the latest, and the one before
FIRST_SAVE = 0.5  # seconds, the assumed time of the first save
RESERVED = ("kinds", "arrays", "history", "callback_states")  # entries of `about` that a checkpoint adds
# The implementations of PRNG keys, with the number of 32-bit integers in a key.
KEY_SIZES = {"key<fry>": 2, "key<rbg>": 4, "key<urbg>": 4}


@contextmanager
def checkpointer(
    folder: str | Path,
    about: Mapping[str, Any],
    *,
    every: float,
    warn: Callable[[str], None],
    callbacks: Iterable[Callback] = (),
) -> Iterator[Callback]:
    """Yield a callback that saves the latest state of a run every `every` seconds, and at the end of the block.

    A thread saves while training continues. A save starts early, by twice the time of the save before, so that a
    process that is killed loses at most `every` seconds. The folder keeps the latest checkpoint and the one before,
    each with checksums. Where a save fails (the disk is full, for example), training continues, the last good
    checkpoint stays, and `warn` gets a message. `fit`, `fit_seeds` and `sweep` resume from the result of
    `restore_latest`.

    about: a dict of numbers, strings, paths and nested lists and dicts of these, which `Checkpoint.about` returns.
    callbacks: those whose state is saved too (`Callback.state_dict`), which a run that resumes gives back to callbacks
        of the same names. They must stand before this callback in the list that the run gets.

    Raises InputError at the start of the block: for callbacks without a state, for an `about` without a form in JSON,
    for a folder that cannot be made or in which another run saves, and for an `every` below 0.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with checkpointer(folder, {"seed": 3}, every=30, warn=print) as callback:
    ...         callback({"kernel": np.ones(2, np.float32)}, [{"epoch": 1, "loss": 0.5}])
    ...     checkpoint = restore_latest(folder, print)
    >>> checkpoint.arrays, checkpoint.about["seed"], checkpoint.about["history"]
    ({'kernel': array([1., 1.], dtype=float32)}, 3, [{'epoch': 1, 'loss': 0.5}])
    """
    folder, about = check_folder(folder), check_about(about)
    try:
        seconds = float(every)
    except (TypeError, ValueError):
        seconds = math.nan
    if not seconds >= 0:
        raise InputError(f"every must be a number of seconds, at least 0, got {every!r:.80}. Use every=30.")
    if not callable(warn):
        raise InputError(f"warn must be a function of a string, such as print, got {warn!r:.80}.")
    with_state = tuple(callbacks)
    for callback in with_state:
        if not isinstance(callback, Callback) or callback.state_dict is None:
            raise InputError(f"callbacks must hold Callback records with a state_dict, got {callback!r:.80}.")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(folder))
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise InputError(f"folder {folder} cannot be made: {error.strerror}. Choose another folder.") from None
        except OSError:  # A disk that is full now may have space when a save is due.
            pass
        executor = stack.enter_context(ThreadPoolExecutor(1))
        # While training compiles: this import takes as long as several saves.
        executor.submit(importlib.import_module, "orbax.checkpoint")
        saver = _BackgroundSaver(executor, folder, about, seconds, warn, with_state)
        try:
            yield Callback(on_epoch_end=saver.observe, after=with_state)
        finally:
            saver.finish()


@contextmanager
def shared_checkpointer(
    folder: str | Path, about: Mapping[str, Any], *, every: float, warn: Callable[[str], None]
) -> Iterator[SharedSaver]:
    """Yield a saver for all processes of a run, which also saves when the block ends without an error.

    Training pauses for a save: collectives of a save and of a training step could deadlock. After an error nothing is
    saved, because another process may have ended and the others would wait for it forever; after a NonFiniteError,
    which all processes raise, the last finite state is saved. Raises InputError for a folder or an `about` that
    `checkpointer` refuses.
    """
    saver = SharedSaver(check_folder(folder), check_about(about), every, warn)
    try:
        yield saver
    except NonFiniteError:
        saver.save()
        raise
    saver.save()


class _Saver:
    """The latest state of a run, and the policy of when to save it."""

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        every: float,
        warn: Callable[[str], None],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.callbacks = callbacks
        self.callback_states: dict[str, Any] = {}
        self.folder, self.about, self.every, self.warn = folder, about, every, warn
        self.folder_id = _files.identity(folder)  # None: the folder is yet to be made
        self.latest: tuple[Any, History, int] | None = None  # state, history, number of records
        self.saved_state: Any = None
        self.last_save, self.save_seconds = time.monotonic(), FIRST_SAVE
        self.written = WrittenRecords()

    def observe(self, run_state: Any, history: History) -> None:
        """Remember a state, and the records of its epochs."""
        # A bare state brings no records of earlier epochs.
        history = self.written.whole(history)
        # The caller appends to its history, also epochs that are not observed.
        self.latest, self.callback_states = (run_state, history, len(history)), states_of(self.callbacks)

    def is_new(self) -> bool:
        """Return whether the latest state is yet to be saved."""
        return self.latest is not None and self.latest[0] is not self.saved_state

    def interval_is_over(self, margin: float = 0.0) -> bool:
        """Return whether a save must start now to end within `every` seconds after the last one.

        margin: seconds until the next chance to start a save. A save may take twice as long as the one before.
        """
        return time.monotonic() - self.last_save + 2 * self.save_seconds + margin >= self.every

    def content(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arguments of `write` for the latest state, and mark the state as saved."""
        assert self.latest is not None
        run_state, history, epochs = self.latest
        self.saved_state = run_state
        states = {"callback_states": self.callback_states} if self.callbacks else {}
        return checkpoint_content({**self.about, **states}, run_state, history[:epochs])

    def ensure_folder(self) -> None:
        """Make the folder before the first save. Raises OSError where it was moved since."""
        if self.folder_id is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder_id = _files.identity(self.folder)
        if _files.identity(self.folder) != self.folder_id:
            raise OSError(f"{self.folder} was moved or removed while the run was writing there")

    def write(self, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Write a checkpoint. Raises what `write` raises, and OSError where the folder was moved meanwhile."""
        try:
            write(self.folder, arrays, about)
        finally:
            self.ensure_folder()

    def warn_failure(self, reason: str) -> None:
        """Report a save that failed."""
        self.warn(f"a checkpoint could not be saved ({reason}); the last good one in {self.folder} stays.")


class _BackgroundSaver(_Saver):
    """Saves in a thread, while training continues."""

    def __init__(self, executor: ThreadPoolExecutor, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.executor, self.last_observed = executor, self.last_save
        self.future: Future[None] | None = None

    def observe(self, run_state: Any, history: History) -> None:
        """Remember a state, and start to save it where the interval ends before the next state is expected."""
        super().observe(run_state, history)
        now = time.monotonic()
        margin, self.last_observed = now - self.last_observed, now
        if self.future is not None and self.future.done():
            self.wait()
            self.save_seconds = now - self.last_save
        if self.future is None and self.interval_is_over(margin):
            self.start()

    def start(self) -> None:
        """Start to save the latest state."""
        self.last_save = time.monotonic()
        self.future = self.executor.submit(self.save, *self.content())

    def save(self, *content: Any) -> None:
        """Write a checkpoint, in the thread."""
        # A folder that was moved must not be made again, with one checkpoint of the run in it.
        self.ensure_folder()
        self.write(*content)

    def wait(self) -> None:
        """Wait for the current save and report its failure."""
        if self.future is not None and (error := self.future.exception()) is not None:
            self.saved_state = None
            self.warn_failure(first_line(error))
        self.future = None

    def finish(self) -> None:
        """Save the latest state, unless it is saved."""
        self.wait()
        if self.is_new():
            self.start()
            self.wait()


class SharedSaver(_Saver):
    """Saves with all processes that share a run, while training pauses."""

    def due(self) -> bool:
        """Return whether process 0 asks for a pause, by its clock."""
        # Without a new state, a run whose saves take longer than `every` would pause again at once.
        return distributed.is_main() and self.is_new() and self.interval_is_over()

    def save(self) -> None:
        """Save the latest state, unless it is saved. All processes call it at the same pause."""
        if not self.is_new():
            return
        start, content, problem = time.monotonic(), self.content(), ""
        try:
            self.ensure_folder()
            _files.reserve(self.folder, size_of(*content))
        except (InputError, OSError) as error:
            problem = first_line(error)
        # Before any process writes: a process that writes alone would wait for the others forever.
        if processes.all_gather([bool(problem)]).any():
            self.warn_failure(problem or "by another process")
        else:
            try:
                self.write(*content)
            except Exception as error:  # Orbax raises many types.
                self.warn_failure(first_line(error))
        self.last_save = time.monotonic()
        self.save_seconds = self.last_save - start


def check_folder(folder: object) -> Path:
    """Return the folder of checkpoints as a path. Raises InputError for a value that is no path of this machine."""
    if not isinstance(folder, (str, os.PathLike)) or not isinstance(os.fspath(folder), str) or not os.fspath(folder):
        raise InputError(f'folder must be a path or a string, got {folder!r:.80}. Use "checkpoints".')
    if "://" in os.fspath(folder) or set("[]\\") & set(str(Path(folder).absolute())):
        raise InputError(
            f"folder must be on this machine, without [, ] and \\ in its path, got {os.fspath(folder)}. Choose "
            "another folder."
        )
    return Path(folder)


def checkpoint_content(
    about: Mapping[str, Any], run_state: RunState, history: History
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays of a checkpoint by name, and its `about` with the kinds and shapes of them and the history."""
    arrays = flatten_named(run_state)
    shapes = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
    records = [*map(_plain_record, history)]
    return arrays, {**about, "kinds": kinds(run_state), "arrays": shapes, "history": records}


def size_of(arrays: Mapping[str, Array], about: Mapping[str, Any]) -> int:
    """Return about how many bytes a checkpoint takes on the disk."""
    return sum(array.nbytes for array in arrays.values()) + len(json.dumps(about))


def checkpoint_numbers(folder: Path) -> list[int]:
    """Return the numbers of the checkpoints in a folder, sorted."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def unfinished_saves(folder: Path) -> list[Path]:
    """Return the temporary folders that interrupted saves have left in a folder."""
    return sorted(folder.glob("*.orbax-checkpoint-tmp*"))


def write(folder: Path, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a checkpoint under the next number; the processes that share a run write it together.

    Raises OSError without enough disk space, and the errors of orbax; no part of the checkpoint stays then.
    """
    import orbax.checkpoint as ocp

    number, is_main = max(checkpoint_numbers(folder), default=0) + 1, jax.process_index() == 0
    path = folder / str(number)
    # Orbax saves no empty array; its shape stands in `about`.
    stored = {name: array for name, array in arrays.items() if array.size}
    items = ocp.args.Composite(arrays=ocp.args.StandardSave(stored), about=ocp.args.JsonSave(dict(about)))
    folder.mkdir(parents=True, exist_ok=True)
    _files.reserve(folder, size_of(arrays, about))
    try:
        with _quiet(), _manager(folder) as manager:
            manager.save(number, args=items)
        if is_main:
            _files.write_checksums(path)
            # Not earlier: a power cut during the save would have left no checkpoint.
            for old in checkpoint_numbers(folder)[:-MAX_TO_KEEP]:
                shutil.rmtree(folder / str(old), ignore_errors=True)
    except BaseException:
        # The parts would take space on a disk that may be full.
        for rest in (path, *unfinished_saves(folder)) if is_main else ():
            shutil.rmtree(rest, ignore_errors=True)
        raise


def restore_latest(
    folder: str | Path, warn: Callable[[str], None], *, again: str = "another folder"
) -> Checkpoint | None:
    """Return the latest checkpoint in a folder whose checksums are right; None where no save was ever finished.

    A damaged checkpoint is renamed to `damaged-<number>` with a warning, and the checkpoint before is returned. Older
    `damaged-*` folders and the parts of interrupted saves are removed. Nothing is changed while another run saves
    there. Raises InputError where all checkpoints are damaged, or one with right checksums cannot be read.

    again: the words of that message for a new start, such as "--fresh".
    """
    folder = Path(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder))
        except (InputError, OSError):
            return _latest(folder, warn, again, tidy=False)
        return _latest(folder, warn, again, tidy=os.access(folder, os.W_OK))


def _latest(folder: Path, warn: Callable[[str], None], again: str, tidy: bool) -> Checkpoint | None:
    """Return what `restore_latest` returns. tidy: rename and remove what is damaged."""
    numbers, older_damage = checkpoint_numbers(folder), sorted(folder.glob("damaged-*"))
    # A process that is killed in its first save leaves a checkpoint without checksums.
    any_finished = any(folder.glob(f"*/{_files.CHECKSUMS}"))
    for draft in unfinished_saves(folder) if tidy else ():
        warn(f"the checkpoint {draft} is damaged (its save was not finished); it is removed, and the one before used.")
        shutil.rmtree(draft)
    for number in reversed(numbers):
        path = folder / str(number)
        try:
            damage = _files.find_damage(path)
        except OSError as error:
            raise InputError(f"the checkpoint {path} cannot be read ({error.strerror}). Make it readable.") from None
        if damage is None:
            checkpoint = read(folder, number)
            for old in older_damage if tidy else ():
                shutil.rmtree(old, ignore_errors=True)
            return checkpoint
        if not tidy:
            warn(f"the checkpoint {path} is damaged ({damage}).")
            continue
        aside = _put_aside(path)
        before = "" if number == numbers[0] else ", and the one before is used"
        warn(f"the checkpoint {path} is damaged ({damage}); it is now {aside.name}{before}.")
    if any_finished:
        raise InputError(
            f"every checkpoint in {folder} is damaged. Restore one from a copy, or start over with {again}."
        )
    return None


def _put_aside(path: Path) -> Path:
    """Rename a damaged checkpoint to a free name, and return that name."""
    aside = path.with_name(f"damaged-{path.name}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-again")
    return path.rename(aside)


def read(folder: Path, number: int) -> Checkpoint:
    """Return a checkpoint whose checksums are right. Raises InputError where it cannot be read."""
    import orbax.checkpoint as ocp

    try:
        with (
            _quiet(),
            finish_reads(),
            _manager(folder, create=False, cleanup_tmp_directories=False, **single_process()) as manager,
        ):
            about = manager.restore(number, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
            needed = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in about["arrays"].values())
            if needed > (memory := _memory()):
                raise ValueError(f"it needs {needed:,} bytes of memory, and this machine has {memory:,}")
            templates = {name: np.empty(shape, dtype) for name, (dtype, shape) in about["arrays"].items()}
            stored = {name: array for name, array in templates.items() if array.size}
            items = ocp.args.Composite(arrays=ocp.args.StandardRestore(stored))
            arrays = {**templates, **manager.restore(number, args=items).arrays}
            _check_kinds(about["kinds"], arrays)
            return Checkpoint(arrays, about, number)
    except Exception as error:  # Orbax raises many types.
        raise InputError(
            f"the checkpoint {folder / str(number)} is as it was saved, but cannot be read ({first_line(error)}). Use "
            "the versions that its run's config.json names."
        ) from error


def _check_kinds(kinds: object, arrays: Mapping[str, Any]) -> None:
    """Raise ValueError where the `kinds` in an `about` are not those of the arrays beside it."""
    expected = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
    if isinstance(kinds, dict):
        # A checkpoint holds the integers of a PRNG key.
        keys = {
            name: [[key, shape[:-1]] for key, size in KEY_SIZES.items() if [dtype, shape[-1:]] == ["uint32", [size]]]
            for name, (dtype, shape) in expected.items()
        }
        expected |= {name: kinds[name] for name in keys if kinds.get(name) in keys[name]}
    if kinds != expected:
        raise ValueError("its kinds are not those of its arrays")


def read_about(folder: Path) -> dict[str, Any] | None:
    """Return the `about` of the latest checkpoint in a folder, without reading its arrays or importing orbax.

    None where no checkpoint has an `about` whose checksum is right.
    """
    for number in reversed(checkpoint_numbers(folder)):
        text = _files.read_checked(folder / str(number), "about/metadata")
        if text is not None:
            try:
                return {**json.loads(text)}
            except (ValueError, TypeError, RecursionError):
                return None
    return None


def _memory() -> int:
    """Return the bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


def _manager(folder: Path, **options: Any) -> Any:
    """Return orbax's manager of a folder, which saves in the thread that calls it."""
    import orbax.checkpoint as ocp

    options = {"enable_async_checkpointing": False, "cleanup_tmp_directories": True, **options}
    return ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(**options))


def single_process() -> dict[str, Any]:
    """Return options with which orbax waits for no other process."""
    if jax.process_count() == 1:
        return {}
    import orbax.checkpoint as ocp

    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process-{index}"
    )
    return {"multiprocessing_options": options}


class _FinishingLoop(asyncio.SelectorEventLoop):
    def close(self) -> None:
        if not self.is_closed() and (unfinished := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.wait(unfinished))
        super().close()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Log nothing: the first read that fails raises, and the others fail for the same reason."""


class _FinishingLoops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _FinishingLoop()


@contextmanager
def finish_reads() -> Iterator[None]:
    """Let orbax close an event loop only after all reads in it have ended.

    Orbax closes the loop at the first read that fails; every other read then prints a traceback when it ends.
    """
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_FinishingLoops())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


def first_line(error: BaseException) -> str:
    """Return the message of an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off orbax's own log, which repeats the errors that are reported here as tracebacks."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def check_about(about: object) -> dict[str, Any]:
    """Return a copy of `about` in JSON's types.

    A NumPy or JAX scalar becomes a number, an array and a set a list, a path a string, a date its ISO form, a dtype its
    name, a dataclass and a named tuple a dict; keys become strings.

    Raises InputError for any other value, for keys that become the same string, and for a reserved entry.
    """
    try:
        plain = as_plain(about, "about")
    except RecursionError:
        raise InputError("about must not contain itself. Give a dict of strings and numbers.") from None
    if not isinstance(plain, dict):
        raise InputError(f'about must be a dict, got {type(about).__name__}. Use {{"config": ...}}.')
    if taken := [name for name in RESERVED if name in plain]:
        raise InputError(f'about must not have an entry "{taken[0]}": a checkpoint writes its own. Rename it.')
    return plain


def as_plain(value: Any, name: str) -> Any:
    """Return a value in JSON's types. Raises InputError, which calls the value `name`, for a value without one."""
    match value:
        case None | bool():
            return value
        case enum.Enum():
            return as_plain(value.value, name)
        case np.datetime64() | np.timedelta64() | datetime.timedelta():
            return str(value)
        case np.generic() | np.ndarray() | jax.Array():
            return _plain_array(value, name)
        case int() | float() | str():
            # A subclass may print otherwise than its base.
            return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
        case os.PathLike():
            return os.fsdecode(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case np.dtype():
            return value.name
        case Mapping():
            return _plain_dict(value, name)
        case tuple() if hasattr(value, "_asdict"):
            return _plain_dict(value._asdict(), name)
        case list() | tuple() | range():
            return [as_plain(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
        case set() | frozenset():
            return sorted((as_plain(entry, name) for entry in value), key=lambda entry: (str(type(entry)), str(entry)))
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return _plain_dict(fields, name)
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


def _plain_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of a history in JSON's types."""
    # A long history holds mostly floats.
    return {name: value if type(value) is float else as_plain(value, name) for name, value in record.items()}


def _plain_array(value: Any, name: str) -> Any:
    """Return an array as nested lists, an array without dimensions as a number."""
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name} must be an array without a mask. Fill it, or leave it out.")
    if jnp.issubdtype(value.dtype, jnp.floating):
        return np.asarray(value).astype(np.float64).tolist()
    if getattr(value.dtype, "kind", "PRNG key") in "biuU":
        return np.asarray(value).tolist()
    raise InputError(
        f"{name} must be an array of numbers or strings, got one of dtype {value.dtype}. Give it as a list of them, or "
        "leave it out."
    )


def _plain_dict(entries: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """Return a dict with strings as keys and values in JSON's types."""
    plain: dict[str, Any] = {}
    for key, value in entries.items():
        text = str(as_plain(key, f"a key of {name}"))
        if text in plain:
            raise InputError(f'{name} must have keys that differ as strings, got "{text}" twice. Rename one.')
        plain[text] = as_plain(value, f"{name}[{text!r}]")
    return plain
