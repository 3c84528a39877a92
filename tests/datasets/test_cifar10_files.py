"""The readers of CIFAR-10's own files, beside plain pickle and struct, and what they make of files that are not so."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.datasets import _cifar10_files
from jaxdl.datasets._cifar10_files import CLASSES
from jaxdl.errors import InputError

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
DRAWN = np.random.default_rng(0)
ROWS = {name: count for count, name in enumerate((*TRAIN, "test_batch"), 1)}
PLANES = {name: DRAWN.integers(0, 256, (count, 3072), dtype=np.uint8) for name, count in ROWS.items()}
LABELS = {name: DRAWN.integers(0, 10, count).tolist() for name, count in ROWS.items()}


def pickled(data, labels, protocol=4, **others):
    return pickle.dumps({"data": data, "labels": labels, **others}, protocol)


def in_python_2(data, labels):
    """As Python 2 wrote it, instruction by instruction."""
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
    kind = b"cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(b"M" + struct.pack("<H", size) for size in data.shape) + b"\x86"
    cells = data.tobytes()
    state = b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", len(cells)) + cells + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x06labels" + numbers + b"U\x04data" + array + state + b"u."


def binary(data, labels):
    return b"".join(bytes([label]) + row.tobytes() for row, label in zip(data, labels, strict=True))


NAMES = pickle.dumps({"label_names": [name.encode() for name in CLASSES]}, 4)
PYTHON = {name: in_python_2(PLANES[name], LABELS[name]) for name in ROWS} | {"batches.meta": NAMES}
BINARY = {f"{name}.bin": binary(PLANES[name], LABELS[name]) for name in ROWS}
BINARY["batches.meta.txt"] = "\n".join((*CLASSES, "")).encode()


def folder_of(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def archive_of(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if entry is not content:
                entry.size = len(content)
            archive.addfile(entry, None if entry is content else io.BytesIO(content))
    return path


def within(folder, files):
    return {f"{folder}/{name}": content for name, content in files.items()}


def expected(names):
    """Pixel by pixel: [row, y, x, channel]."""
    images = [
        [[[row[channel * 1024 + y * 32 + x] for channel in range(3)] for x in range(32)] for y in range(32)]
        for name in names
        for row in PLANES[name]
    ]
    return np.array(images, np.uint8), [label for name in names for label in LABELS[name]]


def agree(arrays, train=TRAIN):
    for images, labels, names in ((*arrays[:2], train), (*arrays[2:], ["test_batch"])):
        wanted = expected(names)
        np.testing.assert_array_equal(images, wanted[0])
        assert labels.tolist() == wanted[1] and (images.dtype, labels.dtype) == (np.uint8, np.int32)


def refusal(path):
    with pytest.raises(InputError) as caught:
        _cifar10_files.read(path)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)
    return str(caught.value)


def test_the_real_files_are_read_as_plain_pickle_reads_them(real_data):
    folder = Path(real_data) / "cifar-10-batches-py"
    arrays = _cifar10_files.read(folder)
    plain = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in (*TRAIN, "test_batch")]
    for images, labels, batches in ((*arrays[:2], plain[:5]), (*arrays[2:], plain[5:])):
        planes = np.concatenate([batch[b"data"] for batch in batches])
        for channel in range(3):
            np.testing.assert_array_equal(images[..., channel].reshape(-1, 1024), np.split(planes, 3, axis=1)[channel])
        assert labels.tolist() == [label for batch in batches for label in batch[b"labels"]]
    assert (len(arrays.train_images), len(arrays.test_images)) == (5438, 1017)
    names = pickle.loads((folder / "batches.meta").read_bytes(), encoding="bytes")[b"label_names"]
    assert tuple(name.decode() for name in names) == CLASSES


@pytest.mark.parametrize("files", [PYTHON, BINARY], ids=["python", "binary"])
def test_a_folder(tmp_path, files):
    agree(_cifar10_files.read(folder_of(tmp_path / "any", files)))


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("form", _cifar10_files.FORMATS, ids=["python", "binary"])
def test_an_archive_is_read_and_nothing_of_it_is_written(tmp_path, monkeypatch, form, prefix):
    files = PYTHON if form is _cifar10_files.PYTHON else BINARY
    path = archive_of(tmp_path / "any.tar.gz", within(prefix + form.folder, {**files, "readme.html": b"<html>"}))
    monkeypatch.chdir(tmp_path)
    agree(_cifar10_files.read(path))
    assert os.listdir() == ["any.tar.gz"]


@pytest.mark.parametrize("count", range(1, 6))
def test_the_last_training_files_may_be_missing(tmp_path, count):
    remaining = {name: PYTHON[name] for name in (*TRAIN[:count], "test_batch")}
    agree(_cifar10_files.read(folder_of(tmp_path / "any", remaining)), TRAIN[:count])


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_that_python_3_wrote(tmp_path, protocol):
    files = {name: pickled(PLANES[name], LABELS[name], protocol, filenames=["a.png"] * 3) for name in ROWS}
    agree(_cifar10_files.read(folder_of(tmp_path / "any", files)))


@pytest.mark.parametrize("missing", [*TRAIN[:4], "test_batch"])
@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_missing_file_is_named(tmp_path, missing, kind):
    files = {name: content for name, content in PYTHON.items() if name != missing}
    if kind == "folder":
        path = folder_of(tmp_path / "any", files)
    else:
        path = archive_of(tmp_path / "any.tar.gz", within("cifar-10-batches-py", files))
    assert f"{path} must hold {missing}, got batches.meta, data_batch_" in refusal(path)


def test_a_folder_without_the_files(tmp_path):
    assert "must hold data_batch_1 and test_batch, got neither" in refusal(tmp_path)
    only = folder_of(tmp_path / "any", {"test_batch": PYTHON["test_batch"]})
    assert "must hold data_batch_1, got test_batch without it" in refusal(only)


# Damaged batches


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BINARY["data_batch_2.bin"][:-1], "must have 3073 bytes for each image, got 6145 bytes: 1 images and a part"),
        (b"", "must be rows of 3072 bytes, at least one, got 0 x 3072"),
        (b"\x0a" + bytes(3072), "labels of data_batch_2.bin in"),
        (b"\x0a" + bytes(3072), "must be whole numbers from 0 to 9, got 10"),
    ],
)
def test_a_damaged_binary_file(tmp_path, content, message):
    assert message in refusal(folder_of(tmp_path / "any", BINARY | {"data_batch_2.bin": content}))


ONE, TWO = PLANES["data_batch_1"], PLANES["data_batch_2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled(TWO, [1]), "labels of data_batch_2 in"),
        (pickled(TWO, [1]), "must be as many as the images, 2, got 1"),
        (pickled(TWO, None), "must be as many as the images, 2, got none"),
        (pickle.dumps({"data": TWO}), "must be as many as the images, 2, got none"),
        (pickled(TWO, [1, 10]), "must be whole numbers from 0 to 9, got 10"),
        (pickled(TWO, [1, -1]), "must be whole numbers from 0 to 9, got -1"),
        (pickled(TWO, [1, "1"]), "must be whole numbers from 0 to 9, got a str"),
        (pickled(TWO, [1, True]), "got a bool"),
        (pickled(TWO[:0], []), "at least one, got 0 x 3072"),
        (pickled(TWO[:, :-1], [1, 2]), "data of data_batch_2 in"),
        (pickled(TWO[:, :-1], [1, 2]), "must be rows of 3072 bytes, at least one, got 2 x 3071"),
        (pickled(TWO.astype(np.int8), [1, 2]), "must be an array of bytes in rows and columns"),
        (pickled(TWO.astype(np.float32), [1, 2]), "must be an array of bytes"),
        (pickled(TWO.reshape(2, 3, 32, 32), [1, 2]), "must be an array of bytes in rows and columns"),
        (pickled(np.asfortranarray(TWO), [1, 2]), "must be an array of bytes"),
        (pickled(TWO.tobytes(), [1, 2]), "must be an array of bytes"),
        (pickle.dumps({"labels": [1, 2]}), "must be an array of bytes"),
        (pickle.dumps([TWO]), "must hold a pickled dict, got a list"),
        (b"", "must be a pickled file of CIFAR-10, got one cut short or damaged"),
        (b"<html>", "the instruction b'<'"),
        (BINARY["data_batch_2.bin"], "data_batch_2 in"),
    ],
)
def test_a_damaged_pickled_file(tmp_path, content, message):
    assert message in refusal(folder_of(tmp_path / "any", PYTHON | {"data_batch_2": content}))


@pytest.mark.parametrize("names", [["airplane"], [], [*CLASSES[1:], CLASSES[0]], "airplane", [1] * 10])
def test_other_classes(tmp_path, names):
    files = PYTHON | {"batches.meta": pickle.dumps({"label_names": names})}
    assert "batches.meta in" in refusal(folder_of(tmp_path / "any", files))
    files = BINARY | {"batches.meta.txt": "\n".join(map(str, names)).encode()}
    message = refusal(folder_of(tmp_path / "other", files))
    assert "must name the classes airplane, automobile," in message and message.endswith("got others. Get it again.")


def test_files_that_are_none_or_too_large(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "any", {name: BINARY[f"{name}.bin"] for name in ()} | PYTHON)
    (folder / "data_batch_3").unlink()
    (folder / "data_batch_3").mkdir()
    assert "data_batch_3 must be a file of at most" in refusal(folder)
    (folder / "data_batch_3").rmdir()
    with (folder / "data_batch_3").open("wb") as file:
        file.truncate(_cifar10_files.LARGEST + 1)
    assert f"got {_cifar10_files.LARGEST + 1} bytes" in refusal(folder)

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot be read (Permission denied). Make it readable or name another." in refusal(folder)
    monkeypatch.setattr(Path, "iterdir", refuse)
    assert f"{folder} cannot be read (Permission denied)" in refusal(folder)
    with pytest.raises(InputError, match="cannot be read"):
        _cifar10_files.find(folder)


# Archives that are none


def link(name, target, kind):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_an_entry_that_is_no_file(tmp_path, kind):
    files = within("cifar-10-batches-py", PYTHON)
    name = "cifar-10-batches-py/data_batch_2"
    path = archive_of(tmp_path / "any.tar.gz", files | {name: link(name, "/etc/passwd", kind)})
    assert f"{name} must be a file of at most" in refusal(path)


def test_names_that_lead_elsewhere_are_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("data_batch_1", "../data_batch_1", "/tmp/data_batch_1", "cifar-10-batches-py/../data_batch_1")
    aside = dict.fromkeys((*names, "cifar-10-batches-py/../cifar-10-batches-py/data_batch_1"), b"x")
    agree(_cifar10_files.read(archive_of(tmp_path / "a.tar.gz", aside | within("cifar-10-batches-py", PYTHON))))
    message = refusal(archive_of(tmp_path / "b.tar.gz", aside))
    assert "must hold the files of CIFAR-10, in one of cifar-10-batches-py, cifar-10-batches-bin, got none" in message
    assert sorted(os.listdir()) == ["a.tar.gz", "b.tar.gz"]


def test_a_file_that_is_far_too_large_is_not_unpacked(tmp_path):
    entry = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    entry.size = 1 << 40
    path = tmp_path / "any.tar.gz"
    path.write_bytes(gzip.compress(entry.tobuf()))
    assert f"got {1 << 40} bytes" in refusal(path)


def test_an_archive_that_is_cut_short_or_has_a_wrong_byte(tmp_path):
    path = archive_of(tmp_path / "any.tar.gz", within("cifar-10-batches-bin", BINARY))
    whole = path.read_bytes()
    for length in (0, 1, 10, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert f"{path} must be an undamaged archive of CIFAR-10, got " in refusal(path)
    for place in (0, 500, len(whole) // 3, len(whole) - 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert f"{path} must be an undamaged archive of CIFAR-10, got " in refusal(path)
    path.write_bytes(gzip.compress(b"no archive" * 1000))
    assert "must be an undamaged archive" in refusal(path)


# Pickles that mean harm


class Call:
    """Pickled as a call, and what is called would be seen."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "call",
    [
        Call(os.mkdir, "made"),
        Call(exec, "open('made', 'w')"),
        Call(open, "made", "w"),
        Call(getattr, "a", "b"),
        Call(np.load, "made"),
        Call(np.ones, (1 << 40,)),
        Call(bytearray, 1 << 40),
        Call(pickle.loads, b""),
    ],
)
def test_nothing_is_called(tmp_path, monkeypatch, call, protocol):
    monkeypatch.chdir(tmp_path)
    files = PYTHON | {"data_batch_2": pickle.dumps({"data": call, "labels": [1, 2]}, protocol)}
    message = refusal(folder_of(tmp_path / "any", files))
    assert "data_batch_2" in message and "must hold images and labels only, got " in message
    if 2 <= protocol <= 4:
        function = call.made[0].__name__
        assert f".{function}. Do not trust this copy" in message
    assert os.listdir() == ["any"]


