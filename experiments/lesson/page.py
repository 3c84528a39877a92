"""The page of the lesson, as HTML."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.lesson.rows import Row, check, epochs, in_sections, mean_over_seeds, number
from jaxdl.errors import InputError
from jaxdl.types import SETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


STYLE = "\n" + Path(__file__).with_name("page.css").read_text(encoding="utf-8")

DOTS = 2  # pixels of a picture for a pixel of the page, for screens and printers of high resolution
SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Picture(NamedTuple):
    """A figure of the page, below the table of its section."""

    section: str
    name: str  # the alternative text
    caption: str
    png: bytes


class Source(NamedTuple):
    """The source of a data set."""

    name: str
    text: str  # the work to cite, and the licence
    link: str = ""


SOURCES = (
    Source(
        "Weather prediction dataset",
        "Huber et al., Zenodo, DOI 10.5281/zenodo.7525955, CC BY 4.0; made from ECA&D: Klein Tank et al., "
        "International Journal of Climatology 22 (2002).",
        "https://doi.org/10.5281/zenodo.7525955",
    ),
    Source(
        "CIFAR-10",
        "Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, in the resolution of the page."""
    buffer = io.BytesIO()
    # A page has 96 pixels an inch.
    figure.savefig(buffer, format="png", dpi=96 * DOTS)
    return buffer.getvalue()


def page(
    rows: Sequence[Row],
    pictures: Sequence[Picture],
    findings: Sequence[str],
    notes: Sequence[str],
    *,
    title: str,
    about: Mapping[str, str],
    lead: str = "",
    command: str = "python -m experiments.lesson",
    sources: Sequence[Source] = SOURCES,
    made: str = "",
) -> str:
    """Return the page as HTML5: notes, contents, findings, a section for each of the rows and pictures, sources.

    findings: sentences. notes: warnings about the data. about: introductions by section. lead: text below the title.
    command: repeats the lesson. made: date, versions and machine. All texts are escaped. Raises InputError for rows
    that do not fit their seeds, for an introduction to an unknown section, and for pictures that are no PNG.
    """
    check(rows)
    sections = list(
        dict.fromkeys([row.section for row in in_sections(rows)] + [picture.section for picture in pictures])
    )
    if unknown := [section for section in about if section not in sections]:
        raise InputError(f"about must name sections of the rows or pictures, got {unknown[0]}. Rename or remove it.")
    chapters = [("Findings", "findings", _findings(findings))] if findings else []
    numbered = list(enumerate(sorted(pictures, key=lambda picture: sections.index(picture.section)), 1))
    for place, section in enumerate(sections, 1):
        body = [f"<p>{_text(about[section])}</p>"] if section in about else []
        body += _tables([row for row in rows if row.section == section])
        body += [_figure(picture, place) for place, picture in numbered if picture.section == section]
        chapters.append((section, f"section-{place}", body))
    chapters += [("How to read the tables", "reading", _reading(rows))] if rows else []
    chapters.append(("Sources", "sources", _sources(sources, command, made)))
    parts = [f"<h1>{_text(title)}</h1>", *(f'<p class="note" role="note">{_text(note)}</p>' for note in notes)]
    parts += [f"<p>{_text(lead)}</p>"] if lead else []
    items = (f'<li><a href="#{anchor}">{_text(name)}</a></li>' for name, anchor, _ in chapters)
    parts += ['<nav aria-label="Contents"><strong>Contents</strong>', "<ol>", *items, "</ol></nav>"]
    for name, anchor, body in chapters:
        parts += ["<section>", f'<h2 id="{anchor}">{_text(name)}</h2>', *body, "</section>"]
    return _document(title, parts)


def _document(title: str, parts: Sequence[str]) -> str:
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    lines = ["<!DOCTYPE html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", "<main>", *parts]
    return "\n".join([*lines, "</main>", "</body>", "</html>", ""])


def _text(text: str) -> str:
    return escape(text.encode("utf-8", "replace").decode().replace(" +- ", " ± "))


def _findings(findings: Sequence[str]) -> list[str]:
    return ['<ul class="findings">', *(f"<li>{_text(finding)}</li>" for finding in findings), "</ul>"]


