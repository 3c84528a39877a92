"""Several processes as one run: they join, tell each other things, and none outlives another."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdl import distributed
from jaxdl.distributed import processes
from jaxdl.distributed.processes import free_port
from jaxdl.errors import InputError

ROOT = Path(__file__).parents[2]
JOIN = """
import os, signal, sys, time
import jax
import numpy as np
from jaxdl import distributed
from jaxdl.distributed import processes
address, number, own = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
distributed.join(address, number, own, heartbeat=8, timeout=60)
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
    return [re.sub(r"\[Gloo\].*\n", "", out) for out, _ in texts], [told for _, told in texts]


@pytest.mark.processes
def test_processes_join_and_tell_each_other():
    number = 4
    body = """
print(processes.index(), processes.count(), processes.is_first(), len(jax.devices()), jax.local_device_count())
for text in ("", "hällo " + "x" * own, "y" * 5000):
    print(processes.told(text if own == 0 else "not mine"))
print(processes.gathered([own, -1, 2**40 + own]).tolist())
processes.leave()
sys.exit(7)
"""
    with group(body, number) as members:
        said, told = outputs(members)
        assert [member.returncode for member in members] == [7] * number, told
    gathered = [[own, -1, 2**40 + own] for own in range(number)]
    for own, text in enumerate(said):
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
        _, told = other.communicate(timeout=20)
        assert time.monotonic() - began < 5
        who = f"process {gone} (pid {members[gone].pid} on {socket.gethostname()})"
        assert f"\n{who} has ended, so process {1 - gone} ends too. Start all of them again.\n" in told
        assert other.returncode == processes.LOST


@pytest.mark.processes
def test_of_three_processes_each_names_the_one_that_was_killed():
    # They compute nothing and would not notice by themselves.
    with group("print('here', flush=True)\ntime.sleep(60)", 3) as members:
        assert [line(member) for member in members] == ["here"] * 3
        members[2].send_signal(signal.SIGKILL)
        _, told = outputs(members, 20)
        for own in (0, 1):
            assert f"process 2 (pid {members[2].pid} on " in told[own]
            assert members[own].returncode == processes.LOST


@pytest.mark.processes
def test_an_exit_without_leaving_ends_the_others_with_its_own_code():
    body = "if own == 1:\n    print('said')\n    processes.end(3)\n" + SUMS
    with group(body) as members:
        said, told = outputs(members, 20)
        assert said[1] == "said\n" and "process 1 (pid " in told[0]
        assert [member.returncode for member in members] == [processes.LOST, 3]


@pytest.mark.processes
def test_where_a_process_stops_the_other_ends_after_the_heartbeats_timeout():
    with group(SUMS) as members:
        assert [line(member) for member in members] == ["summing"] * 2
        members[1].send_signal(signal.SIGSTOP)
        _, told = members[0].communicate(timeout=30)
        assert members[0].returncode in (-signal.SIGABRT, processes.LOST) and "heartbeat" in told.lower()


def test_bad_input_is_refused_before_anybody_is_waited_for():
    body = """
from jaxdl.errors import InputError
def refused(*given, **more):
    try:
        processes.join(*given, **more)
    except InputError as error:
        print(error)
refused("127.0.0.1:1", 2, 1, timeout=1)
refused("127.0.0.1:1", 2, 1, heartbeat=0)
refused("127.0.0.1:1", 2, 1, timeout=2.5)
jax.devices()
refused("127.0.0.1:1", 2, 1, timeout=1)
"""
    call = [sys.executable, "-c", JOIN.partition("address, number")[0] + body]
    said = subprocess.run(call, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True).stdout.splitlines()
    assert [text.partition(",")[0].partition(" JAX")[0] for text in said] == [
        "process 0 must be reached at 127.0.0.1:1",
        "heartbeat must be a whole number of seconds",
        "timeout must be a whole number of seconds",
        "join must come before",
    ]


@pytest.fixture(scope="module")
def joined():
    """What a process says that has joined a group of its own, and its exit code after SIGTERM."""
    body = """
try:
    processes.join(address, number, own)
except ValueError as error:
    print(error)
processes.PATIENCE = 0.1
for text in ("UNKNOWN: Gloo all-reduce failed: timed out\\nmore", "RESOURCE_EXHAUSTED: Out of memory"):
    print(processes.lost(jax.errors.JaxRuntimeError(text)))
print(processes.lost(ConnectionError("connection refused")))
print("here", flush=True)
time.sleep(60)
"""
    with group(body, 1) as (member,):
        said = [line(member)]
        while said[-1] != "here":
            said.append(line(member))
        member.send_signal(signal.SIGTERM)
        return said, member.wait(10)


def test_sigterm_is_not_swallowed(joined):
    assert joined[1] == -signal.SIGTERM


def test_a_process_joins_once(joined):
    assert joined[0][0].startswith("a process can join others once")


def test_only_errors_that_speak_of_other_processes_are_a_loss(joined):
    assert joined[0][1:] == [
        "another process cannot be reached: UNKNOWN: Gloo all-reduce failed: timed out. Start all of them again.",
        "None",
        "None",
        "here",
    ]


def test_a_process_alone_tells_itself_and_leaves_nothing():
    assert (processes.index(), processes.count(), distributed.is_first()) == (0, 1, True)
    assert processes.told("ä") == "ä"
    got = processes.gathered(np.array([True, False]))
    assert got.tolist() == [[1, 0]] and got.dtype == np.int64
    distributed.leave()
    with pytest.raises(SystemExit, match="3"):
        processes.end(3)
    assert processes.lost(jax.errors.JaxRuntimeError("Gloo all-reduce failed")) is None
    assert processes.lost(OSError(os.strerror(2))) is None


@pytest.mark.parametrize("numbers", [[1.5], 3, [[1]], ["a"], []])
def test_only_vectors_of_whole_numbers_are_gathered(numbers):
    with pytest.raises(InputError, match="must be a vector of whole numbers"):
        processes.gathered(numbers)
