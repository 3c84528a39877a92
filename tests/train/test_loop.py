"""Chunks: one program, whatever their lengths, and the bits of the whole run."""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl import losses, metrics
from jaxdl.data import dataset
from jaxdl.errors import InputError
from jaxdl.nn import mlp
from jaxdl.train import chunks, early_stopping, epochs, make_plan, reduce_on_plateau, start
from jaxdl.train.epoch import batches_of_epoch, run_steps
from jaxdl.train.loop import AdaptiveSteps
from jaxdl.train.plan import NEVER
from tests.bits import bits
from tests.groups import scripts

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(77, 3)).astype(np.float32)
TRAIN = dataset(INPUTS, INPUTS.sum(1, keepdims=True) + 0.1 * RANDOM.normal(size=(77, 1)))
# Several batches of evaluation, the last one not full.
MANY = RANDOM.normal(size=(2500, 3)).astype(np.float32)
VALIDATION = dataset(MANY + 1, MANY.sum(1, keepdims=True) + 3)
METRICS = (metrics.rmse,)
# All that a run may remember: BatchNorm, dropout, a schedule, momentum, an average, both rules.
PLAN = make_plan(
    mlp((5,), dropout=0.2, input_norm=True),
    losses.squared_error,
    optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
    metrics=[metrics.rmse],
    batch_size=10,
    early_stopping=early_stopping("val_loss", patience=2),
    plateau=reduce_on_plateau("val_loss", factor=0.5, patience=1),
    ema_decay=0.9,
)


@functools.cache
def beginning():
    return start(PLAN, TRAIN, VALIDATION, key=jax.random.key(1))


def cut(lengths, begin=None, last=6):
    begin = beginning() if begin is None else begin
    lengths = itertools.cycle(lengths)
    return list(chunks(PLAN, begin, TRAIN, VALIDATION, last=last, steps=lambda: next(lengths)))


@functools.cache
def whole_run():
    return list(epochs(PLAN, beginning(), TRAIN, VALIDATION, last=6))


def test_an_epoch_is_its_batches_of_training_then_those_of_validation():
    assert batches_of_epoch(PLAN, TRAIN, VALIDATION) == (8, 11)
    assert batches_of_epoch(PLAN, TRAIN, None) == (8, 8)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 15), min_size=1, max_size=8))
def test_a_run_cut_in_any_way_is_the_whole_run_bit_for_bit(lengths):
    result = cut(lengths)
    assert bits(result[-1].state) == bits(whole_run()[-1][0])
    assert [chunk.record for chunk in result if chunk.record is not None] == [record for _, record in whole_run()]
    assert sum(chunk.batches for chunk in result) == 11 * len(whole_run())


@pytest.mark.parametrize("batch", [1, 7, 8, 9, 10, 11, 25])
def test_a_run_goes_on_from_any_batch_bit_for_bit(batch):
    middle = list(itertools.islice(chunks(PLAN, beginning(), TRAIN, VALIDATION, steps=lambda: 1), batch))[-1].state
    assert int(middle.epoch) * 11 + int(middle.cursor) == batch
    assert bits(cut([100], middle)[-1].state) == bits(whole_run()[-1][0])


def test_rows_of_numpy_are_copied_without_a_program(compilations):
    # Of a shape that no other test has, and where JAX would read NumPy's memory: at a multiple of 64 bytes.
    memory = np.zeros(71 * 3 + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    mine = memory[first : first + 71 * 3].reshape(71, 3)
    mine[:] = INPUTS[:71]
    with compilations() as names:
        result = chunks(PLAN, beginning(), dataset(mine, TRAIN.targets[:71]), VALIDATION, last=4)
        next(result)
        # What becomes of the rows does not matter to a run that has begun.
        mine[:] = 0
        records = [chunk.record for chunk in result]
    assert names == ["chunk_program"]
    whole = chunks(PLAN, beginning(), dataset(INPUTS[:71], TRAIN.targets[:71]), VALIDATION, last=4)
    assert records == [chunk.record for chunk in whole][1:]


def test_chunks_of_every_length_are_one_program(compilations):
    cut([100])
    with compilations() as names:
        cut([1, 5, 2, 100])
    assert "chunk_program" not in names


def test_chunks_is_the_loop_in_its_docstring(meaning):
    def run_chunk(run_state, train, validation, steps, *, plan):
        run_state, row = run_steps(run_state, train, validation, steps, plan=plan)
        return run_state, None if int(run_state.cursor) else row

    calls = []
    lengths = itertools.cycle([3, 9])
    names = {"run_state": beginning(), "train": TRAIN, "validation": VALIDATION, "plan": PLAN, "last": 2}
    message = meaning(
        chunks,
        **names,
        run=run_chunk,
        steps=lambda: next(lengths),
        keep=lambda run_state, record: calls.append(record),
    )
    result = cut([3, 9], last=2)
    assert [record is None for record in calls] == [chunk.record is None for chunk in result]
    for one, other in zip(
        jax.tree.leaves(message["run_state"].best), jax.tree.leaves(result[-1].state.best), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_validation_in_batches_measures_every_row_once():
    chunk = cut([100], last=1)[-1]
    weights, rows = chunk.state.train_state.ema, VALIDATION
    outputs, _ = PLAN.model.apply(weights, rows.inputs, train=False)
    np.testing.assert_allclose(chunk.record["val_loss"], ((outputs - rows.targets) ** 2).mean(), rtol=1e-5)


def test_a_chunk_tells_where_weights_or_losses_are_not_finite():
    rows = TRAIN._replace(targets=np.where(np.arange(77)[:, None] == 5, np.float32(np.inf), TRAIN.targets))
    plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.0), metrics=[metrics.rmse], batch_size=10)
    message = [c.finite for c in chunks(plan, start(plan, TRAIN, key=jax.random.key(0)), rows, last=1, steps=lambda: 1)]
    # The rate is 0, but 0 times nan is nan, so everything after the row is lost.
    assert True in message and message == sorted(message, reverse=True) and not message[-1]
    assert all(c.finite for c in cut([3]))


