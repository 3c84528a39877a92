"""Resuming: a run that stopped early trains on under another rule, and the state of another run is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import (
    InputError,
    dataset,
    early_stopping,
    fit,
    fit_seeds,
    make_plan,
    metrics,
    mlp,
    reduce_on_plateau,
    saving,
    start,
)
from jaxdl.data.batches import training_rows
from jaxdl.ensembles import run_members, start_members
from jaxdl.ensembles.seeds import seed_keys
from jaxdl.losses import squared_error
from jaxdl.train.epoch import run_steps
from jaxdl.train.loop import prepare_data
from jaxdl.train.plan import NEVER
from jaxdl.train.resume import data_of_epoch

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(70, 4)).astype(np.float32)
TARGETS = (INPUTS @ np.array([1, -2, 3, 0.5], np.float32))[:, None]
ROWS = dataset(INPUTS, TARGETS)
# The least that can be trained, and a network for messages that name layers.
MODEL, NETWORK, OPTIMIZER = mlp(()), mlp((4,)), optax.adam(1e-2)
SLOW, SGD = optax.sgd(1e-3), optax.sgd(1e-2)
INJECTED = optax.inject_hyperparams(optax.sgd)(learning_rate=0.01)
# No epoch improves by so much, so the run ends after patience + 1 epochs.
STOP = early_stopping("loss", patience=2, min_delta=100.0)
PLAN = make_plan(MODEL, squared_error, OPTIMIZER)


def train(**options):
    return fit(**{"model": MODEL, "loss": squared_error, "optimizer": OPTIMIZER, "train": ROWS, **options})


def train_seeds(**options):
    return fit_seeds(MODEL, squared_error, OPTIMIZER, ROWS, **options)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def stopped():
    run = train(epochs=9, early_stopping=STOP)
    assert (run.reason, len(run.records)) == ("early-stopping", 3)
    return run


@pytest.mark.parametrize("stop", [NEVER, early_stopping("loss", patience=50, min_delta=100.0)])
def test_a_run_that_stopped_early_trains_on_with_more_patience_or_without_a_rule(stopped, stop):
    rest = train(epochs=9, state=stopped.state, early_stopping=stop)
    assert [record["epoch"] for record in rest.records] == [4, 5, 6, 7, 8, 9] and rest.reason == "epochs"
    assert_equal(rest.final, train(epochs=9).final)


def test_a_run_that_stopped_early_ends_where_the_larger_patience_would_have_ended_it(stopped):
    longer = early_stopping("loss", patience=4, min_delta=100.0)
    rest, whole = (train(epochs=9, early_stopping=longer, **options) for options in ({"state": stopped.state}, {}))
    assert int(rest.state.epoch) == int(whole.state.epoch) == 5
    assert_equal((rest.final, rest.best), (whole.final, whole.best))


def test_the_rule_that_ended_a_run_leaves_it_as_it_is(stopped):
    rest = train(epochs=9, state=stopped.state, early_stopping=STOP)
    assert (rest.records, rest.reason) == ([], "early-stopping")


@pytest.mark.parametrize(
    "stop",
    [
        early_stopping("loss", patience=2),
        early_stopping("loss", patience=2, start_from_epoch=5, min_delta=100.0),
        early_stopping("loss", patience=3, min_delta=1e-3),
    ],
)
def test_another_rule_with_the_records_ends_a_run_where_it_would_have_ended_it(stopped, stop):
    rest, whole = train(epochs=9, state=stopped, early_stopping=stop), train(epochs=9, early_stopping=stop)
    assert (rest.reason, len(rest.records)) == (whole.reason, len(whole.records))
    assert len(rest.records) > 3
    assert_equal(rest.final, whole.final)


def test_a_stricter_rule_leaves_a_run_that_has_ended(stopped):
    stop = early_stopping("loss", patience=1, min_delta=100.0)
    assert len(train(epochs=9, state=stopped, early_stopping=stop).records) == 3


def test_members_at_different_epochs_all_reach_the_last():
    noise = dataset(INPUTS, np.random.default_rng(3).normal(size=(len(INPUTS), 1)))
    flags = {"model": MODEL, "loss": squared_error, "optimizer": optax.adam(0.05), "train": ROWS, "validation": noise}
    first = fit_seeds(**flags, seeds=(0, 1, 2), epochs=20, early_stopping=early_stopping(patience=1), method="map")
    reached = np.asarray(first.state.epoch)
    assert len(set(reached)) > 1 and first.reasons == ("early-stopping",) * 3
    last = int(reached.max()) + 2
    stops = []

    def stop_inside(run_state, records):
        if len(records) == len(first.records) + stops[-1]:
            raise KeyboardInterrupt

    def resumed(*after):
        run = first
        for stops[:] in ([number] for number in after):
            run = fit_seeds(**flags, epochs=last, state=run, method="map", callbacks=[stop_inside])
            assert set(run.reasons) == {"interrupted"}
        return fit_seeds(**flags, epochs=last, state=run, method="map")

    for run in (resumed(), resumed(1), resumed(last - reached.min() - 1)):
        assert np.asarray(run.state.epoch).tolist() == [last] * 3 and run.reasons == ("epochs",) * 3
        for seed in range(3):
            alone = fit(**flags, seed=seed, epochs=last)
            assert_equal(jax.tree.map(lambda leaf, seed=seed: leaf[seed], run.final), alone.final)
            own = run.history[run.history["member"] == seed].drop(columns="member").set_index("epoch")
            np.testing.assert_array_equal(own.index, range(1, last + 1))
            np.testing.assert_array_equal(
                own["val_loss"].astype(np.float32), alone.history["val_loss"].astype(np.float32)
            )


def test_members_that_stand_still_wait_for_the_epoch_of_the_others():
    plan = make_plan(MODEL, squared_error, OPTIMIZER, early_stopping=STOP)
    first = train_seeds(seeds=(0, 1), epochs=2, method="map")
    # Of two members one has stopped, and the other is cut inside the next epoch.
    over = first.state.stopping._replace(
        should_stop=jnp.array([True, False]), epochs_without_improvement=jnp.array([9, 0])
    )
    half, _ = run_members(first.state._replace(stopping=over), ROWS, None, 1, plan=plan, method="map")
    assert int(half.cursor) == 1 and np.asarray(half.epoch).tolist() == [2, 2]
    with pytest.warns(RuntimeWarning, match="does not hold the data"):
        both = train_seeds(epochs=4, state=half, method="map")
    whole = train_seeds(seeds=(0, 1), epochs=4, method="map")
    assert np.asarray(both.state.epoch).tolist() == [4, 4]
    assert_equal(both.final, whole.final)


@pytest.mark.parametrize("stop", [NEVER, early_stopping("loss", patience=4, min_delta=100.0)])
def test_members_that_stopped_early_train_on(stop):
    first = train_seeds(seeds=(0, 1), epochs=6, early_stopping=STOP)
    assert first.reasons == ("early-stopping",) * 2
    rest, whole = (
        train_seeds(epochs=6, early_stopping=stop, **options) for options in ({"state": first.state}, {"seeds": (0, 1)})
    )
    np.testing.assert_array_equal(rest.state.epoch, whole.state.epoch)
    assert_equal(rest.final, whole.final)


def test_reduce_on_plateau_may_be_added_and_left_out():
    first = train(optimizer=INJECTED, epochs=1)
    plateau = reduce_on_plateau("loss", patience=1, factor=0.5, min_delta=100.0)
    added = train(optimizer=INJECTED, epochs=4, state=first.state, plateau=plateau)
    rates = [round(record["learning_rate"] / 0.01, 3) for record in added.records]
    assert rates == [1.0, 1.0, 0.5]
    left = train(optimizer=INJECTED, epochs=6, state=added.state)
    assert len({record["learning_rate"] for record in left.records}) == 1


def test_reduce_on_plateau_may_be_added_to_a_checkpoint_and_left_out(tmp_path):
    options = {"optimizer": INJECTED, "plateau": reduce_on_plateau("loss", patience=1, factor=0.5, min_delta=100.0)}
    for name, first, then in (
        ("left out", options, {"optimizer": INJECTED}),
        ("added", {"optimizer": INJECTED}, options),
    ):
        with saving.checkpointer(tmp_path / name, {}, every=99, warn=print) as keep:
            run = train(**first, epochs=3, callbacks=[keep])
        remaining = train(**then, epochs=5, state=saving.restore_latest(tmp_path / name, print))
        expected = train(**then, epochs=5, state=run)
        assert_equal(remaining.final, expected.final)
        assert remaining.records == expected.records and len(remaining.records) == 5


OTHERS = {
    "sgd before adam": ({"optimizer": optax.sgd(0.1)}, {}, "has nothing for train_state/opt_state"),
    "adamw before adam": ({"optimizer": optax.adamw(0.1)}, {}, "is that of another optimizer"),
    "momentum before none": (
        {"optimizer": optax.sgd(0.1, momentum=0.9)},
        {"optimizer": optax.sgd(0.1)},
        "expected nothing",
    ),
    "another metric": ({"metrics": [metrics.rmse]}, {}, "sums/totals/rmse"),
    "another width": (
        {"model": mlp((5,))},
        {},
        r"float32 of shape \(4, 5\) for params/.*, expected float32 of shape \(4, 4\)",
    ),
    "another depth": ({"model": mlp((4, 4))}, {}, "for params/"),
    "other columns": ({"train": dataset(INPUTS[:, :3], TARGETS)}, {}, r"of shape \(3, 4\) for params/"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_another_run_is_refused_by_the_first_array_that_differs(name):
    first, then, output = OTHERS[name]
    of = {"model": NETWORK, "loss": squared_error, "optimizer": OPTIMIZER, "train": ROWS, **first}
    rows = of.pop("train")
    run_state = start(make_plan(**of), rows, key=jax.random.key(0))
    with pytest.raises(InputError, match=f"state .*{output}"):
        train(epochs=2, state=run_state, **{"model": NETWORK, **then})


def test_a_state_of_another_dtype_is_refused(stopped):
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), stopped.state.train_state.variables)
    run_state = stopped.state._replace(train_state=stopped.state.train_state._replace(variables=halves))
    with pytest.raises(InputError, match=r"state has bfloat16 of shape .* expected float32"):
        train(epochs=9, state=run_state)


def test_members_of_another_width_are_refused():
    run_state = start_members(seed_keys((0, 1)), ROWS, plan=make_plan(mlp((5,)), squared_error, OPTIMIZER))
    with pytest.raises(InputError, match=r"float32 of shape \(4, 5\) for params/.* expected float32 of shape \(4, 4\)"):
        fit_seeds(NETWORK, squared_error, OPTIMIZER, ROWS, epochs=2, state=run_state)


def test_fit_and_fit_seeds_refuse_the_state_of_each_other(stopped):
    many = train_seeds(seeds=(0, 1), epochs=1).state
    with pytest.raises(InputError, match="state is that of 2 runs"):
        train(epochs=2, state=many)
    with pytest.raises(InputError, match="got that of a single run"):
        train_seeds(epochs=9, state=stopped.state)


def test_seed_and_variables_are_refused_beside_state(stopped):
    for name, value in {"seed": 0, "variables": stopped.final}.items():
        with pytest.raises(InputError, match=f"{name}.* has no effect beside state"):
            train(epochs=9, state=stopped.state, **{name: value})


def test_members_continue_with_their_own_seeds_or_without_naming_them():
    first = train_seeds(seeds=(3, 5), epochs=1)
    whole = train_seeds(seeds=(3, 5), epochs=2)
    for seeds in (None, (3, 5)):
        assert_equal(train_seeds(seeds=seeds, epochs=2, state=first.state).final, whole.final)
    with pytest.raises(InputError, match="state is that of other seeds"):
        train_seeds(seeds=(3, 6), epochs=2, state=first.state)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("batch_size", [16, 64])
def test_a_state_inside_an_epoch_needs_the_same_batch_size(steps, batch_size):
    middle = run_steps(start(PLAN, ROWS, key=jax.random.key(0)), ROWS, None, steps, plan=PLAN)[0]
    with pytest.raises(InputError, match="state is inside an epoch"):
        train(epochs=1, batch_size=batch_size, state=middle)
    with pytest.warns(RuntimeWarning, match="state is inside an epoch and does not hold the data"):
        rest = train(epochs=1, state=middle)
    assert_equal(rest.final, train(epochs=1).final)


def test_a_run_between_epochs_may_change_its_batch_size():
    run = train(epochs=2, batch_size=16, state=train(epochs=1).state)
    assert int(run.state.train_state.step) == 3 + 5


@pytest.mark.parametrize("on_nan", ["raise", "Stop", None])
def test_on_nan_must_be_stop_or_continue(on_nan):
    with pytest.raises(InputError, match='on_nan must be "stop" or "continue"'):
        train(epochs=1, on_nan=on_nan)


def interrupted(rows, batch_size=8, **arguments):
    """The result of a run that ended inside its second epoch."""
    run = fit(
        MODEL,
        squared_error,
        SLOW,
        rows,
        epochs=1,
        batch_size=batch_size,
        **arguments,
    )
    plan = make_plan(MODEL, squared_error, SLOW, batch_size=batch_size)
    inside = run_steps(run.state, training_rows(rows), None, 3, plan=plan)[0]
    return run._replace(state=inside, data=data_of_epoch(inside, prepare_data(plan, rows, None)[0]))


def test_a_result_inside_an_epoch_resumes_on_its_own_rows_alone():
    x = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    rows, others = dataset(x, x[:, :1]), dataset(x, x[:, 1:])
    fewer = dataset(x[:48], x[:48, :1])
    run = interrupted(rows)
    whole = fit(MODEL, squared_error, SLOW, rows, epochs=2, batch_size=8)
    for one, other in zip(
        *(
            jax.tree.leaves(each.final)
            for each in (
                whole,
                fit(
                    MODEL,
                    squared_error,
                    SLOW,
                    rows,
                    epochs=2,
                    batch_size=8,
                    state=run,
                ),
            )
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    for wrong in (others, fewer):
        with pytest.raises(InputError, match=r"an epoch of batch_size=8, 64 rows, checksum \w+, got batch_size=8"):
            fit(MODEL, squared_error, SLOW, wrong, epochs=2, batch_size=8, state=run)
    # Between two epochs other rows may follow.
    done = fit(MODEL, squared_error, SLOW, rows, epochs=1, batch_size=8)
    assert (
        len(
            fit(
                MODEL,
                squared_error,
                SLOW,
                others,
                epochs=2,
                batch_size=8,
                state=done,
            ).records
        )
        == 2
    )


def test_a_result_inside_an_epoch_of_weighted_rows_or_a_source_is_checked_too():
    x = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    rows = dataset(x, x[:, :1], np.linspace(0.1, 2, 64))
    with pytest.raises(InputError, match=r"batch_size=8, 64 rows, .* got batch_size=16"):
        fit(
            MODEL,
            squared_error,
            SLOW,
            rows,
            epochs=2,
            batch_size=16,
            state=interrupted(rows),
        )


def test_under_another_monitor_only_later_epochs_can_be_the_best():
    x = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    rows, measured = dataset(x, x[:, :1]), [metrics.r2()]
    loss, score = (early_stopping(name, patience=9) for name in ("val_loss", "val_r2"))
    first = fit(MODEL, squared_error, SGD, rows, rows, metrics=measured, epochs=2, early_stopping=loss)
    then = fit(MODEL, squared_error, SGD, rows, rows, metrics=measured, epochs=4, early_stopping=score, state=first)
    values = [record["val_r2"] for record in then.records]
    assert then.best_epoch == 3 + int(np.argmax(values[2:]))
    same = fit(MODEL, squared_error, SGD, rows, rows, metrics=measured, epochs=4, early_stopping=loss, state=first)
    losses = [record["val_loss"] for record in same.records]
    assert same.best_epoch == 1 + int(np.argmin(losses))
    many = fit_seeds(MODEL, squared_error, SGD, rows, rows, metrics=measured, seeds=(0, 1), epochs=2)
    resumed = fit_seeds(
        MODEL,
        squared_error,
        SGD,
        rows,
        rows,
        metrics=measured,
        seeds=(0, 1),
        epochs=3,
        state=many,
        early_stopping=score,
    )
    assert resumed.best_epochs.tolist() == [3, 3]
