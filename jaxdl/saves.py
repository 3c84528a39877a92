"""One save of a run: what it holds, written and read by orbax."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdl import checksums, room
from jaxdl.errors import InputError
from jaxdl.leaves import kinds, named
from jaxdl.types import Array, Progress

History = list[dict[str, float]]


class Saved(NamedTuple):
    """What a checkpoint of a run holds."""

    arrays: dict[str, np.ndarray]  # by name, as `leaves.named` gives them
    about: dict[str, Any]  # whatever `keeper` was told, the `kinds` of the progress, and the `history`
    number: int


def content_of(
    about: Mapping[str, Any], progress: Progress, history: History
) -> tuple[dict[str, Array], dict[str, Any]]:
    """What a checkpoint holds, as `write` takes it: arrays by name, and what is told about them.

    >>> import jax.numpy as jnp
    >>> content_of({"seed": 1}, {"a": jnp.ones(2)}, [])[1]["kinds"]
    {'a': ['float32', [2]]}
    """
    arrays = named(progress)
    # By the names that they have already.
    shapes = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
    told = {**about, "kinds": kinds(progress), "arrays": shapes, "history": [*map(_listed, history)]}
    return arrays, told


def size_of(arrays: Mapping[str, Array], about: Mapping[str, Any]) -> int:
    """About how many bytes a checkpoint takes on the disk.

    >>> import jax.numpy as jnp
    >>> size_of({"a": jnp.ones(2)}, {})
    10
    """
    return sum(array.nbytes for array in arrays.values()) + len(json.dumps(about))


def _listed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON can hold it: those of many runs are arrays."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in record.items()}


def numbers_in(folder: Path) -> list[int]:
    """The numbers of the checkpoints in a folder, in order.

    >>> numbers_in(Path("no", "such", "folder"))
    []
    """
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def drafts_in(folder: Path) -> list[Path]:
    """What saves that were not finished have left in a folder.

    >>> drafts_in(Path("no", "such", "folder"))
    []
    """
    return sorted(folder.glob("*.orbax-checkpoint-tmp*"))


def load_orbax() -> None:
    """Imports what saving needs, which takes as long as several saves.

    >>> load_orbax()
    """
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
    room.require(folder, size_of(arrays, about))
    try:
        with _quiet(), _manager(folder) as manager:
            manager.save(number, args=items)
        if first:
            checksums.write(path)
    except BaseException:
        # What is half-written would only take room on a disk that may be full.
        for rest in (path, *drafts_in(folder)) if first else ():
            shutil.rmtree(rest, ignore_errors=True)
        raise


def read(folder: Path, number: int) -> Saved:
    """A checkpoint by its number, whose checksums were looked at. Each process that calls it reads by itself.

    Raises InputError where it cannot be read.
    """
    import orbax.checkpoint as ocp

    try:
        with _quiet(), _manager(folder, create=False, **alone()) as manager:
            about = manager.restore(number, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
            like = {name: np.empty(shape, dtype) for name, (dtype, shape) in about["arrays"].items()}
            filled = {name: array for name, array in like.items() if array.size}
            items = ocp.args.Composite(arrays=ocp.args.StandardRestore(filled))
            return Saved({**like, **manager.restore(number, args=items).arrays}, about, number)
    except Exception as error:  # Whatever orbax raises.
        raise InputError(
            f"the checkpoint {folder / str(number)} is as it was saved, but cannot be read ({first_line(error)}). Use "
            "the versions that its run's config.json names."
        ) from error


def _manager(folder: Path, **options: Any) -> Any:
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy

    settings = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(2),
        cleanup_tmp_directories=True,
        # The thread that calls it is not the one that trains.
        enable_async_checkpointing=False,
        **options,
    )
    return ocp.CheckpointManager(folder.absolute(), options=settings)


def alone() -> dict[str, Any]:
    """Options by which orbax waits for no other process.

    >>> alone()
    {}
    """
    if jax.process_count() == 1:
        return {}
    import orbax.checkpoint as ocp

    own = jax.process_index()
    prefix = f"process-{own}"
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=prefix
    )
    return {"multiprocessing_options": options}


def first_line(error: BaseException) -> str:
    """What an error says in one line.

    >>> first_line(ValueError("no; because"))
    'no; because'
    """
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
