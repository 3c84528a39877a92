"""`fit`: a whole run in one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import optax

from jaxdl.arguments import (
    check_callbacks,
    check_choice,
    check_examples,
    check_platform,
    check_weights,
    explain_calls,
    whole_number,
)
from jaxdl.beginnings import begin, resume
from jaxdl.chunks import Chunk
from jaxdl.errors import InputError
from jaxdl.objectives import LOSS
from jaxdl.paces import paced
from jaxdl.plans import NEVER, make_plan
from jaxdl.replays import NotFiniteError, guarded
from jaxdl.sources import Source
from jaxdl.steps import shown_weights
from jaxdl.types import Examples, Model, Objective, Plan, Progress, Rule, Weights

if TYPE_CHECKING:
    import pandas as pd

Observer = Callable[[Progress, list[dict[str, float]]], None]


class Fit(NamedTuple):
    """What a run leaves."""

    records: list[dict[str, float]]  # the figures of each epoch, and its number from 1
    best: Weights  # of the best epoch by the monitored figure; the final ones where no epoch was the best
    final: Weights
    reason: str  # why it ended: "epochs", "early-stopping", "not-finite" or "interrupted"
    progress: Progress  # all that the run remembers: give it to `fit` again to go on

    def __repr__(self) -> str:
        """In one line: the arrays would fill a screen."""
        return f"Fit({len(self.records)} epochs, best epoch {self.best_epoch}, reason {self.reason!r})"

    @property
    def history(self) -> pd.DataFrame:
        """The records as a table, made anew whenever asked for: a row an epoch, indexed by it, a column a figure."""
        return as_table(self.records)

    @property
    def best_epoch(self) -> int:
        """The epoch that `best` belongs to, from 1; 0 where no epoch was the best, so that `best` is `final`.

        That is so where the monitored figure was never finite, and where `start_from_epoch` left out every epoch.
        """
        return int(self.progress.stopping.best_epoch)


@explain_calls
def fit(
    model: Model,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    train: Examples | Source,
    validation: Examples | None = None,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    stop: Rule = NEVER,
    plateau: Rule | None = None,
    average: float | None = None,
    seed: int | None = None,
    weights: Weights | None = None,
    progress: Progress | None = None,
    observers: Iterable[Observer] = (),
    on_nan: Literal["stop", "continue"] = "stop",
) -> Fit:
    """Trains until `epochs` epochs are done, or until `stop` ends the run.

    Ctrl-C, or the stop button of a notebook, ends it too: the result holds what has been reached so far, and `fit` goes
    on from its `progress`, to the bits of a run that was not interrupted.

    train: rows in memory, or a source of rows that are not (`sources.memory_mapped`); the results are the same.
    average: such as 0.999, to measure and keep a moving average of the weights instead of the weights themselves.
    seed: draws the initial weights, the order of rows and what is random in training; 0 by default.
    weights: initial weights, instead of ones drawn with `seed`.
    progress: where an earlier run stands, to continue from there; `epochs` counts its epochs too. It comes without a
        seed and weights, and must be of the same model, optimizer and metrics; inside of an epoch of the same batch
        size and rows too. A run that stopped early trains on with more patience or without `stop`; with the rule that
        ended it, it stands still.
    observers: functions `(progress, history) -> None`, called after every epoch with the records so far.
    on_nan: whether to stop where a weight or a loss is not finite, with a warning that says where that arose. The
        result then stands before that step. Such an epoch is never the best.

    Warns where no epoch was the best: `best` then holds the final weights.

    Raises InputError for arguments that do not fit together. Calls with the same model, objective, optimiser and rules
    share one compiled program, so a second one starts at once.

    >>> import numpy as np
    >>> from jaxdl import early_stopping, examples, mlp, objectives
    >>> inputs = np.linspace(-1, 1, 64)[:, None]
    >>> data = examples(inputs, 3 * inputs)
    >>> objective = Objective(objectives.squared_error, (objectives.rmse,))
    >>> run = fit(mlp(()), objective, optax.sgd(0.1), data, epochs=40, stop=early_stopping(patience=5))
    >>> run.reason, bool(run.history["rmse"].iloc[-1] < 0.1)
    ('epochs', True)
    """
    epochs = whole_number("epochs", epochs, 1)
    seed = None if seed is None else check_seed(seed)
    check_choice("on_nan", on_nan, ("stop", "continue"))
    observers = check_callbacks(observers)
    if weights is not None:
        check_weights(weights)
    if progress is not None and (seed is not None or weights is not None):
        name = "weights" if seed is None else f"seed={seed}"
        raise InputError(f"{name} has no effect beside progress, which holds the weights and the keys. Leave one out.")
    check_platform()
    if not isinstance(train, Source):
        check_examples("train", train)
    if validation is not None:
        check_examples("validation", validation)
    plan = make_plan(model, objective, optimiser, batch_size=batch_size, stop=stop, plateau=plateau, average=average)
    stopped = False
    if progress is None:
        progress = begin(plan, train, validation, key=jax.random.key(seed or 0), weights=weights)
    else:
        if progress.epoch.ndim:
            raise InputError(f"progress is that of {len(progress.epoch)} runs. Continue them with fit_seeds.")
        progress = resume(plan, progress, train, validation)
        stopped = bool(progress.stopping.done)
    last = max(epochs, int(progress.epoch))
    chunks: Iterator[Chunk] = paced(plan, progress, train, validation, last=last)
    history: list[dict[str, float]] = []
    ended = ""
    try:
        for chunk in guarded(chunks, plan, progress, train, validation) if on_nan == "stop" else chunks:
            progress, stopped = chunk.progress, chunk.should_stop
            if chunk.record is not None:
                history.append(chunk.record)
                for observe in observers:
                    observe(progress, history)
    except KeyboardInterrupt:
        ended = "interrupted"
    except NotFiniteError as error:
        progress, ended = error.args[0].progress, "not-finite"
        warnings.warn(f"the run stopped: {error}.", RuntimeWarning, stacklevel=3)
    final = best = shown_weights(progress.state)
    if int(progress.stopping.best_epoch):
        best = progress.best
    elif int(progress.epoch):
        warnings.warn(without_best(plan, validation), RuntimeWarning, stacklevel=3)
    return Fit(history, best, final, ended or ("early-stopping" if stopped else "epochs"), progress)


def without_best(plan: Plan, validation: Examples | None, which: str = "the run") -> str:
    """Return the sentence for a run that has trained and has no best epoch.

    >>> from jaxdl import mlp, objectives
    >>> print(without_best(make_plan(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1)), None))
    no epoch of the run was the best by loss, which was never finite or was left out by start_from_epoch; `best`...
    """
    monitor = plan.stop.monitor or (LOSS if validation is None else f"val_{LOSS}")
    return (
        f"no epoch of {which} was the best by {monitor}, which was never finite or was left out by start_from_epoch; "
        "`best` holds the variables of the last epoch. Lower start_from_epoch, or monitor a finite value."
    )


def check_seed(seed: int) -> int:
    """Return a seed from 0 to 2**32 - 1. Raises InputError beyond, where different seeds would draw the same.

    >>> check_seed(7)
    7
    """
    return whole_number("seed", seed, 0, 2**32 - 1)


def reason(progress: Progress) -> str:
    """Why a run ended here: "early-stopping" where its rule said so, else "epochs".

    >>> from jaxdl import examples, mlp, objectives
    >>> rows = examples([[1.0], [2.0]], [[1.0], [2.0]])
    >>> run = fit(mlp(()), Objective(objectives.squared_error), optax.sgd(0.1), rows, epochs=1, batch_size=2)
    >>> reason(run.progress)
    'epochs'
    """
    return "early-stopping" if bool(progress.stopping.done) else "epochs"


def as_table(history: list[dict[str, float]]) -> pd.DataFrame:
    """Records as a DataFrame, a row an epoch, indexed by the epoch.

    >>> as_table([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]).loc[2, "loss"].item()
    1.0
    """
    # Imported here: neither `import jaxdl` nor `fit` must cost what pandas costs.
    import pandas as pd

    return pd.DataFrame(history, columns=None if history else ["epoch"]).set_index("epoch")
