"""Real processes that share a run, over this machine's loopback."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from jaxdl.distributed.processes import free_port

ROOT = Path(__file__).parent.parent
# For one process on a machine that is busy with others.
PATIENCE = 600
# A program's beginning that joins the processes which `scripts` starts, or none where it is alone; `given` is the rest.
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
# A program's beginning that makes importing a module of jaxdl import no more than that module does: what the package
# imports takes seconds, and the modules that wait for sockets, locks and signals need none of it.
LIGHT = f"""
import sys, types
package = sys.modules["jaxdl"] = types.ModuleType("jaxdl")
package.__path__ = [{str(ROOT / "jaxdl")!r}]
"""


@contextmanager
def running(*calls, **environment):
    """A process a call, of Python with these arguments; all are gone after the block."""
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
    """The exit codes of processes, and what each wrote to stdout and stderr, without the lines of JAX's own Gloo."""
    deadline = time.monotonic() + within
    texts = [member.communicate(timeout=max(1, deadline - time.monotonic())) for member in members]
    said = [tuple(re.sub(r".*\[Gloo\].*\n", "", text) for text in pair) for pair in texts]
    return [member.returncode for member in members], said


def scripts(body, number, *given, within=PATIENCE):
    """What so many processes print that run one program, each its own; all must end well."""
    address = f"127.0.0.1:{free_port()}"
    with running(*(["-c", JOIN + body, address, number, own, *given] for own in range(number))) as members:
        codes, said = ended(members, within)
    assert codes == [0] * number, said
    return [out for out, _ in said]


def until(condition, members):
    """Waits until something is so; an error where a process ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if any(member.poll() is not None for member in members) or time.monotonic() > deadline:
            raise AssertionError(ended(members, 1))
        time.sleep(0.01)
