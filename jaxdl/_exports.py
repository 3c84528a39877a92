"""The public names of a package: `__all__`, `__dir__`, and names that load on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any


def set_public_names(package: dict[str, Any], lazy: Mapping[str, str] = MappingProxyType({})) -> None:
    """Set `__all__`, `__dir__` and `__getattr__` of a package.

    Type checkers do not see these, and take the public names from the imports of the file.

    package: the `globals()` of its file, after the imports. Modules and names with an underscore are private.
    lazy: the module of each name that loads on first use; "" for a name that is a module of the package.
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
