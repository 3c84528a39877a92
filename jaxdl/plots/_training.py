"""Plots of training: histories, seeds, sizes, learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdl._checks import given_as, nearest
from jaxdl.errors import InputError
from jaxdl.plots._style import BLUE, GREEN, GREY, PURPLE, VERMILION, blank, fit_axis, plain
from jaxdl.train.lr_finder import LearningRateScan, smoothed, suggestion

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


SERIES = {"train": (BLUE, "o"), "validation": (VERMILION, "s"), "test": (GREEN, "^")}
DASHES = ("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))


def histories(table: pd.DataFrame, metric: str = "rmse", *, unit: str = "", title: str = "") -> Figure:
    """Curves of many members against epochs, thin, with their medians, thick, and where members stopped.

    table: a row for each member and epoch that it did, as `fit_seeds(...).history`; columns `member`, `epoch`, `metric`
    and, where there was validation, `val_<metric>`. The median ends where fewer than half the members are left.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"member": [0, 0, 1], "epoch": [1, 2, 1], "rmse": [3.0, 2.0, 3.5]})
    >>> len(histories(records).axes)
    1
    """
    figure = blank(7, 4.5, above=0.45)
    axes = figure.subplots()
    count = table["member"].nunique()
    last = table.groupby("member")["epoch"].max()
    for name, label, color in ((metric, "training", BLUE), (f"val_{metric}", "validation", VERMILION)):
        if name not in table:
            continue
        wide = table.pivot(index="epoch", columns="member", values=name)
        finite = wide.where(np.isfinite(wide))
        for member in wide:
            axes.plot(wide.index, finite[member], color=color, linewidth=0.6, alpha=max(0.15, min(0.6, 4 / count)))
        median = finite.median(axis=1)[finite.notna().sum(axis=1) * 2 >= count]
        axes.plot(median.index, median, color=color, linewidth=2, label=f"{label}, median of {count}")
    axes.axvline(last.mean(), color=GREY, linestyle=":", label=_stopped(last))
    if last.nunique() > 1:
        ends = table[table["epoch"] == table["member"].map(last)]
        shown = f"val_{metric}" if f"val_{metric}" in table else metric
        color = BLUE if shown == metric else VERMILION
        axes.plot(ends["epoch"], ends[shown], ".", color=color, markersize=5, label="where a member stopped")
    quantity = metric.upper() if metric == "rmse" else metric
    axes.set(xlabel="epoch", ylabel=f"{quantity} ({unit})" if unit else quantity, title=plain(title))
    # By a quantile that a few members which diverge leave alone.
    fit_axis(axes, table[[name for name in (metric, f"val_{metric}") if name in table]], quantile=0.75, factor=3)
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
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
    """Figures of (K,) networks against their numbers of parameters, with error bars, a series a set.

    means, errors: of "train", "validation" and "test", or some of them, (K,) each. names: of the networks, shown above.
    recommended: the position of the network to mark. baselines: horizontal lines. Raises InputError for sizes below 1,
    which have no place on a logarithmic axis.

    >>> figure = model_size([10, 100], {"test": [3.5, 3.6]}, {"test": [0.1, 0.2]}, ["2", "20"], recommended=0)
    >>> len(figure.axes)
    1
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
        values, error = (np.asarray(of, np.float64)[order] for of in (values, errors[name]))
        axes.errorbar(sizes[order], values, error, color=color, marker=marker, capsize=3, linewidth=1.2, label=name)
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
    """Draw a line a setting: every seed as a dot, the mean with its standard error, and on the right both as numbers.

    values: (seeds,) values of each setting; the seeds whose value is not finite are counted on the right.
    references: a value from elsewhere for each setting, None for none, which the legend calls `reference_label`.
    baselines: vertical lines.

    >>> figure = seeds(["plain", "small"], [[4.1, 4.0], [3.5, 3.7]], baselines={"as today": 3.88})
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['plain', 'small']
    """
    height, longest = 0.34 * len(names) + (1.8 if title else 1.5), max(map(len, names), default=0)
    width = 6.6 + 0.085 * longest
    figure = blank(width, height, above=1.05 if title else 0.75)
    figure.subplots_adjust(left=(0.3 + 0.085 * longest) / width, right=1 - 1.7 / width)
    axes = figure.subplots()
    for place, of_setting in enumerate(values):
        every = np.asarray(of_setting, np.float64).ravel()
        finite = every[np.isfinite(every)]
        # Neighbours in the figure's order stand apart, so that equal figures do not hide each other.
        apart = place + 0.09 * (np.argsort(np.argsort(finite, kind="stable")) % 5 - 2)
        axes.plot(finite, apart, "o", color=BLUE, alpha=0.45, markersize=3.5, markeredgewidth=0)
        mean, error = _mean(finite)
        bar = 0 if np.isnan(error) else error
        axes.errorbar([mean], [place], xerr=[bar], fmt="D", color="black", markersize=4.5, capsize=3, zorder=3)
        text = _words(mean, error, len(every) - len(finite), decimals)
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    for place, reference in enumerate(references):
        if reference is not None and np.isfinite(reference):
            axes.plot(reference, place, "o", markerfacecolor="none", color=VERMILION, markersize=8, zorder=4)
    for (name, value), dashes in zip((baselines or {}).items(), cycle(DASHES), strict=False):
        axes.axvline(value, color=GREY, linewidth=1.2, linestyle=dashes, label=plain(name))
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set(xlabel=quantity, ylim=(len(names) - 0.4, -0.6))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    _explain(axes, reference_label if any(value is not None for value in references) else "")
    if title:
        figure.suptitle(plain(title))
    return figure


