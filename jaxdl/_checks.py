"""Checks of the kinds of arguments: one sentence where a caller gives something else.

Each check looks at types and shapes alone. It costs microseconds and computes nothing.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.errors import InputError
from jaxdl.types import LOSS, Dataset, Loss, Metric, Model, Objective, Rule, Variables

P = ParamSpec("P")
R = TypeVar("R")
RESERVED = {LOSS, "epoch", "learning_rate", "seconds"}  # names of a record that no metric may take
LOSSES = "losses.squared_error, absolute_error, huber(), softmax_cross_entropy or sigmoid_cross_entropy"
METRICS = "metrics.rmse, mae, r2(), accuracy or top_k(3)"
ORDER = "The order is fit(model, loss, optimizer, train, validation)."


def explain_calls(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function, which raises InputError for a call that its signature does not take.

    Python's own TypeError names neither the arguments that exist nor the one that is meant.
    """

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return function(*arguments, **keywords)
        except TypeError as error:
            # An error of the call itself has no frame below this one.
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise
            wrong = _wrong_call(function, arguments, keywords)
            if wrong is None:
                raise
        raise InputError(wrong)

    return call


# What people type who come from another library, where the name is no near miss.
_OTHER_WORDS = {
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
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs", "nb_epoch", "n_iter"), "epochs"),
    **dict.fromkeys(("hidden", "hidden_sizes", "layers", "units", "features"), "widths"),
    **dict.fromkeys(("num_classes", "classes", "n_outputs", "out_features"), "outputs"),
    **dict.fromkeys(("dropout_rate", "rate"), "dropout"),
    "min_lr": "min_learning_rate",
    **dict.fromkeys(("candidates", "configs", "param_grid", "param_distributions"), "trials"),
    **dict.fromkeys(("halving", "reduction_factor"), "eta"),
    **dict.fromkeys(("least", "min_resources", "grace_period"), "min_resource"),
}


