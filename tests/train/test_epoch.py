"""Epochs: exact, compiled once, and what the rules make of them."""

from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.data import dataset
from jaxdl.errors import InputError
from jaxdl.losses import absolute_error, squared_error
from jaxdl.metrics import mean, rmse
from jaxdl.nn import mlp
from jaxdl.train import early_stopping, epochs, make_plan, reduce_on_plateau, run_epoch, start
from jaxdl.train.epoch import start_shapes
from jaxdl.train.evaluate import evaluate
from jaxdl.train.loop import prepare_data
from jaxdl.types import Model, Variables

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(77, 3)).astype(np.float32)
TRAIN = dataset(INPUTS, INPUTS.sum(1, keepdims=True) + 0.1 * RANDOM.normal(size=(77, 1)))
VALIDATION = dataset(INPUTS[:20] + 1, INPUTS[:20].sum(1, keepdims=True) + 3)
METRICS = (rmse,)
INJECTED = optax.inject_hyperparams(optax.sgd)(learning_rate=0.05)
# Plans of the same parts share a program.
MODEL, ADAM = mlp((5,)), optax.adam(0.01)


def plan_of(model=None, optimizer=None, **options):
    return make_plan(model or MODEL, squared_error, optimizer or ADAM, metrics=[rmse], batch_size=10, **options)


TWO_EPOCHS = plan_of(early_stopping=early_stopping("val_loss", patience=0, min_delta=1e9))
NEVER_ENDS = plan_of(optimizer=optax.sgd(0.45), early_stopping=early_stopping(patience=None))
LOWERED = plan_of(optimizer=INJECTED, plateau=reduce_on_plateau("val_loss", factor=0.5, patience=1, min_delta=1e9))


def begin(plan, validation=VALIDATION, **options):
    return start(plan, TRAIN, validation, key=jax.random.key(0), **options)


def take_epochs(plan, count, validation=VALIDATION, run_state=None):
    return list(islice(epochs(plan, run_state or begin(plan, validation), TRAIN, validation), count))


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_the_shapes_of_a_start_are_known_without_a_compilation(compilations):
    plan = plan_of(mlp((5,), input_norm=True), ema_decay=0.9, plateau=reduce_on_plateau("loss"), optimizer=INJECTED)
    with compilations() as names:
        result = start_shapes(plan, TRAIN, VALIDATION, key=jax.random.key(0))
    assert "_start" not in names
    wanted = jax.eval_shape(lambda: begin(plan))
    assert jax.tree.structure(result) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(wanted), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_the_shapes_of_a_start_are_refused_as_a_start_is():
    with pytest.raises(InputError, match="batch_size=10 leaves no full batch in 9 training examples"):
        prepare_data(plan_of(), dataset(INPUTS[:9], INPUTS[:9, :1]), None)
    with pytest.raises(InputError, match="compares outputs with targets of the same shape"):
        start_shapes(plan_of(), dataset(INPUTS, INPUTS), key=jax.random.key(0))
    with pytest.raises(InputError, match='monitor="val_loss" is not measured'):
        start_shapes(plan_of(early_stopping=early_stopping("val_loss", patience=1)), TRAIN, key=jax.random.key(0))


def test_epochs_is_the_loop_in_its_docstring(meaning):
    plan = TWO_EPOCHS
    result = take_epochs(plan, 50)
    records = []
    loop = {"run_state": begin(plan), "train": TRAIN, "validation": VALIDATION, "plan": plan, "last": None}
    # A generator's loop yields; what it yields is collected instead.
    messages = meaning(epochs, **loop, run_epoch=run_epoch, keep=lambda run_state, record: records.append(record))
    assert len(records) == len(result) > 1
    same(messages["run_state"], result[-1][0])
    assert result[-1][1] == {"epoch": len(result), **{name: float(value) for name, value in records[-1].items()}}


def test_every_row_is_used_once_an_epoch():
    """A model that adds up the rows it meets in its statistics."""

    def apply(weights, inputs, *, train, key=None, mask=None):
        calls = weights.stats["seen"] + jnp.sum(jnp.where(mask, inputs[:, 0], 0)) if train else weights.stats["seen"]
        return inputs[:, 1:2] * weights.params["w"][None], {"seen": calls}

    model = Model(lambda key, inputs: Variables({"w": jnp.ones(1)}, {"seen": jnp.zeros(())}), apply)
    rows = TRAIN._replace(inputs=np.stack([np.arange(77.0), np.zeros(77)], 1).astype(np.float32))
    plan = plan_of(model)
    run_state, _ = run_epoch(start(plan, rows, key=jax.random.key(0)), rows, None, plan=plan)
    assert float(run_state.train_state.variables.stats["seen"]) == np.arange(77).sum()
    assert int(run_state.train_state.step) == 8


