"""Functions as values: what is made anew from equal parts is recognized as equal.

Python compares functions by identity, so `optax.adam(1e-3)` never equals another `optax.adam(1e-3)`. This module reads
what a function computes with: its code, defaults, closure, and the globals that it names.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np
import optax

P = ParamSpec("P")
R = TypeVar("R")

# Packages whose modules do not change while a program runs: their functions and classes are equal where they are the
# same. The globals of all other modules are read, because a notebook changes them between two cells.
CONSTANT = frozenset(
    ("builtins", "abc", "collections", "contextlib", "copy", "dataclasses", "enum", "functools", "inspect", "itertools")
    + (
        "math",
        "numbers",
        "operator",
        "re",
        "string",
        "types",
        "typing",
        "weakref",
        "jax",
        "jaxlib",
        "jaxtyping",
        "chex",
    )
    + (
        "jaxdl",
        "flax",
        "optax",
        "numpy",
        "scipy",
        "keras",
        "equinox",
        "haiku",
        "pandas",
        "sklearn",
        "einops",
        "ml_dtypes",
        "typing_extensions",
    )
)
# Names of numbers by which an optimizer only multiplies: a traced number gives the bits of a constant. (It does not
# where `1 - number` is computed, as with Adam's b2: Python computes that in float64.)
RATES = frozenset(("step_size", "learning_rate", "lr", "weight_decay"))
RATES_BY_FUNCTION = {"decay": "trace.<locals>.update_fn"}  # elsewhere `decay` stands in 1 - decay
MOST_NODES = 20_000
_FIELDS_OF_LINEN = frozenset(("_id", "_state", "_parent_ref", "scope"))
_NOT_COMPARED = frozenset(
    ("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__")
    + ("_abc_impl", "__abstractmethods__", "__annotations_cache__", "__annotate_func__", "__annotate__")
)


class Values(NamedTuple):
    """What a function, a plan or another record computes with."""

    key: Key  # equal for values of equal meaning
    numbers: tuple[float, ...]  # rates of the optimizer, which the key leaves out
    places: dict[tuple[int, int], int]  # where they are: (id of the holder, index in it) -> index in `numbers`


class Key:
    """A nested tuple with its hash, computed once."""

    __slots__ = ("_hash", "content")

    def __init__(self, content: Any) -> None:
        """Compute the hash."""
        self.content, self._hash = content, hash(content)

    def __hash__(self) -> int:
        """Return the hash of the content."""
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Compare the contents."""
        return self is other or (isinstance(other, Key) and self._hash == other._hash and self.content == other.content)


