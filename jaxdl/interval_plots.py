"""Predictions with their own errors as matplotlib Figures: the intervals, and whether they hold what they promise."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdl.canvas import BLUE, GREEN, GREY, VERMILION, blank, plain
from jaxdl.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"))


def intervals(
    true: Any, mean: Any, deviation: Any, *, level: float = 0.9, quantity: str = "value", title: str = ""
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
    for chosen, colour, words in ((known & holds, BLUE, "holds it"), (known & ~holds, VERMILION, "misses it")):
        style: dict[str, Any] = {"fmt": "o", "markersize": 3, "elinewidth": 0.7, "alpha": 0.6}
        label = f"the {100 * level:.3g} % interval {words}: {chosen.sum()} of {len(true)}"
        axes.errorbar(true[chosen], mean[chosen], reach[chosen], color=colour, label=label, **style)
    if known.any():
        ends = [true[known].min(), true[known].max()]
        axes.plot(ends, ends, color="black", linewidth=1, zorder=3)
    axes.set(xlabel=f"true {quantity}", ylabel=f"predicted {quantity}")
    # Above the panel, because intervals fill it.
    axes.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    if title:
        figure.suptitle(plain(title))
    return figure


def coverage(nominal: Any, found: Mapping[str, Any], *, rows: int | None = None, title: str = "") -> Figure:
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
        share = np.linspace(0, 1, 201)
        reach = NormalDist().inv_cdf(0.975) * np.sqrt(share * (1 - share) / rows)
        chance = f"chance, {rows} rows"
        axes.fill_between(share, share - reach, share + reach, color=GREY, alpha=0.2, linewidth=0, label=chance)
    for (name, shares), (colour, marker) in zip(found.items(), cycle(STYLES), strict=False):
        axes.plot(nominal, shares, color=colour, marker=marker, markersize=5, linewidth=1.5, label=plain(name))
    axes.set(xlabel="share that the intervals should hold", ylabel="share that they hold", title=plain(title))
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper left")
    return figure
