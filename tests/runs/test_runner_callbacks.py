"""What an experiment lets be seen of a run: all for TensorBoard, read by TensorBoard; costs; a trace."""

import gzip
import json
import shutil

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata

from experiments.cifar10 import experiment as cifar10
from experiments.weather import experiment as weather
from jaxdl.runs.command import command
from jaxdl.saving import load

pytestmark = pytest.mark.slow

QUICK = ("--data", "simulated:400", "--no-compilation-cache", "--epochs", "4", "--quiet", "--recipe", "batchnorm")


def read(folder):
    """All that TensorBoard reads of a run; by default it keeps a sample."""
    return (
        EventMultiplexer(size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
        .AddRunsFromDirectory(str(folder / "tensorboard"))
        .Reload()
    )


def call(*arguments):
    return command(weather.Config, weather.run, "python -m experiments.weather", [*map(str, (*QUICK, *arguments))])


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "watched"
    assert call("--workdir", folder, "--histograms", 2, "--cost", "--profile") == 0
    return folder


@pytest.fixture(scope="module")
def calls(watched):
    return read(watched)


def test_training_and_validation_share_their_charts(calls):
    assert {"loss", "rmse"} <= set(calls.Runs()["train"]["scalars"]) & set(calls.Runs()["validation"]["scalars"])
    assert [point.step for point in calls.Scalars("train", "loss")] == [1, 2, 3, 4]


def test_weights_and_gradients_of_every_layer_are_spread_out(calls):
    for run in ("weights", "gradients"):
        assert set(calls.Runs()[run]["histograms"]) >= {
            f"Dense_{n}/{part}" for n in range(3) for part in ("kernel", "bias")
        }
        assert [each.step for each in calls.Histograms(run, "Dense_0/kernel")] == [0, 2, 4]


def test_pictures_and_words_are_there(calls):
    runs = calls.Runs()
    assert set(runs["pictures"]["images"]) >= {"history", "predictions"}
    texts = {tag: calls.Tensors("run", tag) for tag in ("configuration", "layers")}
    output = {tag: each[0].tensor_proto.string_val[0].decode() for tag, each in texts.items()}
    assert "| recipe | batchnorm |" in output["configuration"] and "Dense_0" in output["layers"]


def test_hyperparameters_stand_beside_the_final_figures(calls, watched):
    started = calls.SummaryMetadata("run", metadata.SESSION_START_INFO_TAG).plugin_data.content
    flags = metadata.parse_session_start_info_plugin_data(started).hparams
    assert flags["recipe"].string_value == "batchnorm" and flags["learning_rate"].number_value == 1e-3
    # How a run is kept and watched is no hyperparameter.
    assert not {"workdir", "save_every", "histograms", "quiet", "mesh"} & set(flags)
    best = json.loads((watched / "metrics.json").read_text())["rmse_best"]
    for name, value in best.items():
        (point,) = calls.Scalars("run", f"rmse_best/{name}")
        assert point.step == 4 and point.value == pytest.approx(value)


def test_the_cost_of_a_step_is_kept(watched):
    cost = json.loads((watched / "metrics.json").read_text())["cost"]
    # The kernels' products alone, forward and for both gradients, but for the inputs'.
    columns = json.loads((watched / "metrics.json").read_text())["dataset"]["features"]
    products = 2 * 32 * (3 * (100 * 50 + 50) + 2 * columns * 100)
    assert products < cost["flops"] < 1.6 * products


def test_a_trace_is_written(watched):
    (trace,) = (watched / "profile").rglob("perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert list((watched / "profile").rglob("*.xplane.pb"))


def test_being_watched_changes_no_bit(watched, tmp_path):
    assert call("--workdir", tmp_path / "alone", "--no-tensorboard") == 0
    assert not (tmp_path / "alone" / "tensorboard").exists()
    for name in ("best", "final"):
        one, other = (load(folder / "checkpoints" / name) for folder in (watched, tmp_path / "alone"))
        np.testing.assert_array_equal(one.params["Dense_0"]["kernel"], other.params["Dense_0"]["kernel"])


def test_histograms_go_on_with_the_run(watched, tmp_path):
    folder = shutil.copytree(watched, tmp_path / "run")
    assert call("--workdir", folder, "--histograms", 2, "--epochs", 6) == 0
    calls = read(folder)
    assert [each.step for each in calls.Histograms("weights", "Dense_0/kernel")] == [0, 2, 4, 6]


def test_images_are_watched_too(tmp_path):
    few = ["--data", "simulated:240", "--train-size", "128", "--epochs", "1", "--no-compilation-cache", "--quiet"]
    flags = [*few, "--histograms", "1", "--recipe", "pooled", "--workdir", str(tmp_path / "run")]
    assert command(cifar10.Config, cifar10.run, "python -m experiments.cifar10", flags) == 0
    runs = read(tmp_path / "run").Runs()
    assert set(runs["pictures"]["images"]) >= {"confusion", "errors", "kernels", "samples"}
    assert {"Conv_0/kernel", "Dense_1/bias"} <= set(runs["gradients"]["histograms"])
