"""Padding of examples up to a multiple of a batch, for tests of what padding must not change."""

import numpy as np

from jaxdl.data import take
from jaxdl.types import Batch


def pad(rows, multiple):
    """Return the examples up to a multiple: the last one again, with weight 0 and outside of the mask."""
    count = len(rows.sample_weight)
    padded = take(rows, np.minimum(np.arange(count + -count % multiple), count - 1))
    real = np.arange(len(padded.sample_weight)) < count
    return Batch(padded.inputs, padded.targets, np.where(real, padded.sample_weight, np.float32(0)), real)
