"""A whole run in one call, new or resumed."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import optax

from jaxdl._checks import (
    check_callbacks,
    check_choice,
    check_platform,
    check_variables,
    explain_calls,
    number,
    whole_number,
)
from jaxdl._environment import enable_compilation_cache
from jaxdl.data import DataSource
from jaxdl.data.arrays import with_class_weight
from jaxdl.data.streaming import Loader
from jaxdl.distributed.sharding import agree_on_steps
from jaxdl.errors import InputError
from jaxdl.losses import check_labels
from jaxdl.train.epoch import chunk_program, draw, start_shapes
from jaxdl.train.history import as_table
from jaxdl.train.hooks import Chunk, LoopResult, open_hooks
from jaxdl.train.loop import OPTIONS, SECONDS, WHOLE, AdaptiveSteps, chunks, prepare_data, run_loop
from jaxdl.train.nonfinite import NonFiniteError, check_finite
from jaxdl.train.plan import NEVER, check_monitors, make_plan
from jaxdl.train.resume import data_of_epoch, read_run, resume
from jaxdl.train.step import eval_variables, lacks_eval_params
from jaxdl.types import (
    LOSS,
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


class FitResult(NamedTuple):
    """The result of a run."""

    records: list[dict[str, float]]  # the values of each epoch, and its number from 1
    best: Variables  # of the best epoch by the monitored value; the final ones where no epoch was the best
    final: Variables
    # Why the run ended: "epochs", "early-stopping", "max-steps", "max-minutes", "not-finite", "interrupted", or the
    # reason of the `Stop` that a callback returned.
    reason: str
    state: RunState  # the state of the run, without its records
    data: str = ""  # the batch size and the checksum of the data of an unfinished epoch; empty between two epochs
    callback_states: dict[str, Any] | None = None  # of the callbacks that have a state, by name

    def __repr__(self) -> str:
        """Return one line: the arrays would fill a screen."""
        return f"FitResult({len(self.records)} epochs, best epoch {self.best_epoch}, reason {self.reason!r})"

    @property
    def history(self) -> pd.DataFrame:
        """The records as a table, made at each access: a row for each epoch, indexed by it, a column for each value."""
        return as_table(self.records)

    @property
    def best_epoch(self) -> int:
        """The epoch of `best`, from 1; 0 where no epoch was the best, so that `best` is `final`.

        No epoch is the best where the monitored value was never finite, and where `start_from_epoch` skips all epochs.
        """
        return int(self.state.stopping.best_epoch)


@explain_calls
def fit(
    model: Model,
    loss: Loss | ModelLoss,
    optimizer: optax.GradientTransformation,
    train: Dataset | DataSource,
    validation: Dataset | None = None,
    *,
    metrics: Sequence[Metric] = (),
    epochs: int | None = None,
    batch_size: int = 32,
    class_weight: Mapping[int, float] | Sequence[float] | None = None,
    early_stopping: Rule = NEVER,
    plateau: Rule | None = None,
    ema_decay: float | None = None,
    seed: int | None = None,
    eval_params: EvalParams | None = None,
    variables: Variables | None = None,
    state: FitResult | Checkpoint | RunState | None = None,
    callbacks: Iterable[CallbackLike] = (),
    on_nan: Literal["stop", "continue"] = "stop",
    max_steps: int | None = None,
    max_minutes: float | None = None,
    validate_every: int = 1,
) -> FitResult:
    """Train a model up to the first limit: of epochs, steps or minutes, of `early_stopping`, or of a callback.

    Ctrl-C, or the stop button of a notebook, ends the run too: the result holds the last state, and
    `fit(..., state=result)` resumes it, bit-identical to a run that was not interrupted.

    loss: a function `(outputs, targets) -> (B,)`, one value for each example, or `losses.model_loss(function)`.
    train: a dataset in memory, or a DataSource (`data.memory_mapped`); the results are the same.
    epochs: the epochs of the run; 10, or without limit where `max_steps` or `max_minutes` is given.
    class_weight: a dict {class: weight}, or the weight of each class from 0, for training data with integer labels (N,)
        in memory: their sample weights are multiplied by it. Validation data stay as they are. Classes that are not
        among the keys have weight 1.
    ema_decay: such as 0.999, to evaluate and return a moving average of the variables instead of the variables.
    seed: of the initial variables, the shuffling and the randomness of training; 0 by default.
    eval_params: `(opt_state, params) -> params`, for an optimizer that is evaluated at other parameters than it trains,
        such as `optax.contrib.schedule_free_eval_params`. `fit` evaluates and returns these parameters. A known
        optimizer without this function causes a warning.
    variables: initial variables, instead of random ones.
    state: an earlier run to resume: the result of `fit`, or of `saving.restore_latest`. `epochs` includes its epochs,
        and its records precede the new ones, in the result and for the callbacks. A bare RunState resumes the same run
        without earlier records; inside an epoch it causes a warning, because it does not hold the checksum of the data.
        Leave out `seed` and `variables`, and give the same model, optimizer and metrics; inside an epoch the same batch
        size and data too. A run that stopped early resumes where `early_stopping` would not have ended it: with more
        patience, another `min_delta`, or without a rule. Where another value is monitored than before, the best epoch
        is one of the new epochs.
    callbacks: functions `(state, history)`, called after every epoch with the records of all epochs so far, `Callback`
        records with more hooks, and context managers of either, such as `callbacks.csv_log("history.csv")`, which are
        open while the run trains. A hook that returns `callbacks.Stop("reason")` ends the run with this reason, after
        the other hooks of this moment.
    on_nan: whether to stop where a variable or a loss is not finite, with a warning that names the origin. The result
        then holds the state before that step. An epoch with a NaN is never the best.
    max_steps: the training steps of the run, with those of the earlier run, also inside an epoch, which is then not
        validated; `fit(..., state=result)` resumes there.
    max_minutes: the wall time of this call, with compilation; the run ends up to a second later, also inside an epoch.
    validate_every: validate after every epoch whose number is a multiple of it, and after the last of `epochs` or
        `max_steps`. Records of other epochs have no `val_` values, and a rule that monitors one ignores these epochs.
        A run that is resumed after such a last epoch has validated once more than a run that was not interrupted.

    Warns where no epoch was the best: `best` then holds the final variables.

    Raises InputError for arguments that do not fit together.

    Calls with equal models, losses, metrics, optimizers and rules share one compiled function, so a second call starts
    at once, also where they are made anew, and with another learning rate, weight decay or momentum. Functions are
    equal where their code, closures and the globals that they name are. JAX's compilation cache on disk serves later
    processes; JAX_ENABLE_COMPILATION_CACHE=0 turns it off.

    >>> import numpy as np
    >>> from jaxdl import dataset, losses, metrics, mlp
    >>> inputs = np.linspace(-1, 1, 64)[:, None]
    >>> data = dataset(inputs, 3 * inputs)
    >>> run = fit(mlp(()), losses.squared_error, optax.sgd(0.1), data, metrics=[metrics.rmse], epochs=40)
    >>> run.reason, bool(run.history["rmse"].iloc[-1] < 0.1)
    ('epochs', True)
    """
    began = time.monotonic()
    epochs, max_steps, max_minutes = check_limits(epochs, max_steps, max_minutes)
    validate_every = whole_number("validate_every", validate_every, 1)
    seed = None if seed is None else check_seed(seed)
    check_choice("on_nan", on_nan, ("stop", "continue"))
    callbacks = check_callbacks(callbacks)
    if variables is not None:
        check_variables(variables)
    if state is not None and (seed is not None or variables is not None):
        name = "variables" if seed is None else f"seed={seed}"
        raise InputError(f"{name} has no effect beside state, which holds the variables and the keys. Leave one out.")
    check_platform()
    enable_compilation_cache()
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
    loader, validation = prepare_data(plan, train, validation)
    check_labels(model, loss, loader.first, validation)

    earlier, history = read_run(state, lambda: draw(plan, loader.first, key=jax.random.key(0)), FitResult)
    if earlier is None:
        run_state = init_state(plan, loader, validation, key=jax.random.key(seed or 0), variables=variables)
    elif earlier.epoch.ndim:
        raise InputError(f"state is that of {len(earlier.epoch)} runs. Continue them with fit_seeds.")
    else:
        run_state = resume(plan, earlier, loader, validation, history, getattr(state, "data", ""))
    warn_of_eval_params(plan, run_state)

    result, deadline = LoopResult(run_state, history), began + 60 * (max_minutes or math.inf)
    result.should_stop = earlier is not None and bool(run_state.stopping.should_stop)
    limits: dict[str, Any] = {
        "last": None if epochs is None else max(epochs, int(run_state.epoch)),
        "max_steps": max_steps,
    }
    limits["validate_every"] = validate_every
    try:
        with open_hooks(callbacks, result, callback_states(state)) as hooks:
            # A pause, because processes that share the run must agree on its end; then nothing is under way.
            steps = AdaptiveSteps(hooks.seconds(SECONDS), pause=lambda: time.monotonic() >= deadline)
            parts = chunks(plan, run_state, loader, validation, steps=steps, end_after=hooks.every_steps, **limits)
            if on_nan == "stop":
                parts = check_finite(parts, plan, run_state, loader, validation, **limits)
            try:
                run_loop(parts, result, hooks=hooks, is_last=partial(end_at_pause, result))
            except NonFiniteError as error:
                result.state, result.reason = error.args[0].state, "not-finite"
                warnings.warn(f"the run stopped: {error}.", RuntimeWarning, stacklevel=3)
    except KeyboardInterrupt:
        result.reason = "interrupted"

    run_state, reason = result.state, result.reason
    if not reason:
        by_steps = max_steps is not None and (epochs is None or int(run_state.epoch) < epochs)
        reason = "early-stopping" if result.should_stop else "max-steps" if by_steps else "epochs"
    if reason not in ("epochs", "early-stopping"):
        history = [record for record in history if record["epoch"] <= int(run_state.epoch)]
    final = best = eval_variables(run_state.train_state, eval_params)
    if int(run_state.stopping.best_epoch):
        best = run_state.best
    elif int(run_state.epoch):
        warnings.warn(without_best(plan, validation), RuntimeWarning, stacklevel=3)
    # A run that ends by its epochs or its rule ends between two epochs.
    data = "" if reason in ("epochs", "early-stopping") else data_of_epoch(run_state, loader)
    return FitResult(history, best, final, reason, run_state, data, result.callback_states)


def check_limits(
    epochs: int | None, max_steps: int | None, max_minutes: float | None
) -> tuple[int | None, int | None, float | None]:
    """Return the limits of a run, with 10 epochs where there is none. Raises InputError for limits below 1 and 0."""
    if epochs is None and max_steps is None and max_minutes is None:
        epochs = 10
    if epochs is not None:
        epochs = whole_number("epochs", epochs, 1)
    if max_steps is not None:
        max_steps = whole_number("max_steps", max_steps, 1)
    if max_minutes is not None and not number("max_minutes", max_minutes) > 0:
        raise InputError(f"max_minutes must be above 0, got {max_minutes}. Use 0.5 for half a minute.")
    return epochs, max_steps, max_minutes


def callback_states(state: object) -> dict[str, Any]:
    """Return the states of the callbacks of an earlier run, by name."""
    if isinstance(state, Checkpoint):
        return dict(state.about.get("callback_states", {}))
    return dict(getattr(state, "callback_states", None) or {})


def end_at_pause(result: LoopResult, chunk: Chunk) -> bool:
    """Return whether the time of a run is over, which is then its reason to end."""
    if chunk.batches == 0:
        result.reason = result.reason or "max-minutes"
    return chunk.batches == 0


def init_state(
    plan: Plan, train: Loader, validation: Dataset | None = None, *, key: Array, variables: Variables | None = None
) -> RunState:
    """Return what `start` returns, of data that are checked, while a thread compiles the function that `chunks` calls.

    Only where variables are drawn and the data are NumPy arrays: elsewhere the devices of the arrays are not known yet.
    """
    leaves = jax.tree.leaves((train.examples, validation))
    if variables is not None or train.examples is None or any(isinstance(leaf, jax.Array) for leaf in leaves):
        run_state = draw(plan, train.first, key=key, variables=variables)
        check_monitors(plan, run_state, validation)
        return run_state
    shapes = start_shapes(plan, train.first, validation, key=key)
    arguments = shapes, train.examples, validation, agree_on_steps(WHOLE, None)
    # Traced here, where the caller's settings of JAX hold; the thread only compiles, which leaves Python free.
    lowered = chunk_program.lower(*arguments, plan=plan, like=None, **OPTIONS)
    with ThreadPoolExecutor(1) as pool:
        compilation = pool.submit(lowered.compile)
        run_state = draw(plan, train.first, key=key)
        compilation.result()
    return run_state


def without_best(plan: Plan, validation: Dataset | None, runs: str = "the run") -> str:
    """Return the warning for a run that has trained and has no best epoch."""
    monitor = plan.early_stopping.monitor or (LOSS if validation is None else f"val_{LOSS}")
    return (
        f"no epoch of {runs} was the best by {monitor}, which was never finite, not measured yet, or was left out by "
        "start_from_epoch; `best` holds the variables of the last epoch. Lower start_from_epoch, or monitor a finite "
        "value."
    )


def warn_of_eval_params(plan: Plan, run_state: RunState, stacklevel: int = 4) -> None:
    """Warn where a known optimizer is evaluated at other parameters than it trains, and the plan lacks eval_params."""
    sentence = lacks_eval_params(run_state.train_state.opt_state)
    if sentence is not None and plan.eval_params is None:
        warnings.warn(sentence, UserWarning, stacklevel=stacklevel)


def check_seed(seed: int) -> int:
    """Return a seed from 0 to 2**32 - 1. Raises InputError beyond, where different seeds would draw the same."""
    return whole_number("seed", seed, 0, 2**32 - 1)


def end_reason(run_state: RunState) -> str:
    """Return why a run that ended by itself ended: "early-stopping" by its rule, else "epochs"."""
    return "early-stopping" if bool(run_state.stopping.should_stop) else "epochs"