class SameObject:
    """An object that equals only itself; it lives as long as a key that holds it, so that its id stays its own."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameObject) and self.value is other.value


def read_values(value: Any, *, rates: bool = False) -> Values:
    """Return what a value computes with; rates: whether those of an optimizer are numbers beside the key.

    What cannot be read, such as an open file or an object of C code, equals nothing, not even itself later.
    """
    reader = _Reader()
    key = reader.read(value, "", "search" if rates else "")
    return Values(Key((key, reader.read_modules())), tuple(reader.numbers), reader.places)


def key_of(value: Any) -> Key:
    """Return a key that is equal for values of equal meaning."""
    return read_values(value).key


class _Reader:
    def __init__(self) -> None:
        self.numbers: list[float] = []
        self.places: dict[tuple[int, int], int] = {}
        self.seen: dict[tuple[int, str], int] = {}
        self.modules: list[types.ModuleType] = []
        self.attributes: set[str] = set()
        self.alive: list[Any] = []  # what is made while reading must live, or its id could be another's

    def read(self, value: Any, name: str = "", rates: str = "", holder: Any = None, index: int = 0) -> Any:
        """Return the key of a value; name: that of the variable.

        rates: "inside" of an optimizer, where floats may be rates; "around" these, in functions of the user, which may
        compute `1 - learning_rate`; "search" for an optimizer in records; "" elsewhere.
        """
        kind = type(value)
        if kind is float:
            place = getattr(holder, "__qualname__", "")
            if rates == "inside" and (name in RATES or RATES_BY_FUNCTION.get(name, "") == place != ""):
                self.places[id(holder), index] = len(self.numbers)
                self.numbers.append(value)
                return ("rate",)
            return kind, value.hex()
        if value is None or kind in (bool, int, str, bytes, type(Ellipsis), type(NotImplemented)):
            return kind, value
        if kind is complex:
            return kind, repr(value)
        # What the optimizer shares with other functions is read twice: its floats are rates in the optimizer alone.
        if (id(value), rates) in self.seen and kind is not tuple:
            return "seen", self.seen[id(value), rates]
        if len(self.seen) > MOST_NODES:
            return SameObject(object())
        self.seen[id(value), rates] = len(self.seen)
        self.alive.append(value)
        try:
            if rates and isinstance(value, optax.GradientTransformation):
                rates = "inside"
            return self._read_object(value, kind, rates)
        except Exception:  # of the object's own methods, or of an array that was donated
            return SameObject(object())

    def _read_object(self, value: Any, kind: type, rates: str) -> Any:
        if isinstance(value, jax.core.Tracer):
            return SameObject(value)
        if isinstance(value, Made):
            # Not its `key`, which is as old as the function: a global of an argument may have changed.
            return kind, *(self.read(part) for part in value.parts())
        if hasattr(kind, "__value_key__"):
            return self.read(kind), self.read(value.__value_key__())
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            is_plain = isinstance(value, jax.Array) or kind in (np.ndarray, np.memmap)
            return _read_array(value) if is_plain else (*_read_array(value), *self._read_vars(value))
        if isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] not in CONSTANT:
                self.modules.append(value)
            return SameObject(value)
        if isinstance(value, types.FunctionType):
            return self._read_function(value, _rates_of(value, rates))
        if isinstance(value, type):
            return self._read_class(value)
        if isinstance(value, (tuple, list)):
            names: Any = getattr(value, "_fields", ())
            entries = zip(names if len(names) == len(value) else [""] * len(value), value, strict=True)
            items = tuple(self.read(item, name, rates, value, i) for i, (name, item) in enumerate(entries))
            return (self.read(kind), *items, *self._read_vars(value))
        # Flax's FrozenDict compares its entries by `==`, for which 1 is True.
        if isinstance(value, (dict, types.MappingProxyType)) or (
            isinstance(value, Mapping) and _package(kind) == "flax"
        ):
            pairs = enumerate(value.items())
            items = tuple((self.read(k), self.read(v, str(k), rates, value, i)) for i, (k, v) in pairs)
            default = self.read(getattr(value, "default_factory", None))
            return (self.read(kind), default, *items, *self._read_vars(value))
        if isinstance(value, (set, frozenset)):
            items = tuple(self.read(item) for item in value)  # in the order in which a loop meets them
            return (self.read(kind), items, *self._read_vars(value))
        if isinstance(value, functools.partial):
            inside, parts = _rates_of(value.func, rates), (value.func, value.args, value.keywords)
            return (self.read(kind), *(self.read(part, "", inside) for part in parts), *self._read_vars(value))
        if isinstance(value, types.MethodType):
            return kind, self.read(value.__func__), self.read(value.__self__)
        if isinstance(value, (types.BuiltinFunctionType, np.ufunc)):
            owner = getattr(value, "__self__", value)
            if isinstance(owner, type):  # tuple.__new__, which every NamedTuple holds
                return kind, self.read(owner), value.__name__
            return SameObject(value if isinstance(owner, (types.ModuleType, np.ufunc)) else object())
        if isinstance(value, types.MethodWrapperType):
            return kind, value.__name__, self.read(value.__self__)
        if isinstance(value, weakref.ReferenceType):
            return kind, self.read(value())
        if isinstance(value, (jax.sharding.Mesh, jax.Device)) or _package(kind) == "logging":
            # JAX makes an equal mesh once; the handlers of a logger hold files and locks.
            return SameObject(value)
        if kind is slice:
            return kind, *map(self.read, (value.start, value.stop, value.step))
        if kind is types.SimpleNamespace:
            return (kind, *self._read_vars(value))
        if isinstance(value, (staticmethod, classmethod)):
            return kind, self.read(value.__func__)
        if isinstance(value, property):
            return (kind, *(self.read(part) for part in (value.fget, value.fset, value.fdel)))
        if isinstance(value, types.CodeType):
            return self._read_code(value)
        if isinstance(value, enum.Enum):
            return (self.read(kind), *self._read_vars(value))
        if _is_constant(value):
            return SameObject(value)
        wrapped = getattr(value, "__wrapped__", None)
        if callable(wrapped) and not isinstance(wrapped, type) and not _is_python(kind):
            return kind.__name__, self.read(wrapped)  # a function of functools.cache or jax.jit
        if _package(kind) == "jaxdl" and not hasattr(value, "_state") and kind.__hash__ not in (None, object.__hash__):
            return kind, value  # which compares what counts; modules of Flax compare their functions by identity
        is_record = dataclasses.is_dataclass(value) or kind.__hash__ in (None, object.__hash__)
        if is_record or (_package(kind) not in CONSTANT and _is_python(kind)):
            return (self.read(kind), *self._read_vars(value)) if _is_python(kind) else SameObject(object())
        try:
            hash(value)
        except TypeError:
            return SameObject(object())
        return (kind, value, *self._read_vars(value)) if _package(kind) not in CONSTANT else (kind, value)

    def _read_vars(self, value: Any) -> Iterator[Any]:
        """Yield the keys of an object's attributes."""
        is_linen = any(cls.__module__.startswith("flax.linen.") for cls in type(value).__mro__)
        linen = _FIELDS_OF_LINEN if is_linen else frozenset()
        for name, entry in getattr(value, "__dict__", {}).items():
            if name not in linen:
                yield name, self.read(entry)
        for cls in type(value).__mro__:
            for name, member in vars(cls).items() if "__slots__" in vars(cls) else ():
                if isinstance(member, types.MemberDescriptorType):
                    with suppress(AttributeError):  # not set
                        yield name, self.read(member.__get__(value))

    def _read_function(self, function: types.FunctionType, rates: str) -> Any:
        # Not its `__module__`, which functools.wraps sets to that of another function.
        constant = str(function.__globals__.get("__name__", "")).partition(".")[0] in CONSTANT
        if constant and not function.__closure__ and _is_constant(function):
            return SameObject(function)
        code = function.__code__
        key = (
            self._read_code(code),
            self.read(function.__defaults__),
            self.read(function.__kwdefaults__),
            tuple(
                self.read(_content(cell), name, rates, function, index)
                for index, (name, cell) in enumerate(zip(code.co_freevars, function.__closure__ or (), strict=True))
            ),
            tuple(self._read_vars(function)),
        )
        return ("function", *key) if constant else ("function", *key, self._read_globals(function))

    def _read_globals(self, function: types.FunctionType) -> Any:
        """Return the key of the globals that a function names, and of the modules that it imports."""
        names, attributes, imports = _names(function.__code__)
        self.attributes |= attributes
        scope = function.__globals__
        parents = str(scope.get("__package__") or "").split(".")
        prefixes = "", *(".".join(parents[: i + 1]) + "." for i in range(len(parents)))
        paths = [(prefix + name).strip(".") for name in sorted(imports) for prefix in prefixes]
        # Only what is loaded already: None stands for a module that the function would be the first to import.
        modules = tuple(self.read(inspect.getmodule(types.SimpleNamespace(__module__=path))) for path in paths)
        return modules, tuple((name, self.read(scope[name])) for name in sorted(names & scope.keys()))

    def read_modules(self) -> Any:
        """Return the keys of the attributes of modules that any function names, or holds as a text."""
        result: list[Any] = []
        visited: set[tuple[int, str]] = set()
        while True:
            places = [
                (module, name)
                for module in self.modules
                for name in sorted(self.attributes & vars(module).keys())
                if (id(module), name) not in visited
            ]
            if not places:
                return tuple(result)
            for module, name in places:
                if (id(module), name) not in visited:
                    visited.add((id(module), name))
                    result.append((SameObject(module), name, self.read(vars(module)[name])))

    def _read_code(self, code: types.CodeType) -> Any:
        constants = tuple(self.read(constant) for constant in code.co_consts)
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
        counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        return (code.co_code, code.co_name, constants, names, counts, getattr(code, "co_exceptiontable", b""))

    def _read_class(self, cls: type) -> Any:
        if (_package(cls) in CONSTANT and _is_constant(cls)) or cls.__module__ == "builtins":
            return SameObject(cls)
        bases = tuple(self.read(base) for base in cls.__bases__)
        members = tuple(
            (name, self.read(member))
            for name, member in vars(cls).items()
            if name not in _NOT_COMPARED and not isinstance(member, _DESCRIPTORS)
        )
        return ("class", cls.__name__, self.read(type(cls)), bases, members)


