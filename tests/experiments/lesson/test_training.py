"""Finished rows on disk: what is saved is what is loaded, or an error that names the file."""

import os
from itertools import chain

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.lesson import training
from experiments.lesson.exercises import BBQ, CIFAR10, EXERCISED, FULL, QUICK, SMALLER, names_of_rates
from experiments.lesson.rows import NO_EPOCHS, Row
from experiments.lesson.training import Trained, load, save
from jaxdl.errors import InputError

SECTION = "The lesson's exercises"


def made(name="plain", section=SECTION, count=3, **changes):
    """What two seeds and more leave, made up."""
    rng = np.random.default_rng(len(name) + count)
    row = Row(
        section,
        name,
        "hidden layers of 100 and 50 nodes — früh",
        "RMSE",
        "°C",
        21501,
        tuple(range(count)),
        {"train": rng.random(count), "validation": rng.random(count), "test": rng.random(count)},
        np.arange(20, 20 + count),
        12.345678901234567,
        {"train": 0.84, "test": 4.05},
        True,
    )._replace(**changes)
    members = np.repeat(np.arange(count), 2)
    history = pd.DataFrame({"member": members, "epoch": np.tile([1, 2], count), "val_rmse": rng.random(2 * count)})
    outputs = {name: rng.random((count, 5, 1)).astype(np.float32) for name in ("validation", "test")}
    return Trained(row, history, outputs)


def assert_equal(one, other):
    for name in Row._fields:
        left, right = getattr(one.row, name), getattr(other.row, name)
        if name == "values":
            assert list(left) == list(right)
            left, right = np.array(list(left.values())), np.array(list(right.values()))
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        else:
            assert type(left) is type(right) and left == right, name
    pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
    assert list(one.outputs) == list(other.outputs)
    for name, array in one.outputs.items():
        assert array.dtype == other.outputs[name].dtype
        np.testing.assert_array_equal(array, other.outputs[name])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"values": {"test": np.array([np.nan, np.inf, -np.inf])}},
        {"values": {}},
        {"epochs": NO_EPOCHS},
        {"printed": {}},
        {"parameters": None},
        {"best": False, "seconds": 0.1 + 0.2},
        {"what": "", "unit": "100 W/m2"},
        {"seeds": (0, 7, 2**32 - 1)},
    ],
)
def test_what_is_saved_is_what_is_loaded(changes, tmp_path):
    done = made(**changes)
    save(tmp_path / "new" / "folder", done)
    assert_equal(load(tmp_path / "new" / "folder", SECTION, "plain"), done)


@given(
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    values=st.lists(st.floats(width=64), min_size=2, max_size=4),
    printed=st.dictionaries(st.sampled_from(["train", "validation", "test"]), st.floats(0, 100)),
)
@settings(max_examples=60, deadline=None)
def test_any_text_and_any_number_comes_back(tmp_path_factory, name, values, printed):
    folder = tmp_path_factory.mktemp("rows")
    done = made(name, count=len(values), what=name, values={"test": np.array(values)}, printed=printed)
    save(folder, done)
    assert_equal(load(folder, SECTION, name), done)


def test_a_row_that_is_not_there_is_none(tmp_path):
    save(tmp_path, made())
    assert load(tmp_path, SECTION, "small") is None and load(tmp_path, "CIFAR-10", "plain") is None


def test_a_row_that_is_saved_again_is_replaced(tmp_path):
    save(tmp_path, made())
    again = made(parameters=7)
    save(tmp_path, again)
    assert_equal(load(tmp_path, SECTION, "plain"), again)
    assert len(list(tmp_path.iterdir())) == 1


# Damage


@pytest.fixture
def file(tmp_path):
    """The file of one row."""
    save(tmp_path, made())
    (path,) = tmp_path.iterdir()
    return path


def refusal(folder):
    with pytest.raises(InputError) as caught:
        load(folder, SECTION, "plain")
    return str(caught.value)


def test_a_truncated_file_is_an_input_error_that_names_it(file):
    content = file.read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        file.write_bytes(content[:length])
        assert refusal(file.parent).startswith(f"{file} is damaged (")
    assert "Remove it; the same command then trains its row again." in refusal(file.parent)


def test_a_bit_that_flips_is_told_or_harms_nothing(file):
    content, whole, message = file.read_bytes(), made(), 0
    for place in range(len(content)):
        flipped = content[place] ^ 1 << place % 8
        file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        try:
            result = load(file.parent, SECTION, "plain")
        except InputError as error:
            assert str(error).startswith(f"{file} is damaged (")
            message += 1
        else:
            # Such as the time of day that a zip file notes.
            assert_equal(result, whole)
    assert message > 0.7 * len(content)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"not a zip file", b"\x00" * 5000])
def test_any_other_file_is_an_input_error(content, file):
    file.write_bytes(content)
    assert refusal(file.parent).startswith(f"{file} is damaged (")


def test_no_code_is_run_from_a_file(file):
    np.savez(file, about=np.array({"section": SECTION}, dtype=object))
    assert refusal(file.parent).startswith(f"{file} is damaged (")


def test_a_file_of_another_row_is_not_taken_for_it(file):
    save(file.parent, made("small"))
    (other,) = set(file.parent.iterdir()) - {file}
    os.replace(other, file)
    assert f"{file} is damaged (it holds small of {SECTION})" in refusal(file.parent)


def test_nothing_half_written_is_ever_read(tmp_path, monkeypatch):
    save(tmp_path, made(parameters=1))

    def cut_off(file, **arrays):
        file.write(b"PK half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(training.np, "savez", cut_off)
    for name in ("plain", "small"):
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, made(name, parameters=2))
    monkeypatch.undo()
    # What was there before stays; what was not there is not there.
    assert load(tmp_path, SECTION, "plain").row.parameters == 1
    assert load(tmp_path, SECTION, "small") is None
    # And what is left of it is in nobody's way.
    save(tmp_path, made("small"))
    assert_equal(load(tmp_path, SECTION, "small"), made("small"))


# Names


def all_rows():
    """The section and the name of every row of the lesson that is trained."""
    weather = [(of.section, of.name) for of in (*SMALLER, *EXERCISED, *BBQ)]
    rates = dict.fromkeys(chain(names_of_rates(QUICK), names_of_rates(FULL)))
    return weather + [(CIFAR10, name) for name in ("dense", "small", *rates)]


def test_all_rows_of_the_lesson_have_files_of_their_own(tmp_path):
    names = all_rows()
    assert len(names) == len(set(names)) == 7 + 9 + 2 + 2 + 11
    for number, (section, name) in enumerate(names):
        save(tmp_path, made(name, section, parameters=number))
    files = sorted(path.name for path in tmp_path.iterdir())
    # Nor do they collide where a file system makes no difference between capitals and others.
    assert len(files) == len({file.lower() for file in files}) == len(names)
    for number, (section, name) in enumerate(names):
        assert load(tmp_path, section, name).row.parameters == number
    assert all(file.isascii() and " " not in file and "," not in file for file in files)


def test_names_with_commas_and_other_sections_are_other_files(tmp_path):
    rows = [("Exercises", "10, 5"), ("Exercises", "1, 05"), ("Exercises", "105"), ("Sizes", "10, 5"), ("Sizes", "one")]
    for number, (section, name) in enumerate(rows):
        save(tmp_path, made(name, section, parameters=number))
    assert [load(tmp_path, *row).row.parameters for row in rows] == [0, 1, 2, 3, 4]
