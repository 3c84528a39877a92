"""Connections between the processes of a run, which end when a process does."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import NamedTuple, TextIO

from jaxdl.errors import printable

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
    """The connections of a process, over which nothing has been said yet.

    >>> linked(0, [Member(4711, "here")], 4000, {}).parted.is_set()
    False
    """
    return Links(own, members, port, links, threading.Semaphore(0), threading.Event(), threading.Lock())


def watch(links: Links) -> None:
    """From now on this process ends, with one line and exit code LOST, as soon as another one has ended.

    The system closes a process's connections when it ends, however it ends, so this takes milliseconds. A process
    that is only stopped and a machine that is gone with its cable are not found so, but by JAX's heartbeats.

    >>> watch(linked(0, [Member(4711, "here")], 4000, {}))  # alone
    """
    for index in links.links:
        threading.Thread(target=_listen, args=(links, index), daemon=True).start()


def part(links: Links) -> None:
    """Waits until all processes have called it; from then on each may end.

    >>> part(linked(0, [Member(4711, "here")], 4000, {}))  # alone
    """
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
    """Sends one line; nothing where the other process has gone.

    >>> here, there = socket.socketpair()
    >>> say(Link(here, here.makefile()), "bye")
    >>> there.recv(10)
    b'bye\\n'
    >>> here.close(), there.close()
    (None, None)
    """
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
