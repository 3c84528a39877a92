"""How the processes of a run meet: each learns who the others are."""

from __future__ import annotations

import hmac
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

from jaxdl.errors import InputError
from jaxdl.links import Link, Links, Member, linked, say

HELLO = 5.0  # seconds in which a process must say who it is
LINE, ANSWER = 2**16, 2**24  # the most bytes of what it says, and of the answer, which names all processes
HEARD = 256  # are heard at a time
_LATER = ("about", "secret")  # entries that may be left out


def local(host: str) -> bool:
    """Whether a host is this machine whoever says it: nobody else can come then.

    >>> local("127.0.0.1"), local("node-3")
    (True, False)
    """
    return host in ("localhost", "::1") or host.startswith("127.")


def meet(
    host: str,
    port: int,
    processes: int,
    index: int,
    timeout: float,
    about: Mapping[str, Any] | None = None,
    secret: str = "",
) -> Links:
    """Waits until all processes have come to process 0, which listens at host and port, and says who they are.

    about: what all processes must agree on, of JSON's types; the first entry that differs is named to all. secret: a
    text that all processes know, and strangers do not. Who says another one, or nothing of the kind in a few seconds,
    is sent away, and nobody waits for him.

    Raises InputError where the port is taken, somebody is missing after `timeout` seconds, a process comes twice, or
    the processes do not agree on how many they are, or on `about`.

    >>> links = meet("127.0.0.1", free_port(), processes=1, index=0, timeout=1)
    >>> links.members == [(os.getpid(), socket.gethostname())]
    True
    """
    me = Member(os.getpid(), socket.gethostname())
    deadline, agreed = time.monotonic() + timeout, json.loads(json.dumps(about or {}))
    own = {"processes": processes, "about": agreed, "secret": secret}
    if index == 0:
        members, free, links = _receive(host, port, own, me, deadline)
    else:
        members, free, links = _visit(host, port, {"process": index, **own, **me._asdict()}, deadline)
    for link in links.values():
        link.socket.settimeout(None)
    return linked(index, members, free, links)


def free_port() -> int:
    """A port that nobody listens at.

    >>> 0 < free_port() < 65536
    True
    """
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


def _receive(
    host: str, port: int, own: dict[str, Any], me: Member, deadline: float
) -> tuple[list[Member], int, dict[int, Link]]:
    processes, members = own["processes"], {0: me}
    links: dict[int, Link] = {}
    came: queue.Queue[tuple[Link, dict[str, Any]]] = queue.Queue()
    try:
        with _server(host, port) as server, ExitStack() as stack:
            # Closing alone would leave the thread that accepts at the port, and whoever comes later without an answer.
            stack.callback(_shut, server)
            # Each is heard in a thread of its own: nobody waits for one that says nothing.
            threading.Thread(target=_accept, args=(server, came, own["secret"]), daemon=True).start()
            while len(members) < processes:
                try:
                    link, hello = came.get(timeout=max(0.01, deadline - time.monotonic()))
                except queue.Empty:
                    missing = [str(index) for index in range(processes) if index not in members]
                    raise InputError(
                        f"all {processes} processes must come to {host}:{port} in time; missing: "
                        f"{', '.join(missing)}. Start each with its own process_id."
                    ) from None
                index, member = hello["process"], Member(hello["pid"], hello["host"])
                known = members.get(index)
                members[index], links[index] = member, links.get(index, link)
                if hello["processes"] != processes:
                    raise InputError(
                        f"every process must be told the same number of processes, got {processes} in process 0 and "
                        f"{hello['processes']} in process {index}."
                    )
                if known:
                    _refuse(link, _twice(index, known, member))
                    raise InputError(_twice(index, known, member))
                if other := _differs(own["about"], hello["about"], index):
                    raise InputError(other)
    except InputError as error:
        for link in links.values():
            _refuse(link, str(error))
        raise
    ordered, free = [members[index] for index in range(processes)], free_port()
    for link in links.values():
        say(link, json.dumps({"members": ordered, "port": free}))
    return ordered, free, links


def _accept(server: socket.socket, came: queue.Queue[tuple[Link, dict[str, Any]]], secret: str) -> None:
    """Hear whoever comes, until the server is closed."""
    hearing = threading.Semaphore(HEARD)
    with suppress(OSError):
        server.settimeout(None)
        while True:
            connection = server.accept()[0]
            if hearing.acquire(blocking=False):
                threading.Thread(target=_hear, args=(connection, came, secret, hearing), daemon=True).start()
            else:
                connection.close()


