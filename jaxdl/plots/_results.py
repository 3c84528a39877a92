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
from jaxdl.plots._style import BLUE, GREEN, GREY, VERMILION, blank, plain
from jaxdl.plots._training import LINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    """Return numbers (N,). Raises InputError for anything else."""
    try:
        return np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of numbers, got {given_as(values)}.") from None


def images(
    pictures: ArrayLike, captions: Sequence[str] = (), *, columns: int = 8, colors: Sequence[str] = (), title: str = ""
) -> Figure:
    """A grid of (N, H, W, 3) or (N, H, W) pictures, uint8 or floats from 0 to 1, each under its caption.

    colors: of the captions. Raises InputError for pictures of another shape.

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
    if title:
        figure.suptitle(plain(title), fontsize=10)
    return figure


def kernels(values: ArrayLike, *, columns: int = 10, title: str = "") -> Figure:
    """The kernels (h, w, C, K) of a convolution as a grid of K pictures; of 3 channels in colors, else their means.

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

    >>> from jaxdl.metrics import roc_curve as curve
    >>> len(roc({"model": curve([0.1, 0.9], [0, 1])}, {"persistence": (0.2, 0.7)}).axes)
    1
    """
    curves = _named(curves)
    figure = blank(5.6, 5.6, above=0.6)
    axes = _square(figure, "false positive rate", "true positive rate", title)
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
    """Precision-recall curves with their average precisions, in steps, and the share of positives, which is chance.

    points: methods that give no scores, as (recall, precision).

    >>> from jaxdl.metrics import precision_recall_curve as curve
    >>> len(precision_recall({"model": curve([0.1, 0.9], [0, 1])}, positive_fraction=0.5).axes)
    1
    """
    curves = _named(curves)
    figure = blank(5.6, 5.6, above=0.6)
    axes = _square(figure, "recall", "precision", title)
    for (name, curve), (color, line, width) in zip(curves.items(), cycle(LINES), strict=False):
        label = f"{name} (average {curve.area:.3f})"
        # Points of recall 0 have no part in the area, and the first of them is only a convention.
        x, y = curve.x[curve.x > 0], curve.y[curve.x > 0]
        axes.plot(np.r_[0, x], np.r_[y[0], y], line, color=color, linewidth=width, label=label, drawstyle="steps-pre")
    _mark(axes, points)
    axes.axhline(positive_fraction, color=GREY, linewidth=1, label=f"share of positives ({positive_fraction:.3f})")
    axes.legend(loc="lower left", fontsize=9)
    return figure


def _named(curves: Any) -> Mapping[str, Curve]:
    """Return curves by name, also where one is given. Raises InputError for anything else."""
    curves = {"model": curves} if isinstance(curves, Curve) else curves
    if not isinstance(curves, Mapping) or not all(isinstance(curve, Curve) for curve in curves.values()):
        raise InputError(
            f"curves must be a dict of curves by name, got {given_as(curves)}. Use "
            '{"model": jaxdl.metrics.roc_curve(scores, labels)}.'
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


def confusion(matrix: ArrayLike, classes: Sequence[str], *, title: str = "") -> Figure:
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
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, f"{counts[row, column]}", ha="center", va="center", color=color, fontsize=12 if few else 8
            )
    slant: dict[str, Any] = {} if few else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(classes)), classes, **slant)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    _title(axes, title)
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
    """Predictions (N,) with the intervals that should hold a share `level` of the true values (N,), by whether they do.

    deviation: (N,) standard deviations of normal distributions; an interval is mean +- z * deviation. Raises InputError
    for a level that is not between 0 and 1.

    >>> len(intervals([1.0, 2.0], [1.1, 3.0], [0.2, 0.2], level=0.9).axes)
    1
    """
    if not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, got {level}. Use 0.9, say.")
    true, mean, deviation = (np.asarray(values, np.float64).ravel() for values in (true, mean, deviation))
    reach = NormalDist().inv_cdf((1 + level) / 2) * deviation
    holds, known = np.abs(mean - true) <= reach, np.isfinite(true) & np.isfinite(mean) & np.isfinite(reach)
    figure = blank(6, 5.4, above=0.9 if title else 0.6)
    axes = figure.subplots()
    for chosen, color, words in ((known & holds, BLUE, "holds it"), (known & ~holds, VERMILION, "misses it")):
        style: dict[str, Any] = {"fmt": "o", "markersize": 3, "elinewidth": 0.7, "alpha": 0.6}
        label = f"the {100 * level:.3g} % interval {words}: {chosen.sum()} of {len(true)}"
        axes.errorbar(true[chosen], mean[chosen], reach[chosen], color=color, label=label, **style)
    if known.any():
        ends = [true[known].min(), true[known].max()]
        axes.plot(ends, ends, color="black", linewidth=1, zorder=3)
    axes.set(xlabel=f"true {quantity}", ylabel=f"predicted {quantity}")
    # Above the panel, because intervals fill it.
    axes.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    if title:
        figure.suptitle(plain(title))
    return figure


def coverage(nominal: ArrayLike, found: Mapping[str, Any], *, rows: int | None = None, title: str = "") -> Figure:
    """The share of true values that intervals hold, against the share (K,) that they should hold, a line an entry.

    found: (K,) shares by name. rows: behind each share; then a band shows where 95 % of honest intervals would lie,
    by the normal approximation of the binomial distribution, sqrt(p (1 - p) / rows).

    >>> len(coverage([0.5, 0.9], {"raw": [0.3, 0.6], "calibrated": [0.5, 0.88]}, rows=165).axes)
    1
    """
    figure = blank(5, 5, above=0.45)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    if rows is not None:
        positive_fraction = np.linspace(0, 1, 201)
        reach = NormalDist().inv_cdf(0.975) * np.sqrt(positive_fraction * (1 - positive_fraction) / rows)
        chance = f"chance, {rows} rows"
        axes.fill_between(
            positive_fraction,
            positive_fraction - reach,
            positive_fraction + reach,
            color=GREY,
            alpha=0.2,
            linewidth=0,
            label=chance,
        )
    for (name, shares), (color, marker) in zip(found.items(), cycle(STYLES), strict=False):
        axes.plot(nominal, shares, color=color, marker=marker, markersize=5, linewidth=1.5, label=plain(name))
    axes.set(xlabel="share that the intervals should hold", ylabel="share that they hold", title=plain(title))
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper left")
    return figure


BINS, FEW = 10, 5  # groups of predictions, and how many rows each needs at least
MOST = 60  # bars of the histogram


def residuals(true: ArrayLike, predicted: ArrayLike, *, quantity: str = "value", title: str = "") -> Figure:
    """Residuals, true minus predicted, of (N,) predictions: against them, and as a histogram beside a normal curve.

    On the left, squares are the mean residuals of tenths of the rows, by their predictions, with standard errors. Those
    of a good model lie on the line of zero; a slope says that it shrinks its predictions too much or too little, and a
    changing spread that its errors depend on what it says. On the right, the curve is the normal distribution of the
    same mean and standard deviation: tails beyond it are errors that no normal error bar covers.

    Rows whose prediction is not finite are left out and counted in the title. Raises InputError for different lengths.

    >>> figure = residuals([1.0, 2.0, 4.0], [1.5, 2.0, 3.0])
    >>> len(figure.axes)
    2
    """
    true, predicted = (np.asarray(values, np.float64).ravel() for values in (true, predicted))
    if len(true) != len(predicted):
        raise InputError(f"residuals need as many predictions as true values, got {len(predicted)} and {len(true)}.")
    kept = np.isfinite(true) & np.isfinite(predicted)
    left_out, predicted, missed = len(true) - kept.sum(), predicted[kept], (true - predicted)[kept]
    figure = blank(8.5, 4.8, above=0.75 if title else 0.45)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(5, 2))
    for axes in (left, right):
        axes.axhline(0, color=GREY, linewidth=1)
    left.scatter(predicted, missed, s=14, alpha=0.5, color=BLUE, linewidths=0)
    middles, means, errors = binned(predicted, missed)
    if len(middles):
        square: dict[str, Any] = {"color": VERMILION, "marker": "s", "markersize": 5, "capsize": 3, "linewidth": 1.5}
        left.errorbar(middles, means, errors, **square)
    said = [f"RMSE {np.sqrt(np.mean(missed**2)):.2f}"] if len(missed) else []
    said += ["squares: means of equal groups ± standard error"] if len(middles) else []
    said += [f"{left_out} of {len(true)} not finite"] if left_out else []
    left.set(xlabel=f"predicted {quantity}", ylabel=f"true minus predicted {quantity}")
    left.set_title("; ".join(said), fontsize=9)
    if len(missed):
        _histogram(right, missed)
    if title:
        figure.suptitle(plain(title))
    return figure


def binned(at: ArrayLike, values: ArrayLike, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (N,) in the order of `at`, in groups of equal size: each group's mean `at`, mean value and standard error.

    Fewer groups where they would hold fewer than 5 rows each; none for fewer than 5 rows.
    """
    at, values = np.asarray(at, np.float64), np.asarray(values, np.float64)
    order = np.argsort(at, kind="stable")
    groups = [group for group in np.array_split(order, max(1, min(bins, len(at) // FEW))) if len(group) >= FEW]
    means = np.array([[at[group].mean(), values[group].mean()] for group in groups]).reshape(-1, 2)
    errors = np.array([values[group].std(ddof=1) / np.sqrt(len(group)) for group in groups])
    return means[:, 0], means[:, 1], errors


def _histogram(axes: Any, missed: np.ndarray) -> None:
    mean, deviation = missed.mean(), missed.std(ddof=min(1, len(missed) - 1))
    # Freedman and Diaconis's width (1981), which one row far away must not turn into a million bars.
    width = 2 * np.subtract(*np.quantile(missed, [0.75, 0.25])) / np.cbrt(len(missed))
    bars = int(np.clip(np.ptp(missed) / width, 1, MOST)) if width > 0 else MOST
    alike = np.ptp(missed) <= 1e-9 * np.abs(missed).max()
    within = (mean - 0.5, mean + 0.5) if alike else None
    style: dict[str, Any] = {"orientation": "horizontal", "color": BLUE, "alpha": 0.5, "edgecolor": "white"}
    _, places, _ = axes.hist(missed, 1 if alike else bars, range=within, **style)
    if not alike:
        low, high = axes.get_ylim()
        grid = np.linspace(low, high, 200)
        density = np.exp(-0.5 * ((grid - mean) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
        axes.plot(density * len(missed) * np.diff(places).mean(), grid, "--", color="black", linewidth=1.3)
    axes.axhline(mean, color=VERMILION, linewidth=1.3)
    axes.set_xlabel("rows")
    axes.set_title(f"mean {mean:+.2f}, deviation {deviation:.2f}", fontsize=9)
    axes.tick_params(labelleft=False)
