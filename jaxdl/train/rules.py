"""Early stopping and reduce-on-plateau, each as a record of two pure functions.

Both follow Keras's callbacks of the same purpose epoch by epoch, except that a value that is not finite never counts
as an improvement. They compare values in float32, in which records hold them, and run under jit, vmap and scan.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxdl._checks import check_name, explain_calls, number, whole_number
from jaxdl._values import as_value
from jaxdl.data.arrays import precision
from jaxdl.errors import InputError
from jaxdl.types import Array, EarlyStoppingState, Mode, ReduceOnPlateauState, Rule

MAX_PATIENCE = 2**31 - 1  # epochs are counted in int32
_SIGNS = {"min": 1.0, "max": -1.0}


def _sign(mode: Mode | None) -> float:
    if mode is not None and mode not in _SIGNS:
        raise InputError(
            f'mode must be "min" or "max", got "{mode}". Leave it out to take the direction of the metric.'
        )
    return _SIGNS[mode or "min"]


@as_value
@explain_calls
def early_stopping(
    monitor: str | None = None,
    *,
    patience: int | None = 0,
    min_delta: float = 0.0,
    mode: Mode | None = None,
    start_from_epoch: int = 0,
    baseline: float | None = None,
) -> Rule:
    """Return a rule that stops once `monitor` has not improved for `patience` epochs, and remembers the best epoch.

    monitor: the name of a value of the record; by default `val_loss`, or `loss` of a run without validation data.
    patience: epochs without improvement; None never stops and only remembers the best epoch.
    min_delta: the least improvement that counts, exclusive.
    mode: "min" where a lower value is better, "max" where a higher one is. None, the default, takes the direction of
        the monitored metric ("min" for the loss): `make_plan` looks it up, and refuses a mode that contradicts it. A
        metric of unknown direction needs a mode. Without a plan, None means "min".
    start_from_epoch: the first epochs, which are ignored.
    baseline: an improvement resets the patience only where it also beats this value.

    A run that this or another rule has ended resumes where its epochs without improvement are fewer than `patience`: it
    resumes with more patience or None, and ends at once with the same rule.

    Raises InputError for a negative patience or start, and a mode that is none of "min", "max" and None.

    For values v1, v2, ... and `mode="min"` this is

        best, best_epoch, waited, should_stop = inf, 0, 0, False
        for epoch, value in enumerate(values, 1):
            if epoch <= start_from_epoch: continue
            waited += 1
            if value + min_delta < best:  # never true for nan
                best, best_epoch = value, epoch
                if baseline is None or value + min_delta < baseline: waited = 0
            elif waited >= patience and epoch > 1:
                should_stop = True
                break

    >>> rule = early_stopping(patience=2)
    >>> state = rule.init()
    >>> for epoch, value in enumerate([3.0, 1.0, 2.0, 2.0], 1):
    ...     state = rule.update(state, value, epoch)
    >>> bool(state.should_stop), int(state.best_epoch), float(state.best)
    (True, 2, 1.0)
    """
    check_name("monitor", monitor)
    sign, margin = _sign(mode), abs(number("min_delta", min_delta))
    if baseline is not None:
        number("baseline", baseline)
    if patience is not None:
        patience = whole_number("patience", patience, 0)
        if patience > MAX_PATIENCE:
            raise InputError(f"patience must be at most {MAX_PATIENCE}, got {patience}. Use None to never stop.")
    start_from_epoch = whole_number("start_from_epoch", start_from_epoch, 0)

    def init() -> EarlyStoppingState:
        zero, false = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return EarlyStoppingState(jnp.full((), sign * jnp.inf, jnp.float32), zero, zero, false, false)

    def update(state: EarlyStoppingState, value: Array, epoch: Array) -> EarlyStoppingState:
        value, epoch = jnp.asarray(value, jnp.float32), jnp.asarray(epoch, jnp.int32)
        counts = epoch > start_from_epoch
        cost = sign * value + margin
        improved = counts & jnp.isfinite(value) & (cost < sign * state.best)
        resets = improved if baseline is None else improved & (cost < sign * baseline)
        waited = jnp.where(resets, 0, state.epochs_without_improvement + counts.astype(jnp.int32))
        should_stop = state.should_stop
        if patience is not None:
            should_stop = should_stop | (counts & ~improved & (waited >= patience) & (epoch > 1))
        return EarlyStoppingState(
            best=jnp.where(improved, value, state.best),
            best_epoch=jnp.where(improved, epoch, state.best_epoch),
            epochs_without_improvement=waited,
            improved=improved,
            should_stop=should_stop,
        )

    def resume(state: EarlyStoppingState) -> EarlyStoppingState:
        if patience is None:
            return state._replace(should_stop=jnp.zeros_like(state.should_stop))
        is_out_of_patience = ~state.improved & (state.epochs_without_improvement >= patience)
        return state._replace(should_stop=state.should_stop & is_out_of_patience)

    maximizing = None
    if mode is None:
        maximizing = early_stopping(
            monitor,
            mode="max",
            patience=patience,
            min_delta=min_delta,
            start_from_epoch=start_from_epoch,
            baseline=baseline,
        )
    return Rule(monitor, init, update, mode, maximizing, resume)


@as_value
@explain_calls
def reduce_on_plateau(
    monitor: str | None = None,
    *,
    factor: float = 0.1,
    patience: int = 10,
    mode: Mode | None = None,
    min_delta: float = 1e-4,
    cooldown: int = 0,
    min_learning_rate: float = 0.0,
) -> Rule:
    """Return a rule that multiplies the learning rate by `factor` after `patience` epochs without improvement.

    monitor: the name of a value of the record; by default `val_loss`, or `loss` of a run without validation data.
    cooldown: epochs after a reduction that do not count. min_learning_rate: the lowest rate. mode: as for
    `early_stopping`. The rule's `init` takes the initial learning rate; its state holds that of the next epoch.

    Raises InputError for a factor that is not between 0 and 1, a negative patience or cooldown, and a mode that is none
    of "min", "max" and None.

    For values v1, v2, ... and `mode="min"` this is

        best, waited, cool = inf, 0, 0
        for value in values:
            if cool > 0: cool, waited = cool - 1, 0
            if value + min_delta < best: best, waited = value, 0
            elif cool == 0:
                waited += 1
                if waited >= patience and rate > min_learning_rate:
                    rate, cool, waited = max(rate * factor, min_learning_rate), cooldown, 0

    >>> rule = reduce_on_plateau(factor=0.5, patience=1)
    >>> state = rule.init(jnp.float32(0.1))
    >>> for epoch, value in enumerate([1.0, 1.0], 1):
    ...     state = rule.update(state, value, epoch)
    >>> round(float(state.learning_rate), 3)
    0.05
    """
    check_name("monitor", monitor)
    sign, margin = _sign(mode), abs(number("min_delta", min_delta))
    number("min_learning_rate", min_learning_rate)
    patience, cooldown = whole_number("patience", patience, 0), whole_number("cooldown", cooldown, 0)
    if not 0 < number("factor", factor) < 1:
        raise InputError(f"factor must lie between 0 and 1, got {factor}.")

    def init(learning_rate: Array) -> ReduceOnPlateauState:
        zero = jnp.zeros((), jnp.int32)
        rate = jnp.asarray(learning_rate)
        return ReduceOnPlateauState(
            jnp.full((), sign * jnp.inf, jnp.float32), zero, zero, rate.astype(precision(rate.dtype))
        )

    def update(state: ReduceOnPlateauState, value: Array, epoch: Array) -> ReduceOnPlateauState:
        value = jnp.asarray(value, jnp.float32)
        cooldown_left = jnp.maximum(state.cooldown - 1, 0)
        improved = jnp.isfinite(value) & (sign * value + margin < sign * state.best)
        counts = ~improved & (cooldown_left == 0)
        waited = jnp.where(counts, jnp.where(state.cooldown > 0, 0, state.epochs_without_improvement) + 1, 0)
        dtype = state.learning_rate.dtype.type
        reduce = counts & (waited >= patience) & (state.learning_rate > dtype(min_learning_rate))
        lower_rate = jnp.maximum(state.learning_rate * dtype(factor), dtype(min_learning_rate))
        return ReduceOnPlateauState(
            best=jnp.where(improved, value, state.best),
            epochs_without_improvement=jnp.where(reduce, 0, waited),
            cooldown=jnp.where(reduce, jnp.int32(cooldown), cooldown_left),
            learning_rate=jnp.where(reduce, lower_rate, state.learning_rate),
        )

    maximizing = None
    if mode is None:
        maximizing = reduce_on_plateau(
            monitor,
            mode="max",
            factor=factor,
            patience=patience,
            min_delta=min_delta,
            cooldown=cooldown,
            min_learning_rate=min_learning_rate,
        )
    return Rule(monitor, init, update, mode, maximizing)
