"""Processes meet: all of them, within a time, and whoever does not belong is told or sent away."""

import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from jaxdl.distributed.processes import free_port, meet, part
from jaxdl.errors import InputError


@contextmanager
def meeting(*comers, timeout=10):
    """Threads in the place of processes: (processes, own) each. Gives what each gets, or raises, and closes it all."""
    port = free_port()
    with ThreadPoolExecutor(len(comers)) as pool:
        asked = [pool.submit(meet, "127.0.0.1", port, processes, own, timeout) for processes, own in comers]
        got = [future.exception() or future.result() for future in asked]
    try:
        yield got
    finally:
        for links in got:
            if not isinstance(links, Exception):
                close(links)


def close(links):
    for link in links.links.values():
        link.lines.close()
        link.socket.close()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 2, 0)])
def test_all_learn_who_the_others_are(order):
    with meeting(*[(4, own) for own in order]) as got:
        assert all(links.members == [(os.getpid(), socket.gethostname())] * 4 for links in got)
        assert {links.own: sorted(links.links) for links in got} == {0: [1, 2, 3], 1: [0], 2: [0], 3: [0]}
        assert len({links.port for links in got}) == 1


def test_one_process_alone_waits_for_nobody():
    with meeting((1, 0)) as (links,):
        assert links.links == {}
        part(links)


def test_who_is_missing_is_named_to_all():
    began = time.monotonic()
    with meeting((4, 0), (4, 2), timeout=1.5) as got:
        assert all(isinstance(error, InputError) for error in got)
        assert "all 4 processes must come to 127.0.0.1" in str(got[0]) and "missing: 1, 3." in str(got[0])
        assert "missing: 1, 3." in str(got[1]) or "not all processes have come in time" in str(got[1])
    assert time.monotonic() - began < 10


def test_the_same_process_id_twice_is_told_to_all():
    with meeting((3, 0), (3, 1), (3, 1)) as got:
        assert all("must have a process_id of its own, got 1 from pid" in str(error) for error in got)


def test_another_number_of_processes_is_told_to_all():
    with meeting((2, 0), (3, 1)) as got:
        assert {str(error) for error in got} == {
            "every process must be told the same number of processes, got 2 in process 0 and 3 in process 1."
        }


def test_a_coordinator_that_does_not_come_is_told_in_time():
    began = time.monotonic()
    with pytest.raises(InputError, match=r"process 0 must be reached at 127.0.0.1:.* Connection refused. Start it"):
        meet("127.0.0.1", free_port(), 2, 1, timeout=0.5)
    with pytest.raises(InputError, match=r"process 0 must be reached at no\.invalid:4000, got: "):
        meet("no.invalid", 4000, 2, 1, timeout=0.5)
    assert time.monotonic() - began < 20


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1:{port}: .*in use. Choose another port"):
            meet("127.0.0.1", port, 2, 0, timeout=5)


@pytest.mark.parametrize(
    "answer",
    [
        *(b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[1]\n", b"{}\n", b"\xff\xfe\n", b"", b"[" * 100_000 + b"\n"),
        b'{"members": [[1, "x"]], "port": "4000"}\n',
        b'{"members": [[1, "x"]], "port": 70000}\n',
        b'{"members": [1, 2], "port": 4000}\n',
        b'{"members": "xy", "port": 4000}\n',
        b'{"error": [1]}\n',
    ],
)
def test_something_else_that_listens_there_is_told(answer):
    def respond(server):
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(respond, server)
        with pytest.raises(InputError, match="it has ended, or something else listens there"):
            meet("127.0.0.1", server.getsockname()[1], 2, 1, timeout=5)


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b'{"process": 1}\n', b"\x00\xff\n", b""])
def test_strangers_are_sent_away(words):
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, "127.0.0.1", port, 2, 0, 10)
        for _ in range(500):
            try:
                stranger = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                time.sleep(0.01)
        with stranger:
            stranger.sendall(words)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1000) == b""
        second = pool.submit(meet, "127.0.0.1", port, 2, 1, 10)
        for links in (first.result(), second.result()):
            assert len(links.members) == 2
            close(links)


