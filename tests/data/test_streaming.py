"""Sources, whose rows are read by number, against NumPy's indexing; windows of their batches."""

import threading
import time

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl import evaluate, fit, losses, mlp, predict
from jaxdl.data import DataSource, dataset, from_random_access, memory_mapped, take
from jaxdl.data.streaming import load_window, loader, plan_windows, prefetch, read_rows, window_sharding
from jaxdl.distributed import make_mesh
from jaxdl.errors import InputError
from jaxdl.train.evaluate import evaluate_source, predict_source
from jaxdl.types import Dataset, Objective

RANDOM = np.random.default_rng(0)
INPUTS, TARGETS = RANDOM.normal(size=(50, 3)), RANDOM.integers(0, 5, 50)
NUMBERS = RANDOM.permutation(50)[:17]


def files(folder, **arrays):
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return [folder / f"{name}.npy" for name in arrays]


class Numbered:
    """Records as tfds's `data_source` gives them: dicts, by number, with `__getitems__` or without."""

    def __init__(self, many):
        self.asked = []
        if many:
            self.__getitems__ = lambda rows: [self[row] for row in rows]

    def __len__(self):
        return 50

    def __getitem__(self, row):
        assert type(row) is int
        self.asked.append(row)
        return {"image": INPUTS[row], "label": TARGETS[row]}


def test_memory_mapped_files_return_rows_by_number(tmp_path):
    source = memory_mapped(*files(tmp_path, inputs=INPUTS, targets=TARGETS))
    result = read_rows(source, NUMBERS)
    assert source.count == 50 and result.inputs.dtype == np.float32 and result.targets.dtype == TARGETS.dtype
    np.testing.assert_array_equal(result.inputs, INPUTS.astype(np.float32)[NUMBERS])
    np.testing.assert_array_equal(result.targets, TARGETS[NUMBERS])
    np.testing.assert_array_equal(result.sample_weight, np.ones(17, np.float32))


def test_images_keep_their_bytes_and_weights_are_read(tmp_path):
    images, weights = RANDOM.integers(0, 256, (9, 4, 4, 3), np.uint8), np.arange(9)
    source = memory_mapped(*files(tmp_path, inputs=images, targets=np.zeros((9, 1)), weights=weights))
    result = read_rows(source, np.array([8, 0, 3]))
    assert result.inputs.dtype == np.uint8 and result.sample_weight.dtype == np.float32
    np.testing.assert_array_equal(result.inputs, images[[8, 0, 3]])
    np.testing.assert_array_equal(result.sample_weight, [8, 0, 3])


def test_read_rows_asks_in_rising_order_and_returns_the_given_order():
    requests, rows = [], dataset(INPUTS, TARGETS)

    def read(numbers):
        requests.append(numbers)
        return take(rows, numbers)

    wanted = np.concatenate([NUMBERS, NUMBERS[:3]])
    result = read_rows(DataSource(50, read), wanted)
    # Each once, as HDF5 wants it.
    np.testing.assert_array_equal(requests, [np.sort(NUMBERS)])
    np.testing.assert_array_equal(result.inputs, rows.inputs[wanted])


@pytest.mark.parametrize("many", [True, False])
def test_records_with_and_without_getitems_become_rows(many):
    records = Numbered(many)
    source = from_random_access(records, lambda record: (record["image"], record["label"]))
    result = read_rows(source, NUMBERS)
    np.testing.assert_array_equal(result.inputs, INPUTS.astype(np.float32)[NUMBERS])
    np.testing.assert_array_equal(result.targets, TARGETS[NUMBERS])
    assert source.count == 50 and records.asked == sorted(NUMBERS)


def test_rows_of_an_array_record_file_are_read(tmp_path):
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "rows.array_record"), "group_size:1")
    for row, label in zip(INPUTS, TARGETS, strict=True):
        writer.write(row.tobytes() + bytes([label]))
    writer.close()

    def to_row(record):
        return np.frombuffer(record[:-1], np.float64), record[-1], 0.5

    source = from_random_access(ArrayRecordDataSource(str(tmp_path / "rows.array_record")), to_row)
    result = read_rows(source, NUMBERS)
    np.testing.assert_array_equal(result.inputs, INPUTS.astype(np.float32)[NUMBERS])
    np.testing.assert_array_equal(result.targets, TARGETS[NUMBERS])
    np.testing.assert_array_equal(result.sample_weight, np.full(17, 0.5, np.float32))


