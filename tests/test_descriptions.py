"""What a run is and what came of it, as TensorBoard's own plugins read it."""

import math

import numpy as np
import pytest
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.plugins.text import text_plugin
from tensorboard.util import tensor_util

from jaxdl import descriptions
from jaxdl.errors import InputError

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
    found = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    every = [
        getattr(api_pb2, name) for name in ("STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING")
    ]
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=99, allowed_statuses=every)
    groups = list_session_groups.Handler(context.RequestContext(), found, "", request).run().session_groups
    table = {}
    for group in groups:
        (session,) = group.sessions
        hyperparameters = {n: getattr(v, v.WhichOneof("kind")) for n, v in group.hparams.items()}
        metrics = {value.name.tag: value.value for value in group.metric_values}
        table[session.name] = hyperparameters, metrics, session.status
    return table


def test_a_run_is_one_row_of_hyperparameters_and_metrics(tmp_path):
    descriptions.description(tmp_path / "a", hyperparameters=VALUES)
    descriptions.results(tmp_path / "a", {"test": {"rmse": 0.25, "mae": 0.5}}, step=7)
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
        descriptions.description(folder, hyperparameters={"learning_rate": rate})
        descriptions.results(folder, {"rmse": 10 * rate}, step=3)
    descriptions.description(tmp_path / "images" / "run", hyperparameters={"filters": "(8, 8)"})
    descriptions.results(tmp_path / "images" / "run", {"accuracy": 0.75}, step=3)
    table = {name: entry[:2] for name, entry in rows_of(tmp_path).items()}
    assert table == {
        "weather-0.1/run": ({"learning_rate": 0.1}, {"rmse": pytest.approx(1.0)}),
        "weather-0.2/run": ({"learning_rate": 0.2}, {"rmse": pytest.approx(2.0)}),
        "images/run": ({"filters": "(8, 8)"}, {"accuracy": 0.75}),
    }


def test_a_run_under_way_is_in_the_table_without_metrics(tmp_path):
    descriptions.description(tmp_path / "a", hyperparameters={"seed": 1})
    assert rows_of(tmp_path) == {"a": ({"seed": 1.0}, {}, api_pb2.STATUS_UNKNOWN)}


def test_a_run_that_goes_on_is_described_anew_and_not_twice(tmp_path):
    for epochs, rmse in ((10, 0.5), (20, 0.25)):
        descriptions.description(tmp_path / "a", text={"flags": str(epochs)}, hyperparameters={"epochs": epochs})
        descriptions.results(tmp_path / "a", {"rmse": rmse}, step=epochs)
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
    descriptions.results(tmp_path, metrics, step=4)
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    found = {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
    assert found == {"rmse": [(4, 0.5)], "test/mae": [(4, 2.0)]}


def test_text_is_read_back_and_tables_are_tables(tmp_path):
    page = descriptions.table(("name", "value"), {"hidden": (100, 50), "path": "a|b\nc"}.items())
    descriptions.description(tmp_path, text={"configuration": page, "note": "**thick**"})
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert set(accumulator.PluginTagToContent("text")) == {"configuration", "note"}
    (event,) = accumulator.Tensors("configuration")
    html = text_plugin.text_array_to_html(tensor_util.make_ndarray(event.tensor_proto), True)
    cells = html.replace("<th>", "<td>").replace("</th>", "</td>").split("<td>")[1:]
    assert [cell.partition("</td>")[0] for cell in cells] == ["name", "value", "hidden", "(100, 50)", "path", "a|b c"]


@pytest.mark.parametrize("write", [descriptions.description, descriptions.results], ids=["description", "results"])
def test_what_cannot_be_written_is_said(tmp_path, write):
    (tmp_path / "a").write_text("a file where the folder should be")
    arguments = ({},) if write is descriptions.results else ()
    options = {"step": 1} if write is descriptions.results else {}
    with pytest.raises(InputError, match=r"a cannot be written .* Free some space"):
        write(tmp_path / "a", *arguments, **options)
