"""Several processes: how they find each other, meet, talk and end."""

from __future__ import annotations

import hmac
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple, NoReturn, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdl.errors import InputError, printable

# What the launcher tells its processes.
NAMES = ("JAXDL_COORDINATOR", "JAXDL_PROCESSES", "JAXDL_PROCESS_ID")
SECRET = "JAXDL_SECRET"  # by which the processes of a run know each other


class Place(NamedTuple):
    """Where a process belongs."""

    host: str
    port: int
    processes: int
    own: int  # which of them this process is
    devices: list[int] | None  # those of this machine that are its own; None: all


def launched() -> bool:
    """Whether the launcher, `python -m jaxdl.launch`, has started this process."""
    return any(name in os.environ for name in NAMES)


def place(coordinator: str | None, processes: int | None, process_id: int | None) -> Place:
    """The place that is given; with nothing given the one that the launcher or a cluster tells.

    Raises InputError where it is not whole or cannot be.
    """
    given, subjects, devices = [coordinator, processes, process_id], ("coordinator", "processes", "process_id"), None
    if all(value is None for value in given):
        if launched():
            given, subjects = [os.environ.get(name) for name in NAMES], NAMES
        else:
            *given, devices = _detected()
        if given == [None] * 3:
            raise InputError(
                "coordinator, processes and process_id must be given, as no launcher or cluster was detected. "
                "Give all three, or start the program by python -m jaxdl.launch."
            )
    missing = [name for name, value in zip(subjects, given, strict=True) if value is None]
    if missing:
        raise InputError(f"{', '.join(subjects)} must be given together, got no {' and no '.join(missing)}.")
    host, port = _address(subjects[0], given[0])
    number, own = (_number(name, value) for name, value in zip(subjects[1:], given[1:], strict=True))
    if number < 1:
        raise InputError(f"{subjects[1]} must be at least 1, got {number}.")
    if not 0 <= own < number:
        raise InputError(
            f"{subjects[2]} must be from 0 to {number - 1} with {number} processes, got {own}. Count them from 0."
        )
    return Place(host, port, number, own, devices)


def _address(subject: str, address: object) -> tuple[str, int]:
    host, _, port = str(address).rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise InputError(f"{subject} must be HOST:PORT with a port from 1 to 65535, got {address!r}.")
    return host, int(port)


def whole(value: object) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _number(subject: str, value: Any) -> int:
    try:
        return int(value) if whole(value) or isinstance(value, str) else int("")
    except ValueError:
        raise InputError(f"{subject} must be a whole number, got {value!r}.") from None


def _detected() -> list[Any]:
    """Coordinator, processes, process_id and devices as JAX finds them; each None where it finds none."""
    try:
        # JAX has no public name for it.
        from jax._src.clusters import ClusterEnv

        return list(ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 30))
    except Exception as error:
        raise InputError(
            f"coordinator, processes and process_id must be given, as the cluster does not tell them: {error}."
        ) from None


# The exit code of a process that ends because another one has: EX_TEMPFAIL, "try again later".
LOST = 75


class Member(NamedTuple):
    """A process of the run."""

    pid: int
    host: str


class Link(NamedTuple):
    """A connection to another process, and what comes from there, line by line."""

    socket: socket.socket
    lines: TextIO


class Links(NamedTuple):
    """What a process knows of the others; process 0 is linked to each of them, and each of them to process 0."""

    own: int  # which process this is
    members: list[Member]
    port: int  # a free one on process 0's machine
    links: dict[int, Link]
    goodbyes: threading.Semaphore
    parted: threading.Event
    ending: threading.Lock


def linked(own: int, members: list[Member], port: int, links: dict[int, Link]) -> Links:
    """The connections of a process, over which nothing has been said yet."""
    return Links(own, members, port, links, threading.Semaphore(0), threading.Event(), threading.Lock())


def watch(links: Links) -> None:
    """From now on this process ends, with one line and exit code LOST, as soon as another one has ended.

    The system closes a process's connections when it ends, however it ends, so this takes milliseconds. A process
    that is only stopped and a machine that is gone with its cable are not found so, but by JAX's heartbeats.
    """
    for index in links.links:
        threading.Thread(target=_listen, args=(links, index), daemon=True).start()


def part(links: Links) -> None:
    """Waits until all processes have called it; from then on each may end."""
    if links.own != 0:
        say(links.links[0], "bye")
        links.goodbyes.acquire()
        return
    for _ in links.links:
        links.goodbyes.acquire()
    links.parted.set()
    for link in links.links.values():
        say(link, "bye")


def say(link: Link, word: str) -> None:
    """Sends one line; nothing where the other process has gone."""
    with suppress(OSError):
        link.socket.sendall(f"{word}\n".encode())


def _listen(links: Links, index: int) -> None:
    with suppress(OSError):  # Its end may be a reset.
        while line := links.links[index].lines.readline(100):
            word = line.strip()
            if word.isdecimal() and int(word) < len(links.members):
                _end(links, int(word))
            elif word == "bye":
                if index == 0:
                    links.parted.set()
                links.goodbyes.release()
    if not links.parted.is_set():
        _end(links, index)


def _end(links: Links, gone: int) -> None:
    # Never given back: of several that have gone the first is named.
    links.ending.acquire()
    pid, host = links.members[gone]
    others = [link for index, link in links.links.items() if index != gone]
    if links.own == 0:
        for link in others:
            say(link, str(gone))
    who = f"process {gone} (pid {pid} on {printable(host)})"
    text = f"{who} has ended, so process {links.own} ends too. Start all of them again."
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
    if links.own == 0 and others:
        # With this process JAX's runtime ends, which would abort the others before they have read who was lost.
        time.sleep(0.3)
    os._exit(LOST)


