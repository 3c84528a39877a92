"""Files that come whole and checked or not at all, whatever the server, the disk and other processes do."""

import gzip
import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jaxdl.datasets import _download, load_weather, simulated_weather
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
    assert _download.fetch(f"{server.url}/a", CHECKSUM, path) == path
    assert path.read_bytes() == CONTENT and files(path.parent) == ["a.gz", "a.gz.checksum"]
    assert _download.fetch(f"{nowhere()}/a", CHECKSUM, path) == path == _download.cached("a.gz", path.parent)
    assert server.asked == ["/a"]


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate"])
def test_a_packed_file_is_kept_as_it_is_whatever_the_server_calls_it(server, path, encoding):
    server.headers = [("Content-Encoding", encoding)]
    assert _download.fetch(f"{server.url}/a", CHECKSUM, path).read_bytes() == CONTENT


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
        _download.fetch(f"{server.url}/a", CHECKSUM, path)
    assert message in str(caught.value) and not isinstance(caught.value, _download.UnreachableError)
    assert files(path.parent) == []


def test_a_server_that_cannot_be_reached_is_told_from_one_that_refuses(server, path):
    with pytest.raises(_download.UnreachableError, match="cannot be reached: no connection"):
        _download.fetch(f"{nowhere()}/a", CHECKSUM, path)
    server.hang = True
    began = time.monotonic()
    with pytest.raises(_download.UnreachableError, match="cannot be reached: no answer in time"):
        _download.fetch(f"{server.url}/a", CHECKSUM, path, time.monotonic() + 0.3)
    assert time.monotonic() - began < 3 and files(path.parent) == []


def test_no_time_at_all_is_no_bad_address():
    with pytest.raises(_download.UnreachableError):
        _download.get("http://127.0.0.1:1/a", time.monotonic() - 1)


def test_a_deadline_holds_for_all_that_is_asked(server):
    deadline = time.monotonic() + 0.5
    server.hang = True
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(_download.UnreachableError):
            _download.get(f"{server.url}/a", deadline)
    assert time.monotonic() - began < 2


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"the cache folder .*file cannot be written"):
        _download.fetch(f"{server.url}/a", CHECKSUM, tmp_path / "file" / "a.gz")


def test_what_has_no_checksum_beside_it_is_downloaded_again(server, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT[:100])
    assert _download.cached("a.gz", path.parent) is None
    assert _download.fetch(f"{server.url}/a", CHECKSUM, path).read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", ["a.gz", "a.gz.checksum"])
def test_a_damaged_file_is_an_error_that_names_it(server, path, damaged):
    _download.fetch(f"{server.url}/a", CHECKSUM, path)
    path.with_name(damaged).write_text("sha256:0")
    with pytest.raises(InputError, match=r"a\.gz must have the checksum with which it was downloaded. Remove it"):
        _download.fetch(f"{server.url}/a", CHECKSUM, path)


def test_several_may_download_at_once(server, path):
    together = threading.Barrier(8)

    def fetch(_):
        together.wait()
        return _download.fetch(f"{server.url}/a", CHECKSUM, path).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fetch, range(8))) == {CONTENT}
    assert files(path.parent) == ["a.gz", "a.gz.checksum"]


def test_the_server_is_asked_for_ten_seconds_at_most_and_the_cache_is_the_users():
    assert _download.REACHED_WITHIN <= 10
    assert _download.user_cache().name == "jaxdl" and _download.user_cache().is_absolute()


DOWNLOAD = """
import os, resource, sys
from pathlib import Path
from jaxdl.datasets import _download
from jaxdl.errors import InputError
url, checksum, path, fault = sys.argv[1:]
if fault == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    _download.fetch(url, checksum, Path(path))
except InputError as error:
    sys.exit(str(error))
"""


