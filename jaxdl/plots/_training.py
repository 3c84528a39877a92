"""Plots of training: histories, seeds, model sizes, learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdl._checks import given_as, nearest
from jaxdl.errors import InputError
from jaxdl.plots._style import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILION,
    blank,
    fit_axis,
    label_epochs,
    plain,
    with_unit,
)
from jaxdl.train.lr_finder import LearningRateScan, smoothed, suggestion

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def history(
    table: Any,
    metric: str | Sequence[str] = "rmse",
    *,
    best_epoch: int | None = None,
    unit: str = "",
    title: str = "",
) -> Figure:
    """Draw metrics against epochs, with the best and the last epoch marked.

    table: the result of `fit`, its `history` or its records. metric: one name draws the columns `metric` and
    `val_<metric>`, where the table has them; a list of names draws those columns. Raises InputError for a column that
    the table does not have.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"rmse": [3.0, 2.0], "val_rmse": [3.0, 2.5]}, index=[1, 2])
    >>> [text.get_text() for text in history(records, best_epoch=2).axes[0].get_legend().get_texts()]
    ['training', 'validation', 'stopped after epoch 2', 'best: epoch 2']
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
        # A single epoch makes no line, and neither do epochs of validation between others.
        marker = "." * (len(epochs) < 3 or bool(table[name].isna().any()))
        axes.plot(epochs, table[name], color=color, label=label, linewidth=1.5, marker=marker)
    monitored = table[next((name for name in names if name.startswith("val_")), names[0])]
    axes.axvline(epochs[-1], color=GREY, linestyle=":", label=f"stopped after epoch {epochs[-1]}")
    if best_epoch is not None and best_epoch in table.index:
        label = f"best: epoch {best_epoch}"
        axes.plot(best_epoch, monitored[best_epoch], "o", color=VERMILION, markersize=7, label=label)
    axes.set_title(plain(title))
    label_epochs(axes, bases, unit)
    fit_axis(axes, table[names])
    axes.legend()
    return figure


def _table(table: Any) -> pd.DataFrame:
    """Return the history of one run as a DataFrame indexed by the epoch. Raises InputError for anything else."""
    import pandas as pd

    records = getattr(table, "records", table)
    if isinstance(records, Mapping) or (
        isinstance(records, (list, tuple)) and records and all(isinstance(each, Mapping) for each in records)
    ):
        records = pd.DataFrame(records)
    many = isinstance(getattr(table, "history", None), pd.DataFrame) and {"member", "trial"} & {*table.history}
    if many or not isinstance(records, pd.DataFrame):
        advice = "It holds many runs: choose one of its history." if many else "Use run.history of a run of fit."
        raise InputError(f"table must be the history of a run, got {given_as(table)}. {advice}")
    if len(records) == 0:
        raise InputError("table must have at least one epoch, got none. Train for one first.")
    if {"member", "trial"} & {*records}:
        raise InputError("table must be the history of one run, got that of several. Use table[table.member == 0].")
    return records.set_index("epoch") if "epoch" in records else records


def _columns(table: pd.DataFrame, metric: str | Sequence[str]) -> list[str]:
    """Return the names of the columns to draw. Raises InputError for one that the table does not have."""
    known = [str(name) for name in table]
    if isinstance(metric, str):
        names: list[Any] = [metric]
        columns = [column for column, *_ in _curves(table, metric)]
    else:
        names = [*metric] if isinstance(metric, Sequence) else [metric]
        columns = [*dict.fromkeys(names)] if all(name in known for name in names) else []
    if not columns:
        missing = next((name for name in names if name not in known), metric)
        suggestion = nearest(missing, known)
        raise InputError(
            f"metric must name columns of the table, {', '.join(known)}, got {missing!r}."
            + (f' Use "{suggestion}".' if suggestion else "")
        )
    return columns


def _curves(table: pd.DataFrame, metric: str) -> list[tuple[str, str, str, str]]:
    """Return the column, label, color and line style of a metric's training and validation, where the table has it."""
    curves = (metric, "training", BLUE, "-"), (f"val_{metric}", "validation", VERMILION, "--")
    return [curve for curve in curves if curve[0] in table]


