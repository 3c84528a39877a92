"""The code beside an exported model: tables by name, errors that name the row, and files larger than the memory."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxdl import _files
from jaxdl.__main__ import main
from jaxdl.errors import InputError
from jaxdl.nn import convnet, mlp
from jaxdl.saving import OutputSpec, predict_script
from jaxdl.saving.export import export_model
from jaxdl.types import Model, Variables

DRAWS = np.random.default_rng(0)
COLUMNS = ["sun", "wind", "rain"]
ROWS = DRAWS.normal(5, 2, (10, 3)).astype(np.float32)
IMAGES = DRAWS.integers(0, 256, (7, 8, 10, 3), np.uint8)


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    """A model whose prediction is sun + 10 wind + 100 rain, three rows at a time."""
    model, weights = mlp(()), Variables({"Dense_0": {"kernel": [[1.0], [10.0], [100.0]], "bias": [0.0]}}, {})
    weights = Variables(jax.tree.map(np.float32, weights.params, is_leaf=lambda leaf: isinstance(leaf, list)), {})
    folder = tmp_path_factory.mktemp("weighted") / "model"
    return export_model(folder, model, weights, ROWS, columns=COLUMNS, outputs=OutputSpec(["sum"]), batch_size=3)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    model = convnet((3,), outputs=2)
    weights = jax.jit(model.init)(jax.random.key(0), IMAGES[:1])
    folder = tmp_path_factory.mktemp("pictured") / "model"
    return export_model(folder, model, weights, IMAGES, outputs=OutputSpec(["cat", "a, b"], "softmax"), batch_size=3)


def run(folder, data, target, capsys):
    """The exit code, and what is said, of the command."""
    code = main(["predict", str(folder), str(data), "-o", str(target)])
    return code, capsys.readouterr().err


def sums(folder, text, tmp_path):
    (tmp_path / "data.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    predict_script.write(folder, str(tmp_path / "data.csv"), str(tmp_path / "found.csv"))
    header, *lines = (tmp_path / "found.csv").read_text().split("\n")
    assert header == "sum" and lines.pop() == ""
    return [float(line) for line in lines]


@pytest.mark.parametrize(
    "text",
    [
        "sun,wind,rain\n1,2,3\n4,5,6\n",
        "rain,sun,wind\n3,1,2\n6,4,5\n",
        "DATE,rain,MONTH,sun,wind,DATE\n20000101,3,1,1,2,x\n,6,,4,5,nan\n",
        b"\xef\xbb\xbfsun,wind,rain\r\n1,2,3\r\n4,5,6",
        '"sun", wind ,rain\n"1", 2.0 ,3e0\n+4,.5e1,"6"\n\n\n',
    ],
    ids=["as they are", "reordered", "with others", "of Windows", "quoted, spaced, and empty lines at the end"],
)
def test_columns_are_taken_by_name(weighted, tmp_path, text):
    assert sums(weighted, text, tmp_path) == [321, 654]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 7])
def test_there_is_a_line_for_each_row(weighted, tmp_path, count):
    lines = [f"{row},0,0" for row in range(count)]
    assert sums(weighted, "\n".join(["sun,wind,rain", *lines]), tmp_path) == list(range(count))


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("sun,wind\n1,2\n", "data.csv lacks 1 of 3 columns: rain."),
        ("a,b,c\n1,2,3\n", "data.csv lacks 3 of 3 columns: sun, wind, rain."),
        ("", "data.csv lacks 3 of 3 columns"),
        ("sun,wind,rain,wind\n1,2,3,4\n", "data.csv has more than once 1 of 3 columns: wind."),
        (
            "sun,wind,rain\n1,2,3\n1,,3\n",
            "data.csv, line 3, column wind: must be a number that float32 can hold, got ''.",
        ),
        (
            "sun,wind,rain\n1,2,nan\n",
            "data.csv, line 2, column rain: must be a number that float32 can hold, got 'nan'.",
        ),
        ("sun,wind,rain\n1,-inf,0\n", "line 2, column wind: must be a number that float32 can hold, got '-inf'."),
        ("sun,wind,rain\n1,2,1e39\n", "line 2, column rain: must be a number that float32 can hold, got '1e39'."),
        ("sun,wind,rain\n1,2,1_000\n", "line 2, column rain: must be a number that float32 can hold, got '1_000'."),
        ("sun,wind,rain\n1,2,0\n1,x y,0\n", "line 3, column wind: must be a number that float32 can hold, got 'x y'."),
        ("sun,wind,rain\n1,2\n", "data.csv, line 2: must have 3 cells as the header has, got 2."),
        ("sun,wind,rain\n1,2,3,4\n", "data.csv, line 2: must have 3 cells as the header has, got 4."),
        ("sun,wind,rain\n1,2,3\n\n1,2,3\n", "data.csv, line 3: must have 3 cells as the header has, got 0."),
        ('sun,wind,rain,text\n1,2,3,"a\nb"\n1,2,x,c\n', "data.csv, line 4, column rain: must be a number"),
        (b"sun,wind,rain\n1,2,3\n1,\xff,0\n", "data.csv, line 3, column wind: must be a number"),
        (b"sun,wind,rain\n1,2,3\x00\n", "data.csv, line 2"),
        ('sun,wind,rain\n1,2,"3', "data.csv, line 2: must be CSV in UTF-8"),
    ],
)
def test_an_error_names_the_row_and_leaves_what_was_there(weighted, tmp_path, capsys, text, output):
    data, target = tmp_path / "data.csv", tmp_path / "found.csv"
    data.write_bytes(text if isinstance(text, bytes) else text.encode())
    target.write_text("earlier")
    code, error = run(weighted, data, target, capsys)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and output in error
    assert target.read_text() == "earlier" and {path.name for path in tmp_path.iterdir()} == {"data.csv", "found.csv"}


def test_an_error_late_in_a_file_is_found_at_its_line(weighted, tmp_path, capsys):
    lines = ["sun,wind,rain", *["1,2,3"] * 100]
    lines[77] = "1,two,3"
    (tmp_path / "data.csv").write_text("\n".join(lines))
    code, error = run(weighted, tmp_path / "data.csv", tmp_path / "found.csv", capsys)
    assert code == 2 and "line 78, column wind" in error and not (tmp_path / "found.csv").exists()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_every_float32_that_is_written_is_read_again(values):
    names = [f"c{number}" for number in range(len(values))]
    lines = [",".join(names), ",".join(str(np.float32(value)) for value in values)]
    (result,) = predict_script.read_table(lines, names[::-1], "t.csv", 5)
    assert result.tobytes() == np.array([values[::-1]], np.float32).tobytes()


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_cell_is_a_number_or_is_refused_by_name(cell):
    try:
        expected = np.float32(cell.replace("_", "?"))
    except ValueError:
        expected = np.float32(np.nan)
    if np.isfinite(expected):
        assert np.float32(predict_script._numbers([cell, "1"], ["a", "b"], "line 2")).tolist() == [expected, 1]
    else:
        with pytest.raises(predict_script.DataError, match=r"^line 2, column a: must be a number"):
            predict_script._numbers([cell, "1"], ["a", "b"], "line 2")


@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a mark of byte order"])
def test_predictions_go_from_the_standard_input_to_the_standard_output(begin, weighted):
    call = [sys.executable, str(weighted / "predict.py"), "-"]
    done = subprocess.run(call, input=begin + b"sun,wind,rain\r\n1,2,3\r\n", capture_output=True, check=True)
    assert done.stdout == b"sum\n321.0\n"


def test_a_reader_that_has_had_enough_is_no_error(weighted, tmp_path):
    (tmp_path / "data.csv").write_text("sun,wind,rain\n" + "1,2,3\n" * 50_000)
    for program in ([str(weighted / "predict.py")], ["-m", "jaxdl", "predict", str(weighted)]):
        call = [sys.executable, *program, str(tmp_path / "data.csv")]
        process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout.readline() == b"sum\n"
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (141, b"")


def test_a_batch_of_no_rows_is_refused(weighted):
    for size in (0, -3):
        with pytest.raises(predict_script.DataError, match="at least 1 row"):
            predict_script.load(weighted, batch_size=size)
        with pytest.raises(InputError, match="at least 1 row"):
            export_model(weighted / "new", mlp(()), Variables({}, {}), ROWS, batch_size=size)


def test_a_file_that_cannot_be_written_is_called_by_its_own_name(weighted, tmp_path, capsys):
    (tmp_path / "data.csv").write_text("sun,wind,rain\n1,2,3\n")
    code, output = run(weighted, tmp_path / "data.csv", tmp_path / "none" / "p.csv", capsys)
    assert code == 2 and f"{tmp_path}/none/p.csv cannot be written" in output


def test_a_device_is_written_and_not_replaced(weighted, tmp_path):
    (tmp_path / "data.csv").write_text("sun,wind,rain\n1,2,3\n")
    predict_script.write(weighted, str(tmp_path / "data.csv"), "/dev/null")
    assert Path("/dev/null").is_char_device()


def test_arrays_may_have_any_number_of_rows_and_any_kind_of_number(weighted):
    model = predict_script.load(weighted)
    for rows in (ROWS, ROWS[:1], ROWS[:0], ROWS.astype(np.float64), np.arange(12).reshape(4, 3), [[1, 2, 3]]):
        wanted = np.asarray(rows, np.float64) @ [[1.0], [10.0], [100.0]]
        np.testing.assert_allclose(model.predict(rows), wanted, rtol=1e-6)


def test_one_program_serves_every_number_of_rows(weighted, compilations):
    model = predict_script.load(weighted, batch_size=4)
    with compilations() as names:
        for count in (1, 3, 4, 5, 9):
            model.predict(ROWS[:count])
    assert len(names) == 1


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (ROWS[:, :2], "must be float32 of shape ('rows', 3), got float32 of shape (10, 2)"),
        (ROWS[0], "must be float32 of shape"),
        (1.0, "must be float32 of shape"),
        ([["a", "b", "c"]], "got <U1 of shape (1, 3)"),
        (np.where(np.arange(30).reshape(10, 3) == 13, np.nan, ROWS), "inputs, row 4: must hold numbers that float32"),
        (np.where(np.arange(30).reshape(10, 3) == 13, 1e39, ROWS.astype(float)), "row 4: must .* got 1e\\+39"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(weighted, inputs, output):
    with pytest.raises(predict_script.DataError, match=output if "\\" in output else re.escape(output)):
        predict_script.load(weighted).predict(inputs)


def test_images_are_whole_numbers_of_a_byte(pictured):
    model = predict_script.load(pictured)
    np.testing.assert_array_equal(model.predict(IMAGES.astype(np.int64)), model.predict(IMAGES))
    np.testing.assert_allclose(model.predict(IMAGES).sum(1), 1, rtol=1e-6)
    with pytest.raises(predict_script.DataError, match="must be uint8"):
        model.predict(IMAGES / 255)
    with pytest.raises(predict_script.DataError, match="row 0: must hold numbers that uint8 can hold, got 300"):
        model.predict(np.full_like(IMAGES, 300, dtype=np.int32))


def test_images_of_a_file_and_pictures_of_a_folder_are_predicted_alike(pictured, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("not a picture")
    (tmp_path / "folder" / "deeper").mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / "folder" / f"{number}.PNG")
    texts = {}
    for name in ("images.npy", "folder", "folder/5.PNG"):
        predict_script.write(pictured, str(tmp_path / name), str(tmp_path / "found.csv"))
        texts[name] = (tmp_path / "found.csv").read_text().splitlines()
    assert texts["images.npy"][0] == 'class,probability,cat,"a, b"'
    assert texts["folder"] == ["file," + texts["images.npy"][0]] + [
        f"{number}.PNG,{line}" for number, line in enumerate(texts["images.npy"][1:])
    ]
    assert texts["folder/5.PNG"] == [texts["folder"][0], texts["folder"][6]]


def broken(tmp_path, name):
    path = tmp_path / name
    match name:
        case "text.npy" | "text.png":
            path.write_text("no picture, no array")
        case "empty.npy":
            path.touch()
        case "cut.npy":
            np.save(path, IMAGES)
            path.write_bytes(path.read_bytes()[:-1])
        case "objects.npy":
            np.save(path, np.array([{}], object))
        case "wide.npy":
            np.save(path, IMAGES[:, :, :4])
        case "wide.png":
            Image.fromarray(IMAGES[0, :, :4]).save(path)
        case "deep.png":
            Image.fromarray(np.zeros((8, 10), np.uint16)).save(path)
        case "table.csv":
            path.write_text("a,b\n1,2\n")
    return path


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("text.npy", "must be an array of numbers as numpy.save writes it"),
        ("empty.npy", "must be an array of numbers as numpy.save writes it"),
        ("cut.npy", "must be an array of numbers as numpy.save writes it"),
        ("objects.npy", "must be an array of numbers as numpy.save writes it"),
        ("wide.npy", "must be uint8 of shape ('rows', 8, 10, 3), got uint8 of shape (3, 8, 4, 3)"),
        ("text.png", "text.png must be a picture"),
        ("wide.png", "must be 8 x 10 pixels of 8 bits a color, got 8 x 4 of mode RGB"),
        ("deep.png", "got 8 x 10 of mode I"),
        ("table.csv", "is no .npy file; the model takes uint8 of shape [8, 10, 3]"),
        ("missing.csv", "got nothing of that name"),
        ("missing.npy", "got nothing of that name"),
        ("missing.png", "got nothing of that name"),
    ],
)
def test_files_that_are_something_else_are_refused(pictured, tmp_path, capsys, name, output):
    code, error = run(pictured, broken(tmp_path, name), tmp_path / "found.csv", capsys)
    assert code == 2 and output in error and not list(tmp_path.glob("found*"))


def test_a_table_that_is_missing_and_pictures_for_a_model_of_tables_are_refused(weighted, tmp_path, capsys):
    assert "got nothing of that name" in run(weighted, tmp_path / "missing.csv", tmp_path / "found.csv", capsys)[1]
    assert "the model takes float32 of shape [3]" in run(weighted, tmp_path, tmp_path / "found.csv", capsys)[1]
    (tmp_path / "data.csv").write_text("sun,wind,rain\n1,2,3\n")
    assert "No such file" in run(weighted, tmp_path / "data.csv", tmp_path / "no" / "found.csv", capsys)[1]


@pytest.mark.parametrize("name", ["model.json", "model.stablehlo"])
def test_a_damaged_model_is_refused(weighted, tmp_path, capsys, name):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in weighted.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert f"{name} is damaged: its SHA-256 is not that in SHA256SUMS" in run(folder, "-", "-", capsys)[1]
    (folder / name).unlink()
    assert "holds no exported model" in run(folder, "-", "-", capsys)[1]


def test_two_models_may_say_what_they_like_of_a_row(tmp_path):
    model = Model(lambda key, inputs: Variables({}, {}), lambda weights, inputs, **_: (inputs * 2, {}))
    folder = export_model(tmp_path / "model", model, Variables({}, {}), ROWS, outputs=OutputSpec(["a", "b", "c"]))
    np.testing.assert_array_equal(predict_script.load(folder).predict(ROWS), 2 * ROWS)


MEASURED = """
import importlib.util, re, sys
spec = importlib.util.spec_from_file_location("predict", sys.argv[1])
predict = importlib.util.module_from_spec(spec)
spec.loader.exec_module(predict)
for data in sys.argv[2:]:
    assert predict.main([data, "-o", data + ".found"]) == 0
    print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(weighted, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in weighted.iterdir():
        (folder / path.name).write_bytes(path.read_bytes().replace(b'"batch_size": 3', b'"batch_size": 512'))
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in folder.iterdir() if p.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))
    for name, count in (("small.csv", 2_000), ("large.csv", 200_000)):
        with (tmp_path / name).open("w") as file:
            file.write("sun,wind,rain," + ",".join(f"c{number}" for number in range(20)) + "\n")
            rest = ",0.123456" * 20
            file.writelines(f"{row % 7},{row % 5},0{rest}\n" for row in range(count))
    arguments = [folder / "predict.py", tmp_path / "small.csv", tmp_path / "large.csv"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)], check=True, capture_output=True, text=True
    )
    small, large = (int(line) / 1024 for line in done.stdout.split())
    assert (tmp_path / "large.csv").stat().st_size > 35 * 2**20 and large - small < 10
    with (tmp_path / "large.csv.found").open() as file:
        result = [float(line) for line in list(file)[1:]]
    assert result == [row % 7 + 10 * (row % 5) for row in range(200_000)]


