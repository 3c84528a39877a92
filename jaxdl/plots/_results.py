"""Plots of predictions, residuals, intervals, curves and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxdl._checks import given_as
from jaxdl.errors import InputError
from jaxdl.metrics import Curve
from jaxdl.plots._style import BLUE, GREEN, GREY, LINES, VERMILION, blank, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def predictions(true: Any, predicted: Any, *, quantity: str = "value", title: str = "") -> Figure:
    """Draw predicted against true values (N,), with the diagonal, in a panel for each entry of `predicted`.

    predicted: predictions (N,) or (N, 1) by the name of their model, or one array of them. Raises InputError where the
    numbers of predictions and true values differ.

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
    points = np.concatenate([true, *predicted.values()])
    # A diverged model predicts nan, to which no axis can be scaled.
    finite = points[np.isfinite(points)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = 0.03 * (high - low) or 1.0
    for axes, (name, values) in zip(panels, predicted.items(), strict=True):
        error = np.sqrt(np.mean((values - true) ** 2))
        axes.plot([low, high], [low, high], color=GREY, linewidth=1)
        axes.scatter(true, values, s=14, alpha=0.6, color=BLUE, linewidths=0)
        axes.set(xlabel=f"true {quantity}", title=f"{name} (RMSE {error:.2f})", aspect="equal")
        axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
    panels[0].set_ylabel(f"predicted {quantity}")
    figure.suptitle(plain(title))
    return figure


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    """Return numbers (N,). Raises InputError for anything else."""
    try:
        return np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of numbers, got {given_as(values)}.") from None


def images(
    pictures: ArrayLike, captions: Sequence[str] = (), *, columns: int = 8, colors: Sequence[str] = (), title: str = ""
) -> Figure:
    """Draw a grid of pictures (N, H, W, 3) or (N, H, W), uint8 or floats from 0 to 1, each under its caption.

    colors: of the captions, black by default. Raises InputError for pictures of another shape.

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
                color = colors[number] if number < len(colors) else "black"
                axes.set_title(captions[number], fontsize=8, color=color, pad=2)
    figure.suptitle(plain(title), fontsize=10)
    return figure


def kernels(values: ArrayLike, *, columns: int = 10, title: str = "") -> Figure:
    """Draw the kernels (h, w, C, K) of a convolution as a grid of K pictures on one scale, on which grey is 0.

    Kernels of 3 channels are drawn in colors, others as the means over their channels.

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
    """Draw ROC curves with their areas, and the diagonal of chance.

    points: methods without scores, as (false positive rate, true positive rate).

    >>> from jaxdl.metrics import roc_curve
    >>> figure = roc({"model": roc_curve([0.1, 0.9], [0, 1])}, {"persistence": (0.2, 0.7)})
    >>> figure.axes[0].get_legend().get_texts()[0].get_text()
    'model (area 1.000)'
    """
    curves = _by_name(curves)
    figure, axes = _square("false positive rate", "true positive rate", title)
    for (name, curve), (color, line, width) in zip(curves.items(), cycle(LINES), strict=False):
        axes.plot(curve.x, curve.y, line, color=color, linewidth=width, label=f"{name} (area {curve.area:.3f})")
    _mark(axes, points)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="chance (area 0.500)")
    axes.legend(loc="lower right", fontsize=9)
    return figure


def precision_recall(
    curves: Mapping[str, Curve] | Curve,
    points: Mapping[str, tuple[float, float]] | None = None,
    *,
    positive_fraction: float,
    title: str = "",
) -> Figure:
    """Draw precision-recall curves in steps, with their average precisions, and the precision of chance.

    points: methods without scores, as (recall, precision). positive_fraction: of the labels, the precision of chance.

    >>> from jaxdl.metrics import precision_recall_curve
    >>> figure = precision_recall(precision_recall_curve([0.1, 0.9], [0, 1]), positive_fraction=0.5)
    >>> figure.axes[0].get_legend().get_texts()[0].get_text()
    'model (average 1.000)'
    """
    curves = _by_name(curves)
    figure, axes = _square("recall", "precision", title)
    for (name, curve), (color, line, width) in zip(curves.items(), cycle(LINES), strict=False):
        label = f"{name} (average {curve.area:.3f})"
        # Points of recall 0 do not count in the area, and the first of them is only a convention.
        x, y = curve.x[curve.x > 0], curve.y[curve.x > 0]
        axes.plot(np.r_[0, x], np.r_[y[0], y], line, color=color, linewidth=width, label=label, drawstyle="steps-pre")
    _mark(axes, points)
    axes.axhline(positive_fraction, color=GREY, linewidth=1, label=f"fraction of positives ({positive_fraction:.3f})")
    axes.legend(loc="lower left", fontsize=9)
    return figure


def _by_name(curves: Any) -> Mapping[str, Curve]:
    """Return curves by name, a single one as "model". Raises InputError for anything else."""
    curves = {"model": curves} if isinstance(curves, Curve) else curves
    if not isinstance(curves, Mapping) or not all(isinstance(curve, Curve) for curve in curves.values()):
        raise InputError(
            f"curves must be a dict of curves by name, got {given_as(curves)}. Use "
            '{"model": jaxdl.metrics.roc_curve(scores, labels)}.'
        )
    return curves


