"""The learning-rate range test: a short training in which the learning rate grows with every step."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdl._jit import jit
from jaxdl.data.batches import batches_of, training_rows
from jaxdl.errors import InputError
from jaxdl.train.epoch import batches_of_epoch
from jaxdl.train.plan import check_rows, rate_to_change, with_learning_rate
from jaxdl.train.step import plan_step
from jaxdl.types import LOSS, Array, Dataset, Plan, RunState, TrainState


class LearningRateScan(NamedTuple):
    """The result of a range test."""

    rates: np.ndarray  # (steps,) float32, ascending
    losses: np.ndarray  # (steps,) float32, of each batch before its update; nan or infinity once training has diverged


def find_learning_rate(
    plan: Plan, run_state: RunState, train: Dataset, *, low: float = 1e-6, high: float = 1.0, steps: int = 100
) -> LearningRateScan:
    """Train `steps` batches with a learning rate that grows from `low` to `high` by the same factor every step.

    `run_state` is not changed. The batches are those of its next epochs, each from its first batch. It means

        for index, rate in enumerate(np.geomspace(low, high, steps)):
            epoch, number = divmod(index, batches)
            batch = batches_of(train, run_state.key, run_state.epoch + epoch, plan.batch_size)(number)
            state = state._replace(opt_state=with_learning_rate(state.opt_state, np.float32(rate)))
            state, sums = step(state, batch)
            keep(rate, sums.totals["loss"] / sums.weight)  # of the batch before its update

    Compiles once, whatever `low` and `high`. Raises InputError where they are not 0 < low < high, for fewer than 2
    steps, and for an optimizer without one learning rate in its state (use `optax.inject_hyperparams`).

    Source: Smith, Cyclical Learning Rates for Training Neural Networks (2017), section 3.3, where it grows linearly.
    """
    if not 0 < low < high < np.inf:
        raise InputError(f"low and high must be 0 < low < high, got low={low} and high={high}. Try 1e-6 and 1.")
    if steps < 2:
        raise InputError(f"steps must be at least 2, got {steps}. Try 100.")
    check_rows(plan, train, None)
    rate_to_change(run_state.train_state.opt_state, caller="find_learning_rate")
    rates = np.geomspace(low, high, steps).astype(np.float32)
    losses = _losses(run_state, jax.tree.map(jnp.asarray, training_rows(train)), jnp.asarray(rates), plan=plan)
    return LearningRateScan(rates, np.asarray(losses))


@partial(jit, static_argnames="plan")
def _losses(run_state: RunState, train: Dataset, rates: Array, *, plan: Plan) -> Array:
    step = plan_step(plan, prepared=True)
    batches, _ = batches_of_epoch(plan, train, None)

    def body(state: TrainState, at: tuple[Array, Array]) -> tuple[TrainState, Array]:
        index, rate = at
        batch = batches_of(train, run_state.key, run_state.epoch + index // batches, plan.batch_size, mask=False)
        state = state._replace(opt_state=with_learning_rate(state.opt_state, rate))
        state, sums = step(state, batch(index % batches))
        return state, (sums.totals[LOSS] / sums.weight).astype(jnp.float32)

    return lax.scan(body, run_state.train_state, (jnp.arange(len(rates), dtype=jnp.int32), rates))[1]


def smoothed(scan: LearningRateScan) -> np.ndarray:
    """Return the losses (steps,) averaged over their neighbours, up to a twentieth of the steps on either side.

    NaN from the first loss that is not finite, because training has diverged there.
    """
    losses = np.asarray(scan.losses, np.float64)
    end = int(np.argmin(np.isfinite(losses))) if not np.isfinite(losses).all() else len(losses)
    reach = len(losses) // 20
    means = [losses[max(0, index - reach) : min(end, index + reach + 1)].mean() for index in range(end)]
    return np.array([*means, *[np.nan] * (len(losses) - end)])


def suggestion(scan: LearningRateScan) -> float:
    """Return the learning rate where the smoothed loss falls fastest, by log rate; NaN where it never falls.

    A rule of thumb for the order of magnitude to try first. Only rates below that of the lowest loss count, because
    training diverges soon after. The suggestion depends on the batches and on the initial variables.
    """
    means = smoothed(scan)
    if np.isnan(means).all():
        return float("nan")
    falling = means[: int(np.nanargmin(means)) + 1]
    if len(falling) < 2:
        return float("nan")
    slopes = np.gradient(falling)
    return float(scan.rates[int(np.argmin(slopes))]) if slopes.min() < 0 else float("nan")
