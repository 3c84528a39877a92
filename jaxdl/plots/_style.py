"""What all figures have in common: an empty one, its colors, the scale of an axis, and titles as they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxdl._checks import given_as
from jaxdl._files import atomic_write
from jaxdl.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colors, which color-blind readers tell apart and which print as distinct greys.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#767676"
GREEN, PURPLE = "#009E73", "#CC79A7"


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


def fit_axis(axes: Axes, values: ArrayLike, *, quantile: float = 0.9, factor: float = 2.5) -> None:
    """Scale the y axis to the finite values of curves, with 0 in it; without any, leave the axis as it is.

    The first epochs of a run, or a run that diverges, are often far above the rest and would flatten it: positive
    values are shown up to `factor` times their `quantile`.
    """
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return
    low, high = min(0.0, finite.min()), max(0.0, finite.max())
    if low == 0:
        high = min(high, factor * np.quantile(finite, quantile))
    axes.set_ylim(1.05 * low, 1.05 * high or 1)


def plain(title: str) -> str:
    r"""A title as it is: no formula between dollar signs, and nothing that a font could not be asked for.

    >>> print(plain("a $5 day"))
    a \$5 day
    """
    return title.encode("utf-8", "replace").decode().replace("$", r"\$")


def save(figure: Figure, path: str | Path) -> None:
    """Writes a Figure, whole or not at all, in the format that the end of the file's name asks for: .png or .pdf, say.

    Raises InputError for an end that is no such format, and where the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(blank(2, 2, above=0.1), Path(folder, "a.png"))
    ...     Path(folder, "a.png").read_bytes()[1:4]
    b'PNG'
    """
    if not hasattr(figure, "savefig"):
        raise InputError(f"save needs a Figure and a path, got {given_as(figure)}. Use save(figure, path).")
    path = Path(path).expanduser()
    known = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise InputError(f"a figure's file must end in .{', .'.join(known)}, got {path}. Use {path.stem}.png, say.")
    try:
        with atomic_write(path) as file:
            figure.savefig(file, format=path.suffix[1:].lower())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}. Choose another file.") from None
