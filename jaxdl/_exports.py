"""What a package shows: its public names by `__all__` and `dir`, of which some load on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any


def set_public_names(package: dict[str, Any], lazy: Mapping[str, str] = MappingProxyType({})) -> None:
    """Set `__all__` and `__dir__` of a package to the names that its file imports, and to names that load on first use.

    package: the `globals()` of its file, after the imports. Modules and names with an underscore are private. They are
        set here, and not in the file, so that type checkers read its imports instead.
    lazy: the module of each name that loads on first use; "" where the name is itself a module of the package.
    """
    imported = {name for name, value in package.items() if name[0] != "_" and not isinstance(value, ModuleType)}
    names = sorted((imported | set(lazy)) - {"TYPE_CHECKING"})

    def load(name: str) -> Any:
        if name not in lazy:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        module = importlib.import_module(lazy[name] or f"{package['__name__']}.{name}")
        package[name] = getattr(module, name) if lazy[name] else module
        return package[name]

    package |= {"__all__": names, "__dir__": lambda: names, "__getattr__": load}
