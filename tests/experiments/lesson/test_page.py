"""The lesson's page, read back by a parser of HTML: it is whole, needs nothing else, and says what it was given."""

import base64
import io
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import sem

from experiments.lesson.page import Picture, Source, page, png
from experiments.lesson.rows import Row
from jaxdl.errors import InputError

EMPTY = {"meta", "img", "br", "hr", "link", "input"}
DRAW = np.random.default_rng(0)
EXERCISES, NEXT, PHOTOGRAPHS = "The lesson's exercises", "Next steps", "CIFAR-10"


class Reader(HTMLParser):
    """Reads a page: its tags, each with its text, and whether every tag that opens also closes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.doctype = [], [], None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_decl(self, decl):
        self.doctype = decl

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        entry = {"tag": tag, "text": "", "inside": [one["tag"] for one in self.open], **dict(attrs)}
        self.tags.append(entry)
        if tag not in EMPTY:
            self.open.append(entry)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for entry in self.open:
            entry["text"] += data

    def all(self, *names):
        return [entry for entry in self.tags if entry["tag"] in names]

    def texts(self, *names):
        return [entry["text"] for entry in self.all(*names)]


def row(section, name, count=6, centre=3.5, **changes):
    values = {"train": DRAW.normal(2, 0.1, count), "test": DRAW.normal(centre, 0.1, count)}
    made = Row(section, name, "100, 50 nodes", "RMSE", "hours", 21501, tuple(range(count)), values, np.full(count, 200))
    return made._replace(**changes)


BASELINE = Row(EXERCISES, "as today", "", "RMSE", "hours", None, (), {"test": np.array([3.877])})
ROWS = [
    row(EXERCISES, "plain", printed={"train": 0.42, "test": 4.08}),
    row(NEXT, "dropout", best=True, epochs=np.arange(20, 26)),
    BASELINE,
    row(PHOTOGRAPHS, "small", figure="accuracy", unit="%", centre=48.8),
]


@pytest.fixture(scope="module")
def picture():
    return png(Figure(figsize=(4, 3)))


def made(rows=ROWS, pictures=(), findings=(), notes=(), *, title="The lesson", about=None, **more):
    return Reader(page(rows, pictures, findings, notes, title=title, about=about or {}, **more))


def cells(reader, name):
    """The cells of the line whose heading begins with a name, by column."""
    heads = []
    for place, entry in enumerate(reader.tags):
        if entry["tag"] == "thead":
            heads = [one["text"] for one in reader.tags[place:] if one.get("scope") == "col"]
        if entry.get("scope") == "row" and entry["text"].startswith(name):
            result = []
            for one in reader.tags[place + 1 :]:
                if one["tag"] == "tr":
                    break
                result += [one["text"]] * (one["tag"] == "td")
            return dict(zip(heads[1:], result, strict=False))
    raise AssertionError(f"no line {name}")


def test_the_page_is_html5_with_headings_in_order(picture):
    reader = made(pictures=[Picture(NEXT, "curves", "Both curves.", picture)], findings=["A."], notes=["B."])
    assert reader.doctype == "DOCTYPE html"
    assert next(entry for entry in reader.tags if entry["tag"] == "html")["lang"] == "en"
    assert reader.texts("title") == reader.texts("h1") == ["The lesson"]
    assert "width=device-width" in [entry.get("content", "") for entry in reader.all("meta")][1]
    expected = [
        "Findings",
        EXERCISES,
        NEXT,
        PHOTOGRAPHS,
        "How to read the tables",
        "Sources",
    ]
    assert reader.texts("h2") == expected


def test_the_contents_lead_to_every_heading():
    reader = made(findings=["A."])
    links = [entry for entry in reader.all("a") if "nav" in entry["inside"]]
    anchors = {entry["id"]: entry["text"] for entry in reader.all("h2")}
    assert [(link["href"].removeprefix("#"), link["text"]) for link in links] == list(anchors.items())
    identities = [entry["id"] for entry in reader.tags if "id" in entry]
    assert len(identities) == len(set(identities))


def test_nothing_is_loaded_from_anywhere(picture):
    text = page(ROWS, [Picture(NEXT, "curves", "Both curves.", picture)], ["A."], ["B."], title="The lesson", about={})
    reader = Reader(text)
    assert not reader.all("script", "link", "iframe", "object", "embed", "video", "audio", "source", "base")
    for entry in reader.tags:
        assert not any(name.startswith("on") or name in ("srcset", "action", "background") for name in entry)
        assert entry.get("src", "data:").startswith("data:")
        assert "href" not in entry or entry["tag"] == "a"
    assert not re.search(r"url\(|@import|@font-face", text)


def test_pictures_are_in_the_page_itself_with_words_for_who_does_not_see_them(picture):
    first, second = Picture(NEXT, "curves", "Both curves.", picture), Picture(EXERCISES, "sizes", "By size.", picture)
    reader = made(pictures=[first, second])
    images = reader.all("img")
    # In the order of the page, which is that of the sections.
    assert [image["alt"] for image in images] == ["sizes", "curves"]
    assert reader.texts("figcaption") == ["Figure 1. By size.", "Figure 2. Both curves."]
    for image in images:
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert content == picture
        width, height = Image.open(io.BytesIO(content)).size
        assert (int(image["width"]), int(image["height"])) == (width // 2, height // 2) == (4 * 96, 3 * 96)


def test_every_row_shows_its_means_with_standard_errors_and_the_lessons_figures():
    reader = made()
    plain = cells(reader, "plain")
    for name, lesson in (("train", "0.42"), ("test", "4.08")):
        values = ROWS[0].values[name]
        assert plain[name] == f"{values.mean():.2f} ± {sem(values):.2f}lesson {lesson}"
    assert (plain["parameters"], plain["epochs"], plain["seeds"]) == ("21,501", "200", "6")
    assert cells(reader, "dropout")["epochs"] == "22.5*" and "lesson" not in cells(reader, "dropout")["test"]
    assert plain["seconds"] == f"{ROWS[0].seconds:.1f}"
    nothing = dict.fromkeys(("train", "parameters", "epochs", "seeds", "seconds"), "")
    assert cells(reader, "as today") == {**nothing, "test": "3.88"}
    values = ROWS[3].values["test"]
    assert cells(reader, "small")["test"] == f"{values.mean():.1f} ± {sem(values):.1f}"
    assert reader.texts("caption") == ["RMSE in hours", "RMSE in hours", "accuracy in %"]


def test_every_line_of_a_table_has_as_many_cells_as_its_head():
    reader = made()
    counts = []
    starts = [place for place, entry in enumerate(reader.tags) if entry["tag"] == "tr"] + [len(reader.tags)]
    for start, end in pairwise(starts):
        line = [entry for entry in reader.tags[start + 1 : end] if entry["tag"] in ("th", "td")]
        counts.append((line[0].get("scope"), len(line)))
    width = 0
    for scope, count in counts:
        width = count if scope == "col" else width
        assert count == width


def test_tables_scroll_and_can_be_reached_by_keyboard():
    regions = [entry for entry in made().tags if entry.get("class") == "scroll"]
    assert len(regions) == 3
    assert all(entry["tabindex"] == "0" and entry["role"] == "region" and entry["aria-label"] for entry in regions)


def test_columns_that_hold_nothing_are_left_out():
    heads = [entry["text"] for entry in made([BASELINE]).all("th") if entry.get("scope") == "col"]
    assert heads == ["", "test"]


def test_a_section_of_two_figures_has_two_tables():
    reader = made([row(NEXT, "a"), row(NEXT, "b", figure="loss", unit="hours squared"), row(NEXT, "c")])
    assert reader.texts("caption") == ["RMSE in hours", "loss in hours squared"]
    assert [text.removesuffix("100, 50 nodes") for text in reader.texts("th") if "nodes" in text] == ["a", "c", "b"]


def test_what_diverged_is_told():
    some = row(EXERCISES, "some", values={"test": np.array([np.nan, np.inf, 3.0, 4.0, 3.0, 4.0])})
    lost = row(EXERCISES, "every", values={"test": np.full(6, np.nan)})
    alone = row(EXERCISES, "one", 1, values={"test": np.array([np.nan])})
    reader = made([some, lost, alone])
    result = [cells(reader, name)["test"] for name in ("some", "every", "one")]
    assert result == ["3.50 ± 0.292 diverged", "all 6 diverged", "diverged"]
    assert any("diverged where" in text for text in reader.texts("p"))
    assert not any("diverged" in text for text in made().texts("p"))


def test_notes_stand_before_everything_else_and_findings_before_the_sections():
    reader = made(notes=["SIMULATED WEATHER", "TEST IMAGES SEEN"], findings=["One is better (p < 0.05).", "3 +- 1."])
    order = [entry["text"] for entry in reader.all("h1", "p", "nav", "h2")]
    assert order[:3] == ["The lesson", "SIMULATED WEATHER", "TEST IMAGES SEEN"]
    listed = [entry["text"] for entry in reader.all("li") if "nav" not in entry["inside"]]
    assert listed == ["One is better (p < 0.05).", "3 ± 1."]


def test_sections_have_their_own_words_and_the_page_its_lead():
    texts = made(about={NEXT: "What comes next."}, lead="A whole day.").texts("p")
    assert texts.count("What comes next.") == texts.count("A whole day.") == 1


def test_the_page_says_where_data_come_from_and_how_it_is_made_anew():
    reader = made(command="python -m experiments.lesson --data zenodo", made="On 2 cores.")
    assert reader.texts("pre") == ["python -m experiments.lesson --data zenodo"]
    assert "On 2 cores." in reader.texts("p") and "CC BY 4.0" in "".join(reader.texts("dd"))
    reader = made(sources=[Source("Mine", "Own work.")])
    assert (reader.texts("dt"), reader.texts("dd")) == (["Mine"], ["Own work."])


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_no_text_is_taken_for_html(text):
    # What a parser reads of ends of lines, and of characters that no document may hold, is its own affair.
    text = "<b onclick='x'>&amp;\"" + "".join(c for c in text if c.isprintable())
    rows = [row(text, text, what=text, figure=text, unit="hours"), row(NEXT, "b")]
    pictures = [Picture(text, text, text, PNG)]
    sources = [Source(text, text)]
    more = {"lead": text, "command": text, "made": text, "sources": sources}
    reader = made(rows, pictures, [text], [text], title=text, about={text: text}, **more)
    rendered = text.replace(" +- ", " ± ")
    assert not reader.all("b")
    assert reader.texts("title") == reader.texts("h1") == [rendered]
    assert reader.texts("dt") == reader.texts("dd") == reader.texts("pre") == [rendered]
    assert reader.all("img")[0]["alt"] == rendered
    assert [entry["text"] for entry in reader.all("p") if entry.get("class") == "note"] == [rendered]


PNG = png(Figure(figsize=(1, 1)))


def test_a_page_of_nothing_is_a_page():
    assert made([]).texts("h2") == ["Sources"]


def test_pictures_alone_make_a_section(picture):
    assert "Gallery" in made(pictures=[Picture("Gallery", "a", "b", picture)]).texts("h2")


def test_words_about_an_unknown_section_are_refused():
    with pytest.raises(InputError, match="about must name sections of the rows or pictures, got Nxt steps"):
        made(about={"Nxt steps": "?"})


@pytest.mark.parametrize("content", [b"", b"GIF89a" + bytes(30), b"\x89PNG\r\n\x1a\n"])
def test_pictures_that_are_no_png_are_refused(content):
    with pytest.raises(InputError, match="curves must be a PNG"):
        made(pictures=[Picture(NEXT, "curves", "", content)])


def test_rows_that_do_not_fit_their_seeds_are_refused():
    with pytest.raises(InputError, match="one test value for each of its seeds"):
        made([row(NEXT, "a", values={"test": np.ones(2)})])
