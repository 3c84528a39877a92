"""Code that all plots share: an empty figure, colors, axes, titles, and the file of a figure."""

from __future__ import annotations

from collections.abc import Iterable
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


# Okabe and Ito's colors: color-blind readers can distinguish them, and they print as distinct greys.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#767676"
GREEN, PURPLE = "#009E73", "#CC79A7"
# The color, line style and width of each curve.
LINES = ((BLUE, "-", 2.0), (GREEN, "--", 1.3), (VERMILION, "-.", 1.3), (PURPLE, ":", 1.6))


def blank(width: float, height: float, above: float) -> Figure:
    """Return an empty Figure of `width` x `height` inches, with `above` inches over its axes for titles."""
    # Without pyplot: no window, no global list of figures, no choice of a backend.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120)
    # Fixed margins: a layout engine takes longer than all other drawing.
    margins = {"left": 0.8 / width, "right": 1 - 0.2 / width, "bottom": 0.6 / height, "top": 1 - above / height}
    figure.subplots_adjust(**margins, wspace=0.08)
    return figure


def fit_axis(axes: Axes, values: ArrayLike, *, quantile: float = 0.9, factor: float = 2.5) -> None:
    """Scale the y axis to 0 and the finite values, up to `factor` times the `quantile` of values that are all positive.

    So the first epochs, or a run that diverges, do not flatten the curves. Without finite values the axis stays.
    """
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return
    low, high = min(0.0, finite.min()), max(0.0, finite.max())
    if low == 0:
        high = min(high, factor * np.quantile(finite, quantile))
    axes.set_ylim(1.05 * low, 1.05 * high or 1)


def label_epochs(axes: Axes, metrics: Iterable[str], unit: str) -> None:
    """Label the x axis with epochs, at integers, and the y axis with metrics and their unit."""
    quantity = ", ".join("RMSE" if metric == "rmse" else metric for metric in metrics)
    axes.set(xlabel="epoch", ylabel=with_unit(quantity, unit))
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]


def with_unit(quantity: str, unit: str) -> str:
    """Return the label of an axis: the quantity, and its unit where one is given."""
    return f"{quantity} ({unit})" if unit else quantity


def plain(title: str) -> str:
    """Return a title without formulas between dollar signs and without code points that no font has."""
    return title.encode("utf-8", "replace").decode().replace("$", r"\$")


def save(figure: Figure, path: str | Path) -> None:
    """Write a Figure as a whole file, or not at all, in the format of the file's suffix, such as .png or .pdf.

    Raises InputError for an unknown suffix, and where the file cannot be written.

    >>> import tempfile
    >>> from jaxdl.plots import predictions
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(predictions([1.0, 2.0], [1.1, 1.9]), Path(folder, "predictions.png"))
    ...     Path(folder, "predictions.png").read_bytes()[1:4]
    b'PNG'
    """
    if not hasattr(figure, "savefig"):
        raise InputError(f"save needs a Figure and a path, got {given_as(figure)}. Use save(figure, path).")
    path = Path(path).expanduser()
    file_format, formats = path.suffix[1:].lower(), sorted(figure.canvas.get_supported_filetypes())
    if file_format not in formats:
        raise InputError(f"a figure's file must end in .{', .'.join(formats)}, got {path}. Use {path.stem}.png, say.")
    try:
        with atomic_write(path) as file:
            figure.savefig(file, format=file_format)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}. Choose another file.") from None
