"""Metrics of yes-or-no answers: targets of 0 and 1, and outputs that are logits, of which those above 0 say yes."""

from __future__ import annotations

import jax.numpy as jnp

from jaxdl.objectives import mean, same_shape
from jaxdl.types import Array, Metric, PyTree


def right(outputs: Array, targets: Array) -> Array:
    """Whether each logit is on the side of its target, float 1 or 0; one that is no number never is.

    >>> right(jnp.array([[2.0], [-1.0], [0.0]]), jnp.array([[1.0], [1.0], [0.0]])).tolist()
    [[1.0], [0.0], [1.0]]
    """
    outputs, targets = same_shape("right", outputs, targets)
    return jnp.where(targets > 0.5, outputs > 0, outputs <= 0).astype(outputs.dtype)


def _of_classes(outputs: Array, targets: Array) -> PyTree:
    """For each row and class, no before yes: whether the row is of it, and whether it was found then."""
    correct = right(outputs, targets)
    yes = (targets > 0.5).astype(correct.dtype)
    of = jnp.stack([1 - yes, yes], -1)
    return {"of": of, "found": of * correct[..., None]}


def _mean_of_shares(total: PyTree, weight: Array) -> Array:
    there = (total["of"] > 0).astype(total["of"].dtype)
    shares = total["found"] / jnp.where(total["of"] > 0, total["of"], 1)
    return jnp.mean(jnp.sum(shares * there, -1) / jnp.sum(there, -1))


# The share of answers that are right.
accuracy = mean(
    "accuracy", lambda outputs, targets: right(outputs, targets).reshape(len(targets), -1).mean(1), mode="max"
)
# The mean of two shares: of the rows that are yes, and of those that are no, that were found. Guessing cannot beat 0.5,
# however rare a class is. As in scikit-learn a class without rows is left out. Several outputs count the same.
balanced_accuracy = Metric("balanced_accuracy", _of_classes, _mean_of_shares, "max")
