"""Checks of the types and shapes of arguments, whose errors name the line to type. They compute nothing."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl._tree import named_leaves
from jaxdl.errors import InputError
from jaxdl.types import LOSS, Callback, Dataset, Loss, Metric, Model, ModelLoss, Objective, Rule, Variables

P = ParamSpec("P")
R = TypeVar("R")
RESERVED = {LOSS, "epoch", "learning_rate", "seconds"}  # names in a history record that a metric cannot have
LOSSES = "losses.squared_error, absolute_error, huber(), softmax_cross_entropy or sigmoid_cross_entropy"
METRICS = "metrics.rmse, mae, r2(), accuracy or top_k(3)"
ORDER = "The order is fit(model, loss, optimizer, train, validation)."


def explain_calls(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that raises InputError for a call with wrong arguments, in place of Python's TypeError."""

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return function(*arguments, **keywords)
        except TypeError as error:
            # An error of the call itself has no frame below this one.
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise
            message = _call_error(function, arguments, keywords)
            if message is None:
                raise
        raise InputError(message)

    return call


# Names of arguments in other libraries that spelling does not match.
_SYNONYMS = {
    **dict.fromkeys(("x", "x_train", "X", "data", "dataset", "train_dataset", "train_data", "loader"), "train"),
    **dict.fromkeys(("validation_data", "validation_split", "val_data", "valid", "val", "eval_set"), "validation"),
    **dict.fromkeys(("y", "y_train", "labels", "target"), "targets"),
    **dict.fromkeys(("callback", "observers", "verbose", "bar"), "callbacks"),
    **dict.fromkeys(("objective", "loss_fn", "criterion"), "loss"),
    "metric": "metrics",
    **dict.fromkeys(("lr", "learning_rate", "optim", "tx", "optimiser"), "optimizer"),
    **dict.fromkeys(("weights", "initial_weights", "params"), "variables"),
    **dict.fromkeys(("stop", "patience"), "early_stopping"),
    **dict.fromkeys(("ema", "average"), "ema_decay"),
    **dict.fromkeys(("random_state", "random_seed", "rng", "key"), "seed"),
    **dict.fromkeys(("initial_epoch", "resume", "progress"), "state"),
    **dict.fromkeys(("batch", "bs"), "batch_size"),
    **dict.fromkeys(("validation_freq", "check_val_every_n_epoch", "eval_every"), "validate_every"),
    **dict.fromkeys(("num_steps", "n_steps", "total_steps"), "max_steps"),
    **dict.fromkeys(("max_time", "timeout", "time_limit"), "max_minutes"),
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs", "nb_epoch", "n_iter"), "epochs"),
    **dict.fromkeys(("hidden", "hidden_sizes", "layers", "units", "features"), "widths"),
    **dict.fromkeys(("num_classes", "classes", "n_outputs", "out_features"), "outputs"),
    **dict.fromkeys(("dropout_rate", "rate"), "dropout"),
    "min_lr": "min_learning_rate",
    **dict.fromkeys(("candidates", "configs", "param_grid", "param_distributions"), "trials"),
    **dict.fromkeys(("halving", "reduction_factor"), "eta"),
    **dict.fromkeys(("least", "min_resources", "grace_period"), "min_resource"),
}