def test_what_is_read_is_never_written_over(weighted, tmp_path, capsys):
    (tmp_path / "data.csv").write_text("sun,wind,rain\n1,2,3\n")
    remaining = (weighted / "weights.safetensors").read_bytes()
    for target in (tmp_path / "data.csv", weighted / "weights.safetensors"):
        code, output = run(weighted, tmp_path / "data.csv", target, capsys)
        assert code == 2 and "must be neither the input" in output
    assert (tmp_path / "data.csv").read_text() == "sun,wind,rain\n1,2,3\n"
    assert (weighted / "weights.safetensors").read_bytes() == remaining


def test_a_folder_without_pictures_is_refused(pictured, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    code, output = run(pictured, tmp_path / "empty", tmp_path / "p.csv", capsys)
    assert code == 2 and "holds 0 pictures" in output and not (tmp_path / "p.csv").exists()


def test_a_prediction_that_is_no_number_is_an_error_that_names_the_row(weighted, tmp_path, capsys):
    (tmp_path / "data.csv").write_text("sun,wind,rain\n" + "1,2,3\n" * 4 + "3e38,3e37,3e38\n")
    code, output = run(weighted, tmp_path / "data.csv", tmp_path / "p.csv", capsys)
    assert code == 2 and "data.csv, row 4: the prediction is not finite" in output and not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00\x00", b""])
def test_a_broken_picture_is_refused(content, pictured, tmp_path, capsys):
    (tmp_path / "cat.png").write_bytes(content)
    code, output = run(pictured, tmp_path / "cat.png", tmp_path / "p.csv", capsys)
    assert code == 2 and "must be a picture" in output


def test_the_names_of_columns_that_are_not_told_are_counted():
    columns = [f"c{number}" for number in range(15)]
    with pytest.raises(predict_script.DataError, match=r"lacks 11 of 15 columns: c4, .*, c12 and 2 more\.$"):
        [*predict_script.read_table([",".join(columns[:4]), "1,2,3,4"], columns, "t.csv", 10)]
    with pytest.raises(predict_script.DataError, match=r"lacks 9 of 15 columns: c6, .*, c13, c14\.$"):
        [*predict_script.read_table([",".join(columns[:6]), "1,2,3,4,5,6"], columns, "t.csv", 10)]


# How a picture is stored whose EXIF has the number: what a viewer undoes.
STORED = {
    1: lambda calls: calls,
    2: lambda calls: calls[:, ::-1],
    3: lambda calls: calls[::-1, ::-1],
    4: lambda calls: calls[::-1],
    5: lambda calls: calls.swapaxes(0, 1),
    6: lambda calls: np.rot90(calls),
    7: lambda calls: np.rot90(calls, 2).swapaxes(0, 1),
    8: lambda calls: np.rot90(calls, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_turned_as_their_exif_says(tmp_path, orientation, channels):
    calls, exif = IMAGES[0, :, :, :channels], Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](calls)).squeeze()
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(predict_script.read_pictures([tmp_path / "a.png"], [8, 10, channels])[0], calls)
    if orientation > 4:
        with pytest.raises(predict_script.DataError, match="must be 10 x 8 pixels of 8 bits a color, got 8 x 10"):
            predict_script.read_pictures([tmp_path / "a.png"], [10, 8, channels])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pictures_stand_on_white(tmp_path, mode):
    red, clear = np.uint8([200, 0, 0]), np.arange(80).reshape(8, 10) % 3 == 0
    if mode in ("RGBA", "LA"):
        picture = Image.fromarray(
            np.dstack([np.broadcast_to(red, (8, 10, 3)), np.where(clear, 0, 255).astype(np.uint8)])
        )
        picture.convert(mode).save(tmp_path / "a.png")
    elif mode == "P":
        picture = Image.fromarray(clear.astype(np.uint8), "P")
        picture.putpalette([*red.tolist(), 0, 0, 255])
        picture.save(tmp_path / "a.png", transparency=1)
    else:
        colors = np.where(clear[..., None], np.uint8([0, 0, 255]), red).astype(np.uint8)
        picture = Image.fromarray(colors).convert(mode)
        picture.save(tmp_path / "a.png", transparency=picture.getpixel((0, 0)))
    shade = (
        red
        if mode in ("RGBA", "P", "RGB")
        else np.full(3, np.asarray(Image.new("RGB", (1, 1), (200, 0, 0)).convert("L")))
    )
    wanted = np.where(clear[..., None], 255, shade)
    np.testing.assert_array_equal(predict_script.read_pictures([tmp_path / "a.png"], [8, 10, 3])[0], wanted)


def test_half_transparent_pixels_are_mixed_with_white_and_opaque_ones_stay(tmp_path):
    pixels = DRAWS.integers(0, 256, (8, 10, 4), np.uint8)
    pixels[:4, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    color, alpha = pixels[..., :3].astype(float), pixels[..., 3:] / 255
    result = predict_script.read_pictures([tmp_path / "a.png"], [8, 10, 3])[0]
    np.testing.assert_array_equal(result[:4], pixels[:4, :, :3])
    np.testing.assert_allclose(result, color * alpha + 255 * (1 - alpha), atol=1)


def test_pictures_of_16_bits_are_refused_and_of_four_inks_are_converted(tmp_path):
    Image.fromarray(np.arange(80, dtype=np.uint16).reshape(8, 10) * 800).save(tmp_path / "deep.png")
    with pytest.raises(predict_script.DataError, match="of 8 bits a color, got 8 x 10 of mode I"):
        predict_script.read_pictures([tmp_path / "deep.png"], [8, 10, 3])
    Image.new("CMYK", (10, 8), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=100)
    result = predict_script.read_pictures([tmp_path / "ink.jpg"], [8, 10, 3])[0]
    np.testing.assert_allclose(result, np.broadcast_to([255, 0, 0], (8, 10, 3)), atol=3)


@pytest.mark.parametrize(
    "block", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"]
)
def test_a_picture_whose_exif_is_damaged_is_read_or_refused(tmp_path, block):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.jpg", exif=block)
    try:
        assert predict_script.read_pictures([tmp_path / "a.jpg"], [8, 10, 3]).shape == (1, 8, 10, 3)
    except predict_script.DataError as error:
        assert "a.jpg must be a picture" in str(error)


def test_masked_rows_are_refused(weighted):
    rows = np.ma.masked_equal([[1.0, 2.0, -9999.0]], -9999.0)
    with pytest.raises(predict_script.DataError, match="inputs must hold a number everywhere, got masked values"):
        predict_script.load(weighted).predict(rows)


def called(x):
    return jax.ffi.ffi_call("evil", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


def of_a_stranger(folder, function, tmp_path, *allowed):
    """The folder of a model whose program is another one, with checksums that are right."""
    copy = shutil.copytree(folder, tmp_path / "stranger")
    rows, checks = jax.ShapeDtypeStruct((3, 3), np.float32), map(jax.export.DisabledSafetyCheck.custom_call, allowed)
    program = jax.export.export(jax.jit(function), disabled_checks=[*checks])(rows)
    (copy / predict_script.PROGRAM).write_bytes(program.serialize())
    retold(copy, lambda about: about["outputs"].update(names=["a", "b", "c"]))
    return copy


def retold(folder, change):
    """Change what model.json says, as a stranger would who makes the checksums right again."""
    about = json.loads((folder / predict_script.ABOUT).read_text())
    change(about)
    (folder / predict_script.ABOUT).write_text(json.dumps(about))
    (folder / predict_script.SUMS).unlink()
    (folder / predict_script.SUMS).write_text(_files.checksum_lines(folder))


def test_a_program_with_a_call_of_its_own_is_refused_before_it_is_compiled(weighted, tmp_path, compilations):
    folder = of_a_stranger(weighted, called, tmp_path, "evil")
    with compilations() as names, pytest.raises(predict_script.DataError, match="calls evil, which is not known"):
        predict_script.load(folder)
    assert names == []


@pytest.mark.parametrize(
    "line",
    [
        'stablehlo.custom_call @evil(%arg0) {backend_config = "4711"}',
        'stablehlo.custom_call @"Sharding"(%arg0) stablehlo.custom_call @"go; there"(%arg0)',
        '"stablehlo.custom_call"(%arg0) <{call_target_name = "evil"}>',
        '"stablehlo.custom_call"(%arg0)',
    ],
)
def test_calls_are_found_however_they_are_written(line):
    with pytest.raises(predict_script.DataError, match="not known to be harmless"):
        predict_script._check_calls("model", line)


def test_calls_that_jax_itself_exports_are_run(weighted, tmp_path):
    def solve(x):
        square = x @ x.T + jnp.eye(len(x))
        return jnp.linalg.cholesky(square) + jax.lax.top_k(jax.lax.erf(x), 1)[0]

    folder = of_a_stranger(weighted, solve, tmp_path)
    rows = np.arange(9, dtype=np.float32).reshape(3, 3)
    np.testing.assert_allclose(predict_script.load(folder).call(rows), solve(rows), rtol=1e-5)


# Models of several arrays, of .npz files.

PORTRAITS = {"image": IMAGES[:, :2, 0, :2].astype(np.float32), "height": np.arange(7, dtype=np.float32)}


@pytest.fixture(scope="module")
def portrayed(tmp_path_factory):
    """A model with the outputs `file`, height + 1, and `sizes`, the image's sums, three rows at a time."""
    model = Model(
        lambda key, inputs: Variables({}, {}),
        lambda weights, x, **_: ({"sizes": (x["image"].sum(1), x["image"].sum(2)), "file": x["height"] + 1}, {}),
    )
    folder = tmp_path_factory.mktemp("portrayed") / "model"
    return export_model(folder, model, Variables({}, {}), PORTRAITS, batch_size=3)


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_of_several_arrays_becomes_a_file_of_several_arrays(portrayed, tmp_path, count, save):
    data, target = tmp_path / "data.npz", tmp_path / "out.npz"
    save(data, **{name: array[:count] for name, array in PORTRAITS.items()})
    done = subprocess.run(
        [sys.executable, portrayed / "predict.py", data, "-o", target], capture_output=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    with np.load(target) as result:
        assert set(result.files) == {"file", "sizes/0", "sizes/1"}
        np.testing.assert_array_equal(result["file"], PORTRAITS["height"][:count] + 1)
        np.testing.assert_array_equal(result["sizes/0"], PORTRAITS["image"][:count].sum(1))
        np.testing.assert_array_equal(result["sizes/1"], PORTRAITS["image"][:count].sum(2))
    first = target.read_bytes()
    assert main(["predict", str(portrayed), str(data), "-o", str(target)]) == 0 and target.read_bytes() == first


WANTED = "hold exactly height (float32 of shape ('rows',)), image (float32 of shape ('rows', 2, 2)), got "


@pytest.mark.parametrize(
    ("change", "output"),
    [
        ({"height": None}, WANTED + "no height."),
        ({"width": ROWS}, WANTED + "width, which is not one of them."),
        ({"height": None, "Height": ROWS}, WANTED + "no height and Height, which is not one of them."),
        ({"image": ROWS[:7]}, "['image'] must be float32 of shape ('rows', 2, 2), got float32 of shape (7, 3)."),
        ({"height": ROWS[:5, 0]}, "['image'] must have 5 rows as 'height' has, got 7."),
        ({"height": np.array(["a"] * 7)}, "['height'] must be float32 of shape ('rows',), got <U1"),
        ({"height": np.where(np.arange(7) == 4, np.nan, 1)}, "['height'], row 4: must hold numbers that float32 can"),
        ({"image": np.full((7, 2, 2), 3e38)}, ", row 0: the prediction sizes/0 is not finite."),
    ],
)
def test_several_arrays_that_do_not_fit_are_refused_by_name(portrayed, tmp_path, capsys, change, output):
    arrays = {name: array for name, array in {**PORTRAITS, **change}.items() if array is not None}
    with pytest.raises(predict_script.DataError, match=f"^inputs.*{re.escape(output)}"):
        predict_script.load(portrayed).predict(arrays)
    np.savez(tmp_path / "data.npz", **arrays)
    code, error = run(portrayed, tmp_path / "data.npz", tmp_path / "out.npz", capsys)
    assert code == 2 and output in error and error.startswith(f"error: {tmp_path}/data.npz")
    assert not list(tmp_path.glob("out*"))


def test_arrays_in_other_containers_are_refused(portrayed):
    model = predict_script.load(portrayed)
    for inputs in (PORTRAITS["image"], (*PORTRAITS.values(),), [*PORTRAITS.values()], {}, None, "text"):
        with pytest.raises(predict_script.DataError, match=re.escape(WANTED + "no height and no image")):
            model.predict(inputs)
    with pytest.raises(predict_script.DataError, match="inputs must have names that are strings"):
        model.predict({**PORTRAITS, 1: ROWS})
    with pytest.raises(predict_script.DataError, match=r"inputs must have different names, got a/b, a/b"):
        model.predict({"a": {"b": ROWS}, "a/b": ROWS})
    lists = {name: array.tolist() for name, array in PORTRAITS.items()}
    np.testing.assert_array_equal(model.predict(lists)["file"], PORTRAITS["height"] + 1)


def test_whole_numbers_and_masks_keep_their_values(tmp_path):
    model = Model(lambda key, inputs: Variables({}, {}), lambda weights, x, **_: ((x["mask"], x["token"] + 1), {}))
    inputs = {"mask": np.array([True, False]), "token": np.array([3, 4], np.int32)}
    exported = predict_script.load(export_model(tmp_path / "model", model, Variables({}, {}), inputs))
    mask, token = exported.predict({"mask": [1, 0], "token": np.array([3, 4], np.int64)})
    assert (mask.dtype, mask.tolist(), token.dtype, token.tolist()) == (bool, [True, False], np.int32, [4, 5])
    for name, wrong in (("mask", [2, 0]), ("mask", [0.5, 0.0]), ("token", [0.5, 1.0]), ("token", [2**40, 1])):
        with pytest.raises(predict_script.DataError, match=rf"inputs\['{name}'\]"):
            exported.predict({**inputs, name: np.array(wrong)})


@pytest.mark.parametrize(
    ("content", "output"),
    [
        (b"", "must be arrays of numbers as numpy.savez writes them"),
        (b"no archive", "must be arrays of numbers as numpy.savez writes them"),
        (b"PK\x03\x04" + bytes(40), "must be arrays of numbers as numpy.savez writes them"),
        ("array", "must be arrays of numbers as numpy.savez writes them"),
        ("objects", "must be arrays of numbers as numpy.savez writes them"),
        ("cut", "must be arrays of numbers as numpy.savez writes them"),
        (None, "must be a .npz file, got no file of that name"),
    ],
)
def test_a_broken_file_of_several_arrays_is_refused(portrayed, tmp_path, capsys, content, output):
    path = tmp_path / "data.npz"
    with path.open("wb") as file:
        if content == "array":
            np.save(file, ROWS)
        elif content == "objects":
            np.savez(file, image=PORTRAITS["image"], height=np.array([{}] * 7, object))
        elif content == "cut":
            np.savez(file, **PORTRAITS)
            file.truncate(file.tell() // 2)
        elif content is not None:
            file.write(content)
    if content is None:
        path.unlink()
    code, error = run(portrayed, path, tmp_path / "out.npz", capsys)
    assert code == 2 and output in error and error.count("\n") == 1 and not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("data", "target"), [("data.csv", "out.npz"), ("data.npz", "-"), ("data.npz", "out.csv")])
def test_a_table_of_a_model_of_several_arrays_is_refused(portrayed, tmp_path, capsys, data, target):
    np.savez(tmp_path / "data.npz", **PORTRAITS)
    (tmp_path / "data.csv").write_text("height\n1\n")
    code, error = run(portrayed, tmp_path / data, target if target == "-" else tmp_path / target, capsys)
    assert code == 2 and "must be a .npz file for a model from height, image to file, sizes/0, sizes/1. Type " in error
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.update(inputs=[]),
        lambda about: about.update(outputs={"names": ["a"]}),
        lambda about: about["inputs"].pop(),
        lambda about: about["inputs"].reverse(),
        lambda about: about["inputs"][0].update(name="image"),
        lambda about: about["inputs"][0].update(name=["height"]),
        lambda about: about["inputs"][0].update(shape=[1]),
        lambda about: about["inputs"][1].update(shape=[2.0, 2]),
        lambda about: about["inputs"][0].update(dtype="object"),
        lambda about: about["outputs"][0].update(name="sizes/0"),
        lambda about: about["outputs"][0].update(shape=[2]),
        lambda about: about.pop("structure"),
        lambda about: about.update(structure=["file"]),
        lambda about: about.update(structure={"file": "sizes/0", "sizes": ["file", "sizes/1"]}),
        lambda about: about.update(structure={"file": 3, "sizes": ["sizes/0", "sizes/1"]}),
        lambda about: about.update(batch_size=0),
        lambda about: about.update(batch_size=10**12),
    ],
)
def test_a_model_json_that_does_not_describe_several_arrays_is_refused(portrayed, tmp_path, change):
    copy = shutil.copytree(portrayed, tmp_path / "stranger")
    retold(copy, change)
    with pytest.raises(predict_script.DataError, match=r"does not describe the model\.stablehlo"):
        predict_script.load(copy)


def test_a_table_with_very_many_columns_is_read_in_linear_time():
    names = [f"column {number}" for number in range(200_000)]
    began = time.process_time()
    (rows,) = predict_script.read_table([",".join(names), ",".join("1" for _ in names)], [*names], "t.csv", 10)
    assert rows.shape == (1, 200_000) and time.process_time() - began < 5


def test_a_name_that_commands_a_terminal_is_shown_as_text(weighted, tmp_path):
    (tmp_path / "data.csv").write_text("sun,wind,rain\n1,2,\x1b[2J\n")
    call = [sys.executable, str(weighted / "predict.py"), str(tmp_path / "data.csv")]
    message = subprocess.run(call, capture_output=True, text=True).stderr
    assert "x1b[2J" in message and "\x1b" not in message


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.clear(),
        lambda about: about.update(inputs=None),
        lambda about: about.update(batch_size=0),
        lambda about: about.update(batch_size="many"),
        lambda about: about.update(batch_size=10**12),
        lambda about: about["inputs"].update(dtype="object"),
        lambda about: about["inputs"].update(shape=[4]),
        lambda about: about["inputs"].update(shape=[3.0]),
        lambda about: about["inputs"].update(columns=["sun", ["wind"], "rain"]),
        lambda about: about["outputs"].update(names=7),
        lambda about: about["outputs"].update(names=["a", "b"]),
        lambda about: about["outputs"].update(link=[]),
    ],
)
def test_a_model_json_that_does_not_describe_its_program_is_refused(weighted, tmp_path, capsys, change):
    copy = shutil.copytree(weighted, tmp_path / "stranger")
    retold(copy, change)
    (tmp_path / "data.csv").write_text("sun,wind,rain\n1,2,3\n")
    code, output = run(copy, tmp_path / "data.csv", tmp_path / "found.csv", capsys)
    assert code == 2 and "does not describe the model.stablehlo" in output


