"""Arrays as matplotlib Figures; nothing here shows a figure or saves one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdl.canvas import BLUE, GREEN, GREY, PURPLE, VERMILION, blank, plain
from jaxdl.curves import Curve

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by the line, too.
LINES = ((BLUE, "-", 2.0), (GREEN, "--", 1.3), (VERMILION, "-.", 1.3), (PURPLE, ":", 1.6))


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
    figure = blank(7, 4.5, above=0.45)
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
    axes.set(xlabel="epoch", ylabel=f"{quantity} ({unit})" if unit else quantity, title=plain(title))
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
    figure = blank(4.3 * len(predicted) + 1, 5.2, above=0.8)
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
        figure.suptitle(plain(title))
    return figure


def images(
    pictures: Any, captions: Sequence[str] = (), *, columns: int = 8, colours: Sequence[str] = (), title: str = ""
) -> Figure:
    """A grid of (N, H, W, 3) or (N, H, W) pictures, uint8 or floats from 0 to 1, each under its caption.

    colours: of the captions.

    >>> import numpy as np
    >>> len(images(np.zeros((3, 8, 8, 3), np.uint8), ["a", "b", "c"], columns=2).axes)
    4
    """
    pictures = np.asarray(pictures)
    columns = max(1, min(columns, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    cell = 1.15 + 0.17 * lines
    figure = blank(1.15 * columns + 1, cell * rows + 1.05, above=0.45 + 0.17 * lines)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, hspace=(0.1 + 0.17 * lines) / 1.15, wspace=0.08)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, axes in enumerate(panels):
        axes.axis("off")
        if number < len(pictures):
            axes.imshow(pictures[number], cmap="gray", interpolation="nearest")
            if number < len(captions):
                colour = colours[number] if number < len(colours) else "black"
                axes.set_title(captions[number], fontsize=8, color=colour, pad=2)
    if title:
        figure.suptitle(plain(title), fontsize=10)
    return figure


def kernels(values: Any, *, columns: int = 10, title: str = "") -> Figure:
    """The kernels (h, w, C, K) of a convolution as a grid of K pictures; of 3 channels in colours, else their means.

    All share one scale, on which grey is 0.

    >>> import numpy as np
    >>> len(kernels(np.ones((3, 3, 3, 4)), columns=4).axes)
    4
    """
    values = np.moveaxis(np.asarray(values, np.float64), -1, 0)
    values = values if values.shape[-1] == 3 else values.mean(-1)
    largest = np.abs(np.where(np.isfinite(values), values, 0)).max() or 1.0
    return images(np.nan_to_num(0.5 + 0.5 * values / largest, nan=0.5), columns=columns, title=title)


def roc(
    curves: Mapping[str, Curve], points: Mapping[str, tuple[float, float]] | None = None, *, title: str = ""
) -> Figure:
    """ROC curves with their areas, and the diagonal of chance.

    points: methods that give no scores, as (false positive rate, true positive rate).

    >>> from jaxdl.curves import roc as curve
    >>> len(roc({"model": curve([0.1, 0.9], [0, 1])}, {"persistence": (0.2, 0.7)}).axes)
    1
    """
    figure = blank(5.6, 5.6, above=0.6)
    axes = _square(figure, "false positive rate", "true positive rate", title)
    for (name, curve), (colour, line, width) in zip(curves.items(), cycle(LINES), strict=False):
        axes.plot(curve.x, curve.y, line, color=colour, linewidth=width, label=f"{name} (area {curve.area:.3f})")
    _mark(axes, points)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="chance (area 0.500)")
    axes.legend(loc="lower right", fontsize=9)
    return figure


def precision_recall(
    curves: Mapping[str, Curve],
    points: Mapping[str, tuple[float, float]] | None = None,
    *,
    share: float,
    title: str = "",
) -> Figure:
    """Precision-recall curves with their average precisions, in steps, and the share of positives, which is chance.

    points: methods that give no scores, as (recall, precision).

    >>> from jaxdl.curves import precision_recall as curve
    >>> len(precision_recall({"model": curve([0.1, 0.9], [0, 1])}, share=0.5).axes)
    1
    """
    figure = blank(5.6, 5.6, above=0.6)
    axes = _square(figure, "recall", "precision", title)
    for (name, curve), (colour, line, width) in zip(curves.items(), cycle(LINES), strict=False):
        label = f"{name} (average {curve.area:.3f})"
        # Points of recall 0 have no part in the area, and the first of them is only a convention.
        x, y = curve.x[curve.x > 0], curve.y[curve.x > 0]
        axes.plot(np.r_[0, x], np.r_[y[0], y], line, color=colour, linewidth=width, label=label, drawstyle="steps-pre")
    _mark(axes, points)
    axes.axhline(share, color=GREY, linewidth=1, label=f"share of positives ({share:.3f})")
    axes.legend(loc="lower left", fontsize=9)
    return figure


def _square(figure: Figure, across: str, up: str, title: str) -> Axes:
    axes = figure.subplots()
    axes.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    _title(axes, title)
    return axes


def _title(axes: Axes, title: str) -> None:
    """A title in as many lines as a narrow figure needs."""
    axes.set_title(plain(title), fontsize=10, wrap=True)


def _mark(axes: Axes, points: Mapping[str, tuple[float, float]] | None) -> None:
    for (name, point), marker in zip((points or {}).items(), "o^sDv", strict=False):
        axes.plot(*point, marker, color="black", markersize=6, linestyle="none", label=name, zorder=3)


def confusion(matrix: Any, classes: Sequence[str], *, title: str = "") -> Figure:
    """A confusion matrix (C, C) of counts, true classes down and predicted ones across, shaded by the share of the row.

    >>> len(confusion([[5, 1], [2, 4]], ["cat", "dog"]).axes)
    1
    """
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = len(classes) < 5
    size = (1.2 if few else 0.55) * len(classes) + 1.6
    figure = blank(size + 0.6, size, above=0.6)
    figure.subplots_adjust(left=1.1 / (size + 0.6), bottom=1.0 / size)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(classes)):
        for column in range(len(classes)):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=12 if few else 8
            )
    slant: dict[str, Any] = {} if few else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(classes)), classes, **slant)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    _title(axes, title)
    return figure
