"""What all figures have in common: an empty one, its colours, and titles as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart and which print as distinct greys.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#767676"
GREEN, PURPLE = "#009E73", "#CC79A7"
ORANGE, SKY = "#E69F00", "#56B4E9"


def blank(width: float, height: float, above: float) -> Figure:
    """An empty Figure of so many inches, with `above` inches left over its axes for titles.

    >>> blank(7, 4.5, above=0.45).get_size_inches().tolist()
    [7.0, 4.5]
    """
    # Without pyplot: no window, no global list of figures, no backend to choose.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120)
    # Margins in inches: a layout engine would take longer than drawing everything else.
    margins = {"left": 0.8 / width, "right": 1 - 0.2 / width, "bottom": 0.6 / height, "top": 1 - above / height}
    figure.subplots_adjust(**margins, wspace=0.08)
    return figure


def plain(title: str) -> str:
    r"""A title as it is: no formula between dollar signs, and nothing that a font could not be asked for.

    >>> print(plain("a $5 day"))
    a \$5 day
    """
    return title.encode("utf-8", "replace").decode().replace("$", r"\$")