@pytest.mark.parametrize("name", [predict_script.ABOUT, predict_script.PROGRAM, predict_script.SUMS])
def test_a_pipe_in_the_folder_of_a_model_is_refused_and_not_waited_for(weighted, tmp_path, capsys, name):
    copy = shutil.copytree(weighted, tmp_path / "stranger")
    (copy / name).unlink()
    os.mkfifo(copy / name)
    (tmp_path / "data.csv").write_text("sun,wind,rain\n1,2,3\n")
    code, output = run(copy, tmp_path / "data.csv", tmp_path / "found.csv", capsys)
    assert code == 2 and "holds no exported model" in output


def test_a_program_for_another_device_is_refused_in_one_line(weighted, tmp_path, capsys):
    copy = shutil.copytree(weighted, tmp_path / "stranger")
    rows = jax.ShapeDtypeStruct((3, 3), np.float32)
    (copy / predict_script.PROGRAM).write_bytes(
        jax.export.export(jax.jit(lambda x: x), platforms=["tpu"])(rows).serialize()
    )
    retold(copy, lambda about: about["outputs"].update(names=["a", "b", "c"]))
    (tmp_path / "data.csv").write_text("sun,wind,rain\n1,2,3\n")
    code, output = run(copy, tmp_path / "data.csv", tmp_path / "found.csv", capsys)
    assert code == 2 and "cannot be run here" in output and output.count("\n") == 1


def test_names_of_classes_and_files_do_not_command_a_terminal(pictured, tmp_path, capsysbinary):
    copy = shutil.copytree(pictured, tmp_path / "stranger")
    retold(copy, lambda about: about["outputs"].update(names=["cat\x1b[2J", "a, b"]))
    (tmp_path / "pictures").mkdir()
    Image.fromarray(IMAGES[0]).save(tmp_path / "pictures" / "a.png")
    # A name that is no UTF-8 either.
    os.rename(tmp_path / "pictures" / "a.png", os.fsencode(tmp_path / "pictures") + b"/\xff\x1b[2J.png")
    assert main(["predict", str(copy), str(tmp_path / "pictures")]) == 0
    message = capsysbinary.readouterr().out
    assert b"\x1b" not in message and b"\\udcff\\x1b[2J.png" in message
