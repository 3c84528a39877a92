"""Arrays as matplotlib Figures; nothing here shows a figure or saves one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart and which print as distinct greys.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#767676"


def history(
    table: pd.DataFrame, metric: str = "rmse", *, best_epoch: int | None = None, unit: str = "", title: str = ""
) -> Figure:
    """Training and validation curves of one figure against epochs, with the best and the last epoch marked.

    table: a row an epoch, indexed by the epoch; columns `metric` and, where there was validation, `val_<metric>`.
    A marker at the right end shows where training stopped.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"rmse": [3.0, 2.0], "val_rmse": [3.0, 2.5]}, index=[1, 2])
    >>> len(history(records, best_epoch=2).axes)
    1
    """
    figure = _figure(7, 4.5, above=0.45)
    axes = figure.subplots()
    epochs = table.index.to_numpy()
    for name, label, colour in ((metric, "training", BLUE), (f"val_{metric}", "validation", VERMILION)):
        if name in table:
            # A single epoch makes no line.
            axes.plot(epochs, table[name], color=colour, label=label, linewidth=1.5, marker="." * (len(epochs) < 3))
    watched = table[f"val_{metric}"] if f"val_{metric}" in table else table[metric]
    axes.axvline(epochs[-1], color=GREY, linestyle=":", label=f"stopped after epoch {epochs[-1]}")
    if best_epoch is not None and best_epoch in table.index:
        axes.plot(
            best_epoch, watched[best_epoch], "o", color=VERMILION, markersize=7, label=f"best: epoch {best_epoch}"
        )
    quantity = metric.upper() if metric == "rmse" else metric
    axes.set(xlabel="epoch", ylabel=f"{quantity} ({unit})" if unit else quantity, title=title)
    finite = table[[c for c in (metric, f"val_{metric}") if c in table]].to_numpy()
    finite = finite[np.isfinite(finite)]
    if finite.size:
        # The first epochs are often far above the rest and would flatten it.
        low, high = min(0.0, finite.min()), finite.max()
        axes.set_ylim(1.05 * low, 1.05 * (min(high, 2.5 * np.quantile(finite, 0.9)) if low == 0 else max(high, 0)) or 1)
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axes.legend()
    return figure


def predictions(true: Any, predicted: Mapping[str, Any], *, quantity: str = "value", title: str = "") -> Figure:
    """Predicted against true values (N,), one panel for each entry of `predicted`, on the same axes with the diagonal.

    >>> len(predictions([1.0, 2.0], {"model": [1.1, 2.2], "persistence": [2.0, 1.0]}).axes)
    2
    """
    figure = _figure(4.3 * len(predicted) + 1, 5.2, above=0.8)
    panels = figure.subplots(1, len(predicted), sharex=True, sharey=True, squeeze=False)[0]
    true = np.asarray(true, np.float64).ravel()
    everything = np.concatenate([true, *(np.asarray(values).ravel() for values in predicted.values())])
    # A diverged model predicts nan, which has no place on an axis.
    finite = everything[np.isfinite(everything)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = 0.03 * (high - low) or 1.0
    for axes, (name, values) in zip(panels, predicted.items(), strict=True):
        values = np.asarray(values, np.float64).ravel()
        error = np.sqrt(np.mean((values - true) ** 2))
        axes.plot([low, high], [low, high], color=GREY, linewidth=1)
        axes.scatter(true, values, s=14, alpha=0.6, color=BLUE, linewidths=0)
        axes.set(xlabel=f"true {quantity}", title=f"{name} (RMSE {error:.2f})", aspect="equal")
        axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
    panels[0].set_ylabel(f"predicted {quantity}")
    if title:
        figure.suptitle(title)
    return figure


def _figure(width: float, height: float, above: float) -> Figure:
    # Without pyplot: no window, no global list of figures, no backend to choose.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120)
    # Margins in inches: a layout engine would take longer than drawing everything else.
    margins = {"left": 0.8 / width, "right": 1 - 0.2 / width, "bottom": 0.6 / height, "top": 1 - above / height}
    figure.subplots_adjust(**margins, wspace=0.08)
    return figure
