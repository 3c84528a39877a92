"""What a file of weather may look like, and every way in which it can be bad."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdl.datasets import load_weather
from jaxdl.datasets._weather_csv import read_table
from jaxdl.errors import InputError
from tests.weather_files import HEADER, LINES, TABLE, refusal, write


def with_cell(line, column, value):
    """The table with another cell; `line` counts from 1, the header, as in messages."""
    lines = list(LINES)
    cells = lines[line - 1].split(",")
    cells[HEADER.index(column)] = value
    lines[line - 1] = ",".join(cells)
    return lines


def without(columns):
    return TABLE.drop(columns=columns).to_csv(index=False).splitlines()


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + "\r\n".join(LINES).encode(),
        "\n".join(LINES).encode() + b"\n\n\r\n  \n",
        "\n".join([",".join(f'"{name}"' for name in HEADER), *LINES[1:]]).encode(),
        "\n".join(line.replace(",", ", ") if line[0] == "2" else line for line in LINES).encode(),
    ],
    ids=["byte order mark and Windows line ends", "blank lines at the end", "quotes", "spaces"],
)
def test_other_ways_to_write_the_same_table(tmp_path, content):
    expected = read_table(write(tmp_path, LINES, "plain.csv"))
    read = read_table(write(tmp_path, content))
    assert read.columns == expected.columns and np.array_equal(read.dates, expected.dates)
    np.testing.assert_array_equal(read.values, expected.values)


def test_columns_may_come_in_any_order_and_leap_days_are_days(tmp_path):
    lines = ["BASEL_sunshine,MONTH,DATE", "1,2,20000228", "2,2,20000229", "3,3,20000301"]
    dataset = load_weather(write(tmp_path, lines))
    assert dataset.rows == ("2000-02-28", "2000-02-29") and dataset.data.targets.tolist() == [[2.0], [3.0]]


def test_codes_for_missing_values_are_numbers(tmp_path):
    assert -99 in load_weather(write(tmp_path, with_cell(5, "KASSEL_humidity", "-99"))).data.inputs


# Every way in which a table can be bad


@pytest.mark.parametrize("line", [2, 19, 41])
@pytest.mark.parametrize("column", ["BASEL_sunshine", "MALMO_temp_max"])
@pytest.mark.parametrize(
    ("cell", "got"),
    [
        ("sunny", "got 'sunny'"),
        ("", "got an empty cell"),
        (" ", "got an empty cell"),
        ("NaN", "got 'NaN'"),
        ("NA", "got 'NA'"),
        ("inf", "got 'inf'"),
        ("-Infinity", "got '-Infinity'"),
        ("1e39", "got '1e39'"),
        ("True", "got 'True'"),
        ("1;5", "got '1;5'"),
        ("0x10", "got '0x10'"),
    ],
)
def test_a_bad_cell_is_named(tmp_path, line, column, cell, got):
    message = refusal(write(tmp_path, with_cell(line, column, cell)), days=1, places=["BASEL"])
    assert (
        f"weather.csv, line {line} (DATE {20000101 + line - 2 if line < 33 else 20000209}), column {column}:" in message
    )
    assert f"must be a finite number, {got}. Correct the file" in message


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("20000231", "line 3, column DATE: must be a date as YYYYMMDD, got 20000231"),
        ("20001301", "column DATE: must be a date as YYYYMMDD"),
        ("20000100", "column DATE: must be a date as YYYYMMDD"),
        ("0", "column DATE: must be a date as YYYYMMDD, got 0"),
        ("-20000102", "column DATE: must be a date as YYYYMMDD"),
        ("1e30", "column DATE: must be a date as YYYYMMDD"),
        ("20000102.5", "column DATE: must be a date as YYYYMMDD, got 20000102.5"),
        ("2000-01-02", "column DATE: must be a finite number, got '2000-01-02'"),
        ("20000101", "must hold every date once, got DATE 20000101 on line 2 and line 3"),
        ("20000103", "must hold every date once, got DATE 20000103 on line 3 and line 4"),
        ("19991231", "DATE 19991231 on line 3 follows 20000101 and is earlier"),
    ],
)
def test_a_bad_date(tmp_path, cell, message):
    month = "12" if cell == "19991231" else "1"
    lines = with_cell(3, "DATE", cell)
    lines[2] = lines[2].replace(f"{cell},1,", f"{cell},{month},")
    assert message in refusal(write(tmp_path, lines))


def test_days_out_of_order_and_days_left_out(tmp_path):
    backwards = [LINES[0], *reversed(LINES[1:])]
    assert "DATE 20000208 on line 3 follows 20000209 and is earlier" in refusal(write(tmp_path, backwards))
    gap = LINES[:6] + LINES[9:]
    expected = "DATE 20000109 on line 7 follows 20000105 and leaves out 2000-01-06 to 2000-01-08"
    assert expected in refusal(write(tmp_path, gap))


def test_a_month_that_is_not_the_dates(tmp_path):
    message = refusal(write(tmp_path, with_cell(4, "MONTH", "7")))
    assert "line 4 (DATE 20000103), column MONTH: must be the month of the date, got 7" in message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "must hold a table, got an empty file"),
        (["", ""], "must hold a table, got an empty file"),
        (without(["DATE"]), "must be a CSV file with a column DATE, got 90 columns: MONTH, BASEL_cloud_cover"),
        (without(["MONTH"]), "must be a CSV file with a column MONTH, got 90 columns: DATE, BASEL_cloud_cover"),
        ([line.replace(",", ";") for line in LINES], "must be a CSV file with a column DATE, got 1 columns"),
        (["<html>", "<p>Not found</p>"], "must be a CSV file with a column DATE, got 1 columns: <html>"),
        (["", *LINES], "must be a CSV file with a column DATE, got 0 columns"),
        ([LINES[0].replace("BASEL_humidity", "BASEL_pressure"), *LINES[1:]], "got 'BASEL_pressure' more than once"),
        ([LINES[0].replace("BASEL_humidity", "DATE"), *LINES[1:]], "got 'DATE' more than once"),
        (["," + LINES[0], *("0," + line for line in LINES[1:])], "got no name for column 1"),
        (LINES[:1], "must hold at least 2 days, today and tomorrow, got 0"),
        (LINES[:2], "must hold at least 2 days, today and tomorrow, got 1"),
        ([*LINES[:9], LINES[9] + ",1", *LINES[10:]], "must have 91 cells in every line (Error tokenizing data"),
        ([LINES[0], *(line + ",1" for line in LINES[1:])], "must have 91 cells in every line"),
        ([LINES[0], LINES[1] + ",1", *LINES[2:]], "must have 91 cells in every line"),
        ([*LINES[:9], LINES[9].rpartition(",")[0], *LINES[10:]], "column MONTELIMAR_temp_max: must be a finite number"),
        ([*LINES[:9], "", *LINES[9:]], "line 10 (DATE ), column DATE: must be a finite number, got an empty cell"),
    ],
)
def test_a_bad_table(tmp_path, lines, message):
    assert message in refusal(write(tmp_path, lines))


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00\xff", LINES[0].encode("utf-16"), b"\x1f\x8b\x08\x00\x9c"])
def test_a_file_that_is_not_text(tmp_path, content):
    assert "weather.csv must be a CSV file in UTF-8, got something else" in refusal(write(tmp_path, content))


@given(st.binary(max_size=60), st.integers(0, 2000), st.integers(0, 60))
def test_damage_is_refused_or_gives_finite_numbers_and_never_crashes(damage, start, length):
    content = "\n".join(line.rsplit(",", 80)[0] for line in LINES).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weather.csv"
        path.write_bytes(content[:start] + damage + content[start + length :])
        try:
            assert np.isfinite(read_table(path).values.astype(np.float32)).all()
        except InputError as error:
            assert str(error).startswith("weather.csv")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path, LINES)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "weather.csv cannot be read (Permission denied). Name a CSV file that you may read" in refusal(path)


def days(cells, column="OSLO_sunshine"):
    first = np.datetime64("2000-01-01")
    dates = [str(first + number).replace("-", "") for number in range(len(cells))]
    lines = [f"{date},{int(date[4:6])},{cell},1" for date, cell in zip(dates, cells, strict=True)]
    return "\n".join([f"DATE,MONTH,{column},OSLO_humidity", *lines])


@pytest.mark.parametrize("code", ["-9999", "-999.0", "-99.9", "-99", "9999", "-999.9", "99999"])
def test_a_code_for_what_was_not_measured_is_refused_with_its_line_and_column(tmp_path, code):
    (tmp_path / "w.csv").write_text(days([code if number in (5, 7) else number % 9 for number in range(60)]))
    where = rf"w.csv, line 7 \(DATE 20000106\), column OSLO_sunshine: {float(code):.15g} is a code"
    with pytest.raises(InputError, match=where + ".*holds 2 such cells. Fill them"):
        read_table(tmp_path / "w.csv")


@pytest.mark.parametrize(
    "cells",
    [
        [950 + number for number in range(60)],  # a pressure in hPa that reaches 999
        [-99, *[number % 9 for number in range(1999)]],  # as rare as in the measured file
        [number * 20 for number in range(60)],  # radiation
        [999.9, *range(900, 1100)],
    ],
)
def test_numbers_of_nines_among_others_like_them_are_measurements(tmp_path, cells):
    (tmp_path / "w.csv").write_text(days(cells))
    assert len(read_table(tmp_path / "w.csv").values) == len(cells)


@pytest.mark.parametrize(
    ("header", "output"),
    [
        ("date,price,beds", "with a column DATE, got 3 columns: date, price, beds; the nearest name is date."),
        ("price,Date,beds", "with a column DATE, got 3 columns: price, Date, beds; the nearest name is Date."),
        ("DATE,month,beds", "with a column MONTH, got 3 columns: DATE, month, beds; the nearest name is month."),
        ("DATE,beds,moon", "with a column MONTH, got 3 columns: DATE, beds, moon; the nearest name is moon."),
    ],
)
def test_the_nearest_name_may_differ_in_capitals_and_is_not_one_that_is_there(tmp_path, header, output):
    (tmp_path / "houses.csv").write_text(f"{header}\n20000101,1,3\n")
    with pytest.raises(InputError, match=output):
        read_table(tmp_path / "houses.csv")