def _shut(server: socket.socket) -> None:
    with suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)


def _hear(
    connection: socket.socket,
    came: queue.Queue[tuple[Link, dict[str, Any]]],
    secret: str,
    hearing: threading.Semaphore,
) -> None:
    with hearing:
        hello = _line(connection, LINE, time.monotonic() + HELLO)
        if _is_hello(hello) and hmac.compare_digest(
            *(each.encode("utf-8", "surrogatepass") for each in (hello["secret"], secret))
        ):
            came.put((_link(connection, HELLO), hello))
        else:
            connection.close()  # A stranger.


def _is_hello(said: dict[str, Any]) -> bool:
    """Whether this is what a process of a run says: its place, how many there are, and who it is."""
    kinds = {"process": int, "processes": int, "pid": int, "host": str, "about": dict, "secret": str}
    if any(type(said.get(name)) is not kind for name, kind in kinds.items() if name in said or name not in _LATER):
        return False
    said.update({name: said.get(name, kinds[name]()) for name in _LATER})
    return 0 < said["process"] < said["processes"] and said["pid"] > 0 and len(said["host"]) < 256


def _differs(ours: dict[str, Any], theirs: dict[str, Any], index: int) -> str | None:
    for name in {**ours, **theirs}:
        here, there = (f"{of[name]!r:.200}" if name in of else "nothing" for of in (ours, theirs))
        if ours.get(name) != theirs.get(name) or (name in ours) != (name in theirs):
            return (
                f"all processes of a run must have the same {name:.80}, got {here} in process 0 and {there} in process "
                f"{index}. Start all of them with the same."
            )
    return None


def _refuse(link: Link, why: str) -> None:
    say(link, json.dumps({"error": why}))
    _close(link)


def _close(link: Link) -> None:
    link.lines.close()
    link.socket.close()


def _twice(index: int, *members: Member) -> str:
    who = " and ".join(f"pid {pid} on {host}" for pid, host in members)
    return f"every process must have a process_id of its own, got {index} from {who}. Count them from 0."


def _server(host: str, port: int) -> socket.socket:
    try:
        if local(host):
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise InputError(
            f"process 0 cannot listen at {host}:{port}: {os.strerror(error.errno or 0)}. Choose another port."
        ) from None


def _link(connection: socket.socket, timeout: float) -> Link:
    connection.settimeout(timeout)
    # A firewall forgets a connection on which nothing is said for long.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return Link(connection, connection.makefile(errors="replace"))


def _line(connection: socket.socket, most: int, deadline: float) -> dict[str, Any]:
    """The next line as a dictionary; an empty one where nothing of the kind comes in time."""
    content = b""
    with suppress(OSError, ValueError, RecursionError):
        while b"\n" not in content and len(content) < most:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            more = connection.recv(65536)
            if not more or time.monotonic() > deadline:
                return {}
            content += more
        heard = json.loads(content)
        return heard if isinstance(heard, dict) else {}
    return {}


def _visit(host: str, port: int, hello: dict[str, Any], deadline: float) -> tuple[list[Member], int, dict[int, Link]]:
    connection = _reached(host, port, deadline)
    index = hello["process"]
    link = _link(connection, max(0.01, deadline - time.monotonic()))
    say(link, json.dumps(hello))
    answer = _line(connection, ANSWER, deadline)
    members, free = answer.get("members"), answer.get("port")
    if isinstance(members, list) and all(map(_is_member, members)) and type(free) is int and 0 < free < 65536:
        return [Member(*member) for member in members], free, {0: link}
    _close(link)
    if isinstance(answer.get("error"), str):
        raise InputError(answer["error"][:2000])
    late = time.monotonic() >= deadline
    why = "not all processes have come in time" if late else "it has ended, or something else listens there"
    raise InputError(f"process 0 at {host}:{port} must answer process {index}: {why}. Start all of them again.")


def _is_member(said: Any) -> bool:
    return isinstance(said, list) and [type(each) for each in said] == [int, str]


def _reached(host: str, port: int, deadline: float) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=5)
            # A connection from a port to itself, which Linux makes where nobody listens yet.
            if connection.getsockname() != connection.getpeername():
                return connection
            connection.close()
            why = "nobody listens"
        except OSError as error:
            why = error.strerror or "no answer"
        if time.monotonic() >= deadline:
            raise InputError(
                f"process 0 must be reached at {host}:{port}, got: {why}. Start it, or correct the address."
            )
        time.sleep(0.1)