def test_a_validation_loss_that_is_not_finite_is_told_too():
    rows = VALIDATION._replace(
        targets=np.where(np.arange(2500)[:, None] == 2400, np.float32(np.nan), VALIDATION.targets)
    )
    message = [chunk.finite for chunk in chunks(PLAN, beginning(), TRAIN, rows, last=1, steps=lambda: 1)]
    assert message == [True] * 10 + [False]


def test_a_progress_of_other_rows_is_refused():
    middle = next(chunks(PLAN, beginning(), TRAIN, VALIDATION, steps=lambda: 10)).state
    with pytest.raises(InputError, match=r"state is at batch 10 of 8\. Give the data with which the epoch began"):
        next(chunks(PLAN._replace(early_stopping=NEVER, plateau=None), middle, TRAIN))


@pytest.mark.processes
def test_a_pause_that_one_process_asks_for_in_the_last_epoch_is_one_of_all_with_nothing_under_way():
    body = """
import optax
from jaxdl import losses
from jaxdl.train import chunks
from jaxdl.train.loop import WHOLE
from jaxdl.data.arrays import dataset
from jaxdl.nn import mlp
from jaxdl.train import make_plan
from jaxdl.distributed import make_mesh, shard_dataset
from jaxdl.train import start
rows = dataset(np.ones((6, 1)), np.ones((6, 1)))
plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), batch_size=1)
begin, rows = start(plan, rows, key=jax.random.key(0)), shard_dataset(rows, make_mesh())
asked = iter([0, 2, 0, 1, WHOLE])
for chunk in chunks(plan, begin, rows, last=1, steps=lambda: next(asked) if own == 0 else WHOLE):
    # In a pause the processes may do something else together, such as to save.
    print(chunk.batches, *processes.all_gather([own]).ravel())
processes.shutdown()
"""
    assert scripts(body, 2, within=120) == ["0 0 1\n2 0 1\n0 0 1\n1 0 1\n3 0 1\n"] * 2


# The number of batches of a call: calls of about the wanted seconds.


@pytest.fixture
def device():
    """`device(seconds of a batch, batches)` gives the lengths of chunks of a device that takes that long."""

    def run(costs, batches, **options):
        pace, sizes = AdaptiveSteps(**options), []
        while sum(sizes) < batches:
            sizes.append(pace())
            pace.update(sum(map(costs, range(sum(sizes[:-1]), sum(sizes)))), sizes[-1])
        return sizes

    return run


def test_chunks_grow_to_a_quarter_of_a_second(device):
    sizes = device(lambda batch: 0.001, 4000)
    assert sizes[:6] == [1, 2, 4, 8, 16, 32]
    assert all(128 < size <= 250 for size in sizes[8:])


def test_the_first_chunk_compiles_and_is_no_measure(device):
    sizes = device(lambda batch: 20.0 if batch == 0 else 0.001, 4000)
    assert sizes[:5] == [1, 1, 2, 4, 8] and sizes[-1] > 128


def test_no_chunk_is_empty_however_slow_a_batch(device):
    assert device(lambda batch: 7.0, 5) == [1] * 5


def test_a_machine_that_becomes_slower_gets_shorter_chunks(device):
    sizes = device(lambda batch: 0.001 if batch < 2000 else 0.02, 4000)
    # One chunk is met unprepared; the next ones are right.
    assert max(sizes) <= 250 and all(size <= 12 for size in sizes[-20:])


def test_other_seconds_can_be_wanted(device):
    assert 0 < device(lambda batch: 0.001, 4000, seconds=0.05)[-1] <= 50


def test_a_pause_is_no_measure():
    requests = iter([False, True, False])
    pace = AdaptiveSteps(pause=lambda: next(requests))
    sizes = []
    for seconds in (0.001, 9.0, 0.001):
        sizes.append(pace())
        pace.update(seconds, sizes[-1])
    assert sizes == [1, 0, 2]