def test_what_is_refused_is_named():
    with pytest.raises(InputError, match=r"mine must hold images and labels only, got posix\.system\. Do not trust"):
        _cifar10_files.unpickle("mine", b"\x80\x02cposix\nsystem\nU\x02ls\x85R.")


HOSTILE = {
    "a name that takes for ever to hash": b"\x80\x04)" + b"q\x00h\x00\x86" * 60 + b"K\x01\x93.",
    "a name nested too deep to hash": b"\x80\x04)" + b"\x85" * 200_000 + b"K\x01\x93.",
    "a huge string": b"\x80\x02}U\x01aT\xff\xff\xff\x7fabcs.",
    "a string of negative length": b"\x80\x02}U\x01aT\xff\xff\xff\xffabcs.",
    "huge bytes": b"\x80\x04}U\x01a\x8e\xff\xff\xff\xff\xff\xff\xff\x7fs.",
    "a huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff}",
    "a key that takes for ever to hash": b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "a long list nested in itself": b"\x80\x02}]q\x00(" + b"h\x00" * 1000 + b"eK\x01s.",
    "deep nesting": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "too many instructions": b"\x80\x02" + b"]" * 300_000,
    "many large strings of one": b"\x80\x02X\x10\x27\x00\x00"
    + b"a" * 10_000
    + b"q\x00c_codecs\nencode\nq\x01"
    + b"h\x01h\x00U\x06latin1\x86R" * 5000
    + b".",
    "an empty stack": b"\x80\x02.",
    "an instruction without a stack": b"\x80\x02R.",
    "a name without an end": b"\x80\x02cos\nsystem",
    "a name that is no text": b"\x80\x02c\xff\n\xff\n.",
    "a state of a dict": b"\x80\x02}}b.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a call of what was made": b"\x80\x02cnumpy\ndtype\n)R)R.",
    "an odd number of items": b"\x80\x02}(K\x01u.",
    "nothing remembered": b"\x80\x02h\x07.",
    "marks without values": b"\x80\x02(t0.",
    "a persistent id": b"\x80\x02K\x01Q.",
    "an extension": b"\x80\x02\x82\x01.",
    "an object": b"\x80\x02cnumpy\nndarray\n)\x81.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_instructions_end_in_a_clear_error(content):
    with pytest.raises(InputError) as caught:
        _cifar10_files.unpickle("mine", content)
    assert str(caught.value).startswith("mine must ") and len(str(caught.value)) < 300


def test_a_huge_number_in_the_memo_takes_no_memory():
    assert _cifar10_files.unpickle("mine", b"\x80\x02}r\xff\xff\xff\xff.") == {}


NUMPY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
U1 = b"cnumpy\ndtype\nU\x02u1\x85R"


@pytest.mark.parametrize(
    "array",
    [
        NUMPY,
        b"cnumpy\nndarray\n",
        U1,
        NUMPY + b"(K\x01J\xff\xff\xff\x7fM\x00\x0c\x86" + U1 + b"\x89U\x01atb",  # more rows than bytes
        NUMPY + b"(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86" + U1 + b"\x89U\x01atb",  # (-1, -1)
        NUMPY + b"(K\x01J\xff\xff\xff\xffM\x00\x0c\x86" + U1 + b"\x89U\x00tb",
        NUMPY + b"(K\x01K\x01K\x01\x86cnumpy\ndtype\nU\x01O\x85R\x89U\x01atb",  # of objects
        NUMPY + b"(K\x01K\x01K\x01\x86cnumpy\ndtype\n\x89U\x01atb",
        NUMPY + b"(K\x01K\x01K\x01\x86" + U1 + b"\x89]tb",
        U1 + b"(K\x01K\x01K\x01\x86" + U1 + b"\x89U\x01atb",
        NUMPY + b"]b",
    ],
)
def test_hostile_arrays_end_in_a_clear_error(tmp_path, array):
    content = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x01eu."
    message = refusal(folder_of(tmp_path / "any", PYTHON | {"data_batch_2": content}))
    assert "data of data_batch_2" in message


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.text(max_size=5) | st.binary(min_size=1),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5), PLAIN, max_size=5), st.sampled_from([2, 3, 4]))
def test_plain_values_are_read_as_pickle_reads_them(values, protocol):
    assert _cifar10_files.unpickle("mine", pickle.dumps(values, protocol)) == values