def test_first_is_a_batch_of_a_source_or_the_whole_dataset():
    rows = dataset(INPUTS, TARGETS)
    source = DataSource(50, lambda numbers: take(rows, numbers))
    np.testing.assert_array_equal(loader(source, 4).first.inputs, rows.inputs[:4])
    assert len(loader(source, 99).first.sample_weight) == 50
    assert loader(rows, 4).first is rows


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"inputs": INPUTS, "targets": TARGETS[:49]},
            r"targets.npy must have one row for each of the 50 inputs, got 49",
        ),
        (
            {"inputs": INPUTS[:0], "targets": TARGETS[:0]},
            r"inputs must be an .npy file with at least one row, got .*0, 3",
        ),
        ({"inputs": np.float64(3), "targets": TARGETS}, r"inputs must be an .npy file with at least one row"),
        ({"inputs": np.array(["a"] * 50), "targets": TARGETS}, r"inputs in .* must hold numbers, got dtype <U1"),
        ({"inputs": np.array([None] * 50), "targets": TARGETS}, r"inputs must be an .npy file of numbers"),
        (
            {"inputs": INPUTS, "targets": TARGETS, "sample_weight": INPUTS},
            r"sample_weight must be a row of numbers, got shape \(50, 3",
        ),
    ],
)
def test_memory_mapped_rejects_files_of_bad_shapes(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        memory_mapped(*files(tmp_path, **arrays))


def test_memory_mapped_rejects_missing_and_other_files(tmp_path):
    (good,) = files(tmp_path, inputs=INPUTS)
    with pytest.raises(InputError, match=r"targets must be an .npy file, got .*none.npy, which does not exist"):
        memory_mapped(good, tmp_path / "none.npy")
    (tmp_path / "text.npy").write_text("1, 2, 3")
    with pytest.raises(InputError, match=r"targets must be an .npy file of numbers, got .*text.npy"):
        memory_mapped(good, tmp_path / "text.npy")
    np.savez(tmp_path / "several.npz", a=INPUTS)
    with pytest.raises(InputError, match=r"targets must be an .npy file with at least one row"):
        memory_mapped(good, tmp_path / "several.npz")


@pytest.mark.parametrize("count", [0, -1, 2**31])
def test_a_source_rejects_a_bad_count(count):
    with pytest.raises(InputError, match=rf"a source must have from 1 to 2147483647 rows, got {count}"):
        DataSource(count, lambda rows: None)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda rows: (rows, rows), "a source must read a Dataset, got tuple"),
        (lambda rows: Dataset(rows[1:], rows, rows), r"as many inputs as rows, got shape \(2,\) for 3 rows"),
        (lambda rows: Dataset(rows, rows.astype(str), rows), "targets must hold numbers, got dtype <U21"),
        (
            lambda rows: Dataset(rows, rows, rows - 3),
            "sample_weight must be numbers >= 0, one a row, got .* minimum -2",
        ),
        (lambda rows: Dataset(rows + 2**40, rows, rows), "inputs must fit into 32 bits, got 1099511627777 in row 1"),
        (lambda rows: Dataset(rows, np.where(rows == 7, 1e300, 0), rows), "targets must be finite, got inf in row 7"),
        (lambda rows: Dataset(np.log(rows - 1), rows, rows), "inputs must be finite, got -inf in row 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_read_rows_rejects_bad_values_by_row(read, message):
    with pytest.raises(InputError, match=message):
        read_rows(DataSource(10, read), np.array([7, 1, 4]))


def test_from_random_access_rejects_bad_results_of_to_row():
    def read(to_row):
        return read_rows(from_random_access([1.0, 2.0, 3.0], to_row), np.array([2, 0]))

    with pytest.raises(InputError, match=r"to_row must make \(inputs, targets\) or .*, got float for row 0"):
        read(lambda record: record)
    with pytest.raises(InputError, match=r"got 1 values for row 0"):
        read(lambda record: (record,))
    with pytest.raises(
        InputError, match=r"inputs must have one shape in all rows, got \(1,\) for row 0 and \(3,\) for"
    ):
        read(lambda record: (np.zeros(int(record)), 0))


class Strict:
    """Rows that are read as from HDF5: by numbers that rise strictly, and no others."""

    def __init__(self, array):
        self.array = array

    def __getitem__(self, rows):
        if (np.diff(rows) <= 0).any():
            raise TypeError("Indexing elements must be in increasing order")
        return self.array[rows]


@pytest.mark.parametrize("batch_size", [8, 32, 50])
def test_a_source_with_strictly_rising_indices_trains_evaluates_and_predicts(batch_size):
    rows = dataset(INPUTS, INPUTS[:, :1])
    strict = [Strict(leaf) for leaf in rows]
    source = DataSource(50, lambda numbers: Dataset(*(leaf[numbers] for leaf in strict)))
    result, wanted = (
        fit(mlp(()), losses.squared_error, optax.sgd(0.1), each, epochs=2, batch_size=batch_size)
        for each in (source, rows)
    )
    np.testing.assert_allclose(result.history["loss"], wanted.history["loss"], rtol=1e-6)
    # Windows that are filled up hold rows twice.
    evaluated = evaluate_source(
        mlp(()), Objective(losses.squared_error), result.final, source, batch_size=8, window_bytes=400
    )
    np.testing.assert_allclose(
        evaluated["loss"], evaluate(mlp(()), result.final, rows, losses.squared_error)["loss"], rtol=1e-5
    )
    pieces = predict_source(mlp(()), result.final, source, batch_size=8, window_bytes=400)
    np.testing.assert_allclose(np.concatenate([*pieces]), predict(mlp(()), result.final, INPUTS), rtol=1e-5)


@pytest.mark.parametrize("many", [True, False])
def test_workers_read_in_parallel_and_keep_the_order(many):
    waiting, most, lock = 0, 0, threading.Lock()

    class Slow(Numbered):
        def __getitem__(self, row):
            nonlocal waiting, most
            with lock:
                waiting += 1
                most = max(most, waiting)
            time.sleep(0.02)
            with lock:
                waiting -= 1
            return super().__getitem__(row)

    source = from_random_access(Slow(many), lambda record: (record["image"], record["label"]), workers=16)
    for _ in range(2):
        result = read_rows(source, NUMBERS)
        np.testing.assert_array_equal(result.inputs, INPUTS.astype(np.float32)[NUMBERS])
        np.testing.assert_array_equal(result.targets, TARGETS[NUMBERS])
    assert 8 <= most <= 16


def test_workers_pass_on_errors_and_their_number_is_checked():
    source = from_random_access([1.0, 2.0, 3.0], lambda record: 1 / 0, workers=2)
    with pytest.raises(ZeroDivisionError):
        read_rows(source, np.array([2, 0]))
    for workers in (0, -1, 2.5, True, "4"):
        with pytest.raises(InputError, match="workers must be a whole number of at least 1, got"):
            from_random_access([1.0], lambda record: (record, 0), workers=workers)


def test_files_of_the_other_byte_order_are_the_same_numbers(tmp_path):
    source = memory_mapped(*files(tmp_path, inputs=INPUTS.astype(">f8"), targets=TARGETS.astype(">i4")))
    result = read_rows(source, NUMBERS)
    assert all(leaf.dtype.isnative for leaf in result)
    np.testing.assert_array_equal(result.inputs, INPUTS.astype(np.float32)[NUMBERS])
    np.testing.assert_array_equal(result.targets, TARGETS[NUMBERS])


def test_masked_records_are_refused():
    hidden = np.ma.masked_equal([[1.0, 2.0], [3.0, -9999.0]], -9999.0)
    with pytest.raises(InputError, match="inputs of row 1 must hold a number everywhere, got 1 masked values"):
        read_rows(from_random_access(hidden, lambda record: (record, 0)), np.array([1, 0]))
    whole = DataSource(2, lambda rows: Dataset(hidden[rows], rows, np.ones(len(rows))))
    with pytest.raises(InputError, match="inputs must hold a number everywhere, got 1 masked values"):
        read_rows(whole, np.array([1, 0]))


# Windows: the batches of an order, cut, placed and read ahead


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
