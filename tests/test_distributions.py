"""Histograms of weights and gradients: of what, when, and that a run is the same with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxdl import events
from jaxdl.data import examples
from jaxdl.distributions import distributions
from jaxdl.errors import InputError
from jaxdl.fitting import fit
from jaxdl.models import mlp
from jaxdl.objectives import squared_error
from jaxdl.plans import make_plan
from jaxdl.sharding import make_mesh, place_progress, place_rows
from jaxdl.sources import Source
from jaxdl.training import start
from jaxdl.types import Objective

RANDOM = np.random.default_rng(0)
ROWS = examples(RANDOM.normal(size=(24, 3)), RANDOM.normal(size=(24, 1)))
BATCH = 8
MODEL, OBJECTIVE, OPTIMISER = mlp((5,)), Objective(squared_error), optax.sgd(0.05)
PLAN = make_plan(MODEL, OBJECTIVE, OPTIMISER, batch_size=BATCH)
NAMES = ["Dense_0/bias", "Dense_0/kernel", "Dense_1/bias", "Dense_1/kernel"]


@functools.cache
def beginning():
    return start(PLAN, ROWS, key=jax.random.key(0))


def run(*observers, progress=None, rows=ROWS, **options):
    progress = beginning() if progress is None else progress
    options = {"epochs": 4, "batch_size": BATCH, "progress": progress, "observers": observers, **options}
    return fit(MODEL, OBJECTIVE, OPTIMISER, rows, **options)


def read(folder):
    """{tag: {step: HistogramValue}} of a run."""
    accumulator = EventAccumulator(str(folder), {"histograms": 0})
    accumulator.Reload()
    return {
        tag: {e.step: e.histogram_value for e in accumulator.Histograms(tag)}
        for tag in accumulator.Tags()["histograms"]
    }


def assert_holds(value, array):
    numbers = np.float64(array).ravel()
    counts, _ = np.histogram(numbers, events.BINS)
    assert value.num == numbers.size
    np.testing.assert_allclose([value.min, value.max], [numbers.min(), numbers.max()], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        [value.sum, value.sum_squares], [numbers.sum(), (numbers**2).sum()], rtol=1e-4, atol=1e-6
    )
    assert numbers.min() == numbers.max() or np.abs(np.subtract(value.bucket, counts)).sum() <= 2


def by_hand(params, rows):
    """The gradient of the mean squared error of relu layers, in NumPy and float64."""
    inputs, targets = np.float64(rows.inputs[:BATCH]), np.float64(rows.targets[:BATCH])
    one, two = ({k: np.float64(v) for k, v in params[name].items()} for name in ("Dense_0", "Dense_1"))
    before = inputs @ one["kernel"] + one["bias"]
    hidden = np.maximum(before, 0)
    out = 2 * (hidden @ two["kernel"] + two["bias"] - targets) / BATCH
    inner = (out @ two["kernel"].T) * (before > 0)
    return {
        "Dense_0": {"kernel": inputs.T @ inner, "bias": inner.sum(0)},
        "Dense_1": {"kernel": hidden.T @ out, "bias": out.sum(0)},
    }


def assert_read(folder, step, params):
    weights, gradients = read(folder / "weights"), read(folder / "gradients")
    assert sorted(weights) == sorted(gradients) == NAMES
    expected = by_hand(params, ROWS)
    for name in NAMES:
        layer, kind = name.split("/")
        assert_holds(weights[name][step], params[layer][kind])
        assert_holds(gradients[name][step], expected[layer][kind])


def test_the_initial_weights_and_their_gradients_are_the_first(tmp_path):
    with distributions(tmp_path, PLAN, ROWS, beginning(), every=3):
        pass
    assert_read(tmp_path, 0, beginning().state.weights.params)


def test_each_histogram_is_of_the_weights_after_its_epoch(tmp_path):
    kept = {}
    with distributions(tmp_path, PLAN, ROWS, beginning(), every=2) as observe:
        run(observe, lambda progress, history: kept.update({len(history): progress.state.weights.params}))
    assert list(read(tmp_path / "weights")["Dense_0/kernel"]) == [0, 2, 4]
    for step in (2, 4):
        assert_read(tmp_path, step, kept[step])


def test_histograms_are_written_while_the_run_goes_on(tmp_path):
    seen = []
    with distributions(tmp_path, PLAN, ROWS, beginning(), every=1) as observe:
        run(observe, lambda progress, history: seen.append(list(read(tmp_path / "weights")["Dense_0/bias"])))
    # An epoch later, because the device is at the next one when it is told.
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert list(read(tmp_path / "weights")["Dense_0/bias"]) == [0, 1, 2, 3, 4]


def test_a_run_that_breaks_off_keeps_its_histograms(tmp_path):
    def stop(progress, history):
        raise RuntimeError

    with pytest.raises(RuntimeError), distributions(tmp_path, PLAN, ROWS, beginning(), every=1) as observe:
        run(observe, stop)
    assert list(read(tmp_path / "gradients")["Dense_0/bias"]) == [0, 1]


def test_a_run_that_goes_on_takes_back_what_was_said_of_later_epochs(tmp_path):
    first = run(epochs=2)
    with distributions(tmp_path, PLAN, ROWS, beginning(), every=1) as observe:
        run(observe)
    for run_of in ("weights", "gradients"):
        # Files are read in the order of their names, which hold the second of their beginning.
        (file,) = (tmp_path / run_of).iterdir()
        file.rename(file.with_name("events.out.tfevents.0"))
    with distributions(tmp_path, PLAN, ROWS, first.progress, every=1) as observe:
        run(observe, progress=first.progress, epochs=3)
    assert list(read(tmp_path / "weights")["Dense_0/bias"]) == [0, 1, 2, 3]


def test_it_compiles_one_program(tmp_path, compilations):
    plan = make_plan(mlp((6,)), OBJECTIVE, OPTIMISER, batch_size=BATCH)
    begin = start(plan, ROWS, key=jax.random.key(0))
    with distributions(tmp_path / "warm", PLAN, ROWS, beginning()):
        pass  # Whatever else JAX compiles once.
    with compilations() as names, distributions(tmp_path, plan, ROWS, begin, every=1) as observe:
        fit(plan.model, OBJECTIVE, OPTIMISER, ROWS, epochs=3, batch_size=BATCH, progress=begin, observers=[observe])
    assert names.count("_gradient_of") == 1


def test_it_does_not_change_the_run(tmp_path):
    plain = run()
    with distributions(tmp_path, PLAN, ROWS, beginning(), every=1) as observe:
        watched = run(observe)
    jax.tree.map(np.testing.assert_array_equal, watched.final, plain.final)
    np.testing.assert_array_equal(watched.history, plain.history)


@pytest.mark.parametrize("large", [2**24, 0], ids=["whole", "split"])
def test_a_run_on_a_mesh_has_the_same_histograms(tmp_path, large):
    mesh = make_mesh(jax.devices()[:4], data=2, model=2)
    with distributions(tmp_path / "one", PLAN, ROWS, beginning(), every=2) as observe:
        run(observe)
    placed, rows = place_progress(beginning(), mesh, large=large), place_rows(ROWS, mesh)
    with distributions(tmp_path / "mesh", PLAN, rows, placed, every=2) as observe:
        run(observe, progress=placed, rows=rows)
    for run_of in ("weights", "gradients"):
        one, other = read(tmp_path / "one" / run_of), read(tmp_path / "mesh" / run_of)
        assert sorted(one) == sorted(other) == NAMES
        for name in NAMES:
            assert list(one[name]) == list(other[name]) == [0, 2, 4]
            for step in (0, 2, 4):
                a, b = one[name][step], other[name][step]
                np.testing.assert_allclose([a.min, a.max, a.sum], [b.min, b.max, b.sum], rtol=1e-4, atol=1e-6)


def test_rows_bound_to_another_device_do_no_harm(tmp_path):
    rows = jax.device_put(ROWS, jax.devices()[3])
    with distributions(tmp_path, PLAN, rows, beginning(), every=4) as observe:
        run(observe, rows=rows)
    assert list(read(tmp_path / "gradients")["Dense_0/bias"]) == [0, 4]


def test_rows_that_are_not_in_memory_are_read(tmp_path):
    source = Source(24, lambda numbers: jax.tree.map(lambda leaf: leaf[numbers], ROWS))
    with distributions(tmp_path, PLAN, source, beginning()):
        pass
    assert_read(tmp_path, 0, beginning().state.weights.params)


def test_weights_that_are_not_finite_are_left_out(tmp_path):
    params = jax.tree.map(lambda leaf: leaf, beginning().state.weights.params)
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[0, 0].set(jnp.nan)
    broken = beginning()._replace(
        state=beginning().state._replace(weights=beginning().state.weights._replace(params=params))
    )
    with distributions(tmp_path, PLAN, ROWS, broken):
        pass
    weights, gradients = read(tmp_path / "weights"), read(tmp_path / "gradients")
    assert weights["Dense_0/kernel"][0].num == 14
    # The loss is nan, so is each of its gradients.
    assert "Dense_1/bias" not in gradients


def test_an_interval_below_one_epoch_is_refused(tmp_path):
    with (
        pytest.raises(InputError, match="every must be at least 1 epoch, got 0"),
        distributions(tmp_path, PLAN, ROWS, beginning(), every=0),
    ):
        pass


def test_a_run_that_goes_on_inside_of_an_epoch_keeps_the_histograms_of_the_one_before(tmp_path):
    with distributions(tmp_path, PLAN, ROWS, beginning(), every=1) as observe:
        half = run(observe, epochs=2).progress
    before = read(tmp_path / "weights")["Dense_0/kernel"]
    for run_of in ("weights", "gradients"):
        # As above: files are read in the order of their names.
        (file,) = (tmp_path / run_of).iterdir()
        file.rename(file.with_name("events.out.tfevents.0"))
    # As a checkpoint inside of the third epoch holds it: other weights, and a batch done.
    inside = half._replace(cursor=half.cursor + 1, state=jax.tree.map(lambda leaf: leaf, half.state))
    weights = jax.tree.map(lambda leaf: leaf + 1, inside.state.weights)
    inside = inside._replace(state=inside.state._replace(weights=weights))
    with distributions(tmp_path, PLAN, ROWS, inside, every=1):
        pass
    after = read(tmp_path / "weights")["Dense_0/kernel"]
    assert sorted(after) == [0, 1, 2] and after[2].sum == before[2].sum
