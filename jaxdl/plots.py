"""Arrays as matplotlib Figures; nothing here shows a figure or saves one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdl.arguments import given_as, nearest
from jaxdl.canvas import BLUE, GREEN, GREY, PURPLE, VERMILION, blank, fit_axis, plain
from jaxdl.curves import Curve
from jaxdl.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by the line, too.
LINES = ((BLUE, "-", 2.0), (GREEN, "--", 1.3), (VERMILION, "-.", 1.3), (PURPLE, ":", 1.6))


def history(
    table: Any,
    metric: str | Sequence[str] = "rmse",
    *,
    best_epoch: int | None = None,
    unit: str = "",
    title: str = "",
) -> Figure:
    """Draw metrics against epochs, with the best and the last epoch marked.

    table: a row an epoch, indexed by the epoch, as `run.history`; the records of a run, or what `fit` returned, serve
    too. metric: one name draws the columns `metric` and, where there was validation, `val_<metric>`; a list of names
    draws those columns. A line at the right end shows where training stopped. Raises InputError for a column that the
    table does not have.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"rmse": [3.0, 2.0], "val_rmse": [3.0, 2.5]}, index=[1, 2])
    >>> len(history(records, best_epoch=2).axes)
    1
    """
    table = _table(table)
    names = _columns(table, metric)
    figure = blank(7, 4.5, above=0.45)
    axes = figure.subplots()
    epochs = table.index.to_numpy()
    bases = [*dict.fromkeys(name.removeprefix("val_") for name in names)]
    colors = cycle((BLUE, VERMILION, GREEN, PURPLE, GREY))
    for name in names:
        label, color = ("validation", VERMILION) if name.startswith("val_") else ("training", BLUE)
        if len(bases) > 1:
            label, color = name, next(colors)
        # A single epoch makes no line.
        axes.plot(epochs, table[name], color=color, label=label, linewidth=1.5, marker="." * (len(epochs) < 3))
    watched = table[next((name for name in names if name.startswith("val_")), names[0])]
    axes.axvline(epochs[-1], color=GREY, linestyle=":", label=f"stopped after epoch {epochs[-1]}")
    if best_epoch is not None and best_epoch in table.index:
        axes.plot(
            best_epoch, watched[best_epoch], "o", color=VERMILION, markersize=7, label=f"best: epoch {best_epoch}"
        )
    quantity = ", ".join(base.upper() if base == "rmse" else base for base in bases)
    axes.set(xlabel="epoch", ylabel=f"{quantity} ({unit})" if unit else quantity, title=plain(title))
    fit_axis(axes, table[names])
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axes.legend()
    return figure


def _table(table: Any) -> pd.DataFrame:
    """Return a DataFrame indexed by the epoch, of a run, its records or its table."""
    import pandas as pd

    records = getattr(table, "records", table)
    if isinstance(records, Mapping) or (
        isinstance(records, (list, tuple)) and records and all(isinstance(each, Mapping) for each in records)
    ):
        records = pd.DataFrame(records)
    many = isinstance(getattr(table, "history", None), pd.DataFrame) and {"member", "candidate"} & {*table.history}
    if many or not isinstance(records, pd.DataFrame):
        advice = "It holds many runs: choose one of its history." if many else "Use run.history of a run of fit."
        raise InputError(f"table must be the history of a run, got {given_as(table)}. {advice}")
    if len(records) == 0:
        raise InputError("table must have at least one epoch, got none. Train for one first.")
    if {"member", "candidate"} & {*records}:
        raise InputError("table must be the history of one run, got that of several. Use table[table.member == 0].")
    return records.set_index("epoch") if "epoch" in records else records


def _columns(table: pd.DataFrame, metric: str | Sequence[str]) -> list[str]:
    """Return the names of the columns to draw. Raises InputError for one that the table does not have."""
    known = [str(name) for name in table]
    if isinstance(metric, str):
        found = [name for name in (metric, f"val_{metric}") if name in known]
        wanted: list[Any] = [metric]
    else:
        wanted = [*metric] if isinstance(metric, Sequence) else [metric]
        found = [*dict.fromkeys(wanted)] if all(name in known for name in wanted) else []
    if not found:
        missing = next((name for name in wanted if name not in known), metric)
        meant = nearest(missing, known)
        raise InputError(
            f"metric must name columns of the table, {', '.join(known)}, got {missing!r}."
            + (f' Use "{meant}".' if meant else "")
        )
    return found


def predictions(true: Any, predicted: Any, *, quantity: str = "value", title: str = "") -> Figure:
    """Draw predicted against true values (N,), a panel for each entry of `predicted`, with the diagonal.

    predicted: predictions (N,) or (N, 1) by the name of what makes them, or one array of them. Raises InputError for
    another number of predictions than of true values.

    >>> len(predictions([1.0, 2.0], {"model": [1.1, 2.2], "persistence": [2.0, 1.0]}).axes)
    2
    """
    if not isinstance(predicted, Mapping):
        predicted = {"predictions": predicted}
    if not predicted:
        raise InputError('predicted must have at least one entry, got none. Use {"model": array}.')
    true = _numbers("true", true)
    predicted = {name: _numbers("predicted", values) for name, values in predicted.items()}
    for name, values in predicted.items():
        if len(values) != len(true):
            raise InputError(
                f"predicted must have a number for each of the {len(true)} true values, got {len(values)} in {name!r}."
            )
    figure = blank(4.3 * len(predicted) + 1, 5.2, above=0.8)
    panels = figure.subplots(1, len(predicted), sharex=True, sharey=True, squeeze=False)[0]
    everything = np.concatenate([true, *predicted.values()])
    # A diverged model predicts nan, which has no place on an axis.
    finite = everything[np.isfinite(everything)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = 0.03 * (high - low) or 1.0
    for axes, (name, values) in zip(panels, predicted.items(), strict=True):
        error = np.sqrt(np.mean((values - true) ** 2))
        axes.plot([low, high], [low, high], color=GREY, linewidth=1)
        axes.scatter(true, values, s=14, alpha=0.6, color=BLUE, linewidths=0)
        axes.set(xlabel=f"true {quantity}", title=f"{name} (RMSE {error:.2f})", aspect="equal")
        axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
    panels[0].set_ylabel(f"predicted {quantity}")
    if title:
        figure.suptitle(plain(title))
    return figure


def _numbers(name: str, values: Any) -> np.ndarray:
    """Return numbers (N,). Raises InputError for anything else."""
    try:
        return np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of numbers, got {given_as(values)}.") from None


def images(
    pictures: Any, captions: Sequence[str] = (), *, columns: int = 8, colours: Sequence[str] = (), title: str = ""
) -> Figure:
    """A grid of (N, H, W, 3) or (N, H, W) pictures, uint8 or floats from 0 to 1, each under its caption.

    colours: of the captions. Raises InputError for pictures of another shape.

    >>> import numpy as np
    >>> len(images(np.zeros((3, 8, 8, 3), np.uint8), ["a", "b", "c"], columns=2).axes)
    4
    """
    pictures = np.asarray(pictures)
    if pictures.ndim not in (3, 4):
        raise InputError(
            f"pictures must be of shape (N, H, W, 3) or (N, H, W), got {pictures.shape}. Use pictures[None] for one."
        )
    if isinstance(captions, str):
        raise InputError(f"captions must be a list of strings, got one string. Use [{captions!r}].")
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
    curves: Mapping[str, Curve] | Curve, points: Mapping[str, tuple[float, float]] | None = None, *, title: str = ""
) -> Figure:
    """ROC curves with their areas, and the diagonal of chance.

    points: methods that give no scores, as (false positive rate, true positive rate).

    >>> from jaxdl.curves import roc as curve
    >>> len(roc({"model": curve([0.1, 0.9], [0, 1])}, {"persistence": (0.2, 0.7)}).axes)
    1
    """
    curves = _named(curves)
    figure = blank(5.6, 5.6, above=0.6)
    axes = _square(figure, "false positive rate", "true positive rate", title)
    for (name, curve), (colour, line, width) in zip(curves.items(), cycle(LINES), strict=False):
        axes.plot(curve.x, curve.y, line, color=colour, linewidth=width, label=f"{name} (area {curve.area:.3f})")
    _mark(axes, points)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="chance (area 0.500)")
    axes.legend(loc="lower right", fontsize=9)
    return figure


def precision_recall(
    curves: Mapping[str, Curve] | Curve,
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
    curves = _named(curves)
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


def _named(curves: Any) -> Mapping[str, Curve]:
    """Return curves by name, also where one is given. Raises InputError for anything else."""
    curves = {"model": curves} if isinstance(curves, Curve) else curves
    if not isinstance(curves, Mapping) or not all(isinstance(curve, Curve) for curve in curves.values()):
        raise InputError(
            f"curves must be a dict of curves by name, got {given_as(curves)}. Use "
            '{"model": jaxdl.curves.roc(scores, labels)}.'
        )
    return curves


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

    Raises InputError for a matrix of another shape than that of the classes.

    >>> len(confusion([[5, 1], [2, 4]], ["cat", "dog"]).axes)
    1
    """
    counts = np.asarray(matrix)
    if isinstance(classes, str) or counts.shape != (len(classes), len(classes)):
        raise InputError(
            f"a confusion matrix must be of shape (classes, classes), got {counts.shape} and {len(classes)} classes."
        )
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
