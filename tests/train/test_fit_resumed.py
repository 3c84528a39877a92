"""Resuming: a run that stopped early trains on under another rule, and a progress of something else is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import (
    InputError,
    Objective,
    early_stopping,
    examples,
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
from jaxdl.train.epoch import advance
from jaxdl.train.fit import data_of_epoch
from jaxdl.train.plan import NEVER

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(70, 4)).astype(np.float32)
TARGETS = (INPUTS @ np.array([1, -2, 3, 0.5], np.float32))[:, None]
ROWS = examples(INPUTS, TARGETS)
# The least that can be trained, and a network for what is told of layers.
MODEL, NETWORK, OPTIMIZER = mlp(()), mlp((4,)), optax.adam(1e-2)
SLOW, SGD = optax.sgd(1e-3), optax.sgd(1e-2)
INJECTED = optax.inject_hyperparams(optax.sgd)(learning_rate=0.01)
OBJECTIVE = Objective(squared_error)
# No epoch improves by so much, so the run ends after patience + 1 epochs.
STOP = early_stopping("loss", patience=2, min_delta=100.0)
PLAN = make_plan(MODEL, OBJECTIVE, OPTIMIZER)


def train(**options):
    return fit(**{"model": MODEL, "objective": OBJECTIVE, "optimiser": OPTIMIZER, "train": ROWS, **options})


def train_seeds(**options):
    return fit_seeds(MODEL, OBJECTIVE, OPTIMIZER, ROWS, **options)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def stopped():
    run = train(epochs=9, stop=STOP)
    assert (run.reason, len(run.records)) == ("early-stopping", 3)
    return run


@pytest.mark.parametrize("stop", [NEVER, early_stopping("loss", patience=50, min_delta=100.0)])
def test_a_run_that_stopped_early_trains_on_with_more_patience_or_without_a_rule(stopped, stop):
    rest = train(epochs=9, progress=stopped.progress, stop=stop)
    assert [record["epoch"] for record in rest.records] == [4, 5, 6, 7, 8, 9] and rest.reason == "epochs"
    assert_equal(rest.final, train(epochs=9).final)


def test_a_run_that_stopped_early_ends_where_the_larger_patience_would_have_ended_it(stopped):
    longer = early_stopping("loss", patience=4, min_delta=100.0)
    rest, whole = (train(epochs=9, stop=longer, **options) for options in ({"progress": stopped.progress}, {}))
    assert int(rest.progress.epoch) == int(whole.progress.epoch) == 5
    assert_equal((rest.final, rest.best), (whole.final, whole.best))


def test_the_rule_that_ended_a_run_leaves_it_as_it_is(stopped):
    rest = train(epochs=9, progress=stopped.progress, stop=STOP)
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
    rest, whole = train(epochs=9, progress=stopped, stop=stop), train(epochs=9, stop=stop)
    assert (rest.reason, len(rest.records)) == (whole.reason, len(whole.records))
    assert len(rest.records) > 3
    assert_equal(rest.final, whole.final)


def test_a_stricter_rule_leaves_a_run_that_has_ended(stopped):
    stop = early_stopping("loss", patience=1, min_delta=100.0)
    assert len(train(epochs=9, progress=stopped, stop=stop).records) == 3


def test_members_at_different_epochs_all_reach_the_last():
    objective = Objective(squared_error)
    noise = examples(INPUTS, np.random.default_rng(3).normal(size=(len(INPUTS), 1)))
    flags = {"model": MODEL, "objective": objective, "optimiser": optax.adam(0.05), "train": ROWS, "validation": noise}
    first = fit_seeds(**flags, seeds=(0, 1, 2), epochs=20, stop=early_stopping(patience=1), how="map")
    reached = np.asarray(first.progress.epoch)
    assert len(set(reached)) > 1 and first.reasons == ("early-stopping",) * 3
    last = int(reached.max()) + 2
    stops = []

    def stop_inside(progress, records):
        if len(records) == len(first.records) + stops[-1]:
            raise KeyboardInterrupt

    def resumed(*after):
        run = first
        for stops[:] in ([number] for number in after):
            run = fit_seeds(**flags, epochs=last, progress=run, how="map", observers=[stop_inside])
            assert set(run.reasons) == {"interrupted"}
        return fit_seeds(**flags, epochs=last, progress=run, how="map")

    for run in (resumed(), resumed(1), resumed(last - reached.min() - 1)):
        assert np.asarray(run.progress.epoch).tolist() == [last] * 3 and run.reasons == ("epochs",) * 3
        for seed in range(3):
            alone = fit(**flags, seed=seed, epochs=last)
            assert_equal(jax.tree.map(lambda leaf, seed=seed: leaf[seed], run.final), alone.final)
            own = run.history[run.history["member"] == seed].drop(columns="member").set_index("epoch")
            np.testing.assert_array_equal(own.index, range(1, last + 1))
            np.testing.assert_array_equal(
                own["val_loss"].astype(np.float32), alone.history["val_loss"].astype(np.float32)
            )


def test_members_that_stand_still_wait_for_the_epoch_of_the_others():
    plan = make_plan(MODEL, OBJECTIVE, OPTIMIZER, stop=STOP)
    first = train_seeds(seeds=(0, 1), epochs=2, how="map")
    # Of two members one has stopped, and the other is cut inside the next epoch.
    over = first.progress.stopping._replace(done=jnp.array([True, False]), stale=jnp.array([9, 0]))
    half, _ = run_members(first.progress._replace(stopping=over), ROWS, None, 1, plan=plan, how="map")
    assert int(half.cursor) == 1 and np.asarray(half.epoch).tolist() == [2, 2]
    with pytest.warns(RuntimeWarning, match="does not hold which data"):
        both = train_seeds(epochs=4, progress=half, how="map")
    whole = train_seeds(seeds=(0, 1), epochs=4, how="map")
    assert np.asarray(both.progress.epoch).tolist() == [4, 4]
    assert_equal(both.final, whole.final)


@pytest.mark.parametrize("stop", [NEVER, early_stopping("loss", patience=4, min_delta=100.0)])
def test_members_that_stopped_early_train_on(stop):
    first = train_seeds(seeds=(0, 1), epochs=6, stop=STOP)
    assert first.reasons == ("early-stopping",) * 2
    rest, whole = (
        train_seeds(epochs=6, stop=stop, **options) for options in ({"progress": first.progress}, {"seeds": (0, 1)})
    )
    np.testing.assert_array_equal(rest.progress.epoch, whole.progress.epoch)
    assert_equal(rest.final, whole.final)


def test_reduce_on_plateau_may_be_added_and_left_out():
    first = train(optimiser=INJECTED, epochs=1)
    plateau = reduce_on_plateau("loss", patience=1, factor=0.5, min_delta=100.0)
    added = train(optimiser=INJECTED, epochs=4, progress=first.progress, plateau=plateau)
    rates = [round(record["learning_rate"] / 0.01, 3) for record in added.records]
    assert rates == [1.0, 1.0, 0.5]
    left = train(optimiser=INJECTED, epochs=6, progress=added.progress)
    assert len({record["learning_rate"] for record in left.records}) == 1


def test_reduce_on_plateau_may_be_added_to_a_checkpoint_and_left_out(tmp_path):
    options = {"optimiser": INJECTED, "plateau": reduce_on_plateau("loss", patience=1, factor=0.5, min_delta=100.0)}
    for name, first, then in (
        ("left out", options, {"optimiser": INJECTED}),
        ("added", {"optimiser": INJECTED}, options),
    ):
        with saving.keeper(tmp_path / name, {}, every=99, tell=print) as keep:
            run = train(**first, epochs=3, observers=[keep])
        kept = train(**then, epochs=5, progress=saving.latest(tmp_path / name, print))
        expected = train(**then, epochs=5, progress=run)
        assert_equal(kept.final, expected.final)
        assert kept.records == expected.records and len(kept.records) == 5


OTHERS = {
    "sgd before adam": ({"optimiser": optax.sgd(0.1)}, {}, "nothing for state/opt_state"),
    "adamw before adam": ({"optimiser": optax.adamw(0.1)}, {}, "the state of another optimizer"),
    "momentum before none": (
        {"optimiser": optax.sgd(0.1, momentum=0.9)},
        {"optimiser": optax.sgd(0.1)},
        "expected nothing",
    ),
    "another metric": ({"objective": Objective(squared_error, (metrics.rmse,))}, {}, "sums/totals/rmse"),
    "another width": (
        {"model": mlp((5,))},
        {},
        r"float32 of shape \(4, 5\) for params/.*, expected float32 of shape \(4, 4\)",
    ),
    "another depth": ({"model": mlp((4, 4))}, {}, "for params/"),
    "other columns": ({"train": examples(INPUTS[:, :3], TARGETS)}, {}, r"of shape \(3, 4\) for params/"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_progress_of_another_run_is_refused_by_the_first_array_that_differs(name):
    first, then, said = OTHERS[name]
    of = {"model": NETWORK, "objective": OBJECTIVE, "optimiser": OPTIMIZER, "train": ROWS, **first}
    rows = of.pop("train")
    progress = start(make_plan(*of.values()), rows, key=jax.random.key(0))
    with pytest.raises(InputError, match=f"progress has .*{said}"):
        train(epochs=2, progress=progress, **{"model": NETWORK, **then})


def test_a_progress_of_another_dtype_is_refused(stopped):
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), stopped.progress.state.weights)
    progress = stopped.progress._replace(state=stopped.progress.state._replace(weights=halves))
    with pytest.raises(InputError, match=r"progress has bfloat16 of shape .* expected float32"):
        train(epochs=9, progress=progress)


def test_members_of_another_width_are_refused():
    progress = start_members(seed_keys((0, 1)), ROWS, plan=make_plan(mlp((5,)), OBJECTIVE, OPTIMIZER))
    with pytest.raises(InputError, match=r"float32 of shape \(4, 5\) for params/.* expected float32 of shape \(4, 4\)"):
        fit_seeds(NETWORK, OBJECTIVE, OPTIMIZER, ROWS, epochs=2, progress=progress)


def test_fit_and_fit_seeds_refuse_the_progress_of_each_other(stopped):
    many = train_seeds(seeds=(0, 1), epochs=1).progress
    with pytest.raises(InputError, match="progress is that of 2 runs"):
        train(epochs=2, progress=many)
    with pytest.raises(InputError, match="got that of a single run"):
        train_seeds(epochs=9, progress=stopped.progress)


def test_a_progress_goes_without_seed_and_weights(stopped):
    for name, value in {"seed": 0, "weights": stopped.final}.items():
        with pytest.raises(InputError, match=f"{name}.* has no effect beside progress"):
            train(epochs=9, progress=stopped.progress, **{name: value})


def test_members_continue_with_their_own_seeds_or_without_naming_them():
    first = train_seeds(seeds=(3, 5), epochs=1)
    whole = train_seeds(seeds=(3, 5), epochs=2)
    for seeds in (None, (3, 5)):
        assert_equal(train_seeds(seeds=seeds, epochs=2, progress=first.progress).final, whole.final)
    with pytest.raises(InputError, match="progress is that of other seeds"):
        train_seeds(seeds=(3, 6), epochs=2, progress=first.progress)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("batch_size", [16, 64])
def test_an_epoch_goes_on_with_its_own_batch_size_alone(steps, batch_size):
    middle = advance(start(PLAN, ROWS, key=jax.random.key(0)), ROWS, None, steps, plan=PLAN)[0]
    with pytest.raises(InputError, match="progress stands"):
        train(epochs=1, batch_size=batch_size, progress=middle)
    with pytest.warns(RuntimeWarning, match="progress stands inside an epoch and does not hold which data"):
        rest = train(epochs=1, progress=middle)
    assert_equal(rest.final, train(epochs=1).final)


def test_a_run_between_epochs_may_change_its_batch_size():
    run = train(epochs=2, batch_size=16, progress=train(epochs=1).progress)
    assert int(run.progress.state.step) == 3 + 5


@pytest.mark.parametrize("on_nan", ["raise", "Stop", None])
def test_what_to_do_at_nan_is_one_of_two(on_nan):
    with pytest.raises(InputError, match='on_nan must be "stop" or "continue"'):
        train(epochs=1, on_nan=on_nan)


def interrupted(rows, batch_size=8, **arguments):
    """The result of a run that ended inside its second epoch."""
    run = fit(MODEL, OBJECTIVE, SLOW, rows, epochs=1, batch_size=batch_size, **arguments)
    plan = make_plan(MODEL, OBJECTIVE, SLOW, batch_size=batch_size)
    inside = advance(run.progress, training_rows(rows), None, 3, plan=plan)[0]
    return run._replace(progress=inside, data=data_of_epoch(plan, inside, rows))


def test_a_result_inside_an_epoch_resumes_on_its_own_rows_alone():
    x = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    rows, others = examples(x, x[:, :1]), examples(x, x[:, 1:])
    fewer = examples(x[:48], x[:48, :1])
    run = interrupted(rows)
    whole = fit(MODEL, OBJECTIVE, SLOW, rows, epochs=2, batch_size=8)
    for one, other in zip(
        *(
            jax.tree.leaves(each.final)
            for each in (whole, fit(MODEL, OBJECTIVE, SLOW, rows, epochs=2, batch_size=8, progress=run))
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    for wrong in (others, fewer):
        with pytest.raises(InputError, match=r"an epoch of batch_size=8, 64 rows, checksum \w+, got batch_size=8"):
            fit(MODEL, OBJECTIVE, SLOW, wrong, epochs=2, batch_size=8, progress=run)
    # Between two epochs other rows may follow.
    done = fit(MODEL, OBJECTIVE, SLOW, rows, epochs=1, batch_size=8)
    assert len(fit(MODEL, OBJECTIVE, SLOW, others, epochs=2, batch_size=8, progress=done).records) == 2


def test_a_result_inside_an_epoch_of_weighted_rows_or_a_source_is_checked_too():
    x = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    rows = examples(x, x[:, :1], np.linspace(0.1, 2, 64))
    with pytest.raises(InputError, match=r"batch_size=8, 64 rows, .* got batch_size=16"):
        fit(MODEL, OBJECTIVE, SLOW, rows, epochs=2, batch_size=16, progress=interrupted(rows))


def test_another_monitor_makes_the_best_epoch_one_of_those_to_come():
    x = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    rows, objective = examples(x, x[:, :1]), Objective(squared_error, (metrics.r2(),))
    loss, score = (early_stopping(name, patience=9) for name in ("val_loss", "val_r2"))
    first = fit(MODEL, objective, SGD, rows, rows, epochs=2, stop=loss)
    then = fit(MODEL, objective, SGD, rows, rows, epochs=4, stop=score, progress=first)
    values = [record["val_r2"] for record in then.records]
    assert then.best_epoch == 3 + int(np.argmax(values[2:]))
    same = fit(MODEL, objective, SGD, rows, rows, epochs=4, stop=loss, progress=first)
    losses = [record["val_loss"] for record in same.records]
    assert same.best_epoch == 1 + int(np.argmin(losses))
    many = fit_seeds(MODEL, objective, SGD, rows, rows, seeds=(0, 1), epochs=2)
    resumed = fit_seeds(MODEL, objective, SGD, rows, rows, seeds=(0, 1), epochs=3, progress=many, stop=score)
    assert resumed.best_epochs.tolist() == [3, 3]