_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType, type(vars(Values)["key"]))


def _read_array(array: Any) -> Any:
    if isinstance(array, jax.Array):
        if not array.is_fully_addressable:
            return SameObject(array)
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            return ("key", str(array.dtype), _read_array(jax.random.key_data(array)))
    values = np.asarray(array)
    if values.dtype.hasobject:
        return SameObject(object())
    digest = hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).digest()
    kind = type(array) if isinstance(array, (np.ndarray, np.generic)) else jax.Array
    return kind, str(values.dtype), values.shape, bool(getattr(array, "weak_type", False)), digest


def _package(value: Any) -> str:
    module = getattr(value, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else ""


def _is_constant(value: Any) -> bool:
    """Return whether a value is what the name of a module that does not change stands for."""
    if _package(value) not in CONSTANT:
        return False
    result: Any = inspect.getmodule(value)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    for part in name.split(".") if isinstance(name, str) else ():
        result = getattr(result, part, None)
    return result is value


def _is_python(kind: type) -> bool:
    """Return whether all attributes of the instances of a class are in `__dict__` and `__slots__`."""
    roots = [cls for cls in kind.__mro__ if cls.__bases__ == (object,)]
    return bool(roots) and all(
        cls.__flags__ & _HEAP_TYPE and not vars(cls).keys().isdisjoint(("__dict__", "__slots__")) for cls in roots
    )


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that no C code declares


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return Ellipsis


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return the names of globals, attributes and imports in a function's code and in the functions that it defines.

    A text may be the name of an attribute, for `getattr`, or of a global, for `globals()`.
    """
    names, attributes, imports = set(), set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            attributes.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            parts = instruction.argval.split(".")
            imports |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    texts = {constant for constant in code.co_consts if isinstance(constant, str) and constant.isidentifier()}
    attributes |= texts
    if not names.isdisjoint(("globals", "vars", "eval", "exec")):
        names |= texts
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for result, inner in zip((names, attributes, imports), _names(constant), strict=True):
                result |= inner
    return frozenset(names), frozenset(attributes), frozenset(imports)


def _rates_of(function: Any, rates: str) -> str:
    """Return where a function of an optimizer is: "inside", or "around" for one of the user; "" elsewhere."""
    if rates not in ("inside", "around"):
        return ""
    module = str(getattr(function, "__globals__", {}).get("__name__", ""))
    return "inside" if module.partition(".")[0] in ("optax", "jaxdl") else "around"


def with_rates(value: Any, values: Values, numbers: Sequence[Any]) -> Any:
    """Return the value of which `values` were read, with these numbers, which may be traced, as its rates."""
    memo: dict[tuple[int, bool], Any] = {}
    replaced: set[tuple[int, int]] = set()

    def entry(holder: Any, index: int, content: Any, inside: bool) -> Any:
        if (id(holder), index) not in values.places:
            return replace(content, inside)
        replaced.add((id(holder), index))
        return numbers[values.places[id(holder), index]]

    def replace(value: Any, inside: bool) -> Any:
        inside = inside or isinstance(value, optax.GradientTransformation)
        place, result = (id(value), inside), value
        if place in memo:
            return memo[place]
        if inside and isinstance(value, types.FunctionType) and value.__closure__:
            cells = tuple(types.CellType() for _ in value.__closure__)
            result = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
            result.__kwdefaults__, result.__qualname__ = value.__kwdefaults__, value.__qualname__
            result.__module__ = value.__module__
            result.__dict__.update(value.__dict__)
            memo[place] = result  # before its cells, in which it may stand itself
            for index, (cell, old) in enumerate(zip(cells, value.__closure__, strict=True)):
                if (content := _content(old)) is not Ellipsis:
                    cell.cell_contents = entry(value, index, content, inside)
        elif isinstance(value, (tuple, list)):
            items = [entry(value, index, item, inside) for index, item in enumerate(value)]
            if any(new is not old for new, old in zip(items, value, strict=True)):
                result = type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        elif type(value) is dict:
            result = {key: entry(value, i, item, inside) for i, (key, item) in enumerate(value.items())}
        elif inside and type(value) is functools.partial:
            function, arguments, keywords = (replace(part, inside) for part in (value.func, value.args, value.keywords))
            result = functools.partial(function, *arguments, **keywords)
        memo[place] = result
        return result

    result = replace(value, False)
    if len(replaced) != len(values.places):
        raise RuntimeError(f"{len(values.places) - len(replaced)} rates of the optimizer are out of reach.")
    return result


class Made:
    """A function that a factory made: equal, hashable and picklable by the factory and its arguments."""

    def __init__(self, function: Callable[..., Any], factory: Callable[..., Any], place: Any, arguments: Any) -> None:
        """Hold the function, and what makes it again; place: the path to it in the factory's result."""
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        self._factory, self._place, self._arguments = factory, place, arguments

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function."""
        return self.__wrapped__(*arguments, **keywords)

    @functools.cached_property
    def key(self) -> Key:
        """What the factory and its arguments, with its defaults, compute with."""
        return key_of(self.parts())

    def parts(self) -> tuple[Any, ...]:
        """Return the factory, the path to the function in its result, and all arguments."""
        positional, keywords = self._arguments
        bound = inspect.signature(self._factory).bind(*positional, **keywords)
        bound.apply_defaults()
        return self._factory, self._place, bound.arguments

    def __eq__(self, other: object) -> bool:
        """Compare the factories and their arguments."""
        return self is other or (isinstance(other, Made) and self.key == other.key)

    def __hash__(self) -> int:
        """Return the hash of the factory and its arguments."""
        return hash(self.key)

    def __reduce__(self) -> Any:
        """Return what makes the function again."""
        positional, keywords = self._arguments
        portable = tuple(map(_portable, positional)), {name: _portable(value) for name, value in keywords.items()}
        return _make_again, (self._factory, self._place, portable)

    def __repr__(self) -> str:
        """Return the call that makes the function again."""
        positional, keywords = self._arguments
        texts = [*map(repr, positional), *(f"{name}={value!r}" for name, value in keywords.items())]
        return f"{self._factory.__name__}({', '.join(texts)}){''.join(f'.{part}' for part in self._place)}"


class _Record(NamedTuple):
    """A record by its class and the fields that differ from their defaults: Flax's defaults cannot be pickled."""

    cls: type
    fields: dict[str, Any]

    def make(self) -> Any:
        return self.cls(**{name: _from_portable(value) for name, value in self.fields.items()})


def _portable(value: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = (field for field in dataclasses.fields(value) if field.init)
    entries = {
        field.name: getattr(value, field.name) for field in fields if getattr(value, field.name) is not field.default
    }
    return _Record(type(value), {name: _portable(entry) for name, entry in entries.items()})


def _from_portable(value: Any) -> Any:
    return value.make() if isinstance(value, _Record) else value


def _make_again(factory: Callable[..., Any], place: Any, arguments: Any) -> Any:
    positional, keywords = arguments
    positional = map(_from_portable, positional)
    keywords = {name: _from_portable(value) for name, value in keywords.items()}
    result = factory(*positional, **keywords)
    for part in place:
        result = getattr(result, part)
    return result


def as_value(factory: Callable[P, R]) -> Callable[P, R]:
    """Make the functions that a factory returns equal, hashable and picklable by the factory and its arguments.

    The factory returns a function, or a NamedTuple that holds functions.
    """
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def make(*arguments: P.args, **keywords: P.kwargs) -> R:
        result = factory(*arguments, **keywords)
        bound = signature.bind(*arguments, **keywords)
        return wrap(result, (), (bound.args, bound.kwargs))

    def wrap(result: Any, place: tuple[str, ...], arguments: Any) -> Any:
        if isinstance(result, (types.FunctionType, Made)):
            return Made(
                getattr(result, "__wrapped__", result) if isinstance(result, Made) else result, make, place, arguments
            )
        if isinstance(result, tuple) and hasattr(result, "_fields"):
            entries = {
                name: wrap(entry, (*place, name), arguments) for name, entry in zip(result._fields, result, strict=True)
            }
            return type(result)(**entries)
        return result

    return make