def downloading(server, path, fault="none"):
    call = [sys.executable, "-c", DOWNLOAD, f"{server.url}/a", CHECKSUM, str(path), fault]
    return subprocess.Popen(call, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_is_told_and_a_second_start_works(server, path):
    first = downloading(server, path, "full")
    _, messages = first.communicate()
    assert first.returncode == 1 and "cannot be written (File too large)" in messages and "Traceback" not in messages
    assert files(path.parent) == []
    _download.fetch(f"{server.url}/a", CHECKSUM, path)
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
    _download.fetch(f"{server.url}/a", CHECKSUM, path)
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
        assert str(_download.user_cache()) == "jaxdl"
    monkeypatch.delitem(sys.modules, "pooch")


# Zenodo

DOI, NAME = _download.LIGHT
TABLE = simulated_weather(30).to_csv(index=False).encode()
TABLE_CHECKSUM = "md5:" + hashlib.md5(TABLE).hexdigest()


class Zenodo(ThreadingHTTPServer):
    """Serves one record with one file; its attributes are its faults."""

    daemon_threads = True
    content, checksum, name, status, cut, hang = TABLE, TABLE_CHECKSUM, NAME, 200, 0, ""
    record = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked, self.release = [], threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        if server.hang and server.hang in self.path:
            server.release.wait(20)
            return
        entry = {"key": server.name, "checksum": server.checksum, "links": {"self": f"{server.url}/file"}}
        record = json.dumps({"files": [entry]}).encode() if server.record is None else server.record
        body = server.content if self.path == "/file" else record
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - server.cut] if self.path == "/file" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def zenodo_server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("JAXDL_DATA", raising=False)
    with Zenodo() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.release.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_a_download_is_kept_whole_and_used_again_without_the_network(zenodo_server, cache):
    path = _download.fetch_zenodo(DOI, NAME, cache, server=zenodo_server.url)
    assert path == cache / NAME and path.read_bytes() == TABLE
    assert files(cache) == [NAME, f"{NAME}.checksum"]
    assert zenodo_server.asked == ["/api/records/5071376", "/file"]
    assert _download.fetch_zenodo(DOI, NAME, cache, server="http://127.0.0.1:1") == path
    assert len(zenodo_server.asked) == 2


@pytest.mark.parametrize("source", ["auto", "zenodo"])
def test_the_weather_comes_from_zenodo(zenodo_server, cache, source):
    dataset = load_weather(source, cache=cache, server=zenodo_server.url)
    assert dataset.source == "zenodo:10.5281/zenodo.5071376"
    assert (len(dataset.rows), dataset.note, dataset.noise) == (29, None, None)
    assert dataset.sha256 == hashlib.sha256(TABLE).hexdigest()
    assert load_weather("auto", cache=cache, server="http://127.0.0.1:1").source == dataset.source


def test_the_full_file_has_a_record_of_its_own(zenodo_server, cache):
    zenodo_server.name = _download.FULL.name
    assert load_weather("zenodo-full", cache=cache, server=zenodo_server.url).source == "zenodo:10.5281/zenodo.7525955"
    assert zenodo_server.asked[0] == "/api/records/7525955"
    assert load_weather("auto", cache=cache, server="http://127.0.0.1:1").source == "zenodo:10.5281/zenodo.7525955"


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"content": TABLE + b"1"}, f"must have the checksum {TABLE_CHECKSUM}, and has another. Nothing is kept"),
        ({"content": b""}, "must have the checksum"),
        ({"cut": 100}, "/file broke off. Try again"),
        ({"name": "other.csv"}, f"the record {DOI} must hold {NAME}, got other.csv"),
        ({"record": b'{"files": []}'}, "got no file"),
        ({"record": b"<html>"}, "must be a Zenodo record that lists files, got something else"),
        ({"record": b'["files"]'}, "must be a Zenodo record"),
        ({"checksum": ""}, "must state a checksum"),
        ({"checksum": None}, "must state a checksum"),
        ({"status": 404}, "must answer with a file, got HTTP 404 Not Found"),
        ({"status": 503}, "got HTTP 503"),
    ],
)
@pytest.mark.parametrize("source", ["auto", "zenodo"])
def test_a_bad_answer_of_zenodo_leaves_nothing_and_never_falls_back(zenodo_server, cache, source, faults, message):
    vars(zenodo_server).update(faults)
    with pytest.raises(InputError) as caught:
        load_weather(source, cache=cache, server=zenodo_server.url)
    assert message in str(caught.value)
    assert not isinstance(caught.value, _download.UnreachableError)
    assert files(cache) == []
    for fault in faults:
        delattr(zenodo_server, fault)
    assert load_weather(source, cache=cache, server=zenodo_server.url).source == f"zenodo:{DOI}"


