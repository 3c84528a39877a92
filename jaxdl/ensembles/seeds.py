"""`fit_seeds`: many runs that differ in their seed alone, in one call and one program."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdl._checks import check_callbacks, check_choice, check_examples, check_platform, explain_calls, whole_number
from jaxdl.data.streaming import Loader
from jaxdl.ensembles.members import Method, best_and_final, most_devices, run_members, shard_members, start_members
from jaxdl.errors import InputError
from jaxdl.losses import check_labels
from jaxdl.train import make_plan
from jaxdl.train.fit import (
    check_data,
    check_seed,
    data_of_epoch,
    resume,
    resumed,
    under_new_monitor,
    warn_of_eval_params,
    without_best,
)
from jaxdl.train.loop import Chunk, Pace, Reached, Run, checked, chunks, run_loop
from jaxdl.train.plan import NEVER
from jaxdl.types import Array, Checkpoint, Dataset, EvalParams, Loss, Metric, Model, Plan, Rule, RunState, Variables

if TYPE_CHECKING:
    import pandas as pd


Record = dict[str, np.ndarray]


class SeedsResult(NamedTuple):
    """What many runs leave; a member is the position of its seed, from 0."""

    history: pd.DataFrame  # a row for each member and epoch that it did: `member`, `epoch`, and a column a figure
    best: Variables  # of leaves (M, ...), of each member's best epoch
    final: Variables  # of leaves (M, ...)
    best_epochs: np.ndarray  # (M,) int32, from 1; 0 where no epoch was the best, and `best` holds the final weights
    reasons: tuple[str, ...]  # why each run ended: "epochs", "early-stopping" or "interrupted"
    state: RunState  # the state of all members, without their records
    records: Sequence[Record] = ()  # of all members together: the values of each epoch, arrays (M,), and its number
    data: str = ""  # what the rows of the epoch under way are told by; empty between two epochs

    def __repr__(self) -> str:
        """Return one line: the table and the arrays would fill many screens."""
        reasons = ", ".join(f"{self.reasons.count(each)} {each}" for each in dict.fromkeys(self.reasons))
        return f"SeedsResult({len(self.reasons)} members, {len(self.history)} epochs in all, reasons: {reasons})"


@explain_calls
def fit_seeds(
    model: Model,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    train: Dataset,
    validation: Dataset | None = None,
    *,
    metrics: Sequence[Metric] = (),
    seeds: Sequence[int] | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    early_stopping: Rule = NEVER,
    plateau: Rule | None = None,
    ema_decay: float | None = None,
    eval_params: EvalParams | None = None,
    method: Method = "vmap",
    callbacks: Iterable[Callable[[RunState, list[Record]], None]] = (),
    state: SeedsResult | Checkpoint | RunState | None = None,
) -> SeedsResult:
    """Trains one network a seed, each as `fit(..., seed=seed)` would, until all have ended.

    A member that stops early keeps what it has while the others go on; one that meets nan harms no other. They are
    spread over as many of the process's devices as share them evenly; a CPU is one device unless JAX is told otherwise
    before it starts, as by `jax.config.update("jax_num_cpu_devices", 2)`. Ctrl-C, or the stop button of a notebook,
    ends all, and `fit_seeds(..., state=result)` resumes them, to the bits of runs that were not interrupted.

    method: "vmap" trains the members in batches, and rounds differently than `fit`; "map" trains them one after the
        other, with the bits of `fit` (on several devices, not of BatchNorm, which XLA rounds otherwise there). On a CPU
        neither is much faster for small dense networks; for ConvNets "map" is.
    seeds: 0 to 15 by default; with a state, those that it was begun with.
    callbacks: functions `(state, records) -> None`, called after every epoch with the records of all epochs so far;
        a value of a record is an array (M,). With `saving.checkpointer` for one, the runs can be resumed after a crash.
    state: earlier runs of the same seeds to resume, as for `fit`: the result of `fit_seeds`, or what
        `saving.restore_latest` returns; their records stand before the new ones. Those of a bare RunState are not
        known.
        Members that had stopped at different epochs and train on all reach `epochs`.

    Warns where a member has no best epoch, as `fit` does. Raises InputError for arguments that do not fit together.

    >>> from jaxdl import dataset, losses, metrics, mlp
    >>> inputs = np.linspace(-1, 1, 64)[:, None]
    >>> data = dataset(inputs, 3 * inputs)
    >>> loss, optimizer = losses.squared_error, optax.sgd(0.1)
    >>> runs = fit_seeds(mlp(()), loss, optimizer, data, metrics=[metrics.rmse], seeds=(0, 1, 2), epochs=40)
    >>> runs.history.groupby("member")["rmse"].last().shape, runs.reasons
    ((3,), ('epochs', 'epochs', 'epochs'))
    """
    epochs = whole_number("epochs", epochs, 1)
    check_choice("method", method, ("vmap", "map"))
    callbacks = check_callbacks(callbacks)
    check_platform()
    keys = None if seeds is None else seed_keys(seeds)
    plan = make_plan(
        model,
        loss,
        optimizer,
        metrics=metrics,
        batch_size=batch_size,
        early_stopping=early_stopping,
        plateau=plateau,
        ema_decay=ema_decay,
        eval_params=eval_params,
    )
    check_examples("train", train)
    rows, validation = checked(plan, train, validation)
    check_labels(model, loss, rows.first, validation)
    count = 16
    if isinstance(state, Checkpoint):
        shape = state.about["kinds"]["epoch"][1]
        if len(shape) != 1:
            raise InputError("state must be that of fit_seeds, got that of a single run. Continue it with fit.")
        count = shape[0]
    begun = seed_keys(range(count)) if keys is None else keys
    earlier, records = resumed(state, lambda: start_members(begun, rows.first, validation, plan=plan), SeedsResult)
    if earlier is None:
        run_state = start_members(begun, rows.first, validation, plan=plan)
    else:
        _check_members(earlier, keys)
        run_state = under_new_monitor(plan, resume(plan, earlier, rows, validation), records)
        check_data(plan, run_state, rows, getattr(state, "data", ""))
    warn_of_eval_params(plan, run_state)
    run_state, examples, validation = shard_members(
        run_state, rows.examples, validation, devices=most_devices(len(run_state.epoch))
    )
    run, reached, ends = partial(run_members, method=method), Reached(run_state, records), "epochs"
    until = chunks if earlier is None else _until_all
    try:
        pieces = until(
            plan, run_state, replace(rows, examples=examples), validation, last=epochs, steps=Pace(), run=run
        )
        run_loop(pieces, reached, callbacks=callbacks)
    except KeyboardInterrupt:
        ends = "interrupted"
    run_state = reached.state
    fits = _fits(run_state, records, ends, eval_params)
    if ends == "interrupted":
        fits = fits._replace(data=data_of_epoch(plan, run_state, rows))
    without = np.flatnonzero(fits.best_epochs == 0)
    if len(without) and len(fits.history):
        which = f"members {', '.join(map(str, without))} of {len(fits.best_epochs)}"
        warnings.warn(without_best(plan, validation, which), RuntimeWarning, stacklevel=3)
    return fits


def _until_all(
    plan: Plan, state: RunState, rows: Loader, validation: Dataset | None, *, last: int, steps: Pace, run: Run
) -> Iterator[Chunk]:
    """Yield the chunks of the runs until each member has done the epoch `last` or has been stopped by its rule.

    Members of one progress need not be at the same epoch: one that had stopped early may train on. All share the place
    inside the epoch, so a member that stood still waits where the others are inside of one.
    """
    inside = int(state.cursor) > 0
    while True:
        epochs, over = np.asarray(state.epoch), np.asarray(state.stopping.should_stop)
        trains = ~over & (epochs < last)
        if inside:
            under_way = np.asarray(state.sums.weight).reshape(len(epochs), -1).any(1)
            trains &= under_way | ~under_way.any()
        if not trains.any():
            return
        behind, waits = np.where(trains, epochs.max() - epochs, 0), ~over & ~trains
        end = int(epochs.max()) + (1 if inside and waits.any() else last - int(epochs[trains].max()))
        here = _standing(state, state.stopping.should_stop | waits) if waits.any() else state
        for chunk in chunks(plan, here, rows, validation, last=end, steps=steps, run=run):
            if waits.any():
                state = _standing(chunk.state, chunk.state.stopping.should_stop & ~waits)
                chunk = chunk._replace(state=state)
            else:
                state = chunk.state
            if chunk.record is not None and behind.any():
                chunk = chunk._replace(record={**chunk.record, "epoch": chunk.record["epoch"] - behind})
            yield chunk
        if not behind.any() and not waits.any():
            return
        inside = False


def _standing(run_state: RunState, which: Array) -> RunState:
    return run_state._replace(stopping=run_state.stopping._replace(should_stop=which))


def _check_members(run_state: RunState, keys: Array | None) -> None:
    """Raise InputError for the progress of a single run, and for that of other seeds than those of the keys."""
    if run_state.epoch.ndim != 1:
        raise InputError("state must be that of fit_seeds, got that of a single run. Continue it with fit.")
    if keys is None:
        return
    if run_state.epoch.shape != keys.shape:
        raise InputError(f"state must be that of {len(keys)} seeds, got one of shape {run_state.epoch.shape}.")
    orders = jax.vmap(lambda key: jax.random.split(key, 3)[2])(keys)  # as `training.start` draws them
    if not np.array_equal(jax.random.key_data(orders), jax.random.key_data(run_state.key)):
        raise InputError("progress is that of other seeds. Leave seeds out to continue it.")


def _fits(run_state: RunState, records: list[Record], ends: str, eval_params: EvalParams | None) -> SeedsResult:
    done, best_epochs, stopped = map(
        np.asarray, (run_state.epoch, run_state.stopping.best_epoch, run_state.stopping.should_stop)
    )
    best, final = best_and_final(run_state, best_epochs, eval_params)
    reasons = tuple(reason_of(over, ends) for over in stopped)
    records = [record for record in records if (record["epoch"] <= done).any()]
    return SeedsResult(as_table(records, done), best, final, best_epochs, reasons, run_state, records)


def reason_of(stopped: bool, otherwise: str) -> str:
    """Why one of many runs ended: its own rule, else what ended them all."""
    return "early-stopping" if stopped else otherwise


def seed_keys(seeds: Sequence[int]) -> Array:
    """The key of each seed, (M,), the one that `fit` draws with.

    Raises InputError for what is no row of seeds.
    """
    if isinstance(seeds, str) or np.ndim(seeds) != 1 or not len(seeds) or np.asarray(seeds).dtype.kind not in "iu":
        raise InputError(f"seeds must be a row of at least one whole number, got {seeds!r}. Use range(16), say.")
    for seed in seeds:
        check_seed(seed)
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def as_table(records: Sequence[Record], done: np.ndarray) -> pd.DataFrame:
    """Records of (M,) arrays as a DataFrame, a row for each member and epoch, without what members did not do.

    done: (M,) the epochs that each has done. The epoch of a record is a number, or an array (M,) where members differ.
    """
    # Imported here: `import jaxdl` must not cost what pandas costs.
    import pandas as pd

    rows = []
    for index, end in enumerate(done):
        of = {}
        for record in records:
            row = {name: value[index] if np.ndim(value) else value for name, value in record.items()}
            # Of a member that stopped and trains on later, the record of an epoch follows one in which it stood still.
            of[int(row["epoch"])] = {"member": index, **row}
        rows += [of[epoch] for epoch in sorted(of) if epoch <= end]
    return pd.DataFrame(rows, columns=None if rows else ["member", "epoch"])
