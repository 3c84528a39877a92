"""Downloads, from a server on this machine that can be told to misbehave."""

import hashlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jaxdl.datasets import simulated_table, sources, weather, zenodo
from jaxdl.errors import InputError

DOI, NAME = sources.LIGHT
CONTENT = simulated_table(30).to_csv(index=False).encode()
CHECKSUM = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one record with one file; its attributes are its faults."""

    daemon_threads = True
    content, checksum, name, status, cut, hang = CONTENT, CHECKSUM, NAME, 200, 0, ""
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
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("JAXDL_DATA", raising=False)
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.release.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def files(folder):
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def unused_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_download_is_kept_whole_and_used_again_without_the_network(server, cache):
    path = zenodo.fetch(DOI, NAME, cache, server=server.url)
    assert path == cache / NAME and path.read_bytes() == CONTENT
    assert files(cache) == [NAME, f"{NAME}.checksum"]
    assert server.asked == ["/api/records/5071376", "/file"]
    assert zenodo.fetch(DOI, NAME, cache, server="http://127.0.0.1:1") == path
    assert len(server.asked) == 2


@pytest.mark.parametrize("source", ["auto", "zenodo"])
def test_the_weather_comes_from_zenodo(server, cache, source):
    dataset = weather(source, cache=cache, server=server.url)
    assert dataset.source == "zenodo:10.5281/zenodo.5071376"
    assert (len(dataset.rows), dataset.note, dataset.noise) == (29, None, None)
    assert dataset.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert weather("auto", cache=cache, server="http://127.0.0.1:1").source == dataset.source


def test_the_full_file_has_a_record_of_its_own(server, cache):
    server.name = sources.FULL.name
    assert weather("zenodo-full", cache=cache, server=server.url).source == "zenodo:10.5281/zenodo.7525955"
    assert server.asked[0] == "/api/records/7525955"
    assert weather("auto", cache=cache, server="http://127.0.0.1:1").source == "zenodo:10.5281/zenodo.7525955"


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"content": CONTENT + b"1"}, f"must have the checksum {CHECKSUM}, and has another. Nothing is kept"),
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
def test_a_bad_answer_is_an_error_that_leaves_nothing_and_never_falls_back(server, cache, source, faults, message):
    vars(server).update(faults)
    with pytest.raises(InputError) as caught:
        weather(source, cache=cache, server=server.url)
    assert message in str(caught.value)
    assert not isinstance(caught.value, zenodo.UnreachableError)
    assert files(cache) == []
    for fault in faults:
        delattr(server, fault)
    assert weather(source, cache=cache, server=server.url).source == f"zenodo:{DOI}"


def test_what_was_left_half_written_is_not_taken_for_data(server, cache):
    cache.mkdir()
    (cache / NAME).write_bytes(CONTENT[:1000])
    assert zenodo.cached(NAME, cache) is None
    assert zenodo.fetch(DOI, NAME, cache, server=server.url).read_bytes() == CONTENT


@pytest.mark.parametrize("source", ["auto", "zenodo"])
@pytest.mark.parametrize("damaged", [NAME, f"{NAME}.checksum"])
def test_a_damaged_cache_is_an_error(server, cache, source, damaged):
    zenodo.fetch(DOI, NAME, cache, server=server.url)
    (cache / damaged).write_text("md5:0")
    with pytest.raises(InputError, match="must have the checksum with which it was downloaded"):
        weather(source, cache=cache, server=server.url)


def test_auto_falls_back_loudly_where_nothing_listens_and_named_sources_do_not(server, cache):
    nowhere = f"http://127.0.0.1:{unused_port()}"
    began = time.monotonic()
    with pytest.warns(UserWarning, match="SIMULATED WEATHER, NOT MEASURED"):
        dataset = weather(cache=cache, server=nowhere)
    assert dataset.source == "simulated:3654:seed=0" and len(dataset.rows) == 1096 and len(dataset.noise) == 1096
    assert dataset.note.startswith(f"SIMULATED WEATHER, NOT MEASURED: {nowhere}") and "\n" not in dataset.note
    assert files(cache) == []
    for source in ("zenodo", "zenodo-full"):
        with pytest.raises(zenodo.UnreachableError, match="cannot be reached: no connection"):
            weather(source, cache=cache, server=nowhere)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("hang", ["/api", "/file"])
def test_a_server_that_never_answers_is_given_up_in_time(server, cache, hang):
    server.hang = hang
    began = time.monotonic()
    with pytest.raises(zenodo.UnreachableError, match="no answer in time"):
        zenodo.fetch(DOI, NAME, cache, server=server.url, within=0.5)
    assert time.monotonic() - began < 3
    assert files(cache) == []


def test_a_name_that_is_never_resolved_is_given_up_in_time(server, cache, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: server.release.wait(20))
    began = time.monotonic()
    with pytest.raises(zenodo.UnreachableError, match="no answer in time"):
        zenodo.fetch(DOI, NAME, cache, server="http://nowhere.invalid", within=0.5)
    assert time.monotonic() - began < 3


def test_the_time_to_reach_the_server_is_ten_seconds_at_most():
    assert zenodo.REACHED_WITHIN <= 10


def test_an_address_that_is_none(cache):
    with pytest.raises(InputError, match="cannot be downloaded"):
        zenodo.fetch(DOI, NAME, cache, server="nowhere")


def test_a_cache_that_is_no_folder(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        zenodo.fetch(DOI, NAME, tmp_path / "file", server=server.url)


def test_the_cache_is_the_users_unless_given(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXDL_DATA", raising=False)
    asked = []
    monkeypatch.setattr(zenodo, "fetch", lambda doi, name, cache, server: asked.append(cache) or tmp_path / name)
    sources.find("zenodo")
    assert asked[0].name == "jaxdl" and asked[0] != Path("jaxdl")
