"""Flax modules, Linen's and NNX's, as `Model(init, apply)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.errors import InputError
from jaxdl.types import Array, Model, PyTree, Weights

if TYPE_CHECKING:
    from flax import nnx

MASK_ADVICE = (
    "has moving statistics but takes no mask, so padding rows of a short last batch would be counted. "
    "Let its __call__ take mask (rows,) bool and hand it to BatchNorm, as jaxdl.models.MLP does."
)


def from_linen(module: nn.Module) -> Model:
    """A Linen module as a Model.

    Its `__call__` takes the inputs, and `train` (bool) and `mask` ((B,) bool, True for real rows) where it wants them.
    "params" are trained, every other collection is kept as stats. Every `make_rng` name draws from the step's key.
    Raises InputError from `init` for a module with statistics that takes no mask.

    >>> model = from_linen(nn.Dense(3))
    >>> weights = model.init(jax.random.key(0), jnp.ones((2, 4)))
    >>> model.apply(weights, jnp.ones((2, 4)), train=False)[0].shape
    (2, 3)
    """
    accepts = _accepted(type(module).__call__)

    def init(key: Array, inputs: Array) -> Weights:
        variables = dict(module.init({"params": key}, inputs, **_chosen(accepts, train=False, mask=None)))
        params = variables.pop("params", {})
        if variables and "mask" not in accepts:
            raise InputError(f"{type(module).__name__} {MASK_ADVICE}")
        return Weights(params, variables)

    def apply(
        weights: Weights, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        variables = {"params": weights.params, **weights.stats}
        arguments = _chosen(accepts, train=train, mask=mask)
        if not train:
            return module.apply(variables, inputs, **arguments), weights.stats
        rngs = None if key is None else {"params": key}
        return module.apply(variables, inputs, rngs=rngs, mutable=list(weights.stats), **arguments)

    return Model(init, apply)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """An NNX module as a Model, from a function that makes it: `from_nnx(lambda rngs: Net(rngs=rngs))`.

    Its `__call__` takes the inputs, and `mask` where it wants it; `train()` and `eval()` switch Dropout and BatchNorm.
    nnx.Param is trained, nnx.BatchStat is kept as stats, and every random stream is keyed anew each step. Raises
    InputError for a module that holds any other state, or that has statistics and takes no mask.

    >>> from flax import nnx
    >>> model = from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
    >>> weights = model.init(jax.random.key(0), jnp.ones((2, 4)))
    >>> model.apply(weights, jnp.ones((2, 4)), train=False)[0].shape
    (2, 3)
    """
    # Imported here: NNX is not part of what `import jaxdl` promises to load.
    from flax import nnx

    def parts(module: nnx.Module) -> tuple[Any, ...]:
        return nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)

    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    accepts = _accepted(type(module).__call__)
    stats, other = parts(module)[2], parts(module)[4]
    if jax.tree.leaves(other):
        kinds = sorted({type(leaf).__name__ for _, leaf in nnx.to_flat_state(other)})
        raise InputError(f"{type(module).__name__} must hold Param, BatchStat and RngState only, got {kinds}.")
    if jax.tree.leaves(stats) and "mask" not in accepts:
        raise InputError(f"{type(module).__name__} {MASK_ADVICE}")
    module.train()
    training, _, _, random, _ = parts(module)
    module.eval()
    evaluating = parts(module)[0]

    def init(key: Array, inputs: Array) -> Weights:
        _, params, stats, _, _ = parts(make(nnx.Rngs(key)))
        return Weights(nnx.to_pure_dict(params), nnx.to_pure_dict(stats))

    def apply(
        weights: Weights, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        graph = training if train else evaluating
        streams = _streams(random, jax.random.key(0) if key is None else key)
        live = nnx.merge(graph, _filled(stats_of(0), weights.params), _filled(stats_of(1), weights.stats), streams)
        outputs = live(inputs, **_chosen(accepts, mask=mask))
        return outputs, nnx.to_pure_dict(nnx.state(live, nnx.BatchStat)) if train else weights.stats

    shapes = parts(module)[1:3]

    def stats_of(index: int) -> Any:
        return shapes[index]

    return Model(init, apply)


def _filled(state: Any, values: PyTree) -> Any:
    from flax import nnx

    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, values)
    return state


def _streams(random: Any, key: Array) -> Any:
    """Every stream's key drawn from the step's key and its count set to 0 (`nnx.reseed` skips the default stream)."""
    leaves, structure = jax.tree.flatten(random)
    keys = iter(jax.random.split(key, max(len(leaves), 1)))
    new = [next(keys) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros((), leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(structure, new)


def _accepted(call: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(call).parameters) & {"train", "mask"}


def _chosen(accepts: frozenset[str], **arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in accepts}
