"""Event files: what stands in them is what NumPy says, and TensorBoard reads it."""

import errno
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxdl import events
from jaxdl.errors import InputError

NORMAL = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)


def read(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_the_counts_of_a_histogram_are_numpys(tmp_path):
    events.replace(tmp_path, "a", [events.event([events.histogram("kernel", NORMAL)], step=3)])
    (found,) = read(tmp_path).Histograms("kernel")
    numbers = NORMAL.astype(np.float64).ravel()
    counts, edges = np.histogram(numbers, events.BINS)
    value = found.histogram_value
    assert (found.step, value.num) == (3, 1200)
    np.testing.assert_array_equal(value.bucket, counts)
    np.testing.assert_array_equal(value.bucket_limit, edges[1:])
    assert (value.min, value.max) == (numbers.min(), numbers.max())
    np.testing.assert_allclose([value.sum, value.sum_squares], [numbers.sum(), (numbers**2).sum()])


def test_a_known_array_falls_into_known_bins():
    # 0 to 49 and the half of each: the first bin holds 0 and 0.5, and so on.
    value = events.histogram("a", np.arange(0, 50.25, 0.5)[:-1]).histo
    assert list(value.bucket_limit)[:2] == pytest.approx([0.99, 1.98])
    assert sum(value.bucket) == 100 and value.bucket[0] == 2


def test_numbers_that_are_all_the_same_are_one_bin():
    value = events.histogram("bias", np.zeros(50, np.float32)).histo
    assert (value.min, value.max, list(value.bucket), list(value.bucket_limit)) == (0.0, 0.0, [50.0], [0.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_left_out(bad):
    value = events.histogram("a", np.array([1.0, bad, 2.0, bad])).histo
    assert (value.num, value.min, value.max, sum(value.bucket)) == (2, 1.0, 2.0, 2)
    assert events.histogram("a", np.array([bad])) is None


def test_an_array_of_nothing_has_no_histogram():
    assert events.histogram("a", np.zeros((0, 3))) is None


@given(hnp.arrays(st.sampled_from([np.float32, np.float64]), hnp.array_shapes(max_dims=2, max_side=9)))
def test_whatever_the_numbers_are_each_finite_one_is_in_one_bin(values):
    found, finite = events.histogram("a", values), values[np.isfinite(values)]
    if not finite.size:
        assert found is None
        return
    value = found.histo
    assert sum(value.bucket) == value.num == finite.size
    assert (value.min, value.max) == (finite.min(), finite.max())
    assert list(value.bucket_limit) == sorted(value.bucket_limit) and np.isfinite(value.bucket_limit).all()


def test_the_small_numbers_of_bfloat16_are_counted_as_they_are():
    import ml_dtypes

    values = np.array([0.5, 0.25, 0.5], ml_dtypes.bfloat16)
    assert events.histogram("a", values).histo.sum == 1.25


def test_what_a_run_says_of_later_epochs_is_taken_back(tmp_path):
    for begin, epochs in ((0, (1, 2, 3)), (2, (3, 4)), (0, (1,))):
        with events.written(tmp_path, ["train"], begin=begin) as write:
            for epoch in epochs:
                write([("train", events.event([events.scalar("loss", epoch + begin / 10)], step=epoch))])
        # TensorBoard reads files in the order of their names, which hold the second of their beginning.
        for file in (tmp_path / "train").glob("*tfevents*"):
            if not file.name.startswith("events.out.tfevents.000"):
                file.rename(file.with_name(f"events.out.tfevents.000{len(list((tmp_path / 'train').iterdir()))}"))
        steps = [(e.step, round(e.value, 1)) for e in read(tmp_path / "train").Scalars("loss")]
        assert (
            steps
            == {3: [(1, 1.0), (2, 2.0), (3, 3.0)], 4: [(1, 1.0), (2, 2.0), (3, 3.2), (4, 4.2)], 1: [(1, 1.0)]}[
                epochs[-1]
            ]
        )


def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path, monkeypatch):
    from tensorboardX.event_file_writer import EventsWriter

    def flush(writer):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    told = []
    with events.written(tmp_path, ["a", "b"], tell=told.append) as write:
        write([("a", events.event([events.scalar("loss", 1.0)], step=1))])
        monkeypatch.setattr(EventsWriter, "flush", flush)
        for epoch in (2, 3):
            write([("b", events.event([events.scalar("loss", 1.0)], step=epoch))])
    assert told == [f"{tmp_path} cannot be written (No space left on device); the rest of the charts is left out."]
    assert [e.step for e in read(tmp_path / "a").Scalars("loss")] == [1]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    events.replace(tmp_path, "a", [events.event([events.scalar("loss", 1.0)], step=1)])

    def fsync(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match="No space left on device"):
            events.replace(tmp_path, "a", [events.event([events.scalar("loss", 2.0)], step=1)])
    assert [e.value for e in read(tmp_path).Scalars("loss")] == [1.0]
    events.replace(tmp_path, "a", [events.event([events.scalar("loss", 3.0)], step=1)])
    assert [e.value for e in read(tmp_path).Scalars("loss")] == [3.0]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_told_and_ends_nothing(tmp_path):
    (tmp_path / "charts").write_text("a file")
    told = []
    with events.written(tmp_path / "charts", ("train",), tell=told.append) as write:
        write([("train", events.event([events.scalar("loss", 0.5)], step=1))])
    assert len(told) == 1 and "charts cannot be written" in told[0]
