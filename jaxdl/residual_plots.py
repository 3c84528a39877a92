"""What predictions miss, as a matplotlib Figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdl.canvas import BLUE, GREY, VERMILION, blank, plain
from jaxdl.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS, FEW = 10, 5  # groups of predictions, and how many rows each needs at least
MOST = 60  # bars of the histogram


def residuals(true: Any, predicted: Any, *, quantity: str = "value", title: str = "") -> Figure:
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


def binned(at: Any, values: Any, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (N,) in the order of `at`, in groups of equal size: each group's mean `at`, mean value and standard error.

    Fewer groups where they would hold fewer than 5 rows each; none for fewer than 5 rows.

    >>> binned(np.arange(10.0), np.repeat([1.0, 3.0], 5), bins=2)[1].tolist()
    [1.0, 3.0]
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
