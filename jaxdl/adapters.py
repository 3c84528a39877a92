"""Flax modules, Linen's and NNX's, as `Model(init, apply)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.errors import InputError
from jaxdl.types import Array, Model, PyTree, Weights

if TYPE_CHECKING:
    from flax import nnx


class Call(NamedTuple):
    """One call of a layer while a model ran."""

    path: tuple[str, ...]  # its place in the parameters
    kind: str  # the class, such as "Dense"
    shape: tuple[int, ...]  # of what it returned
    scope: str  # the name scope in which it computed


SWITCHES = {"deterministic", "training", "is_training", "use_running_average"}
MASK_ADVICE = (
    "has moving statistics but takes no mask, so padding rows of a short last batch would be counted. "
    "Let its __call__ take mask (rows,) bool and hand it to BatchNorm, as jaxdl.models.MLP does."
)


def from_linen(module: nn.Module) -> Model:
    """A Linen module as a Model.

    Its `__call__` takes the inputs, and `train` (bool) and `mask` ((B,) bool, True for real rows) where it wants them.
    "params" are trained, every other collection is kept as stats. Every `make_rng` name draws from the step's key.
    Raises InputError for a module that names its switch otherwise, and from `init` for one with statistics that takes
    no mask.

    >>> model = from_linen(nn.Dense(3))
    >>> weights = model.init(jax.random.key(0), jnp.ones((2, 4)))
    >>> model.apply(weights, jnp.ones((2, 4)), train=False)[0].shape
    (2, 3)
    """
    accepts = _accepted(type(module).__name__, type(module).__call__)

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
        rngs = None if key is None else {"params": key}
        outputs, stats = module.apply(
            variables, inputs, rngs=rngs, mutable=list(weights.stats) if train else [], **arguments
        )
        return outputs, dict(stats) if train else weights.stats

    return Model(init, apply)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """An NNX module as a Model, from a function that makes it: `from_nnx(lambda rngs: Net(rngs=rngs))`.

    Its `__call__` takes the inputs, and `train` and `mask` where it wants them; Dropout and BatchNorm are switched too.
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
    name = type(module).__name__
    accepts = _accepted(name, type(module).__call__)
    _, param_shapes, stat_shapes, random, other = parts(module)
    if jax.tree.leaves(other):
        kinds = sorted({type(leaf).__name__ for _, leaf in nnx.to_flat_state(other)})
        raise InputError(f"{name} must hold Param, BatchStat and RngState only, got {kinds}.")
    if jax.tree.leaves(stat_shapes) and "mask" not in accepts:
        raise InputError(f"{name} {MASK_ADVICE}")
    module.train()
    training = nnx.graphdef(module)
    module.eval()
    evaluating = nnx.graphdef(module)

    def init(key: Array, inputs: Array) -> Weights:
        _, params, stats, _, _ = parts(make(nnx.Rngs(key)))
        return Weights(_named(nnx.to_pure_dict(params)), _named(nnx.to_pure_dict(stats)))

    def apply(
        weights: Weights, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        live = nnx.merge(
            training if train else evaluating,
            _filled(param_shapes, weights.params),
            _filled(stat_shapes, weights.stats),
            _streams(random, jax.random.key(0) if key is None else key),
        )
        outputs = live(inputs, **_chosen(accepts, train=train, mask=mask))
        return outputs, _named(nnx.to_pure_dict(nnx.state(live, nnx.BatchStat))) if train else weights.stats

    return Model(init, apply)


def _named(tree: PyTree) -> PyTree:
    """Lists of layers have numbers for keys, which files cannot keep apart from strings: all become strings."""
    return {str(key): _named(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _filled(shapes: Any, values: PyTree) -> Any:
    from flax import nnx

    def numbered(like: PyTree, named: PyTree) -> PyTree:
        return (
            {key: numbered(value, named[str(key)]) for key, value in like.items()} if isinstance(like, dict) else named
        )

    state = jax.tree.map(lambda leaf: leaf, shapes)
    nnx.replace_by_pure_dict(state, numbered(nnx.to_pure_dict(shapes), values))
    return state


def _streams(random: Any, key: Array) -> Any:
    """Every stream's key drawn from the step's key and its count set to 0 (`nnx.reseed` skips the default stream)."""
    leaves, structure = jax.tree.flatten(random)
    keys = iter(jax.random.split(key, max(len(leaves), 1)))
    new = [
        next(keys) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros((), leaf.dtype) for leaf in leaves
    ]
    return jax.tree.unflatten(structure, new)


@contextmanager
def linen_calls() -> Iterator[list[Call]]:
    """Lists the calls of Linen layers in the block in the order in which they return; layers of other kinds are not.

    What a call computes lies in a name scope of its own, `Call.scope`. A function that JAX has compiled or traced
    before calls nothing: trace it anew.

    >>> model = from_linen(nn.Dense(3))
    >>> with linen_calls() as calls:
    ...     weights = model.init(jax.random.key(0), jnp.ones((2, 4)))
    >>> calls
    [Call(path=(), kind='Dense', shape=(2, 3), scope='linen-call-0')]
    """
    calls: list[Call] = []
    numbers = count()

    def note(following: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return following(*arguments, **keywords)
        scope = f"linen-call-{next(numbers)}"
        with jax.named_scope(scope):
            output = following(*arguments, **keywords)
        if hasattr(output, "shape"):
            calls.append(Call(context.module.path, type(context.module).__name__, output.shape, scope))
        return output

    with nn.intercept_methods(note):
        yield calls


def _accepted(name: str, call: Callable[..., Any]) -> frozenset[str]:
    """Which of `train` and `mask` a module's `__call__` takes."""
    parameters = frozenset(inspect.signature(call).parameters)
    for other in SWITCHES & parameters:
        raise InputError(f"{name}.__call__ takes {other}, which nobody would set. Let it take train (bool) instead.")
    return parameters & {"train", "mask"}


def _chosen(accepts: frozenset[str], **arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in accepts}
