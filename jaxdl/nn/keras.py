"""Keras 3 models as `Model(init, apply)`, and their variables back in the Keras model."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from jaxdl._checks import check_variables, given_as
from jaxdl._tree import is_traced
from jaxdl.errors import InputError
from jaxdl.nn.rewriting import with_fast_convolutions
from jaxdl.types import Array, Model, PyTree, Variables

Path = tuple[str, ...]
# One trace at a time has its mask in Keras's BatchNormalization, which is a class of the whole process.
_LOCK = threading.RLock()


def from_keras(
    model: Any, *, reinitialize: bool = False, drop_losses: bool = False, drop_constraints: bool = False
) -> Model:
    """Return a Keras model (functional, Sequential or subclassed; JAX backend) as a Model.

    Training starts from the values that the Keras model has when `init` is called, as `keras.Model.fit` does, and never
    changes them: `to_keras` puts the result back. A model that is not built yet is built for the shape of the inputs.

    Trainable variables are the params. All others, frozen ones included, are the stats, in dicts by the names of the
    layers; automatic names count from the first layer of the model, so that they do not depend on other models of the
    process. Dropout and other random layers draw from the key of the step, and have no variables. A BatchNormalization
    layer leaves padding and examples of weight 0 out of its moments. Outputs and inputs of several arrays are passed as
    they are. Call `from_keras` again after a change of `trainable` or of a layer.

    reinitialize: whether `init` draws new values of the trainable variables by their initializers, with its key, and
        resets the moments of trainable BatchNormalization layers; by default its key has no effect, and all members of
        `fit_seeds` start from the same values. drop_losses: whether to train without the model's regularizers and
        `add_loss`; drop_constraints: without the constraints of its variables.

    Raises InputError for anything but a Keras model on the JAX backend, for regularizers and constraints that are not
    dropped, and for stateful RNNs; from `init` and `apply` for losses that a call adds, for statistics that would count
    padding, and where `trainable` has changed.

    >>> import keras
    >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> model = from_keras(network)
    >>> variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
    >>> jax.tree.map(jnp.shape, variables.params)
    {'dense': {'bias': (3,), 'kernel': (4, 3)}}
    >>> model.apply(variables, jnp.ones((2, 4)), train=False)[0].shape
    (2, 3)
    >>> model == from_keras(network)
    True
    """
    network = _Network(
        _check_keras("from_keras", model), reinitialize=reinitialize, losses=drop_losses, constraints=drop_constraints
    )
    # `apply` can be wrapped here, by a function of equal results for equal arguments.
    return Model(_Init(network), with_fast_convolutions(_Apply(network)))


def to_keras(model: Any, variables: Variables) -> Any:
    """Put variables into a Keras model, in place, and return it; `model` may also be the result of `from_keras`.

    Everything of Keras's then works with the trained model, such as `model.save("network.keras")`. A variable is
    recognized by its name, so `trainable` may have changed. Seeds of random layers stay as they are.

    Raises InputError for anything but a built Keras model, and for variables whose names, shapes or dtypes are not
    those of the model, before any variable has changed.

    >>> import keras
    >>> network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> variables = from_keras(network).init(jax.random.key(0), jnp.ones((1, 1)))
    >>> doubled = jax.tree.map(lambda leaf: 2 * leaf + 1, variables)
    >>> to_keras(network, doubled).layers[0].bias.numpy()
    array([1.], dtype=float32)
    """
    if isinstance(model, Model) and isinstance(model.init, _Init):
        model = model.init.network.model
    _check_keras("to_keras", model)
    check_variables(variables)
    if not model.built:
        raise InputError(
            f"to_keras needs a built model, and {model.name} has no variables yet. Call it once: model(inputs[:1])."
        )
    targets = {each.path: each.variable for each in _weights(model)}
    values = {**_leaves(variables.params), **_leaves(variables.stats)}
    for path in {**targets, **values}:
        holds, expects = (_kind(tree[path]) if path in tree else "no such array" for tree in (values, targets))
        if holds != expects:
            raise InputError(
                f"variables must be those of the Keras model, got {holds} for {'/'.join(path)}, which has {expects}. "
                "Give the variables of a run of from_keras(model), such as result.best."
            )
    for path, variable in targets.items():
        # A copy, because Keras's training gives the memory of its variables away.
        variable.assign(jnp.array(values[path], copy=True))
    return model


class _Weight(NamedTuple):
    """A variable of a Keras model, apart from seeds."""

    path: Path  # its place in the params or the stats
    variable: Any
    layer: Any  # the layer that has made it


class _Layout(NamedTuple):
    """Which variables of a Keras model are trained."""

    params: list[_Weight]
    stats: list[_Weight]
    seeds: list[Any]  # the states of the random layers, (2,) uint32


class _Network:
    """A Keras model and how to call it; equal to another of the same Keras model in the same configuration."""

    def __init__(self, model: Any, *, reinitialize: bool, losses: bool, constraints: bool) -> None:
        self.model = model
        self.reinitialize, self.drop_losses, self.drop_constraints = reinitialize, losses, constraints
        self.flags = _flags(model) if model.built else None
        configuration = repr([_config(layer) for layer in _layers(model)])
        digest = hashlib.sha256(configuration.encode(errors="replace")).hexdigest()
        self.key = (id(model), reinitialize, losses, constraints, self.flags, digest)
        self.check()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Network) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key[0])

    def check(self) -> None:
        """Raise InputError for what training would leave out without a word."""
        for layer in _layers(self.model):
            if getattr(layer, "stateful", False) is True:
                raise InputError(
                    f"the layer {layer.name} is stateful: it would carry the state of one batch into the next, whose "
                    "examples are others, because each epoch shuffles them. Make it with stateful=False."
                )
            regularizer = getattr(layer, "activity_regularizer", None)
            if regularizer is not None and not self.drop_losses:
                raise _loss_error(f"regularizes the activity of {layer.name} ({type(regularizer).__name__})")
        for weight in _weights(self.model):
            variable, name = weight.variable, "/".join(weight.path)
            if not variable.trainable:
                continue
            if variable.regularizer is not None and not self.drop_losses:
                raise _loss_error(f"regularizes {name} ({type(variable.regularizer).__name__})")
            if variable.constraint is not None and not self.drop_constraints:
                raise InputError(
                    f"the Keras model constrains {name} ({type(variable.constraint).__name__}), and an optimizer of "
                    "optax does not. Project in the optimizer (optax.keep_params_nonnegative, optax.projections), and "
                    "type from_keras(model, drop_constraints=True)."
                )

    def layout(self) -> _Layout:
        """Return the variables of the built model. Raises InputError where `trainable` has changed since then."""
        if not self.model.built:
            raise InputError(
                f"the Keras model {self.model.name} is not built yet. Call model.init(key, inputs), or the Keras model "
                "on a batch, first."
            )
        flags = _flags(self.model)
        if self.flags is None:
            self.flags = flags
            self.check()
        if flags != self.flags:
            raise InputError(
                f"trainable of the Keras model {self.model.name} has changed since from_keras. Call from_keras(model) "
                "again, and to_keras(model, variables) before it to go on from variables."
            )
        weights = _weights(self.model)
        trained = {id(variable) for variable in self.model.trainable_variables}
        known = {id(weight.variable) for weight in weights}
        return _Layout(
            [weight for weight in weights if id(weight.variable) in trained],
            [weight for weight in weights if id(weight.variable) not in trained],
            [variable for variable in self.model.variables if id(variable) not in known],
        )

    def build(self, inputs: Any) -> _Layout:
        """Build the model for the shapes of the inputs, unless it is built."""
        if not self.model.built:
            try:
                # Outside of the trace: Keras draws the initial values at once.
                with jax.numpy_rank_promotion("allow"), jax.ensure_compile_time_eval():
                    self.model(_symbolic(inputs))
            except Exception as error:  # A model may raise any error.
                shapes = str(jax.tree.map(lambda leaf: ("batch", *leaf.shape[1:]), inputs)).replace("'", "")
                raise InputError(
                    f"the Keras model {self.model.name} cannot be built for inputs of shape {shapes}: "
                    f"{_reason(error)}. Call it on a batch before from_keras: model(inputs[:32])."
                ) from error
        return self.layout()


class _Part:
    """A function of a network, equal to that of an equal network."""

    def __init__(self, network: _Network) -> None:
        self.network = network

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, _Part) and self.network == other.network

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.network))

    def __repr__(self) -> str:
        return f"{type(self).__name__[1:].lower()} of {type(self.network.model).__name__} {self.network.model.name}"


class _Init(_Part):
    def __call__(self, key: Array, inputs: Any) -> Variables:
        """Return the current values of the Keras model, or new ones."""
        layout = self.network.build(inputs)
        weights = [*layout.params, *layout.stats]
        variables = [weight.variable for weight in weights]

        def current() -> tuple[np.ndarray, ...]:
            return tuple(np.array(variable.value) for variable in variables)

        if any(map(is_traced, jax.tree.leaves((key, inputs)))):
            # Read when the compiled function runs: a constant of it would be the value of an earlier time.
            shapes = tuple(jax.ShapeDtypeStruct(variable.shape, variable.value.dtype) for variable in variables)
            values: Iterable[Any] = io_callback(current, shapes)
        else:
            values = map(jnp.array, current())
        named = {weight.path: value for weight, value in zip(weights, values, strict=True)}
        if self.network.reinitialize:
            named |= _drawn(self.network.model, layout, key, inputs)
        return Variables(_tree(layout.params, named), _tree(layout.stats, named))


class _Apply(_Part):
    def __call__(
        self, variables: Variables, inputs: Any, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Any, PyTree]:
        """Call the Keras model with these variables in place of its values."""
        import keras

        model, layout = self.network.model, self.network.layout()
        if train and key is None and layout.seeds:
            raise InputError(
                f"the Keras model {model.name} draws random numbers in training, and no key is given. Give "
                "key=jax.random.key(0), say."
            )
        mapping = [
            (weight.variable, value)
            for weights, tree in ((layout.params, variables.params), (layout.stats, variables.stats))
            for weight, value in zip(weights, _values(weights, tree), strict=True)
        ]
        mapping += zip(layout.seeds, _states(jax.random.key(0) if key is None else key, layout.seeds), strict=True)
        with (
            jax.numpy_rank_promotion("allow"),  # which layers of Keras need
            _masked_moments(model.name, mask) as masked,
            keras.StatelessScope(mapping, collect_losses=True, initialize_variables=False) as scope,
        ):
            before = dict(scope.state_mapping)
            # Not `stateless_call`, which leaves out Dropout in a model whose `call` does not take `training`.
            outputs = model(inputs, training=train)
        if len(model.variables) != len(mapping):
            raise InputError(
                f"the Keras model {model.name} makes variables in its call that its build has not made. Call it on a "
                "batch before from_keras: model(inputs[:32])."
            )
        if scope.losses and train and not self.network.drop_losses:
            raise _loss_error("adds losses in its call (add_loss)")
        if not train:
            return outputs, variables.stats
        stats = {weight.path: scope.get_current_value(weight.variable) for weight in layout.stats}
        after = scope.state_mapping
        if after.keys() - before.keys():
            raise InputError(
                f"the Keras model {model.name} changes a variable in its call that is not among model.variables, such "
                "as that of a metric inside of a layer, which would be lost. Leave it out, and compute the metric by "
                "metrics= of jaxdl.fit."
            )
        for weight in [*layout.params, *layout.stats]:
            if after[id(weight.variable)] is before[id(weight.variable)] or id(weight.layer) in masked:
                continue
            change = f"the Keras model {model.name} changes {'/'.join(weight.path)} in its call"
            if any(weight is other for other in layout.params):
                raise InputError(
                    f"{change}, which is trained: Keras drops such a change on its JAX backend, so that predictions "
                    "would be those of other values. Leave the layer out (SpectralNormalization is one)."
                )
            if mask is not None:
                raise InputError(
                    f"{change} but its layer {weight.layer.name} takes no mask of the examples, so the padding of a "
                    "short batch would be counted. Use keras.layers.BatchNormalization."
                )
        return outputs, _tree(layout.stats, stats)


def _check_keras(function: str, model: Any) -> Any:
    """Return a Keras model; raise InputError for anything else and for another backend."""
    kind = model if inspect.isclass(model) else type(model)
    packages = {each.__module__.partition(".")[0] for each in kind.__mro__}
    if "keras" not in packages:
        advice = "Write it as a keras.Model, or use from_linen or from_nnx for a Flax module."
        if packages & {"tensorflow", "tf_keras"}:
            advice = "This model is of Keras 2: build it again with Keras 3 (import keras), on the JAX backend."
        elif importlib.util.find_spec("keras") is None:
            advice = "Keras is not installed: type pip install keras, and KERAS_BACKEND=jax before Python starts."
        raise InputError(f"{function} needs a Keras model, got {given_as(model)}. {advice}")
    import keras

    if inspect.isclass(model):
        line = f"{kind.__name__}(...)" if function == "from_keras" else "the instance that was trained"
        raise InputError(f"{function} needs a Keras model, got the class {kind.__name__}. Give {line}.")
    if not isinstance(model, keras.Model):
        advice = "Give keras.Sequential([layer])." if isinstance(model, keras.layers.Layer) else "Give a keras.Model."
        raise InputError(f"{function} needs a Keras model, got the Keras object {kind.__name__}. {advice}")
    if keras.config.backend() != "jax":
        raise InputError(
            f"{function} needs Keras on its JAX backend, got {keras.config.backend()}. Type export KERAS_BACKEND=jax "
            "before Python starts, or os.environ['KERAS_BACKEND'] = 'jax' before the first import of keras."
        )
    return model


def _layers(model: Any) -> list[Any]:
    layers: list[Any] = model._flatten_layers()
    return layers


def _config(layer: Any) -> tuple[Any, ...]:
    """Return the type and the configuration of a layer, None where it has none that Keras can write."""
    try:
        config = layer.get_config()
    except Exception:  # A layer may raise any error.
        config = None
    return type(layer), layer.name, str(layer.dtype_policy), config


def _flags(model: Any) -> tuple[bool, ...]:
    """Return `trainable` of all layers and variables."""
    return (
        *(bool(layer.trainable) for layer in _layers(model)),
        *(bool(variable.trainable) for variable in model.weights),
    )


def _weights(model: Any) -> list[_Weight]:
    """Return the variables of a model apart from seeds, each once, with names that only this model determines."""
    result: list[_Weight] = []
    counted, visited = set(), {id(model)}
    taken: set[Path] = set()

    def visit(layer: Any, path: Path) -> None:
        for inner in layer._flatten_layers(include_self=False, recursive=False):
            if id(inner) not in visited:
                visited.add(id(inner))
                visit(inner, _free(taken, (*path, _stem(inner))))
        # The others are those of the inner layers.
        for variable in layer.weights:
            if id(variable) not in counted:
                counted.add(id(variable))
                result.append(_Weight(_free(taken, (*path, variable.name)), variable, layer))

    visit(model, ())
    return result


def _stem(layer: Any) -> str:
    """Return the name of a layer, without the number of an automatic name."""
    stem = re.sub(r"_\d+$", "", layer.name)
    return stem if stem.replace("_", "") == type(layer).__name__.lower() else layer.name


def _free(taken: set[Path], path: Path) -> Path:
    """Return a path, with a number where another has it, and add it to those that are taken."""
    number, free = 0, path
    while free in taken:
        number += 1
        free = (*path[:-1], f"{path[-1]}_{number}")
    taken.add(free)
    return free


def _tree(weights: list[_Weight], values: Mapping[Path, Any]) -> PyTree:
    """Return the values as dicts in dicts."""
    tree: dict[str, Any] = {}
    for weight in weights:
        node = tree
        for part in weight.path[:-1]:
            node = node.setdefault(part, {})
        node[weight.path[-1]] = values[weight.path]
    return tree


def _leaves(tree: PyTree) -> dict[Path, Any]:
    """Return the leaves of dicts in dicts by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(str(getattr(part, "key", part)) for part in path): leaf for path, leaf in leaves}


