"""Streams: the bits of the same run in memory, in windows that a thread reads."""

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

from jaxdl import losses, metrics
from jaxdl.data import DataSource, dataset, memory_mapped, streaming, take
from jaxdl.data.batches import permutation
from jaxdl.data.streaming import loader
from jaxdl.distributed import make_mesh, shard_dataset, shard_state
from jaxdl.ensembles import run_members
from jaxdl.errors import InputError
from jaxdl.nn import convnet, mlp
from jaxdl.runs.runner import drive
from jaxdl.train import chunks, early_stopping, make_plan, start
from jaxdl.train.fit import fit
from jaxdl.train.loop import AdaptiveSteps
from jaxdl.train.nonfinite import NonFiniteError, check_finite
from tests.bits import bits
from tests.train.test_loop import METRICS, PLAN, TRAIN, VALIDATION, beginning

# 77 rows of 20 bytes in batches of 10: windows of one batch, of two (the last of an epoch not full), of the epoch.
SIZES = (1, 400, 2**25)


def records(result):
    return [chunk.record for chunk in result if chunk.record is not None]


def mapped(folder, rows):
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


def lengths(*sizes):
    sizes = itertools.cycle(sizes)
    return lambda: next(sizes)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("jaxdl-windows")]


@functools.cache
def whole_run():
    return list(chunks(PLAN, beginning(), TRAIN, VALIDATION, last=6))


@pytest.mark.parametrize("window_bytes", SIZES)
@pytest.mark.parametrize("sizes", [(100,), (1,), (3, 1, 5)])
def test_a_stream_gives_the_bits_of_the_run_in_memory(tmp_path, window_bytes, sizes):
    # BatchNorm, dropout, Adam, an average, both rules, a short last batch, validation, six epochs.
    options = {"last": 6, "steps": lengths(*sizes), "window_bytes": window_bytes}
    result = list(streamed(PLAN, beginning(), mapped(tmp_path, TRAIN), VALIDATION, **options))
    assert bits(result[-1].state) == bits(whole_run()[-1].state)
    assert records(result) == records(whole_run()) and {type(record["epoch"]) for record in records(result)} == {int}
    assert sum(chunk.batches for chunk in result) == sum(chunk.batches for chunk in whole_run())


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
    result = list(streamed(plan, begin, mapped(tmp_path, rows), last=3, window_bytes=8000))
    wanted = list(chunks(plan, begin, rows, last=3))
    assert bits(result[-1].state) == bits(wanted[-1].state) and records(result) == records(wanted)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 10, 11, 12, 25])
