"""What the lesson makes of the weather table, and where the table is looked for."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from jaxdl.datasets import BASEL, _download, load_weather, place_of, simulated_weather, terms_of
from jaxdl.datasets._weather import CIFAR10, RULE, SIMULATED, WEATHER
from tests.weather_files import HEADER, LINES, TABLE, refusal, write

real = pytest.mark.skipif(not os.environ.get("JAXDL_DATA"), reason="JAXDL_DATA names no folder of real data")


@real
@pytest.mark.parametrize(
    ("days", "places", "rows", "features", "persistence"),
    [
        (1096, None, 1096, 163, 3.877323350410224),
        (1096, ("BASEL",), 1096, 9, 3.877323350410224),
        (3286, ("BASEL",), 3286, 9, 4.2486),
        (None, None, 3653, 163, 3.9858),
        (100_000, None, 3653, 163, 3.9858),
    ],
)
def test_the_figures_of_the_real_file(days, places, rows, features, persistence):
    dataset = load_weather(os.environ["JAXDL_DATA"], days=days, places=places)
    inputs, targets, weights = dataset.data
    assert inputs.shape == (rows, features) and targets.shape == (rows, 1) and weights.shape == (rows,)
    today = inputs[:, dataset.columns.index("BASEL_sunshine")].astype(np.float64)
    _, rest = train_test_split(np.arange(rows), test_size=0.3, random_state=0)
    _, test = train_test_split(rest, test_size=0.5, random_state=0)
    error = np.sqrt(np.mean((today[test] - targets[test, 0]) ** 2))
    assert error == pytest.approx(persistence, rel=1e-7 if days == 1096 else 1.3e-5)


@real
def test_auto_takes_the_real_file():
    dataset = load_weather()
    assert dataset.source.startswith("file:") and dataset.note is None
    assert dataset.rows[0] == "2000-01-01" and dataset.rows[-1] == "2002-12-31"


def test_rows_are_today_and_targets_tomorrow(tmp_path):
    path = write(tmp_path, LINES)
    dataset = load_weather(path, days=20)
    inputs, targets, weights = dataset.data
    assert (inputs.shape, targets.shape, weights.tolist()) == ((20, 89), (20, 1), [1.0] * 20)
    assert {array.dtype for array in dataset.data} == {np.dtype("float32")}
    assert {type(array) for array in dataset.data} == {np.ndarray}
    np.testing.assert_array_equal(inputs, TABLE[HEADER[2:]].to_numpy(np.float32)[:20])
    np.testing.assert_array_equal(targets[:, 0], TABLE["BASEL_sunshine"].to_numpy(np.float32)[1:21])
    assert dataset.columns == tuple(HEADER[2:])
    assert dataset.rows[0] == "2000-01-01" and dataset.rows[-1] == "2000-01-20"
    np.testing.assert_array_equal(dataset.today, TABLE["BASEL_sunshine"].to_numpy(np.float32)[:20])
    assert (dataset.name, dataset.source, dataset.note, dataset.noise) == ("weather", f"file:{path}", None, None)
    assert dataset.labels is None
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("days", "rows"), [(1, 1), (39, 39), (40, 39), (1096, 39), (None, 39)])
def test_the_last_day_has_no_next(tmp_path, days, rows):
    dataset = load_weather(write(tmp_path, LINES), days=days)
    assert len(dataset.rows) == len(dataset.data.targets) == rows


def test_places_and_target(tmp_path):
    dataset = load_weather(write(tmp_path, LINES), places=["KASSEL", "DE_BILT"], target="MALMO_temp_max")
    assert {place_of(column) for column in dataset.columns} == {"DE_BILT", "KASSEL"}
    assert dataset.columns[0] == "DE_BILT_cloud_cover" and len(dataset.columns) == 17
    np.testing.assert_array_equal(dataset.data.targets[:, 0], TABLE["MALMO_temp_max"].to_numpy(np.float32)[1:])


@given(st.lists(st.sampled_from(["BASEL", "DE_BILT", "MALMO"]), min_size=1))
def test_inputs_are_the_columns_that_are_named(places):
    whole, part = load_weather("simulated:5"), load_weather("simulated:5", places=places)
    chosen = [whole.columns.index(column) for column in part.columns]
    assert chosen == sorted(chosen) and {place_of(column) for column in part.columns} == set(places)
    np.testing.assert_array_equal(part.data.inputs, whole.data.inputs[:, chosen])


def test_a_place_that_begins_like_another_is_not_it(tmp_path):
    lines = ["DATE,MONTH,DE_sunshine,DE_BILT_sunshine,BASEL_sunshine", "20000101,1,1,2,3", "20000102,1,4,5,6"]
    assert load_weather(write(tmp_path, lines), places=["DE"]).columns == ("DE_sunshine",)
    assert load_weather(write(tmp_path, lines), places=["DE_BILT"]).columns == ("DE_BILT_sunshine",)


# Bad arguments


def test_a_missing_target(tmp_path):
    lines = [LINES[0].replace("BASEL_sunshine", "BASEL_sunshin"), *LINES[1:]]
    assert refusal(write(tmp_path, lines)) == (
        "weather.csv has no column BASEL_sunshine, which is the target. It has 91 columns; "
        "the nearest name is BASEL_sunshin."
    )


def test_places_that_are_not_there(tmp_path):
    path = write(tmp_path, LINES)
    assert "weather.csv has no place BASLE. It has BASEL, BUDAPEST" in refusal(path, places=["BASEL", "BASLE"])
    assert "the nearest name is BASEL." in refusal(path, places=["BASLE"])
    assert "has no place DE. It has" in refusal(path, places=["DE"])
    assert "places must be a sequence of names, got 'BASEL'. Use None for all" in refusal(path, places="BASEL")
    assert "places must be a sequence of names, got ()" in refusal(path, places=())


@pytest.mark.parametrize("days", [0, -1])
def test_days_below_one(days):
    assert f"days must be at least 1, got {days}. Use None for all." in refusal("simulated:10", days=days)


def test_a_target_that_is_not_there():
    message = refusal("simulated:10", target="BASEL_sunshne")
    assert "simulated weather has no column BASEL_sunshne, which is the target" in message
    assert "the nearest name is BASEL_sunshine" in message


# Where the table is looked for


def test_folders(tmp_path):
    assert "must hold a CSV file, itself or in its folder weather, got none" in refusal(tmp_path)
    only = write(tmp_path, LINES, "weather/some.csv")
    write(tmp_path, LINES, "weather/readme.txt")
    assert load_weather(tmp_path).source == f"file:{only}"
    write(tmp_path, LINES, "weather/other.csv")
    assert "must hold one table of weather, got other.csv, some.csv. Name the file" in refusal(tmp_path)
    full = write(tmp_path, LINES, "weather/weather_prediction_dataset.csv")
    assert load_weather(str(tmp_path)).source == load_weather(tmp_path / "weather").source == f"file:{full}"
    light = write(tmp_path, LINES, "weather/weather_prediction_dataset_light.csv")
    assert load_weather(tmp_path).source == f"file:{light}"
    direct = write(tmp_path, LINES, "mine.csv")
    assert load_weather(tmp_path).source == f"file:{direct}"


def test_a_file_of_labels_is_no_table(tmp_path):
    write(tmp_path, LINES, "weather_prediction_bbq_labels.csv")
    assert "must hold a CSV file, itself or in its folder weather, got none" in refusal(tmp_path)
    only = write(tmp_path, LINES, "some.csv")
    assert load_weather(tmp_path).source == f"file:{only}"


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert f"{tmp_path} cannot be read (Permission denied)" in refusal(tmp_path)


def test_a_relative_path_and_a_home_are_understood(tmp_path, monkeypatch):
    path = write(tmp_path, LINES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_weather("weather.csv").source == load_weather("~/weather.csv").source == f"file:{path}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("zenodoo", "'zenodoo' is no source of weather; the nearest word is zenodo. Use auto, zenodo, zenodo-full"),
        ("simulatd", "the nearest word is simulated"),
        ("Auto", "the nearest word is auto"),
        ("xyz", "'xyz' is no source of weather. Use auto"),
        ("", "'' is no source of weather. Use auto"),
        ("nowhere.csv", "nowhere.csv does not exist. Use auto"),
        ("no/where", "no/where does not exist"),
        (Path("/no/where.csv"), "/no/where.csv does not exist"),
    ],
)
def test_sources_that_are_none(source, message):
    assert message in refusal(source)


def test_auto_takes_the_folder_that_is_named_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxdl.datasets._download.get", None)
    path = write(tmp_path, LINES, "weather/weather_prediction_dataset.csv")
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path))
    assert load_weather("auto").source == f"file:{path}"
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path / "empty"))
    assert "JAXDL_DATA must name a folder with the weather data:" in refusal("auto")
    (tmp_path / "empty").mkdir()
    assert "must hold a CSV file, itself or in its folder weather, got none" in refusal("auto")


def test_importing_the_package_stays_light():
    heavy = "pandas", "pooch", "matplotlib", "tensorflow", "requests"
    code = f"import sys, jaxdl.datasets; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Labels of barbecue weather: the published file, the rule that it follows, and files that are damaged.

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
    dataset = load_weather(path, target=BASEL, days=20)
    assert dataset.data.targets.shape == (20, 1) and dataset.data.targets.dtype == np.float32
    np.testing.assert_array_equal(dataset.data.targets[:, 0], np.float32(SAID)[1:21])
    np.testing.assert_array_equal(dataset.today, np.float32(SAID)[:20])
    assert dataset.labels == NAME and dataset.noise is None and dataset.note is None
    assert dataset.source == f"file:{path}" and dataset.columns == load_weather(path).columns
    assert load_weather(path.parent, target=BASEL).source == f"file:{path}"


@pytest.mark.parametrize("place", ["BASEL", "OSLO"])
def test_without_the_file_labels_are_those_of_the_rule(tmp_path, place):
    table = simulated_weather(800).rename(columns=lambda column: column.replace("KASSEL", "OSLO"))
    path = write(tmp_path, table.to_csv(index=False).splitlines())
    dataset = load_weather(path, target=f"{place}_BBQ_weather", days=None)
    assert 0.1 < by_hand(table, place).mean() < 0.6
    np.testing.assert_array_equal(dataset.data.targets[:, 0], by_hand(table, place)[1:])
    np.testing.assert_array_equal(dataset.today, by_hand(table, place)[:-1])
    assert dataset.labels == RULE


def test_the_rule_holds_for_simulated_weather_too():
    dataset = load_weather("simulated:800", target=BASEL, days=None)
    np.testing.assert_array_equal(dataset.data.targets[:, 0], by_hand(simulated_weather(800))[1:])
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
    assert load_weather(path, target=BASEL).data.targets[:, 0].tolist() == [1, 0, 0, 0]


def test_the_published_labels_follow_the_rule_on_every_day(real_data):
    published = load_weather(real_data, target=BASEL, days=None)
    assert published.labels == NAME
    folder = next(path for path in (Path(real_data), Path(real_data, "weather")) if (path / NAME).exists())
    table = pd.read_csv(folder / "weather_prediction_dataset.csv")
    labels = pd.read_csv(folder / NAME)
    assert (labels["DATE"] == table["DATE"]).all() and len(labels) == 3654
    np.testing.assert_array_equal(published.data.targets[:, 0], labels[BASEL].to_numpy(np.float32)[1:])
    for column in labels.columns[1:]:
        place = column.removesuffix("_BBQ_weather")
        if place != "DE":  # The table calls it De Bilt, and has no such column.
            np.testing.assert_array_equal(labels[column], by_hand(table, place), err_msg=place)


def test_the_checksum_depends_on_the_labels_and_on_the_table(path, tmp_path):
    first = load_weather(path, target=BASEL)
    assert first.sha256 != load_weather(path).sha256 and len(first.sha256) == 64
    write(tmp_path, [LABELS[0], LABELS[1].replace("True", "False", 1), *LABELS[2:]], NAME)
    other = load_weather(path, target=BASEL)
    assert other.sha256 != first.sha256 and load_weather(path).sha256 == load_weather(path, days=3).sha256
    write(tmp_path, LABELS, NAME)
    assert load_weather(path, target=BASEL).sha256 == first.sha256
    cells = LINES[5].split(",")
    write(tmp_path, [*LINES[:5], ",".join([*cells[:-1], "0.25"]), *LINES[6:]])
    assert load_weather(path, target=BASEL).sha256 != first.sha256


def test_labels_as_other_systems_write_files(path, tmp_path):
    expected = load_weather(path, target=BASEL)
    write(tmp_path, b"\xef\xbb\xbf" + "\r\n".join([*LABELS, "", ""]).encode(), NAME)
    result = load_weather(path, target=BASEL)
    np.testing.assert_array_equal(result.data.targets, expected.data.targets)
    assert result.sha256 == expected.sha256


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
    assert len(load_weather(path).rows) == len(TABLE) - 1


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


# The terms of the data name the records that it is downloaded from.


@pytest.mark.parametrize("published", [_download.LIGHT, _download.FULL, _download.LABELS])
def test_every_record_of_the_weather_is_to_be_cited(published):
    assert f"https://doi.org/{published.doi}" in " ".join(WEATHER.cite)


@pytest.mark.parametrize(
    ("name", "source", "terms"),
    [
        ("weather", "file:/home/me/simulated/weather.csv", WEATHER),
        ("weather", "zenodo:10.5281/zenodo.5071376", WEATHER),
        ("weather", "simulated:3654:seed=0", SIMULATED),
        ("cifar10", "tfds:cifar10/3.0.2", CIFAR10),
        ("cifar10", "simulated:7200:seed=0", SIMULATED),
    ],
)
def test_terms_go_by_where_the_data_came_from(name, source, terms):
    assert terms_of(name, source) is terms
