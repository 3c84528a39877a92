"""Several processes of one run: how they find each other, exchange values and end together."""

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
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdl.errors import InputError, printable

# The environment variables that the launcher sets: the place of a process, and the secret that its run shares.
VARIABLES = ("JAXDL_COORDINATOR", "JAXDL_PROCESSES", "JAXDL_PROCESS_ID")
SECRET = "JAXDL_SECRET"
LOST = 75  # the exit code of a process that ends because a peer has ended: EX_TEMPFAIL
# Words in the errors that JAX raises when a peer has ended.
SIGNS = ("gloo", "nccl", "heartbeat", "socket closed", "coordination", "connection", "unhealthy")
PATIENCE = 5.0  # seconds in which the connection to a peer that has ended closes
HELLO_TIMEOUT = 5.0  # seconds in which a new connection must say hello
MAX_HELLO, MAX_ANSWER = 2**16, 2**24  # bytes of a hello, and of the answer, which lists all processes
MAX_CONNECTIONS = 256  # that are yet to say hello
OPTIONAL = ("about", "secret")  # entries of a hello


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
    """Connect this process to the other processes of a run; call it before JAX computes anything.

    Without arguments, the launcher, SLURM, Open MPI, Kubernetes or a TPU pod gives the place of the process. All
    processes wait here for each other. From then on, when one of them ends without `shutdown`, each of the others
    prints its name and exits with code 75. JAX's heartbeats find a process that hangs, or whose machine is gone, after
    about `heartbeat` seconds; JAX then aborts the others (SIGABRT). On a CPU each process has one device, and JAX's
    service for preemptions, which would swallow SIGTERM, is off.

    coordinator: HOST:PORT of process 0.
    timeout: seconds to wait for the other processes.
    about: a dict in JSON's types that must be equal in all processes, such as flags and versions.
    secret: a string that only the processes of this run know; connections without it are closed. By default the
        variable JAXDL_SECRET, which the launcher sets.

    Raises InputError for arguments that do not fit, for a process that does not connect in time, and for an `about`
    that differs.

    >>> initialize("127.0.0.1:4000", processes=2, process_id=2)
    Traceback (most recent call last):
    jaxdl.errors.InputError: process_id must be from 0 to 1 with 2 processes, got 2. Count them from 0.
    """
    if _current or jax.distributed.is_initialized():
        raise InputError("initialize must be called once in a process, and was called before. Remove one call.")
    for name, value in (("heartbeat", heartbeat), ("timeout", timeout)):
        if not is_whole_number(value) or value < 1:
            raise InputError(f"{name} must be a whole number of seconds, at least 1, got {value!r}.")
    place = find_place(coordinator, processes, process_id)
    _configure_jax()
    known_secret = os.environ.get(SECRET, "") if secret is None else secret
    peers = connect(place.host, place.port, place.processes, place.process_id, timeout, about, known_secret)
    watch(peers)
    _current.append(peers)
    # JAX gets another port, which only connected processes know: it aborts a process whose coordinator does not answer.
    address = f"[{place.host}]:{peers.port}" if ":" in place.host else f"{place.host}:{peers.port}"
    jax.distributed.initialize(
        *(address, place.processes, place.process_id, place.devices),
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=heartbeat,
        # `shutdown` waits for all processes before JAX does.
        shutdown_timeout_seconds=heartbeat,
        coordinator_bind_address=address if is_loopback(place.host) else None,
    )


def _configure_jax() -> None:
    """Set one CPU device for this process, and turn off the preemption service."""
    try:
        # Two processes of two CPU devices each can deadlock. JAX raises only for a change, so the number changes here.
        for devices in (2, 1):
            jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        raise InputError(
            "initialize must be called before JAX computes or lists its devices. Call it first in main."
        ) from None
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)


def shutdown() -> None:
    """Wait until all processes call this function, and close the connections; do nothing in a single process.

    Every process must call it at its end: to the others, a process that ends without it has failed.

    >>> shutdown()
    """
    if _current:
        disconnect(_current[0])
        jax.distributed.shutdown()


