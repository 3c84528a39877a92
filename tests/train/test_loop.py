"""Chunks and streams: one program, whatever their lengths, and the bits of the whole run in memory."""

import functools
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl import losses, metrics
from jaxdl.data import DataSource, dataset, memory_mapped, streaming, take
from jaxdl.data.batches import permutation
from jaxdl.data.streaming import loader
from jaxdl.distributed import make_mesh, shard_dataset, shard_state
from jaxdl.ensembles import run_members
from jaxdl.errors import InputError
from jaxdl.nn import convnet, mlp
from jaxdl.runs.runner import drive
from jaxdl.train import chunks, early_stopping, epochs, make_plan, reduce_on_plateau, start
from jaxdl.train.epoch import batches_of_epoch, run_steps
from jaxdl.train.fit import fit
from jaxdl.train.loop import AdaptiveSteps
from jaxdl.train.nonfinite import NonFiniteError, check_finite
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
def test_a_run_resumes_from_any_batch_bit_for_bit(batch):
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


def test_a_chunk_reports_weights_and_losses_that_are_not_finite():
    rows = TRAIN._replace(targets=np.where(np.arange(77)[:, None] == 5, np.float32(np.inf), TRAIN.targets))
    plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.0), metrics=[metrics.rmse], batch_size=10)
    message = [c.finite for c in chunks(plan, start(plan, TRAIN, key=jax.random.key(0)), rows, last=1, steps=lambda: 1)]
    # The rate is 0, but 0 times nan is nan, so everything after the row is lost.
    assert True in message and message == sorted(message, reverse=True) and not message[-1]
    assert all(c.finite for c in cut([3]))


def test_a_chunk_reports_a_validation_loss_that_is_not_finite():
    rows = VALIDATION._replace(
        targets=np.where(np.arange(2500)[:, None] == 2400, np.float32(np.nan), VALIDATION.targets)
    )
    message = [chunk.finite for chunk in chunks(PLAN, beginning(), TRAIN, rows, last=1, steps=lambda: 1)]
    assert message == [True] * 10 + [False]


def test_a_state_of_other_rows_is_refused():
    middle = next(chunks(PLAN, beginning(), TRAIN, VALIDATION, steps=lambda: 10)).state
    with pytest.raises(InputError, match=r"state is at batch 10 of 8\. Give the data with which the epoch began"):
        next(chunks(PLAN._replace(early_stopping=NEVER, plateau=None), middle, TRAIN))


@pytest.mark.processes
def test_a_pause_that_one_process_requests_pauses_all_processes():
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


def test_the_time_of_the_first_chunk_is_ignored(device):
    sizes = device(lambda batch: 20.0 if batch == 0 else 0.001, 4000)
    assert sizes[:5] == [1, 1, 2, 4, 8] and sizes[-1] > 128


def test_no_chunk_is_empty_however_slow_a_batch(device):
    assert device(lambda batch: 7.0, 5) == [1] * 5


def test_a_machine_that_becomes_slower_gets_shorter_chunks(device):
    sizes = device(lambda batch: 0.001 if batch < 2000 else 0.02, 4000)
    # One chunk is met unprepared; the next ones are right.
    assert max(sizes) <= 250 and all(size <= 12 for size in sizes[-20:])


def test_the_seconds_of_a_chunk_can_be_chosen(device):
    assert 0 < device(lambda batch: 0.001, 4000, seconds=0.05)[-1] <= 50


def test_the_time_of_a_pause_is_ignored():
    requests = iter([False, True, False])
    pace = AdaptiveSteps(pause=lambda: next(requests))
    sizes = []
    for seconds in (0.001, 9.0, 0.001):
        sizes.append(pace())
        pace.update(seconds, sizes[-1])
    assert sizes == [1, 0, 2]


# Streams: the bits of the same run in memory, in windows that a thread reads


# 77 rows of 20 bytes in batches of 10: windows of one batch, of two (the last of an epoch not full), of the epoch.
WINDOW_BYTES = (1, 400, 2**25)


def records_of(result):
    return [chunk.record for chunk in result if chunk.record is not None]


def memory_mapped_rows(folder, rows):
    np.save(folder / "inputs.npy", rows.inputs)
    np.save(folder / "targets.npy", rows.targets)
    return memory_mapped(folder / "inputs.npy", folder / "targets.npy")