@settings(deadline=None)
@given(st.data())
def test_whatever_is_cut_off_or_changed_gives_values_or_a_clear_error(data):
    small = ONE[:, :4]
    content = bytearray(data.draw(st.sampled_from([in_python_2(small, [1]), pickled(small, [1]), NAMES])))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        values = _cifar10_files.unpickle("mine", content)
        _cifar10_files.byte_table("mine", values.get("data"))
    except InputError as error:
        assert str(error).startswith("mine must ")


@settings(deadline=None)
@given(st.lists(st.sampled_from(sorted(_cifar10_files.OPCODES)).map(lambda code: code + b"\x00")))
def test_any_instructions_give_values_or_a_clear_error(codes):
    try:
        assert isinstance(_cifar10_files.unpickle("mine", b"".join(codes)), dict)
    except InputError as error:
        assert str(error).startswith("mine must ")


def test_a_real_batch_that_ends_early(real_data):
    content = (Path(real_data) / "cifar-10-batches-py" / "test_batch").read_bytes()
    for length in (1, 100, 2104, 2150, 2250, len(content) // 2, len(content) - 1):
        with pytest.raises(InputError, match="got one cut short or damaged"):
            _cifar10_files.unpickle("mine", content[:length])


def bomb(kind, size=1 << 31, content=1 << 24):
    """An archive of a few bytes whose first header says that `size` bytes of a name follow."""
    entry = tarfile.TarInfo("x")
    entry.size, entry.type = size, kind
    return gzip.compress(entry.tobuf(format=tarfile.USTAR_FORMAT) + bytes(content), 1)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [1 << 31, _cifar10_files.HEADER + 512])
def test_a_header_that_says_it_is_very_long_is_refused_in_little_memory(kind, size, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(bomb(kind, size))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="must be an undamaged archive of CIFAR-10, got a part that is larger"):
            _cifar10_files.read(tmp_path / "a.tar.gz")
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


def test_an_archive_of_too_many_entries_or_bytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_cifar10_files, "ENTRIES", 3)
    path = archive_of(tmp_path / "a.tar.gz", {f"other/{number}": b"" for number in range(4)})
    with pytest.raises(InputError, match="more than 3 entries"):
        _cifar10_files.read(path)
    monkeypatch.setattr(_cifar10_files, "UNPACKED", 1 << 20)
    path = archive_of(tmp_path / "b.tar.gz", {"other/a": bytes(1 << 21)})
    with pytest.raises(InputError, match="bytes when it is unpacked"):
        _cifar10_files.read(path)
