"""An experiment: data, model, loss and optimizer, and the reports of its runs."""

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


EPOCHS, BATCH_SIZE, LEARNING_RATE = 100, 32, 1e-3  # where neither the flags nor the experiment give a value


@dataclass(frozen=True, eq=False)
class Setup:
    """The model of an experiment, its data sets, and how it trains.

    The flags of the run give `epochs`, `batch_size`, `seed` and `early_stopping` where they are left out; without a
    rule the run stops early on the validation loss, after `--patience` epochs.

    >>> from jaxdl import dataset, losses, mlp
    >>> examples = dataset([[1.0], [2.0]], [[1.0], [2.0]])
    >>> setup = Setup(examples, examples, examples, mlp(()), losses.squared_error, optax.sgd(0.1), seed=1, batch_size=2)
    >>> setup.plan.batch_size, int(setup.start.epoch)
    (2, 0)
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    model: Model
    loss: Callable[[Array, Array], Array]  # (outputs, targets) -> (B,), one value for each example
    optimizer: optax.GradientTransformation
    metrics: Sequence[Metric] = ()
    _: KW_ONLY
    epochs: int = 0  # maximum; 0 for the flags' value
    batch_size: int | None = None
    seed: int | None = None  # of the initial weights, the shuffling and dropout
    early_stopping: Rule | None = None
    plateau: Rule | None = None
    ema_decay: float | None = None  # of a moving average of the variables; None for no average
    name: str = ""  # of the data; by default the name of the experiment
    source: str = "arrays"  # of the data, such as "file:/home/me/rain.csv"
    note: str | None = None  # a warning about the data, which is printed
    columns: Sequence[str] | None = None  # names of the inputs, for a table
    outputs: OutputSpec = field(default_factory=OutputSpec)  # of the exported model
    network: ModelSpec | None = None  # the model as JSON describes it, without augmentation
    dataset: Any = None  # for the experiment's own functions
    rows: dict[str, np.ndarray] = field(default_factory=dict)  # indices into the whole data set, by set

    @property
    def sets(self) -> dict[str, Dataset]:
        """Return the train, validation and test set by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @cached_property
    def plan(self) -> Plan:
        """Return the plan. It is created once, because each plan has a compiled function of its own."""
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
        """Return the run state before the first epoch."""
        return start(self.plan, self.train, self.validation, key=jax.random.key(self.seed or 0))

    @cached_property
    def sha256(self) -> str:
        """Return the checksum of all examples, as hexadecimal digits."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.sets):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def complete(setup: Setup, flags: RunFlags, name: str) -> Setup:
    """Return a setup in which the flags fill the fields that the experiment leaves out. name: of the experiment."""
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
    """Return the flags with default values for those that are None. Raises InputError for a flag out of range."""
    return with_recipe(flags, {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE})


def describe_data(setup: Setup) -> dict[str, Any]:
    """Return the entry "dataset" of config.json and metrics.json: source, checksum, shapes and sizes."""
    return {
        "name": setup.name,
        "source": setup.source,
        "sha256": setup.sha256,
        "inputs": jax.tree.map(lambda leaf: [*leaf.shape[1:]], setup.train.inputs),
        "targets": jax.tree.map(lambda leaf: [*leaf.shape[1:]], setup.train.targets),
        "rows": {name: len(examples.sample_weight) for name, examples in setup.sets.items()},
        "note": setup.note,
    }


LIMITS = "The model was tested on data like its training data. Its quality on other data is not known."
TERMS = {"data": "The author's own data.", "licence": "not stated; ask the author.", "cite": []}


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
    """Return the entries of config.json that describe the model for export, and the texts of its model card.

    terms: `data` (one sentence about the data), `licence`, and `cite` (a list of works).
    """
    inputs = setup.train.inputs
    columns = setup.columns if columns is None else columns
    return {
        "network": None if setup.network is None else to_json(setup.network),
        "inputs": {
            "shape": jax.tree.map(lambda leaf: [*leaf.shape[1:]], inputs),
            "dtype": jax.tree.map(lambda leaf: str(leaf.dtype), inputs),
            "columns": columns,
        },
        "outputs": (outputs or setup.outputs)._asdict(),
        "card": {
            "title": title or setup.name,
            "predicts": predicts or f"The targets of the experiment {setup.name}.",
            "limits": limits,
        },
        "terms": dict(TERMS if terms is None else terms),
    }


def evaluate(setup: Setup, run_state: RunState) -> dict[str, Any]:
    """Return the loss and the metrics of the three sets, with the final variables and with those of the best epoch."""
    best = evaluate_sets(setup, run_state.best)
    return {
        **evaluate_sets(setup, eval_variables(run_state.train_state)),
        **{f"{metric}_best": values for metric, values in best.items()},
    }


def evaluate_sets(setup: Setup, variables: Variables) -> dict[str, dict[str, float]]:
    """Return the values of the three sets by metric and set."""
    values = {
        name: evaluate_dataset(setup.model, variables, examples, setup.loss, metrics=setup.metrics)
        for name, examples in setup.sets.items()
    }
    return {metric: {name: float(values[name][metric]) for name in SETS} for metric in values["test"]}


def figures(setup: Setup, run_state: RunState, history: History, title: str) -> dict[str, Figure]:
    """Return a figure of the history of the loss and of each metric, by name."""
    records, best = as_table(history), int(run_state.stopping.best_epoch)
    names = ["loss", *(metric.name for metric in setup.metrics)]
    return {name: plots.history(records, name, best_epoch=best, title=title) for name in names}


def table(metrics: dict[str, Any]) -> Table:
    """Return the loss and the metrics of the three sets as a table of rich."""
    rows = metrics_table(f"{metrics['dataset']['name']}, {count_rows(metrics)} rows")
    for metric in [name.removesuffix("_best") for name in metrics if name.endswith("_best")]:
        for label, suffix in result_labels(metrics):
            values = metrics.get(metric + suffix)
            if isinstance(values, dict):
                rows.add_row(f"{metric}, {label}", *(_number(values[name]) for name in SETS))
    return rows


def metrics_table(title: str, columns: Sequence[str] = SETS) -> Table:
    """Return an empty table with a column of labels and columns of numbers."""
    rows = Table(title=title, title_justify="left", title_style="bold")
    rows.add_column("", no_wrap=True)
    for name in columns:
        rows.add_column(name, justify="right")
    return rows


def count_rows(metrics: dict[str, Any]) -> str:
    """Return the sizes of the three sets, for titles."""
    return " / ".join(f"{metrics['dataset']['rows'][name]:,}" for name in SETS)


def result_labels(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the label and the suffix in metrics.json of the final variables, and of those of the best epoch."""
    best = metrics["best_epoch"]
    return [
        (f"after epoch {metrics['epochs']} ({metrics['reason']})", ""),
        (f"best epoch {best}" if best else "last epoch (no epoch was finite)", "_best"),
    ]


