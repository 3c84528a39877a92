"""The size on disk of packages with all their requirements.

    python -m benchmarks.contestants.installed jaxdl keras+torch

prints a line of JSON: megabytes by name, null for a package that is not installed. Needs Python alone, because it runs
in the environment of the peers too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from benchmarks.contestants.start import ROOT

NAME = re.compile(r"[A-Za-z0-9._-]+")


def megabytes(names: str) -> float | None:
    """Return the MB of the packages in "keras+torch" with all requirements, or None if one is not installed."""
    try:
        packages = [distribution(name) for name in names.split("+")]
    except PackageNotFoundError:
        return None
    return sum(_size(one) for one in closure(packages).values()) / 1e6


def sizes(python: str, *names: str) -> dict[str, float | None]:
    """Return `megabytes` of each list, in the environment of a Python."""
    command = [python, "-m", "benchmarks.contestants.installed", *names]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout
    megabytes_by_name: dict[str, float | None] = json.loads(output)
    return megabytes_by_name


def closure(packages: list[Distribution]) -> dict[str, Distribution]:
    """Return the distributions and all their requirements by name, without those of extras.

    >>> sorted({"pytest", "pluggy"} & closure([distribution("pytest")]).keys())
    ['pluggy', 'pytest']
    """
    known: dict[str, Distribution] = {}
    queue = list(packages)
    while queue:
        one = queue.pop()
        name = one.metadata["Name"].lower().replace("_", "-")
        if name in known:
            continue
        known[name] = one
        for requirement in one.requires or ():
            if "extra ==" in requirement:
                continue
            match = NAME.match(requirement)
            try:
                queue.append(distribution(match.group() if match else requirement))
            except PackageNotFoundError:
                continue  # a requirement of another platform or Python
    return known


def _size(one: Distribution) -> int:
    paths = (Path(str(one.locate_file(path))) for path in one.files or () if path.suffix != ".pyc")
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    print(json.dumps({names: megabytes(names) for names in sys.argv[1:]}))
