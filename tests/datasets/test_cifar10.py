"""Where CIFAR-10 is looked for, what it falls back to, and what is kept of it."""

import hashlib
import importlib
import pickle
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jaxdl.datasets import ImageData, _cifar10_files, _download, load_cifar10
from jaxdl.datasets._cifar10_files import CLASSES, Arrays
from jaxdl.datasets._simulated_images import draw
from jaxdl.errors import InputError
from tests.datasets.test_cifar10_files import BINARY, PYTHON, agree, archive_of, folder_of, within
from tests.file_server import files, nowhere, serving

module = importlib.import_module("jaxdl.datasets._cifar10")
ARCHIVE = "cifar-10-binary.tar.gz"


@pytest.fixture
def archive(tmp_path):
    return archive_of(tmp_path / ARCHIVE, within("cifar-10-batches-bin", BINARY))


@pytest.fixture
def server(monkeypatch, archive):
    """Serves the archive, and its checksum is the one that is asked for; JAXDL_DATA names nothing."""
    content = archive.read_bytes()
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("JAXDL_DATA", raising=False)
    monkeypatch.setattr(module, "CHECKSUM", "sha256:" + hashlib.sha256(content).hexdigest())
    with serving(content) as made:
        yield made


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch):
    """The paths that are read and decoded, in order."""
    paths, read = [], _cifar10_files.read
    monkeypatch.setattr(_cifar10_files, "read", lambda path: paths.append(path) or read(path))
    return paths


def arrays(images):
    return Arrays(images.train.inputs, images.train.targets, images.test.inputs, images.test.targets)


def same(one, other):
    assert one._replace(train=None, test=None) == other._replace(train=None, test=None)
    for left, right in zip((*one.train, *one.test), (*other.train, *other.test), strict=True):
        np.testing.assert_array_equal(left, right)
        assert (left.dtype, left.flags.writeable, left.flags.c_contiguous) == (right.dtype, True, True)


def refusal(source, **options):
    with pytest.raises(InputError) as caught:
        load_cifar10(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_real_files(real_data):
    images = load_cifar10()
    folder = Path(real_data) / "cifar-10-batches-py"
    assert images.source == f"file:{folder}" and (images.name, images.note) == ("cifar10", None)
    assert (len(images.train.inputs), len(images.test.inputs)) == (5438, 1017)
    names = pickle.loads((folder / "batches.meta").read_bytes())["label_names"]
    assert images.classes == tuple(names) == CLASSES
    first = pickle.loads((folder / "test_batch").read_bytes(), encoding="bytes")
    np.testing.assert_array_equal(images.test.inputs.transpose(0, 3, 1, 2).reshape(-1, 3072), first[b"data"])
    same(load_cifar10(folder), images)


def test_what_comes_out(tmp_path):
    images = load_cifar10(folder_of(tmp_path / "any", PYTHON))
    assert isinstance(images, ImageData)
    agree(arrays(images))
    assert images.source == f"file:{tmp_path / 'any'}"
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays(images))).hexdigest()
    assert images.sha256 == digest
    for rows in (images.train, images.test):
        assert {type(array) for array in rows} == {np.ndarray}
        assert rows.sample_weight.dtype == np.float32 and rows.sample_weight.tolist() == [1.0] * len(rows.targets)


# Paths


def test_every_form_gives_the_same_images(tmp_path, cache):
    result = [
        load_cifar10(folder_of(tmp_path / "python", PYTHON)),
        load_cifar10(str(folder_of(tmp_path / "binary", BINARY))),
        load_cifar10(archive_of(tmp_path / "p.tar.gz", within("cifar-10-batches-py", PYTHON)), cache=cache),
        load_cifar10(str(archive_of(tmp_path / "b.tgz", within("cifar-10-batches-bin", BINARY))), cache=cache),
    ]
    assert [images.source for images in result] == [
        f"file:{tmp_path / name}" for name in ("python", "binary", "p.tar.gz", "b.tgz")
    ]
    for images in result:
        same(images._replace(source=""), result[0]._replace(source=""))


def test_a_folder_that_holds_them(tmp_path, cache):
    def source():
        return load_cifar10(tmp_path, cache=cache).source

    assert "must hold data_batch_1 and test_batch, itself or in cifar-10-batches-py, cifar" in refusal(tmp_path)
    # From the last that is looked for to the first.
    for name, held in (("cifar-10-binary.tar.gz", BINARY), ("cifar-10-python.tar.gz", PYTHON)):
        path = archive_of(tmp_path / name, within(name[:8] + "-batches-" + ("bin" if held is BINARY else "py"), held))
        assert source() == f"file:{path}"
    for name, held in (("cifar-10-batches-bin", BINARY), ("cifar-10-batches-py", PYTHON)):
        assert source() != f"file:{folder_of(tmp_path / name, held)}" and source() == f"file:{tmp_path / name}"


