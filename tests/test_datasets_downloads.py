"""Files that come whole and checked or not at all, whatever the server, the disk and other processes do."""

import gzip
import hashlib
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxdl.datasets import downloads
from jaxdl.errors import InputError
from tests.file_server import files, nowhere, serving

CONTENT = gzip.compress(bytes(range(256)) * 2000, mtime=0)
CHECKSUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(CONTENT) as made:
        yield made


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "a.gz"


def test_a_file_is_downloaded_once(server, path):
    assert downloads.fetch(f"{server.url}/a", CHECKSUM, path) == path
    assert path.read_bytes() == CONTENT and files(path.parent) == ["a.gz", "a.gz.checksum"]
    assert downloads.fetch(f"{nowhere()}/a", CHECKSUM, path) == path == downloads.cached("a.gz", path.parent)
    assert server.asked == ["/a"]


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate"])
def test_a_packed_file_is_kept_as_it_is_whatever_the_server_calls_it(server, path, encoding):
    server.headers = [("Content-Encoding", encoding)]
    assert downloads.fetch(f"{server.url}/a", CHECKSUM, path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"content": CONTENT[:-1]}, f"must have the checksum {CHECKSUM}, and has another. Nothing is kept."),
        ({"content": b""}, "must have the checksum"),
        ({"cut": 1}, "/a broke off. Try again."),
        ({"cut": len(CONTENT)}, "broke off"),
        ({"status": 404}, "must answer with a file, got HTTP 404 Not Found"),
        ({"status": 500}, "got HTTP 500"),
    ],
)
def test_a_bad_answer_leaves_nothing(server, path, faults, message):
    vars(server).update(faults)
    with pytest.raises(InputError) as caught:
        downloads.fetch(f"{server.url}/a", CHECKSUM, path)
    assert message in str(caught.value) and not isinstance(caught.value, downloads.UnreachableError)
    assert files(path.parent) == []


def test_a_server_that_cannot_be_reached_is_told_from_one_that_refuses(server, path):
    with pytest.raises(downloads.UnreachableError, match="cannot be reached: no connection"):
        downloads.fetch(f"{nowhere()}/a", CHECKSUM, path)
    server.hang = True
    began = time.monotonic()
    with pytest.raises(downloads.UnreachableError, match="cannot be reached: no answer in time"):
        downloads.fetch(f"{server.url}/a", CHECKSUM, path, downloads.starting_now(0.3))
    assert time.monotonic() - began < 3 and files(path.parent) == []


def test_no_time_at_all_is_no_bad_address():
    # Whether the answer or its deadline comes first is chance where both are at once: here it is the answer.
    with pytest.raises(downloads.UnreachableError):
        downloads.get("http://127.0.0.1:1/a", downloads.Deadline(0.0, time.monotonic() + 30))


def test_a_deadline_holds_for_all_that_is_asked(server):
    deadline = downloads.starting_now(0.5)
    server.hang = True
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(downloads.UnreachableError):
            downloads.get(f"{server.url}/a", deadline)
    assert time.monotonic() - began < 2


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"the cache folder .*file cannot be written"):
        downloads.fetch(f"{server.url}/a", CHECKSUM, tmp_path / "file" / "a.gz")


def test_what_has_no_checksum_beside_it_is_downloaded_again(server, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT[:100])
    assert downloads.cached("a.gz", path.parent) is None
    assert downloads.fetch(f"{server.url}/a", CHECKSUM, path).read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", ["a.gz", "a.gz.checksum"])
def test_a_damaged_file_is_an_error_that_names_it(server, path, damaged):
    downloads.fetch(f"{server.url}/a", CHECKSUM, path)
    path.with_name(damaged).write_text("sha256:0")
    with pytest.raises(InputError, match=r"a\.gz must have the checksum with which it was downloaded. Remove it"):
        downloads.fetch(f"{server.url}/a", CHECKSUM, path)


def test_several_may_download_at_once(server, path):
    together = threading.Barrier(8)

    def fetch(_):
        together.wait()
        return downloads.fetch(f"{server.url}/a", CHECKSUM, path).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fetch, range(8))) == {CONTENT}
    assert files(path.parent) == ["a.gz", "a.gz.checksum"]


def test_the_server_is_asked_for_ten_seconds_at_most_and_the_cache_is_the_users():
    assert downloads.REACHED_WITHIN <= 10 and downloads.starting_now().within == downloads.REACHED_WITHIN
    assert downloads.user_cache().name == "jaxdl" and downloads.user_cache().is_absolute()


DOWNLOAD = """
import os, resource, sys
from pathlib import Path
from jaxdl.datasets import downloads
from jaxdl.errors import InputError
url, checksum, path, fault = sys.argv[1:]
if fault == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    downloads.fetch(url, checksum, Path(path))
except InputError as error:
    sys.exit(str(error))
"""


def downloading(server, path, fault="none"):
    call = [sys.executable, "-c", DOWNLOAD, f"{server.url}/a", CHECKSUM, str(path), fault]
    return subprocess.Popen(call, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_is_told_and_a_second_start_works(server, path):
    first = downloading(server, path, "full")
    _, told = first.communicate()
    assert first.returncode == 1 and "cannot be written (File too large)" in told and "Traceback" not in told
    assert files(path.parent) == []
    downloads.fetch(f"{server.url}/a", CHECKSUM, path)
    assert path.read_bytes() == CONTENT


def test_a_download_that_is_killed_is_begun_again(server, path):
    server.stall = len(CONTENT) // 2
    first = downloading(server, path)
    while not server.asked:
        time.sleep(0.01)
    time.sleep(0.2)
    first.kill()
    first.communicate()
    assert not path.exists()
    server.stall = None
    downloads.fetch(f"{server.url}/a", CHECKSUM, path)
    assert path.read_bytes() == CONTENT


def test_a_notebook_is_not_told_to_install_widgets_for_bars_that_nobody_shows(tmp_path, monkeypatch):
    (tmp_path / "pooch.py").write_text(
        "import warnings\nwarnings.warn('IProgress not found. Please update jupyter and ipywidgets.')\n"
        "def os_cache(name): return name\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pooch", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(downloads.user_cache()) == "jaxdl"
    monkeypatch.delitem(sys.modules, "pooch")
