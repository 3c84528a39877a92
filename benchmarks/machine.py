"""The machine in words, so that figures can be judged."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax


def describe() -> str:
    """Processor, cores, memory, accelerator and versions, in a line.

    >>> "jax" in describe()
    True
    """
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    device = jax.devices()[0]
    accelerator = "no accelerator" if device.platform == "cpu" else device.device_kind
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax"))
    return (
        f"{_processor()}, {os.cpu_count()} cores, {gigabytes:.0f} GiB, {accelerator}; "
        f"Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    if told.exists():
        for line in told.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
