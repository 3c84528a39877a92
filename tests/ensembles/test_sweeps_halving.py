"""Successive halving, against a loop over solo runs; and sweeps that are interrupted."""

import jax
import numpy as np
import optax
import pandas as pd
import pytest

from jaxdl import losses
from jaxdl.ensembles import sweep, sweeps
from jaxdl.nn import mlp
from jaxdl.train import early_stopping, make_plan, start
from tests.bits import bits
from tests.sweep_runs import METRICS, ROWS, SEEDS, history_of, make_linear, row_of, solo, weights_of

EPOCHS = 12
NEVER = early_stopping(patience=None)
RATES = (0.03, 0.15, 1e-3, 1e30, 0.1)
RULES = {"lowest": early_stopping(patience=0), "highest": early_stopping("val_r2", mode="max", patience=2)}


def make_injected(learning_rate, stop):
    """The learning rate is a part of the state, so the solo runs of all trials are one program."""
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate)
    return make_plan(mlp(()), losses.squared_error, optimizer, metrics=METRICS, batch_size=8, early_stopping=stop)


def make_lowest(learning_rate, kind=0):
    return make_injected(learning_rate, RULES["lowest"])


def make_highest(learning_rate, kind=0):
    return make_injected(learning_rate, RULES["highest"])


# Two shapes, whose trials are ranked together.
TRIALS = [{"learning_rate": rate, "kind": index % 2} for index, rate in enumerate(RATES)]
MAKES = {"lowest": make_lowest, "highest": make_highest}


@pytest.fixture(scope="module", params=["lowest", pytest.param("highest", marks=pytest.mark.slow)])
def watched(request):
    """The name of a rule, each trial's plan and its solo histories, one a seed, and the sweep without halving."""
    make = MAKES[request.param]
    plans = [make(**one) for one in TRIALS]
    alone = [[solo(plan, seed, EPOCHS).history for seed in SEEDS] for plan in plans]
    whole = sweep(make, TRIALS, *ROWS, seeds=SEEDS, epochs=EPOCHS, method="map")
    return request.param, plans, alone, whole


def looped(alone, figure, sign, rungs, eta):
    """The epoch after which each trial was dropped; the last rung for those that were not."""
    left, dropped = list(range(len(alone))), {}
    for rung in rungs[:-1]:
        cost = {}
        for index in left:
            bests = [(sign * history.loc[:rung, figure]).replace(np.inf, np.nan).min() for history in alone[index]]
            cost[index] = np.inf if np.isnan(bests).any() else np.mean(bests)
        ranked = sorted(left, key=lambda index: cost[index])
        count = int(np.ceil(len(left) / eta))
        dropped |= dict.fromkeys(ranked[count:], rung)
        left = ranked[:count]
    return {**dict.fromkeys(left, rungs[-1]), **dropped}


@pytest.mark.parametrize(
    ("eta", "min_resource", "rungs"), [(2, 1, (1, 2, 4, 8, 12)), (3, 2, (2, 6, 12)), (4, 12, (12,))]
)
def test_halving_is_a_loop_over_solo_runs(watched, eta, min_resource, rungs):
    name, _, alone, whole = watched
    figure, sign = {"lowest": ("val_loss", 1), "highest": ("val_r2", -1)}[name]
    expected = looped(alone, figure, sign, rungs, eta)
    result = sweep(
        MAKES[name], TRIALS, *ROWS, seeds=SEEDS, epochs=EPOCHS, eta=eta, min_resource=min_resource, method="map"
    )
    for index, end in expected.items():
        for place, seed in enumerate(SEEDS):
            ended, row = alone[index][place].loc[:end], row_of(result, index, seed)
            history = history_of(result, index, seed)
            pd.testing.assert_frame_equal(history, ended, check_exact=True, check_index_type=False)
            stopped = len(alone[index][place]) <= end and row_of(whole, index, seed)["reason"] == "early-stopping"
            assert row["reason"] == ("early-stopping" if stopped else "epochs" if end == EPOCHS else "halving")
            if end == EPOCHS or stopped:
                assert bits(weights_of(result, index, place)) == bits(weights_of(whole, index, place))
    if len(rungs) > 1:
        # What is nan goes first; and there are several ends.
        assert expected[RATES.index(1e30)] == rungs[0] and len(set(expected.values())) > 1


def test_the_dropped_hold_what_they_had_at_their_rung(watched):
    name, plans, *_ = watched
    result = sweep(MAKES[name], TRIALS, *ROWS, seeds=SEEDS, epochs=EPOCHS, eta=3, min_resource=2, method="map")
    dropped = result.table[(result.table["reason"] == "halving")]
    assert set(dropped["epochs"]) <= {2, 6} and len(dropped)
    for _, row in dropped.iterrows():
        run = solo(plans[row["trial"]], row["seed"], row["epochs"])
        assert bits(weights_of(result, row["trial"], SEEDS.index(row["seed"]))) == bits((run.best, run.final))


