"""A run from outside: the loop with a clock and signals, its environment, and what it shows of itself."""

import gzip
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata as hparams_metadata

from experiments.cifar10 import experiment as cifar10
from experiments.weather import experiment as weather
from jaxdl import _environment
from jaxdl.data import dataset
from jaxdl.losses import squared_error
from jaxdl.metrics import rmse
from jaxdl.nn import mlp
from jaxdl.runs import runner
from jaxdl.runs.command import command
from jaxdl.saving import load
from jaxdl.train import early_stopping, make_plan, start
from jaxdl.train.fit import fit
from jaxdl.train.loop import Chunk

COMPILE = "/jax/core/compile/backend_compile_duration"
INPUTS = np.linspace(-1, 1, 24, dtype=np.float32)[:, None]
ROWS = dataset(INPUTS, 3 * INPUTS)
# A rate that overshoots, so that the stopping rule has something to stop.
PLAN = make_plan(
    mlp(()),
    squared_error,
    optax.adam(2.0),
    metrics=[rmse],
    batch_size=8,
    early_stopping=early_stopping("val_loss", patience=2),
)


def fitted(epochs, callbacks=()):
    model, objective, optimizer, batch_size, stop, *_ = PLAN
    options = {"batch_size": batch_size, "early_stopping": stop, "epochs": epochs, "callbacks": callbacks}
    return fit(model, objective.loss, optimizer, ROWS, ROWS, metrics=objective.metrics, seed=3, **options)


def driven(epochs, callbacks=()):
    begin = start(PLAN, ROWS, ROWS, key=jax.random.key(3))
    return runner.drive(PLAN, begin, ROWS, ROWS, epochs=epochs, callbacks=callbacks)


@pytest.mark.parametrize("epochs", [2, 50], ids=["to the end", "stopped early"])
def test_drive_is_fit_with_a_clock(epochs):
    run, (run_state, history) = fitted(epochs), driven(epochs)
    table = pd.DataFrame(history).set_index("epoch")
    assert (table.pop("seconds") > 0).all()
    pd.testing.assert_frame_equal(table, run.history, check_exact=True)
    jax.tree.map(np.testing.assert_array_equal, run_state.train_state.variables, run.final)
    jax.tree.map(np.testing.assert_array_equal, run_state.best, run.best)
    assert len(history) == 2 if epochs == 2 else 2 < len(history) < 50


def test_the_seconds_of_an_epoch_are_not_those_of_its_compilation(monkeypatch):
    now = SimpleNamespace(time=100.0)
    for module in (runner, _environment):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now.time))

    def pass_time(seconds):
        now.time += seconds

    def chunks(plan, run_state, train, validation, *, last, **_):
        # 2 s an epoch in two chunks, and 5 s of compilation in the first.
        pass_time(5)
        jax.monitoring.record_event_duration_secs(COMPILE, 5)
        for epoch in range(1, last + 1):
            for record in (None, {"epoch": epoch, "loss": 1.0}):
                pass_time(1)
                yield Chunk(run_state, record, True, 1)

    monkeypatch.setattr(runner, "chunks", chunks)
    end = runner.drive(PLAN, start(PLAN, ROWS, ROWS, key=jax.random.key(0)), ROWS, ROWS, epochs=3)
    assert [record["seconds"] for record in end.history] == [2, 2, 2]


def test_drive_calls_every_callback_after_every_epoch():
    calls = []

    def note(name):
        return lambda run_state, history: calls.append((name, int(run_state.epoch), len(history), history[-1]["loss"]))

    history = driven(2, [note("one"), note("two")]).history
    losses = [record["loss"] for record in history]
    assert calls == [(name, n, n, losses[n - 1]) for n in (1, 2) for name in ("one", "two")]


# What an experiment shows of a run: charts and tables in TensorBoard, costs, a trace


QUICK_FLAGS = ("--data", "simulated:400", "--no-compilation-cache", "--epochs", "4", "--quiet", "--recipe", "batchnorm")