def _values(weights: list[_Weight], tree: PyTree) -> list[Any]:
    """Return the values of the variables in their order. Raises InputError for those of another model."""
    leaves = _leaves(tree)
    for path in leaves.keys() ^ {weight.path for weight in weights}:
        verb = "must not" if path in leaves else "must"
        raise InputError(
            f"variables {verb} have {'/'.join(path)} here, for the Keras model as it is. Give the variables of a run "
            "of this model with the same layers frozen."
        )
    return [leaves[weight.path] for weight in weights]


def _kind(array: Any) -> str:
    """Return the dtype and shape of an array or a Keras variable."""
    return f"{array.dtype} of shape {tuple(array.shape)}" if hasattr(array, "dtype") else f"a {type(array).__name__}"


def _reason(error: Exception) -> str:
    """Return the beginning of an error's text in one line, without colors."""
    return re.sub(r"\x1b\[\d+m|\s+", " ", str(error))[:200].rstrip(". ")


def _states(key: Array, seeds: list[Any]) -> list[Array]:
    """Return a state for each seed generator, derived from the key."""
    return [jax.random.bits(jax.random.fold_in(key, number), (2,), jnp.uint32) for number in range(len(seeds))]


def _symbolic(inputs: Any) -> Any:
    """Return inputs of any batch size that Keras only traces."""
    import keras

    return jax.tree.map(lambda leaf: keras.KerasTensor((None, *leaf.shape[1:]), str(leaf.dtype)), inputs)