def _square(xlabel: str, ylabel: str, title: str) -> tuple[Figure, Axes]:
    figure = blank(5.6, 5.6, above=0.6)
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    _wrap_title(axes, title)
    return figure, axes


def _wrap_title(axes: Axes, title: str) -> None:
    axes.set_title(plain(title), fontsize=10, wrap=True)


def _mark(axes: Axes, points: Mapping[str, tuple[float, float]] | None) -> None:
    for (name, point), marker in zip((points or {}).items(), "o^sDv", strict=False):
        axes.plot(*point, marker, color="black", markersize=6, linestyle="none", label=name, zorder=3)


def confusion(matrix: ArrayLike, classes: Sequence[str], *, title: str = "") -> Figure:
    """Draw a confusion matrix (C, C) of counts, a row for each true class and a column for each predicted class.

    The color of a cell is its fraction of the row. Raises InputError where the matrix and `classes` do not fit.

    >>> len(confusion([[5, 1], [2, 4]], ["cat", "dog"]).axes)
    1
    """
    counts = np.asarray(matrix)
    if isinstance(classes, str) or counts.shape != (len(classes), len(classes)):
        raise InputError(
            f"a confusion matrix must be of shape (classes, classes), got {counts.shape} and {len(classes)} classes."
        )
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = len(classes) < 5
    size = (1.2 if few else 0.55) * len(classes) + 1.6
    figure = blank(size + 0.6, size, above=0.6)
    figure.subplots_adjust(left=1.1 / (size + 0.6), bottom=1.0 / size)
    axes = figure.subplots()
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 12 if few else 8}
    for (row, column), count in np.ndenumerate(counts):
        axes.text(column, row, f"{count}", color="white" if fractions[row, column] > 0.5 else "black", **style)
    rotation: dict[str, Any] = {} if few else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(classes)), classes, **rotation)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    _wrap_title(axes, title)
    return figure


STYLES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"))


def intervals(
    true: ArrayLike,
    mean: ArrayLike,
    deviation: ArrayLike,
    *,
    level: float = 0.9,
    quantity: str = "value",
    title: str = "",
) -> Figure:
    """Draw predictions (N,) with their intervals against true values (N,), in two colors: inside and outside.

    deviation: (N,) standard deviations of normal distributions; an interval is mean +- z * deviation, which should hold
    a fraction `level` of the true values. Raises InputError for a level that is not between 0 and 1.

    >>> len(intervals([1.0, 2.0], [1.1, 3.0], [0.2, 0.2], level=0.9).axes)
    1
    """
    if not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, got {level}. Use 0.9, say.")
    true, mean, deviation = _numbers("true", true), _numbers("mean", mean), _numbers("deviation", deviation)
    reach = NormalDist().inv_cdf((1 + level) / 2) * deviation
    inside, finite = np.abs(mean - true) <= reach, np.isfinite(true) & np.isfinite(mean) & np.isfinite(reach)
    figure = blank(6, 5.4, above=0.9 if title else 0.6)
    axes = figure.subplots()
    style: dict[str, Any] = {"fmt": "o", "markersize": 3, "elinewidth": 0.7, "alpha": 0.6}
    for points, color, verb in ((finite & inside, BLUE, "holds"), (finite & ~inside, VERMILION, "misses")):
        label = f"the {100 * level:.3g} % interval {verb} it: {points.sum()} of {len(true)}"
        axes.errorbar(true[points], mean[points], reach[points], color=color, label=label, **style)
    if finite.any():
        ends = [true[finite].min(), true[finite].max()]
        axes.plot(ends, ends, color="black", linewidth=1, zorder=3)
    axes.set(xlabel=f"true {quantity}", ylabel=f"predicted {quantity}")
    # Above the panel, because intervals fill it.
    axes.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    figure.suptitle(plain(title))
    return figure


def coverage(
    nominal: ArrayLike, fractions: Mapping[str, Any], *, examples: int | None = None, title: str = ""
) -> Figure:
    """Draw the fraction of true values that intervals hold against the nominal fraction (K,), a line for each entry.

    fractions: (K,) by name. examples: the number of examples behind each fraction; then a band shows where 95 % of
    calibrated intervals would lie, by the normal approximation of the binomial, sqrt(p (1 - p) / examples).

    >>> len(coverage([0.5, 0.9], {"raw": [0.3, 0.6], "calibrated": [0.5, 0.88]}, examples=165).axes)
    1
    """
    figure = blank(5, 5, above=0.45)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    if examples is not None:
        grid = np.linspace(0, 1, 201)
        reach = NormalDist().inv_cdf(0.975) * np.sqrt(grid * (1 - grid) / examples)
        band: dict[str, Any] = {"color": GREY, "alpha": 0.2, "linewidth": 0}
        axes.fill_between(grid, grid - reach, grid + reach, label=f"chance, {examples} examples", **band)
    for (name, values), (color, marker) in zip(fractions.items(), cycle(STYLES), strict=False):
        axes.plot(nominal, values, color=color, marker=marker, markersize=5, linewidth=1.5, label=plain(name))
    axes.set(xlabel="fraction that the intervals should hold", ylabel="fraction that they hold", title=plain(title))
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper left")
    return figure


