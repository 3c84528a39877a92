"""The whole way from raw inputs to predictions as one program, which `jax.export` can write."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.export as jax_export
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdl.data import Scaling
from jaxdl.errors import InputError
from jaxdl.types import Array, Model, Weights

PLATFORMS = ("cpu", "cuda", "tpu")
LINKS: Mapping[str, Callable[[Array], Array]] = {
    "none": lambda outputs: outputs,
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
}


def inference(
    model: Model, weights: Weights, inputs: np.ndarray, *, scaling: Scaling | None = None, link: str = "none"
) -> jax_export.Exported:
    """The program from raw inputs like these (rows, ...) to float32 (rows, numbers), for any number of rows.

    It runs on CPU, CUDA and TPU: what a layer does otherwise on one of them is in it for each. The weights are part of
    it. link: none, sigmoid or softmax, taken of the model's outputs. scaling: taken off float inputs (rows, columns)
    first, as `standardise` does. Raises InputError for another link, and a scaling of other columns.

    >>> from jaxdl import mlp
    >>> model, rows = mlp((8,)), np.ones((3, 2), np.float32)
    >>> program = inference(model, model.init(jax.random.key(0), rows), rows)
    >>> program.platforms, program.in_avals, program.call(rows[:2]).shape
    (('cpu', 'cuda', 'tpu'), (ShapedArray(float32[rows,2]),), (2, 1))
    """
    if link not in LINKS:
        raise InputError(f"link must be one of {', '.join(LINKS)}, got {link!r}.")
    if scaling is not None and not (inputs.ndim == 2 and len(scaling.mean) == len(scaling.spread) == inputs.shape[1]):
        raise InputError(f"scaling must have a mean and a spread for each column of {inputs.shape}, got {scaling}.")

    def predictions(raw: Array) -> Array:
        # Else XLA computes with them beforehand, and rounds otherwise than where they are arguments.
        held = lax.optimization_barrier(weights)
        outputs, _ = model.apply(held, raw if scaling is None else _standardised(raw, scaling), train=False)
        return LINKS[link](outputs.astype(jnp.float32)).reshape(outputs.shape[0], -1)

    shape = jax_export.symbolic_shape(", ".join(["rows", *map(str, inputs.shape[1:])]))
    return jax_export.export(jax.jit(predictions), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, inputs.dtype))


def _standardised(raw: Array, scaling: Scaling) -> Array:
    """`standardise` in float32: the mean in two parts, else the last digits of a large one would be lost."""
    high = np.asarray(scaling.mean, np.float32)
    low = (scaling.mean - high.astype(np.float64)).astype(np.float32)
    # The barrier keeps XLA from adding up the two parts beforehand.
    rest = lax.optimization_barrier(raw.astype(jnp.float32) - high[None])
    return (rest - low[None]) / np.asarray(scaling.spread, np.float32)[None]