def _drawn(model: Any, layout: _Layout, key: Array, inputs: Any) -> dict[Path, Array]:
    """Return new values of the trainable variables and of the moments of trainable BatchNormalization layers.

    A copy of the model has the initializers, which Keras forgets in a variable that has its value.
    """
    import keras

    try:
        with jax.numpy_rank_promotion("allow"), jax.ensure_compile_time_eval(), keras.StatelessScope():
            clone = type(model).from_config(model.get_config())
            if len(clone.weights) != len(model.weights):
                clone(_symbolic(inputs))
            makers = {weight.path: weight.variable._initializer for weight in _weights(clone)}
    except Exception as error:  # A model may raise any error.
        raise InputError(
            f"reinitialize=True needs a model that Keras can make again from model.get_config(), and {model.name} "
            f"cannot be made so ({_reason(error)}). Give it get_config and from_config, or leave reinitialize out."
        ) from error
    norms = [weight for weight in layout.stats if _is_norm(weight.layer) and weight.layer.trainable]
    drawn = {}
    for number, weight in enumerate([*layout.params, *norms]):
        maker = makers.get(weight.path)
        if maker is None:
            raise InputError(
                f"reinitialize=True needs the initializer of {'/'.join(weight.path)}, and the copy of {model.name} has "
                "none. Make the variable with add_weight(initializer=...), or leave reinitialize out."
            )
        if hasattr(maker, "seed"):
            maker = copy.copy(maker)
            maker.seed = jax.random.bits(jax.random.fold_in(key, number), (2,), jnp.uint32)
        drawn[weight.path] = jnp.asarray(maker(weight.variable.shape, dtype=weight.variable.dtype))
    return drawn