def test_a_record_reads_loss_first_and_holds_python_floats():
    _, record = take_epochs(LOWERED, 1)[0]
    assert list(record) == ["epoch", "loss", "rmse", "val_loss", "val_rmse", "learning_rate"]
    assert [type(value) for value in record.values()] == [int] + [float] * 5
    np.testing.assert_allclose(record["learning_rate"], 0.05, rtol=1e-6)


def test_validation_figures_are_those_of_the_weights_after_the_epoch():
    plan = plan_of()
    run_state, record = take_epochs(plan, 3)[-1]
    result = evaluate(plan.model, run_state.train_state.variables, VALIDATION, squared_error, metrics=[rmse])
    np.testing.assert_allclose(record["val_rmse"], result["rmse"], rtol=1e-6)


def test_training_figures_are_means_over_the_rows_as_they_were_met():
    """With a learning rate of 0 the weights stand still, so they are the figures of the whole set."""
    plan = plan_of(optimizer=optax.sgd(0.0))
    run_state, record = take_epochs(plan, 1)[0]
    whole = evaluate(plan.model, run_state.train_state.variables, TRAIN, squared_error, metrics=[rmse])
    np.testing.assert_allclose(record["loss"], whole["loss"], rtol=1e-5)


def test_going_on_from_a_progress_is_the_run_that_was_never_interrupted():
    plan = plan_of(mlp((5,), dropout=0.2))
    whole = take_epochs(plan, 6)
    again = take_epochs(plan, 3, run_state=take_epochs(plan, 3)[-1][0])
    same(whole[-1][0], again[-1][0])
    assert [record for _, record in whole[3:]] == [record for _, record in again]


def test_the_last_epoch_and_a_stopped_run_end_the_generator():
    plan = TWO_EPOCHS
    assert [record["epoch"] for _, record in epochs(plan, begin(plan), TRAIN, VALIDATION, last=1)] == [1]
    stopped = [run_state for run_state, _ in epochs(plan, begin(plan), TRAIN, VALIDATION)]
    assert len(stopped) == 2
    # The device was an epoch ahead, and nothing of that shows.
    assert int(stopped[-1].epoch) == 2 and int(stopped[-1].train_state.step) == 16
    assert list(epochs(plan, stopped[-1], TRAIN, VALIDATION)) == []


def test_one_training_program_serves_a_run_whatever_the_row_counts(compilations):
    plan = plan_of(mlp((5,)))
    with compilations() as names:
        take_epochs(plan, 4)
        take_epochs(plan, 2)
    assert sorted(names).count("chunk_program") == 1
    assert sorted(names).count("_start") == 1


def test_equal_plans_share_a_program(compilations):
    model, optimizer = mlp((5,)), optax.adam(0.01)
    take_epochs(plan_of(model, optimizer), 1)
    with compilations() as names:
        take_epochs(plan_of(model, optimizer), 1)
    assert names == []


def test_best_weights_are_those_of_the_best_epoch():
    plan = NEVER_ENDS
    calls = take_epochs(plan, 12)
    losses = [record["val_loss"] for _, record in calls]
    best = int(np.nanargmin(losses))
    assert int(calls[-1][0].stopping.best_epoch) == best + 1
    same(calls[-1][0].best, calls[best][0].train_state.variables)


def test_a_run_that_goes_to_nan_keeps_its_best_weights_and_stops():
    plan = plan_of(
        optimizer=optax.chain(optax.scale_by_schedule(lambda n: jnp.where(n < 24, 0.01, jnp.nan)), optax.scale(-1.0)),
        early_stopping=early_stopping("val_loss", patience=2),
    )
    calls = take_epochs(plan, 20)
    assert len(calls) == 5
    assert np.isnan(calls[-1][1]["val_loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(calls[-1][0].best))


def test_a_plateau_lowers_the_rate_of_the_next_epoch():
    rates = [record["learning_rate"] for _, record in take_epochs(LOWERED, 4)]
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.025, 0.0125], rtol=1e-6)