def in_parts(rows, read=None):
    """A source of rows that are in memory, and the numbers that it was asked for."""
    requests = []

    def read_rows(numbers):
        requests.append(numbers)
        return (read or take)(rows, numbers)

    return DataSource(len(rows.sample_weight), read_rows), requests


def streamed(plan, run_state, source, validation=None, *, window_bytes=2**25, **options):
    """The chunks of a source in windows of about that many bytes."""
    rows = loader(source, plan.batch_size, window_bytes=window_bytes)
    yield from chunks(plan, run_state, rows, validation, **options)


def steps_of(*sizes):
    """The numbers of steps of successive chunks, again and again."""
    sizes = itertools.cycle(sizes)
    return lambda: next(sizes)


def window_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("jaxdl-windows")]


@functools.cache
def run_in_memory():
    return list(chunks(PLAN, beginning(), TRAIN, VALIDATION, last=6))


@pytest.mark.parametrize("window_bytes", WINDOW_BYTES)
@pytest.mark.parametrize("sizes", [(100,), (1,), (3, 1, 5)])
def test_a_stream_gives_the_bits_of_the_run_in_memory(tmp_path, window_bytes, sizes):
    # BatchNorm, dropout, Adam, an average, both rules, a short last batch, validation, six epochs.
    options = {"last": 6, "steps": steps_of(*sizes), "window_bytes": window_bytes}
    result = list(streamed(PLAN, beginning(), memory_mapped_rows(tmp_path, TRAIN), VALIDATION, **options))
    assert bits(result[-1].state) == bits(run_in_memory()[-1].state)
    assert records_of(result) == records_of(run_in_memory()) and {
        type(record["epoch"]) for record in records_of(result)
    } == {int}
    assert sum(chunk.batches for chunk in result) == sum(chunk.batches for chunk in run_in_memory())


def test_a_stream_of_images_gives_the_bits_of_the_run_in_memory(tmp_path):
    random = np.random.default_rng(0)
    rows = dataset(random.integers(0, 256, (50, 8, 8, 3), np.uint8), random.integers(0, 4, 50))
    plan = make_plan(
        convnet((4,), outputs=4, pool=False, dropout=0.2),
        losses.softmax_cross_entropy,
        optax.adam(0.01),
        metrics=[metrics.accuracy],
        batch_size=16,
    )
    begin = start(plan, rows, key=jax.random.key(0))
    result = list(streamed(plan, begin, memory_mapped_rows(tmp_path, rows), last=3, window_bytes=8000))
    wanted = list(chunks(plan, begin, rows, last=3))
    assert bits(result[-1].state) == bits(wanted[-1].state) and records_of(result) == records_of(wanted)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 10, 11, 12, 25])
@pytest.mark.parametrize("window_bytes", WINDOW_BYTES)
def test_a_stream_resumes_from_any_batch_bit_for_bit(batch, window_bytes):
    source, requests = in_parts(TRAIN)
    single = streamed(PLAN, beginning(), source, VALIDATION, steps=lambda: 1, window_bytes=window_bytes)
    middle = next(itertools.islice(single, batch - 1, None)).state
    single.close()
    assert int(middle.epoch) * 11 + int(middle.cursor) == batch
    requests.clear()
    result = list(streamed(PLAN, middle, source, VALIDATION, last=6, window_bytes=window_bytes))
    assert bits(result[-1].state) == bits(run_in_memory()[-1].state)
    # The first rows are read to know their shapes; then the window in which the run stands, and none before.
    held = {1: 1, 400: 2}.get(window_bytes, 8)
    first = min(batch % 11, 7) // held * held * 10
    places = np.arange(first, first + min(held * 10, 80 - first)) % 77
    rows = np.asarray(permutation(beginning().key, batch // 11, 77))[places]
    # Each row is read once, although the epoch's last batch is filled with rows of its beginning.
    assert sorted(set(rows.tolist())) == sorted(requests[1].tolist())


def test_a_run_can_move_from_memory_to_a_stream_and_back():
    source, _ = in_parts(TRAIN)
    middle = next(chunks(PLAN, beginning(), TRAIN, VALIDATION, steps=lambda: 5)).state
    middle = next(streamed(PLAN, middle, source, VALIDATION, steps=lambda: 3)).state
    assert bits(list(chunks(PLAN, middle, TRAIN, VALIDATION, last=6))[-1].state) == bits(run_in_memory()[-1].state)


def test_windows_chunks_and_epochs_are_one_program(compilations):
    plan, (source, _) = PLAN._replace(batch_size=9), in_parts(TRAIN)
    begin = start(plan, TRAIN, VALIDATION, key=jax.random.key(1))
    with compilations() as names:
        list(streamed(plan, begin, source, VALIDATION, last=4, steps=steps_of(1, 2, 9), window_bytes=400))
    assert names.count("chunk_program") == 1


def test_two_billion_rows_are_streamed_without_an_order_of_all():
    count = 2**31 - 1
    requests = []

    def read(rows):
        requests.append(rows)
        inputs = (rows % 1000)[:, None] / 1000
        return dataset(inputs, inputs)

    plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), metrics=METRICS, batch_size=100)
    begin = start(plan, loader(DataSource(count, read), 100).first, key=jax.random.key(0))
    stream = streamed(plan, begin, DataSource(count, read), steps=lambda: 3, window_bytes=5000)
    assert [chunk.batches for chunk in itertools.islice(stream, 5)] == [3, 1, 3, 1, 3]
    stream.close()
    rows = np.concatenate(requests[2:5])
    assert len(set(rows.tolist())) == 1200 and rows.max() > 2**30