def _is_norm(layer: Any) -> bool:
    import keras

    return isinstance(layer, keras.layers.BatchNormalization)


@contextmanager
def _masked_moments(model: str, mask: Array | None) -> Iterator[set[int]]:
    """Hand the mask of the examples to the BatchNormalization layers of the block; yield the ids of those that use it.

    A mask that Keras gives, such as that of time steps after an Embedding, holds beside it.
    """
    masked: set[int] = set()
    if mask is None:
        yield masked
        return
    import keras

    kind = keras.layers.BatchNormalization
    with _LOCK:
        original: Callable[..., Any] = kind._moments

        def moments(layer: Any, inputs: Array, steps: Array | None) -> tuple[Array, Array]:
            masked.add(id(layer))
            axis = layer.axis % inputs.ndim
            if axis == 0:
                result: tuple[Array, Array] = original(layer, inputs, steps)
                return result
            if inputs.shape[0] != mask.shape[0]:
                raise InputError(
                    f"the BatchNormalization layer {layer.name} of the Keras model {model} normalizes inputs whose "
                    f"first axis is not that of the examples (shape {inputs.shape} for {mask.shape[0]} examples), so "
                    "the padding of a short batch would be counted. Keep the examples on the first axis, or use "
                    "keras.layers.LayerNormalization."
                )
            return _moments(jnp.moveaxis(inputs, axis, -1), mask, steps)

        kind._moments = moments
        try:
            yield masked
        finally:
            kind._moments = original


