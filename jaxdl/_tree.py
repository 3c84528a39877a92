"""The leaves of a pytree by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.errors import InputError
from jaxdl.types import Array, PyTree


def named_leaves(name: str, tree: PyTree) -> list[tuple[str, Any]]:
    """Return each leaf with its name as the caller writes it, such as `inputs['image']`; an array has `name` itself."""
    return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def map_named(function: Callable[..., Any], name: str, tree: PyTree, *others: PyTree) -> PyTree:
    """Return a tree of `function(name of the leaf, leaf, ...)`, where the names are those of `named_leaves`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(name + jax.tree_util.keystr(path), *leaves), tree, *others
    )


def subtree(name: str, tree: PyTree, path: tuple[Any, ...]) -> PyTree:
    """Return the part of a tree at the keys, indices or fields of a path. Raises InputError where there is none."""
    for key in path:
        try:
            if hasattr(tree, "shape"):
                raise TypeError("an array has rows, not parts")
            tree = getattr(tree, key) if isinstance(key, str) and hasattr(tree, "_fields") else tree[key]
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            if isinstance(tree, Mapping):
                kind = f"a dict of {', '.join(map(repr, tree))}"
            elif hasattr(tree, "_fields"):
                kind = f"a {type(tree).__name__} of {', '.join(tree._fields)}"
            elif isinstance(tree, (tuple, list)):
                kind = f"a {type(tree).__name__} of {len(tree)}"
            else:
                kind = f"an array of shape {tuple(tree.shape)}" if hasattr(tree, "shape") else repr(tree)
            raise InputError(f"{name} must hold {key!r}, got {kind}. Use one of its names.") from error
    return tree


def example_shapes(tree: PyTree) -> Any:
    """Return the shapes of one example, without the first axis: a tuple for an array, a tree of tuples for a tree."""
    return jax.tree.map(lambda leaf: tuple(leaf.shape[1:]), tree)


def shapes_and_dtypes(tree: PyTree) -> PyTree:
    """Return a tree as shapes and dtypes, for what only traces."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


# Left out of messages, because the variables of every run have this prefix.
_PREFIX = "train_state/variables/"


def flatten_named(tree: PyTree) -> dict[str, Array]:
    """Return each leaf by its name, such as `params/Dense_0/kernel`; random keys as their uint32 data."""
    return {
        name: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for name, leaf in _items(tree)
    }


def kinds(tree: PyTree) -> dict[str, list[Any]]:
    """Return the dtype and shape of each leaf by its name, as JSON."""
    return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in _items(tree)}


def check_structure(stored: Mapping[str, list[Any]], template: PyTree) -> None:
    """Raise InputError for a leaf of a checkpoint, from its `kinds`, that differs from the template's."""
    expected = kinds(template)
    different = [name for name in {**expected, **stored} if stored.get(name) != expected.get(name)]
    if not different:
        return
    # The leaf of most dimensions, because a kernel says more about a network than its bias.
    name = max(different, key=lambda name: len((expected.get(name) or stored[name])[1]))
    short, holds, expects = name.removeprefix(_PREFIX), stored.get(name), expected.get(name)
    if holds is None and expects is not None:
        text = f"no {short}; this model expects it, of shape {tuple(expects[1])}"
    elif expects is None or holds is None:
        text = f"{short}, which this model does not have"
    elif holds[1] != expects[1]:
        text = f"{short} of shape {tuple(holds[1])}; this model expects {tuple(expects[1])}"
    else:
        text = f"{short} of dtype {holds[0]}; this model expects {expects[0]}"
    raise InputError(f"the checkpoint holds {text}")


def unflatten_named(template: PyTree, arrays: Mapping[str, Any]) -> PyTree:
    """Return a tree with the template's structure and the arrays of `flatten_named`, on the default device."""

    def leaf(path: Any, like: Array) -> Array:
        array = jnp.asarray(arrays[_name(path)])
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
        return array

    return jax.tree_util.tree_map_with_path(leaf, template)


def _items(tree: PyTree) -> list[tuple[str, Array]]:
    return [(_name(path), jnp.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path: Any) -> str:
    # Escaped as in JSON pointers, so that {"a/b": ...} and {"a": {"b": ...}} have different names.
    parts = (jax.tree_util.keystr((key,), simple=True) for key in path)
    return "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)
