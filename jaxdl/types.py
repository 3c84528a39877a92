"""The pytrees, protocols and records that functions of jaxdl take and return.

Shapes: N examples in a dataset, B examples in a batch. A NamedTuple here is traced data or a record of functions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import optax

__all__ = [
    "Apply",
    "Batch",
    "Callback",
    "CallbackLike",
    "Checkpoint",
    "Dataset",
    "EarlyStoppingState",
    "EvalParams",
    "History",
    "Hook",
    "Init",
    "Loss",
    "Metric",
    "MetricSums",
    "Mode",
    "Model",
    "ModelLoss",
    "Objective",
    "Plan",
    "ReduceOnPlateauState",
    "Rule",
    "RunState",
    "Stop",
    "TrainState",
    "Variables",
]


def __dir__() -> list[str]:
    return __all__


Array = jax.Array
PyTree = Any
Mode = Literal["min", "max"]  # whether a lower or a higher value is better


class Dataset(NamedTuple):
    """The examples of a dataset or of a batch: row i of each array belongs to example i."""

    inputs: PyTree  # (N, ...), or a pytree of such arrays
    targets: PyTree  # the same: an array like the model's outputs, or (N,) labels; None for a ModelLoss that needs none
    sample_weight: Array  # (N,) float32 or float64, >= 0, relative to each other

    def __repr__(self) -> str:
        """Return the dtypes and shapes in one line."""
        parts = {name: tree for name, tree in self._asdict().items() if tree is not None}
        return f"Dataset({', '.join(f'{name}={_shapes(tree)}' for name, tree in parts.items())})"


class Batch(NamedTuple):
    """A batch of examples, and padding up to the batch size."""

    inputs: PyTree  # (B, ...), or a pytree of such arrays
    targets: PyTree  # the same, or None
    sample_weight: Array  # (B,); 0 for padding
    mask: Array  # (B,) bool; False for padding


class Variables(NamedTuple):
    """The arrays of a model that a prediction needs."""

    params: PyTree  # the arrays that the optimizer updates
    stats: PyTree  # the moving mean and variance of BatchNorm; {} for a model without

    def __repr__(self) -> str:
        """Return the numbers of values and arrays in one line."""
        return f"Variables(params={_counts(self.params)}, stats={_counts(self.stats)})"


@runtime_checkable
class Init(Protocol):
    """Returns the initial variables of a model, from a key and one batch of inputs."""

    def __call__(self, key: Array, inputs: PyTree) -> Variables: ...


@runtime_checkable
class Apply(Protocol):
    """Returns the outputs for (B, ...) inputs and the new stats, which are the old stats unless `train` is True.

    Inputs and outputs are arrays, or pytrees of arrays whose first axis is that of the examples.

    `key` is for random layers such as dropout. `mask` (B,) bool is False for padding and for examples of weight 0,
    which must not change the stats.
    """

    def __call__(
        self, variables: Variables, inputs: PyTree, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[PyTree, PyTree]: ...


class Model(NamedTuple):
    """A network as two pure functions."""

    init: Init
    apply: Apply


@runtime_checkable
class EvalParams(Protocol):
    """Returns the parameters to evaluate, for an optimizer that trains other ones (schedule-free, SAM)."""

    def __call__(self, opt_state: PyTree, params: PyTree, /) -> PyTree: ...


class Metric(NamedTuple):
    """A metric of a whole dataset: values of each example, their weighted sums, and one number from the sums."""

    name: str
    per_example: Callable[[PyTree, PyTree], PyTree]  # (outputs, targets) -> pytree of (B, ...)
    compute: Callable[[PyTree, Array], Array]  # (weighted sums, sum of weights) -> scalar
    mode: Mode | None = None  # None: a rule that monitors this metric must set its own mode


class ModelLoss(NamedTuple):
    """A loss that calls the model itself: `losses.model_loss`."""

    # (variables, batch, key, train) -> (values (B,), outputs), or (values, outputs, new stats).
    function: Callable[[Variables, Batch, Array, bool], tuple[Any, ...]]


Loss = Callable[[PyTree, PyTree], Array]  # (outputs, targets) -> (B,), one value for each example


class Objective(NamedTuple):
    """The loss that a run minimizes, and the metrics that it computes."""

    loss: Loss | ModelLoss
    metrics: tuple[Metric, ...] = ()


class MetricSums(NamedTuple):
    """The weighted sums behind a loss and metrics, which `metrics.merge` adds and `metrics.compute` evaluates."""

    totals: PyTree  # {name: pytree of weighted sums over examples}
    weight: Array  # scalar of the loss's dtype, float32 or float64: the sum of the sample weights


class TrainState(NamedTuple):
    """The state that a training step updates."""

    step: Array  # int32 scalar, counts from 0
    variables: Variables
    opt_state: PyTree
    key: Array  # constant; the key of a step is fold_in(key, step)
    ema: Variables | tuple[()] = ()  # exponential moving average; () without `ema_decay`


class EarlyStoppingState(NamedTuple):
    """The state of early stopping."""

    best: Array  # float32 scalar, the best finite value so far
    best_epoch: Array  # int32 scalar, counts from 1; 0 before the first improvement
    epochs_without_improvement: Array  # int32 scalar
    improved: Array  # bool scalar, whether the last epoch is the best so far
    should_stop: Array  # bool scalar


class ReduceOnPlateauState(NamedTuple):
    """The state of reduce-on-plateau."""

    best: Array  # float32 scalar
    epochs_without_improvement: Array  # int32 scalar; a reduction resets it to 0
    cooldown: Array  # int32 scalar, epochs until `epochs_without_improvement` counts again
    learning_rate: Array  # float32 or float64 scalar, of the next epoch


class Rule(NamedTuple):
    """Early stopping or reduce-on-plateau: two pure functions of one monitored value per epoch."""

    monitor: str | None  # name in the history; None: val_loss, or loss without validation data
    init: Callable[..., Any]
    update: Callable[[Any, Array, Array], Any]  # (state, value, epoch from 1) -> state
    mode: Mode | None = None  # None: the mode of the monitored metric
    maximizing: Rule | None = None  # the same rule with mode="max"; a plan uses it if a higher value is better
    # (state) -> state, when a run resumes under this rule after another rule has stopped it. None: no change.
    resume: Callable[[Any], Any] | None = None


class RunState(NamedTuple):
    """The whole state of a run: a run that starts from this state continues as if it had not stopped."""

    epoch: Array  # int32 scalar, finished epochs
    cursor: Array  # int32 scalar, finished batches of the current epoch: training, then validation
    train_state: TrainState
    best: Variables  # of the best epoch so far
    stopping: EarlyStoppingState
    plateau: Any  # ReduceOnPlateauState; () without the rule
    sums: MetricSums  # of the training batches of the current epoch
    val_sums: MetricSums  # of the validation batches of the current epoch
    key: Array  # constant; key and epoch determine the shuffle permutation

    def __repr__(self) -> str:
        """Return epoch, cursor and best variables in one line."""
        return f"RunState(epoch={_value(self.epoch)}, cursor={_value(self.cursor)}, best={self.best!r})"


class Plan(NamedTuple):
    """The configuration of a run: functions and constants, hashable, so that it is a static argument of `jax.jit`."""

    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    batch_size: int
    early_stopping: Rule
    plateau: Rule | None = None
    ema_decay: float | None = None  # decay per step of the moving average of the variables
    eval_params: EvalParams | None = None  # None: evaluate the trained parameters

    def __repr__(self) -> str:
        """Return loss, metrics, batch size and monitor in one line."""
        names = ", ".join(metric.name for metric in self.objective.metrics)
        loss = getattr(getattr(self.objective.loss, "function", self.objective.loss), "__name__", "loss")
        monitor = self.early_stopping.monitor
        return f"Plan(loss={loss}, metrics=({names}), batch_size={self.batch_size}, monitor={monitor!r})"


def _shape(leaf: object) -> str:
    return f"{leaf.dtype}{[*leaf.shape]}" if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else repr(leaf)


def _shapes(tree: PyTree) -> str:
    """Return the dtypes and shapes of a pytree, in its containers."""
    if isinstance(tree, dict):
        return f"{{{', '.join(f'{key!r}: {_shapes(value)}' for key, value in tree.items())}}}"
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        parts = ", ".join(f"{key}={_shapes(value)}" for key, value in zip(tree._fields, tree, strict=True))
        return f"{type(tree).__name__}({parts})"
    if isinstance(tree, (tuple, list)):
        first, last = "()" if isinstance(tree, tuple) else "[]"
        return f"{first}{', '.join(map(_shapes, tree))}{',' * (first == '(' and len(tree) == 1)}{last}"
    return _shape(tree)


def _counts(tree: PyTree) -> str:
    leaves = jax.tree.leaves(tree)
    return f"{sum(getattr(leaf, 'size', 1) for leaf in leaves):,} numbers in {len(leaves)} arrays"


def _value(leaf: object) -> str:
    """Return the value of a scalar, or the dtype and shape of a traced or batched array."""
    return _shape(leaf) if isinstance(leaf, jax.core.Tracer) or getattr(leaf, "shape", None) else str(leaf)


History = list[dict[str, Any]]  # one record per epoch
SETS = ("train", "validation", "test")
LOSS = "loss"


class Stop(NamedTuple):
    """The result of a hook that ends the run."""

    reason: str  # becomes the `reason` of the result


Hook = Callable[[Any, Any], Any]  # (state, history or metrics) -> Stop(...), to end the run, or None


class Callback(NamedTuple):
    """The functions that a run calls between two calls of the device, each of which may be left out.

    Each takes the run state and the history: the records of all epochs so far, the last of which is new after an epoch.
    `on_steps` takes the metrics of the unfinished epoch in place of the history. Each may return `Stop("reason")` to
    end the run, except `on_train_end`, after which nothing is left to stop. Call a Callback as a function to call its
    `on_epoch_end`.
    """

    on_train_begin: Hook | None = None  # before the first step of this call of `fit`
    on_steps: Hook | None = None  # as often as `every_steps` or `every_seconds` asks for
    on_epoch_end: Hook | None = None  # after validation and the rules
    on_train_end: Hook | None = None  # once, however the run ends
    every_steps: int | None = None  # after every step of training whose number in the run is a multiple of it
    every_seconds: float | None = None  # after the first call of the device that ends so long after the last `on_steps`
    # A state of numbers, strings, lists and dicts of them, which a run that resumes gives back under this name.
    name: str = ""
    state_dict: Callable[[], Any] | None = None  # () -> state
    load_state_dict: Callable[[Any], None] | None = None  # called with the state before `on_train_begin`
    after: tuple[Any, ...] = ()  # callbacks that must stand before this one in the list, because it saves their state

    def __call__(self, run_state: Any, history: Any) -> Any:
        """Call `on_epoch_end`."""
        return None if self.on_epoch_end is None else self.on_epoch_end(run_state, history)


# A context manager is entered when the run begins and left when it ends.
CallbackLike = Callback | Hook | AbstractContextManager[Any]


class Checkpoint(NamedTuple):
    """The contents of a checkpoint."""

    arrays: dict[str, np.ndarray]  # by name, from `flatten_named`
    about: dict[str, Any]  # the metadata of `checkpointer`, the `kinds` of the run state, and the `history`
    number: int