def _moments(inputs: Array, mask: Array, steps: Array | None) -> tuple[Array, Array]:
    """Return mean and variance of each channel over the examples of the mask, (B,), and the steps, (B, ...) or None.

    Without steps each example is summed first, which takes half the time of a mask of the shape of the inputs.
    """
    weights = mask.astype(inputs.dtype).reshape(-1, *[1] * (inputs.ndim - 2))
    if steps is not None:
        weights = weights * steps.astype(inputs.dtype)
    inner, size = tuple(range(1, inputs.ndim - 1)), 1 if steps is not None else inputs[0, ..., 0].size
    count = jnp.maximum(weights.sum(), 1) * size

    def mean_of(values: Array) -> Array:
        if steps is None:
            return (values.sum(inner) * mask.astype(values.dtype)[:, None]).sum(0) / count
        return (values * weights[..., None]).sum((0, *inner)) / count

    mean = mean_of(inputs)
    return mean, mean_of(jnp.square(inputs - mean.reshape(*[1] * (inputs.ndim - 1), -1)))


def _loss_error(what: str) -> InputError:
    return InputError(
        f"the Keras model {what}, which the loss of jaxdl does not add. For L2(0.01) of kernels, put the decay of its "
        "gradient in front of the optimizer: optax.chain(optax.add_decayed_weights(2 * 0.01, mask=lambda params: "
        'jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)), optimizer). Then type '
        "from_keras(model, drop_losses=True)."
    )
