"""What all figures have in common: an empty one, its colours, and titles as they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jaxdl.arguments import given_as
from jaxdl.errors import InputError
from jaxdl.files import atomic_write

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
