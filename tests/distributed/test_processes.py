"""Several processes as one run: they join, tell each other things, and none outlives another."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdl import distributed
from jaxdl.distributed import processes
from jaxdl.distributed.processes import (
    LOST,
    VARIABLES,
    Connection,
    Member,
    Peers,
    connect,
    disconnect,
    find_place,
    free_port,
    is_launched,
    watch,
)
from jaxdl.errors import InputError
from tests.groups import LIGHT

ROOT = Path(__file__).parents[2]
JOIN = """
import os, signal, sys, time
import jax
import numpy as np
from jaxdl import distributed
from jaxdl.distributed import processes
address, number, own = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
distributed.initialize(address, number, own, heartbeat=8, timeout=60)
"""
# A sum over all processes, again and again.
SUMS = """
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((number,), ("data",))
rows = NamedSharding(mesh, PartitionSpec("data"))
x = jax.make_array_from_callback((number, 4), rows, lambda _: np.full((1, 4), own, np.float32))
total = jax.jit(lambda x: x.sum(0), out_shardings=NamedSharding(mesh, PartitionSpec()))
for step in range(100_000):
    total(x).block_until_ready()
    if step == 3:
        print("summing", flush=True)
"""


@contextmanager
def group(body, number=2):
    """Real processes of one program, which are gone after the block."""
    address = f"127.0.0.1:{free_port()}"
    members = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN + body, address, str(number), str(own)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for own in range(number)
    ]
    try:
        yield members
    finally:
        for member in members:
            member.kill()
            member.communicate()


def line(member):
    """The next line of a process, of those that JAX does not write."""
    for text in member.stdout:
        if "[Gloo]" not in text:
            return text.strip()
    raise AssertionError(member.stderr.read())


def outputs(members, timeout=60):
    texts = [member.communicate(timeout=timeout) for member in members]
    return [re.sub(r"\[Gloo\].*\n", "", out) for out, _ in texts], [messages for _, messages in texts]


@pytest.mark.processes
def test_processes_join_and_tell_each_other():
    number = 4
    body = """
print(processes.index(), processes.count(), processes.is_main(), len(jax.devices()), jax.local_device_count())
for text in ("", "hällo " + "x" * own, "y" * 5000):
    print(processes.broadcast_text(text if own == 0 else "not mine"))
print(processes.all_gather([own, -1, 2**40 + own]).tolist())
processes.shutdown()
sys.exit(7)
"""
    with group(body, number) as members:
        output, messages = outputs(members)
        assert [member.returncode for member in members] == [7] * number, messages
    gathered = [[own, -1, 2**40 + own] for own in range(number)]
    for own, text in enumerate(output):
        assert text.splitlines() == [
            f"{own} {number} {own == 0} {number} 1",
            *("", "hällo ", "y" * 5000),
            str(gathered),
        ]


@pytest.mark.processes
@pytest.mark.parametrize("gone", [0, 1])
def test_where_a_process_is_killed_the_other_ends_at_once_and_names_it(gone):
    with group(SUMS) as members:
        assert [line(member) for member in members] == ["summing"] * 2
        began = time.monotonic()
        members[gone].send_signal(signal.SIGKILL)
        other = members[1 - gone]
        _, messages = other.communicate(timeout=20)
        assert time.monotonic() - began < 5
        who = f"process {gone} (pid {members[gone].pid} on {socket.gethostname()})"
        assert f"\n{who} has ended, so process {1 - gone} ends too. Start all of them again.\n" in messages
        assert other.returncode == processes.LOST


@pytest.mark.processes
def test_of_three_processes_each_names_the_one_that_was_killed():
    # They compute nothing and would not notice by themselves.
    with group("print('here', flush=True)\ntime.sleep(60)", 3) as members:
        assert [line(member) for member in members] == ["here"] * 3
        members[2].send_signal(signal.SIGKILL)
        _, messages = outputs(members, 20)
        for own in (0, 1):
            assert f"process 2 (pid {members[2].pid} on " in messages[own]
            assert members[own].returncode == processes.LOST


@pytest.mark.processes
def test_an_exit_without_leaving_ends_the_others_with_its_own_code():
    body = "if own == 1:\n    print('said')\n    processes.abort(3)\n" + SUMS
    with group(body) as members:
        output, messages = outputs(members, 20)
        assert output[1] == "said\n" and "process 1 (pid " in messages[0]
        assert [member.returncode for member in members] == [processes.LOST, 3]


@pytest.mark.processes
def test_where_a_process_stops_the_other_ends_after_the_heartbeats_timeout():
    with group(SUMS) as members:
        assert [line(member) for member in members] == ["summing"] * 2
        members[1].send_signal(signal.SIGSTOP)
        _, messages = members[0].communicate(timeout=30)
        assert members[0].returncode in (-signal.SIGABRT, processes.LOST) and "heartbeat" in messages.lower()


def test_bad_input_is_refused_before_anybody_is_waited_for():
    body = """
