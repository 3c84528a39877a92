"""Processes that share a run over the loopback interface."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from jaxdl.distributed.processes import free_port

ROOT = Path(__file__).parent.parent
PATIENCE = 600  # seconds to wait for a process on a busy machine
# The first lines of a script that joins the processes of `scripts`; `given` has the other arguments.
JOIN = """
import os, sys
from pathlib import Path
import jax
import numpy as np
from jaxdl import distributed
from jaxdl.distributed import processes
address, number, own, *given = sys.argv[1:]
number, own = int(number), int(own)
distributed.initialize(address, number, own)
"""
# The first lines of a script that imports single modules of jaxdl without the slow imports of the package.
LIGHT = f"""
import sys, types
package = sys.modules["jaxdl"] = types.ModuleType("jaxdl")
package.__path__ = [{str(ROOT / "jaxdl")!r}]
"""


@contextmanager
def running(*calls, **environment):
    """Start a Python process for each list of arguments; kill them at the end of the block."""
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", **environment}
    members = [
        subprocess.Popen(
            [sys.executable, *map(str, call)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=variables,
        )
        for call in calls
    ]
    try:
        yield members
    finally:
        for member in members:
            member.kill()
            member.communicate()


def ended(members, within=PATIENCE):
    """Wait for processes; return their exit codes and [(stdout, stderr), ...] without the lines of Gloo."""
    deadline = time.monotonic() + within
    texts = [member.communicate(timeout=max(1, deadline - time.monotonic())) for member in members]
    outputs = [tuple(re.sub(r".*\[Gloo\].*\n", "", text) for text in pair) for pair in texts]
    return [member.returncode for member in members], outputs


def scripts(body, number, *given, within=PATIENCE):
    """Run a script in `number` processes; check that all succeed, and return what each prints."""
    address = f"127.0.0.1:{free_port()}"
    with running(*(["-c", JOIN + body, address, number, own, *given] for own in range(number))) as members:
        codes, outputs = ended(members, within)
    assert codes == [0] * number, outputs
    return [stdout for stdout, _ in outputs]


def until(condition, members):
    """Wait until a condition holds; raise AssertionError if a process ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if any(member.poll() is not None for member in members) or time.monotonic() > deadline:
            raise AssertionError(ended(members, 1))
        time.sleep(0.01)
