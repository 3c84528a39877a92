"""Save the variables of a model, and load them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import _files
from jaxdl.errors import InputError
from jaxdl.saving.checkpoints import finish_reads, single_process
from jaxdl.types import PyTree, Variables

# Python's numbers, which `load` returns in their type.
NUMBERS: dict[str, Callable[[Any], Any]] = {"bool": bool, "int": int, "float": float, "complex": complex}


def save(path: str | Path, variables: Variables) -> None:
    """Save variables to a new folder, whole or not at all; each process that calls it writes its own folder.

    Params and stats are pytrees of arrays of any shape, of PRNG keys and of numbers. `load(path)` returns dicts, lists
    and tuples; other containers need `load(path, like=...)`.

    Raises InputError for a leaf that is no number, for a folder that exists, and for one that cannot be written.

    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/model", Variables({"w": jnp.arange(3.0)}, {}))
    ...     print(load(f"{folder}/model").params["w"])
    [0. 1. 2.]
    """
    # Imported here and below: the import of orbax takes half as long as that of jax.
    import orbax.checkpoint as ocp

    folder = Path(path).expanduser().absolute()
    if set("[]") & set(str(folder)):
        # Orbax reads them as a pattern, and would write a folder without the arrays.
        raise InputError(f"save needs a path without [ and ], got {folder}. Choose another name.")
    if not isinstance(variables, Variables):
        raise InputError(
            f"save needs Variables(params, stats), got {type(variables).__name__}. Write Variables(tree, {{}})."
        )
    leaves: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    tree = _describe((variables.params, variables.stats), "", leaves, arrays)
    about = np.frombuffer(json.dumps({"tree": tree, "leaves": leaves}).encode(), np.uint8)
    if folder.exists():
        raise InputError(f"save needs a new folder, got {folder}, which exists. Choose another name or remove it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _files.reserve(folder.parent, sum(array.nbytes for array in arrays.values()) + about.nbytes)
        with ocp.StandardCheckpointer(**single_process()) as checkpointer:
            checkpointer.save(folder, {"about": about, **arrays, "checksum": _digest(about, arrays)})
        _files.write_checksums(folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}). Make room, or choose another folder."
        ) from error


def load(path: str | Path, like: Variables | None = None) -> Variables:
    """Return the variables that `save` wrote, as NumPy arrays of the same dtypes; numbers and PRNG keys in their types.

    like: variables with the containers of the result, or their `jax.eval_shape`.

    Raises InputError where the folder is missing or damaged, where a container needs `like`, and where names, shapes or
    dtypes differ from those of `like`.

    >>> import collections, tempfile
    >>> Dense = collections.namedtuple("Dense", "kernel bias")
    >>> variables = Variables(Dense(np.ones((2, 1)), np.zeros(1)), {})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/model", variables)
    ...     load(f"{folder}/model", like=variables).params.bias
    array([0.])
    """
    import orbax.checkpoint as ocp

    folder = Path(path).expanduser().absolute()
    if like is not None and not isinstance(like, Variables):
        raise InputError(f"load needs Variables(params, stats) as like, got {type(like).__name__}.")
    if not (folder / "_CHECKPOINT_METADATA").is_file():
        raise InputError(f"load needs a folder that save wrote, got {folder}, which is missing or something else.")
    # Before orbax opens a file: it would wait at a pipe forever.
    damage = _files.find_damage(folder)
    if damage is not None:
        raise InputError(f"the variables in {folder} are damaged ({damage}). Use another copy.")
    with finish_reads(), ocp.StandardCheckpointer(**single_process()) as checkpointer:
        try:
            shapes = checkpointer.metadata(folder).item_metadata
            if shapes is None:
                raise ValueError("its metadata cannot be read")
            stored: dict[str, Any] = checkpointer.restore(folder, jax.tree.map(_on_host, dict(shapes)))
            checksum, about = stored.pop("checksum"), stored.pop("about")
            if not np.array_equal(_digest(about, stored), checksum):
                raise ValueError("its arrays are not those that were saved")
        except Exception as error:  # Orbax raises many types.
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"the variables in {folder} are damaged ({reason}). Use another copy.") from error
    content = json.loads(about.tobytes())
    if like is not None:
        return _unflatten_like(like, folder, content["leaves"], stored)
    return Variables(*_build(content["tree"], folder, content["leaves"], stored))


def _describe(tree: PyTree, path: str, leaves: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> Any:
    """Return the containers of a tree in JSON's types, and append its leaves to `leaves` and `arrays`."""
    if tree is None:
        return None
    try:
        children = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda part: part is not tree)[0]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"save cannot sort the keys of {_place(path)} ({error}). Use either strings or numbers."
        ) from error
    if [*map(len, (keys for keys, _ in children))] == [0]:
        leaves.append(_describe_leaf(tree, path, f"{len(leaves):06d}", arrays))
        return len(leaves) - 1
    nodes = [(keys[0], _describe(child, path + str(keys[0]), leaves, arrays)) for keys, child in children]
    kinds = {type(key) for key, _ in nodes}
    names = [key.key for key, _ in nodes] if kinds == {jax.tree_util.DictKey} else []
    if hasattr(tree, "items") and (names or not nodes):
        if all(type(name) in (str, int) for name in names):
            return {"dict": [[name, node] for name, (_, node) in zip(names, nodes, strict=True)]}
    elif type(tree) in (list, tuple) or kinds == {jax.tree_util.SequenceKey}:
        return {"tuple" if type(tree) is tuple else "list": [node for _, node in nodes]}
    return {"other": type(tree).__name__}


