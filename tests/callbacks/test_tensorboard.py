"""What a run writes for TensorBoard, as TensorBoard and its plugins read it."""

import functools
import logging
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.plugins.text import text_plugin
from tensorboard.util import tensor_util

from jaxdl import callbacks
from jaxdl._format import table
from jaxdl.callbacks import _tensorboard, description, histograms, pictures, results
from jaxdl.data import DataSource, dataset
from jaxdl.distributed import make_mesh, shard_dataset, shard_state
from jaxdl.errors import InputError
from jaxdl.losses import squared_error
from jaxdl.metrics import rmse
from jaxdl.nn import mlp
from jaxdl.train import make_plan, start
from jaxdl.train.fit import fit
from jaxdl.types import Objective

RANDOM = np.random.default_rng(0)
ROWS = dataset(RANDOM.normal(size=(24, 3)), RANDOM.normal(size=(24, 1)))
BATCH, EPOCHS = 8, 4
# Made once, so that all runs here share one compiled program.
MODEL, OBJECTIVE, OPTIMIZER = mlp((5,)), Objective(squared_error, (rmse,)), optax.sgd(0.05)
PLAN = make_plan(MODEL, squared_error, OPTIMIZER, metrics=[rmse], batch_size=BATCH)
NAMES = ["Dense_0/bias", "Dense_0/kernel", "Dense_1/bias", "Dense_1/kernel"]


@functools.cache
def beginning():
    return start(PLAN, ROWS, key=jax.random.key(0))


def run(*on_epoch, run_state=None, rows=ROWS, **options):
    run_state = beginning() if run_state is None else run_state
    options = {"epochs": EPOCHS, "batch_size": BATCH, "state": run_state, "callbacks": on_epoch, **options}
    return fit(MODEL, squared_error, OPTIMIZER, rows, metrics=[rmse], **options)


