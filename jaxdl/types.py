"""Every pytree and protocol of the toolkit; it imports nothing of jaxdl.

Shapes: B rows in a batch, N rows in a data set. A NamedTuple here is traced data or a record of functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import optax

Array = jax.Array
PyTree = Any
Mode = Literal["min", "max"]  # whether a lower or a higher value is better


class Dataset(NamedTuple):
    """Aligned rows of a data set or of a batch."""

    inputs: Array  # (N, ...)
    targets: Array  # (N, ...), the shape of the model's outputs, or (N,) labels
    sample_weight: Array  # (N,) float32, or float64, >= 0: what each counts, relative to the others

    def __repr__(self) -> str:
        """Return the shapes in one line: the arrays would fill a screen."""
        leaves = {name: leaf for name, leaf in self._asdict().items() if leaf is not None}
        return f"Dataset({', '.join(f'{name}={_shape(leaf)}' for name, leaf in leaves.items())})"


class Batch(NamedTuple):
    """Examples, and rows that only fill them up."""

    inputs: Array  # (B, ...)
    targets: Array  # (B, ...)
    sample_weight: Array  # (B,): 0 for padding
    mask: Array  # (B,) bool: False for padding, which is no example


class Variables(NamedTuple):
    """What a prediction needs."""

    params: PyTree  # what gradients train
    stats: PyTree  # what training only observes: BatchNorm's moving moments; {} if there are none

    def __repr__(self) -> str:
        """Return the counts in one line: the arrays would fill a screen."""
        return f"Variables(params={_counts(self.params)}, stats={_counts(self.stats)})"


@runtime_checkable
class Init(Protocol):
    """Makes the weights of a model from a key and one batch of inputs."""

    def __call__(self, key: Array, inputs: Array) -> Variables: ...


@runtime_checkable
class Apply(Protocol):
    """Outputs for (B, ...) inputs, and the stats after seeing them (unchanged where `train` is False).

    `key` draws what is random in training; `mask` (B,) bool is False for padding and for examples of weight 0, which
    must not be counted.
    """

    def __call__(
        self, variables: Variables, inputs: Array, *, train: bool, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, PyTree]: ...


class Model(NamedTuple):
    """A network as two pure functions."""

    init: Init
    apply: Apply


@runtime_checkable
class EvalParams(Protocol):
    """Gives the parameters to evaluate, where an optimizer trains at others (schedule-free, SAM)."""

    def __call__(self, opt_state: PyTree, params: PyTree, /) -> PyTree: ...


class Metric(NamedTuple):
    """A figure of a whole data set: per-row statistics that are summed, then finished once."""

    name: str
    per_example: Callable[[Array, Array], PyTree]  # (outputs, targets) -> pytree of (B, ...)
    compute: Callable[[PyTree, Array], Array]  # (weighted totals, total weight) -> scalar
    mode: Mode | None = None  # None: unknown, so a rule that monitors the metric must name its mode


Loss = Callable[[Array, Array], Array]  # (outputs, targets) -> (B,), one value for each example


class Objective(NamedTuple):
    """The loss that a run minimizes, and the metrics that it measures."""

    loss: Loss
    metrics: tuple[Metric, ...] = ()


class MetricSums(NamedTuple):
    """Weighted totals of per-row statistics; two of them are added leaf by leaf."""

    totals: PyTree  # {name: pytree of totals over rows}
    weight: Array  # scalar of the loss's dtype: float32, or float64


class TrainState(NamedTuple):
    """What a training step reads and writes."""

    step: Array  # int32 scalar, counts from 0
    variables: Variables
    opt_state: PyTree
    key: Array  # constant: the step's own key is fold_in(key, step)
    ema: Variables | tuple[()] = ()  # the exponential moving average of the variables, where one is kept


class EarlyStoppingState(NamedTuple):
    """What early stopping remembers."""

    best: Array  # float32 scalar, the best finite value so far
    best_epoch: Array  # int32 scalar, counts from 1; 0 before the first improvement
    epochs_without_improvement: Array  # int32 scalar
    improved: Array  # bool scalar, whether the last epoch was the best so far
    should_stop: Array  # bool scalar, whether training should stop


class ReduceOnPlateauState(NamedTuple):
    """What reduce-on-plateau remembers."""

    best: Array  # float32 scalar
    epochs_without_improvement: Array  # int32 scalar; a reduction starts it anew
    cooldown: Array  # int32 scalar, epochs left in which nothing is counted
    learning_rate: Array  # scalar, float32 or float64 as it was given, the one for the next epoch


class Rule(NamedTuple):
    """A rule that watches one monitored value an epoch, as two pure functions."""

    monitor: str | None  # the record's entry that it watches; None: val_loss, or loss where nothing validates
    init: Callable[..., Any]
    update: Callable[[Any, Array, Array], Any]  # (state, value, epoch from 1) -> state
    mode: Mode | None = None  # None: the direction of what the rule monitors
    maximizing: Rule | None = None  # the rule with mode="max", which a plan takes where a higher value is better
    # (state) -> state of a run that resumes under this rule, where another may have ended it; None: the state as it is.
    resume: Callable[[Any], Any] | None = None


class RunState(NamedTuple):
    """All that a run remembers."""

    epoch: Array  # int32 scalar, epochs finished
    cursor: Array  # int32 scalar, batches done in the epoch under way: of training, then of validation
    train_state: TrainState
    best: Variables  # of the best epoch so far
    stopping: EarlyStoppingState
    plateau: Any  # ReduceOnPlateauState, or () without such a rule
    sums: MetricSums  # of the training rows in the epoch under way
    val_sums: MetricSums  # of its validation rows
    key: Array  # constant: with the epoch it gives the order of rows

    def __repr__(self) -> str:
        """Return where the run stands in one line: the arrays would fill a screen."""
        return f"RunState(epoch={_value(self.epoch)}, cursor={_value(self.cursor)}, best={self.best!r})"


class Plan(NamedTuple):
    """What a run does, as functions and constants only: hashable, so one compiled program belongs to it."""

    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    batch_size: int
    early_stopping: Rule
    plateau: Rule | None = None
    ema_decay: float | None = None  # how much of itself the moving average of the variables keeps each step
    eval_params: EvalParams | None = None  # where the parameters to evaluate are others than those that are trained

    def __repr__(self) -> str:
        """Return what the run does in one line: its functions would fill several."""
        names = ", ".join(metric.name for metric in self.objective.metrics)
        loss = getattr(self.objective.loss, "__name__", "loss")
        monitor = self.early_stopping.monitor
        return f"Plan(loss={loss}, metrics=({names}), batch_size={self.batch_size}, monitor={monitor!r})"


def _shape(leaf: object) -> str:
    return f"{leaf.dtype}{[*leaf.shape]}" if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else repr(leaf)


def _counts(tree: PyTree) -> str:
    leaves = jax.tree.leaves(tree)
    return f"{sum(getattr(leaf, 'size', 1) for leaf in leaves):,} numbers in {len(leaves)} arrays"


def _value(leaf: object) -> str:
    """A scalar's value; the shape of one that is traced or belongs to many runs."""
    return _shape(leaf) if isinstance(leaf, jax.core.Tracer) or getattr(leaf, "shape", None) else str(leaf)


History = list[dict[str, Any]]  # one record an epoch
SETS = ("train", "validation", "test")
LOSS = "loss"

Callback = Callable[[RunState, list[dict[str, float]]], None]


class Checkpoint(NamedTuple):
    """What a checkpoint of a run holds."""

    arrays: dict[str, np.ndarray]  # by name, as `flatten_named` gives them
    about: dict[str, Any]  # whatever `checkpointer` was told, the `kinds` of the progress, and the `history`
    number: int
