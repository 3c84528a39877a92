"""The plan of a run: model, loss, optimizer and rules, checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdl._checks import (
    check_examples,
    check_has_targets,
    check_model,
    check_objective,
    check_optimizer,
    check_rule,
    explain_calls,
    nearest,
    number,
    whole_number,
)
from jaxdl._tree import example_shapes, named_leaves
from jaxdl.data.arrays import precision
from jaxdl.errors import InputError
from jaxdl.losses import check_targets
from jaxdl.train.rules import early_stopping
from jaxdl.types import (
    LOSS,
    Array,
    Dataset,
    EvalParams,
    Loss,
    Metric,
    Model,
    ModelLoss,
    Objective,
    Plan,
    PyTree,
    Rule,
    RunState,
    Variables,
)


def learning_rate(opt_state: PyTree) -> Array | None:
    """Return the learning rate of the last step, a scalar; None without `optax.inject_hyperparams`."""
    rates = optax.tree.get_all_with_path(opt_state, "learning_rate", filtering=_is_array)
    return rates[0][1] if rates else None


def rate_to_change(opt_state: PyTree, caller: str = "reduce_on_plateau") -> Array:
    """Return the learning rate, where a change of it has an effect; `caller` is the function that an error names.

    Raises InputError where there is none, where there are several, where a schedule sets it, or where it is an integer.
    """
    rates = optax.tree.get_all_with_path(opt_state, "learning_rate", filtering=_is_array)
    scheduled = optax.tree.get_all_with_path(opt_state, "hyperparams_states")
    if len(rates) != 1 or any("learning_rate" in states for _, states in scheduled):
        raise InputError(
            f"{caller} needs an optimizer whose state holds one learning rate that no schedule sets, got {len(rates)}."
            " Use optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), with a Python float."
        )
    rate: Array = rates[0][1]
    if not jnp.issubdtype(rate.dtype, jnp.floating):
        raise InputError(
            f"{caller} needs a learning rate that is a float, got {rate.dtype}, which cuts fractions off. "
            "Use learning_rate=1.0, not 1."
        )
    return rate


def with_learning_rate(opt_state: PyTree, rate: Array) -> PyTree:
    """Return the state with another learning rate, of the same dtype."""
    return optax.tree.set(opt_state, _is_array, learning_rate=rate.astype(rate_to_change(opt_state).dtype))


def with_float_rates(opt_state: PyTree) -> PyTree:
    """Return the state with integer learning rates as floats, so that they can be lowered."""

    def as_float(path: Any, leaf: Any) -> Any:
        last = path[-1] if path else None
        is_rate = "learning_rate" in (getattr(last, "key", None), getattr(last, "name", None))
        is_integer = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.integer)
        return leaf.astype(precision(leaf.dtype)) if is_rate and is_integer else leaf

    return jax.tree_util.tree_map_with_path(as_float, opt_state)


def _is_array(path: Any, value: Any) -> bool:
    return isinstance(value, jax.Array)


NEVER = early_stopping(patience=None)


@explain_calls
def make_plan(
    model: Model,
    loss: Loss | ModelLoss,
    optimizer: optax.GradientTransformation,
    *,
    metrics: Sequence[Metric] = (),
    batch_size: int = 32,
    early_stopping: Rule = NEVER,
    plateau: Rule | None = None,
    ema_decay: float | None = None,
    eval_params: EvalParams | None = None,
) -> Plan:
    """Validate the arguments and return the plan of a run.

    A rule without a mode takes the direction of its monitored value: that of the metric, with or without `val_`, and
    "min" for the loss.

    Raises InputError for a batch size below 1, a loss that is no function, metrics of the same name, an `ema_decay`
    outside [0, 1), a rule without a mode that monitors a value of unknown direction, and a rule whose mode contradicts
    the direction of the metric.

    Plans that compute the same share one compiled function, whatever the optimizer's learning rate is.

    >>> from jaxdl import losses, mlp
    >>> make_plan(mlp((10, 5)), losses.squared_error, optax.sgd(0.1)).batch_size
    32
    """
    check_model(model)
    objective = check_objective(loss, metrics)
    check_optimizer(optimizer)
    batch_size = whole_number("batch_size", batch_size, 1)
    check_rule("early_stopping", early_stopping)
    if plateau is not None:
        check_rule("plateau", plateau)
    if ema_decay is not None and not 0 <= number("ema_decay", ema_decay) < 1:
        raise InputError(f"ema_decay must be from 0 to below 1, got {ema_decay}. Use 0.999, say, or None for none.")
    if eval_params is not None and not callable(eval_params):
        raise InputError(
            f"eval_params must be a function (opt_state, params) -> params, got a {type(eval_params).__name__}. "
            "Use optax.contrib.schedule_free_eval_params, say."
        )
    if eval_params is not None and ema_decay is not None:
        raise InputError("ema_decay and eval_params each choose the variables to evaluate: give one of them.")
    early_stopping = _with_direction("early_stopping", early_stopping, objective)
    plateau = None if plateau is None else _with_direction("plateau", plateau, objective)
    return Plan(model, objective, optimizer, batch_size, early_stopping, plateau, ema_decay, eval_params)


def _with_direction(name: str, rule: Rule, objective: Objective) -> Rule:
    """Return the rule with the direction of its monitored value, which `check_monitors` checks."""
    monitor = LOSS if rule.monitor is None else rule.monitor.removeprefix("val_")
    modes = {LOSS: "min", "learning_rate": None} | {metric.name: metric.mode for metric in objective.metrics}
    mode = modes.get(monitor, rule.mode)
    if rule.mode is not None and mode is not None and rule.mode != mode:
        better = "lower" if mode == "min" else "higher"
        raise InputError(
            f'{name} has mode="{rule.mode}" and monitors "{rule.monitor}", of which a {better} value is better. Leave '
            "mode out."
        )
    if rule.mode is not None or rule.maximizing is None or monitor not in modes:
        return rule
    if mode is None:
        raise InputError(
            f'{name} monitors "{rule.monitor}" without a mode, and the direction of "{monitor}" is unknown. Give the '
            'rule mode="min" where a lower value is better, or mode="max".'
        )
    return rule.maximizing if mode == "max" else rule


class PlanFamily(NamedTuple):
    """Plans that differ in numbers alone, so that one compiled function serves them all."""

    make: Callable[..., Plan]
    fixed: tuple[tuple[str, Any], ...] = ()  # arguments of `make` that are the same for all, by name

    def __call__(self, numbers: Mapping[str, Any]) -> Plan:
        """Return the plan for some numbers, which may be traced scalars of float32.

        Raises InputError where `make` needs the value of a traced number, or returns no Plan.
        """
        name = getattr(self.make, "__name__", "make")
        try:
            plan = self.make(**dict(self.fixed), **numbers)
        except jax.errors.JAXTypeError as error:
            raise InputError(
                f"{name} must not decide on the value of {', '.join(numbers)}, which differ within one compiled "
                "function. Name those on which it decides in `structure`."
            ) from error
        if not isinstance(plan, Plan):
            raise InputError(f"{name} must return a Plan, got {type(plan).__name__}. Use make_plan(...).")
        return plan


def record_names(plan: Plan, run_state: RunState, validation: Dataset | None) -> list[str]:
    """Return the names of the values in the record of an epoch, in their order."""
    names = [LOSS, *(metric.name for metric in plan.objective.metrics)]
    rate = [] if learning_rate(run_state.train_state.opt_state) is None else ["learning_rate"]
    return [*names, *(f"val_{name}" for name in names if validation is not None), *rate]


def check_rows(plan: Plan, train: Dataset, validation: Dataset | None) -> None:
    """Raise InputError for data that are no Dataset, do not fill a batch, or differ in their shapes or dtypes.

    Also for targets that the loss cannot take (`losses.check_targets`).
    """
    check_examples("train", train)
    check_has_targets("train", plan.objective, train)
    if validation is not None:
        check_examples("validation", validation)
        check_has_targets("validation", plan.objective, validation)
    count = train.sample_weight.shape[0]
    if plan.batch_size > count:
        raise InputError(
            f"batch_size={plan.batch_size} leaves no full batch in {count} training examples. Use at most {count}."
        )
    check_targets(plan.objective.loss, train, "train")
    if validation is None:
        return
    check_targets(plan.objective.loss, validation, "validation")
    shapes: list[Any] = [(example_shapes(rows.inputs), example_shapes(rows.targets)) for rows in (train, validation)]
    if shapes[0][0] != shapes[1][0]:
        raise InputError(
            f"validation inputs must have the shape of training inputs, {shapes[0][0]} for each example, got "
            f"{shapes[1][0]}. Give both the same columns."
        )
    pairs = zip(named_leaves("inputs", train.inputs), jax.tree.leaves(validation.inputs), strict=True)
    for (name, one), other in pairs:
        if (one.dtype == np.uint8) != (other.dtype == np.uint8):
            raise InputError(
                f"train and validation must both hold bytes or neither, got {name} of {one.dtype} and of "
                f"{other.dtype}: networks for images divide bytes by 255. Give both in the same dtype."
            )
    if shapes[0][1] != shapes[1][1]:
        raise InputError(
            f"validation targets must have the shape of training targets, {shapes[0][1]} for each "
            f"example, got {shapes[1][1]}. Encode both in the same way."
        )


def check_monitors(plan: Plan, run_state: RunState, validation: Dataset | None) -> None:
    """Raise InputError where a rule monitors no value of the record, or `ema_decay` changes within a run."""
    if (plan.ema_decay is None) == isinstance(run_state.train_state.ema, Variables):
        if plan.ema_decay is None:
            wrong, advice = "state holds a moving average, which ema_decay=None does not continue", "Give ema_decay"
        else:
            wrong, advice = f"state holds no moving average for ema_decay={plan.ema_decay}", "Leave ema_decay out"
        raise InputError(f"{wrong}. {advice}, or begin a new run.")
    names = record_names(plan, run_state, validation)
    for rule in (plan.early_stopping, plan.plateau):
        if rule is not None and rule.monitor is not None and rule.monitor not in names:
            meant = nearest(rule.monitor, names)
            raise InputError(
                f'monitor="{rule.monitor}" is not measured. This run measures: {", ".join(names)}.'
                + (f' Use "{meant}".' if meant else "")
            )
    # A plan that make_plan did not make may hold a rule without the direction of its metric.
    for name, rule in (("early_stopping", plan.early_stopping), ("plateau", plan.plateau)):
        if rule is not None and _with_direction(name, rule, plan.objective) is not rule:
            raise InputError(f'{name} monitors "{rule.monitor}" without a mode. Use make_plan(..., {name}=...).')
