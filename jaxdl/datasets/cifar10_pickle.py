"""A pickled file of CIFAR-10, read as data: nothing that it names is looked up, imported or called.

Source: the instructions of Python's `pickle`, protocols 2 to 4, as its module `pickletools` describes them.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdl.errors import InputError

MOST = 300_000  # instructions: a batch as it was published has some 30,000
ADVICE = "Do not trust this copy. Get it again."

# What a pickled array names, under NumPy's old name and its new one, and how Python 3 writes bytes in protocol 2.
NAMES = {
    *(("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
}

# The instructions, and the form of the number that follows each.
NUMBERS = {pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BININT: "<i"}
STRINGS = {pickle.SHORT_BINSTRING: "<B", pickle.BINSTRING: "<i", pickle.SHORT_BINBYTES: "<B", pickle.BINBYTES: "<I"}
TEXTS = {pickle.SHORT_BINUNICODE: "<B", pickle.BINUNICODE: "<I"}
PUTS = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I", pickle.MEMOIZE: "<"}
GETS = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
FRAMING = {pickle.PROTO: "<B", pickle.FRAME: "<Q"}
EMPTY = {pickle.EMPTY_TUPLE: tuple, pickle.EMPTY_LIST: list, pickle.EMPTY_DICT: dict}
CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
# How many values an instruction takes from the stack; None for all above the last mark.
TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3, pickle.TUPLE: None}
APPENDS = {pickle.APPEND: 1, pickle.APPENDS: None}
SETS = {pickle.SETITEM: 2, pickle.SETITEMS: None}
TAKES = TUPLES | APPENDS | SETS | {pickle.STACK_GLOBAL: 2, pickle.REDUCE: 2, pickle.BUILD: 1}
FORMS = {
    code: struct.Struct(form)
    for code, form in (
        dict.fromkeys((*EMPTY, *CONSTANTS, *TAKES, pickle.MARK, pickle.GLOBAL, pickle.STOP), "<")
        | (NUMBERS | STRINGS | TEXTS | PUTS | GETS | FRAMING)
    ).items()
}


@dataclass
class Named:
    """What stands in a file for something that has a name, and for what is made by calling that."""

    name: str
    arguments: Any = None
    state: Any = None


def load(name: str, content: bytes) -> dict[str, Any]:
    """The pickled dict of bytes, texts, numbers, lists, tuples and arrays; its keys as texts, its arrays as `Named`.

    `name` is what messages call it. Raises InputError where the content names or does anything that a batch of
    CIFAR-10 has no need of, is cut short or damaged, or is no dict.

    >>> load("mine", pickle.dumps({"labels": [6, 9]}, protocol=2))
    {'labels': [6, 9]}
    """
    try:
        value = _Machine(name, content).run()
    except InputError:
        raise
    except (struct.error, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{name} must be a pickled file of CIFAR-10, got one cut short or damaged. {ADVICE}"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{name} must hold a pickled dict, got a {type(value).__name__}. {ADVICE}")
    return {key.decode(errors="replace") if isinstance(key, bytes) else key: item for key, item in value.items()}


def table(name: str, value: Any) -> NDArray[np.uint8]:
    """The array of bytes, (rows, columns), that `load` has left as `Named`.

    Raises InputError for anything else.

    >>> content = pickle.dumps({"data": np.array([[1, 2], [3, 4]], np.uint8)}, protocol=4)
    >>> table("mine", load("mine", content)["data"]).tolist()
    [[1, 2], [3, 4]]
    """
    match value:
        case Named("_reconstruct", _, (_, (int(rows), int(columns)), Named("dtype", (kind, *_)), False, bytes(cells))):
            # Python 3 spells the type as a text, Python 2 as a string.
            if kind in ("u1", b"u1") and rows >= 0 and columns >= 0 and rows * columns == len(cells):
                return np.frombuffer(cells, np.uint8).reshape(rows, columns)
    raise InputError(f"{name} must be an array of bytes in rows and columns, got something else. {ADVICE}")


class _Machine:
    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content = name, content
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0  # characters

    def run(self) -> Any:
        for code, argument in self.instructions():
            if code == pickle.STOP:
                return self.stack.pop()
            if code in PUTS:
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            elif code == pickle.MARK:
                self.marks.append(len(self.stack))
            elif code in TAKES:
                count = TAKES[code]
                start = self.marks.pop() if count is None else len(self.stack) - count
                values = self.stack[start:]
                del self.stack[start:]
                self.take(code, values)
            elif code not in FRAMING:
                self.stack.append(self.value(code, argument))
        raise self.refusal(f"more than {MOST} instructions")

    def refusal(self, got: str) -> InputError:
        return InputError(f"{self.name} must hold images and labels only, got {got[:100]}. {ADVICE}")

    def instructions(self) -> Iterator[tuple[bytes, Any]]:
        """Each instruction with what belongs to it: a number, a string or a text, the two parts of a name, or None."""
        at = 0
        for _ in range(MOST):
            code = self.content[at : at + 1]
            if code and code not in FORMS:
                raise InputError(
                    f"{self.name} must hold images and labels only, got the instruction {code!r}. {ADVICE}"
                )
            form = FORMS[code]
            argument: Any = next(iter(form.unpack_from(self.content, at + 1)), None)
            at += 1 + form.size
            if code in STRINGS or code in TEXTS:
                string = self.content[at : at + argument]
                if len(string) != argument:
                    raise EOFError
                argument = string if code in STRINGS else string.decode()
                at += len(string)
            elif code == pickle.GLOBAL:
                middle = self.content.index(b"\n", at)
                end = self.content.index(b"\n", middle + 1)
                argument = self.content[at:middle].decode(), self.content[middle + 1 : end].decode()
                at = end + 1
            yield code, argument

    def take(self, code: bytes, values: list[Any]) -> None:
        """An instruction that works on values from the stack."""
        if code in TUPLES:
            self.stack.append(tuple(values))
        elif code in APPENDS:
            self.stack[-1].extend(values)
        elif code in SETS:
            # Only what is quickly hashed.
            if not all(isinstance(key, (bytes, str)) for key in values[::2]):
                raise TypeError
            self.stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif code == pickle.BUILD:
            self.stack[-1].state = values[0]
        elif code == pickle.REDUCE:
            self.stack.append(self.made(*values))
        else:
            # Only what is quickly hashed, here as well: a tuple of tuples may take for ever.
            if not all(isinstance(name, str) for name in values):
                raise TypeError
            self.stack.append(self.named(*values))

    def value(self, code: bytes, argument: Any) -> Any:
        """What an instruction puts on the stack that takes nothing from it."""
        if code in GETS:
            return self.memo[argument]
        if code == pickle.GLOBAL:
            return self.named(*argument)
        if code in EMPTY:
            return EMPTY[code]()
        return CONSTANTS.get(code, argument)

    def named(self, module: str, name: str) -> Named:
        if (module, name) not in NAMES:
            raise self.refusal(f"{module}.{name}")
        return Named(name)

    def made(self, function: Named, arguments: tuple[Any, ...]) -> Any:
        if function.name != "encode":
            return Named(function.name, arguments)
        text, _ = arguments
        # Each text is made into bytes once: no small file makes many large strings of one.
        self.encoded += len(text)
        if self.encoded > len(self.content):
            raise ValueError
        return text.encode("latin1")
