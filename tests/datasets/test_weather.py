"""What the lesson makes of the weather table, and where the table is looked for."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from jaxdl.datasets import place_of, weather
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
    dataset = weather(os.environ["JAXDL_DATA"], days=days, places=places)
    inputs, targets, weights = dataset.examples
    assert inputs.shape == (rows, features) and targets.shape == (rows, 1) and weights.shape == (rows,)
    today = inputs[:, dataset.columns.index("BASEL_sunshine")].astype(np.float64)
    _, rest = train_test_split(np.arange(rows), test_size=0.3, random_state=0)
    _, test = train_test_split(rest, test_size=0.5, random_state=0)
    error = np.sqrt(np.mean((today[test] - targets[test, 0]) ** 2))
    assert error == pytest.approx(persistence, rel=1e-7 if days == 1096 else 1.3e-5)


@real
def test_auto_takes_the_real_file():
    dataset = weather()
    assert dataset.source.startswith("file:") and dataset.note is None
    assert dataset.rows[0] == "2000-01-01" and dataset.rows[-1] == "2002-12-31"


def test_rows_are_today_and_targets_tomorrow(tmp_path):
    path = write(tmp_path, LINES)
    dataset = weather(path, days=20)
    inputs, targets, weights = dataset.examples
    assert (inputs.shape, targets.shape, weights.tolist()) == ((20, 89), (20, 1), [1.0] * 20)
    assert {array.dtype for array in dataset.examples} == {np.dtype("float32")}
    assert {type(array) for array in dataset.examples} == {np.ndarray}
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
    dataset = weather(write(tmp_path, LINES), days=days)
    assert len(dataset.rows) == len(dataset.examples.targets) == rows


def test_places_and_target(tmp_path):
    dataset = weather(write(tmp_path, LINES), places=["KASSEL", "DE_BILT"], target="MALMO_temp_max")
    assert {place_of(column) for column in dataset.columns} == {"DE_BILT", "KASSEL"}
    assert dataset.columns[0] == "DE_BILT_cloud_cover" and len(dataset.columns) == 17
    np.testing.assert_array_equal(dataset.examples.targets[:, 0], TABLE["MALMO_temp_max"].to_numpy(np.float32)[1:])


@given(st.lists(st.sampled_from(["BASEL", "DE_BILT", "MALMO"]), min_size=1))
def test_inputs_are_the_columns_that_are_named(places):
    whole, part = weather("simulated:5"), weather("simulated:5", places=places)
    chosen = [whole.columns.index(column) for column in part.columns]
    assert chosen == sorted(chosen) and {place_of(column) for column in part.columns} == set(places)
    np.testing.assert_array_equal(part.examples.inputs, whole.examples.inputs[:, chosen])


def test_a_place_that_begins_like_another_is_not_it(tmp_path):
    lines = ["DATE,MONTH,DE_sunshine,DE_BILT_sunshine,BASEL_sunshine", "20000101,1,1,2,3", "20000102,1,4,5,6"]
    assert weather(write(tmp_path, lines), places=["DE"]).columns == ("DE_sunshine",)
    assert weather(write(tmp_path, lines), places=["DE_BILT"]).columns == ("DE_BILT_sunshine",)


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
    assert weather(tmp_path).source == f"file:{only}"
    write(tmp_path, LINES, "weather/other.csv")
    assert "must hold one table of weather, got other.csv, some.csv. Name the file" in refusal(tmp_path)
    full = write(tmp_path, LINES, "weather/weather_prediction_dataset.csv")
    assert weather(str(tmp_path)).source == weather(tmp_path / "weather").source == f"file:{full}"
    light = write(tmp_path, LINES, "weather/weather_prediction_dataset_light.csv")
    assert weather(tmp_path).source == f"file:{light}"
    direct = write(tmp_path, LINES, "mine.csv")
    assert weather(tmp_path).source == f"file:{direct}"


def test_a_file_of_labels_is_no_table(tmp_path):
    write(tmp_path, LINES, "weather_prediction_bbq_labels.csv")
    assert "must hold a CSV file, itself or in its folder weather, got none" in refusal(tmp_path)
    only = write(tmp_path, LINES, "some.csv")
    assert weather(tmp_path).source == f"file:{only}"


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert f"{tmp_path} cannot be read (Permission denied)" in refusal(tmp_path)


def test_a_relative_path_and_a_home_are_understood(tmp_path, monkeypatch):
    path = write(tmp_path, LINES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weather("weather.csv").source == weather("~/weather.csv").source == f"file:{path}"


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
    assert weather("auto").source == f"file:{path}"
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path / "empty"))
    assert "JAXDL_DATA must name a folder with the weather data:" in refusal("auto")
    (tmp_path / "empty").mkdir()
    assert "must hold a CSV file, itself or in its folder weather, got none" in refusal("auto")


def test_importing_the_package_stays_light():
    heavy = "pandas", "pooch", "matplotlib", "tensorflow", "requests"
    code = f"import sys, jaxdl.datasets; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