def _call_error(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a call, or None if the signature takes it."""
    name = getattr(function, "__name__", "the function")
    parameters = inspect.signature(function).parameters
    kinds = inspect.Parameter
    takes = f"{name} takes {', '.join(parameters)}." if parameters else f"{name} takes no arguments."
    unknown = next((keyword for keyword in keywords if keyword not in parameters), None)
    if unknown is not None and not any(each.kind is kinds.VAR_KEYWORD for each in parameters.values()):
        meant = _SYNONYMS.get(unknown)
        if meant not in parameters:
            meant = nearest(unknown, [each for each in parameters if each not in keywords])
        advice = f" Use {meant}." if meant else ""
        if unknown in ("sample_weight", "class_weight") and "inputs" not in parameters:
            advice = " Give sample weights to dataset(inputs, targets, sample_weight)."
        return f"{name} takes no argument {unknown}.{advice} {takes}"
    by_place = [each.name for each in parameters.values() if each.kind is kinds.POSITIONAL_OR_KEYWORD]
    if len(arguments) > len(by_place):
        counts = f"{len(by_place)} arguments without a name" if len(by_place) != 1 else "1 argument without a name"
        if all(isinstance(each, int) for each in arguments):
            use = f"Use {name}({arguments!r}) for several values"
        else:
            keyword = next((each for each in parameters if each not in by_place), "")
            use = f"Give the others by name{f', such as {keyword}=' if keyword else ''}"
        names = f", {', '.join(by_place)}" if by_place else ""
        return f"{name} takes {counts}{names}, got {len(arguments)}. {use}. {takes}"
    for twice in by_place[: len(arguments)]:
        if twice in keywords:
            return f"{name} got {twice} twice, by its place and by its name. Give it once. {takes}"
    missing = [
        each.name
        for place, each in enumerate(parameters.values())
        if each.default is kinds.empty
        and each.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        and each.name not in keywords
        and (each.kind is kinds.KEYWORD_ONLY or place >= len(arguments))
    ]
    return f"{name} needs {' and '.join(missing)}, which the call does not give. {takes}" if missing else None


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to a name, whatever its case and spaces, or None."""
    plain = {str(each).lower(): str(each) for each in known}
    query = str(name).strip().lower().replace(" ", "_").replace("-", "_").replace("/", "_")
    matches = difflib.get_close_matches(query, plain, n=1, cutoff=0.6)
    return plain[matches[0]] if matches else None


def given_as(value: object) -> str:
    """Return a short description of a value for an error message."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) < 80 else "a long string"
    if value is None or isinstance(value, (bool, int, float, np.generic)):
        return repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"
    if isinstance(value, (np.ndarray, jax.Array)):
        return f"an array of shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value) or isinstance(value, functools.partial):
        return f"the function {_name(value)}"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"


def _name(function: object) -> str:
    function = getattr(function, "func", function)  # of a functools.partial
    return str(getattr(function, "__name__", type(function).__name__))


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return an integer of Python, NumPy or JAX as an int, or raise InputError, also for Booleans."""
    allowed = "" if least is None else f"at least {least}" if most is None else f"from {least} to {most}"
    advice = ""
    if not isinstance(value, (bool, np.bool_)):
        try:
            number = operator.index(value)
            if (least is None or number >= least) and (most is None or number <= most):
                return number
            raise InputError(f"{name} must be {allowed}, got {number}.")
        except jax.errors.JAXTypeError:
            raise  # A traced value: JAX's own message is better.
        except TypeError:
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                advice = f" Use {int(float(value))}." if float(value) == int(float(value)) else ""
    kind = f"a whole number, {allowed}" if allowed else "a whole number"
    raise InputError(f"{name} must be {kind}, got {given_as(value)}.{advice}")


def number(name: str, value: object) -> Any:
    """Return a number of Python, NumPy or JAX, traced or not, or raise InputError, also for Booleans."""
    if isinstance(value, jax.core.Tracer) or (
        isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    ):
        return value
    if isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 0 and value.dtype.kind in "iuf":
        return value
    advice = ""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            advice = f" Use {float(value):g}."
    raise InputError(f"{name} must be a number, got {given_as(value)}.{advice}")


def sizes(name: str, values: object) -> tuple[int, ...]:
    """Return the widths of layers as a tuple of whole numbers from 1, or raise InputError."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        advice = f"({values},)." if isinstance(values, (int, np.integer)) else "(100, 50), say."
        raise InputError(
            f"{name} must be a tuple of whole numbers, one for each layer, got {given_as(values)}. Use {name}={advice}"
        )
    widths = tuple(whole_number(f"{name}[{place}]", value) for place, value in enumerate(values))
    if any(width < 1 for width in widths):
        raise InputError(f"{name} must be at least 1, got {widths}.")
    return widths


_NETWORKS = ("torch", "keras", "tensorflow", "equinox", "haiku", "flax.nnx", "flax")


def package_of(value: object) -> str:
    """Return the package of _NETWORKS whose class a value or class is or extends, or ""."""
    kind = value if isinstance(value, type) else type(value)
    modules = [f"{each.__module__}." for each in kind.__mro__]
    return next((package for module in modules for package in _NETWORKS if module.startswith(f"{package}.")), "")


# How a network of another package becomes a Model.
ADAPTERS = {
    "flax": "from_linen(module)",
    "flax.nnx": "from_nnx(lambda rngs: module)",
    "equinox": "from_equinox(module)",
    "haiku": "from_haiku(hk.transform_with_state(forward))",
    "keras": "from_keras(model)",
}
_MODEL_CALLS = {
    "mlp": "mlp((100, 50))",
    "convnet": "convnet((50, 50))",
    "residual_net": "residual_net(64)",
    **{line.partition("(")[0]: line for line in ADAPTERS.values()},
}


def check_model(model: Any) -> None:
    """Raise InputError for a model that is not a Model."""
    if isinstance(model, Model):
        return
    package, is_class = package_of(model), isinstance(model, type)
    name = model.__name__ if is_class else type(model).__name__
    functions = (
        "Model(init, apply) with two functions: init(key, inputs) -> Variables, and apply(variables, inputs, train=...)"
    )
    if isinstance(model, (Dataset, Variables)):
        advice = f"{ORDER} evaluate and predict take the model first."
    elif package == "flax":
        advice = f"Use from_linen({name}(...))."
    elif package == "flax.nnx":
        advice = f"Use from_nnx(lambda rngs: {name}(..., rngs=rngs))."
    elif package == "torch":
        advice = f"JAX cannot run a module of PyTorch: write it in Flax, or give {functions}."
    elif package == "equinox":
        advice = f"Use from_equinox(lambda key: {name}(..., key=key))." if is_class else f"Use {ADAPTERS[package]}."
    elif package == "haiku":
        advice = f"Use {ADAPTERS[package]}."
    elif package == "keras":
        advice = f"Use from_keras({name}(...))." if is_class else f"Use {ADAPTERS[package]}."
    elif package == "tensorflow":
        advice = f"Wrap the {package.capitalize()} network in {functions}."
    elif inspect.isroutine(model) and model.__name__ in _MODEL_CALLS:
        advice = f"Call it: {_MODEL_CALLS[model.__name__]}."
    elif callable(model):
        advice = f"Use {functions}."
    else:
        advice = "Use mlp((100, 50)), or from_linen(...) or from_nnx(...) for a Flax module."
    kinds = {"flax": "Linen", "flax.nnx": "NNX", "torch": "PyTorch"}
    module = f"the {kinds.get(package, package.capitalize())} {'class' if is_class else 'module'} {name}"
    raise InputError(f"model must be a Model, got {module if package else given_as(model)}. {advice}")


def check_objective(loss: object, metrics: object = ()) -> Objective:
    """Return loss and metrics as an Objective, or raise InputError for other types and for metrics of one name."""
    _check_loss(loss)
    if isinstance(metrics, Metric):
        raise InputError(f"metrics must be a list of metrics, got one Metric. Use metrics=[{metrics.name}].")
    if isinstance(metrics, Mapping):
        raise InputError("metrics must be a list of metrics, got a dict. Use [metrics.of_output(name, metric), ...].")
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        raise InputError(f"metrics must be a list of metrics, got {given_as(metrics)}. Use {METRICS} in a list.")
    metrics = tuple(metrics)
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise InputError(f"metrics must hold metrics, got {given_as(metric)}. {_metric_advice(metric)}")
        if not isinstance(metric.name, str) or not callable(metric.per_example) or not callable(metric.compute):
            raise InputError(
                f"a Metric must have a name, a function (outputs, targets) and a function (totals, weight), got "
                f"{metric!r}. Use metrics.mean(name, function) for a mean over examples."
            )
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1 or name in RESERVED or name.startswith("val_"):
            raise InputError(f'every metric must have a name of its own, got "{name}", which is taken. Rename it.')
    return Objective(cast(Loss | ModelLoss, loss), metrics)


def _check_loss(loss: object) -> None:
    wanted = "loss must be a function (outputs, targets) -> (batch,)"
    if isinstance(loss, ModelLoss):
        if not callable(loss.function) or not _takes(loss.function, 4):
            raise InputError(
                "model_loss must get a function (variables, batch, key, train) -> (values, outputs), got "
                f"{given_as(loss.function)}. Let it take these four."
            )
        return
    if isinstance(loss, Metric):
        raise InputError(f"{wanted}, got the metric {loss.name}. Use metrics=[{loss.name}] beside a loss: {LOSSES}.")
    if isinstance(loss, (Dataset, Variables, Model)) or (hasattr(loss, "init") and hasattr(loss, "update")):
        raise InputError(f"{wanted}, got {given_as(loss)}. {ORDER} evaluate(model, variables, dataset, loss).")
    if isinstance(loss, Mapping):
        raise InputError(
            f"{wanted}, got {given_as(loss)}. Use losses.weighted_sum(losses, weights) for several outputs."
        )
    # A class is callable, but its result is an instance, not a number.
    if not callable(loss) or isinstance(loss, type) or package_of(loss) in ("torch", "keras", "tensorflow"):
        raise InputError(f"{wanted}, got {given_as(loss)}. Use {LOSSES}.")
    if not _takes(loss, 2) or (_name(loss) == "mean" and loss.__module__ == "jaxdl.metrics"):
        parameters = ", ".join(inspect.signature(loss).parameters)
        advice = f"If it returns a loss, call it first: {_name(loss)}(...)."
        if _takes(loss, 4):
            advice = f"If it calls the model itself, use losses.model_loss({_name(loss)})."
        raise InputError(f"{wanted}, got {given_as(loss)}, which takes ({parameters}). {advice}")


def _metric_advice(metric: object) -> str:
    if isinstance(metric, str) or not callable(metric):
        return f"Use {METRICS}."
    if isinstance(metric, type) or package_of(metric) in ("torch", "keras", "tensorflow"):
        return f"Use {METRICS}, or metrics.mean(name, function)."
    name = _name(metric)
    if not _takes(metric, 2) or name in ("r2", "top_k"):
        return f"If it returns a metric, call it: {name}(...)."
    return f'Use metrics.mean("{name}", {name}) for a mean over examples.'


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Return whether a function takes `count` positional arguments; True for a built-in without a signature."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def check_optimizer(optimizer: object, name: str = "optimizer") -> None:
    """Raise InputError for an optimizer that is not a gradient transformation of optax."""
    package = package_of(optimizer)
    if (
        callable(getattr(optimizer, "init", None))
        and callable(getattr(optimizer, "update", None))
        and not isinstance(optimizer, (type, Rule))
        and package not in ("torch", "keras", "flax", "flax.nnx")
    ):
        return
    if isinstance(optimizer, str):
        advice = f"Use optax.{optimizer.lower() if optimizer.isidentifier() else 'adam'}(1e-3)."
    elif isinstance(optimizer, (bool, int, float, np.floating, np.integer)):
        advice = f"Use optax.adam({optimizer}) if it is the learning rate."
    elif isinstance(optimizer, (Dataset, Model, Variables)):
        advice = ORDER
    elif isinstance(optimizer, Rule):
        advice = "Give rules as early_stopping= or plateau=."
    elif package in ("torch", "keras", "tensorflow", "flax", "flax.nnx"):
        advice = "Use optax.adam(1e-3), say: jaxdl.fit holds the parameters itself."
    elif inspect.isroutine(optimizer) and "schedule" in f"{getattr(optimizer, '__qualname__', '')}{optimizer!r}":
        advice = "Use optax.adam(schedule) if it is a schedule of the learning rate."
    elif inspect.isroutine(optimizer) or isinstance(optimizer, functools.partial):
        is_optax = str(getattr(optimizer, "__module__", "")).split(".")[0] == "optax"
        advice = f"Call it: optax.{_name(optimizer)}(1e-3)." if is_optax else "Call it, or use optax.adam(1e-3)."
    elif isinstance(optimizer, (list, tuple)):
        advice = "Use optax.chain(...) of several."
    else:
        advice = "Use optax.adam(1e-3), say."
    raise InputError(f"{name} must be an optax optimizer, got {given_as(optimizer)}. {advice}")


def check_rule(name: str, rule: object) -> None:
    """Raise InputError for a rule that the argument `name`, early_stopping or plateau, does not take."""
    is_stopping = name == "early_stopping"
    makes, other = ("early_stopping", "plateau") if is_stopping else ("reduce_on_plateau", "early_stopping")
    if isinstance(rule, Rule):
        # The `init` of reduce-on-plateau takes a learning rate, that of early stopping nothing.
        if callable(rule.init) and not _takes(rule.init, 0 if is_stopping else 1):
            raise InputError(f"{name} must be a rule of {makes}, got one that {other}= takes. Give it as {other}=.")
        return
    if rule is None:
        advice = f"Leave {name} out to train without {'early stopping' if is_stopping else 'the rule'}."
    elif isinstance(rule, (int, np.integer)) and not isinstance(rule, bool):
        advice = f"Use {makes}(patience={rule})."
    elif isinstance(rule, str):
        advice = f'Use {makes}("{rule}").'
    elif isinstance(rule, (list, tuple)):
        advice = f"Give the rule itself: {name}={makes}(...)."
    elif inspect.isroutine(rule) and _name(rule) == makes:
        advice = f"Call it: {makes}(patience=3)."
    else:
        advice = f"Use {makes}(patience=3), say."
    raise InputError(f"{name} must be a rule, got {given_as(rule)}. {advice}")


def check_examples(name: str, dataset: object) -> None:
    """Raise InputError for the argument `name` that is not a Dataset of arrays which JAX can hold."""
    if isinstance(dataset, Dataset):
        counts: dict[str, int] = {}
        for field, tree in dataset._asdict().items():
            leaves = named_leaves(field, tree)
            # Only a loss of everything takes no targets: see `check_has_targets`.
            if not leaves and not (field == "targets" and tree is None):
                leaves = [(field, tree)]
            for leaf_name, leaf in leaves:
                if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype") or not leaf.shape:
                    raise InputError(
                        f"{name} must hold arrays, got {given_as(leaf)} for its {leaf_name}. Use "
                        "dataset(inputs, targets)."
                    )
                _check_leaf(f"{name}.{leaf_name}", leaf)
                counts[leaf_name] = leaf.shape[0]
        if {*counts} == {*Dataset._fields} and len({*counts.values()}) > 1:
            raise InputError(
                f"{name} must have one row of targets and one weight for each of its {counts['inputs']} inputs, got "
                f"{counts['targets']} and {counts['sample_weight']}. Use dataset(inputs, targets)."
            )
        first = next(iter(counts))
        for leaf_name, count in counts.items():
            if count != counts[first]:
                raise InputError(
                    f"{name} must have one row of {leaf_name} for each of the {counts[first]} rows of its {first}, got "
                    f"{count}. Use dataset(inputs, targets)."
                )
        _check_sample_weights(f"{name}.sample_weight", dataset.sample_weight)
        return
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        advice = 'Use dataset(data["inputs"], data["targets"]), each of them an array or a dict of arrays.'
    elif package_of(dataset) in ("tensorflow", "torch") or hasattr(dataset, "__next__"):
        advice = (
            "Use dataset(inputs, targets) of NumPy arrays; for data larger than the memory, "
            "data.from_random_access(records, to_row)."
        )
    elif kind == "DataSource":
        advice = "Use dataset(inputs, targets) in memory: fit's train, evaluate and predict take a source."
    elif isinstance(dataset, (float, int)):
        advice = "Use data.split(count, fraction) and dataset(inputs, targets)."
    elif isinstance(dataset, (Variables, Model, Rule)) or kind in ("FitResult", "SeedsResult"):
        advice = "Give a dataset, from dataset(inputs, targets)."
    else:
        advice = "Use dataset(inputs, targets)."
    raise InputError(f"{name} must be a Dataset, got {given_as(dataset)}. {advice}")


def check_has_targets(name: str, objective: Objective, dataset: Dataset) -> None:
    """Raise InputError for a dataset without targets, which all losses but a ModelLoss need, and all metrics."""
    if dataset.targets is not None or (isinstance(objective.loss, ModelLoss) and not objective.metrics):
        return
    need = "metrics" if isinstance(objective.loss, ModelLoss) else "a loss (outputs, targets)"
    raise InputError(
        f"{name} has no targets for {need}. Use dataset(inputs, targets), or losses.model_loss(function) without "
        "metrics."
    )


def _check_leaf(name: str, leaf: object) -> None:
    """Raise InputError for an array that JAX cannot hold or would change."""
    fault = None
    if not isinstance(leaf, np.ndarray):
        fault = "a table of pandas" if hasattr(leaf, "iloc") else None
    elif isinstance(leaf, np.ma.MaskedArray):
        fault = "a masked array"
    elif not leaf.dtype.isnative:
        fault = f"the byte order of {leaf.dtype.str}"
    elif leaf.dtype.kind in "iu" and leaf.dtype.itemsize == 8 and leaf.size:
        largest = max(int(leaf.max()), -int(leaf.min()))
        fault = f"{largest}, beyond 32 bits," if largest >= 2**31 else None
    if fault is not None:
        raise InputError(
            f"{name} must be an array of numbers that JAX can hold, got {fault} in it. Use dataset(inputs, targets), "
            "which converts what can be converted."
        )


def _check_sample_weights(name: str, weights: Any) -> None:
    """Raise InputError for weights that are not finite floats >= 0 of shape (N,); values on a device are not read."""
    advice = "Use dataset(inputs, targets, sample_weight), which checks and converts them."
    if weights.ndim != 1 or not jnp.issubdtype(weights.dtype, jnp.floating):
        raise InputError(f"{name} must be a row of floats, got {weights.dtype} of shape {weights.shape}. {advice}")
    if isinstance(weights, np.ndarray) and weights.size:
        wrong = ~(weights >= 0) | np.isinf(weights)
        if wrong.any():
            place = int(wrong.argmax())
            raise InputError(f"{name} must be numbers from 0 on, got {weights[place]} in row {place}. {advice}")
        if not weights.any():
            raise InputError(f"{name} must not all be 0, or no example counts. Use 1 for each example that counts.")


def check_variables(variables: object) -> None:
    """Raise InputError for variables that are not Variables."""
    if isinstance(variables, Variables):
        return
    kind = type(variables).__name__
    if kind == "FitResult":
        advice = "Use run.best, or run.final."
    elif kind in ("SeedsResult", "SweepResult"):
        advice = "It holds many networks: use predict_mean or evaluate_members with its best."
    elif kind in ("RunState", "TrainState"):
        advice = "Use state.best, or state.train_state.variables."
    elif isinstance(variables, (str, bytes)) or hasattr(variables, "__fspath__"):
        advice = "Use jaxdl.load(path)."
    elif isinstance(variables, Mapping):
        advice = "Use Variables(params, stats)."
    elif isinstance(variables, (Dataset, np.ndarray, jax.Array)) or callable(variables):
        advice = "The order is predict(model, variables, inputs) and evaluate(model, variables, dataset, loss)."
    else:
        advice = "Use run.best of a run of fit, or model.init(key, inputs)."
    raise InputError(f"variables must be Variables, got {given_as(variables)}. {advice}")


def check_callbacks(callbacks: object) -> tuple[Any, ...]:
    """Return the callbacks as a tuple, because a generator would be empty after an epoch, or raise InputError.

    Functions become records of hooks; context managers stay, for `hooks.open_hooks` to enter.
    """
    if isinstance(callbacks, (str, Mapping, Callback)) or not isinstance(callbacks, Iterable):
        advice = " Use callbacks=[function]." if callable(callbacks) else ""
        raise InputError(f"callbacks must be a list of functions, got {given_as(callbacks)}.{advice}")
    return tuple(each if is_context_manager(each) else as_callback(each) for each in callbacks)


def is_context_manager(callback: object) -> bool:
    """Return whether a callback has to be entered before its use; a class of such ones has to be called first."""
    return not isinstance(callback, type) and hasattr(callback, "__enter__") and hasattr(callback, "__exit__")


def as_callback(callback: object) -> Callback:
    """Return a callback as a record, or raise InputError; a function becomes `on_epoch_end`."""
    if isinstance(callback, Callback):
        _check_callback(callback)
        return callback
    methods = [name for name in HOOKS if callable(getattr(callback, name, None))]
    if methods and not isinstance(callback, type):
        fault = f". Use Callback({', '.join(f'{name}=callback.{name}' for name in methods)})."
    elif not callable(callback) or isinstance(callback, type):
        fault = "."
    elif not _takes(callback, 2):
        parameters = ", ".join(inspect.signature(callback).parameters) or "nothing"
        fault = f", which takes {parameters}. Let it take both."
    else:
        return Callback(on_epoch_end=callback)
    raise InputError(f"callbacks must hold functions (run_state, history), got {given_as(callback)}{fault}")


HOOKS = ("on_train_begin", "on_steps", "on_epoch_end", "on_train_end")


def _check_callback(callback: Callback) -> None:
    """Raise InputError for a record whose hooks are not functions of two arguments, or whose fields do not fit."""
    for name in HOOKS:
        hook = getattr(callback, name)
        if hook is not None and (not callable(hook) or isinstance(hook, type) or not _takes(hook, 2)):
            second = "metrics" if name == "on_steps" else "history"
            raise InputError(f"{name} of a Callback must be a function (run_state, {second}), got {given_as(hook)}.")
    if callback.every_steps is not None:
        whole_number("every_steps", callback.every_steps, 1)
    if callback.every_seconds is not None and not number("every_seconds", callback.every_seconds) > 0:
        raise InputError(f"every_seconds must be above 0, got {callback.every_seconds}. Use 0.5, for example.")
    is_timed = callback.every_steps is not None or callback.every_seconds is not None
    if is_timed != (callback.on_steps is not None):
        wrong = "every_steps and every_seconds need on_steps" if is_timed else "on_steps needs every_steps"
        raise InputError(f"{wrong} in a Callback. Use Callback(on_steps=function, every_steps=100), for example.")
    if (callback.state_dict is None) != (callback.load_state_dict is None):
        raise InputError("a Callback with a state needs both state_dict and load_state_dict. Give both, or none.")
    if callback.state_dict is not None and not (isinstance(callback.name, str) and callback.name):
        raise InputError(
            "a Callback with state_dict needs a name, by which a resumed run gives its state back. Use "
            'name="patience", for example.'
        )


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise InputError for a value that is not one of the choices."""
    choices = [*choices]
    if not isinstance(value, str) or value not in choices:
        meant = nearest(value, choices)
        advice = f' Use "{meant}".' if meant else ""
        quoted = " or ".join(f'"{each}"' for each in choices)
        raise InputError(f"{name} must be {quoted}, got {given_as(value)}.{advice}")


def check_name(name: str, value: object) -> None:
    """Raise InputError for the name of a monitored value that is not a string or None."""
    if value is None or isinstance(value, str):
        return
    if isinstance(value, (list, tuple)) and len(value) == 1:
        advice = f" Use {value[0]!r}."
    elif isinstance(value, Metric):
        advice = f' Use "{value.name}".'
    elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        advice = f' Use patience={value} if it is the patience, and "val_loss" for the name.'
    else:
        advice = ' Use "val_loss", say.'
    raise InputError(f"{name} must be the name of one value, got {given_as(value)}.{advice}")


def check_platform() -> None:
    """Start JAX's platform, or raise InputError for a platform in JAX_PLATFORMS that is not available."""
    try:
        jax.default_backend()
    except (AssertionError, RuntimeError) as error:  # Without the plugin of cuda an assertion fails.
        wanted = jax.config.jax_platforms  # type: ignore[attr-defined]
        if not wanted:
            raise
        available = _available_platforms()
        reason = str(error).partition(" (set JAX_PLATFORMS")[0].partition("\n")[0]
        raise InputError(
            f'JAX_PLATFORMS="{wanted}" names a platform that JAX cannot start here; this machine has {available}. Use '
            f"JAX_PLATFORMS={available.partition(',')[0]}, or unset it.{f' JAX says: {reason}' if reason else ''}"
        ) from None


def _available_platforms() -> str:
    """Return the platforms of this machine, and stop them again."""
    from jax.extend.backend import clear_backends

    wanted = jax.config.jax_platforms  # type: ignore[attr-defined]
    jax.config.update("jax_platforms", "")
    try:
        return ", ".join(sorted({device.platform for device in jax.devices()}))
    except RuntimeError:
        return "cpu"
    finally:
        clear_backends()
        jax.config.update("jax_platforms", wanted)
