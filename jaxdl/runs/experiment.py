"""What the author of an experiment gives: its data, model, loss and optimizer, and whatever else she wants to say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax
from rich.table import Table

from jaxdl import plots
from jaxdl.nn import ModelSpec
from jaxdl.nn.models import to_json
from jaxdl.runs.flags import RunFlags, check_flags
from jaxdl.saving import OutputSpec
from jaxdl.train import early_stopping, make_plan, start
from jaxdl.train.evaluate import evaluate as evaluate_dataset
from jaxdl.train.history import as_table
from jaxdl.train.step import eval_variables
from jaxdl.types import SETS, Array, Dataset, History, Metric, Model, Plan, Rule, RunState, Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


EPOCHS, BATCH_SIZE, LEARNING_RATE = 100, 32, 1e-3  # where neither the flags nor the experiment say it


@dataclass(frozen=True, eq=False)
class Setup:
    """What an experiment trains, and on which data.

    What is left out of `epochs`, `batch_size`, `seed` and `early_stopping` is what the flags of the run say;
    `early_stopping` then is early stopping on the validation loss, after `--patience` epochs.

    >>> from jaxdl import dataset, losses, mlp
    >>> rows = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> setup = Setup(rows, rows, rows, mlp(()), losses.squared_error, optax.sgd(0.1), seed=1, batch_size=2)
    >>> setup.plan.batch_size, int(setup.start.epoch)
    (2, 0)
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    model: Model
    loss: Callable[[Array, Array], Array]  # (outputs, targets) -> (B,), one value a row
    optimizer: optax.GradientTransformation
    metrics: Sequence[Metric] = ()
    _: KW_ONLY
    epochs: int = 0  # at most; 0 for as many as the flags say
    batch_size: int | None = None
    seed: int | None = None  # of the initial weights, the order of rows, and what is random in training
    early_stopping: Rule | None = None
    plateau: Rule | None = None
    ema_decay: float | None = None  # how much of itself a moving average of the weights keeps each step
    name: str = ""  # of the data; by default the experiment's
    source: str = "arrays"  # of the data, such as "file:/home/me/rain.csv"
    note: str | None = None  # a warning about the data, which is printed
    columns: Sequence[str] | None = None  # the names of the inputs in a table
    outputs: OutputSpec = field(default_factory=OutputSpec)  # what the model gives for a row, where it is exported
    network: ModelSpec | None = None  # the model as data, without what it does in training alone
    dataset: Any = None  # whatever the experiment's own functions need of the data
    rows: dict[str, np.ndarray] = field(default_factory=dict)  # of the data set, by set

    @property
    def sets(self) -> dict[str, Dataset]:
        """Return the three sets by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @cached_property
    def plan(self) -> Plan:
        """Return what the run does in an epoch; one plan, so that one compiled program belongs to it."""
        return make_plan(
            self.model,
            self.loss,
            self.optimizer,
            metrics=self.metrics,
            batch_size=BATCH_SIZE if self.batch_size is None else self.batch_size,
            early_stopping=early_stopping("val_loss", patience=None)
            if self.early_stopping is None
            else self.early_stopping,
            plateau=self.plateau,
            ema_decay=self.ema_decay,
        )

    @cached_property
    def start(self) -> RunState:
        """Return the progress before the first epoch."""
        return start(self.plan, self.train, self.validation, key=jax.random.key(self.seed or 0))

    @cached_property
    def sha256(self) -> str:
        """Return the checksum of all examples."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.sets):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def complete(setup: Setup, flags: RunFlags, name: str) -> Setup:
    """Return a setup with what the flags say where the experiment has left it out. name: the experiment's."""
    return replace(
        setup,
        epochs=setup.epochs or flags.epochs or EPOCHS,
        batch_size=flags.batch_size if setup.batch_size is None else setup.batch_size,
        seed=flags.seed if setup.seed is None else setup.seed,
        early_stopping=early_stopping("val_loss", patience=flags.patience)
        if setup.early_stopping is None
        else setup.early_stopping,
        name=setup.name or name,
    )


def resolve(flags: Any) -> Any:
    """Return the flags with the usual values where neither the command nor the experiment has any, checked."""
    usual = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    flags = replace(flags, **{name: value for name, value in usual.items() if getattr(flags, name) is None})
    check_flags(flags)
    return flags


def describe_data(setup: Setup) -> dict[str, Any]:
    """Return what config.json and metrics.json say of the data: where they come from, and their shapes."""
    return {
        "name": setup.name,
        "source": setup.source,
        "sha256": setup.sha256,
        "inputs": [*setup.train.inputs.shape[1:]],
        "targets": [*setup.train.targets.shape[1:]],
        "rows": {name: len(examples.sample_weight) for name, examples in setup.sets.items()},
        "note": setup.note,
    }


LIMITS = "It was judged on data like those that it has learnt from. What it says of others is not known."
TERMS = {"data": "Data of the author's own.", "licence": "not stated; ask the author.", "cite": []}


