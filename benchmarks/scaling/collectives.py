"""What the devices of a compiled program tell each other, read from its text."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

KINDS = (
    *("all-reduce", "all-gather", "all-to-all", "ragged-all-to-all"),
    *("reduce-scatter", "collective-permute", "collective-broadcast"),
)
# `%name (arguments) -> type {`, in a line of its own.
_HEAD = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*\) -> .* \{$")
# Where one begins and ends in two operations, its result is that of the second.
_CALL = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({'|'.join(KINDS)})(?:-done)?\(")
_LOOP = re.compile(r"\b(?:body|condition)=%([\w.-]+)")
_CALLED = re.compile(r"\b(?:to_apply|calls|body|condition|\w+_computations?)=(\{[^}]*\}|%[\w.-]+)")
_NAME = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,<=]*)\]")
_LAYOUT_OR_COMMENT = re.compile(r"\{[^}]*\}|/\*.*?\*/")
_WHERE = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One operation in which all devices take part."""

    kind: str  # of KINDS
    sizes: tuple[int, ...]  # bytes of each array that a device has afterwards
    where: str  # the operations of the model that it is part of, as JAX names them
    looped: bool  # whether it is in a loop, so may happen many times

    @property
    def bytes(self) -> int:
        """Bytes of all its arrays on a device."""
        return sum(self.sizes)


def collectives(text: str) -> list[Collective]:
    """The collectives of a program in XLA's text, that of `compiled.as_text()`, in the order in which they stand.

    >>> text = '''
    ... %body (a: f32[8]) -> f32[8] {
    ...   ROOT %b = f32[8]{0} all-reduce(%a), metadata={op_name="step/sum"}
    ... }
    ... ENTRY %main (a: f32[8]) -> f32[8] {
    ...   ROOT %c = f32[8]{0} while(%a), condition=%test, body=%body
    ... }'''
    >>> collectives(text)
    [Collective(kind='all-reduce', sizes=(32,), where='step/sum', looped=True)]
    """
    bodies = _bodies(text)
    looped = _looped(bodies)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            call, where = _CALL.match(line), _WHERE.search(line)
            if call:
                sizes = _sizes(call[1])
                found.append(Collective(call[2], sizes, where[1] if where else "", name in looped))
    return found


def _bodies(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a program, by its name."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            lines = bodies[head[1]] = []
        else:
            lines.append(line)
    return bodies


def _looped(bodies: dict[str, list[str]]) -> set[str]:
    """The computations that are in a loop: those of the loops, and all that they call."""
    looped: set[str] = set()
    waiting = [name for lines in bodies.values() for line in lines for name in _LOOP.findall(line)]
    while waiting:
        name = waiting.pop()
        if name in bodies and name not in looped:
            looped.add(name)
            waiting += _NAME.findall(" ".join(_CALLED.findall("\n".join(bodies[name]))))
    return looped


def _sizes(form: str) -> tuple[int, ...]:
    """The bytes of each array of a type, such as (f32[2,3]{1,0}, bf16[])."""
    found = []
    for kind, bits, sides in _ARRAY.findall(_LAYOUT_OR_COMMENT.sub("", form)):
        count = math.prod(int(side.lstrip("<=")) for side in sides.split(",") if side)
        found.append(-(-count * (8 if kind == "pred" else int(bits)) // 8))
    return tuple(found)
