"""The page of the lesson."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.lesson.rows import Row, check, epochs, estimate, in_sections, number
from jaxdl.errors import InputError
from jaxdl.types import SETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


STYLE = "\n" + Path(__file__).with_name("page.css").read_text(encoding="utf-8")

DOTS = 2  # of a picture for a pixel of the page: phones and printers show more than a pixel's detail
SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Picture(NamedTuple):
    """A figure of the page, below the table of its section."""

    section: str
    name: str  # what is seen, in a few words, for those who do not see it
    caption: str
    png: bytes


class Source(NamedTuple):
    """Where data come from."""

    name: str
    text: str  # whom to cite, and the licence
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
    """A matplotlib Figure as the bytes of a PNG, in the resolution that the page expects."""
    buffer = io.BytesIO()
    # An inch is 96 pixels of a page.
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
    """The page, HTML5: notes, contents, findings, a section for each of the rows' and pictures', sources, the command.

    findings: sentences. notes: what must not be overlooked. about: a few sentences by section. lead: below the title.
    made: with what, and when, the figures were made. All texts are plain; nothing in them is taken for HTML.
    Raises InputError for rows that do not fit their seeds, for a text about an unknown section, and for pictures that
    are no PNG.
    """
    check(rows)
    sections = list(dict.fromkeys([row.section for row in in_sections(rows)] + [of.section for of in pictures]))
    if unknown := [section for section in about if section not in sections]:
        raise InputError(f"about must name sections of the rows or pictures, got {unknown[0]}. Rename or remove it.")
    chapters = [("What these figures say", "findings", _findings(findings))] if findings else []
    numbered = list(enumerate(sorted(pictures, key=lambda picture: sections.index(picture.section)), 1))
    for place, section in enumerate(sections, 1):
        body = [f"<p>{_text(about[section])}</p>"] if section in about else []
        body += _tables([row for row in rows if row.section == section])
        body += [_figure(picture, place) for place, picture in numbered if picture.section == section]
        chapters.append((section, f"section-{place}", body))
    chapters += [("How to read the tables", "reading", _reading(rows))] if rows else []
    chapters.append(("Where this comes from", "sources", _sources(sources, command, made)))
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
    """The tables of a section, one for each figure and unit; only the columns that hold something."""
    tables = []
    for figure, unit in dict.fromkeys((row.figure, row.unit) for row in rows):
        chosen = [row for row in rows if (row.figure, row.unit) == (figure, unit)]
        columns = [name for name in SETS if any(name in row.values or name in row.printed for row in chosen)]
        trained = any(row.seeds for row in chosen)
        names = [*columns, *(("parameters", "epochs", "seeds", "seconds") if trained else ())]
        head = "".join(f'<th scope="col">{name}</th>' for name in ("", *names))
        caption = _text(f"{figure} in {unit}")
        tables += [
            f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">',
            f"<table><caption>{caption}</caption>",
            f"<thead><tr>{head}</tr></thead>",
            "<tbody>",
            *(_line(row, columns, trained) for row in chosen),
            "</tbody></table></div>",
        ]
    return tables


def _line(row: Row, columns: Sequence[str], trained: bool) -> str:
    about = f"<small>{_text(row.what)}</small>" if row.what else ""
    cells = [f'<th scope="row">{_text(row.name)}{about}</th>']
    cells += [f"<td>{_cell(row, name)}</td>" for name in columns]
    if trained:
        size = "" if row.parameters is None else f"{row.parameters:,}"
        done = epochs(row).replace(" *", '<span class="star">*</span>')
        seconds = f"{row.seconds:.1f}" if row.seeds else ""
        cells += [f"<td>{text}</td>" for text in (size, done, len(row.seeds) or "", seconds)]
    kind = "network" if row.seeds else "baseline"
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _cell(row: Row, name: str) -> str:
    lesson = f"<small>lesson {number(row.printed[name], row.unit)}</small>" if name in row.printed else ""
    if name not in row.values:
        return lesson
    found = estimate(row.values[name])
    count = "all " * (found.diverged == len(row.seeds) > 1) + f"{found.diverged} " * (len(row.values[name]) > 1)
    lost = f'<small class="lost">{count}diverged</small>' if found.diverged else ""
    if np.isnan(found.mean):
        return f"{lost}{lesson}"
    # There even where it is empty, so that the means stand below each other.
    error = "" if np.isnan(found.error) else f" ± {number(found.error, row.unit)}"
    return f'{number(found.mean, row.unit)}<span class="error">{error}</span>{lost}{lesson}'


def _figure(picture: Picture, place: int) -> str:
    if picture.png[:8] != SIGNATURE or len(picture.png) < 24:
        raise InputError(f"the picture {picture.name} must be a PNG, got {picture.png[:8]!r}. Save it as one.")
    # The size stands in the first 24 bytes (PNG specification, 11.2.2); browsers keep room for it.
    width, height = (max(1, side // DOTS) for side in struct.unpack(">II", picture.png[16:24]))
    data = base64.b64encode(picture.png).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{_text(picture.name)}">'
    return f"<figure>{image}<figcaption><strong>Figure {place}.</strong> {_text(picture.caption)}</figcaption></figure>"


def _reading(rows: Sequence[Row]) -> list[str]:
    counts = sorted({len(row.seeds) for row in rows if row.seeds})
    many = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds" if counts else "no seeds"
    lines = [
        f"Every network is trained from {many}. A seed draws the initial weights and the order of the training rows; "
        "the rows of each set are the same for all.",
        "A figure is the mean over seeds ± its standard error, the standard deviation over the square root of their "
        "number. One seed, and a baseline, which has none, show no error. Seconds are those that all seeds of a row "
        "took to train, without compilation.",
    ]
    if any(row.printed for row in rows):
        lines.append("“Lesson” is the figure that the lesson itself prints, of a single run.")
    if any(row.best for row in rows):
        lines.append("A * at the epochs says that the weights of the best epoch are measured, not those of the last.")
    if any(estimate(values).diverged for row in rows for values in row.values.values()):
        lines.append("A seed has diverged where its figure is no finite number; the means are those of the others.")
    return [f"<p>{_text(line)}</p>" for line in lines]


def _sources(sources: Sequence[Source], command: str, made: str) -> list[str]:
    lines = ["<dl>"] if sources else []
    for source in sources:
        link = f' <a href="{_text(source.link)}">{_text(source.link)}</a>' if source.link else ""
        lines.append(f"<dt>{_text(source.name)}</dt><dd>{_text(source.text)}{link}</dd>")
    lines += ["</dl>"] if sources else []
    again = "<p>This command makes all figures, and this page, anew:</p>"
    return [*lines, again, f"<pre><code>{_text(command)}</code></pre>", *([f"<p>{_text(made)}</p>"] if made else [])]