def test_members_that_stopped_early_stay_in_a_trial_that_is_kept(watched):
    name, _, alone, whole = watched
    result = sweep(MAKES[name], TRIALS, *ROWS, seeds=SEEDS, epochs=EPOCHS, eta=2, min_resource=4, method="map")
    index = RATES.index(0.15)
    ends = [len(history) for history in alone[index]]
    assert min(ends) <= 4 < max(ends)
    for place, seed in enumerate(SEEDS):
        row = row_of(result, index, seed)
        assert (row["epochs"], row["reason"]) == (ends[place], "early-stopping")
        assert bits(weights_of(result, index, place)) == bits(weights_of(whole, index, place))


def of_own_shape(learning_rate):
    return make_linear(learning_rate, NEVER)


def test_halving_compiles_once_more_a_size_of_the_group(compilations):
    trials = [{"learning_rate": rate} for rate in (0.1, 0.03, 0.01, 0.003)]
    with compilations() as names:
        sweep(of_own_shape, trials, *ROWS, seeds=SEEDS, epochs=9, eta=2)
    assert names.count("_run") == 3 and names.count("start_members") == 1  # of 4, 2 and 1 trials
    with compilations() as names:
        sweep(of_own_shape, trials, *ROWS, seeds=SEEDS, epochs=9, eta=2)
    assert "_run" not in names


def interrupted(monkeypatch, after):
    """`group_chunks` stops at Ctrl-C after some chunks of the sweep."""
    group_chunks, done = sweeps.group_chunks, []

    def stopping(*arguments):
        if len(done) == after:
            raise KeyboardInterrupt
        for chunk in group_chunks(*arguments):
            yield chunk
            done.append(chunk)
            if len(done) == after:
                raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "group_chunks", stopping)


def kinds(kind, learning_rate=0.05):
    return make_linear(learning_rate, NEVER)


@pytest.mark.parametrize("after", [0, 1, 6])
def test_an_interrupted_sweep_returns_what_was_reached(monkeypatch, after):
    trials = [{"kind": 0}, {"kind": 1}]
    interrupted(monkeypatch, after)
    result = sweep(kinds, trials, *ROWS, seeds=SEEDS, epochs=99, method="map")
    assert set(result.table["reason"]) == {"interrupted"} and len(result.table) == 6
    first, second = (result.table[result.table["trial"] == index]["epochs"] for index in (0, 1))
    assert first.max() == first.min() <= after and (first.min() > 0) == (after == 6) and second.max() == 0
    assert len(result.history) == first.sum()
    if first.min():
        run = solo(kinds(0), SEEDS[0], int(first.min()))
        assert bits(weights_of(result, 0, 0)[0]) == bits(run.best)
    # Who never began has the weights that it would have begun with.
    begun = start(kinds(1), *ROWS, key=jax.random.key(SEEDS[2]))
    assert bits(weights_of(result, 1, 2)) == bits((begun.best, begun.train_state.variables))


def test_what_was_whole_before_an_interrupt_says_so(monkeypatch):
    group_chunks = sweeps.group_chunks

    def stopping(group, *arguments):
        if group.trials == (1,):
            raise KeyboardInterrupt
        yield from group_chunks(group, *arguments)

    monkeypatch.setattr(sweeps, "group_chunks", stopping)
    result = sweep(kinds, [{"kind": 0}, {"kind": 1}], *ROWS, seeds=SEEDS, epochs=2)
    assert result.table["reason"].tolist() == 3 * ["epochs"] + 3 * ["interrupted"]
    assert result.table["epochs"].tolist() == 3 * [2] + 3 * [0] and result.table["loss"].isna().sum() == 3
    assert set(result.history["trial"]) == {0}


def test_an_interrupt_keeps_why_others_had_ended(monkeypatch):
    trials = [{"learning_rate": rate} for rate in (0.1, 0.03, 0.01)]
    group_chunks = sweeps.group_chunks

    def stopping(group, end, *arguments):
        if end > 1:
            raise KeyboardInterrupt
        yield from group_chunks(group, end, *arguments)

    monkeypatch.setattr(sweeps, "group_chunks", stopping)
    result = sweep(of_own_shape, trials, *ROWS, seeds=SEEDS, epochs=9, eta=3)
    assert sorted(result.table["reason"].tolist()) == 6 * ["halving"] + 3 * ["interrupted"]
    assert set(result.table["epochs"]) == {1}
