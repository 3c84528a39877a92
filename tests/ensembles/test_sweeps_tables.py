"""What a sweep shows: its tables and summaries against pandas, and what it says to bad input."""

import numpy as np
import optax
import pandas as pd
import pytest
from scipy import stats

from jaxdl import losses
from jaxdl.ensembles import SweepResult, grid, summarize, sweep
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.stats import one_standard_error
from jaxdl.train import early_stopping, make_plan
from tests.sweep_runs import METRICS, ROWS, SEEDS, make_linear, row_of

STOP = early_stopping(patience=1)


def make(hidden=(), learning_rate=0.05, momentum=0.0):
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate, momentum=momentum)
    return make_plan(mlp(hidden), losses.squared_error, optimizer, metrics=METRICS, batch_size=8, early_stopping=STOP)


@pytest.fixture(scope="module")
def result():
    trials = grid(hidden=((), (4,)), learning_rate=(0.05, 0.01, 0.3))
    return sweep(make, trials, *ROWS, seeds=SEEDS, epochs=6)


@pytest.mark.parametrize("at", ["best", "last"])
@pytest.mark.parametrize("figure", ["rmse", "val_loss", "val_r2"])
def test_the_summary_is_that_of_pandas(result, figure, at):
    runs = result.history.groupby(["trial", "seed"])
    places = runs["val_loss"].idxmin() if at == "best" else runs["epoch"].idxmax()
    of = result.history.loc[places].groupby("trial")[figure]
    table = summarize(result, figure, at=at)
    for name, expected in {"mean": of.mean(), "std": of.std(), "sem": of.sem(), "count": of.count()}.items():
        np.testing.assert_allclose(table[name], expected, rtol=1e-6)
    half = stats.t.ppf(0.975, 2) * of.sem()
    np.testing.assert_allclose(table["high"], of.mean() + half, rtol=1e-6)
    assert table["parameters"].tolist() == 3 * [6] + 3 * [29] and table["hidden"].tolist() == 3 * [()] + 3 * [(4,)]
    assert table["learning_rate"].tolist() == 2 * [0.05, 0.01, 0.3]


def test_the_recommendation_is_the_cheapest_within_one_standard_error(result):
    table = summarize(result, "val_rmse")
    best = table["mean"].idxmin()
    near = table[table["mean"] <= table.loc[best, "mean"] + table.loc[best, "sem"]]
    expected = near.sort_values(["parameters", "mean"]).index[0]
    assert one_standard_error(table["mean"], table["sem"], table["parameters"]) == expected


def test_the_number_of_epochs_can_be_summed_up_too(result):
    for at, column in (("best", "best_epoch"), ("last", "epochs")):
        expected = result.table.groupby("trial")[column].mean()
        np.testing.assert_allclose(summarize(result, "epoch", at=at)["mean"], expected)


def test_a_run_that_ends_in_nan_has_no_last_figure_though_it_had_earlier_ones():
    history = pd.DataFrame({"trial": 0, "seed": [0, 0, 1, 1], "epoch": [1, 2, 1, 2], "rmse": [1.0, np.nan, 2.0, 1.0]})
    about = {"trial": 0, "seed": [0, 1], "parameters": 5, "epochs": 2, "best_epoch": [1, 2], "reason": "epochs"}
    made = SweepResult(pd.DataFrame(about), history, (), (), ())
    assert np.isnan(summarize(made, "rmse", at="last").loc[0, "mean"])
    assert summarize(made, "rmse", at="last").loc[0, "diverged"] == 1
    assert summarize(made, "rmse").loc[0, "mean"] == 1.0


def test_trials_of_different_names_keep_their_own_values():
    trials = [
        {"learning_rate": 0.05},
        {"learning_rate": 0.05, "momentum": 0.9},
        {"momentum": 0.9, "learning_rate": 0.05},
    ]
    result = sweep(make, trials, *ROWS, seeds=(3, 0), epochs=2, method="map")
    assert row_of(result, 0, 3)["loss"] != row_of(result, 1, 3)["loss"] == row_of(result, 2, 3)["loss"]
    table = summarize(result, "loss")
    assert np.isnan(table.loc[0, "momentum"]) and table["momentum"].tolist()[1:] == [0.9, 0.9]