def test_what_was_left_half_written_is_not_taken_for_data(zenodo_server, cache):
    cache.mkdir()
    (cache / NAME).write_bytes(TABLE[:1000])
    assert _download.cached(NAME, cache) is None
    assert _download.fetch_zenodo(DOI, NAME, cache, server=zenodo_server.url).read_bytes() == TABLE


@pytest.mark.parametrize("source", ["auto", "zenodo"])
@pytest.mark.parametrize("damaged", [NAME, f"{NAME}.checksum"])
def test_a_damaged_cache_is_an_error(zenodo_server, cache, source, damaged):
    _download.fetch_zenodo(DOI, NAME, cache, server=zenodo_server.url)
    (cache / damaged).write_text("md5:0")
    with pytest.raises(InputError, match="must have the checksum with which it was downloaded"):
        load_weather(source, cache=cache, server=zenodo_server.url)


def test_auto_falls_back_loudly_where_nothing_listens_and_named_sources_do_not(zenodo_server, cache):
    address = nowhere()
    began = time.monotonic()
    with pytest.warns(UserWarning, match="SIMULATED WEATHER, NOT MEASURED"):
        dataset = load_weather(cache=cache, server=address)
    assert dataset.source == "simulated:3654:seed=0" and len(dataset.rows) == 1096 and len(dataset.noise) == 1096
    assert dataset.note.startswith(f"SIMULATED WEATHER, NOT MEASURED: {address}") and "\n" not in dataset.note
    assert files(cache) == []
    for source in ("zenodo", "zenodo-full"):
        with pytest.raises(_download.UnreachableError, match="cannot be reached: no connection"):
            load_weather(source, cache=cache, server=address)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("hang", ["/api", "/file"])
def test_a_server_that_never_answers_is_given_up_in_time(zenodo_server, cache, hang):
    zenodo_server.hang = hang
    began = time.monotonic()
    with pytest.raises(_download.UnreachableError, match="no answer in time"):
        _download.fetch_zenodo(DOI, NAME, cache, server=zenodo_server.url, within=0.5)
    assert time.monotonic() - began < 3
    assert files(cache) == []


def test_a_name_that_is_never_resolved_is_given_up_in_time(zenodo_server, cache, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: zenodo_server.release.wait(20))
    began = time.monotonic()
    with pytest.raises(_download.UnreachableError, match="no answer in time"):
        _download.fetch_zenodo(DOI, NAME, cache, server="http://nowhere.invalid", within=0.5)
    assert time.monotonic() - began < 3


def test_an_address_that_is_none(cache):
    with pytest.raises(InputError, match="cannot be downloaded"):
        _download.fetch_zenodo(DOI, NAME, cache, server="nowhere")


def test_a_cache_that_is_no_folder(zenodo_server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        _download.fetch_zenodo(DOI, NAME, tmp_path / "file", server=zenodo_server.url)


def test_the_cache_is_the_users_unless_given(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXDL_DATA", raising=False)
    requests = []

    def fetch(doi, name, cache, server):
        requests.append(cache)
        return tmp_path / name

    monkeypatch.setattr(_download, "fetch_zenodo", fetch)
    _download.find("zenodo")
    assert requests[0].name == "jaxdl" and requests[0] != Path("jaxdl")