def abort(code: int) -> NoReturn:
    """Exit at once with a code, without waiting for the other processes, which then end too."""
    if not _current:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    # JAX waits for the others when the interpreter ends.
    os._exit(code)


def index() -> int:
    """Return the index of this process; 0 for a single process, without initializing JAX's devices."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def count() -> int:
    """Return the number of processes; 1 for a single process, without initializing JAX's devices."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is process 0, which prints and writes files for all processes.

    >>> if is_main():
    ...     print("epoch 1")
    epoch 1
    """
    return index() == 0


def broadcast_text(text: str) -> str:
    """Return the text of process 0 in every process; all processes must call it."""
    if count() == 1:
        return text
    content = text.encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    # Padded to a power of two: texts of many lengths then share a few compiled functions.
    padded = np.zeros(1 << max(8, length.bit_length()), np.uint8)
    if is_main():
        padded[:length] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].tobytes().decode()


def all_gather(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the integers (k,) of all P processes as int64 (P, k) in every process; all processes must call it.

    Raises InputError for another shape or dtype. k must be equal in all processes.
    """
    vector = np.asarray(numbers)
    if vector.ndim != 1 or vector.dtype.kind not in "iub":
        raise InputError(f"numbers must be a vector of whole numbers, got {vector.dtype} {vector.shape}. Use np.ravel.")
    vector = vector.astype(np.int64)
    if count() == 1:
        return vector[None]
    # As bytes: JAX would convert int64 to int32.
    return np.asarray(multihost_utils.process_allgather(vector.view(np.uint8))).view(np.int64)


def peer_lost(error: BaseException) -> str | None:
    """Return a message for an error that JAX raises because another process is gone; None for any other error.

    Where that process has ended, this process exits while it waits here, with the message of `initialize`.
    """
    if not (_current and isinstance(error, jax.errors.JaxRuntimeError)):
        return None
    text = str(error)
    if not any(sign in text.lower() for sign in SIGNS):
        return None
    time.sleep(PATIENCE)
    return f"another process cannot be reached: {text.partition(chr(10))[0]}. Start all of them again."


# The place of a process, from arguments, the launcher or a cluster.


class Place(NamedTuple):
    """The address of process 0, and the index of this process."""

    host: str
    port: int
    processes: int
    process_id: int
    devices: list[int] | None  # the ids of this process's devices on its machine; None: all


def is_launched() -> bool:
    """Return whether the launcher, `python -m jaxdl.launch`, has started this process."""
    return any(name in os.environ for name in VARIABLES)


def find_place(coordinator: str | None, processes: int | None, process_id: int | None) -> Place:
    """Return the place that the arguments give or, without any, the launcher or a cluster.

    Raises InputError where a part of the place is missing or impossible.
    """
    names, devices = ("coordinator", "processes", "process_id"), None
    values: list[Any] = [coordinator, processes, process_id]
    if all(value is None for value in values):
        if is_launched():
            values, names = [os.environ.get(name) for name in VARIABLES], VARIABLES
        else:
            *values, devices = _detect_cluster()
        if values == [None] * 3:
            raise InputError(
                "coordinator, processes and process_id must be given, as no launcher or cluster was detected. "
                "Give all three, or start the program by python -m jaxdl.launch."
            )
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    if missing:
        raise InputError(f"{', '.join(names)} must be given together, got no {' and no '.join(missing)}.")
    host, port = _parse_address(names[0], values[0])
    count, index = (_parse_number(name, value) for name, value in zip(names[1:], values[1:], strict=True))
    if count < 1:
        raise InputError(f"{names[1]} must be at least 1, got {count}.")
    if not 0 <= index < count:
        raise InputError(
            f"{names[2]} must be from 0 to {count - 1} with {count} processes, got {index}. Count them from 0."
        )
    return Place(host, port, count, index, devices)


def _parse_address(name: str, address: object) -> tuple[str, int]:
    host, _, port = str(address).rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise InputError(f"{name} must be HOST:PORT with a port from 1 to 65535, got {address!r}.")
    return host, int(port)