def model_card(
    setup: Setup,
    outputs: OutputSpec | None = None,
    *,
    title: str | None = None,
    predicts: str | None = None,
    limits: str = LIMITS,
    terms: Mapping[str, Any] | None = None,
    columns: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return what it takes to use a run's model without its code, in config.json; the texts are for its model card.

    terms: the data in a sentence, their `licence`, and the works to `cite`.
    """
    inputs = setup.train.inputs
    columns = setup.columns if columns is None else columns
    return {
        "network": None if setup.network is None else to_json(setup.network),
        "inputs": {"shape": list(inputs.shape[1:]), "dtype": str(inputs.dtype), "columns": columns},
        "outputs": (outputs or setup.outputs)._asdict(),
        "card": {
            "title": title or setup.name,
            "predicts": predicts or f"What the experiment {setup.name} is about.",
            "limits": limits,
        },
        "terms": dict(TERMS if terms is None else terms),
    }


def evaluate(setup: Setup, run_state: RunState) -> dict[str, Any]:
    """Return the loss and the metrics of the three sets, by the weights of the last epoch and by those of the best."""

    def values(variables: Variables) -> dict[str, dict[str, float]]:
        measured = {
            name: evaluate_dataset(setup.model, variables, rows, setup.loss, metrics=setup.metrics)
            for name, rows in setup.sets.items()
        }
        return {metric: {name: float(measured[name][metric]) for name in SETS} for metric in measured["test"]}

    best = values(run_state.best)
    return {
        **values(eval_variables(run_state.train_state)),
        **{f"{metric}_best": value for metric, value in best.items()},
    }


def figures(setup: Setup, run_state: RunState, history: History, title: str) -> dict[str, Figure]:
    """Return a picture of the history of the loss, and of each metric."""
    records, best = as_table(history), int(run_state.stopping.best_epoch)
    names = ["loss", *(metric.name for metric in setup.metrics)]
    return {name: plots.history(records, name, best_epoch=best, title=title) for name in names}


def table(metrics: dict[str, Any]) -> Table:
    """Return the loss and the metrics of the three sets as a table for a rich console."""
    data, best = metrics["dataset"], metrics["best_epoch"]
    counts = " / ".join(f"{data['rows'][name]:,}" for name in SETS)
    rows = Table(title=f"{data['name']}, {counts} rows", title_justify="left", title_style="bold")
    rows.add_column("", no_wrap=True)
    for name in SETS:
        rows.add_column(name, justify="right")
    ended = f"after epoch {metrics['epochs']} ({metrics['reason']})"
    kept = f"best epoch {best}" if best else "last epoch (no epoch was finite)"
    for metric in [name.removesuffix("_best") for name in metrics if name.endswith("_best")]:
        for label, key in ((ended, metric), (kept, f"{metric}_best")):
            values = metrics.get(key)
            if isinstance(values, dict):
                rows.add_row(f"{metric}, {label}", *(_number(values[name]) for name in SETS))
    return rows


def _number(value: float | None) -> str:
    return "not finite" if value is None or not np.isfinite(value) else f"{value:.4g}"


def frozen_flags(flags: Any) -> dict[str, str]:
    """Return the flags that a run cannot change later beyond those of every run, and why: none."""
    return {}


class Experiment(NamedTuple):
    """An experiment as functions; a name and `build` will do.

    build: the flags, and the data where `load` gives them -> the setup; it reads no files then.
    """

    name: str
    build: Callable[..., Setup]
    load: Callable[[Any], Any] | None = None  # flags -> the data set, for `build`
    resolve: Callable[[Any], Any] = resolve  # flags -> the same with defaults where one was left out, checked
    describe_data: Callable[[Setup], dict[str, Any]] = describe_data  # the data in config.json and metrics.json
    model_card: Callable[[Setup], dict[str, Any]] = model_card  # what it takes to use the model, in config.json
    evaluate: Callable[[Setup, RunState], dict[str, Any]] = evaluate  # what metrics.json says of the weights
    figures: Callable[[Setup, RunState, History, str], dict[str, Figure]] = figures  # by name, with a title
    table: Callable[[dict[str, Any]], Table] = table  # metrics.json for people
    frozen_flags: Callable[[Any], dict[str, str]] = frozen_flags  # flags that a run cannot change later, and why
    progress_metrics: tuple[str, str] = ("loss", "val_loss")  # what the progress bar shows of an epoch


def setup_of(experiment: Experiment, flags: Any) -> Setup:
    """Return what an experiment trains under resolved flags, with what they say where it has left it out."""
    given = () if experiment.load is None else (experiment.load(flags),)
    return complete(experiment.build(flags, *given), flags, experiment.name)


def recipe_of(experiment: Experiment, flags: Any) -> str:
    """Return what a run is called in lists and names of folders: its recipe, or the experiment."""
    return str(getattr(flags, "recipe", experiment.name))


def short(source: str) -> str:
    """A source in few words, for titles: of a path only the file's name."""
    return source.rpartition("/")[2] if source.startswith("file:") else source