def test_the_monitor_defaults_to_what_is_measured():
    plan = NEVER_ENDS
    ((with_validation, record),) = take_epochs(plan, 1)
    ((without, other),) = take_epochs(plan, 1, validation=None)
    np.testing.assert_allclose(with_validation.stopping.best, record["val_loss"], rtol=1e-6)
    np.testing.assert_allclose(without.stopping.best, other["loss"], rtol=1e-6)


def test_rows_that_are_bound_to_a_device_compile_one_program(compilations):
    plan = plan_of(mlp((5,)))
    bound = jax.device_put(TRAIN, jax.devices()[1])
    run_state = begin(plan)
    with compilations() as names:
        last = list(epochs(plan, run_state, bound, VALIDATION, last=3))[-1][0]
    assert names.count("chunk_program") == 1
    assert last.train_state.step.devices() == {jax.devices()[1]}


def test_row_counts_share_the_program_that_begins_a_run(compilations):
    plan = plan_of()
    begin(plan)
    with compilations() as names:
        start(plan, jax.tree.map(lambda leaf: leaf[:50], TRAIN), key=jax.random.key(0))
    assert names == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"early_stopping": early_stopping("acuracy")}, 'monitor="acuracy" is not measured'),
        ({"batch_size": 100}, "batch_size=100 leaves no full batch"),
    ],
)
def test_a_run_that_goes_on_is_checked_as_one_that_begins(change, message):
    plan = plan_of()
    with pytest.raises(InputError, match=message):
        next(epochs(plan._replace(**change), begin(plan), TRAIN, VALIDATION))


@pytest.mark.parametrize("name", ["loss", "epoch", "val_loss", "learning_rate", "rmse"])
def test_metrics_need_names_of_their_own(name):
    metrics = (rmse, mean(name, absolute_error))
    with pytest.raises(InputError, match=f'got "{name}", which is taken'):
        make_plan(mlp(()), squared_error, INJECTED, metrics=metrics)


def test_several_learning_rates_cannot_be_reduced_as_one():
    optimizer = optax.partition({"a": INJECTED, "b": INJECTED}, lambda params: jax.tree.map(lambda _: "a", params))
    with pytest.raises(InputError, match="holds one learning rate that no schedule sets, got 2"):
        begin(plan_of(optimizer=optimizer, plateau=reduce_on_plateau()))


def test_metrics_may_be_listed():
    assert make_plan(mlp(()), squared_error, INJECTED, metrics=[rmse]).objective.metrics == (rmse,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_plan(mlp(()), rmse, INJECTED),
            "got the metric rmse",
        ),
        (
            lambda: start(plan_of(), (INPUTS, INPUTS), key=jax.random.key(0)),
            "train must be a Dataset, got a tuple",
        ),
        (
            lambda: begin(plan_of(), validation=dataset(INPUTS[:, :2], INPUTS[:, :1])),
            r"validation inputs must have the shape of training inputs, \(3,\) for each example, got \(2,\)",
        ),
        (
            lambda: make_plan(mlp(()), squared_error, INJECTED, metrics=[rmse], batch_size=0),
            "batch_size must be at least 1, got 0",
        ),
        (
            lambda: start(
                make_plan(mlp(()), squared_error, INJECTED, metrics=[rmse], batch_size=78), TRAIN, key=jax.random.key(0)
            ),
            "batch_size=78 leaves no full batch in 77 training examples. Use at most 77.",
        ),
        (
            lambda: begin(plan_of(early_stopping=early_stopping("accuracy"))),
            'monitor="accuracy" is not measured. This run measures: loss, rmse, val_loss, val_rmse',
        ),
        (
            lambda: begin(plan_of(early_stopping=early_stopping("val_loss")), validation=None),
            'monitor="val_loss" is not measured',
        ),
        (lambda: begin(plan_of(mlp((), outputs=2))), r"outputs \(10, 2\) and targets \(10, 1\)"),
        (lambda: begin(plan_of(plateau=reduce_on_plateau())), "holds one learning rate that no schedule sets, got 0"),
        (
            lambda: begin(
                plan_of(
                    optimizer=optax.inject_hyperparams(optax.sgd)(learning_rate=optax.constant_schedule(0.1)),
                    plateau=reduce_on_plateau(),
                )
            ),
            "that no schedule sets",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