def _wrong_call(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a call, or None where the signature takes it."""
    name = getattr(function, "__name__", "the function")
    parameters = inspect.signature(function).parameters
    kinds = inspect.Parameter
    takes = f"{name} takes {', '.join(parameters)}." if parameters else f"{name} takes no arguments."
    if not any(each.kind is kinds.VAR_KEYWORD for each in parameters.values()):
        for given in keywords:
            if given not in parameters:
                free = [each for each in parameters if each not in keywords]
                other = _OTHER_WORDS.get(given)
                meant = other if other in parameters else nearest(given, free)
                advice = f" Use {meant}." if meant else ""
                if given in ("sample_weight", "class_weight") and "inputs" not in parameters:
                    advice = " Give sample weights to dataset(inputs, targets, sample_weight)."
                return f"{name} takes no argument {given}.{advice} {takes}"
    by_place = [each.name for each in parameters.values() if each.kind is kinds.POSITIONAL_OR_KEYWORD]
    if len(arguments) > len(by_place):
        counts = f"{len(by_place)} arguments without a name" if len(by_place) != 1 else "1 argument without a name"
        if arguments and all(isinstance(each, int) for each in arguments):
            use = f"Use {name}({arguments!r}) for several values"
        else:
            named = next((each for each in parameters if each not in by_place), "")
            use = f"Give the others by name{f', such as {named}=' if named else ''}"
        listed = f", {', '.join(by_place)}" if by_place else ""
        return f"{name} takes {counts}{listed}, got {len(arguments)}. {use}. {takes}"
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
    """Return the known name that is most like a given one, whatever its case and spaces; None where none is."""
    plain = {str(each).lower(): str(each) for each in known}
    asked = str(name).strip().lower().replace(" ", "_").replace("-", "_").replace("/", "_")
    found = difflib.get_close_matches(asked, plain, n=1, cutoff=0.6)
    return plain[found[0]] if found else None


def given_as(value: object) -> str:
    """Return what a value is, in a few words, for a message."""
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
    of = getattr(function, "func", function)
    return str(getattr(of, "__name__", type(of).__name__))


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return a whole number from `least` to `most` as an int. NumPy's integers count, Booleans do not.

    Raises InputError for anything else, which names the argument `name`.
    """
    allowed = "" if least is None else f"at least {least}" if most is None else f"from {least} to {most}"
    advice = ""
    if not isinstance(value, (bool, np.bool_)):
        try:
            number = operator.index(value)
            if (least is None or number >= least) and (most is None or number <= most):
                return number
            raise InputError(f"{name} must be {allowed}, got {number}.")
        except jax.errors.JAXTypeError:
            raise  # A traced value: the caller says who traces it.
        except TypeError:
            advice = _whole_advice(value)
    kind = f"a whole number, {allowed}" if allowed else "a whole number"
    raise InputError(f"{name} must be {kind}, got {given_as(value)}.{advice}")


def _whole_advice(value: Any) -> str:
    try:
        number = float(value)
        return f" Use {int(number)}." if number == int(number) else ""
    except (TypeError, ValueError, OverflowError):
        return ""


def number(name: str, value: object) -> Any:
    """Return a number; traced ones pass. Raises InputError for Booleans, strings and everything else."""
    if isinstance(value, jax.core.Tracer) or (
        isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    ):
        return value
    if isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 0 and value.dtype.kind in "iuf":
        return value
    advice = ""
    if isinstance(value, str):
        try:
            advice = f" Use {float(value):g}."
        except ValueError:
            advice = ""
    raise InputError(f"{name} must be a number, got {given_as(value)}.{advice}")


def sizes(name: str, values: object) -> tuple[int, ...]:
    """Return a row of whole numbers from 1 on as a tuple: the widths of layers.

    Raises InputError for anything else.
    """
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        advice = (
            f" Use {name}=({values},)." if isinstance(values, (int, np.integer)) else f" Use {name}=(100, 50), say."
        )
        raise InputError(
            f"{name} must be a tuple of whole numbers, one for each layer, got {given_as(values)}.{advice}"
        )
    given = tuple(whole_number(f"{name}[{place}]", value) for place, value in enumerate(values))
    if any(value < 1 for value in given):
        raise InputError(f"{name} must be at least 1, got {given}.")
    return given


_NETWORKS = ("flax", "flax.nnx", "torch", "keras", "tensorflow", "equinox", "haiku")


def _package(value: object) -> str:
    """Return the package whose class a value or a class is or extends, of those that make networks or optimizers."""
    kind = value if isinstance(value, type) else type(value)
    known = ("torch", "keras", "tensorflow", "equinox", "haiku", "flax.nnx", "flax")
    for each in kind.__mro__:
        for package in known:
            if f"{each.__module__}.".startswith(f"{package}."):
                return package
    return ""


def check_model(model: Any) -> None:
    """Raise InputError for what is no Model, with the line to type for a module of another library."""
    if isinstance(model, Model):
        return
    package, is_class = _package(model), isinstance(model, type)
    name = model.__name__ if is_class else type(model).__name__
    own = (
        "Model(init, apply) with two functions: init(key, inputs) -> Variables, and apply(variables, inputs, train=...)"
    )
    if isinstance(model, (Dataset, Variables)):
        advice = f"{ORDER} evaluate and predict take the model first."
    elif package == "flax":
        advice = f"Use from_linen({name}(...))."
    elif package == "flax.nnx":
        advice = f"Use from_nnx(lambda rngs: {name}(..., rngs=rngs))."
    elif package == "torch":
        advice = f"JAX cannot run a module of PyTorch: write it in Flax, or give {own}."
    elif package in ("keras", "tensorflow", "equinox", "haiku"):
        advice = f"Wrap the {package.capitalize()} network in {own}."
    elif inspect.isroutine(model) and model.__name__ in ("mlp", "convnet", "residual_net"):
        example = {"mlp": "mlp((100, 50))", "convnet": "convnet((50, 50))", "residual_net": "residual_net(64)"}
        advice = f"Call it: {example[model.__name__]}."
    elif inspect.isroutine(model) and model.__name__ in ("from_linen", "from_nnx"):
        advice = f"Call it with the module: {model.__name__}(...)."
    elif callable(model):
        advice = f"Use {own}."
    else:
        advice = "Use mlp((100, 50)), or from_linen(...) and from_nnx(...) for modules of Flax."
    kinds = {"flax": "Linen", "flax.nnx": "NNX", "torch": "PyTorch"}
    what = f"the {kinds.get(package, package.capitalize())} {'class' if is_class else 'module'} {name}"
    raise InputError(f"model must be a Model, got {what if package in _NETWORKS else given_as(model)}. {advice}")


def check_objective(loss: object, metrics: object = ()) -> Objective:
    """Return a loss and metrics as one record.

    Raises InputError for a loss that is no function of (outputs, targets), and for metrics that are no Metric or that
    share a name.
    """
    _check_loss(loss)
    if isinstance(metrics, Metric):
        raise InputError(f"metrics must be a list of metrics, got one Metric. Use metrics=[{metrics.name}].")
    if isinstance(metrics, (str, Mapping)) or not isinstance(metrics, Iterable):
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
    return Objective(cast(Loss, loss), metrics)


def _check_loss(loss: object) -> None:
    wanted = "loss must be a function (outputs, targets) -> (batch,)"
    if isinstance(loss, Metric):
        raise InputError(f"{wanted}, got the metric {loss.name}. Use metrics=[{loss.name}] beside a loss: {LOSSES}.")
    if isinstance(loss, (Dataset, Variables, Model)) or (hasattr(loss, "init") and hasattr(loss, "update")):
        raise InputError(f"{wanted}, got {given_as(loss)}. {ORDER} evaluate(model, variables, dataset, loss).")
    # A class of losses is callable and makes an instance, which is no number.
    if not callable(loss) or isinstance(loss, type) or _package(loss) in ("torch", "keras", "tensorflow"):
        raise InputError(f"{wanted}, got {given_as(loss)}. Use {LOSSES}.")
    if not _takes(loss, 2) or (_name(loss) == "mean" and loss.__module__ == "jaxdl.metrics"):
        raise InputError(
            f"{wanted}, got {given_as(loss)}, which takes "
            f"{_signature(loss)}. Where it makes a loss, call it first: {_name(loss)}(...)."
        )


def _metric_advice(metric: object) -> str:
    if isinstance(metric, str) or not callable(metric):
        return f"Use {METRICS}."
    if isinstance(metric, type) or _package(metric) in ("torch", "keras", "tensorflow"):
        return f"Use {METRICS}, or metrics.mean(name, function)."
    name = _name(metric)
    if not _takes(metric, 2) or name in ("r2", "top_k"):
        return f"Where it makes a metric, call it: {name}(...)."
    return f'Use metrics.mean("{name}", {name}) for a mean over examples.'


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function takes so many arguments without names; True where Python cannot tell."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _signature(function: Callable[..., Any]) -> str:
    return f"({', '.join(inspect.signature(function).parameters)})"


def check_optimizer(optimizer: object, name: str = "optimizer") -> None:
    """Raise InputError for what is no gradient transformation of optax; `name` is the caller's argument."""
    package = _package(optimizer)
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
        advice = f"Use optax.adam({optimizer}), where it is the learning rate."
    elif isinstance(optimizer, (Dataset, Model, Variables)):
        advice = ORDER
    elif isinstance(optimizer, Rule):
        advice = "Give rules as early_stopping= or plateau=."
    elif package in ("torch", "keras", "tensorflow", "flax", "flax.nnx"):
        advice = "Use optax.adam(1e-3), say: jaxdl.fit holds the parameters itself."
    elif inspect.isroutine(optimizer) and "schedule" in f"{getattr(optimizer, '__qualname__', '')}{optimizer!r}":
        advice = "Use optax.adam(schedule), where it is a schedule of the learning rate."
    elif inspect.isroutine(optimizer) or isinstance(optimizer, functools.partial):
        advice = (
            f"Call it: optax.{_name(optimizer)}(1e-3)." if _of_optax(optimizer) else "Call it, or use optax.adam(1e-3)."
        )
    elif isinstance(optimizer, (list, tuple)):
        advice = "Use optax.chain(...) of several."
    else:
        advice = "Use optax.adam(1e-3), say."
    raise InputError(f"{name} must be an optax optimizer, got {given_as(optimizer)}. {advice}")


def _of_optax(function: object) -> bool:
    return str(getattr(function, "__module__", "")).split(".")[0] == "optax"


def check_rule(name: str, rule: object) -> None:
    """Raise InputError for what is no Rule of the kind that `name` takes: `early_stopping` or `plateau`."""
    makes, other = (
        ("early_stopping", "plateau") if name == "early_stopping" else ("reduce_on_plateau", "early_stopping")
    )
    if isinstance(rule, Rule):
        # Early stopping begins with nothing; reduce-on-plateau begins with a learning rate.
        if callable(rule.init) and not _takes(rule.init, 0 if name == "early_stopping" else 1):
            raise InputError(f"{name} must be a rule of {makes}, got one that {other}= takes. Give it as {other}=.")
        return
    if rule is None:
        advice = f"Leave {name} out where nothing {'stops the run' if name == 'stop' else 'changes the learning rate'}."
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


def check_examples(name: str, rows: object) -> None:
    """Raise InputError for what is no Dataset of arrays, with the line to type; `name` is the caller's argument."""
    if isinstance(rows, Dataset):
        leaves = {"inputs": rows.inputs, "targets": rows.targets, "sample_weight": rows.sample_weight}
        for field, leaf in leaves.items():
            if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype") or not leaf.shape:
                raise InputError(
                    f"{name} must hold arrays, got {given_as(leaf)} for its {field}. Use dataset(inputs, targets)."
                )
            _check_leaf(f"{name}.{field}", leaf)
        counts = [leaf.shape[0] for leaf in leaves.values()]
        if len({*counts}) > 1:
            raise InputError(
                f"{name} must have one row of targets and one weight for each of its {counts[0]} inputs, got "
                f"{counts[1]} and {counts[2]}. Use dataset(inputs, targets)."
            )
        _check_sample_weights(f"{name}.weights", rows.sample_weight)
        return
    kind = type(rows).__name__
    if isinstance(rows, Mapping):
        advice = 'Use dataset(data["inputs"], data["targets"]), each of them one array.'
    elif _package(rows) in ("tensorflow", "torch") or inspect.isgenerator(rows) or hasattr(rows, "__next__"):
        advice = (
            "Use dataset(inputs, targets) of NumPy arrays; for data larger than the memory, "
            "sources.from_random_access(records, to_row)."
        )
    elif kind == "DataSource":
        advice = "Use dataset(inputs, targets) in memory: fit's train, evaluate and predict take a source."
    elif isinstance(rows, (float, int)):
        advice = "Use data.split(count, fraction) and dataset(inputs, targets)."
    elif isinstance(rows, (Variables, Model, Rule)) or kind in ("FitResult", "SeedsResult"):
        advice = "Give the examples of the data set, from dataset(inputs, targets)."
    else:
        advice = "Use dataset(inputs, targets)."
    raise InputError(f"{name} must be a Dataset, got {given_as(rows)}. {advice}")


def _check_leaf(name: str, leaf: object) -> None:
    """Raise InputError for an array of a Dataset made by hand, which JAX cannot take or would change."""
    if not isinstance(leaf, np.ndarray):
        fault = "a table of pandas" if hasattr(leaf, "iloc") else None
    elif isinstance(leaf, np.ma.MaskedArray):
        fault = "a masked array"
    elif not leaf.dtype.isnative:
        fault = f"the byte order of {leaf.dtype.str}"
    elif leaf.dtype.kind in "iu" and leaf.dtype.itemsize == 8 and leaf.size:
        largest = max(int(leaf.max()), -int(leaf.min()))
        fault = f"{largest}, beyond 32 bits," if largest >= 2**31 else None
    else:
        fault = None
    if fault is not None:
        raise InputError(
            f"{name} must be an array of numbers that JAX can hold, got {fault} in it. Use dataset(inputs, targets), "
            "which converts what can be converted."
        )


def _check_sample_weights(name: str, weights: Any) -> None:
    """Raise InputError for a `sample_weight` made by hand that no sum can use; one on a device is not read."""
    advice = "Use dataset(inputs, targets, sample_weight), which checks and converts them."
    if weights.ndim != 1 or not jnp.issubdtype(weights.dtype, jnp.floating):
        raise InputError(f"{name} must be a row of floats, got {weights.dtype} of shape {weights.shape}. {advice}")
    if isinstance(weights, np.ndarray) and weights.size:
        wrong = ~(weights >= 0) | np.isinf(weights)
        if wrong.any():
            place = int(wrong.argmax())
            raise InputError(f"{name} must be numbers from 0 on, got {weights[place]} in row {place}. {advice}")
        if not weights.any():
            raise InputError(f"{name} must not all be 0, because no row would count then. Use 1 for those that do.")


def check_variables(weights: object) -> None:
    """Raise InputError for what are no Variables of a model, with the line to type."""
    if isinstance(weights, Variables):
        return
    kind = type(weights).__name__
    if kind == "FitResult":
        advice = "Use run.best, or run.final."
    elif kind in ("SeedsResult", "SweepResult"):
        advice = "It holds many networks: use predict_mean or evaluate_members with its best."
    elif kind in ("RunState", "TrainState"):
        advice = "Use state.best, or state.train_state.variables."
    elif isinstance(weights, (str, bytes)) or hasattr(weights, "__fspath__"):
        advice = "Use jaxdl.load(path)."
    elif isinstance(weights, Mapping):
        advice = "Use Variables(params, stats)."
    elif isinstance(weights, (Dataset, np.ndarray, jax.Array)) or callable(weights):
        advice = "The order is predict(model, variables, inputs) and evaluate(model, variables, dataset, loss)."
    else:
        advice = "Use run.best of a run of fit, or model.init(key, inputs)."
    raise InputError(f"variables must be Variables, got {given_as(weights)}. {advice}")


def check_callbacks(callbacks: object) -> tuple[Any, ...]:
    """Return the callbacks of a run as a tuple, because a generator would be empty after the first epoch.

    Raises InputError for what is no row of functions.
    """
    if isinstance(callbacks, (str, Mapping)) or not isinstance(callbacks, Iterable):
        advice = " Use callbacks=[function]." if callable(callbacks) else ""
        raise InputError(f"callbacks must be a list of functions, got {given_as(callbacks)}.{advice}")
    callbacks = tuple(callbacks)
    for callback in callbacks:
        if hasattr(callback, "__enter__") and hasattr(callback, "__exit__"):
            raise InputError(
                f"callbacks must hold functions (progress, history), got {given_as(callback)}, a context manager. Use "
                "with ... as callback: and callbacks=[callback] inside of its block."
            )
        if not callable(callback) or isinstance(callback, type):
            raise InputError(f"callbacks must hold functions (progress, history), got {given_as(callback)}.")
        if not _takes_two(callback):
            parameters = ", ".join(inspect.signature(callback).parameters) or "nothing"
            raise InputError(
                f"callbacks must hold functions (progress, history), got {given_as(callback)}, which takes "
                f"{parameters}. Let it take both."
            )
    return callbacks


def _takes_two(function: Callable[..., Any]) -> bool:
    """Return whether a function can be called with two values; so can one that does not tell."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        pass  # A built-in function without a signature.
    return True


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise InputError where a value is none of the choices."""
    known = [*choices]
    if not isinstance(value, str) or value not in known:
        meant = nearest(value, known)
        listed = " or ".join(f'"{each}"' for each in known)
        advice = f' Use "{meant}".' if meant else ""
        raise InputError(f"{name} must be {listed}, got {given_as(value)}.{advice}")


def check_name(name: str, value: object) -> None:
    """Raise InputError for a monitored value's name that is no string."""
    if value is None or isinstance(value, str):
        return
    advice = ""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        advice = f" Use {value[0]!r}."
    elif isinstance(value, Metric):
        advice = f' Use "{value.name}".'
    elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        advice = f' Use patience={value}, where it is the patience, and "val_loss" for the name.'
    else:
        advice = ' Use "val_loss", say.'
    raise InputError(f"{name} must be the name of one value, got {given_as(value)}.{advice}")


def check_platform() -> None:
    """Start JAX's platform. Raises InputError where `JAX_PLATFORMS` names one that is not there."""
    try:
        jax.default_backend()
    except (AssertionError, RuntimeError) as error:  # An assertion fails where the plugin of cuda is not installed.
        wanted = jax.config.jax_platforms  # type: ignore[attr-defined]
        if not wanted:
            raise
        there = _platforms_there()
        reason = str(error).partition(" (set JAX_PLATFORMS")[0].partition("\n")[0]
        raise InputError(
            f'JAX_PLATFORMS="{wanted}" names a platform that JAX cannot start here; this machine has {there}. Use '
            f"JAX_PLATFORMS={there.partition(',')[0]}, or unset it.{f' JAX says: {reason}' if reason else ''}"
        ) from None


def _platforms_there() -> str:
    """Return the platforms that JAX starts by itself, and leave none of them started."""
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