def test_a_relative_path_and_a_home_are_understood(tmp_path, monkeypatch):
    folder_of(tmp_path / "any.d", PYTHON)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_cifar10("any.d").source == load_cifar10("~/any.d").source == f"file:{tmp_path / 'any.d'}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tdfs", "'tdfs' is no source of images; the nearest word is tfds. Use auto, tfds, simulated[:IMAGES[:SEED]]"),
        ("simulatd", "the nearest word is simulated"),
        ("Auto", "the nearest word is auto"),
        ("xyz", "'xyz' is no source of images. Use auto"),
        ("", "'' is no source of images. Use auto"),
        ("x" * 300, "is no source of images"),
        ("nowhere.tar.gz", "nowhere.tar.gz does not exist. Name a folder or an archive"),
        ("no/where", "no/where does not exist"),
        ("~nobody-of-that-name/x", "does not exist"),
        (Path("/no/where"), "/no/where does not exist"),
        ("simulated:", "simulated images must be simulated[:IMAGES[:SEED]] with whole numbers, got simulated:."),
        ("simulated:many", "got simulated:many"),
        ("simulated:200:0:0", "got simulated:200:0:0"),
        ("simulated:1", "simulated images must be a whole number from 120"),
        ("/dev/null", "/dev/null cannot be read (Not a directory)"),
    ],
)
def test_sources_that_are_none(source, message):
    assert message in refusal(source)


def test_simulated_images_are_those_that_are_drawn():
    with pytest.raises(TypeError):
        load_cifar10("simulated:200", 1)
    images = load_cifar10("simulated:200:7")
    for left, right in zip(arrays(images), draw(200, 7), strict=True):
        np.testing.assert_array_equal(left, right)
    assert (images.source, images.note) == ("simulated:200:seed=7", None)
    assert load_cifar10("simulated:130").source == "simulated:130:seed=0"


# The folder that JAXDL_DATA names


def test_auto_takes_the_folder_that_is_named_and_no_other(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(_download, "get", None)
    path = folder_of(tmp_path / "data" / "cifar-10-batches-bin", BINARY)
    for folder in (path, path.parent):
        monkeypatch.setenv("JAXDL_DATA", str(folder))
        assert load_cifar10(cache=cache).source == f"file:{path}"
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path / "empty"))
    assert "JAXDL_DATA must name a folder with CIFAR-10: " in refusal("auto", cache=cache)
    (tmp_path / "empty").mkdir()
    assert "empty must hold data_batch_1 and test_batch, itself or in" in refusal("auto", cache=cache)
    (path / "data_batch_2.bin").write_bytes(b"1")
    monkeypatch.setenv("JAXDL_DATA", str(path))
    assert "data_batch_2.bin in" in refusal("auto", cache=cache)
    assert files(cache) == []


# The download


def test_auto_downloads_once(server, cache, reads):
    images = load_cifar10(cache=cache, server=f"{server.url}/kriz/")
    agree(arrays(images))
    assert images.source == f"download:{ARCHIVE}" and images.note is None
    assert server.asked == [f"/kriz/{ARCHIVE}"]
    same(load_cifar10(cache=cache, server=nowhere()), images)
    assert reads == [cache / ARCHIVE] and len(server.asked) == 1
    assert [name for name in files(cache) if not name.endswith(".npz")] == [ARCHIVE, f"{ARCHIVE}.checksum"]


def test_the_archive_that_is_asked_for_is_the_published_one():
    known = pytest.importorskip("tensorflow_datasets").__path__[0]
    url, _, sha256, name = (Path(known) / "url_checksums" / "cifar10.txt").read_text().split()
    assert (f"{module.SERVER}/{module.ARCHIVE}", module.CHECKSUM, module.ARCHIVE) == (url, f"sha256:{sha256}", name)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"content": b"other"}, "must have the checksum sha256:"),
        ({"cut": 100}, "broke off. Try again."),
        ({"status": 404}, "must answer with a file, got HTTP 404"),
        ({"status": 503}, "got HTTP 503"),
    ],
)
def test_a_bad_answer_is_an_error_that_leaves_nothing_and_never_falls_back(server, cache, faults, message):
    vars(server).update({"good": server.content} | faults)
    assert message in refusal("auto", cache=cache, server=server.url)
    assert files(cache) == []
    vars(server).update(content=server.good, cut=0, status=200)
    agree(arrays(load_cifar10(cache=cache, server=server.url)))


