"""CIFAR-10 by way of tensorflow-datasets: a small archive, from a server on this machine that can misbehave."""

import gzip
import hashlib
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from jaxdl.datasets import _cifar10_tfds, load_cifar10
from jaxdl.datasets._cifar10_files import CLASSES, Arrays
from jaxdl.datasets._cifar10_tfds import Archive, builder, read
from jaxdl.datasets._download import UnreachableError
from jaxdl.errors import InputError

ROOT = Path(__file__).parents[2]
NAME = "cifar-10-binary.tar.gz"
BATCHES = {f"data_batch_{number}.bin": 5 + number for number in (1, 2, 3, 4, 5)} | {"test_batch.bin": 12}
RANDOM = np.random.default_rng(0)


def pictures(count):
    return RANDOM.integers(0, 256, (count, 32, 32, 3), np.uint8), RANDOM.integers(0, 10, count, np.uint8)


def binary(images, labels):
    """Rows as the publisher describes them: a label, 1024 red values row by row, then the green, then the blue."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        rows.append(bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3)))
    return b"".join(rows)


def packed(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    # The same bytes whenever it is made.
    return gzip.compress(content.getvalue(), mtime=0)


def published(content, url=f"http://127.0.0.1:1/{NAME}"):
    return Archive(url, len(content), hashlib.sha256(content).hexdigest())


PICTURES = {name: pictures(count) for name, count in BATCHES.items()}
FILES = {"batches.meta.txt": "\n".join(CLASSES).encode()} | {name: binary(*rows) for name, rows in PICTURES.items()}
CONTENT = packed(FILES)
TRAIN = [np.concatenate(parts) for parts in zip(*list(PICTURES.values())[:5], strict=True)]
WANTED = Arrays(*TRAIN, *PICTURES["test_batch.bin"])


class Server(ThreadingHTTPServer):
    """Serves the archive; its attributes are its faults."""

    daemon_threads = True
    content, status, cut, hang = CONTENT, 200, 0, False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive = published(CONTENT, f"http://127.0.0.1:{self.server_port}/{NAME}")
        self.asked, self.release = [], threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.hang:
            self.server.release.wait(20)
            return
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: len(self.server.content) - self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def _litter(monkeypatch, tmp_path_factory):
    # Each builder of tensorflow-datasets leaves an empty folder.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.getbasetemp()))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.release.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def manual(tmp_path):
    return put(tmp_path / "manual", CONTENT)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    read(folder / "data", manual_dir=put(folder / "manual", CONTENT), archive=published(CONTENT))
    return folder / "data"


@pytest.fixture
def folder(tmp_path, prepared):
    """Where it is prepared already."""
    return shutil.copytree(prepared, tmp_path / "data")


def put(folder, content):
    folder.mkdir()
    (folder / NAME).write_bytes(content)
    return folder


def refusal(*arguments, **keywords):
    with pytest.raises(InputError) as caught:
        read(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return caught.value


def check(read_back):
    arrays, label = read_back
    assert label == "tfds:cifar10/3.0.2"
    for array, wanted in zip(arrays, WANTED, strict=True):
        np.testing.assert_array_equal(array, wanted)
    assert [array.dtype for array in arrays] == [np.uint8, np.int32, np.uint8, np.int32]


# What is prepared, and who can read it


def test_it_is_downloaded_and_prepared_once_and_quietly(server, tmp_path, capfd, monkeypatch):
    # Pooch speaks to the standard error that there was when it was imported, perhaps by an earlier test.
    monkeypatch.setattr(pooch.get_logger(), "handlers", [logging.StreamHandler()])
    check(read(tmp_path, archive=server.archive))
    assert server.asked == [f"/{NAME}"]
    assert (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").is_file()
    output, errors = capfd.readouterr()
    assert output == "" and errors.startswith("Downloading data from") and errors.count("\n") == 1
    check(read(tmp_path, archive=published(b"")))
    assert capfd.readouterr() == ("", "")


def test_the_archive_is_kept_where_tensorflow_datasets_looks_for_it(server, tmp_path):
    read(tmp_path, archive=server.archive)
    assert (tmp_path / "downloads" / "manual" / NAME).read_bytes() == CONTENT
    (tmp_path / "cifar10").rename(tmp_path / "elsewhere")
    check(read(tmp_path, archive=server.archive))
    assert len(server.asked) == 1


def test_the_package_itself_reads_it(folder):
    for split, images, labels in (("train", *WANTED[:2]), ("test", *WANTED[2:])):
        source = tfds.data_source("cifar10", split=split, data_dir=folder)
        assert len(source) == len(labels)
        result = {example["id"].decode(): example for example in source}
        assert sorted(result) == [f"{split}_{row:05d}" for row in range(len(labels))]
        assert list(result) != sorted(result)
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            example = result[f"{split}_{row:05d}"]
            np.testing.assert_array_equal(example["image"], image)
            assert example["label"] == label
    info = tfds.builder("cifar10", data_dir=folder).info
    assert {name: split.num_examples for name, split in info.splits.items()} == {"train": 40, "test": 12}
    assert info.features["label"].names == list(CLASSES)
    assert info.download_size == len(CONTENT)
    assert tfds.builder("cifar10:3.0.2", data_dir=folder).info.file_format.value == "array_record"


def test_it_is_the_data_set_that_the_package_defines(tmp_path):
    stock, made = tfds.builder("cifar10", data_dir=tmp_path), builder(tmp_path)
    assert (made.name, made.version, made.data_dir) == (stock.name, stock.version, stock.data_dir)
    assert made.info.features.to_json() == stock.info.features.to_json()
    assert made.info.supervised_keys == stock.info.supervised_keys
    assert made.info.homepage == stock.info.homepage
    assert made.url_infos == stock.url_infos
    assert tfds.builder_cls("cifar10") is type(stock)


def test_the_builder_prepares_by_itself(tmp_path, manual):
    made = builder(tmp_path / "data", archive=published(CONTENT))
    made.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
    assert len(made.as_data_source("train")) == 40
    check(read(tmp_path / "data", archive=published(b"")))


def test_tensorflow_is_never_loaded_and_the_default_folder_is_the_packages_own(tmp_path, manual):
    program = (
        "import sys, pathlib\n"
        "from jaxdl.datasets import _cifar10_tfds\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"archive = _cifar10_tfds.Archive{tuple(published(CONTENT))}\n"
        f"arrays, _ = _cifar10_tfds.read(manual_dir=pathlib.Path({str(manual)!r}), archive=archive)\n"
        "assert len(arrays.train_images) == 40 and 'tensorflow' not in sys.modules\n"
    )
    surroundings = {**os.environ, "TFDS_DATA_DIR": str(tmp_path / "default")}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    check(read(tmp_path / "default", archive=published(b"")))


def test_what_is_switched_off_is_switched_on_again(folder):
    logger = logging.getLogger("absl")
    before = tqdm_utils._active, logger.level, sys.stdout
    read(folder)
    refusal(folder / "none", manual_dir=folder)
    assert (tqdm_utils._active, logger.level, sys.stdout) == before


# The archive


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"content": CONTENT + b"1"}, "checksum"),
        ({"cut": 100}, "broke off"),
        ({"status": 404}, "got HTTP 404"),
    ],
)
def test_a_bad_download_leaves_nothing(server, tmp_path, faults, message):
    vars(server).update(faults)
    error = refusal(tmp_path, archive=server.archive)
    assert message in str(error) and not isinstance(error, UnreachableError)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    for fault in faults:
        delattr(server, fault)
    check(read(tmp_path, archive=server.archive))


def test_a_server_that_cannot_be_reached(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server.hang = True
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="cannot be reached: no connection"):
        read(tmp_path, archive=published(CONTENT, f"http://127.0.0.1:{port}/{NAME}"))
    with pytest.raises(UnreachableError, match="cannot be reached: no answer in time"):
        read(tmp_path, archive=server.archive, within=0.5)
    assert time.monotonic() - began < 5


def test_an_archive_of_ones_own_is_checked_and_never_replaced(server, tmp_path, manual):
    other = put(tmp_path / "other", CONTENT[:-1])
    message = str(refusal(tmp_path / "data", manual_dir=other, archive=server.archive))
    assert message == (
        f"{other / NAME} must be the archive that was published, got another checksum. Remove it and try again."
    )
    (other / NAME).unlink()
    message = str(refusal(tmp_path / "data", manual_dir=other, archive=server.archive))
    assert message == f"manual_dir must hold {NAME}, got {other} without it. Put it there, or leave out manual_dir."
    check(read(tmp_path / "data", manual_dir=manual, archive=server.archive))
    assert server.asked == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            packed({**FILES, "data_batch_3.bin": b""}),
            "must hold data_batch_3.bin with 3073 bytes an image, got 0",
        ),
        (
            packed({**FILES, "test_batch.bin": bytes(3072)}),
            "test_batch.bin with 3073 bytes an image, got 3072",
        ),
        (packed({"readme.html": b""}), "must hold data_batch_1.bin"),
        (packed({**FILES, "test_batch.bin": b"\x0a" + bytes(3072)}), "cannot be prepared"),
        (CONTENT[:-5000], "cannot be prepared"),
        (b"no archive", "cannot be prepared"),
    ],
)
def test_an_archive_of_something_else(tmp_path, manual, content, message):
    other = put(tmp_path / "other", content)
    assert message in str(refusal(tmp_path / "data", manual_dir=other, archive=published(content)))
    check(read(tmp_path / "data", manual_dir=manual, archive=published(CONTENT)))


# Interruptions


def stopping(stop, after=20):
    examples = _cifar10_tfds._examples

    def stopped(split, rows):
        for key, example in examples(split, rows):
            if key == after:
                stop()
            yield key, example

    return stopped


@pytest.mark.parametrize("kind", [RuntimeError, OSError, KeyboardInterrupt])
def test_a_preparation_that_is_interrupted_leaves_nothing(tmp_path, manual, monkeypatch, kind):
    def stop():
        raise kind("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(_cifar10_tfds, "_examples", stopping(stop))
        with pytest.raises(KeyboardInterrupt if kind is KeyboardInterrupt else InputError) as caught:
            read(tmp_path / "data", manual_dir=manual, archive=published(CONTENT))
    if kind is not KeyboardInterrupt:
        assert f"{tmp_path / 'data' / 'cifar10' / '3.0.2'} cannot be prepared (" in str(caught.value)
        assert "power cut" in str(caught.value) and isinstance(caught.value.__cause__, kind)
    assert list((tmp_path / "data" / "cifar10").iterdir()) == []
    check(read(tmp_path / "data", manual_dir=manual, archive=published(CONTENT)))


def test_a_preparation_that_is_killed_is_begun_again(tmp_path, manual):
    program = (
        "import os, pathlib\n"
        "from jaxdl.datasets import _cifar10_tfds\n"
        "from tests.datasets.test_cifar10_tfds import CONTENT, published, stopping\n"
        "_cifar10_tfds._examples = stopping(lambda: os.kill(os.getpid(), 9))\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "_cifar10_tfds.read(folder / 'data', manual_dir=folder / 'manual', archive=published(CONTENT))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == -9
    (left,) = (tmp_path / "data" / "cifar10").iterdir()
    assert left.name.startswith("incomplete.")
    check(read(tmp_path / "data", manual_dir=manual, archive=published(CONTENT)))


def test_someone_else_prepares_it_meanwhile(tmp_path, manual, monkeypatch):
    examples = _cifar10_tfds._examples

    def other():
        monkeypatch.setattr(_cifar10_tfds, "_examples", examples)
        read(tmp_path / "data", manual_dir=manual, archive=published(CONTENT))

    monkeypatch.setattr(_cifar10_tfds, "_examples", stopping(other))
    check(read(tmp_path / "data", manual_dir=manual, archive=published(CONTENT)))


# What is there, but not to be read


def edit(folder, **changes):
    path = folder / "cifar10" / "3.0.2" / "dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_format_cannot_be_read_without_tensorflow(folder):
    edit(folder, fileFormat="tfrecord")
    assert str(refusal(folder)) == (
        f"{folder / 'cifar10' / '3.0.2'} must be in array_record, which is read without TensorFlow, got tfrecord. "
        "Use another data_dir, or remove it to have it prepared again."
    )
    edit(folder, alternativeFileFormats=["array_record"])
    check(read(folder))


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "flipped"])
def test_a_damaged_file_of_records(folder, damage):
    (path,) = (folder / "cifar10" / "3.0.2").glob("cifar10-test*")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes({"cut": content[:5000], "empty": b"", "flipped": content}[damage])
    message = str(refusal(folder))
    assert f"{folder / 'cifar10' / '3.0.2'} cannot be read (" in message
    assert message.endswith("Remove it to have it prepared again.")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{}", "[", None])
def test_a_damaged_description(folder, name, content):
    path = folder / "cifar10" / "3.0.2" / name
    path.unlink() if content is None else path.write_text(content)
    message = str(refusal(folder))
    assert "cannot be read (" in message and message.endswith("Remove it to have it prepared again.")


def test_a_data_dir_that_is_no_folder(tmp_path, manual):
    (tmp_path / "file").write_text("")
    message = str(refusal(tmp_path / "file", manual_dir=manual, archive=published(CONTENT)))
    assert f"{tmp_path / 'file' / 'cifar10' / '3.0.2'} cannot be" in message


def test_the_word_tfds_reads_what_is_prepared_and_caches_it(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    cache = tmp_path / "cache"
    images = load_cifar10("tfds", cache=cache)
    arrays, label = read(folder)
    assert images.source == label == "tfds:cifar10/3.0.2"
    np.testing.assert_array_equal(images.train.inputs, arrays.train_images)
    np.testing.assert_array_equal(images.test.targets, arrays.test_labels)
    assert any(cache.iterdir())
    again = load_cifar10("tfds", cache=cache)
    np.testing.assert_array_equal(again.train.inputs, images.train.inputs)