def is_whole_number(value: object) -> bool:
    """Return whether a value is an integer of Python or NumPy, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _parse_number(name: str, value: Any) -> int:
    with suppress(ValueError):
        if is_whole_number(value) or isinstance(value, str):
            return int(value)
    raise InputError(f"{name} must be a whole number, got {value!r}.")


def _detect_cluster() -> list[Any]:
    """Return coordinator, processes, process_id and devices as JAX detects them, each None where it detects none."""
    try:
        # JAX has no public name for it.
        from jax._src.clusters import ClusterEnv

        return list(ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 30))
    except Exception as error:
        raise InputError(
            f"coordinator, processes and process_id must be given, as the cluster does not tell them: {error}."
        ) from None


# The connections of process 0 to all others, by which a process notices that a peer has ended.


class Member(NamedTuple):
    """The identity of a process of a run."""

    pid: int
    host: str


class Connection(NamedTuple):
    """A socket to another process, and the lines that arrive from there."""

    socket: socket.socket
    lines: TextIO

    def send(self, line: str) -> None:
        """Send a line; a peer that has ended is no error."""
        with suppress(OSError):
            self.socket.sendall(f"{line}\n".encode())

    def close(self) -> None:
        """Close the socket and its file."""
        self.lines.close()
        self.socket.close()


@dataclass
class Peers:
    """The other processes of a run: process 0 is connected to each of them, and each of them to process 0."""

    index: int  # of this process
    members: list[Member]
    port: int  # a free port on the machine of process 0
    connections: dict[int, Connection]
    goodbyes: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    all_said_goodbye: threading.Event = field(default_factory=threading.Event)
    exiting: threading.Lock = field(default_factory=threading.Lock)


# JAX's runtime is one for the whole process, and so are the peers.
_current: list[Peers] = []


def watch(peers: Peers) -> None:
    """Exit this process with a message and the code LOST as soon as another process has ended.

    The operating system closes the connections of a process within milliseconds of its end. A process that hangs, and a
    machine whose cable is unplugged, are noticed by JAX's heartbeats instead.
    """
    for index in peers.connections:
        threading.Thread(target=_listen, args=(peers, index), daemon=True).start()


def disconnect(peers: Peers) -> None:
    """Wait until all processes call it; after that each of them may end."""
    if peers.index != 0:
        peers.connections[0].send("bye")
        peers.goodbyes.acquire()
        return
    for _ in peers.connections:
        peers.goodbyes.acquire()
    peers.all_said_goodbye.set()
    for connection in peers.connections.values():
        connection.send("bye")


def _listen(peers: Peers, index: int) -> None:
    """Read the lines of a peer: the index of a process that has ended, or its goodbye."""
    with suppress(OSError):  # The end of a connection may be a reset.
        while line := peers.connections[index].lines.readline(100):
            word = line.strip()
            if word.isdecimal() and int(word) < len(peers.members):
                _exit(peers, int(word))
            elif word == "bye":
                if index == 0:
                    peers.all_said_goodbye.set()
                peers.goodbyes.release()
    if not peers.all_said_goodbye.is_set():
        _exit(peers, index)


def _exit(peers: Peers, gone: int) -> None:
    """Exit because process `gone` has ended."""
    # Never released: only the first of several processes that have ended is reported.
    peers.exiting.acquire()
    pid, host = peers.members[gone]
    others = [connection for index, connection in peers.connections.items() if index != gone]
    if peers.index == 0:
        for connection in others:
            connection.send(str(gone))
    name = f"process {gone} (pid {pid} on {printable(host)})"
    text = f"{name} has ended, so process {peers.index} ends too. Start all of them again."
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
    if peers.index == 0 and others:
        # JAX's coordinator ends with this process, and aborts the others: they must read the name of `gone` before.
        time.sleep(0.3)
    os._exit(LOST)


# How the processes connect to process 0.


def is_loopback(host: str) -> bool:
    """Return whether only processes of this machine can reach a host."""
    return host in ("localhost", "::1") or host.startswith("127.")


def connect(
    host: str,
    port: int,
    processes: int,
    index: int,
    timeout: float,
    about: Mapping[str, Any] | None = None,
    secret: str = "",
) -> Peers:
    """Wait until all processes are connected to process 0, which listens at host and port.

    about: must be equal in all processes; the error names the first entry that differs. secret: a connection that sends
    another one, or no hello within seconds, is closed, and delays no other.

    Raises InputError where the port is taken, a process is missing after `timeout` seconds or connects twice, or the
    processes differ in their number or in `about`.
    """
    me = Member(os.getpid(), socket.gethostname())
    deadline = time.monotonic() + timeout
    # As JSON returns it: a tuple is a list in the other process.
    hello = {"processes": processes, "about": json.loads(json.dumps(about or {})), "secret": secret}
    if index == 0:
        peers = _accept_all(host, port, hello, me, deadline)
    else:
        peers = _join_main(host, port, {"process": index, **hello, **me._asdict()}, deadline)
    for connection in peers.connections.values():
        connection.socket.settimeout(None)
    return peers


def free_port() -> int:
    """Return a port at which no process listens."""
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


def _accept_all(host: str, port: int, settings: dict[str, Any], me: Member, deadline: float) -> Peers:
    """Accept the connections of all other processes, in process 0."""
    processes, members = settings["processes"], {0: me}
    connections: dict[int, Connection] = {}
    hellos: queue.Queue[tuple[Connection, dict[str, Any]]] = queue.Queue()
    try:
        with _listening(host, port) as server, ExitStack() as stack:
            # `close` alone would leave the accepting thread at the port, and later connections without an answer.
            stack.callback(_shut, server)
            threading.Thread(target=_accept, args=(server, hellos, settings["secret"]), daemon=True).start()
            while len(members) < processes:
                try:
                    connection, hello = hellos.get(timeout=max(0.01, deadline - time.monotonic()))
                except queue.Empty:
                    missing = [str(index) for index in range(processes) if index not in members]
                    raise InputError(
                        f"all {processes} processes must come to {host}:{port} in time; missing: "
                        f"{', '.join(missing)}. Start each with its own process_id."
                    ) from None
                index, member = hello["process"], Member(hello["pid"], hello["host"])
                earlier = members.get(index)
                members[index], connections[index] = member, connections.get(index, connection)
                if hello["processes"] != processes:
                    raise InputError(
                        f"every process must be given the same number of processes, got {processes} in process 0 and "
                        f"{hello['processes']} in process {index}."
                    )
                if earlier:
                    both = " and ".join(f"pid {pid} on {host}" for pid, host in (earlier, member))
                    duplicate = InputError(
                        f"every process must have a process_id of its own, got {index} from {both}. Count them from 0."
                    )
                    _refuse(connection, duplicate)
                    raise duplicate
                _check_agreement(settings["about"], hello["about"], index)
    except InputError as error:
        for connection in connections.values():
            _refuse(connection, error)
        raise
    peers = Peers(0, [members[index] for index in range(processes)], free_port(), connections)
    for connection in connections.values():
        connection.send(json.dumps({"members": peers.members, "port": peers.port}))
    return peers


def _accept(server: socket.socket, hellos: queue.Queue[tuple[Connection, dict[str, Any]]], secret: str) -> None:
    """Read the hello of every connection, until the server is closed."""
    slots = threading.Semaphore(MAX_CONNECTIONS)

    def read(accepted: socket.socket) -> None:
        try:
            hello = _read_message(accepted, MAX_HELLO, time.monotonic() + HELLO_TIMEOUT)
            if _is_hello(hello) and hmac.compare_digest(
                *(text.encode("utf-8", "surrogatepass") for text in (hello["secret"], secret))
            ):
                hellos.put((_connection(accepted, HELLO_TIMEOUT), hello))
            else:
                accepted.close()
        finally:
            slots.release()

    with suppress(OSError):
        server.settimeout(None)
        while True:
            accepted = server.accept()[0]
            if slots.acquire(blocking=False):
                # In a thread of its own: a connection that sends nothing delays no other.
                threading.Thread(target=read, args=(accepted,), daemon=True).start()
            else:
                accepted.close()


def _shut(server: socket.socket) -> None:
    with suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)


def _is_hello(message: dict[str, Any]) -> bool:
    """Return whether a message is the hello of a process of a run; fill in its optional entries."""
    kinds = {"process": int, "processes": int, "pid": int, "host": str, "about": dict, "secret": str}
    message |= {name: kinds[name]() for name in OPTIONAL if name not in message}
    if any(type(message.get(name)) is not kind for name, kind in kinds.items()):
        return False
    return 0 < message["process"] < message["processes"] and message["pid"] > 0 and len(message["host"]) < 256


def _check_agreement(ours: dict[str, Any], theirs: dict[str, Any], index: int) -> None:
    """Raise InputError that names the first entry of `about` in which process 0 and another process differ."""
    for name in {**ours, **theirs}:
        here, there = (f"{about[name]!r:.200}" if name in about else "nothing" for about in (ours, theirs))
        if ours.get(name) != theirs.get(name) or (name in ours) != (name in theirs):
            raise InputError(
                f"all processes of a run must have the same {name:.80}, got {here} in process 0 and {there} in process "
                f"{index}. Start all of them with the same."
            )


def _refuse(connection: Connection, error: InputError) -> None:
    connection.send(json.dumps({"error": str(error)}))
    connection.close()


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens at a port: of a loopback host on this machine alone, else on all interfaces."""
    try:
        if is_loopback(host):
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise InputError(
            f"process 0 cannot listen at {host}:{port}: {os.strerror(error.errno or 0)}. Choose another port."
        ) from None