def test_auto_falls_back_loudly_where_nothing_listens(server, cache, monkeypatch):
    monkeypatch.setattr(module, "draw", lambda images, seed: draw(120, seed))
    address = nowhere()
    with pytest.warns(UserWarning, match="SIMULATED IMAGES, NOT CIFAR-10") as caught:
        images = load_cifar10(cache=cache, server=address)
    assert caught[0].filename == __file__
    assert images.note.startswith(f"SIMULATED IMAGES, NOT CIFAR-10: {address}") and "\n" not in images.note
    assert images.source == "simulated:7200:seed=0" and files(cache) == []


# What was decoded


def decoded(cache):
    (path,) = cache.glob("*.npz")
    return path


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lies(path):
    """Whole and well formed, but with one other pixel."""
    with np.load(path) as file:
        entries = dict(file)
    entries["test_images"][0, 0, 0, 0] ^= 1
    np.savez(path, **entries)


DAMAGES = [
    flipped,
    lies,
    lambda path: path.write_bytes(path.read_bytes()[:-100]),
    lambda path: path.write_bytes(b""),
    lambda path: np.save(path.open("wb"), np.array([None]), allow_pickle=True),
    lambda path: np.savez(path, train_images=np.ones(3)),
]


def test_an_archive_is_decoded_once(archive, cache, reads):
    images = load_cifar10(archive, cache=cache)
    same(load_cifar10(str(archive), cache=cache), images)
    assert reads == [archive] and len(files(cache)) == 1
    # Another one in its place.
    archive_of(archive, within("cifar-10-batches-bin", {**BINARY, "test_batch.bin": BINARY["data_batch_1.bin"]}))
    assert load_cifar10(archive, cache=cache).sha256 != images.sha256
    assert len(reads) == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_decoded_again(server, cache, reads, damage):
    images = load_cifar10(cache=cache, server=server.url)
    damage(decoded(cache))
    same(load_cifar10(cache=cache, server=nowhere()), images)
    same(load_cifar10(cache=cache, server=nowhere()), images)
    assert len(reads) == 2 and len(server.asked) == 1


def test_what_is_damaged_and_cannot_be_decoded_again_is_downloaded(server, cache):
    images = load_cifar10(cache=cache, server=server.url)
    flipped(decoded(cache))
    (cache / ARCHIVE).unlink()
    same(load_cifar10(cache=cache, server=server.url), images)
    assert len(server.asked) == 2
    flipped(decoded(cache))
    flipped(cache / ARCHIVE)
    assert "must have the checksum with which it was downloaded. Remove it" in refusal("auto", cache=cache)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_nothing(archive, cache, monkeypatch, error):
    def save(file, **_):
        file.write(b"half")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", save)
        with pytest.raises(error):
            load_cifar10(archive, cache=cache)
    assert files(cache) == []
    agree(arrays(load_cifar10(archive, cache=cache)))


def test_a_cache_that_cannot_be_written_is_no_error_for_an_archive(archive, tmp_path, monkeypatch, cache):
    (tmp_path / "file").write_text("")
    agree(arrays(load_cifar10(archive, cache=tmp_path / "file" / "cache")))

    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    agree(arrays(load_cifar10(archive, cache=cache)))
    assert files(cache) == []


def test_several_may_start_at_once(server, cache):
    together = threading.Barrier(6)

    def start(_):
        together.wait()
        return load_cifar10(cache=cache, server=server.url).sha256

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(start, range(6)))) == 1
    assert len(files(cache)) == 3
    agree(arrays(load_cifar10(cache=cache, server=nowhere())))


def test_the_cache_is_the_users_unless_given(archive, cache, monkeypatch):
    monkeypatch.setattr(_download, "user_cache", lambda: cache)
    load_cifar10(archive)
    assert decoded(cache)


def test_tensorflow_datasets_is_read_once(cache, monkeypatch):
    calls = []

    def read(folder):
        calls.append(str(folder))
        return draw(120, len(calls)), "tfds:cifar10/3.0.2"

    fake = types.ModuleType("cifar10_tfds")
    fake.read = read
    monkeypatch.setitem(sys.modules, "jaxdl.datasets._cifar10_tfds", fake)
    monkeypatch.setattr(sys.modules["jaxdl.datasets"], "_cifar10_tfds", fake, raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", "one")
    images = load_cifar10("tfds", cache=cache)
    assert images.source == "tfds:cifar10/3.0.2" and images.note is None
    same(load_cifar10("tfds", cache=cache), images)
    monkeypatch.setenv("TFDS_DATA_DIR", "two")
    assert load_cifar10("tfds", cache=cache).sha256 != images.sha256
    assert calls == ["one", "two"]