def test_a_figure_with_the_name_of_a_trial_s_value_is_summed_up_from_what_was_measured(result):
    table = summarize(result, "learning_rate")
    np.testing.assert_allclose(table["mean"], table["learning_rate"], rtol=1e-6)


def decides(learning_rate):
    return make_linear(0.1 if learning_rate > 0.05 else 0.01)


def asks_numpy(learning_rate):
    return make_linear(float(np.sqrt(learning_rate)))


def schedule_of_optax(learning_rate):
    return make_linear(optax.cosine_decay_schedule(0.1, learning_rate))


def forgets(learning_rate):
    make_linear(learning_rate)


ONE = [{"learning_rate": 0.1}]


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ({"trials": []}, r"trials must have at least one entry, got none\. Use grid"),
        ({"trials": [{"hidden": [4]}]}, r"trials must have values that hash, got \{'hidden': \[4\]\}\. Use"),
        ({"trials": [{"learning_rat": 0.1}]}, "trials must give make its arguments, hidden, learning_rate, "
         "momentum; trial 0: got an unexpected keyword argument 'learning_rat'"),
        ({"make": decides, "trials": [*ONE, {}]}, "trial 1: missing a required argument: 'learning_rate'"),
        ({"trials": [{"seed": 3}]}, "trials must not name a value seed, as the tables do"),
        ({"trials": [{"mean": 0.1}]}, "trials must not name a value mean, as the tables do"),
        ({"make": decides}, r"decides must not decide on the value of learning_rate, .* Name those .* in `structure`"),
        ({"make": asks_numpy}, "asks_numpy must not decide on the value of learning_rate"),
        ({"make": schedule_of_optax}, "schedule_of_optax must not decide on the value of learning_rate"),
        ({"make": forgets}, r"forgets must return a Plan, got NoneType\. Use make_plan"),
        ({"structure": ("dropout",)}, 'structure must name values of the trials, learning_rate, got "dropout"'),
        ({"structure": "learning_rate"}, "structure must name values of the trials"),
        ({"seeds": (1, 2, 1)}, r"seeds must differ, got \(1, 2, 1\)"),
        ({"seeds": ()}, "seeds must be a row of at least one whole number"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"min_resource": 0}, "min_resource must be at least 1, got 0"),
        ({"eta": 1}, "eta must be a whole number from 2 on, got 1"),
        ({"eta": 2.5}, r"eta must be a whole number from 2 on, got 2\.5"),
        ({"method": "pmap"}, 'method must be "vmap" or "map", got "pmap"'),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(arguments, output):
    options = {"make": make, "trials": ONE, "seeds": (0, 1), **arguments}
    with pytest.raises(InputError, match=output):
        sweep(options.pop("make"), options.pop("trials"), *ROWS, **options)


def test_what_make_itself_refuses_is_told_as_it_says_it():
    def make_own(momentum):
        return make_plan(mlp((), dropout=momentum), losses.squared_error, optax.sgd(0.1), metrics=METRICS, batch_size=8)

    with pytest.raises(InputError, match=r"dropout must be a rate from 0 to below 1, got 1\.5"):
        sweep(make_own, [{"momentum": 0.1}, {"momentum": 1.5}], *ROWS, seeds=(0, 1))


@pytest.mark.parametrize("figure", ["nope", "reason", "seed", "parameters"])
def test_a_figure_that_is_not_measured_is_told(result, figure):
    with pytest.raises(
        InputError, match=f'metric="{figure}" is not measured. The sweep measures: epoch, loss, rmse, r2'
    ):
        summarize(result, figure)


def test_another_moment_is_refused(result):
    with pytest.raises(InputError, match='at must be "best" or "last", got "first"'):
        summarize(result, "loss", at="first")
