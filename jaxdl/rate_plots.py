"""Learning rates as matplotlib Figures: by epoch, and against the loss of a range test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxdl.canvas import BLUE, GREEN, GREY, VERMILION, blank, fit_axis, plain
from jaxdl.errors import InputError
from jaxdl.rate_ranges import RateRange, smoothed, steepest

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RATE, LOG_FROM = "learning_rate", 10  # the ratio of the largest rate to the smallest from which the axis is logarithmic


def learning_rates(table: pd.DataFrame, metric: str = "loss", *, unit: str = "", title: str = "") -> Figure:
    """The learning rate of each epoch, and below it the loss, or another figure, on the same epochs.

    table: a row an epoch, indexed by the epoch, as `fit(...).history`; columns `learning_rate` and, where they were
    measured, `metric` and `val_<metric>`. Raises InputError without a column `learning_rate`: the optimiser's state
    then holds none (see `optax.inject_hyperparams`).

    >>> import pandas as pd
    >>> records = pd.DataFrame({"learning_rate": [0.1, 0.05], "loss": [3.0, 2.0]}, index=[1, 2])
    >>> len(learning_rates(records).axes)
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
    for name, label, colour, line in (
        (metric, "training", BLUE, "-"),
        (f"val_{metric}", "validation", VERMILION, "--"),
    ):
        if name in table:
            lower.plot(epochs, table[name], line, color=colour, label=label, marker="." * (len(epochs) < 3))
    fit_axis(lower, table[[name for name in (metric, f"val_{metric}") if name in table]])
    upper.set(ylabel="learning rate", title=plain(title))
    quantity = metric.upper() if metric == "rmse" else metric
    lower.set(xlabel="epoch", ylabel=f"{quantity} ({unit})" if unit else quantity)
    lower.xaxis.get_major_locator().set_params(integer=True)
    if lower.lines:
        lower.legend()
    figure.align_ylabels()
    return figure


def rate_range(found: RateRange, *, unit: str = "", title: str = "") -> Figure:
    """The loss of a range test against its learning rates: batch by batch, smoothed, and where it falls fastest.

    >>> found = RateRange(np.geomspace(1e-3, 1, 4), np.array([4.0, 3.0, np.inf, 1.0]))
    >>> figure = rate_range(found)
    >>> figure.axes[0].get_xscale()
    'log'
    """
    figure = blank(7, 4.5, above=0.45)
    axes = figure.subplots()
    means, suggested = smoothed(found), steepest(found)
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
