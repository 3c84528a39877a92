"""What a run is and what came of it, for TensorBoard: its words, hyperparameters and results."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdl import events

if TYPE_CHECKING:
    from tensorboardX.proto.summary_pb2 import Summary


def description(
    folder: str | Path,
    *,
    text: Mapping[str, str] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> None:
    """Writes what a run is, in the place of what an earlier call wrote into the folder.

    text: pages of markdown by name; hyperparameters: numbers, bools and texts, all else as text.
    TensorBoard compares hyperparameters of all runs in one table, with the `results` that the same folder holds.
    Raises InputError where the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     description(Path(folder), text={"note": "**first**"}, hyperparameters={"hidden": (100, 50), "seed": 7})
    ...     print(*[file.name for file in Path(folder).iterdir()])
    events.out.tfevents.1-description
    """
    folder = Path(folder)
    values = [events.text(name, page) for name, page in (text or {}).items()]
    if hyperparameters:
        values.append(_session_start(hyperparameters))
    events.replace(folder, "1-description", [events.event(values, step=0)])


def results(folder: str | Path, metrics: Mapping[str, Any], *, step: int) -> None:
    """Writes what came of a run that ended after the epoch `step`, in the place of what an earlier call wrote.

    Metrics may be nested: {"test": {"rmse": 0.5}} is shown as test/rmse. What is no number is left out. Raises
    InputError where the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results(Path(folder), {"test": {"rmse": 0.5}}, step=7)
    ...     print(*[file.name for file in Path(folder).iterdir()])
    events.out.tfevents.2-results
    """
    folder = Path(folder)
    values = [events.scalar(name, value) for name, value in _figures(metrics)]
    events.replace(folder, "2-results", [events.event([*values, _session_end()], step=step)])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""A table in markdown.

    >>> print(table(("name", "value"), [("seed", 7), ("hidden", "10|5")]))
    | name | value |
    | --- | --- |
    | seed | 7 |
    | hidden | 10\|5 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _figures(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{name}/")
        elif isinstance(value, Real) and not isinstance(value, bool):
            yield prefix + name, float(value)


def _session_start(hyperparameters: Mapping[str, Any]) -> Summary.Value:
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionStartInfo

    info = SessionStartInfo(start_time_secs=time.time())
    for name, value in hyperparameters.items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, Real) and math.isfinite(value) and float(value) == value:
            info.hparams[name].number_value = float(value)
        else:
            info.hparams[name].string_value = str(value)
    return _of_hparams("session_start_info", HParamsPluginData(session_start_info=info))


def _session_end() -> Summary.Value:
    from tensorboardX.proto.api_pb2 import Status
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo

    info = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"), end_time_secs=time.time())
    return _of_hparams("session_end_info", HParamsPluginData(session_end_info=info))


def _of_hparams(name: str, data: Any) -> Summary.Value:
    """What the plugin reads is all in the metadata. It makes the table's columns from what all runs say."""
    from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString())
    return Summary.Value(tag=f"_hparams_/{name}", metadata=SummaryMetadata(plugin_data=plugin))