@pytest.mark.parametrize("window_bytes", SIZES)
def test_a_stream_goes_on_from_any_batch_bit_for_bit(batch, window_bytes):
    source, requests = in_parts(TRAIN)
    single = streamed(PLAN, beginning(), source, VALIDATION, steps=lambda: 1, window_bytes=window_bytes)
    middle = next(itertools.islice(single, batch - 1, None)).state
    single.close()
    assert int(middle.epoch) * 11 + int(middle.cursor) == batch
    requests.clear()
    result = list(streamed(PLAN, middle, source, VALIDATION, last=6, window_bytes=window_bytes))
    assert bits(result[-1].state) == bits(whole_run()[-1].state)
    # The first rows are read to know their shapes; then the window in which the run stands, and none before.
    held = {1: 1, 400: 2}.get(window_bytes, 8)
    first = min(batch % 11, 7) // held * held * 10
    places = np.arange(first, first + min(held * 10, 80 - first)) % 77
    rows = np.asarray(permutation(beginning().key, batch // 11, 77))[places]
    # Each row is read once, although the epoch's last batch is filled with rows of its beginning.
    assert sorted(set(rows.tolist())) == sorted(requests[1].tolist())


def test_a_progress_goes_from_memory_to_a_stream_and_back():
    source, _ = in_parts(TRAIN)
    middle = next(chunks(PLAN, beginning(), TRAIN, VALIDATION, steps=lambda: 5)).state
    middle = next(streamed(PLAN, middle, source, VALIDATION, steps=lambda: 3)).state
    assert bits(list(chunks(PLAN, middle, TRAIN, VALIDATION, last=6))[-1].state) == bits(whole_run()[-1].state)


def test_windows_chunks_and_epochs_are_one_program(compilations):
    plan, (source, _) = PLAN._replace(batch_size=9), in_parts(TRAIN)
    begin = start(plan, TRAIN, VALIDATION, key=jax.random.key(1))
    with compilations() as names:
        list(streamed(plan, begin, source, VALIDATION, last=4, steps=lengths(1, 2, 9), window_bytes=400))
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
    assert int(result[-1].state.epoch) < 200 and threads() == []


def test_the_thread_ends_with_the_generator():
    source, _ = in_parts(TRAIN)
    stream = streamed(PLAN, beginning(), source, VALIDATION, window_bytes=400)
    next(stream)
    assert len(threads()) == 1
    stream.close()
    assert threads() == []


@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_an_error_of_the_reader_ends_the_run_where_it_arose(error):
    reads = itertools.count()

    def read(rows, numbers):
        if next(reads) == 4:
            raise error
        return take(rows, numbers)

    source, _ = in_parts(TRAIN, read)
    calls = []
    with pytest.raises(type(error)):
        calls.extend(iter(streamed(PLAN, beginning(), source, VALIDATION, window_bytes=400)))
    assert threads() == []


def test_the_windows_before_an_error_are_trained():
    # A row of the third window that is none of the first ten, whose shapes the run is begun with.
    bad = next(row for row in np.asarray(permutation(beginning().key, 0, 77))[40:60].tolist() if row >= 10)
    inputs = np.array(TRAIN.inputs)
    inputs[bad] = np.nan
    source, _ = in_parts(TRAIN._replace(inputs=inputs))
    calls = []
    # The rows are checked where they are read: a row that is not finite is told by its number.
    with pytest.raises(InputError, match=rf"inputs must be finite, got nan in row {bad}\."):
        for chunk in streamed(PLAN, beginning(), source, VALIDATION, window_bytes=400):
            calls.append(chunk.batches)
    assert calls == [2, 2]


def test_a_slow_reader_only_slows():
    def read(rows, numbers):
        time.sleep(0.03)
        return take(rows, numbers)

    source, _ = in_parts(TRAIN, read)
    result = list(streamed(PLAN, beginning(), source, VALIDATION, last=2, window_bytes=400))
    assert bits(result[-1].state) == bits(whole_run()[1].state)


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
def test_a_pause_changes_nothing(pauses):
    source, _ = in_parts(TRAIN)
    result = list(streamed(PLAN, beginning(), source, VALIDATION, last=6, steps=lengths(*pauses), window_bytes=400))
    assert 0 in [chunk.batches for chunk in result]
    assert bits(result[-1].state) == bits(whole_run()[-1].state)


# Four devices cannot share a batch of ten evenly.
@pytest.mark.parametrize(("batch_size", "axes"), [(10, {"data": 4}), (8, {"data": 2, "model": 2})])
def test_a_stream_on_a_mesh_is_the_run_in_memory_on_it(batch_size, axes):
    mesh, (source, requests) = make_mesh(jax.devices()[:4], **axes), in_parts(TRAIN)
    plan = PLAN._replace(batch_size=batch_size)
    begin = shard_state(start(plan, TRAIN, VALIDATION, key=jax.random.key(1)), mesh, large=0)
    wanted = list(chunks(plan, begin, shard_dataset(TRAIN, mesh), VALIDATION, last=3))
    result = list(streamed(plan, begin, source, VALIDATION, last=3, window_bytes=400))
    for one, other in zip(records(result), records(wanted), strict=True):
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
    source = mapped(tmp_path, TRAIN)
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


def test_a_step_that_is_not_finite_is_told_with_its_rows(tmp_path):
    # The target is finite, but not its square: the last batch of the epoch, which is short.
    row = int(permutation(beginning().key, 0, 77)[75])
    targets = np.array(TRAIN.targets)
    targets[row] = 1e30
    rows = TRAIN._replace(targets=targets)
    plan = make_plan(mlp((5,)), losses.squared_error, optax.sgd(0.01), metrics=METRICS, batch_size=10)
    begin = start(plan, TRAIN, VALIDATION, key=jax.random.key(1))
    begin = begin._replace(key=beginning().key)
    troubles = []
    for train in (mapped(tmp_path, rows), rows):
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


def test_what_does_not_fit_a_stream_is_refused():
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


def test_the_order_is_drawn_without_a_cpu_among_the_platforms_too(monkeypatch):
    def missing(backend=None):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(streaming.jax, "local_devices", missing)
    source, _ = in_parts(TRAIN)
    result = list(streamed(PLAN, beginning(), source, VALIDATION, last=1, window_bytes=400))
    assert bits(result[-1].state) == bits(whole_run()[0].state)


LARGE = """
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
        [sys.executable, "-c", LARGE, str(tmp_path)],
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


@pytest.mark.parametrize("window_bytes", SIZES)
def test_a_source_has_the_limits_and_the_validations_of_rows_in_memory(window_bytes):
    source, _ = in_parts(TRAIN)
    options = {"max_steps": 29, "validate_every": 2, "end_after": (3, 8)}
    expected = list(chunks(PLAN, beginning(), TRAIN, VALIDATION, **options))
    result = list(streamed(PLAN, beginning(), source, VALIDATION, window_bytes=window_bytes, **options))
    assert bits(result[-1].state) == bits(expected[-1].state) and records(result) == records(expected)
    assert ["val_loss" in record for record in records(result)] == [False, True, False]
    ends = {chunk.step for chunk in result}
    assert ends >= {step for step in range(1, 30) if step % 3 == 0 or step % 8 == 0} and max(ends) == 29