def _describe_leaf(leaf: Any, path: str, name: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the shape and dtype of a leaf, and add it to `arrays`, as bytes where orbax does not save its dtype."""
    about: dict[str, Any] = {"path": path}
    if type(leaf).__name__ in NUMBERS and type(leaf) is NUMBERS[type(leaf).__name__]:
        about["number"] = type(leaf).__name__
    if _is_key(leaf):
        about["key"] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    kind = np.ma.MaskedArray if isinstance(leaf, np.ma.MaskedArray) else None
    try:
        array = np.asarray(leaf)
    except ValueError as error:
        raise _no_numbers(path, f"{type(leaf).__name__} ({error})") from error
    if kind or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise _no_numbers(path, kind.__name__ if kind else f"{type(leaf).__name__} of dtype {array.dtype}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.size:
        plain = array.dtype.kind in "biuf" and array.dtype.name in np.sctypeDict
        arrays[name] = array if plain else np.frombuffer(array.tobytes(), np.uint8)
    return {**about, "name": name, "dtype": array.dtype.name, "shape": list(array.shape)}


def _no_numbers(path: str, kind: str) -> InputError:
    return InputError(
        f"save keeps arrays of numbers, got {kind} at {_place(path)}. Put None in its place, and pad arrays of several "
        "lengths to one shape."
    )


def _place(path: str) -> str:
    """Return the path of a leaf as the caller writes it: `params['w']`."""
    return ("params" if path.startswith("[0]") else "stats") + path[3:] if path else "the tree"


def _build(node: Any, folder: Path, leaves: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> Any:
    """Return the tree that `_describe` described."""
    if node is None:
        return None
    if isinstance(node, int):
        return _leaf(leaves[node], arrays)
    ((kind, parts),) = node.items()
    if kind == "other":
        raise InputError(
            f"{folder} holds a container of the type {parts}, which load cannot make. Write load(path, like=variables) "
            "with variables of that structure, such as the result of model.init."
        )
    if kind == "dict":
        return {name: _build(part, folder, leaves, arrays) for name, part in parts}
    items = [_build(part, folder, leaves, arrays) for part in parts]
    return tuple(items) if kind == "tuple" else items


def _leaf(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    dtype, shape = jnp.dtype(about["dtype"]), tuple(about["shape"])
    array = arrays[about["name"]] if about["name"] in arrays else np.empty(shape, dtype)
    if array.dtype != dtype:
        array = np.frombuffer(array.tobytes(), dtype)
    array = array.reshape(shape)
    if "number" in about:
        return NUMBERS[about["number"]](array.item())
    return jax.random.wrap_key_data(jnp.asarray(array), impl=about["key"]) if "key" in about else array


def _unflatten_like(
    like: Variables, folder: Path, leaves: list[dict[str, Any]], arrays: dict[str, np.ndarray]
) -> Variables:
    """Return the leaves in the containers of `like`. Raises InputError where a name, shape or dtype differs."""
    flat, structure = jax.tree_util.tree_flatten_with_path((like.params, like.stats))
    expected = {"".join(map(str, keys)): leaf for keys, leaf in flat}
    saved = {about["path"]: _leaf(about, arrays) for about in leaves}
    for path in [*expected, *saved]:
        holds, wants = (_kind(tree[path]) if path in tree else "nothing" for tree in (saved, expected))
        if holds != wants:
            raise InputError(
                f"{folder} holds {holds} at {_place(path)}, and like has {wants}. Give as like the variables of the "
                "network that was saved."
            )
    params, stats = jax.tree.unflatten(structure, [saved[path] for path in expected])
    return Variables(params, stats)


def _kind(leaf: Any) -> str:
    if type(leaf) in NUMBERS.values():
        return f"a Python {type(leaf).__name__}"
    if not hasattr(leaf, "dtype"):
        return f"a {type(leaf).__name__}"
    return f"{leaf.dtype} of shape {tuple(leaf.shape)}"


def _is_key(leaf: object) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _digest(about: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return the SHA-256, (32,) uint8, of the description and all arrays: orbax notices no flipped bit."""
    digest = hashlib.sha256(about.tobytes())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _on_host(entry: Any) -> np.ndarray:
    return np.empty(entry.shape, entry.dtype)
