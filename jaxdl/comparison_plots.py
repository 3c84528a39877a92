"""The histories of runs over each other, as a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdl.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, blank, plain
from jaxdl.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, "black")
# As many as no multiple of the colours, so that the pairs of both repeat late.
MARKERS = "os^Dv"
SHARED = ("val_rmse", "val_accuracy", "val_loss")
FEW = 6  # runs beyond which curves of training would only hide the others
LONGEST = 34  # letters of a name
APART = 20  # how many times longer one run may be than another before epochs need a logarithmic axis


def overlay(runs: Mapping[str, pd.DataFrame], metric: str = "rmse", *, unit: str = "", title: str = "") -> Figure:
    """One figure of many runs against epochs: validation thick and with markers, training thin; a colour a run.

    Each run's marker is its own too, so that neither colours nor a colour printer are needed. The names stand in the
    order of the last values, from above. Training is left out where there are more than 6 runs with validation.

    runs: a table for each name, with a row an epoch, indexed by the epoch; columns `metric` and `val_<metric>`, or one
    of them. Raises InputError for a run that has neither, and where there are no runs.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"rmse": [3.0, 2.0], "val_rmse": [3.0, 2.5]}, index=[1, 2])
    >>> len(overlay({"small": records, "plain": records + 1}).axes)
    1
    """
    metric = metric.removeprefix("val_")
    if not runs:
        raise InputError("a comparison needs at least one run with an epoch, got none.")
    for name, table in runs.items():
        if metric not in table and f"val_{metric}" not in table:
            measured = ", ".join(map(str, table)) or "nothing"
            raise InputError(f'"{metric}" is not measured by {name}, which measures {measured}. Choose another metric.')
    names = sorted(runs, key=lambda name: -_last(_watched(runs[name], metric)))
    styles = dict(zip(runs, map(_style, range(len(runs))), strict=True))
    figure = _page(max(len(_short(name)) for name in names), len(names))
    axes = figure.subplots()
    for name in names:
        table, style = runs[name], styles[name]
        if _training_too(table, metric, len(runs)):
            axes.plot(table.index, table[metric], color=style["color"], linewidth=0.8, alpha=0.7)
        watched = _watched(table, metric)
        every = (0.02, 0.1) if np.isfinite(watched).sum() > 9 else None
        axes.plot(watched.index, watched, label=plain(_short(name)), linewidth=1.7, markevery=every, **style)
    _scale(axes, runs, metric)
    quantity = metric.upper() if metric == "rmse" else metric
    axes.set(ylabel=f"{quantity} ({unit})" if unit else quantity, title=plain(title))
    _explain(axes, runs, metric)
    return figure


def shared(runs: Mapping[str, pd.DataFrame]) -> str:
    """The figure by which runs are compared unless told: the first of val_rmse, val_accuracy, val_loss that all have.

    Raises InputError where they share none of the three.

    >>> import pandas as pd
    >>> shared({"a": pd.DataFrame({"val_loss": [1.0], "val_rmse": [1.0]}), "b": pd.DataFrame({"val_loss": [1.0]})})
    'val_loss'
    """
    for name in SHARED:
        if all(name in table for table in runs.values()):
            return name
    raise InputError(f"the runs share none of {', '.join(SHARED)}. Name the figure to draw, or fewer runs.")


def _training_too(table: pd.DataFrame, metric: str, count: int) -> bool:
    return metric in table and f"val_{metric}" in table and count <= FEW


def _explain(axes: Axes, runs: Mapping[str, pd.DataFrame], metric: str) -> None:
    from matplotlib.lines import Line2D

    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    if any(f"val_{metric}" in table for table in runs.values()):
        lines.append(Line2D([], [], color=GREY, linewidth=1.7, label="validation"))
    if any(_training_too(table, metric, len(runs)) for table in runs.values()):
        lines.append(Line2D([], [], color=GREY, linewidth=0.8, label="training"))
    axes.legend(handles=lines, loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8, frameon=False)


def _watched(table: pd.DataFrame, metric: str) -> pd.Series:
    return table[f"val_{metric}" if f"val_{metric}" in table else metric]


def _last(values: pd.Series) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.iloc[-1]) if len(finite) else -np.inf


def _style(number: int) -> dict[str, Any]:
    turns = number // (len(COLOURS) * len(MARKERS))
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": ("-", "--", "-.", ":")[turns % 4],
        "markersize": 5,
    }


def _short(name: str) -> str:
    """A name that fits beside the panel: of a long one its beginning and its end."""
    half = LONGEST // 2 - 1
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"


def _page(letters: int, count: int) -> Figure:
    beside, height = 0.65 + 0.075 * max(letters, 10), max(4.5, 1.4 + 0.19 * count)
    figure = blank(6.2 + beside, height, above=0.45)
    figure.subplots_adjust(right=1 - beside / (6.2 + beside))
    return figure


def _scale(axes: Axes, runs: Mapping[str, pd.DataFrame], metric: str) -> None:
    lengths = [len(table) for table in runs.values()]
    if max(lengths) > APART * min(lengths):
        axes.set(xscale="log", xlabel="epoch (logarithmic)")
    else:
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    shown = [name for name in (metric, f"val_{metric}") if name == f"val_{metric}" or len(runs) <= FEW]
    columns = [table[name].to_numpy(float) for table in runs.values() for name in shown if name in table]
    finite = [column[np.isfinite(column)] for column in columns]
    finite = [column for column in finite if column.size]
    if finite:
        # The first epochs, or a run that diverges, are often far above the rest and would flatten it.
        later = [column[len(column) // 5 :] for column in finite]
        low, high = min(map(np.min, finite)), max(map(np.max, later))
        usual = np.median([np.quantile(column, 0.9) for column in later])
        high = min(high, low + 3 * (usual - low)) if usual > low else high
        reach = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - reach, high + reach)