def accumulated(folder):
    accumulator = EventAccumulator(str(folder), {"scalars": 0, "histograms": 0, "tensors": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def scalars(folder):
    result = accumulated(folder)
    return {tag: [(e.step, e.value) for e in result.Scalars(tag)] for tag in result.Tags()["scalars"]}


def read_histograms(folder):
    """{tag: {step: HistogramValue}} of a run; no step may stand there twice."""
    result = accumulated(folder)
    tags = {tag: [(e.step, e.histogram_value) for e in result.Histograms(tag)] for tag in result.Tags()["histograms"]}
    assert all(len(dict(each)) == len(each) for each in tags.values())
    return {tag: dict(each) for tag, each in tags.items()}


def records(*losses, begin=1):
    return [{"epoch": epoch, "loss": loss} for epoch, loss in enumerate(losses, begin)]


def replay(callback, history):
    for epoch in range(1, len(history) + 1):
        callback(None, history[:epoch])


@pytest.fixture
def one_second(monkeypatch):
    """Files that are opened in one second, whose names cannot be told apart by it."""
    monkeypatch.setattr("tensorboardX.event_file_writer.time", SimpleNamespace(time=lambda: 1.0e9))


@pytest.fixture
def full_disk():
    """Called, it lets no file grow beyond 4 kB, as if the disk were full; called with False, there is room again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda full=True: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]) if full else before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Metrics


def test_the_history_is_shown_with_training_and_validation_in_one_chart(tmp_path):
    with callbacks.tensorboard(tmp_path) as callback:
        history = run(callback, validation=ROWS, state=None).history
    train, validation = scalars(tmp_path / "train"), scalars(tmp_path / "validation")
    # One chart: the same tag in two runs.
    assert set(train) == set(validation) == {"loss", "rmse"}
    for written, prefix in ((train, ""), (validation, "val_")):
        for tag, points in written.items():
            # The metrics are float32 on the device, and float32 in the events: nothing is lost.
            assert points == list(zip(range(1, EPOCHS + 1), history[prefix + tag], strict=True))


def test_without_validation_only_training_is_shown(tmp_path):
    with callbacks.tensorboard(tmp_path) as callback:
        replay(callback, records(0.5, 0.25))
    assert scalars(tmp_path / "train") == {"loss": [(1, 0.5), (2, 0.25)]}
    assert scalars(tmp_path / "validation") == {}


def test_tags_stay_as_they_are_and_nan_is_written_in_silence(tmp_path, caplog):
    with caplog.at_level(logging.INFO), callbacks.tensorboard(tmp_path) as callback:
        callback(None, [{"epoch": 1, "error (°C)": math.nan, "rows": 3}])
    assert not caplog.records
    result = scalars(tmp_path / "train")
    assert math.isnan(result.pop("error (°C)")[0][1]) and result == {"rows": [(1, 3.0)]}


def test_epochs_are_seen_while_the_run_goes_on(tmp_path):
    # A crash loses what is younger than `every`: with 0, nothing.
    calls, history = [], records(1.0, 2.0, 3.0)
    with callbacks.tensorboard(tmp_path, every=0.0) as callback:
        for epoch in (1, 2, 3):
            callback(None, history[:epoch])
            calls.append(len(scalars(tmp_path / "train").get("loss", [])))
    assert calls == [1, 2, 3]


def test_the_epochs_of_a_run_that_breaks_off_are_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt), callbacks.tensorboard(tmp_path, every=1e9) as callback:
        replay(callback, records(1 / 3, 1e-30, 1e22))
        raise KeyboardInterrupt
    assert [step for step, _ in scalars(tmp_path / "train")["loss"]] == [1, 2, 3]


@pytest.mark.processes
def test_a_process_that_is_killed_leaves_every_epoch_that_was_written(tmp_path):
    code = """
import os, sys
from jaxdl.callbacks import tensorboard
history = [{"epoch": epoch, "loss": float(epoch)} for epoch in range(1, 31)]
with tensorboard(sys.argv[1], every=0.0, initial_epoch=0) as observe:
    for epoch in range(1, 31):
        observe(None, history[:epoch])
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert scalars(tmp_path / "train")["loss"] == [(epoch, epoch) for epoch in range(1, 31)]


def test_what_a_run_wrote_of_later_epochs_is_purged_even_within_a_second(tmp_path, one_second):
    expected = [[(1, 1.0), (2, 2.0), (3, 3.0)], [(1, 1.0), (2, 2.0), (3, 5.0), (4, 6.0)], [(1, 9.0)]]
    for begin, losses, points in zip((0, 2, 0), ((1.0, 2.0, 3.0), (5.0, 6.0), (9.0,)), expected, strict=True):
        with callbacks.tensorboard(tmp_path, initial_epoch=begin) as callback:
            # Before the first of its own epochs ends, too.
            assert scalars(tmp_path / "train").get("loss", []) == [point for point in points if point[0] <= begin]
            replay(callback, records(*losses, begin=begin + 1))
        assert scalars(tmp_path / "train") == {"loss": points}


def test_many_runs_need_few_open_files(tmp_path, one_second, monkeypatch):
    monkeypatch.setattr(_tensorboard, "_OPEN_FILES", 2)
    run_state, opened = SimpleNamespace(epoch=np.array([2, 2, 2])), []
    history = [{"epoch": epoch, "loss": np.arange(3.0) + epoch} for epoch in (1, 2)]
    with callbacks.tensorboard(tmp_path, every=0.0) as callback:
        for epoch in (1, 2):
            callback(run_state, history[:epoch])
            names = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
            opened.append(sum("tfevents" in name for name in names))
    assert max(opened) <= 2
    for member in range(3):
        assert scalars(tmp_path / f"member-{member}" / "train") == {"loss": [(1, member + 1.0), (2, member + 2.0)]}


def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path, full_disk):
    messages, history = [], records(*range(300))
    with callbacks.tensorboard(tmp_path, every=0.0, initial_epoch=0, warn=messages.append) as callback:
        full_disk()
        replay(callback, history[:200])
        full_disk(False)
        # The rest is left out, rather than charts with a hole.
        callback(None, history)
    assert messages == [f"{tmp_path} cannot be written (File too large); the rest of the charts is left out."]
    points = scalars(tmp_path / "train")["loss"]
    assert 50 < len(points) < 100 and points == [(record["epoch"], record["loss"]) for record in history[: len(points)]]


def test_a_folder_that_cannot_be_made_is_told_and_ends_nothing(tmp_path):
    (tmp_path / "charts").write_text("a file")
    for begin in (0, None):
        messages = []
        with callbacks.tensorboard(tmp_path / "charts", initial_epoch=begin, warn=messages.append) as callback:
            replay(callback, records(0.5))
        assert len(messages) == 1 and "charts cannot be written" in messages[0]


# What stands in a histogram


def histogram(values):
    """The histogram of an array; None where there is none."""
    return next((value.histo for value in _tensorboard._histogram("a", values)), None)


def test_the_counts_of_a_histogram_are_numpys():
    values = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    numbers, value = values.astype(np.float64).ravel(), histogram(values)
    counts, edges = np.histogram(numbers, _tensorboard.BINS)
    np.testing.assert_array_equal(value.bucket, counts)
    np.testing.assert_array_equal(value.bucket_limit, edges[1:])
    assert (value.num, value.min, value.max) == (1200, numbers.min(), numbers.max())
    np.testing.assert_allclose([value.sum, value.sum_squares], [numbers.sum(), (numbers**2).sum()])


def test_a_known_array_falls_into_known_bins():
    # 0 to 49 and the half of each: the first bin holds 0 and 0.5, and so on.
    value = histogram(np.arange(0, 50.25, 0.5)[:-1])
    assert list(value.bucket_limit)[:2] == pytest.approx([0.99, 1.98])
    assert sum(value.bucket) == 100 and value.bucket[0] == 2


def test_numbers_that_are_all_the_same_are_one_bin():
    value = histogram(np.zeros(50, np.float32))
    assert (value.min, value.max, list(value.bucket), list(value.bucket_limit)) == (0.0, 0.0, [50.0], [0.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_left_out(bad):
    value = histogram(np.array([1.0, bad, 2.0, bad]))
    assert (value.num, value.min, value.max, sum(value.bucket)) == (2, 1.0, 2.0, 2)
    assert histogram(np.array([bad])) is None


def test_an_array_of_nothing_has_no_histogram():
    assert histogram(np.zeros((0, 3))) is None


@given(hnp.arrays(st.sampled_from([np.float32, np.float64]), hnp.array_shapes(max_dims=2, max_side=9)))
def test_whatever_the_numbers_are_each_finite_one_is_in_one_bin(values):
    value, finite = histogram(values), values[np.isfinite(values)]
    if not finite.size:
        assert value is None
        return
    assert sum(value.bucket) == value.num == finite.size
    assert (value.min, value.max) == (finite.min(), finite.max())
    assert list(value.bucket_limit) == sorted(value.bucket_limit) and np.isfinite(value.bucket_limit).all()


def test_the_small_numbers_of_bfloat16_are_counted_as_they_are():
    import ml_dtypes

    values = np.array([0.5, 0.25, 0.5], ml_dtypes.bfloat16)
    assert histogram(values).sum == 1.25


# Histograms of a run


def assert_holds(value, array):
    numbers = np.float64(array).ravel()
    counts, _ = np.histogram(numbers, _tensorboard.BINS)
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
    weights, gradients = read_histograms(folder / "weights"), read_histograms(folder / "gradients")
    assert sorted(weights) == sorted(gradients) == NAMES
    expected = by_hand(params, ROWS)
    for name in NAMES:
        layer, kind = name.split("/")
        assert_holds(weights[name][step], params[layer][kind])
        assert_holds(gradients[name][step], expected[layer][kind])


def test_the_initial_weights_and_their_gradients_are_the_first(tmp_path):
    with histograms(tmp_path, PLAN, ROWS, beginning(), every=3):
        pass
    assert_read(tmp_path, 0, beginning().train_state.variables.params)


def test_each_histogram_is_of_the_weights_after_its_epoch(tmp_path):
    remaining = {}
    with histograms(tmp_path, PLAN, ROWS, beginning(), every=2) as callback:
        run(
            callback,
            lambda run_state, history: remaining.update({len(history): run_state.train_state.variables.params}),
        )
    assert list(read_histograms(tmp_path / "weights")["Dense_0/kernel"]) == [0, 2, 4]
    for step in (2, 4):
        assert_read(tmp_path, step, remaining[step])


def test_histograms_are_written_while_the_run_goes_on(tmp_path):
    calls = []
    with histograms(tmp_path, PLAN, ROWS, beginning(), every=1) as callback:
        run(
            callback,
            lambda run_state, history: calls.append(list(read_histograms(tmp_path / "weights")["Dense_0/bias"])),
        )
    # An epoch later, because the device is at the next one when it is told.
    assert calls == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert list(read_histograms(tmp_path / "weights")["Dense_0/bias"]) == [0, 1, 2, 3, 4]


def test_a_run_that_breaks_off_keeps_its_histograms(tmp_path):
    def stop(run_state, history):
        raise RuntimeError

    with pytest.raises(RuntimeError), histograms(tmp_path, PLAN, ROWS, beginning(), every=1) as callback:
        run(callback, stop)
    assert list(read_histograms(tmp_path / "gradients")["Dense_0/bias"]) == [0, 1]


def test_a_run_that_goes_on_takes_back_what_was_said_of_later_epochs(tmp_path):
    first = run(epochs=2)
    with histograms(tmp_path, PLAN, ROWS, beginning(), every=1) as callback:
        run(callback)
    with histograms(tmp_path, PLAN, ROWS, first.state, every=1) as callback:
        run(callback, state=first.state, epochs=3)
    assert list(read_histograms(tmp_path / "weights")["Dense_0/bias"]) == [0, 1, 2, 3]


def test_it_compiles_one_program(tmp_path, compilations):
    plan = make_plan(mlp((6,)), squared_error, OPTIMIZER, metrics=[rmse], batch_size=BATCH)
    begin = start(plan, ROWS, key=jax.random.key(0))
    with histograms(tmp_path / "warm", PLAN, ROWS, beginning()):
        pass  # Whatever else JAX compiles once.
    with compilations() as names, histograms(tmp_path, plan, ROWS, begin, every=1) as callback:
        fit(
            plan.model,
            squared_error,
            OPTIMIZER,
            ROWS,
            metrics=[rmse],
            epochs=3,
            batch_size=BATCH,
            state=begin,
            callbacks=[callback],
        )
    assert names.count("_gradient_of") == 1


def test_it_does_not_change_the_run(tmp_path):
    plain = run()
    with histograms(tmp_path, PLAN, ROWS, beginning(), every=1) as callback:
        watched = run(callback)
    jax.tree.map(np.testing.assert_array_equal, watched.final, plain.final)
    np.testing.assert_array_equal(watched.history, plain.history)


@pytest.mark.parametrize("large", [2**24, 0], ids=["whole", "split"])
def test_a_run_on_a_mesh_has_the_same_histograms(tmp_path, large):
    mesh = make_mesh(jax.devices()[:4], data=2, model=2)
    with histograms(tmp_path / "one", PLAN, ROWS, beginning(), every=2) as callback:
        run(callback)
    placed, rows = shard_state(beginning(), mesh, large=large), shard_dataset(ROWS, mesh)
    with histograms(tmp_path / "mesh", PLAN, rows, placed, every=2) as callback:
        run(callback, state=placed, rows=rows)
    for run_of in ("weights", "gradients"):
        one, other = read_histograms(tmp_path / "one" / run_of), read_histograms(tmp_path / "mesh" / run_of)
        assert sorted(one) == sorted(other) == NAMES
        for name in NAMES:
            assert list(one[name]) == list(other[name]) == [0, 2, 4]
            for step in (0, 2, 4):
                a, b = one[name][step], other[name][step]
                np.testing.assert_allclose([a.min, a.max, a.sum], [b.min, b.max, b.sum], rtol=1e-4, atol=1e-6)


def test_rows_bound_to_another_device_do_no_harm(tmp_path):
    rows = jax.device_put(ROWS, jax.devices()[3])
    with histograms(tmp_path, PLAN, rows, beginning(), every=4) as callback:
        run(callback, rows=rows)
    assert list(read_histograms(tmp_path / "gradients")["Dense_0/bias"]) == [0, 4]


def test_rows_that_are_not_in_memory_are_read(tmp_path):
    source = DataSource(24, lambda numbers: jax.tree.map(lambda leaf: leaf[numbers], ROWS))
    with histograms(tmp_path, PLAN, source, beginning()):
        pass
    assert_read(tmp_path, 0, beginning().train_state.variables.params)


def test_weights_that_are_not_finite_are_left_out(tmp_path):
    params = jax.tree.map(lambda leaf: leaf, beginning().train_state.variables.params)
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[0, 0].set(jnp.nan)
    broken = beginning()._replace(
        train_state=beginning().train_state._replace(
            variables=beginning().train_state.variables._replace(params=params)
        )
    )
    with histograms(tmp_path, PLAN, ROWS, broken):
        pass
    weights, gradients = read_histograms(tmp_path / "weights"), read_histograms(tmp_path / "gradients")
    assert weights["Dense_0/kernel"][0].num == 14
    # The loss is nan, so is each of its gradients.
    assert "Dense_1/bias" not in gradients


def test_an_interval_below_one_epoch_is_refused(tmp_path):
    with (
        pytest.raises(InputError, match="every must be at least 1 epoch, got 0"),
        histograms(tmp_path, PLAN, ROWS, beginning(), every=0),
    ):
        pass


def test_a_run_that_goes_on_inside_of_an_epoch_keeps_the_histograms_of_the_one_before(tmp_path):
    with histograms(tmp_path, PLAN, ROWS, beginning(), every=1) as callback:
        half = run(callback, epochs=2).state
    before = read_histograms(tmp_path / "weights")["Dense_0/kernel"]
    # As a checkpoint inside of the third epoch holds it: other weights, and a batch done.
    inside = half._replace(cursor=half.cursor + 1, train_state=jax.tree.map(lambda leaf: leaf, half.train_state))
    weights = jax.tree.map(lambda leaf: leaf + 1, inside.train_state.variables)
    inside = inside._replace(train_state=inside.train_state._replace(variables=weights))
    with histograms(tmp_path, PLAN, ROWS, inside, every=1):
        pass
    after = read_histograms(tmp_path / "weights")["Dense_0/kernel"]
    assert sorted(after) == [0, 1, 2] and after[2].sum == before[2].sum


# What a run is and what came of it


VALUES = {
    "recipe": "small",
    "learning_rate": 0.1 + 0.2,
    "hidden": (100, 50),
    "input_norm": True,
    "patience": None,
    "seed": 2**32 - 1,
    "scale": np.float32(0.5),
    "limit": math.inf,
}


def rows_of(logdir):
    """The table of the HParams tab: of each run its hyperparameters, its metrics and how it ended."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    result = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    every = [
        getattr(api_pb2, name) for name in ("STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING")
    ]
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=99, allowed_statuses=every)
    groups = list_session_groups.Handler(context.RequestContext(), result, "", request).run().session_groups
    table = {}
    for group in groups:
        (session,) = group.sessions
        hyperparameters = {n: getattr(v, v.WhichOneof("kind")) for n, v in group.hparams.items()}
        metrics = {value.name.tag: value.value for value in group.metric_values}
        table[session.name] = hyperparameters, metrics, session.status
    return table


def test_a_run_is_one_row_of_hyperparameters_and_metrics(tmp_path):
    description(tmp_path / "a", hyperparameters=VALUES)
    results(tmp_path / "a", {"test": {"rmse": 0.25, "mae": 0.5}}, step=7)
    ((name, (hyperparameters, metrics, status)),) = rows_of(tmp_path).items()
    assert name == "a" and status == api_pb2.STATUS_SUCCESS
    assert metrics == {"test/rmse": 0.25, "test/mae": 0.5}
    assert hyperparameters == {
        "recipe": "small",
        "learning_rate": 0.1 + 0.2,
        "hidden": "(100, 50)",
        "input_norm": True,
        "patience": "None",
        "seed": 2**32 - 1,
        "scale": 0.5,
        "limit": "inf",
    }


def test_several_runs_are_compared_in_one_table_even_where_they_differ_in_kind(tmp_path):
    for rate in (0.1, 0.2):
        folder = tmp_path / f"weather-{rate}" / "run"
        description(folder, hyperparameters={"learning_rate": rate})
        results(folder, {"rmse": 10 * rate}, step=3)
    description(tmp_path / "images" / "run", hyperparameters={"filters": "(8, 8)"})
    results(tmp_path / "images" / "run", {"accuracy": 0.75}, step=3)
    table = {name: entry[:2] for name, entry in rows_of(tmp_path).items()}
    assert table == {
        "weather-0.1/run": ({"learning_rate": 0.1}, {"rmse": pytest.approx(1.0)}),
        "weather-0.2/run": ({"learning_rate": 0.2}, {"rmse": pytest.approx(2.0)}),
        "images/run": ({"filters": "(8, 8)"}, {"accuracy": 0.75}),
    }


def test_a_run_under_way_is_in_the_table_without_metrics(tmp_path):
    description(tmp_path / "a", hyperparameters={"seed": 1})
    assert rows_of(tmp_path) == {"a": ({"seed": 1.0}, {}, api_pb2.STATUS_UNKNOWN)}


def test_a_run_that_goes_on_is_described_anew_and_not_twice(tmp_path):
    for epochs, error in ((10, 0.5), (20, 0.25)):
        description(tmp_path / "a", text={"flags": str(epochs)}, hyperparameters={"epochs": epochs})
        results(tmp_path / "a", {"rmse": error}, step=epochs)
    assert rows_of(tmp_path) == {"a": ({"epochs": 20.0}, {"rmse": 0.25}, api_pb2.STATUS_SUCCESS)}
    accumulator = EventAccumulator(str(tmp_path / "a"))
    accumulator.Reload()
    assert [(e.step, e.value) for e in accumulator.Scalars("rmse")] == [(20, 0.25)]
    assert [e.tensor_proto.string_val[0] for e in accumulator.Tensors("flags")] == [b"20"]
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_results_are_the_numbers_among_the_metrics(tmp_path):
    metrics = {
        "reason": "epochs",
        "rmse": 0.5,
        "good": True,
        "best": None,
        "classes": [1.0],
        "test": {"mae": 2, "n": "x"},
    }
    results(tmp_path, metrics, step=4)
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    result = {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
    assert result == {"rmse": [(4, 0.5)], "test/mae": [(4, 2.0)]}


def test_text_is_read_back_and_tables_are_tables(tmp_path):
    page = table(("name", "value"), {"hidden": (100, 50), "path": "a|b\nc"}.items())
    description(tmp_path, text={"configuration": page, "note": "**thick**"})
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert set(accumulator.PluginTagToContent("text")) == {"configuration", "note"}
    (event,) = accumulator.Tensors("configuration")
    html = text_plugin.text_array_to_html(tensor_util.make_ndarray(event.tensor_proto), True)
    cells = html.replace("<th>", "<td>").replace("</th>", "</td>").split("<td>")[1:]
    assert [cell.partition("</td>")[0] for cell in cells] == ["name", "value", "hidden", "(100, 50)", "path", "a|b c"]


@pytest.mark.parametrize("write", [description, results], ids=["description", "results"])
def test_what_cannot_be_written_is_said(tmp_path, write):
    (tmp_path / "a").write_text("a file where the folder should be")
    arguments = ({},) if write is results else ()
    options = {"step": 1} if write is results else {}
    with pytest.raises(InputError, match=r"a cannot be written .* Free some space"):
        write(tmp_path / "a", *arguments, **options)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, full_disk):
    results(tmp_path, {"loss": 1.0}, step=1)
    full_disk()
    with pytest.raises(InputError, match="File too large"):
        results(tmp_path, {f"loss {number}": 2.0 for number in range(1000)}, step=1)
    assert scalars(tmp_path) == {"loss": [(1, 1.0)]} and len(list(tmp_path.iterdir())) == 1


def test_pictures_are_read_back_once_an_epoch(tmp_path):
    files = []
    for name, size in (("curve", (30, 20)), ("matrix", (10, 40))):
        files.append(tmp_path / f"{name}.png")
        Image.new("RGBA", size, "red").save(files[-1])
    # A run that was cut off while it reported reports again; one with more epochs does so at another.
    for step in (7, 7, 12):
        pictures(tmp_path / "pictures", files, step=step)
    result = accumulated(tmp_path / "pictures")
    assert sorted(result.Tags()["images"]) == ["curve", "matrix"]
    calls = result.Images("curve")
    assert [(each.step, each.width, each.height) for each in calls] == [(7, 30, 20), (12, 30, 20)]
    assert calls[0].encoded_image_string == files[0].read_bytes()


def test_what_is_no_picture_is_refused_before_anything_is_written(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("text")
    Image.new("L", (2, 2)).save(tmp_path / "c.jpg")
    for bad in ("b.png", "c.jpg"):
        with pytest.raises(InputError, match=rf"{bad[0]}\.\w+ must be a PNG file"):
            pictures(tmp_path / "pictures", [tmp_path / "a.png", tmp_path / bad], step=1)
    assert not (tmp_path / "pictures").exists()