BINS, MIN_SIZE = 10, 5  # groups of predictions, at most; examples of a group, at least
MAX_BARS = 60  # of the histogram


def residuals(true: ArrayLike, predicted: ArrayLike, *, quantity: str = "value", title: str = "") -> Figure:
    """Draw residuals, true minus predicted (N,), against the predictions, and as a histogram with a normal curve.

    On the left, squares are the mean residuals of ten equal groups, ordered by prediction, with standard errors. Those
    of a good model lie on the line of 0. A slope shows predictions with too large or too small a range, and a changing
    height of the cloud shows errors that depend on the prediction. On the right, the curve is the normal distribution
    with the same mean and standard deviation: normal intervals do not cover tails beyond it.

    Examples that are not finite are left out and counted in the title. Raises InputError for different lengths.

    >>> figure = residuals([1.0, 2.0, 4.0], [1.5, 2.0, 3.0])
    >>> figure.axes[0].get_title()
    'RMSE 0.65'
    """
    true, predicted = _numbers("true", true), _numbers("predicted", predicted)
    if len(true) != len(predicted):
        raise InputError(f"residuals need as many predictions as true values, got {len(predicted)} and {len(true)}.")
    finite = np.isfinite(true) & np.isfinite(predicted)
    left_out, predicted, errors = len(true) - finite.sum(), predicted[finite], (true - predicted)[finite]
    figure = blank(8.5, 4.8, above=0.75 if title else 0.45)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(5, 2))
    for axes in (left, right):
        axes.axhline(0, color=GREY, linewidth=1)
    left.scatter(predicted, errors, s=14, alpha=0.5, color=BLUE, linewidths=0)
    middles, means, standard_errors = binned(predicted, errors)
    notes = [f"RMSE {np.sqrt(np.mean(errors**2)):.2f}"] if len(errors) else []
    if len(middles):
        square: dict[str, Any] = {"color": VERMILION, "marker": "s", "markersize": 5, "capsize": 3, "linewidth": 1.5}
        left.errorbar(middles, means, standard_errors, **square)
        notes.append("squares: means of equal groups ± standard error")
    if left_out:
        notes.append(f"{left_out} of {len(true)} not finite")
    left.set(xlabel=f"predicted {quantity}", ylabel=f"true minus predicted {quantity}")
    left.set_title("; ".join(notes), fontsize=9)
    if len(errors):
        _histogram(right, errors)
    figure.suptitle(plain(title))
    return figure


def binned(at: ArrayLike, values: ArrayLike, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean `at`, mean value and standard error of equal groups of values (N,), ordered by `at`.

    Groups have at least 5 values: there are fewer groups for few values, and none for fewer than 5.
    """
    at, values = np.asarray(at, np.float64), np.asarray(values, np.float64)
    order = np.argsort(at, kind="stable")
    groups = [
        group for group in np.array_split(order, max(1, min(bins, len(at) // MIN_SIZE))) if len(group) >= MIN_SIZE
    ]
    means = np.array([[at[group].mean(), values[group].mean()] for group in groups]).reshape(-1, 2)
    errors = np.array([values[group].std(ddof=1) / np.sqrt(len(group)) for group in groups])
    return means[:, 0], means[:, 1], errors


def _histogram(axes: Any, errors: np.ndarray) -> None:
    """Draw a horizontal histogram of errors with its normal curve, in counts."""
    mean, deviation = errors.mean(), errors.std(ddof=min(1, len(errors) - 1))
    # Freedman and Diaconis's width (1981), which a distant error would turn into a million bars.
    width = 2 * np.subtract(*np.quantile(errors, [0.75, 0.25])) / np.cbrt(len(errors))
    bars = int(np.clip(np.ptp(errors) / width, 1, MAX_BARS)) if width > 0 else MAX_BARS
    constant = np.ptp(errors) <= 1e-9 * np.abs(errors).max()
    limits = (mean - 0.5, mean + 0.5) if constant else None
    style: dict[str, Any] = {"orientation": "horizontal", "color": BLUE, "alpha": 0.5, "edgecolor": "white"}
    _, edges, _ = axes.hist(errors, 1 if constant else bars, range=limits, **style)
    if not constant:
        low, high = axes.get_ylim()
        grid = np.linspace(low, high, 200)
        density = np.exp(-0.5 * ((grid - mean) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
        axes.plot(density * len(errors) * np.diff(edges).mean(), grid, "--", color="black", linewidth=1.3)
    axes.axhline(mean, color=VERMILION, linewidth=1.3)
    axes.set_xlabel("examples")
    axes.set_title(f"mean {mean:+.2f}, deviation {deviation:.2f}", fontsize=9)
    axes.tick_params(labelleft=False)
