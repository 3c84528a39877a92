"""Replays: the epoch, the step and the rows in which a run stops being finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import losses
from jaxdl._tree import named
from jaxdl.data import examples
from jaxdl.data.batches import order
from jaxdl.nn import from_linen, mlp
from jaxdl.train import chunks, make_plan, start
from jaxdl.train.nonfinite import NotFiniteError, Trouble, guarded, replay
from jaxdl.types import Objective
from tests.train.test_nonfinite import Logs

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.uniform(0.5, 1, size=(50, 3)).astype(np.float32)
TRAIN = examples(INPUTS, INPUTS[:, :1])
VALIDATION = examples(INPUTS[:30], INPUTS[:30, :1])
OBJECTIVE = Objective(losses.squared_error)


def with_negative(rows_of, row):
    inputs = np.array(rows_of.inputs)
    inputs[row, 1] = -1
    return rows_of._replace(inputs=inputs)


PLAN = make_plan(from_linen(Logs()), OBJECTIVE, optax.sgd(0.01), batch_size=8)


def run(plan, train, validation=VALIDATION, length=1000, epochs=5):
    begin = start(plan, train, validation, key=jax.random.key(3))
    pieces = chunks(plan, begin, train, validation, last=epochs, steps=lambda: length)
    seen = []
    with pytest.raises(NotFiniteError) as caught:
        seen.extend(iter(guarded(pieces, plan, begin, train, validation)))
    return begin, caught.value.args[0]


@pytest.mark.parametrize("length", [1, 2, 3, 1000])
def test_the_step_and_the_row_are_found_however_the_run_was_cut(length):
    train = with_negative(TRAIN, 17)
    begin, trouble = run(PLAN, train, length=length)
    # Oracle: where the row stands in the first epoch's order.
    place = np.asarray(order(begin.key, 0, 50)).tolist().index(17)
    assert trouble[1:] == (1, place // 8 + 1, 7, "training", "Logarithm (log)", "nan", (17,))
    assert int(trouble.progress.state.step) == place // 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trouble.progress.state.weights))


def test_the_progress_before_is_the_same_however_the_run_was_cut():
    train = with_negative(TRAIN, 17)
    ends = [run(PLAN, train, length=length)[1].progress for length in (1, 4, 1000)]
    bits = [{name: np.asarray(leaf).tobytes() for name, leaf in named(end).items()} for end in ends]
    assert bits[0] == bits[1] == bits[2]


def test_a_later_epoch_is_told():
    # The rate becomes enormous in the third epoch of seven steps.
    rate = optax.chain(optax.scale_by_schedule(lambda n: jnp.where(n < 15, 0.01, 1e38)), optax.scale(-1.0))
    _, trouble = run(make_plan(mlp(()), OBJECTIVE, rate, batch_size=8), TRAIN)
    assert trouble.epoch == 3 and trouble.batch in (2, 3) and trouble.batches == 7


def test_a_validation_row_is_told_as_such():
    _, trouble = run(PLAN, TRAIN, with_negative(VALIDATION, 29))
    assert trouble[1:] == (1, 1, 1, "validation", "Logarithm (log)", "nan", (29,))
    assert int(trouble.progress.cursor) == 7


def test_a_validation_row_of_a_last_batch_that_reaches_back_is_told():
    inputs = np.tile(INPUTS, (30, 1))
    rows = with_negative(examples(inputs, inputs[:, :1]), 1499)
    _, trouble = run(PLAN, TRAIN, rows)
    assert trouble.batch == 2 == trouble.batches and trouble.rows == (1499,)


def test_a_run_that_is_finite_passes_unchanged():
    begin = start(PLAN, TRAIN, VALIDATION, key=jax.random.key(3))
    pieces = list(chunks(PLAN, begin, TRAIN, VALIDATION, last=3))
    assert list(guarded(pieces, PLAN, begin, TRAIN, VALIDATION)) == pieces


def test_weights_that_were_not_finite_from_the_start_are_told():
    begin = start(PLAN, TRAIN, VALIDATION, key=jax.random.key(3))
    spoilt = jax.tree.map(lambda leaf: leaf * jnp.nan, begin.state.weights)
    trouble = replay(PLAN, begin._replace(state=begin.state._replace(weights=spoilt)), TRAIN, VALIDATION)
    assert trouble.where == "params/Head/bias before the step" and trouble.batch == 1


def test_a_long_list_of_rows_is_cut_short():
    text = str(Trouble(None, 3, 2, 7, "training", "Dense_0 (dot_general)", "inf", tuple(range(11))))
    assert text == (
        "epoch 3, step 2 of 7 of training: inf in Dense_0 (dot_general), first for training rows 0, 1, 2, 3, 4, 5, 6, "
        "7 and 3 more (counted from 0)"
    )