def test_a_rule_ends_a_stream_and_its_thread():
    source, _ = in_parts(TRAIN)
    stop = early_stopping("val_loss", patience=0, min_delta=0.5)
    plan = make_plan(
        mlp(()), losses.squared_error, optax.sgd(0.05), metrics=METRICS, batch_size=10, early_stopping=stop
    )
    begin = start(plan, TRAIN, VALIDATION, key=jax.random.key(2))
    result = list(streamed(plan, begin, source, VALIDATION, last=200, window_bytes=400))
    wanted = list(chunks(plan, begin, TRAIN, VALIDATION, last=200))
    assert bits(result[-1].state) == bits(wanted[-1].state) and bool(result[-1].state.stopping.should_stop)
    assert int(result[-1].state.epoch) < 200 and window_threads() == []


def test_the_thread_ends_with_the_generator():
    source, _ = in_parts(TRAIN)
    stream = streamed(PLAN, beginning(), source, VALIDATION, window_bytes=400)
    next(stream)
    assert len(window_threads()) == 1
    stream.close()
    assert window_threads() == []


@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_an_error_of_the_reader_is_raised_and_ends_the_thread(error):
    reads = itertools.count()

    def read(rows, numbers):
        if next(reads) == 4:
            raise error
        return take(rows, numbers)

    source, _ = in_parts(TRAIN, read)
    calls = []
    with pytest.raises(type(error)):
        calls.extend(iter(streamed(PLAN, beginning(), source, VALIDATION, window_bytes=400)))
    assert window_threads() == []


def test_the_windows_before_an_error_are_trained():
    # A row of the third window that is none of the first ten, whose shapes the run is begun with.
    bad = next(row for row in np.asarray(permutation(beginning().key, 0, 77))[40:60].tolist() if row >= 10)
    inputs = np.array(TRAIN.inputs)
    inputs[bad] = np.nan
    source, _ = in_parts(TRAIN._replace(inputs=inputs))
    calls = []
    # The rows are checked where they are read: the error names the number of a row that is not finite.
    with pytest.raises(InputError, match=rf"inputs must be finite, got nan in row {bad}\."):
        for chunk in streamed(PLAN, beginning(), source, VALIDATION, window_bytes=400):
            calls.append(chunk.batches)
    assert calls == [2, 2]


def test_a_slow_reader_changes_no_bit():
    def read(rows, numbers):
        time.sleep(0.03)
        return take(rows, numbers)

    source, _ = in_parts(TRAIN, read)
    result = list(streamed(PLAN, beginning(), source, VALIDATION, last=2, window_bytes=400))
    assert bits(result[-1].state) == bits(run_in_memory()[1].state)


def test_a_chunk_is_given_before_the_next_window_is_waited_for():
    go = threading.Event()
    reads = itertools.count()

    def read(rows, numbers):
        # The first rows, then the first window; the second window waits for the first chunk's arrival.
        if next(reads) == 2:
            assert go.wait(30)
        return take(rows, numbers)

    source, _ = in_parts(TRAIN, read)
    stream = streamed(PLAN, beginning(), source, VALIDATION, window_bytes=400)
    assert next(stream).batches == 2
    go.set()
    assert next(stream).batches == 2
    stream.close()


