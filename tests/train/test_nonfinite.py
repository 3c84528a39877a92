"""Where a number that is not finite arises: each way in which one can."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdl import losses
from jaxdl._tree import flatten_named
from jaxdl.data import dataset
from jaxdl.data.batches import permutation
from jaxdl.nn import convnet, crop, flip, from_linen, from_nnx, mlp, residual_net, with_augmentation
from jaxdl.train import chunks, make_plan, make_train_state, make_train_step, start
from jaxdl.train.nonfinite import NonFinite, NonFiniteError, check_finite, find_origin, in_evaluation, in_step
from jaxdl.types import Metric, Model, Objective, Variables

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.uniform(0.5, 1, size=(8, 3)).astype(np.float32)
BATCH = jax.tree.map(jnp.asarray, dataset(INPUTS, INPUTS[:, :1]))
ALL = tuple(range(8))
SQUARED = Objective(losses.squared_error)


def state_of(plan, batch=BATCH, change=lambda weights: weights):
    weights = change(jax.jit(plan.model.init)(jax.random.key(0), batch.inputs))
    return make_train_state(weights, plan.optimizer, jax.random.key(1))


def step_of(model=None, objective=SQUARED, optimizer=None, batch=BATCH, change=lambda weights: weights):
    plan = make_plan(
        model or mlp((5, 4)), objective.loss, optimizer or optax.sgd(0.1), metrics=objective.metrics, batch_size=8
    )
    return in_step(plan, state_of(plan, batch, change), batch)


class Logs(nn.Module):
    """A layer whose logarithm fails where a row is negative."""

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(1, name="Head")(Inner(name="Logarithm")(inputs))


class Inner(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return jnp.log(inputs)


def negative_in(rows):
    inputs = INPUTS.copy()
    inputs[list(rows), 1] = -1
    return BATCH._replace(inputs=jnp.asarray(inputs))


def test_the_layer_and_the_rows_are_named():
    result = step_of(from_linen(Logs()), batch=negative_in((2, 5)))
    assert result == ("Logarithm (log)", "nan", (2, 5))


def test_padding_is_not_blamed():
    weights = jnp.asarray(np.where(np.isin(np.arange(8), (2, 7)), 0, 1).astype(np.float32))
    assert step_of(from_linen(Logs()), batch=negative_in((2, 5))._replace(sample_weight=weights)).rows == (5,)
    plan = make_plan(from_linen(Logs()), losses.squared_error, optax.sgd(0.1))
    padded = negative_in((2, 7))._replace(sample_weight=weights)
    assert in_evaluation(plan, plan.model.init(jax.random.key(0), BATCH.inputs), padded) is None


def test_an_overflow_is_found_in_the_layer_where_it_happens():
    def enlarge(weights):
        params = jax.tree.map(lambda leaf: leaf, weights.params)
        params["Dense_1"]["kernel"] = jnp.full((5, 4), 3e38)
        return weights._replace(params=params)

    result = step_of(mlp((5, 4), dropout=0.2), change=enlarge)
    assert result.layer == "Dense_1 (dot_general)" and result.value == "inf"


def test_batch_normalisation_does_not_hide_the_row_that_spoils_all():
    inputs = INPUTS.copy()
    inputs[3] = 3e38
    result = step_of(mlp((5,), input_norm=True), batch=BATCH._replace(inputs=jnp.asarray(inputs)))
    assert result.layer.startswith("BatchNorm_0") and result.value == "inf"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_and_rows_that_were_not_finite_before_are_told_as_such(value):
    def spoil(weights):
        params = jax.tree.map(lambda leaf: leaf, weights.params)
        params["Dense_1"]["kernel"] = params["Dense_1"]["kernel"].at[0, 0].set(value)
        return weights._replace(params=params)

    assert step_of(change=spoil) == ("params/Dense_1/kernel before the step", str(value), ALL)
    spoilt = BATCH._replace(inputs=BATCH.inputs.at[6, 0].set(value))
    assert step_of(batch=spoilt) == ("the inputs", str(value), (6,))
    spoilt = BATCH._replace(targets=BATCH.targets.at[4, 0].set(value))
    assert step_of(batch=spoilt) == ("the targets", str(value), (4,))


def test_a_loss_that_divides_by_zero_is_found():
    def relative(outputs, targets):
        return ((outputs - targets) / targets).sum(-1) ** 2

    result = step_of(objective=Objective(relative), batch=BATCH._replace(targets=BATCH.targets.at[3].set(0)))
    assert result.layer == "the loss (div)" and result.rows == (3,)


def test_a_gradient_that_is_not_finite_is_found_by_its_parameter():
    def apply(weights, inputs, *, train, key=None, mask=None):
        return jnp.sqrt(inputs[:, :1] * weights.params["w"]), {}

    model = Model(lambda key, inputs: Variables({"w": jnp.zeros((1, 1))}, {}), apply)
    assert (
        step_of(model) == ("the gradient of params/w", "nan", ALL) or step_of(model).layer == "the gradient of params/w"
    )


def test_an_update_that_overflows_is_found():
    assert step_of(optimizer=optax.chain(optax.sgd(1e30), optax.scale(1e30))).layer.startswith("the update of params/")


def test_minus_infinity_in_a_mask_is_meant():
    def apply(weights, inputs, *, train, key=None, mask=None):
        scores = jnp.where(inputs > 0.7, inputs * weights.params["w"], -jnp.inf)
        # A row of nothing but minus infinity would be nan.
        scores = jnp.concatenate([scores, jnp.zeros((len(inputs), 1))], 1)
        return jax.nn.softmax(scores)[:, :1], {}

    model = Model(lambda key, inputs: Variables({"w": jnp.ones((1, 3))}, {}), apply)
    assert step_of(model) is None


IMAGES = jax.tree.map(jnp.asarray, dataset(RANDOM.integers(0, 255, size=(4, 12, 12, 3), dtype=np.uint8), [0, 1, 2, 3]))


@pytest.mark.parametrize(
    "model",
    [
        convnet((4,), widths=(5,), pool=True, dropout=0.2),
        with_augmentation(residual_net(2), flip, crop(4)),
        convnet((4,), dtype=jnp.bfloat16),
    ],
    ids=["pooled", "residual", "bfloat16"],
)
def test_nothing_is_found_in_networks_that_are_well(model):
    # As a program of its own: one by one, its operations would take many times as long to compile.
    whole = model._replace(apply=jax.jit(model.apply, static_argnames="train"))
    assert step_of(whole, Objective(losses.softmax_cross_entropy), batch=IMAGES) is None


def test_an_overflow_in_half_precision_is_found():
    result = step_of(mlp((5,), dtype=jnp.float16), batch=BATCH._replace(inputs=BATCH.inputs * 1e6))
    assert result.value in ("inf", "nan") and result.rows


def test_networks_of_nnx_are_looked_into():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, inputs):
            return self.layer(jnp.log(inputs))

    result = step_of(from_nnx(lambda rngs: Net(rngs)), batch=negative_in((1,)))
    assert "(log)" in result.layer and result.rows == (1,)


LARGE_STEPS = make_plan(mlp((5,)), losses.squared_error, optax.sgd(1.0))
large_step = jax.jit(
    make_train_step(
        LARGE_STEPS.model, LARGE_STEPS.objective.loss, LARGE_STEPS.optimizer, metrics=LARGE_STEPS.objective.metrics
    )
)


@pytest.mark.parametrize("scale", 10.0 ** np.arange(0, 39, 3))
def test_something_is_found_exactly_where_the_step_is_not_finite(scale):
    """Oracle: the step itself. Training with an optimizer that keeps sizes, so that they decide."""
    batch = BATCH._replace(inputs=BATCH.inputs * jnp.float32(scale))
    state = state_of(LARGE_STEPS)
    after, sums = large_step(state, batch)
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.variables, sums)))
    assert (in_step(LARGE_STEPS, state, batch) is None) == finite


def test_a_metric_that_is_not_finite_is_no_fault_of_the_step():
    odd = Metric("odd", lambda outputs, targets: jnp.full(len(outputs), jnp.nan), lambda totals, weight: totals)
    assert step_of(objective=Objective(losses.squared_error, (odd,))) is None


def test_evaluation_is_looked_at_without_what_only_training_does():
    plan = make_plan(from_linen(Logs()), losses.squared_error, optax.sgd(0.1))
    weights = plan.model.init(jax.random.key(0), BATCH.inputs)
    assert in_evaluation(plan, weights, negative_in((0, 7))) == ("Logarithm (log)", "nan", (0, 7))
    assert in_evaluation(plan, weights, BATCH) is None


# Replays: the epoch, the step and the rows in which a run stops being finite.

RUN_INPUTS = RANDOM.uniform(0.5, 1, size=(50, 3)).astype(np.float32)
TRAIN = dataset(RUN_INPUTS, RUN_INPUTS[:, :1])
VALIDATION = dataset(RUN_INPUTS[:30], RUN_INPUTS[:30, :1])


def with_negative(rows_of, row):
    inputs = np.array(rows_of.inputs)
    inputs[row, 1] = -1
    return rows_of._replace(inputs=inputs)


PLAN = make_plan(from_linen(Logs()), losses.squared_error, optax.sgd(0.01), batch_size=8)


def run(plan, train, validation=VALIDATION, length=1000, epochs=5):
    begin = start(plan, train, validation, key=jax.random.key(3))
    pieces = chunks(plan, begin, train, validation, last=epochs, steps=lambda: length)
    calls = []
    with pytest.raises(NonFiniteError) as caught:
        calls.extend(iter(check_finite(pieces, plan, begin, train, validation)))
    return begin, caught.value.args[0]


@pytest.mark.parametrize("length", [1, 2, 3, 1000])
def test_the_step_and_the_row_are_found_however_the_run_was_cut(length):
    train = with_negative(TRAIN, 17)
    begin, trouble = run(PLAN, train, length=length)
    # Oracle: where the row stands in the first epoch's order.
    place = np.asarray(permutation(begin.key, 0, 50)).tolist().index(17)
    assert trouble[1:] == (1, place // 8 + 1, 7, "training", "Logarithm (log)", "nan", (17,))
    assert int(trouble.state.train_state.step) == place // 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trouble.state.train_state.variables))


def test_the_progress_before_is_the_same_however_the_run_was_cut():
    train = with_negative(TRAIN, 17)
    ends = [run(PLAN, train, length=length)[1].state for length in (1, 4, 1000)]
    bits = [{name: np.asarray(leaf).tobytes() for name, leaf in flatten_named(end).items()} for end in ends]
    assert bits[0] == bits[1] == bits[2]


def test_a_later_epoch_is_told():
    # The rate becomes enormous in the third epoch of seven steps.
    rate = optax.chain(optax.scale_by_schedule(lambda n: jnp.where(n < 15, 0.01, 1e38)), optax.scale(-1.0))
    _, trouble = run(make_plan(mlp(()), losses.squared_error, rate, batch_size=8), TRAIN)
    assert trouble.epoch == 3 and trouble.batch in (2, 3) and trouble.batches == 7


def test_a_validation_row_is_told_as_such():
    _, trouble = run(PLAN, TRAIN, with_negative(VALIDATION, 29))
    assert trouble[1:] == (1, 1, 1, "validation", "Logarithm (log)", "nan", (29,))
    assert int(trouble.state.cursor) == 7


def test_a_validation_row_of_a_last_batch_that_reaches_back_is_told():
    inputs = np.tile(RUN_INPUTS, (30, 1))
    rows = with_negative(dataset(inputs, inputs[:, :1]), 1499)
    _, trouble = run(PLAN, TRAIN, rows)
    assert trouble.batch == 2 == trouble.batches and trouble.rows == (1499,)


def test_a_run_that_is_finite_passes_unchanged():
    begin = start(PLAN, TRAIN, VALIDATION, key=jax.random.key(3))
    pieces = list(chunks(PLAN, begin, TRAIN, VALIDATION, last=3))
    assert list(check_finite(pieces, PLAN, begin, TRAIN, VALIDATION)) == pieces


def test_weights_that_were_not_finite_from_the_start_are_told():
    begin = start(PLAN, TRAIN, VALIDATION, key=jax.random.key(3))
    spoilt = jax.tree.map(lambda leaf: leaf * jnp.nan, begin.train_state.variables)
    trouble = find_origin(
        PLAN, begin._replace(train_state=begin.train_state._replace(variables=spoilt)), TRAIN, VALIDATION
    )
    assert trouble.where == "params/Head/bias before the step" and trouble.batch == 1


def test_a_long_list_of_rows_is_cut_short():
    text = str(NonFinite(None, 3, 2, 7, "training", "Dense_0 (dot_general)", "inf", tuple(range(11))))
    assert text == (
        "epoch 3, step 2 of 7 of training: inf in Dense_0 (dot_general), first for training rows 0, 1, 2, 3, 4, 5, 6, "
        "7 and 3 more (counted from 0)"
    )