SERIES = {"train": (BLUE, "o"), "validation": (VERMILION, "s"), "test": (GREEN, "^")}
DASHES = ("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))


def histories(table: pd.DataFrame, metric: str = "rmse", *, unit: str = "", title: str = "") -> Figure:
    """Draw the curves of many members against epochs, their medians as thick lines, and the last epochs.

    table: a row for each member and epoch, as `fit_seeds(...).history`, with the columns `member`, `epoch`, `metric`
    and optionally `val_<metric>`. The median ends where fewer than half the members still train.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"member": [0, 0, 1], "epoch": [1, 2, 1], "rmse": [3.0, 2.0, 3.5]})
    >>> histories(records).axes[0].get_legend().get_texts()[0].get_text()
    'training, median of 2'
    """
    figure = blank(7, 4.5, above=0.45)
    axes = figure.subplots()
    count = table["member"].nunique()
    last = table.groupby("member")["epoch"].max()
    curves = _curves(table, metric)
    for column, label, color, _ in curves:
        wide = table.pivot(index="epoch", columns="member", values=column)
        finite = wide.where(np.isfinite(wide))
        for member in wide:
            axes.plot(wide.index, finite[member], color=color, linewidth=0.6, alpha=max(0.15, min(0.6, 4 / count)))
        median = finite.median(axis=1)[finite.notna().sum(axis=1) * 2 >= count]
        axes.plot(median.index, median, color=color, linewidth=2, label=f"{label}, median of {count}")
    axes.axvline(last.mean(), color=GREY, linestyle=":", label=_stopped(last))
    if last.nunique() > 1:
        ends = table[table["epoch"] == table["member"].map(last)]
        column, _, color, _ = curves[-1]
        axes.plot(ends["epoch"], ends[column], ".", color=color, markersize=5, label="where a member stopped")
    axes.set_title(plain(title))
    label_epochs(axes, [metric], unit)
    # A few members that diverge do not change this quantile.
    fit_axis(axes, table[[column for column, *_ in curves]], quantile=0.75, factor=3)
    axes.legend()
    return figure


def model_size(
    sizes: Any,
    means: Mapping[str, Any],
    errors: Mapping[str, Any],
    names: Sequence[str] = (),
    *,
    recommended: int | None = None,
    baselines: Mapping[str, float] | None = None,
    quantity: str = "value",
    title: str = "",
) -> Figure:
    """Draw a metric of K networks against their numbers of parameters, with error bars.

    means, errors: (K,) each, by "train", "validation" or "test". names: of the networks, above the panel. recommended:
    the index of the network to mark. baselines: horizontal lines by name. Raises InputError for sizes below 1, which
    a logarithmic axis cannot show.

    >>> figure = model_size([10, 100], {"test": [3.5, 3.6]}, {"test": [0.1, 0.2]}, ["2", "20"], recommended=0)
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['2', '20']
    """
    sizes = np.asarray(sizes, np.float64)
    if not (sizes >= 1).all():
        raise InputError(f"sizes must be at least 1, got {sizes.tolist()}. Leave baselines to `baselines`.")
    figure = blank(7, 5, above=1.15 if names else 0.45)
    axes = figure.subplots()
    axes.set(xscale="log", xlim=(sizes.min() / 1.25, sizes.max() * 1.25))
    if recommended is not None:
        label = f"recommended: {names[recommended]}" if names else "recommended"
        axes.axvline(sizes[recommended], color=GREY, alpha=0.25, linewidth=9, label=plain(label))
    order = np.argsort(sizes, kind="stable")
    for name, values in means.items():
        color, marker = SERIES[name]
        mean, error = (np.asarray(numbers, np.float64)[order] for numbers in (values, errors[name]))
        axes.errorbar(sizes[order], mean, error, color=color, marker=marker, capsize=3, linewidth=1.2, label=name)
    for (name, value), dashes in zip((baselines or {}).items(), cycle(DASHES), strict=False):
        axes.axhline(value, color="black", linewidth=1, linestyle=dashes, label=plain(name))
    axes.set(xlabel="parameters", ylabel=quantity, title=plain(title))
    _names_above(axes, sizes, names, recommended)
    axes.legend(fontsize=9)
    return figure


def seeds(
    names: Sequence[str],
    values: Sequence[Any],
    *,
    references: Sequence[float | None] = (),
    reference_label: str = "reference",
    baselines: Mapping[str, float] | None = None,
    quantity: str = "value",
    decimals: int = 2,
    title: str = "",
) -> Figure:
    """Draw a row for each setting, with its seeds as dots and their mean with its standard error.

    values: (seeds,) values of each setting. On the right are the mean and the standard error, and the number of seeds
    whose value is not finite. references: another value for each setting, or None, which the legend calls
    `reference_label`. baselines: vertical lines by name.

    >>> figure = seeds(["plain", "small"], [[4.1, 4.0], [3.5, 3.7]], baselines={"as today": 3.88})
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['plain', 'small']
    """
    height, longest = 0.34 * len(names) + (1.8 if title else 1.5), max(map(len, names), default=0)
    width = 6.6 + 0.085 * longest
    figure = blank(width, height, above=1.05 if title else 0.75)
    figure.subplots_adjust(left=(0.3 + 0.085 * longest) / width, right=1 - 1.7 / width)
    axes = figure.subplots()
    for row, numbers in enumerate(values):
        seed_values = np.asarray(numbers, np.float64).ravel()
        finite = seed_values[np.isfinite(seed_values)]
        # Neighbors have different heights, so that equal values do not hide each other.
        heights = row + 0.09 * (np.argsort(np.argsort(finite, kind="stable")) % 5 - 2)
        axes.plot(finite, heights, "o", color=BLUE, alpha=0.45, markersize=3.5, markeredgewidth=0)
        mean = float(finite.mean()) if finite.size else np.nan
        error = float(finite.std(ddof=1) / np.sqrt(finite.size)) if finite.size > 1 else np.nan
        bar = 0 if np.isnan(error) else error
        axes.errorbar([mean], [row], xerr=[bar], fmt="D", color="black", markersize=4.5, capsize=3, zorder=3)
        text = _summary(mean, error, len(seed_values) - len(finite), decimals)
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    for row, reference in enumerate(references):
        if reference is not None and np.isfinite(reference):
            axes.plot(reference, row, "o", markerfacecolor="none", color=VERMILION, markersize=8, zorder=4)
    for (name, value), dashes in zip((baselines or {}).items(), cycle(DASHES), strict=False):
        axes.axvline(value, color=GREY, linewidth=1.2, linestyle=dashes, label=plain(name))
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set(xlabel=quantity, ylim=(len(names) - 0.4, -0.6))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    _seeds_legend(axes, reference_label if any(value is not None for value in references) else "")
    figure.suptitle(plain(title))
    return figure


def _stopped(last: pd.Series) -> str:
    low, high = int(last.min()), int(last.max())
    if low == high:
        return f"stopped after epoch {high}"
    return f"stopped after epoch {last.mean():.0f} on average ({low} to {high})"


def _summary(mean: float, error: float, diverged: int, decimals: int) -> str:
    numbers = "" if np.isnan(mean) else f"{mean:.{decimals}f}"
    numbers += "" if np.isnan(error) else f" ± {error:.{decimals}f}"
    return "\n".join(filter(None, (numbers, f"{diverged} diverged" if diverged else "")))


def _seeds_legend(axes: Axes, reference_label: str) -> None:
    """Draw a legend of the markers and lines above the panel."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], linestyle="", marker="o", color=BLUE, alpha=0.45, markersize=4, label="a seed"),
        Line2D([], [], linestyle="", marker="D", color="black", markersize=5, label="mean ± standard error"),
    ]
    if reference_label:
        hollow: dict[str, Any] = {"markerfacecolor": "none", "color": VERMILION, "markersize": 8}
        marks.append(Line2D([], [], linestyle="", marker="o", label=plain(reference_label), **hollow))
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    style: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3, "frameon": False}
    axes.legend(handles=[*marks, *lines], fontsize=8, **style)


def _names_above(axes: Axes, sizes: np.ndarray, names: Sequence[str], recommended: int | None) -> None:
    """Draw names above the panel without overlaps, each with a line to its size."""
    low, high = np.log(axes.get_xlim())
    positions = (np.log(sizes) - low) / (high - low)
    order, gap = np.argsort(positions, kind="stable"), 0.038
    spaced = positions[order]
    for index in range(1, len(spaced)):
        spaced[index] = max(spaced[index], spaced[index - 1] + gap)
    for index in range(len(spaced) - 1, -1, -1):
        limit = 1.0 if index == len(spaced) - 1 else spaced[index + 1] - gap
        spaced[index] = min(spaced[index], limit)
    style: dict[str, Any] = {"transform": axes.transAxes, "rotation": 50, "rotation_mode": "anchor", "fontsize": 8}
    for index, x in zip(order[: len(names)], spaced, strict=False):
        axes.plot([positions[index], x], [1, 1.04], color=GREY, linewidth=0.6, transform=axes.transAxes, clip_on=False)
        weight = "bold" if index == recommended else "normal"
        axes.text(x, 1.05, plain(names[index]), weight=weight, **style)


RATE, LOG_FROM = "learning_rate", 10  # from this ratio of the largest to the smallest rate the axis is logarithmic


def learning_rate(table: pd.DataFrame, metric: str = "loss", *, unit: str = "", title: str = "") -> Figure:
    """Draw the learning rate of each epoch, and below it the loss or another metric.

    table: a row for each epoch, indexed by the epoch, as `fit(...).history`, with the column `learning_rate` and
    optionally `metric` and `val_<metric>`. Raises InputError without a column `learning_rate`: the optimizer's state
    then holds no learning rate (see `optax.inject_hyperparams`).

    >>> import pandas as pd
    >>> records = pd.DataFrame({"learning_rate": [0.1, 0.05], "loss": [3.0, 2.0]}, index=[1, 2])
    >>> [axes.get_ylabel() for axes in learning_rate(records).axes]
    ['learning rate', 'loss']
    """
    if RATE not in table:
        raise InputError(
            f"the table must have a column {RATE}, got {', '.join(map(str, table)) or 'none'}. Train with "
            "optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), for example."
        )
    figure = blank(7, 5.5, above=0.45)
    figure.subplots_adjust(left=1 / 7, hspace=0.12)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    epochs, rates = table.index.to_numpy(), table[RATE].to_numpy(float)
    marker = "." * (len(epochs) < 3)
    # A rate is that of the whole epoch.
    upper.plot(epochs, rates, color=GREEN, drawstyle="steps-mid", marker=marker)
    positive = rates[np.isfinite(rates) & (rates > 0)]
    if len(positive) == len(rates) and len(rates) and positive.max() >= LOG_FROM * positive.min():
        upper.set_yscale("log")
    elif positive.size:
        upper.set_ylim(0, 1.1 * positive.max())
    curves = _curves(table, metric)
    for column, label, color, line in curves:
        lower.plot(epochs, table[column], line, color=color, label=label, marker=marker)
    fit_axis(lower, table[[column for column, *_ in curves]])
    upper.set(ylabel="learning rate", title=plain(title))
    label_epochs(lower, [metric], unit)
    if curves:
        lower.legend()
    figure.align_ylabels()
    return figure


def lr_finder(scan: LearningRateScan, *, unit: str = "", title: str = "") -> Figure:
    """Draw the loss of a learning-rate scan, of each batch and smoothed, and the rate at which it falls fastest.

    >>> scan = LearningRateScan(np.geomspace(1e-3, 1, 4), np.array([4.0, 3.0, np.inf, 1.0]))
    >>> figure = lr_finder(scan)
    >>> figure.axes[0].get_xscale()
    'log'
    """
    figure = blank(7, 4.5, above=0.45)
    axes = figure.subplots()
    means, suggested = smoothed(scan), suggestion(scan)
    finite = np.where(np.isfinite(scan.losses), scan.losses, np.nan)
    axes.plot(scan.rates, finite, ".", color=BLUE, alpha=0.45, markeredgewidth=0, label="loss of a batch")
    axes.plot(scan.rates, means, color=BLUE, linewidth=2, label="smoothed")
    if np.isfinite(suggested):
        height = means[np.argmin(np.abs(scan.rates - suggested))]
        axes.axvline(suggested, color=GREY, linestyle=":")
        axes.plot(suggested, height, "o", color=VERMILION, markersize=8, label=f"falls fastest: {suggested:.1e}")
    if not np.isfinite(scan.losses).all():
        first = scan.rates[np.argmin(np.isfinite(scan.losses))]
        axes.axvline(first, color=VERMILION, linestyle="--", label=f"not finite from {first:.1e}")
    finite_means = means[np.isfinite(means)]
    if finite_means.size:
        # The axis ends below a loss that diverges, which would flatten the rest.
        low, high = finite_means.min(), finite_means[: int(np.argmin(finite_means)) + 1].max()
        reach = (high - low) or abs(high) or 1.0
        axes.set_ylim(low - 0.3 * reach, high + 0.7 * reach)
    axes.set(xscale="log", xlabel="learning rate", ylabel=with_unit("loss", unit), title=plain(title))
    axes.set_xlim(scan.rates[0], scan.rates[-1])
    axes.legend(loc="lower left")
    return figure