def test_windows_are_read_one_ahead_and_no_more():
    source, requests = in_parts(TRAIN)
    stream = streamed(PLAN, beginning(), source, VALIDATION, steps=lambda: 1, window_bytes=400)
    next(stream)
    time.sleep(0.3)
    # The first rows, the first window, the one after.
    assert len(requests) == 3
    stream.close()


@pytest.mark.parametrize("pauses", [(0, 2, 2), (2, 0, 0)])
def test_a_pause_of_a_stream_changes_no_bit(pauses):
    source, _ = in_parts(TRAIN)
    result = list(streamed(PLAN, beginning(), source, VALIDATION, last=6, steps=steps_of(*pauses), window_bytes=400))
    assert 0 in [chunk.batches for chunk in result]
    assert bits(result[-1].state) == bits(run_in_memory()[-1].state)


# Four devices cannot share a batch of ten evenly.
@pytest.mark.parametrize(("batch_size", "axes"), [(10, {"data": 4}), (8, {"data": 2, "model": 2})])
def test_a_stream_on_a_mesh_is_the_run_in_memory_on_it(batch_size, axes):
    mesh, (source, requests) = make_mesh(jax.devices()[:4], **axes), in_parts(TRAIN)
    plan = PLAN._replace(batch_size=batch_size)
    begin = shard_state(start(plan, TRAIN, VALIDATION, key=jax.random.key(1)), mesh, large=0)
    wanted = list(chunks(plan, begin, shard_dataset(TRAIN, mesh), VALIDATION, last=3))
    result = list(streamed(plan, begin, source, VALIDATION, last=3, window_bytes=400))
    for one, other in zip(records_of(result), records_of(wanted), strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    for one, other in zip(
        *(jax.tree.leaves(each[-1].state.train_state.variables) for each in (result, wanted)), strict=True
    ):
        assert one.sharding == other.sharding
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    # Each device's rows are read for it alone: no read holds more than its share of a window's two batches.
    share = 2 * -(-batch_size // axes["data"])
    assert max(map(len, requests[1:])) == share


def test_fit_and_drive_take_a_source(tmp_path):
    source = memory_mapped_rows(tmp_path, TRAIN)
    model, optimizer = mlp(()), optax.sgd(0.01)
    runs = [
        fit(
            model,
            losses.squared_error,
            optimizer,
            rows,
            VALIDATION,
            metrics=METRICS,
            epochs=3,
            batch_size=10,
            seed=4,
        )
        for rows in (source, TRAIN)
    ]
    assert runs[0].history.equals(runs[1].history) and bits(runs[0].state) == bits(runs[1].state)
    ends = [drive(PLAN, beginning(), rows, VALIDATION, epochs=2).state for rows in (source, TRAIN)]
    assert bits(ends[0]) == bits(ends[1])


def test_a_step_that_is_not_finite_is_reported_with_its_rows(tmp_path):
    # The target is finite, but not its square: the last batch of the epoch, which is short.
    row = int(permutation(beginning().key, 0, 77)[75])
    targets = np.array(TRAIN.targets)
    targets[row] = 1e30
    rows = TRAIN._replace(targets=targets)
    plan = make_plan(mlp((5,)), losses.squared_error, optax.sgd(0.01), metrics=METRICS, batch_size=10)
    begin = start(plan, TRAIN, VALIDATION, key=jax.random.key(1))
    begin = begin._replace(key=beginning().key)
    troubles = []
    for train in (memory_mapped_rows(tmp_path, rows), rows):
        with pytest.raises(NonFiniteError) as caught:
            list(
                check_finite(
                    chunks(plan, begin, train, VALIDATION, last=2, steps=AdaptiveSteps()),
                    plan,
                    begin,
                    train,
                    VALIDATION,
                )
            )
        troubles.append(caught.value.args[0])
    assert troubles[0][1:] == troubles[1][1:]
    assert troubles[0][1:5] == (1, 8, 8, "training") and troubles[0].rows == (row,)


@pytest.mark.parametrize("number", [0, 7])
def test_a_batch_is_the_same_from_memory_and_from_a_source(number):
    source, _ = in_parts(TRAIN)
    wanted = np.asarray(permutation(beginning().key, 2, 77))[number * 10 : number * 10 + 10]
    for rows in (source, TRAIN):
        batch, numbers = loader(rows, 10).batch(beginning().key, 2, number)
        real = len(wanted)
        np.testing.assert_array_equal(numbers, wanted)
        np.testing.assert_array_equal(batch.inputs[:real], TRAIN.inputs[wanted])
        np.testing.assert_array_equal(batch.sample_weight, [1] * real + [0] * (10 - real))


def test_chunks_refuses_bad_arguments_beside_a_source():
    source, _ = in_parts(TRAIN)
    with pytest.raises(InputError, match="a source trains one run at a time"):
        next(chunks(PLAN, beginning(), source, VALIDATION, run=run_members))
    with pytest.raises(InputError, match="validation must be a Dataset, got a DataSource"):
        next(chunks(PLAN, beginning(), source, source))
    with pytest.raises(InputError, match="batch_size=100 leaves no full batch in 77 training examples"):
        next(chunks(PLAN._replace(batch_size=100), beginning(), source, VALIDATION))
    with pytest.raises(InputError, match=r"state is at batch 8 of 8\. Give the data with which the epoch began"):
        plan = make_plan(mlp(()), losses.squared_error, optax.sgd(0.1), metrics=METRICS, batch_size=10)
        begin = start(plan, TRAIN, key=jax.random.key(0))
        next(chunks(plan, begin._replace(cursor=begin.cursor + 8), source))


def test_rows_are_permuted_without_a_cpu_backend_too(monkeypatch):
    def missing(backend=None):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(streaming.jax, "local_devices", missing)
    source, _ = in_parts(TRAIN)
    result = list(streamed(PLAN, beginning(), source, VALIDATION, last=1, window_bytes=400))
    assert bits(result[-1].state) == bits(run_in_memory()[0].state)


LARGE_SCRIPT = """
import re, sys, time
from pathlib import Path
import jax, numpy as np, optax
from jaxdl import losses, start, make_plan, mlp
from jaxdl.data.streaming import loader, memory_mapped
from jaxdl.train import chunks

folder, rows = Path(sys.argv[1]), 500_000
mapped = np.lib.format.open_memmap(folder / "inputs.npy", "w+", np.uint8, (rows, 32 * 32 * 3))
mapped[::5000] = 255
np.save(folder / "targets.npy", np.zeros((rows, 1), np.float32))
del mapped
source = memory_mapped(folder / "inputs.npy", folder / "targets.npy")
plan = make_plan(mlp((8,)), losses.squared_error, optax.sgd(1e-6), batch_size=256)
begin = start(plan, loader(source, 256).first, key=jax.random.key(0))

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024

steps = 0
for chunk in chunks(plan, begin, source, steps=lambda: 20):
    steps += chunk.batches
    print(steps, anonymous(), flush=True)
    if steps > 600:
        break
"""


@pytest.mark.slow
def test_data_of_a_gigabyte_and_a_half_are_trained_in_a_few_hundred_megabytes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LARGE_SCRIPT, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    steps, megabytes = np.array([line.split() for line in done.stdout.splitlines()], float).T
    assert (tmp_path / "inputs.npy").stat().st_size > 1.5e9 and steps[-1] > 600
    assert megabytes.max() < 700
    # The steps of each half see 230 MB of rows. A sample may meet a window of 61 MB more than another does: the least
    # of the second half meets none, and would hold what the steps before had left.
    first, second = np.array_split(megabytes, 2)
    assert second.min() < np.median(first) + 32


@pytest.mark.parametrize("window_bytes", WINDOW_BYTES)
def test_a_source_has_the_limits_and_the_validations_of_rows_in_memory(window_bytes):
    source, _ = in_parts(TRAIN)
    options = {"max_steps": 29, "validate_every": 2, "end_after": (3, 8)}
    expected = list(chunks(PLAN, beginning(), TRAIN, VALIDATION, **options))
    result = list(streamed(PLAN, beginning(), source, VALIDATION, window_bytes=window_bytes, **options))
    assert bits(result[-1].state) == bits(expected[-1].state) and records_of(result) == records_of(expected)
    assert ["val_loss" in record for record in records_of(result)] == [False, True, False]
    ends = {chunk.step for chunk in result}
    assert ends >= {step for step in range(1, 30) if step % 3 == 0 or step % 8 == 0} and max(ends) == 29