def _number(value: float | None) -> str:
    return "nan" if value is None or not np.isfinite(value) else f"{value:.4g}"


def frozen_flags(flags: Any) -> dict[str, str]:
    """Return the flags that may not change when a run is resumed, with the reasons: none."""
    return {}


class Experiment(NamedTuple):
    """An experiment as functions; `name` and `build` are enough.

    build: takes the flags, and the data where `load` returns them; returns the setup. With `load` it reads no files.
    """

    name: str
    build: Callable[..., Setup]
    load: Callable[[Any], Any] | None = None  # flags -> data, for `build`
    resolve: Callable[[Any], Any] = resolve  # flags -> the same with default values, checked
    describe_data: Callable[[Setup], dict[str, Any]] = describe_data  # "dataset" in config.json and metrics.json
    model_card: Callable[[Setup], dict[str, Any]] = model_card  # entries of config.json for export
    evaluate: Callable[[Setup, RunState], dict[str, Any]] = evaluate  # entries of metrics.json
    figures: Callable[[Setup, RunState, History, str], dict[str, Figure]] = figures  # (..., title) -> by name
    table: Callable[[dict[str, Any]], Table] = table  # metrics.json -> a table for the terminal
    frozen_flags: Callable[[Any], dict[str, str]] = frozen_flags  # flags that may not change on resuming -> reasons
    progress_metrics: tuple[str, str] = ("loss", "val_loss")  # in the progress bar


def with_recipe(flags: Any, recipe: Mapping[str, Any]) -> Any:
    """Return the flags with a recipe's values where they are None. Raises InputError for a flag out of range."""
    flags = replace(flags, **{name: value for name, value in recipe.items() if getattr(flags, name, 0) is None})
    check_flags(flags)
    return flags


def build_setup(experiment: Experiment, flags: Any) -> Setup:
    """Return the setup of an experiment; `flags` have default values, and fill what the experiment leaves out."""
    data = () if experiment.load is None else (experiment.load(flags),)
    return complete(experiment.build(flags, *data), flags, experiment.name)


def recipe_name(experiment: Experiment, flags: Any) -> str:
    """Return the name of a run in lists and folders: its recipe, or the experiment."""
    return str(getattr(flags, "recipe", experiment.name))