def _stopped(last: pd.Series) -> str:
    low, high = int(last.min()), int(last.max())
    if low == high:
        return f"stopped after epoch {high}"
    return f"stopped after epoch {last.mean():.0f} on average ({low} to {high})"


def _mean(finite: np.ndarray) -> tuple[float, float]:
    """Mean and standard error, nan where there are too few for it."""
    mean = finite.mean() if finite.size else np.nan
    return float(mean), float(finite.std(ddof=1) / np.sqrt(finite.size)) if finite.size > 1 else np.nan


def _words(mean: float, error: float, diverged: int, decimals: int) -> str:
    known = "" if np.isnan(mean) else f"{mean:.{decimals}f}" + ("" if np.isnan(error) else f" ± {error:.{decimals}f}")
    return "\n".join(filter(None, (known, f"{diverged} diverged" if diverged else "")))


def _explain(axes: Axes, reference_label: str) -> None:
    """A legend above the panel, of the lines and of what the markers are."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], linestyle="", marker="o", color=BLUE, alpha=0.45, markersize=4, label="a seed"),
        Line2D([], [], linestyle="", marker="D", color="black", markersize=5, label="mean ± standard error"),
    ]
    if reference_label:
        hollow: dict[str, Any] = {"markerfacecolor": "none", "color": VERMILION, "markersize": 8}
        marks.append(Line2D([], [], linestyle="", marker="o", label=plain(reference_label), **hollow))
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    shown: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3, "frameon": False}
    axes.legend(handles=[*marks, *lines], fontsize=8, **shown)


def _names_above(axes: Axes, sizes: np.ndarray, names: Sequence[str], recommended: int | None) -> None:
    """Names above the panel, each with a line to its size, and apart from each other however near the sizes are."""
    low, high = np.log(axes.get_xlim())
    true = (np.log(sizes) - low) / (high - low)
    order, gap = np.argsort(true, kind="stable"), 0.038
    shown = true[order]
    for place in range(1, len(shown)):
        shown[place] = max(shown[place], shown[place - 1] + gap)
    for place in range(len(shown) - 1, -1, -1):
        limit = 1.0 if place == len(shown) - 1 else shown[place + 1] - gap
        shown[place] = min(shown[place], limit)
    for index, place in zip(order[: len(names)], shown, strict=False):
        axes.plot([true[index], place], [1, 1.04], color=GREY, linewidth=0.6, transform=axes.transAxes, clip_on=False)
        bold = "bold" if index == recommended else "normal"
        where: dict[str, Any] = {"transform": axes.transAxes, "rotation": 50, "rotation_mode": "anchor"}
        axes.text(place, 1.05, plain(names[index]), fontsize=8, weight=bold, **where)


RATE, LOG_FROM = "learning_rate", 10  # the ratio of the largest rate to the smallest from which the axis is logarithmic


def learning_rate(table: pd.DataFrame, metric: str = "loss", *, unit: str = "", title: str = "") -> Figure:
    """The learning rate of each epoch, and below it the loss, or another figure, on the same epochs.

    table: a row an epoch, indexed by the epoch, as `fit(...).history`; columns `learning_rate` and, where they were
    measured, `metric` and `val_<metric>`. Raises InputError without a column `learning_rate`: the optimizer's state
    then holds none (see `optax.inject_hyperparams`).

    >>> import pandas as pd
    >>> records = pd.DataFrame({"learning_rate": [0.1, 0.05], "loss": [3.0, 2.0]}, index=[1, 2])
    >>> len(learning_rate(records).axes)
    2
    """
    if RATE not in table:
        raise InputError(
            f"the table must have a column {RATE}, got {', '.join(map(str, table)) or 'none'}. Train with "
            "optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), say."
        )
    figure = blank(7, 5.5, above=0.45)
    figure.subplots_adjust(left=1 / 7, hspace=0.12)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    epochs, rates = table.index.to_numpy(), table[RATE].to_numpy(float)
    # A rate belongs to the whole epoch.
    upper.plot(epochs, rates, color=GREEN, drawstyle="steps-mid", marker="." * (len(epochs) < 3))
    above = rates[np.isfinite(rates) & (rates > 0)]
    if len(above) == len(rates) and len(rates) and above.max() >= LOG_FROM * above.min():
        upper.set_yscale("log")
    elif above.size:
        upper.set_ylim(0, 1.1 * above.max())
    for name, label, color, line in (
        (metric, "training", BLUE, "-"),
        (f"val_{metric}", "validation", VERMILION, "--"),
    ):
        if name in table:
            lower.plot(epochs, table[name], line, color=color, label=label, marker="." * (len(epochs) < 3))
    fit_axis(lower, table[[name for name in (metric, f"val_{metric}") if name in table]])
    upper.set(ylabel="learning rate", title=plain(title))
    quantity = metric.upper() if metric == "rmse" else metric
    lower.set(xlabel="epoch", ylabel=f"{quantity} ({unit})" if unit else quantity)
    lower.xaxis.get_major_locator().set_params(integer=True)
    if lower.lines:
        lower.legend()
    figure.align_ylabels()
    return figure


def lr_finder(found: LearningRateScan, *, unit: str = "", title: str = "") -> Figure:
    """The loss of a range test against its learning rates: batch by batch, smoothed, and where it falls fastest.

    >>> found = LearningRateScan(np.geomspace(1e-3, 1, 4), np.array([4.0, 3.0, np.inf, 1.0]))
    >>> figure = lr_finder(found)
    >>> figure.axes[0].get_xscale()
    'log'
    """
    figure = blank(7, 4.5, above=0.45)
    axes = figure.subplots()
    means, suggested = smoothed(found), suggestion(found)
    finite = np.where(np.isfinite(found.losses), found.losses, np.nan)
    axes.plot(found.rates, finite, ".", color=BLUE, alpha=0.45, markeredgewidth=0, label="loss of a batch")
    axes.plot(found.rates, means, color=BLUE, linewidth=2, label="smoothed")
    if np.isfinite(suggested):
        height = means[np.argmin(np.abs(found.rates - suggested))]
        axes.axvline(suggested, color=GREY, linestyle=":")
        axes.plot(suggested, height, "o", color=VERMILION, markersize=8, label=f"falls fastest: {suggested:.1e}")
    if not np.isfinite(found.losses).all():
        first = found.rates[np.argmin(np.isfinite(found.losses))]
        axes.axvline(first, color=VERMILION, linestyle="--", label=f"not finite from {first:.1e}")
    known = means[np.isfinite(means)]
    if known.size:
        # What diverges is far above the rest and would flatten it.
        low, high = known.min(), known[: int(np.argmin(known)) + 1].max()
        reach = (high - low) or abs(high) or 1.0
        axes.set_ylim(low - 0.3 * reach, high + 0.7 * reach)
    label = f"loss ({unit})" if unit else "loss"
    axes.set(xscale="log", xlabel="learning rate", ylabel=label, title=plain(title))
    axes.set_xlim(found.rates[0], found.rates[-1])
    axes.legend(loc="lower left")
    return figure
