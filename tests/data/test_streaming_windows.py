"""Windows: the batches of an order, cut, placed and read ahead."""

import threading

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.data import DataSource, dataset, take
from jaxdl.data.streaming import load_window, plan_windows, prefetch, read_rows, window_sharding
from jaxdl.distributed import make_mesh
from jaxdl.errors import InputError
from jaxdl.types import Dataset

ROWS = dataset(np.arange(20.0).reshape(10, 2) + 1, np.arange(10))
SOURCE = DataSource(10, lambda rows: take(ROWS, rows))


@given(rows=st.integers(1, 400), batch_size=st.integers(1, 50), window_bytes=st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_windows_contain_every_batch_once_within_their_bytes(rows, batch_size, window_bytes):
    one = Dataset(np.ones((1, 3), np.float32), np.ones(1, np.int32), np.ones(1, np.float32))
    cut = plan_windows(one, rows, batch_size, window_bytes)
    assert (cut.batches - 1) * batch_size < rows <= cut.batches * batch_size
    assert (cut.windows - 1) * cut.per_window < cut.batches <= cut.windows * cut.per_window
    assert cut.per_window == 1 or cut.per_window * batch_size * 20 <= window_bytes


@pytest.mark.parametrize("window_bytes", [0, 150, 10**6])
def test_windows_contain_the_batches_of_the_order(window_bytes):
    order = np.random.default_rng(0).permutation(10)
    first = read_rows(SOURCE, np.arange(1))
    cut = plan_windows(first, 10, 4, window_bytes)
    windows = [load_window(SOURCE, first, cut, number, lambda places: order[places]) for number in range(cut.windows)]
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves).reshape(-1, *leaves[0].shape[2:]), *windows)
    assert all(window.sample_weight.shape == (cut.per_window, 4) for window in windows)
    np.testing.assert_array_equal(whole.inputs[:10], ROWS.inputs[order])
    np.testing.assert_array_equal(whole.sample_weight, np.arange(len(whole.sample_weight)) < 10)
    # What fills the last batch up is real rows, as in memory; zeros might not be finite in a network.
    np.testing.assert_array_equal(whole.inputs[10:12], ROWS.inputs[order[:2]])


def test_each_device_of_a_mesh_reads_its_shard_of_every_batch():
    requests, mesh = [], make_mesh(jax.devices()[:4], data=4)

    def read(rows):
        requests.append(rows.tolist())
        return take(ROWS, rows)

    source, first = DataSource(10, read), read_rows(SOURCE, np.arange(1))
    cut = plan_windows(first, 10, 5)
    home = window_sharding(jax.device_put(np.zeros(3), jax.NamedSharding(mesh, jax.P())))
    window = load_window(source, first, cut, 0, lambda places: places, home)
    # Batches of 5 are filled up to 8, two for each device.
    assert window.inputs.shape == (2, 8, 2) and window.inputs.sharding.spec == jax.P(None, "data")
    assert requests == [[0, 1, 5, 6], [2, 3, 7, 8], [0, 4, 5, 9], [1, 2, 6, 7]]
    np.testing.assert_array_equal(window.sample_weight, [[1, 1, 1, 1, 1, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(window.targets[:, :5], [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    for shard in window.inputs.addressable_shards:
        place = shard.index[1].start // 2
        np.testing.assert_array_equal(shard.data, np.asarray(window.inputs)[:, 2 * place : 2 * place + 2])


def test_devices_with_the_same_rows_share_a_read():
    requests, mesh = [], make_mesh(jax.devices()[:4], member=2, data=2)

    def read(rows):
        requests.append(rows.tolist())
        return take(ROWS, rows)

    first = read_rows(SOURCE, np.arange(1))
    home = window_sharding(jax.device_put(np.zeros(3), jax.NamedSharding(mesh, jax.P())))
    load_window(DataSource(10, read), first, plan_windows(first, 10, 10), 0, lambda places: places, home)
    assert requests == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_window_is_on_the_device_of_the_run_state():
    device = jax.devices()[2]
    first, home = read_rows(SOURCE, np.arange(1)), window_sharding(jax.device_put({"a": np.zeros(3)}, device))
    window = load_window(SOURCE, first, plan_windows(first, 10, 4), 0, lambda places: places, home)
    assert {leaf.device for leaf in window} == {device}
    assert window_sharding({"a": jax.numpy.zeros(3)}) is None


def test_load_window_rejects_examples_of_another_shape_or_dtype():
    def read(rows):
        return Dataset(np.ones((len(rows), 3 if rows.max() > 5 else 2)), rows, np.ones(len(rows)))

    source = DataSource(10, read)
    first = read_rows(source, np.arange(1))
    with pytest.raises(
        InputError, match=r"one shape and dtype in all rows of a source, got \(3,\) of float32 after \(2,"
    ):
        load_window(source, first, plan_windows(first, 10, 5, 0), 1, lambda places: places)
    first = first._replace(targets=first.targets.astype(np.int8))
    with pytest.raises(InputError, match=r"targets must have one shape and dtype .* int64 after \(\) of int8"):
        load_window(source, first, plan_windows(first, 10, 5, 0), 0, lambda places: places)


def test_prefetch_computes_one_result_ahead():
    made, go = [], threading.Semaphore(0)

    def make(number):
        go.acquire()
        made.append((number, threading.current_thread()))
        return number

    with prefetch(make, end=4) as fetch:
        assert not fetch.ready(0)
        go.release(9)
        assert [fetch.get(number) for number in (0, 0, 1, 1, 2, 3)] == [0, 0, 1, 1, 2, 3]
        assert fetch.ready(3) and not fetch.ready(4)
    assert [number for number, _ in made] == [0, 1, 2, 3]
    assert len({thread for _, thread in made}) == 1
    assert not made[0][1].is_alive() and made[0][1] is not threading.current_thread()


def test_prefetch_raises_errors_in_get():
    def make(number):
        if number == 1:
            raise OSError("the disk is gone")
        return number

    with prefetch(make) as fetch:
        assert fetch.get(0) == 0
        with pytest.raises(OSError, match="the disk is gone"):
            fetch.get(1)
