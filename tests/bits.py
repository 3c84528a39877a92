"""Comparison of pytrees bit by bit."""

import numpy as np

from jaxdl._tree import flatten_named


def bits(tree):
    """Return the bytes of each leaf of a pytree by name."""
    return {name: np.asarray(leaf).tobytes() for name, leaf in flatten_named(tree).items()}
