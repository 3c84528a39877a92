"""Connections between processes: what is said over them, and parting without anybody ending."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from jaxdl.distributed.processes import LOST, Link, Member, linked, part, watch
from tests.groups import LIGHT

# Process `own` of three, whose connections come as file descriptors.
PROCESS = """
import json, socket, sys, time
from jaxdl.distributed.processes import Link, linked, Member, part, watch
own, ends = int(sys.argv[1]), json.loads(sys.argv[2])
links = {}
for other, number in ends.items():
    end = socket.socket(fileno=number)
    links[int(other)] = Link(end, end.makefile())
members = [Member(100 + index, f"host-{index}") for index in range(3)]
all_ = linked(own, members, 4000, links)
watch(all_)
print("ready", flush=True)
if sys.argv[3] == "waits":
    part(all_)
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
    _, told = process.communicate(timeout=20)
    assert told.decode() == (
        "\nprocess 2 (pid 102 on host-2) has ended, so process 0 ends too. Start all of them again.\n"
    )
    assert process.returncode == LOST == 75 == os.EX_TEMPFAIL
    assert ends[1].recv(100) == b"2\n" and ends[1].recv(100) == b""


def test_the_others_name_whom_process_0_names_and_process_0_itself():
    for word, gone in ((b"2\n", 2), (b"", 0)):
        process, ends = linked_to(1, 0)
        ends[0].sendall(word)
        ends[0].close()
        _, told = process.communicate(timeout=20)
        assert f"process {gone} (pid {100 + gone} on host-{gone}) has ended, so process 1" in told.decode()
        assert process.returncode == LOST


def test_nobody_parts_before_all_have_come_and_nobody_ends_after():
    pairs = {index: socket.socketpair() for index in (1, 2)}
    members = [Member(1, "here")] * 3
    first = linked(0, members, 1, {index: Link(here, here.makefile()) for index, (here, _) in pairs.items()})
    others = [linked(i, members, 1, {0: Link(there, there.makefile())}) for i, (_, there) in pairs.items()]
    parting = [threading.Thread(target=part, args=(links,), daemon=True) for links in (first, *others)]
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
