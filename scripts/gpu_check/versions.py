"""What is installed, and which GPU there is."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import portopt
from gpu_check.options import Options

_PACKAGES = (
    "numpy", "torch", "jax", "jaxlib", "cupy", "numba", "llvmlite", "optax", "ml_dtypes", "array_api_compat", "optree",
)  # fmt: skip


def run(options: Options) -> Mapping[str, Any]:
    """Return the versions."""
    found: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    for name in _PACKAGES:
        try:
            found[name] = getattr(importlib.import_module(name), "__version__", "?")
        except Exception as error:
            found[name] = f"missing: {type(error).__name__}: {error}"
    found["portopt backends"] = {}
    for name, backend in portopt.backends().items():
        with contextlib.suppress(Exception):
            found["portopt backends"][name] = dict(backend.devices())
    if options.on_gpu:
        query = ["--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, timeout=20, check=False)
            found["gpu"] = done.stdout.strip()
        with contextlib.suppress(Exception):
            found["nvrtc"] = importlib.import_module("cupy").cuda.nvrtc.getVersion()
    print(json.dumps(found, default=str), flush=True)
    return found
