"""The pace: chunks of about the wanted seconds, whatever a batch takes."""

import pytest

from jaxdl.train.loop import AdaptiveSteps


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
    asked = iter([False, True, False])
    pace = AdaptiveSteps(pause=lambda: next(asked))
    sizes = []
    for seconds in (0.001, 9.0, 0.001):
        sizes.append(pace())
        pace.update(seconds, sizes[-1])
    assert sizes == [1, 0, 2]
