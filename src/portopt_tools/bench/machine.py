"""What the times depend on besides the code: processor, memory, and the versions of everything."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from portopt_tools import inventory

_PACKAGES = (
    "numpy",
    "torch",
    "jax",
    "jaxlib",
    "optax",
    "numba",
    "llvmlite",
    "array-api-compat",
    "optree",
    "cupy-cuda12x",
    "cupy-cuda13x",
)


_ABOUT_THREADS = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "PORTOPT_NUM_THREADS")
"""Beginnings of names of variables that set how libraries' threads work and wait."""


def versions() -> dict[str, str]:
    """Return the versions of portopt, Python and the packages that take part."""
    return inventory.versions(_PACKAGES)


def machine() -> dict[str, Any]:
    """Return what is known about the machine; None for what is not."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "byte_order": sys.byteorder,
        "processor": _from_proc("/proc/cpuinfo", "model name") or platform.processor() or None,
        "cpus": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_bytes": _kilobytes("MemTotal"),
        "load_at_start": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_ABOUT_THREADS)},
    }


def available_memory() -> int | None:
    """Return how many bytes processes can get without swapping; None if it is not known."""
    return _kilobytes("MemAvailable")


def _kilobytes(field: str) -> int | None:
    value = _from_proc("/proc/meminfo", field)
    return None if value is None else 1024 * int(value.split()[0])


def _from_proc(path: str, field: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), None)