def _tables(rows: Sequence[Row]) -> list[str]:
    """Return the tables of a section, one for each metric and unit, without empty columns."""
    tables = []
    for metric, unit in dict.fromkeys((row.figure, row.unit) for row in rows):
        chosen = [row for row in rows if (row.figure, row.unit) == (metric, unit)]
        columns = [name for name in SETS if any(name in row.values or name in row.printed for row in chosen)]
        has_networks = any(row.seeds for row in chosen)
        names = [*columns, *(("parameters", "epochs", "seeds", "seconds") if has_networks else ())]
        head = "".join(f'<th scope="col">{name}</th>' for name in ("", *names))
        caption = _text(f"{metric} in {unit}")
        tables += [
            f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">',
            f"<table><caption>{caption}</caption>",
            f"<thead><tr>{head}</tr></thead>",
            "<tbody>",
            *(_line(row, columns, has_networks) for row in chosen),
            "</tbody></table></div>",
        ]
    return tables


def _line(row: Row, columns: Sequence[str], has_networks: bool) -> str:
    about = f"<small>{_text(row.what)}</small>" if row.what else ""
    cells = [f'<th scope="row">{_text(row.name)}{about}</th>']
    cells += [f"<td>{_cell(row, name)}</td>" for name in columns]
    if has_networks:
        size = "" if row.parameters is None else f"{row.parameters:,}"
        epochs_text = epochs(row).replace(" *", '<span class="star">*</span>')
        seconds = f"{row.seconds:.1f}" if row.seeds else ""
        cells += [f"<td>{text}</td>" for text in (size, epochs_text, len(row.seeds) or "", seconds)]
    kind = "network" if row.seeds else "baseline"
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _cell(row: Row, name: str) -> str:
    lesson = f"<small>lesson {number(row.printed[name], row.unit)}</small>" if name in row.printed else ""
    if name not in row.values:
        return lesson
    mean, error, diverged = mean_over_seeds(row.values[name])
    count = "all " * (diverged == len(row.seeds) > 1) + f"{diverged} " * (len(row.values[name]) > 1)
    note = f'<small class="lost">{count}diverged</small>' if diverged else ""
    if np.isnan(mean):
        return f"{note}{lesson}"
    # An empty span keeps the means aligned.
    error_text = "" if np.isnan(error) else f" ± {number(error, row.unit)}"
    return f'{number(mean, row.unit)}<span class="error">{error_text}</span>{note}{lesson}'


def _figure(picture: Picture, place: int) -> str:
    if picture.png[:8] != SIGNATURE or len(picture.png) < 24:
        raise InputError(f"the picture {picture.name} must be a PNG, got {picture.png[:8]!r}. Save it as one.")
    # The first 24 bytes hold the size (PNG specification, 11.2.2), for which browsers reserve space.
    width, height = (max(1, side // DOTS) for side in struct.unpack(">II", picture.png[16:24]))
    data = base64.b64encode(picture.png).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{_text(picture.name)}">'
    return f"<figure>{image}<figcaption><strong>Figure {place}.</strong> {_text(picture.caption)}</figcaption></figure>"


def _reading(rows: Sequence[Row]) -> list[str]:
    counts = sorted({len(row.seeds) for row in rows if row.seeds})
    seeds = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds" if counts else "no seeds"
    lines = [
        f"Every network is trained with {seeds}. The seed determines the initial weights and the shuffling. The rows "
        "of each set are the same for all seeds.",
        "A value is the mean over the seeds ± its standard error: the standard deviation divided by the square root of "
        "the number of seeds. A single seed and a baseline have no standard error. The column seconds is the training "
        "time of all seeds of a row, without compilation.",
    ]
    if any(row.printed for row in rows):
        lines.append("“Lesson” is the value of a single run, as the lesson prints it.")
    if any(row.best for row in rows):
        lines.append("A * at the epochs means: the values are those of the best epoch, not of the last.")
    if any(mean_over_seeds(values).diverged for row in rows for values in row.values.values()):
        lines.append("A seed has diverged where its value is NaN or infinite. The means are those of the other seeds.")
    return [f"<p>{_text(line)}</p>" for line in lines]


def _sources(sources: Sequence[Source], command: str, made: str) -> list[str]:
    lines = ["<dl>"] if sources else []
    for source in sources:
        link = f' <a href="{_text(source.link)}">{_text(source.link)}</a>' if source.link else ""
        lines.append(f"<dt>{_text(source.name)}</dt><dd>{_text(source.text)}{link}</dd>")
    lines += ["</dl>"] if sources else []
    text = "<p>This command repeats the lesson and writes this page:</p>"
    return [*lines, text, f"<pre><code>{_text(command)}</code></pre>", *([f"<p>{_text(made)}</p>"] if made else [])]