from jaxdl.errors import InputError
def refused(*given, **more):
    try:
        processes.initialize(*given, **more)
    except InputError as error:
        print(error)
refused("127.0.0.1:1", 2, 1, timeout=1)
refused("127.0.0.1:1", 2, 1, heartbeat=0)
refused("127.0.0.1:1", 2, 1, timeout=2.5)
jax.devices()
refused("127.0.0.1:1", 2, 1, timeout=1)
"""
    call = [sys.executable, "-c", JOIN.partition("address, number")[0] + body]
    output = subprocess.run(call, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True).stdout.splitlines()
    assert [text.partition(",")[0].partition(" JAX")[0] for text in output] == [
        "process 0 must be reached at 127.0.0.1:1",
        "heartbeat must be a whole number of seconds",
        "timeout must be a whole number of seconds",
        "initialize must be called before",
    ]


@pytest.fixture(scope="module")
def joined():
    """What a process says that has joined a group of its own, and its exit code after SIGTERM."""
    body = """
try:
    processes.initialize(address, number, own)
except ValueError as error:
    print(error)
processes.PATIENCE = 0.1
for text in ("UNKNOWN: Gloo all-reduce failed: timed out\\nmore", "RESOURCE_EXHAUSTED: Out of memory"):
    print(processes.peer_lost(jax.errors.JaxRuntimeError(text)))
print(processes.peer_lost(ConnectionError("connection refused")))
print("here", flush=True)
time.sleep(60)
"""
    with group(body, 1) as (member,):
        output = [line(member)]
        while output[-1] != "here":
            output.append(line(member))
        member.send_signal(signal.SIGTERM)
        return output, member.wait(10)


def test_sigterm_is_not_swallowed(joined):
    assert joined[1] == -signal.SIGTERM


def test_a_process_joins_once(joined):
    assert joined[0][0].startswith("initialize must be called once in a process")


def test_only_errors_that_speak_of_other_processes_are_a_loss(joined):
    assert joined[0][1:] == [
        "another process cannot be reached: UNKNOWN: Gloo all-reduce failed: timed out. Start all of them again.",
        "None",
        "None",
        "here",
    ]


def test_a_process_alone_tells_itself_and_leaves_nothing():
    assert (processes.index(), processes.count(), distributed.is_main()) == (0, 1, True)
    assert processes.broadcast_text("ä") == "ä"
    got = processes.all_gather(np.array([True, False]))
    assert got.tolist() == [[1, 0]] and got.dtype == np.int64
    distributed.shutdown()
    with pytest.raises(SystemExit, match="3"):
        processes.abort(3)
    assert processes.peer_lost(jax.errors.JaxRuntimeError("Gloo all-reduce failed")) is None
    assert processes.peer_lost(OSError(os.strerror(2))) is None


@pytest.mark.parametrize("numbers", [[1.5], 3, [[1]], ["a"], []])
def test_only_vectors_of_whole_numbers_are_gathered(numbers):
    with pytest.raises(InputError, match="must be a vector of whole numbers"):
        processes.all_gather(numbers)


# Connections between processes: what is said over them, and parting without anybody ending.

# Process `own` of three, whose connections come as file descriptors.
PROCESS = """
import json, socket, sys, time
from jaxdl.distributed.processes import Connection, Member, Peers, disconnect, watch
own, ends = int(sys.argv[1]), json.loads(sys.argv[2])
links = {}
for other, number in ends.items():
    end = socket.socket(fileno=number)
    links[int(other)] = Connection(end, end.makefile())
