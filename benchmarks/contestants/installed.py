"""The size on disk of what an installation brings: a package with all that it requires.

    python -m benchmarks.contestants.installed jaxdl keras+torch

prints a line of JSON: megabytes by name, null where a package is not installed. Needs nothing but Python: it runs in
the peers' environment too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from benchmarks.contestants.start import ROOT

NAME = re.compile(r"[A-Za-z0-9._-]+")


def megabytes(names: str) -> float | None:
    """MB of the files of the packages in a list such as "keras+torch", with all that they require.

    >>> megabytes("no-such-package") is None
    True
    """
    try:
        found = [distribution(name) for name in names.split("+")]
    except PackageNotFoundError:
        return None
    return sum(_size(one) for one in closure(found).values()) / 1e6


def sizes(python: str, *names: str) -> dict[str, float | None]:
    """`megabytes` of each list, in the environment of a Python."""
    asked = [python, "-m", "benchmarks.contestants.installed", *names]
    found: dict[str, float | None] = json.loads(
        subprocess.run(asked, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout
    )
    return found


def closure(found: list[Distribution]) -> dict[str, Distribution]:
    """The distributions and those that they require, by name; what is asked for by extras alone is left out.

    >>> sorted({"pytest", "pluggy"} & closure([distribution("pytest")]).keys())
    ['pluggy', 'pytest']
    """
    known: dict[str, Distribution] = {}
    left = list(found)
    while left:
        one = left.pop()
        name = one.metadata["Name"].lower().replace("_", "-")
        if name in known:
            continue
        known[name] = one
        for requirement in one.requires or ():
            if "extra ==" in requirement:
                continue
            match = NAME.match(requirement)
            try:
                left.append(distribution(match.group() if match else requirement))
            except PackageNotFoundError:
                continue  # a marker that does not hold here
    return known


def _size(one: Distribution) -> int:
    paths = (one.locate_file(path) for path in one.files or () if path.suffix != ".pyc")
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    print(json.dumps({names: megabytes(names) for names in sys.argv[1:]}))
