"""The collective operations of a compiled function, read from its HLO text."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

KINDS = (
    *("all-reduce", "all-gather", "all-to-all", "ragged-all-to-all"),
    *("reduce-scatter", "collective-permute", "collective-broadcast"),
)
# A line `%name (arguments) -> type {`.
_HEAD = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*\) -> .* \{$")
# An asynchronous collective is two operations; the second, `-done`, has the result.
_CALL = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({'|'.join(KINDS)})(?:-done)?\(")
_LOOP = re.compile(r"\b(?:body|condition)=%([\w.-]+)")
_CALLED = re.compile(r"\b(?:to_apply|calls|body|condition|\w+_computations?)=(\{[^}]*\}|%[\w.-]+)")
_NAME = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,<=]*)\]")
_LAYOUT_OR_COMMENT = re.compile(r"\{[^}]*\}|/\*.*?\*/")
_WHERE = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """A collective operation of all devices."""

    kind: str  # of KINDS
    sizes: tuple[int, ...]  # bytes of each result array on a device
    where: str  # the JAX operation that it belongs to
    looped: bool  # in a loop, so it may run many times

    @property
    def bytes(self) -> int:
        """Return the bytes of all result arrays on a device."""
        return sum(self.sizes)


def collectives(text: str) -> list[Collective]:
    """Return the collectives of the text of `compiled.as_text()`, in order.

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
    result = []
    for name, lines in bodies.items():
        for line in lines:
            call, where = _CALL.match(line), _WHERE.search(line)
            if call:
                sizes = _sizes(call[1])
                result.append(Collective(call[2], sizes, where[1] if where else "", name in looped))
    return result


def _bodies(text: str) -> dict[str, list[str]]:
    """Return the lines of each computation by name."""
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
    """Return the computations inside loops: bodies, conditions and all computations that they call."""
    looped: set[str] = set()
    waiting = [name for lines in bodies.values() for line in lines for name in _LOOP.findall(line)]
    while waiting:
        name = waiting.pop()
        if name in bodies and name not in looped:
            looped.add(name)
            waiting += _NAME.findall(" ".join(_CALLED.findall("\n".join(bodies[name]))))
    return looped


def _sizes(form: str) -> tuple[int, ...]:
    """Return the bytes of each array of a type such as (f32[2,3]{1,0}, bf16[])."""
    sizes = []
    for kind, bits, sides in _ARRAY.findall(_LAYOUT_OR_COMMENT.sub("", form)):
        count = math.prod(int(side.lstrip("<=")) for side in sides.split(",") if side)
        sizes.append(-(-count * (8 if kind == "pred" else int(bits)) // 8))
    return tuple(sizes)
