"""Many runs that differ in their seed alone, in one call and one compiled function."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdl._checks import check_callbacks, check_choice, check_examples, check_platform, explain_calls
from jaxdl._environment import enable_compilation_cache
from jaxdl.data.arrays import with_class_weight
from jaxdl.data.streaming import Loader
from jaxdl.ensembles.members import Method, best_and_final, most_devices, run_members, shard_members, start_members
from jaxdl.errors import InputError
from jaxdl.losses import check_labels
from jaxdl.train import make_plan
from jaxdl.train.fit import (
    callback_states,
    check_limits,
    check_seed,
    end_at_pause,
    warn_of_eval_params,
    without_best,
)
from jaxdl.train.hooks import Chunk, LoopResult, open_hooks
from jaxdl.train.loop import SECONDS, WHOLE, AdaptiveSteps, chunks, prepare_data, run_loop
from jaxdl.train.plan import NEVER
from jaxdl.train.resume import data_of_epoch, read_run, resume
from jaxdl.types import (
    Array,
    CallbackLike,
    Checkpoint,
    Dataset,
    EvalParams,
    Loss,
    Metric,
    Model,
    ModelLoss,
    Plan,
    Rule,
    RunState,
    Variables,
)

if TYPE_CHECKING:
    import pandas as pd


Record = dict[str, np.ndarray]


class SeedsResult(NamedTuple):
    """The result of many runs; a member is the position of its seed, from 0."""

    history: pd.DataFrame  # a row for each member and epoch: `member`, `epoch`, and a column for each value
    best: Variables  # of leaves (M, ...), of each member's best epoch
    final: Variables  # of leaves (M, ...)
    best_epochs: np.ndarray  # (M,) int32, from 1; 0 where no epoch was the best, and `best` holds the final variables
    # Why each run ended: "epochs", "early-stopping", "max-minutes", "interrupted", or the reason of a `Stop`.
    reasons: tuple[str, ...]
    state: RunState  # the state of all members, without their records
    records: Sequence[Record] = ()  # of all members together: the values of each epoch, arrays (M,), and its number
    data: str = ""  # the batch size and the checksum of the data of an unfinished epoch; empty between two epochs
    callback_states: dict[str, Any] | None = None  # of the callbacks that have a state, by name

    def __repr__(self) -> str:
        """Return one line: the table and the arrays would fill many screens."""
        reasons = ", ".join(f"{self.reasons.count(each)} {each}" for each in dict.fromkeys(self.reasons))
        return f"SeedsResult({len(self.reasons)} members, {len(self.history)} epochs in all, reasons: {reasons})"


@explain_calls
def fit_seeds(
    model: Model,
    loss: Loss | ModelLoss,
    optimizer: optax.GradientTransformation,
    train: Dataset,
    validation: Dataset | None = None,
    *,
    metrics: Sequence[Metric] = (),
    seeds: Sequence[int] | None = None,
    epochs: int | None = None,
    batch_size: int = 32,
    class_weight: Mapping[int, float] | Sequence[float] | None = None,
    early_stopping: Rule = NEVER,
    plateau: Rule | None = None,
    ema_decay: float | None = None,
    eval_params: EvalParams | None = None,
    method: Method = "vmap",
    callbacks: Iterable[CallbackLike] = (),
    state: SeedsResult | Checkpoint | RunState | None = None,
    max_minutes: float | None = None,
) -> SeedsResult:
    """Train one network for each seed, as `fit(..., seed=seed)` does, until all runs have ended.

    A member that stops early keeps its state while the others continue; a member with a NaN harms no other. The members
    are sharded over as many of the process's devices as divide them evenly; a CPU is one device unless JAX is
    configured otherwise before it starts, as by `jax.config.update("jax_num_cpu_devices", 2)`. Ctrl-C, or the stop
    button of a notebook, ends all runs, and `fit_seeds(..., state=result)` resumes them, bit-identical to runs that
    were not interrupted.

    method: "vmap" trains the members in batches, and rounds differently than `fit`; "map" trains them one after the
        other, bit-identical to `fit` (on several devices, not for BatchNorm, which XLA rounds otherwise there). On a
        CPU neither is much faster for small dense networks; for convolutional networks "map" is.
    class_weight: as for `fit`.
    seeds: 0 to 15 by default; with a state, the seeds with which the runs began.
    epochs: the epochs of each run; 10, or without limit where `max_minutes` is given.
    callbacks: as for `fit`, with the state of all members; a value of a record, and of the metrics of `on_steps`, is an
        array (M,). A `Stop` ends all runs. With `saving.checkpointer`, the runs can be resumed after a crash.
    max_minutes: the wall time of this call, as for `fit`.
    state: earlier runs of the same seeds to resume, as for `fit`: the result of `fit_seeds`, or of
        `saving.restore_latest`; their records precede the new ones. A bare RunState has no records. Members that
        stopped at different epochs and resume all reach `epochs`.

    Warns where a member has no best epoch, as `fit` does. Raises InputError for arguments that do not fit together.

    >>> from jaxdl import dataset, losses, metrics, mlp
    >>> inputs = np.linspace(-1, 1, 64)[:, None]
    >>> data = dataset(inputs, 3 * inputs)
    >>> loss, optimizer = losses.squared_error, optax.sgd(0.1)
    >>> runs = fit_seeds(mlp(()), loss, optimizer, data, metrics=[metrics.rmse], seeds=(0, 1, 2), epochs=40)
    >>> runs.history.groupby("member")["rmse"].last().shape, runs.reasons
    ((3,), ('epochs', 'epochs', 'epochs'))
    """
    began = time.monotonic()
    epochs, _, max_minutes = check_limits(epochs, None, max_minutes)
    check_choice("method", method, ("vmap", "map"))
    callbacks = check_callbacks(callbacks)
    check_platform()
    enable_compilation_cache()
    keys = None if seeds is None else seed_keys(seeds)
    if class_weight is not None:
        train = with_class_weight(train, class_weight)
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
    loader, validation = prepare_data(plan, train, validation)
    check_labels(model, loss, loader.first, validation)

    count = _count_members(state)
    init = partial(start_members, seed_keys(range(count)) if keys is None else keys, loader.first, validation)
    earlier, records = read_run(state, partial(init, plan=plan), SeedsResult)
    if earlier is None:
        run_state = init(plan=plan)
    else:
        _check_members(earlier, keys)
        run_state = resume(plan, earlier, loader, validation, records, getattr(state, "data", ""))
    warn_of_eval_params(plan, run_state)

    devices = most_devices(len(run_state.epoch))
    run_state, examples, validation = shard_members(run_state, loader.examples, validation, devices=devices)
    run, until = partial(run_members, method=method), chunks if earlier is None else _chunks_of_all
    data = replace(loader, examples=examples)
    result, deadline = LoopResult(run_state, records), began + 60 * (max_minutes or math.inf)
    try:
        with open_hooks(callbacks, result, callback_states(state)) as hooks:
            steps = AdaptiveSteps(hooks.seconds(SECONDS), pause=lambda: time.monotonic() >= deadline)
            options: dict[str, Any] = {"steps": steps, "run": run, "end_after": hooks.every_steps}
            parts = until(plan, run_state, data, validation, last=WHOLE if epochs is None else epochs, **options)
            run_loop(parts, result, hooks=hooks, is_last=partial(end_at_pause, result))
    except KeyboardInterrupt:
        result.reason = "interrupted"

    runs = _result(result.state, records, result.reason or "epochs", eval_params)
    runs = runs._replace(callback_states=result.callback_states)
    if result.reason:
        runs = runs._replace(data=data_of_epoch(result.state, loader))
    without = np.flatnonzero(runs.best_epochs == 0)
    if len(without) and len(runs.history):
        names = f"members {', '.join(map(str, without))} of {len(runs.best_epochs)}"
        warnings.warn(without_best(plan, validation, names), RuntimeWarning, stacklevel=3)
    return runs


def _chunks_of_all(
    plan: Plan, state: RunState, train: Loader, validation: Dataset | None, *, last: int, **options: Any
) -> Iterator[Chunk]:
    """Yield the chunks of resumed runs until each member has reached the epoch `last` or its rule has stopped it.

    The members may be at different epochs, because one that had stopped early may train again. All share the cursor,
    so a member that did not train in the current epoch waits for its end.
    """
    inside = int(state.cursor) > 0
    while True:
        epochs, should_stop = np.asarray(state.epoch), np.asarray(state.stopping.should_stop)
        trains = ~should_stop & (epochs < last)
        if inside:
            unfinished = np.asarray(state.sums.weight).reshape(len(epochs), -1).any(1)
            trains &= unfinished | ~unfinished.any()
        if not trains.any():
            return
        behind, waits = np.where(trains, epochs.max() - epochs, 0), ~should_stop & ~trains
        end = int(epochs.max()) + (1 if inside and waits.any() else last - int(epochs[trains].max()))
        part = _with_should_stop(state, state.stopping.should_stop | waits) if waits.any() else state
        for chunk in chunks(plan, part, train, validation, last=end, **options):
            if waits.any():
                state = _with_should_stop(chunk.state, chunk.state.stopping.should_stop & ~waits)
                chunk = chunk._replace(state=state)
            else:
                state = chunk.state
            if chunk.record is not None and behind.any():
                chunk = chunk._replace(record={**chunk.record, "epoch": chunk.record["epoch"] - behind})
            yield chunk
        if not behind.any() and not waits.any():
            return
        inside = False


def _with_should_stop(run_state: RunState, should_stop: Array) -> RunState:
    return run_state._replace(stopping=run_state.stopping._replace(should_stop=should_stop))


def _count_members(state: object) -> int:
    """Return the members of a checkpoint; 16 without one."""
    if not isinstance(state, Checkpoint):
        return 16
    shape = state.about["kinds"]["epoch"][1]
    if len(shape) != 1:
        raise InputError("state must be that of fit_seeds, got that of a single run. Continue it with fit.")
    return int(shape[0])


def _check_members(run_state: RunState, keys: Array | None) -> None:
    """Raise InputError for the state of a single run, and for that of other seeds than those of the keys."""
    if run_state.epoch.ndim != 1:
        raise InputError("state must be that of fit_seeds, got that of a single run. Continue it with fit.")
    if keys is None:
        return
    if run_state.epoch.shape != keys.shape:
        raise InputError(f"state must be that of {len(keys)} seeds, got one of shape {run_state.epoch.shape}.")
    orders = jax.vmap(lambda key: jax.random.split(key, 3)[2])(keys)  # as `start` splits them
    if not np.array_equal(jax.random.key_data(orders), jax.random.key_data(run_state.key)):
        raise InputError("state is that of other seeds. Leave seeds out to continue it.")


def _result(run_state: RunState, records: list[Record], reason: str, eval_params: EvalParams | None) -> SeedsResult:
    """Return the result of runs; `reason`: why those ended that their rule did not stop."""
    epochs, best_epochs, stopped = map(
        np.asarray, (run_state.epoch, run_state.stopping.best_epoch, run_state.stopping.should_stop)
    )
    best, final = best_and_final(run_state, best_epochs, eval_params)
    reasons = tuple(member_reason(each, reason) for each in stopped)
    records = [record for record in records if (record["epoch"] <= epochs).any()]
    return SeedsResult(as_table(records, epochs), best, final, best_epochs, reasons, run_state, records)


def member_reason(stopped: bool, reason: str) -> str:
    """Return why one of many runs ended: its own rule, else the reason of all."""
    return "early-stopping" if stopped else reason


def seed_keys(seeds: Sequence[int]) -> Array:
    """Return the key of each seed, (M,), as `fit` makes it. Raises InputError for what is no sequence of seeds."""
    if isinstance(seeds, str) or np.ndim(seeds) != 1 or not len(seeds) or np.asarray(seeds).dtype.kind not in "iu":
        raise InputError(f"seeds must be a row of at least one whole number, got {seeds!r}. Use range(16), say.")
    for seed in seeds:
        check_seed(seed)
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def as_table(records: Sequence[Record], epochs: np.ndarray) -> pd.DataFrame:
    """Return records of (M,) arrays as a DataFrame: a row for each member and epoch that the member has trained.

    epochs: (M,) the epochs of each member. The epoch of a record is a number, or an array (M,) where members differ.
    """
    # Imported here: `import jaxdl` must not cost what pandas costs.
    import pandas as pd

    rows = []
    for index, end in enumerate(epochs):
        by_epoch = {}
        for record in records:
            row = {name: value[index] if np.ndim(value) else value for name, value in record.items()}
            # A member that stopped and was resumed later has a record of NaN, and then the right one, of an epoch.
            by_epoch[int(row["epoch"])] = {"member": index, **row}
        rows += [by_epoch[epoch] for epoch in sorted(by_epoch) if epoch <= end]
    return pd.DataFrame(rows, columns=None if rows else ["member", "epoch"])
