"""Labels of barbecue weather: the published file, the rule that it follows, and files that are damaged."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxdl.datasets import BASEL, simulated_table, weather
from jaxdl.datasets._weather import RULE
from tests.weather_files import LINES, TABLE, refusal, write

NAME = "weather_prediction_bbq_labels.csv"
DAYS = [line.split(",")[0] for line in LINES[1:]]
# Not what the rule says, so that a test can tell where labels come from.
SAID = [number % 3 == 0 for number in range(len(DAYS))]
LABELS = ["DATE,BASEL_BBQ_weather,DE_BBQ_weather", *(f"{day},{yes},True" for day, yes in zip(DAYS, SAID, strict=True))]


def by_hand(table, place="BASEL"):
    return ((table[f"{place}_precipitation"] == 0) & (table[f"{place}_temp_max"] >= 18)).to_numpy(np.float32)


@pytest.fixture
def path(tmp_path):
    """A table of 40 days with the file of its labels beside it."""
    write(tmp_path, LABELS, NAME)
    return write(tmp_path, LINES)


def test_labels_are_the_files_of_the_next_day(path):
    dataset = weather(path, target=BASEL, days=20)
    assert dataset.examples.targets.shape == (20, 1) and dataset.examples.targets.dtype == np.float32
    np.testing.assert_array_equal(dataset.examples.targets[:, 0], np.float32(SAID)[1:21])
    np.testing.assert_array_equal(dataset.today, np.float32(SAID)[:20])
    assert dataset.labels == NAME and dataset.noise is None and dataset.note is None
    assert dataset.source == f"file:{path}" and dataset.columns == weather(path).columns
    assert weather(path.parent, target=BASEL).source == f"file:{path}"


@pytest.mark.parametrize("place", ["BASEL", "OSLO"])
def test_without_the_file_labels_are_those_of_the_rule(tmp_path, place):
    table = simulated_table(800).rename(columns=lambda column: column.replace("KASSEL", "OSLO"))
    path = write(tmp_path, table.to_csv(index=False).splitlines())
    dataset = weather(path, target=f"{place}_BBQ_weather", days=None)
    assert 0.1 < by_hand(table, place).mean() < 0.6
    np.testing.assert_array_equal(dataset.examples.targets[:, 0], by_hand(table, place)[1:])
    np.testing.assert_array_equal(dataset.today, by_hand(table, place)[:-1])
    assert dataset.labels == RULE


def test_the_rule_holds_for_simulated_weather_too():
    dataset = weather("simulated:800", target=BASEL, days=None)
    np.testing.assert_array_equal(dataset.examples.targets[:, 0], by_hand(simulated_table(800))[1:])
    # The noise that is known is that of the sunshine.
    assert dataset.labels == RULE and dataset.noise is None


def test_the_border_of_the_rule(tmp_path):
    table = pd.DataFrame(
        {
            "DATE": [20000701, 20000702, 20000703, 20000704, 20000705],
            "MONTH": 7,
            "BASEL_precipitation": [0.0, 0.0, 0.0, 0.01, -99.0],
            "BASEL_temp_max": [30.0, 18.0, 17.9, 25.0, 25.0],
        }
    )
    path = write(tmp_path, table.to_csv(index=False).splitlines())
    assert weather(path, target=BASEL).examples.targets[:, 0].tolist() == [1, 0, 0, 0]


def test_the_published_labels_follow_the_rule_on_every_day(real_data):
    published = weather(real_data, target=BASEL, days=None)
    assert published.labels == NAME
    folder = next(path for path in (Path(real_data), Path(real_data, "weather")) if (path / NAME).exists())
    table = pd.read_csv(folder / "weather_prediction_dataset.csv")
    labels = pd.read_csv(folder / NAME)
    assert (labels["DATE"] == table["DATE"]).all() and len(labels) == 3654
    np.testing.assert_array_equal(published.examples.targets[:, 0], labels[BASEL].to_numpy(np.float32)[1:])
    for column in labels.columns[1:]:
        place = column.removesuffix("_BBQ_weather")
        if place != "DE":  # The table calls it De Bilt, and has no such column.
            np.testing.assert_array_equal(labels[column], by_hand(table, place), err_msg=place)


def test_the_checksum_depends_on_the_labels_and_on_the_table(path, tmp_path):
    first = weather(path, target=BASEL)
    assert first.sha256 != weather(path).sha256 and len(first.sha256) == 64
    write(tmp_path, [LABELS[0], LABELS[1].replace("True", "False", 1), *LABELS[2:]], NAME)
    other = weather(path, target=BASEL)
    assert other.sha256 != first.sha256 and weather(path).sha256 == weather(path, days=3).sha256
    write(tmp_path, LABELS, NAME)
    assert weather(path, target=BASEL).sha256 == first.sha256
    cells = LINES[5].split(",")
    write(tmp_path, [*LINES[:5], ",".join([*cells[:-1], "0.25"]), *LINES[6:]])
    assert weather(path, target=BASEL).sha256 != first.sha256


def test_labels_as_other_systems_write_files(path, tmp_path):
    expected = weather(path, target=BASEL)
    write(tmp_path, b"\xef\xbb\xbf" + "\r\n".join([*LABELS, "", ""]).encode(), NAME)
    found = weather(path, target=BASEL)
    np.testing.assert_array_equal(found.examples.targets, expected.examples.targets)
    assert found.sha256 == expected.sha256


def changed(line, old, new):
    return [text.replace(old, new) if number == line else text for number, text in enumerate(LABELS, start=1)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (changed(1, "BASEL", "BASLE"), f"{NAME} must be a CSV file with a column BASEL_BBQ_weather, got 3 columns"),
        (changed(1, "DATE", "DAY"), f"{NAME} must be a CSV file with a column DATE, got 3 columns"),
        (changed(1, "DE_", "BASEL_"), "must name every column once, got 'BASEL_BBQ_weather' more than once"),
        (
            changed(4, "False", "no"),
            f"{NAME}, line 4 (DATE 20000103), column BASEL_BBQ_weather: must be True or False, got 'no'.",
        ),
        (changed(7, "True", "1"), "line 7 (DATE 20000106), column DE_BBQ_weather: must be True or False, got '1'"),
        (changed(3, "False", ""), "column BASEL_BBQ_weather: must be True or False, got an empty cell"),
        (changed(3, ",True", ""), "column DE_BBQ_weather: must be True or False, got an empty cell"),
        (changed(3, "True", "True,True"), f"{NAME} must have 3 cells in every line"),
        (changed(9, "20000108", "20000109"), "must have the days of weather.csv, got 20000109 for 20000108 on line 9."),
        (LABELS[:-1], "must have the days of weather.csv, got 39 days for 40. Put the labels of that table beside it"),
        ([*LABELS, "20000210,True,True"], "got 41 days for 40"),
        (LABELS[:1], "got 0 days for 40"),
        ([*LABELS[:5], *LABELS[6:]], "got 20000106 for 20000105 on line 6"),
        ([], "must hold a table, got an empty file"),
    ],
)
def test_damaged_labels_are_refused_in_one_sentence(path, tmp_path, lines, message):
    write(tmp_path, lines, NAME)
    assert message in refusal(path, target=BASEL)
    # Who asks for the sunshine needs no labels.
    assert len(weather(path).rows) == len(TABLE) - 1


def test_labels_that_are_no_text_are_refused(path, tmp_path):
    write(tmp_path, b"\xff\xfe\x00DATE", NAME)
    assert f"{NAME} must be a CSV file in UTF-8" in refusal(path, target=BASEL)


def test_a_table_without_what_the_rule_needs_is_refused(tmp_path):
    lines = [LINES[0].replace("BASEL_temp_max", "BASEL_temp_maxi"), *LINES[1:]]
    assert refusal(write(tmp_path, lines), target=BASEL) == (
        "weather.csv has no column BASEL_temp_max, from which BASEL_BBQ_weather is computed; "
        "the nearest name is BASEL_temp_maxi."
    )


def test_labels_of_an_unknown_place_are_refused(path):
    assert f"{NAME} must be a CSV file with a column BASLE_BBQ_weather" in refusal(path, target="BASLE_BBQ_weather")
    message = refusal("simulated:10", target="BASLE_BBQ_weather")
    assert "simulated weather has no column BASLE_precipitation" in message