@contextmanager
def waiting(processes=2, timeout=8, **options):
    """Process 0 of a meeting, which listens; gives its port and its future."""
    port = free_port()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(meet, "127.0.0.1", port, processes, 0, timeout, **options)
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.01)
        yield port, first, pool


def hello(**entries):
    return (json.dumps({"process": 1, "processes": 2, "pid": 1, "host": "x", **entries}) + "\n").encode()


STRANGERS = {
    **{f"process {each!r}": hello(process=each) for each in (-1, 0, 2, 99, "1", None, [1], True, 1.0, 10**30)},
    **{f"pid {each!r}": hello(pid=each) for each in (0, -4, "1", None, {})},
    **{f"host {each!r:.9}": hello(host=each) for each in (1, None, ["x"], "x" * 300)},
    "another count of another type": hello(processes="2"),
    "about": hello(about=[1]),
    "secret": hello(secret=1),
    "half a letter": hello(secret="\ud800"),
    "a list": b"[1]\n",
    "nested": b"[" * 200_000 + b"\n",
    "a long line": b'{"process": "' + b"x" * 200_000,
    "bytes": bytes(range(256)),
    "a web browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", STRANGERS)
def test_whoever_says_something_else_is_sent_away_and_nobody_waits(name):
    with waiting() as (port, first, pool):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.settimeout(5)
            with suppress(OSError):
                stranger.sendall(STRANGERS[name])
                stranger.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                assert stranger.recv(100) == b""
        second = pool.submit(meet, "127.0.0.1", port, 2, 1, 5)
        for links in (first.result(), second.result()):
            assert len(links.members) == 2
            close(links)


def test_whoever_says_nothing_or_one_letter_after_another_holds_nobody_up():
    with waiting() as (port, first, pool):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for stranger in silent[10:]:
            stranger.sendall(b" ")
        began = time.monotonic()
        second = pool.submit(meet, "127.0.0.1", port, 2, 1, 5)
        for links in (first.result(), second.result()):
            close(links)
        assert time.monotonic() - began < 2
        for stranger in silent:
            stranger.close()


def test_after_the_meeting_nobody_listens():
    with waiting() as (port, first, pool):
        second = pool.submit(meet, "127.0.0.1", port, 2, 1, 5)
        for links in (first.result(), second.result()):
            close(links)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_the_secret_of_a_run_turns_strangers_away():
    with waiting(secret="ours") as (port, first, pool):
        stranger = pool.submit(meet, "127.0.0.1", port, 2, 1, 1, secret="theirs")
        with pytest.raises(InputError, match="must answer process 1"):
            stranger.result()
        second = pool.submit(meet, "127.0.0.1", port, 2, 1, 5, secret="ours")
        for links in (first.result(), second.result()):
            assert len(links.members) == 2
            close(links)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ({"--seed": 1}, {"--seed": 2}, "the same --seed, got 1 in process 0 and 2 in process 1"),
        ({"--hidden": (4, 2)}, {"--hidden": [4]}, r"the same --hidden, got \[4, 2\] in process 0 and \[4\] in"),
        ({}, {"version of jax": "1"}, "the same version of jax, got nothing in process 0 and '1' in process 1"),
        ({"a": None}, {}, "the same a, got None in process 0 and nothing in process 1"),
    ],
)
def test_what_processes_do_not_agree_on_is_named_to_all(ours, theirs, said):
    with waiting(about=ours) as (port, first, pool):
        second = pool.submit(meet, "127.0.0.1", port, 2, 1, 5, theirs)
        for future in (first, second):
            with pytest.raises(InputError, match=said):
                future.result()


def test_processes_that_agree_meet():
    about = {"--hidden": (4, 2), "--patience": None, "version of jax": "1"}
    with waiting(about=about) as (port, first, pool):
        second = pool.submit(meet, "127.0.0.1", port, 2, 1, 5, dict(reversed(about.items())))
        for links in (first.result(), second.result()):
            close(links)