HELLO = 5.0  # seconds in which a process must say who it is
LINE, ANSWER = 2**16, 2**24  # the most bytes of what it says, and of the answer, which names all processes
HEARD = 256  # are heard at a time
_LATER = ("about", "secret")  # entries that may be left out


def local(host: str) -> bool:
    """Whether a host is this machine whoever says it: nobody else can come then."""
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
    """A port that nobody listens at."""
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


def _is_member(said: object) -> bool:
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


# Of what JAX's errors speak when another process has gone.
SIGNS = ("gloo", "nccl", "heartbeat", "socket closed", "coordination", "connection", "unhealthy")
# Seconds in which the connections to the others end if one has gone.
PATIENCE = 5.0
# JAX's runtime is one for the whole process, and so is this.
_joined: list[Links] = []


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat: int = 10,
    timeout: int = 120,
    about: Mapping[str, Any] | None = None,
    secret: str | None = None,
) -> None:
    """Makes this process one of several that compute together; to be called before JAX computes anything.

    `coordinator` is process 0's HOST:PORT. With nothing given it is what the launcher, SLURM, Open MPI, Kubernetes or a
    TPU pod says. All processes wait here for each other, `timeout` seconds at most. From then on, when one of them ends
    without `leave`, each of the others ends too, with one line that names it and exit code LOST, 75. One that is only
    stopped, or whose machine is gone, is found by JAX's heartbeats after about `heartbeat` seconds: JAX then aborts the
    others (SIGABRT). On a CPU each process has one device, and JAX's service for preemptions, which would swallow
    SIGTERM, is off.

    about: what all processes must agree on, as `meetings.meet` compares it: flags, versions, a name of the run.
    secret: a text that only the processes of this run know, by which they turn strangers away; by default that of the
    variable JAXDL_SECRET, which the launcher sets.

    Raises InputError for anything that does not fit, or does not come.

    >>> initialize("127.0.0.1:4000", processes=2, process_id=2)
    Traceback (most recent call last):
    jaxdl.errors.InputError: process_id must be from 0 to 1 with 2 processes, got 2. Count them from 0.
    """
    if _joined or jax.distributed.is_initialized():
        raise InputError("a process can join others once, and this one has. Call join at one place only.")
    for name, value in (("heartbeat", heartbeat), ("timeout", timeout)):
        if not whole(value) or value < 1:
            raise InputError(f"{name} must be a whole number of seconds, at least 1, got {value!r}.")
    host, port, number, own, devices = place(coordinator, processes, process_id)
    _prepare()
    known = os.environ.get(SECRET, "") if secret is None else secret
    links = meet(host, port, number, own, timeout, about, known)
    watch(links)
    _joined.append(links)
    # A port of its own, told to those who have met: JAX's runtime aborts a process whose coordinator does not come.
    address = f"[{host}]:{links.port}" if ":" in host else f"{host}:{links.port}"
    jax.distributed.initialize(
        *(address, number, own, devices),
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=heartbeat,
        # All have met in `leave` before, so nobody is waited for.
        shutdown_timeout_seconds=heartbeat,
        coordinator_bind_address=address if local(host) else None,
    )


def index() -> int:
    """Which of the processes this is; 0 where it is alone, without asking JAX for its devices."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def count() -> int:
    """How many processes there are; 1 where this one is alone, without asking JAX for its devices."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is process 0, which prints and writes for all.

    >>> is_main()
    True
    """
    return index() == 0


def broadcast_text(text: str) -> str:
    """Process 0's text, in every process; all of them must call it."""
    if count() == 1:
        return text
    content = text.encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    # Rounded up, so that texts of all lengths need few programs.
    padded = np.zeros(1 << max(8, length.bit_length()), np.uint8)
    if is_main():
        padded[:length] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].tobytes().decode()


def all_gather(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """The whole numbers (k,) of every process: int64 (P, k), in every process; all of them must call it.

    Raises InputError for anything but a vector of whole numbers. Each process must give equally many.
    """
    vector = np.asarray(numbers)
    if vector.ndim != 1 or vector.dtype.kind not in "iub":
        raise InputError(
            f"what is gathered must be a vector of whole numbers, got {vector.dtype} {vector.shape}. Use np.ravel."
        )
    vector = vector.astype(np.int64)
    if count() == 1:
        return vector[None]
    # As bytes, because JAX would cut them to 32 bits.
    return np.asarray(multihost_utils.process_allgather(vector.view(np.uint8))).view(np.int64)


def peer_lost(error: BaseException) -> str | None:
    """What to say of an error that JAX raises because another process has gone; None for any other error.

    Where that process has ended, this one ends while it waits here, with its own line (see `join`).
    """
    if not (_joined and isinstance(error, jax.errors.JaxRuntimeError)):
        return None
    text = str(error)
    if not any(sign in text.lower() for sign in SIGNS):
        return None
    time.sleep(PATIENCE)
    return f"another process cannot be reached: {text.partition(chr(10))[0]}. Start all of them again."


def shutdown() -> None:
    """Waits until all processes have come here, and ends what `join` began; nothing where none was joined.

    Every process must call it at its end. One that ends otherwise has failed, for the others.

    >>> shutdown()
    """
    if _joined:
        part(_joined[0])
        jax.distributed.shutdown()


def abort(code: int) -> NoReturn:
    """Ends this process at once with an exit code and without waiting for the others, which then end too."""
    if not _joined:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    # JAX would wait for the others when the interpreter ends.
    os._exit(code)


def _prepare() -> None:
    try:
        # Two processes of two CPU devices each have waited for each other for ever. JAX refuses only a change.
        for devices in (2, 1):
            jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        raise InputError("join must come before JAX computes or lists its devices. Call it first in main.") from None
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