members = [Member(100 + index, f"host-{index}") for index in range(3)]
all_ = Peers(own, members, 4000, links)
watch(all_)
print("ready", flush=True)
if sys.argv[3] == "waits":
    disconnect(all_)
else:
    time.sleep(60)
"""


def linked_to(own, *others, then="sleeps"):
    """A real process of three, and the other ends of its connections."""
    pairs = {other: socket.socketpair() for other in others}
    ends = {other: there.fileno() for other, (_, there) in pairs.items()}
    call = [sys.executable, "-c", LIGHT + PROCESS, str(own), json.dumps(ends), then]
    process = subprocess.Popen(call, pass_fds=list(ends.values()), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _, there in pairs.values():
        there.close()
    assert process.stdout.readline() == b"ready\n"
    return process, {other: here for other, (here, _) in pairs.items()}


@pytest.mark.parametrize("then", ["sleeps", "waits"])
def test_process_0_names_who_has_gone_to_all_and_ends(then):
    process, ends = linked_to(0, 1, 2, then=then)
    if then == "waits":
        ends[2].sendall(b"bye\n")
    ends[2].close()
    _, messages = process.communicate(timeout=20)
    assert messages.decode() == (
        "\nprocess 2 (pid 102 on host-2) has ended, so process 0 ends too. Start all of them again.\n"
    )
    assert process.returncode == LOST == 75 == os.EX_TEMPFAIL
    assert ends[1].recv(100) == b"2\n" and ends[1].recv(100) == b""


def test_the_others_name_whom_process_0_names_and_process_0_itself():
    for word, gone in ((b"2\n", 2), (b"", 0)):
        process, ends = linked_to(1, 0)
        ends[0].sendall(word)
        ends[0].close()
        _, messages = process.communicate(timeout=20)
        assert f"process {gone} (pid {100 + gone} on host-{gone}) has ended, so process 1" in messages.decode()
        assert process.returncode == LOST


def test_nobody_parts_before_all_have_come_and_nobody_ends_after():
    pairs = {index: socket.socketpair() for index in (1, 2)}
    members = [Member(1, "here")] * 3
    first = Peers(0, members, 1, {index: Connection(here, here.makefile()) for index, (here, _) in pairs.items()})
    others = [Peers(i, members, 1, {0: Connection(there, there.makefile())}) for i, (_, there) in pairs.items()]
    parting = [threading.Thread(target=disconnect, args=(links,), daemon=True) for links in (first, *others)]
    before = threading.active_count()
    for links in (first, *others):
        watch(links)
    for thread in parting[:2]:
        thread.start()
    time.sleep(0.3)
    assert all(thread.is_alive() for thread in parting[:2])
    parting[2].start()
    for thread in parting:
        thread.join(10)
        assert not thread.is_alive()
    # If anybody took this for an end, this process would be no more.
    for end in (end for pair in pairs.values() for end in pair):
        end.shutdown(socket.SHUT_RDWR)
        end.close()
    for _ in range(500):
        if threading.active_count() == before:
            break
        time.sleep(0.01)
    assert threading.active_count() == before


# Processes meet: all of them, within a time, and whoever does not belong is told or sent away.


@contextmanager
def meeting(*comers, timeout=10):
    """Threads in the place of processes: (processes, own) each. Gives what each gets, or raises, and closes it all."""
    port = free_port()
    with ThreadPoolExecutor(len(comers)) as pool:
        requests = [pool.submit(connect, "127.0.0.1", port, processes, own, timeout) for processes, own in comers]
        got = [future.exception() or future.result() for future in requests]
    try:
        yield got
    finally:
        for links in got:
            if not isinstance(links, Exception):
                close(links)


def close(links):
    for link in links.connections.values():
        link.lines.close()
        link.socket.close()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 2, 0)])
def test_all_learn_who_the_others_are(order):
    with meeting(*[(4, own) for own in order]) as got:
        assert all(links.members == [(os.getpid(), socket.gethostname())] * 4 for links in got)
        assert {links.index: sorted(links.connections) for links in got} == {0: [1, 2, 3], 1: [0], 2: [0], 3: [0]}
        assert len({links.port for links in got}) == 1


def test_one_process_alone_waits_for_nobody():
    with meeting((1, 0)) as (links,):
        assert links.connections == {}
        disconnect(links)


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
            "every process must be given the same number of processes, got 2 in process 0 and 3 in process 1."
        }


def test_a_coordinator_that_does_not_come_is_told_in_time():
    began = time.monotonic()
    with pytest.raises(InputError, match=r"process 0 must be reached at 127.0.0.1:.* Connection refused. Start it"):
        connect("127.0.0.1", free_port(), 2, 1, timeout=0.5)
    with pytest.raises(InputError, match=r"process 0 must be reached at no\.invalid:4000, got: "):
        connect("no.invalid", 4000, 2, 1, timeout=0.5)
    assert time.monotonic() - began < 20


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1:{port}: .*in use. Choose another port"):
            connect("127.0.0.1", port, 2, 0, timeout=5)


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
            connect("127.0.0.1", server.getsockname()[1], 2, 1, timeout=5)


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b'{"process": 1}\n', b"\x00\xff\n", b""])
def test_strangers_are_sent_away(words):
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(connect, "127.0.0.1", port, 2, 0, 10)
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
        second = pool.submit(connect, "127.0.0.1", port, 2, 1, 10)
        for links in (first.result(), second.result()):
            assert len(links.members) == 2
            close(links)


@contextmanager
def waiting(processes=2, timeout=8, **options):
    """Process 0 of a meeting, which listens; gives its port and its future."""
    port = free_port()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(connect, "127.0.0.1", port, processes, 0, timeout, **options)
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
        second = pool.submit(connect, "127.0.0.1", port, 2, 1, 5)
        for links in (first.result(), second.result()):
            assert len(links.members) == 2
            close(links)


def test_whoever_says_nothing_or_one_letter_after_another_holds_nobody_up():
    with waiting() as (port, first, pool):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for stranger in silent[10:]:
            stranger.sendall(b" ")
        began = time.monotonic()
        second = pool.submit(connect, "127.0.0.1", port, 2, 1, 5)
        for links in (first.result(), second.result()):
            close(links)
        assert time.monotonic() - began < 2
        for stranger in silent:
            stranger.close()


def test_more_strangers_than_are_heard_at_a_time_may_come_one_after_the_other(monkeypatch):
    monkeypatch.setattr(processes, "MAX_CONNECTIONS", 2)
    with waiting() as (port, first, pool):
        for _ in range(6):
            with socket.create_connection(("127.0.0.1", port)) as stranger, suppress(ConnectionError):
                stranger.sendall(b"\n")
                stranger.recv(100)
        second = pool.submit(connect, "127.0.0.1", port, 2, 1, 5)
        for links in (first.result(), second.result()):
            assert len(links.members) == 2
            close(links)


def test_after_the_meeting_nobody_listens():
    with waiting() as (port, first, pool):
        second = pool.submit(connect, "127.0.0.1", port, 2, 1, 5)
        for links in (first.result(), second.result()):
            close(links)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_the_secret_of_a_run_turns_strangers_away():
    with waiting(secret="ours") as (port, first, pool):
        stranger = pool.submit(connect, "127.0.0.1", port, 2, 1, 1, secret="theirs")
        with pytest.raises(InputError, match="must answer process 1"):
            stranger.result()
        second = pool.submit(connect, "127.0.0.1", port, 2, 1, 5, secret="ours")
        for links in (first.result(), second.result()):
            assert len(links.members) == 2
            close(links)


@pytest.mark.parametrize(
    ("ours", "theirs", "output"),
    [
        ({"--seed": 1}, {"--seed": 2}, "the same --seed, got 1 in process 0 and 2 in process 1"),
        ({"--hidden": (4, 2)}, {"--hidden": [4]}, r"the same --hidden, got \[4, 2\] in process 0 and \[4\] in"),
        ({}, {"version of jax": "1"}, "the same version of jax, got nothing in process 0 and '1' in process 1"),
        ({"a": None}, {}, "the same a, got None in process 0 and nothing in process 1"),
    ],
)
def test_what_processes_do_not_agree_on_is_named_to_all(ours, theirs, output):
    with waiting(about=ours) as (port, first, pool):
        second = pool.submit(connect, "127.0.0.1", port, 2, 1, 5, theirs)
        for future in (first, second):
            with pytest.raises(InputError, match=output):
                future.result()


def test_processes_that_agree_meet():
    about = {"--hidden": (4, 2), "--patience": None, "version of jax": "1"}
    with waiting(about=about) as (port, first, pool):
        second = pool.submit(connect, "127.0.0.1", port, 2, 1, 5, dict(reversed(about.items())))
        for links in (first.result(), second.result()):
            close(links)


# Where a process belongs: what is given, what the launcher tells, what a cluster tells, and nothing by halves.

SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


@pytest.fixture
def surroundings(monkeypatch):
    """`surroundings(variables)` sets them, after all that could tell a place has been removed."""

    def use(variables):
        for name in (*VARIABLES, *SLURM, *OPEN_MPI, "KUBERNETES_SERVICE_HOST", "JAX_COORDINATOR_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return use


def test_what_is_given_counts_before_what_the_launcher_tells(surroundings):
    surroundings(dict(zip(VARIABLES, ("127.0.0.1:4000", "2", "1"), strict=True)))
    assert is_launched()
    assert find_place(None, None, None) == ("127.0.0.1", 4000, 2, 1, None)
    assert find_place("[::1]:70", 3, 0) == ("::1", 70, 3, 0, None)


def test_a_cluster_tells_the_place(surroundings):
    surroundings(SLURM)
    # Job 4096 is 2 ** 12: the first of the last 4096 ports.
    assert not is_launched() and find_place(None, None, None) == ("node003", 61440, 8, 5, [1])
    surroundings(OPEN_MPI)
    assert find_place(None, None, None) == ("10.96.0.1", 61442, 4, 2, [0])


def test_where_nobody_tells_it_is_said_what_to_do(surroundings):
    surroundings({})
    with pytest.raises(
        InputError, match=r"no launcher or cluster was detected. Give all three, or start .* jaxdl.launch"
    ):
        find_place(None, None, None)


def test_a_cluster_that_tells_half_is_bad_input(surroundings):
    surroundings(OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "8192.0;carrier pigeon"})
    with pytest.raises(InputError, match="must be given, as the cluster does not tell them: Could not parse"):
        find_place(None, None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, 0), "given together, got no coordinator"),
        (("a:1", None, None), "given together, got no processes and no process_id"),
        ((4000, 2, 0), "coordinator must be HOST:PORT with a port from 1 to 65535, got 4000"),
        (("here", 2, 0), "coordinator must be HOST:PORT .* got 'here'"),
        ((":4000", 2, 0), "coordinator must be HOST:PORT .* got ':4000'"),
        (("here:http", 2, 0), "coordinator must be HOST:PORT .* got 'here:http'"),
        (("here:65536", 2, 0), "coordinator must be HOST:PORT .* got 'here:65536'"),
        (("here:-1", 2, 0), "coordinator must be HOST:PORT .* got 'here:-1'"),
        (("a:1", 0, 0), "processes must be at least 1, got 0"),
        (("a:1", -2, 0), "processes must be at least 1, got -2"),
        (("a:1", 2.0, 0), "processes must be a whole number, got 2.0"),
        (("a:1", True, 0), "processes must be a whole number, got True"),
        (("a:1", 2, 2), "process_id must be from 0 to 1 with 2 processes, got 2"),
        (("a:1", 2, -1), "process_id must be from 0 to 1 with 2 processes, got -1"),
        (("a:1", 2, "one"), "process_id must be a whole number, got 'one'"),
    ],
)
def test_what_cannot_be_is_bad_input(surroundings, given, message):
    surroundings({})
    with pytest.raises(InputError, match=message):
        find_place(*given)


def test_bad_input_of_the_launchers_variables_names_them(surroundings):
    surroundings({"JAXDL_COORDINATOR": "127.0.0.1:4000", "JAXDL_PROCESSES": "two", "JAXDL_PROCESS_ID": "0"})
    with pytest.raises(InputError, match="JAXDL_PROCESSES must be a whole number, got 'two'"):
        find_place(None, None, None)
    surroundings({"JAXDL_PROCESSES": "2", "JAXDL_PROCESS_ID": "0"})
    with pytest.raises(InputError, match="given together, got no JAXDL_COORDINATOR"):
        find_place(None, None, None)
