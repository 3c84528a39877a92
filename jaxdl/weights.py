"""Weights on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdl import room
from jaxdl.errors import InputError
from jaxdl.saves import alone
from jaxdl.types import Weights


def save(path: str | Path, weights: Weights) -> None:
    """Writes weights to a new folder `path`, whole or not at all. Of several processes the one that calls it writes.

    Params and stats are arrays in dicts with strings for keys and in lists; a tuple comes back as a list. Raises
    InputError for other trees, which `load` could not make again; and where the folder exists already, so that nothing
    is overwritten, or cannot be written.

    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/model", Weights({"w": jnp.arange(3.0)}, {}))
    ...     print(load(f"{folder}/model").params["w"])
    [0. 1. 2.]
    """
    # Imported here, and below: orbax costs as much to import as half of jax.
    import orbax.checkpoint as ocp

    folder = Path(path).expanduser().absolute()
    if set("[]") & set(str(folder)):
        # Orbax takes them for a pattern, and would write a folder without the numbers.
        raise InputError(f"save needs a path without [ and ], got {folder}. Choose another name.")
    _check_kinds(weights)
    if folder.exists():
        raise InputError(f"save needs a new folder, got {folder}, which exists. Choose another name or remove it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        room.require(folder.parent, sum(leaf.nbytes for leaf in jax.tree.leaves(weights)))
        with ocp.StandardCheckpointer(**alone()) as checkpointer:
            # From the host's memory, which belongs to this process alone.
            arrays = jax.tree.map(np.asarray, weights._asdict())
            checkpointer.save(folder, {**arrays, "checksum": _checksum(weights)})
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}). Make room, or choose another folder."
        ) from error


def load(path: str | Path) -> Weights:
    """Reads the weights that `save` wrote, as NumPy arrays of the dtypes that were saved.

    Raises InputError where the folder is missing or holds no weights.
    """
    import orbax.checkpoint as ocp

    folder = Path(path).expanduser().absolute()
    if not (folder / "_CHECKPOINT_METADATA").is_file():
        raise InputError(f"load needs a folder that save wrote, got {folder}, which is missing or something else.")
    with ocp.StandardCheckpointer(**alone()) as checkpointer:
        try:
            shapes = checkpointer.metadata(folder).item_metadata
            if shapes is None:
                raise ValueError("its metadata cannot be read")
            tree: dict[str, Any] = checkpointer.restore(folder, jax.tree.map(_on_host, dict(shapes)))
            weights = Weights(tree["params"], tree["stats"])
            if not np.array_equal(_checksum(weights), tree["checksum"]):
                raise ValueError("its numbers are not those that were saved")
            return weights
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"the weights in {folder} are damaged ({reason}). Use another copy.") from error


def _check_kinds(weights: Weights) -> None:
    for path, _ in jax.tree_util.tree_leaves_with_path(weights._asdict()):
        for key in path:
            kept = isinstance(key, jax.tree_util.SequenceKey) or isinstance(getattr(key, "key", None), str)
            if not kept:
                raise InputError(
                    f"save keeps arrays in dicts of strings and in lists, got {jax.tree_util.keystr(path)}. Give "
                    "{str(n): leaf for n, leaf in enumerate(jax.tree.leaves(tree))}, say."
                )


def _checksum(weights: Weights) -> np.ndarray:
    """SHA-256, (32,) uint8, over the names, shapes, dtypes and bytes of all leaves: orbax notices no flipped bit."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _on_host(entry: Any) -> np.ndarray:
    return np.empty(entry.shape, entry.dtype)
