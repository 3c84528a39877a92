"""The page about callbacks runs; packages that are not installed are replaced by modules of the same functions."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from jaxdl.callbacks import Stop
from tests.documents import ROOT, blocks
from tests.quick import quick_programs

CODES = [block.code for block in blocks(ROOT / "docs" / "callbacks.md", "python")]


class PrunedError(Exception):
    """The exception with which an objective tells Optuna that its trial was pruned."""


class Trial:
    """A trial of Optuna that is pruned after some epochs."""

    def __init__(self, rate, last):
        self.rate, self.last, self.values = rate, last, {}

    def suggest_float(self, name, low, high, *, log):
        assert name == "learning_rate" and low < self.rate < high and log
        return self.rate

    def report(self, value, step):
        assert isinstance(value, float)
        self.values[step] = value

    def should_prune(self):
        return len(self.values) == self.last


class Study:
    """A study of Optuna with trials that are pruned after 2 and 20 epochs."""

    def __init__(self, direction):
        assert direction == "minimize"
        self.trials = [Trial(1e-3, 2), Trial(1e-2, 20), Trial(3e-2, 20)]

    def optimize(self, objective, n_trials):
        self.values = []
        for trial in self.trials[:n_trials]:
            try:
                self.values.append(objective(trial))
            except PrunedError:
                self.values.append("pruned")


class Handle:
    """What IPython's display returns."""

    def __init__(self):
        self.shown = []

    def update(self, value):
        self.shown.append(value)


def module(name, **functions):
    result = ModuleType(name)
    vars(result).update(functions)
    return result


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names of the page after all of its blocks, and the calls of the modules that are replaced."""
    calls = []

    def note(name, result=None):
        def function(*arguments, **options):
            calls.append((name, arguments, options))
            return result

        return function

    handle = Handle()
    logger = SimpleNamespace(log=note("wandb.log"), finish=note("wandb.finish"))
    names = ("start_run", "log_params", "log_metrics", "end_run")
    replaced = {
        "optuna": module("optuna", TrialPruned=PrunedError, create_study=Study),
        "mlflow": module("mlflow", **{name: note(f"mlflow.{name}") for name in names}),
        "wandb": module("wandb", init=note("wandb.init", logger)),
        "IPython.display": module("IPython.display", display=note("display", handle)),
    }
    with pytest.MonkeyPatch.context() as patch, quick_programs():
        patch.chdir(tmp_path_factory.mktemp("page"))
        for name, value in replaced.items():
            patch.setitem(sys.modules, name, value)
        result = {}
        for code in CODES:
            exec(code, result)
        yield SimpleNamespace(names=result, calls=calls, handle=handle)


def test_limits_and_reasons_are_those_that_the_page_says(page, capsys):
    with quick_programs():
        good = page.names["fit"](epochs=100, callbacks=[page.names["stop_when_good"]])
        assert good.reason == "good enough" and good.records[-1]["val_rmse"] < 1 <= good.records[-2]["val_rmse"]
        run = page.names["fit"](epochs=10, validate_every=3)
    assert run.history["val_loss"].dropna().index.tolist() == [3, 6, 9, 10]


def test_hooks_print_and_stop(page, capsys):
    state = page.names["run"].state
    page.names["show"](state, {"loss": 1.0})
    assert capsys.readouterr().out == f"epoch {int(state.epoch) + 1}, step {int(state.train_state.step)}: loss 1.000\n"
    assert page.names["stop_at_infinity"](state, {"loss": 2e6}) == Stop("diverged")
    assert page.names["stop_at_infinity"](state, {"loss": 1.0}) is None


def test_the_time_of_all_calls_counts(page):
    limit = page.names["time_limit"](0.5)
    limit.load_state_dict({"seconds": 0.4})
    limit.on_train_begin(None, [])
    assert limit.on_epoch_end(None, []) is None and 0.4 <= limit.state_dict()["seconds"] < 0.5
    limit.load_state_dict({"seconds": 0.6})
    assert limit.on_epoch_end(None, []) == Stop("time is over")
    assert page.names["first"].callback_states["time_limit"]["seconds"] > 0
    assert page.names["checkpoint"].about["callback_states"]["time_limit"]["seconds"] > 0


def test_curves_are_shown(page):
    (call,) = [call for call in page.calls if call[0] == "display"]
    assert call[2] == {"display_id": True}
    last = page.handle.shown[-1].axes[0]
    assert max(line.get_xdata()[-1] for line in last.lines) == 20 and len(page.handle.shown) >= 2


def test_the_best_model_is_in_the_folder(page):
    (path,) = (page.names["folder"] / "best").iterdir()
    assert path.name.startswith("epoch-")
    assert page.names["variables"].params["Dense_0"]["kernel"].shape == (4, 10)


def test_a_study_prunes_its_trials(page):
    study = page.names["study"]
    assert study.values[0] == "pruned" and list(study.trials[0].values) == [1, 2]
    assert all(isinstance(value, float) for value in study.values[1:])
    assert study.values[1] == study.trials[1].values[10]


def test_loggers_get_each_epoch(page):
    names = [name for name, _, _ in page.calls if name.startswith("mlflow")]
    assert names == ["mlflow.start_run", "mlflow.log_params", *3 * ["mlflow.log_metrics"], "mlflow.end_run"]
    names = [name for name, _, _ in page.calls if name.startswith("wandb")]
    assert names == ["wandb.init", *3 * ["wandb.log"], "wandb.finish"]
    for name in ("mlflow.log_metrics", "wandb.log"):
        values = [(arguments[0], options) for called, arguments, options in page.calls if called == name]
        assert [options for _, options in values] == [{"step": epoch} for epoch in (1, 2, 3)]
        assert all(set(record) == {"loss", "rmse", "val_loss", "val_rmse"} for record, _ in values)
        assert all(np.isfinite([*record.values()]).all() for record, _ in values)
    assert next(options for name, _, options in page.calls if name == "wandb.init")["mode"] == "offline"