def read_events(folder):
    """All that TensorBoard reads of a run; by default it keeps a sample."""
    return (
        EventMultiplexer(size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
        .AddRunsFromDirectory(str(folder / "tensorboard"))
        .Reload()
    )


def run_weather(*arguments):
    return command(
        weather.Config, weather.run, "python -m experiments.weather", [*map(str, (*QUICK_FLAGS, *arguments))]
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "watched"
    assert run_weather("--workdir", folder, "--histograms", 2, "--cost", "--profile") == 0
    return folder


@pytest.fixture(scope="module")
def events(watched):
    return read_events(watched)


@pytest.mark.slow
def test_training_and_validation_share_their_charts(events):
    assert {"loss", "rmse"} <= set(events.Runs()["train"]["scalars"]) & set(events.Runs()["validation"]["scalars"])
    assert [point.step for point in events.Scalars("train", "loss")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_every_layer_has_histograms_of_weights_and_gradients(events):
    for run in ("weights", "gradients"):
        assert set(events.Runs()[run]["histograms"]) >= {
            f"Dense_{n}/{part}" for n in range(3) for part in ("kernel", "bias")
        }
        assert [each.step for each in events.Histograms(run, "Dense_0/kernel")] == [0, 2, 4]


@pytest.mark.slow
def test_tensorboard_has_pictures_and_texts(events):
    runs = events.Runs()
    assert set(runs["pictures"]["images"]) >= {"history", "predictions"}
    texts = {tag: events.Tensors("run", tag) for tag in ("configuration", "layers")}
    output = {tag: each[0].tensor_proto.string_val[0].decode() for tag, each in texts.items()}
    assert "| recipe | batchnorm |" in output["configuration"] and "Dense_0" in output["layers"]


@pytest.mark.slow
def test_tensorboard_has_hyperparameters_and_final_metrics(events, watched):
    started = events.SummaryMetadata("run", hparams_metadata.SESSION_START_INFO_TAG).plugin_data.content
    flags = hparams_metadata.parse_session_start_info_plugin_data(started).hparams
    assert flags["recipe"].string_value == "batchnorm" and flags["learning_rate"].number_value == 1e-3
    # How a run is kept and watched is no hyperparameter.
    assert not {"workdir", "save_every", "histograms", "quiet", "mesh"} & set(flags)
    best = json.loads((watched / "metrics.json").read_text())["rmse_best"]
    for name, value in best.items():
        (point,) = events.Scalars("run", f"rmse_best/{name}")
        assert point.step == 4 and point.value == pytest.approx(value)


@pytest.mark.slow
def test_the_cost_of_a_step_is_in_metrics_json(watched):
    cost = json.loads((watched / "metrics.json").read_text())["cost"]
    # The kernels' products alone, forward and for both gradients, but for the inputs'.
    columns = json.loads((watched / "metrics.json").read_text())["dataset"]["features"]
    products = 2 * 32 * (3 * (100 * 50 + 50) + 2 * columns * 100)
    assert products < cost["flops"] < 1.6 * products


@pytest.mark.slow
def test_a_trace_is_written(watched):
    (trace,) = (watched / "profile").rglob("perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert list((watched / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_charts_and_profiles_change_no_bit(watched, tmp_path):
    assert run_weather("--workdir", tmp_path / "alone", "--no-tensorboard") == 0
    assert not (tmp_path / "alone" / "tensorboard").exists()
    for name in ("best", "final"):
        one, other = (load(folder / "checkpoints" / name) for folder in (watched, tmp_path / "alone"))
        np.testing.assert_array_equal(one.params["Dense_0"]["kernel"], other.params["Dense_0"]["kernel"])


@pytest.mark.slow
def test_histograms_continue_in_a_resumed_run(watched, tmp_path):
    folder = shutil.copytree(watched, tmp_path / "run")
    assert run_weather("--workdir", folder, "--histograms", 2, "--epochs", 6) == 0
    calls = read_events(folder)
    assert [each.step for each in calls.Histograms("weights", "Dense_0/kernel")] == [0, 2, 4, 6]


@pytest.mark.slow
def test_a_run_on_images_has_pictures_and_histograms(tmp_path):
    few = ["--data", "simulated:240", "--train-size", "128", "--epochs", "1", "--no-compilation-cache", "--quiet"]
    flags = [*few, "--histograms", "1", "--recipe", "pooled", "--workdir", str(tmp_path / "run")]
    assert command(cifar10.Config, cifar10.run, "python -m experiments.cifar10", flags) == 0
    runs = read_events(tmp_path / "run").Runs()
    assert set(runs["pictures"]["images"]) >= {"confusion", "errors", "kernels", "samples"}
    assert {"Conv_0/kernel", "Dense_1/bias"} <= set(runs["gradients"]["histograms"])
