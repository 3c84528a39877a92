"""Weights on disk; the only file that knows orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdl.errors import InputError
from jaxdl.types import Weights


def save(path: str | Path, weights: Weights) -> None:
    """Writes weights to a new folder `path`, whole or not at all.

    Raises InputError where the folder exists already, so that nothing is overwritten, or cannot be written.

    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/model", Weights({"w": jnp.arange(3.0)}, {}))
    ...     print(load(f"{folder}/model").params["w"])
    [0. 1. 2.]
    """
    # Imported here, and below: orbax costs as much to import as half of jax.
    import orbax.checkpoint as ocp

    folder = Path(path).absolute()
    if folder.exists():
        raise InputError(f"save needs a new folder, got {folder}, which exists. Choose another name or remove it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder, weights._asdict())
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}). Choose another folder.") from error


def load(path: str | Path) -> Weights:
    """Reads the weights that `save` wrote, as NumPy arrays of the dtypes that were saved.

    Raises InputError where the folder is missing or holds no weights.
    """
    import orbax.checkpoint as ocp

    folder = Path(path).absolute()
    if not (folder / "_CHECKPOINT_METADATA").is_file():
        raise InputError(f"load needs a folder that save wrote, got {folder}, which is missing or something else.")
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            shapes = checkpointer.metadata(folder).item_metadata
            if shapes is None:
                raise ValueError("its metadata cannot be read")
            tree: dict[str, Any] = checkpointer.restore(folder, jax.tree.map(_on_host, dict(shapes)))
            return Weights(tree["params"], tree["stats"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"the weights in {folder} are damaged ({reason}). Use another copy.") from error


def _on_host(entry: Any) -> np.ndarray:
    return np.empty(entry.shape, entry.dtype)
