"""Barbecue weather: days with no rain and at least 18 degrees, as their authors publish them or by that rule.

Source: Huber et al., https://doi.org/10.5281/zenodo.4980359, whose labels are those of the rule on every day at each of
the 16 places whose rain and warmth stand in the weather prediction data set, Basel among them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdl.datasets.sources import LABELS
from jaxdl.datasets.weather_table import Table, nearest, read_cells, read_header, wrong_cell
from jaxdl.errors import InputError

SUFFIX = "_BBQ_weather"
BASEL = "BASEL" + SUFFIX
WARM = 18.0  # degrees Celsius
RULE = f"computed: no precipitation and a maximum of at least {WARM:g} degrees Celsius"


class Labels(NamedTuple):
    """Whether each day of a table was barbecue weather at one place."""

    values: NDArray[np.float64]  # (D,) 1 where it was, else 0
    source: str  # the file that says so, or the rule
    sha256: str  # of the table and the labels together


def labels(table: Table, column: str, folder: Path | None = None) -> Labels:
    """The labels of a table's days, such as the column "BASEL_BBQ_weather".

    They come from the published file, if `folder` holds it, else from the rule. Raises InputError where that file is
    damaged or of other days, or the table lacks what the rule needs.

    >>> days = np.array(["2000-07-01", "2000-07-02", "2000-07-03"], "datetime64[D]")
    >>> weather = np.array([[0.0, 18.0], [0.0, 17.9], [0.01, 25.0]])
    >>> labels(Table("July", days, ("OSLO_precipitation", "OSLO_temp_max"), weather, ""), "OSLO_BBQ_weather").values
    array([1., 0., 0.])
    """
    path = None if folder is None else folder / LABELS.name
    published = path is not None and path.exists()
    values = read_labels(path, table, column) if path is not None and published else by_rule(table, column)
    digest = hashlib.sha256(table.sha256.encode() + values.astype("<f8").tobytes()).hexdigest()
    return Labels(values, LABELS.name if published else RULE, digest)


def by_rule(table: Table, column: str) -> NDArray[np.float64]:
    """The labels (D,) that the table's precipitation and maximal temperature amount to, 1 or 0.

    Raises InputError where the table lacks one of them.

    >>> days = np.array(["2000-07-01", "2000-07-02"], "datetime64[D]")
    >>> table = Table("July", days, ("OSLO_precipitation", "OSLO_temp_max"), np.array([[0.0, 25.0], [0.3, 25.0]]), "")
    >>> by_rule(table, "OSLO_BBQ_weather").tolist()
    [1.0, 0.0]
    """
    needed = [column.replace(SUFFIX, feature) for feature in ("_precipitation", "_temp_max")]
    for name in needed:
        if name not in table.columns:
            near = nearest(name, table.columns)
            raise InputError(f"{table.name} has no column {name}, from which {column} is computed; {near}.")
    rain, warmth = (table.values[:, table.columns.index(name)] for name in needed)
    return ((rain == 0) & (warmth >= WARM)).astype(np.float64)


def read_labels(path: Path, table: Table, column: str) -> NDArray[np.float64]:
    """The labels (D,) in a column of a CSV file with the column DATE and others of True and False, 1 or 0.

    Raises InputError, which names the line, unless every cell is True or False and the days are those of the table.

    >>> import tempfile
    >>> table = Table("July", np.array(["2000-07-01", "2000-07-02"], "datetime64[D]"), (), np.zeros((2, 0)), "")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels.csv"
    ...     _ = path.write_text("DATE,OSLO_BBQ_weather\\n20000701,False\\n20000702,True\\n")
    ...     read_labels(path, table, "OSLO_BBQ_weather").tolist()
    [0.0, 1.0]
    """
    content, header = read_header(path, ("DATE", column))
    cells = read_cells(path.name, content, header)
    told = ((cells == "True") | (cells == "False") | (cells.columns == "DATE")).to_numpy()
    for row, wrong in np.argwhere(~told)[:1].tolist():
        raise wrong_cell(path.name, cells, row, wrong, "True or False")
    days = [day.replace("-", "") for day in np.datetime_as_string(table.dates).tolist()]
    found = cells["DATE"].tolist()
    if found != days:
        line = next((n for n, pair in enumerate(zip(found, days, strict=False)) if pair[0] != pair[1]), None)
        got = f"{len(found)} days for {len(days)}" if line is None else f"{found[line]} for {days[line]}"
        where = "" if line is None else f" on line {line + 2}"
        raise InputError(
            f"{path.name} must have the days of {table.name}, got {got}{where}. Put the labels of that table beside "
            "it, or take them away: they are then computed."
        )
    values: NDArray[np.float64] = (cells[column] == "True").to_numpy().astype(np.float64)
    return values
