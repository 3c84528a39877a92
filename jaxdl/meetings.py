"""How the processes of a run meet: each learns who the others are."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from typing import Any

from jaxdl.errors import InputError
from jaxdl.links import Link, Links, Member, linked, say


def local(host: str) -> bool:
    """Whether a host is this machine whoever says it: nobody else can come then.

    >>> local("127.0.0.1"), local("node-3")
    (True, False)
    """
    return host in ("localhost", "::1") or host.startswith("127.")


def meet(host: str, port: int, processes: int, index: int, timeout: float) -> Links:
    """Waits until all processes have come to process 0, which listens at host and port, and says who they are.

    Raises InputError where the port is taken, somebody is missing after `timeout` seconds, a process comes twice, or
    the processes do not agree on how many they are.

    >>> links = meet("127.0.0.1", free_port(), processes=1, index=0, timeout=1)
    >>> links.members == [(os.getpid(), socket.gethostname())]
    True
    """
    me = Member(os.getpid(), socket.gethostname())
    deadline = time.monotonic() + timeout
    if index == 0:
        members, free, links = _receive(host, port, processes, me, deadline)
    else:
        members, free, links = _visit(host, port, processes, index, me, deadline)
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
    host: str, port: int, processes: int, me: Member, deadline: float
) -> tuple[list[Member], int, dict[int, Link]]:
    members = {0: me}
    links: dict[int, Link] = {}
    try:
        with _server(host, port) as server:
            while len(members) < processes:
                link = _accepted(server, deadline)
                if link is None:
                    missing = [str(index) for index in range(processes) if index not in members]
                    raise InputError(
                        f"all {processes} processes must come to {host}:{port} in time; missing: "
                        f"{', '.join(missing)}. Start each with its own process_id."
                    )
                hello = _heard(link)
                if not {"process", "processes", "pid", "host"} <= hello.keys():
                    _close(link)  # A stranger.
                    continue
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
    except InputError as error:
        for link in links.values():
            _refuse(link, str(error))
        raise
    ordered, free = [members[index] for index in range(processes)], free_port()
    for link in links.values():
        say(link, json.dumps({"members": ordered, "port": free}))
    return ordered, free, links


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


def _accepted(server: socket.socket, deadline: float) -> Link | None:
    server.settimeout(max(0.01, deadline - time.monotonic()))
    try:
        return _link(server.accept()[0], 5)
    except TimeoutError:
        return None


def _link(connection: socket.socket, timeout: float) -> Link:
    connection.settimeout(timeout)
    # A firewall forgets a connection on which nothing is said for long.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return Link(connection, connection.makefile())


def _heard(link: Link) -> dict[str, Any]:
    """The next line as a dictionary; an empty one where nothing of the kind comes."""
    with suppress(OSError, ValueError):
        heard = json.loads(link.lines.readline(100_000_000))
        return heard if isinstance(heard, dict) else {}
    return {}


def _visit(
    host: str, port: int, processes: int, index: int, me: Member, deadline: float
) -> tuple[list[Member], int, dict[int, Link]]:
    link = _link(_reached(host, port, deadline), max(0.01, deadline - time.monotonic()))
    say(link, json.dumps({"process": index, "processes": processes, **me._asdict()}))
    answer = _heard(link)
    if {"members", "port"} <= answer.keys():
        return [Member(*member) for member in answer["members"]], answer["port"], {0: link}
    _close(link)
    if "error" in answer:
        raise InputError(answer["error"])
    late = time.monotonic() >= deadline
    why = "not all processes have come in time" if late else "it has ended, or something else listens there"
    raise InputError(f"process 0 at {host}:{port} must answer process {index}: {why}. Start all of them again.")


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