def _connection(connected: socket.socket, timeout: float) -> Connection:
    connected.settimeout(timeout)
    # A firewall drops a connection that is silent for long.
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return Connection(connected, connected.makefile(errors="replace"))


def _read_message(connected: socket.socket, most: int, deadline: float) -> dict[str, Any]:
    """Return the next line, an object in JSON; an empty dict for any other line, and for none before the deadline."""
    content = b""
    with suppress(OSError, ValueError, RecursionError):
        while b"\n" not in content and len(content) < most:
            connected.settimeout(max(0.01, deadline - time.monotonic()))
            block = connected.recv(65536)
            if not block or time.monotonic() > deadline:
                return {}
            content += block
        message = json.loads(content)
        return message if isinstance(message, dict) else {}
    return {}


def _join_main(host: str, port: int, hello: dict[str, Any], deadline: float) -> Peers:
    """Connect to process 0, and wait for its answer, which comes when all processes are connected."""
    index = hello["process"]
    connection = _connection(_reach(host, port, deadline), max(0.01, deadline - time.monotonic()))
    connection.send(json.dumps(hello))
    answer = _read_message(connection.socket, MAX_ANSWER, deadline)
    members, jax_port = answer.get("members"), answer.get("port")
    if isinstance(members, list) and all(map(_is_member, members)) and type(jax_port) is int and 0 < jax_port < 65536:
        return Peers(index, [Member(*member) for member in members], jax_port, {0: connection})
    connection.close()
    if isinstance(answer.get("error"), str):
        raise InputError(answer["error"][:2000])
    late = time.monotonic() >= deadline
    reason = "not all processes have come in time" if late else "it has ended, or something else listens there"
    raise InputError(f"process 0 at {host}:{port} must answer process {index}: {reason}. Start all of them again.")


def _is_member(value: object) -> bool:
    return isinstance(value, list) and [type(entry) for entry in value] == [int, str]


def _reach(host: str, port: int, deadline: float) -> socket.socket:
    """Return a connected socket; try again until the deadline."""
    while True:
        try:
            connected = socket.create_connection((host, port), timeout=5)
            # Linux connects a port to itself where nothing listens yet.
            if connected.getsockname() != connected.getpeername():
                return connected
            connected.close()
            reason = "nobody listens"
        except OSError as error:
            reason = error.strerror or "no answer"
        if time.monotonic() >= deadline:
            raise InputError(
                f"process 0 must be reached at {host}:{port}, got: {reason}. Start it, or correct the address."
            )
        time.sleep(0.1)
